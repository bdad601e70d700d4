"""How many bytes may be on their way to a server; see `cext/outbox/_pace.pyx`."""

class Pace:
    @property
    def window_bytes(self) -> int:
        """So many bytes may be unanswered."""
    @property
    def is_measured(self) -> bool:
        """That comes from samples with the window in use."""
    @property
    def round_trip_s(self) -> float:
        """The shortest that was seen; 0 before the first."""
    def begin(self) -> None: ...
    def on_sent(self, sent_to: int, answered_to: int, now_s: float) -> None: ...
    def on_answered(self, answered_to: int, now_s: float) -> int: ...
