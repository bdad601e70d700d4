"""For `import glec_fast.mqtt as mqtt` instead of `import paho.mqtt.client as mqtt`: its names, Client replaced."""

from __future__ import annotations

from typing import Any

from paho.mqtt import client as _paho_client
from paho.mqtt.client import *  # noqa: F403

from glec_fast.mqtt.client import Client

_NAMES = {name: value for name, value in vars(_paho_client).items() if not name.startswith("_")}
_NAMES["Client"] = Client
globals().update(_NAMES)

__all__ = sorted(_NAMES)


def __getattr__(name: str) -> Any:
    """paho's private names too, for programs that reach for them."""
    try:
        return getattr(_paho_client, name)
    except AttributeError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
