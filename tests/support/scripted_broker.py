"""A broker as a plain object: bytes in, bytes out, and its session as MQTT says it must be. It notes what it hands on.

It is strict: what no correct client may send it is an AssertionError.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from support.wire_reference import PUBACK, PUBCOMP, PUBLISH, PUBREC, PUBREL, Packet, ack, parse

PINGREQ, PINGRESP = 12, b"\xd0\x00"
MQTT_5 = 5


class Publication(NamedTuple):
    """A PUBLISH, taken apart."""

    payload: str
    qos: int
    packet_id: int
    dup: bool


@dataclass
class ScriptedBroker:
    """Its session outlives connections; `lose_session` forgets it.

    hands_on_at_release: a QoS 2 message is passed on at its PUBREL, not before; MQTT allows both (section 4.3.3).
    knows_qos_2: False for one that takes QoS 2 as QoS 1, and answers it with PUBACK.
    max_unreleased: QoS 2 messages without PUBREL that it keeps, as mosquitto's max_inflight_messages; more of them are
    a fault of the client. 0 for any number.
    """

    protocol_version: int = 4
    max_unreleased: int = 0
    hands_on_at_release: bool = False
    knows_qos_2: bool = True
    delivered: list[str] = field(default_factory=list)
    # Received and not yet released: packet id -> payload.
    held: dict[int, str] = field(default_factory=dict)
    inbox: bytes = b""
    # Its session came back as it had been before.
    stale: bool = False

    def feed(self, data: bytes) -> None:
        """Bytes arrive; nothing is done about them yet."""
        self.inbox += data

    def waiting_packets(self) -> int:
        """Whole packets that arrived and were not handled."""
        return len(parse(self.inbox)[0])

    def handle(self, count: int) -> bytes:
        """Handle the next packets, at most `count`; returns the answers."""
        packets, self.inbox = _divided(self.inbox, count)
        return b"".join(self.answer(packet) for packet in packets)

    def answer(self, packet: Packet) -> bytes:
        """The answer to one packet, after what it does to the session."""
        if packet.kind == PUBREL:
            assert packet.flags == 2, "the reserved flags of PUBREL"
            payload = self.held.pop(packet.packet_id, None)
            if payload is not None and self.hands_on_at_release:
                self.delivered.append(payload)
            return ack(PUBCOMP, packet.packet_id)
        if packet.kind == PINGREQ:
            return PINGRESP
        assert packet.kind == PUBLISH, f"a publisher sends no packet of type {packet.kind}"
        return self._on_publish(publication_of(packet, self.protocol_version))

    def _on_publish(self, publication: Publication) -> bytes:
        payload, qos, packet_id, dup = publication
        if qos == 0:
            self.delivered.append(payload)
            return b""
        if qos == 1 or not self.knows_qos_2:
            self.delivered.append(payload)
            return ack(PUBACK, packet_id)
        if packet_id in self.held:
            known = self.held[packet_id]
            assert known == payload, f"packet id {packet_id} of {known} was used for {payload} before its PUBREL"
            assert dup, f"a second copy of {payload} without DUP"
        else:
            assert not self.max_unreleased or len(self.held) < self.max_unreleased, "mosquitto would drop it"
            self.held[packet_id] = payload
            if not self.hands_on_at_release:
                self.delivered.append(payload)
        return ack(PUBREC, packet_id)

    def cut(self, *, arrives: bool) -> None:
        """The connection is gone; what had arrived is handled where `arrives`, the answers are lost."""
        if arrives:
            self.handle(self.waiting_packets())
        self.inbox = b""

    def lose_session(self) -> None:
        self.held.clear()

    def copied(self) -> ScriptedBroker:
        """Another one in the same state."""
        # Not by `replace`: searches make hundreds of thousands.
        other = ScriptedBroker.__new__(ScriptedBroker)
        other.__dict__.update(self.__dict__, delivered=list(self.delivered), held=dict(self.held))
        return other

    def counts(self) -> Counter[str]:
        """How often each payload was handed on."""
        return Counter(self.delivered)


@lru_cache
def publication_of(packet: Packet, protocol_version: int) -> Publication:
    """Take a PUBLISH apart (section 3.3)."""
    qos = packet.flags >> 1 & 3
    at = 2 + int.from_bytes(packet.body[:2], "big") + (2 if qos else 0)
    if protocol_version == MQTT_5:
        assert packet.body[at] == 0, "properties that nobody gave"
        at += 1
    return Publication(packet.body[at:].decode(), qos, packet.packet_id, packet.dup)


@lru_cache
def _divided(inbox: bytes, count: int) -> tuple[list[Packet], bytes]:
    """The first packets, at most `count`, and the bytes behind them."""
    packets, rest = parse(inbox)
    return packets[:count], b"".join(map(_encode, packets[count:])) + rest


def _encode(packet: Packet) -> bytes:
    body_bytes, length = len(packet.body), b""
    while True:
        digit, body_bytes = body_bytes % 128, body_bytes // 128
        length += bytes([digit | (128 if body_bytes else 0)])
        if not body_bytes:
            return bytes([packet.kind << 4 | packet.flags]) + length + packet.body
