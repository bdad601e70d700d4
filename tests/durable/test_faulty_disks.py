"""A disk that hangs, is slow or refuses under a connected manager: the link stays, callers go on, nothing is lost."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING

import apsw
import pytest
from paho.mqtt import client as paho

from glec_fast import MQTTManager
from glec_fast.durable import schedule
from glec_fast.errors import QueueStorageError
from glec_fast.testbed.subscriber import Subscriber
from support.faulty_disk import FaultyDisk
from support.gateway import TIMEOUT_S, Recorder, eventually, quick_config

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from glec_fast import PublishHandle
    from glec_fast.testbed.broker import Broker
    from glec_fast.testbed.link import Link

# Where SQLite itself goes on after an error, apsw has nobody to raise it to.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

KEEPALIVE_S = 60
WRITING = ("write", "truncate", "sync", "delete")


class Scene:
    """A connected manager on a faulty disk, and a subscriber."""

    def __init__(self, disk: FaultyDisk, link: Link, manager: MQTTManager, subscriber: Subscriber) -> None:
        self.disk = disk
        self.link = link
        self.manager = manager
        self.subscriber = subscriber
        self.recorder = Recorder()
        self.accepted: set[bytes] = set()
        manager.set_connection_callback(self.recorder)
        manager.connect()
        assert self.recorder.wait_for_connections()

    def publish(self, name: str, qos: int) -> PublishHandle:
        handle = self.manager.publish("t", f"{qos}-{name}", qos)
        self.accepted.add(f"{qos}-{name}".encode())
        return handle

    def publish_until_accepted(self, name: str, qos: int) -> PublishHandle:
        """As a caller who heeds `retryable`."""
        deadline_s = time.monotonic() + TIMEOUT_S
        while time.monotonic() < deadline_s:
            with suppress(QueueStorageError):
                return self.publish(name, qos)
        raise AssertionError("it never went on")

    def check(self) -> None:
        """All that was accepted came, QoS 0 and 2 once, over the one connection."""
        assert self.manager.flush(TIMEOUT_S)
        assert self.subscriber.wait_for_all(self.accepted)
        assert [payload for payload in self.subscriber.repeated() if not payload.startswith(b"1-")] == []
        assert self.recorder.events == ["connected"]


@pytest.fixture
def scene(link: Link, broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    monkeypatch.setattr(schedule, "_STORAGE_RETRY_S", 0.01)
    folder = tmp_path / "disk"
    folder.mkdir()
    config = quick_config(f"tcp://127.0.0.1:{link.port}", folder, keepalive_s=KEEPALIVE_S)
    with FaultyDisk(folder) as disk, Subscriber(broker, "t") as subscriber, MQTTManager(config) as manager:
        yield Scene(disk, link, manager, subscriber)


def test_while_the_disk_hangs_keep_alive_and_qos_0_and_1_go_on(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [1000.0]
    monkeypatch.setattr(paho, "time_func", lambda: now_s[0])
    # After a slow commit the network thread leaves the next to the store's.
    scene.disk.sync_delay_s = 0.05
    client, session = scene.manager._client, scene.manager._outbox.session
    scene.link.stall()
    scene.publish("waits for PUBREC", 2)
    assert eventually(lambda: session.in_flight and not session.unsent_bytes)
    scene.disk.sync_delay_s = 0.0
    with scene.disk.held():
        # The PUBREL that it calls for must wait for the disk, and nothing else.
        scene.link.restore()
        assert eventually(lambda: session.unsent_bytes)
        for number in range(100):
            scene.publish(f"held-{number}", 1)
            scene.publish(f"held-{number}", 0)
        assert scene.disk.waiting_writer.wait(TIMEOUT_S)
        for _ in range(3):
            now_s[0] += KEEPALIVE_S
            assert eventually(lambda: client._last_msg_out == now_s[0]), "PINGREQ goes out"
            assert eventually(lambda: client._ping_t == 0), "and PINGRESP is taken"
        assert scene.manager.is_connected()
        assert scene.manager.get_metrics().queue_size == 201
    scene.check()


def test_syncs_of_200_ms_lose_nothing(scene: Scene) -> None:
    scene.disk.sync_delay_s = 0.2
    for number in range(300):
        scene.publish(str(number), number % 2)
        if number % 100 == 0:
            scene.publish(str(number), 2)
    scene.check()


@pytest.mark.parametrize("error", [apsw.FullError, apsw.IOError, apsw.ReadOnlyError], ids=["full", "I/O", "read-only"])
def test_a_disk_that_refuses_for_a_while_needs_no_restart(scene: Scene, error: type[apsw.Error]) -> None:
    for number in range(20):
        scene.publish(f"before-{number}", 1 + number % 2)
    refused = 0

    def fault(operation: str, _name: str) -> None:
        nonlocal refused
        if operation in WRITING:
            refused += 1
            raise error(f"{operation} failed")

    scene.disk.fault = fault
    with pytest.raises(QueueStorageError) as caught:
        scene.publish("refused", 2)
    assert caught.value.retryable
    assert refused
    assert scene.manager.is_connected()
    scene.disk.fault = None
    for number in range(20):
        scene.publish_until_accepted(f"after-{number}", 1 + number % 2)
    scene.check()
    assert b"2-refused" not in scene.subscriber.payloads()


def test_a_disk_that_cannot_be_read_for_a_while_needs_no_restart(scene: Scene) -> None:
    failed = 0

    def fault(operation: str, _name: str) -> None:
        nonlocal failed
        if operation == "read":
            failed += 1
            raise apsw.IOError("read failed")

    # More than the caches hold, so that they must be read.
    large = "x" * 20_000
    for number in range(100):
        scene.publish(f"before-{number} {large}", 1)
    scene.disk.fault = fault
    for number in range(100):
        with suppress(QueueStorageError):
            scene.publish(f"meanwhile-{number} {large}", 1)
    assert eventually(lambda: failed > 5)
    scene.disk.fault = None
    scene.publish_until_accepted("after", 2)
    scene.check()
