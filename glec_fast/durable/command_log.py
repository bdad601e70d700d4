"""Commands that came, by name and id: what has begun, and what was answered. Statements for the store's jobs.

An entry is begun before its handler runs, and has its reply once that is over. What is begun and has none when a
process starts was cut into by the end of the one before.
"""

from __future__ import annotations

from collections.abc import Iterable
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
    "INSERT INTO glec_command (name, id, digest, packet_id, qos, topic, payload, properties, expires)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
# Once it is answered, nobody asks for what it was.
_END = (
    "INSERT INTO glec_command (name, id, digest, packet_id, qos, topic, payload, reply)"
    " VALUES (?, ?, ?, ?, ?, ?, x'', ?)"
    " ON CONFLICT (name, id) DO UPDATE SET reply = excluded.reply, packet_id = excluded.packet_id, payload = x'',"
    # Of those that are answered the latest are kept, however long they took.
    " properties = NULL, number = (SELECT max(number) + 1 FROM glec_command)"
)
_LAST = "SELECT max(number) FROM glec_command"
_LAST_ANSWERED = "SELECT number FROM glec_command WHERE reply IS NOT NULL ORDER BY number DESC LIMIT 1"
_TRIM = "DELETE FROM glec_command WHERE number <= ? AND reply IS NOT NULL"
# The newest is kept, however large it is.
_TRIM_BYTES = (
    "DELETE FROM glec_command WHERE reply IS NOT NULL AND number < ?1 AND number IN (SELECT number FROM (SELECT number,"
    " sum(coalesce(length(reply), 0) + ?2) OVER (ORDER BY number DESC) AS bytes FROM glec_command) WHERE bytes > ?3)"
)
# What an entry takes beside its reply; and in so many numbers, one or two of a command, all are looked at once.
_ENTRY_BYTES, _LOOKED_AT_EVERY = 128, 16
_BEGUN = (
    "SELECT number, CAST(name AS BLOB), iif(typeof(id) = 'blob', id, NULL), iif(typeof(digest) = 'blob', digest, NULL),"
    " iif(typeof(packet_id) = 'integer' AND packet_id BETWEEN 0 AND 65535, packet_id, 0),"
    " iif(typeof(qos) = 'integer' AND qos BETWEEN 0 AND 2, qos, 2), iif(typeof(topic) = 'text', CAST(topic AS BLOB),"
    " NULL), iif(typeof(payload) = 'blob', payload, x''), iif(typeof(properties) = 'blob', properties, NULL),"
    " iif(typeof(expires) = 'integer', expires, NULL), typeof(name) = 'text'"
    " FROM glec_command WHERE typeof(reply) <> 'blob' ORDER BY number"
)


class Key(NamedTuple):
    """id: what its sender calls it. digest: of its arguments, as an id may be used for another command by mistake."""

    name: str
    id: bytes
    digest: bytes


class Origin(NamedTuple):
    """The PUBLISH that a command came with. properties: packed, with their length; None before MQTT 5.

    expires_ms: Unix time, of its Message Expiry; None where it has none.
    """

    packet_id: int
    qos: int
    topic: str
    payload: bytes
    properties: bytes | None
    expires_ms: int | None = None


class Entry(NamedTuple):
    """reply: None where it is begun."""

    digest: bytes
    packet_id: int
    reply: bytes | None


class Begun(NamedTuple):
    """One that is begun, as far as it can be read. digest: None where it cannot; so is an empty topic or payload."""

    name: str
    id: bytes
    digest: bytes | None
    origin: Origin


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


def end(table: QueueTable, key: Key, origin: Origin, reply: bytes, entries_max: int, bytes_max: int = 0) -> None:
    """It is answered; the oldest answered beyond `entries_max`, or about `bytes_max`, 0 for any, are forgotten."""
    before = table.connection.execute(_LAST_ANSWERED).get or 0
    table.connection.execute(_END, (*key, *origin[:3], reply))
    last = table.connection.execute(_LAST).get
    table.connection.execute(_TRIM, (last - entries_max,))
    if bytes_max and last // _LOOKED_AT_EVERY != before // _LOOKED_AT_EVERY:
        table.connection.execute(_TRIM_BYTES, (last, _ENTRY_BYTES, bytes_max))


def begun(table: QueueTable) -> tuple[list[Begun], dict[int, str]]:
    """Those that are begun, the oldest first; and, by their numbers, the names of those that no command can match.

    A packet id that is none is nobody's; a QoS that is none is taken for the one with the most care.
    """
    found, unknown = [], {}
    for number, name, identifier, digest, packet_id, qos, topic, *rest, is_text in table.connection.execute(_BEGUN):
        known_as = _text(name, table.encoding)
        if known_as is None or not is_text or identifier is None:
            unknown[number] = table.text(name)
        else:
            origin = Origin(packet_id, qos, _text(topic, table.encoding) or "", *rest)
            found.append(Begun(known_as, identifier, digest, origin))
    return found, unknown


def forget(table: QueueTable, numbers: Iterable[int]) -> None:
    """No command can match these."""
    table.connection.executemany("DELETE FROM glec_command WHERE number = ?", [(number,) for number in numbers])


def _text(stored: bytes | None, encoding: str) -> str | None:
    try:
        return None if stored is None else stored.decode(encoding)
    except UnicodeDecodeError:
        return None


def void_packet_ids(table: QueueTable) -> None:
    """They were of a session that has ended: no PUBLISH of another is a repetition of theirs."""
    table.connection.execute("UPDATE glec_command SET packet_id = 0 WHERE packet_id <> 0")
