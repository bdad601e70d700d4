"""A server's quota of messages a second: with a clock of its own, and kept by the engine against a real broker."""

from __future__ import annotations

import random
from collections import deque
from typing import TYPE_CHECKING

import pytest

from glec_fast import MQTTManager
from glec_fast.outbox.quota import Quota
from glec_fast.testbed.subscriber import Subscriber
from support.gateway import quick_config
from support.scripted_broker import ScriptedBroker
from support.scripted_gateway import ScriptedGateway
from support.wire_reference import PUBLISH, parse

if TYPE_CHECKING:
    from pathlib import Path

    from glec_fast.testbed.broker import Broker


LONG_S = 60.0


class Server:
    """Counts what came in the last second, both ends included."""

    def __init__(self, quota: int) -> None:
        self._quota = quota
        self._last: deque[float] = deque()

    def take(self, count: int, now_s: float) -> None:
        self._last.extend([now_s] * count)
        while self._last and self._last[0] < now_s - 1.0:
            self._last.popleft()
        assert len(self._last) <= self._quota, "it ends the connection"


@pytest.mark.parametrize("most_per_s", [1, 2, 7, 100, 1000])
@pytest.mark.parametrize("step_s", [0.0003, 0.02, 0.7])
def test_no_second_has_more_and_the_link_does_not_stand_idle(most_per_s: int, step_s: float) -> None:
    dice, now_s, sent = random.Random(most_per_s), 100.0, 0
    quota, server = Quota(most_per_s, lambda: now_s), Server(most_per_s)
    left, ends_s = 0, now_s + min(20 / most_per_s + 30 * step_s, 30)
    while now_s < ends_s:
        granted = quota.fill(left)
        allowed = max(granted, 0)
        used = allowed if dice.random() < 0.9 else dice.randint(0, allowed)
        left = granted - used
        server.take(used, now_s)
        sent += used
        next_s = quota.next_s if used == allowed else now_s
        now_s = max(next_s, now_s) + dice.uniform(0, step_s)
    if step_s < 1 / most_per_s:
        assert sent >= 0.6 * most_per_s * (now_s - 100.0) - 1


def test_what_goes_ahead_of_it_counts() -> None:
    quota = Quota(10, lambda: 5.0)
    assert quota.fill(0) == 1
    assert quota.fill(-2) == -2
    assert quota.next_s == pytest.approx(5.0 + 3 / 9)


def test_a_thousand_messages_each_sent_once_and_alerts_ahead(tmp_path: Path) -> None:
    now_s, alert_sent_s = 0.0, -1.0
    broker, server = ScriptedBroker(), Server(100)
    with ScriptedGateway(tmp_path / "queue.db", window=1000, queue_order="alerts_first") as gateway:
        for number in range(1000):
            gateway.publish(f"{number}", 1 if number % 2 else 0)
        gateway.outbox.quota = Quota(100, lambda: now_s)
        gateway.connect()
        while len(broker.delivered) < 1001 and now_s < 60:
            if now_s >= 3 and "alert" not in broker.delivered and alert_sent_s < 0:
                alert_sent_s = now_s
                gateway.publish("alert", 2)
            gateway.commit()
            for _ in range(3):
                sent = gateway.send()
                server.take(sum(packet.kind == PUBLISH for packet in parse(sent)[0]), now_s)
                broker.feed(sent)
                gateway.receive(broker.handle(1000))
            if alert_sent_s == now_s:
                assert broker.delivered[-5:].count("alert") == 1, "it has the next place"
            now_s += 0.02
        assert set(broker.counts().values()) == {1}
        assert len(broker.delivered) == 1001
        assert now_s < 13
    # In the order of their QoS.
    numbers = [int(payload) for payload in broker.delivered if payload != "alert"]
    assert [each for each in numbers if each % 2] == sorted(each for each in numbers if each % 2)


def test_what_is_sent_again_counts(tmp_path: Path) -> None:
    now_s = 0.0
    with ScriptedGateway(tmp_path / "queue.db") as gateway:
        gateway.outbox.quota = Quota(100, lambda: now_s)
        for number in range(10):
            gateway.publish(f"{number}", 1)
        gateway.connect()
        gateway.commit()
        assert len(parse(gateway.send())[0]) == 2
        gateway.cut()
        gateway.connect()
        assert gateway.send() == b""
        now_s += 0.012
        gateway.commit()
        again = parse(gateway.send())[0]
        assert [packet.dup for packet in again] == [True]


def test_qos_0_beyond_it_is_queued(tmp_path: Path) -> None:
    with ScriptedGateway(tmp_path / "queue.db") as gateway:
        gateway.outbox.quota = Quota(100, lambda: 0.0)
        gateway.connect()
        for number in range(5):
            gateway.publish(f"{number}", 0)
        gateway.commit()
        assert len(parse(gateway.send())[0]) == 2
        assert list(gateway.rows().values()) == ["2", "3", "4"]


@pytest.mark.parametrize("protocol_version", [4, 5])
def test_the_engine_wakes_up_for_each(broker: Broker, tmp_path: Path, protocol_version: int) -> None:
    config = quick_config(broker.url, tmp_path, flush_max_msg_s=1000, protocol_version=protocol_version)
    with Subscriber(broker, "t") as subscriber, MQTTManager(config) as manager:
        payloads = {f"{number}".encode() for number in range(400)}
        for payload in payloads:
            manager.publish("t", payload, 1)
        manager.connect()
        assert manager.flush(LONG_S)
        assert subscriber.wait_for_all(payloads, LONG_S)
        assert len(subscriber.payloads()) == 400
