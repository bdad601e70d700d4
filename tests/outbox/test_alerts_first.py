"""Alerts (QoS 2) ahead of what waits: at the wire, over cut links and restarts, and in turn within each QoS."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from support.scripted_broker import ScriptedBroker, publication_of
from support.scripted_gateway import ScriptedGateway
from support.wire_reference import PUBLISH, parse

if TYPE_CHECKING:
    from pathlib import Path

ORDERS = pytest.mark.parametrize("queue_order", ["fifo", "alerts_first"])


def payloads(data: bytes) -> list[str]:
    packets, rest = parse(data)
    assert not rest
    return [publication_of(packet, 4).payload for packet in packets if packet.kind == PUBLISH]


def publish_all(gateway: ScriptedGateway, kinds: str) -> list[str]:
    """One message for each digit, which is its QoS; on disk when this returns."""
    names = [f"{qos}-{number:04}" for number, qos in enumerate(kinds)]
    for name in names:
        gateway.publish(name, int(name[0]))
    gateway.commit()
    return names


@pytest.mark.parametrize(
    ("queue_order", "expected"),
    [
        ("fifo", ["1-0000", "0-0001", "2-0002", "1-0003", "2-0004"]),
        ("alerts_first", ["2-0002", "2-0004", "1-0000", "0-0001", "1-0003"]),
    ],
)
def test_the_order_in_which_a_backlog_leaves(tmp_path: Path, queue_order: str, expected: list[str]) -> None:
    with ScriptedGateway(tmp_path / "queue.db", queue_order=queue_order) as gateway:
        publish_all(gateway, "10212")
        gateway.connect()
        gateway.commit()
        assert payloads(gateway.send()) == expected


def test_one_of_a_backlog_that_was_read_already(tmp_path: Path) -> None:
    with ScriptedGateway(tmp_path / "queue.db", window=3, queue_order="alerts_first") as gateway:
        publish_all(gateway, "1" * 20)
        gateway.connect()
        broker = ScriptedBroker()
        broker.feed(gateway.send())
        gateway.publish("alert", 2)
        gateway.commit()
        gateway.receive(broker.handle(1))
        gateway.commit()
        assert payloads(gateway.send())[0] == "alert"


def test_alerts_that_the_broker_has_no_place_for_hold_up_nothing_else(tmp_path: Path) -> None:
    with ScriptedGateway(tmp_path / "queue.db", window=10, max_unreleased=3, queue_order="alerts_first") as gateway:
        publish_all(gateway, "2222211")
        gateway.connect()
        gateway.commit()
        assert payloads(gateway.send()) == ["2-0000", "2-0001", "1-0005", "1-0006"]


@ORDERS
@pytest.mark.parametrize("window", [1, 2, 7])
@pytest.mark.parametrize("seed", range(2))
def test_over_cut_links_and_restarts(tmp_path: Path, queue_order: str, window: int, seed: int) -> None:
    """No QoS 2 message twice, none lost, and the first copies of each QoS in the order in which they were published."""
    dice = random.Random(f"{queue_order} {window} {seed}")
    broker = ScriptedBroker(max_unreleased=4)
    published: list[str] = []

    def new_gateway() -> ScriptedGateway:
        return ScriptedGateway(tmp_path / "queue.db", window=window, max_unreleased=4, queue_order=queue_order)

    gateway = new_gateway()
    try:
        for turn in range(150):
            if turn < 100 and dice.random() < 0.5:
                name = f"{dice.choice('1122')}-{len(published):04}"
                published.append(name)
                gateway.publish(name, int(name[0]))
                gateway.commit()
            if not gateway.outbox.is_open:
                gateway.connect()
            gateway.commit()
            broker.feed(gateway.send(dice.choice([3, 20, 60, 1000])))
            gateway.receive(broker.handle(dice.randrange(4)))
            if dice.random() < 0.15:
                broker.cut(arrives=dice.random() < 0.5)
                gateway.cut()
                if dice.random() < 0.3:
                    gateway.store.close()
                    gateway = new_gateway()
        for _ in range(500):
            if not gateway.outbox.is_open:
                gateway.connect()
            gateway.commit()
            broker.feed(gateway.send())
            gateway.receive(broker.handle(10))
            if not gateway.store.size and not broker.inbox:
                break
        gateway.commit()
        assert gateway.rows() == {}
    finally:
        gateway.close()
    counts = broker.counts()
    assert set(counts) == set(published)
    assert all(count == 1 for name, count in counts.items() if name[0] == "2")
    for qos in "12":
        firsts = [name for name in dict.fromkeys(broker.delivered) if name[0] == qos]
        assert firsts == sorted(firsts)
