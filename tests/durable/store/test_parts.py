"""The parts of a store, each without the others: no thread, and no transaction but those that are made here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import apsw
import pytest

from glec_fast.durable._steps import Finished
from glec_fast.durable._table import QueueTable
from glec_fast.durable.caretaker import Caretaker
from glec_fast.durable.database import create_schema
from glec_fast.durable.dropping import Dropping
from glec_fast.durable.extras import Extras
from glec_fast.durable.file import QueueFile
from glec_fast.durable.intake import Intake
from glec_fast.durable.jobs import Job, Jobs
from glec_fast.durable.limits import Limits
from glec_fast.durable.overflow import Overflow
from glec_fast.durable.quarantine import Bounds
from glec_fast.durable.reader import Reader
from glec_fast.durable.schedule import DONE_COMMIT_DELAY_S, DONE_COMMIT_ROWS, Schedule
from glec_fast.durable.status import Status
from glec_fast.durable.transaction import Commit
from glec_fast.durable.writer import Writer
from glec_fast.errors import QueueClosedError, QueueStorageError
from glec_fast.runtime._lock import Lock
from support.clock import Clock

NEVER = float("inf")
FULL = QueueStorageError("the disk is full")


@pytest.fixture
def monotonic() -> Clock:
    return Clock(100.0)


@pytest.fixture
def status() -> Status:
    return Status()


@pytest.fixture
def schedule(status: Status, monotonic: Clock) -> Schedule:
    return Schedule(status, monotonic, qos0_commit_delay_s=5.0, cleanup_interval_s=300.0)


class Watched:
    """In the place of the condition that a schedule waits on: each wait is a step. Seen: for how long, and wakes."""

    steps: list[Callable[[], object]]
    seen: list[float | str]

    def __init__(self, _lock: Lock) -> None:
        type(self).seen = []

    def wait(self, timeout_s: float) -> None:
        self.seen.append(timeout_s)
        self.steps.pop(0)()

    def notify_all(self) -> None:
        self.seen.append("woken")


@pytest.fixture
def watched(status: Status, monotonic: Clock, monkeypatch: pytest.MonkeyPatch) -> Schedule:
    monkeypatch.setattr("glec_fast.durable.schedule.Condition", Watched)
    return Schedule(status, monotonic, qos0_commit_delay_s=5.0, cleanup_interval_s=300.0)


@pytest.fixture
def jobs(status: Status, schedule: Schedule) -> Jobs:
    return Jobs(status, schedule)


@pytest.fixture
def intake(status: Status, schedule: Schedule, clock: Clock) -> Iterator[Intake]:
    with closing(apsw.Connection(":memory:")) as connection:
        create_schema(connection)
        yield Intake(status, schedule, QueueTable(connection), 1000, clock.clocks, is_salvaged=False)


class TestSchedule:
    def test_the_earliest_of_what_is_asked_for_counts(
        self, schedule: Schedule, status: Status, monotonic: Clock
    ) -> None:
        with status.lock:
            schedule.request_company(qos=0)
            assert schedule.deadline_s == 105.0
            schedule.request_delete()
            schedule.request_company(qos=0)
            assert schedule.deadline_s == 100.0 + DONE_COMMIT_DELAY_S
            monotonic.now_s += DONE_COMMIT_DELAY_S
            schedule.wait(NEVER)
            assert schedule.deadline_s == NEVER

    def test_what_finishes_wakes_nobody_who_looks_before_it_is_due(
        self, watched: Schedule, status: Status, monotonic: Clock
    ) -> None:
        def time_out() -> None:
            watched.on_finished(1, named=0, drained=True)
            monotonic.now_s += DONE_COMMIT_DELAY_S

        Watched.steps = [time_out]
        with status.lock:
            watched.wait(NEVER)
        assert Watched.seen == [DONE_COMMIT_DELAY_S]

    def test_what_is_due_sooner_wakes_and_where_nothing_finishes_it_waits_on(
        self, watched: Schedule, status: Status, monotonic: Clock
    ) -> None:
        def time_out() -> None:
            monotonic.now_s += DONE_COMMIT_DELAY_S

        Watched.steps = [time_out, lambda: watched.ask_at(150.0), watched.request]
        with status.lock:
            watched.wait(NEVER)
        assert Watched.seen == [DONE_COMMIT_DELAY_S, 299.0, "woken", 49.0, "woken"]

    def test_rows_just_behind_others_wait_for_company(
        self, schedule: Schedule, status: Status, monotonic: Clock
    ) -> None:
        with status.lock:
            schedule.on_rows_taken()
            schedule.request_company(qos=2)
            assert schedule.deadline_s == pytest.approx(100.05)

    def test_a_stream_of_acknowledgements_puts_the_deletion_off(
        self, schedule: Schedule, status: Status, monotonic: Clock
    ) -> None:
        finished = Finished([(1, 10 + DONE_COMMIT_ROWS)])
        with status.lock:
            assert schedule.on_finished(10, named=10, drained=False) == DONE_COMMIT_ROWS
            monotonic.now_s += 0.9
            schedule.on_finished(10 + DONE_COMMIT_ROWS, named=10 + DONE_COMMIT_ROWS, drained=False)
            monotonic.now_s += 0.9
            assert not schedule.is_delete_due(finished)
            monotonic.now_s += 0.2
            assert schedule.is_delete_due(finished)

    def test_a_clean_up_comes_by_itself_and_once(self, schedule: Schedule, status: Status, monotonic: Clock) -> None:
        assert not schedule.take_cleanup()
        monotonic.now_s += 300
        with status.lock:
            schedule.wait(NEVER)
        assert schedule.take_cleanup()
        assert not schedule.take_cleanup()


class TestJobs:
    def test_what_comes_to_nothing_waits_again_in_order(self, jobs: Jobs) -> None:
        first, second, third = (Job(lambda _table: None) for _ in range(3))
        jobs.add(first)
        jobs.add(second)
        jobs.take(Commit())
        jobs.add(third)
        first.finished.set()
        jobs.give_back()
        assert jobs.waiting == [second, third]

    def test_only_who_waits_hears_of_a_failure(self, jobs: Jobs) -> None:
        waiting, lasting = Job(lambda _table: None), Job(lambda _table: None, lasting=True)
        jobs.add(waiting)
        jobs.add(lasting)
        jobs.take(Commit())
        jobs.on_failure(FULL)
        assert waiting.finished.is_set()
        assert waiting.error is FULL
        assert jobs.waiting == [lasting]
        jobs.refuse()
        assert isinstance(lasting.error, QueueClosedError)


class TestIntake:
    def test_a_failure_keeps_all_in_order_and_lets_others_go_first(self, intake: Intake, status: Status) -> None:
        ids = intake.append_many([("t", "x", 1), ("t", "y", 1)], None)
        intake.take(Commit())
        ids.append(intake.append("t", "z", 1, True, None, None, None))
        intake.on_failure(FULL)
        assert [row[0] for row in intake.pending] == ids
        assert status.failure is FULL
        without, with_all = Commit(), Commit()
        intake.take(without)
        assert without.rows == []
        intake.take(with_all)
        assert [row[0] for row in with_all.rows] == ids
        intake.on_committed(with_all)
        assert status.failure is None
        assert intake.wait_durable(ids[-1], 0)

    @pytest.mark.parametrize(
        ("topic", "payload", "properties"),
        [("t" * 100, "", b""), ("t", b"x" * 100, b""), ("t", "\ud55c" * 33, b""), ("t", "", bytes(100))],
    )
    def test_all_that_a_message_says_takes_of_the_room_of_what_waits(
        self, intake: Intake, topic: str, payload: str | bytes, properties: bytes
    ) -> None:
        intake.pending_bytes_max = 200
        for _ in range(2):
            assert not intake.is_full
            intake.append(topic, payload, 0, True, None, Extras(False, None, properties), None)
        assert intake.is_full

    def test_only_what_is_not_being_written_is_withdrawn(self, intake: Intake) -> None:
        (kept,) = intake.append_many([("t", "x", 1)], None)
        commit = Commit()
        intake.take(commit)
        intake.on_committed(commit)
        (taken_back,) = intake.append_many([("t", "y", 1)], None)
        assert not intake.withdraw(kept)
        assert intake.withdraw(taken_back)
        assert intake.pending == []


class TestCaretaker:
    def test_damage_is_mended_at_once_and_then_not_before_its_pause(
        self, path: Path, intake: Intake, status: Status, schedule: Schedule, monotonic: Clock
    ) -> None:
        file = QueueFile(path)
        reader = Reader(file, 3)
        dropping = Dropping(status.lock, reader, intake.clock, 3, Bounds())
        overflow = Overflow(Limits(10), reader, dropping)
        writer = Writer(path, file.connection, reader, dropping, overflow, intake.adopt, status.log)
        caretaker = Caretaker(file, reader, writer, intake, dropping, status, schedule)
        commit = Commit()
        caretaker.mend(commit)
        assert not commit.is_salvaged
        status.damage = apsw.CorruptError("a page")
        caretaker.mend(commit)
        assert commit.is_salvaged
        assert writer.connection is file.connection
        status.damage = apsw.CorruptError("a page")
        with pytest.raises(apsw.CorruptError):
            caretaker.mend(commit)
        monotonic.now_s += 1
        caretaker.mend(commit)
        assert status.damage is None
        caretaker.close()
