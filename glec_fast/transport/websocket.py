"""MQTT in WebSocket frames (RFC 6455; MQTT 3.1.1, 6), on a connection that has been upgraded.

paho takes a frame at a time, and masks a byte at a time: twenty times the work of MQTT itself.
"""

from __future__ import annotations

import os
import ssl
import struct
from typing import Any

from glec_fast._paho import WebsocketWrapper
from glec_fast.runtime._lock import Lock

_FINAL, _RESERVED, _MASKED = 0x80, 0x70, 0x80
_CONTINUATION, _BINARY, _CLOSE, _PING, _PONG = 0x0, 0x2, 0x8, 0x9, 0xA
_CONTROL_MAX_BYTES = 125
_LENGTH_16, _LENGTH_64 = 126, 127
_NOT_NOW = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


# What a program may ask of the connection below. What moves bytes would go past the frames.
_OF_THE_SOCKET = frozenset(
    (
        *("family", "type", "proto", "timeout", "getsockopt", "setsockopt", "getpeername", "getsockname"),
        *("gettimeout", "settimeout", "getblocking", "shutdown", "get_inheritable", "set_inheritable"),
        *("context", "server_hostname", "getpeercert", "cipher", "version", "selected_alpn_protocol"),
    )
)


class WebSocket(WebsocketWrapper):  # type: ignore[misc]
    """As a socket that does not block. One thread reads at a time; others may write meanwhile.

    To a program it is paho's, with that one's attributes, and has the options of the socket below, `_socket`, too.
    """

    # Not paho's initialiser, which makes the upgrade.
    def __init__(  # pylint: disable=super-init-not-called
        self, sock: Any, host: str = "", port: int = 0, path: str = "", *, is_tls: bool = False
    ) -> None:
        self._socket = sock
        self._host, self._port, self._path, self._ssl = host, port, path, is_tls
        self._received = bytearray()
        # Of the data frame whose header was read, and the first fragment of a message that goes on.
        self._left_bytes = 0
        self._is_fragmented = False
        self._is_over = False
        # How the peer breaks the protocol, once it does.
        self._broken = ""
        self._lock = Lock("WebSocket._lock")
        # Frames, of which a part may have gone, and how many bytes of MQTT the last of them holds.
        self._unsent = bytearray()
        self._offered_bytes = 0
        # The payload of the last ping; only that must be answered (5.5.3).
        self._ping: bytes | None = None

    # ---- what a socket has

    def __getattr__(self, name: str) -> Any:
        if name in _OF_THE_SOCKET:
            return getattr(self._socket, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @property
    def connected(self) -> bool:
        """paho's: False once the peer has left."""
        return not self._is_over

    def fileno(self) -> int:
        return int(self._socket.fileno())

    def setblocking(self, flag: bool) -> None:
        self._socket.setblocking(flag)

    def pending(self) -> int:
        """Bytes that TLS has decrypted, which no poll of the socket tells of."""
        return int(self._socket.pending()) if isinstance(self._socket, ssl.SSLSocket) else 0

    def close(self) -> None:
        self._socket.close()

    def detach(self) -> int:
        """The descriptor, which is the caller's from now on."""
        return int(self._socket.detach())

    # ---- bytes in

    def recv(self, limit_bytes: int) -> bytes:
        """What has come of MQTT, of at most `limit_bytes` of the connection; empty where the peer has left.

        Raises BlockingIOError or ssl's own errors where nothing has come, and ConnectionAbortedError where the peer
        breaks the protocol (7.1.7).
        """
        while not self._is_over:
            try:
                data = self._socket.recv(limit_bytes)
            except ConnectionError:
                data = b""
            if not data:
                self._is_over = True
                return b""
            self._received += data
            payload = self._take_frames()
            if payload:
                return payload
            if not self._is_over and not self.pending():
                # A server may send pings without end; the caller has other duties.
                raise BlockingIOError
        if self._broken:
            raise ConnectionAbortedError(f"the peer breaks the WebSocket protocol: {self._broken}")
        return b""

    def _take_frames(self) -> bytes:
        """The payload of the data frames that are there, begun ones too, as far as they keep to the protocol."""
        received = self._received
        end = len(received)
        at = 0
        pieces = []
        while at < end and not self._is_over:
            if self._left_bytes:
                piece = received[at : at + self._left_bytes]
                pieces.append(piece)
                at += len(piece)
                self._left_bytes -= len(piece)
                continue
            if end - at < 2:
                break
            first, size = received[at], received[at + 1]
            head_bytes = 2
            if size >= _LENGTH_16:
                size, head_bytes = _long_size(received, at, size)
                if end - at < head_bytes:
                    break
            opcode = first & 0x0F
            self._check(first, received[at + 1], size)
            if self._is_over:
                break
            at += head_bytes
            if opcode < _CLOSE:
                self._is_fragmented = not first & _FINAL
                self._left_bytes = size
                continue
            if end - at < size:
                at -= head_bytes
                break
            self._on_control(opcode, bytes(received[at : at + size]))
            at += size
        del received[:at]
        return b"".join(pieces)

    def _check(self, first: int, second: int, size: int) -> None:
        """Of a frame's header, by its first two bytes and its size."""
        opcode = first & 0x0F
        if first & _RESERVED or second & _MASKED or size >> 63:
            self._broken = "a frame that is masked, of an extension, or of no possible size (5.1, 5.2)"
        elif opcode > _PONG:
            self._broken = "a control frame of an unknown kind (5.2)"
        elif opcode >= _CLOSE and (not first & _FINAL or size > _CONTROL_MAX_BYTES):
            self._broken = "a control frame that is fragmented or long (5.5)"
        elif opcode < _CLOSE and opcode != (_CONTINUATION if self._is_fragmented else _BINARY):
            self._broken = "a frame that is not binary, or out of turn (5.4; MQTT 3.1.1, 6.0)"
        self._is_over = bool(self._broken)

    def _on_control(self, opcode: int, payload: bytes) -> None:
        if opcode == _PONG:
            return
        with self._lock:
            if opcode == _PING:
                self._ping = payload
            else:
                self._is_over = True
                self._unsent += _frame(_CLOSE, payload)
            # Between two frames: within one it would be taken for a part of it.
            if not self._offered_bytes:
                self._answer_ping()
                try:
                    self._flush()
                except (*_NOT_NOW, ConnectionError):
                    # It goes with what is sent next; a connection that has ended is seen by the next read.
                    return

    read = recv

    # ---- bytes out

    def send(self, data: bytes) -> int:
        """Send `data` as one frame; returns its length, or 0 where only a part has gone.

        Give the same bytes again then, more behind them or not: they are not sent twice, and the length that is
        returned is that of the first call. Raises BlockingIOError or ssl's own errors where the connection takes none.
        """
        with self._lock:
            if not self._offered_bytes:
                self._answer_ping()
                self._unsent += _frame(_BINARY, data)
                self._offered_bytes = len(data)
            self._flush()
            offered_bytes, self._offered_bytes = self._offered_bytes, 0
            return offered_bytes

    write = send

    def _answer_ping(self) -> None:
        if self._ping is not None:
            self._unsent += _frame(_PONG, self._ping)
            self._ping = None

    def _flush(self) -> None:
        while self._unsent:
            del self._unsent[: self._socket.send(self._unsent)]


def _long_size(received: bytearray, at: int, kind: int) -> tuple[int, int]:
    """(payload's size, header's) of a frame whose size has 2 or 8 bytes of its own; 0 while they are not there."""
    if kind & _MASKED:
        return 0, 2
    form, head_bytes = (">H", 4) if kind == _LENGTH_16 else (">Q", 10)
    size = struct.unpack_from(form, received, at + 2)[0] if len(received) - at >= head_bytes else 0
    return size, head_bytes


def _frame(opcode: int, payload: bytes) -> bytes:
    """A whole frame, masked as a client's must be (5.3)."""
    size = len(payload)
    if size < _LENGTH_16:
        head = struct.pack(">BB", _FINAL | opcode, _MASKED | size)
    elif size < 1 << 16:
        head = struct.pack(">BBH", _FINAL | opcode, _MASKED | _LENGTH_16, size)
    else:
        head = struct.pack(">BBQ", _FINAL | opcode, _MASKED | _LENGTH_64, size)
    key = os.urandom(4)
    # All at once, as two whole numbers.
    mask = int.from_bytes((key * (size // 4 + 1))[:size], "little")
    masked = (int.from_bytes(payload, "little") ^ mask).to_bytes(size, "little")
    return head + key + masked
