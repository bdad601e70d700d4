"""The rows that go next: read from the store for the window, as far as this connection and this server take them."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from glec_fast.durable.transaction import ALERT_QOS
from glec_fast.outbox.weaknesses import Weakness

if TYPE_CHECKING:
    from glec_fast.durable.transaction import Row
    from glec_fast.outbox.stored import DurableOutbox

# The broker begins on these while the next are read.
_PULL_ROWS_MAX = 250
# What a broker refuses for want of rights or quota it may take a while later; each refusal counts as an attempt.
_REFUSED_PAUSE_S = 30.0


class NextRows:
    """Of one outbox. For whoever pulls, with no lock held but that of pulling."""

    def __init__(self, outbox: DurableOutbox) -> None:
        self._outbox = outbox
        self._store = outbox.store
        # Of each lane, the highest id that was read on this connection.
        self._read_through = [0, 0]
        # Rows were passed over on this connection, until it is not narrow any more.
        self.has_held_back = False
        # Messages that went with a lower QoS, as far as they were not noted.
        self._lowered_count = 0

    def rewind(self, *, goes_on: bool = False) -> None:
        """Read from the first row again: not what is finished, nor waits for a broker that is away.

        goes_on: on a connection on which something is on its way, which is not read either.
        """
        outbox = self._outbox
        with outbox.lock:
            parked, finished = outbox.session.parked_ids(), outbox._finished.ids
        if not goes_on:
            self._read_through = [0, 0]
        # Their rows are met again.
        outbox.blame.last = []
        withheld = outbox.owners.withheld
        self._store.supply.rewind(withheld.union(parked) if withheld else parked, finished, withheld)

    def read(self, *, alerts: bool) -> bool:
        """Read more of the queue, or of the alerts that go first; False where there are none."""
        outbox, lane = self._outbox, self._outbox._alerts if alerts else self._outbox._rows
        if not alerts:
            if not outbox._more_to_read and not self._begins_anew():
                return False
            # Cleared before the read: a commit meanwhile sets it again.
            outbox._more_to_read = False
        outbox.is_reading = True
        with outbox.lock:
            # They have gone, and would be in memory beside those that are read now.
            lane.put([])
        try:
            rows, is_last = self._store.supply.read(_PULL_ROWS_MAX, alerts=alerts)
            if not (is_last or alerts):
                outbox._more_to_read = True
            if rows:
                ids = [row[0] for row in rows]
                # Another program has moved some behind its place, or the queue is read anew.
                is_met_again = min(ids) <= self._read_through[alerts]
                self._read_through[alerts] = max(self._read_through[alerts], max(ids))
                if is_met_again:
                    rows = self._left(ids)
            rows = self._allowed(rows)
            with outbox.lock:
                lane.put(rows)
        finally:
            outbox.is_reading = False
        self._store.on_rows_taken()
        return bool(rows) or not (is_last and alerts)

    def _left(self, ids: list[int]) -> list[Row]:
        """The rows of those that have not gone on this connection, nor wait to be sent again."""
        outbox, session = self._outbox, self._outbox.session
        with outbox.lock:
            has_gone = frozenset(session.in_flight_ids()).union(
                session.settling_ids, outbox._finished.ids, outbox._refused, outbox._again
            )
        # Behind that: what was on its way is finished, and then the store takes it, and then deletes it.
        rows, unknown = self._store.supply.read_again([each for each in ids if each not in has_gone])
        with outbox.lock:
            # Others may have come meanwhile.
            outbox._again += unknown
        return rows

    def _begins_anew(self) -> bool:
        """True where another program has put rows anywhere in the file, and nothing of ours is on its way."""
        outbox, session = self._outbox, self._outbox.session
        if not self._store.is_written_to:
            return False
        with outbox.lock:
            if session.in_flight or session.unsent_bytes or session.has_finished or outbox._again or outbox._refused:
                return False
        self.rewind()
        return True

    def read_again(self) -> None:
        """What was refused, or is in doubt, is due."""
        with self._outbox.lock:
            ids, self._outbox._again = self._outbox._again, []
        self.read_ids(ids)

    def read_ids(self, ids: list[int]) -> None:
        """These go before all others."""
        outbox = self._outbox
        outbox.is_reading = True
        try:
            rows = self._allowed(self._left(ids))
            is_alert = ALERT_QOS if self._store.has_alert_lane else None
            with outbox.lock:
                outbox._rows.put([row for row in rows if row[3] != is_alert] + outbox._rows.left)
                outbox._alerts.put([row for row in rows if row[3] == is_alert] + outbox._alerts.left)
        finally:
            outbox.is_reading = False

    def end_orphans(self) -> None:
        """All rows were read: what is still parked may have lost its row, to damage or another use of the file."""
        outbox = self._outbox
        outbox._may_have_orphans = False
        with outbox.lock:
            parked = outbox.session.parked_ids()
        gone = self._store.supply.missing(parked) if parked else []
        with outbox.lock:
            outbox.blame.on_gone(gone)
            # Another thread may have ended the connection.
            for message_id in gone if outbox.is_open else ():
                outbox.session.release_parked(message_id)
                outbox.unanswered.suspects.append(message_id)

    def _allowed(self, rows: list[Row]) -> list[Row]:
        """What this server takes; it counts as refused where it would end the connection over a message instead."""
        outbox, limits = self._outbox, self._outbox.server.limits
        if outbox.is_narrow or outbox.has_suspects or outbox.blame.leaving:
            all_rows, rows = rows, outbox.blame.beside(rows)
            self.has_held_back = self.has_held_back or len(rows) < len(all_rows)
        if limits is None:
            return rows
        with outbox.lock:
            # Their exchange has begun.
            parked = frozenset(outbox.session.parked_ids())
            lowered = sum(row[3] > limits.qos_max and row[0] not in parked for row in rows)
            rows = [row if row[0] in parked else limits.lowered(row) for row in rows] if lowered else rows
            over = {row[0] for row in rows if row[0] not in parked and not limits.allow(row)}
            outbox._refused += over
            self._lowered_count += lowered
            outbox.has_remarks = outbox.has_remarks or lowered > 0
        if over:
            text = f"{len(over)} messages are more than this server takes ({limits})"
            kind = "messages that are more than this server takes"
            self._store.log.note(logging.WARNING, kind, str(limits), count=len(over), text=text, later=True)
            self.pass_on_refused()
        return [row for row in rows if row[0] not in over]

    def note_lowered(self) -> None:
        """What went with a lower QoS. Not while anybody pulls."""
        outbox, limits = self._outbox, self._outbox.server.limits
        with outbox.lock:
            lowered_count, self._lowered_count = self._lowered_count, 0
        if lowered_count:
            highest = "" if limits is None else f" (the highest is {limits.qos_max})"
            outbox.weaknesses.note(Weakness.QOS_LOWERED, lowered_count, highest)

    def pass_on_refused(self) -> None:
        """The store counts each refusal, and keeps the message for another attempt, or does not."""
        outbox = self._outbox
        with outbox.lock:
            refused, outbox._refused = outbox._refused, []
            outbox.refused_count += len(refused)
            # First, as `read_again` must know them.
            self._store.supply.refuse(refused)
            if not outbox._again:
                outbox._again_at_s = time.monotonic() + _REFUSED_PAUSE_S
            outbox._again += refused
