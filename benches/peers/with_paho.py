"""paho-mqtt, and whatever has its API: publish() from the main thread, the network in the thread of loop_start()."""

from __future__ import annotations

import importlib.metadata
import threading
import time
from typing import TYPE_CHECKING, Any

import peer
from paho.mqtt.client import CallbackAPIVersion, Client

if TYPE_CHECKING:
    from collections.abc import Sequence

    from paho.mqtt.client import MQTTMessageInfo
    from peer import Job


def connect(client_class: type[Client], job: Job, **options: Any) -> Client:
    client = client_class(CallbackAPIVersion.VERSION2, **options)
    client.max_inflight_messages_set(job.window)
    if job.ca:
        client.tls_set(job.ca)
    connected = threading.Event()
    client.on_connect = lambda *_: connected.set()
    client.connect(peer.HOST, job.port)
    client.loop_start()
    if not connected.wait(peer.TIMEOUT_S):
        raise TimeoutError("no CONNACK")
    return client


def disconnect(client: Client) -> None:
    client.disconnect()
    client.loop_stop()


def publish_all(client: Client, topic: str, payloads: Sequence[bytes], qos: int) -> list[MQTTMessageInfo]:
    """Returns once the last is acknowledged: as mosquitto acknowledges in order, that is when all are."""
    publish = client.publish
    infos = [publish(topic, payload, qos) for payload in payloads]
    wait_for_last(client, infos, qos)
    return infos


def wait_for_last(client: Client, infos: Sequence[MQTTMessageInfo], qos: int) -> None:
    last = infos[-1] if qos else client.publish(peer.MARK_TOPIC, b"", 1)
    last.wait_for_publish(peer.TIMEOUT_S)


def check_acknowledged(infos: Sequence[MQTTMessageInfo]) -> None:
    unacknowledged = sum(not info.is_published() for info in infos)
    if unacknowledged:
        raise RuntimeError(f"{unacknowledged} of {len(infos)} messages were not acknowledged")


def run_publish(client_class: type[Client], job: Job) -> dict[str, Any]:
    client = connect(client_class, job)
    publish_all(client, peer.WARM_UP_TOPIC, job.warm_up, job.qos)
    stopwatch = peer.Stopwatch()
    infos = publish_all(client, peer.TOPIC, job.payloads, job.qos)
    figures = stopwatch.stop()
    check_acknowledged(infos)
    disconnect(client)
    return figures


def run_call(client_class: type[Client], job: Job) -> dict[str, Any]:
    client = connect(client_class, job)
    publish_all(client, peer.WARM_UP_TOPIC, job.warm_up, job.qos)
    infos, durations_s = [], []
    for payload in job.payloads:
        start_s = time.perf_counter()
        info = client.publish(peer.TOPIC, payload, job.qos)
        durations_s.append(time.perf_counter() - start_s)
        infos.append(info)
    wait_for_last(client, infos, job.qos)
    check_acknowledged(infos)
    disconnect(client)
    return peer.of_calls(durations_s)


def run_pace(client_class: type[Client], job: Job) -> dict[str, Any]:
    """The time until on_publish is called, which is when the application learns of the acknowledgement."""
    client = connect(client_class, job)
    publish_all(client, peer.WARM_UP_TOPIC, job.warm_up, job.qos)
    acknowledged = threading.Semaphore(0)
    ends_s: list[float] = []

    def on_publish(*_: object) -> None:
        ends_s.append(time.perf_counter())
        acknowledged.release()

    client.on_publish = on_publish
    starts_s, calls_s = [], []
    due_s = time.perf_counter()
    for payload in job.payloads:
        time.sleep(max(0.0, due_s - time.perf_counter()))
        due_s += 1 / peer.PACE_MSG_S
        start_s = time.perf_counter()
        client.publish(peer.TOPIC, payload, job.qos)
        calls_s.append(time.perf_counter() - start_s)
        starts_s.append(start_s)
    for _ in job.payloads:
        if not acknowledged.acquire(timeout=peer.TIMEOUT_S):
            raise TimeoutError("an acknowledgement is missing")
    disconnect(client)
    # In order, as mosquitto's acknowledgements are.
    acks_s = [end_s - start_s for start_s, end_s in zip(starts_s, ends_s, strict=True)]
    return peer.of_acks(acks_s) | peer.of_calls(calls_s)


def subscribe(client: Client, qos: int) -> None:
    subscribed = threading.Event()
    client.on_subscribe = lambda *_: subscribed.set()
    client.subscribe(peer.TOPIC, qos)
    if not subscribed.wait(peer.TIMEOUT_S):
        raise TimeoutError("no SUBACK")


def run_receive(client_class: type[Client], job: Job) -> dict[str, Any]:
    client = connect(client_class, job)
    ended = threading.Event()
    receipts = peer.Receipts(len(job.payloads), ended.set)
    client.on_message = receipts.add
    subscribe(client, job.qos)
    peer.announce_ready()
    if not ended.wait(peer.TIMEOUT_S):
        raise TimeoutError("messages are missing")
    disconnect(client)
    return receipts.figures


def run_backlog(client_class: type[Client], job: Job) -> dict[str, Any]:
    client = connect(client_class, job, client_id=peer.SESSION, clean_session=False)
    subscribe(client, job.qos)
    disconnect(client)
    ended = threading.Event()
    receipts = peer.Receipts(len(job.payloads), ended.set)
    client.on_message = receipts.add
    peer.announce_ready()
    peer.wait_for_word()
    client.reconnect()
    client.loop_start()
    if not ended.wait(peer.TIMEOUT_S):
        raise TimeoutError("messages are missing")
    disconnect(client)
    return receipts.figures


def main(client_class: type[Client], version: str) -> None:
    peer.main(
        version,
        {
            "publish": lambda job: run_publish(client_class, job),
            "call": lambda job: run_call(client_class, job),
            "pace": lambda job: run_pace(client_class, job),
            "receive": lambda job: run_receive(client_class, job),
            "backlog": lambda job: run_backlog(client_class, job),
        },
    )


if __name__ == "__main__":
    main(Client, importlib.metadata.version("paho-mqtt"))
