"""Whose loop an AsyncMQTTManager is on: another's, one after another, one that is closed, one that is interrupted."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import TYPE_CHECKING, Any

import pytest

from glec_fast import ConfigError, ConnectionCallback, MQTTManager, UnsupportedError
from glec_fast.aio import AsyncMQTTManager, DeliveryHandle
from glec_fast.fleet.incoming import Incoming
from support.async_runs import ON_BOTH_LOOPS, eventually, new_loop, run, run_within
from support.gateway import TIMEOUT_S, quick_config
from support.program import Program, kept
from support.program import run as run_program

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import StartBroker, StartSubscriber
    from glec_fast.testbed.broker import Broker

NOWHERE = "tcp://127.0.0.1:1"
# As strict as Python is: what any of them warns of ends the program, and what nobody heard of is on its standard error.
BEGINNING = """
    import asyncio, logging, sys, warnings
    warnings.simplefilter("error")
    # That there is no broker is no news.
    logging.getLogger("glec_fast").setLevel(logging.ERROR)
    from glec_fast import MQTTConfig
    from glec_fast.aio import AsyncMQTTManager

    config = MQTTConfig(broker_url=sys.argv[1], client_id="DTG-TEST", queue_path=sys.argv[2], status_interval_s=0)
"""


def calls(manager: AsyncMQTTManager) -> dict[str, Callable[[], Any]]:
    """What is for its own loop, of each kind."""
    return {
        "publish": lambda: manager.publish("t", "x", 1),
        "publish_status": lambda: manager.publish_status(),
        "flush": lambda: manager.flush(),
        "handle_for": lambda: manager.handle_for(1),
        "in_doubt": lambda: manager.in_doubt(),
        "disconnect": lambda: manager.disconnect(),
        "messages": lambda: manager.messages("t"),
        "subscribe": lambda: manager.subscribe("t", print),
        "unsubscribe": lambda: manager.unsubscribe("t"),
        "command": lambda: manager.command("c")(print),
        "set_connection_callback": lambda: manager.set_connection_callback(ConnectionCallback()),
        "set_drop_callback": lambda: manager.set_drop_callback(None),
    }


def test_from_another_loop_or_thread_it_says_what_to_do(tmp_path: Path) -> None:
    refused: dict[str, str] = {}

    async def do(call: Callable[[], Any]) -> None:
        result = call()
        if asyncio.iscoroutine(result):
            await result

    def elsewhere(manager: AsyncMQTTManager) -> None:
        for name, call in calls(manager).items():
            with pytest.raises(UnsupportedError, match="run_coroutine_threadsafe") as caught:
                asyncio.run(do(call))
            refused[name] = str(caught.value)
        # These are for any thread.
        assert not manager.is_connected()
        assert not manager.is_queue_damaged()
        assert manager.get_metrics().queue_size == 0
        manager.report_vehicle(battery_voltage=12.1)

    async def program() -> None:
        loop = asyncio.get_running_loop()
        async with AsyncMQTTManager(quick_config(NOWHERE, tmp_path)) as manager:
            await asyncio.to_thread(elsewhere, manager)
            assert manager.get_metrics().queue_size == 0
            # As the error says.
            publishing = asyncio.to_thread(
                lambda: asyncio.run_coroutine_threadsafe(manager.publish("t", "told", 1), loop).result(TIMEOUT_S)
            )
            assert (await publishing).message_id == 1

    run(program)
    assert refused.keys() == calls(AsyncMQTTManager(quick_config(NOWHERE, tmp_path))).keys()
    assert kept(tmp_path / "queue.db") == ["told"]


@ON_BOTH_LOOPS
def test_in_a_loop_within_its_own_it_accepts_nothing(tmp_path: Path, kind: str) -> None:
    async def program() -> None:
        async with AsyncMQTTManager(quick_config(NOWHERE, tmp_path)) as manager:

            async def publish() -> None:
                with pytest.raises(UnsupportedError, match="run_coroutine_threadsafe"):
                    await manager.publish("t", "inner", 1)

            await manager.publish("t", "before", 1)
            await run_within(publish, kind)
            await manager.publish("t", "after", 1)

    run(program, kind)
    assert kept(tmp_path / "queue.db") == ["before", "after"]


@ON_BOTH_LOOPS
def test_one_loop_after_the_other_has_the_queue(
    start_broker: StartBroker, start_subscriber: StartSubscriber, tmp_path: Path, kind: str
) -> None:
    broker = start_broker(nodelay=True)
    subscriber = start_subscriber(broker, "t")
    left: list[Any] = []

    async def program(url: str, number: int) -> None:
        async with AsyncMQTTManager(quick_config(url, tmp_path)) as manager:
            left.append(await manager.publish("t", str(number), 2))
            if url != NOWHERE:
                assert await manager.flush(TIMEOUT_S)

    for number, url in enumerate((NOWHERE, broker.url, NOWHERE, broker.url)):
        run(lambda url=url, number=number: program(url, number), kind)  # type: ignore[misc]
    assert subscriber.wait_for_count(4)
    assert Counter(subscriber.payloads("t")) == Counter([b"0", b"1", b"2", b"3"])
    # A handle outlives the loop that it came from.
    run(left[1].delivered, kind)


def test_commands_are_declared_beside_the_loop_as_that_loads_what_they_need(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[int] = []
    declare = Incoming.declare

    def noted(incoming: Incoming, *arguments: Any) -> None:
        threads.append(threading.get_ident())
        declare(incoming, *arguments)

    monkeypatch.setattr(Incoming, "declare", noted)

    async def program() -> None:
        manager = AsyncMQTTManager(quick_config(NOWHERE, tmp_path))
        manager.command("a")(print)
        async with manager:
            pass

    run(program)
    assert len(threads) == 1
    assert threads[0] != threading.get_ident()


def test_what_was_declared_wrongly_lets_go_of_the_file(tmp_path: Path) -> None:
    async def program() -> None:
        manager = AsyncMQTTManager(quick_config(NOWHERE, tmp_path))
        with pytest.raises(ConfigError):
            manager.command("a/b")(print)
        # What is not seen at the door.
        manager._declared.append(("a/b", "fail", print))
        with pytest.raises(ConfigError):
            async with manager:
                pass

    run(program)
    with MQTTManager(quick_config(NOWHERE, tmp_path)):
        pass


@pytest.mark.parametrize("is_connected", [True, False])
def test_a_loop_that_is_closed_under_it_loses_nothing_and_says_nothing(
    broker: Broker, tmp_path: Path, is_connected: bool
) -> None:
    path = tmp_path / "queue.db"
    done = run_program(
        BEGINNING
        + """
    async def use():
        manager = AsyncMQTTManager(config)
        await manager.__aenter__()
        while sys.argv[3] and not manager.is_connected():
            await asyncio.sleep(0.01)
        for number in range(10):
            await manager.publish("t", str(number), 2)
        return manager

    loop = asyncio.new_event_loop()
    loop.set_debug(True)
    loop.slow_callback_duration = 3600
    manager = loop.run_until_complete(use())
    loop.close()
    print(manager.get_metrics().queue_size)
    """,
        broker.url if is_connected else NOWHERE,
        path,
        "1" if is_connected else "",
    )
    assert (done.returncode, done.stderr) == (0, "")
    # Some may have arrived; what had not is there.
    assert kept(path) == [str(number) for number in range(10 - len(kept(path)), 10)]
    assert is_connected or len(kept(path)) == 10


@ON_BOTH_LOOPS
def test_its_loop_may_go_on_in_another_thread(broker: Broker, tmp_path: Path, kind: str) -> None:
    loop = new_loop(kind)
    manager = AsyncMQTTManager(quick_config(broker.url, tmp_path))

    def go_on() -> None:
        async def program() -> None:
            await (await manager.publish("t", "x", 1))

        loop.run_until_complete(asyncio.wait_for(program(), TIMEOUT_S))

    try:
        loop.run_until_complete(manager.__aenter__())
        go_on()
        with ThreadPoolExecutor(1) as threads:
            threads.submit(go_on).result(TIMEOUT_S)
        go_on()
        loop.run_until_complete(manager.disconnect())
    finally:
        loop.close()
    assert kept(tmp_path / "queue.db") == []


@ON_BOTH_LOOPS
def test_one_whose_loop_was_closed_is_left_in_another(
    start_broker: StartBroker, start_subscriber: StartSubscriber, tmp_path: Path, kind: str
) -> None:
    broker = start_broker(nodelay=True)
    subscriber = start_subscriber(broker, "t")
    manager = AsyncMQTTManager(quick_config(broker.url, tmp_path, protocol_version=5))

    async def enter() -> None:
        await manager.__aenter__()
        manager.messages("u", 1)
        assert await eventually(manager.is_connected)
        await manager.publish("t", "first", 2)

    async def leave() -> None:
        with pytest.raises(UnsupportedError, match="disconnect"):
            await manager.publish("t", "never", 2)
        await manager.disconnect()
        await manager.disconnect()
        async with AsyncMQTTManager(quick_config(broker.url, tmp_path, protocol_version=5)) as other:
            await (await other.publish("t", "second", 2))
            assert await other.flush(TIMEOUT_S)

    run(enter, kind)
    run(leave, kind)
    assert subscriber.wait_for_count(2)
    assert sorted(subscriber.payloads("t")) == [b"first", b"second"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_hears_whose_it_is_and_the_parent_goes_on(broker: Broker, tmp_path: Path) -> None:
    async def in_child(manager: AsyncMQTTManager, handle: DeliveryHandle) -> list[str]:
        said = []
        awaited = (lambda: manager.publish("t", "x"), manager.flush, manager.in_doubt, lambda: handle)
        for call in (*awaited, lambda: manager.subscribe("t", print), lambda: manager.messages("t")):
            try:
                await call()  # type: ignore[operator, misc]
            except Exception as error:  # noqa: PERF203 - each says why
                said.append(type(error).__name__)
        # As `async with` is left.
        await manager.__aexit__(None, None, None)
        return [*said, str(manager.is_connected())]

    def fork(manager: AsyncMQTTManager, handle: DeliveryHandle) -> str:
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            os.write(writer, ",".join(asyncio.run(in_child(manager, handle))).encode())
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as said:
            os.waitpid(child, 0)
            return said.read()

    async def program() -> None:
        async with AsyncMQTTManager(quick_config(broker.url, tmp_path)) as manager:
            handle = await manager.publish("t", "before", 2)
            waiting = DeliveryHandle(7, handle._condition, 1)
            said = await asyncio.wait_for(asyncio.to_thread(fork, manager, waiting), TIMEOUT_S)
            assert said.split(",") == ["ForkedError"] * 6 + ["False"]
            await handle
            await (await manager.publish("t", "after", 2))

    run(program)


def test_interrupted_it_leaves_in_order(broker: Broker, start_subscriber: StartSubscriber, tmp_path: Path) -> None:
    subscriber = start_subscriber(broker, "t")
    path = tmp_path / "queue.db"
    text = (
        BEGINNING
        + """
    async def use():
        # How long a callback takes is not looked at here.
        asyncio.get_running_loop().slow_callback_duration = 3600
        async with AsyncMQTTManager(config) as manager:
            for number in range(3):
                await (await manager.publish("t", str(number), 2))
            print("ready", flush=True)
            await asyncio.gather(manager.flush(), *(manager.publish("t", str(n), 2) for n in range(3, 200)))
            async for message in manager.messages("nothing"):
                pass

    try:
        asyncio.run(use(), debug=True)
    except KeyboardInterrupt:
        pass
    """
    )
    with Program(text, broker.url, path) as program:
        program.wait_ready()
        program.interrupt()
        said = program.end()
    # Before 3.11 it is raised wherever the program is: also before it has awaited what it has made.
    assert said == "" or sys.version_info < (3, 11)
    with MQTTManager(quick_config(broker.url, tmp_path)) as manager:
        manager.connect()
        assert manager.flush(TIMEOUT_S)
        accepted = manager.publish("t", "last", 2).message_id - 1
    assert subscriber.wait_for_count(accepted)
    assert set(Counter(subscriber.payloads("t")[:accepted]).values()) == {1}


@ON_BOTH_LOOPS
def test_iterators_of_one_filter_share_what_comes(start_broker: StartBroker, tmp_path: Path, kind: str) -> None:
    broker = start_broker(nodelay=True)
    shares: list[list[int]] = [[], [], []]

    async def take(manager: AsyncMQTTManager, share: list[int]) -> None:
        async for message in manager.messages("t", 2):
            share.append(int(message.payload))
            await asyncio.sleep(0)

    async def program() -> None:
        async with AsyncMQTTManager(quick_config(broker.url, tmp_path, protocol_version=5)) as manager:
            taking = [asyncio.ensure_future(take(manager, share)) for share in shares]
            await asyncio.sleep(0)
            assert await eventually(manager.is_connected)
            await asyncio.gather(*(manager.publish("t", str(number), 2) for number in range(60)))
            assert await eventually(lambda: sum(map(len, shares)) == 60)
            taking[0].cancel()
            await asyncio.gather(taking[0], return_exceptions=True)
            await asyncio.gather(*(manager.publish("t", str(number), 2) for number in range(60, 120)))
            assert await eventually(lambda: sum(map(len, shares)) == 120)
        await asyncio.gather(*taking, return_exceptions=True)

    run(program, kind)
    assert sorted(chain.from_iterable(shares)) == list(range(120))
    assert all(share == sorted(share) for share in shares)
    assert all(shares[1:])


def test_who_iterates_slowly_has_the_rest_kept_at_the_broker(broker: Broker, tmp_path: Path) -> None:
    arrived: list[int] = []

    async def program() -> None:
        config = quick_config(broker.url, tmp_path, protocol_version=5, inbox_max_size=5)
        with MQTTManager(quick_config(broker.url, tmp_path / "platform", client_id="platform")) as platform:
            platform.connect()
            async with AsyncMQTTManager(config) as manager:
                messages = manager.messages("t", 1)
                wanted = manager._manager.subscribe("t", manager._manager.streams["t"].handle, 1)
                assert await eventually(lambda: wanted.granted_qos is not None)
                for number in range(20):
                    platform.publish("t", str(number), 1)
                assert await asyncio.to_thread(platform.flush, TIMEOUT_S)
                assert await eventually(lambda: manager.get_metrics().inbox_size == 5)
                async for message in messages:
                    arrived.append(int(message.payload))
                    assert manager.get_metrics().inbox_size <= 5
                    if len(arrived) == 20:
                        break

    (tmp_path / "platform").mkdir()
    run(program)
    # mosquitto 2.0.11 sends more than the Receive Maximum; what was too much comes again on a new connection.
    assert sorted(arrived) == list(range(20))


@ON_BOTH_LOOPS
def test_it_needs_no_thread_of_the_loops_executor(tmp_path: Path, kind: str) -> None:
    is_left = threading.Event()

    async def use() -> None:
        async with AsyncMQTTManager(quick_config(NOWHERE, tmp_path)) as manager:
            handle = await manager.publish("t", "x", 1)
            assert await manager.handle_for(handle.message_id) is handle

    async def program() -> None:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(1))
        busy = loop.run_in_executor(None, is_left.wait, 2 * TIMEOUT_S)
        await asyncio.wait_for(use(), TIMEOUT_S)
        is_left.set()
        assert await busy
        await loop.shutdown_default_executor()
        await use()

    run(program, kind)


def test_a_thread_that_has_no_loop_can_drop_an_iterator(broker: Broker, tmp_path: Path) -> None:
    async def program() -> None:
        async with AsyncMQTTManager(quick_config(broker.url, tmp_path, protocol_version=5)) as manager:
            held = [manager.messages("t", 1)]
            assert await eventually(manager.is_connected)
            for payload in "ab":
                await (await manager.publish("t", payload, 1))
            assert (await held[0].__anext__()).payload == b"a"
            dropping = threading.Thread(target=held.clear)
            dropping.start()
            assert await eventually(lambda: not dropping.is_alive())
            assert (await manager.messages("t", 1).__anext__()).payload == b"b"

    run(program)
