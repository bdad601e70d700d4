"""How late an alert is that is raised while a backlog drains over a narrow link.

Each run: a queue file with a backlog of QoS 1, a mosquitto, a relay with a rate and a delay between the two. Two
seconds after the connection stands an alert (QoS 2) is published. Measured are the seconds until its PUBLISH was handed
to the broker, and until the broker has confirmed it (PUBCOMP), which takes two exchanges more. `fifo`, the order of
the specification, stands beside it for comparison, with fewer runs, as each waits for the whole backlog or gives up.

    python benches/bench_alerts.py [--runs 50] [--cases slow,far] [--fifo-runs 1]
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from harness import BenchError, mosquitto, print_table
from shaped_link import ShapedLink

from glec_fast import MQTTConfig, MQTTManager, OfflineQueueManager

PAYLOAD = "x" * 290
SETTLE_S = 2.0
CONNECT_TIMEOUT_S = 60.0
ALERT_TIMEOUT_S = 60.0


class Case(NamedTuple):
    """A link and what waits for it."""

    title: str
    backlog: int
    rate_bytes_s: int
    round_trip_s: float


CASES = {
    "slow": Case("2,000 behind 20 kB/s", 2_000, 20_000, 0.0),
    "far": Case("100,000 behind 100 kB/s, 300 ms round trip", 100_000, 100_000, 0.3),
}
HEADER = ("order", "runs", "at the broker p50", "p99", "confirmed p50", "p99", "backlog kB/s")


class Run(NamedTuple):
    arrived_s: float
    confirmed_s: float
    backlog_bytes_s: float


def prefill(path: Path, count: int) -> None:
    queue = OfflineQueueManager(path, max_queue_size=count)
    queue.enqueue_many([("backlog", PAYLOAD, 1)] * count)
    queue.release()


def run_once(case: Case, prefilled: Path, order: str, number: int) -> Run:
    token = f"alert-{number:06}"
    with tempfile.TemporaryDirectory() as directory, mosquitto(nodelay=False) as broker:
        path = Path(directory) / "queue.db"
        shutil.copy(prefilled, path)
        link = ShapedLink(("127.0.0.1", broker.port), rate_bytes_s=case.rate_bytes_s, delay_s=case.round_trip_s / 2)
        config = MQTTConfig(
            f"tcp://127.0.0.1:{link.port}",
            "DTG-BENCH",
            queue_path=path,
            queue_max_size=case.backlog + 100,
            queue_order=order,
            status_interval_s=0,
        )
        with link, MQTTManager(config) as manager:
            manager.connect()
            deadline_s = time.monotonic() + CONNECT_TIMEOUT_S
            while not manager.is_connected():
                if time.monotonic() > deadline_s:
                    raise BenchError("no connection through the relay")
                time.sleep(0.01)
            time.sleep(SETTLE_S)
            link.watch(token.encode())
            sent_before, began_s = manager.get_metrics().messages_sent, time.monotonic()
            handle = manager.publish("alerts", token, 2)
            arrived_s = link.wait_seen(ALERT_TIMEOUT_S)
            try:
                handle.wait_for_publish(ALERT_TIMEOUT_S if arrived_s else 0.0)
            except (RuntimeError, ValueError) as error:
                raise BenchError(f"the alert was lost: {error}") from error
            confirmed_s = time.monotonic()
            sent = manager.get_metrics().messages_sent - sent_before
            took_s = confirmed_s - began_s
            # The rest of the backlog is not of interest.
            link.close()
    return Run((arrived_s or confirmed_s) - began_s, took_s, sent * (len(PAYLOAD) + 15) / took_s)


def quantile(values: list[float], part: float) -> float:
    return sorted(values)[min(int(part * len(values)), len(values) - 1)]


def measure(case: Case, order: str, runs: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as directory:
        prefilled = Path(directory) / "prefilled.db"
        prefill(prefilled, case.backlog)
        done = [run_once(case, prefilled, order, number) for number in range(runs)]
    arrived, confirmed = [each.arrived_s for each in done], [each.confirmed_s for each in done]
    return {
        "order": order,
        "runs": runs,
        "arrived_p50_s": statistics.median(arrived),
        "arrived_p99_s": quantile(arrived, 0.99),
        "confirmed_p50_s": statistics.median(confirmed),
        "confirmed_p99_s": quantile(confirmed, 0.99),
        "backlog_bytes_s": statistics.median([each.backlog_bytes_s for each in done]),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="How late an alert is behind a backlog on a narrow link.")
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--fifo-runs", type=int, default=1, help="of the specification's order; 0 for none")
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    results = {}
    try:
        for name in args.cases.split(","):
            case = CASES[name]
            orders = {"alerts_first": args.runs, "fifo": args.fifo_runs}
            results[name] = [measure(case, order, runs) for order, runs in orders.items() if runs]
            if not args.json:
                rows = [
                    [
                        each["order"],
                        str(each["runs"]),
                        *[f"{each[key]:.2f} s" for key in ("arrived_p50_s", "arrived_p99_s")],
                        *[f"{each[key]:.2f} s" for key in ("confirmed_p50_s", "confirmed_p99_s")],
                        f"{each['backlog_bytes_s'] / 1000:.1f}",
                    ]
                    for each in results[name]
                ]
                print_table(case.title, HEADER, rows)
    except BenchError as error:
        print(error, file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps(results, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
