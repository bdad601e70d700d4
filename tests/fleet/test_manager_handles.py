"""What `publish` gives back and what it refuses."""

from __future__ import annotations

import copy
import threading
from typing import TYPE_CHECKING, Any

import pytest
from paho.mqtt.enums import CallbackAPIVersion

from glec_fast import Client, MessageError, MQTTManager, PayloadTypeError, QueueClosedError, Telemetry
from glec_fast.durable.clock import Clocks
from glec_fast.testbed.subscriber import Subscriber
from support.gateway import TIMEOUT_S, Recorder, eventually, quick_config

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import ThreadPoolExecutor
    from pathlib import Path

    from glec_fast.testbed.broker import Broker
    from glec_fast.testbed.link import Link

TELEMETRY = Telemetry(60.5, 1800, 25.3, 78.2)


@pytest.fixture
def offline(tmp_path: Path) -> Iterator[MQTTManager]:
    with MQTTManager(quick_config("tcp://127.0.0.1:1", tmp_path)) as manager:
        yield manager


@pytest.mark.parametrize("topic", ["", "a/+", "#", "nul\0", "x" * 65_536, "é" * 40_000, "\ud800", None, b"t", 5])
def test_a_topic_that_cannot_be_published_is_refused(offline: MQTTManager, topic: Any) -> None:
    with pytest.raises(MessageError):
        offline.publish(topic, "x", 1)
    assert offline.get_metrics().queue_size == 0


@pytest.mark.parametrize("qos", [-1, 3, 1.0, "1", True, None])
def test_a_qos_that_does_not_exist_is_refused(offline: MQTTManager, qos: Any) -> None:
    with pytest.raises(MessageError):
        offline.publish("t", "x", qos)
    assert offline.get_metrics().queue_size == 0


@pytest.mark.parametrize("payload", [object(), [1], {1, 2}, True])
def test_a_payload_without_an_encoding_is_refused(offline: MQTTManager, payload: object) -> None:
    with pytest.raises(PayloadTypeError):
        offline.publish("t", payload, 1)
    assert offline.get_metrics().queue_size == 0


@pytest.mark.parametrize("given", [{"alert_type": "HARSH_BRAKING"}, "text", b"bytes", None, TELEMETRY], ids=str)
@pytest.mark.parametrize("name", ["alert", "inference", "telemetry", "status"])
def test_another_thing_than_the_typed_message_is_refused_by_name(offline: MQTTManager, name: str, given: Any) -> None:
    if (name, given) in (("telemetry", TELEMETRY), ("status", None)):
        return
    line = rf"^publish_{name} was given {type(given).__name__}; build a glec_fast.{name.capitalize()}, [^\n]*$"
    with pytest.raises(PayloadTypeError, match=line):
        getattr(offline, f"publish_{name}")(given)
    assert offline.get_metrics().queue_size == 0


@pytest.mark.parametrize("up_s", [0, 300, 40 * 86_400])
def test_messages_count_while_the_clock_is_not_set(tmp_path: Path, up_s: int) -> None:
    """40 days without a fix are seconds of our time, read as milliseconds."""
    clocks = Clocks(wall_ms=lambda: up_s * 1000)
    with MQTTManager(quick_config("tcp://127.0.0.1:1", tmp_path), clocks=clocks) as manager:
        manager.publish_telemetry(TELEMETRY)
        manager.publish("t", TELEMETRY, 1)
        manager.publish_status()
        assert manager.get_metrics().queue_size == 3


@pytest.mark.parametrize("payload", ["\ud800", {"x": float("nan")}, {"x": float("inf")}])
def test_a_payload_that_json_or_utf8_cannot_carry_is_refused(offline: MQTTManager, payload: object) -> None:
    with pytest.raises(MessageError):
        offline.publish("t", payload, 1)
    assert offline.get_metrics().queue_size == 0


def test_a_refusal_leaves_the_manager_in_use(broker: Broker, tmp_path: Path) -> None:
    with Subscriber(broker) as subscriber, MQTTManager(quick_config(broker.url, tmp_path)) as manager:
        manager.connect()
        for _ in range(3):
            with pytest.raises(MessageError):
                manager.publish("a/#", "x", 2)
            manager.publish("t", "good", 2)
        assert manager.flush(TIMEOUT_S)
        assert subscriber.wait_for_count(3)


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_a_handle_is_true_and_unpacks_as_paho_s_does(offline: MQTTManager, qos: int) -> None:
    handle = offline.publish("t", "x", qos)
    assert handle
    for _ in range(2):
        rc, mid = handle
        assert (rc, mid) == (0, handle.mid)
    assert (handle[0], handle[1]) == (rc, mid)
    assert mid > 0


def test_handles_offline(offline: MQTTManager) -> None:
    handles = [offline.publish("t", "x", qos) for qos in range(3)]
    for handle in handles:
        assert handle.wait_durable(TIMEOUT_S) is True
        handle.wait_for_publish(0.01)
        assert not handle.is_published()
    assert len({handle.message_id for handle in handles}) == 3


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_who_waits_for_a_message_hears_that_its_queue_was_closed(
    broker: Broker, tmp_path: Path, pool: ThreadPoolExecutor, qos: int
) -> None:
    manager = MQTTManager(quick_config("tcp://127.0.0.1:1", tmp_path))
    handle = manager.publish("t", "x", qos)
    waiting = pool.submit(handle.wait_for_publish)
    manager.disconnect()
    for call in (lambda: waiting.result(TIMEOUT_S), handle.wait_for_publish):
        with pytest.raises(QueueClosedError, match="stays in the file"):
            call()
    assert not handle.is_published()
    with MQTTManager(quick_config(broker.url, tmp_path)) as successor:
        successor.connect()
        assert successor.flush(TIMEOUT_S)


def test_a_message_that_was_taken_over_stays_so_when_its_queue_is_closed(broker: Broker, tmp_path: Path) -> None:
    with MQTTManager(quick_config(broker.url, tmp_path)) as manager:
        manager.connect()
        handle = manager.publish("t", "x", 2)
        handle.wait_for_publish(TIMEOUT_S)
    handle.wait_for_publish()
    assert handle.is_published()


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_handles_online(broker: Broker, tmp_path: Path, qos: int) -> None:
    with MQTTManager(quick_config(broker.url, tmp_path)) as manager:
        manager.connect()
        handle = manager.publish("t", "x", qos)
        handle.wait_for_publish(TIMEOUT_S)
        assert handle.is_published()
        handle.wait_for_publish()


def test_many_may_wait_for_one_handle(broker: Broker, tmp_path: Path) -> None:
    with MQTTManager(quick_config(broker.url, tmp_path)) as manager:
        handle = manager.publish("t", "x", 1)
        waiters = [threading.Thread(target=handle.wait_for_publish, args=(TIMEOUT_S,)) for _ in range(8)]
        for waiter in waiters:
            waiter.start()
        manager.connect()
        for waiter in waiters:
            waiter.join(TIMEOUT_S)
        assert handle.is_published()


def test_flush_says_whether_it_was_done_in_time(broker: Broker, link: Link, tmp_path: Path) -> None:
    with MQTTManager(quick_config(f"tcp://127.0.0.1:{link.port}", tmp_path)) as manager:
        assert manager.flush(0.0) is True
        manager.publish("t", "x", 1)
        assert manager.flush(0.0) is False
        assert manager.flush(0.05) is False
        manager.connect()
        assert manager.flush(TIMEOUT_S) is True


def test_qos_0_that_had_not_left_when_the_link_was_cut_is_queued_again(
    broker: Broker, link: Link, tmp_path: Path
) -> None:
    recorder = Recorder()
    payloads = [b"%04d" % number + b"x" * 30_000 for number in range(500)]
    with (
        Subscriber(broker, "t") as subscriber,
        MQTTManager(quick_config(f"tcp://127.0.0.1:{link.port}", tmp_path)) as manager,
    ):
        manager.set_connection_callback(recorder)
        manager.connect()
        assert recorder.wait_for_connections(1)
        link.stall()
        handles = []
        for payload in payloads:
            handles.append(manager.publish("t", payload, 0))
            handles[-1].wait_for_publish(3.0)
            if not handles[-1].is_published():
                break
        # The sockets between take no more: the last of these are in the send buffer, and nowhere else.
        handles.append(manager.publish("t", payloads[len(handles)], 0))
        assert manager.get_metrics().queue_size == 0
        link.cut()
        assert recorder.wait_for_losses(1)

        def none_is_missing() -> bool:
            """What the sockets took as the link was cut, now and then all, has left, and is told as lost."""
            metrics = manager.get_metrics()
            return metrics.queue_size + metrics.lost_in_the_air == len(handles)

        assert eventually(none_is_missing)
        waiting = handles[len(handles) - manager.get_metrics().queue_size :]
        assert not any(handle.is_published() for handle in waiting)
        for handle in waiting:
            assert handle.wait_durable(TIMEOUT_S)
        link.restore()
        for handle in waiting:
            handle.wait_for_publish(TIMEOUT_S)
        assert subscriber.wait_for_all(set(payloads[len(handles) - len(waiting) : len(handles)]))
        # Of what had left, nobody knows.
        metrics = manager.get_metrics()
        assert metrics.messages_failed == metrics.lost_in_the_air
    assert subscriber.repeated() == []
    assert subscriber.payloads() == sorted(subscriber.payloads())


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_the_copy_of_a_handle_is_that_message_s_handle(offline: MQTTManager, copied: Callable[[Any], Any]) -> None:
    handle = offline.publish("t", "x", 1)
    assert copied(handle) is handle
    assert copied([handle]) == [handle]
    in_memory = Client(CallbackAPIVersion.VERSION2).publish("t", "x")
    assert copied(in_memory) is in_memory
