"""Compact JSON of plain data."""

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import SupportsFloat, SupportsIndex, TypeAlias

# At run time a Sequence must be a list or a tuple, and a number none of the other types.
_JsonValue: TypeAlias = (
    str | SupportsFloat | SupportsIndex | bool | Enum | Mapping[str, _JsonValue] | Sequence[_JsonValue] | None
)

def encode_json(obj: _JsonValue) -> bytes:
    """Compact JSON in UTF-8 of str, int, float, bool, None, dict (or another Mapping), list and tuple.

    Numbers of other types and Enum members as in a typed message; numpy's bool is a bool. Keys are str and keep their
    order.
    Integers reach from -2**63 to 2**64 - 1; floats are finite; containers are nested at most 32 deep, so a cycle is
    refused too; the result has at most 268,435,455 bytes.

    Raises MessageError or PayloadTypeError, which give the path to the value. Thread-safe under the interpreter's lock:
    `obj` must not be changed meanwhile.
    """
