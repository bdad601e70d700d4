"""Messages that a broker ends connections over: `Suspicion` decides which, and this has it done, for one outbox.

Those go alone, or stand aside, or into quarantine. What is known of them is in the in-flight image, and on disk before
anything is sent again.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import suppress
from heapq import nsmallest
from typing import TYPE_CHECKING

from glec_fast.errors import QueueStorageError
from glec_fast.outbox.suspicion import Note, Rank, Suspicion, Verdict
from glec_fast.runtime.log import logger

if TYPE_CHECKING:
    from glec_fast.durable.transaction import Row
    from glec_fast.outbox.stored import DurableOutbox

_PINGREQ = b"\xc0\x00"
# Where nothing else is to be sent, so many at once show what a connection carries.
_PROBES_MAX = 2048
# What goes alone, and was read, has so long for its answer.
_ANSWER_WAIT_MS = 30_000
# So many go one after another, unless something else comes.
_LAST_MAX = 32
# Reason codes of a DISCONNECT that are about something else than a message (MQTT 5, 3.14.2.1).
_ABOUT_THE_CONNECTION = frozenset(
    (0x89, 0x8B, 0x8C, 0x8D, 0x8E, 0x8F, 0x93, 0x94, 0x96, 0x98, 0x9C, 0x9D, 0x9E, 0x9F, 0xA0, 0xA1, 0xA2)
)
_FAILURE = 0x80


class Blame:
    """Belongs to whoever holds the outbox's lock. Callers of `note_start`, `begin`, `on_answered`, `on_gone`,
    `try_last` and `let_go` hold it; the other methods take it.
    """

    def __init__(self, outbox: DurableOutbox) -> None:
        self._outbox = outbox
        self._store = outbox.store
        self.suspicion = Suspicion(self._store.max_retry)
        # For quarantine, and their rows are still there.
        self.leaving: set[int] = set()
        # What is known has changed, and is to be on disk before anything is sent again.
        self._has_learned = False
        # What the socket had taken before this connection.
        self._begun_bytes = 0
        # The peer ended the last connection, and not over a refusal that it has told.
        self.is_by_peer = False
        # The first of those rows that go last, of those that were read since the queue was rewound.
        self.last: list[Rank] = []
        # What goes alone, and where it ends in the stream; when it has had its time, None until the broker has read it.
        self._waited_for: list[int] = []
        self._waited_for_to = 0
        self._ignored_at_ms: int | None = None

    def turn_to(self, notes: list[Note]) -> None:
        """Another broker is next. notes: of an earlier process, with the same broker."""
        suspicion = Suspicion(self._store.max_retry)
        numbers = [number for number, _value, _kind in notes]
        suspicion.recall(notes, self._store.supply.missing(numbers) if numbers else [])
        with self._outbox.lock:
            self.suspicion = suspicion
            self._note()

    def _note(self) -> None:
        """It has changed; the caller holds the lock."""
        self._outbox.has_suspects = not self.suspicion.is_idle
        self._outbox.session.notes = self.suspicion.notes()

    def save(self) -> None:
        """Before a connection. Where the disk fails, what is known is known to this process alone."""
        if self._has_learned:
            self._has_learned = False
            with suppress(QueueStorageError):
                self._store.run(lambda _table: None)

    # ---- a connection

    def note_start(self) -> None:
        """A connection was accepted, and nothing was sent on it yet."""
        self._begun_bytes = self._outbox.session.sent_to

    def begin(self) -> bool:
        """Sending begins; True where there is something to go alone."""
        self.suspicion.begin()
        self._waited_for = []
        return bool(self.suspicion.suspects)

    def on_answered(self, ids: list[int]) -> None:
        """The broker has answered these."""
        if self.suspicion.on_answered(ids):
            # The queue is read anew for what is not doubtful any more.
            self.last = []
        self._note()

    def on_gone(self, ids: list[int]) -> None:
        """They go unsent, or left for quarantine."""
        self.let_go(ids)
        self.last = [rank for rank in self.last if rank[-1] not in ids]
        self.suspicion.on_gone(ids)
        self._note()

    def try_last(self) -> list[int]:
        """The next of what goes last, if there is any: it goes now, and nothing beside it."""
        first, self.last = self.last[:1], self.last[1:]
        self.suspicion.suspects = {rank[-1] for rank in first}
        return list(self.suspicion.suspects)

    def let_go(self, ids: Iterable[int]) -> None:
        """They may be sent again."""
        self.leaving.difference_update(ids)

    def end(self) -> None:
        """A connection ends, and its exchanges are still those that were in flight."""
        outbox, session = self._outbox, self._outbox.session
        reason = outbox.left_reason
        is_about_us = reason not in _ABOUT_THE_CONNECTION
        self.is_by_peer = False
        with outbox.lock:
            # Not a second time; and not where we leave, which has the server end it.
            if not outbox.is_open or (session.has_last and not outbox.is_violated):
                return
            is_peer_s = outbox.is_violated or ((outbox.is_left or outbox.is_broken_off) and is_about_us)
            self.is_by_peer = is_peer_s and not outbox.has_refusals
            exposed = [message_id for message_id in session.exposed_ids() if message_id not in outbox._said]
            tries = self.suspicion.end(
                exposed,
                session.sent_to - session.publish_start,
                session.sent_to - self._begun_bytes,
                by_peer=self.is_by_peer,
                is_silent=outbox.is_silent,
                has_answers=outbox.has_progress,
                reason=reason if reason >= _FAILURE else 0,
            )
            self._note()
            self._has_learned = bool(session.notes)
            is_aside = bool(self.suspicion.aside.intersection(exposed))
        if self._has_learned:
            self._store.request_commit()
        if is_aside:
            text = f"message {exposed[0]} stands aside, so that others go: {tries} connections ended over it"
            self._store.log.note(logging.WARNING, "messages standing aside", f"{tries} connections ended", text=text)
        elif tries:
            logger.debug("the connection ended over message %d, try %d", exposed[0], tries)

    def is_ignored(self) -> bool:
        """Now and then: True, once, where the broker reads on behind what goes alone, and leaves it without an answer.

        PINGREQ behind it shows that, however large it is and slow the link.
        """
        outbox, session = self._outbox, self._outbox.session
        with outbox.lock:
            ids = session.in_flight_ids()[:1] if self.suspicion.suspects else []
            if ids != self._waited_for and not session.unsent_bytes:
                self._waited_for, self._waited_for_to, self._ignored_at_ms = ids, session.sent_to, None
            if not ids or ids != self._waited_for:
                return False
            now_ms = self._store.since_boot_ms()
            if session.answered_to < self._waited_for_to:
                if not session.pinged_to:
                    outbox.put_packet(_PINGREQ)
                return False
            if self._ignored_at_ms is None:
                self._ignored_at_ms = now_ms + _ANSWER_WAIT_MS
            if now_ms < self._ignored_at_ms:
                return False
            (message_id,) = ids
            self.suspicion.on_ignored(None if message_id in outbox._said else message_id)
            self._note()
        text = f"message {message_id} is not waited for any longer, as the broker has read it and does not answer"
        self._store.log.note(logging.WARNING, "messages passed over", "no answer", text=text)
        return True

    # ---- what may go

    def beside(self, rows: list[Row]) -> list[Row]:
        """Those that may go on this connection, see `Suspicion`."""
        outbox = self._outbox
        with outbox.lock:
            passed_over = self.suspicion.aside | self.leaving
            parked = frozenset(outbox.session.parked_ids())
            # Their PUBLISH was answered.
            certain = passed_over.union(outbox.session.released_ids())
            ranks = [rank for row in rows if row[0] not in certain and (rank := self.suspicion.rank(row))]
            self.last = nsmallest(_LAST_MAX, self.last + ranks)
        passed_over |= {rank[-1] for rank in ranks}
        if outbox.is_narrow:
            # All is lowered to it, but for what has an exchange.
            is_qos_0_all = outbox.server.limits is not None and outbox.server.limits.qos_max == 0
            of_qos_0 = {row[0] for row in rows if row[3] == 0 or (is_qos_0_all and row[0] not in parked)}
            passed_over |= of_qos_0
            if of_qos_0:
                # These go before it, once the queue is read anew.
                self.last = []
        return [row for row in rows if row[0] not in passed_over]

    def tell_passed_over(self) -> None:
        """Sending has begun. Without a lock."""
        over = self.suspicion.passed_over
        if over is not None:
            text = f"message {over} is passed over until others are answered, as links fall silent behind it"
            self._store.log.note(logging.WARNING, "messages passed over", "links that fall silent", text=text)

    # ---- what stands aside

    def judge(self, carried_bytes: int = 0) -> list[Verdict]:
        """So much was carried by this connection, which lasts: what stands aside may be for quarantine by now.

        It is not sent any more; for `quarantine`, which logs, and so is called without a lock.
        """
        with self._outbox.lock:
            verdicts = self.suspicion.judge(carried_bytes)
            self.leaving.update(verdict.message_id for verdict in verdicts)
            if verdicts:
                self._note()
        return verdicts

    def quarantine(self, verdicts: list[Verdict]) -> None:
        """They go there. Without a lock."""
        for verdict in verdicts:
            why = _why(verdict)
            text = f"message {verdict.message_id} goes into quarantine: {why}"
            self._store.log.note(logging.ERROR, "messages quarantined", why, text=text)
            self._store.supply.quarantine([verdict.message_id], why)

    def probe(self) -> None:
        """Find out what this connection carries without what stands aside, if need be with nothing but PINGREQs."""
        outbox = self._outbox
        if outbox.probes or not self.suspicion.aside:
            return
        with outbox.lock:
            session = outbox.session
            wanted_bytes = self.suspicion.control_bytes - (session.answered_to - self._begun_bytes)
            is_idle = session.in_flight == 0 and session.unsent_bytes == 0
        count = 1
        if is_idle and not outbox.has_waiting_rows():
            count = max(1, min(-(-wanted_bytes // len(_PINGREQ)), _PROBES_MAX))
        outbox.probes = count
        for _ in range(count):
            outbox.put_packet(_PINGREQ)
        outbox.wake()

    def on_pong(self) -> None:
        """PINGRESP came."""
        outbox = self._outbox
        if not outbox.probes:
            return
        outbox.probes -= 1
        if not outbox.probes and outbox.is_open:
            with outbox.lock:
                carried_bytes = outbox.session.answered_to - self._begun_bytes
            self.quarantine(self.judge(carried_bytes))
            self.probe()


def _why(verdict: Verdict) -> str:
    named = f" (reason code 0x{verdict.reason:02X})" if verdict.reason else ""
    return f"{verdict.tries} connections ended over it{named}, each while nothing else was on its way"
