"""What a broker takes of messages, asked before many are sent.

What it does not take it may answer with silence, or with the end of the connection, over and over.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from glec_fast.cli.connection import Connection

if TYPE_CHECKING:
    from glec_fast.fleet.config import MQTTConfig

# For one answer; several times a round trip over a satellite.
_PATIENCE_S = 10.0
# What is handed on comes right behind the acknowledgement.
_ECHO_S = 2.0
_REFUSED = 0x80
_TINY = b"glec-fast"
_LEVELS = (0, 1, 2)


class Taken(NamedTuple):
    """What became of a message of each kind.

    refused: QoS -> why the broker does not take it. too_large: why it does not take the payload, empty where it does.
    is_handed_on: whether a subscriber was given what was published.
    """

    refused: dict[int, str]
    too_large: str
    is_handed_on: bool

    @property
    def nothing(self) -> str:
        """Why the broker takes no message at all, empty where it takes one."""
        return self.refused[1] if len(self.refused) == len(_LEVELS) else ""


def ask(config: MQTTConfig, client_id: str, topic: str, payload: bytes) -> Taken:
    """Publish a few messages. Raises the errors of connecting."""
    refused = {qos: why for qos in _LEVELS if (why := _refusal(config, client_id, topic, _TINY, qos))}
    if len(refused) == len(_LEVELS):
        return Taken(refused, "", is_handed_on=False)
    highest = max(set(_LEVELS) - set(refused))
    too_large = _refusal(config, client_id, topic, payload, highest)
    return Taken(refused, too_large, not too_large and _is_handed_on(config, client_id, topic, highest))


def _refusal(config: MQTTConfig, client_id: str, topic: str, payload: bytes, qos: int) -> str:
    """Why the broker does not take such a message; empty where it does. Raises the errors of connecting."""
    answered, reasons = threading.Event(), list[Any]()

    def on_publish(_client: Any, _userdata: Any, _mid: int, reason: Any, _properties: Any) -> None:
        reasons.append(reason)

    with Connection(config, client_id, "") as connection:
        highest = getattr(connection.told, "MaximumQoS", 2)
        if qos > highest:
            return f"the broker says that it takes QoS {highest} at most"
        client = connection.client
        client.on_publish = on_publish
        # A mark behind it, as QoS 0 has no answer, and as mosquitto may end the connection behind its answer.
        client.on_unsubscribe = lambda *_: answered.set()
        client.publish(topic, payload, qos)
        client.unsubscribe(topic)
        ends_s = time.monotonic() + _PATIENCE_S
        while not (answered.wait(0.02) and reasons) and not connection.ends:
            if time.monotonic() > ends_s:
                return f"the broker did not answer a message of QoS {qos} within {_PATIENCE_S:.0f} s"
    if qos and reasons and reasons[0].value >= _REFUSED:
        return f"the broker refused a message of QoS {qos} ({reasons[0]})"
    if connection.ends:
        return f"the broker ended the connection over a message of QoS {qos} ({connection.cause})"
    return ""


def _is_handed_on(config: MQTTConfig, client_id: str, topic: str, qos: int) -> bool:
    """Whether a subscriber is given what is published; False also where there can be none."""
    subscribed, arrived = threading.Event(), threading.Event()
    with Connection(config, client_id, "") as connection:
        client = connection.client
        client.on_subscribe = lambda *_: subscribed.set()
        client.on_message = lambda *_: arrived.set()
        client.subscribe(topic, 0)
        if not subscribed.wait(_PATIENCE_S):
            return False
        client.publish(topic, _TINY, qos)
        return arrived.wait(_ECHO_S)
