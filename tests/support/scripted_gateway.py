"""The product's store, outbox and session, with the network side worked by hand, a step at a time."""

from __future__ import annotations

from threading import Event
from typing import TYPE_CHECKING, Any, NamedTuple

from glec_fast.durable import quarantine
from glec_fast.durable.extras import RETAINED
from glec_fast.durable.inflight_log import from_row, latest
from glec_fast.durable.jobs import Job
from glec_fast.durable.state_rows import load_session
from glec_fast.durable.store import Store
from glec_fast.outbox.stored import DurableOutbox
from support.answers import Answers
from support.clock import Clock

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from glec_fast.durable._table import QueueTable
    from glec_fast.durable.outcomes import Dropped
    from glec_fast.outbox.handle import PublishHandle
    from glec_fast.outbox.owners import OnOwnerAway

CLIENT_ID, BROKER_NAME = "DTG-TEST", "broker:1883"
ALL_BYTES = 1 << 30


class OnDisk(NamedTuple):
    """Message id -> payload of every row, the ids of those with extras and of those in quarantine, and the image."""

    rows: dict[int, str]
    retained: set[int]
    quarantined: set[int]
    image: bytes


class ScriptedGateway:
    """One process's life with one queue file. `dropped`: what the drop callback was told."""

    def __init__(
        self,
        path: Path,
        *,
        window: int = 10,
        max_unreleased: int = 0,
        protocol_version: int = 4,
        wait_for_disk: bool = True,
        resend_in_doubt: bool = False,
        resend_unproven: bool = False,
        client_id: str = CLIENT_ID,
        broker_name: str = BROKER_NAME,
        on_owner_away: OnOwnerAway = "move",
        clock: Clock | None = None,
        **settings: Any,
    ) -> None:
        self.dropped: list[Dropped] = []
        self.clock = clock or Clock()
        self.store = Store(path, clocks=self.clock.clocks, **settings)
        self._has_turned = Event()
        self.store.watch(self._has_turned.set)
        try:
            self.outbox = DurableOutbox(
                self.store,
                window,
                lambda: None,
                self.dropped.extend,
                wait_for_disk=wait_for_disk,
                resend_in_doubt=resend_in_doubt,
                max_unreleased=max_unreleased,
                on_owner_away=on_owner_away,
                resend_unproven=resend_unproven,
            )
            self.outbox.identify(client_id, broker_name)
        except BaseException:
            self.store.close()
            raise
        self.session = self.outbox.session
        self.session.protocol_version = protocol_version
        self._answers = Answers(self.session)

    def publish(self, payload: str, qos: int, *, retain: bool = False) -> PublishHandle:
        return self.outbox.publish("t", payload, qos, RETAINED if retain else None)

    def connect(self, *, session_present: bool = True) -> None:
        self._answers = Answers(self.session)
        # For CONNECT: control packets go behind it.
        self.outbox.put_packet(b"", first=True)
        self.outbox.resume(session_present, 65_535)
        self._settle()

    def send(self, limit_bytes: int = ALL_BYTES, on_leaving: Callable[[bytes], None] | None = None) -> bytes:
        """What the socket takes of what may leave, at most `limit_bytes`; `on_leaving` is told before it is gone."""
        with self.outbox.lock:
            chunk = self.session.peek(limit_bytes)
            if on_leaving is not None:
                on_leaving(chunk)
            self.session.on_sent(len(chunk))
        self._settle()
        self.outbox.pull()
        return chunk

    def receive(self, data: bytes) -> None:
        """Bytes from the broker."""
        with self.outbox.lock:
            pongs = self._answers.receive(data)
            self.outbox.note_answers()
        self._settle()
        for _ in range(pongs):
            self.outbox.on_pingresp()
        self.outbox.pull()

    def _settle(self) -> None:
        with self.outbox.lock:
            finished = self.outbox.settle()
        self.outbox.after_settle()
        for handle in finished:
            handle._set_as_published()

    def cut(self) -> None:
        """The connection is gone."""
        self.outbox.park()

    def commit(self) -> None:
        """All that waits is on disk, and what that lets go on goes on."""
        # A transaction tells whoever waits for its statements ahead of the outbox; it has told both at its turn's end.
        self.store.run(lambda _table: self._has_turned.clear())
        self._end_turn()
        # Where the disk was slow, the pull has left the image to the store's thread.
        while self.session.unsent_bytes != self.session.sendable_bytes:
            self.store.run(lambda _table: None)

    def turn(self) -> None:
        """As `commit`, where nobody waits for a statement: what is finished is taken, and its rows stay for a while."""
        job = Job(lambda _table: self._has_turned.clear(), lasting=True)
        self.store._jobs.add(job)
        job.finished.wait()
        self._end_turn()

    def _end_turn(self) -> None:
        self._has_turned.wait()
        if self.outbox.is_open:
            self.outbox.pull()

    def on_disk(self) -> OnDisk:
        """In one transaction."""

        def read(table: QueueTable) -> tuple[Any, ...]:
            extras = list(table.connection.execute("SELECT * FROM glec_extras"))
            return table.read_all(), extras, quarantine.read_entries(table), load_session(table)

        rows, extras, entries, known = self.store.run(read)
        return OnDisk(
            {row[0]: row[2] for row in rows},
            {row[0] for row in extras},
            {each.message_id for each in entries},
            latest(self.store._file.path, from_row(known[2])).image if known is not None else b"",
        )

    def rows(self) -> dict[int, str]:
        """Message id -> payload of every row on disk."""
        return self.on_disk().rows

    def image(self) -> bytes:
        """The in-flight image on disk."""
        return self.on_disk().image

    def close(self) -> None:
        self.outbox.park()
        self.store.close()

    def __enter__(self) -> ScriptedGateway:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
