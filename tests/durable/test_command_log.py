"""What is kept of commands: what runs is never forgotten, and of those that are answered the latest are known."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from glec_fast.durable import command_log
from glec_fast.durable.command_log import Key, Origin
from glec_fast.durable.store import Store
from support.queue_files import plain

if TYPE_CHECKING:
    from pathlib import Path

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
        assert [each[1] for each in store.run(command_log.begun)[0]] == [b"0"]
        store.run(lambda table: command_log.end(table, key(0), ORIGIN, b"late", 3))
        found = store.run(lambda table: command_log.find(table, key(0)))
        assert found is not None
        assert found.reply == b"late"
        answer(store, *range(11, 21))
        assert store.run(lambda table: command_log.find(table, key(0))) is None


ODD_COLUMNS = {
    "name": "CAST(x'FF41' AS TEXT)",
    "id": "'text'",
    "topic": "CAST(x'FF41' AS TEXT)",
    "packet_id": "'x'",
    "qos": "7",
    "payload": "'text'",
    "properties": "5",
}


def test_what_is_no_command_any_more_is_told(tmp_path: Path) -> None:
    """Damage, or another program, has made something else of a column: numbers are mended, all else is named."""
    path = tmp_path / "queue.db"
    count = len(ODD_COLUMNS)
    with closing(Store(path)) as store:
        for number in range(count + 1):
            store.run(lambda table: command_log.begin(table, key(number), ORIGIN))  # noqa: B023 - called at once
    with plain(path) as database:
        for number, (column, value) in enumerate(ODD_COLUMNS.items()):
            database.execute(f"UPDATE glec_command SET {column} = {value} WHERE id = ?", (b"%d" % number,))
    with closing(Store(path)) as store:
        begun, unreadable = store.run(command_log.begun)
    mended = [list(ODD_COLUMNS).index("packet_id"), list(ODD_COLUMNS).index("qos")]
    assert [each[1] for each in begun] == [b"%d" % number for number in (*mended, count)]
    assert [(origin.packet_id, origin.qos) for _, _, origin in begun] == [(0, 2), (1, 2), (1, 2)]
    assert sorted(unreadable) == sorted(["\ufffdA", *["install"] * (count - 3)])
