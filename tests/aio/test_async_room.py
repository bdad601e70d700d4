"""Who publishes faster than the disk takes it waits on asyncio for room, and the loop does not."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import apsw
import pytest

from glec_fast import (
    MessageError,
    QueueStorageError,
)
from glec_fast.aio import AsyncMQTTManager
from glec_fast.durable.intake import PENDING_BYTES_MAX, PENDING_ROWS_MAX
from support.async_runs import eventually, run
from support.faulty_disk import FaultyDisk
from support.gateway import TIMEOUT_S, quick_config
from support.store import payloads_on_disk

if TYPE_CHECKING:
    from pathlib import Path


NOWHERE = "tcp://127.0.0.1:1"


def test_more_than_a_transaction_takes_waits_its_turn(tmp_path: Path) -> None:
    async def program() -> None:
        async with AsyncMQTTManager(quick_config(NOWHERE, tmp_path, queue_max_size=20_000)) as manager:
            publishing = [asyncio.ensure_future(manager.publish("t", str(number), 0)) for number in range(5000)]
            await asyncio.sleep(0)
            for task in publishing[2000:3000]:
                task.cancel()
            await asyncio.gather(*publishing, return_exceptions=True)
            assert sum(task.cancelled() for task in publishing) == 1000

    run(program, debug=False)
    assert payloads_on_disk(tmp_path) == [str(number) for number in [*range(2000), *range(3000, 5000)]]


@pytest.mark.parametrize("bytes_each", [0, 3 * PENDING_BYTES_MAX // PENDING_ROWS_MAX])
def test_a_slow_disk_holds_callers_up_and_not_the_loop(tmp_path: Path, bytes_each: int) -> None:
    async def program(disk: FaultyDisk) -> None:
        async with AsyncMQTTManager(quick_config(NOWHERE, tmp_path)) as manager:
            count = 3 * PENDING_ROWS_MAX
            with disk.held():
                payloads = [b"%d" % number + b"x" * bytes_each for number in range(count)]
                tasks = [asyncio.create_task(manager.publish("t", each, 1)) for each in payloads]
                # Each has its turns, where the loop has any.
                for _ in range(10):
                    await asyncio.sleep(0)
                assert not any(task.done() for task in tasks)
            await asyncio.gather(*tasks)
        assert [each.rstrip("x") for each in payloads_on_disk(tmp_path)] == [str(number) for number in range(count)]

    with FaultyDisk(tmp_path) as disk:
        run(lambda: program(disk))


def test_large_messages_in_sequence_wait_for_the_disk(tmp_path: Path) -> None:
    count, payload = 20, bytes(PENDING_BYTES_MAX // 4)

    async def program(disk: FaultyDisk) -> None:
        async with AsyncMQTTManager(quick_config(NOWHERE, tmp_path)) as manager:

            async def publish_all() -> None:
                for _ in range(count):
                    await manager.publish("t", payload, 0)

            with disk.held():
                publishing = asyncio.create_task(publish_all())
                await eventually(disk.waiting_writer.is_set)
                assert manager.get_metrics().queue_size < count
                assert not publishing.done()
            await publishing

    with FaultyDisk(tmp_path) as disk:
        run(lambda: program(disk), debug=False)
    assert len(payloads_on_disk(tmp_path)) == count


def test_large_messages_at_once_wait_for_the_disk_in_order(tmp_path: Path) -> None:
    payloads = [f"{number:0{PENDING_BYTES_MAX // 4}}" for number in range(40)]
    log_bytes = [0]

    def noted(operation: str, name: str) -> None:
        if operation == "write" and name.endswith("-wal"):
            log_bytes.append((tmp_path / name).stat().st_size)

    async def program(disk: FaultyDisk) -> None:
        async with AsyncMQTTManager(quick_config(NOWHERE, tmp_path)) as manager:
            disk.fault = noted
            await asyncio.gather(*(manager.publish("t", each, 1) for each in payloads))

    with FaultyDisk(tmp_path) as disk:
        run(lambda: program(disk), debug=False)
    assert 0 < max(log_bytes) < 4 * PENDING_BYTES_MAX
    assert payloads_on_disk(tmp_path) == payloads


def test_who_is_refused_as_there_is_room_leaves_it_to_the_next(tmp_path: Path) -> None:
    topics = ["t"] * 4 + ["no/+/topic"] + ["t"] * 3

    async def program() -> None:
        async with AsyncMQTTManager(quick_config(NOWHERE, tmp_path)) as manager:
            publishing = [manager.publish(each, bytes(PENDING_BYTES_MAX), 0) for each in topics]
            outcomes = await asyncio.wait_for(asyncio.gather(*publishing, return_exceptions=True), TIMEOUT_S)
        assert [isinstance(each, MessageError) for each in outcomes] == [each != "t" for each in topics]

    run(program, debug=False)
    assert len(payloads_on_disk(tmp_path)) == topics.count("t")


def test_who_waits_for_room_is_refused_where_the_disk_is_full(tmp_path: Path) -> None:
    def fault(operation: str, _name: str) -> None:
        if operation == "write":
            raise apsw.FullError("the disk is full")

    async def program(disk: FaultyDisk) -> None:
        async with AsyncMQTTManager(quick_config(NOWHERE, tmp_path, qos0_commit_delay_s=3600)) as manager:
            disk.fault = fault
            publishing = [manager.publish("t", bytes(PENDING_BYTES_MAX // 4), 0) for _ in range(20)]
            outcomes = await asyncio.wait_for(asyncio.gather(*publishing, return_exceptions=True), TIMEOUT_S)
            refused = [each for each in outcomes if isinstance(each, QueueStorageError)]
            disk.fault = None
        # What was accepted is not lost.
        assert 0 < len(refused) < 20
        assert len(payloads_on_disk(tmp_path)) == 20 - len(refused)

    with FaultyDisk(tmp_path) as disk:
        run(lambda: program(disk), debug=False)


def test_whose_turn_it_was_as_it_was_cancelled_lets_the_next_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nobody has room, but whom the test lets in.
    monkeypatch.setattr("glec_fast.aio.manager._PENDING_MAX", 0)

    async def program() -> None:
        async with AsyncMQTTManager(quick_config(NOWHERE, tmp_path)) as manager:
            first, second = (asyncio.create_task(manager.publish("t", each, 1)) for each in ("first", "second"))
            await asyncio.sleep(0)
            manager._let_in(1)
            first.cancel()
            await asyncio.wait_for(second, TIMEOUT_S)
            assert first.cancelled()

    run(program)
    assert payloads_on_disk(tmp_path) == ["second"]
