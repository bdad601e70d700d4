"""paho's log texts for what the outbox has encoded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from paho.mqtt.enums import LogLevel, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes

from glec_fast.mqtt.inbound_message import properties_from

if TYPE_CHECKING:
    from glec_fast._paho import Paho
    from glec_fast.outbox._outbox import Message, Outbox
    from glec_fast.runtime._lock import CallbackMark

_PUBLISH, _PUBREL = 0x30, 0x60
_MQTT_5 = MQTTProtocolVersion.MQTTv5


def log_sent(paho: Paho, outbox: Outbox, own: dict[str, Any], mark: CallbackMark) -> None:
    """What was encoded since the last call. From any thread.

    own: see `_paho.overrides_of`. mark: says that the program's own `_send_publish` is being told, and sends nothing.
    """
    for message, command in outbox.take_trace():
        if command & 0xF0 == _PUBLISH and "_send_publish" in own:
            properties = (
                None if message.properties is None else properties_from(PacketTypes.PUBLISH, message.properties)
            )
            sent = message.mid, message.topic.encode(), message.payload, message.qos, message.retain, command >> 3 & 1
            with mark:
                own["_send_publish"](*sent, message.handle, properties)
        if command & 0xF0 == _PUBREL:
            paho.log(LogLevel.MQTT_LOG_DEBUG, "Sending PUBREL (Mid: %d)", message.mid)
        else:
            _log_publish(paho, message, command)


def _log_publish(paho: Paho, message: Message, command: int) -> None:
    text = "Sending PUBLISH (d%d, q%d, r%d, m%d), '%s'"
    values: list[Any] = [command >> 3 & 1, message.qos, message.retain, message.mid, message.topic.encode()]
    if paho.protocol == _MQTT_5:
        text += ", properties=%s"
        packed = message.properties
        values.append(None if packed is None else properties_from(PacketTypes.PUBLISH, packed))
    if message.payload:
        text += ", ... (%d bytes)"
        values.append(len(message.payload))
    else:
        text += " (NULL payload)"
    paho.log(LogLevel.MQTT_LOG_DEBUG, text, *values)
