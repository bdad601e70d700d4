"""Messages whose fate MQTT cannot tell, as the queue file records them.

A QoS 2 message is in doubt where it may have reached a broker that then lost its session (MQTT 3.1.1, 3.1.2.4), or that
never completes what it had acknowledged: nobody can say whether its subscribers had it. What was decided is written in
the transaction that carries it out.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from glec_fast.durable._table import QueueTable

# The oldest entries make room for new ones; their numbers go on, so that none goes unnoticed.
LEDGER_ROWS_MAX = 1000


class Decision(str, Enum):
    """What became of a message in doubt."""

    # It may be missing. The broker had acknowledged it with PUBREC.
    LEFT_TO_BROKER = "left_to_broker"
    # It may arrive twice.
    SENT_AGAIN = "sent_again"
    # It may have arrived twice, as may any message of QoS 2 from here on: the broker acknowledged it as one of QoS 1.
    # Recorded once, for the first.
    AT_LEAST_ONCE = "at_least_once"


class InDoubt(NamedTuple):
    """One entry; immutable. number: from 1, without gaps. time_ms: Unix time of the decision. message_id: that of the
    handle. topic: it was for that one. decision: what became of it.
    """

    number: int
    time_ms: int
    message_id: int
    topic: str
    decision: Decision


_ADD = (
    "INSERT INTO glec_in_doubt (time, message_id, topic, decision)"
    " SELECT ?, id, topic, ? FROM mqtt_offline_queue WHERE id = ?"
)
_ADD_ALL = (
    "INSERT INTO glec_in_doubt (time, message_id, topic, decision)"
    " SELECT ?, id, topic, ? FROM (SELECT id, topic FROM mqtt_offline_queue WHERE qos = 2"
    " ORDER BY timestamp, id LIMIT ?)"
)
_TRIM = "DELETE FROM glec_in_doubt WHERE number <= (SELECT max(number) FROM glec_in_doubt) - ?"
# Entries that a damaged page has made something else of are left out: a time within the years that a date can have.
_READ = (
    "SELECT number, time, message_id, CAST(topic AS BLOB), decision FROM glec_in_doubt"  # noqa: S608
    " WHERE typeof(time) = 'integer' AND time BETWEEN 0 AND 253402300799000 AND typeof(message_id) = 'integer'"
    f" AND typeof(topic) = 'text' AND decision IN ({', '.join([repr(each.value) for each in Decision])})"
    " ORDER BY number"
)


def add_entries(table: QueueTable, time_ms: int, entries: list[tuple[int, Decision]]) -> None:
    """Record (message id, decision) of messages whose rows are still there."""
    table.connection.executemany(_ADD, [(time_ms, decision, message_id) for message_id, decision in entries])
    table.connection.execute(_TRIM, (LEDGER_ROWS_MAX,))


def add_all(table: QueueTable, time_ms: int, decision: Decision) -> int:
    """Record that any message of QoS 2 may be in doubt, of the first that have room; returns how many those are."""
    table.connection.execute(_ADD_ALL, (time_ms, decision, LEDGER_ROWS_MAX))
    count = table.connection.changes()
    table.connection.execute(_TRIM, (LEDGER_ROWS_MAX,))
    return count


def read_entries(table: QueueTable) -> list[InDoubt]:
    """All of them, the oldest first."""
    return [
        InDoubt(number, time_ms, message_id, table.text(topic), Decision(decision))
        for number, time_ms, message_id, topic, decision in table.connection.execute(_READ)
    ]
