"""The typed messages that tests build: fields, values of many types and at random, and the check by the reference."""

from __future__ import annotations

import enum
import json
import math
import random
import string
import struct
from typing import Any

import orjson
from hypothesis import strategies as st

from glec_fast.fleet._payload import Alert, GpsFix, Inference, Status, Telemetry
from support.payload_reference import REFERENCES, identical

DEVICE = "DTG-SN-12345"
NOW_MS = 1704931200000
FIRST_MS, LAST_MS = 946684800000, 4102444800000  # 2000 and 2100
MESSAGES = (Telemetry, Inference, Alert, Status)
GIVEN: dict[type, dict[str, Any]] = {
    Telemetry: {"vehicle_speed": 60.5, "engine_rpm": 1800, "throttle_position": 25.3, "fuel_level": 78.2},
    Inference: {
        "behavior": "ECO_DRIVING",
        "confidence": 0.953,
        "safety_score": 95,
        "fuel_efficiency": 6.2,
        "latency_ms": 0.0119,
    },
    Alert: {"alert_type": "HARSH_BRAKING", "severity": "HIGH"},
    Status: {
        "status": "ONLINE",
        "uptime_seconds": 86400,
        "battery_voltage": 12.6,
        "memory_usage_mb": 45,
        "storage_available_mb": 1024,
        "can_messages_received": 86400,
        "mqtt_messages_sent": 1440,
        "offline_queue_size": 0,
    },
}
NUMBERS = {
    Telemetry: ("vehicle_speed", "engine_rpm", "throttle_position", "fuel_level"),
    Inference: ("confidence", "safety_score", "fuel_efficiency", "latency_ms"),
    Alert: (),
    Status: ("battery_voltage", "memory_usage_mb", "storage_available_mb"),
}
COUNTS = ("uptime_seconds", "can_messages_received", "mqtt_messages_sent", "offline_queue_size")
NAMES = ((Inference, "behavior"), (Alert, "alert_type"), (Alert, "severity"), (Status, "status"))
EVERY_NUMBER = [(kind, field) for kind in MESSAGES for field in NUMBERS[kind]]


class Behavior(enum.Enum):
    ECO_DRIVING = 1


class Severity(str, enum.Enum):
    HIGH = "high"


class Gear(enum.IntEnum):
    DRIVE = 4


class Load(enum.Enum):
    HALF = 50.5
    NONE = math.nan
    WORD = "50"


class Text(str):
    __slots__ = ()


class Whole(int):
    pass


class Real(float):
    pass


class Counter:
    def __index__(self) -> int:
        return 86400


class Sensor:
    """A number by its own account, as of a library that is not at hand."""

    def __init__(self, number: Any) -> None:
        self.number = number

    def __float__(self) -> float:
        return float(self.number)


def build(kind: type, **changes: Any) -> Any:
    return kind(**{**GIVEN[kind], **changes})


def check(kind: Any, given: dict[str, Any], device_id: str = DEVICE, now_ms: int = NOW_MS) -> None:
    """The message says what the reference says, for two independent readers, without a wasted byte."""
    message = kind(**given)
    encoded = message.encode(device_id, now_ms)
    timestamp = given.get("timestamp_ms")
    expected = REFERENCES[kind.SUFFIX](device_id, now_ms if timestamp is None else timestamp, given)
    assert identical(orjson.loads(encoded), expected)
    assert identical(json.loads(encoded), expected)
    assert message.encode(device_id=device_id, timestamp_ms=now_ms) == encoded


def any_number(rng: random.Random) -> int | float:
    choice = rng.randrange(6)
    if choice == 0:
        return rng.choice([0, 1, -1, 9, 10, 99, 100, 9999, 10**4, 10**8 - 1, 10**8, 2**63 - 1, -(2**63)])
    if choice == 1:
        return rng.randrange(-(2**63), 2**63) >> rng.randrange(64)
    if choice == 2:
        return any_double(rng)
    return round(rng.uniform(-1, 1) * 10 ** rng.randrange(9), rng.randrange(12))


def any_double(rng: random.Random) -> float:
    while True:
        (value,) = struct.unpack("<d", rng.randbytes(8))
        if math.isfinite(value):
            return float(value)


def any_text(rng: random.Random) -> str:
    alphabet = rng.choice([string.ascii_letters, string.printable + '"\\\x00\x1f\x7f', "é한😀\u2028A", '"'])
    return "".join(rng.choices(alphabet, k=rng.choice([0, 1, 3, 4, 7, 8, 9, 15, 16, 17, rng.randrange(300)])))


def any_fix(rng: random.Random) -> GpsFix | None:
    speed = rng.choice([None, any_number(rng)])
    return rng.choice([None, GpsFix(round(rng.uniform(-90, 90), 7), rng.uniform(-180, 180), speed)])


def any_data(rng: random.Random, depth: int = 3) -> Any:
    choice = rng.randrange(8 if depth else 5)
    if choice < 2:
        return any_number(rng)
    if choice == 2:
        return rng.choice([None, True, False])
    if choice < 5:
        return any_text(rng)
    items = [any_data(rng, depth - 1) for _ in range(rng.randrange(5))]
    if choice == 5:
        return items
    return tuple(items) if choice == 6 else {any_text(rng): item for item in items}


JSON_DATA = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)
