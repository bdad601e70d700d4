"""What is a number or a name, of whatever type, and how a value is refused that is neither."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import json
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest

from glec_fast.errors import MessageError, PayloadTypeError
from glec_fast.fleet._json import encode_json
from glec_fast.fleet._payload import Alert, GpsFix, Inference, Status, Telemetry
from glec_fast.fleet.payload import as_payload
from support.fleet_messages import (
    COUNTS,
    EVERY_NUMBER,
    GIVEN,
    NAMES,
    NOW_MS,
    NUMBERS,
    Behavior,
    Counter,
    Gear,
    Load,
    Real,
    Sensor,
    Severity,
    Text,
    Whole,
    build,
    check,
)
from support.payload_reference import as_read_back, identical, number

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


def test_a_failing_repr_does_not_hide_the_refusal() -> None:
    class Broken:
        def __repr__(self) -> str:
            raise RuntimeError

    with pytest.raises(PayloadTypeError, match=r"^lat is <Broken instance"):
        GpsFix(Broken(), 0)
