"""A handle that can be awaited."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from contextlib import suppress
from typing import Any

from glec_fast.durable.outcomes import DropReason
from glec_fast.outbox.handle import PublishHandle
from glec_fast.runtime._lock import Condition

# The slot under the property of that name.
_FATE: Any = vars(PublishHandle)["_fate"]


class DeliveryHandle(PublishHandle):
    """One accepted message. Await it, or `delivered()`, for the broker's acknowledgement; as often as wanted.

    message_id, qos, `is_published` as in `PublishHandle`. Its `wait_` methods block, and are for other threads.
    """

    __slots__ = ("_futures",)

    def __init__(
        self,
        mid: int,
        condition: Condition,
        qos: int,
        wait_durable: Callable[[int, float | None], bool] | None = None,
    ) -> None:
        # Of those who wait, each in its own loop.
        self._futures: list[asyncio.Future[None]] | None = None
        super().__init__(mid, condition, qos, wait_durable)

    async def delivered(self) -> None:
        """Return once the broker has taken the message over (QoS 0: once it has left).

        Raises PublishError where it was dropped, and QueueClosedError where its queue was closed first: what was on
        disk is sent by the file's next use. Cancelled, it leaves the message as it is.
        """
        await self

    def __await__(self) -> Generator[Any, None, None]:
        if self._fate is None:
            future = asyncio.get_running_loop().create_future()
            if self._futures is None:
                self._futures = [future]
            else:
                self._futures.append(future)
            # Unless it ended meanwhile, and did not see who waits.
            if self._fate is None:
                yield from future
        self._raise_for_end()

    @property
    def _fate(self) -> DropReason | bool | None:
        return _FATE.__get__(self)  # type: ignore[no-any-return]

    @_fate.setter
    def _fate(self, fate: DropReason | bool | None) -> None:
        # By any thread: the loop that has the network, the store's at a drop, whoever closes.
        _FATE.__set__(self, fate)
        if fate is not None and self._futures is not None:
            futures, self._futures = self._futures, None
            for future in futures:
                _end(future)


def _end(future: asyncio.Future[None]) -> None:
    loop = future.get_loop()
    if asyncio._get_running_loop() is loop:
        _set(future)
        return
    # Who waited in a loop that is closed waits no longer.
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(_set, future)


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
