"""When the store's thread makes its next transaction."""

from __future__ import annotations

import threading
from collections.abc import Callable

from glec_fast.durable._steps import Finished
from glec_fast.durable._table import CLEARED_RANGES_MAX
from glec_fast.durable.status import Status
from glec_fast.runtime._lock import Condition

# A finished row may stay this long; a crash meanwhile sends QoS 1 again, which it allows, and saves half the commits.
DONE_COMMIT_DELAY_S = 1.0
# Without a link, QoS 1 and 2 that nobody waits for go to disk at once, but no more often than this: a transaction for
# each message of a stream would write some 20 kB for each.
_ROWS_COMMIT_SPACING_S = 0.05
# So many finished rows are worth a transaction of their own, which names them; that a crash does not send them again.
DONE_COMMIT_ROWS = 1000
# So many wait at most where they are in more ranges than can be cleared.
RANGED_ROWS_MAX = 10_000
# So many are deleted by one transaction; more would hold up what comes behind it, and are no cheaper a row.
DELETE_ROWS_MAX = 2000
# So many are left for the table to end up empty, and then cleared by their pages: row by row they take three times as
# long, and ten times the writes.
_CLEARED_ROWS_MAX = 100_000
_STORAGE_RETRY_S = 1.0
_AT_ONCE = float("-inf")
_NEVER = float("inf")


class Schedule:
    """What asks for a transaction, and by when. Whoever calls a method, or changes an attribute, holds `status.lock`.

    qos0_commit_delay_s, cleanup_interval_s: see `Store`. monotonic: the clock of all times here, in seconds.
    """

    def __init__(
        self, status: Status, monotonic: Callable[[], float], qos0_commit_delay_s: float, cleanup_interval_s: float
    ) -> None:
        self.monotonic = monotonic
        self._status = status
        self._work = Condition(status.lock)
        self._qos0_commit_delay_s = qos0_commit_delay_s
        self._cleanup_interval_s = cleanup_interval_s
        self.deadline_s = _NEVER
        # When whoever waits looks again, though nobody wakes it.
        self._looks_s = _AT_ONCE
        self.cleanup_due_s = monotonic() + cleanup_interval_s
        # Before then rows that can wait are not committed.
        self._rows_due_s = _AT_ONCE
        # When finished rows are deleted, unless a stream of acknowledgements puts it off.
        self._delete_due_s: float | None = None
        # Before then nobody who waits for finished rows has a disk that fails tried again.
        self._retry_due_s = _AT_ONCE
        # So many finished rows the outbox had when it was last put off.
        self._put_off_at = 0
        # When what is gathered is to be written, or to be a message.
        self._gathered_due_s = _NEVER
        # So many wait for an empty queue: finished rows then go at once.
        self.eager = 0

    def request(self, delay_s: float = 0.0) -> None:
        """Have a transaction made by then."""
        deadline_s = self.monotonic() + delay_s if delay_s else _AT_ONCE
        if deadline_s < self.deadline_s:
            # First: an exception behind it must not leave a deadline that nobody was woken for.
            self._wake_by(deadline_s)
            self.deadline_s = deadline_s

    def request_company(self, qos: int) -> None:
        """New rows wait for others to share their transaction."""
        self.request(max(self._rows_due_s - self.monotonic(), 0.0) if qos else self._qos0_commit_delay_s)

    def request_delete(self) -> None:
        """Finished rows wait for more of them, as a table that ends up empty costs next to nothing to clear."""
        if self._delete_due_s is None:
            self._delete_due_s = self.monotonic() + DONE_COMMIT_DELAY_S
        self.request(max(self._delete_due_s - self.monotonic(), 0.0))

    def ask_at(self, due_s: float) -> None:
        """Have a transaction made then, for what is gathered; in place of the time that was last said."""
        self._gathered_due_s = due_s
        self._wake_by(due_s)

    def retry_due_s(self) -> float:
        """When a disk that fails now is tried again."""
        return self.monotonic() + _STORAGE_RETRY_S

    def request_retry(self) -> None:
        """After a failure of the disk."""
        self.request(_STORAGE_RETRY_S)

    def on_finished(self, waiting: int, named: int, drained: bool) -> int:
        """See `Store.on_finished`."""
        put_off_at = min(self._put_off_at, waiting)
        if waiting - put_off_at >= DONE_COMMIT_ROWS:
            put_off_at = waiting
            self._delete_due_s = None
        self._put_off_at = put_off_at
        self.request_delete()
        is_worth_it = waiting - named >= DONE_COMMIT_ROWS or waiting >= RANGED_ROWS_MAX
        if is_worth_it or (drained and self.eager > 0):
            self.request(max(self._retry_due_s - self.monotonic(), 0.0))
        return min(put_off_at, named) + DONE_COMMIT_ROWS

    def is_delete_due(self, finished: Finished) -> bool:
        """True where these rows have waited for long enough, or for enough of them."""
        rows_max = _CLEARED_ROWS_MAX if len(finished.ranges) <= CLEARED_RANGES_MAX else RANGED_ROWS_MAX
        if len(finished) > rows_max:
            return True
        return self._delete_due_s is not None and self.monotonic() >= self._delete_due_s

    def on_all_deleting(self) -> None:
        """What finishes from here on has a second of its own."""
        self._delete_due_s = None

    def put_off_delete(self) -> None:
        """Not at once with each that finishes while the disk fails: they come by the hundred a second."""
        self._delete_due_s = self._retry_due_s = self.retry_due_s()

    def on_rows_taken(self) -> None:
        """A transaction has taken what was pending."""
        self._rows_due_s = self.monotonic() + _ROWS_COMMIT_SPACING_S

    def take_cleanup(self) -> bool:
        """True where it is time to look for rows that are over, which is then done."""
        now_s = self.monotonic()
        is_due = now_s >= self.cleanup_due_s
        if is_due:
            self.cleanup_due_s = now_s + self._cleanup_interval_s
        return is_due

    def wait(self, tidy_due_s: float) -> None:
        """Wait for what was asked for, a clean-up, or `tidy_due_s`; what was asked for is then the caller's."""
        # What finishes meanwhile is due behind it, so that no acknowledgement wakes the thread.
        soon_s = self.monotonic() + DONE_COMMIT_DELAY_S
        while not self._status.is_closing:
            now_s = self.monotonic()
            due_s = min(self.deadline_s, self.cleanup_due_s, tidy_due_s, self._gathered_due_s)
            if due_s <= now_s:
                break
            self._looks_s = min(due_s, soon_s) if now_s < soon_s else due_s
            self._work.wait(min(self._looks_s - now_s, threading.TIMEOUT_MAX))
        self.deadline_s = _NEVER

    def _wake_by(self, due_s: float) -> None:
        if due_s < self._looks_s:
            self._work.notify_all()
