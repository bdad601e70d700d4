"""A command as it came: by which id it is known, what it asks for and until when; or why it cannot be run."""

from __future__ import annotations

import json
import re
import time
from hashlib import sha256
from typing import TYPE_CHECKING, Any, NamedTuple

from glec_fast.durable.command_log import Key
from glec_fast.errors import MessageError
from glec_fast.validation import check_publish, is_utf8

if TYPE_CHECKING:
    from glec_fast.durable.command_log import Begun
    from glec_fast.mqtt.inbound_message import InboundMessage

# Replies go ahead of telemetry and results, and arrive once.
REPLY_QOS = 2
_REQUEST_MAX_BYTES = 65_536
TEXT_MAX = 200
_ID_MAX = 256
# RFC 3339, the part of ISO 8601 that has a date, a time and an offset.
_DATE_TIME = re.compile(r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?([Zz]|[+-]\d\d:\d\d)", re.ASCII)

# ---- what a command may come to; `Metrics.commands` counts them
DONE = "done"
FAILED = "failed"
UNKNOWN = "unknown_command"
EXPIRED = "expired"
INTERRUPTED = "interrupted"
INVALID = "invalid"
CONFLICT = "id_in_use"
DUPLICATE = "duplicate"
OUTCOMES = (DONE, FAILED, UNKNOWN, EXPIRED, INTERRUPTED, INVALID, CONFLICT, DUPLICATE)

_CUT_INTO = "the device stopped while the command ran; it may have been carried out"


class RefusedCommandError(Exception):
    """A command that is answered with an error; outcome: one of `OUTCOMES`."""

    def __init__(self, outcome: str, text: str) -> None:
        super().__init__(text)
        self.outcome = outcome


class Request(NamedTuple):
    """A command as it came. problem: why it cannot be run. expires_s: of `time.monotonic`; expires_at_ms: Unix time."""

    key: Key
    id: str
    arguments: dict[str, Any]
    problem: RefusedCommandError | None = None
    expires_s: float = float("inf")
    expires_at_ms: float = float("inf")

    def is_expired(self, unix_ms: int) -> bool:
        """True where nobody waits for it any more."""
        return time.monotonic() >= self.expires_s or unix_ms >= self.expires_at_ms


def cut_into() -> RefusedCommandError:
    """What is said of a command that is not run again, though an earlier process began to run it."""
    return RefusedCommandError(INTERRUPTED, _CUT_INTO)


def parse(name: str, message: InboundMessage, topic: str) -> Request:
    """The request in a message. topic: the level above the names. Raises RefusedCommandError where there is no id."""
    properties = message.properties
    correlation: bytes | None = getattr(properties, "CorrelationData", None)
    arguments, problem = _arguments(bytes(message.payload))
    problem = problem or problem_of_response_topic(properties, topic)
    given, expires_at = arguments.pop("id", None), arguments.pop("expires_at", None)
    expires_at_ms = float("inf")
    if expires_at is not None:
        try:
            expires_at_ms = _unix_ms(expires_at)
        except ValueError:
            says = "expires_at must be Unix time in milliseconds, or a time with its offset: 2026-11-28T06:00:00Z"
            problem = problem or RefusedCommandError(INVALID, says)
    if given is not None:
        shown = given if isinstance(given, str) else json.dumps(given)
        if not is_utf8(shown) or not (isinstance(given, str) or _is_number(given)):
            raise RefusedCommandError(INVALID, "the id must be text or a number")
        identifier = b"j" + shown.encode()
    elif correlation is not None:
        shown, identifier = _shown(correlation), b"c" + correlation
    else:
        raise problem or RefusedCommandError(
            INVALID, 'a command needs an id: "id" in its JSON, or Correlation Data (MQTT 5)'
        )
    if not 1 < len(identifier) <= _ID_MAX:
        raise RefusedCommandError(INVALID, f"the id must have 1 to {_ID_MAX - 1} bytes")
    digest = sha256(json.dumps(arguments, sort_keys=True).encode()).digest()
    expiry_s = getattr(properties, "MessageExpiryInterval", None)
    expires_s = float("inf") if expiry_s is None else time.monotonic() + expiry_s
    return Request(Key(name, identifier, digest), shown, arguments, problem, expires_s, expires_at_ms)


def parse_begun(begun: Begun, message: InboundMessage, topic: str) -> Request:
    """That of one that an earlier process began. What it was may not be known any more: then it is not run again."""
    key = Key(begun.name, begun.id, begun.digest or b"")
    try:
        request = parse(begun.name, message, topic)
    except RefusedCommandError:
        request = None
    if request is None or request.key != key._replace(digest=begun.digest or request.key.digest):
        return Request(key, _shown(begun.id[1:]), {}, cut_into())
    expires_ms = begun.origin.expires_ms
    if expires_ms is None:
        return request
    # Since it came, and not since now.
    return request._replace(expires_s=float("inf"), expires_at_ms=min(request.expires_at_ms, expires_ms))


def _arguments(payload: bytes) -> tuple[dict[str, Any], RefusedCommandError | None]:
    if len(payload) > _REQUEST_MAX_BYTES:
        return {}, RefusedCommandError(INVALID, f"a command of {len(payload)} bytes; at most {_REQUEST_MAX_BYTES}")
    if not payload.strip():
        return {}, None
    try:
        found = json.loads(payload, object_pairs_hook=_object)
        # What can be read and not be written is nested too deep, or a number that JSON has not.
        json.dumps(found, allow_nan=False)
    except (ValueError, RecursionError) as error:
        return {}, RefusedCommandError(INVALID, f"the payload is no JSON: {error}"[:TEXT_MAX])
    if not isinstance(found, dict):
        return {}, RefusedCommandError(INVALID, "the payload must be a JSON object of arguments")
    return found, None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Which of two values is meant nobody can tell, and it may be the doors of a truck."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name[:50]!r} stands twice in an object")
        found[name] = value
    return found


def response_topic(properties: Any) -> str | None:
    """Where the reply is wanted (MQTT 5, 3.3.2.3.5)."""
    return getattr(properties, "ResponseTopic", None) or None


def problem_of_response_topic(properties: Any, topic: str) -> RefusedCommandError | None:
    """Why no reply can go there; topic: of `parse`."""
    wanted = response_topic(properties)
    if wanted is None:
        return None
    try:
        check_publish(wanted, REPLY_QOS)
    except MessageError as error:
        return RefusedCommandError(INVALID, f"no reply can go to the Response Topic: {error}"[:TEXT_MAX])
    if wanted.rpartition("/")[0] == topic:
        return RefusedCommandError(INVALID, "the Response Topic is a command's: the reply would be a command")
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _unix_ms(value: Any) -> float:
    """Raises ValueError."""
    if _is_number(value):
        # An int may be larger than any float.
        return value if isinstance(value, float) else float(max(min(value, 10**18), -(10**18)))
    found = _DATE_TIME.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise ValueError
    # Rare, and 300 KiB.
    from datetime import datetime

    date, clock, fraction, offset = found.groups()
    moment = datetime.fromisoformat(f"{date}T{clock}{'+00:00' if offset in 'Zz' else offset}")
    return moment.timestamp() * 1000 + float(f"0.{fraction or 0}") * 1000


def _shown(identifier: bytes) -> str:
    try:
        text = identifier.decode()
    except UnicodeDecodeError:
        return identifier.hex()
    return text if text.isprintable() else identifier.hex()
