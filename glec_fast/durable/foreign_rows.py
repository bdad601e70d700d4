"""What a message can be made of, in a row of another writer: numbers and times are mended, all else is refused."""

from __future__ import annotations

from glec_fast.errors import MessageError
from glec_fast.validation import check_publish, check_size, has_forbidden

# Every whole number up to here is exact as a REAL too. What is later is no time.
TIME_MAX_MS = 1 << 53
# Ours come behind the latest, and all are moved where the clock steps: a timestamp leaves room for that.
STAMP_MAX_MS = 1 << 52
# Above are no ids: what is given next must be storable, for longer than anybody counts.
ID_MAX = (1 << 62) - 1


def as_number(value: object) -> int | None:
    """A whole number, rounded; of digits too. None where it says none."""
    if isinstance(value, bytes):
        value = value.decode("ascii", "replace")
    if isinstance(value, str):
        try:
            value = float(value) if not value.strip().lstrip("+-").isdecimal() else int(value)
        except ValueError:
            return None
    if isinstance(value, float):
        if value != value:
            return None
        return round(min(max(value, -float(TIME_MAX_MS)), float(TIME_MAX_MS)))
    return value if isinstance(value, int) else None


def as_time_ms(value: object, otherwise: int) -> int:
    """Unix milliseconds, bounded; of a date and time as text too, which without a zone is UTC."""
    number = as_number(value)
    if number is None and isinstance(value, (str, bytes)):
        # Rare, and 350 KiB.
        from datetime import datetime, timezone

        text = value if isinstance(value, str) else value.decode("ascii", "replace")
        try:
            told = datetime.fromisoformat(text.strip().replace("Z", "+00:00"))
        except ValueError:
            return otherwise
        number = round((told if told.tzinfo else told.replace(tzinfo=timezone.utc)).timestamp() * 1000)
    return otherwise if number is None else min(max(number, -TIME_MAX_MS), TIME_MAX_MS)


def as_message(topic: bytes | None, qos: object, payload: bytes, encoding: str = "utf-8") -> tuple[str, int]:
    """(topic, QoS) of a row that can be published. Raises MessageError with the reason why it cannot."""
    if topic is None:
        raise MessageError("topic is NULL")
    try:
        name = topic.decode(encoding)
    except UnicodeDecodeError as error:
        raise MessageError("topic is not UTF-8") from error
    level = as_number(qos)
    if level is None:
        raise MessageError("qos is no number")
    if isinstance(qos, float) and qos != level:
        raise MessageError(f"qos is {qos}; it must be 0, 1 or 2")
    check_publish(name, level)
    check_size(payload)
    return name, level


def are_extras(retain: object, expiry_interval_s: object, properties: object) -> bool:
    """True where these columns are of a PUBLISH (MQTT 5, 3.3.2.3), so that no server ends the connection over them."""
    if retain not in (0, 1) or not isinstance(properties, bytes):
        return False
    if expiry_interval_s is not None and not (type(expiry_interval_s) is int and 0 <= expiry_interval_s <= 0xFFFFFFFF):
        return False
    return _are_properties(properties)


def _are_properties(packed: bytes) -> bool:
    """Payload format, content type, response topic, correlation data, user properties: each whole, text as UTF-8."""
    at = 0
    met = set()
    while at < len(packed):
        identifier, at = packed[at], at + 1
        if identifier in met and identifier != 38:
            return False
        met.add(identifier)
        if identifier == 1:
            if packed[at : at + 1] not in (b"\x00", b"\x01"):
                return False
            at += 1
        elif identifier in (3, 8, 9, 38):
            for _ in range(2 if identifier == 38 else 1):
                size = int.from_bytes(packed[at : at + 2], "big")
                value = packed[at + 2 : at + 2 + size]
                if at + 2 + size > len(packed) or (identifier != 9 and not _is_text(value)):
                    return False
                at += 2 + size
        else:
            return False
    return True


def _is_text(value: bytes) -> bool:
    try:
        return not has_forbidden(value.decode())
    except UnicodeDecodeError:
        return False
