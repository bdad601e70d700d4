"""What comes for one filter, as an asynchronous iterator."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from glec_fast._paho import MQTTMessage
    from glec_fast.errors import SubscriptionRefusedError


class Stream:
    """Of one filter, on its loop. `handle` is the filter's handler: it is over once whoever iterates is done with the
    message, so that it is acknowledged then, and the next one comes. What nobody asks for stays in the inbox.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._offered: tuple[MQTTMessage, asyncio.Future[None]] | None = None
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._refused: SubscriptionRefusedError | None = None
        # Of the message that is offered, or was taken.
        self._finished: asyncio.Future[None] | None = None
        self._is_closed = self._has_ended = False

    async def handle(self, message: MQTTMessage) -> None:
        """A message has come; returns once it was handled."""
        if self._has_ended:
            raise asyncio.CancelledError
        if self._is_closed:
            return
        self._finished = finished = self._loop.create_future()
        # It was granted since.
        self._refused = None
        self._offered = message, finished
        self._wake_one()
        await finished

    def refuse(self, error: SubscriptionRefusedError) -> None:
        """The broker refuses the filter: whoever waits for messages, or is the next to, hears of it."""
        self._refused = error
        self._wake_one()

    def close(self) -> None:
        """The manager ends. What is not handled by now is the broker's still: `handle` is cancelled."""
        self._has_ended = True
        if self._finished is not None:
            self._finished.cancel()
        self.end()

    def end(self) -> None:
        """Nobody wants the filter's messages any more: what comes, or waits, counts as handled."""
        self._is_closed = True
        if self._offered is not None:
            _set(self._offered[1])
            self._offered = None
        while self._waiting:
            self._wake_one()

    def _wake_one(self) -> None:
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_result(None)
                return

    async def take(self) -> tuple[MQTTMessage, asyncio.Future[None]] | None:
        """The next message, and what to set once it was handled; None where none comes any more."""
        while not self._is_closed:
            if self._refused is not None:
                error, self._refused = self._refused, None
                raise error
            if self._offered is not None:
                offered, self._offered = self._offered, None
                return offered
            future = self._loop.create_future()
            self._waiting.append(future)
            try:
                await future
            except asyncio.CancelledError:
                if not future.cancelled():
                    # It was woken for a message that another can have.
                    self._wake_one()
                raise
        return None

    def finish(self, finished: asyncio.Future[None]) -> None:
        """From any thread, as a collector runs in any. On the loop at once, as the manager may end next."""
        try:
            if asyncio.get_running_loop() is self._loop:
                _set(finished)
                return
        except RuntimeError:
            # A thread without a loop.
            pass
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(_set, finished)


class Messages(AsyncIterator["MQTTMessage"]):
    """What `AsyncMQTTManager.messages` returns. For one task at a time; several of one filter share what comes."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        # Of the message that was given out last.
        self._finished: asyncio.Future[None] | None = None

    def __aiter__(self) -> Messages:
        return self

    async def __anext__(self) -> MQTTMessage:
        self._finish()
        taken = await self._stream.take()
        if taken is None:
            raise StopAsyncIteration
        message, self._finished = taken
        return message

    async def aclose(self) -> None:
        """The last message was handled, and no other is asked for."""
        self._finish()

    def _finish(self) -> None:
        finished, self._finished = self._finished, None
        if finished is not None:
            self._stream.finish(finished)

    def __del__(self) -> None:
        # A loop that was left by `break`, or by an exception: what its body had, it has handled.
        self._finish()


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
