"""The demo, and the tools it shares with the tests: broker, link, certificates, counter, drive."""

from __future__ import annotations

from glec_fast.errors import GlecError


class DemoError(GlecError):
    """The demo or one of its tools cannot do what was asked. The text says what to do."""
