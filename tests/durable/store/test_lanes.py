"""Alerts in a lane of their own: each row is read by one lane, once, and neither lane pays for the other's rows."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import apsw
import pytest

from glec_fast.durable.limits import ALERTS_FIRST
from glec_fast.durable.store import Store
from support.clock import Clock
from support.store import WAIT_S, RecordingOutbox, append


@pytest.fixture
def store(make_store: Callable[..., Store]) -> Store:
    return make_store(queue_order=ALERTS_FIRST, max_queue_size=10**6)


def put(store: Store, kinds: str) -> list[int]:
    """One row for each digit, which is its QoS."""
    ids = store.append_many([("t", "x" * 300, int(qos)) for qos in kinds])
    assert store.wait_durable(ids[-1], WAIT_S)
    return ids


def read_alerts(store: Store, limit: int = 100) -> list[int]:
    ids: list[int] = []
    while store.has_alerts:
        ids += [row[0] for row in store.supply.read(limit, alerts=True)[0]]
    return ids


@contextmanager
def steps_of_reading(store: Store) -> Iterator[list[None]]:
    """An entry for each ten instructions of SQLite's machine."""
    steps: list[None] = []
    store._reader.connection.set_progress_handler(lambda: bool(steps.append(None)), 10)
    try:
        yield steps
    finally:
        store._reader.connection.set_progress_handler(None)


@pytest.mark.parametrize("limit", [1, 3, 100])
def test_each_row_is_in_one_lane(store: Store, outbox: RecordingOutbox, clock: Clock, limit: int) -> None:
    dice = random.Random(1)
    alerts: list[int] = []
    others: list[int] = []
    for _ in range(10):
        kinds = "".join(dice.choices("0112", k=dice.randrange(1, 9)))
        ids = put(store, kinds)
        alerts += [message_id for message_id, qos in zip(ids, kinds, strict=True) if qos == "2"]
        others += [message_id for message_id, qos in zip(ids, kinds, strict=True) if qos != "2"]
        clock.now_s += dice.choice([0, 0.001])
    for _ in range(2):
        assert read_alerts(store, limit) == alerts
        assert outbox.read_all(limit) == others
        outbox.park()


def test_none_is_looked_for_where_there_is_none(
    store: Store, outbox: RecordingOutbox, make_store: Callable[..., Store]
) -> None:
    assert not store.has_alerts
    put(store, "01" * 10)
    assert not store.has_alerts
    outbox.read_all()
    assert not store.has_backlog
    (alert,) = put(store, "2")
    outbox.read_all()
    assert store.has_backlog
    assert store.has_alerts
    assert read_alerts(store) == [alert]
    assert outbox.read_all() == []
    assert not store.has_backlog
    store.close()
    again = make_store(queue_order=ALERTS_FIRST)
    assert again.has_alerts
    assert read_alerts(again) == [alert]


def test_fifo_has_no_lane(make_store: Callable[..., Store]) -> None:
    store = make_store()
    ids = put(store, "1202")
    assert not store.has_alerts
    assert RecordingOutbox(store).read_all(1) == ids


@pytest.mark.parametrize("kinds", ["1", "2"])
def test_a_lane_does_not_look_at_the_rows_of_the_other_twice(store: Store, outbox: RecordingOutbox, kinds: str) -> None:
    for _ in range(10):
        put(store, kinds * 1000)
    read_alerts(store)
    outbox.read_all()
    with steps_of_reading(store) as steps:
        for _ in range(100):
            put(store, kinds)
            assert len(read_alerts(store) + outbox.read_all()) == 1
    # It would be some 1,000 for each.
    assert len(steps) < 100 * 40


@pytest.mark.parametrize("kinds", ["1", "2"])
def test_a_file_is_read_once_by_its_one_lane(make_store: Callable[..., Store], kinds: str) -> None:
    with closing(make_store(queue_order=ALERTS_FIRST, max_queue_size=10**6)) as store:
        put(store, kinds * 1000)
    again = make_store(queue_order=ALERTS_FIRST)
    outbox = RecordingOutbox(again)
    read = {"1": read_alerts, "2": lambda _store: outbox.read_all()}
    with steps_of_reading(again) as steps:
        assert read[kinds](again) == []
    assert len(steps) < 40


def test_what_is_finished_and_what_is_in_flight(store: Store, outbox: RecordingOutbox) -> None:
    put(store, "212212")
    assert read_alerts(store) == [1, 3, 4, 6]
    outbox.finish([3])
    store.supply.rewind([1, 4], [3])
    assert read_alerts(store) == [1, 4, 6]
    assert outbox.read_all() == [2, 5]


def test_an_alert_of_another_program(store: Store, outbox: RecordingOutbox, path: Path) -> None:
    put(store, "11")
    outbox.read_all()
    with closing(apsw.Connection(str(path))) as database:
        database.execute(
            "INSERT INTO mqtt_offline_queue (topic, payload, qos, timestamp, ttl) VALUES ('t', 'x', 2, 5, 9e15)"
        )
    put(store, "1")
    assert len(read_alerts(store)) == 1
    assert len(outbox.read_all()) == 1
    outbox.park()
    assert len(read_alerts(store)) == 1
    assert len(outbox.read_all()) == 3


def test_a_clock_that_jumps_hides_nothing(store: Store, outbox: RecordingOutbox, clock: Clock) -> None:
    alerts: list[int] = []
    others: list[int] = []
    for jump_s in (0, 10**8, -2 * 10**8, 10**8 + 5, -clock.now_s):
        clock.step(jump_s)
        new = append(store, 1, qos=2, ttl_ms=10**14)
        assert read_alerts(store) == new
        alerts += new
        new = append(store, 2, ttl_ms=10**14)
        assert outbox.read_all() == new
        others += new
    outbox.park()
    assert read_alerts(store, 2) == alerts
    assert outbox.read_all(3) == others
