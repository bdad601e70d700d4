"""Fixtures of the store's tests: a store and its clock, an outbox, threads; a disk that fails is tried again soon."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from glec_fast.durable.store import Store
from support.clock import Clock
from support.store import RecordingOutbox


@pytest.fixture(autouse=True)
def _quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glec_fast.durable.schedule._STORAGE_RETRY_S", 0.05)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "queue.db"


@pytest.fixture
def make_store(path: Path, clock: Clock) -> Iterator[Callable[..., Store]]:
    opened: list[Store] = []

    def make(**settings: Any) -> Store:
        store = Store(path, **{"clocks": clock.clocks, **settings})
        opened.append(store)
        return store

    yield make
    for store in opened:
        store.close()


@pytest.fixture
def store(make_store: Callable[..., Store]) -> Store:
    return make_store()


@pytest.fixture
def outbox(store: Store) -> RecordingOutbox:
    return RecordingOutbox(store)
