"""What goes unsent: the oldest, the expired, the refused; and that each is told of."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from math import inf
from pathlib import Path

import apsw
import pytest

from glec_fast.durable.outcomes import Dropped, DropReason
from glec_fast.durable.store import Store
from glec_fast.errors import QueueStorageError
from support.clock import Clock
from support.store import WAIT_S, Disk, RecordingOutbox, append, held_writer, ids_on_disk, raising, wait_for


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

    def test_what_is_dropped_on_the_way_does_not_keep_the_last_waiting(
        self, make_store: Callable[..., Store], clock: Clock, pool: ThreadPoolExecutor
    ) -> None:
        store = make_store(monotonic=Clock(0.0))
        outbox = RecordingOutbox(store)
        append(store, 1, ttl_ms=1000)
        append(store, 9)
        clock.now_s += 2
        waiting = pool.submit(store.wait_empty, WAIT_S)
        assert wait_for(lambda: store._schedule.eager == 1 and store._schedule.deadline_s == inf)
        outbox.finish(outbox.read_all(), drained=True)
        assert waiting.result(WAIT_S)
        assert store.drops == {"expired": 1}


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
        store.supply.rewind([1, 3], [])
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
        store.supply.rewind([1, 2], [])
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
            assert wait_for(lambda: bool(store._jobs.waiting))
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

    def test_it_lasts_to_its_last_millisecond(self, store: Store, outbox: RecordingOutbox, clock: Clock) -> None:
        append(store, 1, ttl_ms=1000)
        clock.now_s += 1.0
        assert store.drop_expired() == 0
        assert outbox.read() == [1]
        outbox.park()
        clock.now_s += 0.001
        assert store.drop_expired() == 1

    def test_a_row_in_flight_does_not_expire(self, store: Store, outbox: RecordingOutbox, clock: Clock) -> None:
        append(store, 3, ttl_ms=1000)
        assert outbox.read(1) == [1]
        store.supply.rewind([1], [])
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
        assert store.drops == {"expired": 2, "quarantined": 1}
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

    def test_it_takes_what_the_outbox_lets_go_of(self, make_store: Callable[..., Store], clock: Clock) -> None:
        monotonic = Clock(0)
        store = make_store(monotonic=monotonic)
        outbox = RecordingOutbox(store)
        append(store, 4, ttl_ms=1000)
        assert outbox.read(3) == [1, 2, 3]
        outbox.lets_go = {1, 3}
        clock.now_s += 2
        monotonic.now_s += 301
        store.request_commit()
        assert wait_for(lambda: len(outbox.dropped) == 1)
        monotonic.now_s += 1
        store.request_commit()
        outbox.wait(lambda heard: len(heard.dropped) == 3)
        assert sorted(each.message_id for each in outbox.dropped) == [1, 3, 4]
        assert {each.reason for each in outbox.dropped} == {DropReason.EXPIRED}

    def test_what_is_finished_is_delivered_and_not_expired(
        self, make_store: Callable[..., Store], clock: Clock
    ) -> None:
        monotonic = Clock(0)
        store = make_store(monotonic=monotonic)
        outbox = RecordingOutbox(store)
        append(store, 2, ttl_ms=1000)
        assert outbox.read(1) == [1]
        outbox.lets_go = {1, 2}
        outbox.finish([1])
        clock.now_s += 2
        monotonic.now_s += 301
        store.request_commit()
        outbox.wait(lambda heard: heard.dropped)
        monotonic.now_s += 1
        store.request_commit()
        assert wait_for(lambda: store.size == 0)
        assert [each.message_id for each in outbox.dropped] == [2]

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
            store.supply.refuse([1])
            store.run(lambda table: None)
            # Drops are told behind the transaction that `run` waits for.
            assert wait_for(lambda: len(outbox.dropped) == (attempt == 2))  # noqa: B023 - called at once
            outbox.park()
        assert outbox.dropped == [(1, "t", 1, DropReason.QUARANTINED)]
        assert ids_on_disk(path) == [2]

    def test_a_refusal_outlives_a_failing_disk(self, store: Store, outbox: RecordingOutbox) -> None:
        append(store, 1)
        disk = Disk(store)
        disk.error = apsw.FullError("database or disk is full")
        store.supply.refuse([1])
        assert disk.entered.wait(WAIT_S)
        disk.error = None
        assert wait_for(lambda: store.run(lambda table: table.read_all())[0][6] == 1)


def test_drops_are_logged(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    append(store, 1, ttl_ms=-1)
    with caplog.at_level(logging.INFO, "glec_fast"):
        assert store.drop_expired() == 1
        store.close()
    assert "1 messages dropped" in caplog.text
