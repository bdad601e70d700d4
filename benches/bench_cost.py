"""What exactly-once costs: the four bars, each beside what it is measured against, in one run.

  flush   QoS 2 from CONNACK to the last message finished on disk, against a raw socket doing QoS 2 with the same window
  syncs   fsync and fdatasync calls of that same flush, for each message, counted by a preloaded library
  bytes   written to disk for each message queued at an even rate without a link and then flushed, by the kernel's
          count, beside a transaction for each message and each deletion
  start   from CONNACK to the first PUBLISH on the wire, and private memory, with many rows in the file and with few;
          the file is not in the page cache

Before the rounds each flush is proved: a subscriber must receive each message exactly once.
A bar that is missed does not change the exit status: it is in the report.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bench_flush import BROKERS, Contender, positive, prefill, prove
from harness import (
    BENCHES,
    BenchError,
    Broker,
    count_rows,
    machine,
    median_of_ratios,
    mosquitto,
    print_table,
    run_contender,
)
from workload import PAYLOAD_BYTES, make_rows

from glec_fast.testbed.link import Link

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

CHILD_TIMEOUT_S = 900.0
PUBLISH_TYPE = 0x30
BAR_RATIO = 0.8
BAR_SYNCS = 0.02
BAR_BYTES = 2500
BAR_START_S = 1.0
# Two runs of one program differ by so much: pages that the allocator had not given back.
BAR_MEMORY_BYTES = 1 << 20
ROWS_AT_ONCE = 50_000


class Way(NamedTuple):
    """How messages are queued. A QoS 2 `publish` that waits for the disk is a transaction a message by its promise."""

    title: str
    qos: int
    wait_for_disk: bool
    has_bar: bool


WAYS = {
    "qos0": Way("QoS 0", 0, wait_for_disk=True, has_bar=True),
    "qos1": Way("QoS 1", 1, wait_for_disk=True, has_bar=True),
    "qos2": Way("QoS 2, wait_for_disk=False", 2, wait_for_disk=False, has_bar=True),
    "qos2-waiting": Way("QoS 2, each on disk before the next", 2, wait_for_disk=True, has_bar=False),
}


class Bar(NamedTuple):
    what: str
    value: float
    limit: float
    is_floor: bool = False

    @property
    def met(self) -> bool:
        return self.value >= self.limit if self.is_floor else self.value <= self.limit

    def as_json(self) -> dict[str, Any]:
        return {"what": self.what, "value": self.value, "limit": self.limit, "met": self.met}


def compile_counter(directory: Path) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise BenchError("syncs are counted by a small C library: apt-get install gcc libc6-dev")
    library = directory / "count_syncs.so"
    command = [compiler, "-O2", "-shared", "-fPIC", "-o", library, BENCHES / "count_syncs.c", "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        raise BenchError(f"count_syncs.c does not compile:\n{done.stderr}")
    return library


def run_child(name: str, *, preload: Path | None = None, **options: Any) -> dict[str, float]:
    environment = {**os.environ, "LD_PRELOAD": str(preload)} if preload else None
    command = [sys.executable, BENCHES / "cost_child.py", name, json.dumps(options)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=CHILD_TIMEOUT_S, check=False, env=environment
        )
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"{name} did not finish in {CHILD_TIMEOUT_S:.0f} s") from error
    if done.returncode:
        raise BenchError(f"{name} failed:\n{done.stderr}")
    return dict(json.loads(done.stdout))


# ---- flush and syncs


def measure_flush(args: argparse.Namespace, broker_name: str, directory: Path) -> dict[str, Any]:
    setting = BROKERS[broker_name]
    counter = compile_counter(directory)
    contender = Contender("glec", "glec", args.messages, args.window)
    raw_rates: list[float] = []
    rates: list[float] = []
    syncs: list[float] = []
    queue_path = directory / "flush.db"
    prove(contender, setting, 2, args.directory)
    for _ in range(args.rounds):
        with mosquitto(nodelay=setting.nodelay, extra=setting.lines) as broker:
            raw = run_contender("raw", broker.port, 2, args.messages, args.window, setting.max_unreleased, queue_path)
        raw_rates.append(args.messages / raw.wall_s)
        prefill(contender, 2, queue_path)
        with mosquitto(nodelay=setting.nodelay, extra=setting.lines) as broker:
            figures = run_child(
                "flush",
                preload=counter,
                port=broker.port,
                messages=args.messages,
                window=args.window,
                max_unreleased=setting.max_unreleased,
                queue_path=str(queue_path),
            )
        refuse_leftovers(queue_path)
        rates.append(args.messages / figures["wall_s"])
        syncs.append(figures["syncs"] / args.messages)
    return {
        "broker": broker_name,
        "raw_rate_msg_s": statistics.median(raw_rates),
        "rate_msg_s": statistics.median(rates),
        "rate_ratio_to_raw": median_of_ratios(rates, raw_rates),
        "syncs_per_message": statistics.median(syncs),
    }


def refuse_leftovers(queue_path: Path) -> None:
    if rows_left := count_rows(queue_path):
        raise BenchError(f"{rows_left} rows are left in the queue")
    queue_path.unlink()


# ---- bytes


def measure_bytes(args: argparse.Namespace, way: Way, directory: Path) -> dict[str, Any]:
    queue_path = directory / "bytes.db"
    setting = BROKERS["raised"]
    with mosquitto(nodelay=setting.nodelay, extra=setting.lines) as broker:
        figures = run_child(
            "queue",
            port=broker.port,
            qos=way.qos,
            messages=args.messages,
            rate_msg_s=args.rate,
            wait_for_disk=way.wait_for_disk,
            max_unreleased=setting.max_unreleased,
            queue_path=str(queue_path),
        )
    refuse_leftovers(queue_path)
    return {
        "rate_msg_s": figures["rate_msg_s"],
        "queued_bytes_per_message": figures["queued_bytes"] / args.messages,
        "write_bytes_per_message": figures["write_bytes"] / args.messages,
    }


def measure_one_by_one(args: argparse.Namespace, directory: Path) -> float:
    figures = run_child("one_by_one", messages=args.messages, queue_path=str(directory / "one.db"))
    return figures["write_bytes"] / args.messages


# ---- start


class TimedLink(Link):
    """Notes when CONNACK and the first PUBLISH pass, before they are handed on."""

    def __init__(self, broker: Broker) -> None:
        self.connack_s = self.publish_s = 0.0
        super().__init__((broker.host, broker.port))

    def _read(self, flow: Any) -> None:
        super()._read(flow)
        now_s = time.perf_counter()
        is_publish = bool(flow.pending) and flow.pending[0] & 0xF0 == PUBLISH_TYPE
        if flow.direction == "down" and not self.connack_s:
            self.connack_s = now_s
        elif flow.direction == "up" and is_publish and self.connack_s and not self.publish_s:
            self.publish_s = now_s


def fill(queue_path: Path, rows: int) -> None:
    from glec_fast import OfflineQueueManager

    queue = OfflineQueueManager(str(queue_path), max_queue_size=2 * rows)
    for first in range(0, rows, ROWS_AT_ONCE):
        queue.enqueue_many(make_rows(min(ROWS_AT_ONCE, rows - first), 2))
    queue.release()


def leave_page_cache(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure_start(args: argparse.Namespace, rows: int, directory: Path) -> dict[str, Any]:
    queue_path = directory / f"start-{rows}.db"
    fill(queue_path, rows)
    started: list[float] = []
    opened: list[float] = []
    private: list[float] = []
    for _ in range(args.rounds):
        leave_page_cache(queue_path)
        # What was acknowledged is gone from the file, a few of many.
        with mosquitto(nodelay=True, extra=BROKERS["raised"].lines) as broker, TimedLink(broker) as link:
            figures = run_child(
                "start", port=link.port, rows=rows, acknowledged=args.acknowledged, queue_path=str(queue_path)
            )
        started.append(link.publish_s - link.connack_s)
        opened.append(figures["open_s"])
        private.append(figures["private_bytes"])
    size_bytes = queue_path.stat().st_size
    queue_path.unlink()
    return {
        "rows": rows,
        "file_bytes": size_bytes,
        "open_s": statistics.median(opened),
        "connack_to_publish_s": statistics.median(started),
        "private_bytes": statistics.median(private),
    }


# ---- the report


def measure(args: argparse.Namespace, directory: Path) -> dict[str, Any]:
    flushes = [measure_flush(args, name, directory) for name in ("raised", "default")]
    one_by_one = measure_one_by_one(args, directory)
    ways = {name: measure_bytes(args, way, directory) for name, way in WAYS.items()}
    starts = [measure_start(args, rows, directory) for rows in (args.few_rows, args.rows)]
    return {
        "flush": flushes,
        "bytes": {"one_transaction_a_message": one_by_one, **ways},
        "start": starts,
        "bars": [bar.as_json() for bar in bars_of(flushes[0], ways, starts)],
    }


def bars_of(flush: dict[str, Any], ways: dict[str, Any], starts: Sequence[dict[str, Any]]) -> Iterator[Bar]:
    few, many = starts
    yield Bar("QoS 2 flush of raw", flush["rate_ratio_to_raw"], BAR_RATIO, is_floor=True)
    yield Bar("syncs per message", flush["syncs_per_message"], BAR_SYNCS)
    for name, way in WAYS.items():
        if way.has_bar:
            yield Bar(f"bytes written per message, {way.title}", ways[name]["write_bytes_per_message"], BAR_BYTES)
    yield Bar(f"s from CONNACK to PUBLISH, {many['rows']:,} rows", many["connack_to_publish_s"], BAR_START_S)
    growth_bytes = many["private_bytes"] - few["private_bytes"]
    yield Bar(f"memory above that with {few['rows']:,} rows", growth_bytes, BAR_MEMORY_BYTES)


def print_report(report: dict[str, Any], args: argparse.Namespace) -> None:
    rows = [
        [
            BROKERS[flush["broker"]].title,
            f"{flush['raw_rate_msg_s']:,.0f}",
            f"{flush['rate_msg_s']:,.0f}",
            f"{flush['rate_ratio_to_raw']:.2f}",
            f"{flush['syncs_per_message']:.4f}",
        ]
        for flush in report["flush"]
    ]
    title = f"QoS 2 flush, {args.messages:,} x {PAYLOAD_BYTES} bytes, window {args.window}, median of {args.rounds}"
    print_table(title, ("broker", "raw msg/s", "glec msg/s", "of raw", "syncs/msg"), rows)
    one_by_one = report["bytes"]["one_transaction_a_message"]
    rows = [["one transaction a message, one a deletion", "-", "-", f"{one_by_one:,.0f}", "1.00"]]
    for name, way in WAYS.items():
        figures = report["bytes"][name]
        rows.append(
            [
                way.title,
                f"{figures['rate_msg_s']:,.0f}",
                f"{figures['queued_bytes_per_message']:,.0f}",
                f"{figures['write_bytes_per_message']:,.0f}",
                f"{figures['write_bytes_per_message'] / one_by_one:.2f}" if one_by_one else "-",
            ]
        )
    title = f"bytes written per message, {args.messages:,} queued at {args.rate:,} msg/s, then flushed"
    print_table(title, ("queued as", "msg/s", "queued B/msg", "in all B/msg", "of one by one"), rows)
    rows = [
        [
            f"{start['rows']:,}",
            f"{start['file_bytes'] / 1e6:,.1f}",
            f"{start['open_s'] * 1e3:,.0f}",
            f"{start['connack_to_publish_s'] * 1e3:,.1f}",
            f"{start['private_bytes'] / 1e6:,.1f}",
        ]
        for start in report["start"]
    ]
    title = f"start of QoS 2 with rows in the file, out of the page cache, median of {args.rounds}"
    print_table(title, ("rows", "file MB", "opened in ms", "CONNACK to PUBLISH ms", "private MB"), rows)
    print()
    for bar in report["bars"]:
        print(f"{'met' if bar['met'] else 'MISSED':>6}  {bar['what']}: {bar['value']:,.4g} (bar: {bar['limit']:,g})")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="What exactly-once costs: rate, syncs, bytes written, and the start.")
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--messages", type=positive, default=10_000)
    parser.add_argument("--window", type=positive, default=1000, help="messages in flight of raw and glec")
    parser.add_argument("--rate", type=positive, default=1000, help="messages queued in a second")
    parser.add_argument("--rows", type=positive, default=1_000_000, help="in the file at the start")
    parser.add_argument("--few-rows", type=positive, default=10_000, help="what memory is compared with")
    parser.add_argument("--acknowledged", type=positive, default=1000, help="messages sent before memory is read")
    parser.add_argument("--directory", help="where queue files go; written bytes need a real disk, not tmpfs")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    args = parser.parse_args()
    if args.acknowledged * args.rounds >= min(args.rows, args.few_rows):
        parser.error("--acknowledged in each of --rounds must leave some of --rows and --few-rows")
    return args


def main() -> int:
    args = parse_arguments()
    try:
        with tempfile.TemporaryDirectory(dir=args.directory) as directory:
            report = measure(args, Path(directory))
    except BenchError as error:
        print(error, file=sys.stderr)
        return 1
    if args.json:
        settings = {name: getattr(args, name) for name in ("rounds", "messages", "window", "rate", "acknowledged")}
        print(json.dumps({"machine": machine(), "payload_bytes": PAYLOAD_BYTES, **settings, **report}, indent=2))
    else:
        print_report(report, args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
