"""What every peer in Python shares: its orders, its clock, its report.

A peer is started as `with_NAME.py ACTION PORT QOS COUNT WINDOW PAYLOADS [CA]` and prints one JSON object. PAYLOADS is a
file of COUNT payloads of PAYLOAD_BYTES each. CA, the certificate of an authority, means TLS. The peers in C and
JavaScript take the same arguments but CA.

  publish  COUNT messages as fast as the client takes them, after a warm-up that is not timed
  call     the same, with each call of publish() timed
  pace     COUNT messages at PACE_MSG_S, each timed from the call to its acknowledgement
  receive  prints READY once it is subscribed, and then takes COUNT messages with on_message
  backlog  subscribes in a session that the broker keeps, leaves, prints READY, waits for a line on standard input,
           comes back, and takes COUNT messages with on_message
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

HOST = "127.0.0.1"
TOPIC = "glec/dtg/DTG-BENCH/alerts"
WARM_UP_TOPIC = "bench/warm-up"
# A QoS 1 message after the last of QoS 0: the broker takes the packets of one connection in order, so that its
# acknowledgement shows that the broker has them all.
MARK_TOPIC = "bench/mark"
PAYLOAD_BYTES = 300
WARM_UP_MESSAGES = 1_000
PACE_MSG_S = 100
TIMEOUT_S = 120.0
READY = "ready"
# The client id of a session that the broker keeps.
SESSION = "bench-session"


class Job(NamedTuple):
    action: str
    port: int
    qos: int
    window: int
    payloads: list[bytes]
    # A file of certificates to trust, where the connection is to be over TLS.
    ca: str

    @property
    def warm_up(self) -> list[bytes]:
        return self.payloads[:WARM_UP_MESSAGES]


class Stopwatch:
    """Wall and CPU time of this process, all threads, from the making to `stop`."""

    def __init__(self) -> None:
        self._cpu_start_s = time.process_time()
        self._start_s = time.perf_counter()

    def stop(self) -> dict[str, float]:
        return {
            "wall_s": time.perf_counter() - self._start_s,
            "cpu_s": time.process_time() - self._cpu_start_s,
        }


class Receipts:
    """Counts what on_message brings. The clock runs from the first message to the last."""

    def __init__(self, count: int, on_last: Callable[[], object]) -> None:
        self._remaining = count
        self._on_last = on_last
        self._stopwatch: Stopwatch | None = None
        self.figures: dict[str, float] = {}

    def add(self, *_: object) -> None:
        if self._stopwatch is None:
            self._stopwatch = Stopwatch()
        self._remaining -= 1
        if self._remaining == 0:
            self.figures = self._stopwatch.stop()
            self._on_last()


def of_calls(durations_s: Sequence[float]) -> dict[str, float]:
    return {"call_p50_s": statistics.median(durations_s), "call_p99_s": percentile(durations_s, 99)}


def of_acks(durations_s: Sequence[float]) -> dict[str, float]:
    return {"ack_p50_s": statistics.median(durations_s), "ack_p99_s": percentile(durations_s, 99)}


def percentile(values: Sequence[float], percent: int) -> float:
    """The smallest value that at least `percent` of 100 of all values do not exceed."""
    return sorted(values)[-(-len(values) * percent // 100) - 1]


def announce_ready() -> None:
    print(READY, flush=True)


def wait_for_word() -> None:
    sys.stdin.readline()


def main(version: str, actions: Mapping[str, Callable[[Job], dict[str, Any]]]) -> None:
    action, port, qos, count, window, path, *ca = sys.argv[1:]
    content = Path(path).read_bytes()
    payloads = [content[at : at + PAYLOAD_BYTES] for at in range(0, int(count) * PAYLOAD_BYTES, PAYLOAD_BYTES)]
    figures = actions[action](Job(action, int(port), int(qos), int(window), payloads, *ca or [""]))
    print(json.dumps({"version": version, **figures}))
