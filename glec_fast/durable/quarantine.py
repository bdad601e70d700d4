"""Messages that are out of the way and still on disk, in `glec_set_aside`: which they are, and how long they stay.

A message comes there that a server refused, or ended connections over, as often as it may; and a row of another writer
that no message can be made of. docs/internals/quarantine.md has the whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from glec_fast.durable.foreign_rows import are_extras
from glec_fast.errors import MessageError

if TYPE_CHECKING:
    from glec_fast.durable._table import QueueTable

DEFAULT_QUARANTINE_SIZE = 1000
DEFAULT_QUARANTINE_DAYS = 30.0
DAY_MS = 24 * 60 * 60 * 1000
# The newest is kept, however large it is. They stand in the queue's file, whose bound is for both.
QUARANTINE_BYTES_MAX, _QUEUE_SHARE = 32 << 20, 4
# No such message is older. What a clock stamped that was not set yet has no age, and goes by number alone.
CLOCKS_BEGIN_MS = 1_577_836_800_000

_SET_ASIDE = (
    "INSERT INTO glec_set_aside (time, reason, message_id, topic, payload, qos, timestamp, ttl, retry_count, retain,"
    " expiry_interval, properties) SELECT ?3, ?2, id, topic,"
    " payload, qos, timestamp, ttl, retry_count, retain, expiry_interval, properties FROM mqtt_offline_queue"
    " LEFT JOIN glec_extras ON message_id = id WHERE id = ?1"
)
# The newest, up to so many and so many bytes, but always the last; and none of an age that its time tells.
_TRIM = (
    "DELETE FROM glec_set_aside WHERE number <= (SELECT max(number) FROM glec_set_aside) - ?1"
    " OR (typeof(time) = 'integer' AND time BETWEEN ?3 AND ?4) OR number IN"
    " (SELECT number FROM (SELECT number, sum(length(CAST(payload AS BLOB))) OVER (ORDER BY number DESC) AS bytes"
    " FROM glec_set_aside) WHERE bytes > ?2 AND number < (SELECT max(number) FROM glec_set_aside))"
)
_LIST = (
    "SELECT number, iif(typeof(time) = 'integer', time, 0), CAST(reason AS BLOB),"
    " iif(typeof(message_id) = 'integer', message_id, 0), coalesce(CAST(topic AS BLOB), x''),"
    " iif(typeof(qos) = 'integer', qos, 0), coalesce(length(CAST(payload AS BLOB)), 0),"
    " iif(typeof(retry_count) = 'integer', retry_count, 0) FROM glec_set_aside ORDER BY number"
)
# Where a TEXT need not be one, and a number need not be one either.
_READ = (
    "SELECT CAST(topic AS BLOB), CAST(payload AS BLOB), typeof(payload), iif(typeof(qos) = 'text', CAST(qos AS BLOB),"
    " qos), iif(typeof(retain) = 'text', x'', retain), iif(typeof(expiry_interval) = 'text', x'', expiry_interval),"
    " iif(typeof(properties) = 'text', x'', properties) FROM glec_set_aside WHERE number = ?"
)


class Quarantined(NamedTuple):
    """One entry. number: by which it is asked for; they only grow. time_ms: Unix time at which it came there.

    reason: in words. message_id: that of its handle. payload_bytes: as text in UTF-8. retry_count: refusals.
    """

    number: int
    time_ms: int
    reason: str
    message_id: int
    topic: str
    qos: int
    payload_bytes: int
    retry_count: int


class Bounds(NamedTuple):
    """Of what is kept. size: entries, the oldest go first. age_ms: of an entry. bytes: of all payloads."""

    size: int = DEFAULT_QUARANTINE_SIZE
    age_ms: int = int(DEFAULT_QUARANTINE_DAYS * DAY_MS)
    bytes: int = QUARANTINE_BYTES_MAX


def bounds_of(size: int, days: float, queue_max_bytes: int) -> Bounds:
    """queue_max_bytes: of the file, 0 for no limit. Of a quarter of it the queue would give up messages else."""
    share = queue_max_bytes // _QUEUE_SHARE or QUARANTINE_BYTES_MAX
    return Bounds(size, int(days * DAY_MS), min(share, QUARANTINE_BYTES_MAX))


def set_aside(table: QueueTable, reasons: list[tuple[int, str]], time_ms: int) -> None:
    """Copy rows of the queue, by (id, reason), to where they wait for somebody to look at them. time_ms: Unix time."""
    table.connection.executemany(_SET_ASIDE, [(*pair, time_ms) for pair in reasons])


def trim(table: QueueTable, rows_max: int, bytes_max: int, from_ms: int, through_ms: int) -> None:
    """Keep the newest entries, up to so many and so many bytes, and none between these times."""
    if table.connection.execute("SELECT EXISTS (SELECT 1 FROM glec_set_aside)").get:
        table.connection.execute(_TRIM, (rows_max, bytes_max, from_ms, through_ms))


def read_entries(table: QueueTable) -> list[Quarantined]:
    """All of them, the oldest first."""
    return [
        Quarantined(number, time_ms, table.text(reason), message_id, table.text(topic), *rest)
        for number, time_ms, reason, message_id, topic, *rest in table.connection.execute(_LIST)
    ]


def read_entry(
    table: QueueTable, number: int
) -> tuple[str, str | bytes, int, tuple[bool, int | None, bytes] | None] | None:
    """(topic, payload, QoS, extras) of an entry that a message can be made of; None where there is none.

    Raises MessageError where no message can.
    """
    found = table.connection.execute(_READ, (number,)).fetchone()
    if found is None:
        return None
    topic, payload, kind, qos, retain, expiry_interval_s, properties = found
    name, stored, level = table.message_of(topic, payload, kind, qos)
    if retain is None:
        return name, stored, level, None
    if not are_extras(retain, expiry_interval_s, properties):
        raise MessageError("its retain flag or properties are none")
    return name, stored, level, (bool(retain), expiry_interval_s, properties)


def delete_entries(table: QueueTable, numbers: list[int]) -> int:
    """Returns how many there were."""
    deleted = 0
    for number in numbers:
        table.connection.execute("DELETE FROM glec_set_aside WHERE number = ?", (number,))
        deleted += table.connection.changes()
    return deleted
