"""How what is in a queue file is shown: an entry a line, or all as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from datetime import datetime, timezone
from typing import Any, TypeVar

T = TypeVar("T")


def moment(time_ms: int) -> str:
    """Unix milliseconds as people read them, in UTC."""
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
