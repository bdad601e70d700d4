"""What all parts of a store ask: whether it is in use, and whether its disk takes what was accepted."""

from __future__ import annotations

import threading

from glec_fast.errors import QueueClosedError, QueueReplacedError, QueueStorageError
from glec_fast.runtime._lock import Lock
from glec_fast.runtime.summing_log import SummingLog, is_in_a_handler


class Status:
    """Read by any thread, without a lock; each attribute says who sets it.

    lock: the store's, over all that its parts have in memory. Behind the writer's and the reader's. log: what an
    operator reads of the store.
    """

    def __init__(self, log: SummingLog | None = None) -> None:
        self.log = log or SummingLog()
        self.lock = Lock("Store._lock")
        # What a transaction needs; by the store, once.
        self.locks = [self.lock]
        # The store's own, by the committer.
        self.thread: threading.Thread | None = None
        # By whoever closes the store, under `lock`: the next transaction is the last. Then that it is over.
        self.is_closing = self.has_ended = False
        # By the end of the process: what is accepted from here on is on disk when `append` returns.
        self.is_ending = False
        # By the intake, under `lock`: why what was accepted last is not on disk.
        self.failure: QueueStorageError | None = None
        # By whoever met it, under `lock`, until it is mended: the file is damaged.
        self.damage: Exception | None = None
        # By the caretaker: the file has been made anew, or is about to be, and the reader and the writer are not both
        # there yet. Until then nothing may be written: what they have open has no name any more.
        self.is_moving_in = False
        # By the intake: another program has written to the file since rows were last read from the first on, so that
        # there may be some before the position, too.
        self.is_written_to = False
        # By the caretaker: the damage could not be mended; or another file has the name.
        self.unusable: QueueStorageError | None = None

    def is_own_thread(self) -> bool:
        """True in the store's own thread, for which nobody else writes."""
        return threading.current_thread() is self.thread

    def is_needed(self) -> bool:
        """True where nothing is written before the calling thread goes on.

        It is the store's own, or a signal's handler or a finaliser has cut into a section under one of its locks; or it
        is in a handler of the log, which the store's thread waits for as it logs.
        """
        if self.is_own_thread():
            return True
        # No generator: it would cost as much as all else that is asked here.
        for lock in self.locks:
            if lock.is_mine:
                return True
        return is_in_a_handler()

    @property
    def is_failing(self) -> bool:
        """True while nothing that is accepted would reach the disk."""
        return self.failure is not None or self.unusable is not None

    @property
    def is_damaged(self) -> bool:
        """See `Store.is_damaged`."""
        unusable = self.unusable
        if isinstance(unusable, QueueReplacedError):
            raise QueueReplacedError(str(unusable)) from unusable
        return unusable is not None or self.has_ended

    def refuse_if_closed(self) -> None:
        """Raises QueueClosedError after `close`."""
        if self.is_closing:
            raise QueueClosedError("the queue is closed: open it again to go on")

    def refuse_if_failing(self) -> None:
        """Raises QueueStorageError while the disk fails."""
        failure = self.unusable or self.failure
        if failure is not None:
            raise type(failure)(str(failure)) from failure
