"""A drive over a bad link, in simulated time: what is published on the way, what the link does, and what arrived."""

from __future__ import annotations

import random
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from glec_fast import MQTTManager
from glec_fast.testbed.subscriber import Subscriber
from support.faulty_link import FaultyLink
from support.gateway import quick_config

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from glec_fast.testbed.broker import Broker

# Simulated seconds in one of the machine's.
SCALE = 60.0
FLUSH_TIMEOUT_S = 120.0
PAYLOAD_BYTES = 300
# A loaded machine needs so long for an answer, whatever the scale.
ANSWER_MIN_S = 0.3


@dataclass
class Report:
    """What a drive came to; `missing` and `doubled` are payloads by QoS."""

    published: Counter[int] = field(default_factory=Counter)
    missing: dict[int, list[bytes]] = field(default_factory=dict)
    doubled: dict[int, list[bytes]] = field(default_factory=dict)
    faults: Counter[str] = field(default_factory=Counter)
    connections: int = 0
    bytes_up: int = 0
    payload_bytes: int = 0
    drops: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        copies = {qos: len(each) for qos, each in self.doubled.items()}
        missing = {qos: len(each) for qos, each in self.missing.items()}
        return (
            f"{dict(self.published)} published by QoS, {missing} missing, {copies} more than once, drops {self.drops}; "
            f"{dict(self.faults)}, {self.connections} connections; "
            f"{self.bytes_up:,} bytes up, {self.bytes_up / self.payload_bytes:.2f} for each of payload"
        )


class Drive:
    """A manager that publishes once a simulated second over a link to `broker`, until `run` has returned."""

    def __init__(self, broker: Broker, directory: Path, seed: int, **settings: Any) -> None:
        self.rng = random.Random(seed)
        self.report = Report()
        self._broker = broker
        self._directory = directory
        scaled = {
            "retry_initial_delay_ms": int(2000 / SCALE),
            "retry_max_delay_ms": int(60_000 / SCALE),
            "answer_timeout_s": max(8 / SCALE, ANSWER_MIN_S),
            "connection_timeout_s": 2.0,
            "keepalive_s": 1,
            "wait_for_disk": False,
            "resend_unproven": True,
            "queue_max_size": 1_000_000,
        }
        self._settings = {**scaled, **settings}
        self._number = 0

    def run(self, seconds: float, faults: Callable[[Drive], Iterator[float]], qos: Callable[[int], int]) -> Report:
        """faults: does to `link` what it likes, and yields how many simulated seconds pass until it goes on.

        qos: of each message, by its number.
        """
        with ExitStack() as stack:
            self.link = stack.enter_context(FaultyLink((self._broker.host, self._broker.port)))
            subscriber = stack.enter_context(Subscriber(self._broker, "t"))
            config = quick_config(f"tcp://127.0.0.1:{self.link.port}", self._directory, **self._settings)
            manager = stack.enter_context(MQTTManager(config))
            manager.connect()
            began_s = time.monotonic()
            published: dict[bytes, int] = {}
            next_fault_s, plan = 0.0, faults(self)
            for second in range(int(seconds)):
                while next_fault_s <= second:
                    next_fault_s += next(plan)
                payload = f"{qos(second)}-{second}-".encode().ljust(PAYLOAD_BYTES, b"x")
                published[payload] = qos(second)
                manager.publish("t", payload, qos(second))
                time.sleep(max(began_s + (second + 1) / SCALE - time.monotonic(), 0.0))
            self.link.restore()
            # Those that are half-open are found out by their silence, as on the way.
            assert manager.flush(FLUSH_TIMEOUT_S), manager.get_metrics()
            if self._settings["resend_unproven"]:
                subscriber.wait_for_all(set(published), FLUSH_TIMEOUT_S)
            else:
                # Its answer proves what left before it; else the connection is found dead, and what was lost counted.
                manager.publish("t", "last", 1).wait_for_publish(FLUSH_TIMEOUT_S)
                assert subscriber.wait_for_all({b"last"}, FLUSH_TIMEOUT_S)
            counts = Counter(subscriber.payloads())
            report = self.report
            report.published = Counter(published.values())
            for level in (0, 1, 2):
                mine = [payload for payload, its in published.items() if its == level]
                report.missing[level] = [payload for payload in mine if not counts[payload]]
                report.doubled[level] = [payload for payload in mine if counts[payload] > 1]
            report.connections = self.link.accepted_connections
            report.bytes_up = self.link.bytes_up
            report.payload_bytes = PAYLOAD_BYTES * len(published)
            report.drops = dict(manager.get_metrics().drops)
        return report


def all_kinds(drive: Drive) -> Iterator[float]:
    """Cuts after 0 to 20 kB either way, stalls, tunnels, answers that are lost, narrow places; and none of them."""
    rng, link = drive.rng, drive.link
    while True:
        kind = rng.choice(("cut", "cut", "cut", "stall", "tunnel", "half-open", "narrow", "well"))
        drive.report.faults[kind] += 1
        if kind == "cut":
            link.restore_until(rng.randrange(1, 20_000), rng.choice(("up", "up", "down")), reset=rng.random() < 0.5)
        elif kind == "stall":
            link.stall()
        elif kind == "tunnel":
            link.swallow()
        elif kind == "half-open":
            link.swallow("down")
        elif kind == "narrow":
            link.slow(rng.uniform(1_000, 20_000) * SCALE)
        yield rng.uniform(2, 60)
        link.restore()
        yield rng.uniform(0, 20)


def tunnels(every_s: float, lasts_s: float) -> Callable[[Drive], Iterator[float]]:
    """One every so many seconds, that lasts so long."""

    def plan(drive: Drive) -> Iterator[float]:
        while True:
            yield every_s - lasts_s
            drive.report.faults["tunnel"] += 1
            drive.link.swallow()
            yield lasts_s
            drive.link.restore()

    return plan
