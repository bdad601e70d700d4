"""The store: when something is on disk, in which order it is read, and that no fault ends its thread or loses a row."""

from __future__ import annotations

import logging
import random
import sqlite3
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import apsw
import pytest

from glec_fast._store import QueueTable, ranges_of
from glec_fast.commit import Row
from glec_fast.drops import Dropped, DropReason
from glec_fast.errors import QueueClosedError, QueueStorageError
from glec_fast.in_doubt import Decision, InDoubt
from glec_fast.store import Store
from support.clock import Clock

WAIT_S = 20
BOTH = pytest.mark.parametrize("disk_mends", [True, False])


def image_on_disk(path: Path) -> bytes:
    with closing(apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)) as database:
        image: bytes = database.execute("SELECT in_flight FROM glec_session").get
    return image


class RecordingOutbox:
    """An outbox without a network: it takes what is read, finishes what it is told to, and records what it hears."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.sent: list[Row] = []
        self.dropped: list[Dropped] = []
        self.commits: list[tuple[int, int]] = []
        self._finished: list[int] = []
        self.in_doubt: list[tuple[int, Decision]] = []
        self._heard = threading.Condition()
        self.in_flight = b""
        self.version = 0
        store.load_session()
        store.attach(self)
        store.speak_for("client", "host:1883")

    def take_finished(self) -> list[int]:
        with self._heard:
            finished, self._finished = self._finished, []
            return finished

    def image(self, kept: list[int]) -> tuple[int, bytes, list[tuple[int, Decision]]]:
        with self._heard:
            named = "".join(f" {first}-{last}" for first, last in ranges_of(kept + self._finished))
            in_doubt, self.in_doubt = self.in_doubt, []
            return self.version, self.in_flight + named.encode(), in_doubt

    def on_committed(self, version: int, new_rows: int) -> None:
        with self._heard:
            self.commits.append((version, new_rows))
            self._heard.notify_all()

    def on_dropped(self, dropped: list[Dropped]) -> None:
        with self._heard:
            self.dropped += dropped
            self._heard.notify_all()

    def wait(self, condition: Callable[[RecordingOutbox], object]) -> None:
        with self._heard:
            assert self._heard.wait_for(lambda: condition(self), WAIT_S)

    def read(self, limit: int = 100) -> list[int]:
        """Take the next rows; returns their ids."""
        rows, _ = self.store.read(limit)
        self.sent += rows
        return [row[0] for row in rows]

    def read_all(self, limit: int = 100) -> list[int]:
        ids: list[int] = []
        is_last = False
        while not is_last:
            rows, is_last = self.store.read(limit)
            self.sent += rows
            ids += [row[0] for row in rows]
        return ids

    def finish(self, ids: Iterable[int], *, drained: bool = False) -> None:
        with self._heard:
            self._finished += ids
            waiting = len(self._finished)
        self.store.on_finished(waiting, drained=drained)

    def park(self) -> None:
        """A lost connection: nothing is kept in flight, what was finished is named."""
        with self._heard:
            finished = list(self._finished)
        self.store.rewind((), finished)

    @property
    def new_rows(self) -> int:
        return sum(count for _, count in self.commits)


class Disk:
    """The store's table, with a disk that can be held, or made to fail."""

    def __init__(self, store: Store) -> None:
        self._table: QueueTable = store._writer.table
        self.error: Exception | None = None
        self.entered = threading.Event()
        self.released = threading.Event()
        self.released.set()
        store._writer.table = self  # type: ignore[assignment]

    @property
    def deleted(self) -> int:
        return self._table.deleted

    @deleted.setter
    def deleted(self, value: int) -> None:
        self._table.deleted = value
        # The first thing in every transaction.
        self.entered.set()
        assert self.released.wait(WAIT_S)
        if self.error is not None:
            raise self.error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._table, name)

    def hold(self) -> None:
        self.entered.clear()
        self.released.clear()


@pytest.fixture(autouse=True)
def _quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glec_fast.store._STORAGE_RETRY_S", 0.05)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "queue.db"


@pytest.fixture
def make_store(path: Path, clock: Clock) -> Iterator[Callable[..., Store]]:
    opened: list[Store] = []

    def make(**settings: Any) -> Store:
        store = Store(path, **{"clocks": clock.clocks, **settings})
        opened.append(store)
        return store

    yield make
    for store in opened:
        store.close()


@pytest.fixture
def store(make_store: Callable[..., Store]) -> Store:
    return make_store()


@pytest.fixture
def outbox(store: Store) -> RecordingOutbox:
    return RecordingOutbox(store)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as executor:
        yield executor


def ids_on_disk(path: Path) -> list[int]:
    """What another connection sees in the file."""
    # Through the same library: SQLite twice in one process would let go of the locks of the other.
    with closing(apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)) as database:
        return [number for (number,) in database.execute("SELECT id FROM mqtt_offline_queue ORDER BY timestamp, id")]


@contextmanager
def held_writer(store: Store, pool: ThreadPoolExecutor) -> Iterator[None]:
    """The writer is busy with one transaction; what is appended meanwhile waits for the next."""
    entered, leave = threading.Event(), threading.Event()

    def hold(_table: QueueTable) -> None:
        entered.set()
        assert leave.wait(WAIT_S)

    held = pool.submit(store.run, hold)
    assert entered.wait(WAIT_S)
    try:
        yield
    finally:
        leave.set()
        held.result(WAIT_S)


def append(store: Store, count: int, qos: int = 1, **settings: Any) -> list[int]:
    ids = store.append_many([("t", f"payload {n}", qos) for n in range(count)], **settings)
    assert store.wait_durable(ids[-1], WAIT_S)
    return ids


class TestDropsAreTold:
    def test_an_empty_queue_is_announced_after_its_drops(
        self, store: Store, outbox: RecordingOutbox, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        let_go, told = threading.Event(), threading.Event()

        def on_dropped(_dropped: list[Dropped]) -> None:
            told.set()
            assert let_go.wait(WAIT_S)

        monkeypatch.setattr(outbox, "on_dropped", on_dropped)
        append(store, 2, ttl_ms=-1)
        dropping = pool.submit(store.drop_expired)
        assert told.wait(WAIT_S)
        assert not store.wait_empty(0.05)
        let_go.set()
        assert store.wait_empty(WAIT_S)
        assert dropping.result(WAIT_S) == 2


class TestCommit:
    def test_what_waits_is_committed_as_one_group(
        self, store: Store, outbox: RecordingOutbox, pool: ThreadPoolExecutor
    ) -> None:
        with held_writer(store, pool):
            ids = [store.append("t", str(n), 1) for n in range(100)]
        assert store.wait_durable(ids[-1], WAIT_S)
        outbox.wait(lambda heard: heard.new_rows)
        assert [count for _, count in outbox.commits if count] == [100]

    def test_each_of_eight_threads_keeps_its_order(
        self, store: Store, outbox: RecordingOutbox, pool: ThreadPoolExecutor
    ) -> None:
        def publish(thread: int) -> list[int]:
            return [store.append(f"thread/{thread}", str(n), 1) for n in range(300)]

        given = [future.result(WAIT_S) for future in [pool.submit(publish, thread) for thread in range(8)]]
        assert store.wait_durable(max(ids[-1] for ids in given), WAIT_S)
        read = outbox.read_all()
        assert read == list(range(1, 2401))
        for thread in range(8):
            own = [row for row in outbox.sent if row[1] == f"thread/{thread}"]
            assert [row[2] for row in own] == [str(n) for n in range(300)]
            assert [row[0] for row in own] == given[thread]

    def test_durable_means_that_another_connection_sees_it(self, store: Store, path: Path) -> None:
        message_id = store.append("t", "x", 1)
        assert store.wait_durable(message_id, WAIT_S)
        assert ids_on_disk(path) == [message_id]

    def test_wait_durable_ends_at_its_time_out(self, store: Store, pool: ThreadPoolExecutor) -> None:
        with held_writer(store, pool):
            message_id = store.append("t", "x", 1)
            assert store.wait_durable(message_id, 0.01) is False
        assert store.wait_durable(message_id, WAIT_S)

    def test_register_hears_of_the_id_first(self, store: Store) -> None:
        heard: list[int] = []
        message_id = store.append("t", "x", 1, register=heard.append)
        assert heard == [message_id]

    def test_qos0_waits_for_company(self, make_store: Callable[..., Store], path: Path) -> None:
        monotonic = Clock(0)
        store = make_store(monotonic=monotonic, qos0_commit_delay_s=5)
        outbox = RecordingOutbox(store)
        first = store.append("t", "1", 0, urgent=False)
        monotonic.now_s = 4.999
        # It wakes the writer, but asks for nothing before the time of the first.
        store.append("t", "2", 0, urgent=False)
        assert store.size == 2
        assert ids_on_disk(path) == []
        third = store.append("t", "3", 1)
        assert store.wait_durable(third, WAIT_S)
        assert ids_on_disk(path) == [first, first + 1, third]
        outbox.wait(lambda heard: heard.new_rows)
        assert [count for _, count in outbox.commits if count] == [3]

    def test_qos0_goes_alone_when_its_time_has_come(self, make_store: Callable[..., Store]) -> None:
        store = make_store(qos0_commit_delay_s=0.001)
        outbox = RecordingOutbox(store)
        store.append("t", "1", 0, urgent=False)
        outbox.wait(lambda heard: heard.new_rows == 1)
        assert outbox.read() == [1]

    def test_waiting_for_a_delayed_message_hastens_it(self, make_store: Callable[..., Store]) -> None:
        store = make_store(qos0_commit_delay_s=3600)
        assert store.wait_durable(store.append("t", "1", 0, urgent=False), WAIT_S)

    def test_the_image_is_committed_and_given_to_the_next_process(self, make_store: Callable[..., Store]) -> None:
        store = make_store()
        outbox = RecordingOutbox(store)
        outbox.in_flight, outbox.version = b"\x01image", 7
        store.request_commit()
        outbox.wait(lambda heard: (7, 0) in heard.commits)
        store.close()
        store = make_store()
        assert store.identity == ("", "")
        assert store.load_session() == b"\x01image"
        assert store.identity == ("client", "host:1883")

    def test_another_name_is_on_disk_together_with_its_own_image(self, make_store: Callable[..., Store]) -> None:
        store = make_store()
        outbox = RecordingOutbox(store)
        outbox.in_flight = b"old"
        store.close()
        store = make_store()
        assert store.load_session() == b"old"
        store.attach(outbox)
        outbox.in_flight = b"new"
        store.speak_for("other", "host:1883")
        store.close()
        store = make_store()
        assert store.load_session() == b"new"
        assert store.identity == ("other", "host:1883")

    def test_what_is_in_doubt_is_recorded_with_the_image_that_forgets_it(
        self, make_store: Callable[..., Store], path: Path, clock: Clock
    ) -> None:
        store = make_store()
        outbox = RecordingOutbox(store)
        append(store, 2)
        outbox.read_all()
        with store._commit_lock:
            outbox.in_flight = b"forgotten"
            outbox.in_doubt = [(2, Decision.SENT_AGAIN), (1, Decision.LEFT_TO_BROKER)]
            outbox.finish([1])
            assert store._save_image() is None, "the image alone would lose them"
        store.run(lambda _table: None)
        assert image_on_disk(path) == b"forgotten"
        assert store.in_doubt() == [
            InDoubt(1, int(clock.now_s * 1000), 2, "t", Decision.SENT_AGAIN),
            InDoubt(2, int(clock.now_s * 1000), 1, "t", Decision.LEFT_TO_BROKER),
        ]
        assert ids_on_disk(path) == [2]

    def test_the_newest_entries_of_the_ledger_are_kept(
        self, make_store: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("glec_fast.writer.LEDGER_ROWS_MAX", 3)
        store = make_store()
        outbox = RecordingOutbox(store)
        append(store, 5)
        outbox.in_doubt = [(message_id, Decision.SENT_AGAIN) for message_id in range(1, 6)]
        store.run(lambda _table: None)
        assert [(each.number, each.message_id) for each in store.in_doubt()] == [(3, 3), (4, 4), (5, 5)]

    def test_rows_that_finish_in_a_stream_are_named_first_and_deleted_later(
        self, make_store: Callable[..., Store], path: Path
    ) -> None:
        monotonic = Clock(0.0)
        store = make_store(monotonic=monotonic)
        outbox = RecordingOutbox(store)
        append(store, 1100)
        outbox.read_all()
        outbox.finish(range(1, 1001))
        outbox.wait(lambda heard: store.size == 100)
        assert store.commit_image() is not None
        assert image_on_disk(path) == b" 1-1000"
        assert ids_on_disk(path) == list(range(1, 1101))
        monotonic.now_s += 2
        store.request_commit()
        assert wait_for(lambda: ids_on_disk(path) == list(range(1001, 1101)))

    def test_the_table_is_cleared_at_once_where_all_of_it_is_finished(
        self, store: Store, outbox: RecordingOutbox, path: Path
    ) -> None:
        append(store, 1200)
        outbox.read_all()
        outbox.finish(range(1, 1201))
        outbox.wait(lambda heard: store.size == 0)
        assert wait_for(lambda: ids_on_disk(path) == [])
        assert store.append("t", "x", 1) == 1201

    @pytest.mark.parametrize("unfinished", [1, 600, 1200])
    def test_a_single_unfinished_row_is_never_cleared(
        self, store: Store, outbox: RecordingOutbox, path: Path, unfinished: int
    ) -> None:
        append(store, 1200)
        outbox.read_all()
        # One more than there are rows: the count alone would say that all is finished.
        outbox.finish([each for each in range(1, 1203) if each != unfinished])
        assert wait_for(lambda: ids_on_disk(path) == [unfinished])

    def test_the_next_process_reads_none_of_what_is_named_as_finished(self, store: Store) -> None:
        append(store, 600)
        store.rewind([], range(1, 551))
        ids: list[int] = []
        is_last = False
        while not is_last:
            rows, is_last = store.read(250)
            ids += [row[0] for row in rows]
        assert ids == list(range(551, 601))

    def test_finished_rows_make_room_before_any_is_dropped(self, make_store: Callable[..., Store], path: Path) -> None:
        store = make_store(max_queue_size=1500)
        outbox = RecordingOutbox(store)
        append(store, 1500)
        outbox.read_all()
        outbox.finish(range(1, 1101))
        outbox.wait(lambda heard: store.size == 400)
        append(store, 500)
        assert store.drops == {}
        assert len(ids_on_disk(path)) == 900

    def test_append_many_is_all_or_nothing(self, store: Store) -> None:
        rows: list[Any] = [("t", "x", 1), ("t", "x", 2**70)]
        with pytest.raises(OverflowError):
            store.append_many(rows)
        assert store.size == 0
        assert store.append("t", "x", 1) > 0


class TestWithdraw:
    def test_what_waits_is_taken_back(self, store: Store, pool: ThreadPoolExecutor, path: Path) -> None:
        with held_writer(store, pool):
            kept, withdrawn = store.append("t", "1", 1), store.append("t", "2", 1)
            assert store.withdraw(withdrawn) is True
            assert store.withdraw(withdrawn) is False
        assert store.wait_durable(kept, WAIT_S)
        assert ids_on_disk(path) == [kept]

    def test_what_is_on_disk_is_not(self, store: Store) -> None:
        (message_id,) = append(store, 1)
        assert store.withdraw(message_id) is False
        assert store.size == 1

    @BOTH
    def test_what_is_being_written_is_decided_first(
        self, store: Store, pool: ThreadPoolExecutor, path: Path, *, disk_mends: bool
    ) -> None:
        disk = Disk(store)
        disk.hold()
        message_id = store.append("t", "x", 1)
        assert disk.entered.wait(WAIT_S)
        disk.error = None if disk_mends else apsw.FullError("database or disk is full")
        withdrawn = pool.submit(store.withdraw, message_id)
        disk.released.set()
        assert withdrawn.result(WAIT_S) is not disk_mends
        disk.error = None
        store.close()
        assert ids_on_disk(path) == ([message_id] if disk_mends else [])

    def test_taking_back_the_last_one_empties_the_queue(
        self, make_store: Callable[..., Store], pool: ThreadPoolExecutor
    ) -> None:
        store = make_store()
        disk = Disk(store)
        disk.error = apsw.FullError("database or disk is full")
        message_id = store.append("t", "x", 1)
        waiting = pool.submit(store.wait_empty, WAIT_S)
        with pytest.raises(QueueStorageError, match="no space left"):
            store.wait_durable(message_id, WAIT_S)
        assert store.withdraw(message_id)
        assert waiting.result(WAIT_S) is True


class TestOrder:
    def test_rows_come_in_order_a_window_at_a_time(self, store: Store, outbox: RecordingOutbox) -> None:
        append(store, 25)
        assert [outbox.read(10) for _ in range(4)] == [
            list(range(1, 11)),
            list(range(11, 21)),
            list(range(21, 26)),
            [],
        ]

    @pytest.mark.parametrize("limit", [1, 7, 100])
    def test_many_of_one_timestamp_are_all_read(
        self, store: Store, outbox: RecordingOutbox, clock: Clock, limit: int
    ) -> None:
        for _ in range(4):
            append(store, 50)
            clock.now_s += 0.001
        assert outbox.read_all(limit) == list(range(1, 201))

    def test_ten_thousand_of_one_timestamp_and_more_while_reading(self, store: Store, outbox: RecordingOutbox) -> None:
        append(store, 9_990)
        read = outbox.read(5000)
        append(store, 10)
        assert read + outbox.read_all(500) == list(range(1, 10_001))

    def test_timestamps_of_another_writer(self, make_store: Callable[..., Store], path: Path) -> None:
        make_store().close()
        with closing(sqlite3.connect(path)) as database, database:
            database.executemany(
                "INSERT INTO mqtt_offline_queue (id, topic, payload, qos, timestamp, ttl)"
                " VALUES (?, 't', 'x', 1, ?, ?)",
                [(5, 3, 10**15), (-2, -1, 10**15), (1, -(2**62), 10**15), (9, 3, 10**15), (0, -1, 10**15)],
            )
        assert RecordingOutbox(make_store()).read_all(2) == [1, -2, 0, 5, 9]

    def test_a_clock_that_jumps_does_not_hide_what_comes(
        self, store: Store, outbox: RecordingOutbox, clock: Clock
    ) -> None:
        ids = []
        for jump_s in (0, 10**8, -2 * 10**8, 10**8 + 5, -clock.now_s):
            clock.step(jump_s)
            ids += append(store, 2, ttl_ms=10**14)
            assert outbox.read_all() == ids[-2:]
        outbox.park()
        assert outbox.read_all(3) == ids

    def test_a_backlog_is_known_until_it_was_read(self, store: Store, outbox: RecordingOutbox) -> None:
        outbox.read()
        assert not store.has_backlog
        append(store, 3)
        assert store.has_backlog
        outbox.read(3)
        assert store.has_backlog
        outbox.read(3)
        assert not store.has_backlog
        outbox.park()
        assert store.has_backlog

    def test_reading_goes_on_at_the_same_pace_in_a_long_queue(self, make_store: Callable[..., Store]) -> None:
        store = make_store(max_queue_size=10**6)
        append(store, 60_000)
        connection = store._reader._connection
        steps: list[int] = []

        def count() -> bool:
            steps[-1] += 1
            return False

        connection.set_progress_handler(count, 10)
        while True:
            steps.append(0)
            if store.read(500)[1]:
                break
        connection.set_progress_handler(None)
        # Instructions of SQLite's machine, in tens: the last window costs what the first did.
        assert steps[0] > 100
        assert max(steps) < 2 * steps[0]


class TestRewind:
    def test_everything_unfinished_is_read_again(self, store: Store, outbox: RecordingOutbox) -> None:
        append(store, 10)
        outbox.read_all()
        outbox.finish([2, 3, 5])
        outbox.park()
        assert outbox.read_all() == [1, 4, 6, 7, 8, 9, 10]

    @pytest.mark.parametrize("rewinds", [1, 2, 3])
    def test_what_is_finished_is_not_read_again_before_its_delete(
        self, store: Store, outbox: RecordingOutbox, rewinds: int
    ) -> None:
        append(store, 1000)
        outbox.read_all(500)
        disk = Disk(store)
        disk.error = apsw.FullError("database or disk is full")
        finished = list(range(301, 1000))
        outbox.finish(finished)
        assert disk.entered.wait(WAIT_S)
        for _ in range(rewinds):
            outbox.park()
        assert outbox.read_all(100) == [*range(1, 301), 1000]
        outbox.park()
        assert outbox.read(150) == list(range(1, 151))
        outbox.park()
        outbox.park()
        assert outbox.read_all(100) == [*range(1, 301), 1000]
        disk.error = None
        outbox.wait(lambda heard: store.size == 301)

    def test_what_is_finished_meanwhile_is_never_told_as_dropped(self, make_store: Callable[..., Store]) -> None:
        store = make_store(max_queue_size=10)
        outbox = RecordingOutbox(store)
        append(store, 10)
        outbox.read_all()
        disk = Disk(store)
        disk.hold()
        store.request_commit()
        assert disk.entered.wait(WAIT_S)
        # The writer has collected already, and knows nothing of these.
        outbox.finish([1, 2])
        outbox.park()
        disk.released.set()
        append(store, 2)
        outbox.wait(lambda heard: heard.new_rows == 12)
        assert outbox.dropped == []
        assert outbox.read_all() == list(range(3, 13))

    def test_it_survives_a_thousand_random_lost_links(self, store: Store, outbox: RecordingOutbox) -> None:
        dice = random.Random(5)
        append(store, 300)
        outbox.read_all(37)
        finished: set[int] = set()
        waiting = set(range(1, 301))
        for _ in range(1000):
            if dice.random() < 0.5 and waiting:
                done = dice.sample(sorted(waiting), min(len(waiting), dice.randrange(1, 4)))
                finished.update(done)
                waiting.difference_update(done)
                outbox.finish(done)
            if dice.random() < 0.3:
                store.request_commit()
            outbox.park()
            if dice.random() < 0.5:
                assert not finished.intersection(outbox.read(dice.randrange(1, 60)))
                outbox.park()
            assert outbox.read_all(dice.randrange(1, 400)) == sorted(waiting)


class TestOverflow:
    def test_the_oldest_go_and_are_told(self, make_store: Callable[..., Store], path: Path) -> None:
        store = make_store(max_queue_size=3)
        outbox = RecordingOutbox(store)
        store.append("a", "1", 0)
        store.append("b", "2", 2)
        append(store, 3)
        outbox.wait(lambda heard: len(heard.dropped) == 2)
        assert outbox.dropped == [(1, "a", 0, DropReason.OVERFLOW), (2, "b", 2, DropReason.OVERFLOW)]
        assert store.drops == {"overflow": 2}
        assert store.size == 3
        assert ids_on_disk(path) == [3, 4, 5]

    def test_finished_rows_make_room_first(self, make_store: Callable[..., Store]) -> None:
        store = make_store(max_queue_size=5)
        outbox = RecordingOutbox(store)
        append(store, 5)
        outbox.read(2)
        outbox.finish([1, 2])
        append(store, 2)
        outbox.wait(lambda heard: heard.new_rows == 7)
        assert outbox.dropped == []
        assert store.size == 5

    def test_what_is_in_flight_stays(self, make_store: Callable[..., Store]) -> None:
        store = make_store(max_queue_size=5)
        outbox = RecordingOutbox(store)
        append(store, 5)
        assert outbox.read(3) == [1, 2, 3]
        append(store, 2)
        outbox.wait(lambda heard: len(heard.dropped) == 2)
        assert [each.message_id for each in outbox.dropped] == [4, 5]
        assert outbox.read_all() == [6, 7]

    def test_what_was_in_flight_before_the_link_was_lost_stays(self, make_store: Callable[..., Store]) -> None:
        store = make_store(max_queue_size=5)
        outbox = RecordingOutbox(store)
        append(store, 5)
        outbox.read_all()
        store.rewind([1, 3], [])
        append(store, 2)
        outbox.wait(lambda heard: len(heard.dropped) == 2)
        assert [each.message_id for each in outbox.dropped] == [2, 4]

    def test_a_smaller_limit_drops_nothing_before_its_owner_can_protect(self, make_store: Callable[..., Store]) -> None:
        store = make_store()
        append(store, 20)
        store.close()
        store = make_store(max_queue_size=5)
        outbox = RecordingOutbox(store)
        assert store.size == 20
        store.protect([1, 2])
        append(store, 1)
        outbox.wait(lambda heard: heard.new_rows)
        assert [each.message_id for each in outbox.dropped] == list(range(3, 19))
        assert outbox.read_all() == [1, 2, 19, 20, 21]

    def test_rows_that_go_anyway_make_room_first(
        self, make_store: Callable[..., Store], clock: Clock, pool: ThreadPoolExecutor
    ) -> None:
        store = make_store(max_queue_size=10)
        outbox = RecordingOutbox(store)
        append(store, 4, ttl_ms=1000)
        append(store, 6)
        clock.now_s += 2
        with held_writer(store, pool):
            cleaned = pool.submit(store.drop_expired)
            assert wait_for(lambda: bool(store._jobs))
            ids = [store.append("t", "x", 1) for _ in range(4)]
        assert cleaned.result(WAIT_S) == 4
        assert store.wait_durable(ids[-1], WAIT_S)
        outbox.wait(lambda heard: len(heard.dropped) == 4)
        assert {each.reason for each in outbox.dropped} == {DropReason.EXPIRED}
        assert store.size == 10

    def test_a_long_surplus_goes_in_parts(self, make_store: Callable[..., Store]) -> None:
        store = make_store()
        append(store, 3000)
        store.close()
        store = make_store(max_queue_size=10)
        outbox = RecordingOutbox(store)
        sizes = []
        for number in range(3):
            append(store, 1)
            outbox.wait(lambda heard, expected=number + 1: heard.new_rows == expected)  # type: ignore[misc]
            sizes.append(store.size)
        assert sizes == [2000, 1000, 10]
        assert len(outbox.dropped) == 2993


class TestExpiry:
    def test_an_expired_row_is_not_handed_on_but_dropped(
        self, store: Store, outbox: RecordingOutbox, clock: Clock, path: Path
    ) -> None:
        append(store, 2, ttl_ms=1000)
        append(store, 1)
        clock.now_s += 1.001
        assert outbox.read() == [3]
        store.request_commit()
        outbox.wait(lambda heard: len(heard.dropped) == 2)
        assert {each.reason for each in outbox.dropped} == {DropReason.EXPIRED}
        assert ids_on_disk(path) == [3]
        assert store.size == 1

    def test_a_row_in_flight_does_not_expire(self, store: Store, outbox: RecordingOutbox, clock: Clock) -> None:
        append(store, 3, ttl_ms=1000)
        assert outbox.read(1) == [1]
        store.rewind([1], [])
        clock.now_s += 2
        assert store.drop_expired() == 2
        assert outbox.read_all() == [1]

    def test_a_row_told_as_dropped_is_never_sent_though_the_clock_steps_back(
        self, store: Store, outbox: RecordingOutbox, clock: Clock
    ) -> None:
        disk = Disk(store)
        append(store, 2, ttl_ms=1000)
        disk.hold()
        clock.now_s += 2
        assert outbox.read() == []
        clock.now_s -= 2
        outbox.park()
        assert outbox.read() == []
        disk.released.set()
        store.request_commit()
        outbox.wait(lambda heard: len(heard.dropped) == 2)
        assert store.drops == {"expired": 2}

    def test_rows_chosen_in_a_transaction_that_failed_are_not_sent(
        self, store: Store, outbox: RecordingOutbox, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        append(store, 2, ttl_ms=1000)
        clock.now_s += 2
        with monkeypatch.context() as patched:
            patched.setattr(store._dropping, "delete_marked", raising(apsw.FullError("database or disk is full")))
            with pytest.raises(QueueStorageError):
                store.drop_expired()
            clock.now_s -= 2
            assert outbox.read() == []
        store.request_commit()
        outbox.wait(lambda heard: len(heard.dropped) == 2)

    def test_the_writer_cleans_up_when_it_is_due(
        self, make_store: Callable[..., Store], clock: Clock, path: Path
    ) -> None:
        monotonic = Clock(1000)
        store = make_store(monotonic=monotonic, cleanup_interval_s=300, max_retry=2)
        outbox = RecordingOutbox(store)
        append(store, 2, ttl_ms=1000)
        ids = append(store, 2)
        store.run(lambda table: [table.increment_retry_count([ids[0]]) for _ in range(2)])
        clock.now_s += 2
        monotonic.now_s += 299
        store.run(lambda table: None)
        assert outbox.dropped == []
        monotonic.now_s += 1
        store.request_commit()
        outbox.wait(lambda heard: len(heard.dropped) == 3)
        assert store.drops == {"expired": 2, "given_up": 1}
        assert ids_on_disk(path) == [ids[1]]
        append(store, 1, ttl_ms=1000)
        clock.now_s += 2
        monotonic.now_s += 300
        store.request_commit()
        outbox.wait(lambda heard: len(heard.dropped) == 4)

    def test_the_writer_wakes_for_it_by_itself(self, make_store: Callable[..., Store]) -> None:
        store = make_store(cleanup_interval_s=0.01)
        outbox = RecordingOutbox(store)
        append(store, 1, ttl_ms=-1)
        outbox.wait(lambda heard: [each.reason for each in heard.dropped] == [DropReason.EXPIRED])
        assert store.size == 0

    def test_it_takes_thousands_in_parts(self, make_store: Callable[..., Store]) -> None:
        monotonic = Clock(0)
        store = make_store(monotonic=monotonic)
        outbox = RecordingOutbox(store)
        append(store, 3500, ttl_ms=-1)
        monotonic.now_s += 301
        store.request_commit()
        outbox.wait(lambda heard: len(heard.dropped) == 3500)
        assert store.size == 0

    def test_it_leaves_alone_what_is_in_flight(self, make_store: Callable[..., Store], clock: Clock) -> None:
        monotonic = Clock(0)
        store = make_store(monotonic=monotonic)
        outbox = RecordingOutbox(store)
        append(store, 4, ttl_ms=1000)
        assert outbox.read(2) == [1, 2]
        clock.now_s += 2
        monotonic.now_s += 301
        store.request_commit()
        outbox.wait(lambda heard: len(heard.dropped) == 2)
        assert [each.message_id for each in outbox.dropped] == [3, 4]

    def test_without_an_outbox_drops_are_told_too(self, make_store: Callable[..., Store]) -> None:
        told: list[Dropped] = []
        store = make_store(on_dropped=told.extend)
        append(store, 1, ttl_ms=-1)
        assert store.drop_expired() == 1
        store.close()
        assert [each.reason for each in told] == [DropReason.EXPIRED]


class TestRefusals:
    def test_a_message_is_given_up_after_so_many_refusals(self, make_store: Callable[..., Store], path: Path) -> None:
        store = make_store(max_retry=3)
        outbox = RecordingOutbox(store)
        append(store, 2)
        for attempt in range(3):
            assert outbox.read_all() == [1, 2]
            store.refuse([1])
            store.run(lambda table: None)
            # Drops are told behind the transaction that `run` waits for.
            assert wait_for(lambda: len(outbox.dropped) == (attempt == 2))  # noqa: B023 - called at once
            outbox.park()
        assert outbox.dropped == [(1, "t", 1, DropReason.GIVEN_UP)]
        assert ids_on_disk(path) == [2]

    def test_a_refusal_outlives_a_failing_disk(self, store: Store, outbox: RecordingOutbox) -> None:
        append(store, 1)
        disk = Disk(store)
        disk.error = apsw.FullError("database or disk is full")
        store.refuse([1])
        assert disk.entered.wait(WAIT_S)
        disk.error = None
        assert wait_for(lambda: store.run(lambda table: table.read_all())[0][6] == 1)


def raising(error: BaseException) -> Callable[..., Any]:
    def fail(*_arguments: object) -> Any:
        raise error

    return fail


def wait_for(condition: Callable[[], bool]) -> bool:
    """Ask again until it is so, for facts that nobody announces."""
    deadline_s = time.monotonic() + WAIT_S
    pause = threading.Event()
    while not condition():
        if time.monotonic() > deadline_s:
            return False
        pause.wait(0.002)
    return True


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
            assert wait_for(lambda: bool(store._jobs))
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
        monkeypatch.setattr(store, "_on_success", raising(MemoryError()))
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
        assert caplog.text.count("disk I/O error") == 1
        assert store.has_backlog
        store._reader.table = table
        outbox.wait(lambda heard: any(new for _, new in heard.commits[calls:]))
        assert outbox.read() == [1, 2]

    def test_a_slow_disk_slows_the_caller_down(
        self, make_store: Callable[..., Store], monkeypatch: pytest.MonkeyPatch, pool: ThreadPoolExecutor
    ) -> None:
        monkeypatch.setattr("glec_fast.store._PENDING_ROWS_MAX", 5)
        store = make_store()
        with held_writer(store, pool):
            for _ in range(5):
                store.append("t", "x", 1)
            sixth = pool.submit(store.append, "t", "x", 1)
            assert not sixth.done()
        assert store.wait_durable(sixth.result(WAIT_S), WAIT_S)

    def test_the_drop_callback_may_publish_into_a_full_store(
        self, make_store: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("glec_fast.store._PENDING_ROWS_MAX", 1)
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
        assert wait_for(lambda: store._eager == 1)
        outbox.finish([1, 2, 3], drained=True)
        assert waiting.result(WAIT_S) is True
        assert store._eager == 0

    def test_one_that_gives_up_leaves_the_other_waiting(
        self, store: Store, outbox: RecordingOutbox, pool: ThreadPoolExecutor
    ) -> None:
        append(store, 1)
        outbox.read_all()
        waiting = [pool.submit(store.wait_empty, WAIT_S) for _ in range(2)]
        assert wait_for(lambda: store._eager == 2)
        assert store.wait_empty(0.01) is False
        assert store._eager == 2
        outbox.finish([1], drained=True)
        assert [future.result(WAIT_S) for future in waiting] == [True, True]

    def test_closing_ends_it(self, make_store: Callable[..., Store], pool: ThreadPoolExecutor) -> None:
        store = make_store()
        append(store, 1)
        waiting = pool.submit(store.wait_empty)
        assert wait_for(lambda: store._eager == 1)
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
        assert store.read(10) == ([], True)
        store.detach()

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
            store.refuse([1])
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
            assert wait_for(lambda: len(store._jobs) == 3)
            closed = pool.submit(store.close)
            assert wait_for(lambda: store._closing)
        assert closed.result(WAIT_S) is None
        assert [job.result(WAIT_S) for job in jobs] == [0, 0, 0]


def test_publishing_reading_finishing_and_losing_links_at_once(
    store: Store, outbox: RecordingOutbox, pool: ThreadPoolExecutor, path: Path
) -> None:
    """A network thread that loses its link now and then, against four publishers: all is read, nothing twice."""
    total = 4 * 400

    def network() -> list[int]:
        ended: list[int] = []
        turn = 0
        while len(ended) < total:
            seen = outbox.new_rows
            found, is_last = store.read(64)
            rows = [row[0] for row in found]
            if is_last and not rows and turn % 3:
                outbox.wait(lambda heard, seen=seen: heard.new_rows > seen)  # type: ignore[misc]
            turn += 1
            if turn % 3 == 0:
                half = rows[: len(rows) // 2]
                ended += half
                outbox.finish(half, drained=True)
                outbox.park()
            elif rows:
                ended += rows
                outbox.finish(rows, drained=True)
        return ended

    receiving = pool.submit(network)
    publishers = [pool.submit(lambda: [store.append("t", "x", 2) for _ in range(400)]) for _ in range(4)]
    for publisher in publishers:
        publisher.result(WAIT_S)
    ended = receiving.result(WAIT_S)
    assert sorted(ended) == list(range(1, total + 1))
    assert store.wait_empty(WAIT_S)
    assert ids_on_disk(path) == []


def test_a_long_queue_takes_no_memory(make_store: Callable[..., Store]) -> None:
    store = make_store(max_queue_size=10**6)
    append(store, 1000)
    tracemalloc.start()
    try:
        for _ in range(20):
            append(store, 2000)
        store.read(500)
        size_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert store.size == 41_000
    # Less than a tenth of the rows: the last batch may still be in the writer's hands.
    assert size_bytes < 600_000


def test_a_failing_start_lets_go_of_the_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def __init__(self, _connection: apsw.Connection) -> None:
            raise apsw.IOError("disk I/O error")

    with monkeypatch.context() as patched:
        patched.setattr("glec_fast.writer.QueueTable", Broken)
        with pytest.raises(QueueStorageError, match="disk I/O error"):
            Store(path)
    Store(path).close()
    assert path.exists()


@pytest.mark.parametrize(
    ("ids", "ranges"),
    [
        ([], []),
        ([5], [(5, 5)]),
        ([3, 1, 2, 7, 8], [(1, 3), (7, 8)]),
        ([2, 2, 3, 3], [(2, 3)]),
        ([9, -1, 0], [(-1, 0), (9, 9)]),
    ],
)
def test_ranges_cover_just_the_ids(ids: list[int], ranges: list[tuple[int, int]]) -> None:
    assert ranges_of(ids) == ranges


def test_drops_are_logged(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    append(store, 1, ttl_ms=-1)
    with caplog.at_level(logging.INFO, "glec_fast"):
        assert store.drop_expired() == 1
        store.close()
    assert "1 messages dropped" in caplog.text
