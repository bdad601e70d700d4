"""The order in which locks may be taken, and a watch over it: two threads that keep to one order do not wait in a ring.

`LOCKS` says what each guards, and which may be taken while it is held; whatever those allow may be, too. Not judged is
a wait that has an end, as `attempt` with a limit has: it cannot last. What only one thread takes is under no lock.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from graphlib import TopologicalSorter
from typing import NamedTuple

from glec_fast.runtime import _lock


class Guard(NamedTuple):
    """What a lock guards, who takes it, and which may be taken under it."""

    guards: str
    threads: str
    then: tuple[str, ...] = ()


# By the name that each was made with. The network thread is whoever runs a client's loop.
LOCKS: dict[str, Guard] = {
    "MQTTManager._lock": Guard("whether it is connected or closed, and its counters", "all", ("Outbox.lock",)),
    "Inbox._lock": Guard("which messages are held, and which routes there are", "all"),
    "Incoming._lock": Guard("that there is one record of commands", "all"),
    "Commands._lock": Guard("which commands run, and who waits for their replies", "all"),
    "Link.lock": Guard(
        "the socket's bytes and the parser: one thread at either",
        "the network thread, and who publishes",
        ("Outbox.lock", "WebSocket._lock"),
    ),
    "Outbox._pulling": Guard(
        "reading rows and encoding them, one thread at a time", "network", ("Reader.lock", "Outbox.lock")
    ),
    "Writer.lock": Guard(
        "the writer's connection, through a transaction",
        "the store's, who forks, and the network thread for an image, where it waits for 5 ms at most",
        ("Reader.lock", "Outbox.lock", "QueueLock", "_log_handler"),
    ),
    "Reader.lock": Guard(
        "the reader's connection and position, and which rows may be dropped",
        "the network thread and the store's, and who forks",
        ("Outbox.lock", "Store._lock", "SummingLog._lock"),
    ),
    "SummingLog._lock": Guard("what the log has not said yet", "all"),
    "Store._lock": Guard("what waits for a transaction, the counters, the state", "all", ("Condition.lock",)),
    # A handler that has cut into what it guards may publish.
    "Outbox.lock": Guard("the session, and what is finished", "all", ("Store._lock",)),
    "QueueLock": Guard("which files this process holds", "who opens a file, and the store's as it lets go"),
    # Of a handle, an event, a job.
    "Condition.lock": Guard("one flag and who waits for it", "all"),
    "WebSocket._lock": Guard("frames on their way out", "the network thread, and who publishes"),
    "Attempt._lock": Guard("the socket of a connection that is being made", "network, and who closes"),
    "Weaknesses._lock": Guard("what the broker was seen to lack", "network, and who asks for figures"),
    # Of the program's log, whose handlers may publish: nothing is logged under what publishing takes.
    "_log_handler": Guard("what a handler of the log writes to", "all"),
    # paho's own, in whose places are ours.
    "_callback_mutex": Guard("which callbacks are set", "all"),
    "_in_message_mutex": Guard("what paho has received and not finished", "network"),
    "_mid_generate_mutex": Guard("paho's last packet id", "all"),
    "_msgtime_mutex": Guard("when something was last sent and received", "all"),
    "_out_message_mutex": Guard("what a program looks at of that which waits", "all", ("Outbox.lock",)),
    "_reconnect_delay_mutex": Guard("the pause before the next attempt", "all"),
}


def allowed() -> set[tuple[str, str]]:
    """Each pair of a lock and one that may be waited for while it is held."""
    under: dict[str, set[str]] = {}
    for name in TopologicalSorter({name: guard.then for name, guard in LOCKS.items()}).static_order():
        under[name] = set(LOCKS[name].then).union(*(under[each] for each in LOCKS[name].then))
    return {(name, each) for name, names in under.items() for each in names}


class Watch(set[tuple[str, str]]):
    """What is allowed; whatever else is seen is in `violations`, with the stack of the thread that did it."""

    def __init__(self) -> None:
        super().__init__(allowed())
        self.violations: list[str] = []

    def add(self, order: tuple[str, str], /) -> None:
        held, taken = order
        stack = traceback.extract_stack()[:-1]
        if any(frame.name == "__del__" for frame in stack):
            # It cuts in anywhere, and has the locks of an object that no other thread has any more.
            return
        self.violations.append(f"{taken or 'a lock without a name'} was taken under {held or 'one'}:")
        self.violations += traceback.format_list(stack)

    def start(self) -> None:
        """In this process, in every thread, until `stop`."""
        _lock.watch(self)

    def stop(self) -> None:
        _lock.watch(None)

    def take_violations(self) -> str:
        """What was seen since the last time; "" for nothing."""
        found, self.violations = self.violations, []
        return "\n".join(found)


class WatchedHandler(logging.Handler):
    """As a handler of a program's: it takes a lock of its own, under which other threads may publish."""

    def __init__(self) -> None:
        super().__init__()
        self._own = _lock.Lock("_log_handler")

    def emit(self, _record: logging.LogRecord) -> None:
        with self._own:
            pass


class FatalWatch(Watch):
    """For a child that may be killed before anybody asks: it ends there."""

    def add(self, order: tuple[str, str], /) -> None:
        super().add(order)
        sys.stderr.write(self.take_violations())
        sys.stderr.flush()
        os._exit(1)


@contextmanager
def held_elsewhere(lock: _lock.Lock) -> Iterator[None]:
    """By another thread: to this one it is as if that were slow."""
    is_held, is_over = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            is_held.set()
            is_over.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    is_held.wait()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
