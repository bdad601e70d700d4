"""Handlers on the program's loop, in the place of the pool of threads."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections import deque
from collections.abc import Callable, Hashable
from contextlib import suppress
from contextvars import Context
from functools import partial
from typing import TYPE_CHECKING, Any

from glec_fast.aio._waiting import Owed
from glec_fast.runtime._lock import Event
from glec_fast.runtime.log import shown

if TYPE_CHECKING:
    from glec_fast.fleet.handlers import Call
    from glec_fast.runtime.summing_log import SummingLog


class _Turn:
    """A call, in its lane."""

    __slots__ = ("call", "has_ended", "keeps_lane", "lane", "task")

    def __init__(self, lane: Hashable, call: Call) -> None:
        self.lane, self.call = lane, call
        self.task: asyncio.Task[None] | None = None
        # Whoever waits for the result was told, or is being told.
        self.has_ended = self.keeps_lane = False


class LoopExecutor:
    """See `glec_fast.fleet.handlers.Executor`. Handlers are plain functions or coroutines, and each runs in a task.

    One of a lane runs at a time, so that there are no more at once than filters and commands. Its state belongs to the
    loop's thread; the methods, which are for any thread, send word there. Each step there may be called again where an
    exception has cut into it, and does what is left to do; one that cuts into a handler is the handler's error.
    context: each task has a copy of it.
    """

    runs_coroutines = True

    def __init__(self, loop: asyncio.AbstractEventLoop, context: Context, log: SummingLog) -> None:
        self._loop = loop
        self._context = context
        self._log = log
        # Of each lane that has any, its calls, of which the first runs, is about to, or keeps the lane.
        self._lanes: dict[Hashable, deque[_Turn]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_closed = False
        # By a handler, which then waits for no other, and is not cancelled.
        self._is_closed_within = False
        self._are_over = Event()
        self.error_count = 0

    # ---- any thread

    def submit(self, lane: Hashable, call: Call) -> bool:
        """See `Executor`."""
        return not self._is_closed and self._send(self._add, _Turn(lane, call))

    def go_on(self, lane: Hashable, call: Call) -> None:
        """See `Executor`."""
        self._send(self._replace, _Turn(lane, call))

    def free(self, lane: Hashable) -> None:
        """See `Executor`."""
        self._send(self._free, lane, [])

    def tick(self) -> None:
        """See `Executor`: everything begins at once here."""

    def note_error(self, error: BaseException) -> None:
        """See `Executor`."""
        self.error_count += 1
        self._log.note(logging.ERROR, "errors in handlers of messages", shown(error), error=error)

    def refuse(self) -> None:
        """Begin no call any more; one that is cancelled from here on was not handled. For the loop's thread."""
        self._is_closed = True
        self._is_closed_within = self._is_closed_within or asyncio.current_task() in self._tasks

    def close(self, timeout_s: float) -> bool:
        """See `Executor`. What runs after the time-out is cancelled, and was not handled. Not for the loop's thread."""
        self._is_closed = True
        if not self._send(self._close) or self._is_closed_within:
            return not self._tasks
        is_over = self._are_over.wait(timeout_s)
        self._send(self._cancel)
        return is_over

    def _send(self, step: Callable[..., None], *arguments: Any) -> bool:
        try:
            self._loop.call_soon_threadsafe(Owed(self._loop, step), *arguments)
        except RuntimeError:
            # The loop is closed: nothing is handled any more.
            return False
        return True

    # ---- the loop

    def _add(self, turn: _Turn) -> None:
        if self._is_closed or turn.task is not None:
            return
        turns = self._lanes.setdefault(turn.lane, deque())
        if turn not in turns:
            turns.append(turn)
        if turns[0] is turn:
            self._begin(turn)

    def _replace(self, turn: _Turn) -> None:
        turns = self._lanes.get(turn.lane)
        if turns and turn.task is None:
            turns[0] = turn
            self._begin(turn)

    def _free(self, lane: Hashable, whose: list[_Turn]) -> None:
        turns = self._lanes.get(lane)
        if turns and not whose:
            whose.append(turns[0])
        for turn in whose:
            self._pass_on(turn)

    def _pass_on(self, turn: _Turn) -> None:
        turns = self._lanes.get(turn.lane)
        if not turns:
            # Closed meanwhile.
            return
        if turns[0] is turn:
            turns.popleft()
        if not turns:
            del self._lanes[turn.lane]
        elif turns[0].task is None and not self._is_closed:
            self._begin(turns[0])

    def _begin(self, turn: _Turn) -> None:
        # Not by the program's own factory, which may begin it at once (3.12): thousands would begin within each other.
        task = self._context.run(partial(asyncio.Task, self._run(turn), loop=self._loop))
        # First: what was made, and not noted, finds that another has its turn.
        turn.task = task
        self._tasks.add(task)
        task.add_done_callback(Owed(self._loop, lambda ended: self._on_end(turn, ended)))

    def _on_end(self, turn: _Turn, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not turn.has_ended and not self._is_closed:
            # An exception has cut into the task itself.
            self._finish(turn, None, None if task.cancelled() else task.exception())
        if not turn.keeps_lane:
            self._pass_on(turn)
        self._look_for_end()

    async def _run(self, turn: _Turn) -> None:
        if turn.task is not asyncio.current_task():
            return
        call = turn.call
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
        except BaseException as raised:
            error = raised
        self._finish(turn, result, error)
        if isinstance(error, KeyboardInterrupt):
            raise error

    def _finish(self, turn: _Turn, result: Any, error: BaseException | None) -> None:
        turn.has_ended = True
        try:
            turn.keeps_lane = turn.call.done(result, error)
        except Exception as raised:
            self.note_error(raised)

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
