"""Flush of a durable queue once the link is back: from CONNACK to the last message finished on disk.

Contenders, each in a fresh process against a fresh broker, in turn round by round:
  raw         ready-made packets through a socket, no queue: the upper bound (raw_socket.py)
  synced      the same, but each write that has a PUBREL waits for a page on disk: what a client that must not double a
              QoS 2 message after a crash can reach at most (not run unless named, and for QoS 2 alone)
  baseline    the specification's manager in pure Python, paho + sqlite3 + json (baseline_manager.py)
  glec        glec_fast.MQTTManager
  glec-large  the same with --large rows, to show what the length of the queue costs

With --tls over TLS, by the baseline and glec alone.

After each run the queue file must be empty. Before the rounds each contender runs once untimed, beside a subscriber
that must receive each message exactly once; in the rounds there is none, as it would take the broker's time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from baseline_manager import BaselineQueue
from harness import (
    ALL_TOPICS,
    BenchError,
    Broker,
    Figures,
    TLSFiles,
    count_rows,
    counted,
    machine,
    make_certificates,
    median_of_ratios,
    mosquitto_for_peers,
    positive,
    print_table,
    run_contender,
)
from workload import PAYLOAD_BYTES, make_rows

from glec_fast.testbed.subscriber import Subscriber

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

SPECIFIED_RATE_MSG_S = 100
LARGE_MESSAGES = 200_000
# A counting subscriber is slower than the publisher: the broker must keep what is waiting for it. Not 0 for unlimited:
# mosquitto 2.0.11 then refuses a publisher's QoS 2 messages beyond its 20 in flight.
LONG_QUEUE = "max_queued_messages 1000000\n"
OVER_TLS = ("baseline", "glec")
HEADER = (
    "contender",
    "messages",
    "msg/s",
    "of raw",
    "of glec",
    f"x {SPECIFIED_RATE_MSG_S} msg/s",
    "CPU us/msg",
    "of baseline CPU",
    "written B/msg",
    "private MB",
    "peak RSS MB",
)


class Setting(NamedTuple):
    """How a broker is set, and how many QoS 2 messages without PUBREL it then takes from one client."""

    title: str
    nodelay: bool
    lines: str
    max_unreleased: int
    tls: TLSFiles | None = None


# With its 20 in flight mosquitto acknowledges a 21st QoS 2 message without PUBREL and never hands it on.
BROKERS = {
    "default": Setting("default broker", nodelay=False, lines="", max_unreleased=20),
    "nodelay": Setting("broker with set_tcp_nodelay", nodelay=True, lines="", max_unreleased=20),
    "raised": Setting(
        "broker with max_inflight_messages 2000",
        nodelay=False,
        lines="max_inflight_messages 2000\n",
        max_unreleased=2000,
    ),
}


class Contender(NamedTuple):
    name: str
    runner: str
    messages: int
    window: int


def prefill(contender: Contender, qos: int, queue_path: Path) -> None:
    rows = make_rows(contender.messages, qos)
    if contender.runner == "baseline":
        baseline_queue = BaselineQueue(queue_path, max_size=contender.messages)
        baseline_queue.enqueue_many(rows)
        baseline_queue.release()
    elif contender.runner == "glec":
        from glec_fast import OfflineQueueManager

        glec_queue = OfflineQueueManager(str(queue_path), max_queue_size=contender.messages)
        glec_queue.enqueue_many(rows)
        glec_queue.release()


def broker_of(setting: Setting, extra: str = "") -> AbstractContextManager[tuple[Broker, int]]:
    return mosquitto_for_peers(setting.tls, nodelay=setting.nodelay, extra=setting.lines + extra)


def flush_once(contender: Contender, port: int, setting: Setting, qos: int, directory: str | None) -> Figures:
    with tempfile.TemporaryDirectory(dir=directory) as queue_directory:
        queue_path = Path(queue_directory) / "queue.db"
        prefill(contender, qos, queue_path)
        figures = run_contender(
            contender.runner,
            port,
            qos,
            contender.messages,
            contender.window,
            setting.max_unreleased,
            queue_path,
            None if setting.tls is None else setting.tls.ca,
        )
        rows_left = count_rows(queue_path) if queue_path.exists() else 0
    if rows_left:
        raise BenchError(f"{contender.name}: {rows_left} of {contender.messages} rows are left in the queue")
    return figures


def prove(contender: Contender, setting: Setting, qos: int, directory: str | None) -> None:
    """One untimed flush of which an independent subscriber must see each message once."""
    with broker_of(setting, LONG_QUEUE) as (broker, port), Subscriber(broker, ALL_TOPICS) as subscriber:
        flush_once(contender, port, setting, qos, directory)
        received, distinct = counted(subscriber)
    if not received == distinct == contender.messages:
        raise BenchError(f"{contender.name}: {received} received, {distinct} distinct, of {contender.messages} queued")


def rates_msg_s(contender: Contender, rounds: Sequence[Figures]) -> list[float]:
    return [contender.messages / figures.wall_s for figures in rounds]


def cpus_us(contender: Contender, rounds: Sequence[Figures]) -> list[float]:
    return [figures.cpu_s * 1e6 / contender.messages for figures in rounds]


def measure(
    contenders: Sequence[Contender], qos: int, broker: str, rounds: int, directory: str | None, tls: TLSFiles | None
) -> dict[str, Any]:
    setting = BROKERS[broker]._replace(tls=tls)
    for contender in contenders:
        prove(contender, setting, qos, directory)
    measured: dict[str, list[Figures]] = {contender.name: [] for contender in contenders}
    for _ in range(rounds):
        for contender in contenders:
            with broker_of(setting) as (_, port):
                measured[contender.name].append(flush_once(contender, port, setting, qos, directory))
    bare = run_contender("bare", 0, qos, 0, 0, 0, Path())
    return {"broker": broker, "tls": tls is not None, "qos": qos, "contenders": summarize(contenders, measured, bare)}


def summarize(
    contenders: Sequence[Contender], measured: dict[str, list[Figures]], bare: Figures
) -> dict[str, dict[str, Any]]:
    """Medians of each contender; a ratio to one that did not run is null."""
    by_name = {contender.name: contender for contender in contenders}

    def ratio(contender: Contender, to: str, series: Callable[[Contender, list[Figures]], list[float]]) -> float | None:
        if to not in by_name:
            return None
        return median_of_ratios(series(contender, measured[contender.name]), series(by_name[to], measured[to]))

    def figures_of(contender: Contender) -> dict[str, Any]:
        rounds = measured[contender.name]
        rates = rates_msg_s(contender, rounds)
        written = statistics.median(figures.write_bytes for figures in rounds)
        private = statistics.median(figures.private_bytes for figures in rounds)
        peak_rss = statistics.median(figures.peak_rss_bytes for figures in rounds)
        return {
            "messages": contender.messages,
            "rate_msg_s": statistics.median(rates),
            "rate_msg_s_by_round": rates,
            "rate_ratio_to_raw": ratio(contender, "raw", rates_msg_s),
            "rate_ratio_to_glec": ratio(contender, "glec", rates_msg_s),
            "multiple_of_specified_rate": statistics.median(rates) / SPECIFIED_RATE_MSG_S,
            "cpu_us_per_message": statistics.median(cpus_us(contender, rounds)),
            "cpu_ratio_to_baseline": ratio(contender, "baseline", cpus_us),
            "write_bytes_per_message": written / contender.messages,
            "private_bytes_above_bare": private - bare.private_bytes,
            "peak_rss_bytes_above_bare": peak_rss - bare.peak_rss_bytes,
        }

    return {contender.name: figures_of(contender) for contender in contenders}


def print_result(result: dict[str, Any], rounds: int) -> None:
    def cells(name: str, figures: dict[str, Any]) -> list[str]:
        to_raw, to_glec = figures["rate_ratio_to_raw"], figures["rate_ratio_to_glec"]
        cpu_ratio = figures["cpu_ratio_to_baseline"]
        return [
            name,
            f"{figures['messages']:,}",
            f"{figures['rate_msg_s']:,.0f}",
            "-" if to_raw is None else f"{to_raw:.2f}",
            "-" if to_glec is None else f"{to_glec:.2f}",
            f"{figures['multiple_of_specified_rate']:,.0f}",
            f"{figures['cpu_us_per_message']:.2f}",
            "-" if cpu_ratio is None else f"1/{1 / cpu_ratio:.1f}",
            f"{figures['write_bytes_per_message']:,.0f}",
            f"{figures['private_bytes_above_bare'] / 1e6:.1f}",
            f"{figures['peak_rss_bytes_above_bare'] / 1e6:.1f}",
        ]

    rows = [cells(name, figures) for name, figures in result["contenders"].items()]
    title = BROKERS[result["broker"]].title + (", TLS" if result["tls"] else "")
    print_table(f"QoS {result['qos']}, {title}, {PAYLOAD_BYTES} bytes, median of {rounds} rounds", HEADER, rows)


def list_of(kind: Callable[[str], Any], allowed: Sequence[Any]) -> Callable[[str], list[Any]]:
    def parse(text: str) -> list[Any]:
        chosen = [kind(part) for part in text.split(",")]
        if not set(chosen) <= set(allowed):
            raise argparse.ArgumentTypeError(f"{text!r}: choose from {', '.join(map(str, allowed))}")
        return chosen

    return parse


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Rate, CPU, writes and memory of flushing a durable queue, against a raw socket and a baseline."
    )
    names = ["raw", "synced", "baseline", "glec"]
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--messages", type=positive, default=10_000)
    parser.add_argument("--large", type=positive, nargs="?", const=LARGE_MESSAGES, help="also flush glec with N rows")
    parser.add_argument(
        "--window", type=positive, default=1000, help="messages in flight of raw and glec (default: 1000, glec's own)"
    )
    parser.add_argument("--baseline-window", type=positive, default=20, help="the baseline's (default: paho's own 20)")
    parser.add_argument("--contenders", type=list_of(str, names), default=names, help="default: all")
    parser.add_argument("--tls", action="store_true", help="over TLS, by those contenders alone that can")
    parser.add_argument("--qos", type=list_of(int, [1, 2]), default=[1, 2])
    parser.add_argument("--brokers", type=list_of(str, list(BROKERS)), default=list(BROKERS))
    parser.add_argument("--directory", help="where queue files go; written bytes need a real disk, not tmpfs")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    return parser.parse_args()


def contenders_of(args: argparse.Namespace) -> list[Contender]:
    windows = {"raw": args.window, "synced": args.window, "baseline": args.baseline_window, "glec": args.window}
    names = [name for name in args.contenders if name in OVER_TLS or not args.tls]
    contenders = [Contender(name, name, args.messages, windows[name]) for name in names]
    if args.large:
        contenders.append(Contender("glec-large", "glec", args.large, args.window))
    return contenders


def run(args: argparse.Namespace, tls: TLSFiles | None, results: list[dict[str, Any]]) -> None:
    contenders = contenders_of(args)
    for broker in args.brokers:
        for qos in args.qos:
            results.append(measure(contenders, qos, broker, args.rounds, args.directory, tls))
            if not args.json:
                print_result(results[-1], args.rounds)


def main() -> int:
    args = parse_arguments()
    results: list[dict[str, Any]] = []
    try:
        with tempfile.TemporaryDirectory() as directory:
            run(args, make_certificates(Path(directory)) if args.tls else None, results)
    except BenchError as error:
        print(error, file=sys.stderr)
        return 1
    if args.json:
        report = {
            "machine": machine(),
            "payload_bytes": PAYLOAD_BYTES,
            "rounds": args.rounds,
            "window": args.window,
            "baseline_window": args.baseline_window,
            "results": results,
        }
        print(json.dumps(report, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
