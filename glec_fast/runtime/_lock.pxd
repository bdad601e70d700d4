cdef class Lock:
    # A PyThread_type_lock.
    cdef void* mutex
    # The thread that holds it, 0 for none, and how often it does.
    cdef unsigned long owner
    cdef int depth
    cdef readonly str name

    cdef int take(self) except -1
    cdef bint take_within(self, double timeout_s) except -1
    cdef int give(self) except -1


cdef class Condition:
    cdef readonly Lock lock
    cdef list waiters
    cdef object refuse

    cdef int tell_all(self) except -1
