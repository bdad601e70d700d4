"""`Client.publish` as a call of C: who writes the bytes, in which order, and what is left behind of a message."""

from __future__ import annotations

import gc
import socket
import threading
import tracemalloc
import weakref
from typing import TYPE_CHECKING, Any

import pytest
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion

from glec_fast import Client
from support.gateway import TIMEOUT_S
from support.peer import PUBACK_OF_1, Peer, connected
from support.wire_reference import PUBLISH

if TYPE_CHECKING:
    from glec_fast.testbed.broker import Broker

CONNECT = b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x00\x00\x00"
# The caller writes once this much waits for the socket.
WORTH_WRITING_BYTES = 65_536


def test_a_burst_is_written_by_its_caller_where_the_network_thread_is_busy(peer: Peer) -> None:
    entered, may_return = threading.Event(), threading.Event()

    def on_publish(*_: Any) -> None:
        entered.set()
        may_return.wait(TIMEOUT_S)

    with connected(peer.port) as client:
        client.on_publish = on_publish
        client.publish("t", b"first", 1)
        assert peer.has_received(len(b"first"))
        peer.sock.sendall(PUBACK_OF_1)
        assert entered.wait(TIMEOUT_S)
        try:
            for count in peer.rounds():
                if len(peer.received) >= 4 * WORTH_WRITING_BYTES:
                    break
                client.publish("t", b"%0300d" % count)
        finally:
            may_return.set()
    peer.close()
    payloads = [packet.body[-300:] for packet in peer.packets() if packet.kind == PUBLISH and packet.flags == 0]
    assert payloads == [b"%0300d" % number for number in range(count)]


def test_without_a_loop_each_call_writes_its_message(peer: Peer) -> None:
    client = Client(CallbackAPIVersion.VERSION2)
    client.connect("127.0.0.1", peer.port)
    assert peer.accepted.wait(TIMEOUT_S)
    for number in range(1, 6):
        assert client.publish("t", b"x").rc == MQTTErrorCode.MQTT_ERR_SUCCESS
        assert peer.has_received(number * 6)
    client.disconnect()


def test_a_loop_that_was_stopped_leaves_the_writing_to_the_calls(peer: Peer) -> None:
    with connected(peer.port) as client:
        client.publish("t", b"x")
        assert peer.has_received(6)
        client.loop_stop()
        for number in range(2, 6):
            client.publish("t", b"x")
            assert peer.has_received(number * 6)


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_a_message_that_is_finished_leaves_nothing_behind(broker: Broker, qos: int) -> None:
    with connected(broker.port) as client:
        client.publish("t", b"warm up", qos).wait_for_publish(TIMEOUT_S)
        handles = [client.publish("t", b"x" * 300, qos) for _ in range(500)]
        client.publish("t", b"behind them", 1).wait_for_publish(TIMEOUT_S)
        references = [weakref.ref(handle) for handle in handles]
        del handles
        client.publish("t", b"the last that was settled", 2).wait_for_publish(TIMEOUT_S)
        gc.collect()
        assert [reference for reference in references if reference() is not None] == []
        assert len(client._out_messages) == 0


def test_memory_does_not_grow_with_what_was_published(broker: Broker) -> None:
    with connected(broker.port) as client:

        def publish_thousands() -> int:
            for number in range(3000):
                client.publish("t", b"x" * 300, number % 3)
            client.publish("t", b"last", 2).wait_for_publish(TIMEOUT_S)
            gc.collect()
            return tracemalloc.get_traced_memory()[0]

        tracemalloc.start()
        try:
            publish_thousands()
            first = publish_thousands()
            assert publish_thousands() - first < 100_000
        finally:
            tracemalloc.stop()


def test_all_packet_ids_may_wait_and_one_more_is_refused() -> None:
    client = Client(CallbackAPIVersion.VERSION2)
    handles = [client.publish("t", b"", 1) for _ in range(65_535)]
    assert {handle.mid for handle in handles} == set(range(1, 65_536))
    assert {handle.rc for handle in handles} == {MQTTErrorCode.MQTT_ERR_NO_CONN}
    refused = client.publish("t", b"", 1)
    assert refused.rc == MQTTErrorCode.MQTT_ERR_QUEUE_SIZE
    with pytest.raises(ValueError, match="ERR_QUEUE_SIZE"):
        refused.wait_for_publish(0)
    assert len(client.drop_out_messages()) == 65_535
    assert client.publish("t", b"", 1).rc == MQTTErrorCode.MQTT_ERR_NO_CONN


@pytest.mark.parametrize("protocol", [MQTTProtocolVersion.MQTTv311, MQTTProtocolVersion.MQTTv5])
def test_a_packet_larger_than_mqtt_carries_is_refused_at_the_door(protocol: MQTTProtocolVersion) -> None:
    client = Client(CallbackAPIVersion.VERSION2, protocol=protocol)
    # A payload of that size may be; with the topic it is too much (MQTT 2.2.3).
    with pytest.raises(ValueError, match="too large"):
        client.publish("t", bytes(268_435_455 - 3), 1)
    assert len(client._out_messages) == 0


@pytest.mark.parametrize("qos", [0, 1])
def test_what_left_as_the_connection_ended_is_told_to_whoever_settles_next(qos: int) -> None:
    """Another thread ends the connection between two steps of the one that wrote or read."""
    client = Client(CallbackAPIVersion.VERSION2)
    outbox = client._glec_outbox
    outbox.put_packet(CONNECT, first=True)
    outbox.resume(session_present=False, receive_maximum=65_535)
    with socket.socket() as sock:
        # One that others would write to.
        client._sock, client._thread = sock, threading.Thread()
        handle = client.publish("t", b"x", qos)
        client._sock = client._thread = None
    outbox.end_write(len(outbox.begin_write(1_000_000)))
    if qos:
        with outbox.lock:
            outbox.session.on_acks(PUBACK_OF_1)
    assert outbox.park() == []
    assert outbox.is_to_settle
    with outbox.lock:
        assert outbox.settle() == [handle]
        assert outbox.settle() == []
    assert not outbox.is_to_settle


@pytest.mark.parametrize("qos", [1, 2])
def test_a_connection_that_is_greeted_again_sends_nothing_twice(peer: Peer, qos: int) -> None:
    """An exception behind the greeting has CONNACK handled once more."""
    client = Client(CallbackAPIVersion.VERSION2)
    client.connect("127.0.0.1", peer.port)
    assert peer.accepted.wait(TIMEOUT_S)
    for number in range(3):
        client._glec_outbox.greet(session_present=False, receive_maximum=65_535)
        client.publish("t", b"%d" % number, qos)
    while not client.is_connected() or client.want_write():
        client.loop(0.1)
    client.disconnect()
    peer.close()
    published = [packet.body[-1:] for packet in peer.packets() if packet.kind == PUBLISH]
    assert published == [b"0", b"1", b"2"]
