"""Which of several brokers, or ways to one, the next connection is made to. No thread of its own but a probe's.

In order: the next where one does not answer, and then the first again. Connected to a later one, now and then it is
tried whether the first answers, and once it does the connection is moved. Which address of a host is dialled is not
decided here.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from glec_fast.engine.backoff import draw

# Until the first is looked for again; twice as long each time that nothing came of it.
RETURN_MIN_S, RETURN_MAX_S = 30.0, 1800.0
# Vehicles that lost a broker together must not come back to it together.
_JITTER = 0.5
# A broker that accepts connections and ends them so soon, so often in a row, does not answer.
_BRIEF_S = 10.0
_BRIEF_MAX = 3


class Routes:
    """`count` of them, in order. Belongs to the thread that connects.

    may_answer: asked in that thread whether the first may be there, to be answered by `on_probed` from any thread.
    monotonic, draw: seconds, and a number from 0 to below 1; the machine's.
    """

    def __init__(
        self,
        count: int,
        may_answer: Callable[[], None],
        monotonic: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = draw,
    ) -> None:
        self.current = 0
        # The connection is to be ended, for one to the first.
        self.is_returning = False
        self._count = count
        self._may_answer = may_answer
        self._monotonic = monotonic
        self._draw = draw
        self._return_pause_s = RETURN_MIN_S
        self._return_due_s = float("inf")
        self._accepted_s: float | None = None
        self._brief = 0

    def on_accepted(self) -> None:
        """The broker has accepted the connection."""
        self._accepted_s = self._monotonic()
        if self.current:
            self._put_off()
        else:
            self._return_pause_s, self._return_due_s = RETURN_MIN_S, float("inf")

    def turn(self) -> bool:
        """A connection has failed, or ended: choose the next. True where one that was not tried since comes next."""
        self._return_due_s = float("inf")
        accepted_s, self._accepted_s = self._accepted_s, None
        if self.is_returning:
            self.is_returning, self.current = False, 0
            return True
        if accepted_s is not None:
            self._brief = self._brief + 1 if self._monotonic() - accepted_s < _BRIEF_S else 0
            if self._brief < _BRIEF_MAX:
                # Where the session is.
                return False
        self._brief = 0
        self.current = (self.current + 1) % self._count
        return self.current != 0

    def tick(self) -> None:
        """Connected: have it looked whether the first answers, if that is due."""
        if self._monotonic() >= self._return_due_s:
            self._put_off()
            self._may_answer()

    def due_in_s(self) -> float:
        """Until `tick` has something to do."""
        return self._return_due_s - self._monotonic()

    def on_probed(self, answers: bool) -> None:
        """From any thread."""
        if answers and self._return_due_s != float("inf"):
            self.is_returning = True

    def spread_s(self, delay_s: float) -> float:
        """Up to so many seconds, so that not all turn to a broker in one moment."""
        return self._draw() * delay_s

    def _put_off(self) -> None:
        pause_s = self._return_pause_s
        self._return_due_s = self._monotonic() + pause_s * (1 - _JITTER + 2 * _JITTER * self._draw())
        self._return_pause_s = min(pause_s * 2, RETURN_MAX_S)
