"""WebSocket frames as a server may send them, in any pieces, and as ours must be (RFC 6455)."""

from __future__ import annotations

import contextlib
import itertools
import operator
import random
import select
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest
from paho.mqtt import client as paho

from glec_fast.transport.websocket import WebSocket
from support.transports import frame

if TYPE_CHECKING:
    from collections.abc import Iterator

TIMEOUT_S = 10.0
FINAL, BINARY, TEXT, CLOSE, PING, PONG = 0x80, 0x2, 0x1, 0x8, 0x9, 0xA


class Ends:
    """A client's end, with a server's behind it that reads only when it is asked what was sent."""

    def __init__(self, *, is_paho: bool = False) -> None:
        self.sock, self.server = socket.socketpair()
        self.server.settimeout(TIMEOUT_S)
        self.sock.setblocking(False)
        self.client: Any = paho_s(self.sock) if is_paho else WebSocket(self.sock)
        self._sent = bytearray()
        self._reader = threading.Thread(target=self._read)

    def start_reading(self) -> None:
        self._reader.start()

    def _read(self) -> None:
        while data := self.server.recv(1 << 20):
            self._sent += data

    def send_whole(self, data: bytes) -> int:
        """Again and again, as a loop does, until it has gone."""
        sent = 0
        while not sent:
            with contextlib.suppress(BlockingIOError):
                sent = self.client.send(data)
            if not sent:
                select.select([], [self.sock], [], TIMEOUT_S)
        return sent

    def receive_all(self) -> bytes:
        received = b""
        try:
            while data := self.client.recv(65_536):
                received += data
        except BlockingIOError:
            pass
        return received

    def sent(self) -> list[tuple[int, bytes, bool]]:
        """(opcode, payload, whether it is masked) of every frame; the client sends no more."""
        if not self._reader.ident:
            self.start_reading()
        self.sock.shutdown(socket.SHUT_WR)
        self._reader.join(TIMEOUT_S)
        return list(frames_of(bytes(self._sent)))

    def close(self) -> None:
        self.sock.close()
        self.server.close()


def frames_of(stream: bytes) -> Iterator[tuple[int, bytes, bool]]:
    at = 0
    while at < len(stream):
        first, size = stream[at], stream[at + 1] & 0x7F
        is_masked = bool(stream[at + 1] & 0x80)
        at += 2
        if size > 125:
            size_bytes = 2 if size == 126 else 8
            size = int.from_bytes(stream[at : at + size_bytes], "big")
            at += size_bytes
        key = stream[at : at + 4] if is_masked else bytes(4)
        at += 4 if is_masked else 0
        payload = bytes(map(operator.xor, stream[at : at + size], itertools.cycle(key)))
        assert first & 0xF0 == FINAL, "it sends whole frames"
        assert len(payload) == size, "the stream ends with a whole frame"
        yield first & 0x0F, payload, is_masked
        at += size


def paho_s(sock: socket.socket) -> Any:
    """paho's, as it is once it has made its upgrade."""
    made = object.__new__(paho._WebsocketWrapper)
    made._socket, made._ssl, made.connected = sock, False, True
    made._sendbuffer, made._readbuffer = bytearray(), bytearray()
    made._requested_size = made._payload_head = made._readbuffer_head = 0
    return made


@pytest.fixture
def ends() -> Iterator[Ends]:
    made = Ends()
    yield made
    made.close()


@pytest.fixture(params=["paho", "glec"])
def either(request: pytest.FixtureRequest) -> Iterator[Ends]:
    made = Ends(is_paho=request.param == "paho")
    yield made
    made.close()


@pytest.mark.parametrize("size", [1, 3, 125, 126, 65_535, 65_536, 600_000])
def test_what_is_sent_arrives_masked_in_one_frame(ends: Ends, size: int) -> None:
    ends.start_reading()
    data = random.Random(size).randbytes(size)
    assert ends.send_whole(data) == size
    assert ends.sent() == [(BINARY, data, True)]


@pytest.mark.parametrize("seed", range(20))
def test_frames_in_any_pieces(ends: Ends, seed: int) -> None:
    """Fragments, control frames between them, every form of the length; cut anywhere."""
    rng = random.Random(seed)
    stream, expected, pings = b"", b"", []
    for _ in range(rng.randrange(1, 12)):
        sizes = rng.choices([0, 1, 125, 126, 300, 65_535, 65_536], k=rng.randrange(1, 4))
        fragments = [rng.randbytes(size) for size in sizes]
        for number, fragment in enumerate(fragments):
            opcode = 0 if number else BINARY
            stream += frame(opcode | (FINAL if number == len(fragments) - 1 else 0), fragment)
            expected += fragment
            if rng.random() < 0.3:
                pings.append(rng.randbytes(rng.randrange(126)))
                stream += frame(FINAL | PING, pings[-1]) + frame(FINAL | PONG, b"nobody asked")
    received = b""
    while stream:
        size = rng.choice([1, 2, 3, 7, 100, 5000, 60_000])
        ends.server.send(stream[:size])
        stream = stream[size:]
        received += ends.receive_all()
    assert received == expected
    assert ends.client._received == b""
    # Those that came in one read are answered once, by the last.
    answered = [payload for _, payload, _ in ends.sent()]
    assert set(answered) <= set(pings)
    assert answered[-1:] == pings[-1:]


def test_a_byte_at_a_time(ends: Ends) -> None:
    received = b""
    frames = (BINARY, b"one"), (FINAL | PING, b"?"), (FINAL, b"x" * 300), (FINAL | BINARY, b"2")
    for byte in b"".join(frame(opcode, payload) for opcode, payload in frames):
        ends.server.send(bytes((byte,)))
        received += ends.receive_all()
    assert received == b"one" + b"x" * 300 + b"2"
    assert ends.sent() == [(PONG, b"?", True)]


def test_a_pong_is_masked_and_goes_between_two_frames(either: Ends) -> None:
    """paho's goes wherever the stream is just then, and has no mask."""
    data, more = b"x" * 1_000_000, b"behind it"
    is_ours = isinstance(either.client, WebSocket)
    with contextlib.suppress(BlockingIOError):
        # A part of it, as much as the connection takes.
        assert either.client.send(data) == 0
    either.start_reading()
    select.select([], [either.sock], [], TIMEOUT_S)
    either.server.send(frame(FINAL | PING, b"there?"))
    assert either.receive_all() == b""
    assert either.send_whole(data + more) == len(data)
    assert either.send_whole(more) == len(more)
    if is_ours:
        assert either.sent() == [(BINARY, data, True), (PONG, b"there?", True), (BINARY, more, True)]
        return
    with pytest.raises(AssertionError):
        either.sent()
    assert b"there?" in either._sent, "the control: it has gone, within the frame"


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(bytes((FINAL | BINARY, 0x81)) + b"keysx", id="masked"),
        pytest.param(frame(FINAL | 0x40 | BINARY, b"x"), id="an extension's bit"),
        pytest.param(frame(FINAL | TEXT, b"x"), id="text"),
        pytest.param(frame(FINAL, b"x"), id="a continuation of nothing"),
        pytest.param(frame(BINARY, b"x") + frame(FINAL | BINARY, b"y"), id="a message within another"),
        pytest.param(frame(PING, b"x"), id="a ping in fragments"),
        pytest.param(frame(FINAL | PING, bytes(126)), id="a long ping"),
        pytest.param(frame(FINAL | 0xB, b""), id="an unknown control frame"),
        pytest.param(frame(FINAL | 0x3, b""), id="an unknown data frame"),
        pytest.param(bytes((FINAL | BINARY, 127, 0x80)) + bytes(7), id="a size of 2^63"),
    ],
)
def test_a_frame_that_breaks_the_protocol_ends_the_connection(ends: Ends, broken: bytes) -> None:
    ends.server.send(frame(BINARY, b"before ") + frame(FINAL, b"it") + broken)
    received = ends.client.recv(65_536)
    assert received == b"before it" + (b"x" if broken.startswith(b"\x02") else b"")
    for _ in range(2):
        with pytest.raises(ConnectionAbortedError, match="breaks the WebSocket protocol"):
            ends.client.recv(65_536)


@pytest.mark.parametrize("opcode", [BINARY | FINAL, TEXT | FINAL])
def test_what_a_server_must_not_send_is_not_taken_for_mqtt(either: Ends, opcode: int) -> None:
    """paho takes a masked frame, and passes over text."""
    if opcode & 0x0F == BINARY:
        either.server.send(bytes((opcode, 0x81)) + bytes(4) + b"x")
    else:
        either.server.send(frame(opcode, b"x"))
    if isinstance(either.client, WebSocket):
        with pytest.raises(ConnectionAbortedError):
            either.client.recv(100)
    else:
        assert either.receive_all() == (b"x" if opcode & 0x0F == BINARY else b"")


def test_a_server_that_sends_pings_without_end_is_left_after_each_read(ends: Ends) -> None:
    pings = frame(FINAL | PING, b"?") * 100
    ends.server.send(pings)
    with pytest.raises(BlockingIOError):
        ends.client.recv(len(pings) // 2)
    assert len(ends.sock.recv(len(pings))) == len(pings) // 2, "the rest waits for the next turn"


def test_a_close_is_answered_and_is_the_end(ends: Ends) -> None:
    frames = (BINARY, b"last"), (CLOSE, b"\x03\xe8bye"), (BINARY, b"not")
    ends.server.send(b"".join(frame(FINAL | opcode, payload) for opcode, payload in frames))
    assert ends.client.recv(1000) == b"last"
    assert ends.client.recv(1000) == b""
    assert ends.sent() == [(CLOSE, b"\x03\xe8bye", True)]


def test_a_peer_that_announces_much_gets_no_memory_for_it(ends: Ends) -> None:
    ends.server.send(bytes((FINAL | BINARY, 127)) + (1 << 62).to_bytes(8, "big") + b"x" * 1000)
    assert ends.receive_all() == b"x" * 1000
    assert ends.client._received == b""


def test_a_peer_that_left_is_an_empty_read(ends: Ends) -> None:
    ends.server.close()
    assert ends.client.recv(10) == b""
