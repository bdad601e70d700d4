"""A disk that is full: publishing says so, nothing that was accepted is lost, and it goes on when there is space."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import TypeVar

import pytest

from glec_fast.durable.store import Store
from glec_fast.errors import QueueStorageError
from glec_fast.fleet.offline_queue import OfflineQueueManager
from support.gateway import eventually
from support.queue_files import run_child
from support.scripted_broker import ScriptedBroker
from support.scripted_gateway import ScriptedGateway

T = TypeVar("T")
WAIT_S = 30
DISK_BYTES = 2 << 20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of two megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "none", str(folder)]
    if os.getuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a small disk here; the tests with a file size limit run in any case")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill_up(folder: Path) -> Path:
    """Take every free byte."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size_bytes in (65536, 4096, 1):
            with suppress(OSError):
                while file.write(bytes(size_bytes)) == size_bytes:
                    pass
    return ballast


def payload(number: int) -> str:
    return f"{number} " + "x" * 300


def enqueue_until_refused(queue: OfflineQueueManager) -> tuple[list[int], QueueStorageError]:
    """The ids that were accepted, and the refusal."""
    accepted: list[int] = []
    with pytest.raises(QueueStorageError) as caught:
        accepted.extend(queue.enqueue("t", payload(number), 2) for number in range(20_000))
    return accepted, caught.value


def patiently(call: Callable[[], T]) -> T:
    """Call again while it is refused, as a caller who heeds `retryable`."""
    pause = threading.Event()
    deadline_s = time.monotonic() + WAIT_S
    while time.monotonic() < deadline_s:
        with suppress(QueueStorageError):
            return call()
        pause.wait(0.01)
    raise AssertionError("it did not go on")


class TestRealDisk:
    def test_enqueue_says_so_and_goes_on_when_space_returns(self, small_disk: Path) -> None:
        path = small_disk / "queue.db"
        with OfflineQueueManager(path) as queue:
            queue.enqueue("t", "the first", 2)
            ballast = fill_up(small_disk)
            accepted, error = enqueue_until_refused(queue)
            assert error.retryable
            assert "no space left" in str(error)
            assert queue.get_queue_size() == 1 + len(accepted), "what was refused is not in the queue"
            ballast.unlink()
            # A refusal holds until an attempt has succeeded.
            later = [patiently(lambda: queue.enqueue("t", "later", 1)), queue.enqueue("t", "last", 1)]
        with OfflineQueueManager(path) as queue:
            assert [message.id for message in queue.dequeue_all()] == [1, *accepted, *later]

    def test_many_at_once_are_refused_as_one(self, small_disk: Path) -> None:
        path = small_disk / "queue.db"
        with OfflineQueueManager(path) as queue:
            queue.enqueue("t", "the first", 2)
            with pytest.raises(QueueStorageError, match="no space left"):
                queue.enqueue_many([("t", payload(number), 1) for number in range(9000)])
            assert queue.get_queue_size() == 1
            assert patiently(lambda: queue.enqueue("t", "small enough", 1)) > 1
        with OfflineQueueManager(path) as queue:
            assert [message.payload for message in queue.dequeue_all()] == ["the first", "small enough"]

    def test_what_was_accepted_without_waiting_is_written_by_itself(self, small_disk: Path) -> None:
        path = small_disk / "queue.db"
        with closing(Store(path)) as store:
            first = store.append("t", "first", 1)
            assert store.wait_durable(first, WAIT_S)
            ballast = fill_up(small_disk)
            accepted = [first]

            def publish(number: int) -> None:
                accepted.append(store.append("t", payload(number), 1))
                store.wait_durable(accepted[-1], WAIT_S)

            with pytest.raises(QueueStorageError):
                any(publish(number) for number in range(20_000))
            ballast.unlink()
            assert patiently(lambda: store.wait_durable(accepted[-1], WAIT_S))
            assert store.size == len(accepted)
        with OfflineQueueManager(path) as queue:
            assert [message.id for message in queue.dequeue_all()] == accepted

    def test_closing_says_what_is_lost_with_it(self, small_disk: Path) -> None:
        path = small_disk / "queue.db"
        store = Store(path)
        first = store.append("t", "first", 1)
        assert store.wait_durable(first, WAIT_S)
        fill_up(small_disk)
        store.append("t", "x" * 500_000, 1)
        with pytest.raises(QueueStorageError, match="1 messages could not be written"):
            store.close()
        (small_disk / "ballast").unlink()
        with OfflineQueueManager(path) as queue:
            assert [message.id for message in queue.dequeue_all()] == [first]
            assert queue.enqueue("t", "x", 1) > first

    def test_a_flush_and_its_deletions_need_no_free_byte(self, small_disk: Path) -> None:
        path = small_disk / "queue.db"
        with OfflineQueueManager(path) as queue:
            queue.enqueue_many([("t", f"2-{number} " + "x" * 300, 2) for number in range(500)])
        with ScriptedGateway(path, window=20) as gateway:
            fill_up(small_disk)
            broker = ScriptedBroker()
            deadline_s = time.monotonic() + 10
            gateway.connect()
            while gateway.store.size and time.monotonic() < deadline_s:
                with suppress(QueueStorageError):
                    gateway.commit()
                broker.feed(gateway.send())
                gateway.receive(broker.handle(broker.waiting_packets()))
            size = gateway.store.size
            (small_disk / "ballast").unlink()
        assert len(broker.counts()) == 500
        assert size == 0

    @pytest.mark.parametrize("case", ["as it is", "others are to be dropped", "the store's thread writes images"])
    def test_alerts_go_though_new_rows_wait_for_room(self, small_disk: Path, case: str) -> None:
        """They stand in the log alone, and what comes behind them is tried again and again."""
        with ScriptedGateway(small_disk / "queue.db", window=20) as gateway:
            gateway.store.leave_images_to_writer(case == "the store's thread writes images")
            gateway.connect()
            gateway.commit()
            gateway.cut()
            for number in range(300 if case == "others are to be dropped" else 0):
                gateway.store.append("t", f"old {number}", 1, ttl_ms=1000)
            for number in range(60):
                assert gateway.store.wait_durable(gateway.store.append("t", payload(number), 2), WAIT_S)
            fill_up(small_disk)
            gateway.store.append("t", "x" * 400_000, 1)
            assert eventually(lambda: gateway.store.is_failing)
            gateway.clock.now_s += 5
            gateway.connect()
            broker = ScriptedBroker()
            assert eventually(lambda: self._goes_on(gateway, broker) and len(broker.counts()) >= 60)
            (small_disk / "ballast").unlink()

    @staticmethod
    def _goes_on(gateway: ScriptedGateway, broker: ScriptedBroker) -> bool:
        gateway.outbox.pull()
        broker.feed(gateway.send())
        gateway.receive(broker.handle(broker.waiting_packets()))
        return True

    def test_many_rows_are_deleted_without_a_free_byte(self, small_disk: Path) -> None:
        path = small_disk / "queue.db"
        with OfflineQueueManager(path) as queue:
            queue.enqueue_many([("t", f"1-{number}", 1) for number in range(9000)])
        with ScriptedGateway(path, window=7000) as gateway:
            fill_up(small_disk)
            broker = ScriptedBroker()
            gateway.connect()
            while len(broker.counts()) < 7000:
                broker.feed(gateway.send())
                gateway.receive(broker.handle(broker.waiting_packets()))
            patiently(gateway.commit)
            assert eventually(lambda: len(patiently(gateway.rows)) <= 2000)
            (small_disk / "ballast").unlink()

    def test_a_new_queue_on_a_full_disk(self, small_disk: Path) -> None:
        ballast = fill_up(small_disk)
        with pytest.raises(QueueStorageError) as caught:
            OfflineQueueManager(small_disk / "queue.db")
        assert caught.value.retryable
        ballast.unlink()
        with OfflineQueueManager(small_disk / "queue.db") as queue:
            assert queue.enqueue("t", "x", 1) == 1


class TestFileSizeLimit:
    """For any user: the kernel refuses to let a file of this process grow above a limit."""

    def test_refused_then_mended(self, tmp_path: Path) -> None:
        child = run_child(
            """
            import resource, signal
            from glec_fast.errors import QueueStorageError
            from glec_fast.fleet.offline_queue import OfflineQueueManager
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            queue = OfflineQueueManager("queue.db")
            accepted = [queue.enqueue("t", "first", 2)]
            resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
            try:
                while True:
                    accepted.append(queue.enqueue("t", "x" * 300, 2))
            except QueueStorageError as error:
                print(error.retryable)
            print(len(accepted) > 1, queue.get_queue_size() == len(accepted))
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            while True:
                try:
                    accepted.append(queue.enqueue("t", "last", 2))
                    break
                except QueueStorageError:
                    pass
            queue.release()
            with OfflineQueueManager("queue.db") as queue:
                print([message.id for message in queue.dequeue_all()] == accepted)
        """,
            tmp_path,
        )
        assert child.stdout.split() == ["True", "True", "True", "True"], child.stderr

    def test_killed_while_refused_keeps_what_was_accepted(self, tmp_path: Path) -> None:
        child = run_child(
            """
            import os, resource, signal
            from glec_fast.errors import QueueStorageError
            from glec_fast.fleet.offline_queue import OfflineQueueManager
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            queue = OfflineQueueManager("queue.db")
            accepted = [queue.enqueue("t", "first", 2)]
            resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
            try:
                while True:
                    accepted.append(queue.enqueue("t", "x" * 300, 2))
            except QueueStorageError as error:
                print(len(accepted), flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        """,
            tmp_path,
        )
        accepted = int(child.stdout)
        with OfflineQueueManager(tmp_path / "queue.db") as queue:
            assert [message.id for message in queue.dequeue_all()] == list(range(1, accepted + 1))


def test_an_opening_without_space_is_named_as_that(small_disk: Path) -> None:
    path = small_disk / "queue.db"
    with OfflineQueueManager(path) as queue:
        queue.enqueue("t", payload(1), 1)
    ballast = fill_up(small_disk)
    with pytest.raises(QueueStorageError, match="no space left for the queue file"):
        Store(path)
    ballast.unlink()
    with closing(Store(path)) as store:
        assert store.size == 1
