"""The store's own thread: what waits for the next transaction, what that takes, and what comes of it.

One transaction has all that waited. Where it fails, what was accepted waits again, in order, and is tried again for as
long as the file is open.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import TypeVar

import apsw

from glec_fast._lock import Condition, Lock
from glec_fast._store import Finished, QueueTable, ranges_of
from glec_fast.commit import Commit, Job, Outbox, Row
from glec_fast.dropping import Dropping
from glec_fast.drops import Dropped
from glec_fast.errors import QueueClosedError, QueueStorageError
from glec_fast.in_doubt import Decision
from glec_fast.queue_clock import Anchor, Clocks, QueueClock
from glec_fast.queue_file import QueueFile
from glec_fast.reader import Reader
from glec_fast.thread import Thread
from glec_fast.writer import DROP_ROWS_MAX, Writer

T = TypeVar("T")

DEFAULT_MAX_QUEUE_SIZE = 10_000
DEFAULT_TTL_MS = 24 * 60 * 60 * 1000
DEFAULT_MAX_RETRY = 3
DEFAULT_QOS0_COMMIT_DELAY_S = 5.0
DEFAULT_CLEANUP_INTERVAL_S = 300.0
# A finished row may stay this long; a crash meanwhile sends QoS 1 again, which it allows, and saves half the commits.
DONE_COMMIT_DELAY_S = 1.0
# Without a link, QoS 1 and 2 that nobody waits for go to disk at once, but no more often than this: a transaction for
# each message of a stream would write some 20 kB for each.
_ROWS_COMMIT_SPACING_S = 0.05
# So many finished rows are worth a transaction of their own, which names them; that a crash does not send them again.
DONE_COMMIT_ROWS = 1000
# So many are deleted, though more are in flight.
DELETE_ROWS_MAX = 10_000
# What the log's reserve holds the pages of, on a full disk.
_DELETE_ROWS_WITHOUT_ROOM = 250
_STORAGE_RETRY_S = 1.0
# A disk that takes longer must not hold up the thread that keeps the connection alive.
_QUICK_COMMIT_S = 0.02
# Most transactions of a disk that takes no longer end sooner than this; behind another, to leave the image to the
# writer costs less than to stand still.
_SWIFT_COMMIT_S = 0.002
_TURN_WAIT_S = 0.005
_AT_ONCE = float("-inf")

logger = logging.getLogger("glec_fast")


class Committer:
    """What `Store` is built on: it owns the file, the thread, the lock, and all that a transaction is about."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        max_queue_size: int = DEFAULT_MAX_QUEUE_SIZE,
        ttl_ms: int = DEFAULT_TTL_MS,
        max_retry: int = DEFAULT_MAX_RETRY,
        qos0_commit_delay_s: float = DEFAULT_QOS0_COMMIT_DELAY_S,
        cleanup_interval_s: float = DEFAULT_CLEANUP_INTERVAL_S,
        on_dropped: Callable[[list[Dropped]], None] | None = None,
        clocks: Clocks | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.max_queue_size = max_queue_size
        self.ttl_ms = ttl_ms
        self.max_retry = max_retry
        self._qos0_commit_delay_s = qos0_commit_delay_s
        self._cleanup_interval_s = cleanup_interval_s
        self._on_dropped = on_dropped
        self._monotonic = monotonic
        self._lock = Lock()
        self._file = QueueFile(path)
        try:
            self._reader = Reader(self._file)
            self._dropping = Dropping(self._lock, self._reader)
            self._writer = Writer(self._file.path, self._file.connection, self._reader, self._dropping, max_queue_size)
            table = self._writer.table
            table.look_for_extras()
            self._row_count: int = table.count()
            self._next_id: int = table.last_id() + 1
            self._last_timestamp_ms: int = table.last_timestamp_ms()
            anchor = table.load_clock()
            self._clock = QueueClock(clocks or Clocks(), anchor and Anchor(*anchor), self._next_id)
        except apsw.Error as error:
            failure = self._file.failed(error)
            self._file.close()
            raise failure from error

        # Held through a transaction, whichever thread makes it. Taken before all other locks.
        self._commit_lock = Lock()
        # The last transaction's, of whichever thread.
        self._commit_took_s = 0.0
        self._work = Condition(self._lock)
        self._progress = Condition(self._lock)
        self._pending: list[Row] = []
        self._writing: list[Row] = []
        self._deleting = Finished()
        # When they are deleted, unless a stream of acknowledgements puts it off.
        self._delete_due_s: float | None = None
        # So many finished rows the outbox had when it was last put off.
        self._put_off_at = 0
        self._delete_rows_max: int | None = None
        self._jobs: list[Job] = []
        self._deadline_s: float | None = None
        # Before then rows that can wait are not committed.
        self._rows_due_s = _AT_ONCE
        self._committed_id = self._next_id - 1
        self._failure: QueueStorageError | None = None
        # After a failure with new rows the next transaction goes without: deletes, which make room, must not wait.
        self._rows_last = False
        self._reported = ""
        self._read_failed = False
        self._read_reported = False
        self._cleanup_due_s = monotonic() + cleanup_interval_s
        self._closing = False
        self._ended = False
        # So many wait for an empty queue: finished rows then go at once.
        self._eager = 0
        self._outbox: Outbox | None = None
        self._identity = ("", "")
        self._in_doubt: list[tuple[int, Decision]] = []
        # Whose refusal is not yet counted, and the job that does.
        self._refused: dict[int, Job] = {}
        # True while those who must hear of drops are told: until then nothing is finished.
        self._telling = False

        self._thread = Thread(target=self._run, name="glec-fast-store", daemon=True)
        self._thread.start()

    # ---- asking for a transaction

    def request_commit(self) -> None:
        """Have the writer commit now."""
        with self._lock:
            self._request(0.0)

    def _request(self, delay_s: float) -> None:
        deadline_s = self._monotonic() + delay_s if delay_s else _AT_ONCE
        if self._deadline_s is None or deadline_s < self._deadline_s:
            # First: an exception behind it must not leave a deadline that nobody was woken for.
            self._work.notify_all()
            self._deadline_s = deadline_s

    def _request_company(self, qos: int) -> None:
        """New rows wait for others to share their transaction; the caller holds the lock."""
        self._request(max(self._rows_due_s - self._monotonic(), 0.0) if qos else self._qos0_commit_delay_s)

    def _request_delete(self) -> None:
        """Finished rows wait for more of them, as a table that ends up empty costs next to nothing to clear.

        The caller holds the lock.
        """
        if self._delete_due_s is None:
            self._delete_due_s = self._monotonic() + DONE_COMMIT_DELAY_S
        self._request(max(self._delete_due_s - self._monotonic(), 0.0))

    def _request_retry(self) -> None:
        """After a failure of the disk; the caller holds the lock."""
        self._request(_STORAGE_RETRY_S)

    def run(self, statement: Callable[[QueueTable], T]) -> T:
        """Run `statement` on the writer's table inside a transaction and return its result, once that is on disk."""
        job = Job(statement)
        with self._lock:
            self.refuse_if_closed()
            self._jobs.append(job)
            self._request(0.0)
        if self._is_own_thread():
            # From a drop callback, which runs between two transactions.
            self._commit_once()
        job.finished.wait()
        if job.error is not None:
            raise job.error
        return job.result  # type: ignore[no-any-return]

    def commit_image(self) -> int | None:
        """Have the outbox's image on disk; returns its version, or None where the writer will say `on_committed`.

        A disk that has proved quick is written at once, by the calling thread: two switches of threads would cost as
        much as the commit. What is finished is named in the image, and deleted by a later transaction.
        """
        if self._commit_took_s < _QUICK_COMMIT_S:
            wait_s = _TURN_WAIT_S if self._commit_took_s < _SWIFT_COMMIT_S else 0.0
            with self._commit_lock.attempt(wait_s) as is_our_turn:
                version = self._save_image() if is_our_turn else None
            if version is not None:
                return version
            if wait_s and not is_our_turn:
                # Whose transaction it is says how long it took; until then nobody waits for it again.
                self._commit_took_s = _TURN_WAIT_S
        self.request_commit()
        return None

    def _save_image(self) -> int | None:
        saved = self._writer.image
        with self._lock:
            outbox = self._outbox
            if outbox is None or self._failure is not None or self._closing or self._in_doubt:
                return None
            if self._identity != saved.identity:
                return None
            version, image, self._in_doubt = outbox.image(self._deleting.ranges)
            if self._in_doubt:
                return None
        started_s = time.monotonic()
        try:
            saved.save(self._writer.table, image)
        except (apsw.Error, OSError) as error:
            # The writer tries the same, and reports it where it fails as well.
            logger.debug("the in-flight state was not written at once: %s", error)
            return None
        finally:
            self._commit_took_s = time.monotonic() - started_s
        return version

    def refuse_if_closed(self) -> None:
        """Raises QueueClosedError after `close`."""
        if self._closing:
            raise QueueClosedError("the queue is closed: open it again to go on")

    def _refuse_if_unusable(self) -> None:
        self.refuse_if_closed()
        self._refuse_if_failing()

    def _refuse_if_failing(self) -> None:
        if self._failure is not None:
            raise QueueStorageError(str(self._failure)) from self._failure

    def _is_own_thread(self) -> bool:
        return threading.current_thread() is self._thread

    def close(self) -> None:
        """Commit what is pending, end the thread and let go of the file. Idempotent.

        From a drop callback it returns at once, and the store's thread does so when the callback has returned.
        Raises QueueStorageError where messages could not be written; it says how many are lost with it.
        """
        with self._lock:
            self._closing = True
            self._request(0.0)
        if self._is_own_thread():
            return
        self._thread.join()
        with self._lock:
            count, self._pending = len(self._pending), []
        if count:
            raise QueueStorageError(
                f"{count} messages could not be written before the queue was closed"
            ) from self._failure

    # ---- the thread

    def _run(self) -> None:
        try:
            closing = False
            while not closing:
                with self._lock:
                    self._wait_for_work()
                    closing = self._closing
                # One failure is enough to give up what is left: nobody would wait for the disk to mend.
                while self._commit_once() and closing and self._has_work():
                    pass
        except BaseException:
            logger.critical("the store's thread ends: nothing more will be written", exc_info=True)
            raise
        finally:
            self._end()

    def _has_work(self) -> bool:
        with self._lock:
            return bool(self._pending or self._jobs or self._dropping.marked)

    def _wait_for_work(self) -> None:
        while not self._closing:
            due_s = self._cleanup_due_s if self._deadline_s is None else min(self._deadline_s, self._cleanup_due_s)
            remaining_s = due_s - self._monotonic()
            if remaining_s <= 0:
                break
            self._work.wait(min(remaining_s, threading.TIMEOUT_MAX))
        self._deadline_s = None

    def _commit_once(self) -> bool:
        """One transaction with all that waits. False where it failed: what was accepted then waits again."""
        with self._commit_lock:
            commit = Commit()
            started_s = time.monotonic()
            try:
                self._follow_wall_clock()
                self._take_work(commit)
                with ExitStack() as held:
                    self._writer.transact(commit, self._clock, held)
            except Exception as error:
                self._on_failure(commit, error)
                return False
            self._commit_took_s = time.monotonic() - started_s
            self._on_success(commit)
        for job in commit.jobs:
            job.finished.set()
        outbox = commit.outbox
        if commit.dropped:
            logger.info("%d messages dropped, the first: %s", len(commit.dropped), commit.dropped[0])
            self._tell(self._on_dropped if outbox is None else outbox.on_dropped, commit.dropped)
            with self._lock:
                self._telling = False
                self._progress.notify_all()
        if outbox is not None:
            self._tell(outbox.on_committed, commit.version, len(commit.rows) or int(commit.read_again))
        return True

    def _follow_wall_clock(self) -> None:
        """Mend all times where the wall clock has stepped; readers and callers see all old ones or all new ones."""
        step = self._clock.step()
        if step is None:
            return
        with self._reader.lock:
            with self._lock:
                coming_ms = self._pending[0][4] if self._pending else self._clock.now_ms()
            try:
                anchor, last_timestamp_ms = self._writer.move_times(step, coming_ms, self._clock)
            except apsw.Error as error:
                # The old times still agree with each other, and a full disk may need the deletes that come next.
                logger.debug("the times of queued messages could not be moved yet: %s", error)
                return
            with self._lock:
                self._clock.on_saved(anchor)
                self._reader.on_times_moved(step.by_ms, anchor.first_id)
                self._pending = [
                    (*row[:4], row[4] + step.by_ms, row[5] + step.by_ms, *row[6:]) for row in self._pending
                ]
                self._last_timestamp_ms = self._pending[-1][4] if self._pending else last_timestamp_ms
        logger.warning("the wall clock stepped: the times of queued messages were moved by %.1f s", step.by_ms / 1000)

    def _take_work(self, commit: Commit) -> None:
        with self._lock:
            is_cleanup_due = self._monotonic() >= self._cleanup_due_s
            commit.with_rows, self._rows_last = not self._rows_last, False
            if commit.with_rows:
                commit.rows, self._pending = self._pending, []
                self._writing = commit.rows
            if commit.rows:
                self._rows_due_s = self._monotonic() + _ROWS_COMMIT_SPACING_S
            commit.jobs, self._jobs = self._jobs, []
            if is_cleanup_due:
                self._cleanup_due_s = self._monotonic() + self._cleanup_interval_s
                commit.jobs.append(Job(self._clean_up))
            if commit.rows or self._row_count:
                commit.anchor = self._clock.anchor(fresh=is_cleanup_due or self._closing)
            commit.read_again = self._read_failed
            commit.row_count, commit.outbox = self._row_count, self._outbox
            finished = []
            if commit.outbox is not None:
                finished = commit.outbox.take_finished()
            self._deleting.add(finished)
            if self._must_delete(commit):
                commit.deleting = self._deleting.ids[: self._delete_rows_max]
                if len(commit.deleting) == len(self._deleting):
                    # What finishes from here on has a second of its own.
                    self._delete_due_s = None
            if commit.outbox is not None:
                kept = self._deleting.ranges
                if commit.deleting:
                    kept = ranges_of(self._deleting.ids[len(commit.deleting) :])
                commit.version, commit.image, in_doubt = commit.outbox.image(kept)
                self._in_doubt += in_doubt
                commit.in_doubt, commit.identity = self._in_doubt.copy(), self._identity

    def _must_delete(self, commit: Commit) -> bool:
        count = len(self._deleting)
        is_due = self._delete_due_s is not None and self._monotonic() >= self._delete_due_s
        # What is to be dropped goes with this transaction too.
        is_last = count + len(self._dropping.marked) >= self._row_count or self._closing or not commit.with_rows
        makes_room = self._row_count + len(commit.rows) > self.max_queue_size
        return is_due or is_last or makes_room or bool(commit.jobs) or count >= DELETE_ROWS_MAX

    @staticmethod
    def _tell(callback: Callable[..., None] | None, *arguments: object) -> None:
        if callback is None:
            return
        try:
            callback(*arguments)
        except BaseException:
            # Also of a SystemExit: without this thread nothing would reach the disk any more.
            logger.exception("a callback of the queue failed")

    def _on_success(self, commit: Commit) -> None:
        rows = commit.rows
        with self._lock:
            self._row_count += len(rows) - commit.deleted
            self._writing = []
            if commit.deleting:
                self._reader.skipped = self._reader.skipped.difference(commit.deleting)
                self._deleting.remove_first(len(commit.deleting))
            if self._deleting:
                self._request_delete()
            self._telling = bool(commit.dropped)
            self._dropping.on_deleted(commit.dropped)
            if commit.anchor is not None:
                self._clock.on_saved(commit.anchor)
            if rows:
                self._committed_id = rows[-1][0]
                self._delete_rows_max = None
            del self._in_doubt[: len(commit.in_doubt)]
            if commit.read_again:
                self._read_failed = False
            if commit.with_rows:
                self._failure = None
            else:
                self._request(0.0)
            if rows or not self._row_count:
                self._progress.notify_all()
        if self._reported and commit.with_rows:
            self._reported = ""
            logger.warning("the queue file %s can be written again", self._file.path)

    def _on_failure(self, commit: Commit, error: Exception) -> None:
        rows, jobs = commit.rows, commit.jobs
        failure = self._file.failed(error)
        failure.__cause__ = error
        if isinstance(error, apsw.FullError):
            # Once all of the log is in the file, its space is used again.
            with suppress(apsw.Error):
                self._writer.connection.wal_checkpoint()
            self._delete_rows_max = _DELETE_ROWS_WITHOUT_ROOM
        if str(failure) != self._reported:
            # Once, not at each attempt: the log may be on the same disk.
            self._reported = str(failure)
            logger.error("%s", failure, exc_info=None if isinstance(error, apsw.Error) else error)
        with self._lock:
            # Kept in memory, in order, and tried again: they were accepted.
            self._pending = rows + self._pending
            self._writing = []
            self._jobs = [job for job in jobs if job.lasting] + self._jobs
            self._failure = failure if self._pending else None
            self._rows_last = bool(rows)
            if self._deleting:
                # Not at once with each that finishes meanwhile: they come by the hundred a second.
                self._delete_due_s = self._monotonic() + _STORAGE_RETRY_S
            self._request_retry()
            self._progress.notify_all()
        for job in jobs:
            if not job.lasting:
                job.error = failure
                job.finished.set()

    def _end(self) -> None:
        with self._lock:
            self._closing = self._ended = True
            jobs, self._jobs = self._jobs, []
            self._progress.notify_all()
        for job in jobs:
            job.error = QueueClosedError("the queue was closed before this was done")
            job.finished.set()
        with self._reader.lock:
            self._reader.close()
        with self._commit_lock:
            try:
                self._writer.close()
            finally:
                self._file.close()

    # ---- what goes unsent; called in the thread, with the read lock held

    def _choose_expired(self, table: QueueTable) -> int:
        return self._dropping.choose_expired(table, self._clock.now_ms(), DROP_ROWS_MAX)

    def _choose_given_up(self, table: QueueTable) -> int:
        return self._dropping.choose_given_up(table, self.max_retry, DROP_ROWS_MAX)

    def _clean_up(self, table: QueueTable) -> None:
        table.delete_orphaned_extras()
        if DROP_ROWS_MAX in (self._choose_expired(table), self._choose_given_up(table)):
            # There may be more.
            self._cleanup_due_s = self._monotonic()
