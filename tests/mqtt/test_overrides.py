"""Private methods of paho that a program has its own of: called where paho calls them, and what they keep is kept."""

from __future__ import annotations

import pickle
import socket
import threading
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest
from paho.mqtt import client as paho
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

import glec_fast.mqtt as mqtt
from support.gateway import TIMEOUT_S, eventually

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from glec_fast.testbed.broker import Broker

V2 = paho.CallbackAPIVersion.VERSION2
BOTH = pytest.mark.parametrize("make", [paho.Client, mqtt.Client], ids=["paho", "ours"])
VERSIONS = pytest.mark.parametrize("version", [paho.MQTTv311, paho.MQTTv5])
# With how often each is called in the life below, where that does not depend on how bytes are cut.
CALLED = {
    "_handle_publish": 3,
    "_handle_on_message": 3,
    "_handle_pubrel": 1,
    "_handle_pubackcomp": 2,
    "_handle_pubrec": 1,
    "_do_on_publish": 2,
    "_send_publish": 3,
    "_send_puback": 1,
    "_send_pubrec": 1,
    "_send_pubcomp": 1,
    "_handle_suback": 1,
    "_handle_connack": 1,
    "_send_connect": 1,
    "_thread_main": 1,
    "_packet_handle": 9,
    "_do_on_disconnect": 1,
    **dict.fromkeys(("_sock_recv", "_sock_send", "_packet_read", "_packet_write", "_loop", "_check_keepalive")),
}


def noting(make: Any, names: Any) -> Any:
    """A subclass that counts the calls of each."""

    class Own(make):  # type: ignore[misc,valid-type]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.counts: dict[str, int] = {}
            super().__init__(*args, **kwargs)

    def wrap(name: str) -> Callable[..., Any]:
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            self.counts[name] = self.counts.get(name, 0) + 1
            return getattr(super(Own, self), name)(*args, **kwargs)

        return method

    for name in names:
        setattr(Own, name, wrap(name))
    return Own


def connect(client: Any, broker: Broker) -> list[Any]:
    """With a subscription to t; what arrives is in the list."""
    got: list[Any] = []
    subscribed = threading.Event()
    client.on_subscribe = lambda *_: subscribed.set()
    client.on_message = lambda client, userdata, message: got.append((message.qos, message.payload))
    client.connect(broker.host, broker.port)
    client.loop_start()
    assert eventually(client.is_connected)
    client.subscribe("t", 2)
    assert subscribed.wait(TIMEOUT_S)
    return got


def live(client: Any, broker: Broker) -> list[Any]:
    got = connect(client, broker)
    for qos in (0, 1, 2):
        client.publish("t", b"x", qos).wait_for_publish(TIMEOUT_S)
    assert eventually(lambda: len(got) == 3)
    client._check_keepalive()
    # Behind the answers to what has arrived.
    client.publish("else", b"x", 1).wait_for_publish(TIMEOUT_S)
    client.disconnect()
    client.loop_stop()
    return got


@VERSIONS
@BOTH
def test_each_is_called(make: Any, version: int, broker: Broker) -> None:
    client = noting(make, CALLED)(V2, protocol=version)
    told: list[int] = []
    client.on_publish = lambda client, userdata, mid, reason, properties: told.append(int(reason.value))
    assert live(client, broker) == [(qos, b"x") for qos in (0, 1, 2)]
    assert told == [0, 0, 0, 0] if version == paho.MQTTv311 else len(told) == 4
    # What is published to another topic adds one to each of these.
    last = {"_handle_pubackcomp": 1, "_do_on_publish": 1, "_send_publish": 1, "_packet_handle": 1}
    counts = {name: client.counts.get(name, 0) - last.get(name, 0) for name in CALLED}
    assert {name: count for name, count in counts.items() if CALLED[name]} == {
        name: count for name, count in CALLED.items() if count
    }
    assert all(counts.values()), counts


@pytest.mark.parametrize("name", sorted(CALLED))
def test_one_alone_changes_nothing_for_the_others(name: str, broker: Broker, tmp_path: Path) -> None:
    for store in (None, tmp_path / "queue.db"):
        client = noting(mqtt.Client, [name])(V2, f"own{name}", store=store)
        assert sorted(live(client, broker)) == [(qos, b"x") for qos in (0, 1, 2)]
        assert client.counts.get(name) or store is not None
        client.close()


@BOTH
def test_what_a_program_keeps_for_itself_is_neither_told_nor_acknowledged(make: Any, persistent_broker: Broker) -> None:
    class Choosy(make):  # type: ignore[misc,valid-type]
        seen: list[bytes]

        def _handle_publish(self) -> Any:
            packet = bytes(self._in_packet["packet"])
            self.seen.append(packet)
            if packet.endswith(b"secret"):
                return paho.MQTT_ERR_SUCCESS
            return super()._handle_publish()

    client = Choosy(V2, "choosy", clean_session=False)
    client.seen = []
    got = connect(client, persistent_broker)
    for payload in (b"secret", b"open", b"secret"):
        client.publish("t", payload, 1).wait_for_publish(TIMEOUT_S)
    assert eventually(lambda: len(client.seen) == 3)
    assert got == [(1, b"open")]
    assert client.seen[0][:3] == b"\x00\x01t"
    client.disconnect()
    client.loop_stop()
    # The broker has them still.
    again = mqtt.Client(V2, "choosy", clean_session=False)
    kept: list[bytes] = []
    again.on_message = lambda client, userdata, message: kept.append(message.payload)
    again.connect(persistent_broker.host, persistent_broker.port)
    again.loop_start()
    assert eventually(lambda: kept == [b"secret", b"secret"])
    again.close()


@BOTH
def test_an_acknowledgement_can_be_put_off(make: Any, broker: Broker) -> None:
    class Slow(make):  # type: ignore[misc,valid-type]
        owed: list[int]

        def _send_puback(self, mid: int) -> Any:
            self.owed.append(mid)
            return paho.MQTT_ERR_SUCCESS

    client = Slow(V2)
    client.owed = []
    got = connect(client, broker)
    client.publish("t", b"1", 1)
    assert eventually(lambda: len(client.owed) == 1 and got == [(1, b"1")])
    super(Slow, client)._send_puback(client.owed[0])
    client.publish("t", b"2", 1)
    assert eventually(lambda: got == [(1, b"1"), (1, b"2")])
    client.disconnect()
    client.loop_stop()


@BOTH
def test_what_is_not_let_be_forgotten_goes_again(make: Any, start_broker: Any) -> None:
    """As where a program acts as if an acknowledgement were lost."""
    broker = start_broker(persistence=True)
    client = make(V2, "forgetful")
    client.reconnect_delay_set(1, 1)
    got = connect(client, broker)
    told, own = [], client._do_on_publish
    client._do_on_publish = lambda mid, reason, properties: (told.append(mid), paho.MQTT_ERR_SUCCESS)[1]
    kept = client.publish("t", b"kept", 1).mid
    assert eventually(lambda: told == [kept] and got == [(1, b"kept")])
    assert kept in client._out_messages
    assert client._out_messages[kept].payload == b"kept"
    client._do_on_publish = own
    client.publish("t", b"forgotten", 1).wait_for_publish(TIMEOUT_S)
    assert list(client._out_messages) == [kept]
    again = threading.Event()
    client.on_connect = lambda client, *_: client.subscribe("t", 2)
    client.on_publish = lambda client, userdata, mid, reason, properties: again.set() if mid == kept else None
    client._sock.shutdown(socket.SHUT_RDWR)
    assert again.wait(TIMEOUT_S)
    assert eventually(lambda: kept not in client._out_messages)
    client.disconnect()
    client.loop_stop()


@BOTH
def test_one_of_an_object_and_one_by_mock(make: Any, broker: Broker) -> None:
    client = make(V2)
    handle, handled = client._handle_on_message, []
    client._handle_on_message = lambda message: (handled.append(message.payload), handle(message))
    with mock.patch.object(make, "_handle_publish", autospec=True, side_effect=make._handle_publish) as publish:
        assert len(live(client, broker)) == 3
    assert handled == [b"x"] * 3
    assert publish.call_count == 3
    assert publish.call_args == mock.call(client)


@BOTH
def test_bytes_can_be_counted(make: Any, broker: Broker) -> None:
    class Metered(make):  # type: ignore[misc,valid-type]
        sent_bytes = received_bytes = 0

        def _sock_send(self, data: Any) -> int:
            sent = super()._sock_send(data)
            self.sent_bytes += sent
            return int(sent)

        def _sock_recv(self, limit: int) -> bytes:
            data = super()._sock_recv(limit)
            self.received_bytes += len(data)
            return bytes(data)

    client = Metered(V2)
    got = connect(client, broker)
    client.publish("t", bytes(300_000), 1).wait_for_publish(TIMEOUT_S)
    assert eventually(lambda: len(got) == 1)
    assert client.sent_bytes > 300_000
    assert client.received_bytes > 300_000
    client.disconnect()
    client.loop_stop()


def test_what_waits_can_be_handed_to_another_process() -> None:
    client = mqtt.Client(V2, protocol=paho.MQTTv5)
    properties = Properties(PacketTypes.PUBLISH)
    properties.UserProperty = ("a", "b")
    mid = client.publish("t/1", b"x", 1, True, properties).mid
    shown = client._out_messages[mid]
    (dropped,) = client.drop_out_messages()
    for message in (shown, dropped):
        again = pickle.loads(pickle.dumps(message))
        assert (again.topic, again.payload, again.qos, again.retain, again.info.mid) == ("t/1", b"x", 1, True, mid)
    assert pickle.loads(pickle.dumps(shown)).properties.json() == shown.properties.json()


def test_a_mock_of_the_class_has_its_names(broker: Broker) -> None:
    """But for the client, which its `publish` is not given: docs/differences.md."""
    with mock.patch("glec_fast.mqtt.Client", autospec=True) as mocked:
        client = mqtt.Client(V2)
        client.publish("t", "x", qos=1)
        client.connect(broker.host)
        with pytest.raises(AttributeError):
            client.publsh("t")  # type: ignore[attr-defined]
        with pytest.raises(TypeError):
            client.subscribe("t", 1, 2, 3, 4)  # type: ignore[call-arg]
    assert mocked.mock_calls[0] == mock.call(V2)
    real = mqtt.Client(V2)
    with mock.patch.object(mqtt.Client, "publish", autospec=True) as publish:
        real.publish("t", "x")
    publish.assert_called_once_with("t", "x")
