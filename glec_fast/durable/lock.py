"""Who has a queue file: one holder at a time, whatever name the file is reached by.

The lock is on the file itself, so that no hard link, other mount or deleted companion leads around it. It is one of an
open file description, on a byte that SQLite never locks: SQLite's own locks do not collide with it, also over NFS,
where `flock` would be the same as those. Closing any descriptor of the file drops SQLite's locks in this process,
so the descriptor is opened before SQLite opens the file, closed after, and no second one is ever opened: what this
process holds is known by inode.

The companion `queue.db-lock` is what versions before this one lock.
"""

from __future__ import annotations

import fcntl
import os
import stat
import struct
import weakref
from contextlib import suppress
from functools import partial
from io import FileIO
from pathlib import Path
from typing import NamedTuple

from glec_fast.errors import QueueLockedError, QueueStorageError
from glec_fast.runtime._lock import Lock
from glec_fast.runtime.log import logger

# struct flock: type, whence, start, length, pid. SQLite locks bytes from 2**30 on.
_FIRST_BYTE = struct.pack("@hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0)

_COPIED_BYTES = 1 << 20
# In C, as an exception may come between steps of Python.
_open_for_owner = partial(os.open, mode=0o600)

_guard = Lock("QueueLock")
_locks: weakref.WeakSet[QueueLock] = weakref.WeakSet()


class _Held(NamedTuple):
    """An open file, which closes itself where an exception parts it from its owner; and its (device, inode)."""

    file: FileIO
    inode: tuple[int, int]


class QueueLock:
    """Holds the queue file `path` until `release`. Not thread-safe.

    create: make the file where it is missing, for its owner only.
    Raises QueueLockedError where another process or object has it, QueueStorageError where `path` is no regular file,
    OSError.
    """

    def __init__(self, path: Path, *, create: bool = True) -> None:
        self._path = path
        self._held: _Held | None = None
        self._companion: FileIO | None = None
        try:
            self._companion = self._hold_companion(create)
            if create:
                create_file(path)
            with _guard:
                _locks.add(self)
                self._held = held = self._hold(path)
            names = os.fstat(held.file.fileno()).st_nlink
        except BaseException:
            self.release()
            raise
        if names > 1:
            logger.warning(
                "the queue file %s has %d names (hard links): SQLite keeps its log by name; always use the same one",
                path,
                names,
            )

    @property
    def inode(self) -> tuple[int, int]:
        """(device, inode) of what it holds."""
        return (0, 0) if self._held is None else self._held.inode

    def follow(self, replacement: Path) -> None:
        """Hold `replacement`, which is about to be renamed to `path`, instead of the file.

        SQLite has not opened it yet, and reads no more of the other than what nobody else can change.
        """
        if not self._companion_of(self._path).exists():
            _close(self._companion)
            self._companion = self._hold_companion(create=True)
        with _guard:
            before, self._held = self._held, self._hold(replacement)
            _close(before and before.file)

    def release(self) -> None:
        """Let others have the file. SQLite must have closed it. Idempotent."""
        with _guard:
            held, self._held = self._held, None
            _close(held and held.file)
        companion, self._companion = self._companion, None
        _close(companion)

    def copy_to(self, path: Path) -> None:
        """Copy what the held file has, also where it has no name any more. Raises OSError."""
        assert self._held is not None
        create_file(path)
        # Not by a descriptor of its own, see the module's text; nor by the offset of this one.
        with path.open("wb") as target:
            while data := os.pread(self._held.file.fileno(), _COPIED_BYTES, target.tell()):
                target.write(data)

    @staticmethod
    def _companion_of(path: Path) -> Path:
        return path.with_name(path.name + "-lock")

    def _hold_companion(self, create: bool) -> FileIO | None:
        companion = self._companion_of(self._path)
        try:
            file = FileIO(companion, "a+" if create else "r+", opener=_open_for_owner)
        except OSError as error:
            # It keeps nobody out but older versions.
            if companion.exists():
                logger.warning("%s cannot be used (%s): older versions are not kept out of the queue", companion, error)
            return None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            raise self._refusal() from error
        except BaseException:
            file.close()
            raise
        return file

    def _hold(self, path: Path) -> _Held:
        """The caller has the guard."""
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise QueueStorageError(
                f"the queue file {path} is {_kind_of(found.st_mode)}: remove it, or give queue_path another name"
            )
        inode = identity_of(found)
        if any(each.inode == inode for each in _locks):
            raise self._refusal()
        file = FileIO(path, "r+")
        try:
            if identity_of(os.fstat(file.fileno())) != inode:
                # Whoever put another file there has it.
                raise self._refusal()
            fcntl.fcntl(file, fcntl.F_OFD_SETLK, _FIRST_BYTE)
        except BlockingIOError as error:
            file.close()
            raise self._refusal() from error
        except BaseException:
            file.close()
            raise
        return _Held(file, inode)

    def _refusal(self) -> QueueLockedError:
        return QueueLockedError(
            f"the queue file {self._path} is in use by another process or client: close it there, or use another path"
        )


def _close(file: FileIO | None) -> None:
    if file is not None:
        file.close()


def _after_fork_in_child() -> None:
    """The locks are the parent's: they must end with it, however long a child lives."""
    global _guard
    _guard = Lock("QueueLock")
    for lock in list(_locks):
        lock.release()
    _locks.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)


def identity_of(found: os.stat_result) -> tuple[int, int]:
    """(device, inode): which file it is, whatever name it has."""
    return found.st_dev, found.st_ino


def _kind_of(mode: int) -> str:
    kinds = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a FIFO"), (stat.S_ISSOCK, "a socket"))
    return next((name for is_kind, name in kinds if is_kind(mode)), "a device")


def create_file(path: Path) -> None:
    """Make an empty file, for its owner only, where there is none. Raises OSError."""
    if path.exists():
        return
    # Another program may make it meanwhile.
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    # What is synced into the file is lost with a name that a power cut takes away.
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Have the names in a folder on disk. Raises OSError."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
