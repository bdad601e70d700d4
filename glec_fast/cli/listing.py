"""How what is in a queue file is shown: an entry a line, or all as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from datetime import datetime, timezone
from math import isfinite
from typing import Any, TypeVar

T = TypeVar("T")


# The years that a date can have.
_MOMENT_MIN_MS, _MOMENT_MAX_MS = -62_135_596_800_000, 253_402_300_799_999


def raw(column: str) -> str:
    """SQL for a column that may have anything in it: text as a BLOB, as it need not be UTF-8. See `shown`."""
    return f"iif(typeof({column}) = 'text', CAST({column} AS BLOB), {column})"


def shown(value: object) -> int | float | str | None:
    """What `raw` gave, as people and JSON have it."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, float):
        return value if isfinite(value) else str(value)
    return value if value is None or isinstance(value, int) else str(value)


def counted(count: int, one: str, many: str) -> str:
    """ "1 message", "1,204 messages"."""
    return f"{count:,} {one if count == 1 else many}"


def one_line(text: str) -> str:
    """Without what breaks a line, or gives a terminal orders."""
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


def moment(time_ms: int) -> str:
    """Unix milliseconds as people read them, in UTC; as they are where they are no time that has a date."""
    if not _MOMENT_MIN_MS <= time_ms <= _MOMENT_MAX_MS:
        return f"{time_ms} ms"
    return datetime.fromtimestamp(time_ms / 1000, tz=timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def write_entries(
    entries: Iterable[T],
    as_dict: Callable[[T], dict[str, Any]],
    line_of: Callable[[T], str],
    *,
    json_wanted: bool,
    none: str,
) -> int:
    """Show the entries, or say that there are none. Returns the exit status."""
    if json_wanted:
        sys.stdout.write(json.dumps([as_dict(entry) for entry in entries], indent=2) + "\n")
        return 0
    count = 0
    for count, entry in enumerate(entries, 1):  # noqa: B007 - looked at behind the loop
        sys.stdout.write(line_of(entry))
    if not count:
        sys.stdout.write(none + "\n")
    return 0
