"""Several brokers: whose session it is, what is kept of a broker that is left, and what becomes of it back there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from glec_fast import Decision
from support.scripted_broker import ScriptedBroker
from support.scripted_gateway import CLIENT_ID, ScriptedGateway
from support.wire_reference import PUBLISH, PUBREL, ack, parse

if TYPE_CHECKING:
    from pathlib import Path

FIRST, SECOND = "first:1883", "second:1883"


def at(path: Path, owner: str, **settings: Any) -> ScriptedGateway:
    return ScriptedGateway(path / "queue.db", broker_name=owner, **settings)


def talk(gateway: ScriptedGateway, broker: ScriptedBroker) -> None:
    """Until neither has anything to say."""
    while True:
        gateway.commit()
        said = gateway.send()
        if not said:
            return
        broker.feed(said)
        gateway.receive(broker.handle(broker.waiting_packets()))


def begin_two(gateway: ScriptedGateway, broker: ScriptedBroker, *, session_present: bool = False) -> None:
    """ "sent" has reached the broker, and "received" is acknowledged with PUBREC; neither is finished."""
    gateway.connect(session_present=session_present)
    gateway.publish("received", 2)
    gateway.commit()
    broker.feed(gateway.send())
    gateway.receive(broker.handle(1))
    gateway.publish("sent", 2)
    gateway.commit()
    # Lost on the way.
    (pubrel,), _ = parse(gateway.send())
    gateway.commit()
    (publish,), _ = parse(gateway.send())
    assert [pubrel.kind, publish.kind] == [PUBREL, PUBLISH]
    broker.held[publish.packet_id] = "sent"
    gateway.cut()


def decisions(gateway: ScriptedGateway) -> dict[str, Decision]:
    topics = {1: "received", 2: "sent"}
    return {topics[entry.message_id]: entry.decision for entry in gateway.store.in_doubt()}


@pytest.mark.parametrize("is_another_process", [False, True])
def test_what_is_in_flight_waits_for_its_broker(tmp_path: Path, is_another_process: bool) -> None:
    first, second = (ScriptedBroker(hands_on_at_release=True) for _ in range(2))
    gateway = at(tmp_path, FIRST, on_owner_away="wait")
    begin_two(gateway, first)
    for owner, broker, is_new in ((SECOND, second, True), (FIRST, first, False), (SECOND, second, False)):
        if is_another_process:
            gateway.close()
            gateway = at(tmp_path, owner, on_owner_away="wait")
        else:
            gateway.outbox.identify(CLIENT_ID, owner)
        assert gateway.outbox.is_session_foreign == is_new
        gateway.connect(session_present=not is_new)
        gateway.publish(f"at {owner}", 2)
        talk(gateway, broker)
        assert gateway.store.size == (2 if is_new else 0)
        gateway.cut()
    assert gateway.store.in_doubt() == []
    gateway.close()
    assert first.counts() == {"received": 1, "sent": 1, f"at {FIRST}": 1}
    assert second.counts() == {f"at {SECOND}": 2}
    assert not first.held


@pytest.mark.parametrize("is_another_process", [False, True])
def test_what_is_in_flight_moves_and_what_was_left_is_released(tmp_path: Path, is_another_process: bool) -> None:
    first, second = (ScriptedBroker(hands_on_at_release=True) for _ in range(2))
    gateway = at(tmp_path, FIRST)
    begin_two(gateway, first)
    if is_another_process:
        gateway.close()
        gateway = at(tmp_path, SECOND)
    else:
        gateway.outbox.identify(CLIENT_ID, SECOND)
    assert decisions(gateway) == {"received": Decision.LEFT_TO_BROKER, "sent": Decision.SENT_AGAIN}
    gateway.connect(session_present=False)
    talk(gateway, second)
    assert second.counts() == {"sent": 1}
    assert gateway.store.size == 0
    gateway.cut()
    if is_another_process:
        gateway.close()
        gateway = at(tmp_path, FIRST)
    else:
        gateway.outbox.identify(CLIENT_ID, FIRST)
    # It has a packet id that is nobody's, and a message that was left to it.
    assert gateway.outbox.is_session_foreign
    (left,) = gateway.outbox.left_packet_ids()
    assert first.held[left] == "received"
    first.feed(ack(PUBREL, left))
    first.handle(1)
    gateway.outbox.on_left_released()
    first.lose_session()
    gateway.publish("new", 2)
    gateway.connect(session_present=False)
    talk(gateway, first)
    assert first.counts() == {"received": 1, "new": 1}
    assert not gateway.outbox.is_session_foreign
    gateway.outbox.identify(CLIENT_ID, FIRST)
    assert not gateway.outbox.is_session_foreign
    gateway.close()


def test_a_broker_that_nothing_was_moved_from_goes_on_with_its_session(tmp_path: Path) -> None:
    first, second = (ScriptedBroker(hands_on_at_release=True) for _ in range(2))
    with at(tmp_path, FIRST) as gateway:
        gateway.connect(session_present=False)
        gateway.publish("received", 2)
        gateway.commit()
        first.feed(gateway.send())
        gateway.receive(first.handle(1))
        gateway.cut()
        gateway.outbox.identify(CLIENT_ID, SECOND)
        gateway.connect(session_present=False)
        talk(gateway, second)
        gateway.cut()
        gateway.outbox.identify(CLIENT_ID, FIRST)
        assert not gateway.outbox.is_session_foreign
        gateway.connect()
        talk(gateway, first)
        assert first.counts() == {"received": 1}
        assert len(gateway.store.in_doubt()) == 1


def test_what_waits_is_moved_once_it_is_told_to(tmp_path: Path) -> None:
    first, second = ScriptedBroker(), ScriptedBroker()
    with at(tmp_path, FIRST, on_owner_away="wait") as gateway:
        begin_two(gateway, first)
    with at(tmp_path, SECOND, on_owner_away="wait") as gateway:
        gateway.connect(session_present=False)
        talk(gateway, second)
        assert gateway.store.size == 2
        assert not second.counts()
    with at(tmp_path, SECOND) as gateway:
        assert decisions(gateway) == {"received": Decision.LEFT_TO_BROKER, "sent": Decision.SENT_AGAIN}
        gateway.connect()
        talk(gateway, second)
        assert second.counts() == {"sent": 1}
        assert gateway.store.size == 0


def test_what_waits_expires_not_and_makes_no_room(tmp_path: Path) -> None:
    first = ScriptedBroker()
    with at(tmp_path, FIRST, on_owner_away="wait", max_queue_size=4, ttl_ms=1000) as gateway:
        begin_two(gateway, first)
        gateway.outbox.identify(CLIENT_ID, SECOND)
        gateway.clock.now_s += 5.0
        for number in range(6):
            gateway.publish(f"{number}", 1)
        gateway.commit()
        gateway.store.drop_expired()
        assert list(gateway.rows().values())[:2] == ["received", "sent"]
        assert gateway.outbox.handle_for(1) is not None
        assert len(gateway.rows()) == 4


@pytest.mark.parametrize("members", [{FIRST}, {FIRST, SECOND}])
def test_an_owner_is_known_by_the_names_of_its_members(tmp_path: Path, members: set[str]) -> None:
    first = ScriptedBroker(hands_on_at_release=True)
    with at(tmp_path, FIRST) as gateway:
        begin_two(gateway, first)
    with at(tmp_path, FIRST) as gateway:
        gateway.outbox.identify(CLIENT_ID, "cluster", members)
        assert not gateway.outbox.is_session_foreign
        gateway.connect()
        talk(gateway, first)
        assert first.counts() == {"received": 1, "sent": 1}
        assert gateway.store.in_doubt() == []
        assert gateway.store.identity == (CLIENT_ID, "cluster")


def test_a_session_of_nobody_may_be_the_one_that_was_left(tmp_path: Path) -> None:
    first = ScriptedBroker(hands_on_at_release=True)
    with at(tmp_path, FIRST) as gateway:
        begin_two(gateway, first)
    with at(tmp_path, SECOND) as gateway:
        assert gateway.outbox.is_session_foreign
        (left,) = gateway.outbox.left_packet_ids()
        assert first.held[left] == "received"
        gateway.outbox.on_left_released()
        assert gateway.outbox.left_packet_ids() == []
    with at(tmp_path, FIRST) as gateway:
        assert gateway.outbox.is_session_foreign
        assert gateway.outbox.left_packet_ids() == []


def test_brokers_without_end_do_not_fill_the_file(tmp_path: Path) -> None:
    with at(tmp_path, FIRST) as gateway:
        for number in range(40):
            gateway.outbox.identify(CLIENT_ID, f"{number}:1883")
            gateway.connect(session_present=False)
            gateway.publish("x", 1)
            gateway.commit()
            gateway.send()
            gateway.cut()
        assert len(gateway.store.kept_sessions()) == 16
