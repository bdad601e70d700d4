"""For programs that were written for paho 1: their clients begin with the client id, and are of the first API."""

from __future__ import annotations

import functools
from typing import Any

import paho.mqtt.client as mqtt

init = mqtt.Client.__init__


@functools.wraps(init)
def of_the_first_api(self: Any, *args: Any, **kwargs: Any) -> None:
    if "callback_api_version" not in kwargs and not isinstance(args[0] if args else None, mqtt.CallbackAPIVersion):
        args = (mqtt.CallbackAPIVersion.VERSION1, *args)
    init(self, *args, **kwargs)


mqtt.Client.__init__ = of_the_first_api  # type: ignore[method-assign]
# paho 2 has it no more, and it did nothing.
mqtt.Client.message_retry_set = lambda self, retry: None  # type: ignore[attr-defined]
