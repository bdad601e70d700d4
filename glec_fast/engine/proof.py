"""Whether a connection has proved itself, so that the waits between attempts begin anew. No I/O, no clock.

CONNACK proves nothing: a broker that takes a connection may end it at once, and so do two clients of one client id,
each of which ends the other's. An acknowledgement is proof, and so is a connection that lasts. But two clients of one
id have theirs acknowledged as well before the other comes: where the server ended several connections in a row, in
order and each within a few seconds, only one that lasts longer is proof.
"""

from __future__ import annotations

# A second client of our name, and a broker that drops everybody, end connections sooner.
PROVEN_AFTER_S = 30.0
SHORT_LIFE_S = 5.0
SHORT_LIVES = 3


class Proof:
    """Of one client's connections, for the thread that makes them. Times are of any clock that does not go back."""

    def __init__(self) -> None:
        # When this one was accepted, and how many acknowledgements came before it; None where it is proven or over.
        self._unproven: tuple[float, int] | None = None
        self._began_s = 0.0
        self._short_lives = 0

    def begin(self, now_s: float, answered_count: int) -> None:
        """The server has accepted a connection; so many acknowledgements came before it."""
        self._began_s = now_s
        self._unproven = now_s, answered_count

    def look(self, now_s: float, answered_count: int) -> bool:
        """True once for each connection, where it has proved itself."""
        if self._unproven is None:
            return False
        began_s, before = self._unproven
        age_s = now_s - began_s
        is_answered = answered_count > before and (self._short_lives < SHORT_LIVES or age_s >= SHORT_LIFE_S)
        if not is_answered and age_s < PROVEN_AFTER_S:
            return False
        self._unproven = None
        return True

    def end(self, now_s: float, *, in_order: bool) -> bool:
        """A connection ended, in order by the server or otherwise.

        True where it is the one that makes a series: it is to be said once.
        """
        self._unproven = None
        if now_s - self._began_s >= SHORT_LIFE_S:
            self._short_lives = 0
        elif in_order:
            self._short_lives += 1
            return self._short_lives == SHORT_LIVES
        return False
