"""An exception between any two steps of the loop's thread, in a program on asyncio that goes on.

A signal's handler that raises does so wherever that thread is: in a callback, where asyncio logs it and goes on, or
ends its loop with it, if it is a KeyboardInterrupt, and the program runs the loop again; or in a coroutine.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from glec_fast import MQTTManager
from glec_fast.aio import AsyncMQTTManager
from support.gateway import quick_config
from support.interrupts import StepTrace
from support.recording_broker import RecordingBroker, payload_of

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path

# Far more than anything takes that does not hang.
END_S = 20.0
MESSAGES = 4
INCOMING = 5
IDLE_S = 0.35
WAIT_S = 1.0


class Alarm(Exception):  # noqa: N818 - what a handler of a signal raises
    """One that asyncio logs, and goes on."""


class AsyncPoint:
    """One manager on a loop, interrupted once."""

    def __init__(self, directory: Path, act: str, qos: int, error: type[BaseException]) -> None:
        self.act, self.qos, self.error = act, qos, error
        self.broker = RecordingBroker()
        self.config = quick_config(f"tcp://127.0.0.1:{self.broker.port}", directory, protocol_version=4)
        self.loop = asyncio.new_event_loop()
        # What comes of the exception is looked at here, not in the log.
        self.loop.set_exception_handler(lambda *_: None)
        self.manager = AsyncMQTTManager(self.config)
        self.accepted: list[bytes] = []
        self.received: Counter[bytes] = Counter()
        self.found: list[str] = []
        self.is_entered = False
        self.number = 0

    def go(self, program: Callable[[], Coroutine[Any, Any, Any]], what: str) -> Any:
        """Run it on the loop, in bounded time."""
        task = self.loop.create_task(asyncio.wait_for(program(), END_S))
        while not task.done():
            # Whoever awaited what was cut into hears of it once more, and the loop of the run that it has ended.
            with suppress(self.error, asyncio.TimeoutError, RuntimeError):
                self.loop.run_until_complete(task)
        if isinstance(task.exception(), asyncio.TimeoutError):
            self.found.append(f"{what} hangs")
            return None
        return task.result()

    async def publish(self) -> Any:
        self.number += 1
        key = b"k%011d" % self.number
        handle = await self.manager.publish("t/" + key.decode(), payload_of(key, 40).decode(), self.qos)
        self.accepted.append(key)
        return handle

    @staticmethod
    def incoming(number: int) -> bytes:
        return payload_of(b"in%010d" % number, 12)

    def take(self, message: Any) -> None:
        self.received[bytes(message.payload)] += 1

    async def enter(self) -> None:
        await self.manager.__aenter__()
        self.is_entered = True

    async def begin(self) -> None:
        """What comes before the call that is interrupted."""
        await self.enter()
        if self.act == "receive":
            self.manager.subscribe("in/#", self.take, self.qos)
        while not self.manager.is_connected() or self.has_network_thread():
            await asyncio.sleep(0.005)

    @staticmethod
    def has_network_thread() -> bool:
        return any(each.name.startswith("paho-mqtt-client") for each in threading.enumerate())

    async def call(self) -> None:
        """What is interrupted."""
        act = self.act
        if act == "enter":
            await self.enter()
        elif act == "idle":
            await asyncio.sleep(IDLE_S)
        elif act == "receive":
            self.broker.send([(f"in/{self.qos}", self.incoming(number), self.qos) for number in range(INCOMING)])
            while not self.broker.is_all_acknowledged:
                await asyncio.sleep(0.005)
        elif act == "cut":
            self.broker.cut()
            for _ in range(MESSAGES):
                await self.publish()
        elif act == "disconnect":
            for _ in range(MESSAGES):
                await self.publish()
            await self.manager.disconnect()
        elif act == "publish":
            for _ in range(MESSAGES):
                await self.publish()
        elif act == "gather":
            handles = await asyncio.gather(*(self.publish() for _ in range(3 * MESSAGES)))
            await asyncio.gather(*handles)
        elif act == "flush":
            for _ in range(MESSAGES):
                await self.publish()
            await self.manager.flush(END_S)

    def interrupt(self, at: int) -> str:
        """Where it was interrupted; empty where it was over before."""
        if self.act != "enter":
            self.go(self.begin, "the beginning")
        trace = StepTrace(at, error=self.error)
        sys.settrace(trace)
        task = self.loop.create_task(self.call())
        # What is cut into may leave it waiting.
        self.loop.call_later(WAIT_S, task.cancel)
        try:
            with suppress(self.error, asyncio.CancelledError):
                self.loop.run_until_complete(task)
        finally:
            sys.settrace(None)
        self.steps = trace.count
        return trace.where

    def problems(self) -> list[str]:
        """What the program that goes on finds amiss."""
        if not self.is_entered:
            # It has not begun: the file is free, or will be.
            self.go(self.enter_anew, "the next manager")
        if self.act == "disconnect":
            self.go(self.manager.disconnect, "disconnect")
        else:
            self.go(self.send_more, "what is published later")
            if self.act == "receive":
                self.go(self.hear, "what comes")
            began_s = time.monotonic()
            self.go(self.manager.disconnect, "disconnect")
            if time.monotonic() - began_s > END_S / 2:
                self.found.append("its end takes too long")
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()
        self.broker.on_new_client()
        try:
            with MQTTManager(self.config) as next_one:
                next_one.connect()
                if not next_one.flush(END_S):
                    self.found.append("lost: the file's next manager cannot empty it")
        except Exception as error:
            self.found.append(f"the file is not free: {error}")
        self.judge()
        self.broker.close()
        return self.found

    async def enter_anew(self) -> None:
        while True:
            self.manager = AsyncMQTTManager(self.config)
            try:
                await self.enter()
                return
            except Exception:
                await asyncio.sleep(0.05)

    async def send_more(self) -> None:
        handles = [await self.publish() for _ in range(MESSAGES)]
        await asyncio.gather(*handles)

    async def hear(self) -> None:
        while not self.broker.is_all_acknowledged:
            await asyncio.sleep(0.005)

    def judge(self) -> None:
        self.found += self.broker.faults[:3]
        lost = [key for key in self.accepted if not self.broker.delivered[key]]
        if lost:
            self.found.append(f"lost: {lost}")
        twice = [key for key, count in self.broker.delivered.items() if count > 1]
        if twice and self.qos == 2:
            self.found.append(f"twice: {twice}")
        if self.act == "receive":
            counts = [self.received[self.incoming(number)] for number in range(INCOMING)]
            if min(counts) < 1 or (self.qos == 2 and max(counts) > 1):
                self.found.append(f"received {counts}")


# So many steps each has, or nearly.
STEPS = {
    "enter": 240, "publish": 3000, "gather": 3500, "flush": 3100, "idle": 230, "receive": 2500, "cut": 1400,
    "disconnect": 2500,
}  # fmt: skip


def run(directory: Path, act: str, qos: int, at: int, error: type[BaseException]) -> tuple[str, list[str]]:
    """(where it was interrupted, what was amiss)."""
    point = AsyncPoint(directory, act, qos, error)
    where = point.interrupt(at)
    return where, point.problems()
