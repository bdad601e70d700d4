"""What a load takes over the air: MQTT's packets, TLS's records, and TCP/IP around them, as a SIM is billed."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from glec_fast.fleet.batches import BATCH_BYTES_MAX, encode_batch
from glec_fast.validation import packet_bytes

if TYPE_CHECKING:
    from glec_fast.cli.plan.load import Stream
    from glec_fast.fleet.config import Broker, MQTTConfig

# IPv4 and TCP with its time stamps.
SEGMENT_BYTES = 52
# Of data in a segment, as a mobile network carries them.
_SEGMENT_DATA_MAX = 1348
# TLS 1.3: header, kind and tag (RFC 8446, 5.2).
_RECORD_BYTES = 22
_RECORD_MAX = 16_384
# RFC 6455, 5.2: a client masks.
_FRAME_UP_BYTES, _FRAME_DOWN_BYTES, _FRAME_LONG_BYTES = 6, 2, 2
_FRAME_SHORT_MAX = 125
_ACK_BYTES, _PING_BYTES = 4, 2
# MQTT 5, 3.3.2.3.4: identifier and number.
_ALIAS_BYTES = 3
_STATUS_BYTES = 260
_MQTT_5 = 5
DAY_S = 86_400.0


class Air(NamedTuple):
    """Bytes a day, both directions: as MQTT alone, and with what is around it."""

    mqtt_per_day: float
    per_day: float


class _Link:
    """What a packet takes on this way to a broker."""

    def __init__(self, broker: Broker) -> None:
        self._is_tls = broker.tls
        self._is_framed = broker.transport == "websockets"

    def packet(self, size: float, *, is_up: bool) -> float:
        """One that leaves alone, with its segments."""
        if self._is_framed:
            size += _FRAME_UP_BYTES if is_up else _FRAME_DOWN_BYTES
            size += _FRAME_LONG_BYTES if size > _FRAME_SHORT_MAX else 0
        if self._is_tls:
            size += _RECORD_BYTES * -(-size // _RECORD_MAX)
        return size + SEGMENT_BYTES * -(-size // _SEGMENT_DATA_MAX)

    def exchange(self, size: float, qos: int) -> float:
        """A PUBLISH and all that follows it. An answer carries TCP's acknowledgement; the last one is acknowledged."""
        total = self.packet(size, is_up=True) + SEGMENT_BYTES
        for count in range((0, 1, 3)[qos]):
            total += self.packet(_ACK_BYTES, is_up=count == 1)
        return total

    def ping(self) -> float:
        return self.packet(_PING_BYTES, is_up=True) + self.packet(_PING_BYTES, is_up=False) + SEGMENT_BYTES


def over_the_air(streams: list[Stream], config: MQTTConfig) -> dict[str, Air | None]:
    """By way of sending: "plain", "topic alias" (MQTT 5), "batches"; None where nobody can tell, as without content."""
    link, is_5 = _Link(config.broker), config.protocol_version == _MQTT_5
    plain = _Bill(link, config)
    alias = _Bill(link, config)
    batched: _Bill | None = _Bill(link, config)
    for stream in streams:
        size = _packet_bytes(stream.topic, stream.payload_bytes, stream.qos, is_5=is_5)
        plain.add(stream.per_s, size, stream.qos)
        short = _packet_bytes("", stream.payload_bytes + _ALIAS_BYTES, stream.qos, is_5=True)
        alias.add(
            stream.per_s,
            min(short, _packet_bytes(stream.topic, stream.payload_bytes, stream.qos, is_5=True)),
            stream.qos,
        )
        if batched is None:
            continue
        if not stream.is_telemetry:
            batched.add(stream.per_s, size, stream.qos)
        elif (found := batch_of(stream, config.telemetry_batch_s or DEFAULT_BATCH_S)) is None:
            batched = None
        else:
            count, payload = found
            batched.add(stream.per_s / count, _packet_bytes(f"{stream.topic}/batch", payload, 1, is_5=is_5), 1)
    return {
        "plain": plain.total(),
        "topic alias": alias.total(),
        "batches": None if batched is None or not any(each.is_telemetry for each in streams) else batched.total(),
    }


DEFAULT_BATCH_S = 60.0


def batch_of(stream: Stream, batch_s: float) -> tuple[float, float] | None:
    """(messages in a batch, bytes of its payload); None for content that is not JSON."""
    if not stream.payloads[0].startswith(b"{"):
        return None
    count = max(min(round(stream.per_s * batch_s), int(BATCH_BYTES_MAX / (stream.payload_bytes + 1))), 1)
    sizes = [
        len(encode_batch(list(stream.payloads[first : first + count])))
        for first in range(0, max(len(stream.payloads) - count + 1, 1), count)
    ]
    return float(count), sum(sizes) / len(sizes)


class _Bill:
    def __init__(self, link: _Link, config: MQTTConfig) -> None:
        self._link = link
        self._config = config
        self._mqtt = self._air = 0.0
        # Of packets up, and of those that the broker answers.
        self._sends_per_s = self._answers_per_s = 0.0
        if config.status_interval_s:
            size = _packet_bytes(f"glec/dtg/{config.client_id}/status", _STATUS_BYTES, 1, is_5=False)
            self.add(1 / config.status_interval_s, size, 1)

    def add(self, per_s: float, size: float, qos: int) -> None:
        self._mqtt += per_s * (size + (0, 1, 3)[qos] * _ACK_BYTES)
        self._air += per_s * self._link.exchange(size, qos)
        self._sends_per_s += per_s
        self._answers_per_s += per_s if qos else 0.0

    def total(self) -> Air:
        pings_per_s = self._pings_per_s()
        mqtt = self._mqtt + pings_per_s * 2 * _PING_BYTES
        return Air(mqtt * DAY_S, (self._air + pings_per_s * self._link.ping()) * DAY_S)

    def _pings_per_s(self) -> float:
        """Each keep alive; and where what has left goes unanswered for `answer_timeout_s`."""
        keepalive = 1 / self._config.keepalive_s if self._config.keepalive_s else 0.0
        unanswered = self._sends_per_s - self._answers_per_s
        if not self._config.answer_timeout_s or not unanswered:
            return keepalive
        return max(keepalive, 1 / (self._config.answer_timeout_s + 1 / unanswered) - self._answers_per_s)


def _packet_bytes(topic: str, payload_bytes: float, qos: int, *, is_5: bool) -> float:
    whole = int(payload_bytes)
    return packet_bytes(topic, b"\0" * whole, qos, None if is_5 else b"") + (payload_bytes - whole)
