"""Retain and MQTT 5 properties of a queued message: what is refused, how they are kept, and as what they are sent.

They stand in `glec_extras`, beside the queue's table, for those messages alone that have any.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import copy
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import VariableByteIntegers

from glec_fast.errors import MessageError
from glec_fast.validation import check_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from paho.mqtt.properties import Properties

    from glec_fast.durable.transaction import Row

# By name, or as pairs, of which several may have the same name (MQTT 5, 3.3.2.3.7).
UserProperties: TypeAlias = Mapping[str, str] | Iterable[tuple[str, str]]

# A row's columns of the queue's table, and where among them the time of its acceptance is.
ROW_COLUMNS = 6
_TIMESTAMP = 4
_EXPIRY_MAX_S = 0xFFFFFFFF
_VALUE_MAX_BYTES = 0xFFFF
# Identifiers of properties (MQTT 5, 3.3.2.3).
_EXPIRY = b"\x02"
_CONTENT_TYPE = b"\x03"
_RESPONSE_TOPIC = b"\x08"
_CORRELATION_DATA = b"\x09"
_USER_PROPERTY = b"\x26"
# Why a later connection, or any, could not carry them.
_REFUSED = {
    "TopicAlias": "the connection that it is sent on, perhaps after a restart, would not know it (MQTT 5, 3.3.2.3.4)",
    "SubscriptionIdentifier": "a client must not send one (MQTT 5, 3.3.4)",
}


class Extras(NamedTuple):
    """expiry_interval_s: Message Expiry Interval. properties: all others, packed, without their length."""

    retain: bool
    expiry_interval_s: int | None = None
    properties: bytes = b""

    def packed(self, waited_ms: int = 0) -> bytes | None:
        """All properties as a PUBLISH has them (MQTT 5, 2.2.2), None for none.

        Message Expiry Interval is less the time that the message has waited, as a server's would be (3.3.2.3.3): at
        least a second is left, as what has expired is not sent, unless it is in flight.
        """
        body = self.properties
        if self.expiry_interval_s is not None:
            left_s = max(self.expiry_interval_s - max(waited_ms, 0) // 1000, min(self.expiry_interval_s, 1))
            body += _EXPIRY + left_s.to_bytes(4, "big")
        return VariableByteIntegers.encode(len(body)) + body if body else None


RETAINED = Extras(retain=True)


def extras_of(retain: bool, properties: Properties | None) -> Extras | None:
    """What is to be kept beside a message, None where that is nothing.

    Raises MessageError for properties that are not a PUBLISH's, and for those that no later connection could carry.
    """
    if properties is None or properties.isEmpty():
        return RETAINED if retain else None
    if properties.packetType != PacketTypes.PUBLISH:
        raise MessageError("properties are of another packet: make them with Properties(PacketTypes.PUBLISH)")
    for name, why in _REFUSED.items():
        if hasattr(properties, name):
            raise MessageError(f"{name} of a queued message: {why}")
    _refuse_wildcard("ResponseTopic", getattr(properties, "ResponseTopic", ""))
    expiry_interval_s = getattr(properties, "MessageExpiryInterval", None)
    others = copy(properties)
    if expiry_interval_s is not None:
        if type(expiry_interval_s) is not int or not 0 <= expiry_interval_s <= _EXPIRY_MAX_S:
            raise MessageError(f"MessageExpiryInterval is {expiry_interval_s!r}; it must be 0 to {_EXPIRY_MAX_S} s")
        del others.MessageExpiryInterval  # type: ignore[attr-defined]
    try:
        packed = others.pack()
    except Exception as error:
        # paho looks at most values only here.
        raise MessageError(f"properties that cannot be packed: {error}") from error
    for name, text in _texts_of(others):
        check_text(name, text)
    return Extras(bool(retain), expiry_interval_s, packed[VariableByteIntegers.decode(packed)[1] :])


def extras_with(
    retain: bool,
    user_properties: UserProperties | None = None,
    content_type: str | None = None,
    response_topic: str | None = None,
    correlation_data: bytes | None = None,
) -> Extras | None:
    """As `extras_of`, of single properties; None is none of that kind.

    Raises MessageError for what is of another type, or what MQTT cannot carry.
    """
    if user_properties is None and content_type is None and response_topic is None and correlation_data is None:
        return RETAINED if retain else None
    packed = b""
    if content_type is not None:
        packed += _CONTENT_TYPE + _packed_text("content_type", content_type)
    if response_topic is not None:
        if response_topic == "":
            raise MessageError("response_topic is empty; name at least one level, or give None")
        packed += _RESPONSE_TOPIC + _packed_text("response_topic", response_topic)
        _refuse_wildcard("response_topic", response_topic)
    if correlation_data is not None:
        if not isinstance(correlation_data, (bytes, bytearray, memoryview)):
            raise MessageError(f"correlation_data is {type(correlation_data).__name__}; it must be bytes")
        packed += _CORRELATION_DATA + _with_length("correlation_data", bytes(correlation_data))
    for name, text in _pairs_of(user_properties):
        packed += _USER_PROPERTY + _packed_text("a name of user_properties", name)
        packed += _packed_text("a value of user_properties", text)
    return Extras(bool(retain), None, packed) if packed else RETAINED if retain else None


def _pairs_of(user_properties: UserProperties | None) -> Iterator[tuple[str, str]]:
    if user_properties is None:
        return
    given = user_properties.items() if isinstance(user_properties, Mapping) else user_properties
    says = "user_properties must be a dict of str, or pairs (name, value) of str"
    if isinstance(given, (str, bytes)):
        raise MessageError(f"user_properties is {type(given).__name__}: {says}")
    try:
        pairs = list(given)
    except TypeError as error:
        raise MessageError(f"user_properties is {type(given).__name__}: {says}") from error
    for pair in pairs:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise MessageError(f"user_properties has {pair!r:.100}: {says}")
        yield pair[0], pair[1]


def _packed_text(name: str, text: str) -> bytes:
    if not isinstance(text, str):
        raise MessageError(f"{name} is {type(text).__name__}; it must be str")
    check_text(name, text)
    try:
        return _with_length(name, text.encode())
    except UnicodeEncodeError as error:
        raise MessageError(f"{name} {text[:100]!r} is not encodable as UTF-8: remove the lone surrogates") from error


def _with_length(name: str, data: bytes) -> bytes:
    if len(data) > _VALUE_MAX_BYTES:
        raise MessageError(f"{name} has {len(data)} bytes; MQTT carries at most {_VALUE_MAX_BYTES}")
    return len(data).to_bytes(2, "big") + data


def _refuse_wildcard(name: str, topic: str) -> None:
    if "+" in topic or "#" in topic:
        raise MessageError(f"{name} {topic[:100]!r} has a wildcard (MQTT 5, 3.3.2.3.5)")


def _texts_of(properties: Properties) -> Iterator[tuple[str, str]]:
    """Each text of a PUBLISH's properties, and the name of the property."""
    named = [(name, getattr(properties, name, None)) for name in ("ResponseTopic", "ContentType")]
    named += [("UserProperty", text) for pair in getattr(properties, "UserProperty", ()) for text in pair]
    return ((name, text) for name, text in named if isinstance(text, str))


def as_kept(row: Row, expiry_interval_s: int | None) -> Extras | None:
    """The other way: what to keep beside a message that was sent as this row, with this interval, to queue it again."""
    if len(row) == ROW_COLUMNS:
        return None
    retain, packed = row[ROW_COLUMNS : ROW_COLUMNS + 2]
    properties = packed[VariableByteIntegers.decode(packed)[1] :] if packed else b""
    if expiry_interval_s is not None:
        # `packed` has put it last.
        properties = properties[: -len(_EXPIRY) - 4]
    return Extras(retain, expiry_interval_s, properties)


def as_sent(row: Row, now_ms: int) -> Row:
    """A row that was read with the columns of extras, None where it has none, as `Session.admit_rows` takes it."""
    extras = row[ROW_COLUMNS:]
    if extras[0] is None:
        return row[:ROW_COLUMNS]
    return (*row[:ROW_COLUMNS], bool(extras[0]), Extras(*extras).packed(now_ms - row[_TIMESTAMP]))
