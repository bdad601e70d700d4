"""The typed messages against the plain reference, at every edge."""

from __future__ import annotations

import copy
import json
import os
import pickle
import random
import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glec_fast.errors import MessageError, PayloadTypeError
from glec_fast.fleet import _payload, messages
from glec_fast.fleet._json import encode_json
from glec_fast.fleet._payload import Alert, GpsFix, Inference, Status, Telemetry, encode_message
from support.fleet_messages import (
    COUNTS,
    DEVICE,
    EVERY_NUMBER,
    FIRST_MS,
    GIVEN,
    JSON_DATA,
    LAST_MS,
    MESSAGES,
    NAMES,
    NOW_MS,
    NUMBERS,
    Behavior,
    Real,
    Severity,
    Whole,
    any_data,
    any_fix,
    any_number,
    any_text,
    build,
    check,
)
from support.payload_reference import drive_rows

# The Makefile's `fuzz-values` has more.
EXAMPLES = int(os.environ.get("EXAMPLES", "50"))
YEARS_UP_MS = 40 * 86_400_000  # a clock that nobody set, and that would be seconds of our time


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


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.dictionaries(st.text(), JSON_DATA), st.text(), st.integers(FIRST_MS, LAST_MS))
def test_any_details_read_back(details: dict[str, Any], device_id: str, now_ms: int) -> None:
    check(Alert, {**GIVEN[Alert], "details": details}, device_id, now_ms)


def test_a_number_keeps_its_type() -> None:
    check(Telemetry, {"vehicle_speed": 60, "engine_rpm": 1800.0, "throttle_position": -0.0, "fuel_level": 0})


@pytest.mark.parametrize(("kind", "field"), EVERY_NUMBER)
def test_subclasses_become_plain_numbers(kind: type, field: str) -> None:
    assert type(getattr(build(kind, **{field: Whole(3)}), field)) is int
    assert type(getattr(build(kind, **{field: Real(3)}), field)) is float


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
