"""What the sending side has in flight, and what of it is finished: how that reaches the disk."""

from __future__ import annotations

import logging
import time

import apsw

from glec_fast.durable._steps import Finished, remove_taken, take_image
from glec_fast.durable._table import CLEARED_RANGES_MAX
from glec_fast.durable.in_doubt import Decision
from glec_fast.durable.reader import Reader
from glec_fast.durable.schedule import DELETE_ROWS_MAX, DONE_COMMIT_ROWS, Schedule
from glec_fast.durable.status import Status
from glec_fast.durable.transaction import Commit, Outbox
from glec_fast.durable.writer import Writer
from glec_fast.errors import ConfigError

# What the log's reserve holds the pages of, on a full disk.
_DELETE_ROWS_WITHOUT_ROOM = 250
# A disk that takes longer must not hold up the thread that keeps the connection alive.
_QUICK_COMMIT_S = 0.02
# Most transactions of a disk that takes no longer end sooner than this; behind another, to leave the image to the
# writer costs less than to stand still.
_SWIFT_COMMIT_S = 0.002
_TURN_WAIT_S = 0.005


class Outgoing:
    """The outbox and its image. Whoever reads or changes an attribute, or calls a method, holds `status.lock`; but
    `commit_image` and `save_image` take it themselves, behind the writer's, which the first takes and the second wants.
    """

    def __init__(self, status: Status, schedule: Schedule, reader: Reader, writer: Writer) -> None:
        self._status = status
        self._lock = status.lock
        self._schedule = schedule
        self._reader = reader
        self._writer = writer
        self.outbox: Outbox | None = None
        # What the outbox answers under. Ahead of the store's own: whoever holds it, in a handler that has cut in, may
        # publish, which takes the store's.
        self.outbox_lock = status.lock
        self.identity = ("", "")
        # Finished, and their rows not yet deleted.
        self.finished = Finished()
        # So many of them are named by an image on disk.
        self._named = 0
        # The image that carries these out is not on disk yet.
        self._in_doubt: list[tuple[int, Decision]] = []
        self._delete_rows_max: int | None = None
        # The outbox has let go of rows that are deleted by the transaction under way: an image without that is wrong.
        self.is_abandoning = False
        # Who asks for an image never waits for a disk.
        self.is_left_to_writer = False

    def refuse_second(self) -> None:
        """Raises ConfigError where the store has an outbox."""
        if self.outbox is not None:
            raise ConfigError("this store has a client already: give each client a queue file of its own")

    # ---- the image alone

    def commit_image(self) -> int | None:
        """See `Store.commit_image`."""
        writer = self._writer
        version = None
        if writer.took_s < _QUICK_COMMIT_S and not self.is_left_to_writer:
            wait_s = _TURN_WAIT_S if writer.took_s < _SWIFT_COMMIT_S else 0.0
            with writer.lock.attempt(wait_s) as is_our_turn:
                if is_our_turn:
                    version = self.save_image()
            if wait_s and not is_our_turn:
                # Whose transaction it is says how long it took; until then nobody waits for it again.
                writer.took_s = _TURN_WAIT_S
        if version is None:
            with self._lock:
                self._schedule.request()
        return version

    def save_image(self) -> int | None:
        """The image by itself; None where it needs a transaction. The caller holds the writer's lock."""
        saved = self._writer.image
        with self.outbox_lock, self._lock:
            outbox, status = self.outbox, self._status
            if outbox is None or status.is_closing or self.is_abandoning or self.identity != saved.identity:
                return None
            # A full disk that refuses new rows is none of its business: the log of images has its room.
            if status.is_moving_in or (status.unusable or status.damage) is not None:
                return None
            version, image = take_image(outbox, self.finished.ranges, self._in_doubt)
            if self._in_doubt:
                return None
        started_s = time.monotonic()
        try:
            saved.save(self._writer.table, image)
            self._writer.syncs += 1
        except (apsw.Error, OSError) as error:
            # The writer tries the same, and reports it where it fails as well.
            status.log.note(logging.DEBUG, "images that were not written at once", str(error), later=True)
            return None
        finally:
            self._writer.took_s = time.monotonic() - started_s
        return version

    # ---- the transaction under way

    def abandon(self, ids: list[int]) -> list[int] | None:
        """See `Outbox.abandon`; what is finished stays as well."""
        if self.outbox is None:
            return []
        staying = self.outbox.abandon(ids)
        return None if staying is None else staying + [each for each in ids if each in self.finished]

    def take(self, commit: Commit, *, makes_room: bool, marked: int) -> None:
        """What is finished is named by this transaction, or deleted where that is worth it or `makes_room`.

        marked: so many other rows it is to drop.
        """
        commit.read_again = self._reader.has_failed
        outbox = commit.outbox = self.outbox
        if outbox is not None:
            self.finished.take_from(outbox)
        commit.deleting = self._deleting(commit, makes_room=makes_room, marked=marked)
        commit.named = self.finished.without(commit.deleting) if commit.deleting else self.finished.ranges.copy()
        if commit.deleting and not commit.named:
            self._schedule.on_all_deleting()
        if outbox is not None:
            commit.version, commit.image = take_image(outbox, commit.named, self._in_doubt)
            commit.in_doubt, commit.identity = self._in_doubt.copy(), self.identity

    def _deleting(self, commit: Commit, *, makes_room: bool, marked: int) -> list[tuple[int, int]]:
        """The ranges of finished rows that this transaction deletes."""
        if makes_room:
            return self.finished.first_ranges(self._delete_rows_max)
        is_due = self._schedule.is_delete_due(self.finished)
        # What is to be dropped goes with this transaction too.
        if len(self.finished) + marked >= commit.row_count:
            # Whoever waits for the last of thousands is told once they are named, and not behind all their pages.
            if not is_due and len(self.finished) >= DONE_COMMIT_ROWS and len(self.finished) > self._named:
                return []
            is_due = True
            if len(self.finished.ranges) <= CLEARED_RANGES_MAX:
                return self.finished.first_ranges(self._delete_rows_max)
        return self.finished.first_ranges(self._delete_rows_max or DELETE_ROWS_MAX) if is_due else []

    def on_committed(self, commit: Commit) -> None:
        """Note what is on disk now. Where this was cut into, a second call does the same."""
        if commit.deleting:
            self._reader.skip_no_more(commit.deleting)
            self.finished.remove(commit.deleting)
        self._named = len(self.finished)
        if self.finished:
            self._schedule.request_delete()
            if commit.is_empty:
                self._schedule.request()
        if commit.rows:
            self._delete_rows_max = None
        remove_taken(self._in_doubt, commit.in_doubt)
        self.is_abandoning = False
        if commit.read_again:
            self._reader.has_failed = False

    def on_failure(self, error: Exception) -> None:
        """The disk has refused it."""
        if isinstance(error, apsw.FullError):
            self._delete_rows_max = _DELETE_ROWS_WITHOUT_ROOM
        if self.finished:
            self._schedule.put_off_delete()
