"""The product's store, outbox and session, with the network side worked by hand, a step at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from glec_fast.durable.extras import RETAINED
from glec_fast.durable.inflight_log import from_row, latest
from glec_fast.durable.state_rows import load_session
from glec_fast.durable.store import Store
from glec_fast.outbox.stored import DurableOutbox
from support.answers import Answers
from support.clock import Clock

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from glec_fast.durable.outcomes import Dropped
    from glec_fast.outbox.handle import PublishHandle
    from glec_fast.outbox.owners import OnOwnerAway

CLIENT_ID, BROKER_NAME = "DTG-TEST", "broker:1883"
ALL_BYTES = 1 << 30


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
        # A transaction tells whoever waits for its statements ahead of the outbox: by the next one it has told both.
        for _ in range(2):
            self.store.run(lambda _table: None)
        if self.outbox.is_open:
            self.outbox.pull()
        # Where the disk was slow, the pull has left the image to the store's thread.
        while self.session.unsent_bytes != self.session.sendable_bytes:
            self.store.run(lambda _table: None)

    def rows(self) -> dict[int, str]:
        """Message id -> payload of every row on disk."""
        return {row[0]: row[2] for row in self.store.run(lambda table: table.read_all())}

    def retained(self) -> set[int]:
        """Ids of the messages that have extras on disk."""
        connection = self.store._writer.connection
        return {row[0] for row in self.store.run(lambda _: list(connection.execute("SELECT * FROM glec_extras")))}

    def image(self) -> bytes:
        """The in-flight image on disk."""
        known = self.store.run(load_session)
        return latest(self.store._file.path, from_row(known[2])).image if known is not None else b""

    def close(self) -> None:
        self.outbox.park()
        self.store.close()

    def __enter__(self) -> ScriptedGateway:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
