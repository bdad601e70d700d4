"""What several commands take as an argument: each as `type=` of argparse, which says in one line what is wrong."""

from __future__ import annotations

from argparse import ArgumentTypeError

from glec_fast.errors import MessageError
from glec_fast.validation import check_filter, check_publish

# With the sign. Python refuses to read numbers of thousands.
_DIGITS_MAX = 20


def count_of(text: str) -> int:
    """A whole number above 0."""
    is_number = text.isascii() and text.isdecimal() and len(text) <= _DIGITS_MAX
    if not is_number or not 0 < int(text) < 1 << 63:
        raise ArgumentTypeError(f"{text[:40]!r} is no whole number above 0")
    return int(text)


def id_of(text: str) -> int:
    """A message's, which of another program's may be below 0."""
    try:
        value = int(text) if text.isascii() and len(text) <= _DIGITS_MAX else None
    except ValueError:
        value = None
    if value is None or not -(1 << 63) <= value < 1 << 63:
        raise ArgumentTypeError(f"{text[:40]!r} is no id of a message, which is a whole number")
    return value


def seconds(text: str) -> float:
    """A length of time, above 0 and at most a year."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 366 * 86_400:
        raise ArgumentTypeError(f"{text!r} is no number of seconds above 0")
    return value


def topic(text: str) -> str:
    """What a message can be published to."""
    try:
        check_publish(text, 0)
    except MessageError as error:
        raise ArgumentTypeError(str(error)) from error
    return text


def topic_filter(text: str) -> str:
    """What can be subscribed to (MQTT 4.7.1)."""
    try:
        check_filter(text, 0)
    except MessageError as error:
        raise ArgumentTypeError(str(error)) from error
    return text
