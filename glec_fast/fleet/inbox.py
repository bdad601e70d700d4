"""What has arrived: which routes it goes to, how much is held at once, and when the broker hears that it is done.

One place takes a message in (`take`, in the network thread) and gives it to its routes. What runs a program's handlers
is elsewhere, and says `done`. Nothing here waits, and nothing here has a thread.

    take -> routes -> (handlers, wherever they run) -> done by all routes -> acknowledged
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from glec_fast.fleet.copies import Copies
from glec_fast.fleet.subscriptions import identifier_of
from glec_fast.mqtt.filters import Filters
from glec_fast.runtime._lock import Lock

if TYPE_CHECKING:
    from glec_fast.durable._table import QueueTable
    from glec_fast.mqtt.inbound_message import InboundMessage
    from glec_fast.outbox.received import Received
    from glec_fast.runtime.summing_log import SummingLog

# A program may subscribe a moment after the broker has sent what it kept for it.
UNCLAIMED_S = 30.0
# A program may have a filter of its own for each answer that it waits for, and run for years.
_ENDED_MAX = 1000


class Arrival:
    """One message, on its way through its routes; each calls `Inbox.done` for it once."""

    __slots__ = ("arrived_s", "message", "routes_left")

    def __init__(self, message: InboundMessage, routes_left: int) -> None:
        self.message = message
        self.routes_left = routes_left
        # Of `time.monotonic`.
        self.arrived_s = time.monotonic()

    @property
    def size_bytes(self) -> int:
        """What is counted of it."""
        return len(self.message.payload) + len(self.message.topic)


Route: TypeAlias = Callable[[Arrival], None]


class Inbox:
    """Of one manager. `take` and `tick` are for the network thread, the rest for any.

    received: keeps QoS 1, too.

    messages_max, bytes_max: held at once, waiting or being handled; a single message may be larger. One of QoS 0 that
    is too many is dropped; one of QoS 1 or 2 is left with the broker, see `must_ask_again`.
    """

    def __init__(self, received: Received, log: SummingLog, messages_max: int, bytes_max: int) -> None:
        self._received = received
        self._log = log
        self._messages_max = messages_max
        self._bytes_max = bytes_max
        self._lock = Lock("Inbox._lock")
        self._routes = Filters()
        # Of this process's filters, and of those that it has ended, in order: copies for them may be on their way.
        self._identifiers: set[int] = set()
        self._ended: dict[int, None] = {}
        self._copies = Copies()
        # The session may have a filter of an earlier process.
        self._may_have_earlier = True
        # Of QoS 1 and 2, that no route wants yet.
        self._unclaimed: deque[Arrival] = deque()
        # Of `time.monotonic`: some time behind a connection to a session of which nobody knows all filters yet.
        self._claim_by_s = float("inf")
        self._held = self._held_bytes = 0
        self._has_left_some = False
        # Of `time.monotonic`: what came behind that was left.
        self._left_s = float("inf")
        self.received_count = self.dropped_count = 0

    # ---- routes

    def add_route(self, topic_filter: str, route: Route) -> None:
        """Messages that match go to `route`, in the network thread or the caller's: it must not wait."""
        this_one, identifier = Filters(), identifier_of(topic_filter)
        this_one[topic_filter] = identifier, route
        while True:
            with self._lock:
                self._identifiers.add(identifier)
                self._ended.pop(identifier, None)
                claimed = [each for each in self._unclaimed if _named(each.message, identifier, this_one)]
                if not claimed:
                    self._routes[topic_filter] = this_one[topic_filter]
                    return
                self._unclaimed = deque(each for each in self._unclaimed if each not in claimed)
            # What comes meanwhile goes behind them.
            for arrival in claimed:
                arrival.routes_left = 1
                route(arrival)

    def remove_route(self, topic_filter: str) -> bool:
        """No message goes to it any more; False where there was none."""
        with self._lock:
            try:
                del self._routes[topic_filter]
            except KeyError:
                return False
            identifier = identifier_of(topic_filter)
            self._identifiers.discard(identifier)
            self._ended[identifier] = None
            if len(self._ended) > _ENDED_MAX:
                del self._ended[next(iter(self._ended))]
            return True

    # ---- the way in

    def take(self, message: InboundMessage) -> None:
        """A message that came; see `Received.is_new`."""
        arrival = Arrival(message, 0)
        size_bytes = arrival.size_bytes
        with self._lock:
            self.received_count += 1
            is_full = self._held > 0 and (
                self._held >= self._messages_max or self._held_bytes + size_bytes > self._bytes_max
            )
            # What comes behind one that was left is asked for again with it, or it would overtake it.
            is_full = is_full or (self._has_left_some and message.qos > 0)
            if not is_full:
                self._held += 1
                self._held_bytes += size_bytes
            elif message.qos:
                self._has_left_some = True
                self._left_s = min(self._left_s, arrival.arrived_s)
        if not is_full:
            self._give(arrival)
            return
        if message.qos:
            self._received.leave(message)
            text = "more messages came than may be held: the broker is asked for them again once there is room"
            self._log.note(logging.WARNING, "messages left with the broker", "too many at once", text=text)
        else:
            self._drop(message, "they came faster than they were handled")

    def take_again(self, message: InboundMessage, route: Route) -> None:
        """One that was kept; to `route` alone, and counted as held."""
        arrival = Arrival(message, 1)
        with self._lock:
            self._held += 1
            self._held_bytes += arrival.size_bytes
        route(arrival)

    def _give(self, arrival: Arrival) -> None:
        with self._lock:
            may_be_claimed = arrival.message.qos > 0 and time.monotonic() < self._claim_by_s
            found = self._routes_of(arrival, may_be_claimed=may_be_claimed)
            if not found and may_be_claimed:
                self._unclaimed.append(arrival)
                return
            routes = [route for route, is_new in found if is_new]
            arrival.routes_left = len(routes)
        for route in routes:
            route(arrival)
        if not found:
            self._drop(arrival.message, "no handler has subscribed to their topic")
        if not routes:
            self.done(arrival)

    def _routes_of(self, arrival: Arrival, *, may_be_claimed: bool) -> list[tuple[Route, bool]]:
        """Each, and whether its handler has not had the message yet. The caller holds the lock."""
        message = arrival.message
        matching = list(self._routes.iter_match(message.topic))
        # A server may send a copy for each of several filters (3.3.5), and says then which it is for.
        of_filters = getattr(message.properties, "SubscriptionIdentifier", None)
        if of_filters is None:
            return [(route, True) for _, route in matching]
        is_earlier = self._identifiers.isdisjoint(of_filters) and self._ended.keys().isdisjoint(of_filters)
        if is_earlier and may_be_claimed:
            # Whoever has subscribed with that filter before may do so again.
            return []
        if not is_earlier:
            matching = [(identifier, route) for identifier, route in matching if identifier in of_filters]
        if not self._may_have_earlier:
            return [(route, True) for _, route in matching]
        came_s, is_new = arrival.arrived_s, self._copies.is_new
        oldest_s = self._unclaimed[0].arrived_s if self._unclaimed else came_s
        return [
            (route, is_new(message, identifier, came_s, oldest_s, is_earlier=is_earlier))
            for identifier, route in matching
        ]

    def _drop(self, message: InboundMessage, why: str) -> None:
        self.dropped_count += 1
        text = f"a message that came was dropped: {why} (topic {message.topic!r})"
        self._log.note(logging.WARNING, "messages that came and were dropped", why, text=text)

    def tick(self) -> None:
        """Nobody waits for ever for whoever might subscribe."""
        if not self._unclaimed or time.monotonic() < self._claim_by_s:
            return
        with self._lock:
            unclaimed, self._unclaimed = self._unclaimed, deque()
        for arrival in unclaimed:
            self._give(arrival)

    # ---- the way out

    def done(self, arrival: Arrival, then: Callable[[], None] | None = None) -> bool:
        """A route has done with it; behind the last, the broker hears of it. then: see `Received.acknowledge`."""
        if not self._is_last(arrival):
            return False
        message = arrival.message
        return message.qos > 0 and self._received.acknowledge(message.mid, message, then)

    def record(self, table: QueueTable, arrival: Arrival) -> bool:
        """Within a transaction of the route's own, whose end `done_on_disk` tells: no crash makes it come again.

        False where other routes have yet to be done with it.
        """
        if arrival.routes_left > 1:
            return False
        self._received.record(table, arrival.message)
        return True

    def done_on_disk(self, arrival: Arrival, *, is_recorded: bool) -> None:
        """As `done`, behind a transaction of the route's own, for which `record` returned `is_recorded`."""
        if not self._is_last(arrival):
            return
        message = arrival.message
        if message.qos and is_recorded:
            self._received.on_recorded(message)
        elif message.qos:
            self._received.acknowledge(message.mid, message)

    def _is_last(self, arrival: Arrival) -> bool:
        """Its place is free before the broker can hear of it, and send another."""
        with self._lock:
            arrival.routes_left -= 1
            if arrival.routes_left > 0:
                return False
            self._held -= 1
            self._held_bytes -= arrival.size_bytes
            return True

    @property
    def held(self) -> int:
        """Messages that wait or are being handled."""
        return self._held

    @property
    def is_idle(self) -> bool:
        """True where nothing waits, is being handled, or was left with the broker."""
        return not self._held and not self._has_left_some

    def must_ask_again(self) -> bool:
        """True where messages were left with the broker and there is room for them: a new connection brings them."""
        # Not all: a handler that never returns would hold up everybody's.
        return self._has_left_some and self._held * 4 <= self._messages_max and self._held_bytes * 4 <= self._bytes_max

    def on_connected(self, *, session_present: bool, is_continued: bool) -> None:
        """is_continued: the broker has all that the program has subscribed to."""
        now_s = time.monotonic()
        if is_continued and self._claim_by_s < float("inf"):
            with self._lock:
                self._copies.go_on(now_s)
            return
        self._claim_by_s = now_s + UNCLAIMED_S
        with self._lock:
            self._may_have_earlier = session_present
            self._copies.clear()

    def on_disconnected(self) -> None:
        """The broker sends again what was left with it, with the next connection."""
        with self._lock:
            self._copies.part(min(self._left_s, time.monotonic()))
            self._has_left_some, self._left_s = False, float("inf")


def _named(message: InboundMessage, identifier: int, filters: Filters) -> bool:
    """True where it matches these, and is for that one, as far as anybody says."""
    of_filters = getattr(message.properties, "SubscriptionIdentifier", None)
    return (of_filters is None or identifier in of_filters) and any(filters.iter_match(message.topic))
