"""Which in-flight image counts after a crash: that of the queue file's row, or one of the log beside it."""

from __future__ import annotations

import logging
import math
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from glec_fast import inflight_log
from glec_fast.errors import QueueStorageError
from glec_fast.inflight_log import log_of
from glec_fast.store import Store
from support.store import RecordingOutbox, image_on_disk, raising

LOG_BYTES = 32 * 1024
SLOT_BYTES = 16 * 1024


@pytest.fixture(autouse=True)
def _any_disk_is_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glec_fast.committer._QUICK_COMMIT_S", math.inf)


class Crashes:
    """What a process that is killed leaves behind, opened by the next."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._open: list[Store] = []

    def copy(self) -> Path:
        """The files as they are now."""
        folder = self._path.parent / f"crash-{len(self._open)}"
        folder.mkdir()
        for file in self._path.parent.glob(self._path.name + "*"):
            if not file.name.endswith(("-lock", "-shm")):
                shutil.copy(file, folder)
        return folder / self._path.name

    def image(self, path: Path | None = None) -> bytes:
        """The image that the next process begins with."""
        store = Store(self.copy() if path is None else path)
        self._open.append(store)
        return store.load_session()

    def close(self) -> None:
        for store in self._open:
            store.close()


@pytest.fixture
def crashes(path: Path) -> Iterator[Crashes]:
    made = Crashes(path)
    yield made
    made.close()


def save(outbox: RecordingOutbox, *images: bytes) -> None:
    """By themselves, as the network thread does."""
    for image in images:
        outbox.in_flight = image
        assert outbox.store.commit_image() is not None


def begun(outbox: RecordingOutbox) -> None:
    """With an image in the row."""
    outbox.in_flight = b"first"
    outbox.store.run(lambda _table: None)


def test_the_latest_image_alone_is_in_the_log(outbox: RecordingOutbox, path: Path, crashes: Crashes) -> None:
    begun(outbox)
    pages = path.with_name("queue.db-wal").read_bytes()
    for number in range(5):
        save(outbox, b"image %d" % number)
        assert crashes.image() == b"image %d" % number
    assert path.with_name("queue.db-wal").read_bytes() == pages


def test_a_transaction_after_it_counts_also_with_an_older_image(
    outbox: RecordingOutbox, store: Store, crashes: Crashes
) -> None:
    begun(outbox)
    save(outbox, b"second")
    outbox.in_flight = b"first"
    store.run(lambda _table: None)
    assert crashes.image() == b"first"


def test_an_image_that_is_on_disk_is_not_written_again(outbox: RecordingOutbox, store: Store, path: Path) -> None:
    begun(outbox)
    pages = path.with_name("queue.db-wal").read_bytes()
    store.run(lambda _table: None)
    assert path.with_name("queue.db-wal").read_bytes() == pages


@pytest.mark.parametrize("kept_bytes", [0, 10, 30])
def test_a_torn_write_leaves_the_image_before_it(
    outbox: RecordingOutbox, path: Path, crashes: Crashes, kept_bytes: int
) -> None:
    begun(outbox)
    save(outbox, b"second", b"third", b"fourth" * 10)
    copy = crashes.copy()
    log = bytearray(log_of(copy).read_bytes())
    slot = log.index(b"fourth") // SLOT_BYTES * SLOT_BYTES
    torn_bytes = SLOT_BYTES - kept_bytes
    log[slot + kept_bytes : slot + SLOT_BYTES] = b"\xff" * torn_bytes
    log_of(copy).write_bytes(log)
    assert crashes.image(copy) == b"third"


def test_a_log_that_ends_early_has_what_it_has(outbox: RecordingOutbox, path: Path, crashes: Crashes) -> None:
    begun(outbox)
    save(outbox, b"second", b"third")
    for size in (LOG_BYTES, SLOT_BYTES + 20, SLOT_BYTES, 20, 0):
        copy = crashes.copy()
        with log_of(copy).open("rb+") as log:
            log.truncate(size)
        expected = {LOG_BYTES: b"third", SLOT_BYTES + 20: b"second", SLOT_BYTES: b"second"}
        assert crashes.image(copy) == expected.get(size, b"first")


def test_the_log_of_another_file_or_opening_is_not_looked_at(
    make_store: Callable[..., Store], path: Path, crashes: Crashes
) -> None:
    store = make_store()
    outbox = RecordingOutbox(store)
    begun(outbox)
    save(outbox, *(b"old %d" % number for number in range(10)))
    old = log_of(path).read_bytes()
    store.close()
    store = make_store()
    outbox = RecordingOutbox(store)
    begun(outbox)
    log_of(path).write_bytes(old)
    assert crashes.image() == b"first"
    without = crashes.copy()
    without.unlink()
    without.with_name("queue.db-wal").unlink()
    assert log_of(without).exists()
    assert crashes.image(without) == b""


def test_it_counts_until_the_next_process_has_an_image_of_its_own(outbox: RecordingOutbox, crashes: Crashes) -> None:
    begun(outbox)
    save(outbox, b"second", b"third")
    copy = crashes.copy()
    for _ in range(2):
        with_log = Store(copy)
        assert with_log.load_session() == b"third"
        crashes._open.append(with_log)
        crashes._path = copy
        copy = crashes.copy()


def test_a_closed_queue_is_one_file_again(outbox: RecordingOutbox, store: Store, path: Path, crashes: Crashes) -> None:
    begun(outbox)
    save(outbox, b"second")
    assert log_of(path).stat().st_size == LOG_BYTES
    assert log_of(path).stat().st_mode & 0o777 == 0o600
    assert store.disk_bytes() > LOG_BYTES
    store.close()
    assert not log_of(path).exists()
    assert image_on_disk(path) == b"second"


def test_an_image_that_is_too_large_goes_to_the_row(outbox: RecordingOutbox, path: Path, crashes: Crashes) -> None:
    begun(outbox)
    largest = inflight_log._IMAGE_BYTES_MAX
    log = log_of(path).read_bytes()
    save(outbox, b"x" * (largest + 1))
    assert log_of(path).read_bytes() == log
    assert crashes.image() == b"x" * (largest + 1)
    save(outbox, b"y" * largest)
    assert log_of(path).read_bytes() != log
    assert crashes.image() == b"y" * largest


@pytest.mark.parametrize("operation", ["pwrite", "fdatasync"])
def test_where_the_log_fails_the_row_is_written(
    outbox: RecordingOutbox,
    crashes: Crashes,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    operation: str,
) -> None:
    begun(outbox)
    save(outbox, b"second")
    with monkeypatch.context() as failing:
        failing.setattr(os, operation, raising(OSError(5, "Input/output error")))
        outbox.in_flight, outbox.version = b"third", 7
        with caplog.at_level(logging.WARNING):
            assert outbox.store.commit_image() is None
        outbox.wait(lambda heard: (7, 0) in heard.commits)
    assert "more slowly" in caplog.text
    assert crashes.image() == b"third"
    save(outbox, b"fourth")
    assert crashes.image() == b"fourth"


def test_a_part_that_was_written_counts_as_nothing(
    outbox: RecordingOutbox, crashes: Crashes, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun(outbox)
    save(outbox, b"second")
    write = os.pwrite
    with monkeypatch.context() as failing:
        failing.setattr(os, "pwrite", lambda descriptor, data, offset: write(descriptor, data[:-1], offset))
        outbox.in_flight, outbox.version = b"third", 7
        assert outbox.store.commit_image() is None
        outbox.wait(lambda heard: (7, 0) in heard.commits)
    assert crashes.image() == b"third"


def test_where_there_can_be_no_log_the_row_is_written(
    make_store: Callable[..., Store], path: Path, crashes: Crashes, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        store = make_store()
        log_of(path).symlink_to(path.parent / "no such folder" / "file")
        outbox = RecordingOutbox(store)
    assert "cannot be made" in caplog.text
    begun(outbox)
    save(outbox, b"second")
    log_of(path).unlink()
    assert crashes.image() == b"second"


def test_a_log_that_cannot_be_read_is_no_empty_log(make_store: Callable[..., Store], path: Path) -> None:
    store = make_store()
    begun(RecordingOutbox(store))
    store.close()
    log_of(path).mkdir()
    store = make_store()
    with pytest.raises(QueueStorageError, match="cannot be read"):
        store.load_session()
    log_of(path).rmdir()
    assert store.load_session() == b"first"


def test_a_file_of_the_format_before_is_read(make_store: Callable[..., Store]) -> None:
    store = make_store()
    store.run(lambda table: table.save_session("client", "host:1883", b"\x01image"))
    assert store.load_session() == b"\x01image"


def test_a_write_costs_one_page_each(outbox: RecordingOutbox, path: Path) -> None:
    """The page cache must not have them in larger pieces, also not where a log was there and was read."""
    begun(outbox)
    save(outbox, *(b"image %d" % number for number in range(64)))

    def written() -> int:
        lines: Any = dict(line.split(": ") for line in Path("/proc/self/io").read_text("ascii").splitlines())
        return int(lines["write_bytes"])

    before = written()
    save(outbox, *(b"image %d" % number for number in range(64)))
    per_image = (written() - before) / 64
    if per_image == 0:
        pytest.skip("the folder is in memory: nothing is written")
    assert per_image <= 2 * 4096
