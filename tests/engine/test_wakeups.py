"""How often the thread of an idle connection wakes up, and that nothing is slower for it."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest
from paho.mqtt.enums import CallbackAPIVersion

from glec_fast import Client, MQTTManager
from glec_fast.engine.loop import Loop
from glec_fast.fleet.inbox import UNCLAIMED_S
from glec_fast.testbed.subscriber import Subscriber
from support.gateway import BOTH_VERSIONS, TIMEOUT_S, Recorder, eventually, quick_config

if TYPE_CHECKING:
    from pathlib import Path

    from glec_fast.testbed.broker import Broker


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """For how long each turn of a loop was ready to wait."""
    waits: list[float] = []
    wait = Loop.wait

    def note(loop: Loop, sock: Any, timeout_s: float) -> Any:
        waits.append(timeout_s)
        return wait(loop, sock, timeout_s)

    monkeypatch.setattr(Loop, "wait", note)
    return waits


def connected(broker: Broker, directory: Path, **settings: Any) -> MQTTManager:
    manager = MQTTManager(quick_config(broker.url, directory, **settings))
    recorder = Recorder()
    manager.set_connection_callback(recorder)
    manager.connect()
    assert recorder.wait_for_connections()
    return manager


@BOTH_VERSIONS
def test_an_idle_connection_wakes_up_for_the_keep_alive_alone(
    broker: Broker, tmp_path: Path, turns: list[float], protocol_version: int
) -> None:
    with connected(broker, tmp_path, keepalive_s=1, protocol_version=protocol_version) as manager:
        session = manager._outbox.session
        answered = session.pings_answered
        assert eventually(lambda: session.pings_answered > answered)
        answered = session.pings_answered
        del turns[:]
        assert eventually(lambda: session.pings_answered >= answered + 3)
        # For each PINGREQ, for its answer, and one that finds that nothing is due.
        assert len(turns) <= 3 * 4


@BOTH_VERSIONS
def test_who_has_subscribed_and_handled_wakes_up_no_more_often(
    broker: Broker, tmp_path: Path, turns: list[float], protocol_version: int
) -> None:
    may_end, handled = threading.Event(), threading.Event()

    def handle(_message: Any) -> None:
        assert may_end.wait(TIMEOUT_S)
        handled.set()

    # Whether SUBSCRIBE and PUBCOMP have arrived is soon known.
    settings = {"keepalive_s": 3600, "answer_timeout_s": 0.2, "protocol_version": protocol_version}
    with connected(broker, tmp_path, **settings) as manager:
        assert manager.subscribe("t", handle, 2).wait_granted(TIMEOUT_S)
        manager.publish("t", "x", 2).wait_for_publish(TIMEOUT_S)
        # What is held may wait for a thread, or for the disk.
        assert eventually(lambda: turns[-1] <= 1.1)
        may_end.set()
        assert handled.wait(TIMEOUT_S)
        assert eventually(lambda: turns[-1] > 60)


def test_commands_are_waited_for_as_long_as_an_earlier_process_may_have_begun_some(
    broker: Broker, tmp_path: Path, turns: list[float]
) -> None:
    with connected(broker, tmp_path, keepalive_s=3600, answer_timeout_s=0.2) as manager:
        manager.command("go")(lambda _arguments, _context: None)
        assert eventually(lambda: 1.1 < turns[-1] <= UNCLAIMED_S + 0.1)


def test_what_is_published_then_goes_at_once(broker: Broker, tmp_path: Path, turns: list[float]) -> None:
    with connected(broker, tmp_path, keepalive_s=3600, answer_timeout_s=0) as manager:
        assert eventually(lambda: bool(turns) and turns[-1] > 60)
        for qos in (1, 2):
            manager.publish("t", "x", qos).wait_for_publish(TIMEOUT_S)
        assert eventually(lambda: turns[-1] > 60)
        manager.publish("t", "x", 0).wait_for_publish(TIMEOUT_S)


def test_the_status_is_said_when_it_is_due(broker: Broker, tmp_path: Path) -> None:
    settings = {"keepalive_s": 3600, "answer_timeout_s": 0, "status_interval_s": 0.1}
    with Subscriber(broker) as subscriber, connected(broker, tmp_path, **settings):
        assert subscriber.wait_for_count(4)


def test_ending_is_not_waited_for(broker: Broker, tmp_path: Path, turns: list[float]) -> None:
    manager = connected(broker, tmp_path, keepalive_s=3600, answer_timeout_s=0)
    assert eventually(lambda: bool(turns) and turns[-1] > 60)
    ending = threading.Thread(target=manager.disconnect)
    ending.start()
    ending.join(TIMEOUT_S)
    assert not ending.is_alive()


def test_without_a_keep_alive_it_waits_for_what_comes(broker: Broker, turns: list[float]) -> None:
    client = Client(CallbackAPIVersion.VERSION2)
    came = threading.Event()
    client.on_message = lambda *_: came.set()
    client.connect(broker.host, broker.port, keepalive=0)
    client.loop_start()
    assert eventually(client.is_connected)
    client.subscribe("back", 1)
    client.publish("t", "x", 1).wait_for_publish(TIMEOUT_S)
    assert eventually(lambda: turns[-1] > 60)
    client.publish("back", "x", 1)
    assert came.wait(TIMEOUT_S)
    client.disconnect()
    client.loop_stop()
