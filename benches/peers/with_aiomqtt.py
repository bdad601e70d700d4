"""aiomqtt, an asyncio layer over paho: publish() returns once the message is acknowledged, so tasks must overlap."""

from __future__ import annotations

import asyncio
import importlib.metadata
import logging
import time
from typing import TYPE_CHECKING, Any

import peer
from aiomqtt import Client

if TYPE_CHECKING:
    from collections.abc import Sequence

    from peer import Job


def make_client(job: Job) -> Client:
    # It warns of more than ten calls at once, each time.
    logger = logging.getLogger("aiomqtt-bench")
    logger.setLevel(logging.ERROR)
    return Client(peer.HOST, job.port, max_inflight_messages=job.window, timeout=peer.TIMEOUT_S, logger=logger)


async def publish_all(client: Client, topic: str, payloads: Sequence[bytes], qos: int, window: int) -> None:
    """As many tasks as the window is wide share one iterator."""
    remaining = iter(payloads)

    async def work() -> None:
        for payload in remaining:
            await client.publish(topic, payload, qos)

    await asyncio.gather(*(work() for _ in range(window)))
    if qos == 0:
        await client.publish(peer.MARK_TOPIC, b"", 1)


async def run_publish(job: Job) -> dict[str, Any]:
    async with make_client(job) as client:
        await publish_all(client, peer.WARM_UP_TOPIC, job.warm_up, job.qos, job.window)
        stopwatch = peer.Stopwatch()
        await publish_all(client, peer.TOPIC, job.payloads, job.qos, job.window)
        return stopwatch.stop()


async def run_call(job: Job) -> dict[str, Any]:
    """One after the other: the time of a call includes the acknowledgement."""
    calls_s = []
    async with make_client(job) as client:
        for payload in job.warm_up:
            start_s = time.perf_counter()
            await client.publish(peer.TOPIC, payload, job.qos)
            calls_s.append(time.perf_counter() - start_s)
    return peer.of_calls(calls_s)


async def run_receive(job: Job) -> dict[str, Any]:
    """It has no on_message, but an iterator."""
    receipts = peer.Receipts(len(job.payloads), lambda: None)
    async with make_client(job) as client:
        await client.subscribe(peer.TOPIC, job.qos)
        peer.announce_ready()
        async with asyncio.timeout(peer.TIMEOUT_S):
            async for message in client.messages:
                receipts.add(message)
                if receipts.figures:
                    break
    return receipts.figures


if __name__ == "__main__":
    peer.main(
        importlib.metadata.version("aiomqtt"),
        {
            "publish": lambda job: asyncio.run(run_publish(job)),
            "call": lambda job: asyncio.run(run_call(job)),
            "receive": lambda job: asyncio.run(run_receive(job)),
        },
    )
