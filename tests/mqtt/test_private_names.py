"""What programs read and write of paho's private names: live, and obeyed where it is written."""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING, Any

import pytest
from paho.mqtt import client as paho

import glec_fast.mqtt as mqtt
from glec_fast import UnsupportedError
from support.gateway import TIMEOUT_S, eventually
from support.loopback import LoopbackServer
from support.wire_reference import PUBLISH, parse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from glec_fast.testbed.broker import Broker

V2 = paho.CallbackAPIVersion.VERSION2
CONNACK = b"\x20\x02\x00\x00"
BOTH = pytest.mark.parametrize("make", [paho.Client, mqtt.Client], ids=["paho", "ours"])
Make = "Callable[..., Any]"


class Silent(LoopbackServer):
    """Accepts each connection, and acknowledges nothing."""

    def __init__(self) -> None:
        super().__init__(self._keep)
        self.received: list[bytearray] = []
        self.socks: list[socket.socket] = []

    def _keep(self, sock: socket.socket) -> None:
        received = bytearray()
        self.socks.append(sock)
        self.received.append(received)
        sock.recv(4096)
        sock.sendall(CONNACK)
        while data := sock.recv(65_536):
            received += data

    def published(self, number: int = -1) -> list[int]:
        """Packet ids of what came on that connection."""
        return [packet.packet_id for packet in parse(bytes(self.received[number]))[0] if packet.kind == PUBLISH]


@pytest.fixture
def server() -> Iterator[Silent]:
    with Silent() as silent:
        yield silent


def own_loop(client: Any, port: int) -> None:
    """Connected, in a loop of the program's own that writes nothing yet."""
    client.on_socket_register_write = lambda *_: None
    client.connect("127.0.0.1", port)
    client.loop_write()
    assert eventually(lambda: client.loop_read() == 0 and client.is_connected())


@BOTH
def test_what_waits_is_a_mapping(make: Callable[..., Any]) -> None:
    client = make(V2)
    infos = [client.publish(f"t/{number}", b"x%d" % number, 1 + number % 2, retain=True) for number in range(5)]
    mids = [info.mid for info in infos]
    waiting = client._out_messages
    assert (len(waiting), list(waiting), list(waiting.keys()), bool(waiting)) == (5, mids, mids, True)
    assert mids[0] in waiting
    assert 0 not in waiting
    assert "x" not in waiting
    assert [message.mid for message in waiting.values()] == mids
    assert [mid for mid, _ in waiting.items()] == mids
    first, second = waiting[mids[0]], waiting.get(mids[1])
    assert (first.topic, first.payload, first.qos, first.retain, first.dup) == ("t/0", b"x0", 1, True, False)
    assert (second.topic, second.qos, second.info.mid) == ("t/1", 2, mids[1])
    assert waiting.get(999, "none") == "none"
    with pytest.raises(KeyError):
        waiting[999]
    assert waiting.pop(mids[0]).payload == b"x0"
    assert waiting.pop(mids[0], None) is None
    del waiting[mids[2]]
    with pytest.raises(KeyError):
        del waiting[mids[2]]
    assert list(waiting) == [mids[1], mids[3], mids[4]]
    assert waiting != {}
    assert next(iter(reversed(list(waiting)))) == mids[4]
    with client._out_message_mutex:
        waiting.clear()
    assert (len(waiting), waiting == {}, list(waiting.items())) == (0, True, [])
    assert client.publish("t", "x", 1).mid not in mids


@BOTH
def test_the_counters_are_live(make: Callable[..., Any], server: Silent) -> None:
    client = make(V2)
    own_loop(client, server.port)
    client._max_inflight_messages = 3
    for _ in range(5):
        client.publish("t", b"x" * 300, 1)
        client.publish("t", b"x" * 300, 0)
    assert (client._inflight_messages, len(client._out_messages), len(client._in_messages)) == (3, 5, 0)
    assert len(client._out_packet) == 8
    assert client._out_packet
    assert client._last_mid == 10 or make is mqtt.Client
    while client.want_write():
        client.loop_write()
    assert (len(client._out_packet), client._inflight_messages) == (0, 3)
    assert eventually(lambda: len(server.published()) == 8)
    client.disconnect()
    client.loop_write()


def test_packets_are_counted_where_the_socket_has_a_part_of_one(server: Silent) -> None:
    client = mqtt.Client(V2)

    def small(client: Any, userdata: Any, sock: Any) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)

    client.on_socket_open = small
    own_loop(client, server.port)
    sizes = [7, 130, 20_000, 3, 400_000, 1, 200_000]
    for size in sizes * 3:
        client.publish("t", b"x" * size, 0)
    counts = [len(client._out_packet)]
    while client.want_write():
        client.loop_write()
        counts.append(len(client._out_packet))
    assert (counts[0], counts[-1]) == (21, 0)
    assert counts == sorted(counts, reverse=True)
    assert len(set(counts)) > 2
    client.disconnect()
    client.loop_write()


@BOTH
def test_limits_that_are_written_are_kept(make: Callable[..., Any], server: Silent) -> None:
    """As ThingsBoard's SDK does."""
    client = make(V2)
    client._max_inflight_messages, client._max_queued_messages = 2, 5
    client.connect("127.0.0.1", server.port)
    client.loop_start()
    assert eventually(client.is_connected)
    codes = [client.publish("t", b"x", 1).rc for _ in range(8)]
    assert codes == [paho.MQTT_ERR_SUCCESS] * 5 + [paho.MQTT_ERR_QUEUE_SIZE] * 3
    assert eventually(lambda: len(server.published()) == 2)
    assert (client.max_inflight_messages, client.max_queued_messages) == (2, 5)
    client._max_inflight_messages = 4
    server.socks[-1].sendall(b"\x40\x02" + struct.pack("!H", server.published()[0]))
    assert eventually(lambda: len(server.published()) >= 3)
    client.disconnect()
    client.loop_stop() if make is mqtt.Client else setattr(client, "_thread_terminate", True)


@BOTH
def test_what_a_program_has_dropped_is_not_sent_again(make: Callable[..., Any], server: Silent) -> None:
    client = make(V2)

    def forget(client: Any, *_: Any) -> None:
        with client._out_message_mutex:
            client._out_packet.clear()
            client._out_messages.clear()
        client._in_messages.clear()

    client.on_disconnect = forget
    client.reconnect_delay_set(1, 1)
    client.connect("127.0.0.1", server.port)
    client.loop_start()
    assert eventually(client.is_connected)
    for _ in range(30):
        client.publish("t", b"x", 1)
    assert eventually(lambda: len(server.published()) == 20)
    server.cut()
    assert eventually(lambda: len(server.received) == 2 and client.is_connected())
    last = client.publish("t", b"last", 1)
    assert eventually(lambda: last.mid in server.published(1))
    assert server.published(1) == [last.mid]
    assert len(client._out_messages) == 1
    client._out_messages.clear()
    client.disconnect()
    client.loop_stop()


def test_a_message_that_a_program_kept_is_sent_with_its_id(server: Silent) -> None:
    client = mqtt.Client(V2)
    kept = paho.MQTTMessage(7, b"kept")
    kept.payload, kept.qos = b"x", 1
    client._out_messages[7] = kept
    with pytest.raises(ValueError, match="in use"):
        client._glec_outbox.restore(7, "t", b"", 1, False, None)
    assert [client.publish("t", "x", 1).mid for _ in range(8)] == [1, 2, 3, 4, 5, 6, 8, 9]
    client.connect("127.0.0.1", server.port)
    client.loop_start()
    assert eventually(lambda: bool(server.received) and len(server.published()) == 9)
    assert server.published()[0] == 7
    server.socks[0].sendall(b"\x40\x02\x00\x07")
    assert eventually(lambda: 7 not in client._out_messages)
    client._out_messages.clear()
    client.disconnect()
    client.loop_stop()


def test_with_a_store_it_counts_and_knows_what_is_queued(tmp_path: Path, broker: Broker) -> None:
    with mqtt.Client(V2, "device", store=tmp_path / "queue.db") as client:
        mids = [client.publish("t", "x", 1).mid for _ in range(3)]
        waiting = client._out_messages
        assert (len(waiting), [mid in waiting for mid in (*mids, 999)]) == (3, [True, True, True, False])
        assert list(waiting.values()) == []
        waiting.clear()
        assert len(waiting) == 3
        with pytest.raises(UnsupportedError):
            waiting[9] = paho.MQTTMessage(9, b"t")
        client.connect(broker.host, broker.port)
        client.loop_start()
        assert client.flush(TIMEOUT_S)
        assert eventually(lambda: len(waiting) == 0 and mids[0] not in waiting)


@BOTH
def test_a_program_s_own_handling_of_messages_is_used(make: Callable[..., Any], server: Silent) -> None:
    class Own(make):  # type: ignore[misc,valid-type]
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self.handled: list[bytes] = []

        def _handle_on_message(self, message: Any) -> None:
            self.handled.append(message.payload)
            super()._handle_on_message(message)

    client, got = Own(V2), []
    client.on_message = lambda client, userdata, message: got.append(message.payload)
    client.connect("127.0.0.1", server.port)
    client.loop_start()
    assert eventually(client.is_connected)
    server.socks[0].sendall(b"\x30\x04\x00\x01t0" + b"\x34\x06\x00\x01t\x00\x012" + b"\x62\x02\x00\x01")
    assert eventually(lambda: got == [b"0", b"2"])
    assert client.handled == got
    client.disconnect()
    client.loop_stop()


@BOTH
def test_packets_can_be_put_and_not_taken_back(make: Callable[..., Any], server: Silent) -> None:
    client = make(V2)
    with pytest.raises(IndexError):
        client._out_packet.popleft()
    own_loop(client, server.port)
    packet, info = b"\x30\x04\x00\x01tx", paho.MQTTMessageInfo(0)
    client._out_packet.append(
        {"command": 0x30, "mid": 0, "qos": 0, "pos": 0, "to_process": len(packet), "packet": packet, "info": info}
    )
    assert len(client._out_packet) == 1
    client.loop_write()
    assert eventually(lambda: bytes(server.received[0]) == packet)
    client.disconnect()
    client.loop_write()
