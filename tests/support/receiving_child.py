"""A process to which messages and commands come, to be killed. One JSON object of settings as its argument.

"kind": a manager, a `Client` with a store, or a manager that runs commands. What came, a line each, is appended to the
file "seen": the payload, and 1 where the broker said that it may have come before; of a command its id, and 1 where it
was told that it is a retry. "dies_in": the statement of `glec_fast.outbox.received` in which it kills itself. It says
"ready", and ends when its input does.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from glec_fast import Client, MQTTConfig, MQTTManager
from glec_fast.outbox import received
from support.lock_order import FatalWatch

if TYPE_CHECKING:
    from collections.abc import Callable

    Note = Callable[[str, bool], None]


def main() -> None:
    FatalWatch().start()
    settings = json.loads(sys.argv[1])
    if "dies_in" in settings:
        setattr(received, settings["dies_in"], lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    seen = os.open(settings["seen"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def note(text: str, is_told: bool) -> None:
        os.write(seen, f"{text} {int(is_told)}\n".encode())

    leave = KINDS[settings["kind"]](settings, note)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.read()
    leave()


def _manager_of(settings: dict[str, Any]) -> MQTTManager:
    return MQTTManager(
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


def _manager(settings: dict[str, Any], note: Note) -> Callable[[], None]:
    manager = _manager_of(settings)
    manager.subscribe("in", lambda message: note(message.payload.decode(), message.dup), qos=2)
    manager.connect()
    return manager.disconnect


def _commands(settings: dict[str, Any], note: Note) -> Callable[[], None]:
    manager = _manager_of(settings)

    def run(arguments: dict[str, Any], context: Any) -> str:
        # Work before and behind the effect, for a kill to fall into.
        time.sleep(arguments["work_s"])
        note(context.id, context.is_retry)
        time.sleep(arguments["work_s"])
        return str(context.id)

    manager.command("once", on_crash="fail")(run)
    manager.command("again", on_crash="retry")(run)
    manager.connect()

    def leave() -> None:
        manager.flush(15)
        manager.disconnect()

    return leave


def _client(settings: dict[str, Any], note: Note) -> Callable[[], None]:
    client = Client(
        CallbackAPIVersion.VERSION2,
        settings["client_id"],
        protocol=MQTTProtocolVersion(settings["protocol_version"]),
        store=settings["queue_path"],
        broker_name=settings.get("broker_name", ""),
    )
    client.reconnect_delay_set(0.05, 0.05)  # type: ignore[arg-type]
    client.on_connect = lambda *_: client.subscribe("in", 2)
    client.on_message = lambda _client, _userdata, message: note(message.payload.decode(), message.dup)
    client.connect_async("127.0.0.1", settings["port"])
    client.loop_start()
    return client.close


KINDS = {"manager": _manager, "client": _client, "commands": _commands}

if __name__ == "__main__":
    main()
