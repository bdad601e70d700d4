"""A TCP relay on loopback with a rate and a delay, and buffers of its own, as a cellular link has them."""

from __future__ import annotations

import socket
import threading
import time
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

READ_BYTES = 512
# What a direction keeps beside what is under way: as little as makes it always have something to send.
BUFFER_BYTES = 64 * 1024


class ShapedLink:
    """Relays one address to `target`. rate_bytes_s: up, from the client; 0 for no bound. delay_s: of each direction.

    `watch` says when certain bytes have been handed to the server.
    """

    def __init__(self, target: tuple[str, int], *, rate_bytes_s: float = 0, delay_s: float = 0) -> None:
        self._target = target
        self._rate_bytes_s, self._delay_s = rate_bytes_s, delay_s
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
        self.port: int = self._listener.getsockname()[1]
        self._ends: list[socket.socket] = []
        self._changed = threading.Condition()
        self._watched, self._seen_s = b"", 0.0
        threading.Thread(target=self._accept, daemon=True).start()

    def watch(self, token: bytes) -> None:
        """Look for these bytes from now on."""
        with self._changed:
            self._watched, self._seen_s = token, 0.0

    def wait_seen(self, timeout_s: float) -> float:
        """When they were handed to the server, of `time.monotonic`; 0 after the time-out."""
        with self._changed:
            self._changed.wait_for(lambda: self._seen_s, timeout_s)
            return self._seen_s

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(self._target)
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._ends += [client, server]
            _Direction(client, server, self._rate_bytes_s, self._delay_s, self._look)
            _Direction(server, client, 0, self._delay_s, None)

    def _look(self, data: bytes) -> None:
        if self._watched and self._watched in data:
            with self._changed:
                self._seen_s = time.monotonic()
                self._watched = b""
                self._changed.notify_all()

    def close(self) -> None:
        """End all connections."""
        self._listener.close()
        for end in self._ends:
            end.close()

    def __enter__(self) -> ShapedLink:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Direction:
    """One reads, and says when each piece is due; the other hands it on then."""

    def __init__(
        self,
        source: socket.socket,
        sink: socket.socket,
        rate_bytes_s: float,
        delay_s: float,
        look: Callable[[bytes], None] | None,
    ) -> None:
        self._source, self._sink = source, sink
        self._rate_bytes_s, self._delay_s = rate_bytes_s, delay_s
        self._look = look
        self._changed = threading.Condition()
        self._pieces: deque[tuple[float, bytes]] = deque()
        self._sent_s = 0.0
        for target in (self._read, self._write):
            threading.Thread(target=target, daemon=True).start()

    def _read(self) -> None:
        while True:
            try:
                data = self._source.recv(READ_BYTES if self._rate_bytes_s else 1 << 16)
            except OSError:
                data = b""
            now_s = time.monotonic()
            if self._rate_bytes_s:
                # As a modem does: the next piece is taken once this one is on the air.
                self._sent_s = max(self._sent_s, now_s) + len(data) / self._rate_bytes_s
                time.sleep(max(self._sent_s - now_s, 0))
                now_s = self._sent_s
            with self._changed:
                self._pieces.append((now_s + self._delay_s, data))
                self._changed.notify()
            if not data:
                return

    def _write(self) -> None:
        tail = b""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._pieces)
                due_s, data = self._pieces.popleft()
            time.sleep(max(due_s - time.monotonic(), 0))
            try:
                if not data:
                    self._sink.shutdown(socket.SHUT_WR)
                    return
                self._sink.sendall(data)
            except OSError:
                return
            if self._look is not None:
                # A token may stand across two pieces.
                self._look(tail + data)
                tail = data[-64:]
