"""What a broker does that makes QoS 2 less than exactly once: counted each time, and said once in the log."""

from __future__ import annotations

from collections import Counter
from enum import Enum

from glec_fast.runtime._lock import Lock
from glec_fast.runtime.log import logger


class Weakness(str, Enum):
    """The value is the key in `Metrics.weaknesses`, which counts messages or connections, as said here."""

    # Messages: QoS 2 that the broker answered with PUBACK, as brokers do that know no more than QoS 1.
    QOS_2_AS_QOS_1 = "qos2_as_qos1"
    # Messages sent with a lower QoS than they have, as the broker takes no higher one; again with each connection.
    QOS_LOWERED = "qos_lowered"
    # Connections whose CONNACK says that there is no session, where the broker was asked to keep it.
    SESSION_FORGOTTEN = "session_forgotten"
    # Connections: the broker keeps a session for less long than it was asked to (MQTT 5).
    SESSION_SHORTENED = "session_shortened"
    # Messages: the broker does not answer a PUBREL that is sent again, or ends the connection over it.
    PUBREL_UNANSWERED = "pubrel_unanswered"


_MEANING = {
    Weakness.QOS_2_AS_QOS_1: "acknowledges QoS 2 as QoS 1 (PUBACK): messages arrive at least once, not exactly once",
    Weakness.QOS_LOWERED: "takes no such QoS: messages go with a lower one, and are not what their own QoS promises",
    Weakness.SESSION_FORGOTTEN: (
        "has not kept our session: QoS 2 messages that were on their way may arrive twice, or be missing where the "
        "broker had acknowledged them"
    ),
    Weakness.SESSION_SHORTENED: (
        "keeps our session for less long than it was asked to: after a longer outage QoS 2 messages may arrive twice, "
        "or be missing"
    ),
    Weakness.PUBREL_UNANSWERED: (
        "does not complete QoS 2 messages whose PUBREL is sent again: they are taken as in doubt, so that others go on"
    ),
}


class Weaknesses:
    """Of one broker after another. Thread-safe; logs in `tell` alone, for which no lock should be held."""

    def __init__(self) -> None:
        # A signal's handler may ask for the figures while its thread notes something.
        self._lock = Lock("Weaknesses._lock")
        self._totals: Counter[str] = Counter()
        self._broker = ""
        self._of_broker: Counter[Weakness] = Counter()
        self._untold: dict[Weakness, str] = {}
        # The broker is known to have no exactly-once to lose: what is sent twice there is no rare case.
        self.is_at_least_once = False
        # It has had a session of ours: that one is gone is a rare case.
        self._keeps_sessions = False

    def begin(self, broker: str) -> None:
        """Say whose weaknesses come next. Those of the same broker are not said again."""
        with self._lock:
            if broker != self._broker:
                self._broker = broker
                self._of_broker.clear()
                self.is_at_least_once = self._keeps_sessions = False

    def note_session(self) -> None:
        """The broker has the session that it was asked to keep."""
        with self._lock:
            self._keeps_sessions = True
            self._judge()

    def note(self, weakness: Weakness, count: int = 1, detail: str = "") -> bool:
        """Count it, and have `tell` say it if it is this broker's first; True where it is."""
        with self._lock:
            is_first = not self._of_broker[weakness]
            self._of_broker[weakness] += count
            self._totals[weakness.value] += count
            self._judge()
            if is_first:
                self._untold[weakness] = f"the broker {self._broker} {_MEANING[weakness]}{detail}"
        return is_first

    def _judge(self) -> None:
        """The caller holds the lock."""
        known = self._of_broker
        never_has_one = known[Weakness.SESSION_FORGOTTEN] > 1 and not self._keeps_sessions
        self.is_at_least_once = known[Weakness.QOS_2_AS_QOS_1] > 0 or never_has_one

    def tell(self) -> None:
        """Log what was noted and not yet said."""
        if not self._untold:
            return
        with self._lock:
            untold, self._untold = self._untold, {}
        for text in untold.values():
            logger.warning("%s", text)

    def counts(self) -> dict[str, int]:
        """By `Weakness`, since the process began."""
        with self._lock:
            return dict(self._totals)
