"""How many bytes may be on their way to a server, so that what comes next is there in time.

A link of 20 kB/s with a second's worth of bytes in its buffers makes an alert a second late, whoever holds those
buffers. So the bytes that the server has not answered are bounded by time: by what it reads in `TARGET_S` at the rate
at which it was seen to read. A round trip that takes longer than half of that has two round trips' worth, so that no
link stands idle. docs/internals/order-and-overflow.md has the reasons and the figures.

A sample is taken of each answer: so many bytes were proven since what it answers was sent, in so much time. The rate is
the best of the last second, as a sample is too low as often as something else than the link was slow.

That is too low as well where a window is small for the link: then it goes out at once, as a *burst*, and nothing is on
its way for the rest of the round trip. How far apart its answers come shows the rate all the same. Something may hold
them back, and let them go together: so at least an eighth of the round trip counts as the time that a burst took, and
12.5 ms. A slow link spreads them by more. No I/O, no clock.
"""

from libc.stddef cimport size_t
from libc.stdint cimport uint64_t

cdef enum:
    # Before the first answer; about what TCP sends before its first, too.
    FIRST_WINDOW_BYTES = 12_000
    # A few messages, so that a slow link is not left idle between two of them.
    LEAST_WINDOW_BYTES = 2_000
    MOST_WINDOW_BYTES = 0x7FFFFFFF
    MARKS_MAX = 64

cdef double TARGET_S = 0.3
cdef double BURST_LEAST_S = 0.0125
cdef double BURST_LEAST_OF_ROUND_TRIP = 0.125
cdef double SHORTEST_S = 1e-6
# The best rate is that of this and the last span of so much time.
cdef double SPAN_S = 0.5

cdef struct Mark:
    # What is from `begin` to `end` was sent at `time_s`, when the server had answered `answered_to`.
    uint64_t begin
    uint64_t end
    uint64_t answered_to
    double time_s
    # The first of it was answered then, and has shown the round trip.
    bint is_timed
    double first_s
    # It is most of a window.
    bint is_burst
    # Little of ours was in its way.
    bint is_least
    # The window was in use, so that a low rate is the link's.
    bint is_full


cdef class Pace:
    """Of one connection, begun with `begin`. Offsets are the session's, in its stream. Not thread-safe.

    window_bytes: the bound. is_measured: it comes from samples with the window in use.
    """

    cdef Mark[MARKS_MAX] marks
    cdef int first, count
    cdef uint64_t sent_to
    cdef double best_rate, last_best_rate, span_ends_s
    cdef readonly double round_trip_s
    cdef readonly size_t window_bytes
    cdef readonly bint is_measured

    def __init__(self):
        self.begin()

    def begin(self):
        """A new connection, of which nothing is known."""
        self.first = self.count = 0
        self.sent_to = 0
        self.best_rate = self.last_best_rate = self.span_ends_s = 0
        self.round_trip_s = 0
        self.window_bytes = FIRST_WINDOW_BYTES
        self.is_measured = False

    def on_sent(self, uint64_t sent_to, uint64_t answered_to, double now_s):
        """The socket has taken what is before `sent_to`."""
        cdef Mark* mark
        cdef uint64_t begin = max(self.sent_to, answered_to)
        self.sent_to = sent_to
        if self.count == MARKS_MAX:
            self._thin()
        mark = &self.marks[(self.first + self.count) % MARKS_MAX]
        mark.begin = begin
        mark.end = sent_to
        mark.is_timed = False
        mark.answered_to = answered_to
        mark.time_s = now_s
        mark.is_full = sent_to - answered_to >= self.window_bytes // 2
        mark.is_burst = mark.is_full and sent_to - begin >= self.window_bytes // 2
        mark.is_least = self.window_bytes == LEAST_WINDOW_BYTES and sent_to - answered_to < 2 * LEAST_WINDOW_BYTES
        self.count += 1

    cdef void _thin(self) noexcept:
        """Forget every second mark."""
        cdef int index
        for index in range(MARKS_MAX // 2):
            self.marks[(self.first + index) % MARKS_MAX] = self.marks[(self.first + 2 * index) % MARKS_MAX]
        self.count = MARKS_MAX // 2

    def on_answered(self, uint64_t answered_to, double now_s) -> int:
        """The server has read what is before `answered_to`; returns `window_bytes`."""
        cdef Mark* last = NULL
        cdef Mark* mark
        while self.count:
            mark = &self.marks[self.first]
            if not mark.is_timed and mark.begin < answered_to:
                mark.is_timed = True
                mark.first_s = now_s
                self._time(max(now_s - mark.time_s, SHORTEST_S), mark.is_least)
            if mark.end > answered_to:
                break
            last = mark
            self.first = (self.first + 1) % MARKS_MAX
            self.count -= 1
        if last is not NULL:
            self._take_sample(last, answered_to, now_s)
        return self.window_bytes

    cdef void _time(self, double took_s, bint is_least) noexcept:
        # With the least on its way little of ours waits: then it is the link that has become longer.
        if self.round_trip_s == 0 or took_s < self.round_trip_s or is_least:
            self.round_trip_s = took_s

    cdef void _take_sample(self, Mark* mark, uint64_t answered_to, double now_s) noexcept:
        cdef double took_s = max(now_s - mark.time_s, SHORTEST_S)
        cdef double rate = <double>(answered_to - mark.answered_to) / took_s
        cdef double burst_s
        cdef double window
        if mark.is_burst:
            burst_s = max(now_s - mark.first_s, took_s * BURST_LEAST_OF_ROUND_TRIP, BURST_LEAST_S)
            rate = max(rate, <double>(answered_to - mark.begin) / burst_s)
        if now_s >= self.span_ends_s and (mark.is_full or not self.is_measured):
            # Of a span without a sample nothing is known.
            self.last_best_rate = self.best_rate if now_s < self.span_ends_s + SPAN_S else 0
            self.best_rate = 0
            self.span_ends_s = now_s + max(SPAN_S, 2 * took_s)
        self.best_rate = max(self.best_rate, rate)
        self.is_measured = self.is_measured or mark.is_full
        window = max(self.best_rate, self.last_best_rate) * max(TARGET_S, 2 * self.round_trip_s)
        self.window_bytes = <size_t>min(max(window, <double>LEAST_WINDOW_BYTES), <double>MOST_WINDOW_BYTES)
