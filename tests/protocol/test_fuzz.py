"""Noise into the parsers of what a server sends: it is taken or refused, in whatever pieces, and nothing else.

FUZZ_STREAMS says how many streams, FUZZ_SEED which (`make fuzz`, which also has the compiler's sanitizers watch).
"""

from __future__ import annotations

import os
import random
from typing import Any

import pytest

from glec_fast.protocol._inbound import ACKS, MESSAGES, NEED_DATA, Inbound
from glec_fast.protocol._session import Session
from glec_fast.errors import ProtocolError
from glec_fast.mqtt.inbound_message import InboundMessage
from support.wire_reference import publish, remaining_length

STREAMS = int(os.environ.get("FUZZ_STREAMS", "1500"))
SEED = int(os.environ.get("FUZZ_SEED", "1"))
IN_FLIGHT = 8
TAILS = (b"", b"\x00", b"\x10", b"\x92\x00", b"\x80\x07\x1f\x00\x04why?", b"\x00\x05\x26\x00\x00\x00\x00")
# The values of a property by its identifier, in every packet that a server may send it in.
PROPERTIES = {
    **dict.fromkeys((1, 36, 37, 40, 41, 42), b"\x01"),
    **dict.fromkeys((19, 33, 34, 35), b"\x00\x01"),
    **dict.fromkeys((2, 17, 39), b"\x00\x00\x00\x09"),
    **dict.fromkeys((3, 8, 9, 18, 21, 22, 26, 28, 31), b"\x00\x03why"),
    11: b"\xff\x7f",
    38: b"\x00\x01k\x00\x02\xc3\xbc",
}
# The first four bits of the packet -> what may stand in it; the others have a reason string and user properties.
FITTING = {
    0x20: (17, 18, 19, 21, 22, 26, 28, 31, 33, 34, 36, 37, 38, 39, 40, 41, 42),
    0x30: (1, 2, 3, 8, 9, 11, 35, 38),
    0xE0: (28, 31, 38),
}


def properties(dice: random.Random, kind: int) -> bytes:
    """None most of the time, or some that mostly belong to such a packet."""
    fitting = FITTING.get(kind, (31, 38)) if dice.random() < 0.95 else tuple(PROPERTIES)
    chosen = dice.sample(fitting, dice.choice((0, 0, 0, 1, 1, 2)))
    packed = b"".join(bytes((identifier,)) + PROPERTIES[identifier] for identifier in chosen)
    return remaining_length(len(packed)) + packed


def packet(dice: random.Random, version: int) -> bytes:
    """One that may be right, more often than not."""
    kind = dice.choice((0x30, 0x32, 0x34, 0x40, 0x50, 0x62, 0x70, 0x90, 0xB0, 0xD0) * 3 + (0xE0, 0x20))
    mid = dice.randrange(IN_FLIGHT + 2) if dice.random() < 0.05 else dice.randrange(1, IN_FLIGHT + 1)
    if kind & 0xF0 == 0x30:
        packed = properties(dice, 0x30) if version == 5 else b""
        topic = dice.choice(("t", "a/b", "\u00e9" * dice.randrange(1, 40), "t", "t", "t", ""))
        return publish(topic, dice.randbytes(dice.randrange(40)), kind >> 1 & 3, mid, properties=packed)
    tail = dice.choice((*TAILS, b"\x00" + properties(dice, kind & 0xF0))) if version == 5 else b""
    body = mid.to_bytes(2, "big") + tail
    if kind in (0x90, 0xB0):
        body = mid.to_bytes(2, "big") + (properties(dice, kind) if version == 5 else b"")
        body += dice.choice((b"\x00", b"\x01\x80", b"\x02", b""))
    elif kind == 0x20:
        body = b"\x00\x00" + (properties(dice, kind) if version == 5 else b"")
    elif kind == 0xE0 and version == 5:
        body = dice.choice((b"", b"\x8b", b"\x00" + properties(dice, kind)))
    elif kind in (0xD0, 0xE0):
        body = b""
    return bytes((kind,)) + remaining_length(len(body)) + body


def damaged(dice: random.Random, stream: bytes) -> bytes:
    """The stream with a few of its bytes changed, taken out, put in or said twice."""
    data = bytearray(stream)
    for _ in range(dice.randrange(4)):
        at = dice.randrange(len(data))
        how = dice.randrange(5)
        if how == 0:
            data[at] ^= 1 << dice.randrange(8)
        elif how == 1:
            data[at] = dice.choice((0, 1, 0x7F, 0x80, 0xFF))
        elif how == 2:
            del data[at : at + dice.randrange(1, 6)]
            data += b"\xd0"
        elif how == 3:
            data[at:at] = dice.randbytes(dice.randrange(1, 6))
        else:
            data[at:at] = data[at : at + dice.randrange(1, 20)]
    return bytes(data)


def pieces_of(dice: random.Random, stream: bytes) -> list[bytes]:
    cuts = sorted(dice.choices(range(len(stream) + 1), k=dice.randrange(6)))
    return [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]


def outcome(version: int, pieces: list[bytes]) -> list[Any]:
    """All that was handed out, and the reason code where it ended with one."""
    inbound = Inbound(InboundMessage)
    inbound.protocol_version = version
    inbound.topic_alias_maximum = 2
    session = Session(window=IN_FLIGHT)
    session.protocol_version = version
    session.resume(False)
    for number in range(1, IN_FLIGHT + 1):
        session.admit(number, b"t", b"x", 1 + number % 2, packet_id=session.reserve_packet_id())
    # An acknowledgement of what was never sent would be refused.
    session.on_sent(len(session.peek(1 << 20)))
    found: list[Any] = []
    try:
        for piece in pieces:
            inbound.feed(piece)
            while (kind := inbound.advance()) != NEED_DATA:
                take(inbound, session, kind, found)
    except ProtocolError as error:
        found.append(error.reason_code)
    found.append((sorted(session.take_done()), sorted(session.take_refused()), session.in_flight))
    return found


def take(inbound: Inbound, session: Session, kind: int, found: list[Any]) -> None:
    if kind == ACKS:
        # One by one: where a run of them ends depends on the pieces.
        at = 0
        while at < len(inbound.acks):
            end = at + 2 + inbound.acks[at + 1]
            found.append(inbound.acks[at:end])
            session.on_acks(inbound.acks[at:end])
            at = end
    elif kind == MESSAGES:
        found += [(each.topic, each.payload, each.qos, each.mid, str(each.properties)) for each in inbound.messages]
    else:
        found.append((inbound.packet_command, inbound.packet_body))


@pytest.mark.parametrize("version", [3, 4, 5])
def test_noise_is_taken_or_refused_and_the_same_in_any_pieces(version: int) -> None:
    refused = 0
    for number in range(STREAMS):
        dice = random.Random(f"{SEED} {version} {number}")
        connack = b"\x20\x03\x00\x00\x00" if version == 5 else b"\x20\x02\x00\x00"
        if version == 5 and dice.random() < 0.2:
            packed = properties(dice, 0x20)
            connack = b"\x20" + remaining_length(2 + len(packed)) + b"\x00\x00" + packed
        stream = connack + b"".join(packet(dice, version) for _ in range(dice.randrange(1, 12)))
        if dice.random() < 0.8:
            stream = damaged(dice, stream)
        whole = outcome(version, [stream])
        assert outcome(version, pieces_of(dice, stream)) == whole, (number, stream.hex())
        refused += any(isinstance(each, int) for each in whole)
    assert 0 < refused < STREAMS
