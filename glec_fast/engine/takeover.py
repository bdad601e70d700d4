"""Whose session the server keeps under our client id, and how one that is not ours is discarded."""

from __future__ import annotations


class Takeover:
    """Of one client, for whoever has its loop: what each accepted connection is for."""

    def __init__(self) -> None:
        # The next CONNECT has the server forget the session that it keeps.
        self.discards = False
        self._has_discarded = False
        # One connection makes room for the next, which the program takes for the same.
        self.is_connecting_again = False
        self._owner = ""

    def turn_to(self, owner: str) -> None:
        """Before each connection: whose session it is about. What was to be done with another's is no more."""
        if owner != self._owner:
            self._owner = owner
            self.discards = self._has_discarded = False

    def must_connect_again(self, *, session_present: bool, is_foreign: bool, is_mqtt_5: bool) -> bool:
        """True where this connection only shows, or only serves to discard, a session that is not ours."""
        if self.discards:
            # Before MQTT 5 a clean session lasts no longer than its connection (MQTT 3.1.1, 3.1.2.4).
            self.discards, self._has_discarded = False, not is_mqtt_5
            return not is_mqtt_5
        has_discarded, self._has_discarded = self._has_discarded, False
        self.discards = session_present and is_foreign and not has_discarded
        return self.discards


class Continuity:
    """Of one client, for whoever has its loop: whether the session is known to be that of the connection before.

    Where a CONNECT in between had no answer, the server may have begun the session that it has at that.
    """

    def __init__(self) -> None:
        # CONNECTs that left since a server last accepted one, and were not refused.
        self._unanswered = 0
        # Whose session that one had.
        self._met: object = None

    def on_connect_sent(self) -> None:
        """CONNECT leaves."""
        self._unanswered += 1

    def on_refused(self) -> None:
        """The server has begun no session."""
        self._unanswered -= 1

    def on_accepted(self, whose: object, *, session_present: bool) -> bool:
        """True where the session is that of the connection before. whose: the client id and owner it is for."""
        is_continued = session_present and self._unanswered == 1 and self._met == whose
        self._unanswered, self._met = 0, whose
        return is_continued
