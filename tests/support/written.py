"""What the kernel says is written."""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING

from glec_fast.fleet.device import disk_written_bytes

if TYPE_CHECKING:
    from pathlib import Path


def is_counted(directory: Path | None = None) -> bool:
    """Whether it says so of this directory, or that for temporary files: not of what is in memory, as a tmpfs."""
    before = disk_written_bytes()
    with tempfile.TemporaryFile(dir=directory) as probe:
        probe.write(bytes(65_536))
        probe.flush()
        return disk_written_bytes() > before
