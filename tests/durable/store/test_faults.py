"""No fault of the disk, of a caller or of an outbox ends the store's thread or loses a row."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from math import inf
from pathlib import Path
from typing import Any

import apsw
import pytest

from glec_fast.durable._table import QueueTable
from glec_fast.durable.clock import QueueClock
from glec_fast.durable.intake import Intake
from glec_fast.durable.outcomes import Dropped
from glec_fast.durable.store import Store
from glec_fast.durable.transaction import Commit, Row
from glec_fast.durable.writer import Writer
from glec_fast.errors import QueueClosedError, QueueStorageError
from support.clock import Clock
from support.gateway import eventually
from support.store import WAIT_S, Disk, RecordingOutbox, append, held_writer, ids_on_disk, raising, wait_for


class TestFaults:
    def test_a_failing_disk_refuses_and_then_goes_on(
        self, store: Store, outbox: RecordingOutbox, path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        disk = Disk(store)
        disk.error = apsw.FullError("database or disk is full")
        accepted = store.append("t", "kept", 1)
        with pytest.raises(QueueStorageError, match="no space left") as caught:
            store.wait_durable(accepted, WAIT_S)
        assert caught.value.retryable
        for attempt in (lambda: store.append("t", "x", 1), lambda: store.append_many([("t", "x", 1)])):
            with pytest.raises(QueueStorageError):
                attempt()
        assert store.size == 1
        disk.error = None
        outbox.wait(lambda heard: heard.new_rows == 1)
        assert ids_on_disk(path) == [accepted]
        assert store.append("t", "next", 1) == accepted + 1
        assert caplog.text.count("no space left") == 1, "one line, however often it tries"
        assert "can be written again" in caplog.text

    def test_who_is_refused_within_a_section_that_was_cut_into_does_not_give_up_its_lock(
        self, store: Store, pool: ThreadPoolExecutor
    ) -> None:
        disk = Disk(store)
        disk.error = apsw.FullError("database or disk is full")
        kept = store.append("t", "kept", 1)
        with pytest.raises(QueueStorageError):
            store.wait_durable(kept, WAIT_S)
        entered = threading.Event()

        def enter() -> None:
            with store._lock:
                entered.set()

        # As a signal's handler finds it.
        with store._lock:
            other = pool.submit(enter)
            for _ in range(10):
                with pytest.raises(QueueStorageError):
                    store.append("t", "x", 1)
            assert not entered.is_set()
        other.result(WAIT_S)
        disk.error = None
        assert wait_for(lambda: store.committed_id == kept)

    @pytest.mark.parametrize("is_flushing", [False, True])
    def test_acknowledgements_do_not_have_a_failing_disk_tried_again_at_once(
        self, make_store: Callable[..., Store], path: Path, monkeypatch: pytest.MonkeyPatch, is_flushing: bool
    ) -> None:
        """Also where each is the last in flight, and somebody waits for it, as behind a limit of the rate."""
        monotonic = Clock(0.0)
        store = make_store(monotonic=monotonic)
        outbox = RecordingOutbox(store)
        append(store, 50)
        outbox.read_all()
        store._schedule.eager = int(is_flushing)
        attempts: list[float] = []

        def fail(*_: object) -> None:
            attempts.append(monotonic.now_s)
            raise apsw.IOError("disk I/O error")

        monkeypatch.setattr(store._writer, "transact", fail)
        outbox.finish([1])
        monotonic.now_s += 1
        store.request_commit()
        assert wait_for(lambda: bool(attempts) and not store._writer.lock.locked())
        for message_id in range(2, 50):
            outbox.finish([message_id], drained=is_flushing)
            assert monotonic.now_s < store._schedule.deadline_s < inf
        assert len(attempts) == 1
        monkeypatch.undo()
        monotonic.now_s += 1
        store.request_commit()
        assert wait_for(lambda: ids_on_disk(path) == [50])

    def test_the_last_of_thousands_do_not_have_a_failing_disk_tried_again_at_once(
        self, make_store: Callable[..., Store], path: Path
    ) -> None:
        monotonic = Clock(0.0)
        store = make_store(monotonic=monotonic)
        outbox, schedule = RecordingOutbox(store), store._schedule
        append(store, 1500)
        outbox.read_all()
        disk = Disk(store)
        disk.entered.clear()
        disk.error = apsw.IOError("disk I/O error")
        outbox.finish(range(1, 1501))
        assert disk.entered.wait(WAIT_S)
        assert wait_for(lambda: monotonic.now_s < schedule.deadline_s < inf)
        disk.error = None
        monotonic.now_s += 1
        store.request_commit()
        assert wait_for(lambda: store.is_empty and ids_on_disk(path) == [])

    def test_a_rolled_back_transaction_changes_no_count(self, store: Store, outbox: RecordingOutbox) -> None:
        append(store, 10)
        outbox.read_all()
        with pytest.raises(QueueStorageError):
            store.run(lambda table: (table.delete([1, 2, 3]), raising(apsw.IOError("disk I/O error"))()))
        assert store.size == store.run(lambda table: table.count()) == 10
        outbox.finish([1, 2])
        store.request_commit()
        assert wait_for(lambda: store.size == 8)
        assert store.run(lambda table: table.count()) == 8

    def test_a_job_that_raises_is_its_callers_and_is_undone(
        self, store: Store, pool: ThreadPoolExecutor, path: Path
    ) -> None:
        ids = append(store, 3)

        def fail(table: QueueTable) -> None:
            table.delete(list(ids))
            raise LookupError("mine")

        with held_writer(store, pool):
            failed = pool.submit(store.run, fail)
            assert wait_for(lambda: bool(store._jobs.waiting))
            other = store.append("t", "x", 1)
        with pytest.raises(LookupError, match="mine"):
            failed.result(WAIT_S)
        assert store.wait_durable(other, WAIT_S)
        assert ids_on_disk(path) == [*ids, other]
        assert store.size == 4

    @pytest.mark.parametrize("error", [RuntimeError("mine"), SystemExit(1)])
    @pytest.mark.parametrize("callback", ["on_committed", "on_dropped"])
    def test_an_outbox_that_raises_does_not_end_the_thread(
        self,
        store: Store,
        outbox: RecordingOutbox,
        monkeypatch: pytest.MonkeyPatch,
        callback: str,
        error: BaseException,
    ) -> None:
        monkeypatch.setattr(outbox, callback, raising(error))
        append(store, 2, ttl_ms=-1)
        assert store.drop_expired() == 2
        append(store, 1)
        assert store.size == 1

    def test_an_outbox_that_cannot_be_collected_loses_nothing(
        self, store: Store, outbox: RecordingOutbox, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(outbox, "take_finished", raising(RuntimeError("mine")))
            message_id = store.append("t", "x", 1)
            with pytest.raises(QueueStorageError, match="mine"):
                store.wait_durable(message_id, WAIT_S)
        assert wait_for(lambda: outbox.new_rows == 1)
        assert outbox.read() == [message_id]

    @pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
    def test_if_the_thread_ever_ends_nobody_waits_for_ever(
        self, path: Path, monkeypatch: pytest.MonkeyPatch, pool: ThreadPoolExecutor
    ) -> None:
        store = Store(path)
        disk = Disk(store)
        disk.hold()
        message_id = store.append("t", "x", 1)
        assert disk.entered.wait(WAIT_S)
        monkeypatch.setattr(store._committer, "_on_success", raising(MemoryError()))
        waiting: list[Future[Any]] = [
            pool.submit(store.wait_durable, message_id),
            pool.submit(store.run, lambda table: None),
        ]
        empty = pool.submit(store.wait_empty)
        disk.released.set()
        for future in waiting:
            assert isinstance(future.exception(WAIT_S), QueueClosedError)
        assert empty.result(WAIT_S) is False
        with pytest.raises(QueueClosedError):
            store.append("t", "x", 1)
        store.close()

    def test_a_read_that_fails_is_tried_again(
        self, store: Store, outbox: RecordingOutbox, caplog: pytest.LogCaptureFixture
    ) -> None:
        append(store, 2)
        table = store._reader.table

        class Broken:
            def read_after(self, *_arguments: int) -> list[Row]:
                raise apsw.IOError("disk I/O error")

        store._reader.table = Broken()  # type: ignore[assignment]
        calls = len(outbox.commits)
        assert outbox.read() == outbox.read() == []
        store.log.tick()
        # The store's thread may be the one that says it. What repeats is said at DEBUG.
        errors = lambda: [each for each in caplog.records if each.levelname == "ERROR"]  # noqa: E731
        assert eventually(lambda: len(errors()) == 1)
        assert "disk I/O error" in errors()[0].getMessage()
        assert store.has_backlog
        store._reader.table = table
        outbox.wait(lambda heard: any(new for _, new in heard.commits[calls:]))
        assert outbox.read() == [1, 2]

    @pytest.mark.parametrize(("bound", "limit"), [("PENDING_ROWS_MAX", 5), ("PENDING_BYTES_MAX", 500)])
    def test_a_slow_disk_slows_the_caller_down(
        self,
        make_store: Callable[..., Store],
        monkeypatch: pytest.MonkeyPatch,
        pool: ThreadPoolExecutor,
        bound: str,
        limit: int,
    ) -> None:
        monkeypatch.setattr(f"glec_fast.durable.intake.{bound}", limit)
        waiting = threading.Event()
        wait_for_room = Intake.wait_for_room

        def watched(intake: Intake) -> None:
            waiting.set()
            wait_for_room(intake)

        monkeypatch.setattr(Intake, "wait_for_room", watched)
        store = make_store()
        with held_writer(store, pool):
            for _ in range(5):
                store.append("t", "x" * 100, 1)
            assert not waiting.is_set()
            sixth = pool.submit(store.append, "t", "x", 1)
            assert waiting.wait(WAIT_S)
            assert not sixth.done()
        assert store.wait_durable(sixth.result(WAIT_S), WAIT_S)

    def test_one_larger_than_all_that_may_wait_is_taken(
        self, make_store: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("glec_fast.durable.intake.PENDING_BYTES_MAX", 10)
        store = make_store()
        first, second = (store.append("t", "x" * 100, 1) for _ in range(2))
        assert store.withdraw(second) or store.wait_durable(second, WAIT_S)
        assert store.wait_durable(store.append("t", "x" * 100, 1), WAIT_S)
        assert store.committed_id > first

    def test_the_drop_callback_may_publish_into_a_full_store(
        self, make_store: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("glec_fast.durable.intake.PENDING_ROWS_MAX", 1)
        published = threading.Event()
        answers: list[object] = []

        def on_dropped(_dropped: list[Dropped]) -> None:
            answers.extend([store.wait_durable(store.append("t", "x", 1)) for _ in range(3)])
            answers.append(store.wait_empty())
            published.set()

        store = make_store(on_dropped=on_dropped)
        append(store, 1, ttl_ms=-1)
        assert store.drop_expired() == 1
        assert published.wait(WAIT_S)
        assert answers == [False] * 4
        assert wait_for(lambda: store.run(lambda table: table.count()) == 3)


def test_a_failing_start_lets_go_of_the_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def __init__(self, _connection: apsw.Connection) -> None:
            raise apsw.IOError("disk I/O error")

    with monkeypatch.context() as patched:
        patched.setattr("glec_fast.durable.writer.QueueTable", Broken)
        with pytest.raises(QueueStorageError, match="disk I/O error"):
            Store(path)
    Store(path).close()
    assert path.exists()


def test_a_transaction_that_is_on_disk_though_all_said_it_failed_is_not_made_twice(
    store: Store, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its rows are no stranger's, which would be given other ids and sent beside our own."""
    transact, failed = Writer.transact, []

    def say_it_failed(writer: Writer, commit: Commit, clock: QueueClock) -> None:
        transact(writer, commit, clock)
        if not failed:
            failed.append(commit)
            commit.is_committed = False
            raise apsw.IOError("disk I/O error")

    monkeypatch.setattr(Writer, "transact", say_it_failed)
    ids = [store.append("t", "x", 1) for _ in range(3)]

    def is_written() -> bool:
        with suppress(QueueStorageError):
            return store.wait_durable(ids[-1], WAIT_S)
        return False

    assert eventually(is_written)
    assert ids_on_disk(path) == ids
    assert store.size == 3
