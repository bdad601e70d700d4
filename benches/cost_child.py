"""The processes that bench_cost.py measures, so that their syncs, writes and memory are their own.

Called as `cost_child.py NAME JSON`; prints one JSON object.
"""

from __future__ import annotations

import ctypes
import json
import sqlite3
import sys
import time
from typing import Any

import contender
from workload import TOPIC, make_payload

FLUSH_TIMEOUT_S = 600.0


def sync_count() -> int:
    """Syncs of this process so far; count_syncs.c must be preloaded."""
    count = ctypes.CDLL(None).glec_sync_count
    count.restype = ctypes.c_long
    return int(count())


def run_flush(port: int, messages: int, window: int, max_unreleased: int, queue_path: str) -> dict[str, float]:
    """bench_flush's own run of QoS 2, and its syncs, those of opening and closing the queue among them."""
    meter = contender.run_glec(contender.Order(port, 2, messages, window, max_unreleased, queue_path))
    return {**meter.figures(), "syncs": sync_count()}


def run_queue(
    port: int, qos: int, messages: int, rate_msg_s: int, wait_for_disk: bool, max_unreleased: int, queue_path: str
) -> dict[str, float]:
    """Publish without a link at an even rate, then connect and flush."""
    from glec_fast import MQTTConfig, MQTTManager

    payloads = [make_payload(number) for number in range(messages)]
    before = contender.write_bytes()
    config = MQTTConfig(
        broker_url=f"tcp://127.0.0.1:{port}",
        client_id=contender.CLIENT_ID,
        queue_path=queue_path,
        queue_max_size=messages,
        max_unreleased=max_unreleased,
        wait_for_disk=wait_for_disk,
        status_interval_s=0,
    )
    with MQTTManager(config) as manager:
        begin_s = time.perf_counter()
        for number, payload in enumerate(payloads):
            while (early_s := begin_s + number / rate_msg_s - time.perf_counter()) > 0:
                time.sleep(early_s)
            handle = manager.publish(TOPIC, payload, qos)
        queued_s = time.perf_counter() - begin_s
        handle.wait_durable(FLUSH_TIMEOUT_S)
        queued = contender.write_bytes() - before
        manager.connect()
        if not manager.flush(FLUSH_TIMEOUT_S):
            raise TimeoutError("the queue was not emptied")
    return {"queued_bytes": queued, "write_bytes": contender.write_bytes() - before, "rate_msg_s": messages / queued_s}


def run_one_by_one(messages: int, queue_path: str) -> dict[str, float]:
    """A transaction for each message that is queued, and one for each that is sent: the same table, as safe."""
    from glec_fast.durable.database import SCHEMA

    before = contender.write_bytes()
    db = sqlite3.connect(queue_path, isolation_level=None)
    db.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;" + SCHEMA)
    insert = "INSERT INTO mqtt_offline_queue (topic, payload, qos, timestamp, ttl) VALUES (?, ?, 1, ?, ?)"
    for number in range(messages):
        db.execute(insert, (TOPIC, make_payload(number), number, number + 86_400_000))
    for number in range(messages):
        db.execute("DELETE FROM mqtt_offline_queue WHERE id = ?", (number + 1,))
    db.close()
    return {"write_bytes": contender.write_bytes() - before}


def run_start(port: int, rows: int, acknowledged: int, queue_path: str) -> dict[str, float]:
    """Open a queue of so many rows and flush a few of them."""
    from glec_fast import MQTTConfig, MQTTManager

    config = MQTTConfig(
        broker_url=f"tcp://127.0.0.1:{port}",
        client_id=contender.CLIENT_ID,
        queue_path=queue_path,
        queue_max_size=2 * rows,
        max_unreleased=2000,
        status_interval_s=0,
    )
    begin_s = time.perf_counter()
    manager = MQTTManager(config)
    open_s = time.perf_counter() - begin_s
    manager.connect()
    deadline_s = time.monotonic() + FLUSH_TIMEOUT_S
    while manager.get_metrics().messages_sent < acknowledged:
        if time.monotonic() > deadline_s:
            raise TimeoutError("nothing is acknowledged")
        time.sleep(0.01)
    private = contender.private_bytes()
    manager.disconnect()
    return {"open_s": open_s, "private_bytes": private}


RUNNERS = {"flush": run_flush, "queue": run_queue, "one_by_one": run_one_by_one, "start": run_start}


def main() -> None:
    name, arguments = sys.argv[1:]
    options: dict[str, Any] = json.loads(arguments)
    print(json.dumps(RUNNERS[name](**options)))


if __name__ == "__main__":
    main()
