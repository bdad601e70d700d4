"""What one transaction has, when something is on disk, and what can be taken back until then."""

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
from glec_fast.durable.schedule import DONE_COMMIT_DELAY_S
from glec_fast.durable.store import Store
from glec_fast.durable.transaction import Commit
from glec_fast.errors import QueueStorageError
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

    def test_rows_that_finish_in_a_stream_are_named_first_and_deleted_later(
        self, make_store: Callable[..., Store], path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("glec_fast.durable.outgoing._QUICK_COMMIT_S", math.inf)
        monkeypatch.setattr("glec_fast.durable.outgoing._SWIFT_COMMIT_S", math.inf)
        monkeypatch.setattr("glec_fast.durable.outgoing._TURN_WAIT_S", WAIT_S)
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

    def test_what_the_image_on_disk_names_is_worth_no_transaction(
        self, make_store: Callable[..., Store], path: Path
    ) -> None:
        store = make_store(monotonic=Clock(0.0))
        outbox = RecordingOutbox(store)
        append(store, 3000)
        outbox.read_all()
        assert outbox.finish(range(1, 1001), named=1000) == 2000
        assert store._schedule.deadline_s == DONE_COMMIT_DELAY_S
        assert outbox.finish(range(1001, 2001), named=1001) == 2001, "of these one less than is worth it"
        assert store._schedule.deadline_s == DONE_COMMIT_DELAY_S
        outbox.finish([2001], named=1001)
        outbox.wait(lambda heard: store.size == 999)
        assert ids_on_disk(path) == list(range(1, 3001)), "named, and not yet deleted"

    def test_what_is_named_is_deleted_once_it_is_so_much(
        self, make_store: Callable[..., Store], path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("glec_fast.durable.schedule.RANGED_ROWS_MAX", 50)
        monkeypatch.setattr("glec_fast.durable.schedule._CLEARED_ROWS_MAX", 49)
        store = make_store(monotonic=Clock(0.0))
        outbox = RecordingOutbox(store)
        append(store, 60)
        outbox.read_all()
        outbox.finish(range(1, 50), named=49)
        assert store._schedule.deadline_s == DONE_COMMIT_DELAY_S
        outbox.finish([50], named=50)
        assert wait_for(lambda: ids_on_disk(path) == list(range(51, 61)))

    @pytest.mark.parametrize("step", [1, 2], ids=["a range", "a range each"])
    def test_what_can_be_cleared_at_the_end_waits_for_it(
        self, make_store: Callable[..., Store], path: Path, monkeypatch: pytest.MonkeyPatch, step: int
    ) -> None:
        monkeypatch.setattr("glec_fast.durable.schedule.RANGED_ROWS_MAX", 50)
        monkeypatch.setattr("glec_fast.durable.outgoing.DELETE_ROWS_MAX", 50)
        monotonic = Clock(0.0)
        store = make_store(monotonic=monotonic)
        outbox = RecordingOutbox(store)
        append(store, 300)
        outbox.read_all()
        outbox.finish(range(1, 1 + 120 * step, step))
        store.request_commit()
        outbox.wait(lambda heard: store.size == 180)
        left = len(ids_on_disk(path))
        assert left == (300 if step == 1 else 250)
        seen = []
        store.watch(lambda: seen.append(len(ids_on_disk(path))))
        # A second without any more: they go, so many with each transaction.
        monotonic.now_s += 2
        store.request_commit()
        assert wait_for(lambda: seen and seen[-1] == 180)
        assert seen == [*range(left - 50, 180, -50), 180]

    def test_all_that_is_in_many_ranges_goes_a_part_with_each_transaction(
        self, make_store: Callable[..., Store], path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("glec_fast.durable.outgoing.DELETE_ROWS_MAX", 50)
        store = make_store(monotonic=Clock(0.0))
        outbox = RecordingOutbox(store)
        append(store, 240)
        outbox.read_all()
        outbox.finish(range(2, 241, 2))
        store.run(lambda _table: None)
        seen = []
        store.watch(lambda: seen.append(len(ids_on_disk(path))))
        outbox.finish(range(1, 241, 2), drained=True)
        store.request_commit()
        assert wait_for(lambda: seen and seen[-1] == 0)
        assert seen == [70, 20, 0]

    def test_what_is_finished_is_the_oldest_no_more(self, make_store: Callable[..., Store], path: Path) -> None:
        clock = Clock()
        store = make_store(monotonic=Clock(0.0), clocks=clock.clocks)
        outbox = RecordingOutbox(store)
        for _ in range(3):
            append(store, 1)
            clock.now_s += 60
        outbox.read_all()
        outbox.finish([1, 2])
        store.request_commit()
        outbox.wait(lambda heard: store.size == 1)
        assert ids_on_disk(path) == [1, 2, 3]
        assert store.figures().oldest_s == 60

    def test_a_statement_that_nobody_waits_for_has_nothing_deleted(
        self, make_store: Callable[..., Store], path: Path
    ) -> None:
        """As that of a command in the middle of a flush, and the alert that shares its transaction."""
        store = make_store(monotonic=Clock(0.0))
        outbox = RecordingOutbox(store)
        append(store, 100)
        outbox.read_all()
        outbox.finish(range(1, 51))
        done = threading.Event()
        store.submit(lambda _table: None, lambda _result: done.set())
        assert done.wait(WAIT_S)
        assert ids_on_disk(path) == list(range(1, 101))
        store.run(lambda _table: None)
        assert ids_on_disk(path) == list(range(51, 101))

    def test_who_waits_for_thousands_is_told_before_their_pages_are_cleared(
        self, make_store: Callable[..., Store], path: Path
    ) -> None:
        seen = []
        store = make_store(monotonic=Clock(0.0))
        outbox = RecordingOutbox(store)
        append(store, 3000)
        outbox.read_all()
        store.watch(lambda: seen.append((store.is_empty, len(ids_on_disk(path)), image_on_disk(path))))
        outbox.finish(range(1, 2500))
        outbox.wait(lambda heard: store.size == 501)
        with store.hastened():
            outbox.finish(range(2500, 3001))
            assert store.wait_empty(10)
            assert wait_for(lambda: seen[-1] == (True, 0, b""))
        assert seen[-2] == (True, 3000, b" 1-3000")

    def test_a_stream_that_finishes_as_it_comes_leaves_no_more_than_of_a_second(
        self, make_store: Callable[..., Store], path: Path
    ) -> None:
        monotonic = Clock(0.0)
        store = make_store(monotonic=monotonic)
        outbox = RecordingOutbox(store)
        seen = []

        def go_on() -> None:
            seen.append(len(ids_on_disk(path)))
            if len(seen) < 20:
                monotonic.now_s += 0.1
                # All that is on disk, with each transaction; and there is another then.
                outbox.finish(outbox.read_all())
                store.append("t", "x", 1)

        append(store, 1500)
        store.watch(go_on)
        store.request_commit()
        assert wait_for(lambda: len(seen) >= 20)
        assert min(seen[:20]) < 100

    def test_finished_rows_that_another_program_deletes_do_not_stand_for_others(
        self, make_store: Callable[..., Store], path: Path
    ) -> None:
        seen = []
        store = make_store(monotonic=Clock(0.0))
        outbox = RecordingOutbox(store)
        append(store, 100)
        outbox.read_all()
        outbox.finish(range(1, 61))
        store.request_commit()
        outbox.wait(lambda heard: store.size == 40)
        store.watch(lambda: seen.append(store.is_empty))
        with closing(apsw.Connection(str(path))) as other:
            other.execute("DELETE FROM mqtt_offline_queue WHERE id <= 50")
        store.request_commit()
        assert wait_for(lambda: bool(seen))
        assert seen == [False], "40 of them are as many as were named and are gone, and are not finished"
        outbox.finish(range(61, 101), drained=True)
        assert store.wait_empty(WAIT_S)

    def test_a_transaction_for_another_reason_only_names_what_is_finished(
        self, make_store: Callable[..., Store], path: Path
    ) -> None:
        monotonic = Clock(0.0)
        store = make_store(monotonic=monotonic)
        outbox = RecordingOutbox(store)
        append(store, 110)
        outbox.read_all()
        for first in (1, 51):
            outbox.finish(range(first, first + 50))
            store.request_commit()
            outbox.wait(lambda _, first=first: store.size == 111 - first - 50)
        assert wait_for(lambda: image_on_disk(path) == b" 1-100")
        assert ids_on_disk(path) == list(range(1, 111))
        monotonic.now_s += 1
        store.request_commit()
        assert wait_for(lambda: ids_on_disk(path) == list(range(101, 111)))

    def test_what_finishes_while_others_are_deleted_does_not_wait_for_longer(
        self, make_store: Callable[..., Store], path: Path, pool: ThreadPoolExecutor
    ) -> None:
        monotonic = Clock(0.0)
        store = make_store(monotonic=monotonic)
        outbox = RecordingOutbox(store)
        append(store, 10)
        outbox.read_all()
        outbox.finish([1, 2, 3])
        with held_writer(store, pool):
            outbox.finish([4])
        assert ids_on_disk(path) == list(range(4, 11))
        monotonic.now_s += 1
        store.request_commit()
        assert wait_for(lambda: ids_on_disk(path) == list(range(5, 11)))

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
        store.supply.rewind([], range(1, 551))
        ids: list[int] = []
        is_last = False
        while not is_last:
            rows, is_last = store.supply.read(250)
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

    def test_what_was_given_up_by_closing_is_on_no_disk(self, make_store: Callable[..., Store], path: Path) -> None:
        store = make_store()
        (kept,) = append(store, 1)
        Disk(store).error = apsw.FullError("database or disk is full")
        lost = store.append("t", "x", 2)
        with pytest.raises(QueueStorageError, match="no space left"):
            store.wait_durable(lost, WAIT_S)
        with pytest.raises(QueueStorageError, match="1 messages could not be written"):
            store.close()
        assert store.withdraw(lost) is True
        assert store.withdraw(kept) is False
        assert ids_on_disk(path) == [kept]

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
