"""A server that only keeps what it is sent, and a client that is connected to it."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from paho.mqtt.enums import CallbackAPIVersion

from glec_fast import Client
from support.gateway import TIMEOUT_S
from support.wire_reference import parse

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.wire_reference import Packet

CONNACK, PUBACK_OF_1 = b"\x20\x02\x00\x00", b"\x40\x02\x00\x01"
_ROUND = 500


class Peer:
    """A server that only keeps what it is sent."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(TIMEOUT_S)
        self.port = self._listener.getsockname()[1]
        self.received = bytearray()
        self.changed = threading.Condition()
        self.accepted = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        self.sock, _ = self._listener.accept()
        with self.sock:
            self.sock.recv(4096)
            self.sock.sendall(CONNACK)
            self.accepted.set()
            # A client that closes with CONNACK unread resets the connection.
            with suppress(ConnectionResetError):
                while data := self.sock.recv(65_536):
                    with self.changed:
                        self.received += data
                        self.changed.notify_all()

    def has_received(self, size: int) -> bool:
        return self._has(size, TIMEOUT_S)

    def _has(self, size: int, timeout_s: float) -> bool:
        with self.changed:
            return self.changed.wait_for(lambda: len(self.received) >= size, timeout_s)

    def rounds(self) -> Iterator[int]:
        """Numbers of messages to publish until the caller breaks off, in time; between them the server has its turn."""
        deadline_s = time.monotonic() + TIMEOUT_S
        count = 0
        while time.monotonic() < deadline_s:
            yield from range(count, count + _ROUND)
            count += _ROUND
            self._has(len(self.received) + 1, 0.001)
        raise AssertionError(f"{count} messages, and {len(self.received)} bytes have come")

    def packets(self) -> list[Packet]:
        with self.changed:
            return parse(bytes(self.received))[0]

    def close(self) -> None:
        self._listener.close()
        self._thread.join()


@contextmanager
def connected(port: int, **options: Any) -> Iterator[Client]:
    client = Client(CallbackAPIVersion.VERSION2, **options)
    is_connected = threading.Event()
    client.on_connect = lambda *_: is_connected.set()
    client.connect("127.0.0.1", port)
    client.loop_start()
    try:
        assert is_connected.wait(TIMEOUT_S)
        yield client
    finally:
        client.disconnect()
        client.loop_stop()
