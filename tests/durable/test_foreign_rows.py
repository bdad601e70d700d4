"""Rows of other writers: each is sent, mended or set aside with its reason, whatever the size of the file."""

from __future__ import annotations

import logging
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from glec_fast.durable.outcomes import Dropped
from glec_fast.durable.store import Store
from glec_fast.fleet.offline_queue import OfflineQueueManager
from support.clock import Clock
from support.queue_files import SPECIFIED_SCHEMA, plain
from support.scripted_broker import ScriptedBroker
from support.scripted_gateway import ScriptedGateway
from support.store import RecordingOutbox

FAR_MS = 10**13
NOW_MS = 1_795_000_000_000
# As a program without the specification at hand declares it.
LOOSE_SCHEMA = SPECIFIED_SCHEMA.replace(" NOT NULL", "")
GOOD = ("t", "x", 1, NOW_MS, FAR_MS)
INSERT = "INSERT INTO mqtt_offline_queue (topic, payload, qos, timestamp, ttl) VALUES (?, ?, ?, ?, ?)"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "queue.db"


@pytest.fixture(params=["looked at when it is opened", "too large for that"])
def _size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param != "looked at when it is opened":
        monkeypatch.setattr("glec_fast.durable.database._CHECKED_AT_OPEN_BYTES", 0)


def write(path: Path, *rows: tuple[Any, ...], schema: str = LOOSE_SCHEMA, encoding: str = "UTF-8") -> None:
    with plain(path) as database:
        database.execute(f"PRAGMA encoding = '{encoding}'")
        database.executescript(schema)
        database.executemany(INSERT, rows)


def sent_of(path: Path) -> list[tuple[Any, ...]]:
    """What a client reads to send; it is then finished, and nothing is left."""
    with closing(Store(path)) as store:
        outbox = RecordingOutbox(store)
        ids = outbox.read_all(3)
        outbox.finish(ids, drained=True)
        assert store.wait_empty(20)
        return [row[1:] for row in outbox.sent]


SENT_AS = {
    "payload NULL": (("t", None, 1, NOW_MS, FAR_MS), ("t", "", 1, NOW_MS, FAR_MS)),
    "payload a number": (("t", 5, 1, NOW_MS, FAR_MS), ("t", "5", 1, NOW_MS, FAR_MS)),
    "payload a REAL": (("t", 2.5, 1, NOW_MS, FAR_MS), ("t", "2.5", 1, NOW_MS, FAR_MS)),
    "payload a BLOB": (("t", b"\xff\x00", 1, NOW_MS, FAR_MS), ("t", b"\xff\x00", 1, NOW_MS, FAR_MS)),
    "topic a BLOB": ((b"t", "x", 1, NOW_MS, FAR_MS), GOOD),
    "topic a number": ((7, "x", 1, NOW_MS, FAR_MS), ("7", "x", 1, NOW_MS, FAR_MS)),
    "qos a REAL": (("t", "x", 1.0, NOW_MS, FAR_MS), GOOD),
    "qos digits": (("t", "x", b"1", NOW_MS, FAR_MS), GOOD),
    "timestamp a REAL": (("t", "x", 1, NOW_MS + 0.4, FAR_MS), GOOD),
    "timestamp digits": (("t", "x", 1, str(NOW_MS), FAR_MS), GOOD),
    "timestamp digits in a BLOB": (("t", "x", 1, str(NOW_MS).encode(), FAR_MS), None),
    "timestamp ISO": (("t", "x", 1, "2026-11-18T06:26:40", FAR_MS), (*GOOD[:3], 1794983200000, FAR_MS)),
    "timestamp ISO with a zone": (("t", "x", 1, "2026-11-18 08:26:40.500+02:00", FAR_MS), None),
    "timestamp a word": (("t", "x", 1, "soon", FAR_MS), ("t", "x", 1, 0, FAR_MS)),
    "timestamp negative": (("t", "x", 1, -5, FAR_MS), ("t", "x", 1, -5, FAR_MS)),
    "timestamp NULL": (("t", "x", 1, None, FAR_MS), ("t", "x", 1, 0, FAR_MS)),
    "timestamp the highest": (("t", "x", 1, 2**63 - 1, FAR_MS), ("t", "x", 1, 0, FAR_MS)),
    "timestamp the lowest": (("t", "x", 1, -(2**63), FAR_MS), ("t", "x", 1, -(2**52), FAR_MS)),
    "timestamp infinite": (("t", "x", 1, 1e999, FAR_MS), ("t", "x", 1, 0, FAR_MS)),
    "timestamp minus infinite": (("t", "x", 1, -1e999, FAR_MS), ("t", "x", 1, -(2**52), FAR_MS)),
    "timestamp a broken text": (("t", "x", 1, b"\xff", FAR_MS), None),
    "ttl a REAL": (("t", "x", 1, NOW_MS, FAR_MS + 0.6), (*GOOD[:4], FAR_MS + 1)),
    "ttl NULL": (("t", "x", 1, NOW_MS, None), (*GOOD[:4], 2**53)),
    "ttl the highest": (("t", "x", 1, NOW_MS, 2**63 - 1), (*GOOD[:4], 2**63 - 1)),
    "ttl infinite": (("t", "x", 1, NOW_MS, 1e999), (*GOOD[:4], 2**53)),
    "ttl ISO": (("t", "x", 1, NOW_MS, "2286-11-20 17:46:40"), (*GOOD[:4], 9999999999000 + 1000)),
    "ttl a word": (("t", "x", 1, NOW_MS, "tomorrow"), (*GOOD[:4], 2**53)),
    "ttl a BLOB": (("t", "x", 1, NOW_MS, b"\xff"), (*GOOD[:4], 2**53)),
}


@pytest.mark.usefixtures("_size")
@pytest.mark.parametrize("odd", SENT_AS)
def test_what_can_be_made_a_message_of_is_sent(path: Path, odd: str) -> None:
    row, expected = SENT_AS[odd]
    write(path, row)
    (sent,) = sent_of(path)
    if expected is not None:
        assert sent == expected
        assert [type(value) for value in sent] == [type(value) for value in expected]


SET_ASIDE = {
    "topic is NULL": (None, "x", 1, NOW_MS, FAR_MS),
    "topic is empty": ("", "x", 1, NOW_MS, FAR_MS),
    "has a wildcard": ("a/+", "x", 1, NOW_MS, FAR_MS),
    "topic 'a/#' has a wildcard": ("a/#", "x", 2, NOW_MS, FAR_MS),
    "NUL character": ("t\0t", "x", 1, NOW_MS, FAR_MS),
    "U+0009": ("t\tt", "x", 1, NOW_MS, FAR_MS),
    "U+0085": ("t\x85t", "x", 2, NOW_MS, FAR_MS),
    "U+FFFE": ("\ufffe", "x", 1, NOW_MS, FAR_MS),
    "MQTT carries at most 65535": ("t" * 65536, "x", 1, NOW_MS, FAR_MS),
    "topic is not UTF-8": (b"\xff", "x", 1, NOW_MS, FAR_MS),
    "qos is no number": ("t", "x", None, NOW_MS, FAR_MS),
    "qos is 7": ("t", "x", 7, NOW_MS, FAR_MS),
    "qos is -1": ("t", "x", -1, NOW_MS, FAR_MS),
    "qos is 1.5": ("t", "x", 1.5, NOW_MS, FAR_MS),
}


def set_aside(path: Path) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path)) as database:
        return database.execute(
            "SELECT reason, message_id, topic, payload, qos, timestamp, ttl, retry_count FROM glec_set_aside"
        ).fetchall()


@pytest.mark.usefixtures("_size")
@pytest.mark.parametrize("reason", SET_ASIDE)
def test_what_no_message_can_be_made_of_is_set_aside_and_holds_up_no_other(
    path: Path, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    row = SET_ASIDE[reason]
    write(path, GOOD, row, GOOD)
    with closing(Store(path)) as store:
        outbox = RecordingOutbox(store)
        ids = outbox.read_all(1)
        assert ids == [1, 3]
        outbox.finish(ids, drained=True)
        assert store.wait_empty(20)
        outbox.wait(lambda heard: heard.dropped)
        ((message_id, _, qos, why),) = outbox.dropped
        assert (message_id, why.value) == (2, "unsendable")
        # By it it is counted.
        assert type(qos) is int
        assert 0 <= qos <= 2
        assert store.drops == {"unsendable": 1}
    ((found, *kept),) = set_aside(path)
    assert reason in found
    assert kept == [2, *row, 0]
    assert reason in caplog.text
    assert sent_of(path) == []


@pytest.mark.usefixtures("_size")
def test_text_that_is_not_utf8_is_sent_as_bytes_and_set_aside_as_a_topic(path: Path) -> None:
    write(path, ("t", "fine", 1, 3, FAR_MS), schema=SPECIFIED_SCHEMA)
    with plain(path) as database:
        for values in ("'t', CAST(x'ff' AS TEXT), 1, 1", "CAST(x'ff' AS TEXT), 'x', 1, 2"):
            database.execute(
                f"INSERT INTO mqtt_offline_queue (topic, payload, qos, timestamp, ttl) VALUES ({values}, {FAR_MS})"
            )
    with closing(Store(path)) as store:
        rows, is_last = store.supply.read(10)
        assert is_last
        assert [row[:3] for row in rows] == [(2, "t", b"\xff"), (1, "t", "fine")]
        store.run(lambda table: None)
        assert store.drops == {"unsendable": 1}


def test_broken_text_in_any_column(path: Path) -> None:
    write(path, GOOD)
    for column in ("topic", "payload", "qos", "timestamp", "ttl", "retry_count"):
        with plain(path) as database:
            database.execute(INSERT, GOOD)
            database.execute(
                f"UPDATE mqtt_offline_queue SET {column} = CAST(x'ff' AS TEXT)"
                " WHERE id = (SELECT max(id) FROM mqtt_offline_queue)"
            )
    with OfflineQueueManager(path) as queue:
        assert len(queue.dequeue_all()) == 5
        queue.stats()
        assert queue.cleanup_expired() == queue.cleanup_max_retries() == 0
    assert len(sent_of(path)) == 5


def test_dequeue_all_sets_aside_too(path: Path) -> None:
    dropped: list[Dropped] = []
    write(path, *SET_ASIDE.values(), GOOD, ("t", 5, 1.0, NOW_MS + 0.5, FAR_MS))
    with OfflineQueueManager(path, on_drop=dropped.append) as queue:
        assert [message[1:4] for message in queue.dequeue_all()] == [("t", "x", 1), ("t", "5", 1)]
        assert {type(value) for message in queue.dequeue_all() for value in message[3:]} == {int}
        queue.enqueue("t", "x", 1)
        assert len(dropped) == len(SET_ASIDE)
    assert len(set_aside(path)) == len(SET_ASIDE)


def test_what_is_set_aside_is_bounded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glec_fast.durable.quarantine.QUARANTINE_BYTES_MAX", 1000)
    write(path, *[("+", "x" * size, 1, number, FAR_MS) for number, size in enumerate([1] * 20 + [400] * 3)])
    sent_of(path)
    assert [row[1] for row in set_aside(path)] == [22, 23]


@pytest.mark.usefixtures("_size")
def test_order_is_by_time_as_far_as_there_is_one(path: Path) -> None:
    write(
        path,
        ("t", "5", 1, NOW_MS + 1.5, FAR_MS),
        ("t", "6", 1, 2**63 - 1, FAR_MS),
        ("t", "4", 1, NOW_MS + 1, FAR_MS),
        ("t", "3", 1, NOW_MS + 0.5, FAR_MS),
        ("t", "2", 1, "2026-11-01", FAR_MS),
        ("t", "1", 1, -7.5, FAR_MS),
        ("t", "0", 1, -(2**62), FAR_MS),
        ("t", "7", 1, "soon", FAR_MS),
    )
    assert [row[1] for row in sent_of(path)] == [str(number) for number in range(8)]


@pytest.mark.usefixtures("_size")
@pytest.mark.parametrize("timestamp", [2**63 - 1, 2**62, 9.2e18, 1e999, "soon", NOW_MS + 0.5, b"x", None])
def test_our_own_rows_can_be_stored_and_read_behind_any(path: Path, timestamp: Any) -> None:
    clock = Clock()
    write(path, ("t", "theirs", 1, timestamp, FAR_MS))
    with closing(Store(path, clocks=clock.clocks)) as store:
        outbox = RecordingOutbox(store)
        first = outbox.read_all()
        store.append("t", "ours", 2)
        last = store.append("t", "ours", 2)
        clock.now_s += 3600
        assert store.wait_durable(last, 20)
        assert [*first, *outbox.read_all()] == [1, 2, 3]
        assert {type(row[4]) for row in outbox.sent} == {int}


def test_a_row_that_failed_as_often_as_it_may_is_dropped_and_told(path: Path) -> None:
    write(path, GOOD, GOOD, GOOD)
    with plain(path) as database:
        database.execute("UPDATE mqtt_offline_queue SET retry_count = 3 WHERE id = 2")
        database.execute("UPDATE mqtt_offline_queue SET retry_count = 'x' WHERE id = 3")
    with closing(Store(path, max_retry=3)) as store:
        outbox = RecordingOutbox(store)
        assert outbox.read_all() == [1, 3]
        outbox.wait(lambda heard: heard.dropped)
        assert [(each.message_id, each.reason.value) for each in outbox.dropped] == [(2, "quarantined")]
        assert store.drops == {"quarantined": 1}


@pytest.mark.parametrize("encoding", ["UTF-16le", "UTF-16be"])
def test_a_utf16_database(path: Path, encoding: str) -> None:
    write(path, ("t/\u00e9", "\u20ac 5", 1, NOW_MS, FAR_MS), ("a/+", "x", 1, NOW_MS, FAR_MS), encoding=encoding)
    with closing(Store(path, max_queue_size=3)) as store:
        assert store.salvage is None
        outbox = RecordingOutbox(store)
        outbox.read_all()
        assert [row[1:3] for row in outbox.sent] == [("t/\u00e9", "\u20ac 5")]
        outbox.wait(lambda heard: heard.dropped)
        assert [each.topic for each in outbox.dropped] == ["a/+"]
        outbox.finish([1], drained=True)
        for _ in range(4):
            store.append("\u00fc", b"\xff\x00", 1)
        store.wait_durable(store.append("\u00fc", "x", 1), 20)
        # They are told of behind the transaction.
        outbox.wait(lambda heard: len(heard.dropped) > 1)
        assert {each.topic for each in outbox.dropped[1:]} == {"\u00fc"}
    with closing(Store(path)) as store:
        assert [row[1:3] for row in store.supply.read(9)[0]][-2:] == [("\u00fc", b"\xff\x00"), ("\u00fc", "x")]


EXTRAS = [
    ("'x'", "NULL", "x''"), ("1", "'x'", "x''"), ("1", "-1", "x''"), ("2", "NULL", "x''"), ("1", "NULL", "'text'"),
    ("1", "NULL", "x'FF'"), ("1", "NULL", "x'0300'"), ("1", "NULL", "x'0109'"), ("1", "NULL", "x'030001FF'"),
    ("1", "4294967296", "x''"), ("CAST(x'FF' AS TEXT)", "NULL", "x''"), ("1", "NULL", "x'230001'"),
    ("1", "NULL", "x'01000100'"),
]  # fmt: skip


@pytest.mark.parametrize("columns", EXTRAS)
def test_extras_that_are_none_set_the_message_aside(path: Path, columns: tuple[str, ...]) -> None:
    write(path, GOOD, GOOD)
    with closing(Store(path)):
        pass
    with plain(path) as database:
        database.execute(f"INSERT INTO glec_extras VALUES (1, {', '.join(columns)})")
    assert len(sent_of(path)) == 1
    ((reason, message_id, *_),) = set_aside(path)
    assert message_id == 1
    assert "properties" in reason


def test_the_clean_up_survives_odd_rows(path: Path) -> None:
    write(path, GOOD)
    with closing(Store(path, max_queue_size=3)) as store, plain(path) as database:
        database.executemany(
            INSERT.replace("(topic", "(id, topic").replace("(?", "(?, ?"),
            [
                (11, None, "x", None, "soon", 5),
                (12, "t", "x", 1, None, 5),
                (13, b"\xff", "x", 1, NOW_MS + 0.5, 5),
                (14, "t", "x", 1, 2**63 - 1, None),
            ],
        )
        database.commit()
        assert store.drop_expired() == 3
        assert store.drop_given_up() == 0
        store.run(lambda table: table.span_ms())
        for _ in range(4):
            store.append("t", "x", 1)
        store.run(lambda _table: None)
        assert store.drops["expired"] == 3


CLOCKS = [
    ("'x'", "9223372036854775807", "0", "0", "1"), ("'x'", "'y'", "0", "0", "1"), ("'x'", "0", "0", "1e300", "1"),
    ("x'FF'", "0", "0", "0", "1"), ("CAST(x'FF' AS TEXT)", "0", "0", "0", "1"), ("'x'", "5", "0", "0", "1"),
    ("'x'", "0", "0", "0", "-1"), ("'x'", "0", "1.5", "0", "1"), ("'x'", "0", "0", "0", "9223372036854775807"),
]  # fmt: skip


@pytest.mark.parametrize("columns", CLOCKS)
def test_a_clock_that_is_none_is_left_out(path: Path, columns: tuple[str, ...]) -> None:
    with OfflineQueueManager(path) as queue:
        queue.enqueue("t", "x", 1)
    with plain(path) as database:
        database.execute(f"REPLACE INTO glec_clock VALUES (1, {', '.join(columns)})")
    before_ms = time.time_ns() // 1_000_000
    with OfflineQueueManager(path) as queue:
        queue.enqueue("t", "x", 1)
        assert abs(queue.dequeue_all()[-1].timestamp_ms - before_ms) < 60_000


@pytest.mark.parametrize("version", [2, 5, 2**31 - 1, -1])
def test_a_version_that_others_count_is_left_to_them(
    path: Path, version: int, caplog: pytest.LogCaptureFixture
) -> None:
    write(
        path, GOOD, schema=SPECIFIED_SCHEMA + f"PRAGMA user_version = {version}; CREATE TABLE room_master_table (id);"
    )
    for _ in range(2):
        with caplog.at_level(logging.WARNING), OfflineQueueManager(path) as queue:
            assert queue.get_queue_size() == 1
        with plain(path) as database:
            assert database.execute("PRAGMA user_version").fetchone() == (version,)
    assert caplog.text == ""


def with_column(declaration: str) -> str:
    last = "retry_count INTEGER DEFAULT 0"
    return SPECIFIED_SCHEMA.replace(last, f"{last}, {declaration}")


def with_trigger(when: str, does: str) -> str:
    return SPECIFIED_SCHEMA + f"CREATE TRIGGER t {when} DELETE ON mqtt_offline_queue BEGIN {does}; END;"


ODD_TABLES = {
    "in capitals": SPECIFIED_SCHEMA.upper(),
    "without retry_count": SPECIFIED_SCHEMA.replace(", retry_count INTEGER DEFAULT 0", ""),
    "without ttl": SPECIFIED_SCHEMA.replace(" ttl BIGINT NOT NULL,", "").replace("(ttl)", "(qos)"),
    "ids without AUTOINCREMENT": SPECIFIED_SCHEMA.replace(" AUTOINCREMENT", ""),
    "ids of text": SPECIFIED_SCHEMA.replace("INTEGER PRIMARY KEY AUTOINCREMENT", "TEXT PRIMARY KEY"),
    "a view": SPECIFIED_SCHEMA.replace("mqtt_offline_queue", "messages")
    + "CREATE VIEW mqtt_offline_queue AS SELECT * FROM messages;",
    "a column of others": with_column("device TEXT NOT NULL DEFAULT 'x'"),
    "a column that must be given": with_column("device TEXT NOT NULL"),
    "a computed column": with_column("size AS (length(payload)) STORED"),
    "a trigger that forbids to delete": with_trigger("BEFORE", "SELECT RAISE(ABORT, 'no')"),
    "a trigger that ignores what is deleted": with_trigger("BEFORE", "SELECT RAISE(IGNORE)"),
    "a trigger for a table that is gone": with_trigger("AFTER", "INSERT INTO gone VALUES (old.id)"),
}


@pytest.mark.parametrize("odd", ODD_TABLES)
def test_a_table_that_others_made_in_another_way_is_emptied(path: Path, odd: str) -> None:
    with plain(path) as database:
        database.executescript(ODD_TABLES[odd])
        table = "messages" if odd == "a view" else "mqtt_offline_queue"
        columns = ["topic", "payload", "qos", "timestamp", *(["ttl"] if odd != "without ttl" else [])]
        columns += {"ids of text": ["id"], "a column that must be given": ["device"]}.get(odd, [])
        for number in range(3):
            row: dict[str, Any] = {"topic": "t", "payload": str(number), "qos": number, "timestamp": NOW_MS}
            row |= {"ttl": FAR_MS, "id": f"id-{number}", "device": "d"}
            values = [row[column] for column in columns]
            into = f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"
            database.execute(into, values)
    assert [row[1] for row in sent_of(path)] == ["0", "1", "2"]
    assert sent_of(path) == []


IN_ANOTHER_ORDER = SPECIFIED_SCHEMA.replace("topic TEXT NOT NULL, payload TEXT", "payload TEXT NOT NULL, topic TEXT")


@pytest.mark.parametrize(
    "schema",
    [IN_ANOTHER_ORDER, *(ODD_TABLES[odd] for odd in ("in capitals", "a column of others", "a computed column"))],
)
def test_a_few_messages_are_added_to_a_table_of_others(path: Path, schema: str) -> None:
    with plain(path) as database:
        database.executescript(schema)
    with closing(Store(path)) as store:
        ids = store.append_many([("t", "x", 1)] * 3)
        assert store.wait_durable(ids[-1], 20)
    assert [row[:3] for row in sent_of(path)] == [("t", "x", 1)] * 3


def test_the_whole_way_of_odd_rows(path: Path) -> None:
    sendable = [row for odd, (row, _) in SENT_AS.items() if odd != "payload a BLOB"]
    write(path, *sendable, *SET_ASIDE.values())
    broker = ScriptedBroker()
    with ScriptedGateway(path) as gateway:
        gateway.connect()
        while gateway.store.size:
            gateway.commit()
            broker.feed(gateway.send())
            gateway.receive(broker.handle(broker.waiting_packets()))
        assert {each.reason.value for each in gateway.dropped} == {"unsendable"}
        assert gateway.store.drops == {"unsendable": len(SET_ASIDE)}
        assert sum(broker.counts().values()) == len(sendable)


def test_ours_are_read_behind_a_row_of_the_end_of_time_also_once_the_clock_steps(path: Path) -> None:
    write(path, ("t", "foreign", 1, 2**53 - 1, 2**53 - 1))
    clock = Clock()
    with closing(Store(path, clocks=clock.clocks)) as store:
        for payload in ("first", "second"):
            store.wait_durable(store.append("t", payload, 1), 20)
            clock.step(3600)
        rows, is_last = store.supply.read(10)
        assert ([row[2] for row in rows], is_last) == (["foreign", "first", "second"], True)


def test_a_session_kept_under_a_name_that_is_no_text_is_nobody_s(path: Path) -> None:
    Store(path).close()
    with plain(path) as database:
        odd = "CAST(x'FF41' AS TEXT)"
        for names in (f"{odd}, 'b'", f"'c', {odd}"):
            database.execute(f"INSERT INTO glec_kept_session (client_id, broker, in_flight) VALUES ({names}, x'01')")
    with closing(Store(path)) as store:
        assert set(store.kept_sessions()) == {("\\xffA", "b"), ("c", "\\xffA")}
