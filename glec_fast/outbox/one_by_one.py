"""QoS 0 that is queued again where it was in the air, and a broker that ends connections over a message of it.

Such a message would come again for ever, and what was in the air beside it with it. Nothing answers QoS 0, so nobody
knows which it is. So once the peer has ended two connections with some in the air, each goes alone, and the next once
PINGRESP proves the one before. What is alone as the peer ends the connection has had a *try*, and after as many as a
message of QoS 1 it is not queued again. A link that breaks is no proof, but costs a message its tries by chance alone:
it is counted and told as lost in the air, which it would be without `resend_unproven`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from glec_fast.durable.transaction import Row
    from glec_fast.protocol._session import Session

# Connections that the peer ended, in a row.
_ENDS_MAX = 2
# So many that were proven one by one show that it is none of those that came first.
_PROVEN_MIN = 50
_KNOWN_MAX = 64


class OneByOne:
    """Of one outbox, for whoever has its loop."""

    def __init__(self, session: Session, tries_max: int) -> None:
        self._session = session
        self._tries_max = tries_max
        self._ends = 0
        self._began = 0
        # Message id -> tries.
        self.tries: dict[int, int] = {}

    def begin(self) -> None:
        """Sending begins on a connection. The caller holds the outbox's lock."""
        self._session.proves_each = self._ends >= _ENDS_MAX
        self._began = self._session.proven_count

    def look(self) -> None:
        """Now and then: go on as before, where that was enough."""
        if self._session.proves_each and self._session.proven_count - self._began >= _PROVEN_MIN:
            self._ends = 0
            self._session.proves_each = False

    def end(self, rows: list[Row], count: int, *, by_peer: bool) -> list[Row]:
        """A connection ended with so many in the air, these as far as known. Returns what is not queued again."""
        if not by_peer:
            self._ends = 0
            return []
        self._ends += 1
        if not (self._session.proves_each and count == len(rows) == 1):
            return []
        message_id = rows[0][0]
        self.tries[message_id] = self.tries.get(message_id, 0) + 1
        if self.tries[message_id] < self._tries_max:
            return []
        del self.tries[message_id]
        self._ends = 0
        return rows

    def on_queued(self, message_id: int, given_id: int) -> None:
        """It has another id from now on."""
        self.tries[given_id] = self.tries.pop(message_id)
        if len(self.tries) > _KNOWN_MAX:
            del self.tries[next(iter(self.tries))]
