"""Messages that wait for company, to be one: gathered in memory, and on disk as soon as a queued QoS 0 message is.

What is gathered is one row of `glec_gathered`: the message that it would be if none came any more. So a restart finds
a message, and needs no rule of its own. Once its time has come, or it is large enough, it becomes a message of the
queue, in the transaction that empties that row; what holds for any message of the queue holds for it from then on.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

from glec_fast.durable._table import QueueTable
from glec_fast.durable.extras import Extras
from glec_fast.durable.foreign_rows import are_extras
from glec_fast.durable.intake import Intake
from glec_fast.durable.schedule import Schedule
from glec_fast.durable.state_rows import has_gathered, load_gathered
from glec_fast.durable.status import Status
from glec_fast.durable.transaction import Commit
from glec_fast.errors import MessageError, QueueStorageError
from glec_fast.runtime.log import logger
from glec_fast.runtime.process import EXIT_TIMEOUT_S

_QOS = 0
_NEVER = float("inf")


class Company(NamedTuple):
    """How messages are gathered.

    topic, extras: of the message that they become, which has QoS 0. join: its payload, of what was gathered; called
    without a lock held, as a rule. wait_s: how long the first waits for others. bytes_max: of all of them.
    """

    topic: str
    join: Callable[[list[bytes]], bytes]
    wait_s: float
    bytes_max: int
    extras: Extras | None = None


class Batch:
    """What is gathered until the next is begun. message_id: 0 until it is a message of the queue.

    handle, register: of whoever publishes; the second is told the id as it is given, and both are let go of then.
    """

    __slots__ = ("handle", "message_id", "register")

    def __init__(self) -> None:
        self.message_id = 0
        self.handle: Any = None
        self.register: Callable[[int], None] | None = None

    def close(self, message_id: int) -> None:
        """It is this message now."""
        if self.register is not None:
            self.register(message_id)
        self.message_id = message_id
        self.handle = self.register = None


class Gathered(NamedTuple):
    """Totals of what became messages of the queue: messages gathered, of how many bytes; what they became."""

    messages: int = 0
    message_bytes: int = 0
    batches: int = 0
    batch_bytes: int = 0


class Gathering:
    """Its attributes belong to whoever holds `status.lock`; `add`, `close` and `wait_durable` are for any thread.

    company: None where nothing is gathered; what an earlier process has is a message of the queue all the same.
    """

    def __init__(
        self,
        status: Status,
        schedule: Schedule,
        intake: Intake,
        company: Company | None,
        commit_delay_s: float,
        table: QueueTable,
    ) -> None:
        self._status = status
        self._lock = status.lock
        self._schedule = schedule
        self._intake = intake
        self._company = company
        self._commit_delay_s = commit_delay_s
        self.totals = Gathered()
        self._batch = Batch()
        self._parts: list[bytes] = []
        self._bytes = 0
        self._close_due_s = self._save_due_s = _NEVER
        # So many of the parts the row on disk has; and that of the transaction under way.
        self._saved = 0
        self._saving: tuple[Batch, int] | None = None
        self._is_row = has_gathered(table)
        if self._is_row:
            self._take_over(table)

    def _take_over(self, table: QueueTable) -> None:
        """What an earlier process had gathered is a message of the queue, with the transaction that empties its row."""
        try:
            topic, payload, properties = load_gathered(table)
        except MessageError as error:
            logger.error("what was gathered to be one message is none, and is left out: %s", error)
            return
        extras = Extras(False, None, properties) if properties and are_extras(False, None, properties) else None
        self._intake.append(topic, payload, _QOS, True, None, extras, None)

    @property
    def is_waiting(self) -> bool:
        """True where something is gathered."""
        return bool(self._parts)

    @property
    def unsaved(self) -> int:
        """So many messages are in memory alone."""
        return len(self._parts) - self._saved

    # ---- callers

    def add(self, payload: bytes, bytes_max: int, begin: Callable[[Batch], None]) -> Any:
        """Gather a message; returns the handle of its batch. One that would be larger than `bytes_max` is closed first.

        begin: gives a new batch what belongs to whoever publishes. Raises QueueStorageError, QueueClosedError.
        """
        batch = None
        while batch is None:
            with self._lock:
                self._status.refuse_if_closed()
                self._status.refuse_if_failing()
                if not self._parts or self._bytes + len(payload) <= bytes_max:
                    batch = self._add(payload, begin)
                    handle, is_ending = batch.handle, self._status.is_ending
            if batch is None:
                self._intake.wait_for_room()
                self.close()
        if is_ending:
            # Nobody would write it later.
            self.wait_durable(batch, EXIT_TIMEOUT_S)
        return handle

    def _add(self, payload: bytes, begin: Callable[[Batch], None]) -> Batch:
        assert self._company is not None
        now_s = self._schedule.monotonic()
        if not self._parts:
            begin(self._batch)
            self._close_due_s = now_s + self._company.wait_s
        self._parts.append(payload)
        # With what stands between two.
        self._bytes += len(payload) + 1
        self._save_due_s = min(self._save_due_s, now_s + self._commit_delay_s)
        self._ask()
        return self._batch

    def close(self) -> None:
        """Have what is gathered be a message of the queue now."""
        joined = self.join(at_once=True)
        with self._lock:
            if joined is not None:
                self._status.refuse_if_closed()
                self._close(joined)

    def wait_durable(self, batch: Batch, timeout_s: float | None) -> bool:
        """See `Store.wait_durable`, of all that `batch` has now."""
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        status = self._status
        if status.is_needed():
            return False
        with self._lock:
            wanted = len(self._parts)

            def is_over() -> bool:
                return self._batch is not batch or self._saved >= wanted or status.is_failing or status.has_ended

            if not is_over():
                self._save_due_s = self._schedule.monotonic()
                self._ask()
                self._intake.progress.wait_for(is_over, timeout_s)
            if self._batch is batch:
                if self._saved >= wanted:
                    return True
                status.refuse_if_failing()
                return False
        remaining_s = None if deadline_s is None else max(deadline_s - time.monotonic(), 0.0)
        return self._intake.wait_durable(batch.message_id, remaining_s)

    def _ask(self) -> None:
        self._schedule.ask_at(min(self._save_due_s, self._close_due_s))

    # ---- the transaction under way; but `join`, which takes the lock, each wants it held

    def join(self, *, at_once: bool = False) -> tuple[Batch, int, bytes] | None:
        """(batch, how many, payload) of what is gathered, if that is to be written; before the lock is taken.

        at_once: also if it is not due.
        """
        with self._lock:
            is_wanted = at_once or self._status.is_closing or self._status.is_ending
            if not self._parts or not (is_wanted or self._is_due()):
                return None
            batch, parts = self._batch, self._parts.copy()
        return batch, len(parts), self._joined(parts)

    def _joined(self, parts: list[bytes]) -> bytes:
        assert self._company is not None
        return self._company.join(parts)

    def _is_due(self) -> bool:
        return min(self._save_due_s, self._close_due_s) <= self._schedule.monotonic()

    def close_if_due(self, joined: tuple[Batch, int, bytes] | None) -> None:
        """Where its time has come it is a message of the queue; before the intake's `take`."""
        if joined is not None and (self._status.is_closing or self._close_due_s <= self._schedule.monotonic()):
            self._close(joined)

    def take(self, commit: Commit, joined: tuple[Batch, int, bytes] | None) -> None:
        """What is gathered goes to its row with this transaction, which is one that takes messages."""
        self._saving = None
        if not self._parts:
            if self._is_row:
                commit.gathered = ()
        elif joined is not None and joined[0] is self._batch:
            assert self._company is not None
            extras = self._company.extras
            commit.gathered = self._company.topic, joined[2], b"" if extras is None else extras.properties
            self._saving = joined[:2]
        elif self._is_row and not self._saved:
            # It has the batch before, whose message goes to the queue with this transaction.
            commit.gathered = ()

    def _close(self, joined: tuple[Batch, int, bytes]) -> None:
        batch, count, payload = joined
        company = self._company
        if batch is not self._batch or company is None:
            return
        if count != len(self._parts):
            # Others came meanwhile, and were told that they are of this batch.
            payload = self._joined(self._parts)
        parts, size_bytes = len(self._parts), self._bytes - len(self._parts)
        self._intake.add(company.topic, payload, _QOS, company.extras, batch.close)
        self._batch, self._parts, self._bytes, self._saved = Batch(), [], 0, 0
        self._close_due_s = self._save_due_s = _NEVER
        self._ask()
        self._schedule.request()
        total = self.totals
        self.totals = Gathered(
            total.messages + parts,
            total.message_bytes + size_bytes,
            total.batches + 1,
            total.batch_bytes + len(payload),
        )

    def on_committed(self, commit: Commit) -> None:
        """Note what is on disk now. Where this was cut into, a second call does the same."""
        if commit.gathered is None:
            return
        self._is_row = bool(commit.gathered)
        if self._saving is not None and self._saving[0] is self._batch:
            self._saved = self._saving[1]
        self._put_off(self._schedule.monotonic() + self._commit_delay_s)
        self._intake.progress.notify_all()

    def on_failure(self, failure: QueueStorageError) -> None:
        """The disk has refused it: it is tried again."""
        if self.unsaved:
            self._status.failure = failure
            self._put_off(self._schedule.retry_due_s())
            self._intake.progress.notify_all()

    def _put_off(self, due_s: float) -> None:
        self._save_due_s = due_s if self.unsaved else _NEVER
        self._ask()
