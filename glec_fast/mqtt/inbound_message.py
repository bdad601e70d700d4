"""What `on_message` gets: paho's MQTTMessage, with the costly parts made when they are first asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from paho.mqtt.enums import MessageState
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from glec_fast._paho import MQTTMessage, MQTTMessageInfo, message_info, message_properties
from glec_fast.protocol._inbound import unpack_properties

if TYPE_CHECKING:
    from glec_fast.outbox._outbox import Message


class _OurMessage(MQTTMessage):
    """Equal to any message of its packet id, as two of paho's are."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MQTTMessage) and bool(self.mid == other.mid)

    __hash__ = None  # type: ignore[assignment]


class InboundMessage(_OurMessage):
    """A message that arrived; built by `glec_fast.protocol._inbound`, which sets paho's slots and `_packed`."""

    __slots__ = ("_packed",)

    _packed: bytes | None

    @property
    def info(self) -> MQTTMessageInfo:
        """What a waiter would wait on. paho has one in every message; here it is made when it is asked for."""
        try:
            info: MQTTMessageInfo = message_info.__get__(self)
        except AttributeError:
            info = MQTTMessageInfo(self.mid)
            message_info.__set__(self, info)
        return info

    @info.setter
    def info(self, value: MQTTMessageInfo) -> None:
        message_info.__set__(self, value)

    @property
    def properties(self) -> Properties | None:
        """The packet's properties (MQTT 5, 3.3.2.3), None before MQTT 5."""
        packed = self._packed
        if packed is not None:
            self.properties = properties_from(PacketTypes.PUBLISH, packed)
        try:
            properties: Properties | None = message_properties.__get__(self)
        except AttributeError:
            return None
        return properties

    @properties.setter
    def properties(self, value: Properties | None) -> None:
        self._packed = None
        message_properties.__set__(self, value)

    def __reduce__(self) -> tuple[Any, ...]:
        """Also for `copy`. paho's has a lock in it, and cannot be handed on."""
        fields = {name: getattr(self, name) for name in _PICKLED}
        return _restored, (type(self), fields | {"_packed": self.packed_properties()})

    def packed_properties(self) -> bytes | None:
        """They as the packet had them, with their length, whether somebody has read them or not; None before MQTT 5."""
        if self._packed is not None or self.properties is None:
            return self._packed
        return bytes(self.properties.pack())


_PICKLED = ("_topic", "payload", "qos", "mid", "dup", "retain", "timestamp", "state")


class OwnMessage(_OurMessage):
    """One of ours that a program is shown: paho's, which can be handed on to another process."""

    __slots__ = ()

    def __reduce__(self) -> tuple[Any, ...]:
        """Also for `copy`."""
        fields = {name: getattr(self, name) for name in (*_PICKLED, "properties")}
        return _restored, (type(self), fields)


def kept_message(topic: str, payload: bytes, packed: bytes | None) -> InboundMessage:
    """One that came earlier, from what was kept of it: nobody is to hear that it came. packed: its properties."""
    fields = {
        "_topic": topic.encode(), "payload": payload, "qos": 0, "mid": 0, "dup": True, "retain": False,
        "timestamp": 0.0, "state": MessageState.MQTT_MS_INVALID, "_packed": packed,
    }  # fmt: skip
    message: InboundMessage = _restored(InboundMessage, fields)
    return message


def _restored(kind: type[Any], fields: dict[str, Any]) -> Any:
    message = object.__new__(kind)
    for name, value in fields.items():
        setattr(message, name, value)
    message.info = MQTTMessageInfo(message.mid)
    return message


def packed_publish(message: InboundMessage, *, is_5: bool) -> tuple[int, bytes]:
    """(first byte, body) of the PUBLISH that it came in (3.3)."""
    topic = message.topic.encode()
    body = len(topic).to_bytes(2, "big") + topic
    if message.qos:
        body += message.mid.to_bytes(2, "big")
    if is_5:
        body += message.packed_properties() or b"\0"
    return 0x30 | message.dup << 3 | message.qos << 1 | message.retain, body + message.payload


def _copy_of(template: Any) -> Any:
    copied = object.__new__(type(template))
    copied.__dict__.update(template.__dict__)
    return copied


class _OtherReason(ReasonCode):
    """A code that MQTT 5 does not have for this packet, for which paho has no name therefore."""

    def __init__(self, packet_type: int, code: int) -> None:
        super().__init__(packet_type)
        self.value = code

    def getName(self) -> str:  # noqa: N802 - paho's
        """The name that it has in another packet, or its number."""
        return next(iter(self.names.get(self.value, ())), f"Reason code 0x{self.value:02X}")


# paho fills tables of some 60 entries for each object that it makes.
_EMPTY = {kind: Properties(kind) for kind in range(1, 16)}
_SUCCESS = {kind: ReasonCode(kind) for kind in (PacketTypes.PUBACK, PacketTypes.PUBREC, PacketTypes.PUBCOMP)}


def properties_from(packet_type: int, packed: bytes) -> Properties:
    """Properties out of a packet that was checked. `packed`: with their length in front; empty for none."""
    properties: Properties = _copy_of(_EMPTY[packet_type])
    if len(packed) > 1:
        properties.__dict__.update(unpack_properties(packed))
    return properties


def reason_from(packet_type: int, code: int) -> ReasonCode:
    """The reason code of a PUBACK, PUBREC or PUBCOMP."""
    if code == 0:
        success: ReasonCode = _copy_of(_SUCCESS[packet_type])
        return success
    try:
        return ReasonCode(packet_type, identifier=code)
    except (KeyError, ValueError):
        return _OtherReason(packet_type, code)


def unsent_message(message: Message) -> MQTTMessage:
    """One that waits in memory, as paho's class."""
    unsent = OwnMessage(message.mid, message.topic.encode())
    unsent.payload, unsent.qos, unsent.retain = message.payload, message.qos, message.retain
    unsent.info, unsent.state = message.handle, MessageState.MQTT_MS_PUBLISH
    return unsent
