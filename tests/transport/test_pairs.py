"""A system call and its note: what comes between the two, from another thread or as an exception."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode

from glec_fast import Client
from glec_fast.mqtt.client import parts_of
from support.gateway import TIMEOUT_S
from support.peer import Peer
from support.tapped_socket import TappedSocket
from support.wire_reference import PUBLISH

if TYPE_CHECKING:
    from collections.abc import Iterator

PUBACK_OF_1, PUBLISH_IN = b"\x40\x02\x00\x01", b"\x32\x06\x00\x01t\x00\x01x"
# Long enough for another thread that does not wait for us.
MEANWHILE_S = 0.3


class CutError(Exception):
    """What cuts in."""


@pytest.fixture
def peer() -> Iterator[Peer]:
    peer = Peer()
    yield peer
    peer.close()


@pytest.fixture
def client(peer: Peer) -> Iterator[Client]:
    client = Client(CallbackAPIVersion.VERSION2, client_id="c", clean_session=False)
    client.connect("127.0.0.1", peer.port)
    while not client.is_connected():
        client.loop(1)
    yield client
    client.disconnect()


def test_an_acknowledgement_may_come_before_its_message_is_noted(peer: Peer, client: Client) -> None:
    """Another thread reads it while the one that has sent the message has not told the session."""

    def acknowledge(_sent: bytes) -> None:
        client._sock = sock
        peer.sock.sendall(PUBACK_OF_1)
        reader.start()
        reader.join(MEANWHILE_S)

    sock = client._sock
    reader = threading.Thread(target=client.loop, args=(TIMEOUT_S,))
    client._sock = TappedSocket(sock, acknowledge)
    handle = client.publish("t", b"x", 1)
    reader.join(TIMEOUT_S)
    assert handle.is_published()
    assert client.is_connected()
    assert client._glec_outbox.session.in_flight == 0


def test_the_end_of_a_connection_waits_for_the_note_of_what_is_sent(peer: Peer, client: Client) -> None:
    def end_meanwhile(_sent: bytes) -> None:
        ending.start()
        ending.join(MEANWHILE_S)

    ending = threading.Thread(target=client._sock_close)
    client._sock = TappedSocket(client._sock, end_meanwhile)
    handle = client.publish("t", b"x")
    ending.join(TIMEOUT_S)
    assert handle.rc == MQTTErrorCode.MQTT_ERR_SUCCESS, "it has left"
    assert handle.is_published()


def test_an_acknowledgement_waits_for_whoever_is_in_the_session(peer: Peer, client: Client) -> None:
    outbox = client._glec_outbox
    handle = client.publish("t", b"x", 1)
    reader = threading.Thread(target=client.loop, args=(TIMEOUT_S,))
    with outbox.lock:
        peer.sock.sendall(PUBACK_OF_1)
        reader.start()
        reader.join(MEANWHILE_S)
        assert outbox.session.in_flight == 1
    reader.join(TIMEOUT_S)
    assert handle.is_published()


def test_a_connection_of_tls_is_read_and_written_by_one_thread_at_a_time(peer: Peer, client: Client) -> None:
    """What OpenSSL keeps of it is guarded by nothing else."""
    sent_meanwhile: list[int] = []
    link = parts_of(client).dispatcher.link
    link.begin(is_tls=True)
    link.lacks_connect = False
    sock = client._sock

    class Reading(TappedSocket):
        def recv(self, limit_bytes: int) -> bytes:
            writer.start()
            writer.join(MEANWHILE_S)
            sent_meanwhile.append(len(sent))
            client._sock = sock
            return bytes(sock.recv(limit_bytes))

    sent: list[bytes] = []
    client._sock = Reading(sock, sent.append)
    writer = threading.Thread(target=client.publish, args=("t", b"x"))
    peer.sock.sendall(PUBLISH_IN)
    client.loop_read()
    writer.join(TIMEOUT_S)
    assert sent_meanwhile == [0]
    assert not writer.is_alive()
    assert client._glec_outbox.session.sendable_bytes == 0


class TestTorn:
    @staticmethod
    def cut(_data: bytes) -> None:
        raise CutError

    def test_what_left_without_a_note_does_not_leave_again(self, peer: Peer, client: Client) -> None:
        """Nor does anything behind it: on a connection whose end nobody knows there is nothing to be said."""
        sock = client._sock
        client._sock = TappedSocket(sock, self.cut)
        with pytest.raises(CutError):
            client.publish("t", b"first", 1)
        client._sock = sock
        client.on_disconnect = lambda *arguments: ended.append(arguments)
        ended: list[Any] = []
        client.publish("t", b"second", 1)
        assert client.socket() is None
        assert len(ended) == 1
        peer.close()
        assert [packet.body for packet in peer.packets() if packet.kind == PUBLISH] == [b"\0\1t\0\1first"]

    @pytest.mark.parametrize("call", ["loop", "loop_read", "loop_write", "loop_misc"])
    def test_the_loop_ends_the_connection(self, peer: Peer, client: Client, call: str) -> None:
        sock = client._sock
        client._sock = TappedSocket(sock, self.cut)
        with pytest.raises(CutError):
            client.publish("t", b"x", 1)
        client._sock = sock
        assert getattr(client, call)() == MQTTErrorCode.MQTT_ERR_CONN_LOST
        assert client.socket() is None

    def test_nothing_is_read_behind_a_gap(self, peer: Peer, client: Client) -> None:
        received = []
        client.on_message = lambda _client, _data, message: received.append(message.payload)
        sock = client._sock

        class Cut(TappedSocket):
            def recv(self, limit_bytes: int) -> bytes:
                sock.recv(limit_bytes)
                raise CutError

        client._sock = Cut(sock, lambda _sent: None)
        peer.sock.sendall(PUBLISH_IN[:4])
        with pytest.raises(CutError):
            client.loop(TIMEOUT_S)
        client._sock = sock
        peer.sock.sendall(PUBLISH_IN[4:] + PUBLISH_IN)
        assert client.loop(TIMEOUT_S) == MQTTErrorCode.MQTT_ERR_CONN_LOST
        assert received == []

    def test_a_pull_that_is_cut_short_ends_the_connection(self, peer: Peer, client: Client) -> None:
        def cut() -> None:
            raise CutError

        with pytest.raises(CutError):
            parts_of(client).dispatcher.link.do(cut)
        assert client.loop(0) == MQTTErrorCode.MQTT_ERR_CONN_LOST
        assert client.socket() is None


def test_a_handler_that_publishes_within_a_write_leaves_it_whole(peer: Peer, client: Client) -> None:
    """It is told from one that was cut short: the write goes on, and takes the rest along."""
    handles = []

    def publish_too(_sent: bytes) -> None:
        if len(handles) < 3:
            handles.append(client.publish("t", b"within", 1))

    client._sock = TappedSocket(client._sock, publish_too)
    client.publish("t", b"first", 1)
    while client.want_write():
        client.loop_write()
    client.disconnect()
    peer.close()
    sent = [packet.body[5:] for packet in peer.packets() if packet.kind == PUBLISH]
    assert sent == [b"first", *[b"within"] * 3]
