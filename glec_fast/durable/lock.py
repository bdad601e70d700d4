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
import logging
import os
import stat
import struct
import weakref
from pathlib import Path

from glec_fast.errors import QueueLockedError, QueueStorageError
from glec_fast.runtime._lock import Lock

# struct flock: type, whence, start, length, pid. SQLite locks bytes from 2**30 on.
_FIRST_BYTE = struct.pack("@hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0)
_NOT_HELD = -1

logger = logging.getLogger("glec_fast")

# (device, inode) of what this process holds, and whose locks those are.
_held: set[tuple[int, int]] = set()
_guard = Lock("QueueLock")
_locks: weakref.WeakSet[QueueLock] = weakref.WeakSet()


class QueueLock:
    """Holds the queue file `path` until `release`. Not thread-safe.

    create: make the file where it is missing, for its owner only.
    Raises QueueLockedError where another process or object has it, QueueStorageError where `path` is no regular file,
    OSError.
    """

    def __init__(self, path: Path, *, create: bool = True) -> None:
        self._path = path
        self._descriptor = self._companion = _NOT_HELD
        # (device, inode) of what it holds.
        self.inode = (0, 0)
        self._companion = self._hold_companion(create)
        try:
            if create:
                create_file(path)
            self._descriptor, self.inode = self._hold(path)
        except BaseException:
            self.release()
            raise
        _locks.add(self)

    def follow(self, replacement: Path) -> None:
        """Hold `replacement`, which is about to be renamed to `path`, instead of the file.

        SQLite has not opened it yet, and reads no more of the other than what nobody else can change.
        """
        descriptor, inode = self._hold(replacement)
        if not self._companion_of(self._path).exists():
            if self._companion >= 0:
                os.close(self._companion)
            self._companion = self._hold_companion(create=True)
        self._let_go()
        self._descriptor, self.inode = descriptor, inode

    def release(self) -> None:
        """Let others have the file. SQLite must have closed it. Idempotent."""
        self._let_go()
        if self._companion >= 0:
            os.close(self._companion)
            self._companion = _NOT_HELD

    def _let_go(self) -> None:
        with _guard:
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = _NOT_HELD
                _held.discard(self.inode)

    @staticmethod
    def _companion_of(path: Path) -> Path:
        return path.with_name(path.name + "-lock")

    def _hold_companion(self, create: bool) -> int:
        companion = self._companion_of(self._path)
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK | (os.O_CREAT if create else 0)
        try:
            descriptor = os.open(companion, flags, 0o600)
        except OSError as error:
            # It keeps nobody out but older versions.
            if companion.exists():
                logger.warning("%s cannot be used (%s): older versions are not kept out of the queue", companion, error)
            return _NOT_HELD
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise self._refusal() from error
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _hold(self, path: Path) -> tuple[int, tuple[int, int]]:
        with _guard:
            found = path.stat()
            if not stat.S_ISREG(found.st_mode):
                raise QueueStorageError(
                    f"the queue file {path} is {_kind_of(found.st_mode)}: remove it, or give queue_path another name"
                )
            inode = _inode_of(found)
            if inode in _held:
                raise self._refusal()
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                if _inode_of(os.fstat(descriptor)) != inode:
                    # Whoever put another file there has it.
                    raise self._refusal()
                fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _FIRST_BYTE)
            except BlockingIOError as error:
                os.close(descriptor)
                raise self._refusal() from error
            except BaseException:
                os.close(descriptor)
                raise
            _held.add(inode)
        if found.st_nlink > 1:
            logger.warning(
                "the queue file %s has %d names (hard links): SQLite keeps its log by name; always use the same one",
                path,
                found.st_nlink,
            )
        return descriptor, inode

    def _refusal(self) -> QueueLockedError:
        return QueueLockedError(
            f"the queue file {self._path} is in use by another process or client: close it there, or use another path"
        )

    def _forget(self) -> None:
        for descriptor in (self._descriptor, self._companion):
            if descriptor >= 0:
                os.close(descriptor)
        self._descriptor = self._companion = _NOT_HELD


def _after_fork_in_child() -> None:
    """The locks are the parent's: they must end with it, however long a child lives."""
    global _guard
    _guard = Lock("QueueLock")
    for lock in _locks:
        lock._forget()
    _locks.clear()
    _held.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)


def _inode_of(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _kind_of(mode: int) -> str:
    kinds = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a FIFO"), (stat.S_ISSOCK, "a socket"))
    return next((name for is_kind, name in kinds if is_kind(mode)), "a device")


def create_file(path: Path) -> None:
    """Make an empty file, for its owner only, where there is none. Raises OSError."""
    if path.exists():
        return
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
