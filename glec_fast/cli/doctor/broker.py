"""What a broker is: the versions it speaks, whether it knows QoS 2, what it limits, retains, keeps, and how it answers.

Tried out under a name of its own, and on a topic of its own, glec-fast/doctor/CLIENT_ID, of which nothing is left.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from glec_fast.cli.doctor.conversation import MQTT_3, MQTT_5, PUBACK, PUBCOMP, PUBLISH, PUBREC, SUBACK, Conversation
from glec_fast.cli.doctor.finding import Finding
from glec_fast.errors import GlecError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from glec_fast.fleet.config import MQTTConfig

CHECKS = ("versions", "qos 2", "retain", "limits", "session", "answers")
_NAMES = {MQTT_3: "MQTT 3.1.1", MQTT_5: "MQTT 5"}
_REFUSED = 0x80
_MAX_QOS = (
    "set max_qos (mqtt.connection.max_qos) to 0: all goes with QoS 0 then, at most once, and so does the will",
    "set max_qos (mqtt.connection.max_qos) to 1: what has QoS 2 goes with QoS 1 then, at least once",
)
_NO_STATUS = "set status_retained to false: consumers that come later are not told the last status"
# A kernel acknowledges 40 ms late, and a broker with Nagle's algorithm waits for that.
_LATE_S = 0.03
_ROUNDS = 5
_LIMITS = (
    ("ReceiveMaximum", "{} messages unacknowledged at once"),
    ("MaximumPacketSize", "packets of {:,} bytes"),
    ("TopicAliasMaximum", "{} topic aliases"),
    ("ServerKeepAlive", "a keep alive of {} s"),
    ("SessionExpiryInterval", "a session of {:,} s"),
)


def examine_broker(config: MQTTConfig, client_id: str) -> Iterator[Finding]:
    """The findings. The login has been accepted."""
    topic = f"glec-fast/doctor/{client_id}"
    accepted = {version: _speaks(config, client_id, version) for version in (MQTT_3, MQTT_5)}
    spoken = [version for version in accepted if isinstance(accepted[version], dict)]
    yield _versions(config, accepted)
    if not spoken:
        yield from (Finding(check, "skipped", "it accepted no version") for check in CHECKS[1:])
        return
    version = config.protocol_version if config.protocol_version in spoken else spoken[0]
    says = accepted.get(MQTT_5)
    properties: dict[str, Any] = says if isinstance(says, dict) else {}
    yield _attempt("qos 2", lambda: _qos_2(config, client_id, version, topic, properties))
    yield _attempt("retain", lambda: _retain(config, client_id, version, topic, properties))
    yield _limits(properties, is_5=MQTT_5 in spoken)
    yield _attempt("session", lambda: _session(config, client_id, version))
    yield _attempt("answers", lambda: _answers(config, client_id, version, topic))


def _speaks(config: MQTTConfig, client_id: str, version: int) -> dict[str, Any] | str:
    """CONNACK's properties; in words where it does not accept this version."""
    try:
        with Conversation(config, client_id, version, is_clean=True) as talk:
            if talk.accepted.reason:
                return f"refuses it with reason {talk.accepted.reason}"
            return talk.accepted.properties
    except EOFError:
        return "ends the connection before CONNACK"
    except (OSError, GlecError) as error:
        return f"fails: {error}"


def _versions(config: MQTTConfig, accepted: dict[int, dict[str, Any] | str]) -> Finding:
    spoken = [name for version, name in _NAMES.items() if isinstance(accepted[version], dict)]
    found = f"it speaks {' and '.join(spoken)}" if spoken else "it accepts neither version"
    others = [f"; {_NAMES[version]}: it {says}" for version, says in accepted.items() if isinstance(says, str)]
    found += "".join(others)
    if isinstance(accepted[config.protocol_version], dict):
        return Finding("versions", "ok", found)
    return Finding("versions", "failed", found, "set protocol_version (mqtt.protocol.version) to one that it speaks")


def _attempt(check: str, look: Any) -> Finding:
    try:
        finding: Finding = look()
    except EOFError:
        return Finding(
            check, "warning", "the broker ended the connection meanwhile", "see its log, and its access rules"
        )
    except (OSError, GlecError, ValueError, IndexError) as error:
        return Finding(check, "warning", f"it could not be found out ({error})", "see the broker's log")
    return finding


def _qos_2(config: MQTTConfig, client_id: str, version: int, topic: str, properties: dict[str, Any]) -> Finding:
    highest = properties.get("MaximumQoS", 2)
    if version == MQTT_5 and highest < 2:
        return Finding("qos 2", "warning", f"it takes QoS {highest} at most, as it says", _MAX_QOS[highest])
    with Conversation(config, client_id, version, is_clean=True) as talk:
        try:
            talk.send_all(talk.publish(topic, b"glec-fast doctor", 2, 1))
            answer = talk.receive(PUBACK, PUBREC)
        except (EOFError, TimeoutError, ConnectionError):
            found, advice = "it ends the connection over QoS 2, or gives it no answer", _MAX_QOS[min(highest, 1)]
            return Finding("qos 2", "warning", found, advice)
        if answer.kind == PUBACK:
            return Finding("qos 2", "warning", "it answers QoS 2 as QoS 1: messages may come twice", _MAX_QOS[1])
        if len(answer.body) > 2 and answer.body[2] >= _REFUSED:
            found = f"it does not let us publish to {topic} (reason 0x{answer.body[2]:02X})"
            return Finding("qos 2", "skipped", found)
        talk.send(0x62, answer.body[:2])
        try:
            talk.receive(PUBCOMP)
            # Once more: the answer may have been lost, and a link that breaks leaves nobody another way.
            talk.send(0x62, answer.body[:2])
            talk.receive(PUBCOMP)
        except (EOFError, TimeoutError, ConnectionError):
            found = "it knows QoS 2, but gives a repeated PUBREL no PUBCOMP: a broken link can leave messages in doubt"
            return Finding("qos 2", "warning", found, "see docs/brokers.md for brokers that keep to it")
    return Finding("qos 2", "ok", "it answers PUBREC and PUBCOMP, the latter to a repeated PUBREL too")


def _retain(config: MQTTConfig, client_id: str, version: int, topic: str, properties: dict[str, Any]) -> Finding:
    if version == MQTT_5 and not properties.get("RetainAvailable", 1):
        return Finding("retain", "warning", "it retains no message, as it says", _NO_STATUS)
    try:
        is_kept = _is_retained(config, client_id, version, topic)
    except EOFError:
        return Finding("retain", "warning", "it ends the connection over a message to be retained", _NO_STATUS)
    if is_kept is None:
        return Finding("retain", "skipped", f"it does not let us subscribe to {topic}")
    with Conversation(config, client_id, version, is_clean=True) as talk:
        # It is not left behind.
        talk.send_all(talk.publish(topic, b"", 1, 1, retain=True))
        talk.receive(PUBACK)
    if is_kept:
        return Finding("retain", "ok", "it keeps the last message of a topic for those who come later")
    return Finding("retain", "warning", "it retains no message", _NO_STATUS)


def _is_retained(config: MQTTConfig, client_id: str, version: int, topic: str) -> bool | None:
    """Whether a subscriber is given what was retained; None where there can be none."""
    with Conversation(config, client_id, version, is_clean=True) as talk:
        talk.send_all(talk.publish(topic, b"glec-fast doctor", 1, 1, retain=True))
        talk.receive(PUBACK)
        name = topic.encode()
        head = b"\x00\x02" + (b"\0" if version == MQTT_5 else b"")
        talk.send(0x82, head + len(name).to_bytes(2, "big") + name + b"\x00")
        if talk.receive(SUBACK).body[-1] >= _REFUSED:
            return None
        try:
            return bool(talk.receive(PUBLISH).flags & 1)
        except TimeoutError:
            return False


def _limits(properties: dict[str, Any], *, is_5: bool) -> Finding:
    if not is_5:
        return Finding("limits", "skipped", "MQTT 3.1.1 has no way to tell them: see the broker's settings")
    told = [text.format(properties[name]) for name, text in _LIMITS if name in properties]
    missing = [
        text
        for name, text in (
            ("WildcardSubscriptionAvailable", "wildcards"),
            ("SharedSubscriptionAvailable", "shared subscriptions"),
        )
        if not properties.get(name, 1)
    ]
    found = f"it allows {', '.join(told)}" if told else "it names none"
    return Finding("limits", "ok", found + (f"; no {' and no '.join(missing)}" if missing else ""))


def _session(config: MQTTConfig, client_id: str, version: int) -> Finding:
    with Conversation(config, client_id, version, is_clean=False):
        pass
    with Conversation(config, client_id, version, is_clean=False) as talk:
        is_kept = talk.accepted.session_present
    # It is not left behind.
    with Conversation(config, client_id, version, is_clean=True):
        pass
    if is_kept:
        return Finding("session", "ok", "it keeps a session over a broken link, which exactly once needs")
    found = "it keeps no session: QoS 2 on its way as a link breaks may come twice, or be missing"
    return Finding("session", "warning", found, "see its settings for persistent sessions")


def _answers(config: MQTTConfig, client_id: str, version: int, topic: str) -> Finding:
    spans = []
    with Conversation(config, client_id, version, is_clean=True) as talk:
        for number in range(_ROUNDS):
            talk.answer_late()
            # Two questions in one segment, for which the broker has two answers while it hears nothing more of us.
            talk.send_all(b"".join(talk.publish(topic, b"x", 1, 2 * number + index) for index in (1, 2)))
            talk.receive(PUBACK)
            began_s = time.monotonic()
            talk.receive(PUBACK)
            spans.append(time.monotonic() - began_s)
    # Of a broker that waits, all are late; of a busy one, not all.
    span_s = min(spans)
    if span_s < _LATE_S:
        return Finding("answers", "ok", f"an answer follows another after {span_s * 1e3:.1f} ms")
    found = (
        f"an answer follows another after {span_s * 1e3:.0f} ms: the broker waits for our kernel (Nagle's algorithm)"
    )
    return Finding("answers", "warning", found, "have the broker set TCP_NODELAY (mosquitto: set_tcp_nodelay true)")
