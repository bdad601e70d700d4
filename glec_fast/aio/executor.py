"""Handlers on the program's loop, in the place of the pool of threads."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections import deque
from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from glec_fast.runtime._lock import Event

if TYPE_CHECKING:
    from glec_fast.fleet.handlers import Call
    from glec_fast.runtime.summing_log import SummingLog


class LoopExecutor:
    """See `glec_fast.fleet.handlers.Executor`. Handlers are plain functions or coroutines, and each runs in a task.

    One of a lane runs at a time, so that there are no more at once than filters and commands. Its state belongs to the
    loop's thread; the methods, which are for any thread, send word there.
    """

    runs_coroutines = True

    def __init__(self, loop: asyncio.AbstractEventLoop, log: SummingLog) -> None:
        self._loop = loop
        self._log = log
        # Of each lane that has any, its calls, of which the first runs, is about to, or keeps the lane.
        self._lanes: dict[Hashable, deque[Call]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_closed = False
        self._are_over = Event()
        self.error_count = 0

    # ---- any thread

    def submit(self, lane: Hashable, call: Call) -> bool:
        """See `Executor`."""
        return not self._is_closed and self._send(self._add, lane, call)

    def go_on(self, lane: Hashable, call: Call) -> None:
        """See `Executor`."""
        self._send(self._replace, lane, call)

    def free(self, lane: Hashable) -> None:
        """See `Executor`."""
        self._send(self._pass_on, lane)

    def tick(self) -> None:
        """See `Executor`: everything begins at once here."""

    def note_error(self, error: BaseException) -> None:
        """See `Executor`."""
        self.error_count += 1
        self._log.note(logging.ERROR, "errors in handlers of messages", repr(error), error=error)

    def refuse(self) -> None:
        """Begin no call any more; one that is cancelled from here on was not handled."""
        self._is_closed = True

    def close(self, timeout_s: float) -> bool:
        """See `Executor`. What runs after the time-out is cancelled, and was not handled. Not for the loop's thread."""
        self.refuse()
        if not self._send(self._close):
            return True
        is_over = self._are_over.wait(timeout_s)
        self._send(self._cancel)
        return is_over

    def _send(self, step: Callable[..., None], *arguments: Any) -> bool:
        try:
            self._loop.call_soon_threadsafe(step, *arguments)
        except RuntimeError:
            # The loop is closed: nothing is handled any more.
            return False
        return True

    # ---- the loop

    def _add(self, lane: Hashable, call: Call) -> None:
        if self._is_closed:
            return
        calls = self._lanes.setdefault(lane, deque())
        calls.append(call)
        if len(calls) == 1:
            self._begin(lane, call)

    def _replace(self, lane: Hashable, call: Call) -> None:
        calls = self._lanes.get(lane)
        if calls:
            calls[0] = call
            self._begin(lane, call)

    def _pass_on(self, lane: Hashable) -> None:
        calls = self._lanes.get(lane)
        if not calls:
            # Closed meanwhile.
            return
        calls.popleft()
        if not calls:
            del self._lanes[lane]
        elif not self._is_closed:
            self._begin(lane, calls[0])

    def _begin(self, lane: Hashable, call: Call) -> None:
        task = self._loop.create_task(self._run(lane, call))
        self._tasks.add(task)
        task.add_done_callback(self._on_end)

    def _on_end(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._look_for_end()

    async def _run(self, lane: Hashable, call: Call) -> None:
        result: Any = None
        error: BaseException | None = None
        try:
            result = call.handler(*call.arguments)
            if inspect.isawaitable(result):
                result = await result
        except asyncio.CancelledError as raised:
            if self._is_closed:
                raise
            error = raised
        except (Exception, SystemExit) as raised:
            error = raised
        try:
            keeps_lane = call.done(result, error)
        except Exception as raised:
            self.note_error(raised)
            keeps_lane = False
        if not keeps_lane:
            self._pass_on(lane)

    def _close(self) -> None:
        for calls in self._lanes.values():
            # The first runs, or is kept.
            while len(calls) > 1:
                calls.pop()
        self._look_for_end()

    def _look_for_end(self) -> None:
        if self._is_closed and not self._tasks:
            self._are_over.set()

    def _cancel(self) -> None:
        self._lanes.clear()
        for task in self._tasks:
            with suppress(RuntimeError):
                task.cancel()
