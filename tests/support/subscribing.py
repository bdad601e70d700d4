"""A manager that subscribes, handlers that keep what they were called with, and a platform that publishes."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from glec_fast import MQTTManager
from support.gateway import TIMEOUT_S, Recorder, quick_config

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from glec_fast.fleet.config import MQTTConfig
    from glec_fast.testbed.broker import Broker


class Handled:
    """What a handler was called with, in order. `gate`: handlers wait for it where it is not set."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.messages: list[Any] = []
        self.threads: set[str] = set()
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, message: Any) -> None:
        with self.changed:
            self.threads.add(threading.current_thread().name)
        assert self.gate.wait(TIMEOUT_S)
        with self.changed:
            self.messages.append(message)
            self.changed.notify_all()

    @property
    def payloads(self) -> list[bytes]:
        with self.changed:
            return [each.payload for each in self.messages]

    def wait_for(self, payloads: list[bytes]) -> bool:
        with self.changed:
            return self.changed.wait_for(lambda: [each.payload for each in self.messages] == payloads, TIMEOUT_S)


@contextmanager
def running(config: MQTTConfig) -> Iterator[tuple[MQTTManager, Recorder]]:
    recorder = Recorder()
    with MQTTManager(config) as manager:
        manager.set_connection_callback(recorder)
        yield manager, recorder


@contextmanager
def publishing(broker: Broker, directory: Path) -> Iterator[MQTTManager]:
    """The platform: another manager, whose messages all reach the broker."""
    directory.mkdir(exist_ok=True)
    with MQTTManager(quick_config(broker.url, directory, client_id="platform")) as platform:
        platform.connect()
        yield platform
