"""Messages whose fate MQTT cannot tell, as the queue file records them.

A QoS 2 message is in doubt where it may have reached a broker that then lost its session (MQTT 3.1.1, 3.1.2.4), or that
never completes what it had acknowledged: nobody can say whether its subscribers had it. What was decided is written in
the transaction that carries it out.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

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
    """One entry. number: from 1, without gaps. time_ms: Unix time of the decision. message_id: that of the handle."""

    number: int
    time_ms: int
    message_id: int
    topic: str
    decision: Decision
