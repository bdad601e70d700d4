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
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

import apsw

from glec_fast import process
from glec_fast._lock import Condition, Hold, Lock
from glec_fast._store import (
    Finished,
    QueueTable,
    hand_over,
    keep_calling,
    keep_for_ever,
    raised_by,
    ranges_of,
    take_image,
)
from glec_fast.commit import Commit, Job, Move, Outbox, Row
from glec_fast.dropping import Dropping
from glec_fast.drops import Dropped, DropReason
from glec_fast.errors import QueueClosedError, QueueReplacedError, QueueStorageError
from glec_fast.in_doubt import LEDGER_ROWS_MAX, Decision
from glec_fast.inflight_log import SavedImage
from glec_fast.queue_clock import Anchor, Clocks, QueueClock
from glec_fast.queue_file import QueueFile, discard, is_damage
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
_EXIT_RETRY_S = 0.1
# A disk that takes longer must not hold up the thread that keeps the connection alive.
_QUICK_COMMIT_S = 0.02
# Most transactions of a disk that takes no longer end sooner than this; behind another, to leave the image to the
# writer costs less than to stand still.
_SWIFT_COMMIT_S = 0.002
_TURN_WAIT_S = 0.005
_AT_ONCE = float("-inf")
_NEVER = float("inf")
# What deletions have left on the disk is given back so long after them.
_TIDY_DELAY_S = 10.0
# A disk that damages the file again and again must not be filled with what is set aside: the pause doubles.
_SALVAGE_PAUSE_S = 1.0
_SALVAGE_PAUSE_MAX_S = 600.0
# Above every id that is given.
_ID_MAX = 1 << 62
# The thread goes on after what is raised in it, but not for ever where nothing comes of that.
_TORN_MAX = 20
_TORN_PAUSE_S = 0.01

logger = logging.getLogger("glec_fast")


class Committer(process.OfOneProcess):
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
            self._writer = Writer(
                self._file.path, self._file.connection, self._reader, self._dropping, max_queue_size, self._adopt
            )
            table = self._writer.table
            table.look_for_extras()
            self._row_count: int = table.count()
            self._next_id: int = table.last_id() + 1
            self._last_timestamp_ms: int = table.last_timestamp_ms()
            self._clock = QueueClock(clocks or Clocks(), self._last_anchor(table), self._next_id)
        except apsw.Error as error:
            failure = self._file.failed(error)
            self._file.close()
            raise failure from error
        except BaseException:
            self._file.close()
            raise

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
        # Those of the transaction under way.
        self._running: list[Job] = []
        # Transactions that are not over: what became of them is not noted, or not told, yet. More than one where a
        # drop callback waits for its own.
        self._unfinished: list[Commit] = []
        self._moving: Move | None = None
        # Rows of a transaction that was taken for failed, and that are on disk.
        self._found: frozenset[int] = frozenset()
        # There may be such, or rows of another program that have the same ids.
        self._is_unsure = False
        # By another program, since rows were last read from the first on: there may be some before the position, too.
        self.is_written_to = False
        self._torn_count = 0
        self._damage: Exception | None = None
        # The file has been made anew, or is about to be, and the reader and the writer are not both there yet.
        self._is_moving_in = False
        # The damage could not be mended; or another file has the name.
        self._unusable: QueueStorageError | None = None
        # Where what the open file held is, if another has its name.
        self._kept_at: Path | None = None
        self._salvage_due_s = _AT_ONCE
        self._salvage_pause_s = _SALVAGE_PAUSE_S
        # By all files that were found damaged.
        self.rows_lost = 0 if self._file.salvage is None else self._file.salvage.rows_lost
        self._tidy_due_s = _NEVER
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

        # The process ends: what is accepted from here on is on disk when `append` returns.
        self.is_ending = False
        # The locks that keep every thread out of SQLite are held by a thread that forks.
        self._is_still = False
        self._fork_holds: list[Hold] = []
        self._thread = Thread(target=keep_calling, args=(self._run, self._goes_on), name="glec-fast-store", daemon=True)
        self._thread.start()
        process.watch_exit(self)
        process.watch_forks_beforehand(self)

    def _last_anchor(self, table: QueueTable) -> Anchor | None:
        if not self._row_count:
            # Nothing is left that any time must agree with.
            return None
        anchor = table.load_clock()
        if anchor is not None:
            return Anchor(*anchor)
        is_lost = self._file.salvage is not None or table.has_clock()
        return Anchor.lost(self._last_timestamp_ms) if is_lost else None

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
        version = None
        if self._commit_took_s < _QUICK_COMMIT_S:
            wait_s = _TURN_WAIT_S if self._commit_took_s < _SWIFT_COMMIT_S else 0.0
            with self._commit_lock.attempt(wait_s) as is_our_turn:
                if is_our_turn:
                    version = self._save_image()
            if wait_s and not is_our_turn:
                # Whose transaction it is says how long it took; until then nobody waits for it again.
                self._commit_took_s = _TURN_WAIT_S
        if version is None:
            self.request_commit()
        return version

    def _save_image(self) -> int | None:
        saved = self._writer.image
        with self._lock:
            outbox = self._outbox
            if outbox is None or self._failure is not None or self._closing or self._in_doubt:
                return None
            if self._damage is not None or self._unusable is not None or self._is_moving_in:
                return None
            if self._identity != saved.identity:
                return None
            version, image = take_image(outbox, self._deleting.ranges, self._in_doubt)
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

    def _is_failing(self) -> bool:
        return self._failure is not None or self._unusable is not None

    def _refuse_if_failing(self) -> None:
        failure = self._unusable or self._failure
        if failure is not None:
            raise type(failure)(str(failure)) from failure

    @property
    def is_damaged(self) -> bool:
        """True while the file is damaged, or has lost its name, and cannot be mended; or nothing more is written.

        Raises QueueReplacedError where it never will be, as another file has its name.
        """
        unusable = self._unusable
        if isinstance(unusable, QueueReplacedError):
            raise QueueReplacedError(str(unusable)) from unusable
        return unusable is not None or self._ended

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

    # ---- the end of the process, and its copies

    def _begin_exit(self, _deadline_s: float) -> None:
        """Not `close`: handlers of the program may run behind this one, and publish, or leave the broker."""
        with self._lock:
            self.is_ending = True
            self._request(0.0)

    def _on_exit(self, deadline_s: float) -> None:
        with self._lock:
            through_id = self._next_id - 1
        while True:
            is_written = self._try_now(deadline_s)
            with self._commit_lock.attempt(max(deadline_s - time.monotonic(), 0.0)) as is_our_turn:
                if is_our_turn:
                    self._keep_pending()
            with self._lock:
                # Other threads may go on publishing.
                left = [row for row in (*self._writing, *self._pending) if row[0] <= through_id]
                cause = self._failure
                is_over = not left or self._ended
            remaining_s = deadline_s - time.monotonic()
            if is_over or remaining_s <= 0:
                break
            if not is_written:
                # What is in the way may pass: another program's lock, a full disk.
                time.sleep(min(_EXIT_RETRY_S, remaining_s))
        if left:
            slow = f"the disk took longer than {process.EXIT_TIMEOUT_S:g} s"
            path = self._file.path
            logger.error("%d messages for %s are lost, as the program ended: %s", len(left), path, cause or slow)

    def _try_now(self, deadline_s: float) -> bool:
        """One more transaction, and what is finished goes with it; False where it failed, or has not ended in time."""
        job = Job(lambda _table: None)
        with self._lock:
            if self._ended:
                return False
            self._jobs.append(job)
            self._request(0.0)
        return job.finished.wait(max(deadline_s - time.monotonic(), 0.0)) and job.error is None

    def _before_fork(self, deadline_s: float) -> None:
        for lock in (self._commit_lock, self._reader.lock):
            self._fork_holds.append(lock.attempt(max(deadline_s - time.monotonic(), 0.0)))
        self._is_still = all(hold.is_held for hold in self._fork_holds)

    def _after_fork(self) -> None:
        # Which gives the locks back, the last first.
        while self._fork_holds:
            self._fork_holds.pop()
        self._is_still = False

    def _in_child(self, pid: int) -> None:
        if self._is_still:
            self._reader.discard()
            discard(self._file.connection)
        else:
            # Also at the end of the process nobody may close its connections.
            keep_for_ever(self)
        self._writer.image.let_go_in_child()
        # A thread that does not exist here may hold the other.
        self._lock = Lock()
        process.forbid(self, pid, {"close": None})

    # ---- the thread

    def _run(self) -> None:
        """Called again where anything is raised in it, at whatever point."""
        self._pick_up()
        closing = self._ended
        while not closing:
            with self._lock:
                self._wait_for_work()
                closing = self._closing
            # One failure is enough to give up what is left: nobody would wait for the disk to mend.
            while self._commit_once() and closing and self._has_work():
                pass
            if not closing and self._monotonic() >= self._tidy_due_s:
                self._tidy()
        self._end()

    def _goes_on(self, error: BaseException) -> bool:
        """False where the thread ends: what is raised again and again, with nothing written between, is our fault."""
        self._torn_count += 1
        if self._torn_count > _TORN_MAX:
            logger.critical("the store's thread ends: nothing more will be written", exc_info=error)
            self._end()
            return False
        logger.critical("the store's thread was cut into, and goes on: %r", error, exc_info=error)
        if self._torn_count > 1:
            time.sleep(_TORN_PAUSE_S)
        return True

    def _pick_up(self) -> None:
        """Bring transactions to their end that an exception has cut into."""
        move = self._moving
        if move is not None:
            with self._commit_lock, self._reader.lock:
                if move.is_committed:
                    self._note_move(move)
                self._moving = None
        while self._unfinished:
            commit = self._unfinished[-1]
            if not commit.is_noted:
                with self._commit_lock:
                    if commit.is_committed:
                        self._on_success(commit)
                    else:
                        self._give_back()
            if commit.is_committed:
                self._tell_all(commit)
            self._unfinished.pop()
        if self._torn_count:
            # Nobody knows whether what was asked for was heard.
            self.request_commit()

    def _tidy(self) -> None:
        with self._commit_lock:
            try:
                is_more_to_do = self._writer.tidy()
            except (apsw.Error, OSError) as error:
                # Nothing depends on it; the next transaction meets what is wrong.
                logger.debug("the queue file could not be made smaller: %s", error)
                is_more_to_do = True
            with self._lock:
                self._tidy_due_s = self._monotonic() + _TIDY_DELAY_S if is_more_to_do else _NEVER

    def _has_work(self) -> bool:
        with self._lock:
            return bool(self._pending or self._jobs or self._dropping.marked)

    def _wait_for_work(self) -> None:
        while not self._closing:
            due_s = min(self._cleanup_due_s, self._tidy_due_s)
            if self._deadline_s is not None:
                due_s = min(due_s, self._deadline_s)
            remaining_s = due_s - self._monotonic()
            if remaining_s <= 0:
                break
            self._work.wait(min(remaining_s, threading.TIMEOUT_MAX))
        self._deadline_s = None

    def _commit_once(self) -> bool:
        """One transaction with all that waits. False where it failed: what was accepted then waits again."""
        with self._commit_lock:
            commit = self._attempt()
            if commit is None and (self._is_unsure or self._may_mend()):
                commit = self._attempt()
        if commit is None:
            return False
        self._tell_all(commit)
        self._unfinished.remove(commit)
        self._torn_count = 0
        return True

    def _attempt(self) -> Commit | None:
        """A transaction that is noted, and not told yet; None where it failed."""
        commit = Commit()
        self._unfinished.append(commit)
        started_s = time.monotonic()
        try:
            self._follow_wall_clock()
            self._take_work(commit)
            self._mend_file(commit)
            if self._is_unsure:
                self._leave_out_found(commit)
            self._writer.transact(commit, self._clock)
        except Exception as error:
            if not commit.is_committed:
                self._on_failure(error)
                self._unfinished.remove(commit)
                return None
            logger.exception("what a transaction left behind was cut into")
        self._commit_took_s = time.monotonic() - started_s
        self._on_success(commit)
        return commit

    def _tell_all(self, commit: Commit) -> None:
        """What came of a transaction; a second call tells what the first had no time to."""
        for job in commit.jobs:
            job.finished.set()
        outbox = commit.outbox
        if commit.dropped:
            logger.info("%d messages dropped, the first: %s", len(commit.dropped), commit.dropped[0])
            callback = self._on_dropped if outbox is None else outbox.on_dropped
            error = None if callback is None else hand_over(callback, commit.dropped)
            if error is not None:
                # Also a SystemExit: without this thread nothing would reach the disk any more.
                logger.error("a callback of the queue failed", exc_info=error)
        with self._lock:
            if self._telling:
                self._telling = False
                self._progress.notify_all()
        if outbox is not None and commit.is_salvaged:
            error = raised_by(outbox.on_salvaged)
            if error is not None:
                logger.error("the outbox failed", exc_info=error)
        if outbox is not None:
            arguments = commit.version, len(commit.rows) or int(commit.read_again)
            error = raised_by(outbox.on_committed, *arguments)
            if error is not None:
                logger.error("the outbox failed", exc_info=error)
                if not isinstance(error, Exception):
                    # From outside, so that another attempt is not cut into.
                    raised_by(outbox.on_committed, *arguments)

    # ---- the file, while it is in use; called with the commit lock held

    def _may_mend(self) -> bool:
        return self._damage is not None and self._monotonic() >= self._salvage_due_s

    def _mend_file(self, commit: Commit) -> None:
        """Before a transaction: see to it that the file is sound, as far as is known, and where it was."""
        if isinstance(self._unusable, QueueReplacedError):
            raise self._unusable
        damage = self._damage
        is_in_place = damage is None and self._file.is_in_place()
        if is_in_place and not self._is_moving_in:
            self._unusable = None
            return
        if damage is not None and not self._may_mend():
            raise damage
        # Until both are there nothing may be written: what they have open has no name any more.
        self._is_moving_in = True
        before = self._reader.connection, self._writer.connection
        try:
            if damage is not None:
                self._file.salvage_in_use(damage)
            elif not is_in_place:
                self._file.put_back()
        except QueueReplacedError as error:
            # Nobody would read the open file again.
            self._kept_at = self._file.keep_beside(partial(self._keep_in_flight, commit))
            self._unusable = QueueReplacedError(f"{error}; what was not sent is kept as {self._kept_at}")
            raise self._unusable from None
        except (apsw.Error, OSError) as error:
            self._unusable = self._file.failed(error)
            raise
        self._use_file(commit)
        self._leave_out_found(commit)
        for connection in before:
            # Where an exception has cut into it, the writer may have been there already.
            if connection is not self._file.connection:
                discard(connection)
        if damage is not None:
            self._file.on_mended()
            commit.is_salvaged = True
            self._on_salvaged()
        self._damage = self._unusable = None
        self._is_moving_in = False

    def _keep_in_flight(self, commit: Commit, copy: apsw.Connection) -> None:
        """For who opens the copy: what the log of images has, which is another name's, and what is finished."""
        with copy:
            table = QueueTable(copy)
            if commit.in_doubt:
                table.add_in_doubt(self._clock.unix_ms(), commit.in_doubt, LEDGER_ROWS_MAX)
            table.delete(commit.deleting.copy())
            if commit.image is not None:
                SavedImage(Path(copy.filename)).write(table, commit.identity, commit.image)

    def _keep_pending(self) -> None:
        """The queue's name is another file's: what waits in memory joins what the open one held."""
        if self._kept_at is None:
            return
        with closing(apsw.Connection(str(self._kept_at))) as copy, self._lock:
            QueueTable(copy).insert(self._pending)
            self._pending = []

    def _use_file(self, commit: Commit) -> None:
        """Go on with the file that is open now: what is in it says what is on disk."""
        with self._reader.lock:
            self._reader.use(self._file.reader())
            self._writer.use(self._file.connection)
            self._writer.look_for_strangers()
            table = self._writer.table
            table.look_for_extras()
            row_count, last_id = table.count(), table.last_id()
            with self._lock:
                self._row_count = commit.row_count = row_count
                self._next_id = max(self._next_id, last_id + 1)
                commit.anchor = self._clock.anchor(fresh=True)
                commit.read_again = True

    def _leave_out_found(self, commit: Commit) -> None:
        """A transaction that was taken for failed may be on disk all the same."""
        found = frozenset(row[0] for row in commit.rows if self._writer.table.has(row))
        with self._lock:
            self._found = found
            self._writing = commit.rows = [row for row in commit.rows if row[0] not in found]

    def _on_salvaged(self) -> None:
        now_s = self._monotonic()
        if now_s - self._salvage_due_s > _SALVAGE_PAUSE_MAX_S:
            self._salvage_pause_s = _SALVAGE_PAUSE_S
        self._salvage_due_s = now_s + self._salvage_pause_s
        self._salvage_pause_s = min(self._salvage_pause_s * 2, _SALVAGE_PAUSE_MAX_S)
        if self._file.salvage is not None:
            with self._lock:
                self.rows_lost += self._file.salvage.rows_lost
                self._dropping.counts[DropReason.DAMAGED_FILE.value] += self._file.salvage.rows_lost

    def _adopt(self, commit: Commit, table: QueueTable) -> None:
        """Within a transaction that finds the file written to by another program.

        Its rows come behind those that are there. Their ids were ours to give, so that they get others.
        """
        self.is_written_to = True
        row_count = table.count()
        commit.read_again = commit.read_again or row_count != commit.row_count
        commit.row_count = row_count
        strangers = [each for each in table.strangers(self._committed_id) if each not in self._found]
        if not strangers:
            return
        logger.warning("another program has put %d messages into the queue", len(strangers))
        commit.read_again = True
        with self._lock:
            kept = [message_id for message_id in strangers if self._next_id <= message_id < _ID_MAX]
            self._next_id = max(kept, default=self._next_id - 1) + 1
            ids = [(message_id, message_id) for message_id in kept]
            kept_ids = frozenset(kept)
            for message_id in strangers:
                if message_id not in kept_ids:
                    ids.append((message_id, self._next_id))
                    self._next_id += 1
            timestamp_ms = self._last_timestamp_ms = max(self._clock.now_ms(), self._last_timestamp_ms)
        table.adopt(ids, timestamp_ms, timestamp_ms + self.ttl_ms)

    def _follow_wall_clock(self) -> None:
        """Mend all times where the wall clock has stepped; readers and callers see all old ones or all new ones."""
        step = self._clock.step()
        if step is None or self._is_moving_in:
            return
        with self._reader.lock:
            with self._lock:
                coming_ms = self._pending[0][4] if self._pending else self._clock.now_ms()
            move = self._moving = Move(step)
            try:
                self._writer.move_times(move, coming_ms, self._clock)
            except apsw.Error as error:
                self._moving = None
                if is_damage(error):
                    raise
                # The old times still agree with each other, and a full disk may need the deletes that come next.
                logger.debug("the times of queued messages could not be moved yet: %s", error)
                return
            self._note_move(move)
        logger.warning("the wall clock stepped: the times of queued messages were moved by %.1f s", step.by_ms / 1000)

    def _note_move(self, move: Move) -> None:
        """Where this was cut into, a second call does the same. The caller holds the reader's lock."""
        anchor, by_ms = move.anchor, move.step.by_ms
        assert anchor is not None
        with self._lock:
            self._clock.on_saved(anchor)
            position = self._reader.position_after(by_ms, move.first_id)
            pending = [(*row[:4], row[4] + by_ms, row[5] + by_ms, *row[6:]) for row in self._pending]
            last_ms = pending[-1][4] if pending else move.last_timestamp_ms
            # In one step, in which nothing can be raised.
            self._reader.position, self._pending, self._moving = position, pending, None
            self._last_timestamp_ms = last_ms

    def _take_work(self, commit: Commit) -> None:
        with self._lock:
            is_cleanup_due = self._monotonic() >= self._cleanup_due_s
            commit.with_rows, self._rows_last = not self._rows_last, False
            if commit.with_rows:
                # In one step: a row is never in neither.
                self._writing, self._pending = self._pending, []
                commit.rows = self._writing
            if commit.rows:
                self._rows_due_s = self._monotonic() + _ROWS_COMMIT_SPACING_S
            self._running, self._jobs = self._jobs, []
            if is_cleanup_due:
                self._cleanup_due_s = self._monotonic() + self._cleanup_interval_s
                self._running.append(Job(self._clean_up))
            commit.jobs = self._running
            if commit.rows or self._row_count:
                commit.anchor = self._clock.anchor(fresh=is_cleanup_due or self._closing)
            commit.read_again = self._read_failed
            commit.row_count, commit.outbox = self._row_count, self._outbox
            if commit.outbox is not None:
                self._deleting.take_from(commit.outbox)
            if self._must_delete(commit):
                commit.deleting = self._deleting.ids[: self._delete_rows_max]
                if len(commit.deleting) == len(self._deleting):
                    # What finishes from here on has a second of its own.
                    self._delete_due_s = None
            if commit.outbox is not None:
                kept = self._deleting.ranges
                if commit.deleting:
                    kept = ranges_of(self._deleting.ids[len(commit.deleting) :])
                commit.version, commit.image = take_image(commit.outbox, kept, self._in_doubt)
                commit.in_doubt, commit.identity = self._in_doubt.copy(), self._identity

    def _must_delete(self, commit: Commit) -> bool:
        count = len(self._deleting)
        is_due = self._delete_due_s is not None and self._monotonic() >= self._delete_due_s
        # What is to be dropped goes with this transaction too.
        is_last = count + len(self._dropping.marked) >= self._row_count or self._closing or not commit.with_rows
        makes_room = self._row_count + len(commit.rows) > self.max_queue_size
        return is_due or is_last or makes_room or bool(commit.jobs) or count >= DELETE_ROWS_MAX

    def _on_success(self, commit: Commit) -> None:
        """Note what is on disk now. Where this was cut into, a second call does the same."""
        rows = commit.rows
        self._writer.on_committed(commit)
        with self._lock:
            self._row_count = commit.row_count + len(rows) - commit.deleted
            if commit.deleting:
                self._reader.skipped = self._reader.skipped.difference(commit.deleting)
                self._deleting.remove_taken(commit.deleting)
            if self._deleting:
                self._request_delete()
            self._dropping.on_deleted(commit.dropped)
            self._telling = bool(commit.dropped)
            if commit.anchor is not None:
                self._clock.on_saved(commit.anchor)
            if rows:
                self._committed_id = rows[-1][0]
                self._delete_rows_max = None
            if commit.with_rows and not self._pending:
                # Also those of another program, and what was found to be on disk already.
                self._committed_id = self._next_id - 1
            self._in_doubt.clear()
            if commit.read_again:
                self._read_failed = False
            if commit.with_rows:
                self._failure = None
                self._is_unsure = False
            else:
                self._request(0.0)
            if commit.deleted and self._tidy_due_s == _NEVER:
                self._tidy_due_s = self._monotonic() + _TIDY_DELAY_S
            if rows or not self._row_count or commit.read_again:
                self._progress.notify_all()
            self._writing, self._running, self._found = [], [], frozenset()
            commit.is_noted = True
        if self._reported and commit.with_rows:
            self._reported = ""
            logger.warning("the queue file %s can be written again", self._file.path)

    def _give_back(self) -> None:
        """What a transaction that came to nothing had taken waits again, in order."""
        with self._lock:
            self._pending, self._writing = self._writing + self._pending, []
            # Whoever waited for the others has heard of their failure.
            jobs = [job for job in self._running if not job.finished.is_set()] + self._jobs
            self._jobs, self._running = jobs, []
            self._request(0.0)

    def _on_failure(self, error: Exception) -> None:
        failure = self._file.failed(error)
        if failure is not error:
            failure.__cause__ = error
        if isinstance(error, apsw.ConstraintError) and not self._is_unsure:
            # Its ids are taken: by rows of another program, or by itself, where it was taken for failed.
            self._is_unsure = True
            self._writer.look_for_strangers()
            self._give_back()
            return
        if is_damage(error) and self._unusable is None:
            self._damage = error
            if self._may_mend():
                # Nobody need hear of it, unless that fails.
                self._give_back()
                return
            self._unusable = failure
        if isinstance(error, apsw.FullError):
            # Once all of the log is in the file, its space is used again.
            with suppress(apsw.Error):
                self._writer.connection.wal_checkpoint()
            self._delete_rows_max = _DELETE_ROWS_WITHOUT_ROOM
        if str(failure) != self._reported:
            # Once, not at each attempt: the log may be on the same disk.
            self._reported = str(failure)
            logger.error("%s", failure, exc_info=None if isinstance(error, (apsw.Error, QueueStorageError)) else error)
        with self._lock:
            # Kept in memory, in order, and tried again: they were accepted.
            self._rows_last = bool(self._writing)
            self._pending, self._writing = self._writing + self._pending, []
            self._failure = failure if self._pending else None
            for job in self._running:
                if not job.lasting:
                    job.error = failure
                    job.finished.set()
            self._jobs, self._running = [job for job in self._running if job.lasting] + self._jobs, []
            if self._deleting:
                # Not at once with each that finishes meanwhile: they come by the hundred a second.
                self._delete_due_s = self._monotonic() + _STORAGE_RETRY_S
            self._request_retry()
            self._progress.notify_all()

    def _end(self) -> None:
        process.leave(self)
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
                self._keep_pending()
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
