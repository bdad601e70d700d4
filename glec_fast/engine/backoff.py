"""How long to wait before the next attempt to connect (specification, "Reconnection Strategy"). No clock in it."""

from __future__ import annotations

import os
from collections.abc import Callable

# The least part of a wait, by the kind of jitter: the rest is drawn anew each time. `benches/simulate_restart.py` has
# what a broker's restart is like with each of them.
JITTERS = {"none": 1.0, "equal": 0.5, "full": 0.0}


def draw() -> float:
    """A number from 0 to below 1."""
    return int.from_bytes(os.urandom(4), "big") / (1 << 32)


class Backoff:
    """Waits of `initial_s`, doubled for `attempts` attempts, then `maximum_s` for ever, which no wait exceeds.

    jitter: one of JITTERS; these waits are then upper bounds, so that gateways that lost a broker together do not come
    back together.
    """

    def __init__(
        self, initial_s: float, maximum_s: float, attempts: int, jitter: str = "none", draw: Callable[[], float] = draw
    ) -> None:
        self._initial_s = initial_s
        self._maximum_s = maximum_s
        self._attempts = attempts
        self._least = JITTERS[jitter]
        self._draw = draw
        self._failures = 0

    def next_delay_s(self) -> float:
        """The wait after one more failure, in seconds."""
        failures = self._failures
        self._failures += 1
        if failures >= self._attempts:
            return self._jittered(self._maximum_s)
        return self._jittered(min(self._initial_s * float(2**failures), self._maximum_s))

    def longest_delay_s(self) -> float:
        """The wait after a failure that will not pass in a moment."""
        return self._jittered(self._maximum_s)

    def _jittered(self, delay_s: float) -> float:
        return delay_s * (self._least + (1 - self._least) * self._draw())

    def reset(self) -> None:
        """A connection has proved itself; begin anew."""
        self._failures = 0
