"""Waiting for an empty queue, and closing one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import apsw
import pytest

from glec_fast.durable.outcomes import Dropped
from glec_fast.durable.store import Store
from glec_fast.errors import QueueClosedError, QueueStorageError
from support.clock import Clock
from support.store import WAIT_S, Disk, RecordingOutbox, append, held_writer, ids_on_disk, wait_for


class TestWaitEmpty:
    def test_an_empty_queue_is_empty_at_once(self, store: Store) -> None:
        assert store.wait_empty(WAIT_S) is True

    def test_it_ends_at_its_time_out(self, store: Store) -> None:
        append(store, 1)
        assert store.wait_empty(0.01) is False
        assert store.wait_empty(0) is False

    def test_it_hastens_the_last_deletes(self, store: Store, outbox: RecordingOutbox, pool: ThreadPoolExecutor) -> None:
        append(store, 3)
        outbox.read_all()
        waiting = pool.submit(store.wait_empty, WAIT_S)
        assert wait_for(lambda: store._schedule.eager == 1)
        outbox.finish([1, 2, 3], drained=True)
        assert waiting.result(WAIT_S) is True
        assert store._schedule.eager == 0

    def test_one_that_gives_up_leaves_the_other_waiting(
        self, store: Store, outbox: RecordingOutbox, pool: ThreadPoolExecutor
    ) -> None:
        append(store, 1)
        outbox.read_all()
        waiting = [pool.submit(store.wait_empty, WAIT_S) for _ in range(2)]
        assert wait_for(lambda: store._schedule.eager == 2)
        assert store.wait_empty(0.01) is False
        assert store._schedule.eager == 2
        outbox.finish([1], drained=True)
        assert [future.result(WAIT_S) for future in waiting] == [True, True]

    def test_closing_ends_it(self, make_store: Callable[..., Store], pool: ThreadPoolExecutor) -> None:
        store = make_store()
        append(store, 1)
        waiting = pool.submit(store.wait_empty)
        assert wait_for(lambda: store._schedule.eager == 1)
        store.close()
        assert waiting.result(WAIT_S) is False


class TestClose:
    def test_it_writes_what_waits(self, make_store: Callable[..., Store], path: Path) -> None:
        store = make_store(qos0_commit_delay_s=3600)
        ids = [store.append("t", str(n), 0, urgent=False) for n in range(5)]
        store.close()
        assert ids_on_disk(path) == ids

    def test_it_deletes_what_is_finished(self, store: Store, outbox: RecordingOutbox, path: Path) -> None:
        append(store, 3)
        outbox.read_all()
        outbox.finish([1, 3])
        store.close()
        assert ids_on_disk(path) == [2]

    def test_it_is_idempotent_from_many_threads(self, store: Store, pool: ThreadPoolExecutor, path: Path) -> None:
        message_id = store.append("t", "x", 1)
        for future in [pool.submit(store.close) for _ in range(8)]:
            assert future.result(WAIT_S) is None
        store.close()
        assert ids_on_disk(path) == [message_id]
        with closing(Store(path)) as again:
            assert again.size == 1

    def test_afterwards_everything_says_so(self, store: Store) -> None:
        store.close()
        calls: list[Callable[[], object]] = [
            lambda: store.append("t", "x", 1),
            lambda: store.append_many([("t", "x", 1)]),
            lambda: store.run(lambda table: None),
            lambda: store.drop_expired(),
            lambda: store.wait_durable(99, WAIT_S),
        ]
        for call in calls:
            with pytest.raises(QueueClosedError):
                call()
        assert store.supply.read(10) == ([], True)

    @pytest.mark.parametrize("waits", ["a message", "a drop", "a refusal"])
    def test_a_full_disk_does_not_hold_it_up(
        self, path: Path, clock: Clock, waits: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        store = Store(path, clocks=clock.clocks)
        outbox = RecordingOutbox(store)
        append(store, 1, ttl_ms=1000)
        disk = Disk(store)
        disk.error = apsw.FullError("database or disk is full")
        if waits == "a drop":
            clock.now_s += 2
            assert outbox.read() == []
        elif waits == "a refusal":
            store.supply.refuse([1])
        if waits == "a message":
            store.append("t", "x", 1)
            with pytest.raises(QueueStorageError, match="1 messages could not be written"):
                store.close()
        store.close()
        assert ids_on_disk(path) == [1]

    def test_it_may_be_called_from_a_drop_callback(self, make_store: Callable[..., Store], path: Path) -> None:
        told = threading.Event()

        def on_dropped(_dropped: list[Dropped]) -> None:
            store.append("t", "last words", 1)
            store.close()
            told.set()

        store = make_store(on_dropped=on_dropped)
        append(store, 1, ttl_ms=-1)
        assert store.drop_expired() == 1
        assert told.wait(WAIT_S)
        store.close()
        assert ids_on_disk(path) == [2]

    def test_jobs_that_wait_meanwhile_are_answered(self, store: Store, pool: ThreadPoolExecutor) -> None:
        with held_writer(store, pool):
            jobs = [pool.submit(store.run, lambda table: table.count()) for _ in range(3)]
            assert wait_for(lambda: len(store._jobs.waiting) == 3)
            closed = pool.submit(store.close)
            assert wait_for(lambda: store._status.is_closing)
        assert closed.result(WAIT_S) is None
        assert [job.result(WAIT_S) for job in jobs] == [0, 0, 0]
