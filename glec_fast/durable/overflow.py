"""What a full queue gives up, so that others have room: see docs/internals/order-and-overflow.md."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

from glec_fast.durable._steps import count_of
from glec_fast.durable._table import QueueTable, text_size
from glec_fast.durable.dropping import DROP_ROWS_MAX, Dropping
from glec_fast.durable.limits import THIN, Limits
from glec_fast.durable.outcomes import Dropped, DropReason
from glec_fast.durable.reader import BEFORE_FIRST, Reader
from glec_fast.durable.transaction import Commit, Head, Row

_TELEMETRY, _RESULT, _ALERT = range(3)
# So many per cent of the limit go at once of QoS 0, as to drop a few with each transaction writes more pages.
_BATCH_PERCENT = 1
# The gap that makes every second message of an unbroken row go.
_SECOND = 2
_NO_END = 1 << 63
# What rows take in the file, with indexes and unfilled pages, is less than so many times their size.
_ROOM_FACTOR = 2


class Overflow:
    """Belongs to the thread that holds the writer's lock. `make_room` wants the reader's lock held too."""

    def __init__(self, limits: Limits, reader: Reader, dropping: Dropping) -> None:
        self._limits = limits
        self._reader = reader
        self._dropping = dropping
        # What is used of the file is no more, once the last transaction with rows is on disk; nobody has looked yet.
        self._used_bytes = limits.max_bytes
        # Pages that were written when somebody last looked, and what was used then.
        self._looked_at = (0, limits.max_bytes)
        # There may be rows of QoS 0 on disk.
        self._has_telemetry = True
        self._grain = _Grain()
        # Rows from this id on stay.
        self._end_id = _NO_END

    def is_tight(self, commit: Commit) -> bool:
        """True if the rows of `commit` may bring the queue to its limits: what is finished goes first."""
        if self._excess_rows(commit, 0) > 0:
            return True
        limit_bytes = self._limits.max_bytes
        return bool(commit.rows and limit_bytes) and self._used_bytes + _room_bytes(commit.rows) > limit_bytes // 4 * 3

    def may_be_needed(self, commit: Commit, table: QueueTable) -> bool:
        """True if the rows of `commit` may need room; looked at before its transaction."""
        if not commit.rows:
            return False
        limit_bytes, used_bytes, coming_bytes = self._limits.max_bytes, 0, 0
        if limit_bytes:
            used_bytes, coming_bytes = self._used_at_most(table), _room_bytes(commit.rows)
            self._used_bytes = used_bytes + coming_bytes
        if self._excess_rows(commit, count_of(commit.deleting)) > 0:
            return True
        # Rows go in before others go out. What is left below the limit must take these and as many again, unless there
        # is little else: a large message alone may fill the queue, but not a burst of them more than fill it.
        is_filling = used_bytes > limit_bytes // 2 and used_bytes + 2 * coming_bytes > limit_bytes
        return is_filling or used_bytes + coming_bytes // _ROOM_FACTOR > limit_bytes > 0

    def _used_at_most(self, table: QueueTable) -> int:
        """What is used of the file: exact where that is more than half of what may be. Else two readings are spared."""
        written, limit_bytes = table.written_pages, self._limits.max_bytes
        written_before, used_before = self._looked_at
        # A page that comes into use is written.
        used_bytes = used_before + (written - written_before) * table.page_bytes
        if used_bytes <= limit_bytes // 2:
            return used_bytes
        self._looked_at = written, table.used_bytes()
        return self._looked_at[1]

    def note_rows(self, rows: Iterable[Row]) -> None:
        """These come into the queue."""
        self._has_telemetry = self._has_telemetry or any(row[3] == _TELEMETRY for row in rows)

    def note_strangers(self) -> None:
        """Another program has written to the queue, or its file is another one."""
        self._has_telemetry = True
        self._looked_at = 0, self._limits.max_bytes

    def make_room(self, commit: Commit, table: QueueTable, dropped: list[Dropped]) -> None:
        """In the transaction of `commit`, whose rows are in: delete what is too much.

        dropped: what the transaction has deleted unsent already, and what this does behind it.
        """
        most, step = len(commit.rows) + DROP_ROWS_MAX, 1
        while most > 0:
            excess = self._excess_rows(commit, table.deleted)
            is_counted = excess > 0
            self._end_id = _NO_END
            if not is_counted:
                if step == 1 and self._excess_by_bytes(commit, table) > 0:
                    # Under other settings, or by an older version, it may have been given more.
                    self._dropping.trim_quarantine(table)
                # What a row takes is known once it is gone: one large one may be enough.
                excess = min(self._excess_by_bytes(commit, table), step)
                step *= 2
            if excess <= 0:
                break
            count = self._choose(table, min(excess, most), most, is_counted=is_counted)
            if not count:
                break
            dropped += self._dropping.delete_marked(table, dropped)
            most -= count

    def _excess_rows(self, commit: Commit, deleted: int) -> int:
        return commit.row_count + len(commit.rows) - deleted - self._limits.max_rows

    def _excess_by_bytes(self, commit: Commit, table: QueueTable) -> int:
        """About so many rows are more than the file may hold, with room for as much as `commit` brings.

        Its own go only where the file cannot hold them: not for that room, nor one that is alone.
        """
        limit_bytes, room_bytes = self._limits.max_bytes, _room_bytes(commit.rows)
        row_count = commit.row_count + len(commit.rows) - table.deleted
        if not limit_bytes or row_count < 2:
            return 0
        used_bytes = table.used_bytes()
        if used_bytes <= limit_bytes:
            self._end_id = commit.rows[0][0]
        if room_bytes <= limit_bytes // 4:
            limit_bytes -= room_bytes
        if used_bytes <= limit_bytes:
            return 0
        return -(-row_count * (used_bytes - limit_bytes) // used_bytes)

    def _mark(self, heads: Iterable[Head], reason: DropReason, wanted: int) -> int:
        """Mark the first of these that may go, up to `wanted`; returns how many."""
        return self._dropping.choose((head for head in heads if head[0] < self._end_id), reason, wanted)

    def _choose(self, table: QueueTable, wanted: int, most: int, *, is_counted: bool) -> int:
        """Mark `wanted` rows, or more, up to `most`; returns how many.

        is_counted: so many must go. Else it is a guess, and no row goes while there is one that goes before it.
        """
        reader = self._reader
        count = 0
        lot = min(max(wanted, self._limits.max_rows * _BATCH_PERCENT // 100), most) if is_counted else wanted
        if self._has_telemetry and self._limits.overflow == THIN:
            count = self._thin(table, min(lot, most))
        if not self._limits.is_ranked:
            return count + self._mark(reader.heads_ahead(table), DropReason.OVERFLOW, wanted - count)
        for qos in (_TELEMETRY, _RESULT, _ALERT):
            if count >= wanted or (count and not is_counted):
                break
            if qos == _TELEMETRY and not self._has_telemetry:
                continue
            found = self._mark(
                table.heads_of(qos, *reader.lane_of(qos).position),
                DropReason.OVERFLOW,
                (wanted if qos != _TELEMETRY else lot) - count,
            )
            if qos == _TELEMETRY and not found:
                self._has_telemetry = table.older_half_of_telemetry() != (0, 0)
            count += found
            if count < wanted and qos != _ALERT:
                wanted -= self._on_their_way(table, qos, wanted - count)
        return count

    def _on_their_way(self, table: QueueTable, qos: int, most: int) -> int:
        """So many of this QoS, at most, were read and will leave: they take no message of a higher rank its place."""
        is_droppable, marked = self._reader.is_droppable, self._dropping.marked
        heads = table.heads_of(qos, *BEFORE_FIRST)
        return len(list(islice((head for head in heads if head[0] not in marked and not is_droppable(head)), most)))

    def _thin(self, table: QueueTable, wanted: int) -> int:
        """Mark rows of the older half of QoS 0 until so many are; returns how many.

        Every second one where messages stand closest, so that it is the whole way that becomes coarser, and not its
        beginning that is lost: what is left of a part that was thinned before waits until the rest is as coarse.
        """
        count = 0
        while count < wanted:
            grain = self._grain
            heads = grain.closest(table.telemetry_between(grain.at_id, grain.end_id))
            found = self._mark(heads, DropReason.THINNED, wanted - count)
            count += found
            if count < wanted and not grain.go_on(*table.older_half_of_telemetry()):
                self._grain = _Grain()
                break
        return count


class _Grain:
    """How far thinning is: behind it, of three messages in a row the outer ones are more than `gap` ids apart.

    Ids and not times, as those may be moved, and many messages may share one.
    """

    def __init__(self) -> None:
        self.gap = _SECOND
        # The last that was looked at, and the last of them that stays; and the end of the half.
        self.at_id = self._kept_id = self.end_id = 0

    def closest(self, heads: Iterator[Head]) -> Iterator[Head]:
        """Those of `heads`, which begin behind `at_id`, that may go; the last waits until the next is known."""
        head = next(heads, None)
        if head is not None and not self._kept_id:
            # The beginning of the way.
            self.at_id = self._kept_id = head[0]
            head = next(heads, None)
        for following in heads:
            assert head is not None
            self.at_id = head[0]
            if following[0] - self._kept_id <= self.gap:
                yield head
            else:
                self._kept_id = head[0]
            head = following

    def go_on(self, first_id: int, half_id: int) -> bool:
        """All was looked at: what has come into the older half since is next, or else all of it with a wider gap.

        first_id, half_id: of that half. False if even that would leave nothing but the ends.
        """
        if first_id > self.at_id:
            # What was thinned has left.
            self.gap, self.at_id, self._kept_id, self.end_id = _SECOND, 0, 0, half_id
            return half_id > first_id
        if half_id <= self.end_id:
            self.gap, self.at_id, self._kept_id = 2 * self.gap, 0, 0
        self.end_id = half_id
        return self.gap <= 2 * (half_id - first_id)


def _room_bytes(rows: list[Row]) -> int:
    return _ROOM_FACTOR * (text_size(rows) + 100 * len(rows))
