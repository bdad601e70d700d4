"""A machine's clocks, moved by hand."""

from __future__ import annotations

from glec_fast.durable.clock import Clocks


class Clock:
    """Unix seconds of the wall clock. Setting `now_s` lets time pass; `step` moves the wall clock alone.

    is_right: whether the kernel calls the wall clock right.
    """

    def __init__(self, now_s: float = 1_704_931_200.0, boot_id: str = "first boot") -> None:
        self._now_s = now_s
        self.booted_s = now_s - 100.0
        self._off_by_s = 0.0
        self.boot_id = boot_id
        self.is_right = False

    @property
    def now_s(self) -> float:
        """The wall clock."""
        return self._now_s + self._off_by_s

    @now_s.setter
    def now_s(self, value: float) -> None:
        self._now_s = value - self._off_by_s

    def __call__(self) -> float:
        return self.now_s

    def step(self, seconds: float) -> None:
        """Somebody sets the wall clock."""
        self._off_by_s += seconds

    def boot(self, off_s: float = 0.0, wall_s: float | None = None) -> None:
        """Switched off for so long; then the wall clock says `wall_s`, or what it would have."""
        self._now_s += off_s
        self.booted_s = self._now_s
        self.boot_id += ", and another"
        if wall_s is not None:
            self._off_by_s = wall_s - self._now_s

    @property
    def clocks(self) -> Clocks:
        """For the product; those of the present boot."""
        return Clocks(
            wall_ms=lambda: round(self.now_s * 1000),
            since_boot_ms=lambda: round((self._now_s - self.booted_s) * 1000),
            boot_id=self.boot_id,
            is_right=lambda: self.is_right,
        )
