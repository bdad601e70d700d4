"""In which order rows are read, that none is read twice or passed over, whatever links are lost meanwhile."""

from __future__ import annotations

import random
import sqlite3
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import apsw
import pytest

from glec_fast.durable.extras import RETAINED, Extras
from glec_fast.durable.limits import ALERTS_FIRST, FIFO
from glec_fast.durable.outcomes import DropReason
from glec_fast.durable.store import Store
from support.clock import Clock
from support.store import WAIT_S, Disk, RecordingOutbox, append, ids_on_disk, wait_for


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

    @pytest.mark.parametrize("extras", [None, RETAINED])
    def test_large_rows_are_read_a_few_at_a_time(self, store: Store, extras: Extras | None) -> None:
        sizes_kib = [1] * 300 + [100] * 30 + [1000, 1, 1000] + [1] * 300
        for size_kib in sizes_kib:
            store.append("t", b"\xff" * (size_kib << 10), 1, extras=extras)
        assert store.wait_durable(len(sizes_kib), WAIT_S)
        store.supply.rewind([], [])
        read: list[int] = []
        while store.has_backlog:
            rows, is_last = store.supply.read(250)
            store.on_rows_taken()
            assert is_last == (not store.has_backlog)
            assert sum(len(row[2]) for row in rows[:-1]) < 256 << 10 or extras is not None
            read += [row[0] for row in rows]
            # What is sorted as a whole is as large as the rows before let expect.
            assert len(rows) <= 3 or max(len(row[2]) for row in rows[:3]) < 100 << 10
        assert read == list(range(1, len(sizes_kib) + 1))

    def test_timestamps_of_another_writer(self, make_store: Callable[..., Store], path: Path) -> None:
        make_store().close()
        with closing(sqlite3.connect(path)) as database, database:
            database.executemany(
                "INSERT INTO mqtt_offline_queue (id, topic, payload, qos, timestamp, ttl)"
                " VALUES (?, 't', 'x', 1, ?, ?)",
                [(5, 3, 10**15), (-2, -1, 10**15), (1, -(2**62), 10**15), (9, 3, 10**15), (0, -1, 10**15)],
            )
        # Ids below 1 stand for what is not in the queue, so that these get others, in their order.
        assert RecordingOutbox(make_store()).read_all(2) == [1, 10, 11, 5, 9]

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
            if store.supply.read(500)[1]:
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
            found, is_last = store.supply.read(64)
            rows = [row[0] for row in found]
            if is_last and not rows:
                outbox.wait(lambda heard, seen=seen: heard.new_rows > seen)  # type: ignore[misc]
            turn += bool(rows)
            if rows and turn % 3 == 0:
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
    # Of thousands it is so once they are named; their pages are cleared behind that.
    assert wait_for(lambda: ids_on_disk(path) == [])


@pytest.mark.parametrize("queue_order", [FIFO, ALERTS_FIRST])
def test_thousands_that_are_finished_are_passed_over_at_once(
    make_store: Callable[..., Store], queue_order: str
) -> None:
    store = make_store(queue_order=queue_order, monotonic=Clock(0.0))
    outbox = RecordingOutbox(store)
    append(store, 2000)
    outbox.read_all()
    outbox.finish(range(2, 1901))
    outbox.wait(lambda heard: store.size == 101)
    outbox.park()
    assert outbox.read(100) == [1, *range(1901, 2000)]
    assert outbox.read(100) == [2000]


def test_a_long_queue_takes_no_memory(make_store: Callable[..., Store]) -> None:
    store = make_store(max_queue_size=10**6)
    append(store, 1000)
    tracemalloc.start()
    try:
        for _ in range(20):
            append(store, 2000)
        store.supply.read(500)
        size_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert store.size == 41_000
    # Less than a tenth of the rows: the last batch may still be in the writer's hands.
    assert size_bytes < 600_000


@pytest.mark.parametrize("settings", [{}, {"queue_order": ALERTS_FIRST}], ids=["fifo", "alerts first"])
def test_what_an_earlier_process_was_refused_too_often_is_not_handed_out(path: Path, settings: dict[str, Any]) -> None:
    with closing(Store(path, **settings)) as store:
        ids = store.append_many([("t", str(number), number % 3) for number in range(700)])
        refused = ids[::70] + ids[-3:]
        for _ in range(store.max_retry):
            store.run(lambda table: table.increment_retry_count(refused))
    with closing(Store(path, **settings)) as store:
        outbox = RecordingOutbox(store)
        read: list[int] = []
        for alerts in (False, True) if settings else (False,):
            is_last = False
            while not is_last:
                rows, is_last = store.supply.read(100, alerts=alerts)
                read += [row[0] for row in rows]
        assert sorted(read) == sorted(set(ids) - set(refused))
        outbox.wait(lambda heard: len(heard.dropped) == len(set(refused)))
        assert {each.message_id for each in outbox.dropped} == set(refused)
        assert {each.reason for each in outbox.dropped} == {DropReason.QUARANTINED}
