"""Behaviour in which paho has a fault, and ours is right; docs/differences.md has the rows."""

from __future__ import annotations

import copy
import pickle
import socket
import struct
import threading
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
from paho.mqtt import client as paho
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

import glec_fast.mqtt as mqtt
from glec_fast.engine import network_thread
from support.differential import AS_2_2
from support.gateway import TIMEOUT_S, eventually
from support.loopback import LoopbackServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from glec_fast.testbed.broker import Broker

V2 = paho.CallbackAPIVersion.VERSION2
CONNACK, CONNACK_5 = b"\x20\x02\x00\x00", b"\x20\x03\x00\x00\x00"


class Scripted(LoopbackServer):
    """Answers each connection with `answers`, the last of them again and again, then reads on. `heard`: what came."""

    def __init__(self, *answers: bytes, address: str = "127.0.0.1", closes: bool = False) -> None:
        super().__init__(self._answer, address)
        self._answers, self._closes = answers, closes
        self.heard: list[bytearray] = []
        self.times_s: list[float] = []

    def _answer(self, sock: socket.socket) -> None:
        self.times_s.append(time.monotonic())
        heard = bytearray()
        self.heard.append(heard)
        answer = self._answers[min(len(self.heard), len(self._answers)) - 1]
        heard += sock.recv(4096)
        sock.sendall(answer)
        while not self._closes and (data := sock.recv(4096)):
            heard += data


@pytest.fixture
def serve() -> Iterator[Callable[..., Scripted]]:
    with ExitStack() as servers:
        yield lambda *answers, **options: servers.enter_context(Scripted(*answers, **options))


def publish(topic: bytes, payload: bytes, properties: bytes = b"") -> bytes:
    body = struct.pack("!H", len(topic)) + topic + bytes((len(properties),)) + properties + payload
    return bytes((0x30, len(body))) + body


def test_the_end_of_a_keep_alive_is_told_once(serve: Callable[..., Scripted], monkeypatch: pytest.MonkeyPatch) -> None:
    server, now_s, told = serve(CONNACK), [1000.0], []
    client = mqtt.Client(V2)
    client.on_disconnect = lambda *arguments: told.append(str(arguments[3]))
    monkeypatch.setattr(paho, "time_func", lambda: now_s[0])
    client.connect("127.0.0.1", server.port, keepalive=60)
    assert eventually(lambda: client.loop(0.02) == 0 and client.is_connected())
    for _ in range(3):
        now_s[0] += 61
        client.loop_misc()
    assert told == ["Keep alive timeout"]
    assert client.socket() is None


def test_what_a_topic_alias_stands_for_reaches_the_callbacks(serve: Callable[..., Scripted]) -> None:
    alias = b"\x23\x00\x03"
    uses = publish(b"a/long/topic", b"1", alias) + publish(b"", b"2", alias)
    uses += publish(b"other", b"3", alias) + publish(b"", b"4", alias)
    server, got = serve(CONNACK_5 + uses), []
    asked = Properties(PacketTypes.CONNECT)
    asked.TopicAliasMaximum = 5
    with mqtt.Client(V2, protocol=paho.MQTTv5) as client:
        client.on_message = lambda client, userdata, message: got.append(("any", message.topic, message.payload))
        client.message_callback_add(
            "a/+/topic", lambda _, __, message: got.append(("own", message.topic, message.payload))
        )
        client.connect("127.0.0.1", server.port, properties=asked)
        client.loop_start()
        assert eventually(lambda: len(got) == 4)
    assert got == [
        *(("own", "a/long/topic", b"1"), ("own", "a/long/topic", b"2")),
        *(("any", "other", b"3"), ("any", "other", b"4")),
    ]


def test_messages_of_a_shared_subscription_reach_its_callback(broker: Broker) -> None:
    got: list[Any] = []
    with mqtt.Client(V2) as client:
        for number, topic_filter in enumerate(
            ("$share/one/a/+/c", "$share/two/a/#", "$share/one/x", "a/b/c", "$SYS/x")
        ):
            client.message_callback_add(
                topic_filter, lambda _, __, message, number=number: got.append((number, message.topic))
            )
        client.message_callback_remove("a/b/c")
        client.on_message = lambda _, __, message: got.append(("any", message.topic))
        subscribed = threading.Event()
        client.on_subscribe = lambda *_: subscribed.set()
        client.connect(broker.host, broker.port)
        client.loop_start()
        client.subscribe([("$share/one/a/+/c", 1), ("else", 1)])
        assert subscribed.wait(TIMEOUT_S)
        client.publish("a/b/c", b"x", 1)
        client.publish("else", b"x", 1)
        assert eventually(lambda: ("any", "else") in got)
        assert got == [(0, "a/b/c"), (1, "a/b/c"), ("any", "else")]
        client.message_callback_remove("$share/one/a/+/c")
        client.message_callback_remove("$share/two/a/#")
        client.publish("a/b/c", b"x", 1)
        assert eventually(lambda: ("any", "a/b/c") in got)


@pytest.mark.parametrize(
    ("topic_filter", "topic", "matches"),
    [
        ("$share/g/a/+/c", "a/b/c", True),
        ("$share/g/a/+/c", "a/b/d", False),
        ("$share/g/#", "a", True),
        ("a/+", "a/b", True),
        ("#", "$SYS/x", False),
        ("$share/g", "g", False),
    ],
)
def test_a_topic_matches_the_filter_of_a_shared_subscription(topic_filter: str, topic: str, matches: bool) -> None:
    assert mqtt.topic_matches_sub(topic_filter, topic) is matches


@pytest.mark.parametrize("will", [False, True])
@pytest.mark.parametrize("client_id", ["", "MQTT", "x" * 200])
def test_a_password_needs_no_user_name_in_mqtt_5(serve: Callable[..., Scripted], client_id: str, will: bool) -> None:
    server = serve(CONNACK_5)
    with mqtt.Client(V2, client_id, protocol=paho.MQTTv5) as client:
        client.username_pw_set(None, "token")
        if will:
            client.will_set("w", "gone")
        client.connect("127.0.0.1", server.port)
        client.loop_start()
        assert eventually(client.is_connected)
    connect = bytes(server.heard[0])
    size_bytes = 2 if connect[1] & 0x80 else 1
    body = connect[1 + size_bytes :]
    length = connect[1] & 0x7F | (connect[2] << 7 if size_bytes == 2 else 0)
    body = body[:length]
    assert body[7] & 0xC0 == 0x40
    assert body.endswith(b"\x00\x05token")
    assert len(body) == length


def test_the_client_id_that_the_server_gives_is_kept(serve: Callable[..., Scripted]) -> None:
    given = b"\x20\x0a\x00\x00\x07\x12\x00\x04gave"
    server = serve(given, CONNACK_5, closes=True)
    with mqtt.Client(V2, protocol=paho.MQTTv5) as client:
        client.reconnect_delay_set(1, 1)
        client.connect("127.0.0.1", server.port)
        client.loop_start()
        assert eventually(lambda: len(server.heard) >= 2 and b"gave" in server.heard[1])


def test_a_loop_can_follow_a_thread(broker: Broker) -> None:
    client = mqtt.Client(V2)
    client.connect(broker.host, broker.port)
    client.loop_start()
    assert eventually(client.is_connected)
    client.loop_stop()
    told = []

    def leave(client: Any, *_: Any) -> None:
        told.append(client.is_connected())
        client.disconnect()

    client.on_subscribe = leave
    client.subscribe("t")
    client.loop_forever()
    assert told == [True]


def test_loop_stop_ends_with_a_peer_that_does_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network_thread, "LEAVE_TIMEOUT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = mqtt.Client(V2)
        client.connect("127.0.0.1", listener.getsockname()[1], keepalive=0)
        sock, _ = listener.accept()
        with sock:
            sock.sendall(CONNACK)
            client.loop_start()
            assert eventually(client.is_connected)
            for _ in range(40):
                client.publish("t", bytes(1 << 20), 1)
            stopped = threading.Thread(target=client.loop_stop)
            stopped.start()
            stopped.join(TIMEOUT_S)
            assert not stopped.is_alive()
    client._sock_close()


@AS_2_2
@pytest.mark.parametrize("version", [paho.MQTTv311, paho.MQTTv5])
def test_a_session_that_should_be_forgotten_ends_the_connection(serve: Callable[..., Scripted], version: int) -> None:
    is_5 = version == paho.MQTTv5
    server, told = serve(b"\x20\x03\x01\x00\x00" if is_5 else b"\x20\x02\x01\x00"), []
    client = mqtt.Client(V2, protocol=version)  # type: ignore[arg-type]
    client.on_connect = lambda *_: told.append("connect")
    client.on_disconnect = lambda *arguments: told.append(str(arguments[3]))
    client.connect("127.0.0.1", server.port)
    while client.loop(0.1) == paho.MQTT_ERR_SUCCESS:
        pass
    assert told == ["Protocol error"]
    assert eventually(lambda: server.heard[0].endswith(b"\xe0\x01\x82") == is_5)


def test_a_session_that_was_asked_for_is_taken(serve: Callable[..., Scripted]) -> None:
    server = serve(b"\x20\x02\x01\x00")
    with mqtt.Client(V2, "device", clean_session=False) as client:
        client.connect("127.0.0.1", server.port)
        client.loop_start()
        assert eventually(client.is_connected)


def test_what_is_malformed_before_connack_ends_the_connection_without_a_word(serve: Callable[..., Scripted]) -> None:
    server = serve(b"\x20\x03\x00\x00\xff\xff\xff\xff\xff")
    client = mqtt.Client(V2, protocol=paho.MQTTv5)
    client.connect("127.0.0.1", server.port)
    while client.loop(0.1) == paho.MQTT_ERR_SUCCESS:
        pass
    assert client.socket() is None
    assert server.heard[0][0] == 0x10
    assert b"\xe0" not in server.heard[0][-3:]


def test_messages_can_be_handed_to_another_process(serve: Callable[..., Scripted]) -> None:
    properties = b"\x26\x00\x01k\x00\x01v"
    server, got = serve(CONNACK_5 + publish(b"t/1", b"payload", properties) + publish(b"t/2", b"")), []
    with mqtt.Client(V2, protocol=paho.MQTTv5) as client:
        client.on_message = lambda client, userdata, message: got.append(message)
        client.connect("127.0.0.1", server.port)
        client.loop_start()
        assert eventually(lambda: len(got) == 2)
    assert got[1].properties.json() == {}
    for message in got:
        for again in (pickle.loads(pickle.dumps(message)), copy.copy(message), copy.deepcopy(message)):
            assert isinstance(again, paho.MQTTMessage)
            names = ("topic", "payload", "qos", "mid", "dup", "retain", "timestamp", "state")
            assert [getattr(again, name) for name in names] == [getattr(message, name) for name in names]
            assert again.properties.json() == message.properties.json()
            assert again.info.mid == message.mid


def test_an_address_in_brackets_is_one(serve: Callable[..., Scripted]) -> None:
    try:
        server = serve(CONNACK, address="::1")
    except OSError:
        pytest.skip("no IPv6 here")
    with mqtt.Client(V2) as client:
        client.connect("[::1]", server.port)
        client.loop_start()
        assert eventually(client.is_connected)


def test_a_callback_s_exception_keeps_no_other_from_its_message(serve: Callable[..., Scripted]) -> None:
    server, got, raised = serve(CONNACK + b"\x30\x04\x00\x01tx" + b"\x30\x04\x00\x01ty"), [], []
    with mqtt.Client(V2) as client:

        def fails(client: Any, userdata: Any, message: Any) -> None:
            raise RuntimeError(f"100% of {message.payload}")

        client.message_callback_add("t", fails)
        client.message_callback_add("#", lambda client, userdata, message: got.append(message.payload))
        client.on_log = lambda client, userdata, level, text: raised.append(text) if "100%" in text else None
        hook, threading.excepthook = threading.excepthook, lambda _: None
        try:
            client.connect("127.0.0.1", server.port)
            client.loop_start()
            assert eventually(lambda: got == [b"x", b"y"])
        finally:
            threading.excepthook = hook
    assert len(raised) == 2


def test_pauses_grow_between_two_clients_of_one_name(
    serve: Callable[..., Scripted], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, pauses = serve(CONNACK, closes=True), []
    with mqtt.Client(V2, "device") as client:
        client.reconnect_delay_set(1, 64)
        wait = client._glec_policy.wait

        def note(interrupt: Any, slice_s: float) -> bool:
            pauses.append(client._reconnect_delay)
            return wait(interrupt, 0.0)

        monkeypatch.setattr(client._glec_policy, "wait", note)
        client.connect("127.0.0.1", server.port)
        client.loop_start()
        assert eventually(lambda: 64 in pauses)
    by_connection = list(dict.fromkeys(pauses))
    assert by_connection == [1, 2, 4, 8, 16, 32, 64]


@pytest.mark.parametrize("size", [268_435_456, 268_435_460, 0xFFFFFFFF])
def test_a_server_without_a_limit_of_packets_is_connected_to(size: int, serve: Callable[..., Scripted]) -> None:
    """MQTT 5, 3.2.2.3.6: only 0 is an error."""
    server, told = serve(b"\x20\x08\x00\x00\x05\x27" + size.to_bytes(4, "big")), []
    client = mqtt.Client(V2, protocol=mqtt.MQTTv5)
    client.on_connect = lambda *arguments: told.append((str(arguments[3]), arguments[4].MaximumPacketSize))
    client.connect("127.0.0.1", server.port)
    assert eventually(lambda: client.loop(0.02) == 0 and client.is_connected())
    assert told == [("Success", 268_435_455)]
    client.publish("t", b"x", 1)
    assert eventually(lambda: client.loop(0.02) == 0 and b"x" in server.heard[0])


@pytest.mark.parametrize("code", [0x85, 0x92, 0x99, 0xA5, 0xFF])
def test_any_reason_to_refuse_the_login_is_told(code: int, serve: Callable[..., Scripted]) -> None:
    """MQTT 5, 3.2.2.2: 0x99 is one of them, and paho has no name for it in CONNACK."""
    server, told = serve(bytes((0x20, 3, 0, code, 0))), []
    client = mqtt.Client(V2, protocol=mqtt.MQTTv5)
    client.on_connect = lambda *arguments: told.append(arguments[3])
    client.connect("127.0.0.1", server.port)
    assert eventually(lambda: client.loop(0.02) != 0)
    assert [(each.is_failure, each.value) for each in told] == [(True, code if code == 0x85 else 0x80)]


@AS_2_2
@pytest.mark.parametrize("code", [0x8B, 0x92, 0xB5, 0xFF])
def test_any_reason_of_a_disconnect_is_the_server_s_end(code: int, serve: Callable[..., Scripted]) -> None:
    server, told = serve(CONNACK_5 + bytes((0xE0, 1, code))), []
    client = mqtt.Client(V2, protocol=mqtt.MQTTv5)
    client.on_disconnect = lambda *arguments: told.append((arguments[2].is_disconnect_packet_from_server, arguments[3]))
    client.connect("127.0.0.1", server.port)
    assert eventually(lambda: client.loop(0.02) != 0)
    assert [(is_server_s, each.value) for is_server_s, each in told] == [(True, code if code == 0x8B else 0x80)]


@pytest.mark.parametrize("code", [0x87, 0x99, 0xFF])
@pytest.mark.parametrize("properties", [b"", b"\x1f\x00\x02no"])
def test_any_reason_to_refuse_a_filter_is_told(properties: bytes, code: int, serve: Callable[..., Scripted]) -> None:
    body = b"\x00\x01" + bytes((len(properties),)) + properties + bytes((0, code))
    server, told = serve(CONNACK_5 + bytes((0x90, len(body))) + body), []
    client = mqtt.Client(V2, protocol=mqtt.MQTTv5)
    client.on_subscribe = lambda *arguments: told.append([each.value for each in arguments[3]])
    client.connect("127.0.0.1", server.port)
    assert eventually(lambda: client.loop(0.02) == 0 and bool(told))
    assert told == [[0, code if code == 0x87 else 0x80]]
