"""Rows of the queue, as the sending side takes them: read in order, read again, or dropped unsent."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field

import apsw

from glec_fast.durable._steps import Finished
from glec_fast.durable._table import QueueTable, is_any_expired
from glec_fast.durable.dropping import Dropping
from glec_fast.durable.extras import ROW_COLUMNS, as_sent
from glec_fast.durable.file import QueueFile, is_damage
from glec_fast.durable.intake import Intake
from glec_fast.durable.jobs import Job, Jobs
from glec_fast.durable.outcomes import DropReason
from glec_fast.durable.outgoing import Outgoing
from glec_fast.durable.reader import Reader
from glec_fast.durable.schedule import DONE_COMMIT_DELAY_S, Schedule
from glec_fast.durable.status import Status
from glec_fast.durable.transaction import Row
from glec_fast.durable.writer import Writer

# The store's thread holds the reader's lock while it drops rows on a disk that may be slow.
_OLDEST_WAIT_S = 0.005


@dataclass(eq=False, repr=False)
class Supply:
    """For the outbox: `read` and `rewind` belong to one thread, the others to any.

    They take the reader's lock, behind it `status.lock`.
    """

    _status: Status
    _schedule: Schedule
    _intake: Intake
    _jobs: Jobs
    _outgoing: Outgoing
    _dropping: Dropping
    _file: QueueFile
    _reader: Reader
    _writer: Writer
    # Whose refusal is not yet counted, and the job that does.
    _refused: dict[int, Job] = field(default_factory=dict)
    # As of when it was last looked for.
    _oldest_ms: int | None = None

    def rewind(self, protected: Iterable[int], finished: Iterable[int], withheld: Iterable[int] = ()) -> None:
        """Read from the first row again. `protected` ids are in flight and never dropped; `finished` are not read.

        withheld: neither dropped nor read, and not finished.
        """
        with self._reader.lock, self._status.lock:
            is_written_to, self._status.is_written_to = self._status.is_written_to, False
            skipped = self._finished()
            skipped.add(list(finished))
            self._reader.rewind(frozenset(protected), skipped, frozenset(withheld), is_written_to=is_written_to)
            self._refused.clear()

    def read(self, limit: int, *, alerts: bool = False) -> tuple[list[Row], bool]:
        """The next rows that may be sent, at most `limit`, and whether they are the last for now.

        From then on they are the caller's: the store drops none of them. No rows where the disk fails, which is logged;
        `Outbox.on_committed` then calls for another attempt. alerts: of alerts alone, which are left out of all other
        rows where they go first.
        """
        reader, intake = self._reader, self._intake
        with reader.lock:
            try:
                with self._status.lock:
                    committed = intake.committed
                    finished, unsendable = reader.skipped, self._unsendable()
                rows, is_last = reader.advance(
                    limit, committed, self._writer.table, lambda: intake.committed_id, -1 if alerts else 0
                )
                given_up = self._dropping.give_up(reader.table.given_up) if reader.table.given_up else ()
            except apsw.Error as error:
                self.on_read_failure(error)
                return [], True
            if reader.met_unknown or given_up:
                with self._status.lock:
                    if given_up or not intake.writing:
                        self._schedule.request()
            if given_up:
                rows = [row for row in rows if row[0] not in given_up]
            return self._as_sendable(rows, finished, unsendable), is_last

    def read_again(self, ids: list[int]) -> tuple[list[Row], list[int]]:
        """Rows that were read before, as far as they may still be sent: none that was finished before the call.

        And those ids of which nobody can say, as their refusal is not yet counted or the disk fails, which is logged;
        ask again later.
        """
        with self._reader.lock:
            with self._status.lock:
                uncounted = [message_id for message_id in ids if message_id in self._refused]
                finished, unsendable = self._finished(), self._unsendable()
            try:
                rows = self._reader.table.read_rows(ids, self._writer.table.may_have_extras)
            except apsw.Error as error:
                self.on_read_failure(error)
                return [], ids
            return self._as_sendable(rows, finished, unsendable.union(uncounted)), uncounted

    def missing(self, ids: list[int]) -> list[int]:
        """Those of these messages, all once on disk, that have no row any more; none where the disk fails."""
        with self._reader.lock:
            try:
                return [message_id for message_id in ids if not self._reader.table.holds(message_id)]
            except apsw.Error as error:
                self.on_read_failure(error)
                return []

    def lost(self, ids: list[int]) -> list[int]:
        """Those of these messages, not finished, that a damaged file has lost."""
        with self._status.lock:
            committed_id = self._intake.committed_id
        return self.missing([message_id for message_id in ids if message_id <= committed_id])

    def oldest_ms(self) -> int | None:
        """The queue's time as of the oldest unfinished row, None if nobody knows; as it was where that is busy."""
        if self._status.is_needed():
            return self._oldest_ms
        with self._reader.lock.attempt(_OLDEST_WAIT_S) as is_ours:
            if is_ours:
                with self._status.lock:
                    # Thousands of finished rows may come first. Of the others none stays for longer than a second.
                    passed = self._outgoing.finished.longest
                with suppress(apsw.Error):
                    self._oldest_ms = self._reader.table.oldest_ms(passed)
        return self._oldest_ms

    # As of before a read: the writer may delete them, and forget that, meanwhile. The caller holds both locks.

    def _finished(self) -> Finished:
        return Finished(self._outgoing.finished.ranges.copy())

    def _unsendable(self) -> frozenset[int]:
        return self._reader.withheld.union(self._dropping.marked)

    def _as_sendable(self, rows: list[Row], finished: Finished, unsendable: frozenset[int]) -> list[Row]:
        met = self._reader.table.unsendable
        self.set_aside([row for row in met if not (row[0] in finished or row[0] in unsendable)])
        now_ms = self._intake.clock.now_ms()
        if finished or unsendable or is_any_expired(rows, now_ms):
            rows = [row for row in rows if not (row[0] in finished or row[0] in unsendable)]
            rows = [row for row in rows if self._is_sendable(row, now_ms)]
        if rows and len(rows[0]) > ROW_COLUMNS:
            rows = [as_sent(row, now_ms) for row in rows]
        return rows

    def _is_sendable(self, row: Row, now_ms: int) -> bool:
        if row[5] < now_ms and row[0] not in self._reader.protected:
            self.drop(row, DropReason.EXPIRED)
            return False
        return True

    def set_aside(self, rows: list[tuple[int, str, int, str]]) -> None:
        """Take rows (id, topic, qos, reason) that nothing can be sent of out of the queue with the next transaction."""
        if rows:
            with self._status.lock:
                fresh = self._dropping.set_aside(rows)
                self._schedule.request(DONE_COMMIT_DELAY_S)
            # The reader's lock is held.
            for message_id, topic, _qos, reason in fresh:
                text = f"message {message_id} of topic {topic!r} is set aside: {reason}"
                self._status.log.note(logging.ERROR, "messages set aside", reason, text=text, later=True)

    def on_read_failure(self, error: apsw.Error) -> None:
        """Log it, and have it looked into; the reader's lock need not be held."""
        if self._status.is_closing:
            return
        failure = self._file.failed(error)
        # The reader's lock may be held.
        self._status.log.note(logging.ERROR, "failed reads of the queue", str(failure), text=str(failure), later=True)
        with self._status.lock:
            self._reader.has_failed = True
            if is_damage(error) and self._status.damage is None:
                self._status.damage = error
                self._schedule.request()
            self._schedule.request_retry()

    def drop(self, row: Row, reason: DropReason) -> None:
        """Delete a row unsent, with the next transaction."""
        with self._status.lock:
            self._dropping.mark_row(row, reason)
            self._schedule.request(DONE_COMMIT_DELAY_S)

    def quarantine(self, ids: list[int], why: str) -> None:
        """The broker ends connections over these messages: out of the way, once the outbox has let go of them."""

        def claim(table: QueueTable) -> None:
            self._dropping.claim(table.heads_by_id(ids), DropReason.QUARANTINED, why)
            with self._status.lock:
                self._schedule.request()

        with self._status.lock:
            self._jobs.add(Job(claim, lasting=True))

    def purge(self, table: QueueTable, ids: list[int]) -> int:
        """In a transaction; returns how many of them there are."""
        heads = table.heads_by_id(ids)
        self._dropping.claim(heads, DropReason.PURGED)
        with self._status.lock:
            self._schedule.request()
        return len(heads)

    def refuse(self, ids: list[int]) -> None:
        """The broker refused these messages: one more failed attempt each; see `read_again`."""

        def count(table: QueueTable) -> None:
            table.increment_retry_count(ids)
            with self._status.lock:
                # The others were read again since, and are in flight.
                idle = {message_id for message_id in ids if self._refused.get(message_id) is job}
            self._dropping.mark_given_up(table, idle)
            with self._status.lock:
                for message_id in idle:
                    self._refused.pop(message_id, None)

        job = Job(count, lasting=True)
        with self._status.lock:
            self._refused.update(dict.fromkeys(ids, job))
            self._jobs.add(job)
