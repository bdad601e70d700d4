"""Who has a queue file: one process and one object at a time, by whatever name; and its lock ends with it."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
import textwrap
from contextlib import closing, contextmanager
from functools import partial
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import apsw
import pytest

import glec_fast.durable.lock
from glec_fast.durable.file import QueueFile, discard
from glec_fast.durable.lock import QueueLock
from glec_fast.errors import QueueError, QueueLockedError, QueueStorageError
from glec_fast.fleet.offline_queue import OfflineQueueManager
from support.forked import Forked
from support.queue_files import WAIT_S
from support.store import wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "queue.db"


@contextmanager
def held_by_another_process(path: Path) -> Iterator[None]:
    """Another process has the queue open, with a message in it."""
    program = f"""
        import sys
        from glec_fast.fleet.offline_queue import OfflineQueueManager
        with OfflineQueueManager({str(path)!r}) as queue:
            queue.enqueue("t", "payload 5 x", 1)
            print("open", flush=True)
            sys.stdin.readline()
    """
    with running(program):
        yield


@contextmanager
def running(program: str) -> Iterator[None]:
    """A process that says "open", and ends when it is told to."""
    words = ["-c", textwrap.dedent(program)]
    with Forked(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.readline() == "open\n"
        yield
        child.stdin.write("\n")
        child.stdin.flush()
        assert child.wait(WAIT_S) == 0


@contextmanager
def another_program(path: Path, statement: str) -> Iterator[None]:
    """A process that is no client of ours has the file open."""
    program = f"""
        import sqlite3, sys
        database = sqlite3.connect({str(path)!r}, isolation_level=None)
        {statement}
        print("open", flush=True)
        sys.stdin.readline()
    """
    with running(program):
        yield


def is_in_use(path: Path) -> bool:
    """True where an opening is refused as somebody else has the file, and may be tried again."""
    try:
        OfflineQueueManager(path).release()
    except QueueLockedError as refused:
        return "in use" in str(refused) and refused.retryable
    return False


def test_a_second_process_is_refused(path: Path) -> None:
    with held_by_another_process(path):
        assert is_in_use(path)
    with OfflineQueueManager(path) as queue:
        assert [message.payload for message in queue.dequeue_all()] == ["payload 5 x"]


def test_a_second_process_is_refused_through_a_hard_link(path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "b"
    folder.mkdir()
    with held_by_another_process(path):
        os.link(path, folder / "queue.db")
        assert is_in_use(folder / "queue.db")


def test_a_second_process_is_refused_where_the_companion_was_deleted(path: Path) -> None:
    with held_by_another_process(path):
        path.with_name("queue.db-lock").unlink()
        assert is_in_use(path)


def test_a_second_process_is_refused_where_the_file_was_deleted(path: Path) -> None:
    with held_by_another_process(path):
        path.unlink()
        assert is_in_use(path)
        assert not path.exists()


@pytest.mark.parametrize("through", ["folder", "file"])
def test_a_second_process_is_refused_through_a_symbolic_link(path: Path, tmp_path: Path, through: str) -> None:
    link = tmp_path / "link"
    with held_by_another_process(path):
        link.symlink_to(path if through == "file" else path.parent)
        assert is_in_use(link if through == "file" else link / "queue.db")


def test_a_second_process_is_refused_where_the_folder_was_renamed(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    with held_by_another_process(folder / "queue.db"):
        folder.rename(tmp_path / "b")
        assert is_in_use(tmp_path / "b" / "queue.db")


def test_the_lock_is_of_the_file_that_a_salvage_put_in_place(path: Path) -> None:
    OfflineQueueManager(path).release()
    path.with_name("queue.db-salvage").touch()
    with held_by_another_process(path):
        assert path.with_name("queue.db.damaged-1").exists()
        path.with_name("queue.db-lock").unlink()
        assert is_in_use(path)


def test_a_version_that_locks_the_companion_alone_shares_no_file(path: Path) -> None:
    companion = path.with_name("queue.db-lock")
    with held_by_another_process(path), companion.open("r+b") as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with companion.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert is_in_use(path)


def test_a_second_opener_in_the_same_process_is_refused(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.db"
    with OfflineQueueManager(path) as queue:
        assert is_in_use(path)
        path.with_name("queue.db-lock").unlink()
        assert is_in_use(path)
        os.link(path, other)
        assert is_in_use(other)
        assert queue.enqueue("t", "x", 1) == 1


def test_a_refused_opener_takes_no_lock_of_sqlites_away(path: Path) -> None:
    """Else a program that closes the file would take itself for the last one, and delete the log under the other."""
    with OfflineQueueManager(path) as queue:
        assert is_in_use(path)
        path.with_name("queue.db-lock").unlink()
        assert is_in_use(path)
        shell = (
            f"import sqlite3; sqlite3.connect({str(path)!r}).execute('SELECT count(*) FROM mqtt_offline_queue').close()"
        )
        subprocess.run([sys.executable, "-c", shell], check=True, timeout=WAIT_S)
        assert path.with_name("queue.db-wal").exists()
        assert queue.enqueue("t", "x", 1) == 1


def test_a_transaction_of_another_program_is_named_and_a_retry_helps(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("glec_fast.durable.database.BUSY_TIMEOUT_MS", 20)
    OfflineQueueManager(path).release()
    with another_program(path, "database.execute('BEGIN IMMEDIATE')"):
        with pytest.raises(QueueStorageError, match="another program's transaction") as caught:
            OfflineQueueManager(path)
        assert caught.value.retryable
    with OfflineQueueManager(path) as queue:
        assert queue.enqueue("t", "x", 1) == 1
        with another_program(path, "database.execute('BEGIN IMMEDIATE')"):
            with pytest.raises(QueueStorageError, match="another program's transaction") as caught:
                queue.enqueue("t", "x", 1)
            assert caught.value.retryable
        assert wait_for(lambda: is_accepted(queue))


def is_accepted(queue: OfflineQueueManager) -> bool:
    try:
        return queue.enqueue("t", "x", 1) > 1
    except QueueStorageError:
        return False


def test_others_read_beside_it(path: Path) -> None:
    with (
        held_by_another_process(path),
        closing(apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)) as database,
    ):
        assert database.execute("SELECT payload FROM mqtt_offline_queue").get == "payload 5 x"


def test_a_refused_opener_leaves_the_queue_usable(path: Path) -> None:
    for _ in range(3):
        with OfflineQueueManager(path) as queue:
            queue.enqueue("t", "x", 1)
    with OfflineQueueManager(path) as queue:
        assert queue.get_queue_size() == 3


def test_a_forked_child_does_not_keep_the_lock(path: Path) -> None:
    """It may outlive the process that has the queue."""
    end_of_child, end = os.pipe()
    begun, begin = os.pipe()
    queue = OfflineQueueManager(path)
    child = os.fork()
    if child == 0:
        os.close(end)
        os.write(begin, b".")
        os.read(end_of_child, 1)
        os._exit(0)
    try:
        assert os.read(begun, 1)
        queue.release()
        OfflineQueueManager(path).release()
    finally:
        for descriptor in (end, end_of_child, begun, begin):
            os.close(descriptor)
        os.waitpid(child, 0)


def test_what_is_no_file_is_refused(path: Path) -> None:
    for make in (path.mkdir, lambda: os.mkfifo(path)):
        make()
        with pytest.raises(QueueStorageError, match="is a "):
            OfflineQueueManager(path)
        path.rmdir() if path.is_dir() else path.unlink()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        with pytest.raises(QueueStorageError, match="is a socket"):
            OfflineQueueManager(path)
    path.unlink()
    path.symlink_to("/dev/null")
    with pytest.raises(QueueStorageError, match="is a device"):
        OfflineQueueManager(path)


def make_folder(path: Path) -> None:
    path.mkdir()
    (path / "something").touch()


@pytest.mark.parametrize("make", [make_folder, os.mkfifo, lambda path: path.symlink_to("nowhere/at/all")])
def test_what_has_the_name_of_a_companion_and_is_no_file_is_put_aside(path: Path, make: object) -> None:
    assert callable(make)
    with OfflineQueueManager(path) as queue:
        queue.enqueue("t", "x", 1)
    for suffix in ("-lock", "-wal", "-shm", "-journal", "-qos2", "-salvage", "-new", "-new-wal", "-copy"):
        companion = path.with_name(path.name + suffix)
        companion.unlink(missing_ok=True)
        make(companion)
        with OfflineQueueManager(path) as queue:
            assert queue.get_queue_size() == 1
        assert suffix == "-lock" or os.path.lexists(path.with_name(companion.name + ".not-a-file-1"))
        refused_not_held(path)


def refused_not_held(path: Path) -> None:
    """No failed opening has left a lock."""
    QueueFile(path).close()


def test_a_file_that_takes_the_name_while_it_is_opened_is_refused(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    for each in (path, other):
        each.touch()

    def opening(name: Path, *arguments: Any, **options: Any) -> FileIO:
        if name == path:
            other.rename(path)
        return FileIO(name, *arguments, **options)

    monkeypatch.setattr(glec_fast.durable.lock, "FileIO", opening)
    with pytest.raises(QueueLockedError):
        QueueLock(path)


def test_the_lock_ends_with_every_failed_opening(path: Path) -> None:
    path.write_text("speed,rpm\n60,1800\n")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        with pytest.raises(QueueError, match="not a queue file"):
            OfflineQueueManager(path)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_damaged_file_is_salvaged_in_use_without_letting_go_of_it(path: Path) -> None:
    with OfflineQueueManager(path) as queue:
        queue.enqueue_many([("t", f"payload {n}", 1) for n in range(500)])
    file = QueueFile(path)
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    with path.open("r+b") as damaged:
        damaged.seek(20 * 1024)
        damaged.write(b"\xa5" * 1024)
    for number in (1, 2):
        before = file.connection
        file.salvage_in_use(apsw.CorruptError("a page"))
        discard(before)
        assert file.salvage is not None
        assert file.salvage.kept_as == path.with_name(f"queue.db.damaged-{number}")
        assert file.is_in_place()
        assert is_in_use(path)
        assert file.connection.execute("SELECT count(*) FROM mqtt_offline_queue").get == file.salvage.rows_carried
        assert path.with_name("queue.db-wal").exists()
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors
    path.unlink()
    assert not file.is_in_place()
    file.close()
    QueueFile(path).close()


class Cut(BaseException):
    """As KeyboardInterrupt."""


def cut_into(number: int, call: Callable[[], object]) -> bool:
    """Raise at the `number`-th step between two byte codes of the lock's module; False where it ended before."""
    steps = 0

    def trace(frame: FrameType, event: str, _argument: object) -> Any:
        nonlocal steps
        if frame.f_code.co_filename != glec_fast.durable.lock.__file__:
            return None
        frame.f_trace_opcodes = True
        steps += event == "opcode"
        if steps == number:
            sys.settrace(None)
            raise Cut
        return trace

    sys.settrace(trace)
    try:
        call()
    except Cut:
        return True
    finally:
        sys.settrace(None)
    return False


# What closes an open file then says so.
@pytest.mark.usefixtures("own_garbage")
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_lock_ends_with_an_opening_that_is_cut_into_at_any_step(path: Path) -> None:
    number = 1
    while cut_into(number, lambda: QueueLock(path).release()):
        QueueLock(path).release()
        number += 1
    assert number > 50


@pytest.mark.usefixtures("own_garbage")
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_replacement_can_be_followed_again_where_that_was_cut_into_at_any_step(path: Path, tmp_path: Path) -> None:
    replacement = tmp_path / "queue.db-new"
    number = 1
    is_cut = True
    while is_cut:
        replacement.touch()
        lock = QueueLock(path)
        is_cut = cut_into(number, partial(lock.follow, replacement))
        if lock.inode != inode_of(replacement):
            lock.follow(replacement)
        with pytest.raises(QueueLockedError):
            QueueLock(path)
        lock.release()
        for each in (path, replacement):
            QueueLock(each).release()
        number += 1
    assert number > 30


def test_a_file_that_another_program_makes_meanwhile_is_taken(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def exists(looked_at: Path) -> bool:
        looked_at.touch()
        return False

    monkeypatch.setattr(Path, "exists", exists)
    lock = QueueLock(path)
    try:
        assert lock.inode == inode_of(path)
    finally:
        lock.release()


def inode_of(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino
