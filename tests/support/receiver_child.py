"""A process that receives, to be killed. One JSON object of settings as its argument.

With "kind" it is a manager or a `Client` with a store. For each message under "in" it appends a line to the file
"seen": the payload, and 1 where the broker said that it may have come before. It says "ready", and ends when its input
does. "dies_in": the statement of `glec_fast.outbox.received` in which it kills itself.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from glec_fast import Client, MQTTConfig, MQTTManager
from glec_fast.outbox import received
from support.lock_order import FatalWatch


def main() -> None:
    FatalWatch().start()
    settings = json.loads(sys.argv[1])
    if "dies_in" in settings:
        setattr(received, settings["dies_in"], lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    seen = os.open(settings["seen"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def on_message(message: Any) -> None:
        os.write(seen, b"%s %d\n" % (message.payload, message.dup))

    leave = (_manager if settings["kind"] == "manager" else _client)(settings, on_message)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.read()
    leave()


def _manager(settings: dict[str, Any], on_message: Any) -> Any:
    manager = MQTTManager(
        MQTTConfig(
            f"tcp://127.0.0.1:{settings['port']}",
            settings["client_id"],
            queue_path=settings["queue_path"],
            retry_initial_delay_ms=50,
            retry_max_delay_ms=50,
            status_interval_s=0,
            protocol_version=settings["protocol_version"],
        )
    )
    manager.subscribe("in", on_message, qos=2)
    manager.connect()
    return manager.disconnect


def _client(settings: dict[str, Any], on_message: Any) -> Any:
    version = MQTTProtocolVersion(settings["protocol_version"])
    client = Client(
        CallbackAPIVersion.VERSION2,
        settings["client_id"],
        protocol=version,
        store=settings["queue_path"],
        broker_name=settings.get("broker_name", ""),
    )
    client.reconnect_delay_set(0.05, 0.05)  # type: ignore[arg-type]
    client.on_connect = lambda *_: client.subscribe("in", 2)
    client.on_message = lambda _client, _userdata, message: on_message(message)
    client.connect_async("127.0.0.1", settings["port"])
    client.loop_start()
    return client.close


if __name__ == "__main__":
    main()
