"""What is published arrives: the four topics, offline and online, in order, in bulk, and exactly as it was given."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from glec_fast import Alert, GpsFix, Inference, MQTTManager, Status, Telemetry, TLSConfig
from glec_fast.testbed.subscriber import Subscriber
from support.gateway import BOTH_VERSIONS, TIMEOUT_S, Recorder, eventually, quick_config
from support.tapped_socket import TappedSocket
from support.wire_reference import PUBLISH, parse

if TYPE_CHECKING:
    from pathlib import Path

    from glec_fast.testbed.broker import Broker
    from glec_fast.testbed.certificates import CertificateAuthority

NOW_MS = 1_700_000_000_123
TELEMETRY = Telemetry(62.5, 1850, 23.5, 71, GpsFix(37.5665, 126.978, 61.9), timestamp_ms=NOW_MS)
INFERENCE = Inference("normal", 0.93, 88, 12.4, 41, timestamp_ms=NOW_MS)
ALERT = Alert("harsh_braking", "high", GpsFix(37.5665, 126.978), {"deceleration": -6.1}, timestamp_ms=NOW_MS)
STATUS = Status("ONLINE", 3600, 12.6, 128, 2048, 50_000, 1234, 5, timestamp_ms=NOW_MS)
COMMON = {"device_id": "DTG-TEST", "timestamp": NOW_MS}
EXPECTED: dict[str, tuple[int, dict[str, Any]]] = {
    "telemetry": (0, {
        "vehicle_speed": 62.5, "engine_rpm": 1850, "throttle_position": 23.5, "fuel_level": 71,
        "gps": {"lat": 37.5665, "lon": 126.978, "speed": 61.9},
    }),
    "inference": (1, {
        "behavior": "normal", "confidence": 0.93, "safety_score": 88, "fuel_efficiency": 12.4, "latency_ms": 41,
    }),
    "alerts": (2, {
        "alert_type": "harsh_braking", "severity": "high", "location": {"lat": 37.5665, "lon": 126.978},
        "details": {"deceleration": -6.1},
    }),
    "status": (1, {
        "status": "ONLINE", "uptime_seconds": 3600, "battery_voltage": 12.6, "memory_usage_mb": 128,
        "storage_available_mb": 2048, "can_messages_received": 50_000, "mqtt_messages_sent": 1234,
        "offline_queue_size": 5,
    }),
}  # fmt: skip


def publish_the_four(manager: MQTTManager) -> None:
    manager.publish_telemetry(TELEMETRY)
    manager.publish_inference(INFERENCE)
    manager.publish_alert(ALERT)
    manager.publish_status(STATUS)


def assert_the_four(subscriber: Subscriber) -> None:
    assert subscriber.wait_for_count(4)
    arrived = {each.topic: (each.qos, json.loads(each.payload)) for each in subscriber.arrivals}
    assert arrived == {
        f"glec/dtg/DTG-TEST/{suffix}": (qos, {**COMMON, **fields}) for suffix, (qos, fields) in EXPECTED.items()
    }
    assert len(subscriber.arrivals) == 4


def open_online(manager: MQTTManager) -> Recorder:
    recorder = Recorder()
    manager.set_connection_callback(recorder)
    manager.connect()
    assert recorder.wait_for_connections()
    return recorder


@BOTH_VERSIONS
def test_the_four_topics_arrive_with_their_qos_and_fields(
    broker: Broker, tmp_path: Path, protocol_version: int
) -> None:
    config = quick_config(broker.url, tmp_path, protocol_version=protocol_version)
    with Subscriber(broker) as subscriber, MQTTManager(config) as manager:
        open_online(manager)
        publish_the_four(manager)
        assert_the_four(subscriber)


def test_the_four_topics_published_before_the_connection_arrive_alike(broker: Broker, tmp_path: Path) -> None:
    with Subscriber(broker) as subscriber, MQTTManager(quick_config(broker.url, tmp_path)) as manager:
        publish_the_four(manager)
        manager.connect()
        assert_the_four(subscriber)


def test_the_four_topics_arrive_over_tls(tls_broker: Broker, authority: CertificateAuthority, tmp_path: Path) -> None:
    config = quick_config(
        tls_broker.tls_url, tmp_path, tls_config=TLSConfig.create_server_auth(authority.certificate_path)
    )
    with Subscriber(tls_broker) as subscriber, MQTTManager(config) as manager:
        open_online(manager)
        publish_the_four(manager)
        assert_the_four(subscriber)


def test_a_flush_over_tls_loses_and_repeats_nothing(
    tls_broker: Broker, authority: CertificateAuthority, tmp_path: Path
) -> None:
    config = quick_config(
        tls_broker.tls_url, tmp_path, tls_config=TLSConfig.create_server_auth(authority.certificate_path)
    )
    payloads = [f"{number}-".encode() + b"x" * 300 for number in range(2000)]
    with Subscriber(tls_broker) as subscriber, MQTTManager(config) as manager:
        for number, payload in enumerate(payloads):
            manager.publish("t", payload, 1 + number % 2 if number % 100 == 0 else 1)
        manager.connect()
        assert manager.flush(TIMEOUT_S)
        assert subscriber.wait_for_count(len(payloads))
        assert subscriber.payloads() == payloads


def test_an_untrusted_broker_gets_nothing_and_costs_nothing(tls_broker: Broker, tmp_path: Path) -> None:
    with MQTTManager(quick_config(tls_broker.tls_url, tmp_path)) as manager:
        recorder = Recorder()
        manager.set_connection_callback(recorder)
        manager.publish("t", "kept", 1)
        manager.connect()
        assert recorder.wait_for(lambda events: events.count("reconnecting") >= 2)
        assert "connected" not in recorder.events
        assert manager.get_metrics().queue_size == 1


@BOTH_VERSIONS
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_ten_thousand_queued_arrive_in_order_each_once(
    broker: Broker, tmp_path: Path, qos: int, protocol_version: int
) -> None:
    payloads = [b"%d" % number for number in range(10_000)]
    config = quick_config(broker.url, tmp_path, wait_for_disk=False, protocol_version=protocol_version)
    with Subscriber(broker) as subscriber, MQTTManager(config) as manager:
        for payload in payloads:
            manager.publish("t", payload, qos)
        assert manager.get_metrics().queue_size == len(payloads)
        manager.connect()
        assert manager.flush(4 * TIMEOUT_S)
        assert subscriber.wait_for_count(len(payloads), 4 * TIMEOUT_S)
        assert subscriber.payloads() == payloads
        metrics = manager.get_metrics()
    assert (metrics.queue_size, metrics.messages_sent, metrics.messages_failed) == (0, len(payloads), 0)


@pytest.mark.parametrize("queue_order", ["fifo", "alerts_first"])
def test_what_is_published_during_the_flush_queues_behind_it(broker: Broker, tmp_path: Path, queue_order: str) -> None:
    config = quick_config(broker.url, tmp_path, max_in_flight=20, wait_for_disk=False, queue_order=queue_order)
    with Subscriber(broker) as subscriber, MQTTManager(config) as manager:
        expected = []
        wire = bytearray()
        create = manager._client._create_socket
        manager._client._create_socket = lambda: TappedSocket(create(), wire.extend)  # type: ignore[method-assign]
        for number in range(2000):
            expected.append(b"%d" % number)
            manager.publish("t", expected[-1], 1 + number % 2)
        manager.connect()
        assert subscriber.wait_for_count(50)
        for number in range(2000, 2300):
            expected.append(b"%d" % number)
            manager.publish("t", expected[-1], number % 3)
        assert manager.flush(TIMEOUT_S)
        assert subscriber.wait_for_count(len(expected))
        assert sorted(subscriber.payloads()) == sorted(expected)
    # As sent: mosquitto hands a message on past others that wait for a place in the subscriber's window.
    sent = [packet for packet in parse(bytes(wire))[0] if packet.kind == PUBLISH and packet.flags & 6]
    order = [(packet.flags >> 1 & 3, int(packet.body[5:])) for packet in sent]
    expected_order = [(1 + number % 2 if number < 2000 else number % 3, number) for number in range(2300)]
    expected_order = [each for each in expected_order if each[0]]
    if queue_order == "alerts_first":
        # In turn within each QoS (MQTT 3.1.1, 4.6).
        assert order != expected_order
        order.sort(key=lambda each: each[0])
        expected_order.sort()
    assert order == expected_order


@BOTH_VERSIONS
def test_each_run_flushes_what_the_last_one_left(broker: Broker, tmp_path: Path, protocol_version: int) -> None:
    config = quick_config(broker.url, tmp_path, protocol_version=protocol_version)
    with MQTTManager(config) as manager:
        for number in range(10):
            manager.publish("t", f"first-{number}", number % 3)
    with Subscriber(broker) as subscriber, MQTTManager(config) as manager:
        assert manager.get_metrics().queue_size == 10
        manager.connect()
        assert manager.flush(TIMEOUT_S)
        assert subscriber.wait_for_count(10)
        assert sorted(subscriber.payloads()) == sorted(b"first-%d" % number for number in range(10))


def test_another_client_id_sends_what_the_first_one_left(broker: Broker, tmp_path: Path) -> None:
    with MQTTManager(quick_config(broker.url, tmp_path, client_id="DTG-OLD")) as manager:
        for number in range(20):
            manager.publish("t", str(number), 2)
    with (
        Subscriber(broker) as subscriber,
        MQTTManager(quick_config(broker.url, tmp_path, client_id="DTG-NEW")) as manager,
    ):
        manager.connect()
        assert manager.flush(TIMEOUT_S)
        assert subscriber.wait_for_count(20)
        assert subscriber.payloads() == [b"%d" % number for number in range(20)]


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ("text é 한", "text é 한".encode()),
        (b"\x00\xff binary", b"\x00\xff binary"),
        (bytearray(b"bytes"), b"bytes"),
        ({"a": [1, 2.5, None]}, b'{"a":[1,2.5,null]}'),
        ("", b""),
        ("nul \0 inside", b"nul \0 inside"),
    ],
)
@pytest.mark.parametrize("is_queued", [False, True])
def test_a_payload_arrives_as_it_was_given(
    broker: Broker, tmp_path: Path, given: object, sent: bytes, is_queued: bool
) -> None:
    with Subscriber(broker) as subscriber, MQTTManager(quick_config(broker.url, tmp_path)) as manager:
        if not is_queued:
            open_online(manager)
        for qos in range(3):
            manager.publish("t", given, qos)
        manager.connect()
        assert subscriber.wait_for_count(3)
        assert [json.loads(each) if isinstance(given, dict) else each for each in subscriber.payloads()] == (
            [json.loads(sent) if isinstance(given, dict) else sent] * 3
        )


def test_a_large_payload_arrives(broker: Broker, tmp_path: Path) -> None:
    # mosquitto takes 2,000,000 bytes at most from 2.1 on, where it is not told otherwise.
    payload = bytes(range(256)) * 7500
    with Subscriber(broker) as subscriber, MQTTManager(quick_config(broker.url, tmp_path)) as manager:
        for qos in range(3):
            manager.publish("t", payload, qos)
        manager.connect()
        assert subscriber.wait_for_count(3)
        assert subscriber.payloads() == [payload] * 3


def test_qos_0_goes_out_directly_while_connected(broker: Broker, tmp_path: Path) -> None:
    # A commit so late that a message which went through the file could not arrive within the test.
    config = quick_config(broker.url, tmp_path, qos0_commit_delay_s=3600)
    with Subscriber(broker) as subscriber, MQTTManager(config) as manager:
        open_online(manager)
        handle = manager.publish("t", "now", 0)
        assert handle.wait_durable(0.0) is False
        handle.wait_for_publish(TIMEOUT_S)
        assert handle.is_published()
        assert subscriber.wait_for_count(1)
        assert manager.get_metrics().queue_size == 0


def test_qos_0_is_queued_while_offline(broker: Broker, tmp_path: Path) -> None:
    config = quick_config(broker.url, tmp_path, qos0_commit_delay_s=3600)
    with Subscriber(broker) as subscriber, MQTTManager(config) as manager:
        handle = manager.publish("t", "later", 0)
        assert manager.get_metrics().queue_size == 1
        assert not handle.is_published()
        assert handle.wait_durable(TIMEOUT_S)
        manager.connect()
        handle.wait_for_publish(TIMEOUT_S)
        assert handle.is_published()
        assert subscriber.wait_for_count(1)
        assert manager.flush(TIMEOUT_S)


def test_connecting_commits_the_qos_0_messages_that_wait_in_memory(broker: Broker, tmp_path: Path) -> None:
    config = quick_config(broker.url, tmp_path, qos0_commit_delay_s=3600)
    with Subscriber(broker) as subscriber, MQTTManager(config) as manager:
        manager.publish("t", "waits in memory", 0)
        open_online(manager)
        assert subscriber.wait_for_count(1, TIMEOUT_S)


def test_the_counters_count(broker: Broker, tmp_path: Path) -> None:
    with Subscriber(broker), MQTTManager(quick_config(broker.url, tmp_path)) as manager:
        assert not manager.get_metrics().is_connected
        open_online(manager)
        for qos in (0, 1, 2):
            manager.publish("t", "x", qos)
        assert manager.flush(TIMEOUT_S)
        assert eventually(lambda: manager.get_metrics().messages_sent == 3)
        metrics = manager.get_metrics()
    assert metrics.is_connected
    assert (metrics.messages_failed, metrics.reconnect_count, dict(metrics.drops)) == (0, 0, {})


@pytest.mark.parametrize("queue_order", ["fifo", "alerts_first"])
def test_without_a_backlog_telemetry_goes_past_the_queue_and_the_end_is_in_order(
    broker: Broker, tmp_path: Path, queue_order: str
) -> None:
    with Subscriber(broker) as subscriber:
        with MQTTManager(quick_config(broker.url, tmp_path, queue_order=queue_order)) as manager:
            manager.connect()
            manager.publish("t", "first", 1).wait_for_publish(TIMEOUT_S)
            assert eventually(lambda: not manager._store.has_backlog)
            assert manager.publish("t", "direct", 0).message_id < 0
        assert subscriber.wait_for_end(TIMEOUT_S)
        # And no will.
        assert subscriber.payloads() == [b"first", b"direct"]
