"""Threads that run what the program does with messages: never the network's, and never more than were allowed."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable

from glec_fast.runtime._lock import Condition
from glec_fast.runtime.summing_log import SummingLog
from glec_fast.runtime.thread import Thread

# A thread that has had nothing to do for so long ends.
_IDLE_S = 30.0


class HandlerPool:
    """Runs calls, those of one lane one after another in their order, and several lanes at once. Thread-safe.

    A call that returns True keeps its lane, until `free` says that the next may begin. How many calls wait is for
    whoever submits them to bound. thread_count: threads at most; they start when needed.
    """

    def __init__(self, thread_count: int, log: SummingLog) -> None:
        self._thread_count = thread_count
        self._log = log
        self._changed = Condition()
        # Of each lane that has any, its calls. The first of one that is `_busy` runs.
        self._lanes: dict[Hashable, deque[Callable[[], object]]] = {}
        self._ready: deque[Hashable] = deque()
        self._threads: list[Thread] = []
        self._idle_count = 0
        self._is_closed = False
        self.error_count = 0

    def submit(self, lane: Hashable, call: Callable[[], object]) -> bool:
        """Have `call` run behind all that the lane has; False after `close`."""
        with self._changed:
            if self._is_closed:
                return False
            calls = self._lanes.get(lane)
            if calls is not None:
                calls.append(call)
                return True
            self._lanes[lane] = deque([call])
            self._ready.append(lane)
            if self._idle_count < len(self._ready) and len(self._threads) < self._thread_count:
                thread = Thread(target=self._run, name="glec-fast-handler", daemon=True)
                self._threads.append(thread)
                thread.start()
            else:
                self._changed.notify_all()
            return True

    def is_own_thread(self) -> bool:
        """True in a thread of the pool, which must not wait for itself."""
        return threading.current_thread() in self._threads

    def close(self, timeout_s: float) -> bool:
        """Begin no call any more, and wait for those that run; False after the time-out.

        In one of them it waits for no other.
        """
        with self._changed:
            self._is_closed = True
            self._ready.clear()
            self._lanes.clear()
            self._changed.notify_all()
            threads = list(self._threads)
        deadline_s = time.monotonic() + timeout_s
        if not self.is_own_thread():
            for thread in threads:
                thread.join(max(deadline_s - time.monotonic(), 0.0))
        return not any(thread.is_alive() for thread in threads)

    def _run(self) -> None:
        while (lane := self._next_lane()) is not None:
            with self._changed:
                calls = self._lanes.get(lane)
            if calls is None:
                continue
            keeps_lane: object = False
            try:
                keeps_lane = calls[0]()
            except BaseException as error:
                # Also a SystemExit: it is the handler's end, not the pool's.
                self.note_error(error)
            if keeps_lane is not True:
                self.free(lane)

    def note_error(self, error: BaseException) -> None:
        """A handler has failed."""
        self.error_count += 1
        self._log.note(logging.ERROR, "errors in handlers of messages", repr(error), error=error)

    def _next_lane(self) -> Hashable | None:
        with self._changed:
            self._idle_count += 1
            try:
                while not self._ready:
                    if self._is_closed or not self._changed.wait(_IDLE_S):
                        self._threads.remove(threading.current_thread())  # type: ignore[arg-type]
                        return None
                return self._ready.popleft()
            finally:
                self._idle_count -= 1

    def free(self, lane: Hashable) -> None:
        """The lane's first call is over. From any thread."""
        with self._changed:
            calls = self._lanes.get(lane)
            if calls is None:
                # Closed meanwhile.
                return
            calls.popleft()
            if calls:
                self._ready.append(lane)
                self._changed.notify_all()
            else:
                del self._lanes[lane]
