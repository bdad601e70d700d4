"""What can still be read of a damaged queue file: the rows that a new one is made of.

The larger part of salvage, which hardly any file ever needs: it is imported once one does.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import apsw

from glec_fast.durable.broken_log import with_whole_frames
from glec_fast.durable.database import (
    ADDED,
    COLUMNS,
    IDS_LEFT_OUT,
    connect,
    create_schema,
)
from glec_fast.durable.foreign_rows import ID_MAX, STAMP_MAX_MS, TIME_MAX_MS, are_extras, as_number, as_time_ms
from glec_fast.durable.lock import create_file
from glec_fast.durable.raw_pages import PageError, RawPages, bytes_in_pages
from glec_fast.durable.salvage import FRAMES, LENT, copy, remove
from glec_fast.runtime.log import logger

# Text as bytes, which need not be any: an error would end the reading.
_AS_FOUND = "iif(typeof({0}) = 'text', CAST({0} AS BLOB), {0})"
_SELECT = (
    "SELECT id, CAST(topic AS BLOB), CAST(payload AS BLOB), typeof(payload), "  # noqa: S608
    + ", ".join(_AS_FOUND.format(name) for name in ("qos", "timestamp", "ttl", "retry_count"))
    + " FROM mqtt_offline_queue NOT INDEXED"
)
_HEADER_BYTES = 100
# Those that SQLite has, ours and those of earlier versions first.
_PAGE_SIZES = (1024, 4096, 512, 2048, 8192, 16384, 32768, 65536)
_INNER_OF_TABLE = 0x05
_PAGE_SIZE, _PAGES = slice(16, 18), slice(28, 32)
# Where the header has the change counter for which its own count of pages holds; 0 has SQLite measure the file instead.
_PAGES_VALID_FOR = slice(92, 96)
# Ids between two readable ends of a damaged table are tried one by one, up to so many from each end.
_TRIED_IDS_MAX = 100_000
# It is no image, so that who opens the file takes it for one that cannot be read.
_UNREADABLE_SESSION = (1, "", "", b"\x00")
# Found out in use, where NULL cannot be kept.
_NO_QOS = "NULL"
# Columns of a command in a file of an earlier version.
_COMMAND_BEFORE = 10
_SEQUENCE = "SELECT seq FROM sqlite_sequence WHERE name = 'mqtt_offline_queue'"

_Values = tuple[Any, ...]


class Remains:
    """What of a damaged file can still be read. `expected`: rows that an index remembers, or that were found."""

    def __init__(self, path: Path) -> None:
        self._rows: dict[int, _Values] = {}
        self._remembered: set[int] = set()
        # All ids that there are, where an index could be read to its end.
        self._exact: set[int] | None = None
        self._session: list[_Values] = []
        self._kept: list[_Values] = []
        self._extras: list[_Values] = []
        self._in_doubt: list[_Values] = []
        self._set_aside: list[_Values] = []
        self._clock: list[_Values] = []
        self._received: list[_Values] = []
        self._gathered: list[_Values] = []
        self._commands: list[_Values] = []
        self._last_id = 0
        self._is_sequence_known = False
        self._is_incomplete = False
        self._encoding = "UTF-8"
        self._read_latest(path)
        self._remembered = {number for number in self._remembered.union(self._rows) if 0 < number <= ID_MAX}
        self.expected = max(len(self._remembered), len(self._rows))
        highest = max(self._last_id, *self._remembered, 0)
        self._last_id = highest if self._is_sequence_known else min(highest + IDS_LEFT_OUT, ID_MAX)
        self.rows = list(self._sound_rows())

    def _read_latest(self, path: Path) -> None:
        whole = path.with_name(path.name + FRAMES)
        try:
            remove(whole)
            if with_whole_frames(path, whole) and (self._read_any(whole) or self._rows):
                return
        except OSError as error:
            logger.warning("the log of the damaged file %s cannot be read frame by frame: %s", path, error)
        finally:
            remove(whole)
        self._read_any(path)

    def _read_any(self, path: Path) -> bool:
        """False where not all could be read."""
        # SQLite would delete the log of an empty file.
        if not path.stat().st_size or not self._read(path) or (self._is_incomplete and _has_wrong_size(path)):
            self._read_with_lent_header(path)
            return False
        return not self._is_incomplete

    def _sound_rows(self) -> Iterator[_Values]:
        """With ids and times that rows are found and ordered by; what no message can be made of is found out in use."""
        youngest = max((row[5] for row in self._rows.values() if _is_time(row[5])), default=0)
        for number, (_, topic, payload, kind, qos, timestamp, ttl, retry_count) in sorted(self._rows.items()):
            if not 0 < number <= ID_MAX:
                # Behind all others.
                self._last_id += 1
            timestamp_ms = as_time_ms(timestamp, STAMP_MAX_MS)
            yield (
                number if 0 < number <= ID_MAX else self._last_id,
                self._stored(topic, "text"),
                self._stored(payload, kind),
                _NO_QOS if qos is None else qos,
                max(timestamp_ms, -STAMP_MAX_MS) if timestamp_ms < STAMP_MAX_MS else round(youngest),
                as_time_ms(ttl, TIME_MAX_MS),
                as_number(retry_count) or 0,
            )

    def _stored(self, value: bytes | None, kind: str) -> str | bytes:
        """As it was: TEXT that is none as a BLOB, as the table keeps it; NULL as nothing."""
        data = value or b""
        if kind == "blob" or (b"\0" in data and self._encoding == "UTF-8"):
            return data
        try:
            return data.decode(self._encoding)
        except UnicodeDecodeError:
            return data

    def write(self, connection: apsw.Connection) -> None:
        """Into the tables of a new file. What of the tables beside does not fit them is left out."""
        carried = {row[0] for row in self.rows}
        extras = [row for row in self._extras if row[0] in carried and are_extras(*row[1:])]
        for table, rows in (
            (f"mqtt_offline_queue ({', '.join(COLUMNS)})", self.rows),
            ("glec_extras", extras),
            ("glec_session", self._session),
            ("glec_kept_session", self._kept),
            ("glec_in_doubt", self._in_doubt),
            ("glec_clock", self._clock),
            ("glec_gathered", self._gathered),
            ("glec_set_aside", self._set_aside),
            ("glec_received", self._received),
            ("glec_command", self._commands),
        ):
            if rows:
                places = ", ".join("?" * len(rows[0]))
                connection.executemany(f"INSERT OR IGNORE INTO {table} VALUES ({places})", rows)  # noqa: S608
        connection.execute("DELETE FROM sqlite_sequence WHERE name = 'mqtt_offline_queue'")
        connection.execute("INSERT INTO sqlite_sequence VALUES ('mqtt_offline_queue', ?)", (self._last_id,))

    def _read(self, path: Path, *, is_header_lent: bool = False) -> bool:
        """Read what can be read; False where not even the schema can."""
        try:
            connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
        except apsw.Error:
            return False
        try:
            connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
            # Else one table whose first page is gone, as in a file that was cut, keeps it from reading the others.
            connection.config(apsw.SQLITE_DBCONFIG_WRITABLE_SCHEMA, 1)
            if not _name_messages(connection):
                return False
            self._encoding = connection.pragma("encoding")
        except apsw.Error as error:
            logger.warning("the schema of the damaged file %s cannot be read: %s", path, error)
            return False
        else:
            sequence = _number(connection, _SEQUENCE)
            if sequence is not None and 0 <= sequence <= ID_MAX:
                self._is_sequence_known, self._last_id = True, max(self._last_id, sequence)
            self._read_indexes(connection)
            self._read_table(connection)
            if self._is_incomplete:
                self._read_leaves(connection, path, is_header_lent=is_header_lent)
            self._read_beside(connection)
            return True
        finally:
            connection.close(True)

    def _read_with_lent_header(self, path: Path) -> None:
        """Read a copy whose header, then whole first page, then all of its schema is that of a new file.

        The tables stand where they did. Of a file that was cut the header is its own first, but for the count of pages.
        """
        lent = path.with_name(path.name + LENT)
        # With pages of another size than it has, some rows could be read too.
        page_bytes = max(_PAGE_SIZES, key=lambda size: bytes_in_pages(path, size))
        try:
            remove(lent)
            create_file(lent)
            pages = _schema_pages(lent, page_bytes)
            own = {_PAGES_VALID_FOR.start: bytes(4)}
            for given in (*[own] * _has_wrong_size(path), {0: pages[0][:_HEADER_BYTES]}, {0: pages[0]}, pages):
                remove(lent)
                for suffix in ("", "-wal"):
                    source = path.with_name(path.name + suffix)
                    if source.exists():
                        copy(source, lent.with_name(lent.name + suffix))
                with lent.open("r+b") as file:
                    for at, page in given.items():
                        file.seek(at)
                        file.write(page)
                if self._read(lent, is_header_lent=given is not own) and self._rows:
                    return
        finally:
            remove(lent)

    def _read_indexes(self, connection: apsw.Connection) -> None:
        """The ids that the indexes remember, from both ends of each."""
        for index, column in (("idx_timestamp", "timestamp"), ("idx_ttl", "ttl")):
            for order in ("ASC", "DESC"):
                query = f"SELECT id FROM mqtt_offline_queue INDEXED BY {index} ORDER BY {column} {order}"  # noqa: S608
                found: set[int] = set()
                with suppress(apsw.Error, UnicodeDecodeError):
                    for (number,) in connection.execute(query):
                        if type(number) is int:
                            found.add(number)
                    self._exact = found
                self._remembered.update(found)

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
            with suppress(apsw.Error, UnicodeDecodeError, OverflowError):
                for row in connection.execute(f"{_SELECT} WHERE id = ?", (number,)):
                    self._keep(row)

    def _read_leaves(self, connection: apsw.Connection, path: Path, *, is_header_lent: bool) -> None:
        """Rows that the tree does not lead to any more, where it is certain that they were not deleted."""
        copied = path.with_name(path.name + "-pages")
        try:
            columns = tuple(row[1] for row in connection.execute("PRAGMA table_xinfo(mqtt_offline_queue)"))
            if columns != COLUMNS or (is_header_lent and self._exact is None):
                return
            create_file(copied)
            target = connect(copied, apsw.SQLITE_OPEN_READWRITE)
            # Each page as it is, those of the log in their places.
            with closing(target), target.backup("main", connection, "main") as backup:
                backup.step()
            pages = RawPages(copied)
            try:
                free = set() if is_header_lent else pages.free()
            except PageError:
                if self._exact is None:
                    return
                free = set()
            for row in pages.rows(free):
                if 0 < row[0] <= ID_MAX and row[0] not in self._rows and (self._exact is None or row[0] in self._exact):
                    self._keep(row)
        except (apsw.Error, OSError, PageError) as error:
            logger.warning("the pages of the damaged file %s cannot be read one by one: %s", path, error)
        finally:
            remove(copied)

    def _keep(self, row: _Values) -> int:
        number = row[0]
        if type(number) is not int:
            # A table whose ids are no numbers of rows: it keeps its order, and not its ids.
            number = as_number(number) or 0
            if number <= 0 or number in self._rows:
                number = max(self._rows, default=0) + 1
        self._rows[number] = row
        return number

    def _read_in_order(self, connection: apsw.Connection, order: str) -> int | None:
        """The id at which reading stopped; None where it came to the end."""
        step = 1 if order == "ASC" else -1
        reached: int | None = None
        try:
            for row in connection.execute(f"{_SELECT} ORDER BY id {order}"):
                reached = self._keep(row)
        except (apsw.Error, UnicodeDecodeError) as error:
            self._is_incomplete = True
            logger.warning("reading damaged rows (%s) ended after %d: %s", order, len(self._rows), error)
            if reached is not None:
                return reached + step
            return 1 if order == "ASC" else max(self._last_id, *self._remembered, 1)
        return None

    def _read_beside(self, connection: apsw.Connection) -> None:
        """What stands in the tables beside the queue's, each as far as it can be read; if it is sound shows in use."""
        try:
            query = "SELECT id, CAST(client_id AS BLOB), CAST(broker AS BLOB), in_flight FROM glec_session WHERE id = 1"
            self._session = [
                (number, self._stored(client_id, "text"), self._stored(broker, "text"), in_flight)
                for number, client_id, broker, in_flight in connection.execute(query)
            ]
        except apsw.SQLError:
            # There is none, as in a file of another client.
            pass
        except (apsw.Error, UnicodeDecodeError):
            self._session = self._session or [_UNREADABLE_SESSION]
        try:
            self._kept.extend(connection.execute("SELECT * FROM glec_kept_session"))
        except apsw.SQLError:
            # As above, or in a file of an earlier version.
            pass
        except (apsw.Error, UnicodeDecodeError):
            # What waits for a broker that is away would be sent to another, and nobody told.
            self._session = [_UNREADABLE_SESSION]
        self._extras = _rows(connection, "SELECT message_id, retain, expiry_interval, properties FROM glec_extras")
        self._in_doubt = _rows(connection, "SELECT number, time, message_id, topic, decision FROM glec_in_doubt")
        self._clock = _rows(connection, "SELECT * FROM glec_clock WHERE id = 1")
        self._set_aside = _rows(connection, "SELECT * FROM glec_set_aside")
        # An earlier version had no marks, and no times at which commands expire.
        self._received = [(*row, None)[:4] for row in _rows(connection, "SELECT * FROM glec_received")]
        # With a lent first page another table may stand where it has this one.
        types = "typeof(topic) = 'text' AND typeof(payload) = 'blob' AND typeof(properties) = 'blob'"
        self._gathered = _rows(connection, f"SELECT * FROM glec_gathered WHERE id = 1 AND {types}")  # noqa: S608
        commands = _rows(connection, "SELECT * FROM glec_command")
        self._commands = [row + (None,) * (len(row) == _COMMAND_BEFORE) for row in commands]
        widths = {"_clock": 6, "_gathered": 4, "_set_aside": 13, "_kept": 4, "_received": 4, "_commands": 11}
        for name, width in widths.items():
            setattr(self, name, [row for row in getattr(self, name) if len(row) == width])


def _name_messages(connection: apsw.Connection) -> bool:
    """Have the messages be found under the table's name and its columns', also where another program renamed them.

    False where there is no such table.
    """
    tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
    tables.sort(key=lambda name: name.lower() != "mqtt_offline_queue")
    for table in tables:
        columns = [name for _, name, *_ in connection.execute("SELECT * FROM pragma_table_xinfo(?)", (table,))]
        known = {name.lower() for name in columns}
        is_named = table.lower() == "mqtt_offline_queue"
        if known.issuperset(COLUMNS):
            if is_named:
                return True
        elif not is_named or len(columns) < len(COLUMNS) - len(ADDED):
            continue
        chosen = []
        for at, name in enumerate(COLUMNS):
            if name in known:
                found = name
            elif at < len(columns) and columns[at].lower() not in COLUMNS:
                found = columns[at]
            else:
                chosen.append(f"{TIME_MAX_MS if name == 'ttl' else 0} AS {name}")
                continue
            chosen.append(f"{_quoted(found)} AS {name}")
        # Before a table of that name, for whoever does not say whose.
        text = f"CREATE TEMP VIEW mqtt_offline_queue AS SELECT {', '.join(chosen)} FROM main.{_quoted(table)}"  # noqa: S608
        connection.execute(text)
        logger.warning("the messages of the damaged file are read from table %r, columns %s", table, columns)
        return True
    return False


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _has_wrong_size(path: Path) -> bool:
    """True where the header counts other pages than the file has: SQLite then reads none behind that."""
    with path.open("rb") as file:
        header = file.read(_HEADER_BYTES)
    page_bytes = int.from_bytes(header[_PAGE_SIZE], "big")
    # 1 stands for what has no room there.
    page_bytes = 65536 if page_bytes == 1 else page_bytes
    return int.from_bytes(header[_PAGES], "big") * page_bytes != path.stat().st_size


def _rows(connection: apsw.Connection, query: str) -> list[_Values]:
    rows: list[_Values] = []
    with suppress(apsw.Error, UnicodeDecodeError):
        rows.extend(connection.execute(query))
    return rows


def _schema_pages(scratch: Path, page_bytes: int) -> dict[int, bytes]:
    """Where the schema's pages stand in a new file, and they: the first, with no count of pages of its own."""
    connection = apsw.Connection(str(scratch))
    connection.pragma("page_size", page_bytes)
    create_schema(connection)
    # WAL is part of the header; a log beside the file is then read with it.
    connection.pragma("journal_mode", "wal")
    connection.close()
    data = scratch.read_bytes()
    first = bytearray(data[:page_bytes])
    first[_PAGES_VALID_FOR] = bytes(4)
    pages = {0: bytes(first)}
    if first[_HEADER_BYTES] == _INNER_OF_TABLE:
        # Its cells begin with the number of the page below ("Database File Format", 1.6).
        (cells,) = struct.unpack_from(">H", first, _HEADER_BYTES + 3)
        places = (*struct.unpack_from(f">{cells}H", first, _HEADER_BYTES + 12), _HEADER_BYTES + 8)
        for place in places:
            (number,) = struct.unpack_from(">I", first, place)
            at = (number - 1) * page_bytes
            pages[at] = data[at : at + page_bytes]
    return pages


def _number(connection: apsw.Connection, query: str) -> int | None:
    try:
        value = connection.execute(query).get
    except (apsw.Error, UnicodeDecodeError):
        return None
    return value if type(value) is int else None


def _is_time(value: Any) -> bool:
    return isinstance(value, (int, float)) and -STAMP_MAX_MS <= value <= STAMP_MAX_MS
