"""Retain and MQTT 5 properties of queued messages arrive as they were given; test_extras.py is what needs no broker."""

from __future__ import annotations

import threading
from contextlib import closing
from typing import TYPE_CHECKING, Any

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

import glec_fast
from glec_fast import MQTTManager
from glec_fast.outbox.server_limits import ServerLimits
from support.extras import kept, properties_of
from support.gateway import TIMEOUT_S, eventually, quick_config

if TYPE_CHECKING:
    from pathlib import Path

    from glec_fast.testbed.broker import Broker

V2 = CallbackAPIVersion.VERSION2
V5 = MQTTProtocolVersion.MQTTv5


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "queue.db"


class Listener:
    """An MQTT 5 subscriber that keeps whole messages."""

    def __init__(self, broker: Broker) -> None:
        self.arrived: list[paho.MQTTMessage] = []
        self._changed = threading.Condition()
        self._subscribed = threading.Event()
        self._client = paho.Client(V2, client_id="listener", protocol=V5)
        self._client.on_message = self._on_message
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        self._client.connect(broker.host, broker.port)
        self._client.loop_start()
        self._client.subscribe("t/#", 2)
        assert self._subscribed.wait(TIMEOUT_S)

    def _on_message(self, _client: Any, _userdata: Any, message: paho.MQTTMessage) -> None:
        with self._changed:
            self.arrived.append(message)
            self._changed.notify_all()

    def wait_for(self, count: int) -> list[paho.MQTTMessage]:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.arrived) >= count, TIMEOUT_S)
        return self.arrived

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


def publish_offline(path: Path, protocol: MQTTProtocolVersion) -> None:
    with glec_fast.Client(V2, "stored", store=path, protocol=protocol) as client:
        for qos in range(3):
            properties = properties_of(ContentType=f"type {qos}", MessageExpiryInterval=3600)
            client.publish(f"t/{qos}", f"{qos}", qos, retain=qos > 0, properties=properties)
        client.publish("t/plain", "plain", 1)


def go_online(client: glec_fast.Client, broker: Broker) -> None:
    client.connect(broker.host, broker.port)
    client.loop_start()


def test_they_arrive_after_a_restart_as_they_were_given(broker: Broker, path: Path) -> None:
    publish_offline(path, V5)
    with closing(Listener(broker)) as listener, glec_fast.Client(V2, "stored", store=path, protocol=V5) as client:
        go_online(client, broker)
        messages = {message.topic: message for message in listener.wait_for(4)}
        for qos in range(3):
            properties: Any = messages[f"t/{qos}"].properties
            assert properties.ContentType == f"type {qos}"
            assert 0 < properties.MessageExpiryInterval <= 3600
        assert messages["t/plain"].properties is not None
        assert messages["t/plain"].properties.isEmpty()
        assert client.flush(TIMEOUT_S)
    assert kept(path) == []
    with closing(Listener(broker)) as late:
        assert {message.topic for message in late.wait_for(2) if message.retain} == {"t/1", "t/2"}


def test_a_client_of_3_1_1_sends_what_one_of_5_left_without_properties(broker: Broker, path: Path) -> None:
    publish_offline(path, V5)
    with closing(Listener(broker)) as listener, glec_fast.Client(V2, "stored", store=path) as client:
        go_online(client, broker)
        assert all(message.properties is None or message.properties.isEmpty() for message in listener.wait_for(4))
    with closing(Listener(broker)) as late:
        assert {message.topic for message in late.wait_for(2)} == {"t/1", "t/2"}


def test_qos_0_that_goes_past_the_queue_has_them_too(broker: Broker, path: Path) -> None:
    with closing(Listener(broker)) as listener, glec_fast.Client(V2, "stored", store=path, protocol=V5) as client:
        go_online(client, broker)
        assert eventually(lambda: client._glec_outbox.is_open)
        client.publish("t", "x", 0, properties=properties_of(ContentType="direct"))
        (message,) = listener.wait_for(1)
        properties: Any = message.properties
        assert properties.ContentType == "direct"
        assert client.store._intake.next_id == 1


def test_qos_0_within_the_limits_of_the_server_goes_past_the_queue(broker: Broker, path: Path) -> None:
    with closing(Listener(broker)) as listener, glec_fast.Client(V2, "stored", store=path, protocol=V5) as client:
        go_online(client, broker)
        assert eventually(lambda: client._glec_outbox.is_open)
        client._glec_outbox.server.limits = ServerLimits(2, True, 100)
        client.publish("t", "x", 0)
        assert listener.wait_for(1)
        assert client.store._intake.next_id == 1
        client.publish("t", "x" * 100, 0)
        assert client.store._intake.next_id == 2


def test_the_manager_retains(broker: Broker, tmp_path: Path) -> None:
    with MQTTManager(quick_config(broker.url, tmp_path)) as manager:
        for qos in range(3):
            manager.publish(f"t/{qos}", "x", qos, retain=True)
        manager.publish("t/plain", "x", 1)
        manager.connect()
        assert manager.flush(TIMEOUT_S)
    with closing(Listener(broker)) as late:
        assert {message.topic for message in late.wait_for(3)} == {"t/0", "t/1", "t/2"}
