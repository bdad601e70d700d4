"""How long asyncio's loop waits for a manager that has nothing to do."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from glec_fast.aio import AsyncMQTTManager
from support.async_interrupts import Alarm
from support.async_runs import ON_BOTH_LOOPS, eventually, run
from support.gateway import TIMEOUT_S, quick_config
from support.odd_broker import OddBroker
from support.wire_reference import Packet

if TYPE_CHECKING:
    from pathlib import Path

    from glec_fast.testbed.broker import Broker


class Delays:
    """Of the timers of this loop."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._s: list[float] = []
        # The next that is set is cut into.
        self.is_torn = False
        loop = asyncio.get_running_loop()
        call_later = loop.call_later

        def noted(delay_s: float, *arguments: Any, **named: Any) -> asyncio.TimerHandle:
            self._s.append(delay_s)
            if self.is_torn:
                self.is_torn = False
                raise Alarm
            return call_later(delay_s, *arguments, **named)

        monkeypatch.setattr(loop, "call_later", noted)

    async def rests(self) -> bool:
        """From now on, it begins to wait for as long as nothing is due."""
        self._s.clear()
        return await eventually(lambda: max(self._s, default=0.0) > 60)


@ON_BOTH_LOOPS
def test_an_idle_connection_wakes_the_loop_for_the_keep_alive_alone(
    broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    async def program() -> None:
        delays = Delays(monkeypatch)
        config = quick_config(broker.url, tmp_path, keepalive_s=3600, answer_timeout_s=0, status_interval_s=0)
        async with AsyncMQTTManager(config) as manager:
            for qos in (1, 2):
                assert await delays.rests()
                await asyncio.wait_for(await manager.publish("t", "x", qos), TIMEOUT_S)

    run(program, kind)


class AnswersLate(OddBroker):
    """Acknowledges nothing on its first connection."""

    def on_publish(self, packet: Packet) -> bytes:
        answer = super().on_publish(packet)
        return b"" if self.connections == 1 else answer


@pytest.mark.parametrize("is_torn", [False, True])
def test_what_is_published_then_is_looked_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_torn: bool
) -> None:
    """is_torn: though a signal's handler raises as the loop's timer is set anew for it."""

    async def program(broker: AnswersLate) -> None:
        delays = Delays(monkeypatch)
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        config = quick_config(
            broker.url, tmp_path, keepalive_s=3600, answer_timeout_s=0, ack_timeout_s=1, status_interval_s=0
        )
        async with AsyncMQTTManager(config) as manager:
            assert await delays.rests()
            published = asyncio.ensure_future(manager.publish("t", "=x", 1))
            delays.is_torn = is_torn
            await asyncio.wait_for(await published, TIMEOUT_S)
        assert not delays.is_torn
        assert broker.connections == 2

    with AnswersLate() as broker:
        run(lambda: program(broker))
