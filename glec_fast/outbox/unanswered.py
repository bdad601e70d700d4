"""PUBRELs that a broker does not answer when they are sent again, and when they are given up. No I/O, no lock.

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

ANSWER_WAIT_S = 30.0
# A link that is cut behind CONNACK, a byte later each time, ends four connections like this in a row.
TRIES = 6


class Unanswered:
    """Message ids whose PUBREL goes out again, over the connections of one session. The owner serialises calls."""

    def __init__(self) -> None:
        # On this connection, the oldest first.
        self.suspects: list[int] = []
        # Of those, what is given up once PINGRESP comes.
        self.asked: list[int] = []
        # The connection has, or the next will have, a window of one exchange until something is finished.
        self.is_careful = False
        self._tries = 0
        # The last careful connection was reset, and this one has shown since that it carries bytes both ways.
        self._is_doubtful = self._is_proven = False
        self._due_s = 0.0

    def begin(self, suspects: list[int], now_s: float) -> bool:
        """A connection begins, on which these PUBRELs go again. True where PINGREQ must be answered before them."""
        self.suspects = sorted(suspects)
        if not suspects:
            self.on_finished()
        self.asked = self.suspects[:1] if self._tries >= TRIES else []
        self._due_s = now_s + ANSWER_WAIT_S
        self._is_proven = False
        return bool(self.asked) or (self._is_doubtful and bool(suspects))

    def are_overdue(self, now_s: float) -> bool:
        """True, each time that the wait is over, where PINGREQ should ask about what is not answered."""
        if not self.suspects or self.asked or now_s < self._due_s:
            return False
        self._due_s = now_s + ANSWER_WAIT_S
        return True

    def on_pingresp(self) -> list[int]:
        """Returns what is to be given up."""
        asked, self.asked = self.asked, []
        self._is_proven = True
        self.suspects = [message_id for message_id in self.suspects if message_id not in asked]
        return asked

    def on_finished(self) -> None:
        """The broker acknowledges, and there is nothing wrong with what it was sent so far."""
        self._tries = 0
        self.is_careful = self._is_doubtful = False

    def end(self, *, has_left: bool, in_order: bool) -> int:
        """The connection ended with nothing finished. Returns the number of this try, 0 where it proves nothing.

        has_left: all that was for the broker. in_order: the broker ended the connection so.
        """
        is_case = bool(self.suspects) and not self.asked and self.is_careful and has_left
        is_try = is_case and (in_order or (self._is_doubtful and self._is_proven))
        self._is_doubtful = self._is_doubtful or (is_case and not in_order)
        self.is_careful = self.is_careful or bool(self.suspects)
        self.suspects, self.asked = [], []
        self._tries += is_try
        return self._tries if is_try else 0
