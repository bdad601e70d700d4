"""What a broker goes through that restarts with many gateways connected: they lose it at once, and all come back.

Simulated, not measured: no sockets, no clock. Each gateway waits as the specification says (2, 4, 8, 16, 32, then
60 s), with one of four kinds of jitter:

  none          the wait itself: all come at the same moments
  full          uniform from 0 to the wait
  equal         half of the wait, and uniform from 0 to the other half
  decorrelated  uniform from 2 s to three times the wait before, at most 60 s

The broker is down for `--down` seconds, then accepts `--rate` connections a second and holds `--backlog` more that
wait for it; an attempt fails at once while it is down, and after `--timeout` seconds where the backlog has no room.
Printed are the most attempts in one second since it is back, and while it is down; all attempts; and the seconds from
its return until half of the gateways, 99 % and the last are connected. Of `--runs` runs, the one whose last gateway is
the median.

Any jitter is worth it: 10,000 gateways are back in a tenth to a half of the time. Among the three, equal is the one to
begin with: after the commonest outage, of seconds, 99 % are back soonest; it makes the fewest attempts in a long one;
and no gateway waits less than half of what the specification says. Full has a lower peak, by a third, after outages of
up to a minute.

    python benches/simulate_restart.py [--gateways 1000 1000000] [--down 40] [--rate 1000] [--svg restart.svg]

Needs numpy, which is not a dependency of the package.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

FIRST_WAIT_S, LONGEST_WAIT_S, DOUBLINGS = 2.0, 60.0, 5
# Links differ: the loss is noticed, and an attempt arrives, within this of each other.
SPREAD_S = 0.2
STEP_S = 0.1
LONGEST_S = 24 * 3600.0
COLOURS = {"none": "#d9480f", "full": "#2b8a3e", "equal": "#4c6ef5", "decorrelated": "#ae3ec9"}


@dataclass(frozen=True)
class Broker:
    down_s: float
    accepts_per_s: float
    backlog: int
    timeout_s: float


JITTERS = ("none", "full", "equal", "decorrelated")


def draw_waits_s(jitter: str, dice: np.random.Generator, failures: np.ndarray, before_s: np.ndarray) -> np.ndarray:
    """One wait for each gateway. failures: of its attempts so far. before_s: its wait before."""
    if jitter == "decorrelated":
        return np.minimum(LONGEST_WAIT_S, dice.uniform(FIRST_WAIT_S, np.maximum(FIRST_WAIT_S, 3.0 * before_s)))
    specified_s = np.where(failures < DOUBLINGS, FIRST_WAIT_S * 2.0**failures, LONGEST_WAIT_S)
    least = {"none": 1.0, "full": 0.0, "equal": 0.5}[jitter]
    return dice.uniform(least, 1.0, len(failures)) * specified_s


def simulate(jitter: str, gateways: int, broker: Broker, seed: int) -> dict[str, Any]:
    """One restart, in steps of STEP_S. The broker is lost at 0."""
    dice = np.random.default_rng(seed)
    failures = np.zeros(gateways, np.int16)
    waits_s = draw_waits_s(jitter, dice, failures, np.full(gateways, FIRST_WAIT_S))
    due_step = ((dice.uniform(0.0, SPREAD_S, gateways) + waits_s) / STEP_S).astype(np.int32)
    # Gateways by the step of their next attempt, so that a step touches only those that are due.
    calendar: dict[int, list[np.ndarray]] = {}
    _enter(calendar, np.arange(gateways, dtype=np.int32), due_step)
    waiting, accepted, step = 0, 0, 0
    credit = 0.0
    attempts: list[int] = []
    connected: list[int] = []
    while accepted < gateways and step * STEP_S < LONGEST_S:
        up = step * STEP_S >= broker.down_s
        credit = min(credit + broker.accepts_per_s * STEP_S, max(1.0, broker.accepts_per_s * STEP_S)) if up else 0.0
        taken = min(waiting, int(credit))
        waiting, accepted, credit = waiting - taken, accepted + taken, credit - taken
        due = np.concatenate(calendar.pop(step)) if step in calendar else np.empty(0, np.int32)
        room = min(len(due), broker.backlog - waiting) if up else 0
        refused = due
        if room:
            dice.shuffle(due)
            refused = due[room:]
            waiting += room
            taken = min(waiting, int(credit))
            waiting, accepted, credit = waiting - taken, accepted + taken, credit - taken
        if len(refused):
            waits_s[refused] = draw_waits_s(jitter, dice, failures[refused] + 1, waits_s[refused])
            failures[refused] += 1
            noticed_s = broker.timeout_s if up else dice.uniform(0.0, SPREAD_S, len(refused))
            ahead = np.maximum(1, ((waits_s[refused] + noticed_s) / STEP_S).astype(np.int32))
            _enter(calendar, refused, step + ahead)
        attempts.append(len(due))
        connected.append(accepted)
        step += 1
    per_second = _per_second(attempts)
    back = math.ceil(broker.down_s / STEP_S)
    return {
        "peak_attempts_per_s": int(per_second[int(broker.down_s) :].max()) if len(per_second) > broker.down_s else 0,
        "peak_attempts_per_s_while_down": int(per_second[: int(broker.down_s)].max(initial=0)),
        "attempts": sum(attempts),
        **{
            f"{name}_s": _moment_s(connected, share * gateways, back)
            for name, share in (("half", 0.5), ("percent_99", 0.99), ("last", 1.0))
        },
        "connected": [int(count) for count in connected[:: round(1 / STEP_S)]],
    }


def _enter(calendar: dict[int, list[np.ndarray]], gateways: np.ndarray, steps: np.ndarray) -> None:
    order = np.argsort(steps, kind="stable")
    chosen, starts = np.unique(steps[order], return_index=True)
    for moment, group in zip(chosen, np.split(gateways[order], starts[1:]), strict=True):
        calendar.setdefault(int(moment), []).append(group)


def _per_second(attempts: Sequence[int]) -> np.ndarray:
    steps = round(1 / STEP_S)
    padded = np.zeros(math.ceil(len(attempts) / steps) * steps, np.int64)
    padded[: len(attempts)] = attempts
    return padded.reshape(-1, steps).sum(axis=1)


def _moment_s(connected: Sequence[int], wanted: float, back: int) -> float | None:
    """Seconds from the broker's return; None if it was never reached."""
    reached = next((step for step, count in enumerate(connected) if count >= wanted), None)
    return None if reached is None else round((reached - back) * STEP_S, 1)


def median_run(jitter: str, gateways: int, broker: Broker, runs: int) -> dict[str, Any]:
    """The run whose last gateway is the median one, with all of its figures."""
    results = [simulate(jitter, gateways, broker, seed) for seed in range(runs)]
    results.sort(key=lambda result: math.inf if result["last_s"] is None else result["last_s"])
    return {"jitter": jitter, "gateways": gateways, **results[len(results) // 2]}


WIDTH, PANEL_HEIGHT, LEFT, RIGHT, TITLE_HEIGHT, FOOT = 760, 200, 60, 130, 28, 34


def in_svg(results: Sequence[dict[str, Any]], broker: Broker) -> str:
    """Share of the gateways that are connected over the time since the loss, one panel for each number of gateways."""
    counts = sorted({result["gateways"] for result in results})
    height = len(counts) * (TITLE_HEIGHT + PANEL_HEIGHT + FOOT)
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
            'font-family="sans-serif" font-size="12">'
        ),
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
    ]
    for index, count in enumerate(counts):
        top = index * (TITLE_HEIGHT + PANEL_HEIGHT + FOOT)
        parts += _panel([result for result in results if result["gateways"] == count], broker, top)
    return "\n".join([*parts, "</svg>", ""])


def _panel(results: Sequence[dict[str, Any]], broker: Broker, top: int) -> list[str]:
    gateways = results[0]["gateways"]
    # To where all but one kind are done: the slowest would press the others to the edge.
    longest_s = max(10, sorted(len(result["connected"]) for result in results)[-2])
    y_0, y_1 = top + TITLE_HEIGHT + PANEL_HEIGHT, top + TITLE_HEIGHT

    def x_of(second: float) -> float:
        return LEFT + second / longest_s * (WIDTH - LEFT - RIGHT)

    parts = [
        _text(8, top + 18, f"{gateways:,} gateways, broker down for {broker.down_s:g} s: share connected", "bold"),
        (
            f'<rect x="{LEFT}" y="{y_1}" width="{x_of(min(broker.down_s, longest_s)) - LEFT:.1f}" '
            f'height="{PANEL_HEIGHT}" fill="#f1f3f5"/>'
        ),
        f'<path d="M{LEFT} {y_1}V{y_0}H{WIDTH - RIGHT}" fill="none" stroke="#212529"/>',
        _text(LEFT - 44, y_1 + 10, "100 %"),
        _text(LEFT - 44, y_0, "0 %"),
        _text(LEFT, y_0 + 16, "0 s"),
        _text(WIDTH - RIGHT - 30, y_0 + 16, f"{longest_s} s"),
    ]
    for index, result in enumerate(results):
        colour = COLOURS[result["jitter"]]
        counts = result["connected"][: longest_s + 1]
        every = max(1, len(counts) // 400)
        points = " ".join(
            f"{x_of(second):.1f},{y_0 - counts[second] / gateways * PANEL_HEIGHT:.1f}"
            for second in range(0, len(counts), every)
        )
        parts += [
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>',
            f'<rect x="{WIDTH - RIGHT + 12}" y="{y_1 + 20 * index}" width="12" height="12" fill="{colour}"/>',
            _text(WIDTH - RIGHT + 30, y_1 + 20 * index + 10, result["jitter"]),
        ]
    return parts


def _text(x: float, y: float, text: str, weight: str = "normal") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="#212529" font-weight="{weight}">{escape(text)}</text>'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--gateways", type=int, nargs="+", default=[1_000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--down", type=float, default=40.0, help="seconds until the broker is back")
    parser.add_argument("--rate", type=float, default=1_000.0, help="connections that it accepts a second (TLS)")
    parser.add_argument("--backlog", type=int, default=4_096, help="connections that wait for it (Linux: somaxconn)")
    parser.add_argument("--timeout", type=float, default=30.0, help="seconds until an attempt without an answer fails")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--svg", type=Path, help="write the plot there")
    parser.add_argument("--json", action="store_true", help="one JSON object and nothing else")
    options = parser.parse_args()
    broker = Broker(options.down, options.rate, options.backlog, options.timeout)
    results = [median_run(jitter, count, broker, options.runs) for count in options.gateways for jitter in JITTERS]
    if options.svg:
        options.svg.write_text(in_svg(results, broker))
    for result in results:
        del result["connected"]
    if options.json:
        json.dump({"bench": "restart", "numpy": np.__version__, "broker": vars(broker), "results": results}, sys.stdout)
        return
    print(
        f"{'gateways':>10} {'jitter':14}{'peak/s':>10}{'while down':>12}{'attempts':>12}"
        f"{'half s':>9}{'99 % s':>9}{'last s':>9}"
    )
    for result in results:
        print(
            f"{result['gateways']:10,} {result['jitter']:14}{result['peak_attempts_per_s']:10,}"
            f"{result['peak_attempts_per_s_while_down']:12,}{result['attempts']:12,}"
            + "".join(
                f"{'never' if result[name] is None else result[name]:>9}"
                for name in ("half_s", "percent_99_s", "last_s")
            )
        )


if __name__ == "__main__":
    main()
