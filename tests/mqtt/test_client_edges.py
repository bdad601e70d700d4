"""Rare moments of a client in memory: what another thread, a callback or a caller's mistake may do, and when."""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode

from glec_fast import Client
from glec_fast.mqtt.client import parts_of
from glec_fast.outbox.handle import PublishHandle
from support.gateway import TIMEOUT_S, eventually
from support.peer import CONNACK, PUBACK_OF_1, Peer, connected
from support.wire_reference import parse

if TYPE_CHECKING:
    from glec_fast.testbed.broker import Broker

CONNECT = 1


class Busy:
    """Keeps the network thread in on_publish, so that callers write."""

    def __init__(self, client: Client, server: Peer) -> None:
        self._client, self._server = client, server
        self._entered, self._may_return = threading.Event(), threading.Event()

    def __enter__(self) -> None:
        self._client.on_publish = self._on_publish
        self._client.publish("t", b"first", 1)
        assert self._server.has_received(len(b"first"))
        self._server.sock.sendall(PUBACK_OF_1)
        assert self._entered.wait(TIMEOUT_S)

    def __exit__(self, *_: object) -> None:
        self._may_return.set()

    def _on_publish(self, *_: Any) -> None:
        self._entered.set()
        self._may_return.wait(TIMEOUT_S)


def test_what_its_caller_wrote_before_the_connection_ended_has_left(peer: Peer) -> None:
    """The network thread hears of the end before it looks at what was written."""
    handles = []
    with connected(peer.port, reconnect_on_failure=False) as client:
        ended = threading.Event()
        client.on_disconnect = lambda *_: ended.set()
        session = client._glec_outbox.session
        with Busy(client, peer):
            for _ in peer.rounds():
                handles.append(client.publish("t", bytes(300)))
                if not session.unsent_bytes:
                    break
            peer.sock.shutdown(socket.SHUT_RDWR)
        assert ended.wait(TIMEOUT_S)
    assert {handle.rc for handle in handles} == {MQTTErrorCode.MQTT_ERR_SUCCESS}
    assert all(handle.is_published() for handle in handles)


def test_a_disconnect_that_another_thread_writes_ends_the_connection(peer: Peer) -> None:
    """The server need not close it."""
    with connected(peer.port) as client:
        ended = threading.Event()
        client.on_disconnect = lambda *_: ended.set()
        writer = parts_of(client).writer
        write = writer.write_some

        def write_after_disconnect() -> Any:
            if threading.current_thread() is threading.main_thread():
                other = threading.Thread(target=client.disconnect)
                other.start()
                other.join()
            return write()

        with Busy(client, peer):
            writer.write_some = write_after_disconnect  # type: ignore[method-assign]
            for _ in peer.rounds():
                client.publish("t", bytes(300))
                if client._glec_outbox.session.has_last:
                    break
        assert ended.wait(TIMEOUT_S)


def test_nothing_goes_before_connect() -> None:
    """A thread that publishes just then, here on_socket_open (MQTT 3.1)."""
    results: list[Any] = []
    client = Client(CallbackAPIVersion.VERSION2)

    def on_socket_open(*_: Any) -> None:
        results.extend((client.publish("t", b"x").rc, client.subscribe("t")[0], client.ack(1, 1)))

    client.on_socket_open = on_socket_open
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client.connect(*listener.getsockname())
        server, _ = listener.accept()
        with server:
            assert [packet.kind for packet in parse(server.recv(4096))[0]] == [CONNECT]
            client.disconnect()
    assert results[:2] == [MQTTErrorCode.MQTT_ERR_NO_CONN] * 2


class Index:
    """A number of the program's own."""

    def __init__(self, value: int) -> None:
        self._value = value

    def __lt__(self, other: int) -> bool:
        return self._value < other

    def __gt__(self, other: int) -> bool:
        return self._value > other

    def __index__(self) -> int:
        return self._value


@pytest.mark.parametrize("packet", [b"\x50\x02\x12\x34", b"\x32\x06\x00\x01t\x00\x01x", b"\x34\x06\x00\x01t\x00\x01x"])
def test_a_server_that_does_not_read_our_answers_gets_no_memory_for_them(packet: bytes) -> None:
    """PUBREC of an unknown id, and PUBLISH of both QoS, without end."""
    client = Client(CallbackAPIVersion.VERSION2, reconnect_on_failure=False)
    ended = threading.Event()
    client.on_disconnect = lambda *_: ended.set()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        # That the system takes fewer of the answers, at either end.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        client.on_socket_open = lambda *given: given[-1].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 12)
        client.connect(*listener.getsockname())
        client.loop_start()
        server, _ = listener.accept()
        with server:
            server.recv(4096)
            server.sendall(CONNACK)
            with pytest.raises(ConnectionError):
                server.sendall(packet * 4_000_000)
        assert ended.wait(TIMEOUT_S)
        client.loop_stop()


def test_a_qos_is_a_whole_number() -> None:
    client = Client(CallbackAPIVersion.VERSION2)
    with pytest.raises(TypeError):
        client.publish("t", b"x", 1.5)  # type: ignore[arg-type]
    handle = client.publish("t", b"x", Index(1))  # type: ignore[arg-type]
    assert type(handle.qos) is int
    assert len(client._out_messages) == 1


def test_what_is_given_to_publish_may_change_afterwards() -> None:
    client = Client(CallbackAPIVersion.VERSION2)
    payload = bytearray(b"as it was")
    client.publish("t", payload, 1)
    payload[:] = b"changed"
    assert [message.payload for message in client.drop_out_messages()] == [b"as it was"]


def test_dropped_messages_give_their_ids_back_with_the_session() -> None:
    client = Client(CallbackAPIVersion.VERSION2)
    outbox = client._glec_outbox
    for qos in (1, 2):
        outbox.resume(False, 65_535)
        for _ in range(5):
            client.publish("t", b"x", qos)
        client.drop_out_messages()
        outbox.park()
    outbox.resume(False, 65_535)
    assert len({outbox.reserve_packet_id() for _ in range(65_535)} - {0}) == 65_535


def test_a_window_above_the_packet_ids_is_all_of_them() -> None:
    """As in paho, which knows no limit."""
    client = Client(CallbackAPIVersion.VERSION2)
    client.max_inflight_messages_set(100_000)
    assert client.max_inflight_messages == 100_000
    assert client._glec_outbox.session.window == 65_534


@pytest.mark.parametrize("kept", [0, 1])
def test_nothing_is_kept_of_a_publish_that_raises(kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A class of handles that refuses its last step stands in for memory that runs out there."""
    client = Client(CallbackAPIVersion.VERSION2)
    outbox = client._glec_outbox
    client.max_inflight_messages_set(1)
    outbox.resume(session_present=False, receive_maximum=65_535)
    handles = [client.publish("t", b"x", 1) for _ in range(kept)]
    values: list[Any] = []

    def refuse(_handle: Any, value: Any) -> None:
        values.append(value)
        # The first is the one that makes it.
        if len(values) > 1:
            raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(PublishHandle, "rc", property(lambda _: MQTTErrorCode.MQTT_ERR_SUCCESS, refuse))
        with pytest.raises(MemoryError):
            client.publish("t", b"y", 1)
    assert len(outbox) == kept
    handles.append(client.publish("t", b"z", 1))
    payloads = [packet.body[-1:] for packet in parse(outbox.session.peek(1_000_000))[0]]
    assert payloads == ([b"x"] if kept else [b"z"])


@pytest.mark.parametrize("by", ["loop", "parts"])
def test_a_connection_that_exceptions_left_without_connect_is_ended(broker: Broker, by: str) -> None:
    """One cut in before CONNECT was put, the next before the connection was closed for it."""

    class Cut(KeyboardInterrupt):
        pass

    class CutTwice(Client):
        cuts = 2

        def _cut(self) -> None:
            if self.cuts:
                self.cuts -= 1
                raise Cut

        def _packet_queue(self, *given: Any) -> Any:
            self._cut()
            return super()._packet_queue(*given)

        def _sock_close(self) -> None:
            if self._sock is not None:
                self._cut()
            super()._sock_close()

    client = CutTwice(CallbackAPIVersion.VERSION2, "cut", clean_session=False)
    with pytest.raises(Cut):
        client.connect(broker.host, broker.port)
    assert client.socket() is not None, "the control"
    published: list[int] = []
    client.on_publish = lambda _client, _data, mid, *_: published.append(mid)
    client.publish("t", "x", 1)

    def turn() -> bool:
        if client.socket() is None:
            client.reconnect()
        elif by == "loop":
            client.loop(0.01)
        else:
            client.loop_misc()
            client.loop_read()
            client.loop_write()
        return bool(published)

    assert eventually(turn)
    client.close()
