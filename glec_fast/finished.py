"""The rows that are finished and not yet deleted: by id, and as the ranges that an image names them by."""

from __future__ import annotations

from glec_fast._store import merged, ranges_of


class Finished:
    """Ids in the order in which they finished, and always at hand the inclusive ranges that they make.

    A stream finishes in order: thousands of ids are one range, and the next few make it longer. Not thread-safe.
    """

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.ranges: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return len(self.ids)

    def add(self, ids: list[int]) -> None:
        """Behind those that are there."""
        self.ids += ids
        self.ranges = merged(self.ranges + ranges_of(ids.copy()))

    def remove_first(self, count: int) -> None:
        """Remove the `count` that came first."""
        del self.ids[:count]
        self.ranges = ranges_of(self.ids.copy())
