# How long something took, counted in fixed buckets: to note one costs no memory and a few nanoseconds. Header only.
#
# Whole milliseconds, rounded down: eight buckets to each power of two, one to each millisecond below 16.
# `glec_fast.runtime.latency` reads them.

from libc.stdint cimport int64_t, uint64_t

cdef enum:
    SHARE_BITS = 3
    SHARES = 8
    # Up to 2**35 ms, a year.
    BUCKETS = 264

cdef struct Histogram:
    uint64_t counts[BUCKETS]
    uint64_t sum_ms
    int64_t longest_ms


cdef inline size_t bucket_of(int64_t took_ms) noexcept:
    cdef int bits = SHARE_BITS
    cdef int64_t rest = took_ms >> SHARE_BITS
    if took_ms < SHARES:
        return <size_t>took_ms
    while rest > 1:
        rest >>= 1
        bits += 1
    return <size_t>(SHARES * (bits - SHARE_BITS + 1) + ((took_ms >> (bits - SHARE_BITS)) & (SHARES - 1)))


cdef inline void note(Histogram* histogram, int64_t took_ms) noexcept:
    # Of no length that can be true, as the clock stepped between beginning and end: nothing.
    if took_ms < -1000 or took_ms >= <int64_t>1 << 35:
        return
    took_ms = max(took_ms, 0)
    histogram.counts[bucket_of(took_ms)] += 1
    histogram.sum_ms += <uint64_t>took_ms
    if took_ms > histogram.longest_ms:
        histogram.longest_ms = took_ms


cdef inline tuple read(Histogram* histogram):
    # (counts up to the last that is not 0, sum in ms, the longest in ms)
    cdef size_t index, size = bucket_of(histogram.longest_ms) + 1
    return [histogram.counts[index] for index in range(size)], histogram.sum_ms, histogram.longest_ms
