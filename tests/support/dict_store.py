"""A store whose disk is a plain dict, and whose transactions happen when a test says so. For searches of many states.

It offers what `DurableOutbox` uses of `glec_fast.durable.store.Store`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from glec_fast.durable.outcomes import Dropped, DropReason

if TYPE_CHECKING:
    from collections.abc import Iterable

    from glec_fast.durable.in_doubt import Decision
    from glec_fast.durable.store import Outbox, Row


class Collected(NamedTuple):
    """What one transaction writes: ids to delete, and the in-flight image that goes with it."""

    done: list[int]
    version: int
    image: bytes
    in_doubt: list[tuple[int, Decision]]
    identity: tuple[str, str] = ("client", "broker")
    # Go unsent: message id, why.
    dropped: tuple[tuple[int, DropReason], ...] = ()


class QuietLog:
    """For what the outbox notes."""

    def note(self, *_: object, **__: object) -> None:
        """It is lost."""


@dataclass
class DictDisk:
    """What a process leaves behind: rows by message id, the in-flight image, and what went unsent and why."""

    rows: dict[int, Row] = field(default_factory=dict)
    image: bytes = b""
    in_doubt: tuple[tuple[int, Decision], ...] = ()
    identity: tuple[str, str] = ("client", "broker")
    kept: dict[tuple[str, str], bytes] = field(default_factory=dict)
    dropped: dict[int, DropReason] = field(default_factory=dict)

    def copied(self) -> DictDisk:
        kept, dropped = dict(self.kept), dict(self.dropped)
        return DictDisk(dict(self.rows), self.image, self.in_doubt, self.identity, kept, dropped)

    def write(self, collected: Collected) -> None:
        """One transaction: all of it or nothing."""
        self.in_doubt += tuple(collected.in_doubt)
        for message_id in collected.done:
            self.rows.pop(message_id, None)
        for message_id, reason in collected.dropped:
            if self.rows.pop(message_id, None) is not None:
                self.dropped[message_id] = reason
        self.image, self.identity = collected.image, collected.identity


class DictStore:
    """One process's view of a `DictDisk`. `wants_commit`: somebody asked for a transaction; `pending`: one goes on."""

    def __init__(self, disk: DictDisk, *, alerts_first: bool = False) -> None:
        self.disk = disk
        self.has_alert_lane = alerts_first
        self.wants_commit = False
        self.is_written_to = False
        self.salvage = None
        self.pending: Collected | None = None
        self.log = QuietLog()
        # The parts that a store has for it.
        self.supply = self.clock = self
        # As in `glec_fast.durable.dropping`.
        self.claimed: dict[int, DropReason] = {}
        self.marked: dict[int, DropReason] = {}
        self._outbox: Outbox | None = None
        # Of the rows that are no alerts, where those have a lane of their own, and of alerts.
        self._positions = [0, 0]
        self._skipped: frozenset[int] = frozenset()
        self._next_identity = disk.identity

    # ---- for tests

    def begin_commit(self) -> None:
        """The transaction has all it will write; nothing of it is on disk."""
        assert self.pending is None
        assert self._outbox is not None
        self.wants_commit = False
        self._settle_claims()
        finished = self._outbox.take_finished()
        image = self._outbox.take_image([])
        self.pending = Collected(finished, *image, self._next_identity, tuple(self.marked.items()))

    def _settle_claims(self) -> None:
        assert self._outbox is not None
        if not self.claimed:
            return
        staying = self._outbox.abandon(list(self.claimed))
        if staying is None:
            self.wants_commit = True
            return
        self.marked.update({each: reason for each, reason in self.claimed.items() if each not in staying})
        self.claimed.clear()

    def end_commit(self) -> None:
        """It is on disk, and the outbox is told."""
        pending, self.pending = self.pending, None
        assert pending is not None
        assert self._outbox is not None
        self.disk.write(pending)
        for message_id, _ in pending.dropped:
            self.marked.pop(message_id, None)
        if pending.dropped:
            self._outbox.on_dropped([Dropped(message_id, "t", 2, reason) for message_id, reason in pending.dropped])
        self._outbox.on_committed(pending.version, 0)

    def expire(self, message_id: int) -> None:
        """It has become too old."""
        self.claimed[message_id] = DropReason.EXPIRED
        self.wants_commit = True

    def fingerprint(self) -> object:
        going = tuple(self.claimed.items()), tuple(self.marked.items())
        return tuple(self._positions), self._skipped, self.wants_commit, self._next_identity, going

    # ---- for the outbox

    offset_ms = 0

    def since_boot_ms(self) -> int:
        return 0

    def moment(self) -> int:
        return 1

    def seconds_since(self, _moment: int) -> None:
        """Nobody knows."""

    def let_go_of_expired(self) -> None:
        """Whenever a test says so."""

    @property
    def size(self) -> int:
        return len(self.disk.rows)

    @property
    def has_backlog(self) -> bool:
        return bool(self._ahead(0)) or self.has_alerts

    is_handing_out = False
    max_retry = 1

    def quarantine(self, ids: list[int], _why: str) -> None:
        self.claimed.update(dict.fromkeys(ids, DropReason.QUARANTINED))
        self.wants_commit = True

    @property
    def identity(self) -> tuple[str, str]:
        return self.disk.identity

    @property
    def next_identity(self) -> tuple[str, str]:
        return self._next_identity

    def speak_next_for(self, client_id: str, broker: str) -> None:
        self._next_identity = client_id, broker

    def speak_for(self, client_id: str, broker: str) -> None:
        """As `run` does, it waits for the disk."""
        self.speak_next_for(client_id, broker)
        self._commit()

    def keep_session(self, client_id: str, broker: str, exchanges: bytes | None) -> None:
        self._commit()
        self.disk.kept.pop((client_id, broker), None)
        if exchanges is not None:
            self.disk.kept[client_id, broker] = exchanges

    def _commit(self) -> None:
        if self._outbox is not None:
            if self.pending is not None:
                self.end_commit()
            self.begin_commit()
            self.end_commit()

    def refuse_if_closed(self) -> None:
        """It never is."""

    def on_rows_taken(self) -> None:
        """Nobody waits for them."""

    def kept_sessions(self) -> dict[tuple[str, str], bytes]:
        return dict(self.disk.kept)

    def load_session(self) -> bytes:
        return self.disk.image

    def attach(self, outbox: Outbox, _lock: object = None) -> None:
        self._outbox = outbox

    def commit_image(self) -> int | None:
        """As a disk that is not quick: the transaction happens when the test says so."""
        self.wants_commit = True
        return None

    def request_commit(self) -> None:
        self.wants_commit = True

    def on_finished(self, waiting: int, *, named: int, drained: bool) -> int:
        self.wants_commit = True
        return 0

    def rewind(self, protected: Iterable[int], finished: Iterable[int], withheld: Iterable[int] = ()) -> None:
        pending = () if self.pending is None else self.pending.done
        self._skipped = frozenset(pending).union(finished, withheld)
        self._positions = [0, 0]

    def read(self, limit: int, *, alerts: bool = False) -> tuple[list[Row], bool]:
        lane = int(alerts)
        found = self._ahead(lane)[:limit]
        if found:
            self._positions[lane] = found[-1][0]
        return [row for row in found if row[0] not in self._skipped and row[0] not in self.marked], len(found) < limit

    @property
    def has_alerts(self) -> bool:
        return self.has_alert_lane and bool(self._ahead(1))

    def _ahead(self, lane: int) -> list[Row]:
        rows = [row for message_id, row in sorted(self.disk.rows.items()) if message_id > self._positions[lane]]
        return [row for row in rows if (row[3] == 2) == lane] if self.has_alert_lane else rows

    def read_again(self, ids: list[int]) -> tuple[list[Row], list[int]]:
        rows = [self.disk.rows[each] for each in ids if each in self.disk.rows]
        return [row for row in rows if row[0] not in self._skipped and row[0] not in self.marked], []

    def missing(self, ids: list[int]) -> list[int]:
        return [message_id for message_id in ids if message_id not in self.disk.rows]

    def wait_durable(self, message_id: int, timeout_s: float | None = None) -> bool:
        return message_id in self.disk.rows
