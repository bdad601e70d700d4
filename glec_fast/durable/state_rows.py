"""What the queue file knows beside its messages, in tables of one row or few: session, sessions left, clock, gathered.

Statements for a transaction of the store. Any row may be of another writer, or damaged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from glec_fast.durable.clock import Anchor
from glec_fast.durable.foreign_rows import ID_MAX, TIME_MAX_MS

if TYPE_CHECKING:
    from glec_fast.durable._table import QueueTable

_LOAD_SESSION = (
    "SELECT CAST(client_id AS BLOB), CAST(broker AS BLOB), iif(typeof(client_id) = 'text' AND typeof(broker) = 'text'"
    " AND typeof(in_flight) = 'blob', in_flight, NULL) FROM glec_session WHERE id = 1"
)
# By name: another program may have added a column.
_SAVE_SESSION = "INSERT OR REPLACE INTO glec_session (id, client_id, broker, in_flight) VALUES (1, ?, ?, ?)"
_SAVE_CLOCK = (
    "INSERT OR REPLACE INTO glec_clock (id, boot_id, queue_offset, wall_offset, queue_time, first_id)"
    " VALUES (1, ?, ?, ?, ?, ?)"
)
_SAVE_GATHERED = "INSERT OR REPLACE INTO glec_gathered (id, topic, payload, properties) VALUES (1, ?, ?, ?)"
_READ_KEPT = (
    "SELECT CAST(client_id AS BLOB), CAST(broker AS BLOB), in_flight FROM glec_kept_session"
    " WHERE typeof(client_id) = 'text' AND typeof(broker) = 'text' AND typeof(in_flight) = 'blob' ORDER BY id"
)
_KEEP_SESSION = "INSERT OR REPLACE INTO glec_kept_session (client_id, broker, in_flight) VALUES (?, ?, ?)"
_DELETE_KEPT = "DELETE FROM glec_kept_session WHERE client_id = ? AND broker = ?"
# Times that fit each other: since boot is never below 0, nor is a boot as long ago as times can be.
_LOAD_CLOCK = (
    "SELECT boot_id, queue_offset, wall_offset, queue_time, first_id FROM glec_clock WHERE id = 1"
    " AND typeof(boot_id) = 'text' AND boot_id NOT GLOB '*[^ -~]*'"
    " AND typeof(queue_offset) = 'integer' AND queue_offset BETWEEN -?1 AND ?1"
    " AND typeof(wall_offset) = 'integer' AND wall_offset BETWEEN -?1 AND ?1"
    " AND typeof(queue_time) = 'integer' AND queue_time BETWEEN queue_offset AND ?1"
    " AND typeof(first_id) = 'integer' AND first_id BETWEEN 0 AND ?2"
)
_LOAD_GATHERED = "SELECT CAST(topic AS BLOB), CAST(payload AS BLOB), CAST(properties AS BLOB) FROM glec_gathered"


def load_session(table: QueueTable) -> tuple[str, str, bytes] | None:
    """(client id, broker, in-flight image) of the last process, or None. Raises ValueError where it is none."""
    row = table.connection.execute(_LOAD_SESSION).fetchone()
    if row is None:
        return None
    client_id, broker, image = row
    if image is None:
        raise ValueError("its record of the session is of other types")
    return client_id.decode(table.encoding), broker.decode(table.encoding), image


def save_session(table: QueueTable, client_id: str, broker: str, image: bytes) -> None:
    """Replace the session's row."""
    table.connection.execute(_SAVE_SESSION, (client_id, broker, image))


def save_image(table: QueueTable, image: bytes) -> None:
    """Replace the in-flight image of the session's row."""
    table.connection.execute("UPDATE glec_session SET in_flight = ? WHERE id = 1", (image,))


def read_kept_sessions(table: QueueTable) -> dict[tuple[str, str], bytes]:
    """(client id, broker) -> exchanges of each session that was left and may be returned to, the oldest first.

    What is no text is nobody's name, and stays for whoever looks into the file.
    """
    rows = table.connection.execute(_READ_KEPT)
    return {(_name(table, client_id), _name(table, broker)): kept for client_id, broker, kept in rows}


def _name(table: QueueTable, stored: bytes) -> str:
    return stored.decode(table.encoding, "backslashreplace")


def keep_session(table: QueueTable, client_id: str, broker: str, exchanges: bytes | None) -> None:
    """Write the exchanges of such a session, in place of those that were there; None forgets it."""
    if exchanges is None:
        table.connection.execute(_DELETE_KEPT, (client_id, broker))
    else:
        table.connection.execute(_KEEP_SESSION, (client_id, broker, exchanges))


def load_clock(table: QueueTable) -> Anchor | None:
    """None where there is none that a clock can go on from."""
    row = table.connection.execute(_LOAD_CLOCK, (TIME_MAX_MS, ID_MAX)).fetchone()
    return None if row is None else Anchor(*row)


def has_clock(table: QueueTable) -> bool:
    """True where there is a row, whatever it says."""
    return bool(table.connection.execute("SELECT EXISTS (SELECT 1 FROM glec_clock)").get)


def save_clock(table: QueueTable, anchor: Anchor) -> None:
    """Replace the clock's row."""
    table.connection.execute(_SAVE_CLOCK, anchor)


def has_gathered(table: QueueTable) -> bool:
    """True where the row of what is gathered is there."""
    return bool(table.connection.execute("SELECT EXISTS (SELECT 1 FROM glec_gathered)").get)


def load_gathered(table: QueueTable) -> tuple[str, str | bytes, bytes]:
    """(topic, payload, packed properties) of it. Raises MessageError where it is no message."""
    row: Any = table.connection.execute(_LOAD_GATHERED).fetchone()
    topic, payload, properties = row
    name, stored, _qos = table.message_of(topic, payload, "blob", 0)
    return name, stored, properties


def save_gathered(table: QueueTable, gathered: tuple[str, bytes, bytes] | tuple[()]) -> None:
    """Replace it; nothing for none."""
    if gathered:
        table.connection.execute(_SAVE_GATHERED, gathered)
    else:
        table.connection.execute("DELETE FROM glec_gathered")
