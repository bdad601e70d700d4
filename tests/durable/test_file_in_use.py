"""The queue file while it is in use: another program writes to it, it loses its name, it is damaged, it is large."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import apsw
import pytest

from glec_fast.durable import caretaker, schedule
from glec_fast.durable import file as queue_file
from glec_fast.durable.database import LOG_BYTES_MAX
from glec_fast.durable.file import QueueFile
from glec_fast.durable.in_doubt import Decision, add_entries
from glec_fast.durable.inflight_log import log_of
from glec_fast.durable.reader import Reader
from glec_fast.durable.store import Store
from glec_fast.durable.writer import Writer
from glec_fast.errors import QueueReplacedError, QueueStorageError
from glec_fast.fleet.offline_queue import OfflineQueueManager
from glec_fast.runtime.thread import Thread
from support.clock import Clock
from support.power_run import finish
from support.queue_fuzz import COLUMNS, fill, look_beside
from support.scripted_broker import ScriptedBroker
from support.scripted_gateway import ScriptedGateway
from support.store import WAIT_S, RecordingOutbox, append, ids_on_disk, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PAGE_BYTES = 1024
FAR = 10**15
INSERT = "INSERT INTO mqtt_offline_queue (topic, payload, qos, timestamp, ttl) VALUES ('t', '{}', 2, {}, {})"


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


def foreign(path: Path, *statements: str) -> None:
    """Another program, with another SQLite: in this process it would let go of the locks of ours."""
    program = (
        "import sqlite3, sys\nk = sqlite3.connect(sys.argv[1], timeout=10)\n"
        "for statement in sys.argv[2:]: k.execute(statement)\nk.commit()"
    )
    subprocess.run([sys.executable, "-c", program, str(path), *statements], check=True, timeout=WAIT_S)


def flush(gateway: ScriptedGateway, broker: ScriptedBroker) -> Counter[str]:
    """Over the connection that there is."""
    deadline_s = time.monotonic() + WAIT_S
    gateway.store.request_commit()
    while gateway.store.size or gateway.session.in_flight:
        assert time.monotonic() < deadline_s, f"{gateway.store.size} messages are stuck, {broker.counts()} came"
        gateway.commit()
        broker.feed(gateway.send())
        gateway.receive(broker.handle(broker.waiting_packets()))
    return Counter(broker.counts())


class TestAnotherProgram:
    """Its rows are sent as ours are, and ours lose nothing by it."""

    @pytest.mark.parametrize("timestamp", [1, "CAST(strftime('%s','now') AS INTEGER) * 1000", 2**62, 5.5, "'text'"])
    @pytest.mark.parametrize("ttl", [FAR, FAR + 0.5, "'never'"])
    def test_a_row_of_it_and_ours_are_sent(
        self, gateway: ScriptedGateway, path: Path, timestamp: object, ttl: object
    ) -> None:
        broker = ScriptedBroker()
        gateway.connect()
        gateway.publish("2-first", 2)
        flush(gateway, broker)
        foreign(path, INSERT.format("2-foreign", timestamp, ttl))
        handles = [gateway.publish(f"2-{number}", 2) for number in range(5)]
        assert flush(gateway, broker) == Counter(["2-first", "2-foreign", *(f"2-{number}" for number in range(5))])
        assert all(handle.is_published() for handle in handles)
        assert ids_on_disk(path) == []

    @pytest.mark.parametrize("values", ["'a/#', 1", "'', 1", "x'ff00', 1", "'t', 7", "'t', 'text'"])
    def test_a_row_that_no_message_can_be_made_of_is_dropped(
        self, gateway: ScriptedGateway, path: Path, values: str
    ) -> None:
        broker = ScriptedBroker()
        gateway.connect()
        gateway.publish("2-first", 2)
        columns = "(payload, timestamp, ttl, topic, qos)"
        foreign(path, f"INSERT INTO mqtt_offline_queue {columns} VALUES ('theirs', 1, {FAR}, {values})")
        gateway.publish("2-last", 2)
        assert flush(gateway, broker) == Counter(["2-first", "2-last"])
        assert gateway.store.drops == {"unsendable": 1}
        assert len(gateway.dropped) == 1
        assert ids_on_disk(path) == []

    @pytest.mark.parametrize("message_id", [1, 2, 9])
    def test_a_row_put_back_where_all_was_read(self, gateway: ScriptedGateway, path: Path, message_id: int) -> None:
        """As of what was set aside, under the id and the times that it had."""
        broker = ScriptedBroker()
        gateway.connect()
        for number in range(9):
            gateway.publish(f"2-{number}", 2)
        expected = flush(gateway, broker)
        assert ids_on_disk(path) == []
        foreign(
            path,
            "INSERT INTO mqtt_offline_queue (id, topic, payload, qos, timestamp, ttl)"
            f" VALUES ({message_id}, 't', '2-again', 2, 1, {FAR})",
        )
        gateway.publish("2-9", 2)
        gateway.publish("0", 0)
        assert flush(gateway, broker) == expected + Counter(["2-again", "2-9", "0"])
        assert ids_on_disk(path) == []

    @pytest.mark.parametrize(
        "statement",
        [
            "DROP TABLE glec_session",
            "DROP TABLE glec_clock",
            "DROP TABLE glec_received",
            "ALTER TABLE glec_command RENAME COLUMN reply TO answer",
            "DROP TABLE mqtt_offline_queue",
            "ALTER TABLE mqtt_offline_queue RENAME COLUMN payload TO data",
            "CREATE TRIGGER t BEFORE INSERT ON mqtt_offline_queue BEGIN SELECT RAISE(ABORT, 'no'); END",
            "CREATE TRIGGER t AFTER INSERT ON mqtt_offline_queue BEGIN DELETE FROM mqtt_offline_queue; END",
            "CREATE TRIGGER t BEFORE DELETE ON mqtt_offline_queue BEGIN SELECT RAISE(IGNORE); END",
        ],
    )
    def test_tables_that_it_declares_anew(self, gateway: ScriptedGateway, path: Path, statement: str) -> None:
        broker = ScriptedBroker()
        gateway.connect()
        for number in range(5):
            gateway.publish(f"2-{number}", 2)
        gateway.commit()
        broker.feed(gateway.send())
        foreign(path, statement)
        handles = [gateway.publish(f"2-{number}", 2) for number in range(5, 10)]
        assert flush(gateway, broker) == Counter(f"2-{number}" for number in range(10))
        assert all(handle.is_published() for handle in handles)
        assert gateway.store.wait_empty(WAIT_S)
        assert gateway.store.salvage is not None

    @pytest.mark.parametrize(
        "statement",
        [
            "VACUUM",
            "ANALYZE",
            "CREATE INDEX more ON mqtt_offline_queue(topic)",
            *(f"ALTER TABLE {name} ADD COLUMN more TEXT" for name in sorted(COLUMNS) if name.startswith("glec_")),
        ],
    )
    def test_what_it_may_declare(self, gateway: ScriptedGateway, path: Path, statement: str) -> None:
        gateway.connect()
        gateway.publish("2-0", 2)
        foreign(path, statement)
        gateway.publish("2-1", 2)
        gateway.store.run(fill)
        look_beside(gateway.store)
        assert flush(gateway, ScriptedBroker()) == Counter(["2-0", "2-1", "x"])
        assert gateway.store.salvage is None

    @pytest.mark.parametrize(
        "statement",
        [
            f"INSERT INTO glec_in_doubt VALUES ({2**63 - 1}, 5, 1, 't', 'sent_again')",
            f"INSERT INTO glec_set_aside (number, time, reason, message_id) VALUES ({2**63 - 1}, 5, 'r', 1)",
            f"INSERT INTO glec_command VALUES ({2**63 - 1}, 'n', x'00', x'00', 1, 1, 't', x'', NULL, NULL, NULL)",
            f"INSERT INTO glec_extras SELECT value, 1, NULL, x'' FROM json_each('{list(range(2, 40))}')",
            f"UPDATE sqlite_sequence SET seq = {2**63 - 1}",
        ],
    )
    def test_rows_of_it_in_any_table_stop_nothing(self, gateway: ScriptedGateway, path: Path, statement: str) -> None:
        """Also where no number is left for the next row there, or ours is taken."""
        gateway.connect()
        gateway.publish("2-0", 2)
        foreign(path, statement)
        gateway.store.run(fill)
        look_beside(gateway.store)
        message_id = gateway.publish("2-1", 2, retain=True).message_id
        gateway.store.run(lambda table: add_entries(table, 5, [(message_id, Decision.SENT_AGAIN)]))
        assert gateway.store.in_doubt()[-1].message_id == message_id
        assert flush(gateway, ScriptedBroker()) == Counter(["2-0", "2-1", "x"])

    def test_flush_sees_it_in_an_idle_queue(self, gateway: ScriptedGateway, path: Path) -> None:
        gateway.connect()
        gateway.commit()
        foreign(path, INSERT.format("2-foreign", 1, FAR))
        assert not gateway.store.wait_empty(0.1)
        assert flush(gateway, ScriptedBroker()) == Counter(["2-foreign"])
        assert gateway.store.wait_empty(WAIT_S)

    def test_many_between_each_two_of_ours(self, gateway: ScriptedGateway, path: Path) -> None:
        broker = ScriptedBroker()
        gateway.connect()
        expected = []
        for turn in range(4):
            expected += [f"2-{turn}-{number}" for number in range(30)]
            foreign(path, *(INSERT.format(f"2-foreign-{turn}-{number}", number, FAR) for number in range(20)))
            expected += [f"2-foreign-{turn}-{number}" for number in range(20)]
            for number in range(30):
                gateway.publish(f"2-{turn}-{number}", 2)
        assert flush(gateway, broker) == Counter(expected)

    def test_an_id_that_waits_in_memory(self, path: Path) -> None:
        path.parent.mkdir()
        with closing(Store(path)) as store:
            outbox = RecordingOutbox(store)
            append(store, 2)
            ids = [store.append("t", "ours", 0, urgent=False) for _ in range(3)]
            foreign(
                path,
                "INSERT INTO mqtt_offline_queue (id, topic, payload, qos, timestamp, ttl)"
                f" VALUES ({ids[1]}, 't', 'theirs', 1, 1, {FAR})",
            )
            # Not yet: its id is that of a message of ours.
            assert outbox.read_all() == []
            assert store.wait_durable(ids[-1], WAIT_S)
            assert wait_for(lambda: (store.request_commit(), len(outbox.read_all()), len(outbox.sent))[2] == 6)
            assert Counter(row[2] for row in outbox.sent)["theirs"] == 1
            assert [row[2] for row in outbox.sent if row[0] in ids] == ["ours"] * 3
            assert store.size == 6

    def test_rows_that_it_deletes_and_changes(self, gateway: ScriptedGateway, path: Path) -> None:
        broker = ScriptedBroker()
        for number in range(40):
            gateway.publish(f"2-{number}", 2)
        gateway.connect()
        broker.feed(gateway.send())
        foreign(
            path,
            "DELETE FROM mqtt_offline_queue WHERE id IN (1, 2, 39)",
            "UPDATE mqtt_offline_queue SET qos = 1 WHERE id = 3",
        )
        gateway.publish("2-last", 2)
        assert set(flush(gateway, broker).values()) == {1}
        assert gateway.store.wait_empty(WAIT_S)

    def test_the_queue_s_size_holds_for_it_too(self, path: Path) -> None:
        path.parent.mkdir()
        with closing(Store(path, max_queue_size=10)) as store:
            append(store, 5)
            foreign(path, *(INSERT.format("x", 1, FAR) for _ in range(20)))
            append(store, 1)
            append(store, 1)
            assert store.size == len(ids_on_disk(path)) == 10


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
    "a folder where the copy is made": lambda path: (path.unlink(), path.with_name("queue.db-new").mkdir()),
    "its log emptied": lambda path: os.truncate(path.with_name("queue.db-wal"), 0),
    "its log overwritten with zeros": lambda path: overwrite_log(path, b"\0"),
    "its log overwritten with ones": lambda path: overwrite_log(path, b"\xff"),
    "its log overwritten with an older one": lambda path: overwrite_log(path, older_log(path)),
    "its images deleted": lambda path: log_of(path).unlink(),
}


@contextmanager
def damaged(path: Path) -> Iterator[Store]:
    """An open queue of 1200 messages, of which the log had more than is in memory, until somebody emptied that."""
    path.parent.mkdir()
    with closing(Store(path)) as store:
        store.append_many([("t", "x" * 1000, 2)] * 500)
        store.run(lambda _table: None)
        with store._writer.lock:
            store._writer.connection.wal_checkpoint()
        store.append_many([("t", "x" * 1000, 2)] * 700)
        store.run(lambda _table: None)
        os.truncate(path.with_name("queue.db-wal"), 0)
        yield store


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
            gateway.store.refuse([150])
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


class TestSize:
    """What deleted rows have left on the disk is given back."""

    def test_the_log_is_short_again_after_somebody_has_read_for_long(self, path: Path) -> None:
        path.parent.mkdir()
        log = path.with_name("queue.db-wal")
        with OfflineQueueManager(path, max_queue_size=1000) as queue:
            queue.enqueue("t", "x", 1)
            with closing(apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)) as reader:
                reader.execute("BEGIN")
                assert reader.execute("SELECT count(*) FROM mqtt_offline_queue").get == 1
                for _ in range(60):
                    queue.enqueue_many([("t", "x" * 1000, 1)] * 100)
                assert log.stat().st_size > 4 * LOG_BYTES_MAX
            for _ in range(3):
                queue.enqueue_many([("t", "x" * 1000, 1)] * 100)
            assert log.stat().st_size <= LOG_BYTES_MAX

    def test_the_file_is_small_again_after_a_flush(self, path: Path) -> None:
        path.parent.mkdir()
        monotonic = Clock(0.0)
        with closing(Store(path, max_queue_size=10**6, monotonic=monotonic)) as store:
            outbox = RecordingOutbox(store)
            ids = store.append_many([("t", "x" * 1000, 1)] * 6000)
            assert store.wait_durable(ids[-1], WAIT_S)
            assert outbox.read_all(1000) == ids
            outbox.finish(ids, drained=True)
            assert store.wait_empty(WAIT_S)
            kept = append(store, 100)
            assert path.stat().st_size > 4 << 20
            monotonic.now_s += 11
            store.request_commit()
            assert wait_for(lambda: path.stat().st_size < 1 << 20)
            assert path.with_name("queue.db-wal").stat().st_size <= LOG_BYTES_MAX
            assert ids_on_disk(path) == kept
            assert store._writer.took_s < 1
            assert append(store, 1) == [kept[-1] + 1]
            assert outbox.read_all() == [*kept, kept[-1] + 1]
