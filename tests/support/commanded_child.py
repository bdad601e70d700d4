"""A vehicle that runs commands, to be killed. One JSON object of settings as its argument.

Each run of a command appends a line to the file "effects": its id, and 1 where it was told that it is a retry. It says
"ready", and ends when its input does.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

from glec_fast import MQTTConfig, MQTTManager
from support.lock_order import FatalWatch


def main() -> None:
    FatalWatch().start()
    settings = json.loads(sys.argv[1])
    effects = os.open(settings["effects"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
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

    def run(arguments: dict[str, Any], context: Any) -> str:
        # Work before and behind the effect, for a kill to fall into.
        time.sleep(arguments["work_s"])
        os.write(effects, f"{context.id} {int(context.is_retry)}\n".encode())
        time.sleep(arguments["work_s"])
        return str(context.id)

    manager.command("once", on_crash="fail")(run)
    manager.command("again", on_crash="retry")(run)
    manager.connect()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.read()
    manager.flush(15)
    manager.disconnect()


if __name__ == "__main__":
    main()
