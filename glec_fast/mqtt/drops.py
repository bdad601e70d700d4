"""What a client with a store says of messages that will not be sent."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from paho.mqtt.enums import LogLevel

from glec_fast.runtime.log import shown
from glec_fast.runtime.thread import is_kept_in

if TYPE_CHECKING:
    from collections.abc import Callable

    from glec_fast._paho import Paho
    from glec_fast.durable.outcomes import Dropped
    from glec_fast.engine.policy import Policy
    from glec_fast.runtime.summing_log import SummingLog


def tell_dropped(
    paho: Paho,
    policy: Policy,
    on_drop: Callable[[Any, Any, Dropped], None] | None,
    dropped: list[Dropped],
    log: SummingLog,
) -> None:
    """Each message to the policy and to `on_drop`."""
    if policy.on_dropped is not None:
        policy.on_dropped(dropped)
    if on_drop is None:
        return
    for each in dropped:
        try:
            on_drop(paho.client, paho.userdata, each)
        except BaseException as error:  # noqa: PERF203 - each message is told of, whatever became of the others
            if not is_kept_in(error):
                raise
            paho.log(LogLevel.MQTT_LOG_ERR, "Caught exception in on_drop: %s", shown(error))
            log.note(logging.ERROR, "errors in on_drop", shown(error), error=error)
