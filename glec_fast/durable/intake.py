"""What was accepted: the ids and times of messages, and their way from memory to the disk."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable

from glec_fast.durable._table import Accepting, DiskTimes, QueueTable, text_size
from glec_fast.durable.clock import Anchor, Clocks, QueueClock
from glec_fast.durable.schedule import Schedule
from glec_fast.durable.state_rows import has_clock, load_clock
from glec_fast.durable.status import Status
from glec_fast.durable.transaction import ALERT_QOS, Commit, Key, Row
from glec_fast.errors import QueueStorageError
from glec_fast.runtime._lock import Condition
from glec_fast.runtime.process import EXIT_TIMEOUT_S

# So many rows may wait for the disk before `append` waits for it too. 10,000 took 2 MB of memory in each burst, and a
# transaction of more is no quicker a row.
PENDING_ROWS_MAX = 500
# Of what they say: large ones would take as much in memory, and again in the write-ahead log.
PENDING_BYTES_MAX = 1_000_000
# Above every id that is given.
_ID_MAX = 1 << 62
# For who was refused, as the disk fails.
_MENDING_WAIT_S = 0.001


class Intake(Accepting):
    """Accepted messages, each pending, being written, or on disk. What callers ask is thread-safe, see `Store`.

    Its attributes, and what the transaction under way calls, belong to whoever holds `status.lock`.
    table: of the writer, read once. is_salvaged: the file was damaged.
    """

    def __init__(
        self, status: Status, schedule: Schedule, table: QueueTable, ttl_ms: int, clocks: Clocks, *, is_salvaged: bool
    ) -> None:
        super().__init__(status, schedule, table, ttl_ms, PENDING_ROWS_MAX, PENDING_BYTES_MAX)
        self.progress = Condition(status.lock)
        self.row_count = table.count()
        # But for what is finished, and named by an image there.
        self._is_disk_empty = not self.row_count
        self.clock = QueueClock(clocks, self._last_anchor(table, is_salvaged), self.next_id)
        self.disk_times = DiskTimes()
        self.writing: list[Row] = []
        # Of those that the last transaction took.
        self.taken_bytes_each = 1
        # No row on disk comes behind (timestamp, id), and all that are to come do.
        self.committed_timestamp_ms = self.last_timestamp_ms
        self.committed_id = self.next_id - 1
        # No alert on disk has an id above.
        self.last_alert_id = self.committed_id
        # Rows of a transaction that was taken for failed, and that are on disk.
        self._found: frozenset[int] = frozenset()
        # There may be such, or rows of another program that have the same ids.
        self.is_unsure = False
        # After a failure with new rows the next transaction goes without: deletes, which make room, must not wait.
        self._rows_last = False
        # True while those who must hear of drops are told: until then nothing is finished.
        self._telling = False

    def _last_anchor(self, table: QueueTable, is_salvaged: bool) -> Anchor | None:
        if not self.row_count:
            # Nothing is left that any time must agree with.
            return None
        anchor = load_clock(table)
        if anchor is not None:
            return anchor
        return Anchor.lost(self.last_timestamp_ms) if is_salvaged or has_clock(table) else None

    # ---- callers

    def wait_for_room(self) -> None:
        """Wait while what waits for the disk is too much. Raises QueueStorageError, QueueClosedError."""
        if self._status.is_needed():
            # A drop callback may publish too: its thread is the one that makes room.
            return
        with self._lock:
            while self.is_full:
                self._refuse_if_unusable()
                self._schedule.request()
                self.progress.wait()

    def _refuse_if_unusable(self) -> None:
        self._status.refuse_if_closed()
        self._status.refuse_if_failing()

    def let_mend(self) -> None:
        """For who was refused: whoever tries again at once must not keep the interpreter from the thread that mends the
        file, or notes that the disk is well again."""
        # What holds the lock, and was cut into, must go on with it.
        if not self._status.is_needed():
            with self._lock:
                self.progress.wait(_MENDING_WAIT_S)

    def _write_through(self, message_id: int) -> None:
        """The process ends: nobody would write it later."""
        try:
            if not self.wait_durable(message_id, EXIT_TIMEOUT_S):
                text = f"message {message_id} may be lost, as the program ends: the disk is slow"
                self._status.log.note(logging.ERROR, "messages that may be lost", "a slow disk at the end", text=text)
        except QueueStorageError:
            if self.withdraw(message_id):
                raise

    def append_many(self, messages: Iterable[tuple[str, str | bytes, int]], ttl_ms: int | None) -> list[int]:
        messages = list(messages)
        with self._lock:
            self._refuse_if_unusable()
            accepted = len(self.pending)
            try:
                ids = [self.add(topic, payload, qos, ttl_ms=ttl_ms) for topic, payload, qos in messages]
            except BaseException:
                self._keep(self.pending[:accepted])
                raise
            self._schedule.request()
            return ids

    def withdraw(self, *message_ids: int) -> bool:
        wanted = frozenset(message_ids)
        with self._lock:
            while any(row[0] in wanted for row in self.writing) and not self._status.is_own_thread():
                self.progress.wait()
            kept = [row for row in self.pending if row[0] not in wanted]
            found = len(kept) < len(self.pending)
            self._keep(kept)
            self.progress.notify_all()
            # `close` has given up what could not be written.
            return found or (self._status.has_ended and min(wanted, default=0) > self.committed_id)

    def wait_durable(self, message_id: int, timeout_s: float | None) -> bool:
        status = self._status
        if status.is_needed():
            # A drop callback published: only this thread could write it, so waiting for it would be for ever.
            return False
        with self._lock:
            if message_id > self.committed_id:
                self._schedule.request()
            self.progress.wait_for(
                lambda: self.committed_id >= message_id or status.is_failing or status.has_ended, timeout_s
            )
            if self.committed_id >= message_id:
                return True
            status.refuse_if_failing()
            if status.has_ended:
                status.refuse_if_closed()
            return False

    def wait_empty(self, timeout_s: float | None) -> bool:
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        with self._lock:
            # Now what is finished already, and then what the network finishes last, without the usual delay.
            self._schedule.eager += 1
            self._schedule.request()
            try:
                while not self.is_empty:
                    remaining_s = None if deadline_s is None else deadline_s - time.monotonic()
                    is_too_late = remaining_s is not None and remaining_s <= 0
                    if is_too_late or self._status.has_ended or self._status.is_own_thread():
                        return False
                    self.progress.wait(remaining_s)
                return True
            finally:
                self._schedule.eager -= 1

    @property
    def is_empty(self) -> bool:
        """True where nothing is on disk that is not named there as finished, nor on its way, and all has been told."""
        with self._lock:
            return self._is_disk_empty and not (self.pending or self.writing or self._telling)

    @property
    def committed(self) -> Key:
        """(timestamp, id) that no row on disk comes behind; the caller holds the lock."""
        return self.committed_timestamp_ms, self.committed_id

    # ---- the transaction under way; all but `adopt` and `leave_out_found`, which take it, want the lock held

    def take(self, commit: Commit) -> None:
        """What is pending goes with this transaction, unless the one before has failed with such."""
        commit.row_count = self.row_count
        commit.with_rows, self._rows_last = not self._rows_last, False
        if commit.with_rows:
            if self.pending:
                self.taken_bytes_each = self.pending_bytes // len(self.pending) + 1
            # In one step: a row is never in neither.
            self.writing, self.pending = self.pending, []
            self.pending_bytes = 0
            commit.rows = self.writing

    def leave_out_found(self, commit: Commit, table: QueueTable) -> None:
        """A transaction that was taken for failed may be on disk all the same."""
        found = frozenset(row[0] for row in commit.rows if table.has(row))
        with self._lock:
            self._found = found
            self.writing = commit.rows = [row for row in commit.rows if row[0] not in found]

    def adopt(self, commit: Commit, table: QueueTable) -> None:
        """Within a transaction that finds the file written to by another program.

        Its rows come behind those that are there. Their ids were ours to give, so that they get others.
        """
        self._status.is_written_to = True
        row_count = table.count()
        commit.read_again = commit.read_again or row_count != commit.row_count
        commit.row_count = row_count
        strangers = [each for each in table.strangers(self.committed_id) if each not in self._found]
        if strangers:
            commit.read_again = True
            self._adopt(strangers, table)
        latest_ms = table.last_timestamp_ms()
        with self._lock:
            # It may have moved rows into the future, as far as which the queue is read then.
            self.last_timestamp_ms = max(self.last_timestamp_ms, latest_ms)

    def _adopt(self, strangers: list[int], table: QueueTable) -> None:
        kind = "messages put into the queue by another program"
        self._status.log.note(logging.WARNING, kind, "they go the way of our own", count=len(strangers), later=True)
        with self._lock:
            kept = [message_id for message_id in strangers if self.next_id <= message_id < _ID_MAX]
            self.next_id = max(kept, default=self.next_id - 1) + 1
            ids = [(message_id, message_id) for message_id in kept]
            kept_ids = frozenset(kept)
            for message_id in strangers:
                if message_id not in kept_ids:
                    ids.append((message_id, self.next_id))
                    self.next_id += 1
            timestamp_ms = self.last_timestamp_ms = max(self.clock.now_ms(), self.last_timestamp_ms)
            self.last_alert_id = self.next_id - 1
        table.adopt(ids, timestamp_ms, timestamp_ms + self._ttl_ms)

    def on_other_file(self, commit: Commit, row_count: int, last_id: int) -> None:
        """What is in the file that is open now says what is on disk."""
        self.row_count = commit.row_count = row_count
        self.next_id = max(self.next_id, last_id + 1)
        commit.anchor = self.clock.anchor(fresh=True)
        commit.read_again = True

    def on_committed(self, commit: Commit) -> None:
        """Note what is on disk now. Where this was cut into, a second call does the same."""
        self.row_count = commit.row_count + len(commit.rows) - commit.deleted
        self._is_disk_empty = commit.is_empty
        self._telling = bool(commit.dropped)
        if commit.anchor is not None:
            self.clock.on_saved(commit.anchor)
        if commit.rows:
            self.committed_id, self.committed_timestamp_ms = commit.rows[-1][0], commit.rows[-1][4]
            self.last_alert_id = max([row[0] for row in commit.rows if row[3] == ALERT_QOS], default=self.last_alert_id)
        if commit.with_rows:
            if not self.pending:
                # Also those of another program, and what was found to be on disk already.
                self.committed_id, self.committed_timestamp_ms = self.next_id - 1, self.last_timestamp_ms
            self._status.failure = None
            self.is_unsure = False
        else:
            self._schedule.request()
        if commit.rows or commit.is_empty or commit.read_again:
            self.progress.notify_all()
        if not commit.is_timed:
            self.disk_times.note(commit.rows, self.clock.now_ms())
            commit.is_timed = True
        self.writing, self._found = [], frozenset()

    def on_told(self) -> None:
        """Whoever must hear of drops has."""
        if self._telling:
            self._telling = False
            self.progress.notify_all()

    def give_back(self) -> None:
        """The transaction came to nothing: what it had taken waits again, in order."""
        rows = self.writing + self.pending
        self.pending_bytes = text_size(rows)
        # In one step: no row is in both, as a second call would then have it twice.
        self.pending, self.writing = rows, []

    def _keep(self, rows: list[Row]) -> None:
        self.pending, self.pending_bytes = rows, text_size(rows)

    def on_failure(self, failure: QueueStorageError) -> None:
        """The disk has refused it: kept in memory, in order, and tried again, as it was accepted."""
        self._rows_last = bool(self.writing)
        self.give_back()
        self._status.failure = failure if self.pending else None
        self.progress.notify_all()
