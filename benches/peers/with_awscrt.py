"""awscrt's MQTT 3.1.1 client, in C behind Python futures. It has no QoS 2 and no window."""

from __future__ import annotations

import importlib.metadata
import threading
import time
import uuid
from typing import TYPE_CHECKING, Any

import peer
from awscrt import mqtt

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Future

    from peer import Job


def connect(job: Job) -> mqtt.Connection:
    connection = mqtt.Connection(mqtt.Client(), peer.HOST, job.port, uuid.uuid4().hex[:20])
    connection.connect().result(peer.TIMEOUT_S)
    return connection


def publish_all(connection: mqtt.Connection, topic: str, payloads: Sequence[bytes], qos: int) -> list[Future]:
    """Returns once the last is acknowledged, which mosquitto does in order."""
    level = mqtt.QoS(qos)
    futures = [connection.publish(topic, payload, level)[0] for payload in payloads]
    wait_for_last(connection, futures, qos)
    return futures


def wait_for_last(connection: mqtt.Connection, futures: Sequence[Future], qos: int) -> None:
    last = futures[-1] if qos else connection.publish(peer.MARK_TOPIC, b"", mqtt.QoS.AT_LEAST_ONCE)[0]
    last.result(peer.TIMEOUT_S)


def run_publish(job: Job) -> dict[str, Any]:
    connection = connect(job)
    publish_all(connection, peer.WARM_UP_TOPIC, job.warm_up, job.qos)
    stopwatch = peer.Stopwatch()
    futures = publish_all(connection, peer.TOPIC, job.payloads, job.qos)
    figures = stopwatch.stop()
    for future in futures:
        future.result(peer.TIMEOUT_S)
    connection.disconnect().result(peer.TIMEOUT_S)
    return figures


def run_call(job: Job) -> dict[str, Any]:
    connection = connect(job)
    publish_all(connection, peer.WARM_UP_TOPIC, job.warm_up, job.qos)
    level = mqtt.QoS(job.qos)
    futures, calls_s = [], []
    for payload in job.payloads:
        start_s = time.perf_counter()
        future, _ = connection.publish(peer.TOPIC, payload, level)
        calls_s.append(time.perf_counter() - start_s)
        futures.append(future)
    wait_for_last(connection, futures, job.qos)
    connection.disconnect().result(peer.TIMEOUT_S)
    return peer.of_calls(calls_s)


def run_receive(job: Job) -> dict[str, Any]:
    connection = connect(job)
    ended = threading.Event()
    receipts = peer.Receipts(len(job.payloads), ended.set)

    def on_message(**_: object) -> None:
        receipts.add()

    connection.subscribe(peer.TOPIC, mqtt.QoS(job.qos), on_message)[0].result(peer.TIMEOUT_S)
    peer.announce_ready()
    if not ended.wait(peer.TIMEOUT_S):
        raise TimeoutError("messages are missing")
    connection.disconnect().result(peer.TIMEOUT_S)
    return receipts.figures


if __name__ == "__main__":
    peer.main(importlib.metadata.version("awscrt"), {"publish": run_publish, "call": run_call, "receive": run_receive})
