"""What a program may give as a payload, as it is stored and sent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum

from glec_fast.errors import MessageError, PayloadTypeError
from glec_fast.fleet._json import encode_json
from glec_fast.fleet.messages import KINDS, TypedMessage
from glec_fast.fleet.values import as_number
from glec_fast.validation import check_size


def as_payload(payload: object, encode: Callable[[TypedMessage], bytes] | None = None) -> str | bytes:
    """The payload as it is stored and sent: text and bytes as they are, a mapping as JSON, None as nothing.

    A number, also of numpy or decimal, becomes its digits; an Enum's member its name; a typed message what `encode`
    makes of it, and is refused without.
    Raises PayloadTypeError, MessageError.
    """
    data: str | bytes
    if type(payload) is bytes:
        check_size(payload)
        return payload
    if isinstance(payload, Enum) and isinstance(payload.name, str):
        payload = payload.name
    if isinstance(payload, str):
        data = payload if type(payload) is str else str.__str__(payload)
    elif isinstance(payload, (bytes, bytearray, memoryview)):
        data = bytes(payload)
    elif isinstance(payload, Mapping):
        data = encode_json(payload if isinstance(payload, dict) else dict(payload))
    elif payload is None:
        data = b""
    elif isinstance(payload, KINDS):
        if encode is None:
            raise PayloadTypeError(
                f"payload is {type(payload).__name__}; its encode(device_id, timestamp_ms) makes bytes"
            )
        data = encode(payload)
    else:
        data = _number_text(payload)
    check_size(data)
    return data


def _number_text(payload: object) -> str:
    number = as_number(
        payload, "the payload", "give a str, bytes, a dict, an int or float, or to a manager one of the typed messages"
    )
    try:
        return repr(number)
    except ValueError as error:
        says = (
            f"the payload, of type {type(payload).__name__}, is a number that JSON cannot carry ({error}): give a str"
        )
        raise MessageError(says) from error


def check_kind(message: object, kind: type, call: str) -> None:
    """Refuse what is not the typed message that `call` sends. Raises PayloadTypeError."""
    if not isinstance(message, kind):
        raise PayloadTypeError(
            f"{call} was given {type(message).__name__}; build a glec_fast.{kind.__name__}, "
            "or give publish() a topic and what you have"
        )
