from asyncio import AbstractEventLoop, Future
from collections.abc import Callable, Generator
from contextvars import Context
from typing import Any

from glec_fast.durable.outcomes import DropReason
from glec_fast.outbox.handle import PublishHandle

class Wait:
    """What one task waits for, once. To a task it is a future; but those that are over at once go on together.

    Awaited, it returns None, or True where nobody knows any more; or raises what became of its handle.
    """

    _asyncio_future_blocking: bool
    def __await__(self) -> Generator[Any, None, bool | None]: ...
    def get_loop(self) -> AbstractEventLoop: ...
    def add_done_callback(self, callback: Callable[[Wait], object], *, context: Context) -> None: ...
    def cancel(self, msg: object = None) -> bool: ...
    def done(self) -> bool: ...
    def cancelled(self) -> bool: ...
    def result(self) -> None: ...

class Undurable:
    """Who waits until a message is on disk. For the loop's thread."""

    def __init__(self, loop: AbstractEventLoop) -> None: ...
    def wait_for(self, message_id: int) -> Wait:
        """What is over once it is, or nobody knows any more. Ids come in their order, or wait for those before them."""

    def let_go(self, committed_id: int) -> None:
        """Every message up to this one is on disk."""

    def let_all_go(self) -> None:
        """Whoever waits is to look what became of it."""

    def __len__(self) -> int: ...

class Fate:
    """The attribute `_fate` of a handle: setting it, by any thread, lets those go on who wait for the handle.

    fate, waits: the slots that have it, and who waits, each in a loop of its own.
    """

    def __init__(self, fate: Any, waits: Any) -> None: ...
    def __get__(self, handle: PublishHandle, kind: type | None = None) -> DropReason | bool | None: ...
    def __set__(self, handle: PublishHandle, fate: DropReason | bool | None) -> None: ...

def wait_for_end(handle: PublishHandle) -> Generator[Any]:
    """`__await__` of a handle that has a `Fate`. Raises as `DeliveryHandle.delivered`."""

def set_result(future: Future[None]) -> None:
    """Unless it is over already, as by a cancellation."""

class Owed:
    """What the loop calls: `step`, and once more, before long, where an exception has cut into it, which goes on.

    step: may be called again at any time, also behind a call of it that was not cut short, to do what there is to do.
    """

    def __init__(self, loop: AbstractEventLoop, step: Callable[..., object]) -> None: ...
    def __call__(self, *arguments: object) -> None: ...
