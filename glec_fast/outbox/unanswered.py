"""PUBRELs that a broker does not answer when they are sent again, and when they are given up.

A broker must answer PUBREL with PUBCOMP, also for a packet id that it does not know (MQTT 3.1.1, 4.3.3). Some say
nothing (amqtt), some end the connection (rumqttd), and what is behind such a PUBREL would wait for ever. But a broker
that knows the exchange may hand its message on at PUBREL alone: nothing is given up where it may be the link that
ends. So it takes proof:

- On a connection that lasts, what is unanswered after `ANSWER_WAIT_S` is asked about by PINGREQ. TCP is in order: who
  answers that has read the PUBREL, and has released the message if it knew it.
- Where a connection ended behind such a PUBREL and nothing was finished on it, the next ones are *careful*: the window
  is one exchange, so that this PUBREL is all that the broker has to read. Those that the broker itself ends in order,
  which a link that breaks does not, are *tries*. One that ends in a reset may be the link's doing: the next has PINGREQ
  answered before the PUBREL goes, and is a try however it ends then, as the link was well a moment before. Behind TRIES
  of them the next begins with PINGREQ alone. Once that is answered, the link is well, and it is the PUBREL that the
  broker ends connections over.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from glec_fast.outbox.weaknesses import Weakness
from glec_fast.runtime.log import logger

if TYPE_CHECKING:
    from glec_fast.outbox.stored import DurableOutbox

ANSWER_WAIT_S = 30.0
# A link that is cut behind CONNACK, a byte later each time, ends four connections like this in a row.
TRIES = 6
_PINGREQ = b"\xc0\x00"


class Unanswered:
    """Message ids whose PUBREL goes out again, over the connections of one outbox. It belongs to whoever holds the
    outbox's lock. Callers of `on_finished` hold it, the other methods take it; those are for whoever has the loop.
    """

    def __init__(self, outbox: DurableOutbox) -> None:
        self._outbox = outbox
        # On this connection, the oldest first.
        self.suspects: list[int] = []
        # Of those, what is given up once PINGRESP comes.
        self.asked: list[int] = []
        # The number of the PINGREQ that asks for it.
        self._asked_at = 0
        # The connection was accepted, and PINGREQ must be answered before it is opened.
        self.is_proving = False
        # The connection has, or the next will have, a window of one exchange until something is finished.
        self.is_careful = False
        self._tries = 0
        # The last careful connection was reset, and this one has shown since that it carries bytes both ways.
        self._is_doubtful = self._is_proven = False
        self._due_s = 0.0

    def begin(self) -> None:
        """A connection was accepted, on which PUBRELs go again; `is_proving` says whether it may be opened now."""
        outbox = self._outbox
        with outbox.lock:
            self.suspects = sorted(outbox.session.released_ids())
            if not self.suspects:
                self.on_finished()
            self.asked = self.suspects[:1] if self._tries >= TRIES else []
            self._due_s = time.monotonic() + ANSWER_WAIT_S
            self._is_proven = False
            self.is_proving = bool(self.asked) or (self._is_doubtful and bool(self.suspects))
        if self.is_proving:
            outbox.is_opening = False
            self.ask()

    def ask(self) -> None:
        """PINGRESP will say that what was asked before has no answer."""
        outbox = self._outbox
        with outbox.lock:
            outbox.put_packet(_PINGREQ)
            self._asked_at = outbox.session.pings_put

    def look(self) -> None:
        """Now and then, on a connection that lasts, where no other PINGREQ is on its way: ask for what is overdue."""
        now_s, session = time.monotonic(), self._outbox.session
        if not self.suspects or self.asked or now_s < self._due_s:
            return
        self._due_s = now_s + ANSWER_WAIT_S
        with self._outbox.lock:
            waiting = frozenset(session.unanswered_ids())
            self.asked = [message_id for message_id in self.suspects if message_id in waiting]
        if self.asked:
            self.ask()

    def on_pingresp(self) -> bool:
        """Messages may be given up for it, and left to the broker; True where more may be sent for it."""
        outbox = self._outbox
        with outbox.lock:
            # Others may have been put before.
            if outbox.session.pings_answered < self._asked_at:
                return False
            asked, self.asked = self.asked, []
            self._is_proven = True
            self.suspects = [message_id for message_id in self.suspects if message_id not in asked]
        if asked and (count := outbox.doubt.give_up(asked)):
            outbox.weaknesses.note(Weakness.PUBREL_UNANSWERED, count)
            outbox.weaknesses.tell()
        return self.is_proving or bool(asked)

    def on_finished(self) -> None:
        """The broker acknowledges, and there is nothing wrong with what it was sent so far."""
        self._tries = 0
        self.is_careful = self._is_doubtful = False

    def end(self, *, has_left: bool, in_order: bool) -> None:
        """The connection ended; it is another try, or proves nothing.

        has_left: all that was for the broker. in_order: the broker ended the connection so.
        """
        with self._outbox.lock:
            if self._outbox.has_progress:
                self.on_finished()
                return
            oldest = self.suspects[:1]
            is_case = bool(oldest) and not self.asked and self.is_careful and has_left
            is_try = is_case and (in_order or (self._is_doubtful and self._is_proven))
            self._is_doubtful = self._is_doubtful or (is_case and not in_order)
            self.is_careful = self.is_careful or bool(oldest)
            self.suspects, self.asked = [], []
            self._tries += is_try
        if is_try:
            text = "the broker ended the connection over the PUBREL of message %d, try %d"
            logger.warning(text, oldest[0], self._tries)
