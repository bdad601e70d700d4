"""The store's own thread: one transaction after another, what each takes, and who is told what came of it.

One transaction has all that waited. Where it fails, what was accepted waits again, in order, and is tried again for as
long as the file is open.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypeVar

import apsw

from glec_fast.durable._steps import hand_over, keep_calling, raised_by
from glec_fast.durable._table import QueueTable
from glec_fast.durable.caretaker import Caretaker
from glec_fast.durable.clock_steps import ClockSteps
from glec_fast.durable.dropping import Dropping
from glec_fast.durable.gathering import Batch, Gathering
from glec_fast.durable.intake import Intake
from glec_fast.durable.jobs import Job, Jobs
from glec_fast.durable.outcomes import Dropped
from glec_fast.durable.outgoing import Outgoing
from glec_fast.durable.overflow import Overflow
from glec_fast.durable.schedule import DONE_COMMIT_DELAY_S, Schedule
from glec_fast.durable.status import Status
from glec_fast.durable.transaction import Commit
from glec_fast.durable.writer import Writer
from glec_fast.errors import QueueStorageError
from glec_fast.runtime.log import logger, shown
from glec_fast.runtime.thread import Thread

T = TypeVar("T")

# The thread goes on after what is raised in it, but not for ever where nothing comes of that.
_TORN_MAX = 20
_TORN_PAUSE_S = 0.01
# What the log says of it.
_DISK = "failures of the queue's disk, and their ends"


@dataclass(eq=False, repr=False)
class Committer:
    """Its state belongs to its thread, which takes the writer's lock and behind it `status.lock`; any thread may `run`
    and `close`. It runs from `start` on.

    _on_dropped: told of drops while no outbox is attached. _on_end: called once nothing more is written.
    """

    _status: Status
    _schedule: Schedule
    _intake: Intake
    _gathering: Gathering
    _jobs: Jobs
    _outgoing: Outgoing
    _dropping: Dropping
    _writer: Writer
    _caretaker: Caretaker
    _clock_steps: ClockSteps
    _overflow: Overflow
    _on_dropped: Callable[[list[Dropped]], None] | None
    _on_end: Callable[[], None]
    # Transactions that are not over: what became of them is not noted, or not told, yet. More than one where a drop
    # callback waits for its own.
    _unfinished: list[Commit] = field(default_factory=list)
    _torn_count: int = 0
    _has_failed: bool = False
    # Called by the thread after each transaction, whatever came of it, and at its end; with no lock held.
    on_turn: Callable[[], None] | None = None

    def start(self) -> None:
        """Start the thread."""
        goes_on = self._goes_on
        self.thread = Thread(target=keep_calling, args=(self._run, goes_on), name="glec-fast-store", daemon=True)
        self._status.thread = self.thread
        self.thread.start()

    # ---- any thread

    def run(self, statement: Callable[[QueueTable], T]) -> T:
        """See `Store.run`."""
        job = Job(statement)
        with self._status.lock:
            self._status.refuse_if_closed()
            self._jobs.add(job)
        if self._status.is_own_thread():
            # From a drop callback, which runs between two transactions.
            self._commit_once()
        job.finished.wait()
        if job.error is not None:
            raise job.error
        return job.result  # type: ignore[no-any-return]

    def look(self, timeout_s: float | None) -> None:
        """Wait for a transaction, which finds what another program has written to the file; `timeout_s` at most."""
        if self._status.is_needed():
            return
        job = Job(lambda _table: None)
        with self._status.lock:
            if self._status.is_closing:
                return
            self._jobs.add(job)
        job.finished.wait(timeout_s)

    def close(self) -> None:
        """See `Store.close`."""
        with self._status.lock:
            self._status.is_closing = True
            self._schedule.request()
        if self._status.is_own_thread():
            return
        self.thread.join()
        with self._status.lock:
            count, self._intake.pending = len(self._intake.pending), []
        if count:
            raise QueueStorageError(
                f"{count} messages could not be written before the queue was closed"
            ) from self._status.failure

    # ---- the thread

    def _run(self) -> None:
        """Called again where anything is raised in it, at whatever point."""
        self._pick_up()
        closing = self._status.has_ended
        while not closing:
            with self._status.lock:
                self._schedule.wait(self._caretaker.tidy_due_s)
                closing = self._status.is_closing
            # One failure is enough to give up what is left: nobody would wait for the disk to mend.
            while self._commit_once() and closing and self._has_work():
                pass
            if not closing:
                self._status.log.tick()
                self._caretaker.tidy_if_due()
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
        self._clock_steps.pick_up()
        while self._unfinished:
            commit = self._unfinished[-1]
            if not commit.is_noted:
                with self._writer.lock:
                    if commit.is_committed:
                        self._on_success(commit)
                    else:
                        self._give_back()
            if commit.is_committed:
                self._tell_all(commit)
            self._unfinished.pop()
        if self._torn_count:
            # Nobody knows whether what was asked for was heard.
            with self._status.lock:
                self._schedule.request()

    def _has_work(self) -> bool:
        with self._status.lock:
            return bool(self._intake.pending or self._jobs.waiting or self._dropping.marked)

    def _commit_once(self) -> bool:
        """One transaction with all that waits. False where it failed: what was accepted then waits again."""
        with self._writer.lock:
            commit = self._attempt()
            if commit is None and (self._intake.is_unsure or self._caretaker.may_mend):
                commit = self._attempt()
        if commit is None:
            self._save_image()
            self._tell_of_turn()
            return False
        self._tell_all(commit)
        self._unfinished.remove(commit)
        self._torn_count = 0
        self._tell_of_turn()
        return True

    def _save_image(self) -> None:
        """The image alone, where the disk refuses the rows: its log has its room also on a full one."""
        with self._writer.lock:
            version = self._outgoing.save_image()
        outbox = self._outgoing.outbox
        if version is not None and outbox is not None:
            self._tell("errors in the outbox", outbox.on_committed, version, 0)

    def _tell_of_turn(self) -> None:
        if self.on_turn is not None:
            self._tell("errors in callbacks of the queue", self.on_turn)

    def _tell(self, kind: str, call: Callable[..., object], *arguments: object) -> None:
        """Call one who waits for it; an error of its own is logged. kind: of the log line."""
        error = raised_by(call, *arguments)
        if error is not None:
            self._status.log.note(logging.ERROR, kind, shown(error), error=error)
            if not isinstance(error, Exception):
                # From outside, so that another attempt is not cut into.
                raised_by(call, *arguments)

    def _attempt(self) -> Commit | None:
        """A transaction that is noted, and not told yet; None where it failed."""
        commit = Commit()
        self._unfinished.append(commit)
        started_s = time.monotonic()
        try:
            self._clock_steps.follow()
            self._take_work(commit, self._gathering.join())
            self._caretaker.mend(commit)
            if self._intake.is_unsure:
                self._intake.leave_out_found(commit, self._writer.table)
            self._writer.transact(commit, self._intake.clock)
        except Exception as error:
            if not commit.is_committed:
                self._on_failure(error)
                self._unfinished.remove(commit)
                return None
            logger.exception("what a transaction left behind was cut into")
        self._writer.took_s = time.monotonic() - started_s
        self._on_success(commit)
        return commit

    def _take_work(self, commit: Commit, gathered: tuple[Batch, int, bytes] | None) -> None:
        intake, schedule = self._intake, self._schedule
        with self._outgoing.outbox_lock, self._status.lock:
            is_closing = self._status.is_closing
            self._gathering.close_if_due(gathered)
            intake.take(commit)
            if commit.with_rows:
                self._gathering.take(commit, gathered)
            if commit.rows:
                schedule.on_rows_taken()
            self._jobs.take(commit)
            is_cleanup_due = schedule.take_cleanup()
            if is_cleanup_due:
                commit.jobs.append(Job(self._clean_up))
            if commit.rows or commit.row_count:
                commit.anchor = intake.clock.anchor(fresh=is_closing)
            commit.last_id = intake.next_id - 1 if is_closing else None
            self._settle_claims()
            is_asked = any(not job.lasting for job in commit.jobs)
            makes_room = self._overflow.is_tight(commit) or is_closing or not commit.with_rows or is_asked
            self._outgoing.take(commit, makes_room=makes_room, marked=len(self._dropping.marked))

    def _settle_claims(self) -> None:
        """Before the image of this transaction is taken, which must say what the rows' deletion makes of it."""
        outgoing, dropping = self._outgoing, self._dropping
        if not dropping.claimed:
            return
        was_abandoning, marked = outgoing.is_abandoning, len(dropping.marked)
        # First, and until a transaction is on disk: also where this is cut into.
        outgoing.is_abandoning = True
        if not dropping.settle_claims(outgoing.abandon):
            self._schedule.request(DONE_COMMIT_DELAY_S)
        outgoing.is_abandoning = was_abandoning or len(dropping.marked) > marked

    def _clean_up(self, table: QueueTable) -> None:
        if self._dropping.clean_up(table):
            self._schedule.cleanup_due_s = self._schedule.monotonic()
        with self._status.lock:
            if self._dropping.claimed:
                self._schedule.request(DONE_COMMIT_DELAY_S)

    def _on_success(self, commit: Commit) -> None:
        """Note what is on disk now. Where this was cut into, a second call does the same."""
        self._writer.on_committed(commit)
        with self._status.lock:
            self._outgoing.on_committed(commit)
            self._dropping.on_deleted(commit.dropped)
            self._intake.on_committed(commit)
            self._gathering.on_committed(commit)
            if commit.deleted:
                self._caretaker.on_deleted()
            self._jobs.on_committed()
            commit.is_noted = True
        if self._has_failed and commit.with_rows:
            self._has_failed = False
            text = f"the queue file {self._writer.path} can be written again"
            self._status.log.note(logging.WARNING, _DISK, "it can be written again", text=text)

    def _give_back(self) -> None:
        """What a transaction that came to nothing had taken waits again."""
        with self._status.lock:
            self._intake.give_back()
            self._jobs.give_back()
            self._schedule.request()

    def _on_failure(self, error: Exception) -> None:
        failure = self._caretaker.failed(error)
        if failure is not error:
            failure.__cause__ = error
        if isinstance(error, apsw.ConstraintError) and not self._intake.is_unsure:
            # Its ids are taken: by rows of another program, or by itself, where it was taken for failed.
            self._intake.is_unsure = True
            self._writer.look_for_strangers()
            self._give_back()
            return
        if self._caretaker.on_failure(error, failure):
            self._give_back()
            return
        if isinstance(error, apsw.FullError):
            # Once all of the log is in the file, its space is used again.
            with suppress(apsw.Error):
                self._writer.connection.wal_checkpoint()
        self._has_failed = True
        cause = None if isinstance(error, (apsw.Error, QueueStorageError)) else error
        self._status.log.note(logging.ERROR, _DISK, str(failure), text=str(failure), error=cause)
        with self._status.lock:
            self._intake.on_failure(failure)
            self._gathering.on_failure(failure)
            self._jobs.on_failure(failure)
            self._outgoing.on_failure(error)
            self._schedule.request_retry()

    def _tell_all(self, commit: Commit) -> None:
        """What came of a transaction; a second call tells what the first had no time to."""
        for job in commit.jobs:
            job.finished.set()
            if job.told is not None:
                self._tell("errors behind the queue's statements", job.tell)
        outbox = commit.outbox
        if commit.dropped:
            self._note_drops(commit.dropped)
            callback = self._on_dropped if outbox is None else outbox.on_dropped
            error = None if callback is None else hand_over(callback, commit.dropped)
            if error is not None:
                # Also a SystemExit: without this thread nothing would reach the disk any more.
                self._status.log.note(logging.ERROR, "errors in callbacks of the queue", shown(error), error=error)
        with self._status.lock:
            self._intake.on_told()
        if outbox is not None and commit.is_salvaged:
            self._tell("errors in the outbox", outbox.on_salvaged)
        if outbox is not None:
            new_rows = len(commit.rows) or int(commit.read_again)
            self._tell("errors in the outbox", outbox.on_committed, commit.version, new_rows)

    def _note_drops(self, dropped: list[Dropped]) -> None:
        for reason, count in Counter(each.reason.value for each in dropped).items():
            first = next(each for each in dropped if each.reason.value == reason)
            text = f"{count:,} messages dropped: {reason} (the first: message {first.message_id} of {first.topic!r})"
            self._status.log.note(logging.WARNING, "messages dropped", reason, count=count, text=text)

    def _end(self) -> None:
        self._status.log.close()
        self._on_end()
        with self._status.lock:
            self._status.is_closing = self._status.has_ended = True
            self._jobs.refuse()
            self._intake.progress.notify_all()
        self._caretaker.close()
        self._tell_of_turn()
