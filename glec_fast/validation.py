"""What is refused at the door: topics, QoS, payloads, names that become a topic level. One place for each rule."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

from glec_fast.errors import ConfigError, MessageError

TOPIC_MAX_BYTES = 65_535
# The largest packet that there is: a byte, four of its length, and what that can say (MQTT 3.1.1, 2.2.3).
PACKET_MAX_BYTES = 268_435_460
# A packet's remaining length (MQTT 3.1.1, 2.2.3) must also hold the longest topic, its length and a packet id.
PAYLOAD_MAX_BYTES = 268_435_455 - TOPIC_MAX_BYTES - 4
# A client or device id leaves this much for the levels around it.
_LEVEL_MAX_BYTES = TOPIC_MAX_BYTES - 64
_ID_MAX = 2**63 - 1
_TTL_MAX_MS = 10**15
# $share, the group, and a filter of one level.
_SHARED_LEVELS_MIN = 3
_MAX_QOS = 2
# A byte of the remaining length has seven bits.
_LENGTH_BITS = 7
# Control characters, and code points that are no characters: a server may end the connection over any of them (MQTT
# 3.1.1, 1.5.3; MQTT 5, 1.5.4). One that does so does it again whenever the message is sent again.
_FORBIDDEN = re.compile(
    "[\0-\x1f\x7f-\x9f\ufdd0-\ufdef"
    + "".join(chr(plane << 16 | low) for plane in range(17) for low in (0xFFFE, 0xFFFF))
    + "]"
)


def check_publish(topic: str, qos: int) -> None:
    """Refuse a topic name (MQTT 3.1.1, 4.7) or QoS that cannot be published. Raises MessageError."""
    if not isinstance(topic, str):
        raise MessageError(f"topic is {type(topic).__name__}; it must be str")
    if not topic:
        raise MessageError("topic is empty; name at least one level")
    if "+" in topic or "#" in topic:
        raise MessageError(f"topic {topic[:100]!r} has a wildcard; + and # are for subscriptions only")
    if not (topic.isascii() and topic.isprintable() and len(topic) <= TOPIC_MAX_BYTES):
        check_text("topic", topic)
        size_bytes = _utf8_size(f"topic {topic[:100]!r}", topic)
        if size_bytes > TOPIC_MAX_BYTES:
            raise MessageError(f"topic of {size_bytes} bytes; MQTT carries at most {TOPIC_MAX_BYTES}")
    if type(qos) is not int or not 0 <= qos <= 2:
        raise MessageError(f"qos is {qos!r:.100}; it must be 0, 1 or 2")


def check_text(name: str, text: str) -> None:
    """Refuse text that a server may end the connection over (MQTT 5, 1.5.4). Raises MessageError."""
    found = _FORBIDDEN.search(text)
    if found is not None:
        sign = found[0]
        what = "a NUL character" if sign == "\0" else f"U+{ord(sign):04X}"
        raise MessageError(f"{name} {text[:100]!r} has {what}, over which servers end the connection (MQTT 1.5.3)")


def check_filter(topic_filter: str, qos: int) -> None:
    """Refuse a topic filter (MQTT 4.7, 4.8.2) or QoS that cannot be subscribed to. Raises MessageError."""
    if not isinstance(topic_filter, str) or not topic_filter:
        given = "empty" if topic_filter == "" else type(topic_filter).__name__
        raise MessageError(f"topic filter is {given}; give a str such as 'fleet/+/config'")
    check_text("topic filter", topic_filter)
    size_bytes = _utf8_size(f"topic filter {topic_filter[:100]!r}", topic_filter)
    if size_bytes > TOPIC_MAX_BYTES:
        raise MessageError(f"topic filter of {size_bytes} bytes; MQTT carries at most {TOPIC_MAX_BYTES}")
    levels = topic_filter.split("/")
    if levels[0] == "$share":
        if len(levels) < _SHARED_LEVELS_MIN or not levels[1] or set(levels[1]) & {"+", "#"} or levels[2:] == [""]:
            raise MessageError(
                f"topic filter {topic_filter[:100]!r} is no shared one; write $share/group/filter (MQTT 5, 4.8.2)"
            )
        levels = levels[2:]
    for place, level in enumerate(levels, 1):
        if ("#" in level and (level != "#" or place < len(levels))) or ("+" in level and level != "+"):
            says = "+ stands for a whole level, # for all that follow, at the end (MQTT 4.7.1)"
            raise MessageError(f"topic filter {topic_filter[:100]!r} has a wildcard out of its place; {says}")
    if type(qos) is not int or not 0 <= qos <= _MAX_QOS:
        raise MessageError(f"qos is {qos!r:.100}; it must be 0, 1 or 2")


def packet_bytes(topic: str, payload: str | bytes, qos: int, packed: bytes | None) -> int:
    """Bytes of the PUBLISH. packed: MQTT 5's properties with their length, None for none of them in MQTT 5."""
    body_bytes = 2 + len(topic.encode()) + (2 if qos else 0) + (1 if packed is None else len(packed))
    body_bytes += len(payload.encode() if isinstance(payload, str) else payload)
    return 1 + -(-body_bytes.bit_length() // _LENGTH_BITS) + body_bytes


def check_packet(topic: str, payload: str | bytes, qos: int, packed: bytes | None, limit: int) -> None:
    """Refuse a PUBLISH of more than `limit` bytes; see `packet_bytes`. Raises MessageError."""
    size_bytes = packet_bytes(topic, payload, qos, packed)
    if size_bytes > limit:
        raise MessageError(f"a packet of {size_bytes} bytes; the broker takes at most {limit} (max_packet_bytes)")


def check_size(payload: str | bytes | bytearray) -> None:
    """Refuse a payload that no PUBLISH has room for. Raises MessageError."""
    if isinstance(payload, str) and not payload.isascii():
        size_bytes = _utf8_size("the payload", payload)
    else:
        size_bytes = len(payload)
    if size_bytes > PAYLOAD_MAX_BYTES:
        raise MessageError(f"payload of {size_bytes} bytes; MQTT carries at most {PAYLOAD_MAX_BYTES}")


def _utf8_size(name: str, text: str) -> int:
    try:
        return len(text.encode())
    except UnicodeEncodeError as error:
        raise MessageError(f"{name} is not encodable as UTF-8: remove the lone surrogates") from error


def has_forbidden(text: str) -> bool:
    """True where `check_text` would refuse it."""
    return _FORBIDDEN.search(text) is not None


def is_utf8(text: str) -> bool:
    """False where the text has a lone surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_ids(name: str, ids: Iterable[int]) -> list[int]:
    """Refuse what is no list of ids or numbers, as the queue has them; returns the list. Raises MessageError."""
    says = f"{name} must be a list of ints, such as [1, 2]"
    if isinstance(ids, str | bytes) or not isinstance(ids, Iterable):
        raise MessageError(says)
    found = list(ids)
    if not all(type(each) is int and -_ID_MAX <= each <= _ID_MAX for each in found):
        raise MessageError(says)
    return found


def check_ttl(ttl_millis: int | None) -> None:
    """Refuse an age of expiry that is not a whole number of milliseconds. Raises MessageError."""
    if ttl_millis is not None and (type(ttl_millis) is not int or abs(ttl_millis) > _TTL_MAX_MS):
        raise MessageError(f"ttl_millis is {ttl_millis!r}; it must be a whole number up to {_TTL_MAX_MS}, or None")


def check_id(message_id: int) -> None:
    """Refuse what cannot be a message id. Raises MessageError."""
    if type(message_id) is not int or not -_ID_MAX <= message_id <= _ID_MAX:
        raise MessageError(f"message id is {message_id!r}; it must be an int that `enqueue` returned")


def check_timeout(timeout_s: float | None, name: str = "timeout_s") -> None:
    """Refuse what is no length of time: a wait for NaN would never end. Raises ConfigError."""
    if timeout_s is None:
        return
    if isinstance(timeout_s, bool) or not isinstance(timeout_s, int | float) or timeout_s != timeout_s:
        raise ConfigError(f"{name} is {timeout_s!r}; give seconds, or None to wait as long as it takes", field=name)


def check_callback(name: str, callback: object) -> None:
    """Refuse what cannot be called, long before it would be. Raises ConfigError."""
    if not callable(callback):
        raise ConfigError(f"{name} is {type(callback).__name__}; it must be a function", field=name)


def check_command(name: str, on_crash: str) -> None:
    """Refuse a name that no topic could end with, and what no command can do after a crash. Raises ConfigError."""
    check_topic_level("name", name)
    if on_crash not in ("retry", "fail"):
        raise ConfigError(f"on_crash is {on_crash!r}; it must be 'retry' or 'fail'", field="on_crash")


def check_path(name: str, path: object) -> None:
    """Refuse what is no path, or none that a system has. Raises ConfigError."""
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    if not isinstance(text, str) or not text or "\0" in text:
        raise ConfigError(f"{name} must be the path of a file, a str or a Path", field=name)


def check_topic_level(name: str, value: str) -> None:
    """Refuse a client or device id that would add levels or wildcards to a topic. Raises ConfigError.

    The value is not repeated: in a damaged file it may be another's, such as a password.
    """
    if not isinstance(value, str) or not value:
        given = "empty" if value == "" else type(value).__name__
        raise ConfigError(f"{name} is {given}; it must be a text of at least one character", field=name)
    if any(sign in value for sign in "/+#\0") or not value.isprintable():
        raise ConfigError(f"{name} has /, +, # or a control character; it becomes one level of a topic", field=name)
    if len(value.encode()) > _LEVEL_MAX_BYTES:
        says = f"{name} has {len(value.encode())} bytes; at most {_LEVEL_MAX_BYTES} leave room in a topic"
        raise ConfigError(says, field=name)
