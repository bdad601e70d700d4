"""robmqtt as its quick start has it, with its database in the directory."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import publisher
from robmqtt import ProductionMQTTClient


class RobmqttPublisher:
    def __init__(self, job: publisher.Job) -> None:
        self._job = job
        self._client = ProductionMQTTClient(
            client_id=publisher.CLIENT_ID,
            broker_host=publisher.HOST,
            broker_port=job.port,
            max_queue_size=1_000_000,
            db_path=str(job.directory / "robmqtt.db"),
            log_dir=str(job.directory / "logs"),
            log_level="ERROR",
        )
        self._ahead: deque[Any] = deque()
        self._client.connect()
        self._client.start()
        ends_s = time.monotonic() + 5
        while not self._client.is_connected and time.monotonic() < ends_s:
            time.sleep(0.01)

    def publish(self, number: int) -> None:
        info = self._client.publish(publisher.TOPIC, publisher.payload_of(number), self._job.qos)
        if info is not None and self._job.mode == "rate":
            self._ahead.append(info)
            if len(self._ahead) > publisher.AHEAD_MAX:
                self._ahead.popleft().wait_for_publish(publisher.TIMEOUT_S)

    def finish(self) -> None:
        for info in self._ahead:
            info.wait_for_publish(publisher.TIMEOUT_S)
        while self._client.get_statistics()["offline_queue"]["total_messages"]:
            time.sleep(0.01)

    def close(self) -> None:
        self._client.stop()


if __name__ == "__main__":
    publisher.main(RobmqttPublisher)
