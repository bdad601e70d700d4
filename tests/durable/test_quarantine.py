"""What stands aside in the queue file: kept with all of its values, listed, sent again, deleted, bounded."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from glec_fast import MessageError, OfflineQueueManager
from glec_fast.cli.main import main
from glec_fast.durable.extras import Extras
from glec_fast.durable.store import Store
from support.clock import Clock
from support.store import RecordingOutbox, wait_for

if TYPE_CHECKING:
    from pathlib import Path

WHY = "the broker ended 3 connections over it"
DAY_S = 24 * 3600


def quarantine(store: Store, payload: str | bytes = "x", qos: int = 2, extras: Extras | None = None) -> int:
    """A message that goes there; returns its id."""
    message_id = store.append("t", payload, qos, extras=extras)
    store.wait_durable(message_id)
    before = store.drops.get("quarantined", 0)
    store.supply.quarantine([message_id], WHY)
    assert wait_for(lambda: store.drops.get("quarantined", 0) == before + 1)
    return message_id


@pytest.mark.parametrize("payload", ["", "text", "é", b"\xff\0"])
@pytest.mark.parametrize("extras", [None, Extras(True, 60, b"\x01\x01")])
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_it_is_kept_and_sent_again_as_it_was(
    tmp_path: Path, payload: str | bytes, qos: int, extras: Extras | None
) -> None:
    clock = Clock()
    with closing(Store(tmp_path / "q.db", clocks=clock.clocks)) as store:
        outbox = RecordingOutbox(store)
        outbox.lets_go = {1}
        message_id = quarantine(store, payload, qos, extras)
        assert store.size == 0
        outbox.wait(lambda heard: heard.dropped)
        assert [(each.message_id, each.reason.value) for each in outbox.dropped] == [(message_id, "quarantined")]
        (entry,) = store.quarantined()
        size = len(payload.encode() if isinstance(payload, str) else payload)
        assert entry[1:] == (store.clock.unix_ms(), WHY, message_id, "t", qos, size, 0)
    with closing(Store(tmp_path / "q.db", clocks=clock.clocks)) as store:
        outbox = RecordingOutbox(store)
        assert store.retry_quarantined(entry.number) == message_id + 1
        assert store.quarantined() == []
        assert store.retry_quarantined(entry.number) is None
        outbox.read_all()
        (row,) = outbox.sent
        assert row[:4] == (message_id + 1, "t", payload, qos)
        assert row[5] == row[4] + (60_000 if extras else DAY_S * 1000)
        assert row[6:] == ((True, b"\x07\x01\x01\x02\x00\x00\x00\x3c") if extras else ())


def test_what_is_deleted_is_gone_and_its_number_is_no_other_s(tmp_path: Path) -> None:
    with closing(Store(tmp_path / "q.db")) as store:
        for _ in range(3):
            quarantine(store)
        numbers = [entry.number for entry in store.quarantined()]
        assert store.delete_quarantined([numbers[0], numbers[2], 99]) == 2
        quarantine(store)
        assert [entry.number for entry in store.quarantined()] == [numbers[1], numbers[2] + 1]


def assert_takes_alerts(store: Store) -> None:
    for _ in range(50):
        store.append("alerts", "x" * 1000, 2)
    store.run(lambda _: None)
    assert store.size == 50
    assert "overflow" not in store.drops


def test_it_leaves_the_queue_its_room(tmp_path: Path) -> None:
    """Both are in one file, which is bounded: a queue without room would give up all that comes."""
    with closing(Store(tmp_path / "q.db", max_queue_bytes=1_000_000, quarantine_max_size=1000)) as store:
        for _ in range(15):
            quarantine(store, "x" * 100_000)
        assert len(store.quarantined()) == 2
        assert_takes_alerts(store)


def test_what_was_kept_under_other_settings_leaves_the_queue_its_room_too(tmp_path: Path) -> None:
    path = tmp_path / "q.db"
    with closing(Store(path, quarantine_max_size=1000)) as store:
        for _ in range(15):
            quarantine(store, "x" * 100_000)
    with closing(Store(path, max_queue_bytes=1_000_000)) as store:
        assert len(store.quarantined()) == 15
        assert_takes_alerts(store)
        assert len(store.quarantined()) == 2


def test_it_is_bounded_by_number_and_age(tmp_path: Path) -> None:
    clock, monotonic = Clock(), Clock(0)
    settings = {
        "quarantine_max_size": 3,
        "quarantine_days": 2,
        "clocks": clock.clocks,
        "monotonic": lambda: monotonic.now_s,
    }
    with closing(Store(tmp_path / "q.db", **settings)) as store:  # type: ignore[arg-type]
        ids = [quarantine(store) for _ in range(5)]
        assert [entry.message_id for entry in store.quarantined()] == ids[2:]
        clock.now_s += DAY_S
        monotonic.now_s += DAY_S
        late = quarantine(store)
        clock.now_s += DAY_S + 1
        monotonic.now_s += DAY_S + 1
        store.request_commit()
        assert wait_for(lambda: [entry.message_id for entry in store.quarantined()] == [late])


def test_the_newest_is_kept_however_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glec_fast.durable.quarantine.QUARANTINE_BYTES_MAX", 100)
    with closing(Store(tmp_path / "q.db")) as store:
        quarantine(store, "x" * 50)
        second = quarantine(store, "x" * 1000)
        assert [entry.message_id for entry in store.quarantined()] == [second]


def test_a_full_queue_drops_none_of_it(tmp_path: Path) -> None:
    with closing(Store(tmp_path / "q.db", max_queue_size=2)) as store:
        message_id = quarantine(store)
        store.append_many([("t", "y", 1)] * 5)
        store.run(lambda _table: None)
        assert [entry.message_id for entry in store.quarantined()] == [message_id]


def test_of_what_is_finished_nothing_is_kept(tmp_path: Path) -> None:
    with closing(Store(tmp_path / "q.db")) as store:
        outbox = RecordingOutbox(store)
        store.append("t", "x", 1)
        store.run(lambda _table: None)
        outbox.read_all()
        outbox.lets_go = {1}
        outbox.finish([1])
        store.supply.quarantine([1], WHY)
        assert wait_for(lambda: store.size == 0)
        store.run(lambda _table: None)
        assert store.quarantined() == []
        assert store.drops == {}


# ---- the command line


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with closing(Store(tmp_path / "q.db")) as store:
        quarantine(store, "one")
        quarantine(store, "two", 1)
    return tmp_path / "q.db"


def test_it_is_listed(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["queue", "quarantine", "list", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["1", "2"]
    assert all(WHY in line and "'t'" in line for line in lines)
    assert main(["queue", "quarantine", "list", "--json", str(path)]) == 0
    entries = json.loads(capsys.readouterr().out)
    assert [(entry["message_id"], entry["qos"], entry["payload_bytes"]) for entry in entries] == [(1, 2, 3), (2, 1, 3)]


def test_it_is_put_back_and_deleted(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["queue", "quarantine", "retry", str(path), "2", "7"]) == 1
    assert capsys.readouterr() == ("2: in the queue as message 3\n", "7: nothing in quarantine has this number\n")
    assert main(["queue", "quarantine", "delete", str(path), "--all"]) == 0
    assert main(["queue", "quarantine", "list", str(path)]) == 0
    assert capsys.readouterr().out == "1: deleted\nnothing is in quarantine\n"
    with OfflineQueueManager(path) as queue:
        assert [(row.payload, row.qos) for row in queue.dequeue_all()] == [("two", 1)]


def test_what_no_message_can_be_made_of_stays(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.execute("UPDATE glec_set_aside SET topic = 'a/+' WHERE number = 1")
        database.commit()
    with OfflineQueueManager(path) as queue, pytest.raises(MessageError, match="wildcard"):
        queue.retry_quarantined([1])
    assert main(["queue", "quarantine", "retry", str(path), "--all"]) == 1
    shown = capsys.readouterr()
    assert shown.out == "2: in the queue as message 3\n"
    assert "1: no message can be made of it" in shown.err


def test_a_file_that_is_not_there_or_in_use(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["queue", "quarantine", "list", str(path.with_name("none.db"))]) == 2
    with OfflineQueueManager(path):
        assert main(["queue", "quarantine", "list", str(path)]) == 0
        socket = str(path.with_name("no.sock"))
        assert main(["queue", "quarantine", "delete", str(path), "1", "--socket", socket]) == 2
    assert not path.with_name("none.db").exists()
    assert len(capsys.readouterr().err.splitlines()) == 2
