"""Several ways to one broker, and several brokers: moved between them in the middle of a flush."""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

import glec_fast.engine.routes
from glec_fast import Decision, MQTTManager
from glec_fast.testbed.link import Link
from glec_fast.testbed.subscriber import Subscriber
from support.gateway import BOTH_VERSIONS, TIMEOUT_S, Recorder, eventually, quick_config

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from conftest import StartBroker
    from glec_fast.testbed.broker import Broker
    from glec_fast.testbed.link import Direction

# 100 of them: make moves.
MOVES = int(os.environ.get("MOVES", "8"))
MESSAGES_A_MOVE = 30
# CONNECT with its will, and CONNACK.
AT_LOGIN_BYTES: dict[Direction, int] = {"up": 300, "down": 4}


class Ways(NamedTuple):
    """Two ways to one broker, or one to each of two, and who listens behind them."""

    links: tuple[Link, Link]
    subscribers: tuple[Subscriber, ...]

    @property
    def urls(self) -> list[str]:
        return [f"tcp://127.0.0.1:{link.port}" for link in self.links]

    def counts(self) -> Counter[bytes]:
        """How often each payload came, at all brokers together."""
        return Counter(payload for subscriber in self.subscribers for payload in subscriber.payloads())


@contextmanager
def ways_to(*brokers: Broker) -> Iterator[Ways]:
    with ExitStack() as stack:
        subscribers = tuple(stack.enter_context(Subscriber(broker, "t")) for broker in brokers)
        ends = (brokers[0], brokers[-1])
        links = tuple(stack.enter_context(Link((broker.host, broker.port))) for broker in ends)
        yield Ways(links, subscribers)  # type: ignore[arg-type]


def payloads_of(count: int, first: int = 0) -> list[bytes]:
    """Two of QoS 2, one of QoS 1, and so on."""
    return [b"%d-%d" % (1 + (number % 3 > 0), number) for number in range(first, first + count)]


def somewhere(dice: random.Random, skipped: dict[Direction, int] | None = None) -> tuple[int, Direction]:
    """A byte of what MESSAGES_A_MOVE and their answers take."""
    direction: Direction = dice.choice(("up", "down"))
    return (skipped or {}).get(direction, 0) + dice.randrange(1, {"up": 420, "down": 190}[direction]), direction


def publish(manager: MQTTManager, payloads: list[bytes]) -> dict[int, bytes]:
    return {manager.publish("t", payload, int(payload[:1])).message_id: payload for payload in payloads}


def doubled(counts: Counter[bytes]) -> set[bytes]:
    return {payload for payload, count in counts.items() if count > 1 and payload.startswith(b"2-")}


def has_nothing_for_this_broker(manager: MQTTManager) -> bool:
    outbox = manager._outbox
    is_idle = outbox.is_open and not outbox.session.in_flight and not outbox.session.parked_ids()
    return is_idle and outbox.stored_count == len(outbox.owners.withheld)


def settle(ways: Ways, sent: dict[int, bytes], manager: MQTTManager) -> set[bytes]:
    """QoS 2 that came twice, once all have come; the ledger is to explain those."""
    assert eventually(lambda: set(sent.values()) <= set(ways.counts())), set(sent.values()) - set(ways.counts())
    assert all(subscriber.wait_for_end(TIMEOUT_S) for subscriber in ways.subscribers)
    again = {entry.message_id for entry in manager.in_doubt() if entry.decision is Decision.SENT_AGAIN}
    assert doubled(ways.counts()) <= {sent[message_id] for message_id in again}
    return doubled(ways.counts())


@BOTH_VERSIONS
def test_moved_between_two_listeners_in_the_middle_of_a_flush(
    broker: Broker, tmp_path: Path, protocol_version: int
) -> None:
    dice = random.Random(protocol_version)
    sent: dict[int, bytes] = {}
    with ways_to(broker) as ways:
        settings = {"protocol_version": protocol_version, "wait_for_disk": False}
        config = quick_config("", tmp_path, broker_urls=ways.urls, **settings)
        with MQTTManager(config) as manager:
            manager.set_connection_callback(recorder := Recorder())
            ways.links[1].cut()
            manager.connect()
            for move in range(MOVES):
                here, there = ways.links[move % 2], ways.links[1 - move % 2]
                assert recorder.wait_for_connections(move + 1)
                here.cut_after(*somewhere(dice))
                sent |= publish(manager, payloads_of(MESSAGES_A_MOVE, len(sent)))
                there.restore()
                # A cut that was to come later than all that is sent.
                if not here.wait_for(lambda link: link.is_down, 1.0):
                    here.cut()
            assert manager.flush(TIMEOUT_S)
            assert settle(ways, sent, manager) == set()
            assert manager.in_doubt() == []


@pytest.mark.parametrize("named", [True, False])
@BOTH_VERSIONS
def test_another_process_finds_the_broker_under_another_url(
    broker: Broker, tmp_path: Path, protocol_version: int, named: bool
) -> None:
    """Where nobody says that it is the same, nothing is lost all the same, and it is in the ledger."""
    dice = random.Random(protocol_version)
    sent: dict[int, bytes] = {}
    with ways_to(broker) as ways:
        settings: dict[str, Any] = {"protocol_version": protocol_version, "wait_for_disk": False}
        if named:
            settings["broker_name"] = "fleet"
        for move in range(min(MOVES, 20)):
            link = ways.links[move % 2]
            with MQTTManager(quick_config(ways.urls[move % 2], tmp_path, **settings)) as manager:
                sent |= publish(manager, payloads_of(MESSAGES_A_MOVE, len(sent)))
                link.restore_for(*somewhere(dice, AT_LOGIN_BYTES))
                manager.connect()
                assert eventually(lambda link=link: link.is_down or not manager.get_metrics().queue_size)
        link.restore()
        with MQTTManager(quick_config(ways.urls[move % 2], tmp_path, **settings)) as manager:
            manager.connect()
            assert manager.flush(TIMEOUT_S)
            again = settle(ways, sent, manager)
            if named:
                assert again == set()
                assert manager.in_doubt() == []


@pytest.mark.parametrize("on_owner_away", ["wait", "move"])
@BOTH_VERSIONS
def test_from_one_broker_to_another_and_back(
    start_broker: StartBroker, tmp_path: Path, protocol_version: int, on_owner_away: str
) -> None:
    dice = random.Random(on_owner_away)
    sent: dict[int, bytes] = {}
    with ways_to(start_broker(), start_broker()) as ways:
        settings = {"protocol_version": protocol_version, "wait_for_disk": False, "on_owner_away": on_owner_away}
        config = quick_config("", tmp_path, broker_urls=ways.urls, broker_name=["north", "south"], **settings)
        with MQTTManager(config) as manager:
            manager.set_connection_callback(recorder := Recorder())
            ways.links[1].cut()
            manager.connect()
            for move in range(MOVES):
                here, there = ways.links[move % 2], ways.links[1 - move % 2]
                assert recorder.wait_for_connections(move + 1)
                here.cut_after(*somewhere(dice))
                sent |= publish(manager, payloads_of(MESSAGES_A_MOVE, len(sent)))
                there.restore()
                if not here.wait_for(lambda link: link.is_down, 1.0):
                    here.cut()
            # Each has some of it, or was left with some.
            for visit, (link, other) in enumerate([(there, here), (here, there)]):
                link.restore()
                other.cut()
                assert recorder.wait_for_connections(MOVES + 1 + visit)
                # Over 3.1.1 what waited for it goes one a round trip.
                assert eventually(lambda: has_nothing_for_this_broker(manager), TIMEOUT_S + 2 * MOVES)
            assert manager.flush(TIMEOUT_S)
            again = settle(ways, sent, manager)
            if on_owner_away == "wait":
                assert again == set()
                assert manager.in_doubt() == []


def test_back_to_the_first_once_it_answers(broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(glec_fast.engine.routes, "RETURN_MIN_S", 0.1)
    with ways_to(broker) as ways:
        first, second = ways.links
        config = quick_config("", tmp_path, broker_urls=ways.urls, status_interval_s=300)
        with Subscriber(broker, "glec/dtg/DTG-TEST/status", client_id="said") as said, MQTTManager(config) as manager:
            manager.set_connection_callback(recorder := Recorder())
            first.cut()
            manager.connect()
            assert recorder.wait_for_connections(1)
            assert second.accepted_connections == 1
            first.restore()
            assert recorder.wait_for_connections(2)
            assert eventually(lambda: manager.is_connected() and second.accepted_connections == 1)
            manager.publish("t", "2-0", 2).wait_for_publish(TIMEOUT_S)
            assert first.accepted_connections >= 2, "the probe, and the connection"
            assert said.wait_for_count(3)
            told = [json.loads(payload)["status"] for payload in said.payloads()]
            assert told == ["ONLINE", "OFFLINE", "ONLINE"], "it left in order, and its will was not needed"
