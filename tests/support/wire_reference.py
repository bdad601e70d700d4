"""MQTT packets, the slow and obvious way: the oracle for the session's encoder."""

from __future__ import annotations

import struct
from typing import NamedTuple

PUBLISH, PUBACK, PUBREC, PUBREL, PUBCOMP = 3, 4, 5, 6, 7


class Packet(NamedTuple):
    """One packet: type (1 to 15), the four flag bits, and the body behind the remaining length."""

    kind: int
    flags: int
    body: bytes

    @property
    def packet_id(self) -> int:
        """Of an acknowledgement, or of a PUBLISH with QoS 1 or 2; 0 of one with QoS 0."""
        if self.kind != PUBLISH:
            return int(struct.unpack(">H", self.body[:2])[0])
        if not self.flags & 6:
            return 0
        topic_bytes = struct.unpack(">H", self.body[:2])[0]
        return int(struct.unpack(">H", self.body[2 + topic_bytes : 4 + topic_bytes])[0])

    @property
    def dup(self) -> bool:
        """The DUP flag of a PUBLISH."""
        return bool(self.flags & 8)


def remaining_length(value: int) -> bytes:
    """Section 2.2.3."""
    digits = [value % 128]
    while value := value // 128:
        digits[-1] += 128
        digits.append(value % 128)
    return bytes(digits)


def publish(
    topic: str,
    payload: bytes,
    qos: int,
    packet_id: int,
    *,
    retain: bool = False,
    dup: bool = False,
    properties: bytes = b"",
) -> bytes:
    """Section 3.3; `properties` with their own length in front, for MQTT 5."""
    encoded_topic = topic.encode()
    body = struct.pack(">H", len(encoded_topic)) + encoded_topic
    if qos:
        body += struct.pack(">H", packet_id)
    body += properties + payload
    return bytes([0x30 | dup << 3 | qos << 1 | retain]) + remaining_length(len(body)) + body


def ack(kind: int, packet_id: int, tail: bytes = b"") -> bytes:
    """PUBACK, PUBREC, PUBREL or PUBCOMP; `tail` is MQTT 5's reason code and properties."""
    body = struct.pack(">H", packet_id) + tail
    return bytes([kind << 4 | (2 if kind == PUBREL else 0)]) + remaining_length(len(body)) + body


def parse(stream: bytes) -> tuple[list[Packet], bytes]:
    """The whole packets of a stream, and what is left of a last one."""
    packets = []
    while len(stream) >= 2:
        length, shift, at = 0, 0, 1
        while at < len(stream):
            length |= (stream[at] & 127) << shift
            shift += 7
            at += 1
            if not stream[at - 1] & 128:
                break
        else:
            break
        if len(stream) < at + length:
            break
        packets.append(Packet(stream[0] >> 4, stream[0] & 15, stream[at : at + length]))
        stream = stream[at + length :]
    return packets, stream
