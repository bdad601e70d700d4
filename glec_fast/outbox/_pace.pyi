"""How many bytes may be on their way to a server; see `cext/outbox/_pace.pyx`."""

class Pace:
    """Of one connection, begun with `begin`. Offsets are the session's, in its stream. Not thread-safe."""

    @property
    def window_bytes(self) -> int:
        """So many bytes may be unanswered."""
    @property
    def is_measured(self) -> bool:
        """That comes from samples with the window in use."""
    @property
    def round_trip_s(self) -> float:
        """The shortest that was seen; 0 before the first."""
    @property
    def rate_bytes_s(self) -> float:
        """At which the server reads, as far as was seen; 0 before the first sample."""
    def begin(self) -> None:
        """A new connection, of which nothing is known."""
    def on_sent(self, sent_to: int, answered_to: int, now_s: float) -> None:
        """The socket has taken what is before `sent_to`."""
    def on_answered(self, answered_to: int, now_s: float) -> int:
        """The server has read what is before `answered_to`; returns `window_bytes`."""
