"""What each call takes, returns and refuses, with paho's client and ours: the same values, errors and texts."""

from __future__ import annotations

import copy
import logging
import ssl
from typing import Any

import pytest
from paho.mqtt import client as paho
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

import glec_fast.mqtt
from support.differential import (
    API1,
    API2,
    APIS,
    AS_2_2,
    LEAVES_SOCKETS,
    NO_WARNING,
    V5,
    V311,
    VERSIONS,
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

pytestmark = NO_WARNING


@VERSIONS
def test_what_is_refused_at_the_door(version: int) -> None:
    def program(run: Run) -> None:
        for topic in (None, "", "a/+", "#", "x" * 65536, "\u0000", b"bytes", 5):
            run.call("publish", topic, b"x", 1)
        for payload in ([], {}, object, 1j, memoryview(b"x"), True):
            run.call("publish", "t", payload)
        for qos in (-1, 3, None, "1"):
            run.call("publish", "t", b"x", qos)
            run.call("subscribe", "t", qos)
        # Zeroed pages, of which none is touched.
        run.call("publish", "t", bytes(268_435_456), 1)
        for topic in (None, "", "a/#/b", "a+", "#/a", "x" * 65536, 5, b"bytes"):
            run.call("subscribe", topic)
            run.call("unsubscribe", topic)
            run.call("message_callback_add", topic, None)
        run.call("message_callback_remove", None)
        run.call("message_callback_remove", "none such")
        for topic, payload, qos in ((None, b"x", 0), ("", b"x", 0), ("t", [], 0), ("t", b"x", 3)):
            run.call("will_set", topic, payload, qos)
        run.call("will_set", "t", b"x", properties=5)
        run.call("max_queued_messages_set", -1)
        run.call("max_inflight_messages_set", -1)
        run.call("reconnect_delay_set", 5, 1)
        for arguments in (("", 1883), ("h", 0), ("h", 1883, -1), ("h", 1883, 60, "", -1), (None, 1883)):
            run.call("connect", *arguments)
        run.call("connect", "127.0.0.1", 1, clean_start=True)
        run.call("connect", "127.0.0.1", 1, properties=Properties(PacketTypes.CONNECT))
        run.call("connect", "host.invalid", 1883)
        run.call("username_pw_set", 5)
        run.call("loop", -1)
        run.call("ack", 1, 1)

    compare(program, [], version)


@AS_2_2
@VERSIONS
@pytest.mark.parametrize("qos", [0, 1])
def test_a_packet_that_is_larger_than_mqtt_allows(version: int, qos: int) -> None:
    def program(run: Run) -> None:
        run.watch("on_connect", "on_disconnect")
        run.connect()
        run.loop_until("on_connect")
        run.call("publish", "t", bytes(268_435_455 - 2), qos)
        run.call("disconnect")

    compare(program, [[Expect(), Send(connack(version))]], version)


SUBSCRIPTIONS: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    (("a",), {}),
    (("a", 2), {}),
    ((("a", 1),), {}),
    (([("a", 1), ("b/#", 2)],), {}),
    ((("a", SubscribeOptions(qos=1)),), {}),
    (([("a", SubscribeOptions(qos=1)), ("b", SubscribeOptions(2, noLocal=True))],), {}),
    (("a", 0, SubscribeOptions(qos=1, retainAsPublished=True)), {}),
    (("a", 1, SubscribeOptions(qos=1)), {}),
    (("a", 0, 1), {}),
    ((["a", "b"],), {}),
    (([("a", 3)],), {}),
    (([("", 0)],), {}),
    (([(None, 0)],), {}),
    (([],), {}),
    (((),), {}),
    ((("a",),), {}),
    (("a",), {"properties": Properties(PacketTypes.SUBSCRIBE)}),
]


@VERSIONS
@pytest.mark.parametrize("number", range(len(SUBSCRIPTIONS)))
def test_forms_of_subscribe(version: int, number: int) -> None:
    arguments, named = SUBSCRIPTIONS[number]

    def program(run: Run) -> None:
        run.watch("on_connect", "on_disconnect", "on_log")
        run.call("subscribe", *arguments, **named)
        run.connect()
        run.loop_until("on_connect")
        run.call("subscribe", *arguments, **named)
        run.call("disconnect")

    compare(program, [[Expect(), Send(connack(version))]], version)


@VERSIONS
@pytest.mark.parametrize("topic", ["a", ["a", "b/+"], [], [""], [None], 5, ("a", "b"), b"a"], ids=repr)
def test_forms_of_unsubscribe(version: int, topic: Any) -> None:
    def program(run: Run) -> None:
        run.watch("on_connect", "on_disconnect", "on_log")
        run.call("unsubscribe", topic)
        run.connect()
        run.loop_until("on_connect")
        run.call("unsubscribe", topic, properties=Properties(PacketTypes.UNSUBSCRIBE))
        run.call("disconnect")

    compare(program, [[Expect(), Send(connack(version))]], version)


@VERSIONS
def test_properties_where_they_do_not_belong(version: int) -> None:
    def program(run: Run) -> None:
        run.watch("on_connect", "on_disconnect", "on_publish")
        run.connect()
        run.loop_until("on_connect")
        for kind in (PacketTypes.PUBLISH, PacketTypes.CONNECT, PacketTypes.WILLMESSAGE):
            properties = Properties(kind)
            properties.UserProperty = ("of", str(kind))
            run.call("publish", "t", b"x", 0, properties=properties)
            run.call("subscribe", "t", properties=properties)
        run.call("disconnect", properties=Properties(PacketTypes.DISCONNECT))
        for kind in (PacketTypes.PUBLISH, PacketTypes.CONNACK):
            for name, value in (("SessionExpiryInterval", 1), ("TopicAlias", 0), ("ContentType", 5)):
                run.call_of(Properties(kind), "__setattr__", name, value)

    compare(program, [[Expect(), Send(connack(version))]], version)


@pytest.mark.parametrize("reason", [None, 0, 4, 0x82])
@pytest.mark.parametrize("with_properties", [False, True])
def test_reasons_of_disconnect(reason: int | None, with_properties: bool) -> None:
    def program(run: Run) -> None:
        run.watch("on_connect", "on_disconnect", "on_log")
        run.connect()
        run.loop_until("on_connect")
        properties = None
        if with_properties:
            properties = Properties(PacketTypes.DISCONNECT)
            properties.ReasonString = "enough"
        code = None if reason is None else ReasonCode(PacketTypes.DISCONNECT, identifier=reason)
        run.call("disconnect", code, properties)

    compare(program, [[Expect(), Send(connack(V5))]], V5)


def test_what_publish_returns() -> None:
    def program(run: Run) -> None:
        run.client.max_queued_messages_set(1)
        waiting = run.client.publish("t", b"x", 1)
        full = run.client.publish("t", b"x", 1)
        at_once = run.client.publish("t", b"x", 0)
        for info in (waiting, full, at_once):
            rc, mid = info
            run.record("as a tuple", int(rc), mid, info[0], info[1], list(info), str(info), info.rc, info.mid)
            for name in ("__getitem__", "__len__", "__add__"):
                run.record(name, hasattr(info, name))
            run.call_of(info, "__getitem__", 2)
            run.call_of(info, "__getitem__", -1)
            run.call_of(info, "is_published")
            run.call_of(info, "wait_for_publish", 0.01)
            run.record("again", next(iter(info)), info.next())

    compare(program, [])


@VERSIONS
def test_a_message_as_it_arrives(version: int) -> None:
    def program(run: Run) -> None:
        run.watch("on_connect", "on_disconnect")

        def on_message(_client: Any, _userdata: Any, message: Any) -> None:
            copied = copy.copy(message)
            run.record("message", message, copied, message == copied, message != copied, message == 5)
            made = paho.MQTTMessage(message.mid)
            run.record("made", made == message, message == made, made != message, message == paho.MQTTMessage(9))
            run.record("types", *(type(getattr(message, name)).__name__ for name in ("topic", "payload", "qos", "mid")))
            run.record("types", *(type(getattr(message, name)).__name__ for name in ("dup", "retain", "timestamp")))
            message.payload, message.topic, message.retain = "changed", b"other", True
            run.record("changed", message, message.info.rc)

        run.client.on_message = on_message
        run.connect()
        run.loop_until("message", 3)
        run.call("disconnect")

    arriving = inbound(version, "t", b"m", 0) + inbound(version, "t/\u00fc", b"", 1, 2, dup=True, retain=True)
    arriving += inbound(version, "t", b"two", 2, 3) + ack(0x62, 3)
    compare(program, [[Expect(), Send(connack(version) + arriving), Expect(3)]], version)


@LEAVES_SOCKETS
@VERSIONS
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"client_id": None},
        {"client_id": "\u00fcnique"},
        {"clean_session": False},
        {"clean_session": True},
        {"clean_session": False, "client_id": ""},
        {"transport": "carrier pigeon"},
        {"transport": "WebSockets"},
        {"userdata": {"own": 1}, "manual_ack": True, "reconnect_on_failure": False},
        {"callback_api_version": "device"},
        {"none_such": 1},
    ],
    ids=str,
)
def test_making_a_client(version: int, settings: dict[str, Any]) -> None:
    seen = []
    for module in (paho, glec_fast.mqtt):
        arguments = {"callback_api_version": API2, "client_id": "device", "protocol": version, **settings}
        try:
            client = module.Client(**arguments)
        except (TypeError, ValueError) as error:
            seen.append((type(error), str(error)))
            continue
        names = (
            *("host", "port", "keepalive", "transport", "protocol", "connect_timeout", "username", "password"),
            *("max_inflight_messages", "max_queued_messages", "will_topic", "will_payload", "logger"),
            *("callback_api_version", "suppress_exceptions"),
        )
        seen.append([client.user_data_get(), client.socket(), *(getattr(client, name) for name in names)])
    assert seen[0] == seen[1]


def test_settings_and_when_they_may_change() -> None:
    def program(run: Run) -> None:
        run.watch("on_connect", "on_disconnect")
        changes = {
            "host": "h",
            "port": 1,
            "keepalive": 5,
            "connect_timeout": 1.5,
            "username": "u",
            "password": "p",
            "transport": "tcp",
            "max_inflight_messages": 3,
            "max_queued_messages": 4,
        }
        wrong = {"host": "", "port": 0, "keepalive": -1, "connect_timeout": 0, "max_inflight_messages": -1}
        for name, value in [*changes.items(), *wrong.items()]:
            run.call("__setattr__", name, value)
            run.record(name, getattr(run.client, name))
        run.call("will_set", "gone", 5, 1, True)
        run.record("will", run.client.will_topic, run.client.will_payload)
        run.call("will_clear")
        run.record("will", run.client.will_topic, run.client.will_payload)
        run.connect()
        run.loop_until("on_connect")
        for name, value in changes.items():
            run.call("__setattr__", name, value)
        run.call("max_inflight_messages_set", 5)
        run.call("max_queued_messages_set", 5)
        run.call("disconnect")
        run.loop_until("on_disconnect")
        for name, value in changes.items():
            run.call("__setattr__", name, value)

    compare(program, [[Expect(), Send(connack(V311))]])


@AS_2_2
def test_a_type_that_only_2_2_tells_apart() -> None:
    def program(run: Run) -> None:
        run.call("max_queued_messages_set", "5")
        run.call("connect_srv", "example.invalid")

    compare(program, [])


@VERSIONS
@APIS
def test_wills_logins_and_bridges(version: int, api: Any) -> None:
    def prepare(client: Any) -> None:
        properties = None
        if version == V5:
            properties = Properties(PacketTypes.WILLMESSAGE)
            properties.WillDelayInterval = 7
        client.will_set("gone", 1.5, 2, True, properties)
        client.username_pw_set("user", b"\x00binary")
        client.enable_bridge_mode()
        client.enable_logger(logging.getLogger("differential"))
        client.tls_set_context(ssl.create_default_context())
        client._ssl = False

    def program(run: Run) -> None:
        run.watch("on_connect", "on_disconnect", "on_log")
        run.connect(keepalive=0, bind_address="127.0.0.1")
        run.loop_until("on_connect")
        run.call("disconnect")

    compare(program, [[Expect(), Send(connack(version))]], version, api, prepare)


@VERSIONS
@APIS
def test_every_decorator(version: int, api: Any) -> None:
    """The signatures of all callbacks, set the other way."""

    def program(run: Run) -> None:
        for name in ("connect", "disconnect", "log", "message", "pre_connect", "publish", "subscribe", "unsubscribe"):
            getattr(run.client, f"{name}_callback")()(
                lambda _client, *arguments, name=name: run.record(name, *arguments)
            )
        for name in ("open", "close", "register_write", "unregister_write"):
            getattr(run.client, f"socket_{name}_callback")()(
                lambda _client, *arguments, name=name: run.record(f"socket_{name}", *arguments)
            )
        run.client.user_data_set(["own"])
        run.record("user data", run.client.user_data_get())
        run.connect()
        run.client.loop_write()
        run.loop_until("connect")
        run.call("subscribe", "t", 1)
        run.loop_until("subscribe")
        run.call("unsubscribe", "t")
        run.loop_until("unsubscribe")
        run.call("publish", "t", b"x", 1)
        run.loop_until("publish")
        run.call("disconnect")
        run.loop_until("disconnect")
        for name in ("on_connect", "on_message", "on_publish"):
            run.record(name, callable(getattr(run.client, name)))
            setattr(run.client, name, None)
            run.record(name, getattr(run.client, name))

    steps: list[Step] = [Expect(), Send(connack(version)), Expect(), Send(suback(version, 1, b"\x01")), Expect()]
    steps += [Send(unsuback(version, 2, b"\x00")), Expect(), Send(ack(0x40, 3))]
    compare(program, [steps], version, api)


@pytest.mark.parametrize("window", [0, 1, 3])
@pytest.mark.parametrize("limit", [0, 4])
def test_windows_and_limits(window: int, limit: int) -> None:
    def program(run: Run) -> None:
        run.watch("on_connect", "on_publish", "on_disconnect")
        run.connect()
        run.loop_until("on_connect")
        for number in range(6):
            run.call("publish", "t", b"%d" % number, 1)
        run.loop_until("on_publish", limit or 6)
        run.call("disconnect")

    def prepare(client: Any) -> None:
        client.max_inflight_messages_set(window)
        client.max_queued_messages_set(limit)

    count = limit or 6
    first = min(window or count, count)
    steps: list[Step] = [Expect(), Send(connack(V311)), Expect(first)]
    for mid in range(1, count + 1):
        steps.append(Send(ack(0x40, mid)))
        if mid + first <= count:
            steps.append(Expect())
    compare(program, [steps], V311, API1, prepare)
