"""What is a number or a name, of whatever type, and how a value is refused that is neither.

For all that is no plain int, float or str already: the compiled encoders look at those themselves.
"""

from __future__ import annotations

import reprlib
import struct
from collections.abc import Iterable, Mapping
from enum import Enum
from math import inf, isfinite, nan
from operator import index

from glec_fast.errors import MessageError, PayloadTypeError

# The default of an argument that has none: a constructor without it would fail in Cython's code, which names no field.
MISSING = object()

# What a dtype's name begins with, of the libraries whose scalars and 0-d arrays have one: others convert with a loss.
_NUMERIC_DTYPES = ("int", "uint", "float", "bfloat", "longdouble")
# In struct's terms: the floats in which a decimal of few digits is not the nearest double to itself.
_NARROW_FLOATS = {"float16": "<e", "float32": "<f"}

YEAR_2000_MS = 946_684_800_000
YEAR_2100_MS = 4_102_444_800_000


def shown(value: object) -> str:
    """On one line, and not longer than a line."""
    try:
        return " ".join(reprlib.repr(value).split())
    except Exception:  # a repr that fails (an int of 5,000 digits) must not hide the refusal
        return f"<{type(value).__name__}>"


def described(value: object) -> str:
    """The value and its type, such as `5, an int`."""
    name = type(value).__name__
    return f"{shown(value)}, {'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def refusal(field: str, value: object, advice: str) -> MessageError:
    """The error of a value that cannot be carried."""
    return MessageError(f"{field} is {described(value)}: {advice}")


def type_refusal(field: str, value: object, advice: str) -> PayloadTypeError:
    """The error of a type that has no encoding."""
    if value is MISSING:
        return PayloadTypeError(f"{field} is missing: {advice}")
    return PayloadTypeError(f"{field} is {described(value)}: {advice}")


def call_refusal(kind: type, values: tuple[object, ...], names: tuple[str, ...]) -> PayloadTypeError | None:
    """The error of a constructor's arguments that are not its own; None where they are."""
    fields: tuple[str, ...] = kind.__match_args__  # type: ignore[attr-defined]
    name, takes = kind.__name__, f"it takes {', '.join(fields)}"
    for each in names:
        if each not in fields:
            return PayloadTypeError(f"{name} has no {shown(each)}: {takes}")
        if each in fields[: len(values)]:
            return PayloadTypeError(f"{name} was given {each} twice, by its place and by its name: {takes}")
    if len(values) > len(fields):
        return PayloadTypeError(f"{name} was given {len(values)} values, more than there are: {takes}")
    return None


def text_refusal(field: str, text: object) -> MessageError:
    """The error of a str that has no UTF-8."""
    advice = "a lone surrogate has no UTF-8 form; replace it, e.g. by decoding with errors='replace'"
    return refusal(field, text, advice)


def dtype_name(value: object) -> str | None:
    """Such as "float32"; None for what is not of an array library."""
    dtype = getattr(value, "dtype", None)
    if dtype is None:
        return None
    name = getattr(dtype, "name", None)
    return name if isinstance(name, str) else str(dtype).rpartition(".")[2]


def number_of(value: object) -> int | float | None:
    """An exact int or float of what is a number by its own account, not checked for its range; else None."""
    if isinstance(value, (bool, str, bytes, bytearray)):
        return None
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, int):
        return int.__index__(value)
    name = dtype_name(value)
    if name is not None and (not name.startswith(_NUMERIC_DTYPES) or tuple(getattr(value, "shape", ())) != ()):
        return None
    try:
        return int.__index__(index(value))  # type: ignore[arg-type]
    except TypeError:
        pass
    if not hasattr(type(value), "__float__"):
        return None
    try:
        number = float(value)  # type: ignore[arg-type]
    except TypeError:
        return None
    except OverflowError:
        return inf
    except ValueError:  # a signalling NaN of decimal
        return nan
    layout = None if name is None else _NARROW_FLOATS.get(name)
    return number if layout is None else _shortest(number, layout)


def _shortest(number: float, layout: str) -> float:
    """The least digits that a float of this layout reads back as itself: a confidence of 0.953 stays 0.953.

    As a double it would be 0.953000009059906, digits that no sensor or model has given. Who reads the decimal into
    the narrow float again gets the same one.
    """
    for digits in range(1, 9):
        near = float(f"{number:.{digits}g}")
        try:
            if struct.unpack(layout, struct.pack(layout, near))[0] == number:
                return near
        except OverflowError:  # rounded up, above the largest
            pass
    return float(f"{number:.9g}")


def plain_number(value: object) -> int | float | None:
    """As number_of; of an enum's member, its value."""
    return number_of(value.value if isinstance(value, Enum) else value)


def as_number(value: object, name: str, advice: str) -> int | float:
    """The exact int, of any size, or finite float that `value` is.

    Raises MessageError, which calls it by `name`, or PayloadTypeError with `advice` for what is no number.
    """
    number = plain_number(value)
    if number is None:
        raise type_refusal(name, value, advice + conversion(value))
    if isinstance(number, float) and not isfinite(number):
        raise refusal(name, value, "JSON has no such number; send it as a str")
    return number


def conversion(value: object) -> str:
    """How to make what can be sent of a value that cannot; behind an advice, "" for none."""
    from datetime import date, datetime  # costs memory that only a refusal is worth

    if isinstance(value, str):
        return "; int() or float() makes one of a str"
    if isinstance(value, (bytes, bytearray)):
        return "; .decode() makes a str of bytes"
    if type(value).__name__ in ("NAType", "NaTType", "MaskedConstant"):
        return "; None or nothing where nothing was measured"
    if isinstance(value, datetime):
        return "; int(value.timestamp() * 1000) makes milliseconds of a datetime, .isoformat() a str"
    if isinstance(value, date):
        return "; .isoformat() makes a str of a date"
    if getattr(value, "shape", ()):
        return "; .tolist() makes lists of an array, .item() a number of one"
    if hasattr(type(value), "__dataclass_fields__"):
        return "; dataclasses.asdict() makes a dict of a dataclass"
    if isinstance(value, Iterable) and not isinstance(value, (list, tuple, Mapping)):
        return "; list() makes one of what can be iterated"
    return ""


def likely_unit(timestamp: int) -> str:
    """What a time that is none in milliseconds was meant to be, and what to do; "" where nothing is likely."""
    if YEAR_2000_MS <= timestamp * 1000 <= YEAR_2100_MS:
        return "; this looks like seconds, multiply them by 1000"
    if YEAR_2000_MS <= timestamp // 1000 <= YEAR_2100_MS:
        return "; this looks like microseconds, divide them by 1000"
    if YEAR_2000_MS <= timestamp // 1_000_000 <= YEAR_2100_MS:
        return "; this looks like nanoseconds, divide them by 1000000"
    if timestamp < YEAR_2000_MS:
        return "; while the clock is not set leave it out, and the message gets the time of the queue"
    return ""
