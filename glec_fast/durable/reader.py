"""How far the queue was read, and what of it must not be read again."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import apsw

from glec_fast.durable._table import QueueTable, known
from glec_fast.durable.file import QueueFile, discard
from glec_fast.durable.transaction import Head, Row
from glec_fast.runtime._lock import Lock

# Before every timestamp, also of another writer.
_BEFORE_FIRST = (-(1 << 63), 0)


class Reader:
    """A position in the queue, on a connection of its own; `lock` is held to read, and to choose rows to be dropped."""

    def __init__(self, file: QueueFile) -> None:
        self.use(file.reader())
        # Never the same row for both: to be handed on, and to be dropped.
        self.lock = Lock("Reader.lock")
        self.position: tuple[float, int] = _BEFORE_FIRST
        # Nothing was read since the file was opened.
        self.is_new = True
        # Every row up to this id was read, where nothing above it is waiting.
        self.through_id = 0
        # Rows were read, and their reader has not said yet that it has them at hand.
        self.is_handing_out = False
        # In flight before: read again, never dropped.
        self.protected: frozenset[int] = frozenset()
        # What was read last may not be all that there is, as the disk failed.
        self.has_failed = False
        # Finished, but still there.
        self.skipped: frozenset[int] = frozenset()
        # The last rows ended before one whose id the store does not know: of another program, or just committed.
        self.met_unknown = False

    def use(self, connection: apsw.Connection) -> None:
        """Go on with another connection, to a file with the same rows; `lock` is held."""
        table = QueueTable(connection)
        self._connection, self.table = connection, table

    @property
    def connection(self) -> apsw.Connection:
        """The one that it reads by."""
        return self._connection

    def advance(
        self, limit: int, committed_id: int, written: QueueTable, known_id: Callable[[], int]
    ) -> tuple[list[Row], bool]:
        """The next rows, at most `limit`, and whether they are the last of those up to `committed_id`.

        known_id: asked after the read; rows with an id above that are not the store's, or not known to be on disk yet.
        written: the writer's table, which knows whether any row has extras; then all have their columns.
        """
        self.is_new = False
        with_extras = written.may_have_extras
        rows: list[Row] = self.table.read_after(*self.position, limit, with_extras)
        if not with_extras and written.may_have_extras:
            # The first came with a commit that these rows may be of.
            rows = self.table.read_after(*self.position, limit, True)
        # Also of rows that no message can be made of.
        met, position, unsendable = self.table.met, self.table.position, self.table.unsendable
        is_last = met < limit
        # Another program's row may have an id that is ours to give. It is read once the writer has changed that.
        through_id = known_id()
        count = known(rows, through_id)
        strange = [row for row in unsendable if row[0] > through_id]
        self.met_unknown = count < len(rows) or bool(strange)
        if self.met_unknown:
            rows, is_last = rows[:count], True
            unsendable[:] = [row for row in unsendable if row[0] <= through_id]
            position = (rows[-1][4], rows[-1][0]) if rows else self.position
        if rows:
            # First, as whoever sees no backlog looks here next.
            self.is_handing_out = True
        if is_last:
            self.through_id = committed_id
        if met:
            self.position = position
        return rows, is_last

    def heads_ahead(self, table: QueueTable) -> Iterator[Head]:
        """What was not read yet, by another connection's `table`."""
        return table.heads_after(*self.position)

    def is_droppable(self, head: Head) -> bool:
        """True where nobody but the store has this row."""
        message_id = head[0]
        is_unread = (head[3], message_id) > self.position
        return is_unread and message_id not in self.protected and message_id not in self.skipped

    def rewind(self, protected: frozenset[int], skipped: frozenset[int]) -> None:
        """Read from the first row again."""
        self.protected, self.skipped = protected, skipped
        self.position = _BEFORE_FIRST
        self.through_id = 0

    def position_after(self, by_ms: int, first_id: int) -> tuple[float, int]:
        """The position, once the timestamps from message `first_id` on have changed by `by_ms`."""
        timestamp_ms, message_id = self.position
        is_moved = self.position != _BEFORE_FIRST and message_id >= first_id
        return (timestamp_ms + by_ms, message_id) if is_moved else self.position

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def discard(self) -> None:
        """Close a connection to a file that has lost its name, is damaged, or is another process's."""
        discard(self._connection)
