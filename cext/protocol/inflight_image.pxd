# The durable image of what is in flight, as it stands in the queue file. Header only.
#
# A byte with the format, then entries of 11 bytes, big-endian: message id (8), packet id (2), state (1). One in the
# state FINISHED stands for rows that are to be deleted: the first message id, and as packet id how many. From NOTE on
# an entry is the owner's (`Session.notes`): a number, a value and its kind. One in the state PLACES has in the place of
# the packet id how many places the server's session may hold. One in the state LAST_GIVEN has the last packet id that
# was given: a session that comes back older may still hold those before it, so that a later process goes on behind it.

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint64_t

from exchanges cimport FREE, Exchange, Table
from mqtt_wire cimport load_u16, store_u16

cdef enum:
    IMAGE_FORMAT = 1
    IMAGE_ENTRY_BYTES = 11
    FINISHED = 3
    RESERVED = 4
    PLACES = 5
    LAST_GIVEN = 6
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


cdef inline int add_finished(list entries, ranges) except -1:
    """An entry, or several, for each inclusive range of message ids."""
    cdef uint16_t count
    cdef int64_t first, last
    for first, last in ranges:
        while first <= last:
            count = <uint16_t>min(last - first + 1, <int64_t>FINISHED_MAX)
            entries.append((first, count, FINISHED))
            first += count
    return 0


cdef inline bytes image_of(const Table* table, list entries):
    """The exchanges of QoS 2 in flight, and (message id, packet id, state) of whatever else an image names."""
    cdef int slot
    cdef const Exchange* exchange
    cdef bytes image = PyBytes_FromStringAndSize(
        NULL, 1 + IMAGE_ENTRY_BYTES * (table.in_flight + <Py_ssize_t>len(entries)))
    cdef uint8_t* start = <uint8_t*>PyBytes_AS_STRING(image)
    cdef uint8_t* at = start + 1
    start[0] = IMAGE_FORMAT
    for slot in range(table.capacity):
        exchange = &table.exchanges[slot]
        if exchange.state != FREE and exchange.qos == 2:
            at = put_entry(at, exchange.message_id, exchange.packet_id, exchange.state)
    for message_id, packet_id, state in entries:
        at = put_entry(at, message_id, packet_id, state)
    return image[:at - start]


cdef inline list entries_of(bytes image):
    """(message id, packet id, state) of all that an image names. Raises ValueError where it is none."""
    cdef Py_ssize_t size = PyBytes_GET_SIZE(image)
    cdef const uint8_t* at = <const uint8_t*>PyBytes_AS_STRING(image)
    cdef Py_ssize_t index
    if size == 0:
        return []
    if at[0] != IMAGE_FORMAT or (size - 1) % IMAGE_ENTRY_BYTES:
        raise ValueError(f"an in-flight image of format {at[0]} and {size} bytes; this version reads format 1")
    return [(get_message_id(at + index), load_u16(at + index + 8), at[index + 10])
            for index in range(1, size, IMAGE_ENTRY_BYTES)]
