"""Weeks without a link, through the real store: what is kept of each class, how large the file is, what comes after.

At the specification's rates: telemetry (QoS 0) once a second, a result (QoS 1) a minute, and alerts (QoS 2), twenty a
day by default. The clock is a simulated one; the queue, its overflow and its file are the product's, with its defaults
but for `queue_ttl_hours`, which is as long as the time away. `--queue-max-size` is to hold all results, one a minute,
and alerts: what is left of it is for the way. Then the file is opened by a manager, and flushed to a mosquitto of its
own. The plot shows the grain of the way that is left: the seconds between two positions, over the days.

    python benches/simulate_weeks.py [--days 21] [--alerts-a-day 20] [--queue-max-size 60000] [--svg weeks.svg] [--json]

Three weeks take some minutes.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import machine, mosquitto, print_table

from glec_fast import MQTTConfig, MQTTManager, OfflineQueueManager
from glec_fast.durable.clock import Clocks
from glec_fast.durable.store import Store
from glec_fast.fleet.config import MQTTConfig as Settings

if TYPE_CHECKING:
    from collections.abc import Sequence

DAY_S = 24 * 3600
HOUR_MS = 3600 * 1000
TELEMETRY = '{"timestamp":%d,"vehicle_speed":80.2,"engine_rpm":2400,"position":[37.5665,126.978],"fuel":61.5%s}'
PADDING = " " * 200
TOPICS = ("glec/dtg/DTG-BENCH/telemetry", "glec/dtg/DTG-BENCH/inference", "glec/dtg/DTG-BENCH/alerts")
CLASSES = ("telemetry, QoS 0", "results, QoS 1", "alerts, QoS 2")
XMLNS = "http://www.w3.org/2000/svg"
WIDTH, HEIGHT, LEFT, BOTTOM = 760, 320, 60, 40


class SimulatedClock:
    """Seconds since the beginning; it ends at the present, so that the manager that follows finds nothing expired."""

    def __init__(self, ends_after_s: float) -> None:
        self._begin_s = time.time() - ends_after_s
        self.now_s = 0.0

    @property
    def clocks(self) -> Clocks:
        return Clocks(
            wall_ms=lambda: round((self._begin_s + self.now_s) * 1000),
            since_boot_ms=lambda: round(self.now_s * 1000) + 1000,
            boot_id="simulated",
            is_right=lambda: True,
        )


def live(
    path: Path, clock: SimulatedClock, days: float, alerts_a_day: int, queue_max_size: int
) -> tuple[Counter[int], float]:
    """What was accepted, by QoS, and how long that took."""
    accepted: Counter[int] = Counter()
    defaults = Settings("tcp://h", "c")
    began_s = time.perf_counter()
    store = Store(
        path,
        max_queue_size=queue_max_size,
        max_queue_bytes=defaults.queue_max_bytes,
        queue_order=defaults.queue_order,
        overflow=defaults.overflow,
        ttl_ms=int((days + 1) * 24 * HOUR_MS),
        qos0_commit_delay_s=3600,
        clocks=clock.clocks,
    )
    try:
        alert_every_s = DAY_S // alerts_a_day if alerts_a_day else math.inf
        for second in range(int(days * DAY_S)):
            clock.now_s = second
            due = [0] + [1] * (second % 60 == 0) + [2] * (second % alert_every_s == alert_every_s - 1)
            for qos in due:
                accepted[qos] += 1
                store.append(TOPICS[qos], TELEMETRY % (second, PADDING), qos, urgent=False)
            if second % 60 == 59:
                store.run(lambda _table: None)
    finally:
        store.close()
    return accepted, time.perf_counter() - began_s


def seconds_kept(path: Path) -> dict[int, list[int]]:
    """QoS -> when each message that is left was accepted."""
    kept: dict[int, list[int]] = {0: [], 1: [], 2: []}
    with OfflineQueueManager(path) as queue:
        for message in queue.dequeue_all():
            kept[message.qos].append(json.loads(message.payload)["timestamp"])
    return kept


def flush(path: Path, clock: SimulatedClock, count: int) -> tuple[float, float]:
    """(seconds to open the file, seconds from `connect` until the broker has it all)."""
    with mosquitto(nodelay=False) as broker:
        config = MQTTConfig(
            f"tcp://127.0.0.1:{broker.port}",
            "DTG-BENCH",
            queue_path=path,
            queue_max_size=max(count, 10_000),
            queue_ttl_hours=24 * 365,
            status_interval_s=0,
        )
        began_s = time.perf_counter()
        manager = MQTTManager(config, clocks=clock.clocks)
        opened_s = time.perf_counter()
        with manager:
            manager.connect()
            if not manager.flush(120):
                raise SystemExit("the queue was not flushed in two minutes")
            return opened_s - began_s, time.perf_counter() - opened_s


def in_svg(seconds: Sequence[int], days: float) -> str:
    """The grain over time, on a logarithmic scale from 1 s on."""
    gaps = [(after, after - before) for before, after in pairwise(seconds)]
    top = max((gap for _, gap in gaps), default=10)
    decades = max(math.ceil(math.log10(max(top, 2))), 1)

    def x(second: float) -> float:
        return LEFT + (WIDTH - LEFT - 20) * second / (days * DAY_S)

    def y(gap: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - BOTTOM - 30) * math.log10(max(gap, 1)) / decades

    parts = [
        f'<svg xmlns="{XMLNS}" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="18">Seconds between two positions that are kept, {days:g} days without a link</text>',
    ]
    for decade in range(decades + 1):
        at = y(10**decade)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - 20}" y1="{at:.1f}" y2="{at:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{10**decade:,} s</text>')
    for day in range(0, int(days) + 1, max(int(days) // 7, 1)):
        at = x(day * DAY_S)
        parts.append(f'<text x="{at:.1f}" y="{HEIGHT - 16}" text-anchor="middle">day {day}</text>')
    step = max(len(gaps) // 700, 1)
    points = " ".join(
        f"{x(second):.1f},{y(max(gap for _, gap in gaps[number : number + step])):.1f}"
        for number, (second, _) in enumerate(gaps)
        if number % step == 0
    )
    parts.append(f'<polyline points="{points}" fill="none" stroke="#4c6ef5" stroke-width="1.5"/>')
    return "\n".join([*parts, "</svg>", ""])


def measure(days: float, alerts_a_day: int, queue_max_size: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "queue.db"
        clock = SimulatedClock(days * DAY_S)
        accepted, took_s = live(path, clock, days, alerts_a_day, queue_max_size)
        file_bytes = path.stat().st_size
        kept = seconds_kept(path)
        open_s, flush_s = flush(path, clock, sum(map(len, kept.values())))
    gaps = [after - before for before, after in pairwise(kept[0])]
    older = [gap for gap, second in zip(gaps, kept[0], strict=False) if second < days * DAY_S / 2]
    return {
        "days": days,
        "accepted": {CLASSES[qos]: accepted[qos] for qos in kept},
        "kept": {CLASSES[qos]: len(kept[qos]) for qos in kept},
        "file_bytes": file_bytes,
        "open_s": open_s,
        "flush_s": flush_s,
        "live_s": took_s,
        "longest_gap_s": max(gaps, default=0),
        "longest_gap_of_older_half_s": max(older, default=0),
        "telemetry_s": kept[0],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Weeks without a link, through the real store.")
    parser.add_argument("--days", type=float, default=21)
    parser.add_argument("--alerts-a-day", type=int, default=20)
    parser.add_argument("--queue-max-size", type=int, default=Settings("tcp://h", "c").queue_max_size)
    parser.add_argument("--svg", type=Path, help="write the plot of the way's grain there")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    result = measure(options.days, options.alerts_a_day, options.queue_max_size)
    seconds = result.pop("telemetry_s")
    if options.svg:
        options.svg.write_text(in_svg(seconds, options.days))
    if options.json:
        print(json.dumps({"machine": machine(), **result}, indent=2))
        return 0
    rows = [[name, f"{result['accepted'][name]:,}", f"{result['kept'][name]:,}"] for name in CLASSES]
    print_table(f"{options.days:g} days without a link", ("class", "accepted", "kept"), rows)
    print(
        f"file {result['file_bytes'] / 1e6:.1f} MB, opened in {result['open_s'] * 1000:.0f} ms, "
        f"flushed in {result['flush_s']:.2f} s; positions at most {result['longest_gap_s']:,} s apart"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
