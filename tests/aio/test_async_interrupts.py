"""An exception at any step of the loop's thread, which the program survives. INTERRUPTS says at how many of each."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from glec_fast.aio._waiting import Owed
from support.async_interrupts import STEPS, Alarm, run
from support.async_runs import new_loop
from support.interrupts import Interrupted

if TYPE_CHECKING:
    from pathlib import Path

POINTS = int(os.environ.get("INTERRUPTS", "2"))


# What an exception keeps from being awaited, or closed, is so by who collects it, with a warning.
@pytest.mark.usefixtures("own_garbage")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
@pytest.mark.parametrize("act", [each for each in STEPS if each != "receive"])
def test_the_program_goes_on_and_nothing_is_lost_or_doubled(act: str, tmp_path: Path) -> None:
    found = []
    for number in range(POINTS):
        directory = tmp_path / str(number)
        directory.mkdir()
        at = 1 + (2 * number + 1) * STEPS[act] // (2 * POINTS)
        where, problems = run(directory, act, 2 - number % 2, at, (Interrupted, Alarm)[number // 2 % 2])
        found += [f"{where}: {problem}" for problem in problems]
    assert found == []


def test_a_step_that_fails_by_itself_is_not_called_for_ever() -> None:
    loop = new_loop("asyncio")
    loop.set_exception_handler(lambda *_: None)
    calls = []

    def step() -> None:
        calls.append(len(calls))
        raise OSError

    loop.call_soon(Owed(loop, step))
    for _ in range(50):
        loop.call_soon(loop.stop)
        loop.run_forever()
    loop.close()
    assert 1 < len(calls) < 20
