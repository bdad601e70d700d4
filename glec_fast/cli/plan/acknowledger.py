"""The least that a broker can be: it accepts whoever connects on loopback, and acknowledges. For trials."""

from __future__ import annotations

import socket
import threading

_CONNACK, _PINGRESP = b"\x20\x02\x00\x00", b"\xd0\x00"
_CONNACK_5 = b"\x20\x03\x00\x00\x00"
_MQTT_5 = 5


class Acknowledger:
    """Serves one connection after another, in a thread of its own. A context manager."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Acknowledger:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        # Ends `accept`, too.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    def _run(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with client:
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                try:
                    self._serve(client)
                except OSError:
                    continue

    def _serve(self, client: socket.socket) -> None:
        data = bytearray()
        while read := client.recv(1 << 16):
            data += read
            answers = bytearray()
            while (packet := _take(data)) is not None:
                answers += _answer(*packet)
            client.sendall(answers)


def _take(data: bytearray) -> tuple[int, bytes] | None:
    """(first byte, body) of the first packet, which is taken out; None where it is not whole."""
    size = shift = 0
    for index, byte in enumerate(data[1:5], 1):
        size |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            end = index + 1 + size
            if len(data) < end:
                return None
            first, body = data[0], bytes(data[index + 1 : end])
            del data[:end]
            return first, body
    return None


def _answer(first: int, body: bytes) -> bytes:
    kind = first >> 4
    if kind == 1:
        return _CONNACK_5 if body[6] == _MQTT_5 else _CONNACK
    if kind == 3 and first & 6:
        at = 2 + int.from_bytes(body[:2], "big")
        return bytes((0x40 if first & 2 else 0x50, 2)) + body[at : at + 2]
    if kind == 6:
        return b"\x70\x02" + body[:2]
    return _PINGRESP if kind == 12 else b""
