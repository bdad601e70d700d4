"""A queue file, read beside whoever has it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

import apsw

from glec_fast.durable._table import QueueTable
from glec_fast.durable.database import connect, located, storage_error
from glec_fast.errors import MessageError, QueueFormatError

T = TypeVar("T")


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
            return look(connection)
    except (apsw.SQLError, apsw.NotADBError) as error:
        raise QueueFormatError(f"{path} is not a queue file ({error}): name the queue_path of a program") from error
    except apsw.Error as error:
        raise storage_error(path, error) from error


def fetch(path: Path, query: str, arguments: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """All rows of a short query. Raises as `read`."""
    return read(path, lambda connection: connection.execute(query, arguments).fetchall())


def read_table(path: Path, look: Callable[[QueueTable], T]) -> T:
    """What `look` returns. Raises as `read`."""
    return read(path, lambda connection: look(QueueTable(connection)))
