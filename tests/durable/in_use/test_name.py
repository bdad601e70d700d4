"""The queue file loses its name, or its log, while it is in use: what the open file holds is under its name again."""

from __future__ import annotations

import os
import shutil
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any

import apsw
import pytest

from glec_fast.durable import caretaker
from glec_fast.durable import file as queue_file
from glec_fast.durable.file import QueueFile
from glec_fast.durable.in_doubt import Decision
from glec_fast.durable.inflight_log import log_of
from glec_fast.durable.reader import Reader
from glec_fast.durable.store import Store
from glec_fast.durable.writer import Writer
from glec_fast.errors import QueueReplacedError, QueueStorageError
from glec_fast.fleet.offline_queue import OfflineQueueManager
from support.power_run import finish
from support.scripted_broker import ScriptedBroker
from support.scripted_gateway import ScriptedGateway
from support.store import WAIT_S, RecordingOutbox, append, ids_on_disk, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
from support.file_in_use import damaged


def delete_all(path: Path) -> None:
    for each in path.parent.glob("queue.db*"):
        # What a missing lock means is told of elsewhere.
        if not each.name.endswith("-lock"):
            each.unlink()


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def overwrite_log(path: Path, data: bytes) -> None:
    """All of it, in place."""
    with path.with_name("queue.db-wal").open("r+b") as log:
        size = log.seek(0, os.SEEK_END)
        log.seek(0)
        log.write((data * (size // len(data) + 1))[:size])


def older_log(path: Path) -> bytes:
    """Of another queue file, which is sound in itself."""
    other = path.parent.parent / "other" / "queue.db"
    other.parent.mkdir()
    with closing(Store(other)) as store:
        append(store, 3)
        return other.with_name("queue.db-wal").read_bytes()


LOSSES: dict[str, Callable[[Path], object]] = {
    "deleted": lambda path: path.unlink(),
    "deleted with its companions": delete_all,
    "moved away": lambda path: path.rename(path.with_name("away")),
    "its folder deleted": lambda path: shutil.rmtree(path.parent),
    "its log deleted": lambda path: path.with_name("queue.db-wal").unlink(),
    "a folder in its log's place": lambda path: make_folder(path.with_name("queue.db-wal")),
    "a folder where the copy is made": lambda path: (path.with_name("queue.db-new").mkdir(), path.unlink()),
    "its log emptied": lambda path: os.truncate(path.with_name("queue.db-wal"), 0),
    "its log overwritten with zeros": lambda path: overwrite_log(path, b"\0"),
    "its log overwritten with ones": lambda path: overwrite_log(path, b"\xff"),
    "its log overwritten with an older one": lambda path: overwrite_log(path, older_log(path)),
    "its images deleted": lambda path: log_of(path).unlink(),
}


def is_on_disk(store: Store, message_id: int) -> bool:
    with suppress(QueueStorageError):
        return store.wait_durable(message_id, WAIT_S)
    return False


class TestName:
    """What the open file holds is under its name again."""

    @pytest.mark.parametrize("loss", LOSSES)
    def test_it_is_put_back(self, gateway: ScriptedGateway, path: Path, loss: str) -> None:
        broker = ScriptedBroker()
        for number in range(20):
            gateway.publish(f"2-{number}", 2)
        gateway.connect()
        broker.feed(gateway.send())
        gateway.receive(broker.handle(3))
        LOSSES[loss](path)
        for number in range(20, 25):
            gateway.publish(f"2-{number}", 2)
        assert len(ids_on_disk(path)) >= 22
        assert gateway.store.size == len(ids_on_disk(path))
        gateway.receive(broker.handle(2))
        gateway.commit()
        copy = path.parent.parent / "copy"
        copy.mkdir()
        for each in path.parent.iterdir():
            if each.is_file():
                shutil.copy(each, copy / each.name)
        gateway.cut()
        broker.cut(arrives=True)
        with ScriptedGateway(copy / path.name) as later:
            assert later.store.salvage is None
            finish(later, broker)
        assert broker.counts() == {f"2-{number}": 1 for number in range(25)}

    @pytest.mark.parametrize("loss", [*LOSSES][:8])
    def test_it_is_salvaged_where_it_is_damaged_too(self, path: Path, loss: str) -> None:
        with damaged(path) as store:
            LOSSES[loss](path)
            message_id = store.append("t", "new", 2)
            assert wait_for(lambda: is_on_disk(store, message_id))
            ids = ids_on_disk(path)
            assert len(ids) > 500
            assert ids[-1] == message_id
        assert ids_on_disk(path) == ids

    def test_another_file_has_it_and_it_is_damaged(self, path: Path) -> None:
        with damaged(path) as store:
            other = path.with_name("other")
            other.write_bytes(b"somebody's")
            other.rename(path)
            store.append("t", "new", 2)
            with pytest.raises(QueueReplacedError):
                wait_for(lambda: store.is_damaged is None)
        assert path.read_bytes() == b"somebody's"
        assert len(ids_on_disk(path.with_name("queue.db.replaced-1"))) > 500

    @pytest.mark.parametrize("error", [apsw.FullError("full"), apsw.CantOpenError("too many"), KeyboardInterrupt()])
    @pytest.mark.parametrize(
        ("owner", "step"),
        [
            (queue_file, "open_database"),
            (QueueFile, "_note_place"),
            (QueueFile, "reader"),
            (Reader, "use"),
            (Writer, "use"),
            (caretaker, "discard"),
        ],
    )
    @pytest.mark.parametrize("loss", ["deleted", "its log deleted"])
    def test_the_next_try_goes_on_from_what_one_has_left(
        self, path: Path, monkeypatch: pytest.MonkeyPatch, loss: str, owner: Any, step: str, error: BaseException
    ) -> None:
        path.parent.mkdir()
        with closing(Store(path)) as store:
            append(store, 3)
            errors, does = [error], getattr(owner, step)

            def fails_once(*given: object, **named: object) -> object:
                result = does(*given, **named)
                if errors:
                    raise errors.pop()
                return result

            monkeypatch.setattr(owner, step, fails_once)
            LOSSES[loss](path)
            message_id = store.append("t", "x", 1)

            def is_durable() -> bool:
                # Which raises QueueReplacedError where it never will be.
                assert store.is_damaged in {True, False}
                with suppress(QueueStorageError):
                    return store.wait_durable(message_id, WAIT_S)
                return False

            assert wait_for(is_durable)
            assert not errors
            assert len(ids_on_disk(path)) == 4
        assert len(ids_on_disk(path)) == 4
        assert not list(path.parent.glob("*replaced*"))

    @pytest.mark.parametrize("acknowledgements", [3, 11, 17, 25, 33, 45])
    def test_nothing_arrives_twice_from_what_is_kept(
        self, gateway: ScriptedGateway, path: Path, acknowledgements: int
    ) -> None:
        broker = ScriptedBroker()
        for number in range(20):
            gateway.publish(f"2-{number}", 2)
        gateway.connect()
        for _ in range(acknowledgements):
            broker.feed(gateway.send())
            gateway.receive(broker.handle(1))
        other = path.with_name("other")
        other.touch()
        # In one step, so that nobody puts it back between two.
        other.rename(path)
        for number in (20, 21):
            gateway.store.append("t", f"2-{number}", 2)
        with pytest.raises(QueueReplacedError):
            gateway.store.wait_durable(22, WAIT_S)
        with suppress(QueueStorageError):
            gateway.close()
        broker.cut(arrives=True)
        with ScriptedGateway(path.with_name("queue.db.replaced-1")) as later:
            finish(later, broker)
        assert broker.counts() == {f"2-{number}": 1 for number in range(22)}

    def test_a_disk_that_has_no_room_for_the_copy_is_not_filled_with_them(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path.parent.mkdir()
        store = Store(path)
        append(store, 3)
        tries: list[Path] = []

        def has_no_room(_file: object, copy: Path, *_: object) -> None:
            copy.touch()
            tries.append(copy)
            raise apsw.FullError("database or disk is full")

        monkeypatch.setattr(QueueFile, "_copy_to", has_no_room)
        other = path.with_name("other")
        other.touch()
        other.rename(path)
        store.append("t", "x", 1)
        assert wait_for(lambda: len(tries) > 1)
        monkeypatch.undo()
        with pytest.raises(QueueReplacedError):
            wait_for(lambda: store.is_damaged is None)
        store.close()
        assert [each.name for each in path.parent.glob("*.replaced-*")] == ["queue.db.replaced-1"]
        assert len(ids_on_disk(path.with_name("queue.db.replaced-1"))) == 4

    def test_what_is_kept_knows_what_was_in_doubt(self, path: Path) -> None:
        path.parent.mkdir()
        other = path.with_name("other")
        other.touch()
        store = Store(path)
        outbox = RecordingOutbox(store)
        first, second = append(store, 2)
        outbox.read_all()
        other.rename(path)
        with store._writer.lock:
            outbox.in_doubt = [(second, Decision.SENT_AGAIN), (first, Decision.LEFT_TO_BROKER)]
            outbox.finish([first])
        with pytest.raises(QueueReplacedError):
            store.run(lambda _table: None)
        with suppress(QueueStorageError):
            store.close()
        with closing(Store(path.with_name("queue.db.replaced-1"))) as kept:
            told = [(each.message_id, each.decision) for each in kept.in_doubt()]
        assert told == [(second, Decision.SENT_AGAIN), (first, Decision.LEFT_TO_BROKER)]

    @pytest.mark.parametrize("is_queue", [True, False])
    def test_another_file_has_it(self, path: Path, is_queue: bool) -> None:
        path.parent.mkdir()
        other = path.with_name("other")
        with OfflineQueueManager(other) as queue:
            queue.enqueue("t", "other", 1)
        if not is_queue:
            other.write_bytes(b"text")
        data = other.read_bytes()
        queue = OfflineQueueManager(path)
        accepted = [queue.enqueue("t", "x", 2) for _ in range(20)]
        other.rename(path)
        with pytest.raises(QueueReplacedError, match="start anew") as caught:
            queue.enqueue("t", "x", 2)
        assert not caught.value.retryable
        with pytest.raises(QueueReplacedError):
            queue.enqueue("t", "x", 2)
        with pytest.raises(QueueReplacedError):
            assert queue._store.is_damaged
        with suppress(QueueStorageError):
            queue.release()
        assert path.read_bytes() == data
        with OfflineQueueManager(path.with_name("queue.db.replaced-1")) as kept:
            assert {message.id for message in kept.dequeue_all()} >= set(accepted)
