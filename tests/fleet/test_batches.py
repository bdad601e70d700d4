"""Telemetry in batches: what arrives, when, over which ends, and what it saves."""

from __future__ import annotations

import gzip
import json
import queue
import signal
import socket
import subprocess
import zlib
from functools import partial
from typing import TYPE_CHECKING, Any

import apsw
import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from glec_fast import Alert, MessageError, MQTTConfig, MQTTManager, Telemetry, decode_batch
from glec_fast.mqtt.client import parts_of
from glec_fast.testbed.subscriber import Subscriber
from support.forked import Forked
from support.gateway import BOTH_VERSIONS, TIMEOUT_S, Recorder, eventually, quick_config
from support.loopback import LoopbackServer
from support.store import Disk
from support.wire_reference import PUBLISH, parse

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from glec_fast import PublishHandle
    from glec_fast.testbed.broker import Broker

BATCHES = "glec/dtg/DTG-TEST/telemetry/batch"
CONNECT, PINGREQ, DISCONNECT = 1, 12, 14
HOUR_S = 3600
START_MS = 1_700_000_000_000
# Gathers 40, says that they are on disk, gathers more and waits to be killed.
KILLED = """
import sys
from glec_fast import MQTTConfig, MQTTManager, Telemetry

url, path, start_ms = sys.argv[1:]
manager = MQTTManager(
    MQTTConfig(url, "DTG-TEST", queue_path=path, telemetry_batch_s=3600, qos0_commit_delay_s=3600, status_interval_s=0)
)
manager.connect()
for number in range(50):
    handle = manager.publish_telemetry(
        Telemetry(
            vehicle_speed=1, engine_rpm=1, throttle_position=1, fuel_level=1, timestamp_ms=int(start_ms) + number
        )
    )
    if number == 39:
        handle.wait_durable()
        print("durable", flush=True)
sys.stdin.readline()
"""


def publish(manager: MQTTManager, numbers: Iterable[int]) -> list[PublishHandle]:
    return [
        manager.publish_telemetry(
            Telemetry(
                vehicle_speed=float(number), engine_rpm=900.0, throttle_position=12.0, fuel_level=50.0,
                timestamp_ms=START_MS + number,
            )
        )
        for number in numbers
    ]  # fmt: skip


def numbers_of(payload: bytes) -> list[int]:
    return [message["timestamp"] - START_MS for message in decode_batch(payload)]


class Reading(LoopbackServer):
    """Says what it must. kinds: of the packets that came."""

    def __init__(self) -> None:
        super().__init__(self._read)
        self.kinds: list[int] = []

    def has_answered(self, manager: MQTTManager, count: int) -> bool:
        """So many questions, all that the client has asked."""
        session = parts_of(manager._client).outbox.session
        return self.kinds.count(PINGREQ) == count and not session.pinged_to

    def _read(self, sock: socket.socket) -> None:
        rest = b""
        while data := sock.recv(65_536):
            packets, rest = parse(rest + data)
            for packet in packets:
                self.kinds.append(packet.kind)
                if packet.kind in (CONNECT, PINGREQ):
                    sock.sendall(b"\x20\x02\x00\x00" if packet.kind == CONNECT else b"\xd0\x00")


def connected(manager: MQTTManager) -> MQTTManager:
    recorder = Recorder()
    manager.set_connection_callback(recorder)
    manager.connect()
    assert recorder.wait_for_connections()
    return manager


def test_without_the_setting_each_goes_alone(broker: Broker, tmp_path: Path) -> None:
    with Subscriber(broker) as subscriber:
        with connected(MQTTManager(quick_config(broker.url, tmp_path))) as manager:
            publish(manager, range(3))
        assert subscriber.wait_for_count(3)
        assert {each.topic for each in subscriber.arrivals} == {"glec/dtg/DTG-TEST/telemetry"}


def test_what_is_published_as_telemetry_in_another_way_goes_along(broker: Broker, tmp_path: Path) -> None:
    """As the service does for its programs."""
    topic = "glec/dtg/DTG-TEST/telemetry"
    config = quick_config(broker.url, tmp_path, telemetry_batch_s=HOUR_S)
    with Subscriber(broker) as subscriber:
        with connected(MQTTManager(config)) as manager:
            [handle] = publish(manager, [0])
            for payload in (
                {"timestamp": START_MS + 1},
                f'{{"timestamp": {START_MS + 2}}}',
                b'{"timestamp":%d}' % (START_MS + 3),
            ):
                assert manager.publish(topic, payload, 0) is handle
            # What would leave the batch without a reader, or is not telemetry of its kind.
            for payload in ("[1]", "7", "{", b"\xff", '{"a": NaN}', b"\xef\xbb\xbf{}", "[" * 100_000, ""):
                assert manager.publish(topic, payload, 0) is not handle
            assert manager.publish(topic, {}, 0, retain=True) is not handle
            assert manager.publish(topic, {}, 1) is not handle
            assert manager.publish(topic + "/x", {}, 0) is not handle
        assert subscriber.wait_for_count(12)
        [batch] = [each for each in subscriber.arrivals if each.topic == BATCHES]
        assert numbers_of(batch.payload) == [0, 1, 2, 3]


@BOTH_VERSIONS
def test_they_arrive_as_one_once_the_first_has_waited(broker: Broker, tmp_path: Path, protocol_version: int) -> None:
    config = quick_config(broker.url, tmp_path, telemetry_batch_s=0.2, protocol_version=protocol_version)
    with Subscriber(broker) as subscriber, connected(MQTTManager(config)) as manager:
        handles = publish(manager, range(5))
        assert subscriber.wait_for_count(1)
        [arrival] = subscriber.arrivals
        assert (arrival.topic, arrival.qos) == (BATCHES, 0)
        assert numbers_of(arrival.payload) == list(range(5))
        # In two lines, without our code.
        assert json.loads(zlib.decompress(arrival.payload))[4]["vehicle_speed"] == 4
        for handle in handles:
            handle.wait_for_publish(TIMEOUT_S)
            assert handle.is_published()
            assert handle.message_id > 0
        assert eventually(lambda: manager.get_metrics().queue_size == 0)


def test_in_mqtt_5_it_says_what_it_is(broker: Broker, tmp_path: Path) -> None:
    heard: queue.Queue[paho.MQTTMessage] = queue.Queue()
    is_subscribed: queue.Queue[bool] = queue.Queue()
    subscriber = paho.Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
    subscriber.on_message = lambda _client, _data, message: heard.put(message)
    subscriber.on_connect = lambda client, *_: client.subscribe(BATCHES)
    subscriber.on_subscribe = lambda *_: is_subscribed.put(True)
    subscriber.connect(broker.host, broker.port)
    subscriber.loop_start()
    try:
        assert is_subscribed.get(timeout=TIMEOUT_S)
        config = quick_config(broker.url, tmp_path, telemetry_batch_s=HOUR_S, protocol_version=5)
        with MQTTManager(config) as manager:
            # Through the file, which must keep it.
            publish(manager, range(2))[0].wait_durable(TIMEOUT_S)
        with connected(MQTTManager(config)) as manager:
            assert manager.flush(TIMEOUT_S)
        message = heard.get(timeout=TIMEOUT_S)
        assert message.properties is not None
        assert message.properties.ContentType == "application/json+zlib"
        assert numbers_of(message.payload) == [0, 1]
    finally:
        subscriber.disconnect()
        subscriber.loop_stop()


class TestEnds:
    def test_flush_sends_what_is_there(self, broker: Broker, tmp_path: Path) -> None:
        config = quick_config(broker.url, tmp_path, telemetry_batch_s=HOUR_S)
        with Subscriber(broker) as subscriber, connected(MQTTManager(config)) as manager:
            publish(manager, range(3))
            assert manager.get_metrics().queue_size == 1
            assert manager.flush(TIMEOUT_S)
            assert subscriber.wait_for_count(1)
            assert numbers_of(subscriber.arrivals[0].payload) == [0, 1, 2]

    @BOTH_VERSIONS
    def test_an_orderly_end_sends_what_is_there(self, broker: Broker, tmp_path: Path, protocol_version: int) -> None:
        settings = {"telemetry_batch_s": HOUR_S, "protocol_version": protocol_version}
        with Subscriber(broker) as subscriber:
            with connected(MQTTManager(quick_config(broker.url, tmp_path, **settings))) as manager:
                publish(manager, range(3))
            assert subscriber.wait_for_count(1)
            assert numbers_of(subscriber.arrivals[0].payload) == [0, 1, 2]

    def test_an_end_without_a_link_leaves_it_to_the_next_start(self, broker: Broker, tmp_path: Path) -> None:
        with MQTTManager(quick_config(broker.url, tmp_path, telemetry_batch_s=HOUR_S)) as manager:
            publish(manager, range(3))
        with Subscriber(broker) as subscriber:
            # Though it does not gather any more.
            with connected(MQTTManager(quick_config(broker.url, tmp_path))) as manager:
                assert manager.flush(TIMEOUT_S)
            assert subscriber.wait_for_count(1)
            assert numbers_of(subscriber.arrivals[0].payload) == [0, 1, 2]

    def test_a_kill_loses_nothing_that_was_on_disk(self, broker: Broker, tmp_path: Path) -> None:
        for kill in range(2):
            words = ["-c", KILLED, broker.url, tmp_path / "queue.db", START_MS]
            child = Forked(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            assert child.stdout is not None
            assert child.stdin is not None
            assert child.stdout.readline() == b"durable\n", kill
            child.send_signal(signal.SIGKILL)
            assert child.wait(TIMEOUT_S) == -signal.SIGKILL
            child.stdin.close()
            child.stdout.close()
        with Subscriber(broker) as subscriber:
            with connected(MQTTManager(quick_config(broker.url, tmp_path))) as manager:
                assert manager.flush(TIMEOUT_S)
            assert subscriber.wait_for_end(TIMEOUT_S)
            found = [numbers_of(each.payload) for each in subscriber.arrivals]
        # That of the first run was sent by the second, as it connected, or is sent now.
        assert found
        assert all(set(range(40)) <= set(numbers) <= set(range(50)) for numbers in found)
        assert len(found) <= 2


class TestQuestion:
    """Whether a batch has arrived: PINGREQ asks, which takes three segments of its own where it goes seconds later."""

    def test_it_goes_with_the_batch(self, tmp_path: Path) -> None:
        with Reading() as server, connected(MQTTManager(self.config(server, tmp_path))) as manager:
            for first in range(3):
                publish(manager, [first])
                assert manager.flush(TIMEOUT_S)
                # Asked, and answered, as one at a time asks.
                assert eventually(partial(server.has_answered, manager, first + 1))
            assert server.kinds[1:] == [PUBLISH, PINGREQ] * 3

    def test_not_with_what_is_no_batch_nor_by_who_never_asks(self, tmp_path: Path) -> None:
        with Reading() as server:
            with connected(MQTTManager(self.config(server, tmp_path))) as manager:
                outbox = parts_of(manager._client).outbox
                # It has looked for what is queued: until then what comes goes behind that, and as rows are.
                assert eventually(lambda: outbox.is_open and not outbox.has_waiting_rows())
                for number in range(3):
                    manager.publish("positions", str(number), 0).wait_for_publish(TIMEOUT_S)
            with connected(MQTTManager(self.config(server, tmp_path, answer_timeout_s=0))) as manager:
                publish(manager, [0])
                assert manager.flush(TIMEOUT_S)
            assert eventually(lambda: server.kinds.count(DISCONNECT) == 2)
            assert PINGREQ not in server.kinds

    @staticmethod
    def config(server: Reading, directory: Path, **settings: Any) -> MQTTConfig:
        # So long that nobody asks otherwise.
        hours = {"telemetry_batch_s": HOUR_S, "answer_timeout_s": HOUR_S, "keepalive_s": HOUR_S}
        return quick_config(f"tcp://127.0.0.1:{server.port}", directory, **{**hours, **settings})


class TestFaults:
    def test_alerts_are_not_held_back(self, broker: Broker, tmp_path: Path) -> None:
        config = quick_config(broker.url, tmp_path, telemetry_batch_s=HOUR_S)
        with Subscriber(broker) as subscriber, connected(MQTTManager(config)) as manager:
            publish(manager, range(3))
            manager.publish_alert(Alert("HARSH_BRAKING", "HIGH")).wait_for_publish(TIMEOUT_S)
            assert subscriber.wait_for_count(1)
            assert subscriber.arrivals[0].topic == "glec/dtg/DTG-TEST/alerts"
            assert manager.get_metrics().batches == 0

    def test_while_the_disk_fails_they_go_alone(self, broker: Broker, tmp_path: Path) -> None:
        config = quick_config(broker.url, tmp_path, telemetry_batch_s=HOUR_S, qos0_commit_delay_s=0)
        with Subscriber(broker) as subscriber, connected(MQTTManager(config)) as manager:
            disk = Disk(manager._store)
            disk.error = apsw.FullError("database or disk is full")
            publish(manager, [0])
            assert eventually(lambda: manager._store.is_failing)
            publish(manager, [1])
            assert subscriber.wait_for_count(1)
            assert subscriber.arrivals[0].topic == "glec/dtg/DTG-TEST/telemetry"
            disk.error = None
            assert eventually(lambda: not manager._store.is_failing)
            publish(manager, [2])
            assert manager.flush(TIMEOUT_S)
            assert subscriber.wait_for_count(2)
            assert numbers_of(subscriber.arrivals[1].payload) == [0, 2]

    def test_none_is_larger_than_the_broker_takes(self, broker: Broker, tmp_path: Path) -> None:
        config = quick_config(broker.url, tmp_path, telemetry_batch_s=HOUR_S, max_packet_bytes=400)
        with Subscriber(broker) as subscriber, connected(MQTTManager(config)) as manager:
            handles = publish(manager, range(5))
            assert manager.flush(TIMEOUT_S)
            assert len(set(map(id, handles))) > 1
            assert subscriber.wait_for_end(TIMEOUT_S)
            found = [number for each in subscriber.arrivals for number in numbers_of(each.payload)]
            assert found == list(range(5))
            assert all(len(each.payload) < 400 for each in subscriber.arrivals)
        settings: dict[str, Any] = {"telemetry_batch_s": HOUR_S, "max_packet_bytes": 100}
        with (
            MQTTManager(quick_config(broker.url, tmp_path, **settings)) as manager,
            pytest.raises(MessageError, match="max_packet_bytes"),
        ):
            publish(manager, [0])

    def test_what_a_full_queue_drops_is_told_of_as_one(self, broker: Broker, tmp_path: Path) -> None:
        with MQTTManager(quick_config(broker.url, tmp_path, telemetry_batch_s=HOUR_S, queue_max_size=1)) as manager:
            handles = []
            for number in range(3):
                handles += publish(manager, [number])
                assert not manager.flush(0)
            assert handles[-1].wait_durable(TIMEOUT_S)
            assert eventually(lambda: sum(manager.get_metrics().drops.values()) == 2)


def test_the_figures_say_what_is_saved(broker: Broker, tmp_path: Path) -> None:
    config = quick_config(broker.url, tmp_path, telemetry_batch_s=HOUR_S)
    with connected(MQTTManager(config)) as manager:
        publish(manager, range(60))
        assert manager.get_metrics().batch_saved_bytes == 0
        before = manager.get_metrics().sent_bytes
        assert manager.flush(TIMEOUT_S)
        metrics = manager.get_metrics()
        assert (metrics.batches, metrics.batched_messages) == (1, 60)
        single = Telemetry(vehicle_speed=1.0, engine_rpm=900.0, throttle_position=12.0, fuel_level=50.0)
        alone_bytes = 60 * (len(single.encode("DTG-TEST", START_MS)) + len("glec/dtg/DTG-TEST/telemetry") + 4)
        assert metrics.batch_saved_bytes == pytest.approx(alone_bytes - (metrics.sent_bytes - before), abs=300)


class TestDecode:
    def test_what_is_no_batch(self) -> None:
        whole = zlib.compress(b'[{"a": 1}]')
        for payload in (
            b"", b"[]", whole[:-1], whole + b"x", zlib.compress(b"{}"), zlib.compress(b"[1]"), zlib.compress(b"\xff"),
            zlib.compress(b"[" * 100_000), zlib.compress(bytes(17 << 20)), "text", None, memoryview(whole)[::-1],
            zlib.compress(b"[" + b"{}," * (2 << 20) + b"{}]"), zlib.compress(b'[{"a":' + b"9" * 5000 + b"}]"),
            # Of another format.
            gzip.compress(b"[]"), zlib.compress(b"[]")[2:-4],
        ):  # fmt: skip
            with pytest.raises(MessageError):
                decode_batch(payload)  # type: ignore[arg-type]

    def test_any_buffer_and_an_empty_one(self) -> None:
        assert decode_batch(memoryview(zlib.compress(b'[{"a": 1}]'))) == [{"a": 1}]
        assert decode_batch(bytearray(zlib.compress(b"[]"))) == []
