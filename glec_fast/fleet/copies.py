"""Copies of one message, where the broker's session still has a filter of an earlier process that overlaps with ours.

A server may send a copy for each filter, and says in MQTT 5 which (3.3.5). What it kept before this process subscribed
comes for the earlier filter alone, and so does nothing that is published once that filter has ended, or goes to another
member of its group. Nothing in a copy tells which it is. But two of one message leave the broker together: so one is
taken for the other's copy if it says the same, and came within a moment of it, a cut between the two left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from zlib import crc32

if TYPE_CHECKING:
    from glec_fast.mqtt.inbound_message import InboundMessage

# Two that come further apart are two messages: better one too many than one too few.
_TOGETHER_S = 2.0
_COUNTED_MAX = 1024


class Copies:
    """Its owner serialises calls. Times are of `time.monotonic`."""

    def __init__(self) -> None:
        # (message, handler's filter, whether it is for an earlier filter) -> from when to when its other may have come.
        self._alone: dict[tuple[int, int, bool], list[list[float]]] = {}
        # Of those, whose other the end of the connection may have kept from coming.
        self._parted: list[list[float]] = []

    def is_new(
        self, message: InboundMessage, identifier: int, came_s: float, oldest_s: float, *, is_earlier: bool
    ) -> bool:
        """False where the handler of this filter has had the other copy. is_earlier: it is for an earlier filter.

        oldest_s: when the first came that has yet to be looked at.
        """
        says = crc32(message.payload, crc32(message.topic.encode()))
        others = self._alone.get((says, identifier, not is_earlier), [])
        for number, (first_s, last_s) in enumerate(others):
            if first_s - _TOGETHER_S <= came_s <= last_s + _TOGETHER_S:
                del others[number]
                return False
        key = says, identifier, is_earlier
        spans = [each for each in self._alone.pop(key, []) if each[1] >= oldest_s - _TOGETHER_S]
        self._alone[key] = [*spans[-_COUNTED_MAX:], [came_s, came_s]]
        if len(self._alone) > _COUNTED_MAX:
            del self._alone[next(iter(self._alone))]
        return True

    def part(self, last_s: float) -> None:
        """The connection has ended; what came behind `last_s` comes again."""
        self._parted = [each for spans in self._alone.values() for each in spans if each[1] >= last_s - _TOGETHER_S]

    def go_on(self, now_s: float) -> None:
        """The session goes on with another connection."""
        for each in self._parted:
            each[1] = now_s
        self._parted = []

    def clear(self) -> None:
        """Another session."""
        self._alone.clear()
        self._parted = []
