"""The statements on the queue table, a batch at a time. What each function does, for its callers, is in the stub.

Rows go out as (id, topic, payload, qos, timestamp, ttl), first in, first out: by (timestamp, id). A payload that is not
text is kept as a BLOB; TEXT otherwise, as the specification's table says. A message with extras has those three columns
behind the others; they stand in a table of their own, and are deleted with the message's row.

SQLite keeps a value of any type in any column, and other programs write to the table. So each row is looked at as it is
read: what goes out is of the types that are said here, and can be published. The others are read once more, as bytes.
"""

from itertools import chain
from math import ceil

from cpython.bytes cimport PyBytes_CheckExact, PyBytes_GET_SIZE
from cpython.list cimport PyList_GET_ITEM, PyList_GET_SIZE
from cpython.long cimport PyLong_AsLongAndOverflow, PyLong_AsLongLongAndOverflow, PyLong_CheckExact
from cpython.object cimport PyObject
from cpython.tuple cimport PyTuple_GET_ITEM, PyTuple_GET_SIZE
from cpython.unicode cimport PyUnicode_AsUTF8AndSize, PyUnicode_CheckExact, PyUnicode_GET_LENGTH
from libc.errno cimport errno
from libc.stddef cimport size_t
from libc.stdint cimport INT64_MAX, INT64_MIN, int64_t, uint64_t
from libc.string cimport memchr, memset
from posix.time cimport clock_gettime, clockid_t, timespec

cimport histogram
from glec_fast.runtime._lock cimport Lock

from glec_fast.durable._steps import ranges_of
from glec_fast.durable.foreign_rows import (
    STAMP_MAX_MS, TIME_MAX_MS, are_extras, as_message, as_number, as_time_ms
)
from glec_fast.errors import MessageError
from glec_fast.validation import PAYLOAD_MAX_BYTES, has_forbidden

cdef extern from "sys/timex.h":
    struct timex:
        long maxerror
    int adjtimex(timex* kept)

cdef extern from "time.h":
    int CLOCK_BOOTTIME

cdef enum:
    TOPIC_MAX_BYTES = 65535
    # Of a row without extras.
    ROW_COLUMNS = 6
    PAYLOAD_COLUMN = 2
    TIMESTAMP_COLUMN = 4
    EXPIRY_COLUMN = 5

# More gaps than that are not worth the search for a row in one of them. Each crash leaves one.
CLEARED_RANGES_MAX = 32
# Of one read, in payload; and the row that exceeds it. More would hold up whoever reads, and only be memory.
cdef Py_ssize_t READ_BYTES_MAX = 256 * 1024

cdef str INSERT = (
    "INSERT INTO mqtt_offline_queue (id, topic, payload, qos, timestamp, ttl, retry_count)"
    " VALUES (?, ?, ?, ?, ?, ?, 0)")
# A statement gives the interpreter to other threads, and may wait long for it: so many rows of a burst share one, but
# where a payload is larger than this, as what they are bound to is a copy.
cdef Py_ssize_t ROWS_A_STATEMENT = 16
cdef Py_ssize_t BURST_PAYLOAD_MAX = 4096
cdef str INSERT_BURST = INSERT + ", (?, ?, ?, ?, ?, ?, 0)" * (ROWS_A_STATEMENT - 1)
# Without a condition SQLite drops the pages as they are: a tenth of the cost, in time and in bytes written.
cdef str DELETE_ALL = "DELETE FROM mqtt_offline_queue"
cdef str IS_ANY_BETWEEN = "SELECT EXISTS (SELECT 1 FROM mqtt_offline_queue WHERE id BETWEEN ? AND ?)"
cdef str DELETE_RANGE = "DELETE FROM mqtt_offline_queue WHERE id BETWEEN ? AND ?"
# Two halves, each an index search, merged: a row value comparison would walk all rows that share the first timestamp.
# What is no time is behind all of them, or in front, and not looked at. What was refused so often that it is given up
# is of a type to be noticed by. What is passed over costs no look at the table.
cdef str NOT_GIVEN_UP = "iif(retry_count < ?4, {1}, NULL)"
cdef str NOT_PASSED = "id NOT BETWEEN ?5 AND ?6"
cdef str READ_AFTER = (
    f"SELECT id, {{0}}, timestamp, {NOT_GIVEN_UP} FROM mqtt_offline_queue WHERE timestamp = ?1 AND id > ?2"
    f" AND {NOT_PASSED}{{5}}"
    " UNION ALL"
    f" SELECT id, {{0}}, timestamp, {NOT_GIVEN_UP} FROM mqtt_offline_queue"
    f" WHERE timestamp > ?1 AND timestamp <= {TIME_MAX_MS} AND {NOT_PASSED}{{5}}"
    " ORDER BY timestamp, id LIMIT ?3")
cdef str READ_WITH_EXTRAS = (
    "SELECT q.*, {2} FROM (" + READ_AFTER + ") AS q LEFT JOIN glec_extras ON message_id = q.id"
    " ORDER BY q.timestamp, q.id")
# By `Lane`: all rows, those that are no alerts, alerts.
cdef tuple OF_LANE = ("", " AND qos <> 2", " AND qos = 2")
cdef str READ_ROW = "SELECT id, {0}, {3}, {1} FROM mqtt_offline_queue WHERE id = ?"
cdef str READ_ROW_WITH_EXTRAS = (
    "SELECT q.*, {2} FROM (" + READ_ROW + ") AS q LEFT JOIN glec_extras ON message_id = q.id")
cdef str INSERT_EXTRAS = (
    "INSERT INTO glec_extras (message_id, retain, expiry_interval, properties) VALUES (?, ?, ?, ?)")
cdef str DELETE_ALL_EXTRAS = "DELETE FROM glec_extras"
cdef str DELETE_EXTRAS = "DELETE FROM glec_extras WHERE message_id BETWEEN ? AND ?"
cdef str DELETE_ORPHANS = "DELETE FROM glec_extras WHERE message_id NOT IN (SELECT id FROM mqtt_offline_queue)"
cdef str IS_ANY_EXTRA = "SELECT EXISTS (SELECT 1 FROM glec_extras)"
# A head is a row without its payload: what it takes to drop it and to tell of it.
cdef str HEADS = (
    "SELECT id, coalesce(CAST(topic AS BLOB), x''), iif(typeof(qos) = 'integer' AND qos IN (1, 2), qos, 0),"
    " iif(typeof(timestamp) IN ('integer', 'real'), timestamp, 0) FROM mqtt_offline_queue")
cdef str HEADS_BESIDE = HEADS + " WHERE timestamp = ? AND id > ? ORDER BY id"
cdef str HEADS_AFTER = HEADS + " WHERE timestamp > ? ORDER BY timestamp, id"
# By QoS; a QoS that is none counts as 0.
cdef tuple OF_QOS = ("qos NOT IN (1, 2)", "qos = 1", "qos = 2")
cdef str HEADS_OF_BESIDE = HEADS + " WHERE timestamp = ? AND id > ? AND {} ORDER BY id"
cdef str HEADS_OF_AFTER = HEADS + " WHERE timestamp > ? AND {} ORDER BY timestamp, id"
cdef str TELEMETRY_BETWEEN = HEADS + " WHERE id > ? AND id <= ? AND qos NOT IN (1, 2) ORDER BY id"
cdef str COUNT_OF_TELEMETRY = "SELECT count(*), coalesce(min(id), 0) FROM mqtt_offline_queue WHERE qos NOT IN (1, 2)"
cdef str ID_OF_TELEMETRY = "SELECT id FROM mqtt_offline_queue WHERE qos NOT IN (1, 2) ORDER BY id LIMIT 1 OFFSET ?"
# What no PUBLISH can be made of.
cdef str HEADS_EXPIRED = HEADS + " WHERE ttl < ?"
cdef str HEADS_GIVEN_UP = (
    HEADS + " WHERE retry_count >= ? AND typeof(retry_count) IN ('integer', 'real')")
cdef str READ_ALL = "SELECT id, {0}, {3}, {1}, {4} FROM mqtt_offline_queue ORDER BY timestamp, id"
# The columns of these statements as they are; and as they can be read where a TEXT is none, of types to be noticed by.
cdef tuple AS_STORED = (
    "topic, payload, qos", "ttl", "retain, expiry_interval, properties", "timestamp", "coalesce(retry_count, 0)")
cdef tuple AS_ODD = (
    "NULL, NULL, NULL", "NULL", ", ".join(
        [f"iif(typeof({name}) = 'text', x'', {name})" for name in ("retain", "expiry_interval", "properties")]),
    "NULL", "NULL")
cdef tuple READ_AFTER_STORED = tuple([READ_AFTER.format(*AS_STORED, lane) for lane in OF_LANE])
cdef tuple READ_WITH_EXTRAS_STORED = tuple([READ_WITH_EXTRAS.format(*AS_STORED, lane) for lane in OF_LANE])
# With a bound it goes along the index, and ends at the first; without, all rows are sorted for it.
cdef tuple FIRST_OF_LANE = tuple([
    "SELECT timestamp, id FROM mqtt_offline_queue"
    f" WHERE timestamp <= {TIME_MAX_MS}{lane} ORDER BY timestamp, id LIMIT 1" for lane in OF_LANE])
# Where a TEXT need not be one, and a number need not be one either.
cdef str ODD_NUMBER = "iif(typeof({0}) = 'text', CAST({0} AS BLOB), {0})"
cdef str READ_ODD = (
    "SELECT CAST(topic AS BLOB), CAST(payload AS BLOB), typeof(payload), "
    + ", ".join([ODD_NUMBER.format(name) for name in ("qos", "timestamp", "ttl", "retry_count")])
    + " FROM mqtt_offline_queue WHERE id = ?")
cdef int64_t TIME_BOUND_MS = TIME_MAX_MS
cdef Py_ssize_t PAYLOAD_BYTES = PAYLOAD_MAX_BYTES
# Beyond that another writer may mean "never".
cdef int64_t MOVED_MAX_MS = 1 << 62
cdef str MOVE_TIMES = (
    "UPDATE mqtt_offline_queue"
    " SET timestamp = iif(timestamp BETWEEN -?3 AND ?3, timestamp + ?1, timestamp),"
    " ttl = iif(ttl BETWEEN -?3 AND ?3, ttl + ?1, ttl)"
    " WHERE id >= ?2")

cdef str OLDEST = f"SELECT min(timestamp) FROM mqtt_offline_queue WHERE timestamp BETWEEN 0 AND {TIME_MAX_MS}"
cdef str STRANGERS = "SELECT id FROM mqtt_offline_queue WHERE id > ? ORDER BY timestamp, id"
cdef str ADOPT = (
    "UPDATE mqtt_offline_queue SET id = ?2, timestamp = ?3,"
    " ttl = CASE WHEN typeof(ttl) IN ('integer', 'real') THEN CAST(ttl AS INTEGER) ELSE ?4 END WHERE id = ?1")
cdef str ADOPT_EXTRAS = "UPDATE OR REPLACE glec_extras SET message_id = ?2 WHERE message_id = ?1"
cdef str HAS_ROW = (
    "SELECT EXISTS (SELECT 1 FROM mqtt_offline_queue WHERE id = ? AND topic = ? AND payload IS ? AND timestamp = ?)")
cdef str SET_LAST_ID = "UPDATE sqlite_sequence SET seq = ? WHERE name = 'mqtt_offline_queue'"

cdef object stored_payload(object payload):
    """TEXT where the bytes are UTF-8 without NUL, which SQLite's own functions take for the end; else as they are."""
    if isinstance(payload, str):
        return payload if "\0" not in payload else payload.encode()
    cdef bytes data = bytes(payload)
    if b"\0" in data:
        return data
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


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


cpdef tuple make_row(int64_t message_id, topic, payload, int qos, int64_t timestamp_ms, int64_t expires_at_ms,
                     extras=None):
    row = (message_id, topic, stored_payload(payload), qos, timestamp_ms, expires_at_ms)
    return row if extras is None else (*row, *extras)


cdef class Accepting:
    cdef public list pending
    cdef public int64_t next_id, last_timestamp_ms
    cdef public Py_ssize_t pending_max
    # Of topic and payload; 0 for no limit.
    cdef public int64_t message_max_bytes
    # What rows are stamped by; of whoever has this for its base.
    cdef public object clock
    cdef readonly Lock _lock
    cdef readonly object _status, _schedule, _ttl_ms

    def __init__(self, status, schedule, QueueTable table, ttl_ms, Py_ssize_t pending_max):
        self._status = status
        self._lock = status.lock
        self._schedule = schedule
        self._ttl_ms = ttl_ms
        self.pending = []
        self.next_id = table.last_id() + 1
        self.last_timestamp_ms = table.last_timestamp_ms()
        self.pending_max = pending_max

    def append(self, topic, payload, int qos, bint urgent, ttl_ms, extras, register) -> int:
        status = self._status
        cdef int64_t message_id
        cdef bint is_ending
        if PyList_GET_SIZE(self.pending) >= self.pending_max:
            # Before the lock is ours; where others fill the room meanwhile there are a few more.
            self.wait_for_room()
        self._lock.take_within(-1.0)
        try:
            if status.is_closing or status.failure is not None or status.unusable is not None:
                self._refuse_if_unusable()
            message_id = self._add(topic, payload, qos, extras, register, ttl_ms)
            if urgent:
                self._schedule.request()
            else:
                self._schedule.request_company(qos)
            is_ending = status.is_ending
        finally:
            self._lock.give()
        if is_ending:
            self._write_through(message_id)
        return message_id

    cpdef int check_size(self, topic, payload, extras) except -1:
        cdef Py_ssize_t size_bytes = len(topic) + len(payload)
        if extras is not None:
            size_bytes += len(extras.properties)
        if 0 < self.message_max_bytes < size_bytes:
            raise MessageError(
                f"topic, payload and properties are {size_bytes:,} bytes, and the whole queue may take"
                f" {self.message_max_bytes:,}: raise queue_max_bytes, or send it in parts"
            )
        return 0

    def add(self, topic, payload, int qos, extras=None, register=None, ttl_ms=None) -> int:
        return self._add(topic, payload, qos, extras, register, ttl_ms)

    cdef int64_t _add(self, topic, payload, int qos, extras, register, ttl_ms) except -1:
        cdef int64_t message_id, now_ms, timestamp_ms
        self.check_size(topic, payload, extras)
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
        self.last_timestamp_ms = timestamp_ms
        self.next_id = message_id + 1
        if register is not None:
            register(message_id)
        return message_id


def is_any_expired(list rows, now_ms) -> bool:
    cdef tuple row
    for row in rows:
        if row[EXPIRY_COLUMN] < now_ms:
            return True
    return False


cdef bint _are_sound(list rows) except -1:
    cdef Py_ssize_t index
    for index in range(PyList_GET_SIZE(rows)):
        if not _is_sound(<tuple>PyList_GET_ITEM(rows, index)):
            return False
    return True


cdef bint _is_sound(tuple row) except -1:
    """True where a row is of the types that are to go out, and can be published."""
    # Borrowed from the row.
    cdef PyObject* topic = PyTuple_GET_ITEM(row, 1)
    cdef PyObject* payload = PyTuple_GET_ITEM(row, 2)
    cdef PyObject* qos = PyTuple_GET_ITEM(row, 3)
    cdef PyObject* timestamp = PyTuple_GET_ITEM(row, TIMESTAMP_COLUMN)
    cdef Py_ssize_t size = 0
    cdef const char* at
    cdef int overflow = 0
    cdef long long time_ms
    cdef long level
    if not (PyUnicode_CheckExact(<object>topic) and PyLong_CheckExact(<object>qos)
            and PyLong_CheckExact(<object>timestamp)
            and PyLong_CheckExact(<object>PyTuple_GET_ITEM(row, EXPIRY_COLUMN))):
        return False
    level = PyLong_AsLongAndOverflow(<object>qos, &overflow)
    if overflow or not 0 <= level <= 2:
        return False
    time_ms = PyLong_AsLongLongAndOverflow(<object>timestamp, &overflow)
    if overflow or not -TIME_BOUND_MS <= time_ms <= TIME_BOUND_MS:
        return False
    at = PyUnicode_AsUTF8AndSize(<object>topic, &size)
    if not 0 < size <= TOPIC_MAX_BYTES or memchr(at, c"+", <size_t>size) is not NULL:
        return False
    if memchr(at, c"#", <size_t>size) is not NULL:
        return False
    if not _is_plain(at, size) and has_forbidden(<object>topic):
        return False
    if PyUnicode_CheckExact(<object>payload):
        # What is longer in UTF-8 than in characters is counted where it can matter.
        if PyUnicode_GET_LENGTH(<object>payload) > PAYLOAD_BYTES // 4 and not _fits_a_packet(<str>payload):
            return False
    elif not PyBytes_CheckExact(<object>payload) or PyBytes_GET_SIZE(<object>payload) > PAYLOAD_BYTES:
        return False
    if PyTuple_GET_SIZE(row) <= ROW_COLUMNS:
        return True
    if PyTuple_GET_SIZE(row) == ROW_COLUMNS + 1:
        return PyLong_CheckExact(<object>PyTuple_GET_ITEM(row, ROW_COLUMNS))
    return row[ROW_COLUMNS] is None or are_extras(*row[ROW_COLUMNS:])


cdef bint _are_small(list rows) except -1:
    cdef Py_ssize_t index
    for index in range(PyList_GET_SIZE(rows)):
        if len((<tuple>PyList_GET_ITEM(rows, index))[PAYLOAD_COLUMN]) > BURST_PAYLOAD_MAX:
            return False
    return True


cdef inline bint _is_plain(const char* at, Py_ssize_t size) noexcept:
    """True where all of it is printable ASCII."""
    cdef Py_ssize_t index
    for index in range(size):
        if not 0x20 <= <unsigned char>at[index] < 0x7F:
            return False
    return True


cdef bint _fits_a_packet(str payload) except -1:
    return len(payload.encode()) <= PAYLOAD_BYTES


def known(list rows, int64_t through_id) -> int:
    cdef Py_ssize_t index
    for index in range(len(rows)):
        if <int64_t>(<tuple>rows[index])[0] > through_id:
            return index
    return len(rows)


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


cdef class QueueTable:
    cdef readonly object connection
    cdef readonly str encoding
    cdef object execute, executemany
    cdef public int64_t deleted
    cdef readonly tuple position
    cdef readonly Py_ssize_t met
    # The last read ended at READ_BYTES_MAX; and what its rows had on average.
    cdef bint is_cut
    cdef Py_ssize_t row_bytes
    cdef readonly list unsendable
    cdef readonly list given_up
    cdef int64_t retries_max
    cdef readonly bint may_have_extras

    def __init__(self, connection, int64_t retries_max=INT64_MAX):
        self.connection = connection
        self.retries_max = retries_max
        self.execute = connection.execute
        self.executemany = connection.executemany
        self.may_have_extras = True
        self.unsendable, self.given_up = [], []
        # Of the bytes of a TEXT.
        self.encoding = connection.pragma("encoding")

    def commit(self, transaction):
        self.execute("COMMIT")
        transaction.is_committed = True

    def data_version(self) -> int:
        return self.execute("PRAGMA data_version").get

    def oldest_ms(self):
        return self.execute(OLDEST).get

    def strangers(self, int64_t through_id) -> list:
        return [message_id for (message_id,) in self.execute(STRANGERS, (through_id,))]

    def adopt(self, list ids, int64_t timestamp_ms, int64_t expires_at_ms):
        self.executemany(ADOPT, [(*pair, timestamp_ms, expires_at_ms) for pair in ids])
        self.executemany(ADOPT_EXTRAS, ids)
        self.set_last_id(max(pair[1] for pair in ids))

    def set_last_id(self, int64_t last_id):
        self.execute(SET_LAST_ID, (last_id,))

    def insert(self, list rows):
        cdef list extras = [row for row in rows if len(<tuple>row) > ROW_COLUMNS]
        if extras:
            self.may_have_extras = True
            self.executemany(INSERT_EXTRAS, [(row[0], *row[ROW_COLUMNS:]) for row in extras])
            rows = [row[:ROW_COLUMNS] for row in rows]
        cdef Py_ssize_t first
        cdef Py_ssize_t after = len(rows) - len(rows) % ROWS_A_STATEMENT if _are_small(rows) else 0
        for first in range(0, after, ROWS_A_STATEMENT):
            self.execute(INSERT_BURST, tuple(chain.from_iterable(rows[first:first + ROWS_A_STATEMENT])))
        if len(rows) == after + 1:
            self.execute(INSERT, rows[after])
        elif len(rows) > after:
            self.executemany(INSERT, rows[after:])

    def delete(self, list ids) -> int:
        return self.delete_ranges(ranges_of(ids))

    def delete_finished(self, list ranges) -> int:
        if 0 < len(ranges) <= CLEARED_RANGES_MAX and not self.is_any_beside(ranges):
            if self.may_have_extras:
                self.execute(DELETE_ALL_EXTRAS)
            self.execute(DELETE_ALL)
            self.deleted += self.connection.changes()
            return self.connection.changes()
        return self.delete_ranges(ranges)

    cpdef bint is_any_beside(self, list ranges) except -1:
        cdef int64_t first, last, after = INT64_MIN
        # Most of what there is comes behind them.
        if self.execute(IS_ANY_BETWEEN, (ranges[len(ranges) - 1][1] + 1, INT64_MAX)).get:
            return True
        for first, last in ranges:
            if self.execute(IS_ANY_BETWEEN, (after, first - 1)).get:
                return True
            after = last + 1
        return False

    def delete_ranges(self, list ranges) -> int:
        cdef int64_t deleted = 0
        for pair in ranges:
            if self.may_have_extras:
                self.execute(DELETE_EXTRAS, pair)
            self.execute(DELETE_RANGE, pair)
            deleted += self.connection.changes()
        self.deleted += deleted
        return deleted

    def look_for_extras(self):
        self.may_have_extras = self.execute(IS_ANY_EXTRA).get

    def delete_orphaned_extras(self):
        if self.may_have_extras:
            self.execute(DELETE_ORPHANS)

    def first_of(self, int lane):
        return self.execute(FIRST_OF_LANE[lane]).fetchone()

    def read_after(self, timestamp_ms, int64_t message_id, int limit, bint with_extras=False, int lane=0,
                   tuple passed=(0, -1)) -> list:
        cdef list rows
        cdef tuple last
        cdef str odd
        cdef int most = limit
        cdef Py_ssize_t count
        if with_extras:
            # They are sorted as a whole, however few of them are fetched: no more than fit, if they are as the last.
            most = <int>max(1, min(<Py_ssize_t>limit, READ_BYTES_MAX // max(self.row_bytes, 1)))
        bindings = (timestamp_ms, message_id, most, self.retries_max, *passed)
        self.unsendable, self.given_up = [], []
        try:
            stored = READ_WITH_EXTRAS_STORED if with_extras else READ_AFTER_STORED
            rows = self._fetch(stored[lane], bindings)
        except UnicodeDecodeError:
            odd = READ_WITH_EXTRAS if with_extras else READ_AFTER
            rows = self._fetch(odd.format(*AS_ODD, OF_LANE[lane]), bindings)
        count = PyList_GET_SIZE(rows)
        if count:
            last = rows[count - 1]
            self.position = (last[TIMESTAMP_COLUMN], last[0])
        self.met = limit if self.is_cut or (count == most and most < limit) else count
        return rows if _are_sound(rows) else self._mended(rows)

    cdef list _fetch(self, str statement, tuple bindings):
        """Its rows, up to so many bytes of payload."""
        cdef list rows = []
        cdef tuple row
        cdef Py_ssize_t size_bytes = 0
        cursor = self.execute(statement, bindings)
        self.is_cut = False
        for row in cursor:
            rows.append(row)
            payload = row[PAYLOAD_COLUMN]
            if PyUnicode_CheckExact(payload):
                size_bytes += PyUnicode_GET_LENGTH(payload)
            elif PyBytes_CheckExact(payload):
                size_bytes += PyBytes_GET_SIZE(payload)
            if size_bytes >= READ_BYTES_MAX:
                self.is_cut = True
                # The statement is not at its end.
                cursor.close(True)
                break
        if rows:
            self.row_bytes = size_bytes // PyList_GET_SIZE(rows)
        return rows

    def read_rows(self, list ids, bint with_extras=False) -> list:
        cdef list rows = []
        cdef str statement = READ_ROW_WITH_EXTRAS if with_extras else READ_ROW
        self.unsendable = []
        for message_id in ids:
            try:
                rows += self.execute(statement.format(*AS_STORED), (message_id,)).fetchall()
            except UnicodeDecodeError:
                rows += self.execute(statement.format(*AS_ODD), (message_id,)).fetchall()
        return rows if _are_sound(rows) else self._mended(rows)

    cdef list _mended(self, list rows):
        """The rows that a message can be made of, of the types that they are to have."""
        cdef list mended = []
        cdef tuple row
        for row in rows:
            if not _is_sound(row):
                row = self._mended_row(row)
            if row is not None:
                mended.append(row)
        return mended

    cdef tuple _mended_row(self, tuple row):
        """None where no message can be made of it, which is then one of `unsendable`."""
        cdef bint with_extras = PyTuple_GET_SIZE(row) > ROW_COLUMNS + 1
        cdef tuple extras = ()
        found = self.execute(READ_ODD, row[:1]).fetchone()
        if found is None:
            # Deleted meanwhile.
            return None
        topic, payload, kind, qos, timestamp, ttl, retry_count = found
        try:
            name, stored, level = self.message_of(topic, payload, kind, qos)
            if with_extras:
                extras = row[ROW_COLUMNS:]
                if extras[0] is not None and not are_extras(*extras):
                    raise MessageError("its retain flag or properties are none")
        except MessageError as error:
            self.unsendable.append((row[0], self.text(topic), int(qos) if qos in (1, 2) else 0, str(error)))
            return None
        if (as_number(retry_count) or 0) >= self.retries_max:
            self.given_up.append((row[0], name, level, as_time_ms(timestamp, 0)))
        return (row[0], name, stored, level, as_time_ms(timestamp, 0), as_time_ms(ttl, TIME_MAX_MS),
                *(extras if with_extras else (as_number(retry_count) or 0,) * (PyTuple_GET_SIZE(row) - ROW_COLUMNS)))

    def message_of(self, topic, payload, kind, qos) -> tuple:
        payload = payload or b""
        if kind != "blob" and self.encoding != "UTF-8":
            payload = payload.decode(self.encoding, "surrogatepass").encode("utf-8", "surrogatepass")
        name, level = as_message(topic, qos, payload, self.encoding)
        return name, stored_payload(payload), level

    def text(self, value) -> str:
        return "" if value is None else (<bytes>value).decode(self.encoding, "replace")

    def heads_by_id(self, list ids) -> list:
        cdef list heads = []
        for message_id in ids:
            heads += self._heads(HEADS + " WHERE id = ?", (message_id,))
        return heads

    def heads_after(self, timestamp_ms, int64_t message_id):
        return chain(self._heads(HEADS_BESIDE, (timestamp_ms, message_id)), self._heads(HEADS_AFTER, (timestamp_ms,)))

    def heads_of(self, int qos, timestamp_ms, int64_t message_id):
        return chain(self._heads(HEADS_OF_BESIDE.format(OF_QOS[qos]), (timestamp_ms, message_id)),
                     self._heads(HEADS_OF_AFTER.format(OF_QOS[qos]), (timestamp_ms,)))

    def telemetry_between(self, int64_t after_id, int64_t through_id):
        return self._heads(TELEMETRY_BETWEEN, (after_id, through_id))

    def older_half_of_telemetry(self) -> tuple:
        count, first_id = self.execute(COUNT_OF_TELEMETRY).fetchone()
        if count < 2:
            return first_id, first_id
        return first_id, self.execute(ID_OF_TELEMETRY, (count // 2 - 1,)).get

    def used_bytes(self) -> int:
        pages = self.execute("PRAGMA page_count").get - self.execute("PRAGMA freelist_count").get
        return pages * self.execute("PRAGMA page_size").get

    def heads_expired(self, int64_t now_ms):
        return self._heads(HEADS_EXPIRED, (now_ms,))

    def heads_given_up(self, int64_t max_retry):
        return self._heads(HEADS_GIVEN_UP, (max_retry,))

    def _heads(self, str statement, tuple bindings):
        for message_id, topic, qos, timestamp_ms in self.execute(statement, bindings):
            yield message_id, self.text(topic), qos, timestamp_ms

    def increment_retry_count(self, list ids) -> int:
        cdef int64_t changed = 0
        for pair in ranges_of(ids):
            self.execute("UPDATE mqtt_offline_queue SET retry_count = coalesce(retry_count, 0) + 1"
                         " WHERE id BETWEEN ? AND ?", pair)
            changed += self.connection.changes()
        return changed

    def read_all(self) -> list:
        cdef list rows
        self.unsendable = []
        try:
            rows = self.execute(READ_ALL.format(*AS_STORED)).fetchall()
        except UnicodeDecodeError:
            rows = self.execute(READ_ALL.format(*AS_ODD)).fetchall()
        return rows if _are_sound(rows) else self._mended(rows)

    def count(self) -> int:
        return self.execute("SELECT count(*) FROM mqtt_offline_queue").get

    def last_id(self) -> int:
        return self.execute(
            "SELECT max(coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'mqtt_offline_queue'), 0),"
            " coalesce((SELECT max(id) FROM mqtt_offline_queue), 0))").get

    def last_timestamp_ms(self) -> int:
        latest = self.execute(
            "SELECT max(timestamp) FROM mqtt_offline_queue WHERE timestamp BETWEEN -?1 AND ?1", (STAMP_MAX_MS,)).get
        return 0 if latest is None else ceil(latest)

    def span_ms(self):
        times = self.execute(
            "SELECT min(timestamp), max(timestamp) FROM mqtt_offline_queue WHERE timestamp BETWEEN -?1 AND ?1",
            (TIME_MAX_MS,)).get
        return tuple([None if each is None else round(each) for each in times])

    def move_times(self, int64_t by_ms, int64_t first_id, int64_t coming_ms) -> int:
        # Where older messages would then seem younger, also than those to come, which are stamped from `coming_ms` on,
        # their clock was as wrong, and their times are moved too. Times at the ends of the range, which another writer
        # may use for "never", stay.
        cdef int64_t first = first_id
        older_ms = self.execute(
            "SELECT max(timestamp) FROM mqtt_offline_queue WHERE id < ?1 AND timestamp BETWEEN -?2 AND ?2",
            (first_id, TIME_MAX_MS)).get
        since_ms = self.execute(
            "SELECT min(timestamp) FROM mqtt_offline_queue WHERE id >= ?1 AND timestamp BETWEEN -?2 AND ?2",
            (first_id, TIME_MAX_MS)).get
        if older_ms is not None and older_ms > (coming_ms if since_ms is None else min(since_ms, coming_ms)) + by_ms:
            first = 0
        self.execute(MOVE_TIMES, (by_ms, first, MOVED_MAX_MS))
        return first

    def holds(self, int64_t message_id) -> bool:
        return bool(self.execute("SELECT EXISTS (SELECT 1 FROM mqtt_offline_queue WHERE id = ?)", (message_id,)).get)

    def has(self, tuple row) -> bool:
        return bool(self.execute(HAS_ROW, (row[0], row[1], row[2], row[4])).get)
