"""A publishing process to be killed. One JSON object of settings as its argument.

It prints "ready"; then the payload of each message, once losing it would break a promise (QoS 1: `wait_durable` has
returned; QoS 2: `publish` has), but of those that are `LARGE_BYTES` long; then "published"; and "flushed" once nothing
is waiting. It ends when its input does.
"""

from __future__ import annotations

import json
import sys

from glec_fast import MQTTConfig, MQTTManager, TLSConfig
from support.lock_order import FatalWatch

LARGE_BYTES = 4000


def main() -> None:
    FatalWatch().start()
    settings = json.loads(sys.argv[1])
    ca_cert = settings.get("ca_cert")
    manager = MQTTManager(
        MQTTConfig(
            broker_url=settings["url"],
            client_id=settings["client_id"],
            username=settings.get("username"),
            password=settings.get("password"),
            tls_config=TLSConfig.create_server_auth(ca_cert) if ca_cert else None,
            queue_path=settings["queue_path"],
            queue_max_size=settings.get("queue_max_size", 100_000),
            queue_max_bytes=settings.get("queue_max_bytes", 50_000_000),
            retry_initial_delay_ms=50,
            retry_max_delay_ms=50,
            status_interval_s=0,
            max_in_flight=settings.get("max_in_flight", 1000),
            protocol_version=settings.get("protocol_version", 4),
            keepalive_s=settings.get("keepalive_s", 60),
            queue_ttl_hours=settings.get("queue_ttl_hours", 24),
        )
    )
    if settings.get("connect", True):
        manager.connect()
    _say("ready")
    large_every = settings.get("large_every", 0)
    for number in range(settings["first"], settings["first"] + settings["count"]):
        for qos in settings["qos"]:
            payload = f"{qos}-{number}"
            if large_every and number % large_every == 0:
                # The broker ends the connection over it.
                manager.publish(settings["topic"], payload.ljust(LARGE_BYTES), qos)
                continue
            handle = manager.publish(settings["topic"], payload, qos)
            if qos == 2 or handle.wait_durable():
                _say(payload)
    _say("published")
    manager.flush()
    _say("flushed")
    sys.stdin.read()
    manager.disconnect()


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
