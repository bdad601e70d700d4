"""What stands between a socket and MQTT at the scripted peer: WebSocket frames, a proxy's handshake."""

from __future__ import annotations

import base64
import hashlib
import io
import socket
from typing import Any

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_FINAL, _CONTINUATION, _BINARY, _CLOSE, _PING = 0x80, 0x0, 0x2, 0x8, 0x9
_SHORT, _LONG, _LONGEST = 125, 126, 127


class WebSocket(io.RawIOBase):
    """The server's side of RFC 6455: its handshake, and a byte stream in frames. `request`: what the client asked for.

    Each write goes as two fragments with a ping between them, as a server is free to send it; with `frame_bytes`, in
    frames of that size. answer: to the handshake, in place of the right one.
    """

    def __init__(self, sock: Any, answer: bytes | None = None, frame_bytes: int = 0) -> None:
        self._sock = sock
        self._frame_bytes = frame_bytes
        self._stream = sock.makefile("rb")
        self._payload = b""
        self.pongs: list[bytes] = []
        lines = []
        while (line := self._stream.readline().strip()) != b"":
            lines.append(line)
        self.request = lines
        key = next(line.split(b": ")[1] for line in lines if line.lower().startswith(b"sec-websocket-key"))
        accept = base64.b64encode(hashlib.sha1(key + _GUID).digest())
        sock.sendall(
            answer
            or b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Protocol: mqtt\r\nSec-WebSocket-Accept: "
            + accept
            + b"\r\n\r\n"
        )

    def sendall(self, data: bytes) -> None:
        if self._frame_bytes:
            pieces = (data[at : at + self._frame_bytes] for at in range(0, len(data), self._frame_bytes))
            self._sock.sendall(b"".join(frame(_FINAL | _BINARY, piece) for piece in pieces))
            return
        half = len(data) // 2
        frames = ((_BINARY, data[:half]), (_FINAL | _PING, b"still there?"), (_FINAL | _CONTINUATION, data[half:]))
        self._sock.sendall(b"".join(frame(opcode, payload) for opcode, payload in frames))

    def shutdown(self, how: int) -> None:
        self._sock.shutdown(how)

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._payload:
            head = self._stream.read(2)
            if len(head) < len(b"op"):
                return 0
            size = head[1] & 0x7F
            if size > _SHORT:
                size = int.from_bytes(self._stream.read(2 if size == _LONG else 8), "big")
            # The pong of paho's client has no mask.
            mask = self._stream.read(4) if head[1] & 0x80 else bytes(4)
            payload = bytes(byte ^ mask[index % 4] for index, byte in enumerate(self._stream.read(size)))
            if head[0] & 0x0F == _BINARY:
                self._payload = payload
            elif head[0] & 0x0F != _CLOSE:
                self.pongs.append(payload)
        size = min(len(buffer), len(self._payload))
        buffer[:size], self._payload = self._payload[:size], self._payload[size:]
        return size

    def close(self) -> None:
        super().close()
        self._stream.close()
        self._sock.close()


def frame(opcode: int, payload: bytes) -> bytes:
    """A frame of the server's; `opcode` with FIN, if it is the last of its message."""
    size = len(payload)
    if size <= _SHORT:
        return bytes((opcode, size)) + payload
    if size < 1 << 16:
        return bytes((opcode, _LONG)) + size.to_bytes(2, "big") + payload
    return bytes((opcode, _LONGEST)) + size.to_bytes(8, "big") + payload


class Proxy:
    """A SOCKS 5 (RFC 1928) or HTTP CONNECT proxy that plays the server behind it too. `asked`: the requests."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []

    def __call__(self, sock: socket.socket) -> socket.socket:
        first = sock.recv(1)
        if first == b"\x05":
            methods = sock.recv(1)[0]
            sock.recv(methods, socket.MSG_WAITALL)
            sock.sendall(b"\x05\x00")
            head = sock.recv(4, socket.MSG_WAITALL)
            host = sock.recv(4 if head[3] == 1 else sock.recv(1)[0], socket.MSG_WAITALL)
            self.asked.append(head + host + sock.recv(2, socket.MSG_WAITALL))
            sock.sendall(b"\x05\x00\x00\x01" + bytes(6))
            return sock
        request = first
        while not request.endswith(b"\r\n\r\n"):
            request += sock.recv(1)
        self.asked.append(request)
        sock.sendall(b"HTTP/1.1 200 connected\r\n\r\n")
        return sock
