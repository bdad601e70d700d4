"""What the tests of MQTTManager share: settings that retry at once, a callback that records, bounded waiting."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from glec_fast import ConnectionCallback, MQTTConfig

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from glec_fast import MQTTManager
    from glec_fast.testbed.link import Direction, Link

TIMEOUT_S = 15.0
# Under the name `protocol_version`.
BOTH_VERSIONS = pytest.mark.parametrize("protocol_version", [4, 5])
# Far below a second, so that no test waits for a broker that is back; far above zero, so that none spins.
RETRY_MS = 50
_POLL_S = 0.005


def quick_config(url: str, directory: Path, **settings: Any) -> MQTTConfig:
    """Settings with a queue in `directory`, no heartbeat, and reconnecting within `RETRY_MS`."""
    defaults: dict[str, Any] = {
        "client_id": "DTG-TEST",
        "queue_path": directory / "queue.db",
        "retry_initial_delay_ms": RETRY_MS,
        "retry_max_delay_ms": RETRY_MS,
        "status_interval_s": 0,
        "connection_timeout_s": 5,
    }
    return MQTTConfig(broker_url=url, **{**defaults, **settings})


def eventually(condition: Callable[[], bool], timeout_s: float = TIMEOUT_S) -> bool:
    """Wait for what the product offers no event for; False when it did not come."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline_s:
            return False
        time.sleep(_POLL_S)
    return True


def flush_over_cuts(manager: MQTTManager, link: Link, cuts_max: int, life: Callable[[], tuple[int, Direction]]) -> int:
    """Let what is queued flow through a link that is cut again and again; returns how often it was.

    life: (bytes, their direction) that the next connection lives for.
    """
    cuts = 0
    while cuts < cuts_max and manager.get_metrics().queue_size:
        # With no moment in between, in which the queue might empty.
        link.restore_for(*life())
        cuts += link.wait_for(lambda link: link.is_down, 1.0)
    return cuts


class Recorder(ConnectionCallback):
    """Keeps every event in order, as its name or, for a lost connection, as (name, cause)."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.events: list[Any] = []

    def on_connected(self) -> None:
        self._add("connected")

    def on_connection_lost(self, cause: Exception | None) -> None:
        self._add(("lost", cause))

    def on_reconnecting(self) -> None:
        self._add("reconnecting")

    def wait_for(self, condition: Callable[[list[Any]], bool], timeout_s: float = TIMEOUT_S) -> bool:
        """Wait until `condition(events)`; False when it did not come."""
        with self.changed:
            return self.changed.wait_for(lambda: condition(self.events), timeout_s)

    def wait_for_connections(self, count: int = 1, timeout_s: float = TIMEOUT_S) -> bool:
        return self.wait_for(lambda events: events.count("connected") >= count, timeout_s)

    def wait_for_losses(self, count: int = 1, timeout_s: float = TIMEOUT_S) -> bool:
        return self.wait_for(lambda _events: len(self.causes) >= count, timeout_s)

    @property
    def causes(self) -> list[Exception | None]:
        return [event[1] for event in self.events if isinstance(event, tuple)]

    def _add(self, event: Any) -> None:
        with self.changed:
            self.events.append(event)
            self.changed.notify_all()
