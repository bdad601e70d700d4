"""A drive, second by second, and the messages that a vehicle publishes about it. The same drive, the same messages."""

from __future__ import annotations

import csv
import gzip
import math
import random
import time
import zlib
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from glec_fast.demo import DemoError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

INFERENCE_PERIOD_S = 60.0
STATUS_PERIOD_S = 300.0
HARSH_BRAKING_KMH_PER_S = 10.0
SEVERE_BRAKING_KMH_PER_S = 15.0
SYNTHETIC_DURATION_S = 3600

# The columns of a recorded drive, each with the range of what a vehicle can mean by it.
COLUMNS: dict[str, tuple[float, float]] = {
    "t_s": (0.0, 1e9),
    "engine_rpm": (0.0, 20_000.0),
    "vehicle_speed_kmh": (0.0, 500.0),
    "throttle_position_pct": (0.0, 100.0),
    "fuel_level_pct": (0.0, 100.0),
}
OPTIONAL_COLUMNS: dict[str, tuple[float, float]] = {
    "battery_voltage_v": (0.0, 60.0),
    "lat_deg": (-90.0, 90.0),
    "lon_deg": (-180.0, 180.0),
}


class Kind(Enum):
    """What a message is about: the last word of its topic, and the QoS that the topic has."""

    TELEMETRY = ("telemetry", 0)
    INFERENCE = ("inference", 1)
    ALERT = ("alerts", 2)
    STATUS = ("status", 1)

    def __init__(self, topic: str, qos: int) -> None:
        self.topic = topic
        self.qos = qos


@dataclass(frozen=True)
class Sample:
    """One second of a drive. Position and battery are None where the recording has none."""

    t_s: float
    engine_rpm: float
    speed_kmh: float
    throttle_pct: float
    fuel_pct: float
    battery_v: float | None = None
    lat_deg: float | None = None
    lon_deg: float | None = None


@dataclass(frozen=True)
class Judgement:
    """What the vehicle thinks of the last minute's driving."""

    behavior: str
    confidence: float
    safety_score: int
    fuel_efficiency_km_per_l: float
    # Measured, so the one thing that differs each time the drive is played.
    latency_ms: float = field(compare=False)


@dataclass(frozen=True)
class Message:
    """The drive's message `number` (from 0). `timestamp_ms` is unique within its kind."""

    number: int
    kind: Kind
    timestamp_ms: int
    sample: Sample
    previous: Sample | None = None
    judgement: Judgement | None = None


@dataclass(frozen=True)
class Drive:
    """A recording, or where `path` is None a synthesised drive that `seed` and `duration_s` determine."""

    path: str | None = None
    seed: int = 1
    duration_s: int = SYNTHETIC_DURATION_S

    def samples(self) -> Iterator[Sample]:
        return read_samples(Path(self.path)) if self.path else synthesise_samples(self.seed, self.duration_s)

    def messages(self, start_ms: int) -> Iterator[Message]:
        """All messages in order, for a drive that began at `start_ms` (Unix time)."""
        return messages_of(self.samples(), start_ms)


def messages_of(samples: Iterable[Sample], start_ms: int) -> Iterator[Message]:
    """A telemetry for each sample, an alert for each harsh braking, an inference a minute, a status every 5 minutes."""
    number = 0
    next_inference_s = INFERENCE_PERIOD_S
    next_status_s = 0.0
    previous: Sample | None = None
    minute: list[Sample] = []
    for sample in samples:
        due: list[tuple[Kind, Judgement | None]] = [(Kind.TELEMETRY, None)]
        minute.append(sample)
        if previous is not None and braking_kmh_per_s(previous, sample) > HARSH_BRAKING_KMH_PER_S:
            due.append((Kind.ALERT, None))
        if sample.t_s >= next_inference_s:
            due.append((Kind.INFERENCE, judge(minute)))
            minute = [sample]
            next_inference_s = _next_multiple(sample.t_s, INFERENCE_PERIOD_S)
        if sample.t_s >= next_status_s:
            due.append((Kind.STATUS, None))
            next_status_s = _next_multiple(sample.t_s, STATUS_PERIOD_S)
        timestamp_ms = start_ms + round(sample.t_s * 1000)
        for kind, judgement in due:
            yield Message(number, kind, timestamp_ms, sample, previous, judgement)
            number += 1
        previous = sample


def braking_kmh_per_s(before: Sample, after: Sample) -> float:
    """How fast the speed fell; negative while it rises."""
    return (before.speed_kmh - after.speed_kmh) / (after.t_s - before.t_s)


def judge(minute: list[Sample]) -> Judgement:
    """A plain rule in the place of the vehicle's model: hard braking and restless speed cost points."""
    started_s = time.perf_counter()
    changes = [abs(braking_kmh_per_s(before, after)) for before, after in pairwise(minute)]
    restlessness = sum(changes) / len(changes) if changes else 0.0
    harsh = sum(change > HARSH_BRAKING_KMH_PER_S for change in changes)
    if harsh or restlessness > 3.0:
        behavior = "AGGRESSIVE"
    elif restlessness > 1.5:
        behavior = "NORMAL"
    else:
        behavior = "ECO_DRIVING"
    mean_speed_kmh = sum(sample.speed_kmh for sample in minute) / len(minute)
    mean_rpm = sum(sample.engine_rpm for sample in minute) / len(minute)
    mean_throttle = sum(sample.throttle_pct for sample in minute) / len(minute)
    # Of a small petrol engine: 0.8 l/h at idle, the rest by engine speed and throttle.
    litres_per_h = 0.8 + mean_rpm * mean_throttle / 8_000
    return Judgement(
        behavior=behavior,
        confidence=round(0.6 + 0.39 * math.tanh(abs(restlessness - 1.5)), 3),
        safety_score=max(0, round(100 - 15 * harsh - 8 * restlessness)),
        fuel_efficiency_km_per_l=round(mean_speed_kmh / litres_per_h, 2),
        latency_ms=round((time.perf_counter() - started_s) * 1000, 4),
    )


def read_samples(path: Path) -> Iterator[Sample]:
    """The samples of a .csv or .csv.gz file; whatever is wrong with it is said with its line."""
    last_s = -1.0
    with _reading(path) as text:
        reader = csv.reader(text)
        header = next(reader, [])
        if missing := [name for name in COLUMNS if name not in header]:
            raise DemoError(f"{path}: line 1: no column {', '.join(missing)} (needed: {', '.join(COLUMNS)})")
        for row in reader:
            if not row:
                continue
            where = f"{path}: line {reader.line_num}"
            if len(row) != len(header):
                raise DemoError(f"{where}: {len(row)} cells where the first line has {len(header)}")
            sample = _parse_row(dict(zip(header, row, strict=True)), where)
            # Times to the millisecond are what tells one message from another.
            if round(sample.t_s * 1000) <= round(last_s * 1000):
                raise DemoError(f"{where}: t_s is {sample.t_s:g} after {last_s:g}; it must rise")
            last_s = sample.t_s
            yield sample


@contextmanager
def _reading(path: Path) -> Iterator[TextIO]:
    try:
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rt", encoding="utf-8-sig", newline="") as text:
            yield text
    except (OSError, EOFError, zlib.error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise DemoError(f"cannot read the drive {path}: {reason}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DemoError(f"{path} is not a CSV file: {error}") from error


def _parse_row(row: dict[str, str], where: str) -> Sample:
    def number(name: str) -> float:
        low, high = COLUMNS.get(name) or OPTIONAL_COLUMNS[name]
        try:
            value = float(row[name])
        except ValueError:
            raise DemoError(f"{where}: {name} is {row[name]!r}, not a number") from None
        if not low <= value <= high:
            raise DemoError(f"{where}: {name} is {value:g}, outside {low:g} to {high:g}")
        return value

    def optional(name: str) -> float | None:
        return number(name) if row.get(name) else None

    return Sample(
        t_s=number("t_s"),
        engine_rpm=number("engine_rpm"),
        speed_kmh=number("vehicle_speed_kmh"),
        throttle_pct=number("throttle_position_pct"),
        fuel_pct=number("fuel_level_pct"),
        battery_v=optional("battery_voltage_v"),
        lat_deg=optional("lat_deg"),
        lon_deg=optional("lon_deg"),
    )


def synthesise_samples(seed: int, duration_s: int) -> Iterator[Sample]:
    """A delivery van in a city: it pulls away, cruises, brakes, waits; one stop in five is a harsh one."""
    dice = random.Random(seed)  # noqa: S311  # a drive that can be repeated, not a secret
    speed_kmh, fuel_pct, heading_rad = 0.0, 80.0, dice.uniform(0, math.tau)
    lat_deg, lon_deg = 37.5665, 126.9780
    target_kmh, braking_kmh = 0.0, 0.0
    wait_s = 5
    for t_s in range(duration_s):
        if wait_s > 0 and speed_kmh == target_kmh:
            wait_s -= 1
        elif speed_kmh == target_kmh:
            stops = target_kmh > 0
            target_kmh = 0.0 if stops else float(dice.randrange(30, 85, 5))
            braking_kmh = dice.choice((4.0, 5.0, 6.0, 7.0, 14.0))
            wait_s = dice.randrange(3, 15) if stops else dice.randrange(10, 60)
        before_kmh = speed_kmh
        if speed_kmh < target_kmh:
            speed_kmh = min(target_kmh, speed_kmh + dice.uniform(3.0, 7.0))
        else:
            speed_kmh = max(target_kmh, speed_kmh - braking_kmh * dice.uniform(0.9, 1.1))
        gain_kmh = speed_kmh - before_kmh
        throttle_pct = min(100.0, max(12.0, 14.0 + 0.2 * speed_kmh + 6.0 * gain_kmh))
        gear = min(5, 1 + int(speed_kmh / 18))
        engine_rpm = max(750.0, speed_kmh * (115.0, 68.0, 46.0, 35.0, 28.0)[gear - 1]) + dice.uniform(-15, 15)
        fuel_pct = max(5.0, fuel_pct - throttle_pct * 2e-5)
        heading_rad += dice.gauss(0, 0.04) if speed_kmh else 0.0
        lat_deg += math.cos(heading_rad) * speed_kmh / 3600 / 111.2
        lon_deg += math.sin(heading_rad) * speed_kmh / 3600 / (111.2 * math.cos(math.radians(lat_deg)))
        yield Sample(
            t_s=float(t_s),
            engine_rpm=round(engine_rpm, 1),
            speed_kmh=round(speed_kmh, 1),
            throttle_pct=round(throttle_pct, 1),
            fuel_pct=round(fuel_pct, 2),
            battery_v=13.8,
            lat_deg=round(lat_deg, 6),
            lon_deg=round(lon_deg, 6),
        )


def _next_multiple(t_s: float, period_s: float) -> float:
    return (math.floor(t_s / period_s) + 1) * period_s
