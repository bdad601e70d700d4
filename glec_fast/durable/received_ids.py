"""Packet ids of QoS 2 that were received and are not released: statements for the store's jobs.

An identity is (client id, broker), whose session they are of. Beside each id stands the mark of its message, by which
the same id of another session is told from it; None in a file of a version that had none.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from glec_fast.durable._table import QueueTable

Identity: TypeAlias = tuple[str, str]

_RENAME = "UPDATE OR REPLACE glec_received SET broker = ? WHERE client_id = ? AND broker = ?"
# Of the types that they are written with: damage, or another writer, may have left any.
_SELECT = (
    "SELECT packet_id, iif(typeof(mark) = 'integer', mark, NULL) FROM glec_received"
    " WHERE client_id = ? AND broker = ? AND typeof(packet_id) = 'integer' AND packet_id BETWEEN 1 AND 65535"
)
_INSERT = "INSERT OR REPLACE INTO glec_received (client_id, broker, packet_id, mark) VALUES (?, ?, ?, ?)"
_DELETE = "DELETE FROM glec_received WHERE client_id = ? AND broker = ? AND packet_id = ?"
_DELETE_ALL = "DELETE FROM glec_received WHERE client_id = ? AND broker = ?"


def received_ids(table: QueueTable, identity: Identity, members: Collection[str]) -> dict[int, int | None]:
    """The identity's, with their marks. What stands under the name of one of its members is from here on its own."""
    client_id, broker = identity
    bindings = [(broker, client_id, member) for member in members if member != broker]
    table.connection.executemany(_RENAME, bindings)
    return dict(table.connection.execute(_SELECT, identity))


def add_received(table: QueueTable, identity: Identity, marks: Mapping[int, int | None]) -> None:
    """They are recorded, whether they were before or not. marks: of each packet id."""
    rows = [(*identity, packet_id, mark) for packet_id, mark in marks.items()]
    table.connection.executemany(_INSERT, rows)


def delete_received(table: QueueTable, identity: Identity, packet_ids: Iterable[int]) -> None:
    """They are released."""
    rows = [(*identity, each) for each in packet_ids]
    table.connection.executemany(_DELETE, rows)


def forget_session(table: QueueTable, identity: Identity) -> None:
    """The broker has no session of ours."""
    table.connection.execute(_DELETE_ALL, identity)
