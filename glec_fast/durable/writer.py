"""What one transaction of the store does on disk."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import apsw

from glec_fast.durable._steps import count_of
from glec_fast.durable._table import QueueTable
from glec_fast.durable.clock import QueueClock
from glec_fast.durable.database import (
    BUSY_TIMEOUT_MS,
    LOG_BYTES_MAX,
    check_changed,
    has_stage,
    mend_numbers,
    mend_times,
)
from glec_fast.durable.dropping import Dropping
from glec_fast.durable.in_doubt import add_entries
from glec_fast.durable.inflight_log import SavedImage
from glec_fast.durable.outcomes import Dropped
from glec_fast.durable.overflow import Overflow
from glec_fast.durable.reader import Reader
from glec_fast.durable.state_rows import save_clock, save_gathered
from glec_fast.durable.transaction import Commit, Move
from glec_fast.runtime._lock import Lock
from glec_fast.runtime.log import logger
from glec_fast.runtime.summing_log import SummingLog

# Not one that SQLite gives.
_NO_VERSION = -1
# A file is written anew for so much in unused pages, while it has no more than this in others: as much as the log
# holds.
_FREE_BYTES_MIN = 2 << 20
_REWRITTEN_BYTES_MAX = 1 << 20
# SQLite notes the last id with each row that has a higher one. So many are noted ahead, which saves each transaction of
# new rows a page; after a crash ids go on behind them.
_IDS_AHEAD = 1000


class Writer:
    """The write connection. Belongs to the thread that holds `lock`, through a transaction or an image alone.

    `lock` is taken before all other locks.
    """

    def __init__(
        self,
        path: Path,
        connection: apsw.Connection,
        reader: Reader,
        dropping: Dropping,
        overflow: Overflow,
        adopt: Callable[[Commit, QueueTable], None],
        log: SummingLog,
    ) -> None:
        self.lock = Lock("Writer.lock")
        # The last transaction, of whichever thread.
        self.took_s = 0.0
        # Of the disk, by whoever held `lock`; and pages that this connection has written to its log.
        self.syncs = 0
        self._pages = 0
        self.image, self._notes = SavedImage(path, log), log
        self.path, self._log = path, path.with_name(path.name + "-wal")
        self._reader = reader
        self._dropping = dropping
        self._overflow = overflow
        # Called in a transaction that finds the file written to by another program.
        self._adopt = adopt
        self.use(connection)

    def use(self, connection: apsw.Connection) -> None:
        """Go on with another connection, to a file that has all that the one before had, as far as it could be read."""
        self.connection = connection
        self._pages = 0
        self.table = QueueTable(connection)
        self._log_pages = connection.pragma("wal_autocheckpoint")
        # As far as this connection has noted ids.
        self._noted_id = 0
        self._data_version = self.table.data_version()
        self._look_at_schema(connection.pragma("schema_version"))
        self.image.on_file_changed()
        self._overflow.note_strangers()

    def _look_at_schema(self, version: int) -> None:
        self.table.has_stage, self._schema_version = has_stage(self.connection), version

    def look_for_strangers(self) -> None:
        """Have the next transaction look for rows of another program."""
        self._data_version = _NO_VERSION

    def close(self) -> None:
        """Let go of what is not the connection's."""
        self.image.close()

    def transact(self, commit: Commit, clock: QueueClock) -> None:
        """The transaction of `commit`, which learns what was dropped and deleted, and that it is on disk.

        Takes the reader's lock where rows may be chosen to be dropped.
        """
        # Only new rows push old ones out: a smaller limit alone must not drop what is in flight, before its owner
        # could say so.
        if commit.jobs or self._overflow.may_be_needed(commit, self.table):
            with self._reader.lock:
                self._transact(commit, clock, may_drop=True)
        else:
            self._transact(commit, clock, may_drop=False)

    def _transact(self, commit: Commit, clock: QueueClock, *, may_drop: bool) -> None:
        self.image.begin()
        with self._transaction(commit):
            data_version = self.table.data_version()
            if data_version != self._data_version:
                schema_version = self.connection.pragma("schema_version")
                if schema_version != self._schema_version:
                    check_changed(self.connection, self.path)
                    self._look_at_schema(schema_version)
                for says in mend_numbers(self.connection):
                    self._notes.note(logging.WARNING, "numbers of another program", says, text=says, later=True)
                mend_times(self.connection)
                self._adopt(commit, self.table)
                self._overflow.note_strangers()
            commit.dropped = self._write(commit, clock, may_drop)
            commit.deleted = self.table.deleted
            commit.is_empty = self._is_empty(commit)
        self._data_version = data_version

    def on_committed(self, commit: Commit) -> None:
        """The transaction of `commit` is on disk."""
        if commit.deleted and self.table.may_have_extras:
            with suppress(apsw.Error):
                self.table.look_for_extras()
        self.image.on_committed()

    def _write(self, commit: Commit, clock: QueueClock, may_drop: bool) -> list[Dropped]:
        rows, table = commit.rows, self.table
        table.deleted = 0
        if commit.in_doubt:
            # While their rows, which know their topics, are there.
            add_entries(table, clock.unix_ms(), commit.in_doubt)
        # Before the new rows, which then take the room of the old.
        if commit.deleting:
            table.delete_finished(commit.deleting)
        if rows:
            table.insert(rows)
            if rows[-1][0] > self._noted_id:
                self._note_id(rows[-1][0] + _IDS_AHEAD)
            self._overflow.note_rows(rows)
        if commit.last_id is not None and commit.last_id < self._noted_id:
            self._note_id(commit.last_id)
        if commit.gathered is not None:
            save_gathered(table, commit.gathered)
        if commit.anchor is not None:
            save_clock(table, commit.anchor)
        if commit.image is not None:
            self.image.write(table, commit.identity, commit.image)
        for job in commit.jobs:
            job.run(self.connection, table)
        dropped = self._dropping.delete_marked(table, [])
        if rows and may_drop:
            self._overflow.make_room(commit, table, dropped)
        return dropped

    def _is_empty(self, commit: Commit) -> bool:
        # That they are as many does not say it: another program, or damage, may have taken some of them.
        row_count = commit.row_count + len(commit.rows) - commit.deleted
        if row_count <= 0 or row_count > count_of(commit.named):
            return row_count <= 0
        return not self.table.is_any_beside(commit.named)

    def _note_id(self, last_id: int) -> None:
        self.table.set_last_id(last_id)
        self._noted_id = last_id

    def tidy(self) -> bool:
        """Give back to the disk what deleted rows have left there, in little time; True where more is to be done.

        That of the log once it is in the file, where nobody reads behind it; that of the file once so little is left in
        it that to write it anew costs what a commit does. Raises apsw.Error, OSError.
        """
        page_bytes = self.connection.pragma("page_size")
        free_bytes = self.connection.pragma("freelist_count") * page_bytes
        used_bytes = self.connection.pragma("page_count") * page_bytes - free_bytes
        if free_bytes >= _FREE_BYTES_MIN and used_bytes <= _REWRITTEN_BYTES_MAX:
            self._at_once("VACUUM")
        file_bytes = self.connection.pragma("page_count") * page_bytes
        if self._log.stat().st_size <= LOG_BYTES_MAX and self.path.stat().st_size <= file_bytes:
            return False
        in_log, in_file = self.connection.wal_checkpoint()
        if in_log != in_file:
            return True
        if self._log.stat().st_size > LOG_BYTES_MAX:
            # The log is cut where it starts over, and that is with the next write.
            self._at_once(f"PRAGMA user_version = {self.connection.pragma('user_version')}")
        return False

    def _at_once(self, statement: str) -> None:
        self.connection.set_busy_timeout(0)
        try:
            self.connection.execute(statement)
        finally:
            self.connection.set_busy_timeout(BUSY_TIMEOUT_MS)

    def move_times(self, move: Move, coming_ms: int, clock: QueueClock) -> None:
        """The transaction of `move`, which learns what is on disk then."""
        with self._transaction(move):
            move.first_id = self.table.move_times(move.step.by_ms, move.step.first_id, coming_ms)
            move.anchor = clock.after(move.step)
            save_clock(self.table, move.anchor)
            move.last_timestamp_ms = self.table.last_timestamp_ms()

    @contextmanager
    def _transaction(self, commit: Commit | Move) -> Iterator[None]:
        # An exception from outside may have cut into the end of the one before.
        self._roll_back()
        try:
            self.connection.execute("BEGIN IMMEDIATE")
            yield
            try:
                self.table.commit(commit)
                self._note_syncs()
            except apsw.Error as error:
                if not self._is_on_disk(commit):
                    raise
                logger.warning("a transaction is on disk, though this was said of it: %s", error)
                commit.is_committed = True
        finally:
            self._roll_back()

    def _note_syncs(self) -> None:
        pages, before = self.table.written_pages, self._pages
        if pages == before:
            return
        self._pages = pages
        # The log, and the file once the log is long enough to be moved into it.
        self.syncs += 1 + 2 * (pages // self._log_pages - before // self._log_pages)

    def _is_on_disk(self, commit: Commit | Move) -> bool:
        """What was said of the commit may be about what came behind it; the disk says what became of it."""
        if isinstance(commit, Move) or not self.connection.get_autocommit():
            return False
        try:
            return self.table.has(commit.rows[-1]) if commit.rows else self.image.is_written(self.table)
        except apsw.Error:
            return False

    def _roll_back(self) -> None:
        if not self.connection.get_autocommit():
            self.connection.execute("ROLLBACK")
