"""The end of the process, and its copies: what a store does for what it has accepted, and for its file."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from glec_fast.durable._steps import keep_for_ever
from glec_fast.durable.caretaker import Caretaker
from glec_fast.durable.file import QueueFile
from glec_fast.durable.gathering import Gathering
from glec_fast.durable.intake import Intake
from glec_fast.durable.jobs import Job, Jobs
from glec_fast.durable.reader import Reader
from glec_fast.durable.status import Status
from glec_fast.durable.writer import Writer
from glec_fast.runtime import process
from glec_fast.runtime._lock import Hold, Lock
from glec_fast.runtime.log import logger

if TYPE_CHECKING:
    from glec_fast.durable.store import Store

_EXIT_RETRY_S = 0.1


@dataclass(eq=False, repr=False)
class Ending:
    """Called by `process`, in the thread that ends it or forks. Its attributes are the forking thread's."""

    _store: Store
    _status: Status
    _intake: Intake
    _gathering: Gathering
    _jobs: Jobs
    _file: QueueFile
    _reader: Reader
    _writer: Writer
    _caretaker: Caretaker
    # The locks that keep every thread out of SQLite are held by a thread that forks.
    _is_still: bool = False
    _holds: list[Hold] = field(default_factory=list)

    def watch(self) -> None:
        """From now on, until `leave`."""
        process.watch_exit(self)
        process.watch_forks_beforehand(self)

    def leave(self) -> None:
        """The store has ended before the process."""
        process.leave(self)

    def _process_ends(self, _deadline_s: float) -> None:
        """Not `close`: handlers of the program may run behind this one, and publish, or leave the broker."""
        self._status.is_ending = True
        self._store.request_commit()

    def _process_ended(self, deadline_s: float) -> None:
        status, intake = self._status, self._intake
        with status.lock:
            through_id = intake.next_id - 1
        while True:
            is_written = self._try_now(deadline_s)
            with self._writer.lock.attempt(max(deadline_s - time.monotonic(), 0.0)) as is_our_turn:
                if is_our_turn:
                    self._caretaker.keep_pending()
            with status.lock:
                # Other threads may go on publishing.
                left = sum([row[0] <= through_id for row in (*intake.writing, *intake.pending)])
                left += self._gathering.unsaved
                cause = status.failure
                is_over = not left or status.has_ended
            remaining_s = deadline_s - time.monotonic()
            if is_over or remaining_s <= 0:
                break
            if cause is not None or not is_written:
                # What is in the way may pass: another program's lock, a full disk, which may refuse the rows alone.
                time.sleep(min(_EXIT_RETRY_S, remaining_s))
        if left:
            slow = f"the disk took longer than {process.EXIT_TIMEOUT_S:g} s"
            path = self._file.path
            logger.error("%d messages for %s are lost, as the program ended: %s", left, path, cause or slow)

    def _try_now(self, deadline_s: float) -> bool:
        """One more transaction, and what is finished goes with it; False where it failed, or has not ended in time."""
        job = Job(lambda _table: None)
        with self._status.lock:
            if self._status.has_ended:
                return False
            self._jobs.add(job)
        return job.finished.wait(max(deadline_s - time.monotonic(), 0.0)) and job.error is None

    def _before_fork(self, deadline_s: float) -> None:
        for lock in (self._writer.lock, self._reader.lock):
            self._holds.append(lock.attempt(max(deadline_s - time.monotonic(), 0.0)))
        self._is_still = all(hold.is_held for hold in self._holds)

    def _after_fork(self) -> None:
        # Which gives the locks back, the last first.
        while self._holds:
            self._holds.pop()
        self._is_still = False

    def _process_forked(self, pid: int) -> None:
        if self._is_still:
            self._reader.discard()
            self._file.let_go_in_child()
        else:
            # Also at the end of the process nobody may close its connections.
            keep_for_ever(self)
        self._writer.image.let_go_in_child()
        # A thread that does not exist here may hold the other.
        self._store._lock = Lock("Store._lock")
        # Somebody may have a method of the store at hand, which asks a part.
        for part in [each for each in vars(self._store).values() if hasattr(each, "__dict__")]:
            process.forbid(part, pid, {})
        process.forbid(self._store, pid, {"close": None})
