"""For `import glec_fast.mqtt as mqtt` instead of `import paho.mqtt.client as mqtt`: its names, Client replaced.

`install`, `uninstall` and `store_in` are for programs in which that line cannot be changed: `glec_fast.mqtt.swap`.
Must not know what topics mean, nor SQL.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from paho.mqtt import client as _paho_client
from paho.mqtt.client import *  # noqa: F403

from glec_fast.mqtt.client import Client
from glec_fast.mqtt.filters import topic_matches_sub

if TYPE_CHECKING:
    from glec_fast.mqtt.swap import install as install
    from glec_fast.mqtt.swap import store_in as store_in
    from glec_fast.mqtt.swap import uninstall as uninstall

_NAMES = {name: value for name, value in vars(_paho_client).items() if not name.startswith("_")}
_NAMES |= {"Client": Client, "topic_matches_sub": topic_matches_sub}
globals().update(_NAMES)

__all__ = sorted(_NAMES)


def __getattr__(name: str) -> Any:
    """paho's private names too, for programs that reach for them; and what few programs need, imported late."""
    if name in ("install", "store_in", "uninstall"):
        from glec_fast.mqtt import swap

        return getattr(swap, name)
    try:
        return getattr(_paho_client, name)
    except AttributeError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
