"""A paho program with sqlite3, as the specification's pseudo-code goes: the queue is for the time without a link."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import publisher

sys.path.insert(0, str(Path(__file__).parents[1]))
from baseline_manager import BaselineManager


class Sqlite3Publisher:
    def __init__(self, job: publisher.Job) -> None:
        self._job = job
        connected = threading.Event()
        self._manager = BaselineManager(
            publisher.HOST, job.port, publisher.CLIENT_ID, job.directory / "queue.db", max_inflight=20
        )
        self._manager.on_connected = connected.set
        self._infos: list[object] = []
        self._manager.connect()
        connected.wait(5)

    def publish(self, number: int) -> None:
        self._manager.publish(publisher.TOPIC, publisher.body_of(number), self._job.qos)

    def finish(self) -> None:
        client = self._manager._client
        # What it was given is what paho has: a message behind all others shows that they are through.
        client.publish(publisher.TOPIC + "/end", b"", self._job.qos).wait_for_publish(publisher.TIMEOUT_S)

    def close(self) -> None:
        self._manager.disconnect()


if __name__ == "__main__":
    publisher.main(Sqlite3Publisher)
