"""How far the queue was read, lane by lane, and what of it must not be read again.

With one lane all rows are read in their order. With two, alerts (QoS 2) have one of their own, and the others the
other: each row is of one lane, so none is read by both. docs/internals/order-and-overflow.md has the reasons.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import IntEnum
from typing import NamedTuple

import apsw

from glec_fast.durable._steps import Finished
from glec_fast.durable._table import QueueTable, known
from glec_fast.durable.file import QueueFile, discard
from glec_fast.durable.transaction import ALERT_QOS, Head, Key, Row
from glec_fast.runtime._lock import Lock

# Before every timestamp, also of another writer.
BEFORE_FIRST: Key = (-(1 << 63), 0)


class Rows(IntEnum):
    """Which rows a lane has; the number is what `QueueTable.read_after` knows it by."""

    ALL = 0
    OTHERS = 1
    ALERTS = 2


class Lane(NamedTuple):
    """How far one lane was read. Immutable, so that all lanes change in one step.

    start: no row of it is before. position: of the last row read. through_id: every row of it up to this id was read,
    if nothing above it is waiting.
    """

    rows: Rows
    start: Key = BEFORE_FIRST
    position: Key = BEFORE_FIRST
    through_id: int = 0

    def rewound(self) -> Lane:
        """To be read from its first row again."""
        return self._replace(position=self.start, through_id=0)

    def moved(self, by_ms: int, first_id: int) -> Lane:
        """Once the timestamps from message `first_id` on have changed by `by_ms`."""
        timestamp_ms, message_id = self.position
        is_moved = self.position != BEFORE_FIRST and message_id >= first_id
        return self._replace(
            start=BEFORE_FIRST, position=(timestamp_ms + by_ms, message_id) if is_moved else self.position
        )


class Reader:
    """A position in each lane, on a connection of its own; `lock` is held to read, and to choose rows to be dropped."""

    def __init__(self, file: QueueFile, retries_max: int, *, alerts_first: bool = False) -> None:
        self._retries_max = retries_max
        self.use(file.reader())
        # Never the same row for both: to be handed on, and to be dropped.
        self.lock = Lock("Reader.lock")
        # The first is read in turn; alerts, if they have a lane, ahead of it.
        self.lanes: tuple[Lane, ...] = (Lane(Rows.OTHERS), Lane(Rows.ALERTS)) if alerts_first else (Lane(Rows.ALL),)
        # Rows were read, and their reader has not said yet that it has them at hand.
        self.is_handing_out = False
        # In flight before: read again, never dropped.
        self.protected: frozenset[int] = frozenset()
        # Another broker's, which is away.
        self.withheld: frozenset[int] = frozenset()
        # What was read last may not be all that there is, as the disk failed.
        self.has_failed = False
        # Finished, but still there.
        self.skipped = Finished()
        # The last rows ended before one whose id the store does not know: of another program, or just committed.
        self.met_unknown = False

    def use(self, connection: apsw.Connection) -> None:
        """Go on with another connection, to a file with the same rows; `lock` is held."""
        table = QueueTable(connection, self._retries_max)
        self._connection, self.table = connection, table

    @property
    def connection(self) -> apsw.Connection:
        """The one that it reads by."""
        return self._connection

    @property
    def has_alert_lane(self) -> bool:
        """True where alerts go first."""
        return len(self.lanes) > 1

    @property
    def through_id(self) -> int:
        """Every row up to this id was read, but alerts that have a lane; where nothing above it is waiting."""
        return self.lanes[0].through_id

    def look_ahead(self, committed: Key) -> bool:
        """At the opening: let each lane begin at its first row, or behind `committed`; False without an alert."""
        for number, lane in enumerate(self.lanes):
            first = self.table.first_of(lane.rows)
            start = committed if first is None else (first[0], first[1] - 1)
            self._set_lane(number, start=start, position=start)
        return first is not None

    def advance(
        self,
        limit: int,
        committed: Key,
        written: QueueTable,
        known_id: Callable[[], int],
        number: int = 0,
    ) -> tuple[list[Row], bool]:
        """The next rows of lane `number`, at most `limit`, and whether they are the last of those up to `committed`.

        known_id: asked after the read; rows with an id above that are not the store's, or not known to be on disk yet.
        written: the writer's table, which knows whether any row has extras; then all have their columns.
        """
        lane = self.lanes[number]
        with_extras = written.may_have_extras
        # Thousands of finished rows come first behind a link that broke: to have each handed over takes long.
        passed = self.skipped.longest
        rows: list[Row] = self.table.read_after(*lane.position, limit, with_extras, lane.rows, passed)
        if not with_extras and written.may_have_extras:
            # The first came with a commit that these rows may be of.
            rows = self.table.read_after(*lane.position, limit, True, lane.rows, passed)
        # Also of rows that no message can be made of.
        met, unsendable = self.table.met, self.table.unsendable
        position = self.table.position if met else lane.position
        is_last = met < limit
        # Another program's row may have an id that is ours to give. It is read once the writer has changed that.
        through_id = known_id()
        count = known(rows, through_id)
        strange = [row for row in unsendable if row[0] > through_id]
        self.met_unknown = count < len(rows) or bool(strange)
        if self.met_unknown:
            rows, is_last = rows[:count], True
            unsendable[:] = [row for row in unsendable if row[0] <= through_id]
            position = (rows[-1][4], rows[-1][0]) if rows else lane.position
        elif is_last and lane.rows != Rows.ALL:
            # Past the rows of the other lane, which the next read need not look at again.
            position = max(position, committed)
        if rows:
            # First, as whoever sees no backlog looks here next.
            self.is_handing_out = True
        has_none = lane.position == lane.start and not met
        self._set_lane(
            number,
            start=position if has_none else lane.start,
            position=position,
            through_id=committed[1] if is_last else lane.through_id,
        )
        return rows, is_last

    def _set_lane(self, number: int, **changes: object) -> None:
        lanes = list(self.lanes)
        lanes[number] = lanes[number]._replace(**changes)  # type: ignore[arg-type]
        self.lanes = tuple(lanes)

    def lane_of(self, qos: int) -> Lane:
        """The lane that has the rows of this QoS."""
        return self.lanes[-1 if qos == ALERT_QOS else 0]

    def heads_ahead(self, table: QueueTable) -> Iterator[Head]:
        """What was not read yet, by another connection's `table`."""
        return table.heads_after(*min([lane.position for lane in self.lanes]))

    def is_droppable(self, head: Head) -> bool:
        """True where nobody but the store has this row."""
        message_id = head[0]
        is_unread = (head[3], message_id) > self.lane_of(head[2]).position
        return is_unread and not any(message_id in ids for ids in (self.protected, self.skipped, self.withheld))

    def rewind(
        self, protected: frozenset[int], skipped: Finished, withheld: frozenset[int], *, is_written_to: bool
    ) -> None:
        """Read from the first row again. is_written_to: another program may have put rows anywhere."""
        self.protected, self.skipped, self.withheld = protected, skipped, withheld
        lanes = self.lanes
        if is_written_to:
            lanes = tuple([lane._replace(start=BEFORE_FIRST) for lane in lanes])
        self.lanes = tuple([lane.rewound() for lane in lanes])

    def skip_no_more(self, deleted: list[tuple[int, int]]) -> None:
        """The rows of these inclusive ranges of ids are gone."""
        if self.skipped:
            # Another one: a read under way goes by what was there before.
            self.skipped = Finished(self.skipped.without(deleted))

    def lanes_after(self, by_ms: int, first_id: int) -> tuple[Lane, ...]:
        """The lanes, once the timestamps from message `first_id` on have changed by `by_ms`."""
        return tuple([lane.moved(by_ms, first_id) for lane in self.lanes])

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def discard(self) -> None:
        """Close a connection to a file that has lost its name, is damaged, or is another process's."""
        discard(self._connection)
