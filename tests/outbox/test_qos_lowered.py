"""A broker without QoS 2: what has a higher QoS than it takes goes with a lower one, and that is said once."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from glec_fast import Client, ConfigError, MessageError, MQTTConfig, MQTTManager
from glec_fast.mqtt import CallbackAPIVersion, MQTTProtocolVersion
from glec_fast.testbed.subscriber import Subscriber
from support.gateway import BOTH_VERSIONS, TIMEOUT_S, quick_config
from support.scripted_gateway import ScriptedGateway
from support.wire_reference import PUBACK, ack, parse

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import StartBroker

V2 = CallbackAPIVersion.VERSION2


@BOTH_VERSIONS
def test_an_alert_goes_with_qos_1_where_the_broker_has_no_more(
    start_broker: StartBroker, tmp_path: Path, protocol_version: int, caplog: pytest.LogCaptureFixture
) -> None:
    """MQTT 5 finds out by itself; in MQTT 3.1.1 it is a setting."""
    broker = start_broker(settings=["max_qos 1"])
    # With MQTT 5 the broker says it.
    max_qos = 1 if protocol_version == 4 else 2
    config = quick_config(broker.url, tmp_path, protocol_version=protocol_version, max_qos=max_qos)
    with Subscriber(broker) as subscriber, MQTTManager(config) as manager:
        handles = [manager.publish("t", f"{number}", number % 3) for number in range(9)]
        manager.connect()
        for handle in handles:
            handle.wait_for_publish(TIMEOUT_S)
        assert manager.flush(TIMEOUT_S)
        assert subscriber.wait_for_count(9)
        metrics = manager.get_metrics()
        assert (metrics.reconnect_count, metrics.messages_failed) == (0, 0)
        assert metrics.weaknesses == {"qos_lowered": 3}
    assert sum("takes no such QoS" in record.getMessage() for record in caplog.records) == 1
    assert all(record.levelno <= logging.WARNING for record in caplog.records)


@pytest.mark.parametrize("max_qos", [0, 1])
def test_each_goes_with_the_highest_that_there_is(tmp_path: Path, max_qos: int) -> None:
    with ScriptedGateway(tmp_path / "q.db") as gateway:
        gateway.outbox.server._max_qos = max_qos
        gateway.outbox.meet({}, 1)
        for qos in (0, 1, 2):
            gateway.publish(f"{qos}", qos)
        gateway.commit()
        gateway.connect()
        packets, _ = parse(gateway.send())
        assert [packet.flags >> 1 & 3 for packet in packets] == [0, max_qos, max_qos]
        for packet in packets[1:] if max_qos else ():
            gateway.receive(ack(PUBACK, packet.packet_id))
        gateway.commit()
        assert gateway.store.size == 0
        assert gateway.outbox.weaknesses.counts() == {"qos_lowered": 2 - max_qos}


@pytest.mark.parametrize("queue_order", ["fifo", "alerts_first"])
def test_what_went_with_qos_0_is_in_the_air(tmp_path: Path, queue_order: str) -> None:
    with ScriptedGateway(tmp_path / "q.db", queue_order=queue_order) as gateway:
        gateway.outbox.server._max_qos = 0
        gateway.outbox.meet({}, 1)
        ids = {gateway.publish(f"{qos}", qos).message_id for qos in (0, 2, 1, 2)}
        gateway.commit()
        gateway.connect()
        while gateway.send():
            pass
        gateway.cut()
        assert gateway.outbox.lost_in_the_air == 4
        assert {each.message_id for each in gateway.dropped} == ids


def test_an_exchange_that_has_begun_goes_on_as_it_began(tmp_path: Path) -> None:
    with ScriptedGateway(tmp_path / "q.db") as gateway:
        gateway.publish("x", 2)
        gateway.connect()
        gateway.commit()
        assert parse(gateway.send())[0][0].flags >> 1 == 2
        gateway.cut()
        gateway.outbox.meet({"MaximumQoS": 1}, 1)
        gateway.connect()
        (packet,) = parse(gateway.send())[0]
        assert (packet.flags >> 1 & 3, packet.flags >> 3) == (2, 1)


@BOTH_VERSIONS
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_the_door_counts_the_whole_packet(
    start_broker: StartBroker, tmp_path: Path, protocol_version: int, qos: int
) -> None:
    broker = start_broker(settings=["max_packet_size 4000"])
    config = quick_config(broker.url, tmp_path, protocol_version=protocol_version, max_packet_bytes=4000)
    head_bytes = 3 + 2 + 1 + (2 if qos else 0) + (protocol_version == 5)
    with Subscriber(broker) as subscriber, MQTTManager(config) as manager:
        manager.connect()
        with pytest.raises(MessageError, match="4001 bytes"):
            manager.publish("t", "x" * (4001 - head_bytes), qos)
        manager.publish("t", "x" * (4000 - head_bytes), qos)
        assert manager.flush(TIMEOUT_S)
        assert subscriber.wait_for_count(1)
        assert manager.get_metrics().reconnect_count == 0


def test_of_a_client_with_a_store(tmp_path: Path) -> None:
    with Client(V2, "c", store=tmp_path / "q.db", max_packet_bytes=64, protocol=MQTTProtocolVersion.MQTTv5) as client:
        with pytest.raises(MessageError, match="max_packet_bytes"):
            client.publish("t", "x" * 100, 1)
        assert client.store.size == 0
    for wrong in ({"max_qos": 3}, {"max_packet_bytes": 63}, {"max_packet_bytes": 1 << 30}):
        with pytest.raises(ConfigError):
            Client(V2, "c", store=tmp_path / "q.db", **wrong)
    with pytest.raises(ConfigError, match="store"):
        Client(V2, "c", max_qos=1)
    with pytest.raises(ConfigError, match="max_qos"):
        MQTTConfig("tcp://h", "c", max_qos=3)
