"""A thread whose end can be waited for again, where an exception has cut the first wait short."""

from __future__ import annotations

import os
import threading
from typing import Any

from glec_fast.runtime._lock import Event


def is_kept_in(error: BaseException) -> bool:
    """True where what the program's own code raised ends nothing of ours.

    That is also a SystemExit in a thread of ours, as nothing is raised there from outside.
    """
    return isinstance(error, Exception) or isinstance(threading.current_thread(), Thread)


class Thread(threading.Thread):
    """As threading.Thread, whose own `join`, where a signal's handler raises in it, takes the thread for ended.

    In a forked child, which has no other threads, it has ended.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._over = Event()
        self._process_id = os.getpid()

    def run(self) -> None:
        """The target, as of threading.Thread."""
        try:
            super().run()
        finally:
            self._over.set()

    def join(self, timeout: float | None = None) -> None:
        """Wait until it has ended, at most `timeout` seconds; not for one that has not begun."""
        if self.ident is not None and self._process_id == os.getpid() and self._over.wait(timeout):
            super().join()

    def is_alive(self) -> bool:
        """True from its start to its end."""
        return self.ident is not None and not self._over.is_set() and self._process_id == os.getpid()
