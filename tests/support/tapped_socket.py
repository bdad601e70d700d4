"""A socket that tells of what it took, before whoever gave it hears of that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class TappedSocket:
    """As `sock`; `on_sent` is called with the bytes of each send."""

    def __init__(self, sock: Any, on_sent: Callable[[bytes], None]) -> None:
        self._sock = sock
        self._on_sent = on_sent

    def send(self, data: bytes) -> int:
        size = int(self._sock.send(data))
        self._on_sent(data[:size])
        return size

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)
