"""What consumers of the status topic see: ONLINE with each connection, OFFLINE once it is so, and nothing late."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from glec_fast import MQTTManager
from glec_fast.testbed.link import Link
from glec_fast.testbed.subscriber import Subscriber
from support.gateway import TIMEOUT_S, Recorder, eventually, quick_config

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import StartBroker
    from glec_fast.testbed.broker import Broker

TOPIC = "glec/dtg/DTG-TEST/status"


def statuses(subscriber: Subscriber) -> list[str]:
    return [json.loads(each.payload)["status"] for each in subscriber.arrivals if each.topic == TOPIC]


def test_over_a_lost_link_and_to_an_orderly_end(broker: Broker, tmp_path: Path) -> None:
    recorder = Recorder()
    with Link((broker.host, broker.port)) as link, Subscriber(broker, TOPIC) as subscriber:
        config = quick_config(f"tcp://127.0.0.1:{link.port}", tmp_path, status_interval_s=300)
        with MQTTManager(config) as manager:
            manager.set_connection_callback(recorder)
            manager.connect()
            assert subscriber.wait_for_count(1)
            link.drop()
            assert recorder.wait_for_connections(2)
            assert subscriber.wait_for_count(3)
            # The broker may hear of the loss after the new connection; then it publishes the will of the old one first.
            assert statuses(subscriber) == ["ONLINE", "OFFLINE", "ONLINE"]
            assert manager.get_metrics().queue_size == 0
        assert subscriber.wait_for_count(4)
        assert statuses(subscriber)[-1] == "OFFLINE"
        assert all(each.qos == 1 for each in subscriber.arrivals)
    with Subscriber(broker, TOPIC, client_id="late") as late:
        assert late.wait_for_count(1)
        assert statuses(late) == ["OFFLINE"]


@pytest.mark.parametrize(("protocol_version", "max_qos"), [(4, 0), (5, 0), (5, 2)])
def test_where_the_broker_takes_qos_0_alone(
    start_broker: StartBroker, tmp_path: Path, protocol_version: int, max_qos: int
) -> None:
    """MQTT 5 says so in words, also of the will; with 3.1.1 it has to be set."""
    broker = start_broker(settings=["max_qos 0"])
    settings = {"protocol_version": protocol_version, "max_qos": max_qos, "status_interval_s": 300}
    config = quick_config(broker.url, tmp_path, **settings)
    with Subscriber(broker) as subscriber:
        with MQTTManager(config) as manager:
            manager.connect()
            manager.publish("t", "alert", 2)
            assert manager.flush(TIMEOUT_S)
            assert subscriber.wait_for_count(2)
        assert subscriber.wait_for_count(3)
        assert statuses(subscriber) == ["ONLINE", "OFFLINE"]
        assert b"alert" in subscriber.payloads("t")


def test_online_goes_ahead_of_the_backlog(broker: Broker, tmp_path: Path) -> None:
    with Subscriber(broker) as subscriber:
        with MQTTManager(quick_config(broker.url, tmp_path, status_interval_s=300)) as manager:
            for number in range(500):
                manager.publish("backlog", f"{number}", 1)
            manager.connect()
            assert manager.flush(TIMEOUT_S)
        assert subscriber.wait_for_count(502)
        assert subscriber.arrivals[0].topic == TOPIC
        assert statuses(subscriber) == ["ONLINE", "OFFLINE"]


def test_heartbeats_are_not_queued(broker: Broker, tmp_path: Path) -> None:
    with Link((broker.host, broker.port)) as link, Subscriber(broker, TOPIC) as subscriber:
        config = quick_config(f"tcp://127.0.0.1:{link.port}", tmp_path, status_interval_s=0.02, retry_max_delay_ms=100)
        with MQTTManager(config) as manager:
            manager.connect()
            assert subscriber.wait_for_count(3)
            link.cut()
            assert eventually(lambda: not manager.is_connected())
            attempts = manager.get_metrics().attempts
            assert eventually(lambda: manager.get_metrics().attempts > attempts + 3)
            assert manager.get_metrics().queue_size == 0
            link.restore()
            assert eventually(manager.is_connected)


def test_not_retained(broker: Broker, tmp_path: Path) -> None:
    config = quick_config(broker.url, tmp_path, status_interval_s=300, status_retained=False)
    with Subscriber(broker, TOPIC) as subscriber:
        with MQTTManager(config) as manager:
            manager.connect()
            assert subscriber.wait_for_count(1)
        assert subscriber.wait_for_count(2)
    with Subscriber(broker, TOPIC, client_id="late") as late, MQTTManager(config) as manager:
        manager.connect()
        assert late.wait_for_count(1)
        assert statuses(late) == ["ONLINE"]


def test_no_interval_no_status(broker: Broker, tmp_path: Path) -> None:
    with Subscriber(broker) as subscriber:
        with MQTTManager(quick_config(broker.url, tmp_path)) as manager:
            manager.connect()
            manager.publish("t", "x", 1).wait_for_publish(TIMEOUT_S)
        assert subscriber.wait_for_end(TIMEOUT_S)
        assert [each.topic for each in subscriber.arrivals] == ["t"]
