"""Why a connection ended, in words for people."""

from __future__ import annotations


class Ending:
    """Of one client. For whoever has its loop. The first who notes something knows best."""

    def __init__(self) -> None:
        self.cause = ""

    def begin(self) -> None:
        """A connection is made."""
        self.cause = ""

    def note(self, cause: str) -> None:
        """It ends, or is about to, for this."""
        self.cause = self.cause or cause
