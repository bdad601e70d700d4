"""The queue file: one holder at a time, an open database, and what to do where it is damaged."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from pathlib import Path

import apsw

from glec_fast._store import QueueTable
from glec_fast.errors import QueueFormatError, QueueStorageError
from glec_fast.queue_database import (
    check,
    check_header,
    connect,
    create_schema,
    is_damage,
    open_database,
    stops_opening,
    storage_error,
)
from glec_fast.queue_lock import QueueLock
from glec_fast.salvage import Salvage, carry_over, clear_the_way, copy, finish_carry_over, has_remains, mark_of

__all__ = ["QueueFile", "Salvage", "discard", "holding", "is_damage", "look_into"]

logger = logging.getLogger("glec_fast")


class QueueFile:
    """An open, locked queue file and its write connection. One process at a time, and one thread.

    Raises QueueLockedError, QueueFormatError or QueueStorageError; each leaves the file as it was, and unlocked.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        # Links resolved: SQLite names its companions after the file.
        self.path = Path(path).resolve()
        self.salvage: Salvage | None = None
        try:
            self._lock = QueueLock(self.path)
        except OSError as error:
            raise self._as_ours(error) from error
        try:
            self.connection = self._open()
        except BaseException as error:
            self._lock.release()
            if isinstance(error, (apsw.Error, OSError)):
                raise self._as_ours(error) from error
            raise

    def _as_ours(self, error: Exception) -> QueueStorageError:
        return error if isinstance(error, QueueStorageError) else storage_error(self.path, error)

    def _open(self) -> apsw.Connection:
        clear_the_way(self.path)
        finish_carry_over(self.path, self._lock.follow)
        try:
            self._check_header()
            if mark_of(self.path).exists():
                raise apsw.CorruptError("it was found damaged while it was in use")
            return open_database(self.path)
        except (apsw.Error, UnicodeDecodeError) as error:
            if not stops_opening(error):
                raise
            self._carry_over(error)
            return open_database(self.path)

    def _check_header(self) -> None:
        try:
            check_header(self.path)
        except QueueFormatError:
            if not has_remains(self.path):
                raise
            raise apsw.CorruptError("its first page is overwritten") from None

    def _carry_over(self, error: Exception) -> None:
        logger.error("queue file %s is damaged (%s); carrying over what can be read", self.path, error)
        self.salvage = carry_over(self.path, self._lock.follow)
        logger.error(
            "%d messages carried over, at least %d lost; the damaged file is kept as %s",
            self.salvage.rows_carried,
            self.salvage.rows_lost,
            self.salvage.kept_as,
        )

    def salvage_in_use(self, damage: Exception) -> apsw.Connection:
        """Carry over what can be read of a file that was found damaged in use: `connection` is then another.

        The lock is never let go of. Returns the connection before, which the caller gives to `discard`, as those of
        `reader`. Raises apsw.Error, OSError; then `connection` is as it was, and the call may be repeated.
        """
        before = self.connection
        finish_carry_over(self.path, self._lock.follow)
        self._carry_over(damage)
        self.connection = open_database(self.path)
        return before

    def is_in_place(self) -> bool:
        """False where the file was deleted, or another one has its name: what is written is then lost with the end."""
        return self._lock.is_in_place

    def reader(self) -> apsw.Connection:
        """A second connection, for reading only."""
        return connect(self.path, apsw.SQLITE_OPEN_READONLY)

    def failed(self, error: Exception) -> QueueStorageError:
        """The error of this family for `error`. Damage is remembered: the next opening carries over what is left."""
        if is_damage(error):
            with suppress(OSError):
                mark_of(self.path).touch(0o600)
        return storage_error(self.path, error)

    def close(self) -> None:
        """Close the write connection and let another process have the file. Idempotent."""
        try:
            self.connection.close()
        except apsw.Error as error:
            # The write-ahead log still has all; the next opening folds it into the file.
            logger.error("the queue file %s was closed without its last checkpoint: %s", self.path, error)
            self.connection.close(True)
        finally:
            self._lock.release()

    def let_go_in_child(self, *, close: bool) -> None:
        """In a forked child: close its copies of the descriptors, so that the lock ends with its owner.

        close: no thread of the parent was within SQLite, so that the connection can be closed; nothing is written.
        """
        if self._lock_descriptor >= 0:
            # Not of the file itself, and so no lock of the parent's.
            os.close(self._lock_descriptor)
            self._lock_descriptor = -1
        if close:
            close_in_child(self.connection)


def close_in_child(connection: apsw.Connection) -> None:
    """Have SQLite forget, in a forked child, what it knows of a file, for an opening of this process's own.

    It knows of no fork. Without a checkpoint, and with no transaction under way, closing changes nothing on disk or in
    the memory that the processes share, and a process holds none of another's locks that it could drop.
    """
    connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
    connection.close(True)


def discard(connection: apsw.Connection) -> None:
    """Close a connection to a file that has lost its name: the log that now has the name is another file's."""
    connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
    connection.close(True)


def holding(path: Path) -> QueueLock:
    """Keep others from opening the queue until it is released. Makes no file. Raises QueueLockedError, OSError."""
    return QueueLock(path, create=False)


def look_into(path: Path, scratch: Path) -> tuple[int, int | None]:
    """(messages, Unix milliseconds of the latest), of a copy in the empty folder `scratch`: nothing of it is changed.

    Raises QueueFormatError, apsw.Error where it is damaged, OSError.
    """
    check_header(path)
    if mark_of(path).exists():
        raise apsw.CorruptError("it was found damaged while it was in use")
    for suffix in ("", "-wal"):
        source = path.with_name(path.name + suffix)
        if source.exists():
            copy(source, scratch / f"copy{suffix}")
    copied = scratch / "copy"
    connection = connect(copied, apsw.SQLITE_OPEN_READWRITE)
    try:
        check(connection, copied)
        create_schema(connection)
        table = QueueTable(connection)
        return table.count(), table.span_ms()[1]
    finally:
        connection.close(True)
