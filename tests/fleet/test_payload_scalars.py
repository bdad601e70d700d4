"""Scalars of numpy and pandas in messages and plain data. Neither is a dependency of the package."""

from __future__ import annotations

import json
import math
import random
from typing import Any

import pytest

from glec_fast.errors import MessageError, PayloadTypeError
from glec_fast.fleet._json import encode_json
from glec_fast.fleet._payload import Alert, GpsFix, Inference, Status, Telemetry
from glec_fast.fleet.payload import as_payload
from support.payload_reference import REFERENCES, as_read_back, identical, number

np = pytest.importorskip("numpy")

DEVICE = "DTG-SN-12345"
NOW_MS = 1704931200000
INTEGERS = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
FLOATS = ["float16", "float32", "float64", "longdouble"]
EVERY_TYPE = INTEGERS + FLOATS


def check(message: Any, given: dict[str, Any]) -> None:
    expected = REFERENCES[message.SUFFIX](DEVICE, NOW_MS, given)
    assert identical(json.loads(message.encode(DEVICE, NOW_MS)), expected)


@pytest.mark.parametrize("shape", ["scalar", "0-d array", "big-endian 0-d array"])
@pytest.mark.parametrize("kind", EVERY_TYPE)
def test_every_numeric_type(kind: str, shape: str) -> None:
    dtype = np.dtype(kind)
    value = dtype.type(42.5 if kind in FLOATS else 42)
    if shape != "scalar":
        value = np.array(value, dtype.newbyteorder(">") if shape.startswith("big") else dtype)
    telemetry = dict.fromkeys(("vehicle_speed", "engine_rpm", "throttle_position", "fuel_level"), value)
    fix = GpsFix(value, value, value)
    check(Telemetry(**telemetry, gps=fix), {**telemetry, "gps": fix})
    numbers = dict.fromkeys(("confidence", "safety_score", "fuel_efficiency", "latency_ms"), value)
    check(Inference("ECO_DRIVING", **numbers), {"behavior": "ECO_DRIVING", **numbers})
    details = {"one": value, "list": [value, {"in": (value,)}]}
    check(Alert("X", "HIGH", details=details), {"alert_type": "X", "severity": "HIGH", "details": details})
    assert identical(json.loads(encode_json(details)), as_read_back(details))
    assert identical(json.loads(as_payload(value)), number(value))


@pytest.mark.parametrize("kind", INTEGERS)
def test_integers_where_integers_are_wanted(kind: str) -> None:
    value = np.dtype(kind).type(100)
    given = {
        "status": np.str_("ONLINE"),
        "uptime_seconds": value,
        "battery_voltage": np.float32(12.6),
        "memory_usage_mb": value,
        "storage_available_mb": value,
        "can_messages_received": value,
        "mqtt_messages_sent": value,
        "offline_queue_size": value,
    }
    check(Status(**given), given)
    assert type(Status(**given).status) is str
    assert Status(**given, timestamp_ms=np.int64(NOW_MS)).timestamp_ms == NOW_MS


def test_a_float32_keeps_its_digits() -> None:
    """Not those of the double next to it, which nobody has measured; and a float32 read from them is the same."""
    message = Inference("ECO_DRIVING", np.float32(0.953), 95, np.float16(6.2), np.float32(0.0119))
    assert message.confidence == 0.953
    assert b'"confidence":0.953,"safety_score":95,"fuel_efficiency":6.2,"latency_ms":0.0119' in message.encode(
        DEVICE, NOW_MS
    )
    assert encode_json({"c": np.float32(0.953)}) == b'{"c":0.953}'
    assert as_payload(np.float32(0.953)) == "0.953"


@pytest.mark.parametrize("kind", ["float16", "float32"])
def test_narrow_floats_of_all_magnitudes(kind: str) -> None:
    rng = random.Random(kind)
    scalar = np.dtype(kind).type
    info = np.finfo(scalar)
    values = [info.max, info.min, info.tiny, info.smallest_subnormal, scalar(0.0), scalar(-0.0), scalar(1) + info.eps]
    while len(values) < 4000:
        bits = rng.randbytes(info.bits // 8)
        value = np.frombuffer(bits, scalar)[0]
        if np.isfinite(value):
            values.append(value)
    for value in values:
        text = encode_json(value).decode()
        assert scalar(text) == value
        assert math.copysign(1, float(text)) == math.copysign(1, value)
        assert len(repr(float(text)).split("e")[0]) <= len(repr(float(str(value))).split("e")[0]) + 1, (text, value)


def test_bools_are_bools_in_data_and_no_numbers() -> None:
    for value in (np.bool_(True), np.array(False)):
        assert encode_json([value]) == (b"[true]" if value else b"[false]")
        with pytest.raises(PayloadTypeError, match=r"^lat is .*, an? \w+: give an int or a float"):
            GpsFix(value, 0)
        with pytest.raises(PayloadTypeError, match=r"^the payload is "):
            as_payload(value)


@pytest.mark.parametrize("kind", FLOATS)
@pytest.mark.parametrize("bad", ["nan", "inf", "-inf"])
def test_no_number_of_any_width(kind: str, bad: str) -> None:
    value = np.dtype(kind).type(bad)
    for disguise in (value, np.array(value)):
        with pytest.raises(MessageError, match=r"^confidence is .*: JSON has no such number"):
            Inference("X", disguise, 1, 2, 3)
        with pytest.raises(MessageError, match=r"^details\['a'\] is .*: JSON has no such number"):
            Alert("X", "Y", details={"a": disguise})


@pytest.mark.parametrize(
    "make",
    [
        lambda: np.array([1.5]),
        lambda: np.arange(10_000).reshape(100, 100),
        lambda: np.complex64(1),
        lambda: np.timedelta64(5, "s"),
        lambda: np.timedelta64(5, "ns"),
        lambda: np.datetime64("2024-01-11T00:00:00.000"),
        lambda: np.datetime64(NOW_MS * 10**6, "ns"),
        lambda: np.bytes_(b"60"),
        lambda: np.array("60", dtype=object),
        lambda: np.array("60"),
        lambda: np.void(b"1"),
    ],
)
def test_what_would_convert_with_a_loss_is_refused_on_one_line(make: Any) -> None:
    value = make()
    line = rf"is [^\n]*, an? {type(value).__name__}: give an? [^\n]*$"
    with pytest.raises(PayloadTypeError, match="^vehicle_speed " + line):
        Telemetry(value, 1, 2, 3)
    with pytest.raises(PayloadTypeError, match=r"^details\['a'\] " + line):
        Alert("X", "Y", details={"a": value})
    with pytest.raises(PayloadTypeError, match="^timestamp_ms " + line):
        Telemetry(1, 2, 3, 4, timestamp_ms=value)


def test_ranges_hold_for_any_type() -> None:
    with pytest.raises(MessageError, match=r"^lat is .*: give degrees from -90 to 90"):
        GpsFix(np.float32(90.00001), 0)
    with pytest.raises(MessageError, match=r"^engine_rpm is .*: give an int from -2\*\*63"):
        Telemetry(1, np.uint64(2**64 - 1), 2, 3)
    assert encode_json([np.uint64(2**64 - 1)]) == b"[18446744073709551615]"
    with pytest.raises(MessageError, match="looks like seconds"):
        Telemetry(1, 2, 3, 4, timestamp_ms=np.int64(NOW_MS // 1000))
    with pytest.raises(MessageError, match="looks like nanoseconds"):
        Telemetry(1, 2, 3, 4, timestamp_ms=np.int64(NOW_MS * 10**6))


def test_masked_is_refused() -> None:
    with pytest.warns(UserWarning, match="masked"), pytest.raises(MessageError, match=r"^lat is masked"):
        GpsFix(np.ma.masked, 0)


def test_scalars_of_pandas() -> None:
    pd = pytest.importorskip("pandas")
    row = pd.DataFrame({"speed": [60.5], "rpm": [1800], "score": pd.array([95], dtype="Int64")}).iloc[0]
    check(
        Telemetry(row["speed"], row["rpm"], row["score"], 4),
        {"vehicle_speed": 60.5, "engine_rpm": row["rpm"], "throttle_position": row["score"], "fuel_level": 4},
    )
    stamp = pd.Timestamp("2024-01-11", tz="UTC")
    with pytest.raises(
        PayloadTypeError, match=r"^timestamp_ms is .*, a Timestamp: give an int of milli.*timestamp\(\)"
    ):
        Telemetry(1, 2, 3, 4, timestamp_ms=stamp)
    assert Telemetry(1, 2, 3, 4, timestamp_ms=int(stamp.timestamp() * 1000)).timestamp_ms == NOW_MS
    for nothing in (pd.NA, pd.NaT):
        with pytest.raises(PayloadTypeError, match=r"^lat is .*, a Na?[AT]Type: give .*nothing was measured"):
            GpsFix(nothing, 0)
        with pytest.raises(PayloadTypeError, match=r"^details\['a'\] is .*: give .*None.*nothing was measured"):
            Alert("X", "Y", details={"a": nothing})
    with pytest.raises(PayloadTypeError, match=r"^lat is .*, a Series: give an int or a float; .tolist"):
        GpsFix(pd.Series([1.0, 2.0]), 0)
    with pytest.raises(PayloadTypeError, match=r"^lat is .*, a Timedelta: give an int or a float"):
        GpsFix(pd.Timedelta("1s"), 0)
