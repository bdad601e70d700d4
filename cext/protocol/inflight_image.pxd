# The durable image of what is in flight, as it stands in the queue file. Header only.
#
# A byte with the format, then entries of 11 bytes, big-endian: message id (8), packet id (2), state (1). One in the
# state FINISHED stands for rows that are to be deleted: the first message id, and as packet id how many. From NOTE on
# an entry is the owner's (`Session.notes`): a number, a value and its kind. One in the state PLACES has in the place of
# the packet id how many places the server's session may hold.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint64_t

from mqtt_wire cimport store_u16

cdef enum:
    IMAGE_FORMAT = 1
    IMAGE_ENTRY_BYTES = 11
    FINISHED = 3
    RESERVED = 4
    PLACES = 5
    NOTE = 0x80
    FINISHED_MAX = 0xFFFF


cdef inline uint8_t* put_entry(uint8_t* at, int64_t message_id, uint16_t packet_id, uint8_t state) noexcept:
    cdef int shift
    for shift in range(8):
        at[shift] = <uint8_t>((<uint64_t>message_id >> <uint64_t>(8 * (7 - shift))) & 0xFF)
    store_u16(at + 8, packet_id)
    at[10] = state
    return at + IMAGE_ENTRY_BYTES


cdef inline int64_t get_message_id(const uint8_t* at) noexcept:
    cdef uint64_t value = 0
    cdef int index
    for index in range(8):
        value = (value << 8) | at[index]
    return <int64_t>value
