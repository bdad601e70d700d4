"""The durable queue: who owns which thread, which row is where, and when something is on disk.

Two connections: a writer, used by the store's own thread alone, which commits in groups; and a reader, used by the
network thread alone, which pulls rows in order. Callers append to a list in memory and are told the message id at once.

    append ──► pending ──► [writer: one transaction] ──► disk ──► read ──► (session) ──► outbox.collect ──► deleted
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar

import apsw

from glec_fast._store import QueueTable, make_row
from glec_fast.drops import Dropped, DropReason
from glec_fast.errors import GlecError, QueueClosedError, QueueStorageError
from glec_fast.queue_file import QueueFile, Salvage, storage_error

Row: TypeAlias = "tuple[int, str, str | bytes, int, int, int]"
T = TypeVar("T")

DEFAULT_MAX_QUEUE_SIZE = 10_000
DEFAULT_TTL_MS = 24 * 60 * 60 * 1000
DEFAULT_MAX_RETRY = 3
DEFAULT_QOS0_COMMIT_DELAY_S = 5.0
# A finished row may stay this long; a crash meanwhile sends QoS 1 again, which it allows, and saves half the commits.
_DONE_COMMIT_DELAY_S = 1.0
# So many finished rows are worth a transaction of their own.
_DONE_COMMIT_ROWS = 500
# So many rows may wait for a slow disk before `append` waits for it too.
_PENDING_ROWS_MAX = 10_000
_STORAGE_RETRY_S = 1.0
_BEFORE_FIRST = (-1, 0)

logger = logging.getLogger("glec_fast")


class Collected(NamedTuple):
    """What an outbox hands to a transaction: ids to delete, and the in-flight image that goes with it."""

    done: list[int]
    version: int
    image: bytes


class Outbox(Protocol):
    """The side that sends; see `Store.attach`. Called by the writer thread, `collect` with the store's lock held."""

    def collect(self) -> Collected:
        """Everything finished since the last call, and the image as of now, taken atomically."""

    def on_committed(self, version: int, new_rows: int) -> None:
        """The transaction of `version` is on disk; `new_rows` can be read that could not be before."""

    def on_dropped(self, dropped: list[Dropped]) -> None:
        """These rows were deleted unsent."""


class _Job:
    """A statement for the writer thread, and where its result goes."""

    def __init__(self, statement: Callable[[QueueTable], Any]) -> None:
        self.statement = statement
        self.finished = threading.Event()
        self.result: Any = None
        self.error: BaseException | None = None

    def run(self, table: QueueTable) -> None:
        """Run the statement. What it refuses is its caller's; what the disk refuses is the whole transaction's."""
        try:
            self.result = self.statement(table)
        except GlecError as error:
            self.error = error


class Store:
    """See the module's text. Thread-safe, but `read` and `rewind` belong to one thread.

    path: queue file, created 0600 where it is missing.
    max_queue_size: rows, above 0; the oldest go first. ttl_ms: age of expiry. max_retry: refusals before a row goes.
    qos0_commit_delay_s: how long a QoS 0 message may wait in memory for others to share its transaction.
    clock: Unix time in seconds.
    Raises QueueLockedError, QueueFormatError, QueueStorageError.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        max_queue_size: int = DEFAULT_MAX_QUEUE_SIZE,
        ttl_ms: int = DEFAULT_TTL_MS,
        max_retry: int = DEFAULT_MAX_RETRY,
        qos0_commit_delay_s: float = DEFAULT_QOS0_COMMIT_DELAY_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.max_queue_size = max_queue_size
        self.ttl_ms = ttl_ms
        self.max_retry = max_retry
        self._qos0_commit_delay_s = qos0_commit_delay_s
        self._clock = clock
        self._file = QueueFile(path)
        try:
            self._table = QueueTable(self._file.connection)
            self._reader_connection = self._file.reader()
            self._reader = QueueTable(self._reader_connection)
            self._row_count: int = self._table.count()
            self._next_id: int = self._table.last_id() + 1
            self._last_timestamp_ms: int = self._table.last_timestamp_ms()
        except apsw.Error as error:
            self._file.close()
            raise storage_error(self._file.path, error) from error

        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)
        self._progress = threading.Condition(self._lock)
        self._pending: list[Row] = []
        self._writing = 0
        self._deleting: list[int] = []
        self._jobs: list[_Job] = []
        self._deadline_s: float | None = None
        self._committed_id = self._next_id - 1
        self._failure: QueueStorageError | None = None
        self._closing = False
        # Set while somebody waits for an empty queue: finished rows then go at once.
        self._eager = False
        self._outbox: Outbox | None = None
        self._saved_version = 0
        self._to_drop: dict[int, Dropped] = {}

        # Held while rows are read and handed on, and while rows are chosen to be dropped: never the same row for both.
        self._read_lock = threading.Lock()
        self._position = _BEFORE_FIRST
        # Every row up to this id was read, where nothing above it is waiting.
        self._read_through_id = 0
        self._protected: frozenset[int] = frozenset()
        self._skipped: frozenset[int] = frozenset()
        self._skip_until = _BEFORE_FIRST

        self._thread = threading.Thread(target=self._run, name="glec-fast-store", daemon=True)
        self._thread.start()

    # ---- callers

    @property
    def salvage(self) -> Salvage | None:
        """What was carried over from a damaged file when this one was opened."""
        return self._file.salvage

    @property
    def size(self) -> int:
        """Messages not yet finished: on disk, or on their way there."""
        with self._lock:
            return self._size()

    def _size(self) -> int:
        return self._row_count + len(self._pending) + self._writing

    @property
    def has_backlog(self) -> bool:
        """True where an accepted message may not have been read yet; what comes now must queue behind it."""
        return self._next_id - 1 > self._read_through_id

    def append(
        self,
        topic: str,
        payload: str | bytes,
        qos: int,
        *,
        urgent: bool = True,
        ttl_ms: int | None = None,
        register: Callable[[int], None] | None = None,
    ) -> int:
        """Accept a message; returns its id at once. `urgent` False lets a QoS 0 message wait for company.

        `register` is told the id before any other thread can know of the message.
        Raises QueueStorageError while the disk fails, QueueClosedError after `close`; then nothing was accepted.
        """
        with self._lock:
            self._refuse_if_unusable()
            while len(self._pending) >= _PENDING_ROWS_MAX:
                self._progress.wait()
                self._refuse_if_unusable()
            message_id = self._add(topic, payload, qos, ttl_ms)
            if register is not None:
                register(message_id)
            self._request(0.0 if urgent else self._qos0_commit_delay_s)
            return message_id

    def append_many(self, messages: Iterable[tuple[str, str | bytes, int]], ttl_ms: int | None = None) -> list[int]:
        """`append` all of (topic, payload, qos), in one transaction."""
        with self._lock:
            self._refuse_if_unusable()
            ids = [self._add(topic, payload, qos, ttl_ms) for topic, payload, qos in messages]
            self._request(0.0)
            return ids

    def _add(self, topic: str, payload: str | bytes, qos: int, ttl_ms: int | None) -> int:
        now_ms = self.now_ms()
        # A wall clock that steps back must not change the order.
        timestamp_ms = max(now_ms, self._last_timestamp_ms)
        message_id = self._next_id
        row = make_row(message_id, topic, payload, qos, timestamp_ms, now_ms + (self.ttl_ms if ttl_ms is None else ttl_ms))
        self._pending.append(row)
        self._last_timestamp_ms = timestamp_ms
        self._next_id += 1
        return message_id

    def withdraw(self, message_id: int) -> bool:
        """Take back a message that is not on disk and not on its way; False where it is too late."""
        with self._lock:
            if message_id <= self._committed_id:
                return False
            kept = [row for row in self._pending if row[0] != message_id]
            found = len(kept) < len(self._pending)
            self._pending = kept
            return found

    def wait_durable(self, message_id: int, timeout_s: float | None = None) -> bool:
        """Wait until the message is on disk; False after the time-out. Raises QueueStorageError while the disk fails."""
        if threading.current_thread() is self._thread:
            # A drop callback published: only this thread could write it, so waiting for it would be for ever.
            return False
        with self._lock:
            if message_id > self._committed_id:
                self._request(0.0)
            self._progress.wait_for(
                lambda: self._committed_id >= message_id or self._failure is not None or self._is_over(), timeout_s
            )
            if self._committed_id >= message_id:
                return True
            self._refuse_if_failing()
            return False

    def wait_empty(self, timeout_s: float | None = None) -> bool:
        """Wait until every message is finished and its row deleted; False after the time-out."""
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        with self._lock:
            # Now what is finished already, and then what the network finishes last, without the usual delay.
            self._eager = True
            self._request(0.0)
            while self._size():
                remaining_s = None if deadline_s is None else deadline_s - time.monotonic()
                if self._is_over() or (remaining_s is not None and remaining_s <= 0):
                    return False
                self._progress.wait(remaining_s)
            self._eager = False
            return True

    def request_commit(self) -> None:
        """Have the writer commit now."""
        with self._lock:
            self._request(0.0)

    def on_finished(self, waiting: int, *, drained: bool) -> None:
        """`waiting` finished messages are ready for the writer to collect; it does so when that is worth its cost.

        drained: nothing else is in flight, so that no more will come by themselves.
        """
        with self._lock:
            worth = waiting >= _DONE_COMMIT_ROWS or (drained and self._eager)
            self._request(0.0 if worth else _DONE_COMMIT_DELAY_S)

    def run(self, statement: Callable[[QueueTable], T]) -> T:
        """Run `statement` on the writer's table inside a transaction and return its result, once that is on disk."""
        job = _Job(statement)
        with self._lock:
            self._refuse_if_unusable()
            self._jobs.append(job)
            self._request(0.0)
        job.finished.wait()
        if job.error is not None:
            raise job.error
        return job.result  # type: ignore[no-any-return]

    def disk_bytes(self) -> int:
        """Bytes that the file and its write-ahead log take."""
        log = self._file.path.with_name(self._file.path.name + "-wal")
        return self._file.path.stat().st_size + (log.stat().st_size if log.exists() else 0)

    def now_ms(self) -> int:
        """Unix time in milliseconds by the store's clock."""
        return int(self._clock() * 1000)

    def refuse_if_closed(self) -> None:
        """Raises QueueClosedError after `close`."""
        if self._closing:
            raise QueueClosedError("the queue is closed: open it again to go on")

    def close(self) -> None:
        """Commit what is pending, end the thread and let go of the file. Idempotent.

        Raises QueueStorageError where messages could not be written; it says how many are lost with it.
        """
        with self._lock:
            self._closing = True
            self._request(0.0)
        if threading.current_thread() is not self._thread:
            self._thread.join()
        self._reader_connection.close()
        self._file.close()
        if self._pending:
            count, self._pending = len(self._pending), []
            raise QueueStorageError(f"{count} messages could not be written before the queue was closed") from self._failure

    # ---- the sending side

    def attach(self, outbox: Outbox, client_id: str, broker: str) -> tuple[bytes, bool]:
        """Name the side that sends. Returns the in-flight image that it must resume, and whether it is this session's.

        It is not where the file last spoke for another client id or broker: to that one, no session is present.
        """
        def load(table: QueueTable) -> tuple[bytes, bool]:
            known = table.load_session()
            image: bytes = b"" if known is None else known[2]
            table.save_session(client_id, broker, image)
            return image, known is None or known[:2] == (client_id, broker)

        loaded = self.run(load)
        with self._lock:
            self._outbox = outbox
            self._saved_version = 0
        return loaded

    def detach(self) -> None:
        """Nobody sends any more; what was finished is committed first."""
        if self._thread.is_alive():
            self.run(lambda _table: None)
        with self._lock:
            self._outbox = None

    def rewind(self, protected: Iterable[int], finished: Iterable[int]) -> None:
        """Read from the first row again. `protected` ids are in flight and never dropped; `finished` are not read."""
        with self._read_lock, self._lock:
            self._protected = frozenset(protected)
            self._skipped = frozenset(self._deleting).union(finished)
            self._skip_until = self._position
            self._position = _BEFORE_FIRST
            self._read_through_id = 0

    def protect(self, ids: Iterable[int]) -> None:
        """Keep these rows from being dropped until the next `rewind`."""
        self._protected = frozenset(ids)

    def read(self, limit: int) -> tuple[list[Row], bool]:
        """The next rows that may be sent, at most `limit`, and whether they are the last for now.

        From then on they are the caller's: the store drops none of them. Raises QueueStorageError.
        """
        with self._read_lock:
            committed_id = self._committed_id
            try:
                rows = self._reader.read_after(*self._position, limit)
            except apsw.Error as error:
                raise storage_error(self._file.path, error) from error
            is_last = len(rows) < limit
            if is_last:
                self._read_through_id = committed_id
            if not rows:
                return rows, is_last
            last = rows[-1]
            now_ms = self.now_ms()
            if self._skipped or any(row[5] < now_ms for row in rows):
                rows = self._without_unsendable(rows, now_ms)
            self._position = (last[4], last[0])
            if self._skipped and self._position >= self._skip_until:
                self._skipped = frozenset()
            return rows, is_last

    def _without_unsendable(self, rows: list[Row], now_ms: int) -> list[Row]:
        sendable = []
        for row in rows:
            if row[0] in self._skipped:
                continue
            if row[5] < now_ms and row[0] not in self._protected:
                self.drop(row, DropReason.EXPIRED)
                continue
            sendable.append(row)
        return sendable

    def drop(self, row: Row, reason: DropReason) -> None:
        """Delete a row unsent, with the next transaction."""
        with self._lock:
            self._to_drop[row[0]] = Dropped(row[0], row[1], row[3], reason)
            self._request(_DONE_COMMIT_DELAY_S)

    def refuse(self, ids: list[int]) -> None:
        """The broker refused these messages: one more failed attempt each. They are read again after the next `rewind`."""

        def count(table: QueueTable) -> None:
            table.increment_retry_count(ids)
            wanted = set(ids)
            with self._lock:
                self._to_drop.update(
                    (row[0], Dropped(row[0], row[1], row[3], DropReason.GIVEN_UP))
                    for row in table.read_given_up(self.max_retry)
                    if row[0] in wanted
                )

        with self._lock:
            self._jobs.append(_Job(count))
            self._request(0.0)

    def drop_expired(self) -> int:
        """Drop every row whose time is over and that is not in flight; returns how many."""
        now_ms = self.now_ms()
        return self._drop_where(lambda table: table.read_expired(now_ms), DropReason.EXPIRED)

    def drop_given_up(self) -> int:
        """Drop every row that was refused as often as it may be; returns how many."""
        return self._drop_where(lambda table: table.read_given_up(self.max_retry), DropReason.GIVEN_UP)

    def _drop_where(self, select: Callable[[QueueTable], list[Row]], reason: DropReason) -> int:
        def choose(table: QueueTable) -> int:
            rows = [row for row in select(table) if self._is_droppable(row)]
            with self._lock:
                self._to_drop.update((row[0], Dropped(row[0], row[1], row[3], reason)) for row in rows)
            return len(rows)

        return self.run(choose)

    def _is_droppable(self, row: Row) -> bool:
        return row[0] not in self._protected and (row[4], row[0]) > self._position

    # ---- the writer thread

    def _refuse_if_unusable(self) -> None:
        self.refuse_if_closed()
        self._refuse_if_failing()

    def _refuse_if_failing(self) -> None:
        if self._failure is not None:
            raise QueueStorageError(str(self._failure)) from self._failure

    def _is_over(self) -> bool:
        return self._closing and not self._thread.is_alive()

    def _request(self, delay_s: float) -> None:
        deadline_s = time.monotonic() + delay_s if delay_s else 0.0
        if self._deadline_s is None or deadline_s < self._deadline_s:
            self._deadline_s = deadline_s
            self._work.notify()

    def _run(self) -> None:
        while True:
            with self._lock:
                self._wait_for_work()
                closing = self._closing
            self._commit_once()
            if closing and (self._failure is not None or not self._has_work()):
                self._fail_jobs(QueueClosedError("the queue was closed before this was done"))
                return

    def _has_work(self) -> bool:
        with self._lock:
            return bool(self._pending or self._jobs or self._to_drop)

    def _wait_for_work(self) -> None:
        while not self._closing:
            if self._deadline_s is None:
                self._work.wait()
                continue
            remaining_s = self._deadline_s - time.monotonic()
            if remaining_s <= 0:
                break
            self._work.wait(remaining_s)
        self._deadline_s = None

    def _commit_once(self) -> None:
        with self._lock:
            rows, self._pending = self._pending, []
            self._writing = len(rows)
            jobs, self._jobs = self._jobs, []
            outbox = self._outbox
            collected = outbox.collect() if outbox is not None else None
            if collected is not None:
                self._deleting.extend(collected.done)
        try:
            with ExitStack() as held:
                dropped = self._transact(rows, jobs, collected, held)
        except Exception as error:  # noqa: BLE001 - the thread must outlive any failure; it is reported and retried
            self._on_failure(rows, jobs, error)
            return
        self._on_success(rows, dropped, collected)
        for job in jobs:
            job.finished.set()
        if outbox is None or collected is None:
            if dropped:
                logger.warning("%d messages dropped, the first: %s", len(dropped), dropped[0])
            return
        if dropped:
            outbox.on_dropped(dropped)
        outbox.on_committed(collected.version, len(rows))

    def _transact(
        self, rows: list[Row], jobs: list[_Job], collected: Collected | None, held: ExitStack
    ) -> list[Dropped]:
        table = self._table
        table.deleted = 0
        execute = self._file.connection.execute
        execute("BEGIN IMMEDIATE")
        try:
            if rows:
                table.insert(rows)
            if self._deleting:
                table.delete(self._deleting)
            if collected is not None and collected.version != self._saved_version:
                table.save_image(collected.image)
            excess = self._row_count + len(rows) - table.deleted - self.max_queue_size
            if jobs or excess > 0:
                held.enter_context(self._read_lock)
            for job in jobs:
                job.run(table)
            if excess > 0:
                self._choose_oldest(excess)
            with self._lock:
                dropped = list(self._to_drop.values())
            if dropped:
                table.delete([each.message_id for each in dropped])
            execute("COMMIT")
        except BaseException:
            if not self._file.connection.get_autocommit():
                execute("ROLLBACK")
            raise
        return dropped

    def _choose_oldest(self, excess: int) -> None:
        wanted = excess + len(self._protected) + len(self._to_drop)
        rows = self._table.read_after(*self._position, wanted)
        with self._lock:
            for row in rows:
                if excess == 0:
                    break
                if row[0] not in self._protected and row[0] not in self._to_drop:
                    self._to_drop[row[0]] = Dropped(row[0], row[1], row[3], DropReason.OVERFLOW)
                    excess -= 1

    def _on_success(self, rows: list[Row], dropped: list[Dropped], collected: Collected | None) -> None:
        with self._lock:
            self._row_count += len(rows) - self._table.deleted
            self._writing = 0
            self._deleting.clear()
            for each in dropped:
                del self._to_drop[each.message_id]
            if rows:
                self._committed_id = rows[-1][0]
            if collected is not None:
                self._saved_version = collected.version
            self._failure = None
            self._progress.notify_all()

    def _on_failure(self, rows: list[Row], jobs: list[_Job], error: Exception) -> None:
        failure = storage_error(self._file.path, error)
        failure.__cause__ = error
        logger.error("%s", failure)
        with self._lock:
            # Kept in memory, in order, and tried again: they were accepted.
            self._pending = rows + self._pending
            self._writing = 0
            self._failure = failure if self._pending else None
            self._request(_STORAGE_RETRY_S)
            self._progress.notify_all()
        for job in jobs:
            job.error = failure
            job.finished.set()

    def _fail_jobs(self, error: QueueClosedError) -> None:
        with self._lock:
            jobs, self._jobs = self._jobs, []
            self._progress.notify_all()
        for job in jobs:
            job.error = error
            job.finished.set()
