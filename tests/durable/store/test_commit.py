"""What one transaction has, and when something is on disk."""

from __future__ import annotations

import math
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import apsw
import pytest

from glec_fast.durable._steps import ranges_of
from glec_fast.durable._table import QueueTable
from glec_fast.durable.in_doubt import Decision, InDoubt
from glec_fast.durable.outcomes import DropReason
from glec_fast.durable.store import Store
from glec_fast.durable.transaction import Commit
from glec_fast.runtime._lock import Hold
from support.clock import Clock
from support.store import (
    WAIT_S,
    Disk,
    RecordingOutbox,
    append,
    held_writer,
    ids_on_disk,
    image_on_disk,
    last_id_on_disk,
    wait_for,
)

BOTH = pytest.mark.parametrize("disk_mends", [True, False])


class WatchedClock(Clock):
    """Counts how often the store's thread has looked at it, which it does before it decides."""

    def __init__(self, now_s: float) -> None:
        super().__init__(now_s)
        self.looks = 0
        self._looked = threading.Condition()

    def __call__(self) -> float:
        if threading.current_thread().name == "glec-fast-store":
            with self._looked:
                self.looks += 1
                self._looked.notify_all()
        return super().__call__()

    def wait_for_looks(self, count: int) -> None:
        with self._looked:
            assert self._looked.wait_for(lambda: self.looks >= count, WAIT_S)


class TestCommit:
    def test_what_waits_is_committed_as_one_group(
        self, store: Store, outbox: RecordingOutbox, pool: ThreadPoolExecutor
    ) -> None:
        with held_writer(store, pool):
            ids = [store.append("t", str(n), 1) for n in range(100)]
        assert store.wait_durable(ids[-1], WAIT_S)
        outbox.wait(lambda heard: heard.new_rows)
        assert [count for _, count in outbox.commits if count] == [100]

    def test_a_few_rows_at_a_time_fill_the_pages_of_the_indexes(self, store: Store) -> None:
        """In the log are: two pages of rows, one of each index, and some that point to these. It was 8.2 of them."""
        commits, pages = 200, []
        for _ in range(2):
            pages.append(store.run(lambda table: table.connection.status(apsw.SQLITE_DBSTATUS_CACHE_WRITE)[0]))
            for _ in range(commits):
                ids = store.append_many([("glec/dtg/DTG-1/telemetry", "x" * 200, 0)] * 5)
                assert store.wait_durable(ids[-1], WAIT_S)
        assert pages[1] - pages[0] < 7 * commits

    @pytest.mark.parametrize("large_at", [None, 5])
    @pytest.mark.parametrize("count", [1, 15, 16, 17, 32, 33])
    def test_a_group_of_any_size_is_on_disk_as_it_was_given(
        self, store: Store, outbox: RecordingOutbox, count: int, large_at: int | None
    ) -> None:
        kinds: list[str | bytes] = ["text", b"text too", b"\xff\x00", "\u00fc" * 4096, ""]
        payloads = [kinds[number % len(kinds)] for number in range(count)]
        if large_at is not None and large_at < count:
            payloads[large_at] = b"\xff" * 100_000
        ids = store.append_many([(f"t/{n}", payload, n % 3) for n, payload in enumerate(payloads)])
        assert store.wait_durable(ids[-1], WAIT_S)
        assert outbox.read_all() == ids
        sent = [(row[1], row[2] if isinstance(row[2], bytes) else row[2].encode(), row[3]) for row in outbox.sent]
        given = [payload if isinstance(payload, bytes) else payload.encode() for payload in payloads]
        assert sent == [(f"t/{n}", payload, n % 3) for n, payload in enumerate(given)]

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

    @pytest.mark.parametrize("qos", [1, 2])
    def test_a_stream_that_nobody_waits_for_shares_transactions(
        self, make_store: Callable[..., Store], qos: int
    ) -> None:
        monotonic = WatchedClock(0)
        store = make_store(monotonic=monotonic)
        outbox = RecordingOutbox(store)
        store.append("t", "first", qos, urgent=False)
        # It has no company to wait for.
        outbox.wait(lambda heard: heard.new_rows == 1)
        for number in range(20):
            monotonic.now_s = number / 1000
            looks = monotonic.looks
            store.append("t", "x", qos, urgent=False)
            monotonic.wait_for_looks(looks + 1)
        monotonic.now_s = 0.05
        outbox.wait(lambda heard: heard.new_rows == 21)
        assert [count for _, count in outbox.commits if count] == [1, 20]

    @pytest.mark.parametrize("qos", [1, 2])
    def test_in_a_stream_too_whoever_waits_is_served_at_once(self, make_store: Callable[..., Store], qos: int) -> None:
        store = make_store(monotonic=Clock(0))
        for _ in range(5):
            assert store.wait_durable(store.append("t", "x", qos, urgent=False), WAIT_S)

    def test_more_than_memory_is_meant_for_does_not_wait_for_its_time(
        self, make_store: Callable[..., Store], pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("glec_fast.durable.intake.PENDING_ROWS_MAX", 10)
        store = make_store(monotonic=Clock(0), qos0_commit_delay_s=5)
        appending = pool.submit(lambda: [store.append("t", "x", 0, urgent=False) for _ in range(11)])
        assert wait_for(appending.done)

    def test_qos0_goes_alone_when_its_time_has_come(self, make_store: Callable[..., Store]) -> None:
        store = make_store(qos0_commit_delay_s=0.001)
        outbox = RecordingOutbox(store)
        store.append("t", "1", 0, urgent=False)
        outbox.wait(lambda heard: heard.new_rows == 1)
        assert outbox.read() == [1]

    def test_waiting_for_a_delayed_message_hastens_it(self, make_store: Callable[..., Store]) -> None:
        store = make_store(qos0_commit_delay_s=3600)
        assert store.wait_durable(store.append("t", "1", 0, urgent=False), WAIT_S)

    def test_no_id_is_given_twice_though_the_queue_was_empty_between(
        self, make_store: Callable[..., Store], path: Path
    ) -> None:
        """The image on disk, and the ledger, may still name the first."""
        store = make_store()
        outbox = RecordingOutbox(store)
        append(store, 3)
        outbox.finish(outbox.read_all())
        store.close()
        assert ids_on_disk(path) == []
        assert append(make_store(), 1)[0] > 3

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

    def test_what_is_noted_twice_forgets_no_doubt_of_meanwhile(self, make_store: Callable[..., Store]) -> None:
        """An exception has cut into the first time, and the network thread has looked between the two."""
        store = make_store()
        outbox = RecordingOutbox(store)
        ids = append(store, 2)
        commit = Commit()
        outbox.in_doubt = [(ids[0], Decision.SENT_AGAIN)]
        with store._lock:
            store._outgoing.take(commit, makes_room=True, marked=0)
            store._outgoing.on_committed(commit)
        outbox.in_doubt = [(ids[1], Decision.SENT_AGAIN)]
        assert store._outgoing.save_image() is None
        with store._lock:
            store._outgoing.on_committed(commit)
        store.run(lambda _table: None)
        assert [each.message_id for each in store.in_doubt()] == [ids[1]]

    def test_what_is_in_doubt_is_recorded_with_the_image_that_forgets_it(
        self, make_store: Callable[..., Store], path: Path, clock: Clock
    ) -> None:
        store = make_store()
        outbox = RecordingOutbox(store)
        append(store, 2)
        outbox.read_all()
        with store._writer.lock:
            outbox.in_flight = b"forgotten"
            outbox.in_doubt = [(2, Decision.SENT_AGAIN), (1, Decision.LEFT_TO_BROKER)]
            outbox.finish([1])
            assert store._outgoing.save_image() is None, "the image alone would lose them"
        store.run(lambda _table: None)
        assert image_on_disk(path) == b"forgotten"
        assert store.in_doubt() == [
            InDoubt(1, int(clock.now_s * 1000), 2, "t", Decision.SENT_AGAIN),
            InDoubt(2, int(clock.now_s * 1000), 1, "t", Decision.LEFT_TO_BROKER),
        ]
        assert ids_on_disk(path) == [2]

    def test_no_image_alone_leaves_out_what_a_transaction_that_was_cut_into_was_to_drop(
        self, store: Store, outbox: RecordingOutbox
    ) -> None:
        """Its row is still there: after a crash it would be sent as a new one."""
        (given_up,) = append(store, 1)
        outbox.read()
        outbox.lets_go = {given_up}
        disk = Disk(store)
        disk.error = KeyboardInterrupt()
        with store._writer.lock:
            store._dropping.claim([(given_up, "t", 1)], DropReason.EXPIRED)
            with pytest.raises(KeyboardInterrupt):
                store._committer._attempt()
            assert store._outgoing.save_image() is None
            disk.error = None

    def test_no_image_alone_is_written_for_another_name(self, store: Store, outbox: RecordingOutbox) -> None:
        with store._writer.lock:
            assert store._outgoing.save_image() is not None
            store._outgoing.identity = ("another", "host:1883")
            assert store._outgoing.save_image() is None

    def test_the_newest_entries_of_the_ledger_are_kept(
        self, make_store: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("glec_fast.durable.in_doubt.LEDGER_ROWS_MAX", 3)
        store = make_store()
        outbox = RecordingOutbox(store)
        append(store, 5)
        outbox.in_doubt = [(message_id, Decision.SENT_AGAIN) for message_id in range(1, 6)]
        store.run(lambda _table: None)
        assert [(each.number, each.message_id) for each in store.in_doubt()] == [(3, 3), (4, 4), (5, 5)]

    def test_the_image_waits_for_a_short_transaction(
        self, store: Store, outbox: RecordingOutbox, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("glec_fast.durable.outgoing._TURN_WAIT_S", WAIT_S)
        monkeypatch.setattr("glec_fast.durable.outgoing._QUICK_COMMIT_S", math.inf)
        monkeypatch.setattr("glec_fast.durable.outgoing._SWIFT_COMMIT_S", math.inf)
        outbox.version = 7
        lock = store._writer.lock
        asked = threading.Event()

        class Asked:
            __exit__ = property(lambda _self: lock.__exit__)

            def __enter__(self) -> None: ...

            def attempt(self, timeout_s: float) -> Hold:
                asked.set()
                return lock.attempt(timeout_s)

        with lock:
            monkeypatch.setattr(store._writer, "lock", Asked())
            version = pool.submit(store.commit_image)
            assert asked.wait(WAIT_S)
        assert version.result(WAIT_S) == 7

    def test_the_image_does_not_wait_where_transactions_are_long(
        self, store: Store, outbox: RecordingOutbox, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("glec_fast.durable.outgoing._TURN_WAIT_S", WAIT_S)
        monkeypatch.setattr("glec_fast.durable.outgoing._QUICK_COMMIT_S", math.inf)
        store.run(lambda _table: time.sleep(0.003))
        with store._writer.lock:
            assert pool.submit(store.commit_image).result(WAIT_S / 2) is None

    def test_the_image_waits_once_for_a_transaction_that_does_not_end(
        self, store: Store, outbox: RecordingOutbox, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("glec_fast.durable.outgoing._SWIFT_COMMIT_S", 0.04)
        monkeypatch.setattr("glec_fast.durable.outgoing._TURN_WAIT_S", 0.05)
        monkeypatch.setattr("glec_fast.durable.outgoing._QUICK_COMMIT_S", math.inf)
        monkeypatch.setattr(store._writer, "took_s", 0.0)
        with store._writer.lock:
            started_s = time.monotonic()
            for _ in range(100):
                assert store.commit_image() is None
            assert time.monotonic() - started_s < 100 * 0.05 / 2

    def test_append_many_is_all_or_nothing(self, store: Store) -> None:
        rows: list[Any] = [("t", "x", 1), ("t", "x", 2**70)]
        with pytest.raises(OverflowError):
            store.append_many(rows)
        assert store.size == 0
        assert store.append("t", "x", 1) > 0


class TestIds:
    """SQLite's note of the last id is a page, which is written ahead of the rows."""

    def test_a_transaction_of_rows_leaves_it_as_it_is(self, store: Store, path: Path) -> None:
        first = store.append("t", "x", 1)
        assert store.wait_durable(first, WAIT_S)
        noted = last_id_on_disk(path)
        assert noted > first
        for message_id in append(store, 3):
            assert store.wait_durable(message_id, WAIT_S)
        assert last_id_on_disk(path) == noted
        assert append(store, noted)[-1] < last_id_on_disk(path)

    def test_an_orderly_end_leaves_no_gap(self, make_store: Callable[..., Store], path: Path) -> None:
        store = make_store()
        ids = append(store, 3)
        store.close()
        assert last_id_on_disk(path) == ids[-1]
        assert append(make_store(), 1) == [ids[-1] + 1]

    def test_after_a_crash_none_is_given_again(self, store: Store, path: Path, tmp_path: Path) -> None:
        ids = append(store, 3)
        store.run(lambda table: table.delete(ids.copy()))
        crashed = tmp_path / "crashed"
        crashed.mkdir()
        for suffix in ("", "-wal"):
            shutil.copy(f"{path}{suffix}", crashed)
        with closing(Store(crashed / path.name)) as after:
            assert append(after, 1)[0] > ids[-1]

    def test_a_queue_with_gaps_of_many_crashes_is_cleared_at_once(self, store: Store) -> None:
        ids = append(store, 20)
        gone = ids[1::2]
        store.run(lambda table: table.delete(gone.copy()))
        statements: list[str] = []

        def clear(table: QueueTable) -> int:
            table.connection.trace_v2(apsw.SQLITE_TRACE_STMT, lambda event: statements.append(event["sql"]))
            try:
                return table.delete_finished(ranges_of(ids[::2]))
            finally:
                table.connection.trace_v2(0, None)

        assert store.run(clear) == 10
        assert [each for each in statements if each.startswith("DELETE")] == ["DELETE FROM mqtt_offline_queue"]
