"""The queue file is damaged while it is in use: it salvages what it can, and goes on, in the same process."""

from __future__ import annotations

import logging
import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from glec_fast.durable import caretaker, schedule
from glec_fast.durable.inflight_log import log_of
from glec_fast.errors import QueueStorageError
from glec_fast.fleet.offline_queue import OfflineQueueManager
from glec_fast.runtime.thread import Thread
from support.scripted_broker import ScriptedBroker
from support.scripted_gateway import ScriptedGateway
from support.store import WAIT_S, wait_for

if TYPE_CHECKING:
    from pathlib import Path
from support.file_in_use import flush

PAGE_BYTES = 1024


def damage(path: Path, first: int, last: int, data: bytes = b"\xff" * 8) -> None:
    with path.open("r+b") as file:
        for page in range(first, last):
            file.seek(page * PAGE_BYTES)
            file.write(data)


class TestDamage:
    """It salvages what it can, and goes on, in the same process."""

    @pytest.fixture
    def full(self, path: Path) -> Path:
        path.parent.mkdir()
        with OfflineQueueManager(path) as queue:
            queue.enqueue_many([("t", f"2-{number} " + "x" * 300, 2) for number in range(3000)])
        return path

    @pytest.mark.parametrize("data", [b"\xff" * 8, bytes(PAGE_BYTES)], ids=["bytes", "zeros"])
    @pytest.mark.parametrize("pages", [(0, 1), (1, 4), (40, 60), (2, 330)])
    def test_pages(self, full: Path, pages: tuple[int, int], data: bytes) -> None:
        broker = ScriptedBroker()
        with ScriptedGateway(full, window=20) as gateway:
            gateway.connect()
            broker.feed(gateway.send())
            damage(full, *pages, data)
            handles = [gateway.publish(f"2-later-{number}", 2) for number in range(20)]
            for _ in range(3):
                gateway.receive(broker.handle(broker.waiting_packets()))
                broker.feed(gateway.send())
            counts = flush(gateway, broker)
            assert set(counts.values()) == {1}
            assert all(handle.is_published() for handle in handles)
            assert gateway.store.wait_empty(WAIT_S)

    @pytest.mark.parametrize("loss", ["pages", "name", "log of images", "write-ahead log"])
    def test_a_handler_of_the_log_that_publishes_waits_for_nobody(self, full: Path, loss: str) -> None:
        """It hears of the damage from the thread that mends it, and that all of its QoS 2 would wait for."""
        with ScriptedGateway(full, window=20) as gateway:
            broker, said = ScriptedBroker(), []

            class Publishing(logging.Handler):
                def emit(self, record: logging.LogRecord) -> None:
                    said.append(gateway.publish(f"2-said-{len(said)}", 2))

            handler = Publishing()
            logging.getLogger("glec_fast").addHandler(handler)
            try:
                gateway.connect()
                broker.feed(gateway.send())
                if loss == "pages":
                    damage(full, 2, 330)
                elif loss == "write-ahead log":
                    os.truncate(f"{full}-wal", 0)
                else:
                    (full if loss == "name" else log_of(full)).unlink()
                gateway.publish("2-later", 2)
                flush(gateway, broker)
                # Also what is said a little later.
                assert wait_for(lambda: bool(said))
            finally:
                logging.getLogger("glec_fast").removeHandler(handler)
            with handler.lock:
                # It is in none of its calls any more.
                pass
            counts = flush(gateway, broker)
            assert all(handle.is_published() for handle in said)
            assert set(counts.values()) == {1}
            assert counts.keys() >= {"2-later", *(f"2-said-{number}" for number in range(len(said)))}

    def test_a_handler_that_publishes_while_the_store_s_thread_waits_to_log(self, full: Path) -> None:
        """It has the handler's lock, which the store's thread needs to say what it has found."""
        with ScriptedGateway(full, window=20) as gateway:
            said = []

            class Publishing(logging.Handler):
                def emit(self, record: logging.LogRecord) -> None:
                    said.append(gateway.publish(f"2-said-{record.getMessage()}", 2))

            handler, own = Publishing(), logging.getLogger("glec_fast.program")
            logging.getLogger("glec_fast").addHandler(handler)
            try:
                full.unlink()
                thread = Thread(target=own.error, args=("own",))
                thread.start()
                thread.join(WAIT_S)
                assert not thread.is_alive(), "it waits for the store's thread, which waits for it"
                assert wait_for(lambda: len(said) >= 2)
            finally:
                logging.getLogger("glec_fast").removeHandler(handler)
            gateway.connect()
            counts = flush(gateway, ScriptedBroker())
            assert counts["2-said-own"] == 1
            assert set(counts.values()) == {1}

    def test_who_waits_for_what_is_lost_hears_of_it(self, path: Path) -> None:
        path.parent.mkdir()
        with ScriptedGateway(path, window=20) as gateway:
            # More would stand in pages without a structure that damage shows in.
            handles = [gateway.publish(f"2-{number} " + "x" * 900, 2) for number in range(400)]
            gateway.store._writer.connection.wal_checkpoint()
            damage(path, 30, 90)
            gateway.store.supply.refuse([150])
            gateway.connect()
            broker = ScriptedBroker()
            flush(gateway, broker)
            lost = {each.message_id for each in gateway.dropped}
            assert lost
            for handle in handles:
                if handle.message_id in lost:
                    with pytest.raises(RuntimeError, match="damaged_file"):
                        handle.is_published()
                else:
                    assert handle.is_published()

    def test_again_and_again(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(schedule, "_STORAGE_RETRY_S", 0.01)
        monkeypatch.setattr(caretaker, "_SALVAGE_PAUSE_S", 0.05)
        path.parent.mkdir()
        accepted = []
        with OfflineQueueManager(path) as queue:
            for turn in range(4):
                accepted += queue.enqueue_many([("t", "x" * 500, 1)] * 3000)
                queue._store.run(lambda table: table.count())
                damage(path, 40, 80)
                deadline_s = time.monotonic() + WAIT_S
                while True:
                    assert time.monotonic() < deadline_s
                    with suppress(QueueStorageError):
                        accepted.append(queue.enqueue("t", f"turn {turn}", 2))
                        queue.dequeue_all()
                        break
            assert {f"turn {turn}" for turn in range(3, 4)} <= {message.payload for message in queue.dequeue_all()}
            assert len(set(accepted)) == len(accepted)
        assert len(list(path.parent.glob("queue.db.damaged-*"))) >= 2

    def test_what_cannot_be_mended_says_so_until_it_can(self, full: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(schedule, "_STORAGE_RETRY_S", 0.01)
        with OfflineQueueManager(full) as queue:
            with monkeypatch.context() as patched:

                def refuse(*_: object) -> None:
                    raise OSError("no")

                patched.setattr("glec_fast.durable.file.carry_over", refuse)
                damage(full, 1, 330)
                with pytest.raises(QueueStorageError) as caught:
                    queue.dequeue_all()
                assert caught.value.retryable
                assert wait_for(lambda: queue._store.is_damaged)
            assert wait_for(lambda: not queue._store.is_damaged)
            assert queue.enqueue("t", "x", 2)

    def test_pages_of_the_log(self, path: Path) -> None:
        path.parent.mkdir()
        with OfflineQueueManager(path) as queue:
            queue.enqueue_many([("t", "x" * 500, 1)] * 500)
            with path.with_name("queue.db-wal").open("r+b") as log:
                for frame in range(3, 20):
                    log.seek(32 + frame * (24 + PAGE_BYTES) + 24)
                    log.write(b"\xff" * 200)
            for _ in range(3):
                with suppress(QueueStorageError):
                    queue.dequeue_all()
            assert queue.enqueue("t", "later", 2)
            assert "later" in {message.payload for message in queue.dequeue_all()}
