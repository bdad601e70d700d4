"""An exception between any two steps of a call to a manager: the program that goes on finds it as it should be."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from glec_fast import Alert, MQTTManager, Telemetry
from support.gateway import eventually, quick_config
from support.interrupts import Interrupted, StepTrace

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from glec_fast.testbed.broker import Broker

# Far more than anything takes that does not hang.
END_S = 60.0
TOPIC = "vehicle/interrupted"


class Point:
    """One manager, interrupted once in one call."""

    def __init__(self, broker: Broker, directory: Path, act: str) -> None:
        self.config = quick_config(broker.url, directory, client_id=f"interrupted-{act}")
        self.act = act
        self.manager = MQTTManager(self.config)
        self.came: list[Any] = []
        self.ran: list[str] = []
        if act != "connect":
            self.manager.connect()
            assert eventually(self.manager.is_connected)
        if act == "flush":
            for number in range(5):
                self.manager.publish(TOPIC, str(number), 1)

    def call(self) -> None:
        """The call that is interrupted."""
        ACTS[self.act](self)

    def interrupt(self, at: int) -> str:
        """Where the call was interrupted, empty where it was over before."""
        trace = StepTrace(at)
        sys.settrace(trace)
        try:
            self.call()
        except Interrupted:
            pass
        finally:
            sys.settrace(None)
        return trace.where

    def problems(self) -> list[str]:
        """What the program that goes on finds amiss."""
        if self.act in ("connect", "disconnect", "subscribe", "command"):
            # Cut short, it is called again.
            self.call()
        if self.act == "disconnect":
            # The queue file is free.
            self.manager = MQTTManager(self.config)
            self.manager.connect()
        found = []
        if not eventually(self.manager.is_connected):
            found.append("it does not connect")
        self.manager.get_metrics()
        handle = self.manager.publish(TOPIC, "later", 2)
        if self.act == "subscribe":
            self.manager.publish(f"{TOPIC}/heard", "x", 2)
        if self.act == "command":
            self.manager.publish(f"glec/dtg/{self.config.client_id}/commands/ring", {"id": "1"}, 2)
        if not self.manager.flush(END_S) or not handle.is_published():
            found.append("what is queued stays there")
        if self.act == "subscribe" and not eventually(lambda: len(self.came) == 1):
            found.append(f"{len(self.came)} of 1 came")
        if self.act == "command" and not eventually(lambda: self.ran == ["1"]):
            found.append(f"ran: {self.ran}")
        began_s = time.monotonic()
        self.manager.disconnect()
        if time.monotonic() - began_s > END_S:
            found.append("its end takes too long")
        return found

    def declare(self) -> None:
        """A command that notes its id."""

        @self.manager.command("ring")
        def ring(_arguments: dict[str, Any], context: Any) -> str:
            self.ran.append(context.id)
            return "rung"


ACTS: dict[str, Callable[[Point], Any]] = {
    "publish": lambda point: point.manager.publish(TOPIC, "x", 2),
    "publish_alert": lambda point: point.manager.publish_alert(Alert("X", "HIGH")),
    "publish_telemetry": lambda point: point.manager.publish_telemetry(Telemetry(1, 2, 3, 4)),
    "publish_status": lambda point: point.manager.publish_status(),
    "subscribe": lambda point: point.manager.subscribe(f"{TOPIC}/heard", point.came.append, 2),
    "command": Point.declare,
    "flush": lambda point: point.manager.flush(5),
    "get_metrics": lambda point: point.manager.get_metrics(),
    "in_doubt": lambda point: point.manager.in_doubt(),
    "connect": lambda point: point.manager.connect(),
    "disconnect": lambda point: point.manager.disconnect(),
}
# So many steps each has, or nearly.
STEPS = {
    "publish": 160, "publish_alert": 160, "publish_telemetry": 110, "publish_status": 140, "subscribe": 660,
    "command": 800, "flush": 110, "get_metrics": 240, "in_doubt": 90, "connect": 210, "disconnect": 390,
}  # fmt: skip
