"""glec-fast: paho's API with a store. A QoS 1 message is accepted once it is on disk, for which a life waits."""

from __future__ import annotations

import publisher

import glec_fast.mqtt as mqtt


class GlecPublisher:
    wait_for_disk = True
    # As docs/guarantees.md advises for mosquitto: with 3.1.1 a resumed session takes one message a round trip.
    protocol = mqtt.MQTTv5

    def __init__(self, job: publisher.Job) -> None:
        self._job = job
        self._client = mqtt.Client(
            mqtt.CallbackAPIVersion.VERSION2,
            client_id=publisher.CLIENT_ID,
            protocol=self.protocol,
            store=str(job.directory / "queue.db"),
            wait_for_disk=self.wait_for_disk,
        )
        # MQTTManager's default.
        self._client.max_inflight_messages_set(1000)
        self._client.connect_async(publisher.HOST, job.port)
        self._client.loop_start()

    def publish(self, number: int) -> None:
        info = self._client.publish(publisher.TOPIC, publisher.payload_of(number), self._job.qos)
        if self._job.mode == "life":
            info.wait_durable()

    def finish(self) -> None:
        if not self._client.flush(publisher.TIMEOUT_S):
            raise TimeoutError("not flushed")

    def close(self) -> None:
        self._client.close()


if __name__ == "__main__":
    publisher.main(GlecPublisher)
