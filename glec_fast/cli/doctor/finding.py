"""What a check found, and what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from glec_fast.tls.handshake import Failure

Status: TypeAlias = Literal["ok", "warning", "failed", "skipped"]


class Finding(NamedTuple):
    """`advice` is empty where there is nothing to do."""

    check: str
    status: Status
    found: str
    advice: str = ""

    @classmethod
    def of(cls, failure: Failure) -> Finding:
        """A cause as the finding of the check that it belongs to."""
        return cls(failure.check, "failed", failure.found, failure.advice)
