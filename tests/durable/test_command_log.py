"""What is kept of commands: what runs is never forgotten, and of those that are answered the latest are known."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from glec_fast.durable import command_log
from glec_fast.durable.command_log import Key, Origin
from glec_fast.durable.store import Store

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
        assert [each[1] for each in store.run(command_log.begun)] == [b"0"]
        store.run(lambda table: command_log.end(table, key(0), ORIGIN, b"late", 3))
        found = store.run(lambda table: command_log.find(table, key(0)))
        assert found is not None
        assert found.reply == b"late"
        answer(store, *range(11, 21))
        assert store.run(lambda table: command_log.find(table, key(0))) is None
