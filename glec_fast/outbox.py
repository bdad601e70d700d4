"""What waits to be sent, and the session that sends it: what both kinds of outbox share.

An outbox owns its `Session` and the lock around it. It knows no socket: the client moves the bytes, and says when a
connection begins and ends. No lock is held when a caller's code runs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import NamedTuple

from glec_fast._session import Session
from glec_fast.handle import PublishHandle


class Message(NamedTuple):
    """A message in memory, as `publish` took it."""

    message_id: int
    topic: bytes
    payload: bytes | bytearray
    qos: int
    retain: bool
    properties: bytes | None
    mid: int
    handle: PublishHandle


class Outbox:
    """What both kinds share. `on_work` is called, from any thread, when there is something to send."""

    def __init__(self, window: int, on_work: Callable[[], None], *, durable: bool, max_unreleased: int = 0) -> None:
        self.session = Session(window, durable, max_unreleased)
        self.lock = threading.Lock()
        self.is_open = False
        self._on_work = on_work
        self._published = threading.Condition(threading.Lock())
        self.sent_count = 0
        # Where it is traced, `trace` grows: (message, first byte of the packet) of all that is encoded.
        self.is_traced = False
        self.trace: list[tuple[Message, int]] = []
        self._control_ids: set[int] = set()

    def take_trace(self) -> list[tuple[Message, int]]:
        """What was encoded since the last call."""
        with self.lock:
            trace, self.trace = self.trace, []
        return trace

    def put_packet(self, packet: bytes | bytearray, *, last: bool) -> None:
        """Append a control packet."""
        with self.lock:
            self.session.put_packet(packet, last)

    def reserve_packet_id(self) -> int:
        """An id for SUBSCRIBE or UNSUBSCRIBE, that of nothing else until `release_packet_id`; 0 where all are taken."""
        with self.lock:
            packet_id: int = self.session.reserve_packet_id()
            self._control_ids.add(packet_id)
            return packet_id

    def release_packet_id(self, packet_id: int) -> None:
        """SUBACK or UNSUBACK came. An id that was not reserved is left as it is."""
        with self.lock:
            self._release_control_id(packet_id)

    def _release_control_id(self, packet_id: int) -> None:
        if packet_id in self._control_ids:
            self._control_ids.remove(packet_id)
            self.session.release_packet_id(packet_id)

    def _release_control_ids(self) -> None:
        """The connection is gone, and with it the answers; the caller holds the lock."""
        for packet_id in list(self._control_ids):
            self._release_control_id(packet_id)

    def after_settle(self) -> None:
        """Pass on what `settle` found. Not under the lock."""
