"""What is kept of commands: what runs is never forgotten, and of those that are answered the latest are known."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from glec_fast.durable import command_log
from glec_fast.durable.command_log import Key, Origin
from glec_fast.durable.store import Store
from support.queue_files import plain

if TYPE_CHECKING:
    from pathlib import Path

    from glec_fast.durable._table import QueueTable

ORIGIN = Origin(1, 2, "t", b"{}", None)


def key(number: int) -> Key:
    return Key("install", b"%d" % number, b"digest")


def answer(store: Store, *numbers: int) -> None:
    for number in numbers:
        store.run(lambda table: command_log.begin(table, key(number), ORIGIN))  # noqa: B023 - called at once
        store.run(lambda table: command_log.end(table, key(number), ORIGIN, b"done", 3))  # noqa: B023


def test_one_that_runs_for_long_outlives_any_number_of_others(tmp_path: Path) -> None:
    with closing(Store(tmp_path / "queue.db")) as store:
        store.run(lambda table: command_log.begin(table, key(0), ORIGIN))
        answer(store, *range(1, 11))
        assert [each.id for each in store.run(command_log.begun)[0]] == [b"0"]
        store.run(lambda table: command_log.end(table, key(0), ORIGIN, b"late", 3))
        found = store.run(lambda table: command_log.find(table, key(0)))
        assert found is not None
        assert found.reply == b"late"
        answer(store, *range(11, 21))
        assert store.run(lambda table: command_log.find(table, key(0))) is None


def test_replies_take_so_much_and_no_more(tmp_path: Path) -> None:
    """They stand in the file that has the queue, and its bound is for both."""
    with closing(Store(tmp_path / "queue.db")) as store:
        for number in range(64):
            store.run(
                lambda table: command_log.end(table, key(number), ORIGIN, b"x" * 1000, 1000, 10_000)  # noqa: B023
            )
        kept = [store.run(lambda table: command_log.find(table, key(number))) for number in range(64)]  # noqa: B023
        assert kept[-1] is not None
        # Looked at now and then.
        assert sum(each is not None for each in kept) <= 10 + 16
        assert all(each is None for each in kept[:32])
        store.run(lambda table: command_log.end(table, key(100), ORIGIN, b"x" * 100_000, 1000, 10_000))
        assert store.run(lambda table: command_log.find(table, key(100))) is not None


@pytest.mark.parametrize("refused", range(4))
@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_replies_take_no_more_whatever_was_refused_before_and_runs_at_once(
    tmp_path: Path, refused: int, at_once: int
) -> None:
    def run(table: QueueTable) -> None:
        for number in range(refused):
            command_log.end(table, Key("unknown", b"%d" % number, b""), ORIGIN, b"", 1000, 10_000)
        for first in range(0, 96, at_once):
            for number in range(first, first + at_once):
                command_log.begin(table, key(number), ORIGIN)
            for number in range(first, first + at_once):
                command_log.end(table, key(number), ORIGIN, b"x" * 1000, 1000, 10_000)

    with closing(Store(tmp_path / "queue.db")) as store:
        store.run(run)
        kept = [store.run(lambda table: command_log.find(table, key(number))) for number in range(96)]  # noqa: B023
        assert kept[-1] is not None
        assert sum(each is not None for each in kept) <= 10 + 16


ODD_COLUMNS = {
    "name": "CAST(x'FF41' AS TEXT)",
    "id": "'text'",
    "topic": "CAST(x'FF41' AS TEXT)",
    "packet_id": "'x'",
    "qos": "7",
    "payload": "'text'",
    "properties": "5",
    "digest": "5",
    "expires": "'text'",
}


def test_what_no_command_matches_any_more_is_told_and_forgotten(tmp_path: Path) -> None:
    """Damage, or another program, has made something else of a column: all else can be answered still."""
    path = tmp_path / "queue.db"
    count = len(ODD_COLUMNS)
    with closing(Store(path)) as store:
        for number in range(count + 1):
            store.run(lambda table: command_log.begin(table, key(number), ORIGIN))  # noqa: B023 - called at once
    with plain(path) as database:
        for number, (column, value) in enumerate(ODD_COLUMNS.items()):
            database.execute(f"UPDATE glec_command SET {column} = {value} WHERE id = ?", (b"%d" % number,))
    with closing(Store(path)) as store:
        begun, unknown = store.run(command_log.begun)
        assert sorted(unknown.values()) == ["install", "\ufffdA"]
        assert [each.id for each in begun] == [b"%d" % number for number in range(2, count + 1)]
        found = {column: begun[number] for number, column in enumerate(list(ODD_COLUMNS)[2:])}
        assert found["topic"].origin.topic == ""
        assert found["packet_id"].origin.packet_id == 0
        assert found["qos"].origin.qos == 2
        assert found["payload"].origin.payload == b""
        assert found["properties"].origin.properties is None
        assert found["digest"].digest is None
        assert begun[-1].origin == ORIGIN
        store.run(lambda table: command_log.forget(table, unknown))
        assert store.run(command_log.begun)[1] == {}
