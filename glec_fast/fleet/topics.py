"""Where a device's messages go (specification, "Topic Structure")."""

from __future__ import annotations


def topic_of(device_id: str, kind: str) -> str:
    """Its messages of a kind: what a typed message's `SUFFIX` says, or what is below that."""
    return f"glec/dtg/{device_id}/{kind}"
