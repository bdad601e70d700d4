"""What the broker is to send: the program's subscriptions, brought to the broker and kept there over reconnects.

What is wanted and what the broker has are two tables; whatever they differ by is asked for, at most once at a time for
each filter. A broker that still has the session has its subscriptions too, so nothing is asked for again. Where it may
be another session that it has, all is: a process cannot know which of an earlier one's moments it is from, and a
CONNECT that had no answer may have begun one.

A broker may end the connection over a filter in place of an answer, as it may over a message. One that had none as the
connection ended goes alone the next time, then behind all others, and in the end counts as refused.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING
from zlib import crc32

from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from glec_fast.errors import SubscriptionRefusedError
from glec_fast.runtime._lock import Condition
from glec_fast.validation import check_timeout

if TYPE_CHECKING:
    from glec_fast.mqtt.client import Client
    from glec_fast.mqtt.greeting import Accepted
    from glec_fast.runtime.summing_log import SummingLog

_REFUSED = 0x80
_NO_SHARED, _NO_WILDCARDS = 0x9E, 0xA2
# Filters in one packet: far below what any broker takes.
_BATCH_MAX = 50
_IDENTIFIER_MAX = 268_435_455
# So many connections in a row ended before a filter was answered, asked for alone: it is not the link.
_UNANSWERED_MAX = 4
# In the place of QoS of what is held: it is to be ended, and may be already.
_ENDING = (-1, 0)
# From the second on it is asked for once the connection has lasted so long, ...
_LASTS_S = 2.0
# ... and once it counts as refused, so much later.
_REFUSED_S = 600.0


def identifier_of(topic_filter: str) -> int:
    """The filter's Subscription Identifier (MQTT 5, 3.8.2.1.2), the same in each process, as a session outlives one."""
    return 1 + crc32(topic_filter.encode()) % _IDENTIFIER_MAX


class Subscription:
    """What `MQTTManager.subscribe` returns. Thread-safe."""

    def __init__(self, owner: Subscriptions, topic_filter: str, qos: int) -> None:
        self._owner = owner
        self.topic_filter = topic_filter
        self.qos = qos

    @property
    def granted_qos(self) -> int | None:
        """The highest QoS that the broker sends with; None until it has answered, and after `unsubscribe`."""
        return self._owner.granted_qos(self.topic_filter, self.qos)

    def wait_granted(self, timeout_s: float | None = None) -> bool:
        """Wait until the broker has the subscription; False after the time-out. Not in a callback.

        Raises SubscriptionRefusedError where the broker refuses it on this connection.
        """
        check_timeout(timeout_s)
        return self._owner.wait_granted(self.topic_filter, self.qos, timeout_s)


class Subscriptions:
    """Of one manager. `on_...` are for the network thread, the rest for any; no lock is held while a packet is put."""

    def __init__(
        self, client: Client, log: SummingLog, on_refused: Callable[[str, SubscriptionRefusedError], None]
    ) -> None:
        self._client = client
        self._log = log
        self._on_refused = on_refused
        self._changed = Condition()
        # Filter -> QoS.
        self._wanted: dict[str, int] = {}
        # Filter -> (the QoS that was asked for, the one that was granted).
        self._held: dict[str, tuple[int, int]] = {}
        self._refused: dict[str, SubscriptionRefusedError] = {}
        # Of this connection: filters that were asked for, by the request's packet id; a QoS of None ends one.
        self._requests: dict[int, dict[str, int | None]] = {}
        # Answers that came before `_ask` knew the id of its request.
        self._early: dict[int, list[int]] = {}
        self._asking: set[str] = set()
        # Filter -> connections in a row that ended before it was answered.
        self._unanswered: Counter[str] = Counter()
        # Of `time.monotonic`: when a filter may be asked for again that the broker ends connections over.
        self._not_before_s: dict[str, float] = {}
        # Counts connections; 0 while there is none.
        self._connection = self._last_connection = 0
        self._connected_s = 0.0
        # What the broker takes. With identifiers it says of each message which filters it is for; a packet has one
        # for all its filters.
        self._accepted: Accepted | None = None
        self.refused_count = 0

    # ---- the program

    def want(self, topic_filter: str, qos: int) -> Subscription:
        """Have the broker send what matches, from now on or as soon as there is a connection."""
        with self._changed:
            self._wanted[topic_filter] = qos
            self._acquit(topic_filter)
        self._ask()
        return Subscription(self, topic_filter, qos)

    def unwant(self, topic_filter: str) -> None:
        """Have the broker send it no more."""
        with self._changed:
            self._wanted.pop(topic_filter, None)
            self._acquit(topic_filter)
            # Also where it is an earlier process's that it has it from.
            self._held.setdefault(topic_filter, _ENDING)
            self._changed.notify_all()
        self._ask()

    def _acquit(self, topic_filter: str) -> None:
        """Whatever was held against it is no more. The caller holds the lock."""
        self._refused.pop(topic_filter, None)
        self._not_before_s.pop(topic_filter, None)
        del self._unanswered[topic_filter]

    def granted_qos(self, topic_filter: str, qos: int) -> int | None:
        """See `Subscription`."""
        with self._changed:
            return self._granted(topic_filter, qos)

    def _granted(self, topic_filter: str, qos: int) -> int | None:
        asked_for, granted = self._held.get(topic_filter, (None, 0))
        return granted if self._wanted.get(topic_filter) == qos == asked_for else None

    def wait_granted(self, topic_filter: str, qos: int, timeout_s: float | None) -> bool:
        """See `Subscription`."""
        with self._changed:

            def is_answered() -> bool:
                is_over = self._wanted.get(topic_filter) != qos or topic_filter in self._refused
                return is_over or self._granted(topic_filter, qos) is not None

            self._changed.wait_for(is_answered, timeout_s)
            if topic_filter in self._refused and self._wanted.get(topic_filter) == qos:
                raise self._refused[topic_filter]
            return self._granted(topic_filter, qos) is not None

    # ---- the network thread

    def on_connected(self, accepted: Accepted) -> None:
        """CONNACK has come."""
        with self._changed:
            self._accepted = accepted
            self._last_connection += 1
            self._connection, self._connected_s = self._last_connection, time.monotonic()
            self._requests.clear()
            self._early.clear()
            self._asking.clear()
            self._refused = {each: error for each, error in self._refused.items() if each in self._not_before_s}
            if not accepted.session_present:
                self._held.clear()
            elif not accepted.is_continued:
                # What it may have of the session before, and nobody wants any more, is still to be ended.
                self._held = {each: held for each, held in self._held.items() if each not in self._wanted}
        self._ask()

    def on_disconnected(self, *, by_peer: bool) -> None:
        """Whatever was asked for and not answered is asked for again. by_peer: the broker ended the connection."""
        refused = []
        with self._changed:
            self._connection = 0
            # In place of an answer the broker may have ended the connection; or the link has broken in order.
            requests = [each for request in self._requests.values() for each in request.items()]
            asked = [each for each, qos in requests if qos is not None and each in self._wanted]
            self._requests.clear()
            self._unanswered.update(asked if by_peer else ())
            for topic_filter in asked if by_peer else ():
                if self._unanswered[topic_filter] >= _UNANSWERED_MAX:
                    self._not_before_s[topic_filter] = time.monotonic() + _REFUSED_S
                    refused.append(self._refuse(topic_filter, None))
            self._changed.notify_all()
        self._tell(refused)

    @property
    def is_answered(self) -> bool:
        """True where nothing waits for its time to be asked for."""
        return not self._unanswered

    def tick(self) -> None:
        """Now and then: what was not to be asked for at once."""
        if self.is_answered:
            return
        with self._changed:
            now_s = time.monotonic()
            for each in [each for each, not_before_s in self._not_before_s.items() if now_s >= not_before_s]:
                del self._not_before_s[each]
                self._refused.pop(each, None)
        self._ask()

    def on_answer(self, packet_id: int, codes: list[int]) -> None:
        """SUBACK or UNSUBACK; codes: one for each filter, or none before MQTT 5 for the latter."""
        with self._changed:
            request = self._requests.pop(packet_id, None)
            if request is None:
                self._early[packet_id] = codes
                return
            refused = self._note(request, codes)
        self._tell(refused)
        self._ask()

    def _note(self, request: dict[str, int | None], codes: list[int]) -> list[SubscriptionRefusedError]:
        """The caller holds the lock."""
        refused = []
        for place, (topic_filter, qos) in enumerate(request.items()):
            code = codes[place] if place < len(codes) else 0
            self._asking.discard(topic_filter)
            if qos is not None:
                del self._unanswered[topic_filter]
                self._not_before_s.pop(topic_filter, None)
            if qos is None:
                # Also refused: it is not there, or it stays, and no other request would help.
                self._held.pop(topic_filter, None)
            elif code >= _REFUSED:
                self._held.pop(topic_filter, None)
                is_current = self._wanted.get(topic_filter) == qos
                refused.append(self._refuse(topic_filter, code, is_current=is_current))
            else:
                self._held[topic_filter] = qos, code
        self._changed.notify_all()
        return refused

    def _refuse(self, topic_filter: str, code: int | None, *, is_current: bool = True) -> SubscriptionRefusedError:
        """The caller holds the lock, and tells of it."""
        self.refused_count += 1
        error = SubscriptionRefusedError(topic_filter, code)
        if is_current:
            self._refused[topic_filter] = error
        return error

    def _tell(self, refused: list[SubscriptionRefusedError]) -> None:
        for error in refused:
            self._log.note(logging.ERROR, "subscriptions refused", error.topic_filter, text=str(error))
            self._on_refused(error.topic_filter, error)

    # ---- from one table to the other

    def _ask(self) -> None:
        """Ask the broker for what it does not have yet. From any thread."""
        with self._changed:
            given_up = self._give_up() if self._connection else []
        self._tell(given_up)
        while self._ask_once():
            pass

    def _give_up(self) -> list[SubscriptionRefusedError]:
        """What the broker has said that it does not take, and may end the connection over. The caller has the lock."""
        accepted = self._accepted
        if accepted is None or (accepted.takes_shared and accepted.takes_wildcards):
            return []
        codes = {each: _why_not(accepted, each) for each in self._wanted if each not in self._refused}
        refused = [self._refuse(each, code) for each, code in codes.items() if code is not None]
        if refused:
            self._changed.notify_all()
        return refused

    def _ask_once(self) -> bool:
        """True where there may be more to ask for."""
        connection, request, is_noted = 0, {}, False
        try:
            with self._changed:
                connection = self._connection
                if not connection:
                    return False
                has_identifiers = self._accepted is not None and self._accepted.takes_identifiers
                request = self._next_request(has_identifiers=has_identifiers)
                if not request:
                    return False
                self._asking.update(request)
                # Whether the broker has ended them is known with its answer alone.
                self._held.update(dict.fromkeys([each for each, qos in request.items() if qos is None], _ENDING))
            if None in request.values():
                rc, packet_id = self._client.unsubscribe(list(request))
            else:
                filters = [(each, qos or 0) for each, qos in request.items()]
                properties = _identified(filters[0][0]) if has_identifiers else None
                rc, packet_id = self._client.subscribe(filters, properties=properties)
            refused: list[SubscriptionRefusedError] = []
            with self._changed:
                if connection != self._connection or rc or packet_id is None:
                    # There is no such connection any more; the next begins with it.
                    return False
                codes = self._early.pop(packet_id, None)
                if codes is None:
                    self._requests[packet_id] = request
                else:
                    refused = self._note(request, codes)
                is_noted = True
            self._tell(refused)
            return True
        finally:
            # Whatever cut in: it is asked for again.
            if request and not is_noted:
                with self._changed:
                    if connection == self._connection:
                        self._asking.difference_update(request)

    def _next_request(self, *, has_identifiers: bool) -> dict[str, int | None]:
        """Either filters to subscribe to, or filters to end. The caller holds the lock."""
        new: dict[str, int | None] = {}
        new_max = 1 if has_identifiers else _BATCH_MAX
        suspects: dict[str, int | None] = {}
        for each, qos in self._wanted.items():
            if each in self._asking or each in self._refused or self._held.get(each, (None, 0))[0] == qos:
                continue
            (suspects if each in self._unanswered else new)[each] = qos
            if len(new) == new_max:
                break
        if new:
            return new
        gone = [each for each in self._held if each not in self._wanted and each not in self._asking]
        if gone:
            return dict.fromkeys(gone[:_BATCH_MAX])
        # Alone, so that it is known which one the broker ends the connection over.
        if suspects and not self._asking:
            lasts = time.monotonic() >= self._connected_s + _LASTS_S
            first = min(suspects, key=self._unanswered.__getitem__)
            if lasts or self._unanswered[first] == 1:
                return {first: suspects[first]}
        return {}


def _why_not(accepted: Accepted, topic_filter: str) -> int | None:
    if not accepted.takes_shared and topic_filter.startswith("$share/"):
        return _NO_SHARED
    return _NO_WILDCARDS if not accepted.takes_wildcards and {"+", "#"} & set(topic_filter) else None


def _identified(topic_filter: str) -> Properties:
    properties = Properties(PacketTypes.SUBSCRIBE)
    properties.SubscriptionIdentifier = identifier_of(topic_filter)
    return properties
