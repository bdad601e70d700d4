"""The statements on the queue table, a batch at a time. What each function does, for its callers, is in the stub.

Rows go out as (id, topic, payload, qos, timestamp, ttl), first in, first out: by (timestamp, id). A payload that is not
text is kept as a BLOB; TEXT otherwise, as the specification's table says. A message with extras has those three columns
behind the others; they stand in a table of their own, and are deleted with the message's row.

SQLite keeps a value of any type in any column, and other programs write to the table. So each row is looked at as it is
read: what goes out is of the types that are said here, and can be published. The others are read once more, as bytes.

This file is the table as the store uses it. Beside it: `statements.pxi`, the SQL; `rows.pxi`, rows as tuples, and which
are sound; `accepting.pxi`, how a message becomes a row; `kernel_clock.pxi`.
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
from libc.math cimport INFINITY
from libc.stddef cimport size_t
from libc.stdint cimport INT64_MAX, INT64_MIN, int64_t, uint64_t
from libc.string cimport memchr, memset
from posix.time cimport clock_gettime, clockid_t, timespec

cimport histogram
from glec_fast.runtime._lock cimport Lock

from apsw import SQLITE_DBSTATUS_CACHE_WRITE

from glec_fast.durable._steps import ranges_of
from glec_fast.durable.foreign_rows import (
    STAMP_MAX_MS, TIME_MAX_MS, are_extras, as_message, as_number, as_time_ms
)
from glec_fast.errors import MessageError
from glec_fast.validation import PAYLOAD_MAX_BYTES, has_forbidden

# More gaps than that are not worth the search for a row in one of them. Each crash leaves one.
CLEARED_RANGES_MAX = 32
# Of one read, in payload; and the row that exceeds it. More would hold up whoever reads, and only be memory.
cdef Py_ssize_t READ_BYTES_MAX = 256 * 1024
# Beyond that another writer may mean "never".
cdef int64_t MOVED_MAX_MS = 1 << 62

include "rows.pxi"
include "kernel_clock.pxi"
include "statements.pxi"


cdef bint _are_small(list rows) except -1:
    cdef Py_ssize_t index
    for index in range(PyList_GET_SIZE(rows)):
        if len((<tuple>PyList_GET_ITEM(rows, index))[PAYLOAD_COLUMN]) > BURST_PAYLOAD_MAX:
            return False
    return True


cdef class QueueTable:
    cdef readonly object connection
    cdef readonly str encoding
    cdef object execute, executemany
    cdef public int64_t deleted
    cdef public bint has_stage
    cdef readonly tuple position
    cdef readonly Py_ssize_t met
    # The last read ended at READ_BYTES_MAX; and what its rows had on average.
    cdef bint is_cut
    cdef Py_ssize_t row_bytes
    cdef readonly list unsendable
    cdef readonly list given_up
    cdef int64_t retries_max
    cdef readonly bint may_have_extras
    cdef readonly int64_t page_bytes

    def __init__(self, connection, int64_t retries_max=INT64_MAX):
        self.connection = connection
        self.retries_max = retries_max
        self.execute = connection.execute
        self.executemany = connection.executemany
        self.may_have_extras = True
        self.unsendable, self.given_up = [], []
        # Of the bytes of a TEXT.
        self.encoding = connection.pragma("encoding")
        self.page_bytes = connection.pragma("page_size")

    def commit(self, transaction):
        self.execute("COMMIT")
        transaction.is_committed = True

    @property
    def written_pages(self) -> int:
        return self.connection.status(SQLITE_DBSTATUS_CACHE_WRITE)[0]

    def data_version(self) -> int:
        return self.execute("PRAGMA data_version").get

    def oldest_ms(self, tuple passed not None):
        return self.execute(OLDEST, passed).get

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
        cdef bint are_small = _are_small(rows)
        cdef Py_ssize_t after = len(rows) - len(rows) % ROWS_A_STATEMENT if are_small else 0
        for first in range(0, after, ROWS_A_STATEMENT):
            self.execute(INSERT_BURST, tuple(chain.from_iterable(rows[first:first + ROWS_A_STATEMENT])))
        if len(rows) == after + 1:
            self.execute(INSERT, rows[after])
        elif are_small and self.has_stage and len(rows) > after:
            self.executemany(STAGE, rows[after:])
            self.execute(INSERT_STAGED)
            self.execute(DELETE_STAGED)
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
            rows += self._fetch_all(statement, (message_id,))
        return rows if _are_sound(rows) else self._mended(rows)

    cdef list _fetch_all(self, str statement, tuple bindings):
        try:
            return self.execute(statement.format(*AS_STORED), bindings).fetchall()
        except UnicodeDecodeError:
            return self.execute(statement.format(*AS_ODD), bindings).fetchall()

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
        return pages * self.page_bytes

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
        self.unsendable = []
        cdef list rows = self._fetch_all(READ_ALL, ())
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


include "accepting.pxi"
