"""The queue file while it is in use: its damage is mended, its name given back, its unused space returned."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import apsw

from glec_fast.durable._table import QueueTable
from glec_fast.durable.dropping import Dropping
from glec_fast.durable.file import QueueFile, discard, is_damage
from glec_fast.durable.in_doubt import add_entries
from glec_fast.durable.inflight_log import SavedImage
from glec_fast.durable.intake import Intake
from glec_fast.durable.outcomes import DropReason
from glec_fast.durable.reader import Reader
from glec_fast.durable.schedule import Schedule
from glec_fast.durable.status import Status
from glec_fast.durable.transaction import Commit
from glec_fast.durable.writer import Writer
from glec_fast.errors import QueueReplacedError, QueueStorageError
from glec_fast.runtime.log import logger

# What deletions have left on the disk is given back so long after them.
_TIDY_DELAY_S = 10.0
# A disk that damages the file again and again must not be filled with what is set aside: the pause doubles.
_SALVAGE_PAUSE_S = 1.0
_SALVAGE_PAUSE_MAX_S = 600.0
_NEVER = float("inf")


@dataclass(eq=False, repr=False)
class Caretaker:
    """Belongs to the thread that holds the writer's lock; but `failed`, which any may call."""

    _file: QueueFile
    _reader: Reader
    _writer: Writer
    _intake: Intake
    _dropping: Dropping
    _status: Status
    _schedule: Schedule
    # Where what the open file held is, if another has its name.
    _kept_at: Path | None = None
    _salvage_due_s: float = float("-inf")
    _salvage_pause_s: float = 0.0
    # By all files that were found damaged.
    rows_lost: int = 0
    tidy_due_s: float = _NEVER

    def __post_init__(self) -> None:
        self._salvage_pause_s = _SALVAGE_PAUSE_S
        if self._file.salvage is not None:
            self.rows_lost = self._file.salvage.rows_lost

    def failed(self, error: Exception) -> QueueStorageError:
        """The error of this family for `error`, see `QueueFile.failed`."""
        return self._file.failed(error)

    @property
    def may_mend(self) -> bool:
        """True where the file is damaged, and was not mended just before."""
        return self._status.damage is not None and self._schedule.monotonic() >= self._salvage_due_s

    def mend(self, commit: Commit) -> None:
        """Before a transaction: see to it that the file is sound, as far as is known, and where it was."""
        status = self._status
        if isinstance(status.unusable, QueueReplacedError):
            raise status.unusable
        damage = status.damage
        is_in_place = damage is None and self._file.is_in_place()
        if is_in_place and not status.is_moving_in:
            status.unusable = None
            return
        if damage is not None and not self.may_mend:
            raise damage
        status.is_moving_in = True
        before = self._reader.connection, self._writer.connection
        try:
            if damage is not None:
                self._file.salvage_in_use(damage, self._intake.row_count)
            elif not is_in_place:
                self._file.put_back()
        except QueueReplacedError as error:
            # Nobody would read the open file again.
            self._kept_at = self._file.keep_beside(partial(self._keep_in_flight, commit))
            status.unusable = QueueReplacedError(f"{error}; what was not sent is kept as {self._kept_at}")
            raise status.unusable from None
        except (apsw.Error, OSError) as error:
            status.unusable = self.failed(error)
            raise
        self._use_file(commit)
        self._intake.leave_out_found(commit, self._writer.table)
        for connection in before:
            # Where an exception has cut into it, the writer may have been there already.
            if connection is not self._file.connection:
                discard(connection)
        if damage is not None:
            self._file.on_mended()
            commit.is_salvaged = True
            self._on_salvaged()
        status.damage = status.unusable = None
        status.is_moving_in = False

    def _keep_in_flight(self, commit: Commit, copy: apsw.Connection) -> None:
        """For who opens the copy: what the log of images has, which is another name's, and what is finished."""
        with copy:
            table = QueueTable(copy)
            if commit.in_doubt:
                add_entries(table, self._intake.clock.unix_ms(), commit.in_doubt)
            table.delete_ranges(commit.deleting)
            if commit.image is not None:
                SavedImage(Path(copy.filename), self._status.log).write(table, commit.identity, commit.image)

    def _use_file(self, commit: Commit) -> None:
        """Go on with the file that is open now."""
        with self._reader.lock:
            self._reader.use(self._file.reader())
            self._writer.use(self._file.connection)
            self._writer.look_for_strangers()
            table = self._writer.table
            table.look_for_extras()
            row_count, last_id = table.count(), table.last_id()
            with self._status.lock:
                self._intake.on_other_file(commit, row_count, last_id)

    def _on_salvaged(self) -> None:
        now_s = self._schedule.monotonic()
        if now_s - self._salvage_due_s > _SALVAGE_PAUSE_MAX_S:
            self._salvage_pause_s = _SALVAGE_PAUSE_S
        self._salvage_due_s = now_s + self._salvage_pause_s
        self._salvage_pause_s = min(self._salvage_pause_s * 2, _SALVAGE_PAUSE_MAX_S)
        if self._file.salvage is not None:
            with self._status.lock:
                self.rows_lost += self._file.salvage.rows_lost
                self._dropping.counts[DropReason.DAMAGED_FILE.value, None] += self._file.salvage.rows_lost

    def on_deleted(self) -> None:
        """A transaction has left unused space behind."""
        if self.tidy_due_s == _NEVER:
            self.tidy_due_s = self._schedule.monotonic() + _TIDY_DELAY_S

    def tidy_if_due(self) -> None:
        """Give unused space back to the disk. Takes the writer's lock."""
        if self._schedule.monotonic() < self.tidy_due_s:
            return
        with self._writer.lock:
            try:
                is_more_to_do = self._writer.tidy()
            except (apsw.Error, OSError) as error:
                # Nothing depends on it; the next transaction meets what is wrong.
                logger.debug("the queue file could not be made smaller: %s", error)
                is_more_to_do = True
            self.tidy_due_s = self._schedule.monotonic() + _TIDY_DELAY_S if is_more_to_do else _NEVER

    def on_failure(self, error: Exception, failure: QueueStorageError) -> bool:
        """A transaction has failed. True where nobody need hear of it, unless the mending fails.

        A constraint that two attempts fail by is none of ours.
        """
        if (is_damage(error) or isinstance(error, apsw.ConstraintError)) and self._status.unusable is None:
            self._status.damage = error
            if self.may_mend:
                return True
            self._status.unusable = failure
        return False

    def close(self) -> None:
        """Let go of the file. Takes the locks of both connections."""
        with self._reader.lock:
            self._reader.close()
        with self._writer.lock:
            try:
                self.keep_pending()
                self._writer.close()
            finally:
                self._file.close()

    def keep_pending(self) -> None:
        """The queue's name is another file's: what waits in memory joins what the open one held.

        The caller holds the writer's lock.
        """
        if self._kept_at is None:
            return
        with closing(apsw.Connection(str(self._kept_at))) as copy, self._status.lock:
            QueueTable(copy).insert(self._intake.pending)
            self._intake.pending = []
