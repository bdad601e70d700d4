"""mqttium: asyncio, in memory. publish_many() is its way for many; a single publish() waits for its room alone."""

from __future__ import annotations

import asyncio
import importlib.metadata
import time
from typing import TYPE_CHECKING, Any

import peer
from mqttium.api import AsyncClient, PublishMessage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from peer import Job


async def connect(job: Job) -> AsyncClient:
    client = AsyncClient(max_outbound_inflight=job.window)
    await client.connect(peer.HOST, job.port)
    return client


async def publish_all(client: AsyncClient, topic: str, payloads: Sequence[bytes], qos: int) -> None:
    receipt = await client.publish_many(PublishMessage(topic, payload, qos=qos) for payload in payloads)
    await wait_for_last(client, receipt, qos)


async def wait_for_last(client: AsyncClient, receipt: Any, qos: int) -> None:
    last = receipt if qos else await client.publish(peer.MARK_TOPIC, b"", qos=1)
    await asyncio.wait_for(last.wait(), peer.TIMEOUT_S)


async def run_publish(job: Job) -> dict[str, Any]:
    client = await connect(job)
    await publish_all(client, peer.WARM_UP_TOPIC, job.warm_up, job.qos)
    stopwatch = peer.Stopwatch()
    await publish_all(client, peer.TOPIC, job.payloads, job.qos)
    figures = stopwatch.stop()
    await client.disconnect()
    return figures


async def run_call(job: Job) -> dict[str, Any]:
    client = await connect(job)
    await publish_all(client, peer.WARM_UP_TOPIC, job.warm_up, job.qos)
    receipts, calls_s = [], []
    for payload in job.payloads:
        start_s = time.perf_counter()
        receipt = await client.publish(peer.TOPIC, payload, qos=job.qos)
        calls_s.append(time.perf_counter() - start_s)
        receipts.append(receipt)
    await wait_for_last(client, receipts[-1], job.qos)
    await client.disconnect()
    return peer.of_calls(calls_s)


async def run_receive(job: Job) -> dict[str, Any]:
    ended = asyncio.Event()
    receipts = peer.Receipts(len(job.payloads), ended.set)
    client = AsyncClient(message_delivery="callback")
    client.on_message = receipts.add
    await client.connect(peer.HOST, job.port)
    await client.subscribe(peer.TOPIC, qos=job.qos)
    peer.announce_ready()
    await asyncio.wait_for(ended.wait(), peer.TIMEOUT_S)
    await client.disconnect()
    return receipts.figures


if __name__ == "__main__":
    peer.main(
        importlib.metadata.version("mqttium"),
        {
            "publish": lambda job: asyncio.run(run_publish(job)),
            "call": lambda job: asyncio.run(run_call(job)),
            "receive": lambda job: asyncio.run(run_receive(job)),
        },
    )
