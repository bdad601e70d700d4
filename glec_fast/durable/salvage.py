"""Carrying over what a damaged queue file still holds: into a new file, which then takes its place.

The damaged file is kept under another name, with its companions. A crash or a full disk at any step loses nothing: the
new file is complete before the damaged one is set aside, and an opening that finds that gone puts the new one in place.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import apsw

from glec_fast.durable.database import connect, create_schema
from glec_fast.durable.lock import create_file, sync_folder
from glec_fast.runtime.log import logger

_PAGE_BYTES_MIN = 512
COMPANIONS = ("-wal", "-shm", "-journal")
LENT, FRAMES = "-copy", "-frames"
# All that stand beside a queue file; `-lock` has a use of its own.
_BESIDE = (*COMPANIONS, "-qos2", "-salvage", "-new", *(f"-new{each}" for each in COMPANIONS), LENT, FRAMES, "-pages")


class Salvage(NamedTuple):
    """What became of a damaged file. `rows_lost` is a lower bound: what no index remembers cannot be counted."""

    kept_as: Path
    rows_carried: int
    rows_lost: int


def mark_of(path: Path) -> Path:
    """The file that says that `path` was found damaged while it was in use."""
    return path.with_name(path.name + "-salvage")


def has_remains(path: Path) -> bool:
    """True where a file without a header has messages in it all the same. Raises OSError."""
    from glec_fast.durable.remains import Remains

    return path.stat().st_size % _PAGE_BYTES_MIN == 0 and bool(Remains(path).rows)


def clear_the_way(path: Path) -> None:
    """Rename what has the name of a companion and is no regular file: a folder, a FIFO, a link. Raises OSError."""
    for suffix in _BESIDE:
        companion = path.with_name(path.name + suffix)
        try:
            mode = companion.lstat().st_mode
        except FileNotFoundError:
            continue
        if not stat.S_ISREG(mode):
            renamed = free_name(companion, "not-a-file")
            companion.rename(renamed)
            logger.warning("%s is not a file, and was renamed to %s", companion, renamed.name)


def carry_over(path: Path, before_replacing: Callable[[Path], None]) -> Salvage:
    """Fill a new file from a damaged one and put it in its place. Nobody has either open.

    before_replacing: called with the new file before it is renamed.
    Raises apsw.Error, OSError; then the damaged file is where it was.
    """
    # Rare, and 100 KiB.
    from glec_fast.durable.remains import Remains

    found = Remains(path)
    new = new_of(path)
    remove(new)
    create_file(new)
    connection = connect(new, apsw.SQLITE_OPEN_READWRITE)
    try:
        connection.pragma("synchronous", "full")
        create_schema(connection)
        with connection:
            found.write(connection)
    except BaseException:
        connection.close(True)
        remove(new)
        raise
    connection.close()
    kept_as = _set_aside(path)
    finish_carry_over(path, before_replacing)
    return Salvage(kept_as, len(found.rows), max(found.expected - len(found.rows), 0))


def finish_carry_over(path: Path, before_replacing: Callable[[Path], None]) -> None:
    """Put a new file that is complete in its place, where the damaged one was set aside already."""
    new = new_of(path)
    if not new.exists():
        return
    if path.exists() and path.stat().st_size:
        # The damaged file is still there, so that the new one may be half done.
        remove(new)
        return
    # A write-ahead log of the damaged file would be read into the new one.
    _set_companions_aside(path, _kept_names(path)[0])
    before_replacing(new)
    new.rename(path)
    mark_of(path).unlink(missing_ok=True)
    sync_folder(path.parent)


def new_of(path: Path) -> Path:
    """What is to take the place of `path` once it is complete."""
    return path.with_name(path.name + "-new")


def remove(path: Path) -> None:
    """Remove a file that was made on the way, with its companions."""
    for suffix in ("", *COMPANIONS):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def copy(source: Path, target: Path) -> None:
    """Copy a file for its owner only."""
    # Rare, and 300 KiB.
    import shutil

    create_file(target)
    shutil.copyfile(source, target)


def _set_aside(path: Path) -> Path:
    kept_as = _kept_names(path)[1]
    # The file first: without it, what follows is taken up again by the next opening.
    path.rename(kept_as)
    _set_companions_aside(path, kept_as)
    return kept_as


def free_name(path: Path, kind: str) -> Path:
    """The first that no file has of the names that `path` is kept under as `kind`."""
    number = 1
    while os.path.lexists(following := path.with_name(f"{path.name}.{kind}-{number}")):
        number += 1
    return following


def _kept_names(path: Path) -> tuple[Path, Path]:
    """The latest name that a damaged file was given, and the next."""
    following = free_name(path, "damaged")
    number = int(following.name.rpartition("-")[2])
    return path.with_name(f"{path.name}.damaged-{number - 1}"), following


def _set_companions_aside(path: Path, kept_as: Path) -> None:
    for suffix in COMPANIONS:
        companion = path.with_name(path.name + suffix)
        if companion.exists():
            companion.rename(kept_as.with_name(kept_as.name + suffix))
