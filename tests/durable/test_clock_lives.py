"""Over random clocks, boots and cuts of the power no message expires early, and none late where the clock was right."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from support.clock_lives import Life, Outcome
from support.places import scratch

# The Makefile's `fuzz-clocks` has more.
LIVES = int(os.environ.get("CLOCK_LIVES", "100"))
SEED = int(os.environ.get("SEED", "1"))


def live(seed: int) -> Outcome:
    # In memory: no disk is tested, and a real one would only take its time.
    with tempfile.TemporaryDirectory(dir=scratch()) as folder:
        return Life(Path(folder), seed).live()


def test_nothing_expires_early_nor_late_where_the_clock_was_right() -> None:
    total = Outcome()
    for seed in range(SEED, SEED + LIVES):
        total.add(live(seed))
    sys.stdout.write(f"{LIVES} lives: {total}\n")
    assert not total.early, total.early[:5]
    assert not total.later_than_promised, total.later_than_promised[:5]
    assert not total.misplaced, total.misplaced[:5]
    assert total.expired > total.made_up > LIVES / 10
