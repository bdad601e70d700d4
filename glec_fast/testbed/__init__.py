"""A broker, a link that cuts, certificates and an independent subscriber, for tests, benches and the demo.

Must not know of this client: it keeps what arrives by paho's.
"""

from __future__ import annotations

from glec_fast.errors import GlecError


class ToolError(GlecError):
    """A tool of the testbed cannot do what was asked. The text says what to do."""
