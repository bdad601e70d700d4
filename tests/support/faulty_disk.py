"""A file-system layer under SQLite that writes down what reaches the disk, and can be slow, held, or fail.

While a `FaultyDisk` is entered it is SQLite's default layer in this process, so that the product's own code runs on it
unchanged. What the product does to files by itself (create, write, synchronise, rename, delete) is written down too.
"""

from __future__ import annotations

import errno
import itertools
import os
import threading
import time
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias
from unittest.mock import patch

import apsw

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_NUMBERS = itertools.count()
# SQLite synchronises the folder with the first sync of a log that it may have created (os_unix.c, UNIXFILE_DIRSYNC).
_LOG_KINDS = apsw.SQLITE_OPEN_MAIN_JOURNAL | apsw.SQLITE_OPEN_SUPER_JOURNAL | apsw.SQLITE_OPEN_WAL
_BASE = "unix"


class Create(NamedTuple):
    """A new, empty file appears under `name`; `file` is its number, as an inode's."""

    name: str
    file: int


class Write(NamedTuple):
    file: int
    offset: int
    data: bytes


class Truncate(NamedTuple):
    file: int
    size: int


class Sync(NamedTuple):
    """The file's content is on the medium; with `folder`, the names of its folder as well."""

    file: int
    folder: bool


class Delete(NamedTuple):
    name: str


class Rename(NamedTuple):
    name: str
    new_name: str


class SyncFolder(NamedTuple):
    """All names of the folder are on the medium."""


class Note(NamedTuple):
    """What the test wrote down between two operations."""

    what: Any


Event: TypeAlias = Create | Write | Truncate | Sync | Delete | Rename | SyncFolder | Note


class FaultyDisk(apsw.VFS):  # type: ignore[misc]
    """See the module's text. Watches one `folder`; every other path is passed through.

    log: what happened, in order, over all threads.
    sync_delay_s: how long each sync takes.
    fault: asked before each operation, as (operation, file name); what it raises is what SQLite gets. Operations are
    open, read, write, sync, truncate, delete, size.
    """

    def __init__(self, folder: Path) -> None:
        self.name = f"faulty-{next(_NUMBERS)}"
        super().__init__(self.name, _BASE, makedefault=True)
        self.folder = folder.resolve()
        self.log: list[Event] = []
        self.sync_delay_s = 0.0
        self.fault: Callable[[str, str], None] | None = None
        self.lock = threading.RLock()
        self._files = itertools.count(1)
        # What is there already has numbers below zero, in the order of names; `Medium` counts alike.
        there = sorted(path.name for path in self.folder.iterdir())
        self._file_of = {name: -1 - number for number, name in enumerate(there)}
        self._may_write = threading.Event()
        self._may_write.set()
        self.waiting_writer = threading.Event()
        self._entered = ExitStack()

    # ---- for tests

    def note(self, what: Any) -> None:
        """Write `what` down, between the operations before and those after it."""
        self.add(Note(what))

    def add(self, event: Event) -> None:
        with self.lock:
            self.log.append(event)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Whoever writes, truncates or synchronises waits meanwhile; `waiting_writer` is set when somebody does."""
        self.waiting_writer.clear()
        self._may_write.clear()
        try:
            yield
        finally:
            self._may_write.set()

    def count(self, kind: type) -> int:
        """How many operations of a kind there were."""
        with self.lock:
            return sum(isinstance(event, kind) for event in self.log)

    def written_bytes(self) -> int:
        """Bytes of all writes so far."""
        with self.lock:
            return sum(len(event.data) for event in self.log if isinstance(event, Write))

    def __enter__(self) -> FaultyDisk:
        real_open, real_rename, real_unlink = os.open, os.rename, os.unlink
        real_pwrite = os.pwrite

        def watched_open(path: Any, flags: int, *rest: Any, **named: Any) -> int:
            descriptor = real_open(path, flags, *rest, **named)
            name = self.name_of(path)
            if name is not None and flags & os.O_CREAT:
                self.file_of(name)
            return descriptor

        def watched_rename(source: Any, target: Any, **named: Any) -> None:
            real_rename(source, target, **named)
            name, new_name = self.name_of(source), self.name_of(target)
            if name is not None and new_name is not None:
                with self.lock:
                    self._file_of[new_name] = self._file_of.pop(name)
                    self.add(Rename(name, new_name))

        def watched_unlink(path: Any, **named: Any) -> None:
            real_unlink(path, **named)
            name = self.name_of(path)
            if name is not None:
                self.forget(name)

        def watched_pwrite(descriptor: int, data: bytes, offset: int) -> int:
            name = self.name_of(_path_of(descriptor))
            if name is not None:
                self._before_as_system("write", name)
            written = real_pwrite(descriptor, data, offset)
            if name is not None:
                self.add(Write(self.file_of(name), offset, bytes(data[:written])))
            return written

        def watched_sync(real_sync: Callable[[int], None], descriptor: int) -> None:
            path = _path_of(descriptor)
            name = self.name_of(path)
            if name is not None:
                self._before_as_system("sync", name)
            real_sync(descriptor)
            if path == self.folder:
                self.add(SyncFolder())
            elif name is not None:
                self.add(Sync(self.file_of(name), False))

        for target, replacement in (
            ("os.open", watched_open),
            ("os.rename", watched_rename),
            ("os.unlink", watched_unlink),
            ("os.fsync", partial(watched_sync, os.fsync)),
            ("os.fdatasync", partial(watched_sync, os.fdatasync)),
            ("os.pwrite", watched_pwrite),
        ):
            self._entered.enter_context(patch(target, replacement))
        return self

    def __exit__(self, *_: object) -> None:
        self._entered.close()
        self.unregister()

    # ---- names

    def name_of(self, path: object) -> str | None:
        """The name in the watched folder; None for every other path."""
        if not isinstance(path, str | os.PathLike):
            return None
        full = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow what is about to be deleted
        return full.name if full.parent == self.folder else None

    def file_of(self, name: str) -> int:
        """The number of the file of that name, which is new where the name is."""
        with self.lock:
            if name not in self._file_of:
                self._file_of[name] = next(self._files)
                self.add(Create(name, self._file_of[name]))
            return self._file_of[name]

    def forget(self, name: str) -> None:
        with self.lock:
            if self._file_of.pop(name, None) is not None:
                self.add(Delete(name))

    # ---- called by SQLite

    def before(self, operation: str, name: str) -> None:
        """Wait, where the disk is held, and fail, where it is to."""
        if operation in ("write", "truncate", "sync") and not self._may_write.is_set():
            self.waiting_writer.set()
            self._may_write.wait()
        if operation == "sync" and self.sync_delay_s:
            time.sleep(self.sync_delay_s)
        if self.fault is not None:
            self.fault(operation, name)

    def _before_as_system(self, operation: str, name: str) -> None:
        """`before`, for what does not go through SQLite."""
        try:
            self.before(operation, name)
        except apsw.FullError as error:
            raise OSError(errno.ENOSPC, str(error)) from error
        except apsw.Error as error:
            raise OSError(errno.EIO, str(error)) from error

    def xOpen(self, name: Any, flags: list[int]) -> apsw.VFSFile:  # noqa: N802 - apsw's name
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        known = self.name_of(path)
        if known is None:
            return apsw.VFSFile(_BASE, name, flags)
        self.before("open", known)
        file = _File(self, known, name, flags)
        if flags[0] & apsw.SQLITE_OPEN_READWRITE:
            file.number = self.file_of(known)
        return file

    def xDelete(self, path: str, sync_folder: bool) -> None:  # noqa: N802
        name = self.name_of(path)
        if name is not None:
            self.before("delete", name)
        super().xDelete(path, sync_folder)
        if name is not None:
            self.forget(name)
            if sync_folder:
                self.add(SyncFolder())


def _path_of(descriptor: int) -> Path:
    return Path(f"/proc/self/fd/{descriptor}").readlink()


class _File(apsw.VFSFile):  # type: ignore[misc]
    def __init__(self, disk: FaultyDisk, known: str, name: Any, flags: list[int]) -> None:
        super().__init__(_BASE, name, flags)
        self._disk = disk
        self._name = known
        self.number = 0
        self._syncs_folder = bool(flags[0] & _LOG_KINDS and flags[0] & apsw.SQLITE_OPEN_CREATE)

    def xRead(self, amount: int, offset: int) -> bytes:  # noqa: N802
        self._disk.before("read", self._name)
        return bytes(super().xRead(amount, offset))

    def xFileSize(self) -> int:  # noqa: N802
        self._disk.before("size", self._name)
        return int(super().xFileSize())

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802
        self._disk.before("write", self._name)
        super().xWrite(data, offset)
        self._disk.add(Write(self.number, offset, bytes(data)))

    def xTruncate(self, size: int) -> None:  # noqa: N802
        self._disk.before("truncate", self._name)
        super().xTruncate(size)
        self._disk.add(Truncate(self.number, size))

    def xSync(self, flags: int) -> None:  # noqa: N802
        self._disk.before("sync", self._name)
        super().xSync(flags)
        self._disk.add(Sync(self.number, self._syncs_folder))
        self._syncs_folder = False
