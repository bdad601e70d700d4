"""What waits for company: bounded in time and bytes, on disk in time, and at no moment twice or in no place."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import apsw
import pytest

from glec_fast import OfflineQueueManager
from glec_fast.durable.gathering import Batch, Company
from glec_fast.durable.store import Store
from glec_fast.errors import QueueClosedError, QueueStorageError
from support import forked
from support.clock import Clock
from support.store import WAIT_S, Disk, RecordingOutbox, ids_on_disk, wait_for

HOUR_S = 3600.0
# Holds all that one of these tests gathers, unless it says otherwise.
ROOM = 10_000


def company(wait_s: float = HOUR_S) -> Company:
    return Company("t/batch", b",".join, wait_s, ROOM)


def gather(store: Store, *payloads: str, bytes_max: int = ROOM) -> Batch:
    """Their batch, or of several the last."""

    def begin(batch: Batch) -> None:
        batch.handle = batch

    batches: list[Batch] = [store.gather(payload.encode(), bytes_max, begin) for payload in payloads]
    return batches[-1]


def on_disk(path: Path) -> tuple[list[str], list[str]]:
    """(what is gathered, what the queue's messages have), at one moment."""
    with closing(apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)) as database, database:
        gathered = database.execute("SELECT CAST(payload AS TEXT) FROM glec_gathered").fetchall()
        queued = database.execute("SELECT payload FROM mqtt_offline_queue ORDER BY id").fetchall()
    return [text for (text,) in gathered], [text for (text,) in queued]


@pytest.fixture
def gathering(make_store: Callable[..., Store]) -> Store:
    """A store in which nothing is due by itself."""
    return make_store(company=company(), qos0_commit_delay_s=HOUR_S)


class TestTime:
    def test_it_is_on_disk_when_a_queued_message_of_qos_0_would_be(
        self, make_store: Callable[..., Store], path: Path
    ) -> None:
        store = make_store(company=company(), qos0_commit_delay_s=0.05)
        gather(store, "a", "b")
        assert wait_for(lambda: on_disk(path) == (["a,b"], []))
        gather(store, "c")
        assert wait_for(lambda: on_disk(path) == (["a,b,c"], []))

    def test_it_is_a_message_once_its_first_has_waited(self, make_store: Callable[..., Store], path: Path) -> None:
        store = make_store(company=company(0.05), qos0_commit_delay_s=HOUR_S)
        batch = gather(store, "a", "b")
        assert wait_for(lambda: on_disk(path) == ([], ["a,b"]))
        assert batch.message_id == 1

    def test_what_goes_to_the_disk_at_once_neither_takes_it_along_nor_waits(self, gathering: Store, path: Path) -> None:
        gather(gathering, "a")
        alert = gathering.append("t", "alert", 2)
        assert gathering.wait_durable(alert, WAIT_S)
        assert on_disk(path) == ([], ["alert"])

    def test_nothing_is_written_before_it_is_due(self, make_store: Callable[..., Store], path: Path) -> None:
        monotonic = Clock(0.0)
        store = make_store(company=company(60.0), qos0_commit_delay_s=5.0, monotonic=monotonic)
        gather(store, "a")
        for now_s, expected in ((4.9, ([], [])), (5.1, (["a"], [])), (59.9, (["a"], [])), (60.1, ([], ["a"]))):
            monotonic.now_s = now_s
            store.run(lambda _table: None)
            store.run(lambda _table: None)
            assert on_disk(path) == expected, now_s

    def test_a_new_batch_waits_as_long_as_the_first(self, make_store: Callable[..., Store], path: Path) -> None:
        store = make_store(company=company(0.05), qos0_commit_delay_s=HOUR_S)
        for number in range(1, 4):
            gather(store, str(number))
            assert wait_for(lambda number=number: ids_on_disk(path) == list(range(1, number + 1)))  # type: ignore[misc]


class TestBytes:
    def test_one_that_would_be_too_large_is_closed_first(self, gathering: Store, path: Path) -> None:
        first = gather(gathering, "aaaa", "bbbb", bytes_max=10)
        second = gather(gathering, "cccc", bytes_max=10)
        assert first is not second
        assert gathering.wait_durable(first.message_id, WAIT_S)
        assert on_disk(path) == ([], ["aaaa,bbbb"])
        gathering.close_batch()
        assert gathering.wait_durable(second.message_id, WAIT_S)
        assert on_disk(path) == ([], ["aaaa,bbbb", "cccc"])

    def test_one_message_that_is_too_large_is_a_batch(self, gathering: Store) -> None:
        batches = [gather(gathering, "x" * 20, bytes_max=10) for _ in range(3)]
        assert len(set(map(id, batches))) == 3
        assert [batch.message_id for batch in batches] == [1, 2, 0]

    def test_none_is_too_large_for_many_who_publish_at_once(
        self, make_store: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = make_store(company=company(), qos0_commit_delay_s=HOUR_S)
        real, barrier, waited = store._gathering.close, threading.Barrier(4), threading.local()

        def close() -> None:
            is_first, waited.before = not hasattr(waited, "before"), True
            if is_first:
                # All of them have seen it full,
                barrier.wait(WAIT_S)
            real()
            if is_first:
                # and see it empty.
                barrier.wait(WAIT_S)

        gather(store, "aaaa", bytes_max=10)
        monkeypatch.setattr(store._gathering, "close", close)
        threads = [threading.Thread(target=gather, args=(store, text * 6), kwargs={"bytes_max": 10}) for text in "bcde"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT_S)
        monkeypatch.undo()
        store.close_batch()
        assert store.gathered == (5, 28, 5, 28)

    def test_no_more_of_them_wait_for_the_disk_than_other_messages(self, gathering: Store) -> None:
        gathering.bound_pending(5)
        disk = Disk(gathering)
        disk.hold()
        publisher = threading.Thread(target=gather, args=(gathering, *["xx"] * 30), kwargs={"bytes_max": 1})
        publisher.start()
        try:
            assert disk.entered.wait(WAIT_S)
            # It would be through long since.
            publisher.join(0.5)
            assert publisher.is_alive()
            assert gathering.gathered.batches <= 10
        finally:
            disk.released.set()
        publisher.join(WAIT_S)
        assert gathering.gathered.batches == 29

    def test_the_totals(self, gathering: Store) -> None:
        gather(gathering, "aaaa", "bbbb")
        assert gathering.gathered.messages == 0
        gathering.close_batch()
        assert gathering.gathered == (2, 8, 1, 9)


class TestEnds:
    def test_who_waits_for_the_disk_has_it_written_now(self, gathering: Store, path: Path) -> None:
        batch = gather(gathering, "a", "b")
        assert gathering.wait_batch_durable(batch, WAIT_S)
        assert on_disk(path) == (["a,b"], [])
        # It is there.
        assert gathering.wait_batch_durable(batch, 0)

    def test_a_batch_that_is_closed_is_waited_for_as_its_message(self, gathering: Store, path: Path) -> None:
        batch = gather(gathering, "a")
        gathering.close_batch()
        assert gathering.wait_batch_durable(batch, WAIT_S)
        assert on_disk(path) == ([], ["a"])

    def test_waiting_until_all_is_finished_closes_it(self, gathering: Store) -> None:
        outbox = RecordingOutbox(gathering)
        gather(gathering, "a")
        assert gathering.size == 1
        assert not gathering.wait_empty(0)
        outbox.wait(lambda heard: heard.new_rows == 1)
        outbox.finish(outbox.read_all(), drained=True)
        assert gathering.wait_empty(WAIT_S)
        assert [row[2] for row in outbox.sent] == ["a"]

    def test_closing_the_store_leaves_a_message(self, gathering: Store, path: Path) -> None:
        gather(gathering, "a", "b")
        gathering.close()
        assert on_disk(path) == ([], ["a,b"])
        with pytest.raises(QueueClosedError):
            gather(gathering, "c")

    def test_the_next_process_has_a_message_whatever_it_gathers(
        self, gathering: Store, path: Path, tmp_path: Path
    ) -> None:
        batch = gather(gathering, "a", "b")
        assert gathering.wait_batch_durable(batch, WAIT_S)
        copied = tmp_path / "copy" / "queue.db"
        copied.parent.mkdir()
        # As a kill would leave it.
        with (
            closing(apsw.Connection(str(path))) as source,
            closing(apsw.Connection(str(copied))) as target,
            target.backup("main", source, "main") as backup,
        ):
            backup.step()
        with OfflineQueueManager(copied) as queue:
            assert [(row.topic, row.payload, row.qos) for row in queue.dequeue_all()] == [("t/batch", "a,b", 0)]
            assert on_disk(copied)[0] == []
        with OfflineQueueManager(copied) as queue:
            assert queue.get_queue_size() == 1

    def test_a_program_that_just_ends_has_it_on_disk(self, path: Path) -> None:
        code = (
            "import sys; from glec_fast.durable.store import Store; from glec_fast.durable.gathering import Company\n"
            "store = Store(sys.argv[1], company=Company('t', b','.join, 3600.0, 1000), qos0_commit_delay_s=3600)\n"
            "for payload in (b'a', b'b'): store.gather(payload, 1000, lambda batch: None)\n"
        )
        forked.run(["-c", code, path], 60).check_returncode()
        assert on_disk(path) == (["a,b"], [])


class TestFaults:
    def test_a_disk_that_fails_is_told_of_and_tried_again(self, gathering: Store, path: Path) -> None:
        disk = Disk(gathering)
        disk.error = apsw.FullError("database or disk is full")
        batch = gather(gathering, "a")
        with pytest.raises(QueueStorageError):
            gathering.wait_batch_durable(batch, WAIT_S)
        with pytest.raises(QueueStorageError):
            gather(gathering, "refused")
        disk.error = None
        assert wait_for(lambda: on_disk(path) == (["a"], []) and not gathering.is_failing)
        assert gather(gathering, "b") is batch
        gathering.close_batch()
        assert gathering.wait_batch_durable(batch, WAIT_S)
        assert on_disk(path) == ([], ["a,b"])

    def test_one_that_is_closed_while_the_disk_fails_is_kept(
        self, make_store: Callable[..., Store], path: Path
    ) -> None:
        store = make_store(company=company(0.05), qos0_commit_delay_s=0.01)
        disk = Disk(store)
        disk.error = apsw.FullError("database or disk is full")
        batch = gather(store, "a")
        assert wait_for(lambda: batch.message_id == 1)
        assert wait_for(lambda: store.is_failing)
        disk.error = None
        assert store.wait_empty(0) is False
        assert wait_for(lambda: on_disk(path) == ([], ["a"]))

    def test_the_row_of_another_writer_that_is_no_message_is_left_out(
        self, make_store: Callable[..., Store], path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        make_store().close()
        with closing(apsw.Connection(str(path))) as database:
            database.execute("INSERT INTO glec_gathered VALUES (1, 'a/#', x'61', x'')")
        store = make_store(company=company())
        assert "none, and is left out" in caplog.text
        store.run(lambda _table: None)
        assert on_disk(path) == ([], [])

    def test_a_salvage_carries_it_over(self, gathering: Store, make_store: Callable[..., Store], path: Path) -> None:
        batch = gather(gathering, "a", "b")
        assert gathering.wait_batch_durable(batch, WAIT_S)
        # As after a kill: the row is there.
        with closing(apsw.Connection(str(path))) as database:
            rows: list[Any] = database.execute("SELECT * FROM glec_gathered").fetchall()
        gathering.close()
        with closing(apsw.Connection(str(path))) as database:
            database.execute("DELETE FROM mqtt_offline_queue")
            database.execute("INSERT INTO glec_gathered VALUES (?, ?, ?, ?)", rows[0])
        path.with_name(path.name + "-salvage").touch()
        store = make_store()
        assert store.salvage is not None
        store.run(lambda _table: None)
        assert on_disk(path) == ([], ["a,b"])


def test_at_no_moment_is_one_in_no_place_or_in_two(make_store: Callable[..., Store], path: Path) -> None:
    store = make_store(company=company(0.01), qos0_commit_delay_s=0.0)
    durable = 0
    is_over = threading.Event()

    def publish() -> None:
        nonlocal durable
        for number in range(300):
            batch = gather(store, str(number))
            assert store.wait_batch_durable(batch, WAIT_S)
            durable = number + 1
        is_over.set()

    thread = threading.Thread(target=publish)
    thread.start()
    looks = 0
    while not is_over.is_set():
        least = durable
        gathered, queued = on_disk(path)
        found = [int(text) for payload in (*queued, *gathered) for text in payload.split(",")]
        assert found == list(range(len(found)))
        assert len(found) >= least
        looks += 1
    thread.join()
    assert looks > 1
    assert store.gathered.batches > 1


def test_a_batch_that_is_over_is_in_one_place_though_the_next_has_begun(gathering: Store, path: Path) -> None:
    gather(gathering, "a")
    gathering._gathering._save_due_s = 0.0
    gathering.run(lambda _table: None)
    assert on_disk(path) == (["a"], [])
    with gathering._lock:
        # No transaction comes between the two.
        gathering.close_batch()
        gather(gathering, "b")
    gathering.run(lambda _table: None)
    assert on_disk(path) == ([], ["a"])
