"""What a typed message refuses, field by field."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest

from glec_fast.errors import MessageError, PayloadTypeError
from glec_fast.fleet._json import encode_json
from glec_fast.fleet._payload import Alert, GpsFix, Status, Telemetry
from support.fleet_messages import (
    COUNTS,
    DEVICE,
    EVERY_NUMBER,
    FIRST_MS,
    GIVEN,
    LAST_MS,
    MESSAGES,
    NAMES,
    NOW_MS,
    Behavior,
    Real,
    Whole,
    build,
)


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


def test_missing_and_unknown_arguments() -> None:
    for kind in MESSAGES:
        with pytest.raises(TypeError, match="colour"):
            build(kind, colour="red")
        with pytest.raises(TypeError, match="more than there are"):
            kind(*range(20))
    for kind, whole in (*GIVEN.items(), (GpsFix, {"lat": 1, "lon": 2})):
        for count, field in enumerate(whole):
            without = {name: value for name, value in whole.items() if name != field}
            for few in (lambda: kind(**without), lambda: kind(*list(whole.values())[:count])):  # noqa: B023
                with pytest.raises(PayloadTypeError, match=rf"^{field} is missing: give an? (int|float|str)[^\n]*$"):
                    few()
