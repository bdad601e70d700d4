# MQTT's text (MQTT 3.1.1 and 5.0, section 1.5.4), looked at in C. Header only.

from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memchr, memcpy


cdef inline int utf8_length(const uint8_t* at, size_t available) noexcept nogil:
    """Bytes of the character at `at`, 0 where it is ill-formed or NUL (section 1.5.4)."""
    cdef uint8_t lead = at[0]
    cdef uint8_t low = 0x80
    cdef uint8_t high = 0xBF
    cdef int size, index
    if lead < 0x80:
        return 1 if lead else 0
    if 0xC2 <= lead <= 0xDF:
        size = 2
    elif 0xE0 <= lead <= 0xEF:
        size = 3
        if lead == 0xE0:
            low = 0xA0
        elif lead == 0xED:
            # Surrogates.
            high = 0x9F
    elif 0xF0 <= lead <= 0xF4:
        size = 4
        if lead == 0xF0:
            low = 0x90
        elif lead == 0xF4:
            high = 0x8F
    else:
        return 0
    if available < <size_t>size or not low <= at[1] <= high:
        return 0
    for index in range(2, size):
        if at[index] & 0xC0 != 0x80:
            return 0
    return size


cdef inline bint is_mqtt_text(const uint8_t* at, size_t size) noexcept nogil:
    """True for well-formed UTF-8 without U+0000."""
    cdef size_t index = 0
    cdef uint64_t eight
    cdef int used
    while index < size:
        if size - index >= 8:
            memcpy(&eight, at + index, 8)
            # Eight ASCII characters, none of them NUL.
            if not (eight & 0x8080808080808080ULL) and not (
                    (eight - 0x0101010101010101ULL) & ~eight & 0x8080808080808080ULL):
                index += 8
                continue
        used = utf8_length(at + index, size - index)
        if used == 0:
            return False
        index += <size_t>used
    return True


cdef inline bint has_wildcard(const uint8_t* at, size_t size) noexcept nogil:
    return memchr(at, c"+", size) is not NULL or memchr(at, c"#", size) is not NULL
