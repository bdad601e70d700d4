"""reliomq in DurableMode. Its Relay, which hands each message on and confirms it, is another process: `relay PORT`."""

from __future__ import annotations

import sys
import time

import publisher
from reliomq import DurableMode, Relay, RelayConfig, Sender, SenderConfig


class ReliomqPublisher:
    def __init__(self, job: publisher.Job) -> None:
        config = SenderConfig(
            host=publisher.HOST,
            port=job.port,
            outbox_path=job.directory / "outbox",
            client_id=publisher.CLIENT_ID,
            # Of a link that is cut every second; by default 10 and up to 60 s.
            retry_interval=0.5,
            reconnect_min_delay=0.1,
            reconnect_max_delay=1.0,
        )
        self._sender = Sender(config, mode=DurableMode())
        self._sender.start()

    def publish(self, number: int) -> None:
        self._sender.publish(publisher.TOPIC, publisher.body_of(number))

    def finish(self) -> None:
        while self._sender.pending_count():
            time.sleep(0.01)

    def close(self) -> None:
        self._sender.stop()


def relay(port: int) -> None:
    """Until it is killed."""
    config = RelayConfig(
        source_host=publisher.HOST,
        destination_host=publisher.HOST,
        source_port=port,
        destination_port=port,
        source_client_id="relay-in",
        destination_client_id="relay-out",
        max_queue_size=100_000,
    )
    Relay(config).start()
    print("ready", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    if sys.argv[1] == "relay":
        relay(int(sys.argv[2]))
    else:
        publisher.main(ReliomqPublisher)
