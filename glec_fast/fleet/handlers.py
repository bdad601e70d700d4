"""Threads that run what the program does with messages: never the network's, and never more than were allowed."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, Protocol, TypeAlias

from glec_fast.runtime._lock import Condition
from glec_fast.runtime.log import shown
from glec_fast.runtime.summing_log import SummingLog
from glec_fast.runtime.thread import Thread

# A thread that has had nothing to do for so long ends.
_IDLE_S = 30.0

# Called with the handler's result and what it raised, in the thread that ran it; True keeps the lane until `free`.
Done: TypeAlias = Callable[[Any, BaseException | None], bool]


class Call(NamedTuple):
    """A program's handler, with what it is called, and who hears what came of it."""

    handler: Callable[..., Any]
    arguments: tuple[Any, ...]
    done: Done


class Executor(Protocol):
    """Whatever runs handlers: `HandlerPool`, or a loop of the program's own. Thread-safe; it does not wait."""

    error_count: int
    # Whether a handler may be a coroutine function.
    runs_coroutines: bool

    def submit(self, lane: Hashable, call: Call) -> bool:
        """Have it run behind all that the lane has; False after `close`."""

    def go_on(self, lane: Hashable, call: Call) -> None:
        """Have the lane, which was kept by its first call, run this one in its place."""

    def free(self, lane: Hashable) -> None:
        """The lane was kept: its next call may begin."""

    def tick(self) -> None:
        """Now and then: what could not begin is tried again."""

    def note_error(self, error: BaseException) -> None:
        """A handler has failed."""

    def close(self, timeout_s: float) -> bool:
        """Begin no call any more, and wait for those that run; False after the time-out."""


class HandlerPool:
    """Runs calls, those of one lane one after another in their order, and several lanes at once. See `Executor`.

    How many calls wait is for whoever submits them to bound. thread_count: threads at most; they start when needed.
    """

    runs_coroutines = False

    def __init__(self, thread_count: int, log: SummingLog) -> None:
        self._thread_count = thread_count
        self._log = log
        self._changed = Condition()
        # Of each lane that has any, its calls, of which the first runs, is about to, or keeps the lane.
        self._lanes: dict[Hashable, deque[Call]] = {}
        self._ready: deque[Hashable] = deque()
        self._threads: list[Thread] = []
        # Threads that look for work, or are about to.
        self._idle_count = 0
        self._is_closed = False
        self.error_count = 0

    def submit(self, lane: Hashable, call: Call) -> bool:
        """See `Executor`."""
        with self._changed:
            if self._is_closed:
                return False
            calls = self._lanes.get(lane)
            if calls is not None:
                calls.append(call)
            else:
                self._lanes[lane] = deque([call])
                self._make_ready(lane)
        self._look_for_threads()
        return True

    def go_on(self, lane: Hashable, call: Call) -> None:
        """See `Executor`."""
        with self._changed:
            calls = self._lanes.get(lane)
            if calls is not None:
                calls[0] = call
                self._make_ready(lane)
        self._look_for_threads()

    def free(self, lane: Hashable) -> None:
        """See `Executor`."""
        with self._changed:
            calls = self._lanes.get(lane)
            if calls is None:
                # Closed meanwhile.
                return
            calls.popleft()
            if calls:
                self._make_ready(lane)
            else:
                del self._lanes[lane]
        self._look_for_threads()

    def _make_ready(self, lane: Hashable) -> None:
        """The caller holds the lock, and looks for threads behind it."""
        self._ready.append(lane)
        self._changed.notify_all()

    def _look_for_threads(self) -> None:
        """Start those that are missing. Where the system has none, those that run go on, and `tick` tries again."""
        try:
            with self._changed:
                while not self._is_closed and self._is_short_of_threads():
                    thread = Thread(target=self._run, name="glec-fast-handler", daemon=True)
                    thread.start()
                    self._threads.append(thread)
                    self._idle_count += 1
        except (RuntimeError, MemoryError) as error:
            text = f"no thread can be started for handlers, so that messages wait: {error}"
            self._log.note(logging.ERROR, "threads for handlers that could not be started", str(error), text=text)

    def _is_short_of_threads(self) -> bool:
        return self._idle_count < len(self._ready) and len(self._threads) < self._thread_count

    def tick(self) -> None:
        """See `Executor`."""
        if self._ready:
            self._look_for_threads()

    def note_error(self, error: BaseException) -> None:
        """See `Executor`."""
        self.error_count += 1
        self._log.note(logging.ERROR, "errors in handlers of messages", shown(error), error=error)

    def close(self, timeout_s: float) -> bool:
        """See `Executor`. In a handler it waits for no other."""
        with self._changed:
            self._is_closed = True
            self._ready.clear()
            self._lanes.clear()
            self._changed.notify_all()
            threads = list(self._threads)
        deadline_s = time.monotonic() + timeout_s
        if threading.current_thread() not in threads:
            for thread in threads:
                thread.join(max(deadline_s - time.monotonic(), 0.0))
        return not any(thread.is_alive() for thread in threads)

    # ---- its threads

    def _run(self) -> None:
        while (found := self._next()) is not None:
            lane, call = found
            keeps_lane = self._do(call)
            with self._changed:
                self._idle_count += 1
            if not keeps_lane:
                self.free(lane)

    def _do(self, call: Call) -> bool:
        """True where the lane is kept."""
        result: Any = None
        error: BaseException | None = None
        try:
            result = call.handler(*call.arguments)
        except BaseException as raised:
            # Also a SystemExit: it is the handler's end, not the pool's.
            error = raised
        try:
            return call.done(result, error)
        except Exception as raised:
            self.note_error(raised)
            return False

    def _next(self) -> tuple[Hashable, Call] | None:
        with self._changed:
            try:
                while not self._ready:
                    if self._is_closed or not self._changed.wait(_IDLE_S):
                        self._threads.remove(threading.current_thread())  # type: ignore[arg-type]
                        return None
                lane = self._ready.popleft()
                return lane, self._lanes[lane][0]
            finally:
                self._idle_count -= 1
