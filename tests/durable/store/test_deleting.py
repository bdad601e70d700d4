"""When rows that are finished are named, and deleted or cleared."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import apsw
import pytest

from glec_fast.durable.schedule import DONE_COMMIT_DELAY_S
from glec_fast.durable.store import Store
from support.clock import Clock
from support.store import (
    WAIT_S,
    RecordingOutbox,
    append,
    held_writer,
    ids_on_disk,
    image_on_disk,
    wait_for,
)

BOTH = pytest.mark.parametrize("disk_mends", [True, False])


class TestDeleting:
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
