"""A drive, second by second, and the messages that a vehicle publishes about it. The same drive, the same messages."""

from __future__ import annotations

import math
import random
import time
from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from glec_fast.cli.demo.recording import Sample, read_samples

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

INFERENCE_PERIOD_S = 60.0
STATUS_PERIOD_S = 300.0
HARSH_BRAKING_KMH_PER_S = 10.0
SEVERE_BRAKING_KMH_PER_S = 15.0
# Over less than about a second, a step of a speed in whole km/h looks like a harsh braking. A logger of 1 Hz that is
# not quite even makes shorter steps, but between two of its rows there is nothing else to compare.
SHORTEST_WINDOW_S = 0.95
SHORTEST_STEP_S = 0.75
SYNTHETIC_DURATION_S = 3600


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
    """The drive's message `number` (from 0). `timestamp_ms` is unique within its kind.

    previous: the sample about a second before, by which braking is judged; None where there is none.
    """

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
    recent: deque[Sample] = deque()
    minute: list[Sample] = []
    for sample in samples:
        due: list[tuple[Kind, Judgement | None]] = [(Kind.TELEMETRY, None)]
        minute.append(sample)
        previous = _about_a_second_before(recent, sample)
        if previous is not None and braking_kmh_per_s(previous, sample) > HARSH_BRAKING_KMH_PER_S:
            due.append((Kind.ALERT, None))
            # The next one is of the time after it: as many at 100 Hz as at 1 Hz.
            recent.clear()
        recent.append(sample)
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


def _about_a_second_before(recent: deque[Sample], sample: Sample) -> Sample | None:
    """The nearest to a second before, None if all are too new; older ones than that are taken out."""

    def nearer(one: Sample, other: Sample) -> bool:
        one_s, other_s = _seconds_between(one, sample), _seconds_between(other, sample)
        return one_s >= SHORTEST_WINDOW_S and abs(one_s - 1.0) <= abs(other_s - 1.0)

    while len(recent) > 1 and nearer(recent[1], recent[0]):
        recent.popleft()
    if not recent:
        return None
    enough_s = SHORTEST_STEP_S if len(recent) == 1 else SHORTEST_WINDOW_S
    return recent[0] if _seconds_between(recent[0], sample) >= enough_s else None


def _seconds_between(before: Sample, after: Sample) -> float:
    """To the millisecond, as messages have it: in floats 10 km/h in a second may come out as a little more."""
    return round(after.t_s - before.t_s, 3)


def braking_kmh_per_s(before: Sample, after: Sample) -> float:
    """How fast the speed fell; negative while it rises."""
    return round(before.speed_kmh - after.speed_kmh, 6) / _seconds_between(before, after)


def _about_a_second_apart(minute: list[Sample]) -> list[Sample]:
    chosen = minute[:1]
    for sample in minute:
        if _seconds_between(chosen[-1], sample) >= SHORTEST_STEP_S:
            chosen.append(sample)
    return chosen


def judge(minute: list[Sample]) -> Judgement:
    """A plain rule in the place of the vehicle's model: hard braking and restless speed cost points."""
    started_s = time.perf_counter()
    changes = [abs(braking_kmh_per_s(before, after)) for before, after in pairwise(_about_a_second_apart(minute))]
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
