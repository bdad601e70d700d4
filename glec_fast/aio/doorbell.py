"""How other threads have the loop look at what they have done."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from glec_fast.aio._waiting import Owed

# An answer that is due for longer was lost, where an exception cut into asyncio's own steps; or the loop is held up.
_LOST_S = 1.0


class Doorbell:
    """Has the loop call `answer` before long: once, for however many rings. `ring` is for any thread.

    What was done before a ring is seen by an answer.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, answer: Callable[[], None]) -> None:
        self._loop = loop
        self._answer_ring = answer
        self._answer = Owed(loop, self._answer_once)
        self._is_rung = False
        # Of `time.monotonic`.
        self._rung_s = 0.0

    def ring(self) -> None:
        """From the loop's own thread it costs no call of the system."""
        if self._is_rung and time.monotonic() < self._rung_s + _LOST_S:
            return
        try:
            self._rung_s = time.monotonic()
            self._is_rung = True
            if asyncio._get_running_loop() is self._loop:
                self._loop.call_soon(self._answer)
            else:
                self._loop.call_soon_threadsafe(self._answer)
            # Not touched again from here on: it may be answered, and another's, by now.
        except BaseException as error:
            # Also one from outside, as of a signal: an answer too many is none too few.
            self._is_rung = False
            # A program may end its loop without leaving: nobody listens then.
            if not isinstance(error, RuntimeError):
                raise

    def _answer_once(self) -> None:
        # First: whoever rings from here on is answered again.
        self._is_rung = False
        self._answer_ring()
