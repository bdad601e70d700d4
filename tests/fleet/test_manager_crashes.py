"""Killed processes, killed brokers, cut links: QoS 1 loses nothing, QoS 2 neither loses nor repeats."""

from __future__ import annotations

import json
import random
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from glec_fast import MQTTManager
from glec_fast.testbed.link import Link
from glec_fast.testbed.subscriber import Subscriber
from support.child import Child
from support.gateway import BOTH_VERSIONS, TIMEOUT_S, Recorder, flush_over_cuts, quick_config

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import StartBroker
    from glec_fast.testbed.broker import Broker
    from glec_fast.testbed.link import Direction

LONG_S = 4 * TIMEOUT_S


@pytest.fixture
def start_child(broker: Broker, tmp_path: Path) -> Iterator[Callable[..., Child]]:
    """Start publishing processes on one queue file, one after the other."""
    with ExitStack() as stack:

        def start(**settings: Any) -> Child:
            child = Child(broker.url, tmp_path, **settings)
            stack.callback(child.close)
            return child

        yield start


def assert_kept(subscriber: Subscriber, accepted: set[bytes]) -> None:
    assert subscriber.wait_for_all(accepted), f"lost: {sorted(accepted - set(subscriber.payloads()))[:10]}"
    assert [payload for payload in subscriber.repeated() if payload.startswith(b"2-")] == []


@BOTH_VERSIONS
def test_killed_while_publishing_again_and_again(
    broker: Broker, start_child: Callable[..., Child], protocol_version: int
) -> None:
    dice = random.Random(1)
    accepted: set[bytes] = set()
    with Subscriber(broker, "t") as subscriber:
        for run in range(5):
            child = start_child(first=run * 10_000, count=10_000, protocol_version=protocol_version)
            child.read_accepted(dice.randrange(1, 300))
            child.kill()
            accepted |= child.accepted
        last = start_child(protocol_version=protocol_version)
        last.wait_flushed()
        last.leave()
        assert len(accepted) > 5
        assert_kept(subscriber, accepted)


@BOTH_VERSIONS
def test_killed_while_flushing_again_and_again(
    broker: Broker, tmp_path: Path, start_child: Callable[..., Child], protocol_version: int
) -> None:
    accepted: set[bytes] = set()
    with MQTTManager(quick_config(broker.url, tmp_path, wait_for_disk=False)) as manager:
        for number in range(1000):
            for qos in (1, 2):
                accepted.add(b"%d-%d" % (qos, number))
                manager.publish("t", f"{qos}-{number}", qos)
    with Subscriber(broker, "t") as subscriber:
        for kills in range(1, 5):
            # On a busy machine it would be through before it is killed.
            child = start_child(max_in_flight=20, flush_max_msg_s=500, protocol_version=protocol_version)
            assert subscriber.wait_for(lambda arrivals, enough=kills * 150: len(arrivals) >= enough, TIMEOUT_S)
            child.kill()
        assert len(subscriber.payloads()) < 1500, "nothing was left to be killed over"
        last = start_child(protocol_version=protocol_version)
        last.wait_flushed()
        last.leave()
        assert_kept(subscriber, accepted)


@BOTH_VERSIONS
@pytest.mark.parametrize(("direction", "longest_bytes"), [("up", 2000), ("down", 250)])
def test_the_link_cut_at_random_bytes_again_and_again(
    start_broker: StartBroker, tmp_path: Path, direction: Direction, longest_bytes: int, protocol_version: int
) -> None:
    # See below.
    broker = start_broker(nodelay=True)
    dice = random.Random(direction)
    payloads = {b"%d-%d" % (1 + number % 2, number) for number in range(1000)}
    with (
        Link((broker.host, broker.port)) as link,
        Subscriber(broker, "t") as subscriber,
        MQTTManager(
            quick_config(
                f"tcp://127.0.0.1:{link.port}", tmp_path, wait_for_disk=False, protocol_version=protocol_version
            )
        ) as manager,
    ):
        for payload in sorted(payloads):
            manager.publish("t", payload, int(payload[:1]))
        link.cut()
        manager.connect()
        assert flush_over_cuts(manager, link, 20, lambda: (dice.randrange(1, longest_bytes), direction)) >= 5
        link.restore()
        assert manager.flush(TIMEOUT_S)
        assert_kept(subscriber, payloads)


def test_the_link_cut_while_eight_messages_a_cut_are_published(broker: Broker, tmp_path: Path) -> None:
    dice = random.Random(3)
    payloads: set[bytes] = set()
    with (
        Link((broker.host, broker.port)) as link,
        Subscriber(broker, "t") as subscriber,
        MQTTManager(quick_config(f"tcp://127.0.0.1:{link.port}", tmp_path)) as manager,
    ):
        manager.connect()
        for number in range(400):
            qos = 1 + number % 2
            payloads.add(b"%d-%d" % (qos, number))
            manager.publish("t", f"{qos}-{number}", qos)
            if number % 8 == 0:
                link.restore()
                link.cut_after(dice.randrange(1, 400), dice.choice(["up", "down"]))
        link.restore()
        assert manager.flush(TIMEOUT_S)
        assert_kept(subscriber, payloads)


@BOTH_VERSIONS
@pytest.mark.parametrize("qos", [1, 2])
def test_the_broker_killed_and_started_again_in_the_middle_of_a_flush(
    start_broker: StartBroker, tmp_path: Path, qos: int, protocol_version: int
) -> None:
    # On a session that MQTT 3.1.1 resumes, one message of QoS 2 goes a round trip; Nagle would add 40 ms to each.
    broker = start_broker(persistence=True, nodelay=True)
    dice = random.Random(qos)
    payloads = {b"%d-%d" % (qos, number) for number in range(1000)}
    subscriber = Subscriber(broker, "t")
    subscriber.start()
    subscriber.leave()
    with Link((broker.host, broker.port)) as link:
        config = quick_config(
            f"tcp://127.0.0.1:{link.port}", tmp_path, wait_for_disk=False, protocol_version=protocol_version
        )
        with MQTTManager(config) as manager:
            for payload in sorted(payloads):
                manager.publish("t", payload, qos)
            link.cut()
            manager.connect()
            for _ in range(4):
                link.restore_for(dice.randrange(300, 4000))
                assert link.wait_for(lambda link: link.is_down, LONG_S)
                broker.kill(save_first=True)
                broker.start()
            link.restore()
            assert manager.get_metrics().queue_size > 0, "the flush was over before the last kill"
            assert manager.flush(LONG_S)
        with subscriber:
            assert_kept(subscriber, payloads)


def test_the_broker_killed_without_warning_loses_no_unacknowledged_message(
    start_broker: StartBroker, tmp_path: Path
) -> None:
    broker = start_broker(persistence=True)
    recorder = Recorder()
    with MQTTManager(quick_config(broker.url, tmp_path)) as manager:
        manager.set_connection_callback(recorder)
        manager.connect()
        assert recorder.wait_for_connections()
        broker.kill()
        assert recorder.wait_for_losses()
        handles = [manager.publish("t", f"{number}", number % 3) for number in range(30)]
        broker.start()
        with Subscriber(broker, "t") as subscriber:
            for handle in handles:
                handle.wait_for_publish(TIMEOUT_S)
            # Those sent before the subscription stood are the broker's, and nobody's yet.
            last = manager.publish("t", "after", 2)
            last.wait_for_publish(TIMEOUT_S)
            assert subscriber.wait_for(lambda arrivals: arrivals[-1:] and arrivals[-1].payload == b"after", TIMEOUT_S)
        assert manager.get_metrics().reconnect_count == 1


def test_the_last_will_says_offline_when_the_process_is_killed(
    broker: Broker, start_child: Callable[..., Child]
) -> None:
    with Subscriber(broker, "glec/dtg/DTG-TEST/status") as subscriber:
        child = start_child(qos=[1], count=1)
        child.wait_flushed()
        child.kill()
        assert subscriber.wait_for_count(1)
        (will,) = subscriber.arrivals
        assert will.qos == 1
        told = json.loads(will.payload)
        assert (told["status"], told["device_id"]) == ("OFFLINE", "DTG-TEST")


def test_no_last_will_after_an_orderly_end(broker: Broker, tmp_path: Path) -> None:
    with Subscriber(broker, "t") as subscriber:
        with MQTTManager(quick_config(broker.url, tmp_path)) as manager:
            manager.connect()
            manager.publish("t", "before the end", 2).wait_for_publish(TIMEOUT_S)
        with MQTTManager(quick_config(broker.url, tmp_path, client_id="other", queue_path=tmp_path / "2")) as manager:
            manager.connect()
            manager.publish("t", "after the end", 2).wait_for_publish(TIMEOUT_S)
        assert subscriber.wait_for_count(2)
        assert subscriber.payloads() == [b"before the end", b"after the end"]
