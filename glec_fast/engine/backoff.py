"""How long to wait before the next attempt to connect (specification, "Reconnection Strategy"). No clock in it."""

from __future__ import annotations


class Backoff:
    """Waits of `initial_s`, doubled for `attempts` attempts, then `maximum_s` for ever, which no wait exceeds."""

    def __init__(self, initial_s: float, maximum_s: float, attempts: int) -> None:
        self._initial_s = initial_s
        self.maximum_s = maximum_s
        self._attempts = attempts
        self._failures = 0

    def next_delay_s(self) -> float:
        """The wait after one more failure, in seconds."""
        failures = self._failures
        self._failures += 1
        if failures >= self._attempts:
            return self.maximum_s
        return min(self._initial_s * float(2**failures), self.maximum_s)

    def reset(self) -> None:
        """A connection was made; begin anew."""
        self._failures = 0
