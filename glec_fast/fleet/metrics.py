"""What a manager counts, as one snapshot. docs/metrics.md has each figure's name elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from glec_fast.engine.connector import CertificateExpiry

LinkState: TypeAlias = Literal["idle", "connecting", "connected", "closed"]


@dataclass(frozen=True)
class Metrics:
    """A snapshot; immutable. Counters begin with the process, so that they never fall while it lives.

    state: "idle" before `connect`, "connecting" while there is no link, "connected", "closed" after `disconnect`.
    in_state_s: since when, in seconds. last_failure: why the last connection ended or the last attempt failed; None
    where none did, or `disconnect` ended it. attempts, connects: to connect, and those the broker accepted.
    messages_sent: taken over by the broker (QoS 0: handed to the network). messages_failed: dropped, or refused by the
    broker. queue_size: messages not yet finished; queue_bytes: what the queue file and its logs take on the disk.
    sent_bytes, received_bytes: of all connections, MQTT's bytes alone, before TLS and TCP add theirs.
    drops: by reason, see `DropReason`. drops_by_qos: by reason, those of QoS 0, 1 and 2; not what a damaged file lost.
    lost_in_the_air: QoS 0 messages, among the drops, that had left when a link died; nothing proves that they arrived.
    in_doubt: QoS 2 messages that a broker had received before it lost its session; see docs/internals/exactly-once.md.
    pin_failures: connections refused as no key was pinned. expiring_certificates: those of the last handshake that end
    within 30 days. weaknesses: what the broker does that makes QoS 2 less than exactly once, and how often; see
    `glec_fast.outbox.weaknesses.Weakness`.
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


def metrics_as_json(metrics: Metrics) -> dict[str, Any]:
    """A snapshot as what JSON carries."""
    return {**vars(metrics), "expiring_certificates": [each._asdict() for each in metrics.expiring_certificates]}


def metrics_from_json(content: Mapping[str, Any]) -> Metrics:
    """The snapshot of which `metrics_as_json` made this."""
    certificates = tuple(CertificateExpiry(**each) for each in content["expiring_certificates"])
    return Metrics(**{**content, "expiring_certificates": certificates})
