"""QoS 0 that was on its way as a connection ended, and of which nothing proves that it arrived.

With `resend_unproven` it is queued again, else it is counted, and told as lost as far as it is known.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Any

from glec_fast.durable.extras import ROW_COLUMNS, as_kept
from glec_fast.durable.outcomes import Dropped, DropReason
from glec_fast.errors import QueueClosedError, QueueStorageError
from glec_fast.outbox.one_by_one import OneByOne
from glec_fast.protocol._inbound import unpack_properties

if TYPE_CHECKING:
    from glec_fast.durable.transaction import Row
    from glec_fast.outbox.stored import DurableOutbox

# Stands for QoS 0 in the row of what `say` sent, which is not queued again.
SAID = -1


class InTheAir:
    """Of one outbox, for whoever has its loop. It holds no lock."""

    def __init__(self, outbox: DurableOutbox, *, resends: bool) -> None:
        self._outbox = outbox
        self._resends = resends
        self.one_by_one = OneByOne(outbox.session, outbox.store.max_retry)
        # Not queued again yet: what an exception has cut short, the next end goes on with.
        self.rows: list[Row] = []

    def end(self, rows: list[Row], count: int, *, by_peer: bool) -> None:
        """So many messages were in the air as the link died; these of them are known."""
        outbox = self._outbox
        if self._resends:
            given_up = self.one_by_one.end(rows, count, by_peer=by_peer)
            self.rows += [row for row in rows if row[3] != SAID and row not in given_up]
            queued = self._queue()
            rows, count = given_up + self.rows, count - queued
            self.rows = []
        outbox.lost_in_the_air += count
        if not count:
            return
        reason = DropReason.LOST_IN_THE_AIR
        outbox.store.log.note(logging.WARNING, "messages dropped", reason.value, count=count)
        if rows:
            outbox._tell_dropped([Dropped(row[0], row[1], 0, reason) for row in rows])

    def _queue(self) -> int:
        """Returns how many are queued again: all, unless the disk fails."""
        store, count = self._outbox.store, 0
        while self.rows:
            row = self.rows[0]
            lasts_ms = max(row[5] - store.clock.now_ms(), 1) if row[5] else None
            packed = row[7] if len(row) > ROW_COLUMNS else None
            properties: dict[str, Any] = {} if packed is None else unpack_properties(packed)
            extras = as_kept(row, properties.get("MessageExpiryInterval"))
            is_tried = row[0] in self.one_by_one.tries
            register = partial(self.one_by_one.on_queued, row[0]) if is_tried else None
            try:
                store.append(row[1], row[2], 0, urgent=False, ttl_ms=lasts_ms, extras=extras, register=register)
                self._outbox.direct.uncounted += 1
            except (QueueStorageError, QueueClosedError):
                break
            del self.rows[0]
            count += 1
        return count
