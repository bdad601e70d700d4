"""What one transaction of the store is about, and who hears of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from glec_fast.durable.clock import Anchor, Step
from glec_fast.durable.in_doubt import Decision
from glec_fast.durable.jobs import Job
from glec_fast.durable.outcomes import Dropped

# id, topic, payload, QoS, timestamp, time of expiry; behind them, if it has any, what `glec_fast.durable.extras` says.
Row: TypeAlias = "tuple[Any, ...]"
# (timestamp, id), the order of the queue.
Key: TypeAlias = tuple[float, int]
ALERT_QOS = 2
# A row without its payload: id, topic, QoS, timestamp.
Head: TypeAlias = tuple[int, str, int, int]


class Outbox(Protocol):
    """The side that sends; see `Store.attach`. Called by the writer thread; what it raises is logged.

    The first three are called with the store's lock held.
    """

    def abandon(self, ids: list[int]) -> list[int] | None:
        """These rows are to go unsent with the transaction that the next image is for: end their exchanges.

        Returns those that stay, as the server has them or may have; None where that cannot be said now.
        """

    def take_finished(self) -> list[int]:
        """The ids of what was finished since the last call; their rows are the store's to delete."""

    def take_image(self, kept: list[tuple[int, int]]) -> tuple[int, bytes, list[tuple[int, Decision]]]:
        """(version, image, in doubt) of what is in flight; the image names as finished `kept` and what is not taken.

        kept: inclusive ranges of ids.
        in doubt: (message id, what was decided) since the last call. The image, which carries it out, must not be on
        disk without them; their rows are still there.
        """

    def on_committed(self, version: int, new_rows: int) -> None:
        """The transaction of `version` is on disk; `new_rows` can be read that could not be before."""

    def on_dropped(self, dropped: list[Dropped]) -> None:
        """These rows were deleted unsent."""

    def on_salvaged(self) -> None:
        """The file was damaged in use; what of it could be read is what there is."""


@dataclass(eq=False)
class Move:
    """A transaction that mends the times of rows. `anchor` and `last_timestamp_ms`: as on disk once it is committed."""

    step: Step
    anchor: Anchor | None = None
    # Of the rows that were moved.
    first_id: int = 0
    last_timestamp_ms: int = 0
    is_committed: bool = False


@dataclass(eq=False)
class Commit:
    """What one transaction of the writer is about."""

    rows: list[Row] = field(default_factory=list)
    # On disk before it, and deleted by it.
    row_count: int = 0
    deleted: int = 0
    # False after a failure, so that deletes, which make room, do not wait for room.
    with_rows: bool = True
    # The last id that was given, where this is the last transaction.
    last_id: int | None = None
    # Ranges of finished rows; the others are only named in the image.
    deleting: list[tuple[int, int]] = field(default_factory=list)
    # Of finished rows that it leaves on disk, and an image there names.
    named: list[tuple[int, int]] = field(default_factory=list)
    # It leaves no others there.
    is_empty: bool = False
    in_doubt: list[tuple[int, Decision]] = field(default_factory=list)
    # (client id, broker) whose image it is.
    identity: tuple[str, str] = ("", "")
    # Where the queue's time now comes from, if that is not yet on disk.
    anchor: Anchor | None = None
    # What is gathered from now on: topic, payload, properties; nothing of it; or None where that is as it is on disk.
    gathered: tuple[str, bytes, bytes] | tuple[()] | None = None
    jobs: list[Job] = field(default_factory=list)
    read_again: bool = False
    # The first after the file was salvaged in use.
    is_salvaged: bool = False
    outbox: Outbox | None = None
    version: int = 0
    image: bytes | None = None
    dropped: list[Dropped] = field(default_factory=list)
    # Its COMMIT has returned; and what follows from that is known to the store.
    is_committed: bool = False
    is_noted: bool = False
    # Its rows are counted among those on disk.
    is_timed: bool = False
