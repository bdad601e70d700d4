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
    NUMBER_ROOM = 32   # -2.2250738585072014e-308 is the longest; digits are written in blocks of eight
    ESCAPED_ROOM = 6   # \u001f


cdef inline char* put(char* p, const char* literal) noexcept nogil:
    """A string up to its NUL; for a literal compilers fold both calls away."""
    cdef size_t size = strlen(literal)
    memcpy(p, literal, size)
    return p + size


# --------------------------------------------------------------------------------------------------------- integers

# Digits are computed side by side, as lanes of one word: no table and no loop. Widths come from comparisons and not
# from the digits, so that a processor knows where the next field begins before it has this one's digits.

cdef inline uint32_t four_digits(uint32_t n) noexcept nogil:
    """The decimal digits of n < 10^4 as four bytes, the first in the lowest."""
    cdef uint32_t hundreds = n // 100
    cdef uint32_t twos = hundreds | ((n - 100 * hundreds) << 16)
    cdef uint32_t tens = ((twos * 103) >> 10) & 0x000F000F
    return tens | ((twos - 10 * tens) << 8)


cdef inline uint64_t eight_digits(uint32_t n) noexcept nogil:
    """The same of n < 10^8 as eight bytes."""
    cdef uint32_t upper = n // 10000
    return four_digits(upper) | (<uint64_t>four_digits(n - 10000 * upper) << 32)


cdef inline void put_four(char* p, uint32_t digits) noexcept nogil:
    """As text; one store where the machine is little-endian, and so below."""
    digits |= 0x30303030
    p[0] = <char>digits
    p[1] = <char>(digits >> 8)
    p[2] = <char>(digits >> 16)
    p[3] = <char>(digits >> 24)


cdef inline void put_eight(char* p, uint64_t digits) noexcept nogil:
    digits |= 0x3030303030303030ULL
    p[0] = <char>digits
    p[1] = <char>(digits >> 8)
    p[2] = <char>(digits >> 16)
    p[3] = <char>(digits >> 24)
    p[4] = <char>(digits >> 32)
    p[5] = <char>(digits >> 40)
    p[6] = <char>(digits >> 48)
    p[7] = <char>(digits >> 56)


cdef inline char* put_padded(char* p, uint64_t n, int width) noexcept nogil:
    """`n` in exactly `width` digits, 1 to 24, zeros in front. Up to seven bytes behind them may be overwritten."""
    cdef uint64_t upper
    if width == 1:
        p[0] = <char>(c'0' + n)
        return p + 1
    if width <= 4:
        put_four(p, four_digits(<uint32_t>n) >> (8 * (4 - width)))
        return p + width
    if width > 8:
        upper = n // 100000000
        if width > 16:
            put_eight(p, eight_digits(<uint32_t>(upper // 100000000)) >> (8 * (24 - width)))
            put_eight(p + width - 16, eight_digits(<uint32_t>(upper % 100000000)))
        else:
            put_eight(p, eight_digits(<uint32_t>upper) >> (8 * (16 - width)))
        put_eight(p + width - 8, eight_digits(<uint32_t>(n - 100000000 * upper)))
        return p + width
    put_eight(p, eight_digits(<uint32_t>n) >> (8 * (8 - width)))
    return p + width


cdef inline char* put_uint64(char* p, uint64_t n) noexcept nogil:
    cdef uint64_t upper
    cdef uint32_t tens
    if n < 10:
        p[0] = <char>(c'0' + n)
        return p + 1
    if n < 100:
        tens = (<uint32_t>n * 103) >> 10
        p[0] = <char>(c'0' + tens)
        p[1] = <char>(c'0' + <uint32_t>n - 10 * tens)
        return p + 2
    if n < 10000:
        return put_padded(p, n, 3 + (n >= 1000))
    if n < 100000000:
        return put_padded(p, n, 5 + (n >= 100000) + (n >= 1000000) + (n >= 10000000))
    upper = n // 100000000
    p = put_uint64(p, upper)
    put_eight(p, eight_digits(<uint32_t>(n - 100000000 * upper)))
    return p + 8


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


cdef inline char* put_rare_double(char* p, double value) except NULL:
    """Zero, and what is too large or too small for `put_double`'s integers."""
    cdef char* text
    if value == 0.0:
        return put(p, b"-0.0" if signbit(value) else b"0.0")
    text = PyOS_double_to_string(value, c'r', 0, Py_DTSF_ADD_DOT_0, NULL)  # ours until freed below
    p = put(p, text)
    PyMem_Free(text)
    return p


cdef inline char* put_double(char* p, double value) except NULL:
    """The shortest decimal that reads back as `value`.

    value is mantissa / 2^shift, and n / 10^k reads back as it if n misses value * 10^k by less than half the distance
    to the next double. In units of 2^(k - shift) that distance is 5^k, and all of it is integers. Up to 15 digits a
    decimal survives a double, so the least k with such an n is the shortest; sensor values end there after a few
    trials. Else 16 digits do if the nearest n is close enough, and 17 always do. (Below a power of two the distance
    is half as long; in this range those have 15 digits or fewer and are met exactly.)
    """
    cdef uint64_t leading_bit = (<uint64_t>1) << 52
    cdef uint64_t bits, mantissa, distance
    cdef int64_t n, whole
    cdef uint64_t five = 1   # 5^k
    cdef double ten = 1.0    # 10^k
    cdef double scaled, rounded, magnitude = fabs(value)
    cdef int shift, k = 0
    if magnitude >= 1e15 or magnitude < 1e-4:
        return put_rare_double(p, value)
    if value < 0.0:
        p[0] = c'-'
        p += 1
    memcpy(&bits, &magnitude, sizeof(bits))
    mantissa = (bits & (leading_bit - 1)) | leading_bit
    shift = 1075 - <int>(bits >> 52)
    while True:
        scaled = magnitude * ten
        if scaled >= 1e15:
            n = <int64_t>nearest_scaled(mantissa, five, shift - k, &distance)
            if 2 * distance >= five:
                k += 1
                five *= 5
                n = <int64_t>nearest_scaled(mantissa, five, shift - k, &distance)
            break
        # Adding 2^52 drops the fraction. A match is off by 2^-52 of itself at most; a wider gap is none, and a
        # narrower one means n >= 1, hence 0 < shift - k < 64, and a difference far below the wrap at 2^64.
        rounded = (scaled + 4503599627370496.0) - 4503599627370496.0
        if fabs(scaled - rounded) <= scaled * 4.5e-16:
            n = <int64_t>rounded
            distance = (<uint64_t>n << (shift - k)) - mantissa * five
            if -<int64_t>five < 2 * <int64_t>distance < <int64_t>five:
                break
        k += 1
        ten *= 10.0
        five *= 5
    # The decimal cannot pass the integer above `magnitude`, for that integer is a double and nearer.
    whole = <int64_t>magnitude
    p = put_uint64(p, <uint64_t>whole)
    p[0] = c'.'
    if k == 0:
        p[1] = c'0'
        return p + 2
    # 10^k wraps at k = 20, where `whole` is 0.
    return put_padded(p + 1, <uint64_t>n - <uint64_t>whole * (five << k), k)


# ---------------------------------------------------------------------------------------------------------- strings

cdef inline bint needs_escape(uint64_t block) noexcept nogil:
    """True if one of eight bytes is a control character, a quote or a backslash."""
    cdef uint64_t ones = 0x0101010101010101ULL
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
    """UTF-8 text as the inside of a JSON string: in blocks of eight, byte by byte from the first that needs escapes."""
    cdef const char* end = text + size
    cdef uint64_t block
    cdef uint32_t first, last
    cdef unsigned char c
    while end - text >= 8:
        memcpy(&block, text, 8)
        if needs_escape(block):
            break
        memcpy(p, &block, 8)
        text += 8
        p += 8
    if 4 <= end - text < 8:
        # Two halves that overlap.
        memcpy(&first, text, 4)
        memcpy(&last, end - 4, 4)
        if not needs_escape(first | (<uint64_t>last << 32)):
            memcpy(p, &first, 4)
            p += end - text
            memcpy(p - 4, &last, 4)
            return p
    while text < end:
        c = <unsigned char>text[0]
        text += 1
        if c >= 0x20 and c != c'"' and c != c'\\':
            p[0] = <char>c
            p += 1
        else:
            p = put_escape(p, c)
    return p
