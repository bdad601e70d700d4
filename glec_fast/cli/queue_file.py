"""A queue file, read beside whoever has it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, TypeVar

import apsw

from glec_fast.durable._table import QueueTable
from glec_fast.durable.database import check_header, connect, located, storage_error
from glec_fast.durable.inflight_log import from_row, latest
from glec_fast.durable.state_rows import load_session
from glec_fast.errors import MessageError, QueueFormatError
from glec_fast.protocol._session import Session

T = TypeVar("T")

# In front of the table, by its name. Of the ranges, which do not overlap, the one that begins last before a row.
_UNFINISHED = (
    "CREATE TEMP VIEW mqtt_offline_queue AS SELECT * FROM main.mqtt_offline_queue AS q WHERE q.id > coalesce("
    "(SELECT last FROM temp.finished WHERE first <= q.id ORDER BY first DESC LIMIT 1), -1 << 63)"
)


def read(path: Path, look: Callable[[apsw.Connection], T]) -> T:
    """What `look` returns, which is to be quick: its program's log is kept from starting over meanwhile.

    Raises QueueFormatError, QueueStorageError, MessageError, ConfigError.
    """
    path = located(path)
    try:
        if path.is_dir():
            raise MessageError(f"{path} is a folder: name the queue file in it")
        if not path.exists():
            raise MessageError(f"{path} is no file: name the queue_path of a program that ran")
    except OSError as error:
        says = f"{path} cannot be looked at ({error.strerror}): check it, and who may read there"
        raise MessageError(says) from error
    try:
        with closing(connect(path, apsw.SQLITE_OPEN_READONLY)) as connection:
            leave_out_finished(connection, path)
            return look(connection)
    except apsw.SQLError as error:
        raise QueueFormatError(f"{path} is not a queue file ({error}): name the queue_path of a program") from error
    except apsw.Error as error:
        if isinstance(error, apsw.NotADBError):
            # Which says where it never was one: a queue file that has lost its header is damaged.
            with suppress(apsw.CorruptError):
                check_header(path)
        raise storage_error(path, error) from error


def leave_out_finished(connection: apsw.Connection, path: Path) -> None:
    """What the image names waits no more, though its row is there until it is worth a transaction.

    connection: to the queue file `path`, or a copy of it.
    """
    ranges: list[tuple[int, int]] = []
    # Without one, or with one that cannot be read, all are sent. A file of another client has none.
    with suppress(ValueError, OSError, apsw.SQLError):
        if (known := load_session(QueueTable(connection))) is not None:
            ranges = Session().load_image(latest(path, from_row(known[2])).image)
    if ranges:
        connection.execute("CREATE TEMP TABLE finished (first INTEGER PRIMARY KEY, last INTEGER)")
        connection.executemany("INSERT OR REPLACE INTO finished VALUES (?, ?)", ranges)
        connection.execute(_UNFINISHED)


def fetch(path: Path, query: str, arguments: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """All rows of a short query. Raises as `read`."""
    return read(path, lambda connection: connection.execute(query, arguments).fetchall())


def read_table(path: Path, look: Callable[[QueueTable], T]) -> T:
    """What `look` returns. Raises as `read`."""
    return read(path, lambda connection: look(QueueTable(connection)))
