"""What can be taken back until it is on disk."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import apsw
import pytest

from glec_fast.durable.intake import PENDING_BYTES_MAX
from glec_fast.durable.store import Store
from glec_fast.errors import QueueStorageError
from support.store import (
    WAIT_S,
    Disk,
    append,
    held_writer,
    ids_on_disk,
)

BOTH = pytest.mark.parametrize("disk_mends", [True, False])


class TestWithdraw:
    def test_what_waits_is_taken_back(self, store: Store, pool: ThreadPoolExecutor, path: Path) -> None:
        with held_writer(store, pool):
            kept, withdrawn = store.append("t", "1", 1), store.append("t", "2", 1)
            assert store.withdraw(withdrawn) is True
            assert store.withdraw(withdrawn) is False
        assert store.wait_durable(kept, WAIT_S)
        assert ids_on_disk(path) == [kept]

    def test_whoever_comes_next_has_its_room(self, store: Store, pool: ThreadPoolExecutor) -> None:
        with held_writer(store, pool):
            store.append("t", "1", 1)
            withdrawn = store.append("t", "x" * PENDING_BYTES_MAX, 1)
            assert store.is_crowded(3)
            assert store.withdraw(withdrawn)
            assert not store.is_crowded(3)

    def test_what_is_on_disk_is_not(self, store: Store) -> None:
        (message_id,) = append(store, 1)
        assert store.withdraw(message_id) is False
        assert store.size == 1

    def test_what_was_given_up_by_closing_is_on_no_disk(self, make_store: Callable[..., Store], path: Path) -> None:
        store = make_store()
        (kept,) = append(store, 1)
        Disk(store).error = apsw.FullError("database or disk is full")
        lost = store.append("t", "x", 2)
        with pytest.raises(QueueStorageError, match="no space left"):
            store.wait_durable(lost, WAIT_S)
        with pytest.raises(QueueStorageError, match="1 messages could not be written"):
            store.close()
        assert store.withdraw(lost) is True
        assert store.withdraw(kept) is False
        assert ids_on_disk(path) == [kept]

    @BOTH
    def test_what_is_being_written_is_decided_first(
        self, store: Store, pool: ThreadPoolExecutor, path: Path, *, disk_mends: bool
    ) -> None:
        disk = Disk(store)
        disk.hold()
        message_id = store.append("t", "x", 1)
        assert disk.entered.wait(WAIT_S)
        disk.error = None if disk_mends else apsw.FullError("database or disk is full")
        withdrawn = pool.submit(store.withdraw, message_id)
        disk.released.set()
        assert withdrawn.result(WAIT_S) is not disk_mends
        disk.error = None
        store.close()
        assert ids_on_disk(path) == ([message_id] if disk_mends else [])

    def test_taking_back_the_last_one_empties_the_queue(
        self, make_store: Callable[..., Store], pool: ThreadPoolExecutor
    ) -> None:
        store = make_store()
        disk = Disk(store)
        disk.error = apsw.FullError("database or disk is full")
        message_id = store.append("t", "x", 1)
        waiting = pool.submit(store.wait_empty, WAIT_S)
        with pytest.raises(QueueStorageError, match="no space left"):
            store.wait_durable(message_id, WAIT_S)
        assert store.withdraw(message_id)
        assert waiting.result(WAIT_S) is True
