"""The payload encoders against the plain reference, at every edge, and all that they refuse."""

from __future__ import annotations

import copy
import dataclasses
import datetime
import enum
import itertools
import json
import math
import pickle
import random
import string
import struct
import threading
from collections import OrderedDict
from decimal import Decimal
from fractions import Fraction
from types import MappingProxyType
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glec_fast.errors import MessageError, PayloadTypeError
from glec_fast.fleet import _payload, messages
from glec_fast.fleet._payload import Alert, GpsFix, Inference, Status, Telemetry, encode_json, encode_message
from glec_fast.fleet.payload import as_payload
from support.payload_reference import REFERENCES, as_read_back, drive_rows, identical, number

DEVICE = "DTG-SN-12345"
NOW_MS = 1704931200000
YEARS_UP_MS = 40 * 86_400_000  # a clock that nobody set, and that would be seconds of our time
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


class Text(str):
    __slots__ = ()


class Whole(int):
    pass


class Real(float):
    pass


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


# ------------------------------------------------------------------------------------------------ the specification


def test_the_compiled_module_is_the_one_loaded() -> None:
    assert _payload.__file__.endswith((".so", ".pyd"))
    assert {name: getattr(messages, name) for name in messages.__all__} == {
        kind.__name__: kind for kind in (*MESSAGES, GpsFix)
    }


def test_example_payloads_of_the_specification() -> None:
    seoul = GpsFix(37.5665, 126.9780, 60.2)
    braking = {"deceleration": -6.5, "speed_before": 80.0, "speed_after": 45.0}
    assert build(Telemetry, gps=seoul).encode(DEVICE, NOW_MS) == (
        b'{"timestamp":1704931200000,"device_id":"DTG-SN-12345","vehicle_speed":60.5,"engine_rpm":1800,'
        b'"throttle_position":25.3,"fuel_level":78.2,"gps":{"lat":37.5665,"lon":126.978,"speed":60.2}}'
    )
    assert build(Inference).encode(DEVICE, NOW_MS) == (
        b'{"timestamp":1704931200000,"device_id":"DTG-SN-12345","behavior":"ECO_DRIVING","confidence":0.953,'
        b'"safety_score":95,"fuel_efficiency":6.2,"latency_ms":0.0119}'
    )
    assert build(Alert, location=seoul, details=braking).encode(DEVICE, NOW_MS) == (
        b'{"timestamp":1704931200000,"device_id":"DTG-SN-12345","alert_type":"HARSH_BRAKING","severity":"HIGH",'
        b'"location":{"lat":37.5665,"lon":126.978},"details":{"deceleration":-6.5,"speed_before":80.0,"speed_after":45.0}}'
    )
    assert build(Status).encode(DEVICE, NOW_MS) == (
        b'{"timestamp":1704931200000,"device_id":"DTG-SN-12345","status":"ONLINE","uptime_seconds":86400,'
        b'"battery_voltage":12.6,"memory_usage_mb":45,"storage_available_mb":1024,"can_messages_received":86400,'
        b'"mqtt_messages_sent":1440,"offline_queue_size":0}'
    )


def test_topics_and_qos_of_the_specification() -> None:
    assert [(kind.SUFFIX, kind.QOS) for kind in MESSAGES] == [
        ("telemetry", 0),
        ("inference", 1),
        ("alerts", 2),
        ("status", 1),
    ]


@pytest.mark.parametrize("kind", MESSAGES)
def test_own_timestamp_wins(kind: type) -> None:
    check(kind, {**GIVEN[kind], "timestamp_ms": FIRST_MS})
    check(kind, {**GIVEN[kind], "timestamp_ms": LAST_MS})
    check(kind, GIVEN[kind], now_ms=LAST_MS)


@pytest.mark.parametrize("kind", MESSAGES)
def test_the_time_of_a_clock_that_is_not_set(kind: type) -> None:
    for clock_ms in (0, 300_000, YEARS_UP_MS, 2**63 - 1):
        assert json.loads(encode_message(build(kind), DEVICE, clock_ms))["timestamp"] == clock_ms
    own = build(kind, timestamp_ms=NOW_MS)
    assert encode_message(own, DEVICE, 0) == own.encode(DEVICE, FIRST_MS)
    with pytest.raises(MessageError, match=r"^timestamp_ms is -1, an int: give milliseconds"):
        encode_message(own, DEVICE, -1)


@pytest.mark.parametrize("wrong", [None, {"alert_type": "X"}, "text", GpsFix(1, 2)])
def test_what_is_no_message_is_not_encoded(wrong: object) -> None:
    with pytest.raises(PayloadTypeError, match=rf"^the message is .*, an? {type(wrong).__name__}: give a Telemetry, "):
        encode_message(wrong, DEVICE, NOW_MS)


@pytest.mark.parametrize("kind", MESSAGES)
def test_positional_construction_in_the_documented_order(kind: type) -> None:
    assert kind(*GIVEN[kind].values()) == build(kind)
    assert tuple(GIVEN[kind]) == kind.__match_args__[: len(GIVEN[kind])]


def test_names_from_enum_members() -> None:
    assert build(Inference, behavior=Behavior.ECO_DRIVING).behavior == "ECO_DRIVING"
    alert = build(Alert, alert_type=Behavior.ECO_DRIVING, severity=Severity.HIGH)
    assert (alert.alert_type, alert.severity) == ("ECO_DRIVING", "HIGH")


def test_what_is_none_is_left_out() -> None:
    for gps in (None, GpsFix(1, 2), GpsFix(1, 2, 0)):
        check(Telemetry, {**GIVEN[Telemetry], "gps": gps})
        check(Alert, {**GIVEN[Alert], "location": gps, "details": None})
    check(Status, {**GIVEN[Status], "battery_voltage": None})
    check(Alert, {**GIVEN[Alert], "details": {}})


# ---------------------------------------------------------------------------------------------------- random messages


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


@pytest.mark.parametrize("seed", range(8))
def test_random_messages(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(500):
        now_ms = rng.randrange(FIRST_MS, LAST_MS + 1)
        for kind in MESSAGES:
            given = dict(GIVEN[kind])
            given.update({field: any_number(rng) for field in NUMBERS[kind]})
            given.update({field: any_text(rng) for owner, field in NAMES if owner is kind})
            if kind is Telemetry:
                given["gps"] = any_fix(rng)
            if kind is Alert:
                given["location"] = any_fix(rng)
                given["details"] = {any_text(rng): any_data(rng) for _ in range(rng.randrange(8))}
            if kind is Status:
                given.update({field: rng.randrange(2**63) >> rng.randrange(63) for field in COUNTS})
                given["battery_voltage"] = rng.choice([None, any_number(rng)])
            given["timestamp_ms"] = rng.choice([None, rng.randrange(FIRST_MS, LAST_MS + 1)])
            check(kind, given, any_text(rng), now_ms)


@pytest.mark.parametrize("drive", ["drive6_1hz", "long7_1hz"])
def test_recorded_drives(drive: str) -> None:
    try:
        rows = drive_rows(drive)
    except FileNotFoundError as missing:
        pytest.skip(f"the recorded drives are not at hand: {missing}")
    for row in rows:
        sample = {
            "vehicle_speed": row["vehicle_speed_kmh"],
            "engine_rpm": row["engine_rpm"],
            "throttle_position": row["throttle_position_pct"],
            "fuel_level": row["fuel_level_pct"],
        }
        check(Telemetry, sample, now_ms=NOW_MS + 1000 * int(row["t_s"]))
        check(Status, {**GIVEN[Status], "battery_voltage": row["battery_voltage_v"]})


JSON_DATA = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@settings(max_examples=500, deadline=None)
@given(JSON_DATA)
def test_any_data_reads_back(data: Any) -> None:
    encoded = encode_json(data)
    assert identical(orjson.loads(encoded), as_read_back(data))
    assert b"\n" not in encoded


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.text(), JSON_DATA), st.text(), st.integers(FIRST_MS, LAST_MS))
def test_any_details_read_back(details: dict[str, Any], device_id: str, now_ms: int) -> None:
    check(Alert, {**GIVEN[Alert], "details": details}, device_id, now_ms)


# ------------------------------------------------------------------------------------------------------------ numbers


def check_double(value: float) -> None:
    """Valid JSON, bit for bit, as many digits as Python's shortest form and the same value as that."""
    text = encode_json(value).decode()
    assert identical(json.loads(text), value), text
    ours, shortest = Decimal(text), Decimal(repr(value))
    assert ours == shortest, text
    assert len(ours.normalize().as_tuple().digits) == len(shortest.normalize().as_tuple().digits)
    assert "." in text or "e" in text


@pytest.mark.parametrize("seed", range(4))
def test_doubles_of_all_magnitudes(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(5000):
        check_double(any_double(rng))
        check_double(rng.uniform(-1, 1) * 10.0 ** rng.randrange(-6, 18))
        check_double(round(rng.uniform(-1000, 1000), rng.randrange(17)))
        check_double(float(rng.randrange(10 ** rng.randrange(1, 18))) / 10 ** rng.randrange(23))
        check_double(struct.unpack("<f", struct.pack("<f", rng.uniform(0, 100)))[0])


def test_doubles_at_every_edge() -> None:
    edges = [0.0, 1e300, 5e-324, 1e16, 123456789012345680.0, 2.2250738585072014e-308, 1.7976931348623157e308]
    edges += [float(f"1e{exponent}") for exponent in range(-20, 20)]
    edges += [2.0**exponent for exponent in range(-1074, 1024)]
    edges += [0.1 + 0.2, 0.3, 1 / 3, 2 / 3, 9.999999999999998, 0.9999999999999999, 999999999999999.9, 99999.99999999999]
    for edge in edges:
        for value in (math.nextafter(edge, -math.inf), edge, math.nextafter(edge, math.inf)):
            if math.isfinite(value):
                check_double(value)
                check_double(-value)


def test_every_short_decimal() -> None:
    for places, n in itertools.product(range(5), range(20000)):
        value = n / 10**places
        assert float(encode_json(value)) == value
        assert len(encode_json(value)) == len(repr(value)) or value < 1e-4


def test_integers_at_every_edge() -> None:
    edges = {
        sign * base**power + step for base in (2, 10) for power in range(64) for sign in (1, -1) for step in (-1, 0, 1)
    }
    for value in sorted(edges | {2**64 - 1}):
        if -(2**63) <= value < 2**64:
            assert encode_json(value) == str(value).encode()
        if -(2**63) <= value < 2**63:
            check(Telemetry, {**GIVEN[Telemetry], "engine_rpm": value})


def test_a_number_keeps_its_type() -> None:
    check(Telemetry, {"vehicle_speed": 60, "engine_rpm": 1800.0, "throttle_position": -0.0, "fuel_level": 0})


@pytest.mark.parametrize(("kind", "field"), EVERY_NUMBER)
def test_subclasses_become_plain_numbers(kind: type, field: str) -> None:
    assert type(getattr(build(kind, **{field: Whole(3)}), field)) is int
    assert type(getattr(build(kind, **{field: Real(3)}), field)) is float


class Gear(enum.IntEnum):
    DRIVE = 4


class Load(enum.Enum):
    HALF = 50.5
    NONE = math.nan
    WORD = "50"


class Sensor:
    """A number by its own account, as of a library that is not at hand."""

    def __init__(self, number: Any) -> None:
        self.number = number

    def __float__(self) -> float:
        return float(self.number)


class Counter:
    def __index__(self) -> int:
        return 86400


OTHER_NUMBERS = [
    Decimal("12.60"),
    Decimal("-0"),
    Fraction(1, 3),
    Fraction(6, 3),
    Sensor(0.1),
    Counter(),
    Whole(3),
    Real(-0.0),
]


@pytest.mark.parametrize("value", [*OTHER_NUMBERS, Gear.DRIVE, Load.HALF])
@pytest.mark.parametrize("kind", [Telemetry, Inference, Status])
def test_numbers_of_any_type(kind: type, value: Any) -> None:
    check(kind, {**GIVEN[kind], **dict.fromkeys(NUMBERS[kind], value)})
    for field in NUMBERS[kind]:
        assert type(getattr(build(kind, **{field: value}), field)) in (int, float)


@pytest.mark.parametrize("value", OTHER_NUMBERS)
def test_numbers_of_any_type_in_data_and_alone(value: Any) -> None:
    data = {"a": [value, (value,)], "b": {"c": value}}
    assert identical(json.loads(encode_json(data)), as_read_back(data))
    check(Alert, {**GIVEN[Alert], "details": data})
    assert identical(json.loads(as_payload(value)), number(value))


@pytest.mark.parametrize("value", [Counter(), Whole(86400), Gear.DRIVE])
def test_counts_and_times_of_any_type(value: Any) -> None:
    check(Status, {**GIVEN[Status], **dict.fromkeys(COUNTS, value)})
    assert build(Status, timestamp_ms=Whole(NOW_MS)).timestamp_ms == NOW_MS


@pytest.mark.parametrize(
    "bad",
    [
        Decimal("NaN"),
        Decimal("sNaN"),
        Decimal("-Infinity"),
        Decimal("1e400"),
        Fraction(10**400),
        Load.NONE,
        Sensor("inf"),
    ],
)
def test_what_is_no_finite_number_in_any_disguise(bad: Any) -> None:
    for kind, field in EVERY_NUMBER:
        with pytest.raises(MessageError, match=rf"^{field} is .*: JSON has no such number; [^\n]*$"):
            build(kind, **{field: bad})
    if not isinstance(bad, enum.Enum):
        with pytest.raises(MessageError, match=r"^details\['a'\]\[0\] is .*: JSON has no such number"):
            build(Alert, details={"a": [bad]})
        with pytest.raises(MessageError, match=r"^the payload is .*: JSON has no such number"):
            as_payload(bad)


def test_one_rule_for_an_enum() -> None:
    """Its name, wherever text may stand; where a number is asked for, its value."""
    for member in (Behavior.ECO_DRIVING, Severity.HIGH, Gear.DRIVE, Load.WORD):
        for kind, field in NAMES:
            check(kind, {**GIVEN[kind], field: member})
        data = {"plain": member, "list": [member], member: member}
        assert json.loads(encode_json(data)) == {"plain": member.name, "list": [member.name], member.name: member.name}
        check(Alert, {**GIVEN[Alert], "details": data})
        assert as_payload(member) == member.name
    with pytest.raises(PayloadTypeError, match=r"^latency_ms is <Load.WORD: '50'>, a Load: give an int or a float"):
        build(Inference, latency_ms=Load.WORD)
    with pytest.raises(PayloadTypeError, match=r"^behavior is 5, an int: give a str"):
        build(Inference, behavior=5)


@dataclasses.dataclass
class Reading:
    speed: float


@pytest.mark.parametrize(
    ("value", "advice"),
    [
        (b"60", r"\.decode\(\)"),
        ({1, 2}, r"list\(\)"),
        ((n for n in range(3)), r"list\(\)"),
        (Reading(1.0), r"dataclasses\.asdict\(\)"),
        (datetime.datetime(2024, 1, 11, tzinfo=datetime.timezone.utc), r"timestamp\(\) \* 1000"),
        (datetime.date(2024, 1, 11), r"isoformat\(\)"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_refusal_says_how_to_make_what_can_be_sent(value: Any, advice: str) -> None:
    kind = type(value).__name__
    with pytest.raises(
        PayloadTypeError, match=rf"^details\['a'\] is .*, an? {kind}: give a str, [^\n]*{advice}[^\n]*$"
    ):
        build(Alert, details={"a": value})
    with pytest.raises(PayloadTypeError, match=rf"^lat is .*, an? {kind}: give an int or a float[^\n]*{advice}[^\n]*$"):
        GpsFix(value, 0)
    with pytest.raises(PayloadTypeError, match=rf"^timestamp_ms is .*, an? {kind}: give an int of milliseconds[^\n]*$"):
        build(Status, timestamp_ms=value)


def test_a_number_in_text_is_refused_by_name() -> None:
    for text in ("60", Text("60")):
        with pytest.raises(
            PayloadTypeError, match=r"^engine_rpm is '60', a (str|Text): give .*float\(\) makes one of a str$"
        ):
            build(Telemetry, engine_rpm=text)


def test_a_refusal_is_one_line() -> None:
    class Tall:
        def __repr__(self) -> str:
            return "one\ntwo"

    for refused in (lambda: GpsFix(Tall(), 0), lambda: encode_json([Tall()]), lambda: encode_json({Tall(): 1})):
        with pytest.raises(PayloadTypeError, match=r"^[^\n]*one two[^\n]*$"):
            refused()


def test_an_error_of_a_values_own_passes_through() -> None:
    class Failing:
        def __float__(self) -> float:
            raise LookupError("gone")

    with pytest.raises(LookupError, match="gone"):
        GpsFix(Failing(), 0)


# ------------------------------------------------------------------------------------------------------------ strings


def test_every_ascii_character_at_every_place_of_a_block() -> None:
    for code, size in itertools.product(range(128), range(1, 20)):
        for place in range(size):
            text = "a" * place + chr(code) + "b" * (size - place - 1)
            assert json.loads(encode_json(text)) == text


def test_control_characters_are_escaped() -> None:
    assert encode_json('"\\\b\f\n\r\t\x00\x1f\x7f/') == b'"\\"\\\\\\b\\f\\n\\r\\t\\u0000\\u001f\x7f/"'


@pytest.mark.parametrize("unit", ["a", '"', "\x01", "é", "한", "😀"])
@pytest.mark.parametrize("size", [0, 1, 60, 61, 80, 84, 85, 86, 255, 256, 4095, 4096, 4097, 8193, 16000])
def test_strings_on_both_sides_of_every_buffer(unit: str, size: int) -> None:
    text = unit * size
    assert json.loads(encode_json({text: [text]})) == {text: [text]}
    check(Alert, {"alert_type": text, "severity": text, "details": {"text": text}}, text)


def test_the_longest_name() -> None:
    check(Inference, {**GIVEN[Inference], "behavior": "\x01" * 65535}, "\x01" * 65535)
    for kind, field in NAMES:
        with pytest.raises(MessageError, match=rf"{field} is 'aaa.*at most 65535 bytes.*65536"):
            build(kind, **{field: "a" * 65536})
    with pytest.raises(MessageError, match="device_id is"):
        build(Status).encode("é" * 32768, NOW_MS)


def test_the_widest_fields_fit() -> None:
    widest = -2.2250738585072014e-308
    numbers = dict.fromkeys(NUMBERS[Status], widest) | dict.fromkeys(COUNTS, 2**63 - 1)
    for size in range(90):
        check(Status, {"status": "\x01" * size, **numbers}, "\x01" * size, LAST_MS)
        fix = GpsFix(-1.2345678901234567e-300, -1.2345678901234567e-300, widest)
        check(Telemetry, {**dict.fromkeys(NUMBERS[Telemetry], widest), "gps": fix}, "\x01" * size, LAST_MS)
        for message in (build(Status, status="\x01" * size, **numbers), build(Telemetry, gps=fix)):
            assert json.loads(encode_message(message, "\x01" * size, 2**63 - 1))["timestamp"] == 2**63 - 1


def test_big_details_of_every_size() -> None:
    for size in range(0, 3000, 7):
        details = {"readings": list(range(size)), "text": "x" * size}
        check(Alert, {**GIVEN[Alert], "details": details})


# ----------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("bad", [True, False, "60", None, b"1", 1j, [1], object()])
@pytest.mark.parametrize(("kind", "field"), EVERY_NUMBER)
def test_numbers_of_a_wrong_type(kind: type, field: str, bad: object) -> None:
    if bad is None and field == "battery_voltage":
        assert build(kind, battery_voltage=None).battery_voltage is None
        return
    with pytest.raises(PayloadTypeError, match=rf"^{field} is .*: give an int or a float"):
        build(kind, **{field: bad})


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, Real("nan")])
@pytest.mark.parametrize(("kind", "field"), EVERY_NUMBER)
def test_numbers_that_are_none(kind: type, field: str, bad: float) -> None:
    with pytest.raises(MessageError, match=rf"^{field} is -?(nan|inf), a (float|Real): JSON has no such number; "):
        build(kind, **{field: bad})


@pytest.mark.parametrize(("kind", "field"), EVERY_NUMBER + [(Status, field) for field in COUNTS])
def test_integers_beyond_64_bits(kind: type, field: str) -> None:
    for bad in (2**63, -(2**63) - 1, 2**64, 10**5000, Whole(2**63)):
        with pytest.raises(MessageError, match=rf"^{field} is .*: give an int from -2\*\*63"):
            build(kind, **{field: bad})


@pytest.mark.parametrize("field", COUNTS)
def test_counts(field: str) -> None:
    with pytest.raises(MessageError, match=rf"^{field} is -1, an int: give 0 or more"):
        build(Status, **{field: -1})
    for bad in (1.0, True, None, "1"):
        with pytest.raises(PayloadTypeError, match=rf"^{field} is .*: give an int"):
            build(Status, **{field: bad})


@pytest.mark.parametrize("kind", MESSAGES)
def test_timestamps(kind: type) -> None:
    for make in (
        lambda bad: build(kind, timestamp_ms=bad),
        lambda bad: build(kind).encode(DEVICE, bad),
        lambda bad: build(kind, timestamp_ms=NOW_MS).encode(DEVICE, bad),
    ):
        for bad in (-1, -NOW_MS, 0, FIRST_MS - 1, LAST_MS + 1, 2**63 - 1):
            with pytest.raises(MessageError, match=rf"^timestamp_ms is {bad}, an int: give milliseconds since 1970"):
                make(bad)
        for scale, unit in ((1e-3, "seconds, multiply"), (1e3, "microseconds, divide"), (1e6, "nanoseconds, divide")):
            for moment in (FIRST_MS, NOW_MS, LAST_MS):
                with pytest.raises(
                    MessageError, match=rf"^timestamp_ms is .*: give .*; this looks like {unit} them by"
                ):
                    make(int(moment * scale))
        with pytest.raises(MessageError, match=r"while the clock is not set leave it out"):
            make(300_000)
        with pytest.raises(MessageError, match=r"^timestamp_ms is .*: give an int from -2\*\*63"):
            make(2**63)
        for bad in (1.5, True, "now"):
            with pytest.raises(PayloadTypeError, match=r"^timestamp_ms is .*: give an int"):
                make(bad)
    with pytest.raises(PayloadTypeError, match=r"^timestamp_ms is None"):
        build(kind).encode(DEVICE, None)


@pytest.mark.parametrize("bad", [None, 1, b"DTG", ["DTG"]])
def test_names_of_a_wrong_type(bad: object) -> None:
    for kind, field in NAMES:
        with pytest.raises(PayloadTypeError, match=rf"^{field} is .*: give a str"):
            build(kind, **{field: bad})
    for kind in MESSAGES:
        with pytest.raises(PayloadTypeError, match=r"^device_id is .*: give a str"):
            build(kind).encode(bad, NOW_MS)


def test_lone_surrogates() -> None:
    bad = "a\ud800"
    for kind, field in NAMES:
        with pytest.raises(MessageError, match=rf"^{field} is 'a.ud800', a str: a lone surrogate"):
            build(kind, **{field: bad})
    with pytest.raises(MessageError, match=r"^device_id is 'a.ud800', a str: a lone surrogate"):
        build(Status).encode(bad, NOW_MS)
    for data, path in (([bad], r"\[0\]"), ({bad: 1}, r"\['a.ud800'\]"), ({"k": {"l": bad}}, r"\['k'\]\['l'\]")):
        with pytest.raises(MessageError, match=rf"^the payload{path} is 'a.ud800', a str: a lone surrogate"):
            encode_json(data)


def test_positions() -> None:
    for lat, lon in itertools.product((-90, 90.0, 0), (-180.0, 180, -0.0)):
        assert (GpsFix(lat, lon).lat, GpsFix(lat, lon).lon) == (lat, lon)
    above = math.nextafter(90, 91)
    for bad in (above, -above, 91, 2**62):
        with pytest.raises(MessageError, match=r"^lat is .*: give degrees from -90 to 90"):
            GpsFix(bad, 0)
    for bad in (math.nextafter(180, 181), -181):
        with pytest.raises(MessageError, match=r"^lon is .*: give degrees from -180 to 180"):
            GpsFix(0, bad)
    for field in ("lat", "lon", "speed"):
        for bad in (math.nan, math.inf):
            with pytest.raises(MessageError, match=rf"^{field} is "):
                GpsFix(**{"lat": 1, "lon": 2, field: bad})
        for wrong in (True, "1"):
            with pytest.raises(PayloadTypeError, match=rf"^{field} is "):
                GpsFix(**{"lat": 1, "lon": 2, field: wrong})
    for kind, field in ((Telemetry, "gps"), (Alert, "location")):
        with pytest.raises(PayloadTypeError, match=rf"^{field} is \(1, 2\), a tuple: give a GpsFix or None"):
            build(kind, **{field: (1, 2)})


@pytest.mark.parametrize(
    ("bad", "error", "text"),
    [
        ({"a": math.nan}, MessageError, r"details\['a'\] is nan, a float: JSON has no such number"),
        ({"a": [1, -math.inf]}, MessageError, r"details\['a'\]\[1\] is -inf"),
        (
            {"a": ({"b": 2**64},)},
            MessageError,
            r"details\['a'\]\[0\]\['b'\] is 18446744073709551616, an int: give an int",
        ),
        ({"a": -(2**63) - 1}, MessageError, r"details\['a'\] is -9223372036854775809, an int: give an int"),
        ({"a": 10**5000}, MessageError, r"details\['a'\] is .*: give an int"),
        ({"a": b"x"}, PayloadTypeError, r"details\['a'\] is b'x', a bytes: give a str"),
        ({"a": {1}}, PayloadTypeError, r"details\['a'\] is \{1\}, a set"),
        (
            {"a": {"ECO_DRIVING": 1, Behavior.ECO_DRIVING: 2}},
            MessageError,
            r"details\['a'\] has the key 'ECO_.*' twice",
        ),
        ({"a": {1: 2}}, PayloadTypeError, r"details\['a'\] has the key 1, an int: give a str"),
        ({None: 2}, PayloadTypeError, r"details has the key None"),
        ([1], PayloadTypeError, r"details is \[1\], a list: give a dict or None"),
        ("text", PayloadTypeError, r"details is 'text', a str: give a dict or None"),
    ],
)
def test_details_are_checked_when_the_alert_is_built(bad: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=f"^{text}"):
        build(Alert, details=bad)


def nested(depth: int, wrap: Any) -> Any:
    data: Any = 1
    for _ in range(depth):
        data = wrap(data)
    return data


@pytest.mark.parametrize("wrap", [lambda data: {"k": data}, lambda data: [data], lambda data: (data,)])
def test_nesting(wrap: Any) -> None:
    assert identical(json.loads(encode_json(nested(32, wrap))), as_read_back(nested(32, wrap)))
    with pytest.raises(MessageError, match=r"^the payload.* is .*: containers may be nested 32 deep"):
        encode_json(nested(33, wrap))
    build(Alert, details={"a": nested(31, wrap)})
    with pytest.raises(MessageError, match=r"^details\['a'\].*nested 32 deep"):
        build(Alert, details={"a": nested(32, wrap)})


def test_cycles() -> None:
    ring: list[Any] = []
    ring += [ring, ring]
    knot: dict[str, Any] = {}
    knot["self"] = knot
    for cycle in (ring, knot):
        with pytest.raises(MessageError, match="break the cycle"):
            encode_json(cycle)


def test_more_than_mqtt_can_carry() -> None:
    megabyte = "x" * 2**20
    with pytest.raises(MessageError, match=r"^the payload is longer than 268435455 bytes"):
        encode_json([megabyte] * 256)


def test_a_failing_repr_does_not_hide_the_refusal() -> None:
    class Broken:
        def __repr__(self) -> str:
            raise RuntimeError

    with pytest.raises(PayloadTypeError, match=r"^lat is <Broken instance"):
        GpsFix(Broken(), 0)


def test_missing_and_unknown_arguments() -> None:
    for kind in MESSAGES:
        with pytest.raises(TypeError, match="colour"):
            build(kind, colour="red")
        with pytest.raises(TypeError, match="positional arguments"):
            kind(*range(20))
    for kind, whole in (*GIVEN.items(), (GpsFix, {"lat": 1, "lon": 2})):
        for count, field in enumerate(whole):
            without = {name: value for name, value in whole.items() if name != field}
            for few in (lambda: kind(**without), lambda: kind(*list(whole.values())[:count])):  # noqa: B023
                with pytest.raises(PayloadTypeError, match=rf"^{field} is missing: give an? (int|float|str)[^\n]*$"):
                    few()


def test_errors_of_a_mapping_pass_through() -> None:
    class Failing(dict[str, int]):
        def keys(self) -> Any:
            raise KeyError("gone")

        def __iter__(self) -> Any:
            raise KeyError("gone")

    with pytest.raises(KeyError, match="gone"):
        encode_json(Failing(a=1))


# -------------------------------------------------------------------------------------------------------- plain data


def test_subclasses_and_mappings_in_data() -> None:
    ordered = OrderedDict(a=1, b=2)
    ordered.move_to_end("a")
    assert encode_json(ordered) == b'{"b":2,"a":1}'
    assert encode_json(MappingProxyType({"a": ()})) == b'{"a":[]}'
    assert encode_json([Text("t"), Whole(1), Real(1)]) == b'["t",1,1.0]'
    assert encode_json({Text("key"): True, "none": None}) == b'{"key":true,"none":null}'
    assert build(Alert, details=MappingProxyType({"a": 1})).details == {"a": 1}


def test_scalars_alone() -> None:
    assert [encode_json(data) for data in (None, True, False, 0, "", [], {}, ())] == [
        b"null",
        b"true",
        b"false",
        b"0",
        b'""',
        b"[]",
        b"{}",
        b"[]",
    ]


# ---------------------------------------------------------------------------------------------------------- as values


def test_details_are_a_snapshot() -> None:
    details = {"list": [1], "pair": (1, 2)}
    alert = build(Alert, details=details)
    before = alert.encode(DEVICE, NOW_MS)
    details["list"].append(2)
    alert.details["list"].append(3)
    assert alert.encode(DEVICE, NOW_MS) == before
    assert alert.details == {"list": [1], "pair": [1, 2]}


@pytest.mark.parametrize("kind", MESSAGES)
def test_messages_cannot_change(kind: type) -> None:
    message = build(kind)
    before = message.encode(DEVICE, NOW_MS)
    for field in (*kind.__match_args__, "SUFFIX", "anything"):
        with pytest.raises(AttributeError):
            setattr(message, field, 1)
    message.__init__(*GIVEN[kind].values())
    assert message.encode(DEVICE, NOW_MS) == before
    with pytest.raises(TypeError):
        type("Derived", (kind,), {})


@pytest.mark.parametrize("kind", MESSAGES)
def test_equality_hash_and_copies(kind: type) -> None:
    message = build(kind, timestamp_ms=NOW_MS)
    for twin in (build(kind, timestamp_ms=NOW_MS), copy.copy(message), copy.deepcopy(message)):
        assert twin == message
        assert hash(twin) == hash(message)
    assert pickle.loads(pickle.dumps(message)) == message
    assert message != build(kind, timestamp_ms=NOW_MS + 1)
    assert message != message.encode(DEVICE, NOW_MS)
    assert eval(repr(message)) == message


def test_equality_of_alerts_and_positions() -> None:
    one, other = (build(Alert, location=GpsFix(1, 2, speed), details={"n": speed}) for speed in (3, 4))
    assert one != other
    assert one == build(Alert, location=GpsFix(1, 2, 3), details={"n": 3})
    assert eval(repr(one)) == pickle.loads(pickle.dumps(one)) == one
    assert hash(build(Alert, details={"n": 1})) == hash(build(Alert, details={"n": 2}))
    assert repr(GpsFix(1, 2.5)) == "GpsFix(lat=1, lon=2.5, speed=None)"
    assert len({GpsFix(1, 2), GpsFix(1.0, 2.0), GpsFix(1, 3)}) == 2


def test_many_threads_on_the_same_messages() -> None:
    details = {"text": "é\n" * 3000, "numbers": [0.1 + 0.2] * 50}
    shared = [build(Telemetry, gps=GpsFix(37.5665, 126.978)), build(Alert, details=details), build(Status)]
    expected = [message.encode(DEVICE, NOW_MS) for message in shared]
    wrong: list[bytes] = []
    start = threading.Barrier(8)

    def hammer() -> None:
        start.wait()
        for _ in range(400):
            for message, right in zip(shared, expected, strict=True):
                got = message.encode(DEVICE, NOW_MS)
                if got != right or getattr(message, "details", None) not in (None, details):
                    wrong.append(got)
            if encode_json(details) != right_details:
                wrong.append(b"details")

    right_details = encode_json(details)
    threads = [threading.Thread(target=hammer) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
