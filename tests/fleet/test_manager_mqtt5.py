"""What MQTT 5 adds for a manager: properties as arguments of `publish`, and topics sent by number."""

from __future__ import annotations

import json
import threading
from contextlib import closing
from typing import TYPE_CHECKING, Any

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from glec_fast import Inference, MessageError, MQTTManager, Telemetry
from glec_fast.testbed.link import Link
from support.alias_server import AliasServer
from support.gateway import BOTH_VERSIONS, TIMEOUT_S, Recorder, eventually, quick_config

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from conftest import StartBroker
    from glec_fast.testbed.broker import Broker

TOPIC = "fleet/DTG-TEST/trip"
PROPERTIES: dict[str, Any] = {
    "user_properties": [("schema", "3"), ("schema", "운행"), ("", "")],
    "content_type": "application/json",
    "response_topic": "fleet/answers/7",
    "correlation_data": b"\x00\xff",
}
TELEMETRY = Telemetry(62.5, 1850, 23.5, 71)
INFERENCE = Inference("normal", 0.93, 88, 12.4, 41)


class Listener:
    """An MQTT 5 subscriber that keeps whole messages, with the alias's work done by paho."""

    def __init__(self, broker: Broker) -> None:
        self.arrived: list[paho.MQTTMessage] = []
        self._changed = threading.Condition()
        subscribed = threading.Event()
        self._client = paho.Client(
            CallbackAPIVersion.VERSION2, client_id="listener", protocol=MQTTProtocolVersion.MQTTv5
        )
        self._client.on_message = self._on_message
        self._client.on_subscribe = lambda *_: subscribed.set()
        self._client.connect(broker.host, broker.port)
        self._client.loop_start()
        self._client.subscribe("#", 2)
        assert subscribed.wait(TIMEOUT_S)

    def _on_message(self, _client: Any, _userdata: Any, message: paho.MQTTMessage) -> None:
        with self._changed:
            self.arrived.append(message)
            self._changed.notify_all()

    def wait_for(self, count: int) -> list[paho.MQTTMessage]:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.arrived) >= count, TIMEOUT_S), len(self.arrived)
            return list(self.arrived)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@pytest.fixture
def listener(broker: Broker) -> Iterator[Listener]:
    with closing(Listener(broker)) as client:
        yield client


def carried(message: paho.MQTTMessage) -> dict[str, Any]:
    properties = message.properties
    assert properties is not None
    return {
        "user_properties": getattr(properties, "UserProperty", None),
        "content_type": getattr(properties, "ContentType", None),
        "response_topic": getattr(properties, "ResponseTopic", None),
        "correlation_data": getattr(properties, "CorrelationData", None),
    }


def recorded(manager: MQTTManager) -> Recorder:
    recorder = Recorder()
    manager.set_connection_callback(recorder)
    manager.connect()
    return recorder


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_properties_arrive_right_away(broker: Broker, listener: Listener, tmp_path: Path, qos: int) -> None:
    with MQTTManager(quick_config(broker.url, tmp_path, protocol_version=5)) as manager:
        assert recorded(manager).wait_for_connections()
        manager.publish(TOPIC, {"km": 12}, qos, **PROPERTIES)
        (message,) = listener.wait_for(1)
    assert carried(message) == PROPERTIES
    assert json.loads(message.payload) == {"km": 12}


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_properties_are_kept_over_a_restart(broker: Broker, listener: Listener, tmp_path: Path, qos: int) -> None:
    config = quick_config(broker.url, tmp_path, protocol_version=5)
    with MQTTManager(config) as manager:
        manager.publish(TOPIC, "offline", qos, retain=True, **PROPERTIES)
    with MQTTManager(config) as manager:
        manager.connect()
        (message,) = listener.wait_for(1)
        assert manager.flush(TIMEOUT_S)
    assert carried(message) == PROPERTIES
    assert message.qos == qos


def test_user_properties_may_be_a_dict_or_any_pairs(broker: Broker, listener: Listener, tmp_path: Path) -> None:
    with MQTTManager(quick_config(broker.url, tmp_path, protocol_version=5)) as manager:
        manager.connect()
        manager.publish(TOPIC, "a", user_properties={"one": "1", "two": "2"})
        manager.publish(TOPIC, "b", user_properties=(each for each in [("one", "1"), ["two", "2"]]))  # type: ignore[misc]
        manager.publish(TOPIC, "c", user_properties={}, correlation_data=bytearray(b"x"))
        messages = listener.wait_for(3)
    pairs = [("one", "1"), ("two", "2")]
    assert [carried(each)["user_properties"] for each in messages] == [pairs, pairs, None]
    assert carried(messages[2])["correlation_data"] == b"x"


@pytest.mark.parametrize("name", PROPERTIES)
def test_before_mqtt_5_they_are_refused(tmp_path: Path, name: str) -> None:
    with MQTTManager(quick_config("tcp://127.0.0.1:1", tmp_path)) as manager:
        with pytest.raises(MessageError, match="protocol_version to 5"):
            manager.publish(TOPIC, "x", **{name: PROPERTIES[name]})
        manager.publish(TOPIC, "x", user_properties={})
        assert manager.get_metrics().queue_size == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"user_properties": {"a": 1}}, "user_properties is int; it must be str"),
        ({"user_properties": {1: "a"}}, "name of user_properties is int"),
        ({"user_properties": {"a": "nul\0"}}, "NUL"),
        ({"user_properties": {"a\ud800": "x"}}, "surrogates"),
        ({"user_properties": {"a": "x" * 65_536}}, "at most 65535"),
        ({"user_properties": {"a": "é" * 32_768}}, "at most 65535"),
        ({"user_properties": "schema"}, "user_properties is str"),
        ({"user_properties": 7}, "user_properties is int"),
        ({"user_properties": ["ab"]}, "pairs"),
        ({"user_properties": [("a", "b", "c")]}, "pairs"),
        ({"content_type": b"text"}, "content_type is bytes"),
        ({"content_type": "a\x07"}, "content_type"),
        ({"content_type": "x" * 65_536}, "at most 65535"),
        ({"response_topic": ""}, "response_topic is empty"),
        ({"response_topic": "a/+/b"}, "wildcard"),
        ({"response_topic": "a/#"}, "wildcard"),
        ({"response_topic": 5}, "response_topic is int"),
        ({"response_topic": "x" * 65_536}, "at most 65535"),
        ({"correlation_data": "7"}, "correlation_data is str"),
        ({"correlation_data": b"x" * 65_536}, "at most 65535"),
    ],
)
def test_what_mqtt_cannot_carry_is_refused_and_nothing_is_kept(
    tmp_path: Path, arguments: dict[str, Any], says: str
) -> None:
    with MQTTManager(quick_config("tcp://127.0.0.1:1", tmp_path, protocol_version=5)) as manager:
        with pytest.raises(MessageError, match=says):
            manager.publish(TOPIC, "x", **arguments)
        assert manager.get_metrics().queue_size == 0


def test_the_largest_values_go(broker: Broker, listener: Listener, tmp_path: Path) -> None:
    largest = {
        "user_properties": [("n" * 65_535, "v" * 65_535)],
        "content_type": "c" * 65_535,
        "response_topic": "r" * 65_535,
        "correlation_data": b"d" * 65_535,
    }
    with MQTTManager(quick_config(broker.url, tmp_path, protocol_version=5)) as manager:
        manager.connect()
        manager.publish(TOPIC, "x", **largest)  # type: ignore[arg-type]
        (message,) = listener.wait_for(1)
    assert carried(message) == largest


def test_what_no_queue_has_room_for_counts_its_properties(tmp_path: Path) -> None:
    config = quick_config("tcp://localhost:1", tmp_path, protocol_version=5, queue_max_bytes=1_000_000)
    with MQTTManager(config) as manager, pytest.raises(MessageError, match="queue_max_bytes"):
        manager.publish("t", "x", 1, user_properties=[("a", "b" * 60_000)] * 20)


def test_a_packet_over_the_configured_size_counts_its_properties(tmp_path: Path) -> None:
    config = quick_config("tcp://127.0.0.1:1", tmp_path, protocol_version=5, max_packet_bytes=100)
    with MQTTManager(config) as manager:
        manager.publish(TOPIC, "x")
        with pytest.raises(MessageError, match="at most 100"):
            manager.publish(TOPIC, "x", content_type="c" * 90)


# ---- topics by number


def publish_many(manager: MQTTManager, count: int) -> list[tuple[str, bytes]]:
    """Of every QoS and several topics; returns what must arrive of QoS 1 and 2."""
    expected = []
    for number in range(count):
        topic = f"fleet/DTG-TEST/source/{number % 5}"
        payload = f"{topic} {number}"
        manager.publish(topic, payload, number % 3)
        if number % 3:
            expected.append((topic, payload.encode()))
    manager.publish_telemetry(TELEMETRY)
    manager.publish_inference(INFERENCE)
    return expected


@pytest.mark.parametrize("maximum", [0, 1, 7, 65_535])
def test_a_strict_server_reads_every_topic_over_cuts(tmp_path: Path, maximum: int) -> None:
    with AliasServer(maximum, cuts=(1, 7, 20, 20, 45)) as server:
        config = quick_config(server.url, tmp_path, protocol_version=5, client_id="DTG-TEST")
        with MQTTManager(config) as manager:
            expected = publish_many(manager, 300)
            manager.connect()
            assert manager.flush(TIMEOUT_S)
        assert server.faults == []
        arrived = [(each.topic, each.payload) for each in server.arrived]
        assert server.connections == 6
    assert set(expected) <= set(arrived)
    assert all(topic == payload.decode().split(" ")[0] for topic, payload in arrived if payload[:5] == b"fleet")
    by_alias = sum(not each.is_named for each in server.arrived)
    assert (by_alias > 0) == (maximum > 0)


def test_what_is_sent_right_away_goes_by_number_too(tmp_path: Path) -> None:
    with AliasServer(10) as server, MQTTManager(quick_config(server.url, tmp_path, protocol_version=5)) as manager:
        assert recorded(manager).wait_for_connections()
        for _ in range(3):
            manager.publish_telemetry(TELEMETRY)
            manager.publish_inference(INFERENCE)
        assert eventually(lambda: len(server.arrived) == 6)
        assert server.faults == []
    telemetry = [each for each in server.arrived if each.topic.endswith("/telemetry")]
    assert [each.is_named for each in telemetry] == [True, False, False]
    assert telemetry[0].size_bytes - telemetry[1].size_bytes == len("glec/dtg/DTG-TEST/telemetry")
    assert {each.alias for each in server.arrived} == {1, 2}


def test_no_packet_is_larger_for_its_alias_than_the_server_takes(tmp_path: Path) -> None:
    with AliasServer(10, packet_max=128) as server:
        with MQTTManager(quick_config(server.url, tmp_path, protocol_version=5)) as manager:
            manager.publish("t" * 30, "x" * 91)
            manager.connect()
            assert manager.flush(TIMEOUT_S)
        assert server.faults == []
    assert [(each.size_bytes, each.alias) for each in server.arrived] == [(128, 0)]


def test_a_server_that_refuses_its_own_aliases_has_none_after_that(tmp_path: Path) -> None:
    with AliasServer(10, refuses=True) as server:
        with MQTTManager(quick_config(server.url, tmp_path, protocol_version=5)) as manager:
            manager.connect()
            for number in range(10):
                manager.publish(TOPIC, str(number), 1 + number % 2)
            assert manager.flush(TIMEOUT_S)
            assert manager.get_metrics().messages_failed == 0
        assert server.faults == []
        assert server.connections == 2
    assert sorted(int(each.payload) for each in server.arrived) == list(range(10))


@BOTH_VERSIONS
@pytest.mark.parametrize("maximum", [0, 3])
def test_mosquitto_reads_every_topic_over_cuts(
    start_broker: StartBroker, tmp_path: Path, maximum: int, protocol_version: int
) -> None:
    broker = start_broker(settings=[f"max_topic_alias {maximum}"])
    with closing(Listener(broker)) as listener, Link((broker.host, broker.port)) as link:
        config = quick_config(
            f"tcp://127.0.0.1:{link.port}", tmp_path, protocol_version=protocol_version, client_id="DTG-TEST"
        )
        with MQTTManager(config) as manager:
            recorder = recorded(manager)
            assert recorder.wait_for_connections()
            expected = publish_many(manager, 100)
            for number in range(3):
                link.drop()
                assert recorder.wait_for_connections(number + 2)
                expected += publish_many(manager, 100)
            assert manager.flush(TIMEOUT_S)
        messages = listener.wait_for(len(expected))
    arrived = [(each.topic, each.payload) for each in messages]
    assert all(topic == payload.decode().split(" ")[0] for topic, payload in arrived if payload[:5] == b"fleet")
    log = broker.log_text()
    assert "protocol error" not in log, log
