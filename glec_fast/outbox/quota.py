"""How many PUBLISH packets may leave, where a server ends connections over more of them a second. A token bucket.

It fills at nine tenths of the quota and holds a fortieth of it. So no second has more than 0.925 of the quota in it;
the rest is for what a link and the server's own looking gather: what left over more than a second may count in one.
What was not used is not made up for.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from math import floor

_PART = 0.9
_BURST_PART = 0.025


class Quota:
    """Of one client, over its connections. The owner serialises calls.

    most_per_s: the server's quota, above 0. clock: seconds, as `time.monotonic`.
    """

    def __init__(self, most_per_s: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate_s = _PART * most_per_s
        self._most = max(_BURST_PART * most_per_s, 1.0)
        self._tokens = self._most
        self._granted = 0
        self._clock = clock
        self._filled_s = clock()

    def fill(self, left: int) -> int:
        """So many may leave now, below 0 where too many have. left: of what the last call gave."""
        now_s = self._clock()
        tokens = self._tokens - self._granted + left + max(now_s - self._filled_s, 0.0) * self._rate_s
        self._tokens = min(tokens, self._most)
        self._filled_s = now_s
        self._granted = floor(self._tokens)
        return self._granted

    @property
    def next_s(self) -> float:
        """When the next may leave, of the clock."""
        return self._filled_s + max(1.0 - self._tokens, 0.0) / self._rate_s
