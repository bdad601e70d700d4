"""Connections on which not all goes at once: narrow ones, and what goes last, alone.

While an outbox `is_narrow` its window is one exchange, and no QoS 0 goes. While it `makes_way` nothing more goes until
all that is on its way is answered: something of what goes last is due. Why there may be a reason for either is said in
the heads of `suspicion.py` and `unanswered.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from glec_fast.outbox.stored import DurableOutbox

_PINGREQ = b"\xc0\x00"
# What goes last waits for so long while there is more to be sent; then all else makes way for it for so long at most.
# A broker that has not answered by then may never answer, and it is tried again when that has cost little of the time.
_LAST_WAITS_MS = 30_000
_MAKES_WAY_MS = 30_000
_LAST_WAITS_AGAIN_MS = 10 * _MAKES_WAY_MS


class Narrow:
    """Of one outbox. For whoever pulls, with no lock held but that of pulling. Times are `Store.since_boot_ms`."""

    def __init__(self, outbox: DurableOutbox) -> None:
        self._outbox = outbox
        self._store = outbox.store
        # When what goes last is due on this connection, though there is more to be sent.
        self.last_at_ms = 0
        # Until when all else makes way for it.
        self.way_ends_ms = 0

    def begin(self, *, has_suspects: bool) -> None:
        """Sending begins on a connection."""
        outbox = self._outbox
        outbox.is_narrow = outbox.unanswered.is_careful or has_suspects
        outbox.makes_way = False
        waits_ms = 0 if outbox.blame.suspicion.is_overdue else _LAST_WAITS_MS
        self.last_at_ms = self._store.since_boot_ms() + waits_ms

    def may_widen(self) -> bool:
        """Whether a narrow connection has no reason to be so any more."""
        outbox = self._outbox
        if outbox.makes_way:
            return False
        if outbox.blame.suspicion.suspects:
            # Those that have no row any more answer to nobody.
            return self._is_drained()
        return outbox.has_progress or not outbox.unanswered.is_careful

    def widen(self) -> None:
        """Something was acknowledged: no PUBREL stands in the way, nor any message."""
        outbox, session, next_rows = self._outbox, self._outbox.session, self._outbox.next_rows
        with outbox.lock:
            outbox.is_narrow = False
            outbox.blame.suspicion.suspects.clear()
            outbox.unanswered.on_finished()
            session.resume(True, outbox.server.receive_maximum)
            if not next_rows.has_held_back:
                return
            next_rows.has_held_back = False
            outbox._forget_rows()
        next_rows.rewind(goes_on=True)

    def _is_drained(self) -> bool:
        """Nothing is on its way on this connection, nor can go next."""
        outbox, session = self._outbox, self._outbox.session
        are_all_read = not (outbox._more_to_read or self._store.has_alerts) and outbox._have_all_gone()
        return are_all_read and not (session.in_flight or session.unsent_bytes)

    def put_off_last(self) -> None:
        """What goes last may never be answered."""
        self.last_at_ms = self._store.since_boot_ms() + _LAST_WAITS_AGAIN_MS

    def try_last(self) -> bool:
        """Once it is due: have the next of what goes last at hand, for it to go alone. True where it is."""
        outbox, session, blame = self._outbox, self._outbox.session, self._outbox.blame
        if not (blame.last and outbox.is_open) or blame.suspicion.suspects:
            # It may have gone while all else made way for it.
            outbox.makes_way = False
            return False
        now_ms = self._store.since_boot_ms()
        if not outbox.makes_way:
            if not self._is_drained() and (outbox.is_narrow or now_ms < self.last_at_ms):
                return False
            outbox.makes_way = outbox.is_narrow = True
            self.way_ends_ms = now_ms + _MAKES_WAY_MS
        is_answered = not (session.in_flight or session.unsent_bytes)
        if not is_answered or session.proven_count < session.unacknowledged_count:
            # The broker may end the connection over QoS 0 that it is still to read.
            if is_answered and not session.pinged_to:
                outbox.put_packet(_PINGREQ)
            if now_ms >= self.way_ends_ms:
                outbox.makes_way = False
                self.put_off_last()
            return False
        with outbox.lock:
            outbox.makes_way = False
            if not outbox._have_all_gone():
                outbox._forget_rows()
            ids = blame.try_last()
            session.resume(True, 1)
        outbox.next_rows.read_ids(ids)
        return bool(ids)
