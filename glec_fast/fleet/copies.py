"""Copies of one message, where the broker's session still has a filter of an earlier process that overlaps with ours.

A server may send a copy for each filter, and says in MQTT 5 which (3.3.5). What it kept before this process subscribed
comes for the earlier filter alone; what is published from then on comes for both. Nothing in a copy tells the one kind
from the other, but of the latter there are as many of either: so the two are counted against each other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from zlib import crc32

if TYPE_CHECKING:
    from glec_fast.mqtt.inbound_message import InboundMessage

# Copies of a message leave the broker together.
_COUNTED_MAX = 1024


class Copies:
    """Its owner serialises calls."""

    def __init__(self) -> None:
        # (message, handler's filter) -> copies for an earlier process's filter, less those for the handler's own.
        self._balance: dict[tuple[int, int], int] = {}

    def is_new(self, message: InboundMessage, identifier: int, *, is_earlier: bool) -> bool:
        """False where the handler of this filter has had the other copy. is_earlier: it is for an earlier filter."""
        key = crc32(message.payload, crc32(message.topic.encode())) << 2 | message.qos, identifier
        step = 1 if is_earlier else -1
        balance = self._balance.pop(key, 0)
        if balance + step:
            self._balance[key] = balance + step
            if len(self._balance) > _COUNTED_MAX:
                del self._balance[next(iter(self._balance))]
        return balance * step >= 0

    def clear(self) -> None:
        """Another session."""
        self._balance.clear()
