"""The offline queue: the specification's twelve cases by name, and what they leave open."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glec_fast import OfflineQueueManager
from glec_fast.durable.outcomes import Dropped, DropReason
from glec_fast.durable.state_rows import save_image, save_session
from glec_fast.errors import MessageError, PayloadTypeError, QueueClosedError
from glec_fast.fleet.config import ConfigError
from glec_fast.protocol._session import Session
from support.clock import Clock

DAY_MS = 24 * 60 * 60 * 1000
WAIT_S = 20


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "queue.db"


@pytest.fixture
def make_queue(path: Path, clock: Clock) -> Iterator[Callable[..., OfflineQueueManager]]:
    opened: list[OfflineQueueManager] = []

    def make(**settings: object) -> OfflineQueueManager:
        queue = OfflineQueueManager(path, clocks=clock.clocks, **settings)  # type: ignore[arg-type]
        opened.append(queue)
        return queue

    yield make
    for queue in opened:
        queue.release()


@pytest.fixture
def queue(make_queue: Callable[..., OfflineQueueManager]) -> OfflineQueueManager:
    return make_queue()


class TestSpecification:
    """The queue suite that the specification lists."""

    def test_enqueue_message(self, queue: OfflineQueueManager) -> None:
        message_id = queue.enqueue("glec/dtg/device-123/inference", '{"a":1}', 1)
        assert message_id == 1
        assert queue.get_queue_size() == 1

    def test_dequeue_all_messages(self, queue: OfflineQueueManager, clock: Clock) -> None:
        ids = [queue.enqueue("glec/dtg/device-123/inference", f"message {n}", 1) for n in range(3)]
        messages = queue.dequeue_all()
        assert [message.id for message in messages] == ids
        assert messages[0] == (
            ids[0],
            "glec/dtg/device-123/inference",
            "message 0",
            1,
            int(clock.now_s * 1000),
            int(clock.now_s * 1000) + DAY_MS,
            0,
        )
        assert queue.get_queue_size() == 3, "a message stays until it is deleted"

    def test_delete_message(self, queue: OfflineQueueManager) -> None:
        first, second = queue.enqueue("t", "1", 1), queue.enqueue("t", "2", 1)
        assert queue.delete(first) is True
        assert queue.delete(first) is False
        assert [message.id for message in queue.dequeue_all()] == [second]

    def test_fifo_ordering(self, queue: OfflineQueueManager, clock: Clock) -> None:
        for n in range(5):
            queue.enqueue("t", str(n), 1)
            clock.now_s += 1
        assert [message.payload for message in queue.dequeue_all()] == ["0", "1", "2", "3", "4"]

    def test_ttl_expiration(self, queue: OfflineQueueManager, clock: Clock) -> None:
        queue.enqueue("t", "short", 1, ttl_millis=1000)
        queue.enqueue("t", "long", 1)
        clock.now_s += 1.001
        assert queue.cleanup_expired() == 1
        assert [message.payload for message in queue.dequeue_all()] == ["long"]

    def test_ttl_default_is_24_hours(self, queue: OfflineQueueManager, clock: Clock) -> None:
        queue.enqueue("t", "x", 1)
        clock.now_s += 24 * 3600
        assert queue.cleanup_expired() == 0
        clock.now_s += 0.001
        assert queue.cleanup_expired() == 1

    def test_retry_count_increment(self, queue: OfflineQueueManager) -> None:
        message_id = queue.enqueue("t", "x", 1)
        for expected in (1, 2, 3):
            assert queue.increment_retry_count(message_id) is True
            assert queue.dequeue_all()[0].retry_count == expected
        assert queue.increment_retry_count(message_id + 1) is False

    def test_max_retry_cleanup(self, queue: OfflineQueueManager) -> None:
        given_up, kept = queue.enqueue("t", "given up", 1), queue.enqueue("t", "kept", 1)
        for _ in range(3):
            queue.increment_retry_count(given_up)
        for _ in range(2):
            queue.increment_retry_count(kept)
        assert queue.cleanup_max_retries() == 1
        assert [message.id for message in queue.dequeue_all()] == [kept]

    def test_queue_size_limit(self, make_queue: Callable[..., OfflineQueueManager]) -> None:
        queue = make_queue(max_queue_size=5)
        for n in range(8):
            queue.enqueue("t", str(n), 1)
        assert queue.get_queue_size() == 5
        assert [message.payload for message in queue.dequeue_all()] == ["3", "4", "5", "6", "7"]

    def test_qos_levels(self, queue: OfflineQueueManager) -> None:
        for qos in (0, 1, 2):
            queue.enqueue("t", str(qos), qos)
        assert [message.qos for message in queue.dequeue_all()] == [0, 1, 2]

    def test_persistence_across_restart(self, make_queue: Callable[..., OfflineQueueManager]) -> None:
        queue = make_queue()
        message_id = queue.enqueue("t", "kept", 2)
        queue.increment_retry_count(message_id)
        queue.release()
        (message,) = make_queue().dequeue_all()
        assert (message.id, message.payload, message.qos, message.retry_count) == (message_id, "kept", 2, 1)

    def test_database_schema(self, queue: OfflineQueueManager, path: Path) -> None:
        queue.enqueue("t", "x", 1)
        queue.release()
        with sqlite3.connect(path) as database:
            columns = database.execute("PRAGMA table_info(mqtt_offline_queue)").fetchall()
            indexes = database.execute("PRAGMA index_list(mqtt_offline_queue)").fetchall()
        database.close()
        assert [(name, kind, not_null, default, key) for _, name, kind, not_null, default, key in columns] == [
            ("id", "INTEGER", 0, None, 1),
            ("topic", "TEXT", 1, None, 0),
            ("payload", "TEXT", 1, None, 0),
            ("qos", "INTEGER", 1, None, 0),
            ("timestamp", "BIGINT", 1, None, 0),
            ("ttl", "BIGINT", 1, None, 0),
            ("retry_count", "INTEGER", 0, "0", 0),
        ]
        assert {name for _, name, *_ in indexes} == {"idx_timestamp", "idx_ttl"}


@pytest.mark.parametrize(
    ("payload", "stored"),
    [
        ("text", "text"),
        ("", ""),
        ("a\0b", b"a\0b"),
        ("Größe 한국", "Größe 한국"),
        (b"ascii", "ascii"),
        (b"\xff\x00", b"\xff\x00"),
        (bytearray(b"\xfe"), b"\xfe"),
        (memoryview(b"view"), "view"),
        ({"speed": 60.5}, '{"speed":60.5}'),
        (None, ""),
        (42, "42"),
        (1.5, "1.5"),
    ],
)
def test_payloads_come_back(queue: OfflineQueueManager, payload: object, stored: str | bytes) -> None:
    queue.enqueue("t", payload, 1)
    assert queue.dequeue_all()[0].payload == stored


@settings(max_examples=25, deadline=None)
@given(payloads=st.lists(st.one_of(st.binary(max_size=50), st.text(st.characters(codec="utf-8"), max_size=50))))
def test_any_bytes_survive_a_restart(tmp_path_factory: pytest.TempPathFactory, payloads: list[str | bytes]) -> None:
    path = tmp_path_factory.mktemp("any") / "queue.db"
    with OfflineQueueManager(path) as queue:
        queue.enqueue_many([("t", payload, 1) for payload in payloads])
    with OfflineQueueManager(path) as queue:
        found = [message.payload for message in queue.dequeue_all()]
    assert [as_bytes(payload) for payload in found] == [as_bytes(payload) for payload in payloads]


def as_bytes(payload: str | bytes) -> bytes:
    return payload.encode() if isinstance(payload, str) else payload


def test_text_is_stored_as_text(queue: OfflineQueueManager, path: Path) -> None:
    queue.enqueue_many([("t", "a", 1), ("t", b"b", 1), ("t", b"\xff", 1)])
    queue.release()
    database = sqlite3.connect(path)
    kinds = [kind for (kind,) in database.execute("SELECT typeof(payload) FROM mqtt_offline_queue ORDER BY id")]
    database.close()
    assert kinds == ["text", "text", "blob"]


def test_enqueue_many_refuses_all_for_one_bad_row(queue: OfflineQueueManager) -> None:
    with pytest.raises(MessageError):
        queue.enqueue_many([("t", "good", 1), ("a/#", "bad", 1)])
    assert queue.dequeue_all() == []
    assert queue.enqueue_many([]) == []


def test_enqueue_many_takes_a_generator(queue: OfflineQueueManager) -> None:
    assert queue.enqueue_many(("t", str(n), n % 3) for n in range(4)) == [1, 2, 3, 4]


@pytest.mark.parametrize("ttl_millis", ["1", 1.5, True, 10**16, -(10**16)])
def test_malformed_ttl_is_refused(queue: OfflineQueueManager, ttl_millis: object) -> None:
    with pytest.raises(MessageError, match="ttl_millis"):
        queue.enqueue("t", "x", 1, ttl_millis=ttl_millis)  # type: ignore[arg-type]
    with pytest.raises(MessageError, match="ttl_millis"):
        queue.enqueue_many([("t", "x", 1)], ttl_millis=ttl_millis)  # type: ignore[arg-type]
    assert queue.get_queue_size() == 0


@pytest.mark.parametrize("message_id", ["1", 1.5, None, 2**63, True])
def test_malformed_id_is_refused(queue: OfflineQueueManager, message_id: object) -> None:
    with pytest.raises(MessageError, match="message id"):
        queue.delete(message_id)  # type: ignore[arg-type]
    with pytest.raises(MessageError, match="message id"):
        queue.increment_retry_count(message_id)  # type: ignore[arg-type]
    assert queue.enqueue("t", "x", 1) == 1, "the queue goes on"


def test_bad_input_is_refused_and_nothing_queued(queue: OfflineQueueManager) -> None:
    with pytest.raises(MessageError):
        queue.enqueue("", "x", 1)
    with pytest.raises(MessageError):
        queue.enqueue("t", "x", 3)
    with pytest.raises(PayloadTypeError):
        queue.enqueue("t", object(), 1)
    assert queue.get_queue_size() == 0


@pytest.mark.parametrize(
    "settings",
    [{"max_queue_size": 0}, {"max_queue_size": 1.5}, {"ttl_hours": 0}, {"ttl_hours": float("nan")}, {"max_retry": 0}],
)
def test_bad_settings_are_refused(tmp_path: Path, settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        OfflineQueueManager(tmp_path / "queue.db", **settings)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_ten_thousand_of_one_timestamp_stay_in_order(make_queue: Callable[..., OfflineQueueManager]) -> None:
    queue = make_queue(max_queue_size=10_000)
    queue.enqueue_many([("t", str(n), 1) for n in range(10_000)])
    queue.enqueue_many([("t", str(n), 1) for n in range(10_000, 10_005)])
    messages = queue.dequeue_all()
    assert [message.payload for message in messages] == [str(n) for n in range(5, 10_005)]


def test_stats(queue: OfflineQueueManager, clock: Clock) -> None:
    assert queue.stats()[:3] == (0, None, None)
    start_ms = int(clock.now_s * 1000)
    queue.enqueue("t", "x", 1, ttl_millis=10)
    clock.now_s += 2
    queue.enqueue("t", "x", 1)
    stats = queue.stats()
    assert stats[:3] == (2, start_ms, start_ms + 2000)
    assert stats.disk_bytes > 4096
    assert stats.drops == {}
    queue.cleanup_expired()
    assert queue.stats().drops == {"expired": 1}


def test_each_drop_is_told(make_queue: Callable[..., OfflineQueueManager], clock: Clock) -> None:
    told: list[Dropped] = []
    arrived = threading.Semaphore(0)

    def on_drop(dropped: Dropped) -> None:
        told.append(dropped)
        arrived.release()
        raise RuntimeError("a callback's fault is its own")

    queue = make_queue(max_queue_size=2, on_drop=on_drop)
    first = queue.enqueue("a", "1", 0, ttl_millis=DAY_MS)
    second, third = queue.enqueue("b", "2", 1), queue.enqueue("c", "3", 2)
    for _ in range(3):
        queue.increment_retry_count(second)
    assert queue.cleanup_max_retries() == 1
    clock.now_s += 25 * 3600
    assert queue.cleanup_expired() == 1
    for _ in range(3):
        assert arrived.acquire(timeout=WAIT_S)
    assert told == [
        (first, "a", 0, DropReason.OVERFLOW),
        (second, "b", 1, DropReason.GIVEN_UP),
        (third, "c", 2, DropReason.EXPIRED),
    ]


def test_the_queue_may_be_used_from_its_drop_callback(
    make_queue: Callable[..., OfflineQueueManager], path: Path
) -> None:
    found: list[object] = []
    done = threading.Event()

    def on_drop(dropped: Dropped) -> None:
        found.extend((queue.dequeue_all(), queue.get_queue_size(), queue.enqueue("t", "from the callback", 1)))
        queue.release()
        done.set()

    queue = make_queue(on_drop=on_drop)
    message_id = queue.enqueue("t", "x", 1, ttl_millis=-1)
    assert queue.cleanup_expired() == 1
    assert done.wait(WAIT_S)
    assert found == [[], 0, message_id + 1]
    queue.release()
    assert [message.payload for message in make_queue().dequeue_all()] == ["from the callback"]


def test_release_is_idempotent_and_final(queue: OfflineQueueManager) -> None:
    queue.release()
    queue.release()
    for call in (queue.dequeue_all, queue.stats, queue.cleanup_expired, lambda: queue.enqueue("t", "x", 1)):
        with pytest.raises(QueueClosedError):
            call()


def test_a_cleanup_of_thousands(queue: OfflineQueueManager) -> None:
    queue.enqueue_many([("t", "x", 1)] * 2500, ttl_millis=-1)
    queue.enqueue("t", "kept", 1)
    assert queue.cleanup_expired() == 2500
    assert queue.get_queue_size() == 1


def test_what_a_killed_client_had_delivered_is_not_in_the_queue(
    make_queue: Callable[..., OfflineQueueManager], caplog: pytest.LogCaptureFixture
) -> None:
    queue = make_queue()
    queue.enqueue_many([("t", str(number), 2) for number in range(6)])
    _, image = Session(durable=True).take_image([(1, 2), (4, 4)])
    queue._store.run(lambda table: save_session(table, "client", "host:1883", image))
    queue.release()
    queue = make_queue()
    assert [message.id for message in queue.dequeue_all()] == [3, 5, 6]
    assert queue.get_queue_size() == 3
    queue._store.run(lambda table: save_image(table, image[:-1]))
    queue.release()
    queue = make_queue()
    assert "may still be in the queue" in caplog.text
    assert queue.get_queue_size() == 3


def test_ids_are_not_given_twice(make_queue: Callable[..., OfflineQueueManager]) -> None:
    queue = make_queue()
    message_id = queue.enqueue("t", "x", 1)
    queue.delete(message_id)
    queue.release()
    assert make_queue().enqueue("t", "y", 1) == message_id + 1
