"""Retain and MQTT 5 properties of queued messages: kept beside the queue's table, gone with its rows."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING, Any

import apsw
import pytest
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

import glec_fast
from glec_fast import MessageError, OfflineQueueManager, QueueStorageError
from glec_fast.durable._table import QueueTable
from glec_fast.durable.extras import RETAINED, Extras, extras_of
from glec_fast.durable.store import Store
from support.clock import Clock
from support.extras import kept, properties_of
from support.gateway import TIMEOUT_S, eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

V2 = CallbackAPIVersion.VERSION2
V5 = MQTTProtocolVersion.MQTTv5
EXTRAS = Extras(True, 3600, b"\x01\x01")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "queue.db"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make_store(path: Path, clock: Clock) -> Iterator[Callable[..., Store]]:
    opened: list[Store] = []

    def make(**settings: Any) -> Store:
        store = Store(path, clocks=clock.clocks, **settings)
        opened.append(store)
        return store

    yield make
    for store in opened:
        store.close()


def append(store: Store, *extras: Extras | None, **settings: Any) -> list[int]:
    ids = [store.append("t", f"{number}", 1, extras=each, **settings) for number, each in enumerate(extras)]
    assert store.wait_durable(ids[-1], TIMEOUT_S)
    return ids


class TestKept:
    def test_only_messages_that_have_any_are_in_the_table(self, make_store: Callable[..., Store], path: Path) -> None:
        store = make_store()
        append(store, None, RETAINED, None, EXTRAS)
        assert kept(path) == [2, 4]
        rows, _ = store.supply.read(10)
        assert [row[6:] for row in rows] == [
            (), (True, None), (), (True, b"\x07\x01\x01\x02\x00\x00\x0e\x10"),
        ]  # fmt: skip

    def test_the_next_process_has_them(self, make_store: Callable[..., Store]) -> None:
        store = make_store()
        append(store, None, RETAINED)
        store.close()
        rows, _ = make_store().supply.read(10)
        assert [row[6:] for row in rows] == [(), (True, None)]

    def test_without_any_nothing_is_joined(self, make_store: Callable[..., Store]) -> None:
        store = make_store()
        statements: list[str] = []
        store._reader._connection.set_exec_trace(
            lambda _cursor, sql, _bindings: statements.append(sql) or True  # type: ignore[func-returns-value]
        )
        append(store, None)
        store.supply.read(10)
        assert statements
        assert not any("glec_extras" in sql for sql in statements)
        append(store, RETAINED)
        store.supply.read(10)
        assert "glec_extras" in statements[-1]
        store.run(lambda table: table.delete([2]))
        append(store, None)
        store.supply.read(10)
        assert "glec_extras" not in statements[-1]

    def test_the_first_that_comes_while_the_rows_are_read_is_read_whole(
        self, make_store: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = make_store()
        reading = store._reader.table

        class Late:
            def read_after(self, *arguments: Any) -> Any:
                monkeypatch.setattr(store._reader, "table", reading)
                # Not in this thread, which must not wait for the disk: it has the reader's lock.
                with ThreadPoolExecutor(1) as other:
                    other.submit(append, store, RETAINED).result()
                return reading.read_after(*arguments)

        append(store, None)
        monkeypatch.setattr(store._reader, "table", Late())
        rows, _ = store.supply.read(10)
        assert [row[6:] for row in rows] == [(), (True, None)]

    def test_a_transaction_that_is_undone_brings_them_back(self, make_store: Callable[..., Store], path: Path) -> None:
        store = make_store()
        append(store, RETAINED, None)

        def fail(table: QueueTable) -> None:
            table.delete([1])
            raise apsw.IOError("disk I/O error")

        with pytest.raises(QueueStorageError):
            store.run(fail)
        assert kept(path) == [1]
        rows, _ = store.supply.read(10)
        assert [row[6:] for row in rows] == [(True, None), ()]

    def test_a_clock_that_steps_while_they_wait_in_memory(
        self, make_store: Callable[..., Store], path: Path, clock: Clock
    ) -> None:
        store = make_store(qos0_commit_delay_s=3600)
        store.append("t", "x", 0, urgent=False, extras=RETAINED)
        clock.step(1000)
        assert store.wait_durable(1, TIMEOUT_S)
        assert kept(path) == [1]


class TestGoneWithTheirRows:
    def test_finished(self, make_store: Callable[..., Store], path: Path) -> None:
        store = make_store()
        append(store, RETAINED, EXTRAS, None, RETAINED)
        store.run(lambda table: table.delete_finished([(1, 1), (3, 3)]))
        assert kept(path) == [2, 4]
        store.run(lambda table: table.delete_finished([(2, 2), (4, 4)]))
        assert kept(path) == []

    def test_overflow(self, make_store: Callable[..., Store], path: Path) -> None:
        store = make_store(max_queue_size=2)
        append(store, RETAINED, RETAINED, RETAINED, RETAINED)
        assert store.drops == {"overflow": 2}
        assert kept(path) == [3, 4]

    def test_expiry(self, make_store: Callable[..., Store], path: Path, clock: Clock) -> None:
        store = make_store()
        append(store, RETAINED, EXTRAS, None)
        clock.now_s += 3601
        assert store.drop_expired() == 1, "Message Expiry Interval ends what the queue's own age would not"
        assert kept(path) == [1]
        clock.now_s += 24 * 3600
        assert store.drop_expired() == 2
        assert kept(path) == []

    def test_given_up(self, make_store: Callable[..., Store], path: Path) -> None:
        store = make_store(max_retry=1)
        append(store, RETAINED, RETAINED)
        store.supply.refuse([1])
        assert eventually(lambda: kept(path) == [2])

    def test_taken_back(self, make_store: Callable[..., Store], path: Path) -> None:
        store = make_store(qos0_commit_delay_s=3600)
        first = store.append("t", "x", 0, urgent=False, extras=RETAINED)
        assert store.withdraw(first)
        append(store, None)
        assert kept(path) == []

    def test_deleted_through_the_queue_alone(self, make_store: Callable[..., Store], path: Path) -> None:
        store = make_store()
        append(store, RETAINED, RETAINED, EXTRAS)
        store.close()
        with closing(OfflineQueueManagerAt(path)) as queue:
            assert queue.delete(1)
            queue.increment_retry_count(2)
            for _ in range(2):
                queue.increment_retry_count(2)
            assert queue.cleanup_max_retries() == 1
            assert kept(path) == [3]

    def test_deleted_by_another_program(self, make_store: Callable[..., Store], path: Path) -> None:
        store = make_store()
        append(store, RETAINED, RETAINED)
        store.close()
        with closing(apsw.Connection(str(path))) as database:
            database.execute("DELETE FROM mqtt_offline_queue WHERE id = 1")
        store = make_store()
        store.run(store._dropping.clean_up)
        assert kept(path) == [2]

    def test_salvaged_from_a_damaged_file(self, make_store: Callable[..., Store], path: Path) -> None:
        store = make_store()
        append(store, RETAINED, None, EXTRAS)
        store.close()
        path.with_name(path.name + "-salvage").touch()
        store = make_store()
        assert store.salvage is not None
        assert kept(path) == [1, 3]
        rows, _ = store.supply.read(10)
        assert [bool(row[6:]) for row in rows] == [True, False, True]


class OfflineQueueManagerAt(OfflineQueueManager):
    def close(self) -> None:
        self.release()


class TestExpiryInterval:
    @pytest.mark.parametrize(("waited_s", "left_s"), [(0, 3600), (0.999, 3600), (1, 3599), (3599.5, 1)])
    def test_it_counts_down_while_the_message_waits(
        self, make_store: Callable[..., Store], clock: Clock, waited_s: float, left_s: int
    ) -> None:
        store = make_store()
        append(store, Extras(False, 3600, b""))
        clock.now_s += waited_s
        rows, _ = store.supply.read(10)
        assert rows[0][6:] == (False, b"\x05\x02" + left_s.to_bytes(4, "big"))

    def test_what_has_expired_is_not_sent(self, make_store: Callable[..., Store], clock: Clock) -> None:
        store = make_store()
        append(store, Extras(False, 3600, b""))
        clock.now_s += 3600.5
        assert store.supply.read(10)[0] == []

    def test_what_has_expired_in_flight_is_sent_again(self, make_store: Callable[..., Store], clock: Clock) -> None:
        store = make_store()
        append(store, Extras(False, 3600, b""))
        store.supply.read(10)
        store.supply.rewind([1], [])
        clock.now_s += 10_000
        assert store.supply.read(10)[0][0][6:] == (False, b"\x05\x02\x00\x00\x00\x01")

    def test_a_clock_that_steps_changes_nothing(self, make_store: Callable[..., Store], clock: Clock) -> None:
        store = make_store()
        append(store, Extras(False, 3600, b""))
        clock.now_s += 10
        clock.step(10**8)
        store.run(lambda _table: None)
        assert store.supply.read(10)[0][0][7] == b"\x05\x02" + (3590).to_bytes(4, "big")


class TestAtTheDoor:
    def test_nothing_to_keep(self) -> None:
        assert extras_of(False, None) is None
        assert extras_of(False, properties_of()) is None
        assert extras_of(True, properties_of()) == RETAINED

    def test_packed_they_are_what_paho_sends(self) -> None:
        properties = properties_of(
            ContentType="text", UserProperty=[("a", "1"), ("a", "2")], ResponseTopic="r", CorrelationData=b"\0c",
        )  # fmt: skip
        extras = extras_of(False, properties)
        assert extras is not None
        assert extras.packed() == properties.pack()

    @pytest.mark.parametrize(
        "values",
        [
            {"TopicAlias": 1},
            {"SubscriptionIdentifier": 1},
            {"ResponseTopic": "a/#"},
            {"MessageExpiryInterval": -1},
            {"MessageExpiryInterval": 2**32},
            {"MessageExpiryInterval": "1"},
            {"UserProperty": [5]},
            {"ContentType": 5},
            {"ContentType": "a\tb"},
            {"ResponseTopic": "a\x85b"},
            {"UserProperty": [("a", "1"), ("b\ufffe", "2")]},
            {"UserProperty": [("a", "1\x7f")]},
        ],
    )
    def test_what_no_later_connection_could_carry_is_refused(self, path: Path, values: dict[str, Any]) -> None:
        with glec_fast.Client(V2, "stored", store=path, protocol=V5) as client:
            with pytest.raises(MessageError):
                client.publish("t", "x", 1, properties=properties_of(**values))
            assert client.store.size == 0

    def test_another_packet_s_properties_are_refused(self) -> None:
        properties = Properties(PacketTypes.CONNECT)
        properties.SessionExpiryInterval = 1
        with pytest.raises(MessageError, match="PUBLISH"):
            extras_of(False, properties)
