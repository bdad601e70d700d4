"""KeyboardInterrupt at any step of any call to a manager. INTERRUPTS says at how many of each (`make interrupts`)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from support.manager_interrupts import ACTS, STEPS, Point

if TYPE_CHECKING:
    from pathlib import Path

    from glec_fast.testbed.broker import Broker

POINTS = int(os.environ.get("INTERRUPTS", "6"))


# A socket that was made, and given to nobody before the exception came, is closed by who collects it, with a warning.
@pytest.mark.usefixtures("own_garbage")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("act", ACTS)
def test_a_call_that_is_cut_into_leaves_nothing_half_done(act: str, broker: Broker, tmp_path: Path) -> None:
    found = []
    for number in range(POINTS):
        directory = tmp_path / str(number)
        directory.mkdir()
        point = Point(broker, directory, act)
        where = point.interrupt(1 + (2 * number + 1) * STEPS[act] // (2 * POINTS))
        found += [f"{where}: {problem}" for problem in point.problems()]
    assert found == []
