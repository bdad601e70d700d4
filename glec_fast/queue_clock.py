"""The time that rows are stamped with: Unix time as well as it is known, that no step of the wall clock moves.

A device without a clock battery starts in 1970 and jumps when it hears the time. Age is therefore measured by the time
since boot; the wall clock only says, when it steps or at a start, by how much all that was stamped is wrong.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

# The first moment of 2020: a clock that says less has not been set.
_SET_SINCE_MS = 1_577_836_800_000
# A wall clock that moves less against the time since boot is slewed, or read late.
_STEP_MS = 1000
# Beyond that a clock is believed in its time, but not in the age that it gives to messages: better late than lost.
_OFF_MAX_MS = 366 * 24 * 60 * 60 * 1000
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000


def _since_boot_ms() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


def _boot_id() -> str:
    try:
        return _BOOT_ID.read_text("ascii").strip()
    except OSError:
        # Hidden by a sandbox: each start then counts as a boot, which trusts the wall clock more.
        return uuid.uuid4().hex


@dataclass(frozen=True)
class Clocks:
    """The clocks of the machine; a test gives its own.

    wall_ms: Unix time in milliseconds, which may step. since_boot_ms: never steps, and counts while it sleeps.
    boot_id: another one after each boot.
    """

    wall_ms: Callable[[], int] = _wall_ms
    since_boot_ms: Callable[[], int] = _since_boot_ms
    boot_id: str = field(default_factory=_boot_id)


class Anchor(NamedTuple):
    """What a later start needs to go on from; all offsets are against the milliseconds since boot."""

    boot_id: str
    # Of the queue's time, and of the wall clock when it was last looked at.
    queue_offset_ms: int
    wall_offset_ms: int
    # The queue's time when this was written.
    queue_ms: int
    # The first message id that this boot's clock has stamped; or, if its times were moved, moved.
    first_id: int


class Step(NamedTuple):
    """What was stamped from message `first_id` on is wrong by so many milliseconds."""

    by_ms: int
    first_id: int
    wall_offset_ms: int


class QueueClock:
    """The queue's time, and how far it is from what the wall clock says. Not thread-safe but for `now_ms`.

    anchor: of the file's last use. next_id: of the first message that will be stamped.
    """

    def __init__(self, clocks: Clocks, anchor: Anchor | None, next_id: int) -> None:
        self._clocks = clocks
        self._saved = anchor
        boot_ms, wall_ms = self._read()
        # None has `step` compare the two times though the wall clock did not move.
        self._wall_offset_ms: int | None = wall_ms - boot_ms
        self._first_id = next_id
        if anchor is None:
            self._offset_ms = wall_ms - boot_ms
        elif anchor.boot_id == clocks.boot_id and boot_ms >= anchor.queue_ms - anchor.queue_offset_ms:
            self._offset_ms, self._wall_offset_ms = anchor.queue_offset_ms, anchor.wall_offset_ms
            self._first_id = anchor.first_id
        elif 0 <= wall_ms - anchor.queue_ms <= _OFF_MAX_MS:
            # Switched off meanwhile, and that time counts.
            self._offset_ms = wall_ms - boot_ms
        else:
            # How long it was off nobody knows; what was stamped is at least as old as it was then.
            self._offset_ms = anchor.queue_ms - boot_ms
            if wall_ms >= anchor.queue_ms:
                self._wall_offset_ms = None

    def _read(self) -> tuple[int, int]:
        return self._clocks.since_boot_ms(), self._clocks.wall_ms()

    def now_ms(self) -> int:
        """What a row is stamped with, and what its expiry is compared with."""
        return self._clocks.since_boot_ms() + self._offset_ms

    def unix_ms(self) -> int:
        """What to tell others: the wall clock once it was set, the queue's time before."""
        wall_ms = self._clocks.wall_ms()
        return wall_ms if wall_ms >= _SET_SINCE_MS else self.now_ms()

    def step(self) -> Step | None:
        """What has to be mended because the wall clock stepped since the last look; None where nothing has."""
        boot_ms, wall_ms = self._read()
        wall_offset_ms = wall_ms - boot_ms
        if self._wall_offset_ms is not None and abs(wall_offset_ms - self._wall_offset_ms) <= _STEP_MS:
            return None
        by_ms = wall_offset_ms - self._offset_ms
        if wall_ms < _SET_SINCE_MS or abs(by_ms) <= _STEP_MS:
            self._wall_offset_ms = wall_offset_ms
            return None
        # By years, as from 1970: the rows of earlier boots are as wrong.
        first_id = self._first_id if abs(by_ms) <= _OFF_MAX_MS else 0
        return Step(by_ms, first_id, wall_offset_ms)

    def after(self, step: Step, first_id: int) -> Anchor:
        """The anchor to be written together with the mended rows, those from `first_id` on."""
        offset_ms = self._offset_ms + step.by_ms
        queue_ms = self._clocks.since_boot_ms() + offset_ms
        return Anchor(self._clocks.boot_id, offset_ms, step.wall_offset_ms, queue_ms, first_id)

    def anchor(self, *, fresh: bool) -> Anchor | None:
        """What must be on disk with the next rows; None: what is there will do. `fresh`: also if only time passed."""
        offset_ms, wall_offset_ms = self._offset_ms, self._wall_offset_ms
        anchor = Anchor(
            self._clocks.boot_id,
            offset_ms,
            offset_ms if wall_offset_ms is None else wall_offset_ms,
            self.now_ms(),
            self._first_id,
        )
        saved = self._saved
        if not fresh and saved is not None and saved._replace(queue_ms=anchor.queue_ms) == anchor:
            return None
        return anchor

    def on_saved(self, anchor: Anchor) -> None:
        """This anchor is on disk."""
        self._saved = anchor
        self._offset_ms, self._wall_offset_ms = anchor.queue_offset_ms, anchor.wall_offset_ms
        self._first_id = anchor.first_id
