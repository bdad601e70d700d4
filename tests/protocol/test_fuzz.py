"""Noise into the parsers of what a server sends: it is taken or refused, in whatever pieces, and nothing else.

FUZZ_STREAMS says how many streams, FUZZ_SEED which (`make fuzz`, which also has the compiler's sanitizers watch).
"""

from __future__ import annotations

import random
from typing import Any

import pytest

from glec_fast.errors import ProtocolError
from glec_fast.mqtt.inbound_message import InboundMessage
from glec_fast.protocol._inbound import ACKS, MESSAGES, NEED_DATA, Inbound
from glec_fast.protocol._session import Session
from support.fuzz import IN_FLIGHT, SEED, STREAMS, damaged, packet, properties
from support.wire_reference import remaining_length


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


@pytest.mark.parametrize("stream", [b")u3bq \x02\x00", b"SSH-2.0-x\r\n", b"0000", b")u\x00", b"220 mail ESMTP\r\n"])
def test_what_is_no_mqtt_is_refused_for_the_same_reason_in_any_pieces(stream: bytes) -> None:
    """Whoever listens on that port may speak text, which is told by its first bytes."""
    whole = outcome(4, [stream])
    assert isinstance(whole[0], int)
    for cut in range(1, len(stream)):
        assert outcome(4, [stream[:cut], stream[cut:]]) == whole
    assert outcome(4, [stream[at : at + 1] for at in range(len(stream))]) == whole
