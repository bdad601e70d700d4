"""What several commands take as an argument: each as `type=` of argparse, which says in one line what is wrong."""

from __future__ import annotations

from argparse import ArgumentTypeError

from glec_fast.errors import MessageError
from glec_fast.validation import check_filter, check_publish


def count_of(text: str) -> int:
    """A whole number above 0."""
    if not text.isascii() or not text.isdecimal() or not 0 < int(text) < 1 << 63:
        raise ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


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
