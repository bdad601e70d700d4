"""What the payload encoders must say, in the slowest and plainest Python: the documented dicts.

Written from the section "Example Payloads" of the specification, without a look at the encoders.
"""

from __future__ import annotations

import csv
import gzip
import math
from collections.abc import Mapping
from enum import Enum
from typing import Any

from support.places import SHARED_DATA

DRIVES_FOLDER = SHARED_DATA


def drive_rows(name: str) -> list[dict[str, float]]:
    """The rows of a recorded drive, integers as int; FileNotFoundError where the recordings are not at hand."""
    with gzip.open(DRIVES_FOLDER / f"{name}.csv.gz", "rt") as file:
        return [
            {column: float(text) if "." in text else int(text) for column, text in row.items()}
            for row in csv.DictReader(file)
        ]


def telemetry(device_id: str, timestamp: int, given: dict[str, Any]) -> dict[str, Any]:
    result = {
        "timestamp": timestamp,
        "device_id": device_id,
        "vehicle_speed": number(given["vehicle_speed"]),
        "engine_rpm": number(given["engine_rpm"]),
        "throttle_position": number(given["throttle_position"]),
        "fuel_level": number(given["fuel_level"]),
    }
    gps = given.get("gps")
    if gps is not None:
        result["gps"] = {"lat": gps.lat, "lon": gps.lon}
        if gps.speed is not None:
            result["gps"]["speed"] = gps.speed
    return result


def inference(device_id: str, timestamp: int, given: dict[str, Any]) -> dict[str, Any]:
    return {
        "timestamp": timestamp,
        "device_id": device_id,
        "behavior": name(given["behavior"]),
        "confidence": number(given["confidence"]),
        "safety_score": number(given["safety_score"]),
        "fuel_efficiency": number(given["fuel_efficiency"]),
        "latency_ms": number(given["latency_ms"]),
    }


def alert(device_id: str, timestamp: int, given: dict[str, Any]) -> dict[str, Any]:
    result = {
        "timestamp": timestamp,
        "device_id": device_id,
        "alert_type": name(given["alert_type"]),
        "severity": name(given["severity"]),
    }
    location = given.get("location")
    if location is not None:
        result["location"] = {"lat": location.lat, "lon": location.lon}
    if given.get("details") is not None:
        result["details"] = as_read_back(given["details"])
    return result


def status(device_id: str, timestamp: int, given: dict[str, Any]) -> dict[str, Any]:
    result = {
        "timestamp": timestamp,
        "device_id": device_id,
        "status": name(given["status"]),
        "uptime_seconds": number(given["uptime_seconds"]),
    }
    if given["battery_voltage"] is not None:
        result["battery_voltage"] = number(given["battery_voltage"])
    for field in (
        "memory_usage_mb",
        "storage_available_mb",
        "can_messages_received",
        "mqtt_messages_sent",
        "offline_queue_size",
    ):
        result[field] = number(given[field])
    return result


REFERENCES = {"telemetry": telemetry, "inference": inference, "alerts": alert, "status": status}


def name(value: str | Enum) -> str:
    return value.name if isinstance(value, Enum) else str(value)


def number(value: Any) -> Any:
    """The int or float that a reader of the JSON gets for a number of any library; an Enum's value."""
    if isinstance(value, Enum):
        value = value.value
    if value is None or type(value) in (int, float):
        return value
    if hasattr(value, "__index__") and getattr(getattr(value, "dtype", None), "kind", "i") in "iu":
        return int(value)
    # numpy's text of its own floats has the least digits that tell one from the next.
    return float(str(value)) if getattr(getattr(value, "dtype", None), "itemsize", 8) < 8 else float(value)


def as_read_back(value: Any) -> Any:
    """Plain data as a JSON reader gives it: lists for tuples, an Enum's name, the numbers and bools of any library."""
    if isinstance(value, Mapping):
        return {name(key): as_read_back(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_read_back(item) for item in value]
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, str | bool) or value is None:
        return value
    if getattr(getattr(value, "dtype", None), "kind", "") == "b":
        return bool(value)
    return number(value)


def identical(one: Any, other: Any) -> bool:
    """Equal with types, the order of keys and the sign of zero."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return list(one) == list(other) and all(identical(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(identical, one, other))
    if isinstance(one, float):
        return one == other and math.copysign(1, one) == math.copysign(1, other)
    return bool(one == other)
