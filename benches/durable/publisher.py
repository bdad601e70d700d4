"""What each contender's program has in common: its job, its two modes, its figures. Only the standard library: the
contenders have Pythons of their own.

`with_NAME.py rate|life PORT DIRECTORY QOS FIRST COUNT`. In `rate` it publishes COUNT messages as fast as it accepts
them, waits until the broker has all, and prints its figures as JSON. In `life` it publishes for ever at PACE_MSG_S, and
prints the number of each message once it is accepted, as its own documentation means that; it ends by being killed, or
after COUNT messages once its standard input is closed.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import NamedTuple, Protocol

HOST = "127.0.0.1"
TOPIC = "bench/durable"
CLIENT_ID = "durable"
PAYLOAD_BYTES = 300
PACE_MSG_S = 500
# So many are on their way at most, where a contender does not bound it itself.
AHEAD_MAX = 1000
TIMEOUT_S = 300.0


class Job(NamedTuple):
    mode: str
    port: int
    directory: Path
    qos: int
    first: int
    count: int


class Publisher(Protocol):
    """Connected, or on its way to be, when it is made."""

    def publish(self, number: int) -> None:
        """Returns once the message is accepted for good."""

    def finish(self) -> None:
        """Returns once the broker has all that this process published."""

    def close(self) -> None:
        """Let go of files and connection."""


def body_of(number: int) -> dict[str, object]:
    body = {"number": number, "note": ""}
    return {**body, "note": "x" * (PAYLOAD_BYTES - len(json.dumps(body)))}


def payload_of(number: int) -> str:
    return json.dumps(body_of(number))


def job_of(arguments: list[str]) -> Job:
    mode, port, directory, qos, first, count = arguments
    return Job(mode, int(port), Path(directory), int(qos), int(first), int(count))


def written_bytes() -> int:
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("write_bytes")).split()[1])


def main(make: type[Publisher]) -> None:
    job = job_of(sys.argv[1:])
    publisher = make(job)  # type: ignore[call-arg]
    if job.mode == "rate":
        measure(job, publisher)
    else:
        live(job, publisher)


def measure(job: Job, publisher: Publisher) -> None:
    written, cpu_s, start_s = written_bytes(), time.process_time(), time.perf_counter()
    for number in range(job.first, job.first + job.count):
        publisher.publish(number)
    accepted_s = time.perf_counter() - start_s
    publisher.finish()
    wall_s = time.perf_counter() - start_s
    cpu_s = time.process_time() - cpu_s
    publisher.close()
    figures = {"wall_s": wall_s, "accepted_s": accepted_s, "cpu_s": cpu_s, "write_bytes": written_bytes() - written}
    print(json.dumps(figures), flush=True)


def live(job: Job, publisher: Publisher) -> None:
    print("ready", flush=True)
    for number in range(job.first, job.first + job.count):
        publisher.publish(number)
        print(number, flush=True)
        time.sleep(1 / PACE_MSG_S)
    sys.stdin.read()
    publisher.close()
