"""Acknowledgements of a small window: `Link.flow` answers them and takes the next without a turn of the loop."""

from __future__ import annotations

import socket
import ssl
import struct
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from paho.mqtt.enums import CallbackAPIVersion

from glec_fast import Client
from glec_fast.engine.loop import Loop
from support.gateway import TIMEOUT_S
from support.peer import CONNACK
from support.wire_reference import PUBLISH, parse

if TYPE_CHECKING:
    from collections.abc import Iterator

COUNT = 2000
DISCONNECT = 14
RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Server:
    """Acknowledges QoS 1 as it comes, one read after the other; `hold` and `end` change that from then on."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.reads = self.connections = 0
        self.payloads: list[bytes] = []
        self.kinds: list[int] = []
        self.changed = threading.Condition()
        # The connection ends, in that way, once so many messages have come.
        self.ends_at, self.resets = COUNT + 1, False
        self.is_holding = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                self.connections += 1
                with sock, suppress(ConnectionResetError):
                    self._serve(sock)

    def _serve(self, sock: socket.socket) -> None:
        sock.recv(4096)
        sock.sendall(CONNACK)
        rest = b""
        while data := sock.recv(65_536):
            packets, rest = parse(rest + data)
            self.reads += 1
            published = [packet for packet in packets if packet.kind == PUBLISH]
            with self.changed:
                self.payloads += [each.body[5 if each.packet_id else 3 :] for each in published]
                self.kinds += [packet.kind for packet in packets]
                self.changed.notify_all()
            if len(self.payloads) >= self.ends_at:
                self.ends_at = COUNT * 10
                if self.resets:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
                return
            if not self.is_holding:
                ids = [each.packet_id for each in published if each.packet_id]
                sock.sendall(b"".join(b"\x40\x02" + packet_id.to_bytes(2, "big") for packet_id in ids))

    def has(self, count: int) -> bool:
        with self.changed:
            return self.changed.wait_for(lambda: len(set(self.payloads)) >= count, TIMEOUT_S)

    def close(self) -> None:
        # What accepts is not ended by a close.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """An entry for each turn of the loop."""
    done: list[None] = []
    turn = Loop.turn

    def counted(loop: Loop, timeout_s: float) -> object:
        done.append(None)
        return turn(loop, timeout_s)

    monkeypatch.setattr(Loop, "turn", counted)
    return done


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    """With COUNT messages of QoS 1 that wait for its connection."""
    client = Client(CallbackAPIVersion.VERSION2, client_id="c", clean_session=False)
    client.reconnect_delay_set(0.01, 0.01)  # type: ignore[arg-type]
    for number in range(COUNT):
        client.publish("t", str(number), 1)
    yield client
    client.disconnect()
    client.loop_stop()


def begin(client: Client, server: Server) -> None:
    client.connect("127.0.0.1", server.port)
    client.loop_start()


def numbers(count: int) -> list[bytes]:
    return [str(number).encode() for number in range(count)]


def test_a_stream_needs_few_turns(client: Client, server: Server, turns: list[None]) -> None:
    begin(client, server)
    assert server.has(COUNT)
    assert server.payloads == numbers(COUNT)
    assert server.reads >= COUNT / 20
    assert len(turns) < server.reads / 2


@pytest.mark.parametrize("resets", [False, True])
def test_the_connection_may_end_in_it(client: Client, server: Server, resets: bool) -> None:
    ended: list[object] = []
    client.on_disconnect = lambda *arguments: ended.append(arguments[3])
    server.ends_at, server.resets = COUNT // 2, resets
    begin(client, server)
    assert server.has(COUNT)
    assert server.connections == 2
    assert len(ended) == 1
    assert list(dict.fromkeys(server.payloads)) == numbers(COUNT)


class EndsAsTLS:
    """As `sock`; where that ends, it does so as a connection of TLS that is not closed in order."""

    def __init__(self, sock: Any) -> None:
        self._sock = sock
        self.ends = 0

    def recv(self, limit: int) -> bytes:
        data: bytes = self._sock.recv(limit)
        if not data:
            self.ends += 1
            raise ssl.SSLEOFError(8, "EOF occurred in violation of protocol")
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


def test_its_end_is_not_read_for_ever(client: Client, server: Server) -> None:
    socks: list[EndsAsTLS] = []

    def on_socket_open(*_: object) -> None:
        client._sock = EndsAsTLS(client._sock)
        socks.append(client._sock)

    client.on_socket_open = on_socket_open
    server.ends_at = COUNT // 2
    begin(client, server)
    assert server.has(COUNT)
    # Where it was found, and by the loop, which ends the connection.
    assert socks[0].ends <= 2


def test_who_publishes_meanwhile_does_not_wait_for_it(client: Client, server: Server) -> None:
    begin(client, server)
    assert server.has(COUNT // 2)
    client.publish("t", b"meanwhile", 0)
    with server.changed:
        assert server.changed.wait_for(lambda: b"meanwhile" in server.payloads, TIMEOUT_S)


def test_it_can_be_left_while_nothing_is_answered(client: Client, server: Server) -> None:
    server.is_holding = True
    begin(client, server)
    assert server.has(20)
    assert client.disconnect() == 0
    with server.changed:
        assert server.changed.wait_for(lambda: DISCONNECT in server.kinds, TIMEOUT_S)


def test_callbacks_come_as_they_do_without(client: Client, server: Server) -> None:
    published: list[int] = []
    client.on_publish = lambda _client, _data, mid, *_: published.append(mid)
    begin(client, server)
    assert server.has(COUNT)
    client.disconnect()
    client.loop_stop()
    assert published == sorted(published)
    assert len(published) >= COUNT - 20
