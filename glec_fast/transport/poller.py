"""Waiting for a socket, and for whoever wakes the loop."""

from __future__ import annotations

from socket import socket
from typing import Any

from glec_fast.runtime.polling import READABLE, WRITABLE, new_poll


class Poller:
    """Keeps what it waits for from one call to the next, as it seldom changes. For one thread at a time."""

    def __init__(self) -> None:
        self._watched: tuple[int, int, bool] | None = None
        self._poll = new_poll()

    def wait(self, descriptor: int, waker: int, *, for_room: bool, timeout_ms: float) -> tuple[int, bool]:
        """(poll's flags for `descriptor`, whether `waker`, -1 for none, can be read).

        for_room: end the wait also once `descriptor` takes bytes. Raises ValueError where it is below 0, OSError.
        """
        watched = descriptor, waker, for_room
        if watched != self._watched:
            self._poll = new_poll()
            self._poll.register(descriptor, READABLE | (WRITABLE if for_room else 0))
            if waker >= 0:
                self._poll.register(waker, READABLE)
            self._watched = watched
        flags, is_woken = 0, False
        for ready, its_flags in self._poll.poll(timeout_ms):
            if ready == waker:
                is_woken = True
            else:
                flags = its_flags
        return flags, is_woken


def has_pending(sock: Any) -> bool:
    """True where bytes wait that no poll tells of: decrypted ones, or those behind a WebSocket's frame."""
    return type(sock) is not socket and hasattr(sock, "pending") and sock.pending() > 0
