"""The statements on the queue table, a batch at a time. One object, one connection, one thread at a time; no commit.

Rows go out as (id, topic, payload, qos, timestamp, ttl), first in, first out: by (timestamp, id). A payload that is not
text is kept as a BLOB; TEXT otherwise, as the specification's table says. A message with extras has those three columns
behind the others; they stand in a table of their own, and are deleted with the message's row.
"""

from itertools import chain

from libc.stdint cimport INT64_MAX, INT64_MIN, int64_t

cdef enum:
    # More gaps than that are not worth the search for a row in one of them.
    CLEARED_RANGES_MAX = 4
    # Of a row without extras.
    ROW_COLUMNS = 6
    EXPIRY_COLUMN = 5

cdef str INSERT = (
    "INSERT INTO mqtt_offline_queue (id, topic, payload, qos, timestamp, ttl) VALUES (?, ?, ?, ?, ?, ?)")
# Without a condition SQLite drops the pages as they are: a tenth of the cost, in time and in bytes written.
cdef str DELETE_ALL = "DELETE FROM mqtt_offline_queue"
cdef str IS_ANY_BETWEEN = "SELECT EXISTS (SELECT 1 FROM mqtt_offline_queue WHERE id BETWEEN ? AND ?)"
cdef str DELETE_RANGE = "DELETE FROM mqtt_offline_queue WHERE id BETWEEN ? AND ?"
# Two halves, each an index search, merged: a row value comparison would walk all rows that share the first timestamp.
cdef str READ_AFTER = (
    "SELECT id, {0}, qos, timestamp, ttl FROM mqtt_offline_queue WHERE timestamp = ?1 AND id > ?2"
    " UNION ALL"
    " SELECT id, {0}, qos, timestamp, ttl FROM mqtt_offline_queue WHERE timestamp > ?1"
    " ORDER BY timestamp, id LIMIT ?3")
cdef str READ_WITH_EXTRAS = (
    "SELECT q.*, retain, expiry_interval, properties FROM (" + READ_AFTER + ") AS q"
    " LEFT JOIN glec_extras ON message_id = q.id ORDER BY q.timestamp, q.id")
cdef str READ_ROW = "SELECT id, {0}, qos, timestamp, ttl FROM mqtt_offline_queue WHERE id = ?"
cdef str READ_ROW_WITH_EXTRAS = (
    "SELECT q.*, retain, expiry_interval, properties FROM (" + READ_ROW + ") AS q"
    " LEFT JOIN glec_extras ON message_id = q.id")
cdef str INSERT_EXTRAS = (
    "INSERT INTO glec_extras (message_id, retain, expiry_interval, properties) VALUES (?, ?, ?, ?)")
cdef str DELETE_ALL_EXTRAS = "DELETE FROM glec_extras"
cdef str DELETE_EXTRAS = "DELETE FROM glec_extras WHERE message_id BETWEEN ? AND ?"
cdef str DELETE_ORPHANS = "DELETE FROM glec_extras WHERE message_id NOT IN (SELECT id FROM mqtt_offline_queue)"
cdef str IS_ANY_EXTRA = "SELECT EXISTS (SELECT 1 FROM glec_extras)"
# A head is a row without its payload: what it takes to drop it and to tell of it.
cdef str HEADS = "SELECT id, CAST(topic AS BLOB), qos, timestamp FROM mqtt_offline_queue"
cdef str HEADS_BESIDE = HEADS + " WHERE timestamp = ? AND id > ? ORDER BY id"
cdef str HEADS_AFTER = HEADS + " WHERE timestamp > ? ORDER BY timestamp, id"
cdef str HEADS_EXPIRED = HEADS + " WHERE ttl < ?"
cdef str HEADS_GIVEN_UP = HEADS + " WHERE retry_count >= ?"
cdef str READ_ALL = (
    "SELECT id, {0}, qos, timestamp, ttl, coalesce(retry_count, 0) FROM mqtt_offline_queue ORDER BY timestamp, id")
cdef str AS_STORED = "topic, payload"
cdef str AS_BYTES = "CAST(topic AS BLOB), CAST(payload AS BLOB)"
cdef str READ_AFTER_STORED = READ_AFTER.format(AS_STORED)
cdef str READ_WITH_EXTRAS_STORED = READ_WITH_EXTRAS.format(AS_STORED)

cdef int64_t TIME_MAX_MS = 1 << 62
cdef str MOVE_TIMES = (
    "UPDATE mqtt_offline_queue"
    " SET timestamp = timestamp + iif(timestamp BETWEEN -?3 AND ?3, ?1, 0),"
    " ttl = ttl + iif(ttl BETWEEN -?3 AND ?3, ?1, 0)"
    " WHERE id >= ?2")

cdef str ADD_IN_DOUBT = (
    "INSERT INTO glec_in_doubt (time, message_id, topic, decision)"
    " SELECT ?, id, topic, ? FROM mqtt_offline_queue WHERE id = ?")
cdef str TRIM_IN_DOUBT = "DELETE FROM glec_in_doubt WHERE number <= (SELECT max(number) FROM glec_in_doubt) - ?"
cdef str READ_IN_DOUBT = "SELECT number, time, message_id, topic, decision FROM glec_in_doubt ORDER BY number"


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


def make_row(int64_t message_id, topic, payload, int qos, int64_t timestamp_ms, int64_t ttl_ms,
             extras=None) -> tuple:
    """The row of one message; `ttl_ms` is the time of expiry, extras (retain, expiry interval, packed properties)."""
    row = (message_id, topic, stored_payload(payload), qos, timestamp_ms, ttl_ms)
    return row if extras is None else (*row, *extras)


def accept(store, topic, payload, int qos, int64_t now_ms, int64_t ttl_ms, extras, register) -> int:
    """Give a message its id and put its row behind those that are pending, in one step; the caller holds the lock.

    Whatever cuts into it finds either nothing of the message or all. register: told the id, or None.
    """
    cdef int64_t message_id = store._next_id
    cdef int64_t timestamp_ms
    while True:
        # Also behind rows of another writer, and of a boot whose clock was ahead.
        timestamp_ms = max(now_ms, <int64_t>store._last_timestamp_ms)
        row = make_row(message_id, topic, payload, qos, timestamp_ms, ttl_ms, extras)
        if store._next_id == message_id:
            break
        # A finaliser has published: a new tuple may collect garbage.
        message_id = store._next_id
    store._pending.append(row)
    store._last_timestamp_ms = timestamp_ms
    store._next_id = message_id + 1
    if register is not None:
        register(message_id)
    return message_id


def ranges_of(list ids) -> list:
    """Inclusive (first, last) ranges that cover just `ids`; sorts the list in place."""
    cdef list ranges = []
    cdef int64_t first, last, current
    if not ids:
        return ranges
    ids.sort()
    first = last = ids[0]
    for current in ids:
        if current > last + 1:
            ranges.append((first, last))
            first = current
        last = current
    ranges.append((first, last))
    return ranges


def merged(list ranges) -> list:
    """The fewest (first, last) ranges that cover what `ranges` cover; sorts the list in place."""
    cdef list fewest = []
    cdef int64_t first, last, next_first, next_last
    if len(ranges) < 2:
        return ranges
    ranges.sort()
    first, last = ranges[0]
    for next_first, next_last in ranges:
        if next_first > last + 1:
            fewest.append((first, last))
            first, last = next_first, next_last
        elif next_last > last:
            last = next_last
    fewest.append((first, last))
    return fewest


def is_any_expired(list rows, now_ms) -> bool:
    """True where the time of any of these rows is over."""
    cdef tuple row
    for row in rows:
        # As an object: another program may have left a number that is not whole.
        if row[EXPIRY_COLUMN] < now_ms:
            return True
    return False


cdef class Finished:
    """The rows that are finished and not yet deleted: by id, and as the ranges that an image names them by.

    Ids in the order in which they finished, and always at hand the inclusive ranges that they make. A stream finishes
    in order: thousands of ids are one range, and the next few make it longer. Not thread-safe.
    """

    cdef readonly list ids, ranges

    def __init__(self):
        self.ids = []
        self.ranges = []

    def __len__(self) -> int:
        return len(self.ids)

    def add(self, list ids not None):
        """Behind those that are there."""
        cdef int64_t first, last, current
        cdef Py_ssize_t followed = 0
        cdef Py_ssize_t last_index = len(self.ranges) - 1
        self.ids += ids
        if last_index >= 0:
            first, last = self.ranges[last_index]
            for current in ids:
                if current != last + 1:
                    break
                last = current
                followed += 1
            self.ranges[last_index] = (first, last)
        if followed < len(ids):
            self.ranges = merged(self.ranges + ranges_of(ids[followed:]))

    def remove_first(self, Py_ssize_t count):
        """Remove the `count` that came first."""
        del self.ids[:count]
        self.ranges = ranges_of(self.ids.copy())


cdef class QueueTable:
    """Statements on the connection of a `QueueFile`. The caller owns the connection and the transaction."""

    cdef object connection, execute, executemany
    # Rows deleted since the caller set it to 0.
    cdef public int64_t deleted
    # True where the last `read_after` met a TEXT that is not UTF-8.
    cdef readonly bint had_broken_text
    # False only where no message on disk has extras.
    cdef readonly bint may_have_extras

    def __init__(self, connection):
        self.connection = connection
        self.execute = connection.execute
        self.executemany = connection.executemany
        self.may_have_extras = True

    def insert(self, list rows):
        """Add rows made by `make_row`."""
        cdef list extras = [row for row in rows if len(<tuple>row) > ROW_COLUMNS]
        if extras:
            self.may_have_extras = True
            self.executemany(INSERT_EXTRAS, [(row[0], *row[ROW_COLUMNS:]) for row in extras])
            rows = [row[:ROW_COLUMNS] for row in rows]
        if len(rows) == 1:
            self.execute(INSERT, rows[0])
        else:
            self.executemany(INSERT, rows)

    def delete(self, list ids) -> int:
        """Delete by id; returns how many rows there were. Sorts the list in place."""
        return self._delete_ranges(ranges_of(ids))

    def delete_finished(self, list ids) -> int:
        """`delete` that looks first whether all there is goes."""
        cdef list ranges = ranges_of(ids)
        if 0 < len(ranges) <= CLEARED_RANGES_MAX and not self._is_any_beside(ranges):
            if self.may_have_extras:
                self.execute(DELETE_ALL_EXTRAS)
            self.execute(DELETE_ALL)
            self.deleted += self.connection.changes()
            return self.connection.changes()
        return self._delete_ranges(ranges)

    cdef bint _is_any_beside(self, list ranges) except -1:
        cdef int64_t first, last, after = INT64_MIN
        for first, last in ranges:
            if self.execute(IS_ANY_BETWEEN, (after, first - 1)).get:
                return True
            after = last + 1
        return self.execute(IS_ANY_BETWEEN, (after, INT64_MAX)).get

    cdef int64_t _delete_ranges(self, list ranges) except -1:
        cdef int64_t deleted = 0
        for pair in ranges:
            if self.may_have_extras:
                self.execute(DELETE_EXTRAS, pair)
            self.execute(DELETE_RANGE, pair)
            deleted += self.connection.changes()
        self.deleted += deleted
        return deleted

    def look_for_extras(self):
        """Find out whether any message on disk has extras. Between transactions, as a rollback brings them back."""
        self.may_have_extras = self.execute(IS_ANY_EXTRA).get

    def delete_orphaned_extras(self):
        """Delete the extras of messages that another program has deleted."""
        if self.may_have_extras:
            self.execute(DELETE_ORPHANS)

    def read_after(self, int64_t timestamp_ms, int64_t message_id, int limit, bint with_extras=False) -> list:
        """The next rows behind a position, at most `limit`, as one snapshot."""
        self.had_broken_text = False
        bindings = (timestamp_ms, message_id, limit)
        try:
            return self.execute(READ_WITH_EXTRAS_STORED if with_extras else READ_AFTER_STORED, bindings).fetchall()
        except UnicodeDecodeError:
            return self._read_broken_text(READ_WITH_EXTRAS if with_extras else READ_AFTER, bindings)

    def read_rows(self, list ids, bint with_extras=False) -> list:
        """The rows of these ids, as far as there are any, in the order of `ids`."""
        cdef list rows = []
        cdef str statement = READ_ROW_WITH_EXTRAS if with_extras else READ_ROW
        self.had_broken_text = False
        for message_id in ids:
            try:
                rows += self.execute(statement.format(AS_STORED), (message_id,)).fetchall()
            except UnicodeDecodeError:
                rows += self._read_broken_text(statement, (message_id,))
        return rows

    cdef list _read_broken_text(self, str statement, tuple bindings):
        """Rows where a TEXT is not UTF-8, by damage or by another writer: such a payload is given as bytes.

        Such a topic has a lone surrogate for each bad byte, which no check lets pass.
        """
        self.had_broken_text = True
        return [
            (row[0], row[1].decode("utf-8", "surrogateescape"), stored_payload(row[2]), *row[3:])
            for row in self.execute(statement.format(AS_BYTES), bindings)
        ]

    def heads_after(self, int64_t timestamp_ms, int64_t message_id):
        """An iterator over the heads (id, topic, qos, timestamp) behind a position, in order."""
        return chain(self._heads(HEADS_BESIDE, (timestamp_ms, message_id)), self._heads(HEADS_AFTER, (timestamp_ms,)))

    def heads_expired(self, int64_t now_ms):
        """An iterator over the heads whose time of expiry has passed."""
        return self._heads(HEADS_EXPIRED, (now_ms,))

    def heads_given_up(self, int64_t max_retry):
        """An iterator over the heads that failed as often as they may."""
        return self._heads(HEADS_GIVEN_UP, (max_retry,))

    def _heads(self, str statement, tuple bindings):
        for message_id, topic, qos, timestamp_ms in self.execute(statement, bindings):
            yield message_id, topic.decode("utf-8", "replace"), qos, timestamp_ms

    def increment_retry_count(self, list ids) -> int:
        """Count one more failed attempt for each id; returns how many rows there were."""
        cdef int64_t changed = 0
        for pair in ranges_of(ids):
            self.execute("UPDATE mqtt_offline_queue SET retry_count = coalesce(retry_count, 0) + 1"
                         " WHERE id BETWEEN ? AND ?", pair)
            changed += self.connection.changes()
        return changed

    def read_all(self) -> list:
        """Every row with its retry count, in order."""
        try:
            return self.execute(READ_ALL.format(AS_STORED)).fetchall()
        except UnicodeDecodeError:
            return self._read_broken_text(READ_ALL, ())

    def count(self) -> int:
        """Rows in the table."""
        return self.execute("SELECT count(*) FROM mqtt_offline_queue").get

    def last_id(self) -> int:
        """The highest id that was ever given, 0 in a new file."""
        return self.execute(
            "SELECT max(coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'mqtt_offline_queue'), 0),"
            " coalesce((SELECT max(id) FROM mqtt_offline_queue), 0))").get

    def last_timestamp_ms(self) -> int:
        """The highest timestamp in the table, 0 where it is empty."""
        return self.execute("SELECT coalesce(max(timestamp), 0) FROM mqtt_offline_queue").get

    def span_ms(self):
        """(oldest, newest) timestamp, None each where the table is empty."""
        return self.execute("SELECT min(timestamp), max(timestamp) FROM mqtt_offline_queue").get

    def add_in_doubt(self, int64_t time_ms, list entries, int limit):
        """Record (message id, decision) of messages whose rows are still there, and keep the newest `limit`."""
        self.executemany(ADD_IN_DOUBT, [(time_ms, decision, message_id) for message_id, decision in entries])
        self.execute(TRIM_IN_DOUBT, (limit,))

    def read_in_doubt(self) -> list:
        """Every (number, time, message id, topic, decision) recorded, oldest first."""
        return self.execute(READ_IN_DOUBT).fetchall()

    def move_times(self, int64_t by_ms, int64_t first_id, int64_t coming_ms) -> int:
        """Add `by_ms` to the times of every message from `first_id` on; returns from which id on that was.

        Where older messages would then seem younger, also than those to come, which are stamped from `coming_ms` on,
        their clock was as wrong, and their times are moved too. Times at the ends of the range, which another writer
        may use for "never", stay.
        """
        cdef int64_t first = first_id
        older_ms = self.execute("SELECT max(timestamp) FROM mqtt_offline_queue WHERE id < ?", (first_id,)).get
        since_ms = self.execute("SELECT min(timestamp) FROM mqtt_offline_queue WHERE id >= ?", (first_id,)).get
        if older_ms is not None and older_ms > (coming_ms if since_ms is None else min(since_ms, coming_ms)) + by_ms:
            first = 0
        self.execute(MOVE_TIMES, (by_ms, first, TIME_MAX_MS))
        return first

    def load_clock(self):
        """The clock's row, without its id, or None."""
        query = "SELECT boot_id, queue_offset, wall_offset, queue_time, first_id FROM glec_clock"
        return self.execute(query).fetchone()

    def save_clock(self, anchor):
        """Replace the clock's row."""
        self.execute("INSERT OR REPLACE INTO glec_clock VALUES (1, ?, ?, ?, ?, ?)", anchor)

    def holds(self, int64_t message_id) -> bool:
        """True where there is a row of this id."""
        return bool(self.execute("SELECT EXISTS (SELECT 1 FROM mqtt_offline_queue WHERE id = ?)", (message_id,)).get)

    def load_session(self):
        """(client id, broker, in-flight image) of the last process, or None."""
        return self.execute("SELECT client_id, broker, in_flight FROM glec_session WHERE id = 1").fetchone()

    def save_session(self, str client_id, str broker, bytes image):
        """Replace the session's row."""
        self.execute("INSERT OR REPLACE INTO glec_session VALUES (1, ?, ?, ?)", (client_id, broker, image))

    def save_image(self, bytes image):
        """Replace the in-flight image of the session's row."""
        self.execute("UPDATE glec_session SET in_flight = ? WHERE id = 1", (image,))
