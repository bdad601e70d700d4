"""Values as sensors, numpy, pandas and the standard library give them, in every field of every message.

Each is taken, or refused with the field, the value's type and what to give.
"""

from __future__ import annotations

import array
import collections
import ctypes
import dataclasses
import datetime as dt
import decimal
import enum
import fractions
import ipaddress
import itertools
import json
import math
import pathlib
import types
import uuid
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

from glec_fast.errors import MessageError
from glec_fast.fleet._payload import Alert, GpsFix, Inference, Status, Telemetry
from glec_fast.fleet.payload import as_payload

np = pytest.importorskip("numpy")

NOW_MS = 1704931200000


class Behaviour(enum.Enum):
    ECO = 1
    SPORT = "sport"
    MIXED = 2.5


class Level(enum.IntEnum):
    HIGH = 3


class Name(str, enum.Enum):
    ECO = "eco"


class Bits(enum.Flag):
    A = 1
    B = 2


class WholeBits(enum.IntFlag):
    A = 1


class OwnInt(int):
    pass


class OwnFloat(float):
    pass


class OwnStr(str):
    __slots__ = ()


class Index:
    def __index__(self) -> int:
        return 7


class Float:
    def __float__(self) -> float:
        return 1.5


class Unshowable:
    def __repr__(self) -> str:
        raise RuntimeError("no")


@dataclasses.dataclass
class Reading:
    speed: float = 1.5


Pair = collections.namedtuple("Pair", "a b")

NUMBERS = [
    *[0, 5, -1, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 10**400, 10**5000, 1.5, 0.0, -0.0, 5e-324, 1.797e308],
    *[math.nan, math.inf, -math.inf, True, False, 1j, 1 + 0j],
    *[
        decimal.Decimal(text)
        for text in ("60.5", "NaN", "sNaN", "Infinity", "1e400", "1e-400", "0.12345678901234567890")
    ],
    *[fractions.Fraction(*pair) for pair in ((1, 3), (6, 3), (10**400, 3))],
    *[OwnInt(4), OwnFloat(4.5), OwnFloat("nan"), Index(), Float(), ctypes.c_int(5), ctypes.c_double(5)],
]
NAMES = [
    "60",
    "",
    " 60 ",
    "a\0b",
    "a\nb",
    "\U0001f600",
    "\ud800",
    "x" * 70_000,
    OwnStr("x"),
    collections.UserString("x"),
]
NAMES += [
    b"60",
    bytearray(b"60"),
    memoryview(b"60"),
    uuid.UUID(int=1),
    ipaddress.ip_address("1.2.3.4"),
    pathlib.Path("/x"),
]
MEMBERS = [*Behaviour, Level.HIGH, Name.ECO, Bits.A, Bits.A | Bits.B, WholeBits.A, WholeBits(0), Behaviour]
TIMES = [
    *[dt.datetime(2026, 1, 1), dt.datetime(2026, 1, 1, tzinfo=dt.timezone.utc), dt.date(2026, 1, 1)],  # noqa: DTZ001
    *[dt.time(1, 2), dt.timedelta(seconds=1), NOW_MS, NOW_MS // 1000, NOW_MS * 1000, NOW_MS * 10**6, float(NOW_MS)],
]
CONTAINERS = [
    *[[1], (1,), {1}, frozenset([1]), {"a": 1}, range(3), iter([1]), (each for each in [1]), collections.deque([1])],
    *[array.array("d", [1.0]), collections.OrderedDict(a=1), collections.Counter("ab"), Pair(1, 2), Reading()],
    *[types.MappingProxyType({"a": 1}), collections.ChainMap({"a": 1}), collections.UserDict(a=1), {"a": 1}.keys()],
]
OTHERS = [None, ..., NotImplemented, object(), int, json, ValueError("x"), slice(1), lambda: 1, Unshowable()]
KINDS = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64"]
OF_NUMPY = [
    *[np.dtype(kind).type(42) for kind in [*KINDS, "longdouble", "complex64", "complex128"]],
    *[np.bool_(True), np.str_("x"), np.bytes_(b"x"), np.float32("nan"), np.float16("inf"), np.uint64(2**64 - 1)],
    *[np.datetime64("2026-01-01"), np.timedelta64(1, "s"), np.datetime64("NaT"), np.void(b"1"), np.ma.masked],
    *[np.array(1.5), np.array(3), np.array(3, dtype=object), np.array([1.5]), np.arange(3), np.array([])],
    *[np.array(1.5, dtype=">f8")[()], np.array([(1, 2)], dtype="i4,i4")[0], np.ma.array(1.5)],
]


@cache
def all_values() -> list[Any]:
    # Not for every process that collects the tests: pandas takes a second.
    pd = pytest.importorskip("pandas")
    of_pandas = [
        *[pd.NA, pd.NaT, pd.Timestamp("2026-01-01"), pd.Timedelta("1s"), pd.Interval(0, 1), pd.Period("2026-01")],
        *[pd.Series([1.0]), pd.Index([1]), pd.DataFrame({"a": [1]}), pd.Categorical(["a"]), pd.Series([1.5]).iloc[0]],
        *[pd.array([1], dtype="Int64")[0], pd.array(["x"], dtype="string")[0], pd.array([True], dtype="boolean")[0]],
    ]
    return [*NUMBERS, *NAMES, *MEMBERS, *TIMES, *CONTAINERS, *OTHERS, *OF_NUMPY, *of_pandas]


def status(**given: Any) -> Status:
    return Status(
        **{
            **dict.fromkeys(("uptime_seconds", "memory_usage_mb", "storage_available_mb", "can_messages_received"), 1),
            "status": "ONLINE",
            "battery_voltage": 12.6,
            "mqtt_messages_sent": 1,
            "offline_queue_size": 1,
            **given,
        }
    )


FIELDS: dict[str, Callable[[Any], Any]] = {
    "vehicle_speed": lambda value: Telemetry(value, 1, 2, 3),
    "lat": lambda value: GpsFix(value, 0),
    "timestamp_ms": lambda value: Telemetry(1, 2, 3, 4, timestamp_ms=value),
    "gps": lambda value: Telemetry(1, 2, 3, 4, gps=value),
    "behavior": lambda value: Inference(value, 1, 2, 3, 4),
    "confidence": lambda value: Inference("X", value, 2, 3, 4),
    "alert_type": lambda value: Alert(value, "HIGH"),
    "location": lambda value: Alert("X", "HIGH", location=value),
    "details": lambda value: Alert("X", "HIGH", details=value),
    "details['a']": lambda value: Alert("X", "HIGH", details={"a": value}),
    "details of the key": lambda value: Alert("X", "HIGH", details={value: 1}),
    "status": lambda value: status(status=value),
    "uptime_seconds": lambda value: status(uptime_seconds=value),
    "battery_voltage": lambda value: status(battery_voltage=value),
    "payload": as_payload,
}


@pytest.mark.parametrize("field", FIELDS)
def test_each_value_is_taken_or_refused_by_name(field: str) -> None:
    values = all_values()
    assert len(values) >= 140
    wrong = []
    for number, value in enumerate(values):
        if field == "details of the key" and type(value).__hash__ is None:
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                message = FIELDS[field](value)
                if hasattr(message, "encode") and not isinstance(message, str):
                    json.loads(message.encode("D", NOW_MS))
        except MessageError as error:
            text = str(error)
            names = field.partition(" ")[0] in text and (type(value).__name__ in text or "\ud800" in str(value))
            if not names or "\n" in text or not any(word in text for word in ("give", "JSON has", "replace", "remove")):
                wrong.append((number, text))
        except TypeError as error:
            # What cannot be hashed is no key, says Python itself.
            if "hash" not in str(error):
                wrong.append((number, repr(error)))
    assert wrong == []


def test_what_is_taken_is_what_was_given() -> None:
    for number, (field, make) in itertools.product((5, 1.5, np.float32(0.5), decimal.Decimal("60.5")), FIELDS.items()):
        if field in ("vehicle_speed", "confidence", "battery_voltage"):
            assert float(json.loads(make(number).encode("D", NOW_MS))[field]) == float(number)
