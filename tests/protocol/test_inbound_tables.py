"""The parser's tables of properties and reason codes against paho's, whole; and noise through a whole client."""

from __future__ import annotations

import random
import socket
from typing import Any

import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

import glec_fast.mqtt
from glec_fast.errors import ProtocolError
from glec_fast.mqtt.inbound_message import InboundMessage
from glec_fast.protocol._inbound import NEED_DATA, Inbound
from support.differential import API2
from support.fuzz import SEED, STREAMS, damaged, packet
from support.wire_reference import remaining_length

# Packet type -> (first byte, what stands before the reason code or the properties, whether it has a reason code there).
PACKETS = {
    PacketTypes.CONNACK: (0x20, b"\x00", True),
    PacketTypes.PUBLISH: (0x30, b"\x00\x01t", False),
    PacketTypes.PUBACK: (0x40, b"\x00\x01", True),
    PacketTypes.PUBREC: (0x50, b"\x00\x01", True),
    PacketTypes.PUBREL: (0x62, b"\x00\x01", True),
    PacketTypes.PUBCOMP: (0x70, b"\x00\x01", True),
    PacketTypes.SUBACK: (0x90, b"\x00\x01", False),
    PacketTypes.UNSUBACK: (0xB0, b"\x00\x01", False),
    PacketTypes.DISCONNECT: (0xE0, b"", True),
}
name_of = PacketTypes.Names.__getitem__
EACH_PACKET = pytest.mark.parametrize("kind", PACKETS, ids=name_of)
LAST_IDENTIFIER = 127
# A value for each of paho's types: Byte, Two Byte Integer, Four Byte, Variable Byte, Binary, String, String Pair.
VALUES = (b"\x01", b"\x00\x01", b"\x00\x00\x00\x01", b"\x01", b"\x00\x01x", b"\x00\x01x", b"\x00\x01x\x00\x01y")
STRING, PAIR = 5, 6
FAILURE = 0x80
SESSION_EXPIRY, USER_PROPERTY, SUBSCRIPTION_IDENTIFIER = 17, 38, 11
# Where paho's table is not a server's: Disconnect with Will Message (3.14.2.1).
OTHERWISE = {(PacketTypes.DISCONNECT, 0x04): False}
KNOWN = Properties(PacketTypes.CONNACK).properties


def stream(kind: int, properties: bytes, reason: int | None = 0) -> bytes:
    """CONNACK where it is not the packet itself, then a packet with these properties."""
    first, body, has_reason = PACKETS[kind]
    if has_reason:
        body += bytes((reason or 0,))
    body += remaining_length(len(properties)) + properties
    if kind in (PacketTypes.SUBACK, PacketTypes.UNSUBACK):
        body += bytes((reason or 0,))
    found = bytes((first,)) + remaining_length(len(body)) + body
    return found if kind == PacketTypes.CONNACK else b"\x20\x03\x00\x00\x00" + found


def refusal(data: bytes) -> int:
    """The reason code with which it is refused, 0 where it is taken."""
    inbound = Inbound(InboundMessage)
    inbound.protocol_version = 5
    inbound.topic_alias_maximum = 1
    inbound.feed(data)
    try:
        while inbound.advance() != NEED_DATA:
            pass
    except ProtocolError as error:
        return error.reason_code
    assert inbound.buffered_bytes == 0
    return 0


@EACH_PACKET
def test_each_property_belongs_to_its_packets(kind: int) -> None:
    for identifier in range(LAST_IDENTIFIER + 1):
        type_, packets = KNOWN.get(identifier, (0, []))
        taken = kind in packets
        if kind == PacketTypes.DISCONNECT and identifier == SESSION_EXPIRY:
            # A server's has none (MQTT 5, 3.14.2.2.2).
            taken = False
        code = refusal(stream(kind, bytes((identifier,)) + VALUES[type_]))
        assert (code == 0) is taken, (identifier, code)
        if not taken:
            assert code == (0x82 if identifier == SESSION_EXPIRY and kind == PacketTypes.DISCONNECT else 0x81)


@EACH_PACKET
def test_each_property_stands_once_and_whole(kind: int) -> None:
    for identifier, (type_, packets) in KNOWN.items():
        if kind not in packets or (kind == PacketTypes.DISCONNECT and identifier == SESSION_EXPIRY):
            continue
        one = bytes((identifier,)) + VALUES[type_]
        repeats = identifier in (USER_PROPERTY, SUBSCRIPTION_IDENTIFIER)
        assert refusal(stream(kind, one + one)) == (0 if repeats else 0x82), identifier
        for size in range(1, len(one)):
            assert refusal(stream(kind, one[:size])) == 0x81, (identifier, size)
        if type_ in (STRING, PAIR):
            for wrong in (b"\x00", b"\xff", b"\xed\xa0\x80", b"\xc3"):
                text = len(wrong).to_bytes(2, "big") + wrong
                values = [text] if type_ == STRING else [text + b"\x00\x00", b"\x00\x00" + text]
                for value in values:
                    assert refusal(stream(kind, bytes((identifier,)) + value)) == 0x81, (identifier, wrong)


@pytest.mark.parametrize("kind", [kind for kind in PACKETS if kind != PacketTypes.PUBLISH], ids=name_of)
def test_each_reason_code_belongs_to_its_packets(kind: int) -> None:
    names = ReasonCode(PacketTypes.CONNACK).names
    for code in range(256):
        taken = any(kind in packets for packets in names.get(code, {}).values())
        taken = OTHERWISE.get((kind, code), taken)
        # Whatever a server refuses by is no reason to end a connection, which would be made again for the same.
        taken = taken or (code >= FAILURE and kind != PacketTypes.PUBREL)
        assert (refusal(stream(kind, b"", code)) == 0) is taken, hex(code)


@pytest.mark.parametrize("first", [0x40, 0x50, 0x62, 0x70, 0x90, 0xB0])
@pytest.mark.parametrize("version", [3, 4, 5])
def test_no_packet_has_the_id_0(version: int, first: int) -> None:
    body = b"\x00\x00"
    if first in (0x90, 0xB0) and version == 5:
        body += b"\x00\x00"
    elif first == 0x90:
        body += b"\x00"
    inbound = Inbound(InboundMessage)
    inbound.protocol_version = version
    inbound.feed(b"\x20\x03\x00\x00\x00" if version == 5 else b"\x20\x02\x00\x00")
    inbound.advance()
    inbound.feed(bytes((first, len(body))) + body)
    with pytest.raises(ProtocolError) as refused:
        inbound.advance()
    assert refused.value.reason_code == 0x82


class ClientOverPair(glec_fast.mqtt.Client):
    """A client whose connection is one end of a socket pair."""

    def _create_socket(self) -> Any:
        ours, self.peer = socket.socketpair()
        return ours


def test_a_refusal_that_paho_has_no_name_for() -> None:
    client = ClientOverPair(API2, "device", protocol=5)
    seen: list[str] = []
    client.on_connect = lambda *_: seen.append("on_connect")
    client.on_disconnect = lambda *_: seen.append("on_disconnect")
    client.connect("nowhere")
    with client.peer:
        client.peer.sendall(b"\x20\x03\x00\x99\x00")
        client.loop_read()
    assert seen == ["on_connect", "on_disconnect"]
    assert not client.is_connected()


@pytest.mark.parametrize("version", [3, 4, 5])
def test_noise_through_a_client_ends_its_connection_or_reaches_callbacks(version: int) -> None:
    """Whatever a server sends, no exception leaves the loop, and a callback is called with what it is promised."""
    called: dict[str, int] = {}

    def note(name: str) -> Any:
        def callback(*arguments: Any) -> None:
            called[name] = called.get(name, 0) + 1
            assert [str(each) for each in arguments]

        return callback

    # A refusal must not have it try again with another version.
    client = ClientOverPair(API2, "device", protocol=version, reconnect_on_failure=False)
    for name in ("on_connect", "on_disconnect", "on_message", "on_publish", "on_subscribe", "on_unsubscribe", "on_log"):
        setattr(client, name, note(name))
    for number in range(max(STREAMS // 5, 100)):
        dice = random.Random(f"client {SEED} {version} {number}")
        connack = b"\x20\x03\x00\x00\x00" if version == 5 else b"\x20\x02\x00\x00"
        noise = connack + b"".join(packet(dice, version) for _ in range(dice.randrange(1, 12)))
        if dice.random() < 0.8:
            noise = damaged(dice, noise)
        client.connect("nowhere")
        for qos in (0, 1, 2):
            client.publish("t", b"x", qos)
        with client.peer:
            client.peer.sendall(noise)
            client.peer.shutdown(socket.SHUT_WR)
            while client.socket() is not None:
                client.loop_read()
                client.loop_misc()
        assert not client.is_connected()
    assert set(called) >= {"on_connect", "on_disconnect", "on_message", "on_publish", "on_subscribe"}
