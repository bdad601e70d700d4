"""QoS 0 that was on its way as a connection ended: counted, told, and where that is wanted queued again."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from glec_fast.durable.extras import RETAINED, extras_of
from glec_fast.durable.outcomes import DropReason
from support.gateway import eventually
from support.scripted_broker import PINGRESP, ScriptedBroker, publication_of
from support.scripted_gateway import ScriptedGateway
from support.wire_reference import PUBACK, PUBLISH, ack, parse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def make_gateway(tmp_path: Path) -> Iterator[Callable[..., ScriptedGateway]]:
    made = []

    def make(**settings: Any) -> ScriptedGateway:
        made.append(ScriptedGateway(tmp_path / "queue.db", **settings))
        return made[-1]

    yield make
    for each in made:
        each.close()


def payloads(stream: bytes) -> list[str]:
    return [publication_of(each, 4).payload for each in parse(stream)[0] if each.kind == PUBLISH]


def told(gateway: ScriptedGateway) -> list[tuple[str, int, str]]:
    return [(each.topic, each.qos, each.reason.value) for each in gateway.dropped]


def connect(gateway: ScriptedGateway) -> None:
    gateway.outbox.put_packet(b"\x10\x00", first=True)
    gateway.send()
    gateway.connect()


def ping(gateway: ScriptedGateway) -> None:
    """PINGREQ leaves, and is answered."""
    gateway.outbox.put_packet(b"\xc0\x00")
    gateway.send()
    gateway.outbox.on_pingresp()
    with gateway.outbox.lock:
        gateway.outbox.settle()


def test_what_nothing_proves_is_counted_and_told(make_gateway: Callable[..., ScriptedGateway]) -> None:
    gateway = make_gateway()
    gateway.publish("queued", 0)
    connect(gateway)
    gateway.commit()
    assert payloads(gateway.send()) == ["queued"]
    ping(gateway)
    handles = [gateway.publish(f"direct {number}", 0) for number in range(3)]
    sent = gateway.send(20)
    gateway.cut()
    lost = len(payloads(sent))
    assert lost == 1
    assert gateway.outbox.lost_in_the_air == lost
    assert told(gateway) == [("t", 0, "lost_in_the_air")] * lost
    assert gateway.dropped[0].message_id == handles[0].mid
    connect(gateway)
    gateway.commit()
    assert payloads(gateway.send()) == ["direct 1", "direct 2"], "what had not left was queued"


def test_an_answer_to_what_is_behind_proves_it(make_gateway: Callable[..., ScriptedGateway]) -> None:
    gateway = make_gateway()
    connect(gateway)
    gateway.publish("0", 0)
    gateway.publish("1", 1)
    gateway.send()
    gateway.commit()
    gateway.send()
    gateway.receive(ack(PUBACK, 1))
    gateway.cut()
    assert (gateway.outbox.lost_in_the_air, gateway.dropped) == (0, [])


def test_rows_of_qos_0_are_told_by_their_ids(make_gateway: Callable[..., ScriptedGateway]) -> None:
    gateway = make_gateway()
    ids = [gateway.publish(str(number), number % 2).message_id for number in range(6)]
    connect(gateway)
    gateway.commit()
    gateway.send()
    gateway.cut()
    assert [each.message_id for each in gateway.dropped] == ids[::2]
    assert gateway.outbox.lost_in_the_air == 3


def test_the_end_that_disconnect_asks_for_proves_all(make_gateway: Callable[..., ScriptedGateway]) -> None:
    gateway = make_gateway()
    connect(gateway)
    gateway.publish("0", 0)
    gateway.send()
    gateway.outbox.on_heard_out()
    gateway.cut()
    assert gateway.outbox.lost_in_the_air == 0


def test_all_are_counted_and_the_newest_are_told(make_gateway: Callable[..., ScriptedGateway]) -> None:
    gateway = make_gateway(max_queue_size=100)
    connect(gateway)
    for number in range(20):
        gateway.outbox.publish(f"t/{number}", "x" * 100_000, 0)
        gateway.send()
    gateway.cut()
    assert gateway.outbox.lost_in_the_air == 20
    assert [each.topic for each in gateway.dropped] == [f"t/{number}" for number in range(15, 20)]


def test_it_is_queued_again_where_that_is_wanted(make_gateway: Callable[..., ScriptedGateway]) -> None:
    gateway = make_gateway(resend_unproven=True, protocol_version=5)
    properties = Properties(PacketTypes.PUBLISH)
    properties.UserProperty = [("a", "b")]
    properties.MessageExpiryInterval = 100
    gateway.outbox.publish("queued", "1", 0, extras_of(False, properties))
    connect(gateway)
    gateway.commit()
    first = gateway.send()
    gateway.outbox.publish("direct", "2", 0, RETAINED)
    first += gateway.send()
    gateway.cut()
    assert gateway.outbox.lost_in_the_air == 0
    assert gateway.dropped == []
    connect(gateway)
    gateway.commit()
    again = gateway.send()
    assert again == first
    ping(gateway)
    gateway.cut()
    connect(gateway)
    assert gateway.send() == b""


def test_its_age_goes_on(make_gateway: Callable[..., ScriptedGateway]) -> None:
    gateway = make_gateway(resend_unproven=True, ttl_ms=60_000)
    gateway.publish("1", 0)
    gateway.clock.now_s += 50
    connect(gateway)
    gateway.commit()
    assert payloads(gateway.send()) == ["1"]
    gateway.cut()
    gateway.clock.now_s += 20
    connect(gateway)
    assert gateway.send() == b""
    gateway.commit()
    assert eventually(lambda: told(gateway) == [("t", 0, "expired")])


def test_a_closed_queue_is_a_loss(make_gateway: Callable[..., ScriptedGateway]) -> None:
    gateway = make_gateway(resend_unproven=True)
    connect(gateway)
    gateway.publish("0", 0)
    gateway.send()
    gateway.store.close()
    gateway.cut()
    assert gateway.outbox.lost_in_the_air == 1
    assert [each.reason for each in gateway.dropped] == [DropReason.LOST_IN_THE_AIR]


def test_no_more_is_on_its_way_than_can_be_queued_again(make_gateway: Callable[..., ScriptedGateway]) -> None:
    gateway = make_gateway(resend_unproven=True)
    connect(gateway)
    for number in range(4):
        gateway.publish(f"{number}" + "x" * 100_000, 0)
        sent = gateway.send()
    assert sent == b"", "300 kB are on their way: the next goes to the queue"
    gateway.commit()
    assert gateway.send() == b""
    while gateway.session.pinged_to:
        gateway.outbox.on_pingresp()
    gateway.outbox.pull()
    assert payloads(gateway.send()) == ["3" + "x" * 100_000]


@pytest.mark.parametrize("seed", range(12))
def test_nothing_is_missing_over_random_cuts(seed: int, make_gateway: Callable[..., ScriptedGateway]) -> None:
    rng = random.Random(seed)
    gateway = make_gateway(resend_unproven=True)
    broker = ScriptedBroker()
    is_connected = False
    published = []
    for number in range(150):
        step = rng.random()
        if step < 0.5:
            qos = rng.choice((0, 0, 0, 1, 2))
            gateway.publish(f"{qos}-{number}", qos)
            published.append(f"{qos}-{number}")
        elif step < 0.6 and is_connected:
            gateway.cut()
            broker.cut(arrives=rng.random() < 0.3)
            is_connected = False
        elif not is_connected:
            connect(gateway)
            is_connected = True
        else:
            gateway.commit()
            broker.feed(gateway.send(rng.randrange(1, 300)))
            exchange(gateway, broker, rng.randrange(5))
    gateway.cut()
    broker.cut(arrives=False)
    gateway.commit()
    connect(gateway)
    for _ in range(20):
        gateway.commit()
        broker.feed(gateway.send())
        exchange(gateway, broker, 1000)
    counts = broker.counts()
    assert set(counts) == set(published)
    assert [each for each, count in counts.items() if each.startswith("2-") and count > 1] == []
    assert gateway.outbox.lost_in_the_air == 0


def exchange(gateway: ScriptedGateway, broker: ScriptedBroker, count: int) -> None:
    answers = broker.handle(count)
    for answer in parse(answers)[0]:
        if answer.kind == PINGRESP[0] >> 4:
            gateway.outbox.on_pingresp()
    gateway.receive(b"".join(ack(each.kind, each.packet_id) for each in parse(answers)[0] if each.kind != 13))
