"""The queue file: one holder at a time, an open database, and what to do where it is damaged."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import apsw

from glec_fast.durable._table import QueueTable
from glec_fast.durable.database import (
    LOG_RESERVE_BYTES,
    check,
    check_header,
    connect,
    create_schema,
    is_damage,
    located,
    open_database,
    reserve_log,
    stops_opening,
    storage_error,
)
from glec_fast.durable.lock import QueueLock, create_file, identity_of, sync_folder
from glec_fast.durable.log_index import LogIndex
from glec_fast.durable.salvage import (
    COMPANIONS,
    Salvage,
    carry_over,
    clear_the_way,
    copy,
    finish_carry_over,
    free_name,
    has_remains,
    mark_of,
    new_of,
    remove,
)
from glec_fast.errors import QueueFormatError, QueueReplacedError, QueueStorageError
from glec_fast.runtime.log import logger

__all__ = ["QueueFile", "Salvage", "discard", "holding", "is_damage", "look_into"]


class QueueFile:
    """An open, locked queue file and its write connection. One process at a time, and one thread.

    Raises QueueLockedError, QueueFormatError or QueueStorageError; each leaves the file as it was, and unlocked.
    ConfigError for what is no path.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = located(path)
        self.salvage: Salvage | None = None
        self._log_index: LogIndex | None = None
        try:
            self._lock = QueueLock(self.path)
        except OSError as error:
            raise self._as_ours(error) from error
        try:
            self.connection = self._open()
            self._note_place()
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

    def _carry_over(self, error: Exception, row_count: int = 0) -> None:
        logger.error("queue file %s is damaged (%s); carrying over what can be read", self.path, error)
        found = carry_over(self.path, self._lock.follow)
        self.salvage = found._replace(rows_lost=max(found.rows_lost, row_count - found.rows_carried))
        logger.error(
            "%d messages carried over, at least %d lost; the damaged file is kept as %s",
            self.salvage.rows_carried,
            self.salvage.rows_lost,
            self.salvage.kept_as,
        )

    def reader(self) -> apsw.Connection:
        """A second connection, for reading only, by one thread at a time."""
        # SQLite's own mutex is locked more than once for each column: a sixth of what a row costs.
        return connect(self.path, apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_NOMUTEX)

    def failed(self, error: Exception) -> QueueStorageError:
        """The error of this family for `error`. Damage is remembered: the next opening carries over what is left."""
        if isinstance(error, QueueStorageError):
            return error
        if is_damage(error):
            with suppress(OSError):
                mark_of(self.path).touch(0o600)
        return storage_error(self.path, error)

    # ---- while it is in use; the caller sees to it that nobody else uses the write connection meanwhile

    def _note_place(self) -> None:
        self._name, self._log_name = str(self.path), f"{self.path}-wal"
        file, log = _look_at(self._name), _look_at(self._log_name)
        self._place, self._log_place = identity_of(file), identity_of(log)
        # Whose log that is.
        self._opened = self._lock.inode
        self._reserved_bytes = _reserved_in(log)
        self._look_into_log(LogIndex(f"{self.path}-shm", self._log_name))

    def _look_into_log(self, index: LogIndex | None) -> None:
        before, self._log_index = self._log_index, index
        if before is not None:
            before.close()

    def is_in_place(self) -> bool:
        """True where the file and its write-ahead log are still found under their names, and the log is whole."""
        try:
            file, log = _look_at(self._name), _look_at(self._log_name)
        except OSError:
            return False
        is_found = identity_of(file) == self._place and identity_of(log) == self._log_place
        return is_found and self._is_log_whole(log)

    def _is_log_whole(self, log: os.stat_result) -> bool:
        """False where somebody has cut it, or has written over it from its beginning on."""
        assert self._log_index is not None
        try:
            is_whole = self._log_index.explains()
            if is_whole and log.st_size < self._reserved_bytes:
                reserve_log(self.path)
                self._reserved_bytes = _reserved_in(_look_at(self._log_name))
        except OSError:
            # That nobody could look, as of descriptors there are none left, says nothing of it.
            return True
        return is_whole

    def _is_log_harmed(self) -> bool:
        try:
            log = _look_at(self._log_name)
        except FileNotFoundError:
            return False
        return identity_of(log) == self._log_place and not self._is_log_whole(log)

    def salvage_in_use(self, damage: Exception, row_count: int = 0) -> None:
        """Carry over what can be read of a file that was found damaged in use: `connection` is then another.

        row_count: so many rows there were, as far as is known. The lock is never let go of. The caller gives the
        connection before to `discard`, as those of `reader`.
        Raises QueueReplacedError where another file has the name, apsw.Error, OSError; the call may be repeated, also
        where an exception has cut into it.
        """
        clear_the_way(self.path)
        finish_carry_over(self.path, self._lock.follow)
        if not self._has_name() or not self._has_log():
            self._put_back_damaged()
        self._carry_over(damage, row_count)
        self.connection = open_database(self.path)
        self._note_place()

    def _has_name(self) -> bool:
        """False where no file has it. Raises QueueReplacedError where another has."""
        try:
            found = identity_of(_look_at(self._name))
        except FileNotFoundError:
            return False
        # What an attempt that failed has put there is locked.
        if found not in (self._place, self._lock.inode):
            raise QueueReplacedError(f"another file has the name of the open queue file {self.path}: start anew")
        return True

    def _has_log(self) -> bool:
        """False where the log that is open has lost its name."""
        try:
            return self._lock.inode != self._opened or identity_of(_look_at(self._log_name)) == self._log_place
        except FileNotFoundError:
            return False

    def on_mended(self) -> None:
        """Whoever met the damage again meanwhile met it in the file that was."""
        mark_of(self.path).unlink(missing_ok=True)

    def put_back(self) -> None:
        """Have all that the open file holds under its name again, which nobody has now; as `salvage_in_use`.

        Raises QueueReplacedError where another file has the name.
        """
        self._has_name()
        is_log_harmed = self._is_log_harmed()
        logger.error("queue file %s or its log has lost its name; what is open is put back", self.path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        clear_the_way(self.path)
        new = new_of(self.path)
        try:
            self._copy_to(new)
        except apsw.Error as error:
            # Or it would be taken for complete.
            remove(new)
            if not is_damage(error):
                raise
            self.salvage_in_use(error)
            return
        self._clear_companions()
        self._lock.follow(new)
        new.rename(self.path)
        sync_folder(self.path.parent)
        # What a whole one had was open until now: no reason to look for damage, nor for rows of another program.
        self.connection = self._open() if is_log_harmed else open_database(self.path, is_known=True)
        self._note_place()

    def _put_back_damaged(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        copied = self.path.with_name(self.path.name + "-copy")
        self._copy_bytes_to(copied)
        self._clear_companions()
        self._place = identity_of(_look_at(str(copied)))
        for suffix in ("-wal", ""):
            with suppress(FileNotFoundError):
                copied.with_name(copied.name + suffix).rename(self.path.with_name(self.path.name + suffix))

    def _clear_companions(self) -> None:
        # All that they hold is in a copy.
        for suffix in COMPANIONS:
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)

    def keep_beside(self, fill: Callable[[apsw.Connection], None]) -> Path:
        """A copy of all that the open file holds, and of what `fill` adds, under a name that is free; returns that.

        Where it raises, which is apsw.Error or OSError, there is none.
        """
        path = free_name(self.path, "replaced")
        try:
            try:
                self._copy_to(path)
            except apsw.Error as error:
                if not is_damage(error):
                    raise
                self._copy_bytes_to(path)
                carry_over(path, lambda _new: None)
            with closing(connect(path, apsw.SQLITE_OPEN_READWRITE)) as copied:
                copied.pragma("synchronous", "full")
                fill(copied)
        except BaseException:
            # It is tried again, and must not fill the disk.
            remove(path)
            raise
        sync_folder(path.parent)
        return path

    def _copy_to(self, path: Path) -> None:
        remove(path)
        create_file(path)
        copied = connect(path, apsw.SQLITE_OPEN_READWRITE)
        try:
            copied.pragma("synchronous", "full")
            with copied.backup("main", self.connection, "main") as backup:
                backup.step()
        finally:
            copied.close(True)

    def _copy_bytes_to(self, path: Path) -> None:
        """The open file and its log as they are, whatever names they have."""
        remove(path)
        self._lock.copy_to(path)
        for each in Path("/proc/self/fd").iterdir():
            with suppress(OSError):
                if self._lock.inode == self._opened and identity_of(each.stat()) == self._log_place:
                    copy(each, path.with_name(path.name + "-wal"))
                    return

    def close(self) -> None:
        """Close the write connection and let another process have the file. Idempotent."""
        try:
            if not self.is_in_place():
                discard(self.connection)
                return
            self.connection.close()
        except apsw.Error as error:
            # The write-ahead log still has all; the next opening folds it into the file.
            logger.error("the queue file %s was closed without its last checkpoint: %s", self.path, error)
            self.connection.close(True)
        finally:
            self._look_into_log(None)
            self._lock.release()

    def let_go_in_child(self) -> None:
        """In a forked child: the file is the parent's."""
        discard(self.connection)
        self._look_into_log(None)


def discard(connection: apsw.Connection) -> None:
    """Close a connection to a file that has lost its name, is damaged, or is another process's, as in a forked child.

    Without a checkpoint, and with no transaction under way, that changes nothing on disk, nor in the memory that
    processes share: what has the name now is another file's, and a child holds no lock of its parent's.
    """
    connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
    connection.close(True)


def _look_at(name: str) -> os.stat_result:
    # As text: half of what a Path costs, in every transaction.
    return os.stat(name)  # noqa: PTH116


def _reserved_in(log: os.stat_result) -> int:
    # Less where there was no room for it.
    return min(log.st_size, LOG_RESERVE_BYTES)


def holding(path: Path) -> QueueLock:
    """Keep others from opening the queue until it is released. Makes no file. Raises QueueLockedError, OSError."""
    return QueueLock(path, create=False)


def look_into(path: Path, scratch: Path, prepare: Callable[[apsw.Connection, Path], None]) -> tuple[int, int | None]:
    """(messages, Unix milliseconds of the latest), of a copy in the empty folder `scratch`: nothing of it is changed.

    prepare: called with the copy, and `path`.
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
        prepare(connection, path)
        table = QueueTable(connection)
        return table.count(), table.span_ms()[1]
    finally:
        connection.close(True)
