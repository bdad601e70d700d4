"""The queue file: opening, locking, creating and migrating it, and carrying over what a damaged one still holds.

The table and its indexes are the specification's ("Database Schema"), so that a file can move between clients. What
exactly-once needs stands beside it in `glec_session`. `PRAGMA user_version` is the version of the whole.
"""

from __future__ import annotations

import fcntl
import logging
import os
from pathlib import Path
from typing import NamedTuple

import apsw

from glec_fast.errors import QueueFormatError, QueueLockedError, QueueStorageError

SCHEMA_VERSION = 1

SCHEMA = """
CREATE TABLE IF NOT EXISTS mqtt_offline_queue (
    id INTEGER PRIMARY KEY AUTOINCREMENT, topic TEXT NOT NULL, payload TEXT NOT NULL, qos INTEGER NOT NULL,
    timestamp BIGINT NOT NULL, ttl BIGINT NOT NULL, retry_count INTEGER DEFAULT 0);
CREATE INDEX IF NOT EXISTS idx_timestamp ON mqtt_offline_queue(timestamp);
CREATE INDEX IF NOT EXISTS idx_ttl ON mqtt_offline_queue(ttl);
CREATE TABLE IF NOT EXISTS glec_session (
    id INTEGER PRIMARY KEY CHECK (id = 1), client_id TEXT NOT NULL, broker TEXT NOT NULL, in_flight BLOB NOT NULL);
"""

_COLUMNS = {"id", "topic", "payload", "qos", "timestamp", "ttl", "retry_count"}
_HEADER = b"SQLite format 3\x00"
_COMPANIONS = ("-wal", "-shm", "-journal")
# SQLite waits this long for a lock that only a foreign program can hold, such as a backup.
_BUSY_TIMEOUT_MS = 2000
# Reading every page takes about a second for 64 MB on a gateway's flash; larger files are checked as they are read.
_CHECKED_AT_OPEN_BYTES = 32 << 20
_CACHE_KIB = 512

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
        self.path = Path(path).absolute()
        self.salvage: Salvage | None = None
        self._lock_descriptor = _lock(self.path)
        try:
            self.connection = self._open()
        except BaseException:
            os.close(self._lock_descriptor)
            raise

    def _open(self) -> apsw.Connection:
        _refuse_foreign(self.path)
        try:
            return _open_checked(self.path)
        except (apsw.CorruptError, apsw.NotADBError) as error:
            logger.error("queue file %s is damaged (%s); carrying over what can be read", self.path, error)
            connection, self.salvage = _carry_over(self.path)
            logger.error(
                "%d messages carried over, at least %d lost; the damaged file is kept as %s",
                self.salvage.rows_carried, self.salvage.rows_lost, self.salvage.kept_as,
            )
            return connection
        except apsw.Error as error:
            raise storage_error(self.path, error) from error

    def reader(self) -> apsw.Connection:
        """A second connection, for reading only."""
        return connect(self.path, apsw.SQLITE_OPEN_READONLY)

    def close(self) -> None:
        """Close the write connection and let another process have the file. Idempotent."""
        if self._lock_descriptor >= 0:
            self.connection.close()
            os.close(self._lock_descriptor)
            self._lock_descriptor = -1


def connect(path: Path, flags: int) -> apsw.Connection:
    """A connection with this product's settings: small caches, a bounded wait for foreign locks."""
    connection = apsw.Connection(str(path), flags=flags)
    connection.set_busy_timeout(_BUSY_TIMEOUT_MS)
    connection.pragma("cache_size", -_CACHE_KIB)
    return connection


def storage_error(path: Path, error: BaseException) -> QueueStorageError:
    """The error of this family for what SQLite or the system reported about `path`."""
    if isinstance(error, apsw.FullError):
        return QueueStorageError(f"no space left for the queue file {path}: free some; what was accepted is kept")
    if isinstance(error, (apsw.ReadOnlyError, apsw.PermissionsError, PermissionError)):
        return QueueStorageError(f"the queue file {path} cannot be written ({error}): make it and its folder writable")
    return QueueStorageError(f"the queue file {path} failed ({error}): check the disk and the folder's permissions")


def _lock(path: Path) -> int:
    # Not on the file itself: closing any descriptor of it would drop SQLite's own locks in this process.
    lock_path = path.with_name(path.name + "-lock")
    try:
        descriptor = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        # Its -wal and -shm take their permissions from the file.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise storage_error(path, error) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise QueueLockedError(
            f"the queue file {path} is in use by another process or client: close it there, or use another path"
        ) from error
    return descriptor


def _refuse_foreign(path: Path) -> None:
    with path.open("rb") as file:
        header = file.read(len(_HEADER))
    # A header of zeros is what a flash block that was never written back looks like: a damaged queue, not a foreign file.
    if header and header != _HEADER and header.strip(b"\x00"):
        raise QueueFormatError(f"{path} is not a queue file (no SQLite header): give queue_path another name")


def _open_checked(path: Path) -> apsw.Connection:
    connection = connect(path, apsw.SQLITE_OPEN_READWRITE)
    try:
        version = connection.pragma("user_version")
        if version > SCHEMA_VERSION:
            raise QueueFormatError(
                f"{path} was written by a newer version (format {version}, this one knows {SCHEMA_VERSION}): "
                "update this program, or give queue_path another name"
            )
        tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
        if "mqtt_offline_queue" in tables:
            columns = {row[1] for row in connection.execute("PRAGMA table_info(mqtt_offline_queue)")}
            if not columns >= _COLUMNS:
                raise QueueFormatError(f"{path}: table mqtt_offline_queue lacks {sorted(_COLUMNS - columns)}")
            if path.stat().st_size <= _CHECKED_AT_OPEN_BYTES and connection.pragma("quick_check") != "ok":
                raise apsw.CorruptError("quick_check found errors")
        elif tables - {"sqlite_sequence"}:
            raise QueueFormatError(f"{path} is another program's database: give queue_path another name")
        connection.pragma("journal_mode", "wal")
        connection.pragma("synchronous", "full")
        with connection:
            connection.execute(SCHEMA)
            connection.pragma("user_version", SCHEMA_VERSION)
    except BaseException:
        connection.close()
        raise
    return connection


def _carry_over(path: Path) -> tuple[apsw.Connection, Salvage]:
    number = 1
    while (kept_as := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    for suffix in _COMPANIONS:
        companion = path.with_name(path.name + suffix)
        if companion.exists():
            companion.rename(kept_as.with_name(kept_as.name + suffix))
    path.rename(kept_as)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    connection = _open_checked(path)
    rows, expected, session = _read_damaged(kept_as)
    with connection:
        connection.executemany("INSERT OR REPLACE INTO mqtt_offline_queue VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
        connection.executemany("INSERT OR REPLACE INTO glec_session VALUES (?, ?, ?, ?)", session)
    return connection, Salvage(kept_as, len(rows), max(expected - len(rows), 0))


def _read_damaged(path: Path) -> tuple[list[tuple[object, ...]], int, list[tuple[object, ...]]]:
    """(rows, rows that an index remembers, the session's row): whatever of each can still be read."""
    rows: dict[int, tuple[object, ...]] = {}
    expected = 0
    session: list[tuple[object, ...]] = []
    try:
        with connect(path, apsw.SQLITE_OPEN_READWRITE) as connection:
            for order in ("ASC", "DESC"):
                _read_rows(connection, order, rows)
            expected = _first_number(connection, "SELECT count(*) FROM mqtt_offline_queue INDEXED BY idx_timestamp")
            session = list(connection.execute("SELECT * FROM glec_session"))
    except apsw.Error as error:
        logger.warning("reading the damaged file %s ended early: %s", path, error)
    good = [row for row in rows.values() if _is_sound(row)]
    return sorted(good, key=lambda row: int(str(row[0]))), max(expected, len(rows)), session


def _read_rows(connection: apsw.Connection, order: str, rows: dict[int, tuple[object, ...]]) -> None:
    # From both ends: a broken page in the middle then costs only what stands on it.
    try:
        for row in connection.execute(f"SELECT * FROM mqtt_offline_queue NOT INDEXED ORDER BY id {order}"):  # noqa: S608
            rows[row[0]] = row
    except apsw.Error as error:
        logger.warning("reading damaged rows (%s) ended after %d: %s", order, len(rows), error)


def _first_number(connection: apsw.Connection, query: str) -> int:
    try:
        return int(connection.execute(query).get)
    except apsw.Error:
        return 0


def _is_sound(row: tuple[object, ...]) -> bool:
    return (
        len(row) == len(_COLUMNS)
        and isinstance(row[1], str)
        and isinstance(row[2], (str, bytes))
        and row[3] in (0, 1, 2)
        and isinstance(row[4], int)
        and isinstance(row[5], int)
    )
