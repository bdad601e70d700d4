"""Programs on asyncio and uvloop, in debug mode: what the loop complains of fails the test."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from support.gateway import TIMEOUT_S

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

T = TypeVar("T")

HAS_UVLOOP = importlib.util.find_spec("uvloop") is not None
ON_BOTH_LOOPS = pytest.mark.parametrize(
    "kind", ["asyncio", pytest.param("uvloop", marks=pytest.mark.skipif(not HAS_UVLOOP, reason="uvloop is not there"))]
)
_POLL_S = 0.005


class _Complaints(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(self.format(record))


def new_loop(kind: str) -> asyncio.AbstractEventLoop:
    if kind == "uvloop":
        import uvloop

        return uvloop.new_event_loop()
    return asyncio.new_event_loop()


def run(program: Callable[[], Coroutine[Any, Any, T]], kind: str = "asyncio", *, debug: bool = True) -> T:
    """Run it as `asyncio.run` would, bounded, with debug mode on; how long a callback takes is not looked at here."""
    complaints = _Complaints()
    asyncio_log = logging.getLogger("asyncio")
    asyncio_log.addHandler(complaints)
    loop = new_loop(kind)
    try:
        loop.set_debug(debug)
        loop.slow_callback_duration = 3600
        asyncio.set_event_loop(loop)
        result = loop.run_until_complete(asyncio.wait_for(program(), 4 * TIMEOUT_S))
        left = asyncio.all_tasks(loop)
        assert not left, left
        loop.run_until_complete(loop.shutdown_default_executor())
    finally:
        asyncio.set_event_loop(None)
        loop.close()
        asyncio_log.removeHandler(complaints)
    assert complaints.said == []
    return result


async def run_within(program: Callable[[], Coroutine[Any, Any, T]], kind: str = "asyncio") -> T:
    """As `run`, in this thread, within a callback of the loop that runs: which is set aside, as by nest_asyncio."""
    outer = asyncio.get_running_loop()
    ended: asyncio.Future[T] = outer.create_future()

    def nest() -> None:
        asyncio._set_running_loop(None)
        try:
            ended.set_result(run(program, kind))
        except BaseException as error:
            ended.set_exception(error)
        finally:
            asyncio._set_running_loop(outer)

    outer.call_soon(nest)
    return await ended


async def eventually(condition: Callable[[], bool], timeout_s: float = TIMEOUT_S) -> bool:
    """As `support.gateway.eventually`, on the loop."""
    deadline_s = asyncio.get_running_loop().time() + timeout_s
    while not condition():
        if asyncio.get_running_loop().time() > deadline_s:
            return False
        await asyncio.sleep(_POLL_S)
    return True
