"""Queue files that were damaged, mixed up or written to by others: any opens or is set aside, and is then of use.

FUZZ_FILES says how many, FUZZ_SEED from which seed on (`make fuzz-files`).
"""

from __future__ import annotations

import logging
import os
import random
import sys
from collections import Counter
from pathlib import Path

import pytest

from support.queue_fuzz import check, make, specimens

FILES = int(os.environ.get("FUZZ_FILES", "60"))
SEED = int(os.environ.get("FUZZ_SEED", "1"))
# A seal on what a later change of the fuzz itself might take away: each kind must come up.
KINDS = ("opened", "set aside", "rows carried over", "rows read", "rows unsendable")


def test_any_file_opens_or_is_set_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "glec_fast")
    taken = specimens(tmp_path / "taken")
    counts: Counter[str] = Counter()
    failures = []
    for seed in range(SEED, SEED + FILES):
        folder = tmp_path / str(seed)
        folder.mkdir()
        done = make(random.Random(seed), taken, folder)
        try:
            check(folder / "queue.db", counts)
        except Exception as error:
            failures.append(f"seed {seed} ({done}): {error!r}")
    sys.stderr.write("".join(f"\n{count:8} {name}" for name, count in sorted(counts.items())) + "\n")
    assert not failures, "\n".join([f"{len(failures)} of {FILES}", *failures[:40]])
    assert all(counts[kind] for kind in KINDS)
