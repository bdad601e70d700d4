"""What is refused at the door: topics, QoS, payloads, names that become a topic level. One place for each rule."""

from __future__ import annotations

import json
from collections.abc import Mapping

from glec_fast._payload import encode_json
from glec_fast.errors import ConfigError, MessageError, PayloadTypeError

TOPIC_MAX_BYTES = 65_535
PAYLOAD_MAX_BYTES = 268_435_455


def check_publish(topic: str, qos: int) -> None:
    """Refuse a topic name (MQTT 3.1.1, 4.7) or QoS that cannot be published. Raises MessageError."""
    if not isinstance(topic, str):
        raise MessageError(f"topic is {type(topic).__name__}; it must be str")
    if not topic:
        raise MessageError("topic is empty; name at least one level")
    if "+" in topic or "#" in topic:
        raise MessageError(f"topic {topic!r} has a wildcard; + and # are for subscriptions only")
    if "\0" in topic:
        raise MessageError(f"topic {topic!r} has a NUL character, which MQTT forbids (1.5.3)")
    if len(topic) * 4 > TOPIC_MAX_BYTES or not topic.isascii():
        _check_utf8(topic)
    if type(qos) is not int or not 0 <= qos <= 2:
        raise MessageError(f"qos is {qos!r}; it must be 0, 1 or 2")


def _check_utf8(topic: str) -> None:
    try:
        size_bytes = len(topic.encode())
    except UnicodeEncodeError as error:
        raise MessageError(f"topic {topic!r} is not encodable as UTF-8: remove the lone surrogates") from error
    if size_bytes > TOPIC_MAX_BYTES:
        raise MessageError(f"topic of {size_bytes} bytes; MQTT carries at most {TOPIC_MAX_BYTES}")


def as_payload(payload: object) -> str | bytes:
    """The payload as it is stored and sent: text and bytes as they are, a mapping as JSON, None as nothing.

    Raises PayloadTypeError, MessageError.
    """
    data: str | bytes
    if isinstance(payload, str):
        try:
            payload.encode()
        except UnicodeEncodeError as error:
            raise MessageError("the payload is not encodable as UTF-8: remove the lone surrogates") from error
        data = payload
    elif isinstance(payload, (bytes, bytearray, memoryview)):
        data = bytes(payload)
    elif isinstance(payload, Mapping):
        data = encode_json(payload if isinstance(payload, dict) else dict(payload))
    elif payload is None:
        data = b""
    elif isinstance(payload, (int, float)) and not isinstance(payload, bool):
        data = json.dumps(payload, allow_nan=False)
    else:
        raise PayloadTypeError(
            f"payload is {type(payload).__name__}; it must be str, bytes, a dict or one of the typed messages"
        )
    if len(data) > PAYLOAD_MAX_BYTES:
        raise MessageError(f"payload of {len(data)} bytes; MQTT carries at most {PAYLOAD_MAX_BYTES}")
    return data


def check_topic_level(name: str, value: str) -> None:
    """Refuse a client or device id that would add levels or wildcards to a topic. Raises ConfigError."""
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{name} is {value!r}; it must be a non-empty str")
    if any(sign in value for sign in "/+#\0") or not value.isprintable():
        raise ConfigError(f"{name} {value!r} has /, +, # or a control character; it becomes one level of a topic")
