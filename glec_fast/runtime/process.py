"""What becomes of a process's stores and clients when it ends, and in its copies that `os.fork` makes.

A normal end writes what was accepted. A forked child has neither the threads nor the right to the file and the
connection: it lets go of its copies of the descriptors, sends and writes nothing, and whatever is asked of what it
inherited raises ForkedError.
"""

from __future__ import annotations

import atexit
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn, Protocol, TypeVar
from weakref import ref

from glec_fast.errors import ForkedError, UnsupportedError
from glec_fast.runtime._lock import Condition
from glec_fast.runtime.log import logger

# For all stores of the process together: long enough for a disk that is busy, short enough for a service manager.
EXIT_TIMEOUT_S = 5.0
# Of that, for what is on its way to a socket.
_HAND_OVER_TIMEOUT_S = 1.0
# A transaction of a disk that works is over by then.
_STILL_TIMEOUT_S = 1.0
_OURS = ("glec_fast", "paho")


class Ending(Protocol):
    """Told of the end of its process. Deadlines are of `time.monotonic`, and the same for all."""

    def _process_ends(self, deadline_s: float) -> None:
        """Give what was accepted to whoever keeps it, by then."""

    def _process_ended(self, deadline_s: float) -> None:
        """Wait until it is on disk."""


class Inherited(Protocol):
    """Told of a fork, in the child."""

    def _process_forked(self, pid: int) -> None:
        """Let go of what is the parent's, process `pid`."""


class Still(Inherited, Protocol):
    """Told of a fork beforehand."""

    def _before_fork(self, deadline_s: float) -> None:
        """Have no thread within a library that holds locks of its own; by then, or not at all."""

    def _after_fork(self) -> None:
        """In the parent: go on."""


T = TypeVar("T")


class _Members(dict[int, "ref[T]"]):
    """Weakly, and by identity: a program's subclass may have no hash."""

    def add(self, member: T) -> None:
        key = id(member)

        def forget(_: object) -> None:
            self.pop(key, None)

        self[key] = ref(member, forget)

    def discard(self, member: T) -> None:
        self.pop(id(member), None)

    def alive(self) -> Iterator[T]:
        found = (each() for each in list(self.values()))
        return (each for each in found if each is not None)


_ending: _Members[Ending] = _Members()
_inherited: _Members[Inherited] = _Members()
_still: _Members[Still] = _Members()
_pid = os.getpid()
_is_exit_watched = False


# ---- the end of the process


def watch_exit(member: Ending) -> None:
    """Tell `member` when the interpreter ends, until `leave`."""
    global _is_exit_watched
    _ending.add(member)
    if _is_exit_watched:
        return
    _is_exit_watched = True
    atexit.register(_on_exit)
    multiprocessing = sys.modules.get("multiprocessing.process")
    if multiprocessing is not None and multiprocessing.parent_process() is not None:
        # Its workers end by os._exit, and run their own handlers before; this one behind the program's.
        from multiprocessing.util import Finalize

        Finalize(None, _on_exit, exitpriority=-1_000_000)


def _on_exit() -> None:
    now_s = time.monotonic()
    # A client before its store, which was there first. All begin, so that none waits for another's disk.
    members = list(_ending.alive())[::-1]
    calls = [(member._process_ends, now_s + _HAND_OVER_TIMEOUT_S) for member in members]
    calls += [(member._process_ended, now_s + EXIT_TIMEOUT_S) for member in members]
    for call, deadline_s in calls:
        try:
            call(deadline_s)
        except Exception:  # noqa: PERF203 - each is told, whatever became of the others
            logger.exception("what was accepted may not all be on disk")


# ---- its copies


def watch_forks(member: Inherited) -> None:
    """Tell `member` in a forked child, until it is collected or `leave`."""
    _inherited.add(member)


def watch_forks_beforehand(member: Still) -> None:
    """As `watch_forks`; and before a fork, and in the parent behind it."""
    _still.add(member)
    _inherited.add(member)


def leave(member: Any) -> None:
    """Tell it of nothing any more."""
    for members in (_ending, _inherited, _still):
        members.discard(member)


def _before_fork() -> None:
    deadline_s = time.monotonic() + _STILL_TIMEOUT_S
    for member in _still.alive():
        member._before_fork(deadline_s)


def _after_fork() -> None:
    for member in _still.alive():
        member._after_fork()


def _in_child() -> None:
    global _pid, _is_exit_watched
    parent, _pid = _pid, os.getpid()
    _is_exit_watched = False
    inherited = list(_inherited.alive())
    for members in (_ending, _inherited, _still):
        members.clear()
    for member in inherited:
        try:
            member._process_forked(parent)
        except Exception:  # noqa: PERF203 - each is told, whatever became of the others
            logger.exception("a forked child could not let go of all that is its parent's")


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_in_child)


class OfOneProcess:
    """What has threads, files and locks, and so cannot be handed to another process."""

    def __reduce__(self) -> NoReturn:
        raise UnsupportedError(f"a {type(self).__name__} cannot be handed to another process: make one there")


def forbid(member: object, pid: int, quiet: Mapping[str, object]) -> None:
    """Have each method of ours and of paho's raise ForkedError, on this object alone.

    quiet: those that return this instead, as they ask for nothing that is not so already.
    """
    kind = type(member)
    attributes = vars(member)
    refuse = _refusal(pid)
    for name in dir(kind):
        owner = next((each for each in kind.__mro__ if name in vars(each)), object)
        is_ours = owner.__module__.partition(".")[0] in _OURS and not name.startswith("__")
        if is_ours and callable(vars(owner)[name]):
            attributes[name] = refuse
    for name, result in quiet.items():
        attributes[name] = _returning(result)


def _refusal(pid: int) -> Callable[..., NoReturn]:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise ForkedError(pid)

    return refuse


def _returning(result: object) -> Callable[..., object]:
    def answer(*_: object, **__: object) -> object:
        return result

    return answer


class Elsewhere:
    """Stands in a forked child for what is of use in the parent alone."""

    def __init__(self, pid: int) -> None:
        self._pid = pid

    def __getattr__(self, name: str) -> NoReturn:
        raise ForkedError(self._pid)


def forbid_waiting(condition: Condition, pid: int) -> None:
    """Nobody will notify those who wait for it; have them hear so at once."""
    condition.forbid(_refusal(pid))


def close_copy(sock: Any) -> None:
    """Close this process's copy of a socket, TLS or not; nothing is sent, and the parent's is as it was."""
    if sock is not None:
        descriptor = sock.detach()
        if descriptor >= 0:
            os.close(descriptor)
