"""Commands that came, by name and id: what has begun, and what was answered. Statements for the store's jobs.

An entry is begun before its handler runs, and has its reply once that is over. What is begun and has none when a
process starts was cut into by the end of the one before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from glec_fast.durable._table import QueueTable

# Damage, or another writer, may have left a value of any type in any column. A reply that is none was never said: the
# command counts as begun. A digest that is none is taken for the right one.
_FIND = (
    "SELECT iif(typeof(digest) = 'blob', digest, NULL), iif(typeof(packet_id) = 'integer', packet_id, 0),"
    " iif(typeof(reply) = 'blob', reply, NULL) FROM glec_command WHERE name = ? AND id = ?"
)
_BEGIN = (
    "INSERT INTO glec_command (name, id, digest, packet_id, qos, topic, payload, properties)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
)
# Once it is answered, nobody asks for what it was.
_END = (
    "INSERT INTO glec_command (name, id, digest, packet_id, qos, topic, payload, reply)"
    " VALUES (?, ?, ?, ?, ?, ?, x'', ?)"
    " ON CONFLICT (name, id) DO UPDATE SET reply = excluded.reply, packet_id = excluded.packet_id, payload = x'',"
    # Of those that are answered the latest are kept, however long they took.
    " properties = NULL, number = (SELECT max(number) + 1 FROM glec_command)"
)
_TRIM = "DELETE FROM glec_command WHERE number <= (SELECT max(number) FROM glec_command) - ? AND reply IS NOT NULL"
_BEGUN = (
    "SELECT CAST(name AS BLOB), iif(typeof(id) = 'blob', id, NULL),"
    " iif(typeof(packet_id) = 'integer' AND packet_id BETWEEN 0 AND 65535, packet_id, 0),"
    " iif(typeof(qos) = 'integer' AND qos BETWEEN 0 AND 2, qos, 2), CAST(topic AS BLOB),"
    " iif(typeof(payload) = 'blob', payload, NULL), iif(typeof(properties) = 'blob', properties, NULL),"
    " typeof(name) = 'text' AND typeof(topic) = 'text' AND typeof(properties) IN ('null', 'blob')"
    " FROM glec_command WHERE typeof(reply) <> 'blob' ORDER BY number"
)


class Key(NamedTuple):
    """id: what its sender calls it. digest: of its arguments, as an id may be used for another command by mistake."""

    name: str
    id: bytes
    digest: bytes


class Origin(NamedTuple):
    """The PUBLISH that a command came with. properties: packed, with their length; None before MQTT 5."""

    packet_id: int
    qos: int
    topic: str
    payload: bytes
    properties: bytes | None


class Entry(NamedTuple):
    """reply: None where it is begun."""

    digest: bytes
    packet_id: int
    reply: bytes | None


def find(table: QueueTable, key: Key) -> Entry | None:
    """What is known of a command."""
    row = table.connection.execute(_FIND, key[:2]).fetchone()
    if row is None:
        return None
    digest, packet_id, reply = row
    return Entry(key.digest if digest is None else digest, packet_id, reply)


def begin(table: QueueTable, key: Key, origin: Origin) -> None:
    """Its handler is to run."""
    table.connection.execute(_BEGIN, (*key, *origin))


def unbegin(table: QueueTable, key: Key) -> None:
    """Its handler did not run after all."""
    table.connection.execute("DELETE FROM glec_command WHERE name = ? AND id = ? AND reply IS NULL", key[:2])


def end(table: QueueTable, key: Key, origin: Origin, reply: bytes, entries_max: int) -> None:
    """It is answered; the oldest entries beyond `entries_max` are forgotten."""
    table.connection.execute(_END, (*key, *origin[:3], reply))
    table.connection.execute(_TRIM, (entries_max,))


def begun(table: QueueTable) -> tuple[list[tuple[str, bytes, Origin]], list[str]]:
    """(name, id, origin) of each that is begun, the oldest first; and the names of those that nobody can end.

    A packet id that is none is nobody's; a QoS that is none is taken for the one with the most care.
    """
    found, unreadable = [], []
    for name, identifier, packet_id, qos, topic, payload, properties, is_text in table.connection.execute(_BEGUN):
        known_as, came_by = _text(name, table.encoding), _text(topic, table.encoding)
        if known_as is None or came_by is None or not is_text or identifier is None or payload is None:
            unreadable.append(table.text(name))
        else:
            found.append((known_as, identifier, Origin(packet_id, qos, came_by, payload, properties)))
    return found, unreadable


def _text(stored: bytes | None, encoding: str) -> str | None:
    try:
        return None if stored is None else stored.decode(encoding)
    except UnicodeDecodeError:
        return None


def void_packet_ids(table: QueueTable) -> None:
    """They were of a session that has ended: no PUBLISH of another is a repetition of theirs."""
    table.connection.execute("UPDATE glec_command SET packet_id = 0 WHERE packet_id <> 0")
