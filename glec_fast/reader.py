"""How far the queue was read, and what of it must not be read again."""

from __future__ import annotations

from collections.abc import Iterator

from glec_fast._lock import Lock
from glec_fast._store import QueueTable
from glec_fast.commit import Head, Row
from glec_fast.queue_file import QueueFile

# Before every timestamp, also of another writer.
_BEFORE_FIRST = (-(1 << 63), 0)


class Reader:
    """A position in the queue, on a connection of its own; `lock` is held to read, and to choose rows to be dropped."""

    def __init__(self, file: QueueFile) -> None:
        self._connection = file.reader()
        self.table = QueueTable(self._connection)
        # Never the same row for both: to be handed on, and to be dropped.
        self.lock = Lock()
        self._position = _BEFORE_FIRST
        # Every row up to this id was read, where nothing above it is waiting.
        self.through_id = 0
        # Rows were read, and their reader has not said yet that it has them at hand.
        self.is_handing_out = False
        # In flight before: read again, never dropped.
        self.protected: frozenset[int] = frozenset()
        # Finished, but still there.
        self.skipped: frozenset[int] = frozenset()

    def advance(self, limit: int, committed_id: int, written: QueueTable) -> tuple[list[Row], bool]:
        """The next rows, at most `limit`, and whether they are the last of those up to `committed_id`.

        written: the writer's table, which knows whether any row has extras; then all have their columns.
        """
        with_extras = written.may_have_extras
        rows: list[Row] = self.table.read_after(*self._position, limit, with_extras)
        if not with_extras and written.may_have_extras:
            # The first came with a commit that these rows may be of.
            rows = self.table.read_after(*self._position, limit, True)
        is_last = len(rows) < limit
        if rows:
            # First, as whoever sees no backlog looks here next.
            self.is_handing_out = True
        if is_last:
            self.through_id = committed_id
        if rows:
            self._position = (rows[-1][4], rows[-1][0])
        return rows, is_last

    def heads_ahead(self, table: QueueTable) -> Iterator[Head]:
        """What was not read yet, by another connection's `table`."""
        return table.heads_after(*self._position)

    def is_droppable(self, head: Head) -> bool:
        """True where nobody but the store has this row."""
        message_id = head[0]
        is_unread = (head[3], message_id) > self._position
        return is_unread and message_id not in self.protected and message_id not in self.skipped

    def rewind(self, protected: frozenset[int], skipped: frozenset[int]) -> None:
        """Read from the first row again."""
        self.protected, self.skipped = protected, skipped
        self._position = _BEFORE_FIRST
        self.through_id = 0

    def on_times_moved(self, by_ms: int, first_id: int) -> None:
        """The timestamps from message `first_id` on have changed by `by_ms`."""
        timestamp_ms, message_id = self._position
        if self._position != _BEFORE_FIRST and message_id >= first_id:
            self._position = (timestamp_ms + by_ms, message_id)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()
