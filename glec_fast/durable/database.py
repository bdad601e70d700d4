"""The database in a queue file: its tables, whether it is one of ours, and what other writers left odd in it.

The table and its indexes are the specification's ("Database Schema"), so that a file can move between clients. What
exactly-once needs stands beside it in `glec_session`, and of brokers that are away in `glec_kept_session`; what it
could not keep to in `glec_in_doubt`; where the times of its rows come from, in `glec_clock`; what of a message has no
column in the given table, in `glec_extras`; what waits for company to be a message, in `glec_gathered`; rows that no
message can be made of, in `glec_set_aside`. Of what comes in: packet ids of QoS 2 in `glec_received`, commands and
their replies in `glec_command`.
`PRAGMA user_version` is the version of the whole; in a file whose first owner counts there for himself, as Android's
do, `glec_version` has ours.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil
from pathlib import Path

import apsw

from glec_fast.durable.foreign_rows import ID_MAX, STAMP_MAX_MS, TIME_MAX_MS
from glec_fast.errors import ConfigError, QueueFormatError, QueueStorageError
from glec_fast.runtime.log import logger
from glec_fast.validation import check_path, is_utf8

SCHEMA_VERSION = 1

_DECLARED = """(
    id INTEGER PRIMARY KEY AUTOINCREMENT, topic TEXT NOT NULL, payload TEXT NOT NULL, qos INTEGER NOT NULL,
    timestamp BIGINT NOT NULL, ttl BIGINT NOT NULL, retry_count INTEGER DEFAULT 0)"""
SCHEMA = f"""
CREATE TABLE IF NOT EXISTS mqtt_offline_queue {_DECLARED};
CREATE INDEX IF NOT EXISTS idx_timestamp ON mqtt_offline_queue(timestamp);
CREATE INDEX IF NOT EXISTS idx_ttl ON mqtt_offline_queue(ttl);
CREATE TABLE IF NOT EXISTS glec_session (
    id INTEGER PRIMARY KEY CHECK (id = 1), client_id TEXT NOT NULL, broker TEXT NOT NULL, in_flight BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS glec_kept_session (
    id INTEGER PRIMARY KEY, client_id TEXT NOT NULL, broker TEXT NOT NULL, in_flight BLOB NOT NULL,
    UNIQUE (client_id, broker));
CREATE TABLE IF NOT EXISTS glec_extras (
    message_id INTEGER PRIMARY KEY, retain INTEGER NOT NULL, expiry_interval INTEGER, properties BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS glec_in_doubt (
    number INTEGER PRIMARY KEY AUTOINCREMENT, time BIGINT NOT NULL, message_id INTEGER NOT NULL, topic TEXT NOT NULL,
    decision TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS glec_clock (
    id INTEGER PRIMARY KEY CHECK (id = 1), boot_id TEXT NOT NULL, queue_offset BIGINT NOT NULL,
    wall_offset BIGINT NOT NULL, queue_time BIGINT NOT NULL, first_id INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS glec_gathered (
    id INTEGER PRIMARY KEY CHECK (id = 1), topic TEXT NOT NULL, payload BLOB NOT NULL, properties BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS glec_set_aside (
    number INTEGER PRIMARY KEY AUTOINCREMENT, time BIGINT NOT NULL, reason TEXT NOT NULL, message_id INTEGER NOT NULL,
    topic, payload, qos, timestamp, ttl, retry_count, retain, expiry_interval, properties);
CREATE TABLE IF NOT EXISTS glec_received (
    client_id TEXT NOT NULL, broker TEXT NOT NULL, packet_id INTEGER NOT NULL, mark INTEGER,
    PRIMARY KEY (client_id, broker, packet_id)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS glec_command (
    number INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL, id BLOB NOT NULL, digest BLOB NOT NULL,
    packet_id INTEGER NOT NULL, qos INTEGER NOT NULL, topic TEXT NOT NULL, payload BLOB NOT NULL, properties BLOB,
    reply BLOB, expires BIGINT, UNIQUE (name, id));
"""
# Few new rows pass through it, in memory: see INSERT_STAGED of cext/durable/statements.pxi.
_STAGE = f"""
CREATE TEMP TABLE glec_staged {_DECLARED.replace(" AUTOINCREMENT", "")};
CREATE INDEX temp.glec_staged_timestamp ON glec_staged(timestamp);
CREATE INDEX temp.glec_staged_ttl ON glec_staged(ttl);
"""
_VERSION_TABLE = "CREATE TABLE glec_version (id INTEGER PRIMARY KEY CHECK (id = 1), version INTEGER NOT NULL)"

COLUMNS = ("id", "topic", "payload", "qos", "timestamp", "ttl", "retry_count")
# What a table of others may lack, as it has a meaning without: it never expires, and was never refused.
ADDED = {"ttl": f"BIGINT NOT NULL DEFAULT {TIME_MAX_MS}", "retry_count": "INTEGER DEFAULT 0"}
# What earlier versions did not have.
_ADDED_BESIDE = ("glec_received", "mark", "INTEGER"), ("glec_command", "expires", "BIGINT")
NUMBERED_BESIDE = ("glec_in_doubt", "glec_set_aside", "glec_command")
# Triggers, and indexes that may refuse a row: that have it only once, that compute, or that compare as we cannot.
_OBSTACLES = """
SELECT type, name, lower(tbl_name) FROM sqlite_schema WHERE type = 'trigger'
UNION ALL
SELECT 'index', i.name, lower(s.name) FROM sqlite_schema AS s, pragma_index_list(s.name) AS i
WHERE s.type = 'table' AND i.origin = 'c'
    AND (i."unique" OR i.partial OR EXISTS (
        SELECT 1 FROM pragma_index_xinfo(i.name)
        WHERE cid = -2 OR coll COLLATE NOCASE NOT IN ('BINARY', 'NOCASE', 'RTRIM')))
"""
# No client id or name that a server would take.
_NOBODY = "\ufffe"
# A row of each table, the key first, by which it is found out whether the table is of use.
_TRIED: dict[str, tuple[str, tuple[int | float | str | bytes | None, ...]]] = {
    "mqtt_offline_queue": (", ".join(COLUMNS), (ID_MAX, "t", "x", 1, 5, 6, 0)),
    "glec_extras": ("message_id, retain, expiry_interval, properties", (ID_MAX, 1, 5, b"x")),
    "glec_session": ("id, client_id, broker, in_flight", (1, "c", "b", b"x")),
    "glec_kept_session": ("id, client_id, broker, in_flight", (ID_MAX, "", "", b"x")),
    "glec_in_doubt": ("number, time, message_id, topic, decision", (ID_MAX, 5, 6, "t", "d")),
    "glec_clock": ("id, boot_id, queue_offset, wall_offset, queue_time, first_id", (1, "b", 5, 6, 7, 8)),
    "glec_gathered": ("id, topic, payload, properties", (1, "t", b"x", b"x")),
    "glec_set_aside": (
        (
            "number, time, reason, message_id, topic, payload, qos, timestamp, ttl, retry_count,"
            " retain, expiry_interval, properties"
        ),
        (ID_MAX, 5, "r", 6, None, b"x", "1", 2.5, *[None] * 5),
    ),
    "glec_received": ("client_id, broker, packet_id, mark", (_NOBODY, "b", 7, None)),
    "glec_command": (
        "number, name, id, digest, packet_id, qos, topic, payload, properties, reply, expires",
        (ID_MAX, _NOBODY, b"i", b"d", 5, 1, "t", b"p", None, None, 6),
    ),
}
# A later version adds one; what is above that is a damaged header.
_VERSION_MAX = 1000
_HEADER = b"SQLite format 3\x00"
# Where the header has the versions that may write and read the file: 1 without a write-ahead log, 2 with one.
_WRITE_VERSION = 18
_FIRST_PAGE_BYTES = 65536
# Of a write-ahead log; the last bit of the fourth byte is the byte order of its checksums.
_LOG_MAGIC = b"\x37\x7f\x06"
_CREATES_THE_QUEUE = re.compile(rb"CREATE TABLE[^(]{0,20}mqtt_offline_queue", re.IGNORECASE)
# SQLite waits this long for a lock that only a foreign program can hold, such as a backup.
BUSY_TIMEOUT_MS = 2000
# Reading every page takes about a second for 64 MB on a gateway's flash; larger files are checked as they are read.
_CHECKED_AT_OPEN_BYTES = 32 << 20
# Of each connection. 512 took 700 KiB more, and a flush was no faster.
_CACHE_KIB = 128
LOG_RESERVE_BYTES = 256 * 1024
# Pages of a new file. A transaction of a few rows changes a few pages, of which most is as it was: with pages of 4 KiB
# twice as much goes to the flash. A file that has other pages keeps them.
PAGE_BYTES = 1024
# The write-ahead log starts over at its front after so many bytes of pages. A commit that makes it longer waits for the
# disk twice as long, as the file system's own records are written too.
_LOG_BYTES = 1 << 20
# Of the log's index, at least.
_INDEX_BYTES = 32 * 1024
# Longer it is only while a transaction, or somebody who reads for long, needs it.
LOG_BYTES_MAX = 2 << 20
# An id that was given once must not be given again, also where the damage took the record of the highest.
IDS_LEFT_OUT = 1_000_000

# Numbers compare below all text, and text below all BLOBs, so that one index search finds whatever is no time.
_IDS_WHERE = "SELECT id FROM mqtt_offline_queue WHERE "
_ODD_TIMESTAMPS = " UNION ALL ".join(
    _IDS_WHERE + odd for odd in ("timestamp IS NULL", f"timestamp < -{STAMP_MAX_MS}", f"timestamp > {STAMP_MAX_MS}")
)
_ODD_TTLS = f"{_IDS_WHERE}ttl IS NULL UNION ALL {_IDS_WHERE}ttl >= ''"
_AS_UNIX_MS = "CAST(round((julianday({0}) - 2440587.5) * 86400000) AS INTEGER)"
_DIGITS_AS_MS = "CASE WHEN {0} NOT GLOB '*[^0-9]*' AND length({0}) BETWEEN 1 AND 15 THEN CAST({0} AS INTEGER) END"

# What SQLite says where another program has taken a table or a column away.
_IS_MISSING = re.compile(r"no such (table|column)|has no column named")
# What the system or another program has to mend; everything else that SQLite says of a file is damage.
_SURROUNDINGS = (
    apsw.AuthError,
    apsw.BusyError,
    apsw.CantOpenError,
    apsw.FullError,
    apsw.InterruptError,
    apsw.IOError,
    apsw.LockedError,
    apsw.NoMemError,
    apsw.PermissionsError,
    apsw.ReadOnlyError,
)


def stops_opening(error: BaseException) -> bool:
    """True where an opening fails by the file itself, whatever is wrong with it: only carrying over can help."""
    if is_damage(error):
        return True
    return isinstance(error, (apsw.Error, UnicodeDecodeError)) and not isinstance(error, _SURROUNDINGS)


def is_damage(error: BaseException) -> bool:
    """True where a file that was opened, or its log, turns out not to be what was written."""
    if isinstance(error, apsw.SQLError):
        return _IS_MISSING.search(str(error)) is not None
    if isinstance(error, apsw.IOError):
        return getattr(error, "extendedresult", 0) == apsw.SQLITE_IOERR_SHORT_READ
    return isinstance(error, (apsw.CorruptError, apsw.NotADBError, apsw.TooBigError, apsw.FormatError))


def connect(path: Path, flags: int) -> apsw.Connection:
    """A connection with this product's settings: small caches, a bounded wait for foreign locks."""
    connection = apsw.Connection(str(path), flags=flags)
    try:
        connection.set_busy_timeout(BUSY_TIMEOUT_MS)
        # Else each read of rows compiles its statement anew, as its LIMIT might change the plan.
        connection.config(apsw.SQLITE_DBCONFIG_ENABLE_QPSG, 1)
        # The first look at the file: one that is damaged is found out here.
        connection.pragma("cache_size", -_CACHE_KIB)
        connection.pragma("page_size", PAGE_BYTES)
    except BaseException:
        connection.close(True)
        raise
    return connection


def open_database(path: Path, *, is_known: bool = False) -> apsw.Connection:
    """The write connection, once the database is known to be ours and to take what is written to it.

    is_known: it was open in this process until now.
    Raises QueueFormatError, apsw.Error.
    """
    connection = connect(path, apsw.SQLITE_OPEN_READWRITE)
    try:
        # Until it is known to be ours: closing would otherwise fold its write-ahead log into a file that we refuse.
        connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        if not is_known:
            check(connection, path)
        connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 0)
        connection.pragma("journal_mode", "wal")
        connection.pragma("synchronous", "full")
        connection.pragma("wal_autocheckpoint", _LOG_BYTES // connection.pragma("page_size"))
        connection.pragma("journal_size_limit", LOG_BYTES_MAX)
        connection.pragma("temp_store", "memory")
        if not is_known:
            create_schema(connection)
            _mend(connection)
            _try_out_beside(path)
        connection.execute(_STAGE)
        reserve_log(path)
    except BaseException:
        connection.close(True)
        raise
    return connection


def check_header(path: Path) -> None:
    """Raises QueueFormatError for what was never a queue file; apsw.CorruptError where SQLite would not see the damage.

    Raises OSError.
    """
    with path.open("rb") as file:
        page = file.read(_FIRST_PAGE_BYTES)
    header = page[: len(_HEADER)]
    if header != _HEADER[: len(header)]:
        # What flash blocks are that were erased, or never written back; or a few bytes turned. SQLite says so, or has a
        # journal that mends it.
        is_blank = not header.strip(b"\x00") or not header.strip(b"\xff")
        is_alike = sum(map(int.__eq__, header, _HEADER)) > len(_HEADER) // 2
        if not is_blank and not is_alike and not _names_the_queue(page):
            raise QueueFormatError(f"{path} is not a queue file (no SQLite header): give queue_path another name")
    elif _size_of(path, "-journal"):
        return
    elif not page and _has_begun_log(path):
        # SQLite would take the file for a new one, and delete the log.
        raise apsw.CorruptError("it is empty, and its write-ahead log is not")
    elif len(page) > _WRITE_VERSION and page[_WRITE_VERSION] not in (1, 2):
        raise apsw.CorruptError("no version of SQLite may write to it")


def _size_of(path: Path, suffix: str) -> int:
    companion = path.with_name(path.name + suffix)
    return companion.stat().st_size if companion.exists() else 0


def _has_begun_log(path: Path) -> bool:
    if not _size_of(path, "-wal"):
        return False
    with path.with_name(path.name + "-wal").open("rb") as log:
        return log.read(len(_LOG_MAGIC)) == _LOG_MAGIC


def _names_the_queue(page: bytes) -> bool:
    # A dump of it as text is none.
    return b"\0" in page and _CREATES_THE_QUEUE.search(page) is not None


def check(connection: apsw.Connection, path: Path) -> None:
    """Raises QueueFormatError for another program's database, apsw.Error where this one is damaged."""
    version = connection.pragma("user_version")
    query = "SELECT lower(name) FROM sqlite_schema WHERE type IN ('table', 'view')"
    tables = {name for (name,) in connection.execute(query)}
    if "mqtt_offline_queue" not in tables:
        if not tables - {"sqlite_sequence"}:
            return
        with path.open("rb") as file:
            if _names_the_queue(file.read(_FIRST_PAGE_BYTES)):
                raise apsw.CorruptError("its tables cannot be told apart")
        if "glec_session" in tables:
            raise apsw.CorruptError("its table of messages is gone, or has another name")
        raise QueueFormatError(f"{path} is another program's database: give queue_path another name")
    if "glec_version" in tables:
        version = connection.execute("SELECT max(version) FROM glec_version WHERE typeof(version) = 'integer'").get
    elif not any(name.startswith("glec_") for name in tables):
        # The count of whoever made the given table.
        version = SCHEMA_VERSION
    if version is None or version > _VERSION_MAX or version < 0:
        raise apsw.CorruptError("it has no version")
    if version > SCHEMA_VERSION:
        raise QueueFormatError(
            f"{path} was written by a newer version (format {version}, this one knows {SCHEMA_VERSION}): "
            "update this program, or give queue_path another name"
        )
    _check_columns(connection, path)
    if path.stat().st_size <= _CHECKED_AT_OPEN_BYTES and connection.execute("PRAGMA integrity_check(1)").get != "ok":
        raise apsw.CorruptError("integrity_check found errors")


def _check_columns(connection: apsw.Connection, path: Path) -> None:
    info = {row[1].lower(): row for row in connection.execute("PRAGMA table_xinfo(mqtt_offline_queue)")}
    if missing := set(COLUMNS).difference(info, ADDED):
        if connection.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'glec_session'").get:
            raise apsw.CorruptError(f"its table of messages lacks {sorted(missing)}, or they have other names")
        raise QueueFormatError(f"{path}: table mqtt_offline_queue lacks {sorted(missing)}")
    statement = connection.execute("SELECT sql FROM sqlite_schema WHERE lower(name) = 'mqtt_offline_queue'").get
    # Without it an id may be given twice; and only such an id is the number of a row.
    if not re.search(
        r"\bINTEGER\s+(NOT\s+NULL\s+)?PRIMARY\s+KEY\s+(ASC\s+)?AUTOINCREMENT\b", str(statement), re.IGNORECASE
    ):
        raise apsw.CorruptError("its ids are not those of the specification")
    for name in ("qos", "timestamp", "ttl", "retry_count"):
        if name in info and not _holds_integers(info[name][2].upper()):
            raise apsw.CorruptError(f"its column {name} is not of the specified type")


def _holds_integers(declared: str) -> bool:
    # SQLite's rules of column affinity, section 3.1 of its page on data types.
    if "INT" in declared:
        return True
    return bool(declared) and not any(
        part in declared for part in ("CHAR", "CLOB", "TEXT", "BLOB", "REAL", "FLOA", "DOUB")
    )


@contextmanager
def _transaction(connection: apsw.Connection, end: str = "COMMIT") -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute(end)
    except BaseException:
        # An error of the disk may have ended it.
        if not connection.get_autocommit():
            connection.execute("ROLLBACK")
        raise


def create_schema(connection: apsw.Connection) -> None:
    """Add what of the tables is missing; a version that others count for themselves stays theirs."""
    with _transaction(connection):
        version = connection.pragma("user_version")
        names = {name for (name,) in connection.execute("SELECT lower(name) FROM sqlite_schema")}
        of_the_queue = [("mqtt_offline_queue", *added) for added in ADDED.items()]
        for table, column, declaration in (*of_the_queue, *_ADDED_BESIDE):
            present = {row[1].lower() for row in connection.execute(f"PRAGMA table_xinfo({table})")}
            if table in names and column not in present:
                connection.execute(f"ALTER TABLE {table} ADD COLUMN {column} {declaration}")
        is_ours = "mqtt_offline_queue" not in names or any(name.startswith("glec_") for name in names)
        connection.execute(SCHEMA)
        if "glec_version" in names or version == SCHEMA_VERSION:
            return
        if is_ours or version == 0:
            connection.pragma("user_version", SCHEMA_VERSION)
        else:
            connection.execute(_VERSION_TABLE)
            connection.execute("INSERT INTO glec_version VALUES (1, ?)", (SCHEMA_VERSION,))


def _mend(connection: apsw.Connection) -> None:
    """Give rows of other writers ids and times that rows can be found and ordered by, as far as an index finds them."""
    with _transaction(connection):
        _drop_obstacles(connection)
        for says in mend_numbers(connection, ("mqtt_offline_queue", *NUMBERED_BESIDE)):
            logger.warning("%s", says)
        mend_times(connection)


def _drop_obstacles(connection: apsw.Connection) -> None:
    """Of another program: one may change, swallow or refuse rows of one kind alone, and nobody would hear of it."""
    for kind, name, table in connection.execute(_OBSTACLES).fetchall():
        if table == "mqtt_offline_queue" or str(table).startswith("glec_"):
            quoted = str(name).replace('"', '""')
            connection.execute(f'DROP {kind} "{quoted}"')
            logger.warning(
                "the %s %s of another program on %s is dropped: queue rows are ours alone", kind, name, table
            )


def mend_numbers(connection: apsw.Connection, tables: tuple[str, ...] = NUMBERED_BESIDE) -> list[str]:
    """Have the next numbers of these tables be storable, within a transaction; returns what was mended, in words."""
    mended = []
    for table in tables:
        key = "id" if table == "mqtt_offline_queue" else "number"
        sequences = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = ?", (table,)).fetchall()
        highest = connection.execute(
            f"SELECT coalesce(max({key}), 0) FROM {table} WHERE {key} BETWEEN 1 AND {ID_MAX}"  # noqa: S608
        ).get
        is_sound = len(sequences) == 1 and type(sequences[0][0]) is int and 0 <= sequences[0][0] <= ID_MAX
        odd = connection.execute(f"SELECT {key} FROM {table} WHERE {key} < 1 OR {key} > {ID_MAX}").fetchall()  # noqa: S608
        if not odd and (is_sound or (not sequences and highest == 0)):
            continue
        last = max(highest, sequences[0][0]) if is_sound else highest + (IDS_LEFT_OUT if sequences else 0)
        for number, (each,) in enumerate(odd, last + 1):
            connection.execute(f"UPDATE {table} SET {key} = ? WHERE {key} = ?", (number, each))  # noqa: S608
        connection.execute("DELETE FROM sqlite_sequence WHERE name = ?", (table,))
        connection.execute("INSERT INTO sqlite_sequence VALUES (?, ?)", (table, last + len(odd)))
        mended.append(f"the ids of {table} were mended: they go on behind {last + len(odd)}")
    return mended


def mend_times(connection: apsw.Connection) -> None:
    """A date and time as text is taken for UTC. What says nothing is as old as the youngest row, and never expires."""
    youngest_ms = connection.execute(
        "SELECT coalesce(max(timestamp), 0) FROM mqtt_offline_queue WHERE timestamp BETWEEN -?1 AND ?1", (STAMP_MAX_MS,)
    ).get
    as_told = f"coalesce({_DIGITS_AS_MS.format('timestamp')}, {_AS_UNIX_MS.format('timestamp')}, ?)"
    connection.execute(
        "UPDATE mqtt_offline_queue SET timestamp = CASE WHEN typeof(timestamp) = 'text'"  # noqa: S608
        f" THEN {as_told} WHEN timestamp < 0 THEN -{STAMP_MAX_MS} ELSE ? END WHERE id IN ({_ODD_TIMESTAMPS})",
        (ceil(youngest_ms), ceil(youngest_ms)),
    )
    as_told = f"coalesce({_DIGITS_AS_MS.format('ttl')}, {_AS_UNIX_MS.format('ttl')}, {TIME_MAX_MS})"
    connection.execute(
        f"UPDATE mqtt_offline_queue SET ttl = iif(typeof(ttl) = 'text', {as_told}, {TIME_MAX_MS})"  # noqa: S608
        f" WHERE id IN ({_ODD_TTLS})"
    )


def _try_out_beside(path: Path) -> None:
    """On a connection of its own: the end of it throws away the pages that a connection has read.

    Those are what is left where somebody cuts the log of a file in use.
    """
    connection = connect(path, apsw.SQLITE_OPEN_READWRITE)
    try:
        with _transaction(connection, "ROLLBACK"):
            _try_out(connection)
    finally:
        connection.close(True)


def _try_out(connection: apsw.Connection) -> None:
    """Find out whether the tables take and give what is written to them, whatever else was declared about them.

    Nothing of it reaches the disk. Raises apsw.Error where they do not.
    """
    with _undone(connection):
        for table, (names, row) in _TRIED.items():
            key = names.partition(",")[0]
            connection.execute(f"DELETE FROM {table} WHERE {key} = ?", row[:1])  # noqa: S608
            connection.execute(f"INSERT INTO {table} ({names}) VALUES ({', '.join('?' * len(row))})", row)  # noqa: S608
            found = connection.execute(f"SELECT {names} FROM {table} WHERE {key} = ?", row[:1]).fetchall()  # noqa: S608
            if found != [row]:
                raise apsw.CorruptError(f"table {table} does not keep what is written to it")
            connection.execute(f"DELETE FROM {table} WHERE {key} = ?", row[:1])  # noqa: S608
            if connection.execute(f"SELECT {key} FROM {table} WHERE {key} = ?", row[:1]).get is not None:  # noqa: S608
                raise apsw.CorruptError(f"table {table} does not let go of what was written to it")
    connection.execute("SELECT count(*) FROM mqtt_offline_queue").get  # noqa: B018


@contextmanager
def _undone(connection: apsw.Connection) -> Iterator[None]:
    """Within a transaction."""
    connection.execute("SAVEPOINT tried")
    try:
        yield
    finally:
        # An error of the disk may have ended it.
        if not connection.get_autocommit():
            connection.execute("ROLLBACK TO tried; RELEASE tried")


def check_changed(connection: apsw.Connection, path: Path) -> None:
    """Within a transaction that finds that another program has declared something anew.

    Raises apsw.CorruptError where the tables no longer keep what is written to them, as then only a new file does.
    """
    try:
        _check_columns(connection, path)
        _drop_obstacles(connection)
        _try_out(connection)
    except (apsw.Error, QueueFormatError) as error:
        if isinstance(error, _SURROUNDINGS):
            raise
        raise apsw.CorruptError(f"another program has changed its tables: {error}") from error


def has_stage(connection: apsw.Connection) -> bool:
    """True where rows can pass from the stage to the queue's table: only what another program declared may differ."""
    info = connection.execute("PRAGMA table_xinfo(mqtt_offline_queue)")
    return tuple(row[1].lower() for row in info) == COLUMNS


def reserve_log(path: Path) -> None:
    """Have room in the write-ahead log for the deletes that make room, however full the disk will be.

    SQLite takes what it has not written there for the log's end, and starts over at its front. It makes the log shorter
    for another program alone.
    """
    try:
        with path.with_name(path.name + "-wal").open("rb+") as log:
            os.posix_fallocate(log.fileno(), 0, LOG_RESERVE_BYTES)
    except OSError as error:
        logger.warning("no room is kept for the deletes of %s on a full disk: %s", path, error)


def _is_full(path: Path, error: BaseException) -> bool:
    if isinstance(error, apsw.IOError):
        # What SQLite says where it cannot make the log's index.
        try:
            system = os.statvfs(path.parent)
        except OSError:
            return False
        return system.f_bavail * system.f_frsize < _INDEX_BYTES
    return isinstance(error, apsw.FullError) or (isinstance(error, OSError) and error.errno == errno.ENOSPC)


def located(path: str | os.PathLike[str]) -> Path:
    """Where the queue file is, links resolved: SQLite names its companions after the file.

    Raises ConfigError for what SQLite can open under no circumstances, QueueStorageError where nobody can look.
    """
    check_path("queue_path", path)
    named = Path(path)
    shown = os.fsencode(path).decode("utf-8", "backslashreplace")
    try:
        found = named.resolve()
    except FileNotFoundError as error:
        says = f"the queue file {shown} has no place: the working folder of this process was deleted; give a whole path"
        raise QueueStorageError(says) from error
    except (OSError, RuntimeError) as error:
        why = getattr(error, "strerror", None) or str(error).partition(" from ")[0]
        raise QueueStorageError(f"the queue file {shown} cannot be looked at ({why}): mend the path") from error
    if not is_utf8(str(found)):
        says = f"queue_path {shown} is not UTF-8, which SQLite's names of files are: rename the file or its folder"
        raise ConfigError(says, field="queue_path")
    return found


def storage_error(path: Path, error: BaseException) -> QueueStorageError:
    """The error of this family for what SQLite or the system reported about `path`."""
    # Unlike a Path's, which raises where it may not look, or the name is too long.
    if not os.path.isdir(path.parent):  # noqa: PTH112
        return QueueStorageError(f"there is no folder {path.parent} for the queue file: make it, or name another")
    if _is_full(path, error):
        return QueueStorageError(f"no space left for the queue file {path}: free some; what was accepted is kept")
    if isinstance(error, (apsw.BusyError, apsw.LockedError)):
        return QueueStorageError(
            f"the queue file {path} is locked by another program's transaction ({error}): end it there; then try again"
        )
    if isinstance(error, (apsw.ReadOnlyError, apsw.PermissionsError, PermissionError)):
        return QueueStorageError(f"the queue file {path} cannot be written ({error}): make it and its folder writable")
    if is_damage(error):
        return QueueStorageError(
            f"the queue file {path} is damaged ({error}): what is left is saved as soon as the disk lets it"
        )
    return QueueStorageError(f"the queue file {path} failed ({error}): check the disk and the folder's permissions")
