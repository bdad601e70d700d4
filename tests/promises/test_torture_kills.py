"""A publishing process killed with SIGKILL at any moment of its life, and started again, over and over.

KILLS says how often, half of it with either version of MQTT (`make torture KILLS=1000`), SEED which moments. A
subscriber with a session of its own counts. In other lives the broker ends connections over some of the messages, the
queue is thinned, or messages expire on their way.
"""

from __future__ import annotations

import os
import random
import time
from typing import TYPE_CHECKING

import pytest

from glec_fast import OfflineQueueManager
from glec_fast.testbed.link import Link
from glec_fast.testbed.subscriber import Subscriber
from support.child import Child
from support.gateway import BOTH_VERSIONS, TIMEOUT_S
from support.program import kept
from support.publisher_child import LARGE_BYTES

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import StartBroker
    from glec_fast.testbed.broker import Broker

KILLS = int(os.environ.get("KILLS", "16"))
SEED = int(os.environ.get("SEED", "1"))
# A life in units of what a start takes: from before Python has its first module to well into a flush.
LIFE_MAX_STARTS = 3
COUNT_MAX = 400
EXPIRES_S = 1.5


@BOTH_VERSIONS
def test_killed_at_any_moment_loses_nothing_accepted_and_repeats_no_alert(
    broker: Broker, disk_folder: Path, protocol_version: int
) -> None:
    dice = random.Random(SEED)
    kills = KILLS // 2
    began_s = time.monotonic()
    Child(broker.url, disk_folder, protocol_version=protocol_version).kill()
    life_max_s = LIFE_MAX_STARTS * (time.monotonic() - began_s)
    accepted: set[bytes] = set()
    with Subscriber(broker, "t") as subscriber:
        for run in range(kills):
            count = dice.choice((0, 20, COUNT_MAX))
            child = Child(
                broker.url,
                disk_folder,
                wait_ready=False,
                first=run * COUNT_MAX,
                count=count,
                protocol_version=protocol_version,
            )
            time.sleep(dice.uniform(0, life_max_s))
            child.kill()
            accepted |= child.accepted
        last = Child(broker.url, disk_folder, protocol_version=protocol_version)
        last.wait_flushed()
        last.leave()
        assert accepted, "the control: some lived long enough"
        assert subscriber.wait_for_all(accepted, TIMEOUT_S), sorted(accepted - set(subscriber.payloads()))[:10]
        assert [payload for payload in subscriber.repeated() if payload.startswith(b"2-")] == []


def test_killed_while_the_broker_refuses_messages(start_broker: StartBroker, disk_folder: Path) -> None:
    dice = random.Random(SEED)
    broker = start_broker(settings=["max_packet_size 2000"])
    accepted: set[bytes] = set()
    with Subscriber(broker, "t") as subscriber:
        for run in range(max(KILLS // 4, 3)):
            child = Child(broker.url, disk_folder, first=run * COUNT_MAX, count=40, large_every=40)
            child.read_accepted(dice.randint(1, 70))
            time.sleep(dice.uniform(0, 0.4))
            child.kill()
            accepted |= child.accepted
        last = Child(broker.url, disk_folder)
        last.wait_flushed()
        last.leave()
        assert subscriber.wait_for_all(accepted, TIMEOUT_S), sorted(accepted - set(subscriber.payloads()))[:10]
        assert [payload for payload in subscriber.repeated() if payload.startswith(b"2-")] == []
    with OfflineQueueManager(disk_folder / "queue.db") as queue:
        assert {entry.payload_bytes for entry in queue.quarantined()} == {LARGE_BYTES}


@pytest.mark.parametrize(
    ("count", "bound"),
    [(20, {"queue_max_size": 100}), (80, {"queue_max_bytes": 1_000_000, "large_every": 2})],
    ids=["rows", "bytes"],
)
def test_killed_while_the_queue_is_thinned(
    broker: Broker, disk_folder: Path, count: int, bound: dict[str, int]
) -> None:
    dice = random.Random(SEED)
    settings = {"qos": [0] * 8 + [2], **bound}
    accepted: set[bytes] = set()
    with Subscriber(broker, "t") as subscriber:
        for run in range(max(KILLS // 5, 3)):
            is_connected = run % 2 == 1
            child = Child(broker.url, disk_folder, first=run * COUNT_MAX, count=count, connect=is_connected, **settings)
            child.read_accepted(dice.randint(1, count) if run else COUNT_MAX)
            child.kill()
            accepted |= {payload for payload in child.accepted if payload.startswith(b"2-")}
            if not run:
                left = kept(disk_folder / "queue.db")
                assert len(left) < len(settings["qos"]) * count, "the control: it was thinned"
                assert sum(payload.startswith("2-") for payload in left) == count
        last = Child(broker.url, disk_folder, **settings)
        last.wait_flushed()
        last.leave()
        assert subscriber.wait_for_all(accepted, TIMEOUT_S), sorted(accepted - set(subscriber.payloads()))[:10]
        assert [payload for payload in subscriber.repeated() if payload.startswith(b"2-")] == []


def test_killed_while_messages_expire_on_their_way(broker: Broker, disk_folder: Path) -> None:
    """What was acknowledged to nobody may expire; nothing of QoS 2 comes twice for it."""
    dice = random.Random(SEED)
    with Link((broker.host, broker.port)) as link, Subscriber(broker, "t") as subscriber:
        url = f"tcp://{link.address[0]}:{link.port}"
        for run in range(max(KILLS // 5, 3)):
            child = Child(url, disk_folder, first=run * COUNT_MAX, count=60, queue_ttl_hours=EXPIRES_S / 3600)
            child.read_accepted(dice.randint(1, 40))
            link.stall()
            child.read_accepted(dice.randint(40, 120))
            child.kill()
            link.restore()
            # The next one finds them too old, and perhaps at the broker.
            time.sleep(EXPIRES_S)
        last = Child(url, disk_folder, queue_ttl_hours=EXPIRES_S / 3600)
        last.wait_flushed()
        last.leave()
        assert [payload for payload in subscriber.repeated() if payload.startswith(b"2-")] == []
