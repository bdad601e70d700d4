"""The demo: a drive over TLS with a cut link and a killed process, counted by an independent subscriber."""

from __future__ import annotations

from glec_fast.errors import GlecError


class DemoError(GlecError):
    """The demo cannot do what was asked. The text says what to do."""
