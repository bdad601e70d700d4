# Rows of a store: those that were read and have not gone, and QoS 0 that has, and may not have arrived. Part of
# `_outbox.pyx`.

cdef enum:
    # Of QoS 0 that is on its way, the newest messages, of so many bytes of topic and payload, and so many of them.
    IN_THE_AIR_MAX_BYTES = 512 * 1024
    IN_THE_AIR_MAX = 10_000


cdef class Lane:
    """Rows that were read and have not gone, in their order. Whoever calls holds the outbox's lock."""

    # From index `gone` on.
    cdef list rows
    cdef Py_ssize_t gone

    def __init__(self):
        self.rows = []

    cdef bint is_empty(self) noexcept:
        return self.gone == PyList_GET_SIZE(self.rows)

    @property
    def left(self) -> list:
        return self.rows[self.gone:]

    def put(self, list rows not None):
        """These, in place of all that are here."""
        self.rows = rows
        self.gone = 0


cdef class Unproven:
    """QoS 0 that was encoded on this connection and is not proven to have arrived: the newest rows, in their order.

    They are counted as the session counts them, over all connections. Whoever calls holds the outbox's lock.
    """

    # From index `gone` on, as rows; that of the first has this number.
    cdef list rows
    cdef Py_ssize_t gone
    cdef uint64_t first
    cdef size_t size_bytes

    def __init__(self):
        self.rows = []
        self.first = 1

    cdef int add(self, tuple row) except -1:
        """The session has encoded it, and none since."""
        self.rows.append(row)
        self.size_bytes += _size_of(row)
        while self.size_bytes > IN_THE_AIR_MAX_BYTES or PyList_GET_SIZE(self.rows) - self.gone > IN_THE_AIR_MAX:
            self.pass_first()
        if self.gone > 1024 and self.gone * 2 > PyList_GET_SIZE(self.rows):
            del self.rows[:self.gone]
            self.gone = 0
        return 0

    cdef int pass_first(self) except -1:
        cdef tuple row = self.rows[self.gone]
        self.rows[self.gone] = None
        self.size_bytes -= _size_of(row)
        self.gone += 1
        self.first += 1
        return 0

    cdef int prove(self, uint64_t count) except -1:
        """So many are proven."""
        while self.gone < PyList_GET_SIZE(self.rows) and self.first <= count:
            self.pass_first()
        if self.gone == PyList_GET_SIZE(self.rows):
            self.rows.clear()
            self.gone = 0
        return 0

    cdef list take(self, uint64_t proven, uint64_t left, uint64_t encoded):
        """The connection is gone. Those that had left, as far as they are here; so many were encoded."""
        cdef list lost
        self.prove(proven)
        lost = self.rows[self.gone:self.gone + <Py_ssize_t>(max(left + 1, self.first) - self.first)]
        self.rows = []
        self.gone = 0
        self.size_bytes = 0
        self.first = encoded + 1
        return lost


cdef inline size_t _size_of(tuple row) except? 0:
    return <size_t>len(row[1]) + <size_t>len(row[2])
