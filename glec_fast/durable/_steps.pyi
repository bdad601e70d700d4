"""What callers need of `cext/durable/_steps.pyx`: steps of a transaction that no exception can cut into."""

from collections.abc import Callable
from typing import TypeVar

from glec_fast.durable.in_doubt import Decision
from glec_fast.durable.transaction import Outbox

_T = TypeVar("_T")

def ranges_of(ids: list[int]) -> list[tuple[int, int]]:
    """Inclusive (first, last) ranges that cover just `ids`; sorts the list in place."""

def merged(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The fewest (first, last) ranges that cover what `ranges` cover; sorts the list in place."""

def keep_calling(function: Callable[[], object], goes_on: Callable[[BaseException], bool]) -> None:
    """Call `function` until it returns, whatever is raised, and from wherever.

    `goes_on` is told of each exception; where it says no, that is raised.
    """

def raised_by(function: Callable[..., object], *arguments: object) -> BaseException | None:
    """What `function` raises, of whatever kind; None where it returns."""

def hand_over(function: Callable[[list[_T]], object], items: list[_T]) -> BaseException | None:
    """What `function` raises for a copy of `items`, None where it returns; which is empty then."""

def take_image(outbox: Outbox, kept: list[tuple[int, int]], in_doubt: list[tuple[int, Decision]]) -> tuple[int, bytes]:
    """(version, image) of an outbox, and what is in doubt behind the others in `in_doubt`."""

def remove_taken(waiting: list[_T], taken: list[_T]) -> None:
    """Remove those that came first, as many as `taken` has, and empty that: a second call removes nothing."""

class Finished:
    """The rows that are finished and not yet deleted, as the ranges that an image names them by."""

    def __init__(self, ranges: list[tuple[int, int]] | None = None) -> None:
        """ranges: the fewest, in order."""
    def __len__(self) -> int: ...
    def __contains__(self, message_id: int) -> bool: ...
    @property
    def ids(self) -> list[int]:
        """In order."""
    @property
    def ranges(self) -> list[tuple[int, int]]:
        """The fewest inclusive ranges that they make, in order."""
    @property
    def longest(self) -> tuple[int, int]:
        """The one with the most of them; of none its end is before its beginning."""
    def add(self, ids: list[int]) -> None:
        """Those of them that are not there yet."""
    def take_from(self, outbox: Outbox) -> None:
        """What an outbox has finished."""
    def first_ranges(self, limit: int | None) -> list[tuple[int, int]]:
        """The inclusive ranges of the lowest, `limit` at most."""
    def without(self, ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """The ranges of those that are not in `ranges`, which are in order."""
    def remove(self, ranges: list[tuple[int, int]]) -> None:
        """Those of `ranges`, which are in order, are gone; a second call removes nothing."""

def count_of(ranges: list[tuple[int, int]]) -> int:
    """How many ids inclusive ranges have."""

def keep_for_ever(thing: object) -> None:
    """Have nobody end `thing`, nor what it refers to: neither the garbage collector nor the interpreter's end."""
