"""What callers need of `cext/durable/_table.pyx`: the statements on the queue table."""

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import apsw

from glec_fast.durable.clock import QueueClock
from glec_fast.durable.extras import Extras
from glec_fast.durable.schedule import Schedule
from glec_fast.durable.status import Status
from glec_fast.durable.transaction import Commit, Move
from glec_fast.runtime._lock import Lock

_T = TypeVar("_T")

# With extras, retain (0 or 1), expiry interval in s or None, and packed properties behind the others.
_Row = tuple[Any, ...]
_RowWithRetries = tuple[int, str, str | bytes, int, int, int, int]
_Head = tuple[int, str, int, int]

CLEARED_RANGES_MAX: int
"""Finished rows in so many ranges, beside which there is no row, are cleared by their pages."""

def clock_error_us() -> int:
    """How far the wall clock may be off, as the kernel has it from whoever keeps it right, in microseconds.

    It grows by 500 ppm until they tell it again, to 16,000,000, which is also what is left once somebody else sets the
    clock. Raises OSError where a sandbox forbids to ask. Any thread may call it.
    """

def since_boot_ms() -> int:
    """Milliseconds since boot, also while the machine sleeps. Any thread may call it."""

def make_row(
    message_id: int,
    topic: str,
    payload: str | bytes,
    qos: int,
    timestamp_ms: int,
    expires_at_ms: int,
    extras: tuple[bool, int | None, bytes] | None = None,
) -> _Row:
    """The row of one message; stamped with `timestamp_ms`, the time of its insertion. Both times are Unix milliseconds.

    Text is kept as TEXT; bytes too where they are UTF-8 without NUL, else as a BLOB.
    Raises OverflowError, TypeError for what fits no column.
    """

class Accepting:
    """The base of `glec_fast.durable.intake.Intake`: what each message goes through, under the lock of `status`.

    pending: rows that the next transaction takes. next_id: of the next message. message_max_bytes: of topic, payload
    and properties, 0 for no limit. pending_max, pending_bytes_max: where so many are pending,
    or so large ones, `append` waits for room. pending_bytes: what they take, at most. clock: stamps rows.
    """

    pending: list[_Row]
    next_id: int
    last_timestamp_ms: int
    pending_max: int
    pending_bytes: int
    pending_bytes_max: int
    message_max_bytes: int
    clock: QueueClock
    _lock: Lock
    _status: Status
    _schedule: Schedule
    _ttl_ms: int

    def __init__(
        self,
        status: Status,
        schedule: Schedule,
        table: QueueTable,
        ttl_ms: int,
        pending_max: int,
        pending_bytes_max: int,
    ) -> None: ...
    @property
    def is_full(self) -> bool: ...
    def append(
        self,
        topic: str,
        payload: str | bytes,
        qos: int,
        urgent: bool,
        ttl_ms: int | None,
        extras: Extras | None,
        register: Callable[[int], None] | None,
    ) -> int:
        """See `glec_fast.durable.store.Store`."""
    def check_size(self, topic: str, payload: str | bytes, extras: Extras | None) -> int:
        """The bytes of it, at most. Raises MessageError for what is larger than the whole queue may be."""
    def add(
        self,
        topic: str,
        payload: str | bytes,
        qos: int,
        extras: Extras | None = None,
        register: Callable[[int], None] | None = None,
        ttl_ms: int | None = None,
    ) -> int:
        """`append` without a wait or a request; the caller holds the lock.

        It gives the message its id and puts its row behind those that are pending in one step: whatever cuts into it
        finds either nothing of the message or all.
        """

def text_size(rows: list[_Row]) -> int:
    """Bytes of topics and payloads, at most."""

def is_any_expired(rows: list[_Row], now_ms: int) -> bool:
    """True where the time of any of these rows is over."""

def known(rows: list[_Row], through_id: int) -> int:
    """How many rows come before the first that has an id above `through_id`."""

class DiskTimes:
    """How many rows reached the disk, and how long after their acceptance. Any thread may call it."""

    def note(self, rows: list[_Row], now_ms: int) -> None:
        """These have been synchronised; `now_ms` is the queue's time."""

    @property
    def counts(self) -> tuple[int, int, int]:
        """Rows of QoS 0, 1 and 2."""

    @property
    def writing(self) -> tuple[list[int], int, int]:
        """How long they took: what `Latency.of` takes."""

class QueueTable:
    """Statements on the connection of a `QueueFile`. The caller owns the connection and the transaction.

    One object, one connection, one thread at a time. Every method raises `apsw.Error` where the disk fails.
    deleted: rows deleted since the caller set it to 0. has_stage: see `has_stage` of `database`; set by the caller.
    position, met: (timestamp, id) of the last row that the last `read_after` met, and how many those were, also such
    that no message can be made of. unsendable: (id, topic, qos, reason) of these, in the last reading. given_up: heads
    of those that it found refused `retries_max` times or more often.
    may_have_extras: False only where no message on disk has extras, as far as this object looked and inserted.
    """

    deleted: int
    has_stage: bool
    @property
    def connection(self) -> apsw.Connection:
        """For statements of a job on tables beside the queue's."""
    @property
    def encoding(self) -> str: ...
    @property
    def position(self) -> tuple[float, int]: ...
    @property
    def met(self) -> int: ...
    @property
    def unsendable(self) -> list[tuple[int, str, int, str]]: ...
    @property
    def page_bytes(self) -> int: ...
    @property
    def written_pages(self) -> int:
        """Pages that this connection has written to the log."""
    @property
    def given_up(self) -> list[_Head]: ...
    @property
    def may_have_extras(self) -> bool: ...
    def __init__(self, connection: apsw.Connection, retries_max: int = ...) -> None: ...
    def commit(self, transaction: Commit | Move) -> None:
        """COMMIT, and have `transaction` know it."""

    def data_version(self) -> int:
        """Another number than before where another connection has written to the file since. Within a transaction."""

    def oldest_ms(self, passed: tuple[int, int]) -> int | None:
        """The earliest timestamp that is a time, but of the ids of this inclusive range; None where there is none."""
    def strangers(self, through_id: int) -> list[int]:
        """The ids above `through_id`, in the order of their rows."""

    def adopt(self, ids: list[tuple[int, int]], timestamp_ms: int, expires_at_ms: int) -> None:
        """Give rows other ids, (from, to) each, and a timestamp; a time of expiry too where it is no number."""

    def set_last_id(self, last_id: int) -> None:
        """Note that every id up to this was given; there was a row."""

    def insert(self, rows: list[_Row]) -> None:
        """Add rows made by `make_row`."""

    def delete(self, ids: list[int]) -> int:
        """Delete by id; returns how many rows there were. Sorts the list in place."""

    def delete_ranges(self, ranges: list[tuple[int, int]]) -> int:
        """`delete` by inclusive ranges of ids."""

    def delete_finished(self, ranges: list[tuple[int, int]]) -> int:
        """`delete_ranges` that clears the table at once where nothing else is in it."""

    def is_any_beside(self, ranges: list[tuple[int, int]]) -> bool:
        """True where a row is in none of these ranges, of which there are some, in order."""

    def look_for_extras(self) -> None:
        """Find out whether any message on disk has extras. Between transactions, as a rollback brings them back."""

    def delete_orphaned_extras(self) -> None:
        """Delete the extras of messages that another program has deleted."""

    def message_of(
        self, topic: bytes | None, payload: bytes | None, kind: str, qos: object
    ) -> tuple[str, str | bytes, int]:
        """(topic, payload as it is stored, QoS) of a row that was read as bytes; kind: SQLite's type of the payload.

        Raises MessageError where no message can be made of it.
        """

    def text(self, value: bytes | None) -> str:
        """A TEXT that was read as bytes, for those who are told: what of it is none is replaced."""

    def first_of(self, lane: int) -> tuple[float, int] | None:
        """(timestamp, id) of the first row of that lane; None where it has none, which takes a look at every row."""

    def read_after(
        self,
        timestamp_ms: float,
        message_id: int,
        limit: int,
        with_extras: bool = False,
        lane: int = 0,
        passed: tuple[int, int] = ...,
    ) -> list[_Row]:
        """The next rows behind a position, at most `limit`, as one snapshot in the order (timestamp, id).

        Fewer where they have more than 256 KiB, but one at least; `met` is `limit` then, as there may be more.

        with_extras: every row has the three columns, None where it has no extras. lane: a `Lane`; 0 is all rows.
        passed: an inclusive range of ids that are left out.
        """

    def read_rows(self, ids: list[int], with_extras: bool = False) -> list[_Row]:
        """The rows of these ids, as far as there are any, in the order of `ids`; see `read_after`."""

    def heads_after(self, timestamp_ms: float, message_id: int) -> Iterator[_Head]:
        """An iterator over the heads (id, topic, qos, timestamp) behind a position, in order."""

    def heads_of(self, qos: int, timestamp_ms: float, message_id: int) -> Iterator[_Head]:
        """As `heads_after`, of one QoS alone."""

    def telemetry_between(self, after_id: int, through_id: int) -> Iterator[_Head]:
        """An iterator over the heads of QoS 0 with ids above `after_id` up to `through_id`, by id."""

    def older_half_of_telemetry(self) -> tuple[int, int]:
        """The first and the last id of the older half of the rows of QoS 0; two zeros where there is none."""

    def used_bytes(self) -> int:
        """What the pages of the file take that hold something, in the transaction under way too."""

    def heads_expired(self, now_ms: int) -> Iterator[_Head]:
        """An iterator over the heads whose time of expiry has passed."""

    def heads_given_up(self, max_retry: int) -> Iterator[_Head]:
        """An iterator over the heads that failed as often as they may."""

    def heads_by_id(self, ids: list[int]) -> list[_Head]:
        """The heads of these messages, as far as there are any."""

    def increment_retry_count(self, ids: list[int]) -> int:
        """Count one more failed attempt for each id; returns how many rows there were. Sorts the list in place."""

    def read_all(self) -> list[_RowWithRetries]:
        """Every row with its retry count, in order."""

    def count(self) -> int:
        """Rows in the table."""

    def last_id(self) -> int:
        """The highest id that was ever given, 0 in a new file."""

    def last_timestamp_ms(self) -> int:
        """The highest timestamp in the table that is one, 0 where it is empty."""

    def span_ms(self) -> tuple[int | None, int | None]:
        """(oldest, newest) timestamp, None each where the table is empty."""

    def holds(self, message_id: int) -> bool:
        """True where there is a row of this id."""

    def has(self, row: _Row) -> bool:
        """True where this very row is on disk."""

    def move_times(self, by_ms: int, first_id: int, coming_ms: int) -> int:
        """Add `by_ms` to the times of every message from `first_id` on; returns from which id on that was."""
