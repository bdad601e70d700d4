# MQTT's data representation (MQTT 3.1.1 and 5.0, section 1.5): byte stores and loads in C, header only.
#
# Big-endian fields are written and read byte by byte: a cast of an unaligned pointer faults on ARMv7.

from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint16_t, uint32_t

cdef enum PacketType:
    CONNECT = 0x10
    CONNACK = 0x20
    PUBLISH = 0x30
    PUBACK = 0x40
    PUBREC = 0x50
    PUBREL = 0x60
    PUBCOMP = 0x70
    SUBSCRIBE = 0x80
    SUBACK = 0x90
    UNSUBSCRIBE = 0xA0
    UNSUBACK = 0xB0
    PINGREQ = 0xC0
    PINGRESP = 0xD0
    DISCONNECT = 0xE0
    AUTH = 0xF0

cdef enum:
    REMAINING_LENGTH_MAX = 268435455
    FIXED_HEADER_MAX_BYTES = 5


cdef inline void store_u16(uint8_t* at, uint16_t value) noexcept nogil:
    at[0] = <uint8_t>(value >> 8)
    at[1] = <uint8_t>(value & 0xFF)


cdef inline uint16_t load_u16(const uint8_t* at) noexcept nogil:
    return <uint16_t>((at[0] << 8) | at[1])


cdef inline size_t store_remaining_length(uint8_t* at, uint32_t value) noexcept nogil:
    # Section 2.2.3 (3.1.1) and 1.5.5 (5.0): seven bits a byte, least significant first.
    cdef size_t used = 0
    while value > 127:
        at[used] = <uint8_t>((value & 127) | 128)
        value >>= 7
        used += 1
    at[used] = <uint8_t>value
    return used + 1


cdef inline size_t remaining_length_bytes(size_t value) noexcept nogil:
    # What `store_remaining_length` uses.
    return 1 if value < 1 << 7 else 2 if value < 1 << 14 else 3 if value < 1 << 21 else 4


cdef inline int load_remaining_length(const uint8_t* at, size_t available, uint32_t* value) noexcept nogil:
    # Returns the bytes used, 0 where more are needed, -1 where a fifth would be.
    cdef uint32_t total = 0
    cdef size_t used
    for used in range(4):
        if used == available:
            return 0
        total |= <uint32_t>(at[used] & 127) << <uint32_t>(7 * used)
        if not at[used] & 128:
            value[0] = total
            return <int>(used + 1)
    return -1
