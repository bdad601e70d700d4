"""Payload encoding against orjson, the fastest JSON encoder for Python, both timed in the same run.

Two questions, each with its baseline:
  encode  `message.encode(device_id, timestamp_ms)`  against  `orjson.dumps(d)` of a dict built beforehand
  whole   construct the message and encode it        against  build the dict and `orjson.dumps` it

Values: the specification's examples, and drives recorded over OBD-II (skipped, with the reason, where they are not at
hand). The row "17 digits" holds computed floats that no rounding has shortened, the hardest a float can be.
Figures are nanoseconds per message, medians of interleaved rounds; a ratio above 1 says that this encoder is faster.

    python benches/bench_payload.py [--rounds 31] [--json]
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "tests")]

from glec_fast.fleet._payload import Alert, GpsFix, Inference, Status, Telemetry  # noqa: E402
from support.payload_reference import DRIVES_FOLDER, REFERENCES, drive_rows  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

DEVICE_ID = "DTG-SN-12345"
TIMESTAMP_MS = 1704931200000
BATCH = 240
SEOUL = (37.5665, 126.9780, 60.2)


def telemetry_dict(given: Sequence[Any]) -> dict[str, Any]:
    speed, rpm, throttle, fuel, position = given
    result = {
        "timestamp": TIMESTAMP_MS,
        "device_id": DEVICE_ID,
        "vehicle_speed": speed,
        "engine_rpm": rpm,
        "throttle_position": throttle,
        "fuel_level": fuel,
    }
    if position is not None:
        result["gps"] = {"lat": position[0], "lon": position[1], "speed": position[2]}
    return result


def telemetry_bytes(given: Sequence[Any]) -> bytes:
    speed, rpm, throttle, fuel, position = given
    fix = None if position is None else GpsFix(*position)
    return Telemetry(speed, rpm, throttle, fuel, fix).encode(DEVICE_ID, TIMESTAMP_MS)


def inference_dict(given: Sequence[Any]) -> dict[str, Any]:
    behavior, confidence, score, efficiency, latency = given
    return {
        "timestamp": TIMESTAMP_MS,
        "device_id": DEVICE_ID,
        "behavior": behavior,
        "confidence": confidence,
        "safety_score": score,
        "fuel_efficiency": efficiency,
        "latency_ms": latency,
    }


def inference_bytes(given: Sequence[Any]) -> bytes:
    behavior, confidence, score, efficiency, latency = given
    return Inference(behavior, confidence, score, efficiency, latency).encode(DEVICE_ID, TIMESTAMP_MS)


def alert_dict(given: Sequence[Any]) -> dict[str, Any]:
    alert_type, severity, position, details = given
    return {
        "timestamp": TIMESTAMP_MS,
        "device_id": DEVICE_ID,
        "alert_type": alert_type,
        "severity": severity,
        "location": {"lat": position[0], "lon": position[1]},
        "details": details,
    }


def alert_bytes(given: Sequence[Any]) -> bytes:
    alert_type, severity, position, details = given
    return Alert(alert_type, severity, GpsFix(*position), details).encode(DEVICE_ID, TIMESTAMP_MS)


def status_dict(given: Sequence[Any]) -> dict[str, Any]:
    status, uptime, voltage, memory, storage, received, sent, queued = given
    return {
        "timestamp": TIMESTAMP_MS,
        "device_id": DEVICE_ID,
        "status": status,
        "uptime_seconds": uptime,
        "battery_voltage": voltage,
        "memory_usage_mb": memory,
        "storage_available_mb": storage,
        "can_messages_received": received,
        "mqtt_messages_sent": sent,
        "offline_queue_size": queued,
    }


def status_bytes(given: Sequence[Any]) -> bytes:
    status, uptime, voltage, memory, storage, received, sent, queued = given
    message = Status(status, uptime, voltage, memory, storage, received, sent, queued)
    return message.encode(DEVICE_ID, TIMESTAMP_MS)


KINDS: dict[str, tuple[Any, Callable[..., dict[str, Any]], Callable[..., bytes]]] = {
    "telemetry": (Telemetry, telemetry_dict, telemetry_bytes),
    "inference": (Inference, inference_dict, inference_bytes),
    "alerts": (Alert, alert_dict, alert_bytes),
    "status": (Status, status_dict, status_bytes),
}

Case = tuple[str, str, list[tuple[Any, ...]]]


def specification_cases() -> list[Case]:
    braking = {"deceleration": -6.5, "speed_before": 80.0, "speed_after": 45.0}
    examples = {
        "telemetry": (60.5, 1800, 25.3, 78.2, SEOUL),
        "inference": ("ECO_DRIVING", 0.953, 95, 6.2, 0.0119),
        "alerts": ("HARSH_BRAKING", "HIGH", SEOUL, braking),
        "status": ("ONLINE", 86400, 12.6, 45, 1024, 86400, 1440, 0),
    }
    return [("specification", suffix, [given] * BATCH) for suffix, given in examples.items()]


def drive_cases(name: str) -> list[Case]:
    rows = drive_rows(name)
    rng = random.Random(name)
    telemetry: list[tuple[Any, ...]] = []
    inference: list[tuple[Any, ...]] = []
    alerts: list[tuple[Any, ...]] = []
    status: list[tuple[Any, ...]] = []
    lat, lon = SEOUL[:2]
    for second, (before, now) in enumerate(pairwise(rows), 1):
        speed, speed_before = now["vehicle_speed_kmh"], before["vehicle_speed_kmh"]
        # The recordings have no positions: a drive north-east at the recorded speed stands in for them.
        lat, lon = lat + speed * 1.8e-6, lon + speed * 2.2e-6
        position = (round(lat, 7), round(lon, 7), speed)
        telemetry.append((speed, now["engine_rpm"], now["throttle_position_pct"], now["fuel_level_pct"], position))
        if speed_before - speed > 4:
            details = {
                "deceleration": round((speed - speed_before) / 3.6, 2),
                "speed_before": speed_before,
                "speed_after": speed,
            }
            alerts.append(("HARSH_BRAKING", rng.choice(["LOW", "MEDIUM", "HIGH"]), position, details))
        behavior = rng.choice(["ECO_DRIVING", "NORMAL", "AGGRESSIVE", "HARSH_BRAKING"])
        confidence, efficiency = round(rng.uniform(0.5, 1), 3), round(rng.uniform(4, 18), 1)
        inference.append((behavior, confidence, rng.randrange(40, 101), efficiency, round(rng.uniform(0.01, 3), 4)))
        memory, storage, queued = rng.randrange(30, 60), rng.randrange(500, 1100), rng.choice([0, 0, 0, second])
        status.append(
            ("ONLINE", second, now["battery_voltage_v"], memory, storage, 20 * second, second + second // 60, queued)
        )
    chosen = {"telemetry": telemetry, "inference": inference, "alerts": alerts, "status": status}
    return [(name, suffix, rng.choices(every, k=BATCH)) for suffix, every in chosen.items()]


def hard_cases() -> list[Case]:
    rng = random.Random(17)
    return [
        (
            "17 digits",
            "inference",
            [("ECO_DRIVING", rng.random(), 95, 20 * rng.random(), rng.random()) for _ in range(BATCH)],
        )
    ]


def prepared(suffix: str, given: tuple[Any, ...]) -> Any:
    if suffix == "telemetry":
        return Telemetry(*given[:4], None if given[4] is None else GpsFix(*given[4]))
    if suffix == "alerts":
        return Alert(given[0], given[1], GpsFix(*given[2]), given[3])
    return KINDS[suffix][0](*given)


def time_encode(messages: list[Any]) -> float:
    device_id, timestamp_ms = DEVICE_ID, TIMESTAMP_MS
    start = time.perf_counter_ns()
    for message in messages:
        message.encode(device_id, timestamp_ms)
    return (time.perf_counter_ns() - start) / len(messages)


def time_call(function: Callable[[Any], object], arguments: list[Any]) -> float:
    start = time.perf_counter_ns()
    for argument in arguments:
        function(argument)
    return (time.perf_counter_ns() - start) / len(arguments)


def time_dict_and_dumps(build: Callable[[Any], dict[str, Any]], arguments: list[Any]) -> float:
    dumps = orjson.dumps
    start = time.perf_counter_ns()
    for argument in arguments:
        dumps(build(argument))
    return (time.perf_counter_ns() - start) / len(arguments)


def measure(case: Case, rounds: int) -> dict[str, Any]:
    values, suffix, batch = case
    _, to_dict, to_bytes = KINDS[suffix]
    messages = [prepared(suffix, given) for given in batch]
    dicts = [to_dict(given) for given in batch]
    for message, expected, given in zip(messages, dicts, batch, strict=True):
        encoded = message.encode(DEVICE_ID, TIMESTAMP_MS)
        if orjson.loads(encoded) != expected or to_bytes(given) != encoded:
            raise SystemExit(f"{values}, {suffix}: the two encoders do not say the same")
        fields = dict(zip(message.__match_args__, message.__reduce__()[1], strict=True))
        if REFERENCES[suffix](DEVICE_ID, TIMESTAMP_MS, fields) != expected:
            raise SystemExit(f"{values}, {suffix}: the dict is not the documented one")
    # Repeated so that one sample takes milliseconds.
    messages, dicts, batch = messages * 20, dicts * 20, batch * 20
    samples: dict[str, list[float]] = {"encode": [], "dumps": [], "whole": [], "dict_and_dumps": []}
    for _ in range(rounds):
        samples["encode"].append(time_encode(messages))
        samples["dumps"].append(time_call(orjson.dumps, dicts))
        samples["whole"].append(time_call(to_bytes, batch))
        samples["dict_and_dumps"].append(time_dict_and_dumps(to_dict, batch))
    ns = {name: statistics.median(figures) for name, figures in samples.items()}
    return {
        "values": values,
        "message": suffix,
        "bytes": round(statistics.mean(len(orjson.dumps(d)) for d in dicts)),
        **{f"{name}_ns": round(figure, 1) for name, figure in ns.items()},
        "encode_ratio": round(ns["dumps"] / ns["encode"], 2),
        "whole_ratio": round(ns["dict_and_dumps"] / ns["whole"], 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Payload encoding against orjson.")
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--json", action="store_true", help="one JSON object and nothing else")
    options = parser.parse_args()
    cases, skipped = specification_cases(), []
    if DRIVES_FOLDER.is_dir():
        cases += drive_cases("drive6_1hz") + drive_cases("long7_1hz")
    else:
        skipped.append(f"recorded drives: {DRIVES_FOLDER} is not there")
    results = [measure(case, options.rounds) for case in cases + hard_cases()]
    if options.json:
        versions = {"python": platform.python_version(), "orjson": orjson.__version__, "machine": platform.machine()}
        print(json.dumps({"bench": "payload", **versions, "results": results, "skipped": skipped}))
        return
    print(f"Python {platform.python_version()}, orjson {orjson.__version__}, {platform.machine()}; ns per message\n")
    print(f"{'values':14}{'message':11}{'bytes':>6}{'encode':>9}{'orjson':>9}{'ratio':>8}", end="")
    print(f"{'construct+encode':>19}{'dict+orjson':>13}{'ratio':>8}")
    for row in results:
        print(
            f"{row['values']:14}{row['message']:11}{row['bytes']:6}{row['encode_ns']:9.1f}{row['dumps_ns']:9.1f}",
            end="",
        )
        print(
            f"{row['encode_ratio']:7.2f}x{row['whole_ns']:19.1f}{row['dict_and_dumps_ns']:13.1f}{row['whole_ratio']:7.2f}x"
        )
    for reason in skipped:
        print(f"skipped {reason}")


if __name__ == "__main__":
    main()
