"""A publishing process killed with SIGKILL at any moment of its life, and started again, over and over.

KILLS says how often, half of it with either version of MQTT (`make torture KILLS=1000`), SEED which moments. A
subscriber with a session of its own counts.
"""

from __future__ import annotations

import os
import random
import time
from typing import TYPE_CHECKING

from glec_fast.testbed.subscriber import Subscriber
from support.child import Child
from support.gateway import BOTH_VERSIONS, TIMEOUT_S

if TYPE_CHECKING:
    from pathlib import Path

    from glec_fast.testbed.broker import Broker

KILLS = int(os.environ.get("KILLS", "16"))
SEED = int(os.environ.get("SEED", "1"))
# A life in units of what a start takes: from before Python has its first module to well into a flush.
LIFE_MAX_STARTS = 3
COUNT_MAX = 400


@BOTH_VERSIONS
def test_killed_at_any_moment_loses_nothing_accepted_and_repeats_no_alert(
    broker: Broker, tmp_path: Path, protocol_version: int
) -> None:
    dice = random.Random(SEED)
    kills = KILLS // 2
    began_s = time.monotonic()
    Child(broker.url, tmp_path, protocol_version=protocol_version).kill()
    life_max_s = LIFE_MAX_STARTS * (time.monotonic() - began_s)
    accepted: set[bytes] = set()
    with Subscriber(broker, "t") as subscriber:
        for run in range(kills):
            count = dice.choice((0, 20, COUNT_MAX))
            child = Child(
                broker.url,
                tmp_path,
                wait_ready=False,
                first=run * COUNT_MAX,
                count=count,
                protocol_version=protocol_version,
            )
            time.sleep(dice.uniform(0, life_max_s))
            child.kill()
            accepted |= child.accepted
        last = Child(broker.url, tmp_path, protocol_version=protocol_version)
        last.wait_flushed()
        last.leave()
        assert len(accepted) > kills
        assert subscriber.wait_for_all(accepted, TIMEOUT_S), sorted(accepted - set(subscriber.payloads()))[:10]
        assert [payload for payload in subscriber.repeated() if payload.startswith(b"2-")] == []
