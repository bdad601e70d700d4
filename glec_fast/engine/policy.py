"""What a client does after a failure, and when it tries again: paho's way. The manager has its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

from glec_fast.durable.outcomes import Dropped
from glec_fast.runtime._lock import Event


class Failed(Protocol):
    """What a policy may ask of the network thread that has failed."""

    def goes_on_behind(self) -> bool:
        """Pass over what failed; False where there is neither a connection nor another to be made."""

    def begins_anew(self) -> bool:
        """End the connection, wait, and have the next be made as the first; False where none is to be made."""


class Policy:
    """paho's. Called by whoever runs the loop, but for `on_dropped`, which the store's thread calls."""

    # Told of messages that will not be sent, before `on_drop`.
    on_dropped: Callable[[list[Dropped]], None] | None = None
    # Whether the thread of `loop_start` goes on where its first attempt fails.
    retries_first = True
    # The connection is to be left in order, and another one to be made.
    is_moving = False
    # Why the last attempt failed.
    connect_error: OSError | None = None

    def tick(self) -> float:
        """Do what is due; returns the seconds until something is."""
        return float("inf")

    def wait(self, interrupt: Event, delay_s: float) -> bool:
        """A part of the pause between two attempts; True where it was ended early."""
        return interrupt.wait(delay_s)

    def next_delay_s(self) -> float | None:
        """The pause before the next attempt; None for that of `reconnect_delay_set`."""
        return None

    def on_moving(self) -> None:
        """The connection is left now, as `is_moving` says."""

    def begin_attempt(self) -> None:
        """A connection is about to be made."""
        self.connect_error = None

    def fail_attempt(self, error: OSError) -> bool:
        """It was not made. True where the loop that makes the first connection is to make the next as well."""
        self.connect_error = error
        return False

    def goes_on(self, failed: Failed, error: Exception) -> bool:
        """The loop of the network thread has raised: whether it begins again."""
        threading.excepthook(
            threading.ExceptHookArgs((type(error), error, error.__traceback__, threading.current_thread()))
        )
        return failed.goes_on_behind()
