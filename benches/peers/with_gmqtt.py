"""gmqtt: publish() is a plain function inside an event loop; it has no window, and no acknowledgement to wait for.

Its storage of what is unacknowledged, which is an argument of the client, tells when the last is gone.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import time
from typing import TYPE_CHECKING, Any

import peer
from gmqtt import Client
from gmqtt.mqtt.constants import MQTTv311
from gmqtt.storage import PersistentStorage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from peer import Job

# publish() never lets the loop run. As often as this it must, or the broker would wait for the whole batch.
YIELD_EVERY = 100


async def connect(job: Job, on_message: Any = None) -> tuple[Client, PersistentStorage]:
    storage = PersistentStorage()
    client = Client("", persistent_storage=storage)
    if on_message is not None:
        client.on_message = on_message
    await client.connect(peer.HOST, job.port, version=MQTTv311)
    return client, storage


async def publish_all(
    client: Client, storage: PersistentStorage, topic: str, payloads: Sequence[bytes], qos: int
) -> None:
    for index, payload in enumerate(payloads):
        client.publish(topic, payload, qos)
        if index % YIELD_EVERY == 0:
            await asyncio.sleep(0)
    await wait_for_last(client, storage, qos)


async def wait_for_last(client: Client, storage: PersistentStorage, qos: int) -> None:
    if qos == 0:
        client.publish(peer.MARK_TOPIC, b"", 1)
    await asyncio.wait_for(storage.wait_empty(), peer.TIMEOUT_S)


async def run_publish(job: Job) -> dict[str, Any]:
    client, storage = await connect(job)
    await publish_all(client, storage, peer.WARM_UP_TOPIC, job.warm_up, job.qos)
    stopwatch = peer.Stopwatch()
    await publish_all(client, storage, peer.TOPIC, job.payloads, job.qos)
    figures = stopwatch.stop()
    await client.disconnect()
    return figures


async def run_call(job: Job) -> dict[str, Any]:
    client, storage = await connect(job)
    await publish_all(client, storage, peer.WARM_UP_TOPIC, job.warm_up, job.qos)
    calls_s = []
    for index, payload in enumerate(job.payloads):
        start_s = time.perf_counter()
        client.publish(peer.TOPIC, payload, job.qos)
        calls_s.append(time.perf_counter() - start_s)
        if index % YIELD_EVERY == 0:
            await asyncio.sleep(0)
    await wait_for_last(client, storage, job.qos)
    await client.disconnect()
    return peer.of_calls(calls_s)


async def run_receive(job: Job) -> dict[str, Any]:
    ended, subscribed = asyncio.Event(), asyncio.Event()
    receipts = peer.Receipts(len(job.payloads), ended.set)
    client, _ = await connect(job, receipts.add)
    client.on_subscribe = lambda *_: subscribed.set()
    client.subscribe(peer.TOPIC, job.qos)
    await asyncio.wait_for(subscribed.wait(), peer.TIMEOUT_S)
    peer.announce_ready()
    await asyncio.wait_for(ended.wait(), peer.TIMEOUT_S)
    await client.disconnect()
    return receipts.figures


if __name__ == "__main__":
    peer.main(
        importlib.metadata.version("gmqtt"),
        {
            "publish": lambda job: asyncio.run(run_publish(job)),
            "call": lambda job: asyncio.run(run_call(job)),
            "receive": lambda job: asyncio.run(run_receive(job)),
        },
    )
