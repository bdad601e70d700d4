"""AsyncMQTTManager: what its awaits promise, over cut links, closed queues and cancelled tasks."""

from __future__ import annotations

import asyncio
import inspect
import json
import random
import threading
from collections import Counter
from contextlib import suppress
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from glec_fast import (
    Alert,
    ConfigError,
    ConnectionCallback,
    Dropped,
    GpsFix,
    Inference,
    MessageError,
    MQTTManager,
    PublishError,
    QueueClosedError,
    Status,
    Telemetry,
    TLSConfig,
)
from glec_fast.aio import AsyncMQTTManager
from glec_fast.engine.reading import Reader
from glec_fast.outbox.narrow import Narrow
from glec_fast.outbox.unanswered import Unanswered
from glec_fast.testbed.link import Link
from glec_fast.transport import dial
from support.async_runs import ON_BOTH_LOOPS, eventually, run
from support.gateway import BOTH_VERSIONS, TIMEOUT_S, quick_config
from support.store import payloads_on_disk

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import StartBroker, StartSubscriber
    from glec_fast.testbed.broker import Broker
    from glec_fast.testbed.certificates import CertificateAuthority

NOWHERE = "tcp://127.0.0.1:1"
TELEMETRY = Telemetry(62.5, 1850, 23.5, 71, GpsFix(37.5665, 126.978, 61.9))
INFERENCE = Inference("normal", 0.93, 88, 12.4, 41)
ALERT = Alert("harsh_braking", "high", GpsFix(37.5665, 126.978), {"deceleration": -6.1})
STATUS = Status("ONLINE", 3600, 12.6, 128, 2048, 50_000, 1234, 5)


def network_threads() -> list[str]:
    return [each.name for each in threading.enumerate() if each.name.startswith("paho-mqtt-client-DTG")]


async def connected(manager: AsyncMQTTManager) -> None:
    """Also handed over to the loop."""
    assert await eventually(lambda: manager.is_connected() and not network_threads())
    # What the thread handed over as it ended is taken in the loop's next round.
    await asyncio.sleep(0)


@ON_BOTH_LOOPS
@pytest.mark.parametrize("qos", [1, 2])
def test_publish_returns_once_it_is_on_disk(tmp_path: Path, qos: int, kind: str) -> None:
    async def program() -> None:
        async with AsyncMQTTManager(quick_config(NOWHERE, tmp_path)) as manager:
            for number in range(20):
                await manager.publish("t", str(number), qos)
                assert payloads_on_disk(tmp_path)[-1] == str(number)
            together = await asyncio.gather(*(manager.publish("t", f"{number}", qos) for number in range(20, 500)))
            assert len(payloads_on_disk(tmp_path)) == 500
            assert [each.message_id for each in together] == sorted(each.message_id for each in together)

    run(program, kind)
    assert payloads_on_disk(tmp_path) == [str(number) for number in range(500)]


@ON_BOTH_LOOPS
@BOTH_VERSIONS
def test_the_four_messages_arrive(
    broker: Broker, start_subscriber: StartSubscriber, tmp_path: Path, protocol_version: int, kind: str
) -> None:
    subscriber = start_subscriber(broker)

    async def program() -> None:
        config = quick_config(broker.url, tmp_path, protocol_version=protocol_version)
        async with AsyncMQTTManager(config) as manager:
            await connected(manager)
            handles = [
                await manager.publish_telemetry(TELEMETRY),
                await manager.publish_inference(INFERENCE),
                await manager.publish_alert(ALERT),
                await manager.publish_status(STATUS),
                await manager.publish_status(),
            ]
            for handle in handles:
                await handle
                # As often as wanted.
                await handle.delivered()
                assert handle.is_published()
            assert [handle.qos for handle in handles] == [0, 1, 2, 1, 1]
            assert await manager.flush(TIMEOUT_S)
            assert manager.get_metrics().messages_sent == 5

    run(program, kind)
    assert subscriber.wait_for_count(5)
    suffixes = [each.topic.rsplit("/", 1)[1] for each in subscriber.arrivals]
    assert sorted(suffixes) == ["alerts", "inference", "status", "status", "telemetry"]


def test_while_it_is_connected_no_thread_has_the_network(broker: Broker, tmp_path: Path) -> None:
    async def program() -> None:
        async with AsyncMQTTManager(quick_config(broker.url, tmp_path)) as manager:
            await connected(manager)
            ours = {each.name for each in threading.enumerate() if "glec" in each.name or "paho" in each.name}
            assert ours == {"glec-fast-store"}
            for _ in range(50):
                await (await manager.publish("t", "x", 2))
            assert network_threads() == []

    run(program)
    assert network_threads() == []


def test_a_narrow_connection_stays_with_its_thread_as_the_queue_is_gone_through_when_it_widens(
    broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_widen = False

    def begin(unanswered: Unanswered) -> None:
        unanswered.is_careful = True

    monkeypatch.setattr(Unanswered, "begin", begin)
    monkeypatch.setattr(Narrow, "may_widen", lambda _narrow: may_widen)

    async def program() -> None:
        nonlocal may_widen
        async with AsyncMQTTManager(quick_config(broker.url, tmp_path)) as manager:
            assert await eventually(manager.is_connected)
            for _ in range(3):
                await (await manager.publish("t", "x", 1))
                assert network_threads()
            may_widen = True
            await (await manager.publish("t", "x", 1))
            await connected(manager)
            await (await manager.publish("t", "x", 1))

    run(program)


@ON_BOTH_LOOPS
def test_a_long_stream_over_cuts_arrives_once(
    start_broker: StartBroker, start_subscriber: StartSubscriber, tmp_path: Path, kind: str
) -> None:
    broker = start_broker(nodelay=True)
    subscriber = start_subscriber(broker, "t")

    async def program() -> None:
        with Link((broker.host, broker.port)) as link:
            config = quick_config(f"tcp://127.0.0.1:{link.port}", tmp_path, protocol_version=5)
            async with AsyncMQTTManager(config) as manager:
                handles = []
                for cut in range(6):
                    assert await eventually(lambda cut=cut: manager.get_metrics().connects > cut)  # type: ignore[misc]
                    await connected(manager)
                    handles += await asyncio.gather(*(manager.publish("t", f"{cut} {n}", 2) for n in range(60)))
                    link.drop()
                await asyncio.gather(*handles)
                assert await manager.flush(TIMEOUT_S)
                assert manager.get_metrics().reconnect_count >= 5

    run(program, kind)
    assert subscriber.wait_for_count(360)
    assert set(Counter(subscriber.payloads("t")).values()) == {1}


def test_what_is_published_before_the_broker_is_there_goes_once_it_is(
    start_broker: StartBroker, start_subscriber: StartSubscriber, tmp_path: Path
) -> None:
    broker = start_broker(persistence=True)
    subscriber = start_subscriber(broker, "t")

    async def program() -> None:
        with Link((broker.host, broker.port)) as link:
            link.cut()
            async with AsyncMQTTManager(quick_config(f"tcp://127.0.0.1:{link.port}", tmp_path)) as manager:
                handle = await manager.publish("t", "early", 2)
                flushing = asyncio.ensure_future(manager.flush(TIMEOUT_S))
                assert not await manager.flush(0.05)
                assert not handle.is_published()
                link.restore()
                await handle
                assert await flushing

    run(program)
    assert subscriber.wait_for_count(1)


def test_the_file_of_one_kind_of_manager_is_the_others(
    broker: Broker, start_subscriber: StartSubscriber, tmp_path: Path
) -> None:
    subscriber = start_subscriber(broker, "t")
    with MQTTManager(quick_config(NOWHERE, tmp_path)) as manager:
        number = manager.publish("t", "from a thread", 2).message_id

    async def program() -> int:
        async with AsyncMQTTManager(quick_config(NOWHERE, tmp_path)) as manager:
            handle = await manager.handle_for(number)
            assert handle is not None
            assert not handle.is_published()
            with pytest.raises(MessageError):
                await manager.handle_for(number + 99)
            assert await manager.in_doubt() == []
            return (await manager.publish("t", "from the loop", 2)).message_id

    other = run(program)
    with MQTTManager(quick_config(broker.url, tmp_path)) as manager:
        assert manager.handle_for(other) is not None
        manager.connect()
        assert manager.flush(TIMEOUT_S)
    assert subscriber.wait_for_count(2)


@ON_BOTH_LOOPS
@pytest.mark.parametrize("seed", range(2))
def test_cancelled_at_any_await_nothing_is_lost_or_doubled(
    start_broker: StartBroker, start_subscriber: StartSubscriber, tmp_path: Path, kind: str, seed: int
) -> None:
    broker = start_broker(nodelay=True)
    subscriber = start_subscriber(broker, "t")
    rng = random.Random(seed)
    accepted: set[str] = set()
    cancelled: set[str] = set()

    async def send(manager: AsyncMQTTManager, payload: str) -> None:
        try:
            handle = await manager.publish("t", payload, 2)
        except asyncio.CancelledError:
            cancelled.add(payload)
            raise
        accepted.add(payload)
        await handle

    async def program() -> None:
        with Link((broker.host, broker.port)) as link:
            config = quick_config(f"tcp://127.0.0.1:{link.port}", tmp_path, protocol_version=5)
            async with AsyncMQTTManager(config) as manager:
                for turn in range(6):
                    tasks = [asyncio.ensure_future(send(manager, f"{turn} {number}")) for number in range(80)]
                    tasks += [asyncio.ensure_future(manager.flush()) for _ in range(3)]
                    for _ in range(rng.randrange(12)):
                        await asyncio.sleep(0)
                    if turn % 2:
                        link.drop()
                    for task in rng.sample(tasks, 40):
                        task.cancel()
                        if rng.random() < 0.2:
                            await asyncio.sleep(0)
                    await asyncio.gather(*tasks, return_exceptions=True)
                assert await manager.flush(TIMEOUT_S)

    run(program, kind)
    assert accepted
    assert cancelled
    assert subscriber.wait_for_all({each.encode() for each in accepted})
    counts = Counter(each.decode() for each in subscriber.payloads("t"))
    assert {payload: count for payload, count in counts.items() if count > 1} == {}
    assert counts.keys() <= accepted | cancelled


def test_without_a_thread_for_the_next_connection_it_is_made_once_there_is_one(
    broker: Broker, link: Link, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = 0

    def start(_thread: threading.Thread) -> None:
        nonlocal failed
        failed += 1
        raise RuntimeError("can't start new thread")

    async def program() -> None:
        async with AsyncMQTTManager(quick_config(f"tcp://127.0.0.1:{link.port}", tmp_path)) as manager:
            await connected(manager)
            assert network_threads() == []
            with monkeypatch.context() as patched:
                patched.setattr(threading.Thread, "start", start)
                link.drop()
                assert await eventually(lambda: failed >= 2)
            await manager.publish("t", "x", 1)
            assert await manager.flush(TIMEOUT_S)

    run(program)


def test_left_without_a_thread_for_it_nothing_begins_later(
    broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused: list[str] = []
    start = threading.Thread.start

    def refuse_first(thread: threading.Thread) -> None:
        if thread.name.startswith("paho-mqtt-client") and not refused:
            refused.append(thread.name)
            raise RuntimeError("can't start new thread")
        start(thread)

    async def program() -> None:
        later: list[object] = []
        async with AsyncMQTTManager(quick_config(broker.url, tmp_path)) as manager:
            await connected(manager)
            loop = asyncio.get_running_loop()
            with monkeypatch.context() as patched:
                patched.setattr(threading.Thread, "start", refuse_first)
                patched.setattr(loop, "call_later", lambda *given, **_: later.append(given))
                await manager.disconnect()
        assert refused
        assert later == []

    run(program)


def test_cancelled_as_it_is_entered_or_left_it_lets_go_of_the_file(broker: Broker, tmp_path: Path) -> None:
    used: list[str] = []

    async def program() -> None:
        async def use(name: str) -> None:
            async with AsyncMQTTManager(quick_config(broker.url, tmp_path)) as manager:
                await manager.publish("t", "x")
            used.append(name)

        for turns in range(12):
            task = asyncio.ensure_future(use("cancelled"))
            for _ in range(turns):
                await asyncio.sleep(0.002 * (turns % 3))
            task.cancel()
            await asyncio.sleep(0)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            await use(f"the next {turns}")

    run(program)
    assert [name for name in used if name != "cancelled"] == [f"the next {turns}" for turns in range(12)]


def test_who_waits_for_a_message_hears_that_it_was_dropped_or_left(tmp_path: Path) -> None:
    dropped: list[Dropped] = []

    async def program() -> None:
        config = quick_config(NOWHERE, tmp_path, queue_max_size=5)
        async with AsyncMQTTManager(config) as manager:
            manager.set_drop_callback(dropped.append)
            handles = [await manager.publish("t", str(number), 1) for number in range(8)]
            with pytest.raises(PublishError, match="overflow"):
                await asyncio.wait_for(handles[0].delivered(), TIMEOUT_S)
            assert await eventually(lambda: len(dropped) >= 3)
            waiting = [asyncio.ensure_future(handles[-1].delivered()) for _ in range(3)]
            await asyncio.sleep(0)
            waiting[0].cancel()
        assert waiting[0].cancelled() or await eventually(waiting[0].done)
        for each in waiting[1:]:
            with pytest.raises(QueueClosedError):
                await each

    run(program)
    assert len(payloads_on_disk(tmp_path)) == 5


def test_what_is_refused_at_the_door(tmp_path: Path) -> None:
    async def program() -> None:
        manager = AsyncMQTTManager(quick_config(NOWHERE, tmp_path))
        with pytest.raises(QueueClosedError):
            await manager.publish("t", "x")
        async with manager:
            for topic, payload, qos in (("", "x", 1), ("a/#", "x", 1), ("t", object(), 1), ("t", "x", 3)):
                with pytest.raises(MessageError):
                    await manager.publish(topic, payload, qos)
            with pytest.raises(MessageError, match="protocol_version"):
                await manager.publish("t", "x", content_type="a")
            with pytest.raises(MessageError):
                await manager.publish_alert(TELEMETRY)  # type: ignore[arg-type]
            assert manager.get_metrics().queue_size == 0
        with pytest.raises(QueueClosedError):
            await manager.publish("t", "x")
        with pytest.raises(QueueClosedError):
            await manager.flush()
        with pytest.raises(QueueClosedError):
            async with manager:
                pass
        await manager.disconnect()

    run(program)


def test_it_has_what_the_manager_of_threads_has() -> None:
    public = {name for name in dir(MQTTManager) if not name.startswith("_")}
    # It connects as it is entered.
    assert public - set(dir(AsyncMQTTManager)) == {"connect"}
    for name in ("publish", "publish_alert", "purge", "quarantined"):
        call, of_threads = getattr(AsyncMQTTManager, name), getattr(MQTTManager, name)
        assert inspect.iscoroutinefunction(call)
        assert inspect.signature(call) == inspect.signature(of_threads)
        assert call.__qualname__ == f"AsyncMQTTManager.{name}"
        assert call.__doc__.startswith(inspect.cleandoc(of_threads.__doc__).splitlines()[0])


def test_what_an_operator_asks_is_awaited(tmp_path: Path) -> None:
    async def program() -> None:
        async with AsyncMQTTManager(quick_config(NOWHERE, tmp_path)) as manager:
            assert manager.broker_url == NOWHERE
            ids = [(await manager.publish("t", str(number), 1)).message_id for number in range(3)]
            assert await manager.purge(ids[:2]) == 2
            assert await eventually(lambda: manager.get_metrics().drops.get("purged") == 2)
            assert await manager.quarantined() == []
            assert await manager.retry_quarantined([1]) == []
            assert await manager.delete_quarantined([1]) == 0

    run(program)
    assert payloads_on_disk(tmp_path) == ["2"]


name: ContextVar[str] = ContextVar("name")


class Awaited(ConnectionCallback):
    async def on_connected(self) -> None:  # type: ignore[override]
        """Nobody would await it."""


class AwaitedWhenCalled:
    async def __call__(self, dropped: Dropped) -> None:
        pass


class Told(ConnectionCallback):
    def __init__(self) -> None:
        self.events: list[str] = []
        self.threads: set[int] = set()
        self.seen_names: set[str] = set()

    def _note(self, event: str) -> None:
        self.events.append(event)
        self.threads.add(threading.get_ident())
        self.seen_names.add(name.get())

    def on_connected(self) -> None:
        self._note("connected")

    def on_connection_lost(self, cause: Exception | None) -> None:
        self._note("left" if cause is None else "lost")

    def on_connect_failed(self, cause: Exception) -> None:
        self._note("failed")


def test_callbacks_are_called_on_the_loop(broker: Broker, tmp_path: Path) -> None:
    told = Told()

    async def program() -> None:
        with Link((broker.host, broker.port)) as link:
            async with AsyncMQTTManager(quick_config(f"tcp://127.0.0.1:{link.port}", tmp_path)) as manager:
                name.set("the program")
                manager.set_connection_callback(told)
                with pytest.raises(ConfigError, match="on_connected is a coroutine function"):
                    manager.set_connection_callback(Awaited())  # type: ignore[abstract, unused-ignore]
                for callback in (asyncio.sleep, AwaitedWhenCalled(), partial(AwaitedWhenCalled())):
                    with pytest.raises(ConfigError, match="callback is a coroutine function"):
                        manager.set_drop_callback(callback)  # type: ignore[arg-type]
                name.set("later")
                assert await eventually(manager.is_connected)
                link.cut()
                assert await eventually(lambda: "failed" in told.events)
                link.restore()
                await connected(manager)
            assert await eventually(lambda: told.events[-1] == "left")

    run(program)
    assert told.events[-2:] == ["connected", "left"]
    assert told.seen_names == {"the program"}
    assert "lost" in told.events
    assert told.threads == {threading.get_ident()}


@ON_BOTH_LOOPS
def test_over_tls(
    start_broker: StartBroker,
    start_subscriber: StartSubscriber,
    authority: CertificateAuthority,
    tmp_path: Path,
    kind: str,
) -> None:
    broker = start_broker(certificate=authority.issue_server(), settings=[])
    subscriber = start_subscriber(broker)
    config = quick_config(
        broker.tls_url.replace("127.0.0.1", "localhost"),
        tmp_path,
        tls_config=TLSConfig(ca_cert=authority.certificate_path),
    )

    async def program() -> None:
        async with AsyncMQTTManager(config) as manager:
            await connected(manager)
            published = (manager.publish("t", f"{number} {'x' * 300}", 2) for number in range(500))
            await asyncio.gather(*await asyncio.gather(*published))

    run(program, kind)
    assert subscriber.wait_for_count(500)
    assert len(set(subscriber.payloads("t"))) == 500


def test_over_tls_a_turn_reads_few_of_the_acknowledgements_that_are_there(
    start_broker: StartBroker, authority: CertificateAuthority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = start_broker(certificate=authority.issue_server(), settings=[])
    config = quick_config(
        broker.tls_url.replace("127.0.0.1", "localhost"),
        tmp_path,
        tls_config=TLSConfig(ca_cert=authority.certificate_path),
    )
    read_bytes: list[int] = []
    feed = Reader._feed

    def noted(reader: Reader, sock: Any) -> Any:
        found = feed(reader, sock)
        read_bytes.append(found[0])
        return found

    async def program() -> None:
        async with AsyncMQTTManager(config) as manager:
            await connected(manager)
            monkeypatch.setattr(Reader, "_feed", noted)
            for _ in range(3):
                handles = await asyncio.gather(*(manager.publish("t", "x", 1) for _ in range(500)))
                await asyncio.gather(*handles)

    run(program)
    # Each acknowledgement is a record of four bytes.
    assert sum(read_bytes) >= 1500 * 4
    assert max(read_bytes) <= 64 * 4


def test_a_look_up_and_a_handshake_that_wait_hold_nothing_up(
    swallowed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, may_end = threading.Event(), threading.Event()
    resolve = dial.resolve

    def slow(host: str, port: int) -> Any:
        begun.set()
        may_end.wait(TIMEOUT_S)
        return resolve(host, port)

    monkeypatch.setattr(dial, "resolve", slow)

    async def program() -> None:
        config = quick_config(f"ssl://127.0.0.1:{swallowed}", tmp_path, connection_timeout_s=60)
        async with AsyncMQTTManager(config) as manager:
            assert await eventually(begun.is_set)
            await manager.publish("t", "while a name is looked up", 2)
            may_end.set()
            # TCP's handshake is not answered now.
            await manager.publish("t", "while nobody answers", 2)
            assert not manager.is_connected()

    run(program)
    assert len(payloads_on_disk(tmp_path)) == 2


def test_messages_in_json_and_with_properties(
    broker: Broker, start_subscriber: StartSubscriber, tmp_path: Path
) -> None:
    subscriber = start_subscriber(broker, "t")

    async def program() -> None:
        async with AsyncMQTTManager(quick_config(broker.url, tmp_path, protocol_version=5)) as manager:
            await (await manager.publish("t", {"a": 1}, 1, user_properties={"schema": "1"}, retain=True))

    run(program)
    assert subscriber.wait_for_count(1)
    assert json.loads(subscriber.payloads("t")[0]) == {"a": 1}
