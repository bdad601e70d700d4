"""Statements that other threads have the writer run, each with the next transaction."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import apsw

from glec_fast.durable._table import QueueTable
from glec_fast.durable.schedule import Schedule
from glec_fast.durable.status import Status
from glec_fast.errors import QueueClosedError, QueueStorageError
from glec_fast.runtime._lock import Event

if TYPE_CHECKING:
    from glec_fast.durable.transaction import Commit


class Job:
    """A statement for the writer thread, and where its result goes."""

    def __init__(
        self,
        statement: Callable[[QueueTable], Any],
        *,
        lasting: bool = False,
        told: Callable[[Any], None] | None = None,
    ) -> None:
        self.statement = statement
        # Called by the store's thread with the result, once that is on disk; of a statement that nobody waits for.
        self.told = told
        # Nobody waits for it: where the disk fails it is tried again.
        self.lasting = lasting
        self.finished = Event()
        self.result: Any = None
        self.error: BaseException | None = None

    def tell(self) -> None:
        """It is on disk: have `told` called; or it was refused with `error`, which is raised."""
        assert self.told is not None
        if self.error is not None:
            raise self.error
        self.told(self.result)

    def run(self, connection: apsw.Connection, table: QueueTable) -> None:
        """Run the statement. What it raises is its caller's, and undone; what the disk refuses is the transaction's."""
        deleted = table.deleted
        # Of an attempt that was rolled back.
        self.error = None
        try:
            with connection:
                self.result = self.statement(table)
        except apsw.Error:
            raise
        except Exception as error:
            table.deleted = deleted
            self.error = error


class Jobs:
    """Those that wait, and those of the transaction under way. Each method but `add` wants `status.lock` held."""

    def __init__(self, status: Status, schedule: Schedule) -> None:
        self._lock = status.lock
        self._schedule = schedule
        self.waiting: list[Job] = []
        self._running: list[Job] = []

    def add(self, job: Job) -> None:
        """Have it run with the next transaction, which is asked for."""
        with self._lock:
            self.waiting.append(job)
            self._schedule.request()

    def take(self, commit: Commit) -> None:
        """They go with this transaction."""
        self._running, self.waiting = self.waiting, []
        commit.jobs = self._running

    def on_committed(self) -> None:
        """They are on disk."""
        self._running = []

    def give_back(self) -> None:
        """The transaction came to nothing: they wait again, but for those whose callers have heard of a failure."""
        jobs = [job for job in self._running if job.lasting or not job.finished.is_set()] + self.waiting
        self.waiting, self._running = jobs, []

    def on_failure(self, failure: QueueStorageError) -> None:
        """The disk has refused them: whoever waits for one hears of it."""
        for job in self._running:
            if not job.lasting:
                job.error = failure
                job.finished.set()
        self.waiting, self._running = [job for job in self._running if job.lasting] + self.waiting, []

    def refuse(self) -> None:
        """The store has ended."""
        jobs, self.waiting = self.waiting, []
        for job in jobs:
            job.error = QueueClosedError("the queue was closed before this was done")
            job.finished.set()
