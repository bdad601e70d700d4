"""What a manager counts, as one snapshot. docs/metrics.md has each figure's name elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, Literal, TypeAlias

from glec_fast.engine.connector import CertificateExpiry
from glec_fast.runtime.latency import NONE_YET, Latency

_CERTIFICATES = ("expiring_certificates", "certificates")
_LATENCIES = ("to_disk", "to_acknowledgement")
_BY_QOS = ("accepted", "on_disk", "published", "acknowledged")
# What they are like as JSON has them, where an empty snapshot does not show it.
_ANY = ""
_EACH_CERTIFICATE = CertificateExpiry("", "", 0.0)._asdict()
_LIKE: dict[str, Any] = {
    **{name: [_EACH_CERTIFICATE] for name in _CERTIFICATES},
    **dict.fromkeys(_LATENCIES, NONE_YET._asdict() | {"buckets": [(0.0, 0)]}),
    **{name: {_ANY: 0} for name in ("drops", "weaknesses", "commands")},
    "drops_by_qos": {_ANY: (0, 0, 0)},
}

LinkState: TypeAlias = Literal["idle", "connecting", "connected", "closed"]


@dataclass(frozen=True)
class Metrics:
    """A snapshot; immutable. Counters begin with the process, so that they never fall while it lives.

    is_connected: as of the manager. state: "idle" before `connect`, "connecting" while there is no link, "connected",
    "closed" after `disconnect`. in_state_s: since when, in seconds. reconnect_count: connections that followed another.
    last_failure: why the last connection ended or the last attempt failed; None where none did, or `disconnect` ended
    it. attempts, connects: to connect, and those the broker accepted.
    messages_sent: taken over by the broker (QoS 0: handed to the network). messages_failed: dropped, or refused by the
    broker. queue_size: messages not yet finished; queue_bytes: what the queue file and its logs take on the disk.
    sent_bytes, received_bytes: of all connections, MQTT's bytes alone, before TLS and TCP add theirs.
    drops: by reason, see `DropReason`. drops_by_qos: by reason, those of QoS 0, 1 and 2; not what a damaged file lost.
    lost_in_the_air: QoS 0 messages, among the drops, that had left when a link died; nothing proves that they arrived.
    batches, batched_messages: telemetry in batches, and of how many messages; batch_saved_bytes: what that kept from
    going out, before TLS and TCP.
    in_doubt: QoS 2 messages that a broker had received before it lost its session; see docs/internals/exactly-once.md.
    messages_received: those that came. messages_unhandled: those of QoS 0 that were too many, and those that no handler
    had subscribed to. inbox_size: those that came and are not handled yet. handler_errors: exceptions that handlers
    raised. subscriptions_refused: refusals by the broker. commands: by what they came to, see
    `glec_fast.fleet.commands.OUTCOMES`.
    pin_failures: connections refused as no key was pinned. expiring_certificates: those of the last handshake that end
    within 30 days. weaknesses: what the broker does that makes QoS 2 less than exactly once, and how often; see
    `glec_fast.outbox.weaknesses.Weakness`.

    By QoS 0, 1 and 2: accepted, messages that `publish` took; on_disk, those that were synchronised; published, PUBLISH
    packets made, also of what goes again; acknowledged, messages that the broker has answered (QoS 0: handed to the
    network). to_disk, to_acknowledgement: how long from the acceptance to that. oldest_s: how long the oldest message
    has waited. disk_written_bytes: what this process had the kernel write to disks, of all it does; 0 where the kernel
    does not say. disk_syncs: of the queue. clock_steps: of the wall clock, which moved the times of all messages.
    certificates: all of the last handshake, with their ends.
    """

    is_connected: bool
    messages_sent: int
    messages_failed: int
    queue_size: int
    reconnect_count: int
    in_doubt: int = 0
    drops: Mapping[str, int] = field(default_factory=dict)
    pin_failures: int = 0
    expiring_certificates: tuple[CertificateExpiry, ...] = ()
    weaknesses: Mapping[str, int] = field(default_factory=dict)
    state: LinkState = "idle"
    in_state_s: float = 0.0
    last_failure: str | None = None
    attempts: int = 0
    connects: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0
    queue_bytes: int = 0
    drops_by_qos: Mapping[str, Sequence[int]] = field(default_factory=dict)
    lost_in_the_air: int = 0
    accepted: Sequence[int] = (0, 0, 0)
    on_disk: Sequence[int] = (0, 0, 0)
    published: Sequence[int] = (0, 0, 0)
    acknowledged: Sequence[int] = (0, 0, 0)
    to_disk: Latency = NONE_YET
    to_acknowledgement: Latency = NONE_YET
    oldest_s: float = 0.0
    disk_written_bytes: int = 0
    disk_syncs: int = 0
    clock_steps: int = 0
    certificates: tuple[CertificateExpiry, ...] = ()
    messages_received: int = 0
    messages_unhandled: int = 0
    inbox_size: int = 0
    handler_errors: int = 0
    subscriptions_refused: int = 0
    batches: int = 0
    batched_messages: int = 0
    batch_saved_bytes: int = 0
    commands: Mapping[str, int] = field(default_factory=dict)


def metrics_as_json(metrics: Metrics) -> dict[str, Any]:
    """A snapshot as what JSON carries."""
    content = dict(vars(metrics))
    for name in _CERTIFICATES:
        content[name] = [each._asdict() for each in content[name]]
    for name in _LATENCIES:
        content[name] = content[name]._asdict()
    return content


def metrics_from_json(content: object) -> Metrics:
    """The snapshot of which `metrics_as_json` made this, also of another version: what that does not tell is 0.

    Raises ValueError for anything else.
    """
    if not isinstance(content, Mapping):
        raise ValueError("figures are an object")
    like = metrics_as_json(Metrics(False, 0, 0, 0, 0)) | _LIKE
    values: dict[str, Any] = {name: value for name, value in content.items() if name in like}
    for name, value in values.items():
        if not _is_like(value, like[name]):
            raise ValueError(f"{name} is no such figure")
    for name in _CERTIFICATES:
        values[name] = tuple(map(_certificate_of, values.get(name, ())))
    for name in _LATENCIES:
        if name in values:
            latency = {key: values[name][key] for key in Latency._fields}
            values[name] = Latency(**{**latency, "buckets": tuple(map(tuple, latency["buckets"]))})
    for name in _BY_QOS:
        if name in values:
            values[name] = tuple(values[name])
    try:
        return Metrics(**values)
    except TypeError as error:
        raise ValueError(f"figures are missing: {error}") from error


def _certificate_of(told: Mapping[str, Any]) -> CertificateExpiry:
    return CertificateExpiry(*(told[name] for name in CertificateExpiry._fields))


def _is_like(value: object, like: object) -> bool:
    """True where they have the same shape. A list is like any number of its only entry, a name of "" is like any."""
    if isinstance(like, Mapping):
        if not isinstance(value, Mapping):
            return False
        if _ANY in like:
            return all(_is_like(each, like[_ANY]) for each in value.values())
        return all(name in value and _is_like(value[name], each) for name, each in like.items())
    if isinstance(like, list):
        return isinstance(value, list) and all(_is_like(each, like[0]) for each in value)
    if isinstance(like, tuple):
        return isinstance(value, list) and len(value) == len(like) and all(map(_is_like, value, like))
    if like is None:
        return value is None or isinstance(value, str)
    if isinstance(like, (bool, str)):
        return isinstance(value, type(like))
    return type(value) is int or (isinstance(value, float) and isfinite(value))
