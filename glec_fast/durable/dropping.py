"""Rows that are to go unsent: chosen, marked until their deletion is on disk, counted by reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import islice

from glec_fast.durable._table import QueueTable
from glec_fast.durable.clock import QueueClock
from glec_fast.durable.outcomes import Dropped, DropReason
from glec_fast.durable.reader import Reader
from glec_fast.durable.transaction import Head, Row
from glec_fast.runtime._lock import Lock

# Beyond what came with a transaction, so many rows are dropped in one: each is told of, and so held in memory.
DROP_ROWS_MAX = 1000
# What is set aside is there to be looked at, and must not fill the disk.
_SET_ASIDE_ROWS_MAX = 1000
_SET_ASIDE_BYTES_MAX = 8 << 20


class Dropping:
    """What is marked is neither read nor chosen again, also where the transaction that deletes it fails.

    lock: the store's, taken by `mark` and `delete_marked`. The `choose` methods want the reader's lock held.
    """

    def __init__(self, lock: Lock, reader: Reader, clock: QueueClock, max_retry: int) -> None:
        self._lock = lock
        self._reader = reader
        self._clock = clock
        self._max_retry = max_retry
        self.marked: dict[int, Dropped] = {}
        # Of those of them that are kept for somebody to look at, why.
        self._reasons: dict[int, str] = {}
        # By reason and QoS; None if a damaged file has lost them, and nobody knows of what QoS they were.
        self.counts: Counter[tuple[str, int | None]] = Counter()

    def mark(self, heads: Iterable[Head], reason: DropReason) -> None:
        """These go with the next transaction."""
        with self._lock:
            self.marked.update((head[0], Dropped(head[0], head[1], head[2], reason)) for head in heads)

    def mark_row(self, row: Row, reason: DropReason) -> None:
        """This one goes with the next transaction; the caller holds the store's lock."""
        self.marked[row[0]] = Dropped(row[0], row[1], row[3], reason)

    def set_aside(self, rows: Iterable[tuple[int, str, int, str]]) -> list[tuple[int, str, int, str]]:
        """No message can be made of these (id, topic, qos, reason): they go with the next transaction, and are kept.

        Returns those that were not marked yet. The caller holds the store's lock.
        """
        fresh = [row for row in rows if row[0] not in self.marked]
        for message_id, topic, qos, reason in fresh:
            self.marked[message_id] = Dropped(message_id, topic, qos, DropReason.UNSENDABLE)
            self._reasons[message_id] = reason
        return fresh

    def choose_expired(self, table: QueueTable) -> int:
        """Mark what is older than it may be; returns how many, at most DROP_ROWS_MAX."""
        return self.choose(table.heads_expired(self._clock.now_ms()), DropReason.EXPIRED, DROP_ROWS_MAX)

    def choose_given_up(self, table: QueueTable, limit: int = DROP_ROWS_MAX) -> int:
        """Mark what was refused as often as it may be; returns how many, at most `limit`."""
        return self.choose(table.heads_given_up(self._max_retry), DropReason.GIVEN_UP, limit)

    def clean_up(self, table: QueueTable) -> bool:
        """Mark both, and delete what belongs to no row; True where there may be more of them."""
        table.delete_orphaned_extras()
        return DROP_ROWS_MAX in (self.choose_expired(table), self.choose_given_up(table))

    def mark_given_up(self, table: QueueTable, ids: Iterable[int]) -> None:
        """Mark those of these, which are not in flight, that were refused as often as they may be."""
        idle = frozenset(ids)
        self.mark([head for head in table.heads_given_up(self._max_retry) if head[0] in idle], DropReason.GIVEN_UP)

    def choose(self, heads: Iterable[Head], reason: DropReason, limit: int) -> int:
        """Mark the first of these that nobody but the store has; returns how many, at most `limit`."""
        found = (head for head in heads if head[0] not in self.marked and self._reader.is_droppable(head))
        chosen = list(islice(found, limit))
        self.mark(chosen, reason)
        return len(chosen)

    def delete_marked(self, table: QueueTable, but: list[Dropped]) -> list[Dropped]:
        """Delete what is marked, in a transaction that has deleted `but` already; returns what that was."""
        deleted = frozenset(each.message_id for each in but)
        with self._lock:
            marked = [each for each in self.marked.values() if each.message_id not in deleted]
            reasons = [(number, reason) for number, reason in self._reasons.items() if number not in deleted]
        if reasons:
            table.set_aside(reasons, _SET_ASIDE_ROWS_MAX, _SET_ASIDE_BYTES_MAX)
        table.delete([each.message_id for each in marked])
        return marked

    def on_deleted(self, dropped: list[Dropped]) -> None:
        """Their deletion is on disk; the caller holds the store's lock."""
        for each in dropped:
            self._reasons.pop(each.message_id, None)
            # In one step, so that none is counted twice, whatever is raised between two.
            self.counts[each.reason.value, each.qos] += self.marked.pop(each.message_id, None) is not None
