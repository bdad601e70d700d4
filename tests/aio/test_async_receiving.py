"""What comes to an AsyncMQTTManager: iterators, handlers and commands on the loop, once each."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from contextlib import contextmanager, suppress
from contextvars import ContextVar, copy_context
from typing import TYPE_CHECKING, Any

import pytest

from glec_fast import MessageError, MQTTManager, SubscriptionRefusedError
from glec_fast.aio import AsyncMQTTManager
from glec_fast.aio.executor import LoopExecutor
from glec_fast.fleet.handlers import Call
from glec_fast.runtime.summing_log import SummingLog
from glec_fast.testbed.link import Link
from support.async_runs import ON_BOTH_LOOPS, eventually, run
from support.gateway import TIMEOUT_S, quick_config
from support.odd_broker import SUBSCRIBE, OddBroker

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from conftest import StartBroker, StartSubscriber
    from glec_fast.testbed.broker import Broker
    from support.wire_reference import Packet


@contextmanager
def publishing(broker: Broker, directory: Path) -> Iterator[MQTTManager]:
    """The platform: another manager, whose messages all reach the broker."""
    directory.mkdir(exist_ok=True)
    with MQTTManager(quick_config(broker.url, directory, client_id="platform", protocol_version=5)) as platform:
        platform.connect()
        yield platform


async def granted(manager: AsyncMQTTManager, topic_filter: str, qos: int) -> None:
    """The broker has it."""
    subscription = manager._manager.subscribe(topic_filter, manager._manager.streams[topic_filter].handle, qos)
    assert await eventually(lambda: subscription.granted_qos is not None)


@ON_BOTH_LOOPS
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_what_comes_is_iterated_over_in_order(broker: Broker, tmp_path: Path, qos: int, kind: str) -> None:
    async def program() -> None:
        with publishing(broker, tmp_path / "platform") as platform:
            async with AsyncMQTTManager(quick_config(broker.url, tmp_path, protocol_version=5)) as manager:
                messages = manager.messages("t/+", qos)
                await granted(manager, "t/+", qos)
                for number in range(100):
                    platform.publish("t/1", str(number), qos)
                arrived = [(await messages.__anext__()).payload async for _ in _numbers(100)]
                assert arrived == [str(number).encode() for number in range(100)]

    run(program, kind)


async def _numbers(count: int) -> Any:
    for number in range(count):
        yield number


@ON_BOTH_LOOPS
def test_broken_off_and_gone_on_with_nothing_is_missed_or_doubled(
    start_broker: StartBroker, tmp_path: Path, kind: str
) -> None:
    broker = start_broker(nodelay=True)
    arrived: list[int] = []

    async def take(manager: AsyncMQTTManager, count: int) -> None:
        async for message in manager.messages("t", 2):
            arrived.append(int(message.payload))
            count -= 1
            if count == 0:
                break

    async def program() -> None:
        with publishing(broker, tmp_path / "platform") as platform, Link((broker.host, broker.port)) as link:
            config = quick_config(f"tcp://127.0.0.1:{link.port}", tmp_path, protocol_version=5)
            async with AsyncMQTTManager(config) as manager:
                manager.messages("t", 2)
                await granted(manager, "t", 2)
                for number in range(120):
                    platform.publish("t", str(number), 2)
                for turn in range(12):
                    taking = asyncio.ensure_future(take(manager, 10))
                    if turn % 3 == 2:
                        # While it waits for a message or has one.
                        for _ in range(turn * 3):
                            await asyncio.sleep(0)
                        before = len(arrived)
                        taking.cancel()
                        with suppress(asyncio.CancelledError):
                            await taking
                        # mosquitto that is cut off as it sends PUBREL again sends PUBLISH the next time. Before it
                        # reads this it has.
                        await asyncio.wait_for(await manager.publish("other", "x", 1), TIMEOUT_S)
                        link.drop()
                        await take(manager, 10 * (turn + 1) - len(arrived) or 1)
                        assert len(arrived) > before
                    else:
                        await taking
                await take(manager, 120 - len(arrived)) if len(arrived) < 120 else None

    run(program, kind)
    assert arrived == list(range(120))


def test_what_was_not_handled_comes_to_the_next_process(broker: Broker, tmp_path: Path) -> None:
    config = quick_config(broker.url, tmp_path, protocol_version=5)

    async def first() -> list[bytes]:
        with publishing(broker, tmp_path / "platform") as platform:
            async with AsyncMQTTManager(config) as manager:
                messages = manager.messages("t", 1)
                await granted(manager, "t", 1)
                for number in range(5):
                    platform.publish("t", str(number), 1)
                assert platform.flush(TIMEOUT_S)
                taken = [(await messages.__anext__()).payload for _ in range(2)]
                # The second is in hand as the manager ends.
                manager._held = messages  # type: ignore[attr-defined]
                return taken

    async def second() -> list[bytes]:
        async with AsyncMQTTManager(config) as manager:
            messages = manager.messages("t", 1)
            return [(await messages.__anext__()).payload for _ in range(4)]

    assert run(first) == [b"0", b"1"]
    assert run(second) == [b"1", b"2", b"3", b"4"]


class Refusing(OddBroker):
    """Refuses the filters that have "denied" in them."""

    def answer(self, packet: Packet) -> bytes:
        if packet.kind != SUBSCRIBE:
            return super().answer(packet)
        codes, at = b"", 2
        while at < len(packet.body):
            end = at + 2 + int.from_bytes(packet.body[at : at + 2], "big")
            codes += b"\x80" if b"denied" in packet.body[at:end] else b"\x01"
            at = end + 1
        return bytes((0x90, 2 + len(codes))) + packet.body[:2] + codes


def test_who_waits_for_messages_hears_of_the_end_and_of_a_refusal(tmp_path: Path) -> None:
    async def payloads(manager: AsyncMQTTManager, topic_filter: str) -> list[bytes]:
        return [message.payload async for message in manager.messages(topic_filter)]

    async def program() -> None:
        config = quick_config(broker.url, tmp_path)
        async with AsyncMQTTManager(config) as manager:
            with pytest.raises(MessageError):
                manager.messages("a/#/b")
            lasting, ended, refused = (
                asyncio.ensure_future(payloads(manager, each)) for each in ("allowed/1", "allowed/2", "denied")
            )
            await asyncio.sleep(0)
            manager.unsubscribe("allowed/2")
            assert await asyncio.wait_for(ended, TIMEOUT_S) == []
            with pytest.raises(SubscriptionRefusedError, match="denied"):
                await asyncio.wait_for(refused, TIMEOUT_S)
        assert await asyncio.wait_for(lasting, TIMEOUT_S) == []

    with Refusing() as broker:
        run(program)


def test_handlers_run_on_the_loop(broker: Broker, tmp_path: Path) -> None:
    handled: list[tuple[str, bytes, int]] = []
    name: ContextVar[str] = ContextVar("name")
    entered_by: set[str] = set()

    async def slow(message: Any) -> None:
        await asyncio.sleep(0)
        handled.append(("slow", message.payload, threading.get_ident()))

    def plain(message: Any) -> None:
        handled.append(("plain", message.payload, threading.get_ident()))
        entered_by.add(name.get())
        name.set("a handler's own")
        if message.payload == b"0":
            raise ValueError("a handler's own")

    async def program() -> None:
        name.set("the program")
        with publishing(broker, tmp_path / "platform") as platform:
            async with AsyncMQTTManager(quick_config(broker.url, tmp_path)) as manager:
                name.set("later")
                wanted = [manager.subscribe("a", slow, 2), manager.subscribe("b", plain)]
                assert await eventually(lambda: all(each.granted_qos is not None for each in wanted))
                for number in range(10):
                    platform.publish("a", str(number), 2)
                    platform.publish("b", str(number), 1)
                assert await eventually(lambda: len(handled) == 20)
                assert manager.get_metrics().handler_errors == 1

    run(program)
    payloads = [str(number).encode() for number in range(10)]
    for name in ("slow", "plain"):
        assert [payload for which, payload, _ in handled if which == name] == payloads
    assert {thread for _, _, thread in handled} == {threading.get_ident()}
    assert entered_by == {"the program"}


@pytest.mark.parametrize("are_eager", [False, True])
def test_thousands_of_calls_wait_for_their_lane(*, are_eager: bool) -> None:
    if are_eager and sys.version_info < (3, 12):
        pytest.skip("tasks begin later")
    handled: list[int] = []

    async def program() -> None:
        loop = asyncio.get_running_loop()
        if are_eager:
            loop.set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined]
        executor = LoopExecutor(loop, copy_context(), SummingLog())
        for number in range(2000):
            assert executor.submit("t", Call(handled.append, (number,), lambda _result, error: error is not None))
        assert await eventually(lambda: len(handled) == 2000)
        assert await asyncio.to_thread(executor.close, TIMEOUT_S)

    run(program)
    assert handled == list(range(2000))


@ON_BOTH_LOOPS
def test_commands_run_on_the_loop_and_are_answered(
    broker: Broker, start_subscriber: StartSubscriber, tmp_path: Path, kind: str
) -> None:
    replies = start_subscriber(broker, "glec/dtg/DTG-TEST/commands/+/reply")
    done: list[str] = []

    async def program() -> None:
        manager = AsyncMQTTManager(quick_config(broker.url, tmp_path))

        @manager.command("unlock_doors")
        async def unlock_doors(arguments: dict[str, Any], context: Any) -> dict[str, Any]:
            await asyncio.sleep(0)
            done.append(context.id)
            return {"unlocked": arguments["doors"]}

        @manager.command("fail", on_crash="retry")
        async def fail(arguments: dict[str, Any], context: Any) -> None:
            raise ValueError(f"{context.name} {arguments['why']}")

        with publishing(broker, tmp_path / "platform") as platform:
            async with manager:
                # The platform's first command must not come before the subscription, asked for before this one.
                ready = manager.subscribe("ready", print)
                assert await eventually(lambda: ready.granted_qos is not None)
                for _ in range(2):
                    platform.publish("glec/dtg/DTG-TEST/commands/unlock_doors", {"id": "7", "doors": [1, 2]}, 2)
                platform.publish("glec/dtg/DTG-TEST/commands/fail", {"id": "8", "why": "now"}, 2)
                assert await asyncio.to_thread(replies.wait_for_count, 3, TIMEOUT_S)

    run(program, kind)
    assert done == ["7"]
    found = sorted((json.loads(each) for each in replies.payloads()), key=lambda each: str(each["id"]))
    assert [(each["id"], each["status"]) for each in found] == [("7", "done"), ("7", "done"), ("8", "error")]
    assert found[0]["result"] == {"unlocked": [1, 2]}


def test_a_handler_that_runs_as_the_manager_ends_is_ended(
    broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("glec_fast.fleet.incoming._HANDLERS_S", 0.2)
    ended: list[str] = []

    async def endless(_message: Any) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    async def program() -> None:
        with publishing(broker, tmp_path / "platform") as platform:
            async with AsyncMQTTManager(quick_config(broker.url, tmp_path)) as manager:
                wanted = manager.subscribe("t", endless)
                assert await eventually(lambda: wanted.granted_qos is not None)
                platform.publish("t", "x", 1)
                assert await eventually(lambda: manager.get_metrics().inbox_size == 1)
        assert await eventually(lambda: ended == ["cancelled"])

    run(program)


def test_a_handler_that_leaves_the_manager_waits_for_no_other_and_the_file_is_free_for_all(
    broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("glec_fast.fleet.incoming._HANDLERS_S", 60.0)
    ended: list[str] = []
    left = asyncio.Event()

    async def endless(_message: Any) -> None:
        await left.wait()
        ended.append("endless")

    async def program() -> None:
        manager = AsyncMQTTManager(quick_config(broker.url, tmp_path))

        async def leave(_message: Any) -> None:
            leaving.set()
            await manager.disconnect()
            ended.append("leave")

        leaving = asyncio.Event()
        with publishing(broker, tmp_path / "platform") as platform:
            async with manager:
                wanted = [manager.subscribe("t", endless), manager.subscribe("leave", leave)]
                assert await eventually(lambda: all(each.granted_qos is not None for each in wanted))
                platform.publish("t", "x", 1)
                assert await eventually(lambda: manager.get_metrics().inbox_size == 1)
                platform.publish("leave", "x", 1)
                await asyncio.wait_for(leaving.wait(), TIMEOUT_S)
            async with AsyncMQTTManager(quick_config(broker.url, tmp_path)) as again:
                await again.publish("t", "the file is free")
        assert await eventually(lambda: ended == ["leave"])
        left.set()
        assert await eventually(lambda: len(ended) == 2)

    run(program)


def test_unsubscribed_the_filter_is_over_and_holds_nothing_up(broker: Broker, tmp_path: Path) -> None:
    async def program() -> None:
        with publishing(broker, tmp_path / "platform") as platform:
            async with AsyncMQTTManager(quick_config(broker.url, tmp_path)) as manager:
                messages = manager.messages("t", 1)
                await granted(manager, "t", 1)
                for number in range(5):
                    platform.publish("t", str(number), 1)
                assert (await messages.__anext__()).payload == b"0"
                assert await eventually(lambda: manager.get_metrics().inbox_size == 5)
                manager.unsubscribe("t")
                assert [message async for message in messages] == []
                assert await eventually(lambda: manager.get_metrics().inbox_size == 0)
                assert manager.get_metrics().handler_errors == 0

    run(program)


@ON_BOTH_LOOPS
@pytest.mark.parametrize("qos", [1, 2])
def test_what_a_loop_is_left_with_was_handled_though_the_manager_ends_next(
    broker: Broker, tmp_path: Path, qos: int, kind: str
) -> None:
    config = quick_config(broker.url, tmp_path, protocol_version=5)
    arrived: list[bytes] = []

    async def program() -> None:
        with publishing(broker, tmp_path / "platform") as platform:
            async with AsyncMQTTManager(config) as manager:
                manager.messages("t", qos)
                await granted(manager, "t", qos)
            for payload in ("1", "2", "3"):
                platform.publish("t", payload, qos)
                async with AsyncMQTTManager(config) as manager:
                    async for message in manager.messages("t", qos):
                        arrived.append(message.payload)
                        break
        assert arrived == [b"1", b"2", b"3"]

    run(program, kind)
