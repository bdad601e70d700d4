"""Waiting for sockets: poll, as select ends at descriptor 1,023; select where there is no poll.

eventlet takes it away, and puts its own select there, which has no such end.
"""

from __future__ import annotations

import select
import time
from typing import Any

# As of poll, also where that is not there.
READABLE, WRITABLE, UNKNOWN = 0x001, 0x004, 0x020


class _Selecting:
    """As an object of `select.poll`, by select."""

    def __init__(self) -> None:
        self._events: dict[int, int] = {}

    def register(self, sock: Any, events: int) -> None:
        descriptor = sock if isinstance(sock, int) else sock.fileno()
        if descriptor < 0:
            raise ValueError("file descriptor cannot be a negative integer (-1)")
        self._events[descriptor] = events

    def unregister(self, descriptor: int) -> None:
        del self._events[descriptor]

    def poll(self, timeout_ms: float) -> list[tuple[int, int]]:
        ends_s = time.monotonic() + timeout_ms / 1000
        flags: dict[int, int] = {}
        for_bytes = [each for each, events in self._events.items() if events & READABLE]
        for_room = [each for each, events in self._events.items() if events & WRITABLE]
        while True:
            readable, writable, _ = select.select(for_bytes, for_room, [], max(ends_s - time.monotonic(), 0.0))
            # Where two were ready, eventlet tells of the second in whatever wait comes next.
            flags.update((each, READABLE) for each in readable if each in for_bytes)
            flags.update((each, flags.get(each, 0) | WRITABLE) for each in writable if each in for_room)
            if flags or time.monotonic() >= ends_s:
                return [*flags.items()]


def new_poll() -> Any:
    """An object of `select.poll`, or what does its work: a program may have put green threads there by now."""
    return select.poll() if hasattr(select, "poll") else _Selecting()


def is_readable(sock: Any, timeout_ms: float) -> bool:
    """True once bytes have come, or the connection has ended; False after the time-out.

    sock: or its descriptor. Raises ValueError where that is below 0, OSError.
    """
    poll = new_poll()
    poll.register(sock, READABLE)
    return bool(poll.poll(timeout_ms))
