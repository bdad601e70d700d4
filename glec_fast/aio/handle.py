"""A handle that can be awaited."""

from __future__ import annotations

from typing import TYPE_CHECKING

from glec_fast.aio._waiting import Fate, wait_for_end
from glec_fast.outbox.handle import PublishHandle

if TYPE_CHECKING:
    import asyncio


class DeliveryHandle(PublishHandle):
    """One accepted message. Await it, or `delivered()`, for the broker's acknowledgement; as often as wanted.

    message_id, qos, `is_published` as in `PublishHandle`. Its `wait_` methods block, and are for other threads.
    """

    __slots__ = ("_futures",)

    # Of those who wait, each in its own loop.
    _futures: list[asyncio.Future[None]] | None
    __await__ = wait_for_end

    async def delivered(self) -> None:
        """Return once the broker has taken the message over (QoS 0: once it has left).

        Raises PublishError where it was dropped, and QueueClosedError where its queue was closed first: what was on
        disk is sent by the file's next use. Cancelled, it leaves the message as it is.
        """
        await self


# Over the slot of that name.
DeliveryHandle._fate = Fate(vars(PublishHandle)["_fate"], vars(DeliveryHandle)["_futures"])  # type: ignore[assignment, misc]
