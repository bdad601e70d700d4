"""How other threads have the loop look at what they have done."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Doorbell:
    """Has the loop call `answer` before long: once, for however many rings. `ring` is for any thread.

    What was done before a ring is seen by an answer.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, answer: Callable[[], None]) -> None:
        self._loop = loop
        self._answer_ring = answer
        self._is_rung = False

    def ring(self) -> None:
        """From the loop's own thread it costs no call of the system."""
        if self._is_rung:
            return
        try:
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

    def _answer(self) -> None:
        # First: whoever rings from here on is answered again.
        self._is_rung = False
        self._answer_ring()
