"""Rows that are to go unsent: chosen, marked until their deletion is on disk, counted by reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable
from itertools import islice

from glec_fast.durable import quarantine
from glec_fast.durable._table import QueueTable
from glec_fast.durable.clock import QueueClock
from glec_fast.durable.outcomes import Dropped, DropReason
from glec_fast.durable.quarantine import CLOCKS_BEGIN_MS, Bounds
from glec_fast.durable.reader import Reader
from glec_fast.durable.transaction import Head, Row
from glec_fast.runtime._lock import Lock

# Beyond what came with a transaction, so many rows are dropped in one: each is told of, and so held in memory.
DROP_ROWS_MAX = 1000


class Dropping:
    """What is marked is neither read nor chosen again, also where the transaction that deletes it fails.

    What may be in flight is *claimed* first: it is marked once the side that sends has let go of it, with the image
    that goes into the same transaction.
    lock: the store's, taken by `mark` and `delete_marked`. The `choose` methods want the reader's lock held.
    """

    def __init__(self, lock: Lock, reader: Reader, clock: QueueClock, max_retry: int, bounds: Bounds) -> None:
        self._lock = lock
        self._reader = reader
        self._clock = clock
        self._max_retry = max_retry
        self._bounds = bounds
        self.marked: dict[int, Dropped] = {}
        self.claimed: dict[int, Dropped] = {}
        # Of those of them that are kept for somebody to look at, why.
        self._reasons: dict[int, str] = {}
        # By reason and QoS; None if a damaged file has lost them, and nobody knows of what QoS they were.
        self.counts: Counter[tuple[str, int | None]] = Counter()

    def mark(self, heads: Collection[Head], reason: DropReason, why: str = "") -> None:
        """These go with the next transaction. why: of what is kept to be looked at."""
        with self._lock:
            if why:
                self._reasons.update((head[0], why) for head in heads)
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

    def claim(self, heads: Iterable[Head], reason: DropReason, why: str = "") -> None:
        """These may be in flight, and go once the outbox has let go of them. why: of what is kept to be looked at."""
        with self._lock:
            for head in heads:
                if head[0] not in self.marked:
                    self.claimed[head[0]] = Dropped(head[0], head[1], head[2], reason)
                    if why:
                        self._reasons[head[0]] = why

    def settle_claims(self, abandon: Callable[[list[int]], list[int] | None]) -> bool:
        """Mark what is claimed and not in flight any more; the caller holds the store's lock.

        abandon: returns the ids that stay with the outbox, None where it cannot say now. False then: ask again.
        """
        staying = abandon(list(self.claimed))
        if staying is None:
            return False
        for message_id in staying:
            self._reasons.pop(message_id, None)
            self.claimed.pop(message_id, None)
        self.marked.update(self.claimed)
        self.claimed.clear()
        return True

    def choose_expired(self, table: QueueTable) -> int:
        """Mark what is older than it may be; returns how many, at most DROP_ROWS_MAX. What is in flight is claimed."""
        reader, chosen, claims = self._reader, [], []
        for head in table.heads_expired(self._clock.now_ms()):
            if head[0] in self.marked:
                continue
            if reader.is_droppable(head):
                chosen.append(head)
            elif head[0] not in reader.skipped:
                claims.append(head)
            if len(chosen) == DROP_ROWS_MAX:
                break
        self.mark(chosen, DropReason.EXPIRED)
        self.claim(claims, DropReason.EXPIRED)
        return len(chosen)

    def choose_given_up(self, table: QueueTable, *, keep: bool = True) -> int:
        """Mark what was refused as often as it may be; returns how many, at most DROP_ROWS_MAX. keep: in quarantine."""
        heads = table.heads_given_up(self._max_retry)
        if not keep:
            return self.choose(heads, DropReason.GIVEN_UP, DROP_ROWS_MAX)
        return self.choose(heads, DropReason.QUARANTINED, DROP_ROWS_MAX, self._refused_text)

    def give_up(self, heads: Iterable[Head]) -> set[int]:
        """Mark those of these, just read, that are not in flight; returns them. Wants the reader's lock held."""
        reader = self._reader
        kept = reader.protected.union(self.marked, reader.withheld)
        given_up = [head for head in heads if not (head[0] in kept or head[0] in reader.skipped)]
        self.mark(given_up, DropReason.QUARANTINED, self._refused_text)
        return {head[0] for head in given_up}

    @property
    def _refused_text(self) -> str:
        return f"the broker refused it {self._max_retry} times"

    def clean_up(self, table: QueueTable) -> bool:
        """Mark both, and delete what belongs to no row, or is old enough; True where there may be more of them."""
        table.delete_orphaned_extras()
        self.trim_quarantine(table)
        return DROP_ROWS_MAX in (self.choose_expired(table), self.choose_given_up(table))

    def mark_given_up(self, table: QueueTable, ids: Iterable[int]) -> None:
        """Mark those of these, which are not in flight, that were refused as often as they may be."""
        idle = frozenset(ids)
        heads = [head for head in table.heads_given_up(self._max_retry) if head[0] in idle]
        self.mark(heads, DropReason.QUARANTINED, self._refused_text)

    def choose(self, heads: Iterable[Head], reason: DropReason, limit: int, why: str = "") -> int:
        """Mark the first of these that nobody but the store has; returns how many, at most `limit`."""
        found = (head for head in heads if head[0] not in self.marked and self._reader.is_droppable(head))
        chosen = list(islice(found, limit))
        self.mark(chosen, reason, why)
        return len(chosen)

    def trim_quarantine(self, table: QueueTable) -> None:
        """Let go of what is more, or older, than is kept there."""
        bounds, now_ms = self._bounds, self._clock.unix_ms()
        quarantine.trim(table, bounds.size, bounds.bytes, CLOCKS_BEGIN_MS, now_ms - bounds.age_ms)

    def delete_marked(self, table: QueueTable, but: list[Dropped]) -> list[Dropped]:
        """Delete what is marked, in a transaction that has deleted `but` already; returns what that was."""
        deleted = frozenset(each.message_id for each in but)
        with self._lock:
            marked = [each for each in self.marked.values() if each.message_id not in deleted]
            kept = [
                (message_id, reason)
                for message_id, reason in self._reasons.items()
                if message_id in self.marked and message_id not in deleted
            ]
        if kept:
            quarantine.set_aside(table, kept, self._clock.unix_ms())
            self.trim_quarantine(table)
        table.delete([each.message_id for each in marked])
        return marked

    def on_deleted(self, dropped: list[Dropped]) -> None:
        """Their deletion is on disk; the caller holds the store's lock."""
        for each in dropped:
            self._reasons.pop(each.message_id, None)
            # In one step, so that none is counted twice, whatever is raised between two.
            self.counts[each.reason.value, each.qos] += self.marked.pop(each.message_id, None) is not None
