"""The times of all that is queued, moved where the wall clock has stepped."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import apsw

from glec_fast.durable.file import is_damage
from glec_fast.durable.intake import Intake
from glec_fast.durable.reader import Reader
from glec_fast.durable.status import Status
from glec_fast.durable.transaction import Move
from glec_fast.durable.writer import Writer


@dataclass(eq=False, repr=False)
class ClockSteps:
    """Readers and callers see all old times or all new ones. Belongs to whoever holds the writer's lock."""

    _status: Status
    _intake: Intake
    _reader: Reader
    _writer: Writer
    # One whose end is not noted.
    _moving: Move | None = None
    count: int = 0

    def follow(self) -> None:
        """Before a transaction: mend all times, in one of their own, where the wall clock has stepped."""
        clock = self._intake.clock
        step = clock.step()
        if step is None or self._status.is_moving_in:
            return
        with self._reader.lock:
            with self._status.lock:
                pending = self._intake.pending
                coming_ms = pending[0][4] if pending else clock.now_ms()
            move = self._moving = Move(step)
            try:
                self._writer.move_times(move, coming_ms, clock)
            except apsw.Error as error:
                self._moving = None
                if is_damage(error):
                    raise
                # The old times still agree with each other, and a full disk may need the deletes that come next.
                kind = "steps of the wall clock that are not followed yet"
                self._status.log.note(logging.DEBUG, kind, str(error), later=True)
                return
            self._note(move)
        text = f"the wall clock stepped: the times of queued messages were moved by {step.by_ms / 1000:.1f} s"
        self.count += 1
        direction = "forwards" if step.by_ms > 0 else "backwards"
        self._status.log.note(logging.WARNING, "steps of the wall clock", direction, text=text)

    def _note(self, move: Move) -> None:
        """Where this was cut into, a second call does the same. The caller holds the reader's lock."""
        intake, anchor, by_ms = self._intake, move.anchor, move.step.by_ms
        assert anchor is not None
        with self._status.lock:
            intake.clock.on_saved(anchor)
            lanes = self._reader.lanes_after(by_ms, move.first_id)
            pending = [(*row[:4], row[4] + by_ms, row[5] + by_ms, *row[6:]) for row in intake.pending]
            last_ms = pending[-1][4] if pending else move.last_timestamp_ms
            # In one step, in which nothing can be raised.
            self._reader.lanes, intake.pending, self._moving = lanes, pending, None
            intake.committed_timestamp_ms, intake.last_timestamp_ms = move.last_timestamp_ms, last_ms

    def pick_up(self) -> None:
        """Bring to its end what an exception has cut into."""
        move = self._moving
        if move is not None:
            with self._writer.lock, self._reader.lock:
                if move.is_committed:
                    self._note(move)
                self._moving = None
