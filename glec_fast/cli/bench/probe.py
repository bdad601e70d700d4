"""What a broker takes of the bench's messages, asked before anything is measured: what it does not take it may answer
with silence, or with the end of the connection, over and over."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from glec_fast.cli.connection import Connection
from glec_fast.errors import GlecError

if TYPE_CHECKING:
    from glec_fast.fleet.config import MQTTConfig

# For one answer; several times a round trip over a satellite.
_PATIENCE_S = 10.0
# What is handed on comes right behind the acknowledgement.
_ECHO_S = 2.0
_REFUSED = 0x80
_TINY = b"glec-fast bench"


class BenchError(GlecError):
    """A contender broke down, or the broker takes nothing of what is to be measured."""


class Taken(NamedTuple):
    """refused: QoS -> why the broker does not take it. notes: what one must know to read the figures."""

    refused: dict[int, str]
    notes: list[str]


def ask(config: MQTTConfig, client_id: str, topic: str, payload: bytes) -> Taken:
    """Publish a few messages. Raises BenchError where none is taken, and the errors of connecting."""
    refused = {qos: why for qos in (1, 0, 2) if (why := _refusal(config, client_id, topic, _TINY, qos))}
    if len(refused) == 3:
        raise BenchError(f"the broker takes no message to {topic}: {refused[1]}; allow it, or give another --topic")
    highest = max({0, 1, 2} - set(refused))
    why = _refusal(config, client_id, topic, payload, highest)
    if why:
        raise BenchError(f"the broker does not take {len(payload):,} bytes of payload: {why}; give fewer --bytes")
    notes = []
    if not _is_handed_on(config, client_id, topic, highest):
        notes.append(
            f"What is published to {topic} did not come back to a subscriber: the broker may acknowledge and drop it."
        )
    return Taken(dict(sorted(refused.items())), notes)


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
