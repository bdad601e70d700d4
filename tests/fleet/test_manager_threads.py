"""Publishing from many threads and from inside callbacks: all arrives, in each thread's order; nothing locks up."""

from __future__ import annotations

import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from glec_fast import Dropped, DropReason, MQTTManager, OfflineQueueManager, PublishError
from glec_fast.durable.store import Store
from glec_fast.testbed.subscriber import Subscriber
from support.clock import Clock
from support.gateway import TIMEOUT_S, Recorder, eventually, quick_config
from support.scripted_gateway import ScriptedGateway

if TYPE_CHECKING:
    from pathlib import Path

    from glec_fast.testbed.broker import Broker

THREADS = 8
MESSAGES = 150
DAY_S = 24 * 60 * 60


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_eight_threads_publish_at_once(broker: Broker, tmp_path: Path, qos: int) -> None:
    config = quick_config(broker.url, tmp_path)
    recorder = Recorder()
    together = threading.Barrier(THREADS)

    def publish(thread: int) -> None:
        together.wait(TIMEOUT_S)
        for number in range(MESSAGES):
            manager.publish(f"t/{thread}", str(number), qos)

    with Subscriber(broker) as subscriber, MQTTManager(config) as manager:
        manager.set_connection_callback(recorder)
        manager.connect()
        assert recorder.wait_for_connections()
        threads = [threading.Thread(target=publish, args=(thread,)) for thread in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert manager.flush(TIMEOUT_S)
        assert subscriber.wait_for_count(THREADS * MESSAGES)
        for thread in range(THREADS):
            assert subscriber.payloads(f"t/{thread}") == [b"%d" % number for number in range(MESSAGES)]
        assert manager.get_metrics().messages_sent == THREADS * MESSAGES


def test_eight_threads_publish_while_the_link_drops(broker: Broker, tmp_path: Path) -> None:
    with Subscriber(broker, "t/#") as subscriber, MQTTManager(quick_config(broker.url, tmp_path)) as manager:

        def publish(thread: int) -> None:
            for number in range(40):
                manager.publish(f"t/{thread}", str(number), 2)

        manager.connect()
        threads = [threading.Thread(target=publish, args=(thread,)) for thread in range(THREADS)]
        for thread in threads:
            thread.start()
        broker.kill()
        for thread in threads:
            thread.join(TIMEOUT_S)
            assert not thread.is_alive()
        assert manager.get_metrics().queue_size > 0
        broker.start()
        subscriber.leave()
        subscriber.start()
        assert manager.flush(TIMEOUT_S)


def test_overflow_drops_the_oldest_and_tells_everyone(tmp_path: Path) -> None:
    dropped: list[Dropped] = []
    with MQTTManager(quick_config("tcp://127.0.0.1:1", tmp_path, queue_max_size=10)) as manager:
        manager.set_drop_callback(dropped.append)
        handles = [manager.publish("t", str(number), 1) for number in range(25)]
        assert handles[-1].wait_durable(TIMEOUT_S)
        for handle in handles[:15]:
            with pytest.raises(PublishError) as caught:
                handle.wait_for_publish(TIMEOUT_S)
            assert caught.value.reason == "overflow"
        assert not any(handle.is_published() for handle in handles[15:])
        assert eventually(lambda: len(dropped) == 15)
        metrics = manager.get_metrics()
        assert [each.message_id for each in dropped] == [handle.message_id for handle in handles[:15]]
        assert {(each.topic, each.qos, each.reason) for each in dropped} == {("t", 1, DropReason.OVERFLOW)}
    assert (metrics.queue_size, metrics.messages_failed, dict(metrics.drops)) == (10, 15, {"overflow": 15})


def test_the_expired_are_dropped_and_the_others_arrive(broker: Broker, tmp_path: Path) -> None:
    clock = Clock()
    dropped: list[Dropped] = []
    config = quick_config(broker.url, tmp_path, wait_for_disk=False)
    with Subscriber(broker) as subscriber, MQTTManager(config, clocks=clock.clocks) as manager:
        manager.set_drop_callback(dropped.append)
        # More than one reading of the queue, so that the first readings yield nothing to send.
        old = [manager.publish("t", "old", number % 3) for number in range(1200)]
        assert old[-1].wait_durable(TIMEOUT_S)
        clock.now_s += DAY_S + 1
        fresh = [manager.publish("t", f"{number}", number % 3) for number in range(9)]
        manager.connect()
        for handle in fresh:
            handle.wait_for_publish(TIMEOUT_S)
        assert manager.flush(TIMEOUT_S)
        assert subscriber.wait_for_count(len(fresh))
        assert b"old" not in subscriber.payloads()
        for handle in old:
            with pytest.raises(PublishError, match="expired"):
                handle.is_published()
        assert manager.get_metrics().drops == {"expired": len(old)}
        assert eventually(lambda: len(dropped) == len(old))


def test_the_clean_up_drops_the_expired_while_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glec_fast.fleet.client.Store", partial(Store, cleanup_interval_s=0.05))
    clock = Clock()
    with MQTTManager(quick_config("tcp://127.0.0.1:1", tmp_path), clocks=clock.clocks) as manager:
        handle = manager.publish("t", "old", 1)
        assert handle.wait_durable(TIMEOUT_S)
        clock.now_s += DAY_S + 1
        manager.connect()
        with pytest.raises(PublishError, match="expired"):
            handle.wait_for_publish(TIMEOUT_S)
        assert manager.flush(TIMEOUT_S)


def test_publishing_from_inside_the_drop_callback(tmp_path: Path) -> None:
    replaced: list[Dropped] = []

    def replace(dropped: Dropped) -> None:
        replaced.append(dropped)
        if len(replaced) <= 30:
            for qos in range(3):
                manager.publish("drops", "told", qos)
            manager.get_metrics()

    with MQTTManager(quick_config("tcp://127.0.0.1:1", tmp_path, queue_max_size=10)) as manager:
        manager.set_drop_callback(replace)
        for number in range(40):
            manager.publish("t", str(number), 2)
        manager.set_drop_callback(None)
        last = manager.publish("t", "last", 2)
        assert last.wait_durable(TIMEOUT_S)
        assert manager.get_metrics().queue_size == 10
    assert len(replaced) >= 30


@pytest.mark.parametrize("kind", [ValueError, SystemExit])
def test_an_exception_in_on_drop_of_the_queue_keeps_none_back(tmp_path: Path, kind: type[BaseException]) -> None:
    told: list[int] = []

    def fail(dropped: Dropped) -> None:
        told.append(dropped.message_id)
        raise kind("from the callback")

    with OfflineQueueManager(tmp_path / "queue.db", on_drop=fail) as queue:
        ids = [queue.enqueue("t", "x", 1) for _ in range(3)]
        queue._store.purge(ids)
        assert eventually(lambda: told == ids)


def test_an_exception_in_the_drop_callback_changes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def fail(_dropped: Dropped) -> None:
        raise ValueError("from the callback")

    with MQTTManager(quick_config("tcp://127.0.0.1:1", tmp_path, queue_max_size=1)) as manager:
        manager.set_drop_callback(fail)
        for number in range(5):
            assert manager.publish("t", str(number), 2).wait_durable(TIMEOUT_S)
        assert manager.get_metrics().drops == {"overflow": 4}
    assert "errors in the drop callback: ValueError('from the callback')" in caplog.text


def test_disconnecting_while_eight_threads_publish(broker: Broker, tmp_path: Path) -> None:
    config = quick_config(broker.url, tmp_path)
    accepted: set[bytes] = set()
    refused = threading.Semaphore(0)
    some = threading.Event()

    def publish(thread: int) -> None:
        number = 0
        try:
            while True:
                payload = b"%d-%d" % (thread, number)
                manager.publish("t", payload, 2)
                accepted.add(payload)
                number += 1
                if number == 5:
                    some.set()
        except RuntimeError:
            refused.release()

    with Subscriber(broker, "t") as subscriber:
        manager = MQTTManager(config)
        manager.connect()
        threads = [threading.Thread(target=publish, args=(thread,), daemon=True) for thread in range(THREADS)]
        for thread in threads:
            thread.start()
        assert some.wait(TIMEOUT_S)
        manager.disconnect()
        assert all(refused.acquire(timeout=TIMEOUT_S) for _ in range(THREADS))
        with MQTTManager(config) as successor:
            successor.connect()
            assert successor.flush(TIMEOUT_S)
        assert subscriber.wait_for_all(accepted)
        assert subscriber.repeated() == []


def test_qos_0_does_not_overtake_what_is_just_being_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ScriptedGateway(tmp_path / "queue.db") as gateway:
        gateway.connect(session_present=False)
        gateway.publish("held", 1)
        gateway.publish("first", 0)
        unpublished = ["second"]

        def read(limit: int, *, alerts: bool, real: Any = gateway.store.supply.read) -> Any:
            found = real(limit, alerts=alerts)
            # As another thread would.
            while found[0] and unpublished:
                gateway.publish(unpublished.pop(), 0)
            return found

        monkeypatch.setattr(gateway.store.supply, "read", read)
        sent = b""
        for _ in range(3):
            gateway.commit()
            sent += gateway.send()
        assert sent.index(b"first") < sent.index(b"second")
