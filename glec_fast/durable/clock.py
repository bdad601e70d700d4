"""The time that rows are stamped with, and how old they certainly are, over a wall clock that may be wrong at any time.

Age is measured by the time since boot. What a machine was switched off counts between two times at which the kernel
called its wall clock right, and only then: a clock that nobody vouches for may be wrong by any amount, and so may be
the difference of two. It is followed nevertheless while nothing better is known, by moving all times alike.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

from glec_fast.durable._table import clock_error_us, since_boot_ms

# The first moment of 2020: a clock that says less has not been set.
_SET_SINCE_MS = 1_577_836_800_000
# A wall clock that is no further from the queue's time is left there, and clocks that took longer to read say nothing.
_STEP_MS = 1000
# A clock that the kernel calls right by more than that may be out of step with what it said before.
_ERROR_MAX_US = 500_000
# Off for longer is not believed of any clock (GPS receivers lose 1024 weeks): better late than lost.
_OFF_MAX_MS = 366 * 24 * 60 * 60 * 1000
# The queue's time on disk may be so far behind: to write it costs a page.
_ANCHOR_LASTS_MS = 60_000
# Above every message id. Added to one on disk, where earlier versions had ids of their own meaning.
_TRUE_BEFORE = 1 << 61
# A moment that the wall clock tells, where it is right, has its seconds above this; that of a boot, above a number of
# the boot's own.
_OF_WALL = 1 << 61
_BOOT_S_MAX = 1 << 28
# The times of all messages are true.
_ALL = _TRUE_BEFORE - 1
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
# A time namespace counts from a beginning of its own, under the boot id of all (time_namespaces(7)).
_NAMESPACE = Path("/proc/self/timens_offsets")


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000


def _boot_id() -> str:
    try:
        boot_id = _BOOT_ID.read_bytes().decode().strip()
    except OSError:
        # Hidden by a sandbox: each start then counts as a boot.
        return os.urandom(16).hex()
    try:
        offsets = dict(line.split(maxsplit=1) for line in _NAMESPACE.read_bytes().decode().splitlines())
    except (OSError, ValueError):
        return boot_id
    seconds, nanoseconds = map(int, offsets.get("boottime", "0 0").split())
    return f"{boot_id}+{seconds}.{nanoseconds:09}" if seconds or nanoseconds else boot_id


def _is_kept_right() -> bool:
    try:
        return clock_error_us() <= _ERROR_MAX_US
    except OSError:
        # A sandbox forbids to ask.
        return False


@dataclass(frozen=True)
class Clocks:
    """The clocks of the machine; a test gives its own.

    wall_ms: Unix time in milliseconds, which may step. since_boot_ms: never steps, and counts while it sleeps.
    boot_id: another one after each boot. is_right: True where the wall clock is known to be right within half a second;
    where None, the kernel is asked about its own clock, and nothing is known of another.
    """

    wall_ms: Callable[[], int] = _wall_ms
    since_boot_ms: Callable[[], int] = since_boot_ms
    boot_id: str = field(default_factory=_boot_id)
    is_right: Callable[[], bool] | None = None

    def is_wall_right(self) -> bool:
        """What `is_right` says, or what stands for it."""
        if self.is_right is not None:
            return self.is_right()
        return self.wall_ms is _wall_ms and _is_kept_right()


class Anchor(NamedTuple):
    """What a later start needs to go on from; all offsets are against the milliseconds since boot."""

    boot_id: str
    # Of the queue's time.
    queue_offset_ms: int
    # The same; versions before this one have the wall clock's here, and look for its steps from there.
    wall_offset_ms: int
    # The queue's time when this was written.
    queue_ms: int
    # `_TRUE_BEFORE` and the message id below which times are true; those of others are certain against the queue's time
    # alone. Versions before this one knew of none, and have here from which id on they would move.
    first_id: int

    @property
    def true_before(self) -> int:
        """The message id below which times are true."""
        return max(self.first_id - _TRUE_BEFORE, 0)

    @classmethod
    def lost(cls, last_timestamp_ms: int) -> Anchor:
        """Of a file that has lost its own: all that is known is what its last message was stamped with."""
        return cls("", 0, 0, last_timestamp_ms, 0)


class Step(NamedTuple):
    """The times from message `first_id` on, and the queue's, are to be moved by so many milliseconds.

    true_before: the times of messages below this id are true then.
    """

    by_ms: int
    first_id: int
    true_before: int


class QueueClock:
    """The queue's time, and how far it is from what the wall clock says. For any thread: what tells a time.

    It has three states, by the message id below which times are true. None: no clock was ever right, and the queue's
    time follows the wall clock. All: the wall clock has been right in this boot, the queue's time with it, and only a
    clock that is right moves it. Some: it was in an earlier boot; the queue's time then goes on from there without the
    time switched off, behind the true time, until the wall clock is right again. The times of this boot, and of others
    since then, are moved so that their ages stay; those before are true as they are, and so grow by the time off.

    offset_ms: of the queue's time against the milliseconds since boot.
    anchor: of the file's last use, None where its rows are another program's, whose times are taken at their word.
    next_id: of the first message that will be stamped.
    """

    def __init__(self, clocks: Clocks, anchor: Anchor | None, next_id: int) -> None:
        self._clocks = clocks
        # None has the first rows take an anchor along: the process may have been away for long.
        self._saved: Anchor | None = None
        # Of moments that are seconds since this boot.
        self._of_boot = (1 + crc32(clocks.boot_id.encode())) * _BOOT_S_MAX
        boot_ms = clocks.since_boot_ms()
        if anchor is None:
            self.offset_ms = clocks.wall_ms() - boot_ms
            self._true_before = 0
            return
        self._true_before = anchor.true_before
        if anchor.boot_id == clocks.boot_id and boot_ms >= anchor.queue_ms - anchor.queue_offset_ms:
            self.offset_ms = anchor.queue_offset_ms
        else:
            self.offset_ms = anchor.queue_ms - boot_ms
            self._true_before = min(self._true_before, next_id)

    def now_ms(self) -> int:
        """What a row is stamped with, and what its expiry is compared with."""
        return self._clocks.since_boot_ms() + self.offset_ms

    def unix_ms(self) -> int:
        """What to tell others: the wall clock once it was set, the queue's time before."""
        wall_ms = self._clocks.wall_ms()
        return wall_ms if wall_ms >= _SET_SINCE_MS else self.now_ms()

    def moment(self) -> int:
        """Now, as a number above 1 that `seconds_since` understands, in a later process too. Any thread."""
        clocks = self._clocks
        if clocks.is_wall_right():
            return _OF_WALL + clocks.wall_ms() // 1000
        return self._of_boot + clocks.since_boot_ms() // 1000

    def seconds_since(self, moment: int) -> int | None:
        """How long ago that was, at least; None where nobody knows. Any thread."""
        clocks = self._clocks
        if moment >= _OF_WALL:
            since_s = clocks.wall_ms() // 1000 - (moment - _OF_WALL) if clocks.is_wall_right() else -1
        else:
            since_s = clocks.since_boot_ms() // 1000 - (moment - self._of_boot)
            since_s = since_s if 0 <= moment - self._of_boot < _BOOT_S_MAX else -1
        return since_s if since_s >= 0 else None

    def step(self) -> Step | None:
        """What has to be moved by what the wall clock says now; None where nothing has."""
        clocks = self._clocks
        # Asked on both sides, as whoever sets the clock wrong meanwhile takes the kernel's word back.
        was_right, began_ms = clocks.is_wall_right(), clocks.since_boot_ms()
        wall_ms = clocks.wall_ms()
        boot_ms = clocks.since_boot_ms()
        is_right = was_right and clocks.is_wall_right()
        if wall_ms < _SET_SINCE_MS or boot_ms - began_ms > _STEP_MS:
            return None
        by_ms = wall_ms - boot_ms - self.offset_ms
        is_step = abs(by_ms) > _STEP_MS
        if not is_right:
            return Step(by_ms, 0, 0) if is_step and not self._true_before else None
        if not is_step:
            self._true_before = _ALL
            return None
        # Backwards, or again in this boot: what was called right was not, and so nothing that was stamped by it is.
        was_off = self._true_before < _ALL and 0 < by_ms <= _OFF_MAX_MS
        return Step(by_ms, self._true_before if was_off else 0, _ALL)

    def after(self, step: Step) -> Anchor:
        """The anchor to be written together with the moved rows."""
        return self._anchor(self.offset_ms + step.by_ms, step.true_before)

    def anchor(self, *, fresh: bool) -> Anchor | None:
        """What must be on disk with the next rows; None: what is there will do. `fresh`: also if little time passed."""
        anchor, saved = self._anchor(self.offset_ms, self._true_before), self._saved
        if fresh or saved is None:
            return anchor
        if saved.queue_offset_ms != anchor.queue_offset_ms or saved.first_id != anchor.first_id:
            return anchor
        return anchor if anchor.queue_ms - saved.queue_ms > _ANCHOR_LASTS_MS else None

    def _anchor(self, offset_ms: int, true_before: int) -> Anchor:
        queue_ms = self._clocks.since_boot_ms() + offset_ms
        return Anchor(self._clocks.boot_id, offset_ms, offset_ms, queue_ms, _TRUE_BEFORE + true_before)

    def on_saved(self, anchor: Anchor) -> None:
        """This anchor is on disk."""
        self._saved = anchor
        self.offset_ms, self._true_before = anchor.queue_offset_ms, anchor.true_before
