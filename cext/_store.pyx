"""The statements on the queue table, a batch at a time. One object, one connection, one thread at a time; no commit.

Rows go out as (id, topic, payload, qos, timestamp, ttl), first in, first out: by (timestamp, id). A payload that is not
text is kept as a BLOB; TEXT otherwise, as the specification's table says.
"""

from libc.stdint cimport int64_t

cdef str INSERT = (
    "INSERT INTO mqtt_offline_queue (id, topic, payload, qos, timestamp, ttl) VALUES (?, ?, ?, ?, ?, ?)")
cdef str DELETE_RANGE = "DELETE FROM mqtt_offline_queue WHERE id BETWEEN ? AND ?"
# Two halves, each an index search: a row value comparison would walk all rows that share the first timestamp.
cdef str READ_AFTER = (
    "SELECT * FROM (SELECT id, topic, payload, qos, timestamp, ttl FROM mqtt_offline_queue"
    " WHERE timestamp = ?1 AND id > ?2 ORDER BY id LIMIT ?3)"
    " UNION ALL"
    " SELECT * FROM (SELECT id, topic, payload, qos, timestamp, ttl FROM mqtt_offline_queue"
    " WHERE timestamp > ?1 ORDER BY timestamp, id LIMIT ?3) LIMIT ?3")
cdef str READ_EXPIRED = (
    "SELECT id, topic, payload, qos, timestamp, ttl FROM mqtt_offline_queue WHERE ttl < ? ORDER BY timestamp, id")
cdef str READ_GIVEN_UP = (
    "SELECT id, topic, payload, qos, timestamp, ttl FROM mqtt_offline_queue WHERE retry_count >= ?"
    " ORDER BY timestamp, id")


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


def make_row(int64_t message_id, topic, payload, int qos, int64_t timestamp_ms, int64_t ttl_ms) -> tuple:
    """The row of one message; `ttl_ms` is the time of expiry."""
    return (message_id, topic, stored_payload(payload), qos, timestamp_ms, ttl_ms)


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


cdef class QueueTable:
    """Statements on the connection of a `QueueFile`. The caller owns the connection and the transaction."""

    cdef object connection, execute, executemany
    # Rows deleted since the caller set it to 0.
    cdef public int64_t deleted

    def __init__(self, connection):
        self.connection = connection
        self.execute = connection.execute
        self.executemany = connection.executemany

    def insert(self, list rows):
        """Add rows made by `make_row`."""
        if len(rows) == 1:
            self.execute(INSERT, rows[0])
        else:
            self.executemany(INSERT, rows)

    def delete(self, list ids) -> int:
        """Delete by id; returns how many rows there were. Sorts the list in place."""
        cdef int64_t deleted = 0
        for pair in ranges_of(ids):
            self.execute(DELETE_RANGE, pair)
            deleted += self.connection.changes()
        self.deleted += deleted
        return deleted

    def read_after(self, int64_t timestamp_ms, int64_t message_id, int limit) -> list:
        """The next rows behind a position, at most `limit`, as one snapshot."""
        return self.execute(READ_AFTER, (timestamp_ms, message_id, limit)).fetchall()

    def read_expired(self, int64_t now_ms) -> list:
        """Rows whose time of expiry has passed."""
        return self.execute(READ_EXPIRED, (now_ms,)).fetchall()

    def read_given_up(self, int max_retry) -> list:
        """Rows that failed as often as they may."""
        return self.execute(READ_GIVEN_UP, (max_retry,)).fetchall()

    def increment_retry_count(self, list ids) -> int:
        """Count one more failed attempt for each id; returns how many rows there were."""
        cdef int64_t changed = 0
        for pair in ranges_of(ids):
            self.execute("UPDATE mqtt_offline_queue SET retry_count = retry_count + 1 WHERE id BETWEEN ? AND ?", pair)
            changed += self.connection.changes()
        return changed

    def read_all(self) -> list:
        """Every row with its retry count, in order."""
        return self.execute(
            "SELECT id, topic, payload, qos, timestamp, ttl, retry_count FROM mqtt_offline_queue"
            " ORDER BY timestamp, id").fetchall()

    def count(self) -> int:
        """Rows in the table."""
        return self.execute("SELECT count(*) FROM mqtt_offline_queue").get

    def last_id(self) -> int:
        """The highest id that was ever given, 0 in a new file."""
        return self.execute("SELECT max(coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'mqtt_offline_queue'), 0),"
                            " coalesce((SELECT max(id) FROM mqtt_offline_queue), 0))").get

    def last_timestamp_ms(self) -> int:
        """The highest timestamp in the table, 0 where it is empty."""
        return self.execute("SELECT coalesce(max(timestamp), 0) FROM mqtt_offline_queue").get

    def span_ms(self):
        """(oldest, newest) timestamp, None each where the table is empty."""
        return self.execute("SELECT min(timestamp), max(timestamp) FROM mqtt_offline_queue").get

    def load_session(self):
        """(client id, broker, in-flight image) of the last process, or None."""
        return self.execute("SELECT client_id, broker, in_flight FROM glec_session WHERE id = 1").fetchone()

    def save_session(self, str client_id, str broker, bytes image):
        """Replace the session's row."""
        self.execute("INSERT OR REPLACE INTO glec_session VALUES (1, ?, ?, ?)", (client_id, broker, image))

    def save_image(self, bytes image):
        """Replace the in-flight image of the session's row."""
        self.execute("UPDATE glec_session SET in_flight = ? WHERE id = 1", (image,))
