"""A second kind of broker, which hands QoS 2 on at its PUBLISH: cut links, killed publishers, exactly once."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING

import pytest

from glec_fast import MQTTManager
from glec_fast.testbed.link import Link
from glec_fast.testbed.subscriber import Login, Subscriber
from support.child import Child
from support.ejabberd import PASSWORD, USERNAME, Ejabberd, libraries
from support.gateway import BOTH_VERSIONS, TIMEOUT_S, Recorder, eventually, flush_over_cuts, quick_config

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from glec_fast.testbed.broker import Broker
    from glec_fast.testbed.link import Direction

pytestmark = pytest.mark.skipif(libraries() is None, reason="ejabberd is not installed: make brokers")

LOGIN = {"username": USERNAME, "password": PASSWORD}
# One process serves all tests: each has topics and client ids of its own.
DEVICES = (f"DTG-{number}" for number in range(1000))


@pytest.fixture(scope="module")
def ejabberd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ejabberd]:
    with Ejabberd(tmp_path_factory.mktemp("ejabberd")) as broker:
        yield broker


@pytest.fixture
def device() -> str:
    return next(DEVICES)


@pytest.fixture
def subscriber(ejabberd: Ejabberd, device: str) -> Iterator[Subscriber]:
    with Subscriber(ejabberd, device, client_id=f"{device}-subscriber", login=Login(USERNAME, PASSWORD)) as counting:
        yield counting


def assert_kept(subscriber: Subscriber, accepted: set[bytes]) -> None:
    assert subscriber.wait_for_all(accepted), f"lost: {sorted(accepted - set(subscriber.payloads()))[:10]}"
    assert [payload for payload in subscriber.repeated() if payload.startswith(b"2-")] == []


@BOTH_VERSIONS
@pytest.mark.parametrize(("direction", "longest_bytes"), [("up", 1500), ("down", 200)])
def test_the_link_cut_at_random_bytes(
    ejabberd: Ejabberd,
    subscriber: Subscriber,
    device: str,
    tmp_path: Path,
    direction: Direction,
    longest_bytes: int,
    protocol_version: int,
) -> None:
    dice = random.Random(direction)
    payloads = {b"%d-%d" % (1 + number % 2, number) for number in range(300)}
    with Link((ejabberd.host, ejabberd.port)) as link:
        settings = {"client_id": device, "protocol_version": protocol_version, "max_unreleased": 100, **LOGIN}
        config = quick_config(f"tcp://127.0.0.1:{link.port}", tmp_path, wait_for_disk=False, **settings)
        with MQTTManager(config) as manager:
            for payload in sorted(payloads):
                manager.publish(device, payload, int(payload[:1]))
            link.cut()
            manager.connect()
            assert flush_over_cuts(manager, link, 20, lambda: (dice.randrange(1, longest_bytes), direction)) >= 5
            link.restore()
            assert manager.flush(TIMEOUT_S)
            assert_kept(subscriber, payloads)


@BOTH_VERSIONS
def test_killed_while_publishing_and_flushing(
    ejabberd: Ejabberd, subscriber: Subscriber, device: str, tmp_path: Path, protocol_version: int
) -> None:
    dice = random.Random(1)
    accepted: set[bytes] = set()
    settings = {"client_id": device, "topic": device, "protocol_version": protocol_version, **LOGIN}
    for run in range(5):
        child = Child(ejabberd.url, tmp_path, first=run * 10_000, count=10_000, **settings)
        child.read_accepted(dice.randrange(1, 200))
        child.kill()
        accepted |= child.accepted
    last = Child(ejabberd.url, tmp_path, **settings)
    last.wait_flushed()
    last.leave()
    assert len(accepted) > 5
    assert_kept(subscriber, accepted)


@BOTH_VERSIONS
def test_another_broker_and_back_again_swallows_nothing(
    ejabberd: Ejabberd, broker: Broker, subscriber: Subscriber, device: str, tmp_path: Path, protocol_version: int
) -> None:
    with Link((ejabberd.host, ejabberd.port)) as link, Subscriber(broker, device) as elsewhere:
        settings = {"client_id": device, "protocol_version": protocol_version}
        config = quick_config(f"tcp://127.0.0.1:{link.port}", tmp_path, **settings, **LOGIN)
        with MQTTManager(config) as manager:
            manager.set_connection_callback(recorder := Recorder())
            manager.connect()
            assert recorder.wait_for_connections()
            # Of PUBREC too little.
            link.cut_after(1, "down")
            manager.publish(device, "the first", 2)
            assert subscriber.wait_for_count(1), "ejabberd has it, and the gateway will not know"
            assert link.wait_for(lambda link: link.is_down, TIMEOUT_S)
        with MQTTManager(quick_config(broker.url, tmp_path, **settings)) as manager:
            manager.connect()
            assert manager.flush(TIMEOUT_S)
        link.restore()
        with MQTTManager(config) as manager:
            # With the packet id of the first.
            manager.publish(device, "the second", 2)
            manager.connect()
            assert manager.flush(TIMEOUT_S)
        assert subscriber.wait_for_count(2)
        assert subscriber.payloads() == [b"the first", b"the second"]
        assert elsewhere.wait_for_count(1)
        assert elsewhere.payloads() == [b"the first"]


@BOTH_VERSIONS
def test_what_comes_in_over_a_cut_link(ejabberd: Ejabberd, device: str, tmp_path: Path, protocol_version: int) -> None:
    """QoS 2 is handed on once, and each command runs once and is answered once."""
    sent = [b"%d" % number for number in range(60)]
    came: list[bytes] = []
    ran: list[str] = []
    replies: list[bytes] = []
    commands = f"glec/dtg/{device}/commands/count"
    (tmp_path / "platform").mkdir()
    with Link((ejabberd.host, ejabberd.port)) as link:
        settings = {"client_id": device, "protocol_version": protocol_version, **LOGIN}
        own = quick_config(f"tcp://127.0.0.1:{link.port}", tmp_path, **settings)
        others = quick_config(ejabberd.url, tmp_path / "platform", client_id=f"{device}-platform", **LOGIN)
        with MQTTManager(own) as vehicle, MQTTManager(others) as platform:
            vehicle.command("count")(lambda _arguments, context: ran.append(context.id))
            incoming = vehicle.subscribe(f"{device}/in", lambda message: came.append(message.payload), 2)
            answers = platform.subscribe(f"{commands}/reply", lambda message: replies.append(message.payload), 2)
            vehicle.connect()
            platform.connect()
            assert incoming.wait_granted(TIMEOUT_S)
            assert answers.wait_granted(TIMEOUT_S)
            for number, payload in enumerate(sent):
                platform.publish(f"{device}/in", payload, 2)
                platform.publish(commands, {"id": payload.decode()}, 1 + number % 2)
                if number % 20 == 10:
                    # In the middle of them.
                    assert eventually(lambda: len(came) > 0)
                    link.cut()
                    link.restore()
            assert eventually(lambda: len(came) >= len(sent)), came
            assert eventually(lambda: len(replies) >= len(sent)), replies
            assert eventually(lambda: vehicle.get_metrics().inbox_size == 0)
            assert platform.flush(TIMEOUT_S)
            assert vehicle.flush(TIMEOUT_S)
    assert sorted(came) == sorted(sent)
    assert sorted(ran) == sorted(payload.decode() for payload in sent)
    assert len(replies) == len(sent)


@BOTH_VERSIONS
def test_commands_over_a_cut_link(ejabberd: Ejabberd, device: str, tmp_path: Path, protocol_version: int) -> None:
    """Each is run once and answered once, by either QoS; filters that overlap are this broker's own case in MQTT 5."""
    runs: list[str] = []
    topic = f"glec/dtg/{device}/commands"
    (tmp_path / "platform").mkdir()
    replies = Subscriber(
        ejabberd, f"{topic}/+/reply", client_id=f"{device}-subscriber", login=Login(USERNAME, PASSWORD)
    )
    platform_config = quick_config(ejabberd.url, tmp_path / "platform", client_id=f"{device}-platform", **LOGIN)
    with replies, Link((ejabberd.host, ejabberd.port)) as link, MQTTManager(platform_config) as platform:
        config = quick_config(
            f"tcp://127.0.0.1:{link.port}", tmp_path, client_id=device, protocol_version=protocol_version, **LOGIN
        )
        with MQTTManager(config) as vehicle:
            vehicle.command("count")(lambda _arguments, context: runs.append(context.id))
            if protocol_version == 5:
                vehicle.subscribe(f"{topic}/#", lambda _message: None, 2)
            vehicle.connect()
            platform.connect()
            assert vehicle.subscribe("ready", print).wait_granted(TIMEOUT_S)
            for number in range(30):
                platform.publish(f"{topic}/count", {"id": f"{number}"}, 1 + number % 2)
                if number % 10 == 5:
                    link.cut()
                    link.restore()
            expected = {f"{number}" for number in range(30)}
            assert eventually(lambda: {json.loads(each.payload)["id"] for each in list(replies.arrivals)} == expected)
            assert eventually(lambda: vehicle.get_metrics().inbox_size == 0)
            assert vehicle.flush(TIMEOUT_S)
        assert len(replies.arrivals) == 30
    assert sorted(runs) == sorted(expected)
