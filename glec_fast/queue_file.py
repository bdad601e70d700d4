"""The queue file: opening, locking, creating and migrating it, and carrying over what a damaged one still holds.

The table and its indexes are the specification's ("Database Schema"), so that a file can move between clients. What
exactly-once needs stands beside it in `glec_session`, and what it could not keep to in `glec_in_doubt`; where the times
of its rows come from, in `glec_clock`; what of a message has no column in the given table, in `glec_extras`.
`PRAGMA user_version` is the version of the whole.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import apsw

from glec_fast.errors import (
    MessageError,
    QueueFormatError,
    QueueLockedError,
    QueueReplacedError,
    QueueStorageError,
)
from glec_fast.validation import check_publish

SCHEMA_VERSION = 1

SCHEMA = """
CREATE TABLE IF NOT EXISTS mqtt_offline_queue (
    id INTEGER PRIMARY KEY AUTOINCREMENT, topic TEXT NOT NULL, payload TEXT NOT NULL, qos INTEGER NOT NULL,
    timestamp BIGINT NOT NULL, ttl BIGINT NOT NULL, retry_count INTEGER DEFAULT 0);
CREATE INDEX IF NOT EXISTS idx_timestamp ON mqtt_offline_queue(timestamp);
CREATE INDEX IF NOT EXISTS idx_ttl ON mqtt_offline_queue(ttl);
CREATE TABLE IF NOT EXISTS glec_session (
    id INTEGER PRIMARY KEY CHECK (id = 1), client_id TEXT NOT NULL, broker TEXT NOT NULL, in_flight BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS glec_extras (
    message_id INTEGER PRIMARY KEY, retain INTEGER NOT NULL, expiry_interval INTEGER, properties BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS glec_in_doubt (
    number INTEGER PRIMARY KEY AUTOINCREMENT, time BIGINT NOT NULL, message_id INTEGER NOT NULL, topic TEXT NOT NULL,
    decision TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS glec_clock (
    id INTEGER PRIMARY KEY CHECK (id = 1), boot_id TEXT NOT NULL, queue_offset BIGINT NOT NULL,
    wall_offset BIGINT NOT NULL, queue_time BIGINT NOT NULL, first_id INTEGER NOT NULL);
"""

_COLUMNS = ("id", "topic", "payload", "qos", "timestamp", "ttl", "retry_count")
_SELECT = f"SELECT {', '.join(_COLUMNS)} FROM mqtt_offline_queue NOT INDEXED"  # noqa: S608
_HEADER = b"SQLite format 3\x00"
_HEADER_BYTES = 100
# Where the header has the change counter for which its own count of pages holds; 0 has SQLite measure the file instead.
_PAGES_VALID_FOR = slice(92, 96)
_COMPANIONS = ("-wal", "-shm", "-journal")
# SQLite waits this long for a lock that only a foreign program can hold, such as a backup.
BUSY_TIMEOUT_MS = 2000
# Reading every page takes about a second for 64 MB on a gateway's flash; larger files are checked as they are read.
_CHECKED_AT_OPEN_BYTES = 32 << 20
_CACHE_KIB = 512
_LOG_RESERVE_BYTES = 256 * 1024
# The write-ahead log starts over at its front after so many pages of 4 KiB. A commit that makes it longer waits for the
# disk twice as long, as the file system's own records are written too.
_LOG_PAGES = 256
# Longer it is only while a transaction, or somebody who reads for long, needs it.
LOG_BYTES_MAX = 2 << 20
# Ids between two readable ends of a damaged table are tried one by one, up to so many from each end.
_TRIED_IDS_MAX = 100_000
# An id that was given once must not be given again, also where the damage took the record of the highest.
_IDS_LEFT_OUT = 1_000_000
_SEQUENCE = "SELECT seq FROM sqlite_sequence WHERE name = 'mqtt_offline_queue'"
# Rows of another writer that no PUBLISH can be made of.
_UNSENDABLE = """
SELECT count(*) FROM mqtt_offline_queue WHERE qos NOT IN (0, 1, 2) OR typeof(topic) <> 'text' OR topic = ''
    OR length(CAST(topic AS BLOB)) > 65535 OR instr(topic, '+') OR instr(topic, '#')
    OR instr(CAST(topic AS BLOB), x'00') OR typeof(timestamp) <> 'integer' OR typeof(ttl) <> 'integer'
"""

logger = logging.getLogger("glec_fast")


class Salvage(NamedTuple):
    """What became of a damaged file. `rows_lost` is a lower bound: what no index remembers cannot be counted."""

    kept_as: Path
    rows_carried: int
    rows_lost: int


class QueueFile:
    """An open, locked queue file and its write connection. One process at a time.

    Raises QueueLockedError, QueueFormatError or QueueStorageError; each leaves the file as it was.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        # Links resolved: two names of one file must meet at one lock.
        self.path = Path(path).resolve()
        self.salvage: Salvage | None = None
        self._lock_descriptor = _lock(self.path)
        try:
            self.connection = self._open(None)
        except (apsw.Error, OSError) as error:
            os.close(self._lock_descriptor)
            if isinstance(error, QueueStorageError):
                raise
            raise storage_error(self.path, error) from error
        except BaseException:
            os.close(self._lock_descriptor)
            raise

    def _open(self, damage: Exception | None) -> apsw.Connection:
        connection = self._open_sound(damage)
        self._note_place()
        return connection

    def _note_place(self) -> None:
        self._name, self._log_name = str(self.path), f"{self.path}-wal"
        file, log = _look_at(self._name), _look_at(self._log_name)
        self._place, self._log_place = _identity(file), _identity(log)
        # SQLite cuts it no shorter.
        self._log_bytes_min = min(log.st_size, _LOG_RESERVE_BYTES)

    def _open_sound(self, damage: Exception | None) -> apsw.Connection:
        _finish_carry_over(self.path)
        _refuse_foreign(self.path)
        try:
            if damage is not None or _mark_of(self.path).exists():
                raise apsw.CorruptError(str(damage or "it was found damaged while it was in use"))
            return _open_checked(self.path)
        except (apsw.CorruptError, apsw.NotADBError) as error:
            logger.error("queue file %s is damaged (%s); carrying over what can be read", self.path, error)
            self.salvage = _carry_over(self.path)
            logger.error(
                "%d messages carried over, at least %d lost; the damaged file is kept as %s",
                self.salvage.rows_carried,
                self.salvage.rows_lost,
                self.salvage.kept_as,
            )
            return _open_checked(self.path)

    def reader(self) -> apsw.Connection:
        """A second connection, for reading only."""
        return connect(self.path, apsw.SQLITE_OPEN_READONLY)

    def failed(self, error: Exception) -> QueueStorageError:
        """The error of this family for `error`. Damage is remembered: the next opening carries over what is left."""
        if isinstance(error, QueueStorageError):
            return error
        if is_damage(error):
            with suppress(OSError):
                _mark_of(self.path).touch(0o600)
        return storage_error(self.path, error)

    # ---- while it is in use; the caller sees to it that nobody else uses the write connection meanwhile

    def is_in_place(self) -> bool:
        """True where the file and its write-ahead log are still found under their names, the log at its full size."""
        try:
            file, log = _look_at(self._name), _look_at(self._log_name)
        except OSError:
            return False
        is_found = _identity(file) == self._place and _identity(log) == self._log_place
        return is_found and log.st_size >= self._log_bytes_min

    def _is_log_cut(self) -> bool:
        try:
            log = _look_at(self._log_name)
        except FileNotFoundError:
            return False
        return _identity(log) == self._log_place and log.st_size < self._log_bytes_min

    def salvage_in_use(self, damage: Exception) -> apsw.Connection:
        """Carry over what can be read, with this file open: `connection` is then another; returns the one before.

        Who uses the old one may do so until `discard`. Raises apsw.Error, OSError; then nothing has changed.
        """
        before = self.connection
        self.connection = self._open(damage)
        return before

    def on_mended(self) -> None:
        """Whoever met the damage again meanwhile met it in the file that was."""
        _mark_of(self.path).unlink(missing_ok=True)

    def put_back(self) -> apsw.Connection:
        """Have all that the open file holds under its name again, which nobody has now; as `salvage_in_use`.

        Raises QueueReplacedError where another file has the name.
        """
        with suppress(FileNotFoundError):
            if _identity(_look_at(self._name)) != self._place:
                raise QueueReplacedError(f"another file has the name of the open queue file {self.path}: start anew")
        is_log_whole = not self._is_log_cut()
        logger.error("queue file %s or its log has lost its name; what is open is put back", self.path)
        if not _lock_of(self.path).exists():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = _lock(self.path)
            os.close(self._lock_descriptor)
            self._lock_descriptor = descriptor
        new = _new_of(self.path)
        self._copy_to(new)
        for suffix in _COMPANIONS:
            # All that they hold is in the copy.
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
        new.rename(self.path)
        sync_folder(self.path.parent)
        before = self.connection
        if is_log_whole:
            # What is in it was open until now: no reason to look for damage, nor for rows of another program.
            self.connection = _open_checked(self.path, is_known=True)
            self._note_place()
        else:
            self.connection = self._open(None)
        return before

    def keep_beside(self) -> Path:
        """A copy of all that the open file holds, under a name that is free; returns that."""
        number = 1
        while (path := self.path.with_name(f"{self.path.name}.replaced-{number}")).exists():
            number += 1
        self._copy_to(path)
        sync_folder(path.parent)
        return path

    def _copy_to(self, path: Path) -> None:
        _remove(path)
        _create(path)
        copy = connect(path, apsw.SQLITE_OPEN_READWRITE)
        try:
            copy.pragma("synchronous", "full")
            with copy.backup("main", self.connection, "main") as backup:
                backup.step()
        finally:
            copy.close(True)

    def close(self) -> None:
        """Close the write connection and let another process have the file. Idempotent."""
        if self._lock_descriptor < 0:
            return
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
            os.close(self._lock_descriptor)
            self._lock_descriptor = -1


def discard(connection: apsw.Connection) -> None:
    """Close a connection to a file that has lost its name: what has that name now must not be touched by it."""
    connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
    connection.close(True)


def is_damage(error: BaseException) -> bool:
    """True for what SQLite reports where the file, or its log, is not what was written."""
    if isinstance(error, apsw.IOError):
        return getattr(error, "extendedresult", 0) == apsw.SQLITE_IOERR_SHORT_READ
    return isinstance(error, (apsw.CorruptError, apsw.NotADBError))


def holding(path: Path) -> int | None:
    """A descriptor that keeps others from opening the queue until it is closed; None where no queue was ever there.

    Makes no file. Raises QueueLockedError, OSError.
    """
    try:
        descriptor = os.open(_lock_of(path), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise QueueLockedError(f"the queue file {path} is in use by another process or client") from error
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def look_into(path: Path, scratch: Path) -> tuple[int, int | None]:
    """(messages, Unix milliseconds of the latest), of a copy in the empty folder `scratch`: nothing of it is changed.

    Raises QueueFormatError, apsw.Error where it is damaged, OSError.
    """
    _refuse_foreign(path)
    if _mark_of(path).exists():
        raise apsw.CorruptError("it was found damaged while it was in use")
    for suffix in ("", "-wal"):
        source = path.with_name(path.name + suffix)
        if source.exists():
            _copy(source, scratch / f"copy{suffix}")
    copy = scratch / "copy"
    connection = connect(copy, apsw.SQLITE_OPEN_READWRITE)
    try:
        _check(connection, copy)
        _create_schema(connection)
        count, latest = connection.execute("SELECT count(*), max(timestamp) FROM mqtt_offline_queue").get
        return count, latest
    finally:
        connection.close(True)


def connect(path: Path, flags: int) -> apsw.Connection:
    """A connection with this product's settings: small caches, a bounded wait for foreign locks."""
    connection = apsw.Connection(str(path), flags=flags)
    try:
        connection.set_busy_timeout(BUSY_TIMEOUT_MS)
        # The first look at the file: one that is damaged is found out here.
        connection.pragma("cache_size", -_CACHE_KIB)
    except BaseException:
        connection.close(True)
        raise
    return connection


def storage_error(path: Path, error: BaseException) -> QueueStorageError:
    """The error of this family for what SQLite or the system reported about `path`."""
    if isinstance(error, apsw.FullError) or (isinstance(error, OSError) and error.errno == errno.ENOSPC):
        return QueueStorageError(f"no space left for the queue file {path}: free some; what was accepted is kept")
    if isinstance(error, (apsw.ReadOnlyError, apsw.PermissionsError, PermissionError)):
        return QueueStorageError(f"the queue file {path} cannot be written ({error}): make it and its folder writable")
    if is_damage(error):
        return QueueStorageError(
            f"the queue file {path} is damaged ({error}): what is left is saved as soon as the disk lets it"
        )
    return QueueStorageError(f"the queue file {path} failed ({error}): check the disk and the folder's permissions")


def _lock(path: Path) -> int:
    # Not on the file itself: closing any descriptor of it would drop SQLite's own locks in this process.
    try:
        descriptor = os.open(_lock_of(path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise storage_error(path, error) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Its -wal and -shm take their permissions from the file.
        _create(path)
    except BlockingIOError as error:
        os.close(descriptor)
        raise QueueLockedError(
            f"the queue file {path} is in use by another process or client: close it there, or use another path"
        ) from error
    except OSError as error:
        os.close(descriptor)
        raise storage_error(path, error) from error
    return descriptor


def _lock_of(path: Path) -> Path:
    return path.with_name(path.name + "-lock")


def _create(path: Path) -> None:
    is_new = not path.exists()
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    if is_new:
        # What is synced into the file is lost with a name that a power cut takes away.
        sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Have the names in a folder on disk."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _copy(source: Path, target: Path) -> None:
    _create(target)
    shutil.copyfile(source, target)


def _look_at(name: str) -> os.stat_result:
    # As text: half of what a Path costs, in every transaction.
    return os.stat(name)  # noqa: PTH116


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _mark_of(path: Path) -> Path:
    return path.with_name(path.name + "-damaged")


def _refuse_foreign(path: Path) -> None:
    with path.open("rb") as file:
        header = file.read(len(_HEADER))
    # Zeros are what a flash block that was never written back looks like: a damaged queue, not a foreign file.
    if header and header != _HEADER and header.strip(b"\x00"):
        raise QueueFormatError(f"{path} is not a queue file (no SQLite header): give queue_path another name")


def _open_checked(path: Path, *, is_known: bool = False) -> apsw.Connection:
    connection = connect(path, apsw.SQLITE_OPEN_READWRITE)
    try:
        # Until it is known to be ours: closing would otherwise fold its write-ahead log into a file that we refuse.
        connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        if not is_known:
            _check(connection, path)
        connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 0)
        connection.pragma("journal_mode", "wal")
        connection.pragma("synchronous", "full")
        connection.pragma("wal_autocheckpoint", _LOG_PAGES)
        connection.pragma("journal_size_limit", LOG_BYTES_MAX)
        connection.pragma("temp_store", "memory")
        _create_schema(connection)
        _reserve_log(path)
    except BaseException:
        connection.close(True)
        raise
    return connection


def _reserve_log(path: Path) -> None:
    """Have room in the write-ahead log for the deletes that make room, however full the disk will be.

    SQLite takes what it has not written there for the log's end, never shortens the log, and starts over at its front.
    """
    try:
        with path.with_name(path.name + "-wal").open("rb+") as log:
            os.posix_fallocate(log.fileno(), 0, _LOG_RESERVE_BYTES)
    except OSError as error:
        logger.warning("no room is kept for the deletes of %s on a full disk: %s", path, error)


def _check(connection: apsw.Connection, path: Path) -> None:
    version = connection.pragma("user_version")
    tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    if "mqtt_offline_queue" not in tables:
        if tables - {"sqlite_sequence"}:
            raise QueueFormatError(f"{path} is another program's database: give queue_path another name")
        return
    if version > SCHEMA_VERSION:
        raise QueueFormatError(
            f"{path} was written by a newer version (format {version}, this one knows {SCHEMA_VERSION}): "
            "update this program, or give queue_path another name"
        )
    columns = {row[1] for row in connection.execute("PRAGMA table_info(mqtt_offline_queue)")}
    if not columns.issuperset(_COLUMNS):
        raise QueueFormatError(f"{path}: table mqtt_offline_queue lacks {sorted(set(_COLUMNS) - columns)}")
    if path.stat().st_size <= _CHECKED_AT_OPEN_BYTES:
        if connection.pragma("quick_check") != "ok":
            raise apsw.CorruptError("quick_check found errors")
        if connection.execute(_UNSENDABLE).get:
            raise apsw.CorruptError("it has rows that no message can be made of")


def _create_schema(connection: apsw.Connection) -> None:
    with connection:
        connection.execute(SCHEMA)
        if connection.pragma("user_version") != SCHEMA_VERSION:
            connection.pragma("user_version", SCHEMA_VERSION)


def _carry_over(path: Path) -> Salvage:
    """Fill a new file from a damaged one and put it in its place; a crash or a full disk on the way loses nothing."""
    found = _Remains(path)
    new = _new_of(path)
    _remove(new)
    _create(new)
    connection = connect(new, apsw.SQLITE_OPEN_READWRITE)
    try:
        connection.pragma("synchronous", "full")
        with connection:
            _create_schema(connection)
            connection.executemany("INSERT INTO mqtt_offline_queue VALUES (?, ?, ?, ?, ?, ?, ?)", found.rows)
            connection.executemany("INSERT INTO glec_extras VALUES (?, ?, ?, ?)", found.extras)
            connection.executemany("INSERT INTO glec_session VALUES (?, ?, ?, ?)", found.session)
            connection.executemany("INSERT INTO glec_in_doubt VALUES (?, ?, ?, ?, ?)", found.in_doubt)
            connection.executemany("INSERT INTO glec_clock VALUES (?, ?, ?, ?, ?, ?)", found.clock)
            connection.execute("DELETE FROM sqlite_sequence WHERE name = 'mqtt_offline_queue'")
            connection.execute("INSERT INTO sqlite_sequence VALUES ('mqtt_offline_queue', ?)", (found.last_id,))
    except BaseException:
        connection.close(True)
        _remove(new)
        raise
    connection.close()
    kept_as = _set_aside(path)
    _finish_carry_over(path)
    return Salvage(kept_as, len(found.rows), max(found.expected - len(found.rows), 0))


def _new_of(path: Path) -> Path:
    return path.with_name(path.name + "-new")


def _remove(path: Path) -> None:
    for suffix in ("", *_COMPANIONS):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def _set_aside(path: Path) -> Path:
    kept_as = _kept_names(path)[1]
    # The file first: without it, what follows is taken up again by the next opening.
    path.rename(kept_as)
    _set_companions_aside(path, kept_as)
    return kept_as


def _kept_names(path: Path) -> tuple[Path, Path]:
    """The latest name that a damaged file was given, and the next."""
    number = 1
    while (following := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    return path.with_name(f"{path.name}.damaged-{number - 1}"), following


def _set_companions_aside(path: Path, kept_as: Path) -> None:
    for suffix in _COMPANIONS:
        companion = path.with_name(path.name + suffix)
        if companion.exists():
            companion.rename(kept_as.with_name(kept_as.name + suffix))


def _finish_carry_over(path: Path) -> None:
    """Put a new file that is complete in its place, where the damaged one was set aside already."""
    new = _new_of(path)
    if not new.exists():
        return
    if path.exists() and path.stat().st_size:
        # The damaged file is still there, so that the new one may be half done.
        _remove(new)
        return
    # A write-ahead log of the damaged file would be read into the new one.
    _set_companions_aside(path, _kept_names(path)[0])
    new.rename(path)
    _mark_of(path).unlink(missing_ok=True)
    sync_folder(path.parent)


_Values = tuple[object, ...]


class _Remains:
    """What of a damaged file can still be read. `expected`: rows that an index remembers, or that were found."""

    def __init__(self, path: Path) -> None:
        self._rows: dict[int, _Values] = {}
        self._remembered: set[int] = set()
        self.session: list[_Values] = []
        self._extras: list[_Values] = []
        self.in_doubt: list[_Values] = []
        self.clock: list[_Values] = []
        self._last_id = 0
        self._is_sequence_known = False
        if not self._read(path):
            self._read_with_lent_header(path)
        self.rows = sorted((row for row in self._rows.values() if _is_sound(row)), key=_id_of)
        carried = {row[0] for row in self.rows}
        self.extras = [row for row in self._extras if row[0] in carried and _are_sound_extras(row)]
        self._remembered.update(self._rows)
        self.expected = len(self._remembered)
        highest = max(self._last_id, *self._remembered, 0)
        self.last_id = highest if self._is_sequence_known else highest + _IDS_LEFT_OUT

    def _read(self, path: Path) -> bool:
        """Read what can be read; False where not even the schema can."""
        try:
            connection = connect(path, apsw.SQLITE_OPEN_READWRITE)
        except apsw.Error:
            return False
        try:
            connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
            if connection.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'mqtt_offline_queue'").get == 0:
                return False
        except apsw.Error as error:
            logger.warning("the schema of the damaged file %s cannot be read: %s", path, error)
            return False
        else:
            sequence = _number(connection, _SEQUENCE)
            self._is_sequence_known = sequence is not None
            self._last_id = sequence or 0
            self._read_indexes(connection)
            self._read_table(connection)
            self._read_session(connection)
            return True
        finally:
            connection.close()

    def _read_with_lent_header(self, path: Path) -> None:
        """Read a copy whose header, then whole first page, is that of a new file: the tables stand where they did."""
        copy = path.with_name(path.name + "-copy")
        try:
            for lent_bytes in (_HEADER_BYTES, None):
                _remove(copy)
                _create(copy)
                page = _first_page(copy)
                _remove(copy)
                for suffix in ("", "-wal"):
                    source = path.with_name(path.name + suffix)
                    if source.exists():
                        _copy(source, copy.with_name(copy.name + suffix))
                with copy.open("r+b") as file:
                    file.write(page[:lent_bytes])
                if self._read(copy) and self._rows:
                    return
        finally:
            _remove(copy)

    def _read_indexes(self, connection: apsw.Connection) -> None:
        """The ids that the indexes remember, from both ends of each."""
        for index, column in (("idx_timestamp", "timestamp"), ("idx_ttl", "ttl")):
            for order in ("ASC", "DESC"):
                query = f"SELECT id FROM mqtt_offline_queue INDEXED BY {index} ORDER BY {column} {order}"  # noqa: S608
                with suppress(apsw.Error):
                    for (number,) in connection.execute(query):
                        self._remembered.add(number)

    def _read_table(self, connection: apsw.Connection) -> None:
        lowest_unread = self._read_in_order(connection, "ASC")
        if lowest_unread is None:
            return
        highest_unread = self._read_in_order(connection, "DESC")
        if highest_unread is None:
            return
        # Both ends stopped at a broken page: what stands between them is found one by one.
        up = range(lowest_unread, min(highest_unread, lowest_unread + _TRIED_IDS_MAX) + 1)
        down = range(highest_unread, max(highest_unread - _TRIED_IDS_MAX, lowest_unread), -1)
        for number in self._remembered.union(up, down).difference(self._rows):
            with suppress(apsw.Error, UnicodeDecodeError):
                for row in connection.execute(f"{_SELECT} WHERE id = ?", (number,)):
                    self._rows[number] = row

    def _read_in_order(self, connection: apsw.Connection, order: str) -> int | None:
        """The id at which reading stopped; None where it came to the end."""
        step = 1 if order == "ASC" else -1
        reached: int | None = None
        try:
            for row in connection.execute(f"{_SELECT} ORDER BY id {order}"):
                reached = row[0]
                self._rows[row[0]] = row
        except (apsw.Error, UnicodeDecodeError) as error:
            logger.warning("reading damaged rows (%s) ended after %d: %s", order, len(self._rows), error)
            if reached is not None:
                return reached + step
            return 1 if order == "ASC" else max(self._last_id, *self._remembered, 1)
        return None

    def _read_session(self, connection: apsw.Connection) -> None:
        with suppress(apsw.Error, UnicodeDecodeError):
            for row in connection.execute("SELECT id, client_id, broker, in_flight FROM glec_session WHERE id = 1"):
                if _is_sound_session(row):
                    self.session = [row]
        with suppress(apsw.Error, UnicodeDecodeError):
            query = "SELECT message_id, retain, expiry_interval, properties FROM glec_extras"
            self._extras = connection.execute(query).fetchall()
        with suppress(apsw.Error, UnicodeDecodeError):
            self.in_doubt = connection.execute(
                "SELECT number, time, message_id, topic, decision FROM glec_in_doubt ORDER BY number"
            ).fetchall()
        with suppress(apsw.Error, UnicodeDecodeError):
            row = connection.execute("SELECT * FROM glec_clock").fetchone()
            if row is not None and _is_sound_clock(row):
                self.clock = [row]


def _first_page(scratch: Path) -> bytes:
    """The first page of a new file, with no count of pages of its own."""
    connection = apsw.Connection(str(scratch))
    _create_schema(connection)
    # WAL is part of the header; a log beside the file is then read with it.
    connection.pragma("journal_mode", "wal")
    size = connection.pragma("page_size")
    connection.close()
    page = bytearray(scratch.read_bytes()[:size])
    page[_PAGES_VALID_FOR] = bytes(4)
    return bytes(page)


def _number(connection: apsw.Connection, query: str) -> int | None:
    try:
        value = connection.execute(query).get
    except apsw.Error:
        return None
    return value if isinstance(value, int) else None


def _id_of(row: _Values) -> int:
    return row[0] if isinstance(row[0], int) else 0


def _is_sound(row: _Values) -> bool:
    return (
        len(row) == len(_COLUMNS)
        and isinstance(row[1], str)
        and _is_topic(row[1])
        and isinstance(row[2], (str, bytes))
        and row[3] in (0, 1, 2)
        and isinstance(row[4], int)
        and isinstance(row[5], int)
        and (row[6] is None or isinstance(row[6], int))
    )


def _is_sound_session(row: _Values) -> bool:
    _, client_id, broker, in_flight = row
    return isinstance(client_id, str) and isinstance(broker, str) and isinstance(in_flight, bytes)


def _are_sound_extras(row: _Values) -> bool:
    _, retain, expiry_interval_s, properties = row
    return retain in (0, 1) and isinstance(expiry_interval_s, (int, type(None))) and isinstance(properties, bytes)


def _is_sound_clock(row: _Values) -> bool:
    return len(row) == 6 and isinstance(row[1], str) and all(isinstance(value, int) for value in row[2:])


def _is_topic(topic: str) -> bool:
    try:
        check_publish(topic, 0)
    except MessageError:
        return False
    return True
