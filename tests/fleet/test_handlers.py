"""The pool that runs handlers: threads as they are needed and can be had, and nothing lost where they cannot."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest

from glec_fast import MQTTManager
from glec_fast.fleet import handlers
from glec_fast.fleet.handlers import Call, HandlerPool
from glec_fast.runtime.summing_log import SummingLog
from support.gateway import TIMEOUT_S, eventually, quick_config

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from glec_fast.testbed.broker import Broker


class Scarce(handlers.Thread):
    """A thread of which the system has `left`."""

    left = 0

    def start(self) -> None:
        if Scarce.left <= 0:
            raise RuntimeError("can't start new thread")
        Scarce.left -= 1
        super().start()


@pytest.fixture(autouse=True)
def scarce_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(handlers, "Thread", Scarce)
    Scarce.left = 1000
    yield
    Scarce.left = 0


class Work:
    """Calls that wait for `gate`; `done`: their numbers, as they end."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.done: list[int] = []
        self.running: set[int] = set()

    def call(self, number: int) -> Call:
        return Call(self._run, (number,), lambda *_: False)

    def _run(self, number: int) -> None:
        self.running.add(number)
        assert self.gate.wait(TIMEOUT_S)
        self.done.append(number)


@pytest.fixture
def work() -> Work:
    return Work()


def test_lanes_run_at_once_and_the_calls_of_one_in_order(work: Work) -> None:
    pool = HandlerPool(4, SummingLog())
    for number in range(9):
        assert pool.submit(number % 3, work.call(number))
    assert eventually(lambda: work.running == {0, 1, 2})
    work.gate.set()
    assert eventually(lambda: len(work.done) == 9)
    assert all([each for each in work.done if each % 3 == lane] == [lane, lane + 3, lane + 6] for lane in range(3))
    assert Scarce.left >= 1000 - 4
    assert pool.close(TIMEOUT_S)
    assert not pool.submit(0, work.call(0))


def test_more_lanes_than_threads_that_can_be_started(work: Work, caplog: pytest.LogCaptureFixture) -> None:
    Scarce.left = 1
    pool = HandlerPool(4, SummingLog())
    for number in range(3):
        assert pool.submit(number, work.call(number))
    work.gate.set()
    # The one that there is does the work of all.
    assert eventually(lambda: sorted(work.done) == [0, 1, 2])
    assert eventually(lambda: "no thread can be started" in caplog.text)
    assert pool.close(TIMEOUT_S)


def test_no_thread_can_be_started_for_a_while(work: Work) -> None:
    Scarce.left = 0
    work.gate.set()
    pool = HandlerPool(4, SummingLog())
    for number in range(3):
        assert pool.submit(number, work.call(number))
    pool.tick()
    Scarce.left = 1000
    assert work.done == []
    pool.tick()
    assert eventually(lambda: sorted(work.done) == [0, 1, 2])
    assert pool.close(TIMEOUT_S)


@pytest.mark.parametrize("qos", [1, 2])
def test_a_message_is_neither_lost_nor_acknowledged_meanwhile(broker: Broker, tmp_path: Path, qos: int) -> None:
    Scarce.left = 0
    came: list[Any] = []
    with MQTTManager(quick_config(broker.url, tmp_path)) as manager:
        subscription = manager.subscribe("a", came.append, qos)
        manager.connect()
        assert subscription.wait_granted(TIMEOUT_S)
        manager.publish("a", "x", qos).wait_for_publish(TIMEOUT_S)
        assert eventually(lambda: manager.get_metrics().inbox_size == 1)
    # Ended without a thread: the broker has it still.
    with MQTTManager(quick_config(broker.url, tmp_path)) as manager:
        manager.subscribe("a", came.append, qos)
        manager.connect()
        assert eventually(lambda: manager.get_metrics().inbox_size == 1)
        assert came == []
        Scarce.left = 1000
        assert eventually(lambda: [message.payload for message in came] == [b"x"])
        assert eventually(lambda: manager.get_metrics().inbox_size == 0)
