"""A handle that can be awaited."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from glec_fast.aio._waiting import Fate, wait_for_end
from glec_fast.errors import UnsupportedError
from glec_fast.outbox.handle import PublishHandle

if TYPE_CHECKING:
    from glec_fast.aio._waiting import Wait


class DeliveryHandle(PublishHandle):
    """One accepted message. Await it, or `delivered()`, for the broker's acknowledgement; as often as wanted.

    message_id, qos, `is_published` as in `PublishHandle`. Its `wait_` methods block, and are for other threads.
    """

    __slots__ = ("_waits",)

    # The last of those who wait, each in its own loop.
    _waits: Wait | None
    __await__ = wait_for_end

    def wait_for_publish(self, timeout: float | None = None) -> None:
        """See `PublishHandle.wait_for_publish`. Raises UnsupportedError in a loop, which nothing would be sent by."""
        if self._fate is None and asyncio._get_running_loop() is not None:
            raise UnsupportedError(
                "wait_for_publish blocks the loop that is to send the message: await the handle, with "
                "asyncio.wait_for where there is a time-out"
            )
        super().wait_for_publish(timeout)

    async def delivered(self) -> None:
        """Return once the broker has taken the message over (QoS 0: once it has left).

        Raises PublishError where it was dropped, and QueueClosedError where its queue was closed first: what was on
        disk is sent by the file's next use. Cancelled, it leaves the message as it is.
        """
        await self


# Over the slot of that name.
DeliveryHandle._fate = Fate(vars(PublishHandle)["_fate"], vars(DeliveryHandle)["_waits"])  # type: ignore[assignment, misc]
