"""How other threads have the loop look at what they have done."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress


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
        is_heard = False
        try:
            self._is_rung = True
            # A program may end its loop without leaving: nobody listens then.
            with suppress(RuntimeError):
                if asyncio._get_running_loop() is self._loop:
                    self._loop.call_soon(self._answer)
                else:
                    self._loop.call_soon_threadsafe(self._answer)
            is_heard = True
        finally:
            # An exception from outside, as of a signal, may cut in anywhere.
            self._is_rung = self._is_rung and is_heard

    def _answer(self) -> None:
        # First: whoever rings from here on is answered again.
        self._is_rung = False
        self._answer_ring()
