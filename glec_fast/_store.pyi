"""Types of `cext/_store.pyx`: the statements on the queue table."""

from collections.abc import Callable, Iterator
from typing import Any

import apsw

from glec_fast.in_doubt import Decision

# With extras, retain (0 or 1), expiry interval in s or None, and packed properties behind the others.
_Row = tuple[Any, ...]
_RowWithRetries = tuple[int, str, str | bytes, int, int, int, int]
_Head = tuple[int, str, int, int]

def make_row(
    message_id: int,
    topic: str,
    payload: str | bytes,
    qos: int,
    timestamp_ms: int,
    ttl_ms: int,
    extras: tuple[bool, int | None, bytes] | None = None,
) -> _Row:
    """The row of one message; `timestamp_ms` is the time of insertion and `ttl_ms` that of expiry, Unix milliseconds.

    Text is kept as TEXT; bytes too where they are UTF-8 without NUL, else as a BLOB.
    Raises OverflowError, TypeError for what fits no column.
    """

def accept(
    store: Any,
    topic: str,
    payload: str | bytes,
    qos: int,
    now_ms: int,
    ttl_ms: int,
    extras: Any,
    register: Callable[[int], None] | None,
) -> int:
    """Give a message its id and put its row behind those that are pending, in one step; the caller holds the lock.

    Whatever cuts into it finds either nothing of the message or all. register: told the id, or None.
    """

def ranges_of(ids: list[int]) -> list[tuple[int, int]]:
    """Inclusive (first, last) ranges that cover just `ids`; sorts the list in place."""

def merged(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The fewest (first, last) ranges that cover what `ranges` cover; sorts the list in place."""

def is_any_expired(rows: list[_Row], now_ms: int) -> bool:
    """True where the time of any of these rows is over."""

class Finished:
    """The rows that are finished and not yet deleted: by id, and as the ranges that an image names them by."""

    def __init__(self) -> None: ...
    def __len__(self) -> int: ...
    @property
    def ids(self) -> list[int]:
        """In the order in which they finished."""
    @property
    def ranges(self) -> list[tuple[int, int]]:
        """The inclusive ranges that they make."""
    def add(self, ids: list[int]) -> None:
        """Behind those that are there."""
    def remove_first(self, count: int) -> None:
        """Remove the `count` that came first."""

class QueueTable:
    """Statements on the connection of a `QueueFile`. The caller owns the connection and the transaction.

    One object, one connection, one thread at a time. Every method raises `apsw.Error` where the disk fails.
    deleted: rows deleted since the caller set it to 0.
    had_broken_text: True where the last `read_after` or `read_rows` met a TEXT that is not UTF-8.
    may_have_extras: False only where no message on disk has extras, as far as this object looked and inserted.
    """

    deleted: int
    @property
    def had_broken_text(self) -> bool: ...
    @property
    def may_have_extras(self) -> bool: ...
    def __init__(self, connection: apsw.Connection) -> None: ...
    def insert(self, rows: list[_Row]) -> None:
        """Add rows made by `make_row`."""

    def delete(self, ids: list[int]) -> int:
        """Delete by id; returns how many rows there were. Sorts the list in place."""

    def delete_finished(self, ids: list[int]) -> int:
        """`delete` that clears the table at once where nothing else is in it."""

    def look_for_extras(self) -> None:
        """Find out whether any message on disk has extras. Between transactions, as a rollback brings them back."""

    def delete_orphaned_extras(self) -> None:
        """Delete the extras of messages that another program has deleted."""

    def read_after(self, timestamp_ms: int, message_id: int, limit: int, with_extras: bool = False) -> list[_Row]:
        """The next rows behind a position, at most `limit`, as one snapshot in the order (timestamp, id).

        with_extras: every row has the three columns, None where it has no extras.
        """

    def read_rows(self, ids: list[int], with_extras: bool = False) -> list[_Row]:
        """The rows of these ids, as far as there are any, in the order of `ids`; see `read_after`."""

    def heads_after(self, timestamp_ms: int, message_id: int) -> Iterator[_Head]:
        """An iterator over the heads (id, topic, qos, timestamp) behind a position, in order."""

    def heads_expired(self, now_ms: int) -> Iterator[_Head]:
        """An iterator over the heads whose time of expiry has passed."""

    def heads_given_up(self, max_retry: int) -> Iterator[_Head]:
        """An iterator over the heads that failed as often as they may."""

    def increment_retry_count(self, ids: list[int]) -> int:
        """Count one more failed attempt for each id; returns how many rows there were. Sorts the list in place."""

    def read_all(self) -> list[_RowWithRetries]:
        """Every row with its retry count, in order."""

    def count(self) -> int:
        """Rows in the table."""

    def last_id(self) -> int:
        """The highest id that was ever given, 0 in a new file."""

    def last_timestamp_ms(self) -> int:
        """The highest timestamp in the table, 0 where it is empty."""

    def span_ms(self) -> tuple[int | None, int | None]:
        """(oldest, newest) timestamp, None each where the table is empty."""

    def add_in_doubt(self, time_ms: int, entries: list[tuple[int, Decision]], limit: int) -> None:
        """Record (message id, decision) of messages whose rows are still there, and keep the newest `limit`."""

    def read_in_doubt(self) -> list[tuple[int, int, int, str, str]]:
        """Every (number, time in ms, message id, topic, decision) recorded, oldest first."""

    def holds(self, message_id: int) -> bool:
        """True where there is a row of this id."""

    def load_session(self) -> tuple[str, str, bytes] | None:
        """(client id, broker, in-flight image) of the last process, or None."""

    def save_session(self, client_id: str, broker: str, image: bytes) -> None:
        """Replace the session's row."""

    def save_image(self, image: bytes) -> None:
        """Replace the in-flight image of the session's row."""

    def move_times(self, by_ms: int, first_id: int, coming_ms: int) -> int:
        """Add `by_ms` to the times of every message from `first_id` on; returns from which id on that was."""

    def load_clock(self) -> tuple[str, int, int, int, int] | None:
        """The fields of the clock's `Anchor`, or None."""

    def save_clock(self, anchor: tuple[str, int, int, int, int]) -> None:
        """Replace the clock's row."""
