"""What a full queue gives up: telemetry before results before alerts, thinned or the oldest, by rows and by bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from glec_fast.durable.limits import ALERTS_FIRST, FIFO, OLDEST, THIN
from glec_fast.durable.outcomes import DropReason
from glec_fast.durable.store import Store
from glec_fast.errors import MessageError
from support.clock import Clock
from support.store import WAIT_S, RecordingOutbox, ids_on_disk, statements_of

RANKED = pytest.mark.parametrize(
    "settings",
    [
        {"queue_order": ALERTS_FIRST, "overflow": THIN},
        {"queue_order": ALERTS_FIRST, "overflow": OLDEST},
        {"queue_order": FIFO, "overflow": THIN},
    ],
    ids=["alerts first, thin", "alerts first, oldest", "fifo, thin"],
)


def put(store: Store, qos: int, count: int, size_bytes: int = 10) -> list[int]:
    ids = store.append_many([("t", "x" * size_bytes, qos)] * count)
    assert not ids or store.wait_durable(ids[-1], WAIT_S)
    return ids


def qos_on_disk(store: Store) -> Counter[int]:
    return Counter(row[3] for row in store.run(lambda table: table.read_all()))


class TestRanks:
    @RANKED
    def test_no_alert_goes_while_there_is_telemetry(
        self, make_store: Callable[..., Store], settings: dict[str, str]
    ) -> None:
        store = make_store(max_queue_size=50, **settings)
        outbox = RecordingOutbox(store)
        put(store, 2, 5)
        put(store, 1, 5)
        for _ in range(100):
            put(store, 0, 1)
        assert qos_on_disk(store) == {0: 40, 1: 5, 2: 5}
        assert {each.qos for each in outbox.dropped} == {0}

    @RANKED
    def test_results_go_before_alerts(self, make_store: Callable[..., Store], settings: dict[str, str]) -> None:
        store = make_store(max_queue_size=10, **settings)
        outbox = RecordingOutbox(store)
        put(store, 2, 4)
        results = put(store, 1, 4)
        put(store, 0, 2)
        put(store, 2, 3)
        outbox.wait(lambda heard: len(heard.dropped) == 3)
        assert [each.qos for each in outbox.dropped] == [0, 0, 1]
        assert outbox.dropped[-1].message_id == results[0]
        put(store, 2, 3)
        outbox.wait(lambda heard: len(heard.dropped) == 6)
        assert qos_on_disk(store) == {2: 10}
        put(store, 2, 1)
        outbox.wait(lambda heard: len(heard.dropped) == 7)
        assert outbox.dropped[-1][0] == 1
        assert outbox.dropped[-1].reason is DropReason.OVERFLOW

    @RANKED
    def test_telemetry_does_not_push_out_alerts_that_fill_the_queue(
        self, make_store: Callable[..., Store], settings: dict[str, str]
    ) -> None:
        store = make_store(max_queue_size=10, **settings)
        outbox = RecordingOutbox(store)
        put(store, 2, 10)
        (late,) = put(store, 0, 1)
        outbox.wait(lambda heard: heard.dropped)
        assert [each.message_id for each in outbox.dropped] == [late]

    @pytest.mark.parametrize(("qos", "lot"), [(0, 3), (1, 1), (2, 1)])
    def test_telemetry_goes_by_the_hundredth_and_what_is_dearer_one_by_one(
        self, make_store: Callable[..., Store], path: Path, qos: int, lot: int
    ) -> None:
        """Each transaction that drops a few writes most of the pages that one which drops many does."""
        store = make_store(max_queue_size=300, queue_order=ALERTS_FIRST, overflow=OLDEST)
        put(store, qos, 300)
        put(store, qos, 1)
        assert store.drops == {"overflow": lot}
        put(store, qos, lot - 1)
        assert store.drops == {"overflow": lot}
        assert ids_on_disk(path) == list(range(1 + lot, 301 + lot))

    def test_fifo_and_oldest_is_the_oldest_of_all(self, make_store: Callable[..., Store], path: Path) -> None:
        store = make_store(max_queue_size=3, queue_order=FIFO, overflow=OLDEST)
        put(store, 2, 1)
        put(store, 0, 3)
        assert ids_on_disk(path) == [2, 3, 4]

    def test_what_is_in_flight_stays(self, make_store: Callable[..., Store]) -> None:
        store = make_store(max_queue_size=10, queue_order=ALERTS_FIRST, overflow=THIN)
        outbox = RecordingOutbox(store)
        put(store, 2, 2)
        put(store, 0, 8)
        assert [row[0] for row in store.supply.read(10, alerts=True)[0]] == [1, 2]
        assert outbox.read(4) == [3, 4, 5, 6]
        store.supply.rewind([1, 3, 4], [])
        put(store, 2, 9)
        outbox.wait(lambda heard: len(heard.dropped) == 7)
        # Two that are in flight stay beside the alerts, though the queue is full, and push none of them out.
        assert sorted(each.message_id for each in outbox.dropped) == [2, 5, 6, 7, 8, 9, 10]

    @RANKED
    @pytest.mark.parametrize("lower", [0, 1])
    def test_no_alert_goes_while_what_is_on_its_way_takes_the_room(
        self, make_store: Callable[..., Store], settings: dict[str, str], lower: int
    ) -> None:
        store = make_store(max_queue_size=10, **settings)
        outbox = RecordingOutbox(store)
        put(store, lower, 10)
        assert len(outbox.read(10)) == 10
        for _ in range(5):
            put(store, 2, 1)
        put(store, 2, 5)
        assert outbox.dropped == []
        assert qos_on_disk(store) == {lower: 10, 2: 10}
        # The connection is lost, and nothing of it is in flight any more.
        store.supply.rewind([], [])
        put(store, 0, 1)
        outbox.wait(lambda heard: len(heard.dropped) == 11)
        assert qos_on_disk(store) == {2: 10}


class TestThinning:
    def test_the_whole_way_is_kept_at_a_coarser_grain(self, make_store: Callable[..., Store], path: Path) -> None:
        store = make_store(max_queue_size=400, queue_order=ALERTS_FIRST, overflow=THIN)
        outbox = RecordingOutbox(store)
        ids = []
        for _ in range(500):
            ids += put(store, 0, 8)
        kept = ids_on_disk(path)
        outbox.wait(lambda heard: len(heard.dropped) == len(ids) - len(kept))
        assert 390 < len(kept) <= 400
        assert kept[0] == ids[0]
        assert sorted(kept + [each.message_id for each in outbox.dropped]) == ids
        assert {each.reason for each in outbox.dropped} == {DropReason.THINNED}
        gaps = [after - before for before, after in pairwise(kept)]
        assert set(gaps[-150:]) == {1}
        # 4,000 in 200 places: nowhere is a hole.
        assert 16 <= max(gaps) <= 64
        assert sum(gaps[:100]) > 1600

    def test_a_restart_begins_anew(self, make_store: Callable[..., Store], path: Path) -> None:
        for _ in range(10):
            store = make_store(max_queue_size=100, queue_order=ALERTS_FIRST, overflow=THIN)
            for _ in range(7):
                put(store, 0, 8)
            store.close()
        kept = ids_on_disk(path)
        assert len(kept) == 100
        assert kept[0] == 1

    def test_a_few(self, make_store: Callable[..., Store], path: Path) -> None:
        store = make_store(max_queue_size=1, queue_order=ALERTS_FIRST, overflow=THIN)
        for _ in range(5):
            put(store, 0, 1)
        assert ids_on_disk(path) == [5]

    def test_they_are_counted_by_reason(self, make_store: Callable[..., Store]) -> None:
        store = make_store(max_queue_size=10, queue_order=ALERTS_FIRST, overflow=THIN)
        put(store, 0, 10)
        put(store, 2, 3)
        assert store.drops == {"thinned": 3}


class TestBytes:
    LIMIT_BYTES = 400_000

    @pytest.mark.parametrize("overflow", [THIN, OLDEST])
    def test_the_file_grows_to_its_limit(self, make_store: Callable[..., Store], path: Path, overflow: str) -> None:
        store = make_store(max_queue_bytes=self.LIMIT_BYTES, queue_order=ALERTS_FIRST, overflow=overflow)
        outbox = RecordingOutbox(store)
        alerts = put(store, 2, 50, 300)
        for _ in range(60):
            put(store, 0, 20, 500)
        store.close()
        assert path.stat().st_size <= self.LIMIT_BYTES
        kept = ids_on_disk(path)
        assert set(alerts) < set(kept)
        assert len(kept) + len(outbox.dropped) == 50 + 1200
        # Of telemetry that takes a page of the file: more than half of what would fit.
        assert len(kept) > self.LIMIT_BYTES / 1024 / 2

    def test_far_from_its_limit_nothing_is_measured(self, make_store: Callable[..., Store]) -> None:
        """Each measuring reads the file, while whoever publishes an alert waits."""
        store = make_store(max_queue_bytes=self.LIMIT_BYTES)
        put(store, 2, 1, 300)
        assert "PRAGMA page_count" not in statements_of(store, lambda: put(store, 2, 1, 300))
        statements = statements_of(store, lambda: [put(store, 2, 1, 300) for _ in range(60)])
        # What was written may have filled half of it: looked at, it has not.
        assert 0 < statements.count("PRAGMA page_count") < 10

    def test_what_a_job_writes_is_measured(self, make_store: Callable[..., Store], path: Path) -> None:
        store = make_store(max_queue_bytes=self.LIMIT_BYTES, queue_order=ALERTS_FIRST, overflow=OLDEST)
        put(store, 0, 30, 1000)
        keep = f"INSERT INTO glec_gathered VALUES (1, 't', zeroblob({self.LIMIT_BYTES // 4 * 3}), x'')"
        store.run(lambda table: table.connection.execute(keep))
        put(store, 0, 100, 1000)
        assert store.run(lambda table: table.used_bytes()) <= self.LIMIT_BYTES
        assert ids_on_disk(path)[-1] == 130

    def test_a_large_message_makes_room_for_itself(self, make_store: Callable[..., Store], path: Path) -> None:
        store = make_store(max_queue_bytes=self.LIMIT_BYTES, queue_order=ALERTS_FIRST, overflow=THIN)
        put(store, 0, 300, 1000)
        (alert,) = put(store, 2, 1, 200_000)
        assert store.run(lambda table: table.used_bytes()) <= self.LIMIT_BYTES
        assert ids_on_disk(path)[-1] == alert

    def test_finished_rows_go_first(self, make_store: Callable[..., Store]) -> None:
        store = make_store(max_queue_bytes=self.LIMIT_BYTES, queue_order=ALERTS_FIRST, overflow=THIN)
        outbox = RecordingOutbox(store)
        for _ in range(20):
            put(store, 1, 100, 500)
            outbox.finish(outbox.read_all())
        assert outbox.dropped == []

    def test_finished_rows_go_before_a_burst_that_takes_their_room(self, make_store: Callable[..., Store]) -> None:
        store = make_store(max_queue_bytes=self.LIMIT_BYTES, monotonic=Clock(0.0))
        outbox = RecordingOutbox(store)
        # Less than what has the finished ones go anyway.
        put(store, 1, self.LIMIT_BYTES // 1000 * 7 // 10, 500)
        outbox.finish(outbox.read(self.LIMIT_BYTES // 1000 * 6 // 10))
        store.request_commit()
        outbox.wait(lambda heard: store.size == self.LIMIT_BYTES // 1000 // 10)
        put(store, 1, 20, self.LIMIT_BYTES // 100)
        assert outbox.dropped == []

    def test_without_a_limit_nothing_is_measured(self, make_store: Callable[..., Store]) -> None:
        store = make_store(max_queue_size=10**6)
        put(store, 0, 3000, 1000)
        assert store.size == 3000


class TestRowsOfManySizes:
    @pytest.mark.parametrize("overflow", [THIN, OLDEST])
    @pytest.mark.parametrize("qos", [0, 1])
    def test_one_large_row_makes_room_for_all_others(
        self, make_store: Callable[..., Store], overflow: str, qos: int
    ) -> None:
        store = make_store(max_queue_bytes=1_000_000, queue_order=ALERTS_FIRST, overflow=overflow)
        outbox = RecordingOutbox(store)
        put(store, 2, 200, 300)
        put(store, 1, 100, 300)
        (large,) = put(store, qos, 1, 900_000)
        put(store, 0, 50, 300)
        put(store, 2, 100, 300)
        assert large in {each.message_id for each in outbox.dropped}
        assert {each.qos for each in outbox.dropped} <= {0, qos}
        kept = qos_on_disk(store)
        assert kept[2] == 300
        if qos == 0:
            assert kept[1] == 100

    def test_of_large_rows_no_more_go_than_must(self, make_store: Callable[..., Store]) -> None:
        store = make_store(max_queue_bytes=5_000_000, queue_order=ALERTS_FIRST, overflow=THIN)
        outbox = RecordingOutbox(store)
        put(store, 2, 500, 300)
        for _ in range(60):
            put(store, 0, 1, 200_000)
        put(store, 2, 100, 300)
        assert {each.qos for each in outbox.dropped} == {0}
        kept = qos_on_disk(store)
        assert kept[2] == 600
        assert kept[0] >= 15

    @pytest.mark.parametrize("qos", [0, 1, 2])
    def test_a_burst_that_is_more_than_the_queue_holds(
        self, make_store: Callable[..., Store], path: Path, qos: int
    ) -> None:
        """In one transaction, into a queue that was empty."""
        store = make_store(max_queue_bytes=1_000_000)
        ids = put(store, qos, 40, 100_000)
        kept = ids_on_disk(path)
        assert 5 <= len(kept) <= 9
        assert kept == ids[-len(kept) :]

    @pytest.mark.parametrize("character", ["é", "가", "😀"])
    def test_a_burst_is_measured_in_bytes(self, make_store: Callable[..., Store], path: Path, character: str) -> None:
        store = make_store(max_queue_bytes=1_000_000)
        for _ in range(2):
            store.append_many([("t", character * 100_000, 1)] * 9)
        store.run(lambda _table: None)
        kept_bytes = len(ids_on_disk(path)) * len(character.encode()) * 100_000
        assert 500_000 <= kept_bytes <= 1_000_000

    @pytest.mark.parametrize("order", ["fifo", "alerts_first"])
    @pytest.mark.parametrize("size_bytes", [500_000, 740_000, 900_000, 999_990])
    def test_a_large_one_that_fits_is_kept(
        self, make_store: Callable[..., Store], path: Path, order: str, size_bytes: int
    ) -> None:
        store = make_store(max_queue_bytes=1_000_000, queue_order=order)
        (alert,) = put(store, 2, 1, size_bytes)
        assert ids_on_disk(path) == [alert]

    @pytest.mark.parametrize("qos", [0, 1, 2])
    def test_none_goes_for_the_room_that_the_next_would_need(
        self, make_store: Callable[..., Store], path: Path, qos: int
    ) -> None:
        store = make_store(max_queue_bytes=1_000_000)
        outbox = RecordingOutbox(store)
        on_their_way = put(store, qos, 7, 100_000)
        assert outbox.read_all() == on_their_way
        on_their_way += put(store, qos, 1, 100_000)
        assert ids_on_disk(path) == on_their_way

    @pytest.mark.parametrize("order", ["fifo", "alerts_first"])
    @pytest.mark.parametrize("telemetry_bytes", [100_000, 300_000, 700_000])
    def test_a_large_one_takes_no_more_than_its_room(
        self, make_store: Callable[..., Store], path: Path, order: str, telemetry_bytes: int
    ) -> None:
        store = make_store(max_queue_bytes=1_000_000, queue_order=order)
        put(store, 0, telemetry_bytes // 1000, 1000)
        (alert,) = put(store, 2, 1, 900_000)
        kept = ids_on_disk(path)
        assert kept[-1] == alert
        # About a tenth of the file is left for them.
        assert 40 <= len(kept) - 1 < 100

    @pytest.mark.parametrize("qos", [0, 1, 2])
    def test_what_is_larger_than_the_queue_is_refused(self, make_store: Callable[..., Store], qos: int) -> None:
        store = make_store(max_queue_bytes=1_000_000)
        for payload in ("x" * 1_000_000, b"x" * 1_000_000, "\u00e9" * 500_000, "\ud55c" * 333_333 + "x"):
            with pytest.raises(MessageError, match=r"1,000,001 bytes.*raise queue_max_bytes"):
                store.append("t", payload, qos)
            with pytest.raises(MessageError, match="queue_max_bytes"):
                store.append_many([("t", "small", qos), ("t", payload, qos)])
        assert store.size == 0

    def test_text_of_few_wide_characters_is_no_larger_than_its_bytes(self, make_store: Callable[..., Store]) -> None:
        assert make_store(max_queue_bytes=1_000_000).append("t", "x" * 400_000 + "\U0001f600", 1)
