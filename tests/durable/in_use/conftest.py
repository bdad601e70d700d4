"""A queue file in a folder of its own, and a gateway over it."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from glec_fast.errors import QueueStorageError
from support.scripted_gateway import ScriptedGateway

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "queue.db"


@pytest.fixture
def gateway(path: Path) -> Iterator[ScriptedGateway]:
    path.parent.mkdir()
    gateway = ScriptedGateway(path, window=10)
    yield gateway
    with suppress(QueueStorageError):
        gateway.close()
