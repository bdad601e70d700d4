# What the kernel says of time. Part of `_table.pyx`.

cdef extern from "sys/timex.h":
    struct timex:
        long maxerror
    int adjtimex(timex* kept)

cdef extern from "time.h":
    int CLOCK_BOOTTIME


def clock_error_us():
    cdef timex kept
    # Modes of 0: change nothing.
    memset(&kept, 0, sizeof(kept))
    if adjtimex(&kept) < 0:
        raise OSError(errno, "adjtimex")
    return kept.maxerror


def since_boot_ms():
    cdef timespec now
    if clock_gettime(<clockid_t>CLOCK_BOOTTIME, &now) < 0:
        raise OSError(errno, "clock_gettime")
    return <int64_t>now.tv_sec * 1000 + now.tv_nsec // 1_000_000
