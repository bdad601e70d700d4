"""Where things stand in the repository, and beside it."""

from __future__ import annotations

from pathlib import Path

TESTS = Path(__file__).parents[1]
REPOSITORY = TESTS.parent
# Recorded drives, for tests that say why they skip where there are none.
SHARED_DATA = REPOSITORY.parent / "shared" / "data"
