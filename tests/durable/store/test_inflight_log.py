"""Which in-flight image counts after a crash: that of the queue file's row, or one of the log beside it."""

from __future__ import annotations

import errno
import logging
import math
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import apsw
import pytest

from glec_fast.durable._image_log import IMAGE_BYTES_MAX
from glec_fast.durable.inflight_log import UnreadableImageError, from_row, log_of
from glec_fast.durable.state_rows import load_session, save_session
from glec_fast.durable.store import Store
from glec_fast.errors import QueueStorageError
from glec_fast.fleet.offline_queue import OfflineQueueManager
from support.gateway import eventually
from support.store import RecordingOutbox, image_on_disk, raising

LOG_BYTES = 32 * 1024
SLOT_BYTES = 16 * 1024


@pytest.fixture(autouse=True)
def _any_disk_is_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glec_fast.durable.outgoing._QUICK_COMMIT_S", math.inf)


class Crashes:
    """What a process that is killed leaves behind, opened by the next."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.opened: list[Store] = []

    def copy(self) -> Path:
        """The files as they are now."""
        folder = self.path.parent / f"crash-{len(self.opened)}"
        folder.mkdir()
        for file in self.path.parent.glob(self.path.name + "*"):
            if not file.name.endswith(("-lock", "-shm")):
                shutil.copy(file, folder)
        return folder / self.path.name

    def image(self, path: Path | None = None) -> bytes:
        """The image that the next process begins with."""
        store = Store(self.copy() if path is None else path)
        self.opened.append(store)
        return store.load_session()

    def close(self) -> None:
        for store in self.opened:
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


@pytest.mark.parametrize("opened_as", [OfflineQueueManager, Store])
def test_who_opens_the_file_of_a_killed_process_writes_it_to_the_row(
    outbox: RecordingOutbox, crashes: Crashes, opened_as: type[OfflineQueueManager | Store]
) -> None:
    begun(outbox)
    save(outbox, b"second", b"third")
    copy = crashes.copy()
    opened = opened_as(copy)
    if isinstance(opened, Store):
        assert opened.load_session() == b"third"
        opened.close()
    else:
        opened.release()
    assert not log_of(copy).exists()
    assert crashes.image(copy) == b"third"


def test_it_stays_where_nobody_asked_for_the_image(outbox: RecordingOutbox, crashes: Crashes) -> None:
    begun(outbox)
    save(outbox, b"second")
    copy = crashes.copy()
    Store(copy).close()
    assert crashes.image(copy) == b"second"


def test_a_process_that_changes_nothing_is_killed_too(outbox: RecordingOutbox, path: Path, crashes: Crashes) -> None:
    begun(outbox)
    save(outbox, b"second")
    for _ in range(3):
        copy = crashes.copy()
        assert crashes.image(copy) == b"second"
        crashes.path = copy


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
    largest = IMAGE_BYTES_MAX
    log = log_of(path).read_bytes()
    save(outbox, b"x" * (largest + 1))
    assert log_of(path).read_bytes() == log
    assert crashes.image() == b"x" * (largest + 1)
    save(outbox, b"y" * largest)
    assert log_of(path).read_bytes() != log
    assert crashes.image() == b"y" * largest


@pytest.mark.parametrize("is_moved", [False, True])
def test_the_first_image_behind_the_loss_of_the_log_counts(
    outbox: RecordingOutbox, path: Path, crashes: Crashes, is_moved: bool
) -> None:
    begun(outbox)
    save(outbox, b"second")
    if is_moved:
        log_of(path).rename(path.parent / "elsewhere")
    else:
        log_of(path).unlink()
    save(outbox, b"third")
    assert crashes.image() == b"third"
    save(outbox, b"fourth")
    assert crashes.image() == b"fourth"


@pytest.mark.parametrize("operation", ["pwrite", "fdatasync"])
def test_where_the_log_fails_the_row_is_written(
    outbox: RecordingOutbox,
    path: Path,
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
            assert eventually(lambda: "more slowly" in caplog.text)
        outbox.wait(lambda heard: (7, 0) in heard.commits)
    assert crashes.image() == b"third"
    log = log_of(path).read_bytes()
    save(outbox, b"fourth")
    assert log_of(path).read_bytes() == log, "nobody knows what the disk has of it"
    assert crashes.image() == b"fourth"
    outbox.store.close()
    assert not log_of(path).exists()


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
    assert crashes.image() == b"second"


@pytest.mark.parametrize("operation", ["pwrite", "fsync"])
def test_a_log_that_was_made_in_part_takes_no_room(
    make_store: Callable[..., Store], path: Path, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    store = make_store()
    assert store.load_session() == b""
    monkeypatch.setattr(os, operation, raising(OSError(28, "No space left on device")))
    store.run(lambda _table: store._writer.image.open_log())
    assert not log_of(path).exists()


def test_a_log_that_cannot_be_read_is_no_empty_log(
    make_store: Callable[..., Store], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store()
    begun(RecordingOutbox(store))
    store.close()
    store = make_store()
    with monkeypatch.context() as patched:
        patched.setattr("glec_fast.durable.inflight_log.os.open", raising(OSError(errno.EIO, "Input/output error")))
        with pytest.raises(UnreadableImageError, match="Input/output error"):
            store.load_session()
    assert store.load_session() == b"first"


def test_what_stands_in_the_place_of_the_log_is_put_aside(make_store: Callable[..., Store], path: Path) -> None:
    store = make_store()
    begun(RecordingOutbox(store))
    store.close()
    log_of(path).mkdir()
    store = make_store()
    assert store.load_session() == b"first"
    assert path.with_name("queue.db-qos2.not-a-file-1").is_dir()


def test_a_row_with_a_flipped_bit_is_no_image(make_store: Callable[..., Store], path: Path) -> None:
    store = make_store()
    begun(RecordingOutbox(store))
    *_names, stored = store.run(load_session)  # type: ignore[misc]
    assert from_row(stored).image == b"first"
    unnoticed = []
    for bit in range(len(stored) * 8):
        damaged = bytearray(stored)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            image = from_row(bytes(damaged)).image
        except UnreadableImageError:
            continue
        if image == b"first":
            unnoticed.append(bit)
        else:
            # Its first byte is of no format; or its end is of no checksum, and an entry that stands for nothing.
            assert image[:1] != b"f" or image.startswith(b"first")
    assert unnoticed == []
    store.close()


def test_a_file_of_the_format_before_is_read(make_store: Callable[..., Store], path: Path) -> None:
    store = make_store()
    store.run(lambda table: save_session(table, "client", "host:1883", b"\x01image"))
    # It had no log, so that there is none to be read.
    log_of(path).mkdir()
    assert store.load_session() == b"\x01image"


def test_an_image_whose_transaction_failed_is_written_when_it_comes_again(
    outbox: RecordingOutbox, store: Store, crashes: Crashes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("glec_fast.durable.schedule._STORAGE_RETRY_S", 3600)
    begun(outbox)
    outbox.in_flight = b"second"
    with pytest.raises(QueueStorageError):
        store.run(raising(apsw.FullError("database or disk is full")))
    for image in (b"first", b"second"):
        outbox.in_flight = image
        store.run(lambda _table: None)
        assert crashes.image() == image


def test_it_stays_where_the_last_transaction_fails(
    outbox: RecordingOutbox, store: Store, path: Path, crashes: Crashes, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun(outbox)
    save(outbox, b"second")
    with monkeypatch.context() as failing:
        failing.setattr(store._writer, "transact", raising(apsw.IOError("disk I/O error")))
        store.close()
    assert crashes.image(path) == b"second"


def test_no_image_is_taken_behind_the_last_transaction(outbox: RecordingOutbox, store: Store, path: Path) -> None:
    begun(outbox)
    transact = store._writer.transact

    def transact_and_save(*arguments: Any) -> None:
        transact(*arguments)
        outbox.in_flight = b"too late"
        assert store._outgoing.save_image() is None

    store._writer.transact = transact_and_save  # type: ignore[method-assign]
    store.close()
    assert image_on_disk(path) == b"first"


@pytest.mark.parametrize("failing", ["close", "unlink"])
def test_a_log_that_cannot_be_let_go_of_keeps_nobody_from_the_queue(
    outbox: RecordingOutbox, store: Store, path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    begun(outbox)
    save(outbox, b"second")
    descriptor = store._writer.image._log.descriptor
    real: Callable[..., None] = getattr(os, failing)

    def fail(target: Any, *arguments: Any, **named: Any) -> None:
        if failing == "unlink" or target == descriptor:
            raise OSError(5, "Input/output error")
        real(target, *arguments, **named)

    with monkeypatch.context() as patched:
        patched.setattr(os, failing, fail)
        store.close()
    if failing == "close":
        os.close(descriptor)
    with closing(Store(path)) as again:
        assert again.load_session() == b"second"


def test_no_descriptor_is_left_open(make_store: Callable[..., Store], monkeypatch: pytest.MonkeyPatch) -> None:
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = descriptors()
    for failing in (None, "fdatasync", "pwrite", "fsync"):
        store = make_store()
        with monkeypatch.context() as patched:
            if failing == "fsync":
                patched.setattr(os, failing, raising(OSError(5, "Input/output error")))
            outbox = RecordingOutbox(store)
            begun(outbox)
            if failing not in (None, "fsync"):
                patched.setattr(os, failing, raising(OSError(5, "Input/output error")))
                assert store.commit_image() is None
            else:
                save(outbox, b"second")
        store.close()
        assert descriptors() == before


def written_bytes() -> int:
    lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text("ascii").splitlines())
    return int(lines["write_bytes"])


@pytest.mark.parametrize("is_cold", [False, True], ids=["made", "read from the disk"])
def test_a_write_costs_one_page_each(outbox: RecordingOutbox, crashes: Crashes, is_cold: bool) -> None:
    """The page cache must not have them in larger pieces."""
    begun(outbox)
    save(outbox, *(b"image %d" % number for number in range(4)))
    store = outbox.store
    if is_cold:
        copy = crashes.copy()
        descriptor = os.open(log_of(copy), os.O_RDWR)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
        store = Store(copy)
        crashes.opened.append(store)
        outbox = RecordingOutbox(store)
    before = written_bytes()
    save(outbox, *(b"image %d" % number for number in range(64)))
    per_image = (written_bytes() - before) / 64
    if per_image == 0:
        pytest.skip("the folder is in memory: nothing is written")
    assert per_image <= 2 * 4096
