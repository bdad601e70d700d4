"""The power is cut at every write, sync, truncate and delete of a life, with all, none or some of what was not synced.

Each state of the disk is opened by the real code, which then goes on against the broker as it was at that moment.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from support.faulty_disk import Create, Delete, Event, FaultyDisk, Note, Sync, Truncate, Write
from support.places import scratch
from support.power_cut import Files, Medium, as_found
from support.power_run import QUEUE, Life, Moment, Settings, beginning, check_resumed, moments, recorded_recovery

# More lives, longer ones and more chances each; see the Makefile's `torture`.
LIVES = int(os.environ.get("POWER_CUT_LIVES", "1"))
ACTIONS = int(os.environ.get("POWER_CUT_ACTIONS", "80"))
# Of the cuts, those whose recovery is cut into as well.
FIRSTS_EVERY = 10
# So that the log is folded into the file within a short life.
CHECKPOINT_PAGES = 30
SOME_KEPT_A_MOMENT = 1

KINDS = {
    "plain": Settings(seed=1),
    "mqtt5": Settings(seed=2, protocol_version=5),
    "overflow": Settings(seed=3, max_queue_size=8),
    "expiry": Settings(seed=4, ttl_ms=20_000),
    "thinned, refused": Settings(
        seed=7, max_queue_size=20, queue_order="alerts_first", overflow="thin", refuses_every=5
    ),
}


if LIVES > 1:
    KINDS |= {
        "alerts first": Settings(seed=8, queue_order="alerts_first"),
        "thinned": Settings(seed=9, max_queue_size=20, queue_order="alerts_first", overflow="thin"),
        "thinned by bytes": Settings(seed=10, max_queue_bytes=60_000, queue_order="alerts_first", overflow="thin"),
        "refused": Settings(seed=11, refuses_every=5, queue_order="alerts_first"),
        "refused, expiry": Settings(seed=12, refuses_every=5, ttl_ms=20_000, protocol_version=5),
    }


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder in memory: what is tested is a simulated disk, and the real one would only take its time."""
    with tempfile.TemporaryDirectory(dir=scratch()) as name:
        yield Path(name)


@pytest.fixture
def early_checkpoints() -> Iterator[None]:
    def on_connection(connection: apsw.Connection) -> None:
        connection.wal_autocheckpoint(CHECKPOINT_PAGES)

    apsw.connection_hooks.append(on_connection)
    yield
    apsw.connection_hooks.remove(on_connection)


def recorded(folder: Path, settings: Settings) -> list[Event]:
    live_in = folder / f"life-{settings.seed}"
    live_in.mkdir()
    with FaultyDisk(live_in) as disk:
        Life(disk, settings).run()
        return disk.log


def images_in_the_log(log: list[Event]) -> int:
    """How often an image was written beside the queue file; what is written as the log is made is zeros."""
    files = {event.file for event in log if isinstance(event, Create) and event.name.endswith("-qos2")}
    return sum(isinstance(event, Write) and event.file in files and any(event.data) for event in log)


def possible_states(medium: Medium, chance: random.Random) -> Iterator[Files]:
    yield medium.none_kept()
    yield medium.all_kept()
    for _ in range(SOME_KEPT_A_MOMENT):
        yield medium.some_kept(chance)


def every_cut(
    log: list[Event], settings: Settings, medium: Medium, start: Moment, folder: Path
) -> Iterator[tuple[Files, Moment]]:
    """Every state that differs in what is found on the disk or what was promised. The moment is good until the next."""
    chance = random.Random(settings.seed)
    found: dict[int, int] = {}
    seen: set[int] = set()
    for moment in moments(log, medium, settings, start):
        for files in possible_states(medium, chance):
            disk = hash(frozenset(files.items()))
            if disk not in found:
                found[disk] = hash(as_found(files, QUEUE, folder / "found"))
            key = hash((found[disk], moment.known()))
            if key not in seen:
                seen.add(key)
                yield files, moment


class Check:
    """Opens and resumes each state in a folder of its own, with what was on the wire lost, and arrived."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self._folder = folder
        self._settings = settings
        self.count = 0

    def __call__(self, files: Files, moment: Moment) -> None:
        for arrives in (False, True) if moment.broker.inbox else (False,):
            self.count += 1
            folder = self._folder / f"cut-{self._settings.seed}-{self.count}"
            check_resumed(files, folder, moment, self._settings, arrives=arrives)
            shutil.rmtree(folder)


@pytest.mark.usefixtures("early_checkpoints")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("life", range(LIVES))
def test_nothing_promised_is_lost_and_nothing_comes_twice(folder: Path, kind: str, life: int) -> None:
    given = KINDS[kind]
    # Those that go on without a fault in between do more at once.
    actions = ACTIONS * 3 // 10 if given.refuses_every else ACTIONS
    settings = Settings(**{**vars(given), "seed": given.seed + 1000 * life, "actions": actions})
    log = recorded(folder, settings)
    kinds = {type(event) for event in log}
    assert kinds >= {Write, Sync, Truncate, Note}
    # On a slow machine most go with a transaction.
    assert images_in_the_log(log) > 0
    check = Check(folder, settings)
    for files, moment in every_cut(log, settings, Medium(), beginning(settings), folder):
        check(files, moment)
    assert check.count > 50


@pytest.mark.usefixtures("early_checkpoints")
@pytest.mark.parametrize("life", range(LIVES))
def test_the_power_is_cut_again_while_the_first_cut_is_recovered_from(folder: Path, life: int) -> None:
    settings = Settings(seed=5 + 1000 * life, actions=80)
    log = recorded(folder, settings)
    check = Check(folder, settings)
    firsts = 0
    for number, (files, moment) in enumerate(every_cut(log, settings, Medium(), beginning(settings), folder)):
        if moment.accepted and number % FIRSTS_EVERY == 0:
            firsts += 1
            recovery, start = recorded_recovery(files, folder / f"recovery-{firsts}", moment, settings)
            for files_again, moment_again in every_cut(recovery, settings, Medium(files), start, folder):
                check(files_again, moment_again)
    assert firsts >= 5
    assert check.count > 10 * firsts


def test_the_log_tells_all_that_is_in_the_folder(folder: Path) -> None:
    """Else a cut would be simulated on a disk that never was."""
    log = recorded(folder, Settings(seed=6))
    medium = Medium()
    for event in log:
        medium.on_event(event)
    there = {
        path.name: path.read_bytes()
        for path in (folder / "life-6").iterdir()
        if not path.name.endswith(("-lock", "-shm"))
    }
    assert medium.all_kept() == there


def test_a_medium_loses_what_was_not_synchronised_and_only_that(folder: Path) -> None:
    medium = Medium({"a": b"old"})
    for event in (
        Create("b", 1), Write(1, 0, b"x" * 1024), Sync(1, True), Write(1, 512, b"y" * 512), Write(-1, 0, b"new"),
        Create("c", 2), Write(2, 0, b"z"), Sync(2, False), Truncate(1, 700), Delete("a"),
    ):  # fmt: skip
        medium.on_event(event)
    assert medium.none_kept() == {"a": b"old", "b": b"x" * 1024}
    assert medium.all_kept() == {"b": b"x" * 512 + b"y" * 188, "c": b"z"}
    chance = random.Random(1)
    some = [medium.some_kept(chance) for _ in range(300)]
    assert {files["b"][:512] for files in some} == {b"x" * 512}
    assert {len(files["b"]) for files in some} == {700, 1024}
    assert {"a" in files for files in some} == {True, False}
    assert all("c" in files for files in some if "a" not in files), "names change in order"
