"""JSON text of numbers and strings, written at a caller's pointer.

Contract
  - Every `put_*` writes at `p`, returns the first byte after what it wrote, and owns nothing.
  - The caller has room before it calls: NUMBER_ROOM for a number, ESCAPED_ROOM times the UTF-8 size for a string.
  - A finite double is written as the shortest decimal that reads back as the same double, and always with a
    fraction or an exponent; NaN and infinity must have been refused before.
  - No locale, no global state. Only `put_double` can fail (memory), and only it needs the GIL.
"""

from libc.math cimport fabs, signbit
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy, strlen

from cpython.conversion cimport Py_DTSF_ADD_DOT_0, PyOS_double_to_string
from cpython.mem cimport PyMem_Free

cdef enum:
    NUMBER_ROOM = 24   # -2.2250738585072014e-308, -0.000012345678901234567
    ESCAPED_ROOM = 6   # \u001f


cdef inline char* put(char* p, const char* literal) noexcept nogil:
    """A literal; compilers fold both calls away."""
    cdef size_t size = strlen(literal)
    memcpy(p, literal, size)
    return p + size


# --------------------------------------------------------------------------------------------------------- integers

cdef inline void put_digits(char* p, uint32_t n, int width) noexcept nogil:
    """`n` in exactly `width` digits. 32-bit, since ARMv7 has no 64-bit division."""
    cdef const char* pairs = (
        b"0001020304050607080910111213141516171819202122232425262728293031323334353637383940414243444546474849"
        b"5051525354555657585960616263646566676869707172737475767778798081828384858687888990919293949596979899"
    )
    while width >= 2:
        width -= 2
        memcpy(p + width, pairs + 2 * (n % 100), 2)
        n //= 100
    if width == 1:
        p[0] = <char>(c'0' + n)


cdef inline char* put_padded(char* p, uint64_t n, int width) noexcept nogil:
    """`n` in exactly `width` digits, zeros in front."""
    cdef char* end = p + width
    while width > 8:
        width -= 8
        put_digits(p + width, <uint32_t>(n % 100000000), 8)
        n //= 100000000
    put_digits(p, <uint32_t>n, width)
    return end


cdef inline char* put_uint64(char* p, uint64_t n) noexcept nogil:
    cdef int width = 1
    cdef uint64_t limit = 10
    # 10^20 does not fit, and the twentieth digit is the last there can be.
    while width < 20 and n >= limit:
        limit *= 10
        width += 1
    return put_padded(p, n, width)


cdef inline char* put_int64(char* p, int64_t n) noexcept nogil:
    if n >= 0:
        return put_uint64(p, <uint64_t>n)
    p[0] = c'-'
    return put_uint64(p + 1, 0 - <uint64_t>n)


# ---------------------------------------------------------------------------------------------------------- doubles

cdef inline uint64_t nearest_scaled(
    uint64_t mantissa, uint64_t five, int shift, uint64_t* distance
) noexcept nogil:
    """mantissa * five / 2^shift to the nearest integer, and how far that is in units of 2^-shift.

    mantissa < 2^53, five < 2^49, 1 <= shift < 64, and the result must be below 2^63. The product is built from
    32-bit halves because a 32-bit target has no 128-bit integer.
    """
    cdef uint64_t half = 0xFFFFFFFF
    cdef uint64_t low = (mantissa & half) * (five & half)
    cdef uint64_t middle = (mantissa >> 32) * (five & half) + (mantissa & half) * (five >> 32) + (low >> 32)
    cdef uint64_t high = (mantissa >> 32) * (five >> 32) + (middle >> 32)
    cdef uint64_t unit = (<uint64_t>1) << shift
    cdef uint64_t quotient
    low = (middle << 32) | (low & half)
    quotient = (high << (64 - shift)) | (low >> shift)
    low &= unit - 1
    if 2 * low > unit or (2 * low == unit and quotient & 1):
        distance[0] = unit - low
        return quotient + 1
    distance[0] = low
    return quotient


cdef inline char* put_double_by_python(char* p, double value) except NULL:
    cdef char* text = PyOS_double_to_string(value, c'r', 0, Py_DTSF_ADD_DOT_0, NULL)  # ours until freed below
    p = put(p, text)
    PyMem_Free(text)
    return p


cdef inline char* put_double(char* p, double value) except NULL:
    """The shortest decimal that reads back as `value`.

    A decimal of up to 15 digits survives a double, so it is the shortest if n / 10^k == value for the least k, and
    that division is exact enough to decide it: n and 10^k <= 10^22 are doubles themselves. Sensor values end here
    after a few trials. Values that need 16 or 17 digits are scaled exactly in integers: half the distance to the next
    double is 5^k / 2 in the scaled units, so 16 digits do if the nearest integer is closer than that, and 17 always
    do. (Powers of two, where that distance is uneven, have 15 digits or fewer in this range.)
    """
    cdef uint64_t bits, mantissa, n, distance, whole
    cdef uint64_t leading_bit = (<uint64_t>1) << 52
    cdef uint64_t five = 1   # 5^k
    cdef double ten = 1.0    # 10^k
    cdef double scaled, magnitude = fabs(value)
    cdef int shift, k = 0
    if magnitude >= 1e15 or (magnitude < 1e-5 and magnitude != 0.0):
        return put_double_by_python(p, value)
    if signbit(value):
        p[0] = c'-'
        p += 1
    while True:
        scaled = magnitude * ten
        if scaled >= 1e15:
            memcpy(&bits, &magnitude, sizeof(bits))
            mantissa = (bits & (leading_bit - 1)) | leading_bit
            shift = 1075 - <int>(bits >> 52) - k
            n = nearest_scaled(mantissa, five, shift, &distance)
            if 2 * distance >= five:
                k += 1
                five *= 5
                n = nearest_scaled(mantissa, five, shift - 1, &distance)
            break
        n = <uint64_t><int64_t>(scaled + 0.5)
        # Rounding moves an exact match by 2^-52 of itself at most; a wider gap spares the division.
        if fabs(scaled - <double>n) <= scaled * 4.5e-16 and <double>n / ten == magnitude:
            break
        k += 1
        ten *= 10.0
        five *= 5
    # The decimal cannot pass the integer above `magnitude`, for that integer is a double and nearer.
    whole = <uint64_t><int64_t>magnitude
    p = put_uint64(p, whole)
    p[0] = c'.'
    if k == 0:
        p[1] = c'0'
        return p + 2
    # 10^k wraps from k = 20 on, where `whole` is 0.
    return put_padded(p + 1, n - whole * (five << k), k)


# ---------------------------------------------------------------------------------------------------------- strings

cdef inline bint needs_escape(uint64_t block) noexcept nogil:
    """True if one of eight bytes is a control character, a quote or a backslash."""
    cdef uint64_t ones = 0x0101010101010101
    cdef uint64_t quote = block ^ (0x22 * ones)
    cdef uint64_t backslash = block ^ (0x5C * ones)
    cdef uint64_t found = (block - 0x20 * ones) & ~block
    found |= (quote - ones) & ~quote
    found |= (backslash - ones) & ~backslash
    return (found & (0x80 * ones)) != 0


cdef inline char* put_escape(char* p, unsigned char c) noexcept nogil:
    cdef const char* hexadecimal = b"0123456789abcdef"
    p[0] = c'\\'
    if c == c'"' or c == c'\\':
        p[1] = <char>c
    elif c == c'\n':
        p[1] = c'n'
    elif c == c'\t':
        p[1] = c't'
    elif c == c'\r':
        p[1] = c'r'
    elif c == 0x08:
        p[1] = c'b'
    elif c == 0x0C:
        p[1] = c'f'
    else:
        memcpy(p + 1, b"u00", 3)
        p[4] = hexadecimal[c >> 4]
        p[5] = hexadecimal[c & 15]
        return p + 6
    return p + 2


cdef inline char* put_escaped(char* p, const char* text, Py_ssize_t size) noexcept nogil:
    """UTF-8 text as the inside of a JSON string."""
    cdef const char* end = text + size
    cdef uint64_t block
    cdef unsigned char c
    while text < end:
        if end - text >= 8:
            memcpy(&block, text, 8)
            if not needs_escape(block):
                memcpy(p, &block, 8)
                text += 8
                p += 8
                continue
        c = <unsigned char>text[0]
        text += 1
        if c >= 0x20 and c != c'"' and c != c'\\':
            p[0] = <char>c
            p += 1
        else:
            p = put_escape(p, c)
    return p
