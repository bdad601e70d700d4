from collections.abc import Callable
from types import TracebackType
from typing import Final, NoReturn, Protocol

class Orders(Protocol):
    """A set, or what passes for one."""

    def __contains__(self, order: object, /) -> bool: ...
    def add(self, order: tuple[str, str], /) -> object: ...

def watch(orders: Orders | None) -> None:
    """For tests: note which lock a thread waited for, or might have, while it had which: (the name of this, of that).

    `orders` is asked for each, and gets what it has not; it may not raise. None ends it. Call it while no lock is held.
    """

def be_green(
    get_current: Callable[[], object] | None,
    pause: Callable[[float], object] | None,
    new_lock: Callable[[], object] | None,
) -> None:
    """Hold and wait as greenlets, by what their library has for it; None each for the system's threads.

    get_current: the greenlet that asks. pause: lets others run, for at least so many seconds. new_lock: as
    `threading.Lock`. Call it while nothing is held.
    """

class Hold:
    """Gives a lock back once: at the end of a with statement, or where nothing refers to this any more."""

    @property
    def is_held(self) -> bool:
        """False where the lock did not come free in time, or was given back."""
    def __enter__(self) -> bool: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

class Lock:
    """A mutex, for a with statement, that no exception leaves held, whenever it comes. Re-entrant.

    A wait for it ends where a signal's handler raises. name: its owner's and its own, which `watch` shows.
    """

    name: Final[str]

    def __init__(self, name: str = "") -> None: ...
    def attempt(self, timeout_s: float = 0.0) -> Hold:
        """For a with statement, whose value says whether the lock came free within `timeout_s`, below 0 for any time.

        Not re-entrant: False at once where this thread has it.
        """
    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """As threading.Lock's, for code that is not ours, or is C: in Python an exception may leave the lock held.

        Re-entrant where it waits without end, as a with statement is; else as `attempt`.
        """
    def release(self) -> None:
        """As threading.Lock's."""
    @property
    def is_mine(self) -> bool:
        """True where the calling thread has it: a signal's handler, or a finaliser, has cut into what it guards."""
    def locked(self) -> bool:
        """True while a thread holds it."""
    def __enter__(self) -> None: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

class Condition:
    """As threading.Condition. For a with statement; `wait` and `notify_all` are for whoever holds its lock.

    lock: one of its own where None.
    """

    def __init__(self, lock: Lock | None = None) -> None: ...
    def __enter__(self) -> None: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...
    def forbid(self, refuse: Callable[[], NoReturn]) -> None:
        """Have `refuse()`, which raises, be called by whoever wants it from now on."""
    def wait(self, timeout_s: float | None = None) -> bool:
        """Let go of the lock until `notify_all`; False after the time-out. It is held again, also where this raises."""
    def wait_for(self, predicate: Callable[[], object], timeout_s: float | None = None) -> object:
        """Wait until `predicate()` is true, or the time-out; returns its last value."""
    def change(self, owner: object, name: str, value: object) -> None:
        """Set an attribute of `owner`, and wake all who wait: in one step."""
    def notify_all(self) -> None:
        """Wake all who wait."""

class Event:
    """As threading.Event."""

    def is_set(self) -> bool: ...
    def set(self) -> None: ...
    def clear(self) -> None: ...
    def wait(self, timeout_s: float | None = None) -> bool:
        """Until it is set; False after the time-out."""

class CallbackMark:
    """Stands where paho holds a lock during a callback: it only says which threads are in one."""

    def __enter__(self) -> None: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...
    @property
    def is_anywhere(self) -> bool:
        """True while any thread is in one."""
    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """False in a callback: paho then leaves the writing to the loop."""
    def release(self) -> None:
        """Does nothing: `acquire` took nothing."""
