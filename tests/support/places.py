"""Where things stand in the repository, and beside it."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

TESTS = Path(__file__).parents[1]
REPOSITORY = TESTS.parent
# Recorded drives, for tests that say why they skip where there are none.
SHARED_DATA = REPOSITORY.parent / "shared" / "data"
_MEMORY = "/dev/shm"
_MEMORY_MIN_BYTES = 1 << 30


def scratch() -> str:
    """A folder in memory, where nothing waits for a disk; that for temporary files where there is none with room."""
    is_roomy = os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free > _MEMORY_MIN_BYTES
    return _MEMORY if is_roomy else tempfile.gettempdir()
