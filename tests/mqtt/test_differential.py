"""The same programs with paho's Client and with ours: the same callbacks, results, exceptions and bytes."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from paho.mqtt import client as paho
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

import glec_fast.mqtt
from support.differential import (
    APIS,
    AS_2_2,
    CALLBACKS,
    NO_WARNING,
    V5,
    V31,
    V311,
    VERSIONS,
    Close,
    Expect,
    Run,
    Send,
    Step,
    ack,
    compare,
    connack,
    inbound,
    suback,
    unsuback,
)
from support.wire_reference import publish

pytestmark = NO_WARNING


@VERSIONS
@APIS
def test_connecting_and_leaving(version: int, api: Any) -> None:
    def program(run: Run) -> None:
        run.watch("on_connect", "on_disconnect", "on_pre_connect", "on_log", "on_socket_open", "on_socket_close")
        run.connect(keepalive=30)
        run.call("is_connected")
        run.loop_until("on_connect")
        run.call("is_connected")
        run.call("disconnect")
        run.loop_until("on_disconnect")
        run.call("is_connected")
        run.call("publish", "t", b"late", 1)

    def prepare(client: Any) -> None:
        client.username_pw_set("user", "word")
        client.will_set("gone", b"\x00will", 2, True)
        client.user_data_set({"own": 1})

    seen, packets = compare(program, [[Expect(), Send(connack(version))]], version, api, prepare)
    assert len(packets) == 2
    assert seen


@pytest.mark.parametrize("code", [1, 2, 3, 4, 5, 6])
@VERSIONS
@APIS
def test_a_refused_connection(version: int, api: Any, code: int) -> None:
    def program(run: Run) -> None:
        run.watch("on_connect", "on_disconnect")
        run.connect()
        run.loop_until("on_disconnect")

    refusal = code + 0x80 if version == V5 else code
    if version == V5 and code == 6:
        refusal = 0x87
    connections: list[list[Step]] = [[Expect(), Send(connack(version, refusal)), Close()]]
    if version == V311 and code == 1:
        # Both try 3.1 next.
        connections.append([Expect(), Send(connack(V31, 2)), Close()])
    assert compare(program, connections, version, api)


@VERSIONS
@APIS
@pytest.mark.parametrize("payload", [b"bytes", "text \u00e9", 12, 1.5, None, bytearray(b"array"), b""])
def test_publishing_of_each_qos(version: int, api: Any, payload: Any) -> None:
    def program(run: Run) -> None:
        run.watch("on_connect", "on_publish", "on_disconnect", "on_log")
        run.connect()
        run.loop_until("on_connect")
        for number, qos in enumerate((0, 1, 2)):
            info = run.call("publish", f"t/{qos}", payload, qos, bool(qos & 1))
            run.loop_until("on_publish", number + 1)
            run.record("is_published", info.is_published())
            info.wait_for_publish(1)
        run.call("disconnect")
        run.loop_until("on_disconnect")

    steps: list[Step] = [
        *(Expect(), Send(connack(version))),
        Expect(),
        *(Expect(), Send(ack(0x40, 2))),
        *(Expect(), Send(ack(0x50, 3))),
        *(Expect(), Send(ack(0x70, 3))),
    ]
    assert compare(program, [steps], version, api)


@APIS
def test_reason_codes_and_properties_of_acknowledgements(api: Any) -> None:
    reason = b"\x1f\x00\x04why?"
    rest = b"\x10" + bytes((len(reason),)) + reason

    def program(run: Run) -> None:
        run.watch("on_connect", "on_publish", "on_disconnect")
        run.connect()
        run.loop_until("on_connect")
        properties = Properties(PacketTypes.PUBLISH)
        properties.UserProperty = [("a", "b"), ("a", "c")]
        properties.MessageExpiryInterval = 9
        properties.ContentType = "text/plain"
        for number, qos in enumerate((1, 1, 2)):
            run.call("publish", "t", b"x", qos, properties=properties)
            run.loop_until("on_publish", number + 1)
        run.call("disconnect")
        run.loop_until("on_disconnect")

    steps: list[Step] = [
        *(Expect(), Send(connack(V5, properties=b"\x03\x21\x00\x05"))),
        *(Expect(), Send(ack(0x40, 1, rest))),
        *(Expect(), Send(ack(0x40, 2, b"\x87"))),
        *(Expect(), Send(ack(0x50, 3, rest))),
        *(Expect(), Send(ack(0x70, 3))),
    ]
    assert compare(program, [steps], V5, api)


@VERSIONS
@APIS
@pytest.mark.parametrize("manual_ack", [False, True])
def test_subscribing_and_receiving(version: int, api: Any, manual_ack: bool) -> None:
    def program(run: Run) -> None:
        run.watch("on_connect", "on_subscribe", "on_unsubscribe", "on_message", "on_disconnect", "on_log")
        run.connect()
        run.loop_until("on_connect")
        run.call("subscribe", "a/+", 1)
        run.loop_until("on_subscribe")
        run.call("subscribe", [("b/#", 2), ("c", 0)])
        run.loop_until("on_subscribe", 2)
        run.loop_until("on_message", 6)
        if manual_ack:
            for mid, qos in ((7, 1), (8, 1), (9, 2)):
                run.call("ack", mid, qos)
        run.call("unsubscribe", ["a/+", "c"])
        run.loop_until("on_unsubscribe")
        run.call("disconnect")
        run.loop_until("on_disconnect")

    arriving = b"".join((
        inbound(version, "a/x", b"zero", 0),
        inbound(version, "a/x", b"", 0, retain=True),
        inbound(version, "b/\u00e9", b"one", 1, 7),
        inbound(version, "b/y", b"one again", 1, 8, dup=True),
        inbound(version, "c", bytes(200), 2, 9),
        ack(0x62, 9),
        inbound(version, "a/x", b"last", 0),
    ))  # fmt: skip
    answers = 4
    steps: list[Step] = [
        *(Expect(), Send(connack(version))),
        *(Expect(), Send(suback(version, 1, b"\x01"))),
        *(Expect(), Send(suback(version, 2, b"\x02\x80") + arriving)),
        Expect(answers),
        *(Expect(), Send(unsuback(version, 3, b"\x00\x11"))),
    ]
    assert compare(program, [steps], version, api, lambda client: client.manual_ack_set(manual_ack))


@pytest.mark.parametrize("limit", [0, 2])
def test_publishing_before_there_is_a_connection(limit: int) -> None:
    def program(run: Run) -> None:
        run.watch("on_connect", "on_publish", "on_disconnect")
        run.client.max_queued_messages_set(limit)
        for number in range(6):
            run.call("publish", "t", b"%d" % number, number % 3)
        run.connect()
        run.loop_until("on_connect")
        run.loop_until("on_publish", 4 if limit == 0 else 2)
        run.call("disconnect")
        run.loop_until("on_disconnect")

    count = 4 if limit == 0 else 2
    steps: list[Step] = [Expect(), Send(connack(V311)), Expect(count)]
    steps += [Send(ack(0x40, 2) + ack(0x50, 3))]
    if limit == 0:
        steps += [Send(ack(0x40, 5) + ack(0x50, 6))]
    steps += [Expect(1 if limit else 2), Send(ack(0x70, 3) + (b"" if limit else ack(0x70, 6)))]
    assert compare(program, [steps], V311)


@pytest.mark.parametrize("version", [V31, V311], ids=["3.1", "3.1.1"])
def test_a_reconnect_sends_again_what_was_not_acknowledged(version: int) -> None:
    def program(run: Run) -> None:
        run.watch("on_connect", "on_publish", "on_disconnect")
        run.connect()
        run.loop_until("on_connect")
        for number, qos in enumerate((1, 2, 2)):
            run.call("publish", "t", b"%d" % number, qos)
        run.loop_until_received(5)
        run.loop_until("on_disconnect")
        run.call("reconnect")
        run.loop_until("on_connect", 2)
        run.loop_until("on_publish", 3)
        run.call("disconnect")
        run.loop_until("on_disconnect", 2)

    first: list[Step] = [Expect(), Send(connack(version)), Expect(3), Send(ack(0x50, 3)), Expect(), Close()]
    second: list[Step] = [
        *(Expect(), Send(connack(version, present=True))),
        Expect(3),
        Send(ack(0x40, 1) + ack(0x50, 2) + ack(0x70, 3)),
        *(Expect(), Send(ack(0x70, 2))),
    ]
    assert compare(program, [first, second], version, clean_session=False)


@VERSIONS
def test_the_window_bounds_what_is_on_its_way(version: int) -> None:
    def program(run: Run) -> None:
        run.watch("on_connect", "on_publish", "on_disconnect")
        run.connect()
        run.loop_until("on_connect")
        for number in range(5):
            run.call("publish", "t", b"%d" % number, 1)
        run.loop_until("on_publish", 5)
        run.call("disconnect")
        run.loop_until("on_disconnect")

    steps: list[Step] = [Expect(), Send(connack(version)), Expect(2)]
    steps += [Send(ack(0x40, 1)), Expect(), Send(ack(0x40, 2)), Expect(), Send(ack(0x40, 3)), Expect()]
    steps += [Send(ack(0x40, 4) + ack(0x40, 5))]
    assert compare(program, [steps], version, prepare=lambda client: client.max_inflight_messages_set(2))


def test_a_loop_of_the_programs_own() -> None:
    def program(run: Run) -> None:
        run.watch(*(name for name in CALLBACKS if name.startswith("on_socket")), "on_connect", "on_publish")
        run.connect()
        run.call("want_write")
        run.client.loop_write()
        run.call("want_write")
        while "on_connect" not in run.counts:
            run.client.loop_read()
        run.call("publish", "t", b"x", 1)
        while run.client.want_write():
            run.client.loop_write()
        while "on_publish" not in run.counts:
            run.client.loop_read()
        run.call("loop_misc")
        run.call("disconnect")
        while run.client.want_write():
            run.client.loop_write()
        run.call("loop_read")
        run.record("socket", run.client.socket() is None)

    assert compare(program, [[Expect(), Send(connack(V311)), Expect(), Send(ack(0x40, 1))]], V311)


def test_options_of_mqtt_5() -> None:
    def program(run: Run) -> None:
        run.watch("on_connect", "on_subscribe", "on_unsubscribe", "on_message", "on_disconnect")
        properties = Properties(PacketTypes.CONNECT)
        properties.SessionExpiryInterval = 60
        properties.ReceiveMaximum = 10
        run.connect(clean_start=True, properties=properties)
        run.loop_until("on_connect")
        run.call("subscribe", "a", options=SubscribeOptions(qos=1, noLocal=True, retainHandling=2))
        run.loop_until("on_subscribe")
        subscribing = Properties(PacketTypes.SUBSCRIBE)
        subscribing.SubscriptionIdentifier = 300
        run.call("subscribe", [("b", SubscribeOptions(2))], properties=subscribing)
        run.loop_until("on_subscribe", 2)
        run.loop_until("on_message")
        leaving = Properties(PacketTypes.DISCONNECT)
        leaving.SessionExpiryInterval = 5
        run.call("disconnect", properties=leaving)
        run.loop_until("on_disconnect")

    told = b"\x0b\xac\x02\x01\x01\x26\x00\x01k\x00\x01v\x03\x00\x01j\x08\x00\x01r\x09\x00\x01d"
    message = publish("b", b"m", 1, 3, properties=bytes((len(told),)) + told)
    steps: list[Step] = [
        *(Expect(), Send(connack(V5, properties=b"\x06\x22\x00\x05\x13\x00\x1e"))),
        *(Expect(), Send(suback(V5, 1, b"\x01"))),
        *(Expect(), Send(suback(V5, 2, b"\x02") + message)),
        Expect(),
    ]
    assert compare(program, [steps], V5)


def test_a_thread_of_its_own() -> None:
    def program(run: Run) -> None:
        run.watch("on_connect", "on_publish", "on_message", "on_disconnect")
        assert run.peer is not None
        connected = threading.Event()
        on_connect = run.client.on_connect

        def connect(*arguments: Any) -> None:
            on_connect(*arguments)
            connected.set()

        run.client.on_connect = connect
        run.client.connect_async("127.0.0.1", run.peer.port)
        run.client.loop_start()
        assert connected.wait(10)
        info = run.client.publish("t", b"x", 2)
        info.wait_for_publish(10)
        run.record("published", info.is_published())
        run.client.disconnect()
        # Its result tells whether the thread has ended by itself already.
        run.client.loop_stop()

    steps: list[Step] = [Expect(), Send(connack(V311)), Expect(), Send(ack(0x50, 1)), Expect(), Send(ack(0x70, 1))]
    assert compare(program, [steps], V311)


@AS_2_2
def test_forgetting_what_was_not_acknowledged() -> None:
    def program(run: Run) -> None:
        run.watch("on_connect", "on_publish", "on_disconnect")
        for number in range(4):
            run.call("publish", "t", b"%d" % number, number % 3)
        run.call("drop_out_messages")
        run.call("publish", "t", b"kept", 1)
        run.connect()
        run.loop_until("on_publish")
        run.call("disconnect")
        run.loop_until("on_disconnect")
        run.call("reinitialise", "again", False)
        run.call("publish", "t", b"after", 0)

    steps: list[Step] = [Expect(), Send(connack(V311)), Expect()]
    first_id = 5
    assert compare(program, [[*steps, Send(ack(0x40, first_id))]], V311)


@AS_2_2
def test_without_a_connection_or_a_thread() -> None:
    def program(run: Run) -> None:
        run.call("loop")
        run.call("loop_stop")

    assert compare(program, [], V311)


def test_every_public_name_is_there() -> None:
    public = {name for name in vars(paho) if not name.startswith("_")}
    assert public <= set(glec_fast.mqtt.__all__)
    # Ours knows shared subscriptions.
    for name in public - {"Client", "topic_matches_sub"}:
        assert getattr(glec_fast.mqtt, name) is getattr(paho, name)
    assert issubclass(glec_fast.mqtt.Client, paho.Client)
    assert glec_fast.mqtt.Client is not paho.Client
