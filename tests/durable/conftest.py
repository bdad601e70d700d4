"""What is asked here is asked of a disk, and not of memory as elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def tmp_path(disk_folder: Path) -> Path:
    return disk_folder
