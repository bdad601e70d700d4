# How a message is accepted, and how long it takes from there to the disk. Part of `_table.pyx`.


cdef class Accepting:
    cdef public list pending
    cdef public int64_t next_id, last_timestamp_ms
    cdef public Py_ssize_t pending_max
    cdef public int64_t pending_bytes, pending_bytes_max
    # Of topic and payload; 0 for no limit.
    cdef public int64_t message_max_bytes
    # What rows are stamped by; of whoever has this for its base.
    cdef public object clock
    cdef readonly Lock _lock
    cdef readonly object _status, _schedule, _ttl_ms

    def __init__(
        self, status, schedule, QueueTable table, ttl_ms, Py_ssize_t pending_max, int64_t pending_bytes_max
    ):
        self._status = status
        self._lock = status.lock
        self._schedule = schedule
        self._ttl_ms = ttl_ms
        self.pending = []
        self.next_id = table.last_id() + 1
        self.last_timestamp_ms = table.last_timestamp_ms()
        self.pending_max = pending_max
        self.pending_bytes_max = pending_bytes_max

    @property
    def is_full(self) -> bool:
        return self._is_full()

    cdef bint _is_full(self) noexcept:
        cdef Py_ssize_t count = PyList_GET_SIZE(self.pending)
        return count >= self.pending_max or (count and self.pending_bytes >= self.pending_bytes_max)

    def append(self, topic, payload, int qos, bint urgent, ttl_ms, extras, register) -> int:
        status = self._status
        cdef int64_t message_id
        cdef bint is_ending
        if self._is_full():
            # Before the lock is ours; where others fill the room meanwhile there are a few more.
            self.wait_for_room()
        self._lock.take_within(-1.0)
        try:
            if status.is_closing or status.failure is not None or status.unusable is not None:
                self._refuse_if_unusable()
            message_id = self._add(topic, payload, qos, extras, register, ttl_ms)
            if not urgent:
                self._schedule.request_company(qos)
            elif <double>self._schedule.deadline_s > -INFINITY:
                # Else one before has asked for that.
                self._schedule.request()
            is_ending = status.is_ending
        finally:
            self._lock.give()
        if is_ending:
            self._write_through(message_id)
        return message_id

    cpdef Py_ssize_t check_size(self, topic, payload, extras) except -1:
        cdef Py_ssize_t extras_bytes = 0 if extras is None else len(extras.properties)
        cdef Py_ssize_t most_bytes = extras_bytes + _most_bytes(topic) + _most_bytes(payload)
        if not 0 < self.message_max_bytes < most_bytes:
            return most_bytes
        said = payload.encode() if isinstance(payload, str) else payload
        size_bytes = extras_bytes + len(topic.encode()) + len(said)
        if size_bytes > self.message_max_bytes:
            raise MessageError(
                f"topic, payload and properties are {size_bytes:,} bytes, and the whole queue may take"
                f" {self.message_max_bytes:,}: raise queue_max_bytes, or send it in parts"
            )
        return size_bytes

    def add(self, topic, payload, int qos, extras=None, register=None, ttl_ms=None) -> int:
        return self._add(topic, payload, qos, extras, register, ttl_ms)

    cdef int64_t _add(self, topic, payload, int qos, extras, register, ttl_ms) except -1:
        cdef int64_t message_id, now_ms, timestamp_ms
        cdef Py_ssize_t size_bytes = self.check_size(topic, payload, extras)
        now_ms = self.clock.now_ms()
        if ttl_ms is None:
            ttl_ms = self._ttl_ms
        if extras is not None and extras.expiry_interval_s is not None:
            ttl_ms = min(ttl_ms, extras.expiry_interval_s * 1000)
        expires_at_ms = now_ms + ttl_ms
        while True:
            message_id = self.next_id
            # Also behind rows of another writer, and of a boot whose clock was ahead.
            timestamp_ms = max(now_ms, self.last_timestamp_ms)
            row = make_row(message_id, topic, payload, qos, timestamp_ms, expires_at_ms, extras)
            if self.next_id == message_id:
                break
            # A finaliser has published: a new tuple may collect garbage.
        self.pending.append(row)
        self.pending_bytes += size_bytes
        self.last_timestamp_ms = timestamp_ms
        self.next_id = message_id + 1
        if register is not None:
            register(message_id)
        return message_id


cdef class DiskTimes:
    cdef uint64_t rows[3]
    cdef histogram.Histogram latency

    def note(self, list rows not None, int64_t now_ms):
        cdef Py_ssize_t index
        cdef tuple row
        cdef int qos
        for index in range(PyList_GET_SIZE(rows)):
            row = <tuple>PyList_GET_ITEM(rows, index)
            qos = row[3]
            self.rows[min(max(qos, 0), 2)] += 1
            histogram.note(&self.latency, now_ms - <int64_t>row[TIMESTAMP_COLUMN])

    @property
    def counts(self) -> tuple:
        return self.rows[0], self.rows[1], self.rows[2]

    @property
    def writing(self) -> tuple:
        return histogram.read(&self.latency)
