"""What a medium holds after a power cut: everything synchronised, and of the rest whatever had got there by chance.

`Medium` is fed the log of a `FaultyDisk`, event by event, and says at any point what may be found at the next start.
"""

from __future__ import annotations

import shutil
from contextlib import closing
from typing import TYPE_CHECKING, TypeAlias

import apsw

from support.faulty_disk import Create, Delete, Event, Rename, Sync, SyncFolder, Truncate, Write

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Hashable
    from pathlib import Path

SECTOR_BYTES = 512
# SQLite makes it anew from the write-ahead log; the lock is of the process alone.
_LEFT_BEHIND = ("-shm", "-lock")
# Of a database, and of its write-ahead log.
_HEAD_BYTES = 100

Files: TypeAlias = dict[str, bytes]


class Medium:
    """The content of one folder's files, as it is for certain, and what was done since and may be lost."""

    def __init__(self, files: Files | None = None) -> None:
        self._names: dict[str, int] = {}
        self._content: dict[int, bytearray] = {}
        self._unsynced: dict[int, list[Write | Truncate]] = {}
        self._unsynced_names: list[Create | Delete | Rename] = []
        for number, (name, content) in enumerate(sorted((files or {}).items())):
            # As `FaultyDisk` numbers what it finds.
            self._names[name] = -1 - number
            self._content[-1 - number] = bytearray(content)

    def on_event(self, event: Event) -> None:
        """The next event of the log."""
        if isinstance(event, Write | Truncate):
            self._unsynced.setdefault(event.file, []).append(event)
        elif isinstance(event, Create | Delete | Rename):
            self._unsynced_names.append(event)
        elif isinstance(event, Sync):
            content = self._content.setdefault(event.file, bytearray())
            for change in self._unsynced.pop(event.file, ()):
                _apply(content, change)
            if event.folder:
                self._sync_folder()
        elif isinstance(event, SyncFolder):
            self._sync_folder()

    def _sync_folder(self) -> None:
        for change in self._unsynced_names:
            _apply_name(self._names, change)
        self._unsynced_names.clear()

    def all_kept(self) -> Files:
        """Everything reached the medium: as after a killed process."""
        return self._files(len(self._unsynced_names), lambda changes: changes)

    def none_kept(self) -> Files:
        """Nothing that was not synchronised did."""
        return self._files(0, lambda _changes: [])

    def some_kept(self, chance: random.Random) -> Files:
        """A part of it did: some changes whole, some in part by sectors, some not; names in order, up to a point."""
        share = chance.choice((0.1, 0.5, 0.9))
        torn_share = chance.choice((0.0, 0.2, 1.0))

        def keep(changes: list[Write | Truncate]) -> list[Write | Truncate]:
            kept: list[Write | Truncate] = []
            for change in changes:
                if isinstance(change, Write) and chance.random() < torn_share:
                    kept += [sector for sector in _sectors_of(change) if chance.random() < share]
                elif chance.random() < share:
                    kept.append(change)
            return kept

        return self._files(chance.randint(0, len(self._unsynced_names)), keep)

    def _files(self, names_kept: int, keep: Callable[[list[Write | Truncate]], list[Write | Truncate]]) -> Files:
        names = dict(self._names)
        for change in self._unsynced_names[:names_kept]:
            _apply_name(names, change)
        files: Files = {}
        for name, number in sorted(names.items()):
            if name.endswith(_LEFT_BEHIND):
                continue
            content = bytearray(self._content.get(number, b""))
            for written in keep(self._unsynced.get(number, [])):
                _apply(content, written)
            files[name] = bytes(content)
        return files


def lay_out(files: Files, folder: Path) -> None:
    """Write the files into a fresh folder."""
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def as_found(files: Files, queue: str, folder: Path) -> Hashable:
    """All by which the next process can tell these files from others. `folder` is made for it, and removed.

    Of the database and its log that is what SQLite reads from them, and their heads, which others look at as well. Not
    what stands behind the log's last whole transaction, nor pages of the database that the log has anew.
    """
    lay_out(files, folder)
    try:
        with closing(apsw.Connection(str(folder / queue), flags=apsw.SQLITE_OPEN_READWRITE)) as connection:
            connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
            content = connection.serialize("main")
    except apsw.Error:
        return frozenset(files.items())
    finally:
        shutil.rmtree(folder)
    beside = {name: data[:_HEAD_BYTES] if name in (queue, f"{queue}-wal") else data for name, data in files.items()}
    return content, frozenset(beside.items())


def _apply(content: bytearray, change: Write | Truncate) -> None:
    if isinstance(change, Truncate):
        del content[change.size :]
        content.extend(bytes(change.size - len(content)))
        return
    end = change.offset + len(change.data)
    if len(content) < end:
        content.extend(bytes(end - len(content)))
    content[change.offset : end] = change.data


def _apply_name(names: dict[str, int], change: Create | Delete | Rename) -> None:
    if isinstance(change, Create):
        names[change.name] = change.file
    elif isinstance(change, Delete):
        names.pop(change.name, None)
    elif change.name in names:
        names[change.new_name] = names.pop(change.name)


def _sectors_of(write: Write) -> list[Write | Truncate]:
    sectors: list[Write | Truncate] = []
    at, end = write.offset, write.offset + len(write.data)
    while at < end:
        following = min(at - at % SECTOR_BYTES + SECTOR_BYTES, end)
        sectors.append(Write(write.file, at, write.data[at - write.offset : following - write.offset]))
        at = following
    return sectors
