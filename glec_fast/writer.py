"""What one transaction of the store does on disk."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import apsw

from glec_fast._store import QueueTable
from glec_fast.commit import Commit
from glec_fast.dropping import Dropping
from glec_fast.drops import Dropped
from glec_fast.in_doubt import LEDGER_ROWS_MAX
from glec_fast.inflight_log import SavedImage
from glec_fast.queue_clock import Anchor, QueueClock, Step
from glec_fast.reader import Reader

# Beyond what came with a transaction, so many rows are dropped in one: each is told of, and so held in memory.
DROP_ROWS_MAX = 1000


class Writer:
    """The write connection. Belongs to the thread that holds the store's commit lock."""

    def __init__(
        self, path: Path, connection: apsw.Connection, reader: Reader, dropping: Dropping, max_queue_size: int
    ) -> None:
        self.connection = connection
        self.table = QueueTable(connection)
        self.image = SavedImage(path)
        self._reader = reader
        self._dropping = dropping
        self._max_queue_size = max_queue_size

    def close(self) -> None:
        """Let go of what is not the connection's."""
        self.image.close()

    def transact(self, commit: Commit, clock: QueueClock, held: ExitStack) -> None:
        """The transaction of `commit`, which learns what was dropped. `held` takes the reader's lock where needed."""
        self.image.begin()
        with self._transaction():
            dropped = self._write(commit, clock, held)
        commit.dropped, commit.deleted = dropped, self.table.deleted
        if commit.deleted and self.table.may_have_extras:
            with suppress(apsw.Error):
                self.table.look_for_extras()
        self.image.on_committed()

    def _write(self, commit: Commit, clock: QueueClock, held: ExitStack) -> list[Dropped]:
        rows, table = commit.rows, self.table
        table.deleted = 0
        if commit.in_doubt:
            # While their rows, which know their topics, are there.
            table.add_in_doubt(clock.unix_ms(), commit.in_doubt, LEDGER_ROWS_MAX)
        # Before the new rows, which then take the room of the old.
        if commit.deleting:
            table.delete_finished(commit.deleting)
        if rows:
            table.insert(rows)
        if commit.anchor is not None:
            table.save_clock(commit.anchor)
        if commit.image is not None:
            self.image.write(table, commit.identity, commit.image)
        # Only new rows push old ones out: a smaller limit alone must not drop what is in flight, before its owner
        # could say so.
        if commit.jobs or (rows and self._excess(commit) > 0):
            held.enter_context(self._reader.lock.attempt(-1))
        for job in commit.jobs:
            job.run(self.connection, table)
        dropped = self._dropping.delete_marked(table, [])
        excess = self._excess(commit) if rows else 0
        if excess > 0:
            self._dropping.choose_oldest(table, min(excess, len(rows) + DROP_ROWS_MAX))
            dropped += self._dropping.delete_marked(table, dropped)
        return dropped

    def _excess(self, commit: Commit) -> int:
        return commit.row_count + len(commit.rows) - self.table.deleted - self._max_queue_size

    def move_times(self, step: Step, coming_ms: int, clock: QueueClock) -> tuple[Anchor, int]:
        """A transaction that mends the times on disk: (what is on disk now, the latest timestamp)."""
        with self._transaction():
            first_id = self.table.move_times(step.by_ms, step.first_id, coming_ms)
            anchor = clock.after(step, first_id)
            self.table.save_clock(anchor)
            last_timestamp_ms = self.table.last_timestamp_ms()
        return anchor, last_timestamp_ms

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self.connection.execute("COMMIT")
        except BaseException:
            if not self.connection.get_autocommit():
                self.connection.execute("ROLLBACK")
            raise
