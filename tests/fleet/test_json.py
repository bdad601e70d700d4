"""Plain data as JSON: every number, string and nesting reads back, bit for bit."""

from __future__ import annotations

import itertools
import json
import math
import os
import random
import struct
from collections import OrderedDict
from decimal import Decimal
from types import MappingProxyType
from typing import Any

import orjson
import pytest
from hypothesis import given, settings

from glec_fast.errors import MessageError
from glec_fast.fleet._json import encode_json
from glec_fast.fleet._payload import Alert, Telemetry
from support.fleet_messages import (
    GIVEN,
    JSON_DATA,
    Real,
    Text,
    Whole,
    any_double,
    build,
    check,
)
from support.payload_reference import as_read_back, identical

# The Makefile's `fuzz-values` has more.
EXAMPLES = int(os.environ.get("EXAMPLES", "50"))


@settings(max_examples=EXAMPLES, deadline=None)
@given(JSON_DATA)
def test_any_data_reads_back(data: Any) -> None:
    encoded = encode_json(data)
    assert identical(orjson.loads(encoded), as_read_back(data))
    assert b"\n" not in encoded


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


def test_every_ascii_character_at_every_place_of_a_block() -> None:
    for code, size in itertools.product(range(128), range(1, 20)):
        for place in range(size):
            text = "a" * place + chr(code) + "b" * (size - place - 1)
            assert json.loads(encode_json(text)) == text


def test_control_characters_are_escaped() -> None:
    assert encode_json('"\\\b\f\n\r\t\x00\x1f\x7f/') == b'"\\"\\\\\\b\\f\\n\\r\\t\\u0000\\u001f\x7f/"'


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


def test_errors_of_a_mapping_pass_through() -> None:
    class Failing(dict[str, int]):
        def keys(self) -> Any:
            raise KeyError("gone")

        def __iter__(self) -> Any:
            raise KeyError("gone")

    with pytest.raises(KeyError, match="gone"):
        encode_json(Failing(a=1))


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
