"""A disk that fails at any call, is slow or read-only: a clear error or a retry, nothing accepted lost, no restart."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import apsw
import pytest

from glec_fast.durable import schedule
from glec_fast.errors import QueueStorageError
from support.faulty_disk import FaultyDisk, Sync
from support.power_run import finish
from support.scripted_broker import ScriptedBroker
from support.scripted_gateway import ScriptedGateway

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Where SQLite itself goes on after an error, apsw has nobody to raise it to.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

T = TypeVar("T")
WAIT_S = 30.0
QUEUE = "queue.db"


class FailAt:
    """Raises at one call, counted over all operations from 1, and at so many that follow."""

    def __init__(self, number: int, error: type[apsw.Error] = apsw.IOError, *, times: int = 1) -> None:
        self._calls = range(number, number + times)
        self._error = error
        self._lock = threading.Lock()
        self.count = 0
        self.failed: list[tuple[str, str]] = []

    def __call__(self, operation: str, name: str) -> None:
        with self._lock:
            self.count += 1
            if self.count in self._calls:
                self.failed.append((operation, name))
                raise self._error(f"{operation} of {name} failed")


@pytest.fixture(autouse=True)
def _quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "_STORAGE_RETRY_S", 0.01)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[FaultyDisk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    with FaultyDisk(folder) as faulty:
        yield faulty


def open_gateway(disk: FaultyDisk) -> ScriptedGateway:
    return ScriptedGateway(disk.folder / QUEUE, window=4)


def attempt(call: Callable[[], T]) -> T | None:
    """The result; None where the disk refused, which must be worth another try."""
    refusal = None
    try:
        return call()
    except QueueStorageError as error:
        refusal = error
    assert refusal.retryable
    return None


def publish_until_accepted(gateway: ScriptedGateway, payload: str) -> None:
    """As a caller who heeds `retryable`."""
    deadline_s = time.monotonic() + WAIT_S
    while (handle := attempt(lambda: gateway.publish(payload, 2))) is None:
        assert time.monotonic() < deadline_s, "it never went on"
    assert handle.wait_durable(WAIT_S)


def commit_patiently(gateway: ScriptedGateway) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not attempt(lambda: (gateway.commit(), True)):
        assert time.monotonic() < deadline_s, "it never went on"


def one_life(disk: FaultyDisk, fault: FailAt) -> ScriptedBroker:
    """Publish, send half, cut, publish, flush; every publish is repeated until it is accepted."""
    broker = ScriptedBroker()
    with open_gateway(disk) as gateway:
        disk.fault = fault
        for number in range(3):
            publish_until_accepted(gateway, f"2-{number}")
        gateway.connect()
        commit_patiently(gateway)
        broker.feed(gateway.send())
        gateway.receive(broker.handle(2))
        gateway.cut()
        broker.cut(arrives=True)
        for number in range(3, 6):
            publish_until_accepted(gateway, f"2-{number}")
        gateway.connect()
        deadline_s = time.monotonic() + WAIT_S
        while gateway.store.size:
            assert time.monotonic() < deadline_s, f"{gateway.store.size} messages are stuck"
            commit_patiently(gateway)
            broker.feed(gateway.send())
            gateway.receive(broker.handle(broker.waiting_packets()))
        disk.fault = None
    return broker


ALL = {f"2-{number}": 1 for number in range(6)}


def test_an_error_at_any_call_while_it_runs(disk: FaultyDisk) -> None:
    """The first call fails, then the second, and so on, until a whole life has fewer calls than that."""
    number, failed_operations = 1, set()
    while True:
        fault = FailAt(number)
        broker = one_life(disk, fault)
        assert broker.counts() == ALL, f"call {number} failed: {fault.failed}"
        failed_operations.update(operation for operation, _ in fault.failed)
        if not fault.failed:
            break
        number += 1
    assert failed_operations >= {"read", "write", "sync"}
    assert number > 50


@pytest.mark.parametrize("error", [apsw.IOError, apsw.FullError], ids=["I/O error", "full"])
@pytest.mark.parametrize("number", [1, 5, 15, 30, 45])
def test_many_errors_in_a_row(disk: FaultyDisk, error: type[apsw.Error], number: int) -> None:
    fault = FailAt(number, error, times=25)
    assert one_life(disk, fault).counts() == ALL
    assert len(fault.failed) == 25


def test_an_error_at_any_call_of_the_opening_leaves_the_queue_as_it_was(disk: FaultyDisk) -> None:
    with open_gateway(disk) as gateway:
        publish_until_accepted(gateway, "2-0")
    number = 1
    while True:
        fault = FailAt(number)
        disk.fault = fault
        gateway = attempt(lambda: open_gateway(disk))
        disk.fault = None
        if gateway is None:
            assert fault.failed
        else:
            assert gateway.store.salvage is None
            assert list(gateway.rows().values()) == ["2-0"]
            gateway.close()
            if not fault.failed:
                break
        number += 1
    assert number > 10
    with open_gateway(disk) as gateway:
        broker = ScriptedBroker()
        finish(gateway, broker)
    assert broker.counts() == {"2-0": 1}


def test_an_error_while_closing_loses_nothing_and_frees_the_file(disk: FaultyDisk) -> None:
    number = 1
    while True:
        gateway = open_gateway(disk)
        publish_until_accepted(gateway, f"2-{number}")
        fault = FailAt(number)
        disk.fault = fault
        gateway.close()
        disk.fault = None
        if not fault.failed:
            break
        number += 1
    assert number > 5
    with open_gateway(disk) as gateway:
        assert list(gateway.rows().values()) == [f"2-{each}" for each in range(1, number + 1)]


def test_a_sync_that_fails_is_not_taken_for_done(disk: FaultyDisk) -> None:
    with open_gateway(disk) as gateway:

        def fault(operation: str, _name: str) -> None:
            if operation == "sync":
                raise apsw.IOError("disk I/O error")

        disk.fault = fault
        with pytest.raises(QueueStorageError) as caught:
            gateway.publish("2-0", 2)
        assert caught.value.retryable
        assert caught.value.__cause__ is not None
        disk.fault = None
        publish_until_accepted(gateway, "2-1")
        assert list(gateway.rows().values()) == ["2-1"], "what was refused is not in the queue"


def test_a_disk_that_becomes_read_only_and_writable_again(disk: FaultyDisk) -> None:
    with open_gateway(disk) as gateway:
        publish_until_accepted(gateway, "2-0")

        def fault(operation: str, _name: str) -> None:
            if operation in ("write", "truncate", "sync", "delete"):
                raise apsw.ReadOnlyError("attempt to write a readonly database")

        disk.fault = fault
        with pytest.raises(QueueStorageError, match="make it and its folder writable") as caught:
            gateway.publish("2-1", 2)
        assert caught.value.retryable
        disk.fault = None
        publish_until_accepted(gateway, "2-2")
        broker = ScriptedBroker()
        finish(gateway, broker)
    assert broker.counts() == {"2-0": 1, "2-2": 1}


def test_syncs_of_a_second_slow_an_alert_down_and_nobody_else(disk: FaultyDisk) -> None:
    with open_gateway(disk) as gateway:
        gateway.connect()
        commit_patiently(gateway)
        disk.sync_delay_s = 1.0
        begin_s = time.monotonic()
        handles = [gateway.publish(f"1-{number}", 1) for number in range(400)]
        gateway.publish("0-0", 0)
        assert time.monotonic() - begin_s < 1, "QoS 0 and 1 do not wait for the disk"
        gateway.publish("2-0", 2)
        assert time.monotonic() - begin_s >= 1, "an alert does"
        assert all(handle.wait_durable(WAIT_S) for handle in handles)
        disk.sync_delay_s = 0.0
        broker = ScriptedBroker()
        gateway.cut()
        finish(gateway, broker)
        assert all(count == 1 for count in broker.counts().values())
        assert len(broker.counts()) >= 401


def test_what_comes_during_a_slow_sync_shares_the_next(disk: FaultyDisk) -> None:
    with open_gateway(disk) as gateway:
        before = disk.count(Sync)
        disk.sync_delay_s = 0.05
        handles = [gateway.publish(f"1-{number}", 1) for number in range(300)]
        assert all(handle.wait_durable(WAIT_S) for handle in handles)
        assert disk.count(Sync) - before <= 6
