"""The parser of what a server sends: every rule of the standard, whole, in single bytes, and noise."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest
from paho.mqtt import client as paho
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from glec_fast.errors import ProtocolError
from glec_fast.mqtt.inbound_message import InboundMessage
from glec_fast.protocol._inbound import ACKS, MESSAGES, NEED_DATA, PACKET, Inbound
from support.wire_reference import remaining_length

if TYPE_CHECKING:
    from collections.abc import Iterable

V31, V311, V5 = 3, 4, 5
ALL = (V31, V311, V5)
MALFORMED, BROKEN, ALIAS, TOO_LARGE = 0x81, 0x82, 0x94, 0x95


def packet(command: int, body: bytes) -> bytes:
    return bytes((command,)) + remaining_length(len(body)) + body


def connack(version: int) -> bytes:
    return packet(0x20, b"\x00\x00\x00" if version == V5 else b"\x00\x00")


def parser(version: int, *, accepted: bool = True) -> Inbound:
    inbound = Inbound(InboundMessage)
    inbound.protocol_version = version
    if accepted:
        inbound.feed(connack(version))
        assert inbound.advance() == PACKET
    return inbound


def everything(inbound: Inbound) -> list[Any]:
    found: list[Any] = []
    while True:
        kind = inbound.advance()
        if kind == NEED_DATA:
            return found
        if kind == ACKS:
            found.append(inbound.acks)
        elif kind == MESSAGES:
            found += [as_tuple(message) for message in inbound.messages]
        else:
            found.append((inbound.packet_command, inbound.packet_body))


def take_all(inbound: Inbound, pieces: Iterable[bytes]) -> None:
    for piece in pieces:
        inbound.feed(piece)
        everything(inbound)


def as_tuple(message: Any) -> tuple[Any, ...]:
    properties = message.properties
    return (
        message.topic,
        message.payload,
        message.qos,
        message.mid,
        message.dup,
        message.retain,
        None if properties is None else properties.json(),
    )


def refusal(version: int, data: bytes, **settings: int) -> int:
    """The reason code with which `data` is refused after CONNACK: whole, byte by byte, and with a packet before it."""
    codes = set()
    for pieces in ([data], [data[at : at + 1] for at in range(len(data))], [b"\xd0\x00" + data]):
        inbound = parser(version)
        for name, value in settings.items():
            setattr(inbound, name, value)
        with pytest.raises(ProtocolError) as refused:
            take_all(inbound, pieces)
        codes.add(refused.value.reason_code)
        # Nothing is said of it later either.
        with pytest.raises(ProtocolError):
            inbound.advance()
    assert len(codes) == 1
    return codes.pop()


def publish_body(
    topic: bytes, packet_id: int | None = None, properties: bytes | None = None, payload: bytes = b""
) -> bytes:
    middle = b"" if packet_id is None else packet_id.to_bytes(2, "big")
    return len(topic).to_bytes(2, "big") + topic + middle + (properties or b"") + payload


# ---- what is right


@pytest.mark.parametrize("version", ALL)
def test_messages_are_taken_apart(version: int) -> None:
    none = b"\x00" if version == V5 else None
    data = (
        packet(0x30, publish_body(b"a/b", None, none, b"x" * 300))
        + packet(0x3B, publish_body(b"a/b", 7, none, b""))
        + packet(0x34, publish_body("ü/\N{GRINNING FACE}".encode(), 65535, none, b"\x00\xff"))
    )
    empty = {} if version == V5 else None
    expected = [
        ("a/b", b"x" * 300, 0, 0, False, False, empty),
        ("a/b", b"", 1, 7, True, True, empty),
        ("ü/\N{GRINNING FACE}", b"\x00\xff", 2, 65535, False, False, empty),
    ]
    inbound = parser(version)
    inbound.feed(data)
    assert everything(inbound) == expected
    found = []
    for at in range(len(data)):
        inbound.feed(data[at : at + 1])
        found += everything(inbound)
    assert found == expected
    assert inbound.buffered_bytes == 0


def test_kinds_keep_their_order() -> None:
    inbound = parser(V311)
    acks = b"\x40\x02\x00\x01\x50\x02\x00\x02\x70\x02\x00\x03"
    message = packet(0x30, publish_body(b"t"))
    inbound.feed(acks + message + message + acks + b"\xd0\x00\x62\x02\x00\x09" + acks[:3])
    text = ("t", b"", 0, 0, False, False, None)
    assert everything(inbound) == [acks, text, text, acks, (0xD0, b""), (0x62, b"\x00\x09")]
    inbound.one_by_one = True
    inbound.feed(acks[3:])
    assert everything(inbound) == [acks[:4], acks[4:8], acks[8:]]


def test_a_long_stream_is_handed_out_in_pieces() -> None:
    inbound = parser(V311)
    inbound.feed(packet(0x30, publish_body(b"t")) * 1000)
    assert inbound.advance() == MESSAGES
    assert 100 < len(inbound.messages) < 1000
    first = len(inbound.messages)
    assert len(everything(inbound)) == 1000 - first


def test_properties_are_those_that_paho_reads() -> None:
    sent = Properties(PacketTypes.PUBLISH)
    sent.PayloadFormatIndicator = 1
    sent.MessageExpiryInterval = 2**32 - 1
    sent.ContentType = "text/ü"
    sent.ResponseTopic = "answers"
    sent.CorrelationData = b"\x00\x01"
    sent.SubscriptionIdentifier = [1, 268_435_455]
    sent.UserProperty = [("a", "1"), ("a", "2")]
    inbound = parser(V5)
    inbound.feed(packet(0x30, publish_body(b"t", None, sent.pack(), b"p")))
    assert inbound.advance() == MESSAGES
    message: Any = inbound.messages[0]
    assert isinstance(message, paho.MQTTMessage)
    assert message.properties.json() == sent.json()
    assert message.properties is message.properties
    assert message.properties.pack() == sent.pack()
    assert message.info.mid == message.mid
    assert message.info is message.info


@pytest.mark.parametrize(
    ("version", "data"),
    [
        (V311, b"\x90\x03\x00\x01\x80"),
        (V31, b"\x90\x04\x00\x01\x00\x02"),
        (V5, b"\x90\x04\x00\x01\x00\x97"),
        (V311, b"\xb0\x02\x00\x01"),
        (V5, b"\xb0\x05\x00\x01\x00\x00\x11"),
        (V5, b"\x62\x02\x00\x01"),
        (V5, b"\x62\x03\x00\x01\x92"),
        (V5, b"\x62\x08\x00\x01\x00\x04\x1f\x00\x01x"),
        (V5, b"\xe0\x00"),
        (V5, b"\xe0\x01\x8b"),
        (V5, b"\xe0\x02\x00\x00"),
        (V5, b"\xe0\x06\x9d\x04\x1c\x00\x01x"),
        (V31, b"\x6a\x02\x00\x01"),
    ],
)
def test_packets_that_are_right(version: int, data: bytes) -> None:
    inbound = parser(version)
    inbound.feed(data)
    assert everything(inbound) == [(data[0], data[2:])]


@pytest.mark.parametrize(
    ("version", "data"),
    [
        (V31, b"\x20\x02\xff\x00"),
        (V311, b"\x20\x02\x01\x00"),
        (V311, b"\x20\x02\x00\x05"),
        (V5, b"\x20\x03\x00\x87\x00"),
        (V5, b"\x20\x02\x00\x01"),
        (V5, b"\x20\x06\x01\x00\x03\x21\x00\x14"),
    ],
)
def test_connack_that_is_right(version: int, data: bytes) -> None:
    inbound = parser(version, accepted=False)
    inbound.feed(data)
    assert everything(inbound) == [(0x20, data[2:])]


@pytest.mark.parametrize("code", [0, 0x10, 0x80, 0x99])
def test_acks_of_mqtt_5(code: int) -> None:
    data = b"\x40\x03\x00\x01" + bytes((code,)) + b"\x50\x04\x00\x01" + bytes((code,)) + b"\x00\x70\x02\x00\x02"
    inbound = parser(V5)
    inbound.feed(data)
    assert everything(inbound) == [data]


# ---- what is wrong


@pytest.mark.parametrize("version", ALL)
@pytest.mark.parametrize(
    ("data", "code"),
    [
        # Section 2.1.2: what a server never sends.
        (b"\x00\x00", BROKEN),
        (b"\x10\x00", BROKEN),
        (b"\x82\x00", BROKEN),
        (b"\xa2\x00", BROKEN),
        (b"\xc0\x00", BROKEN),
        (b"\xf0\x00", BROKEN),
        (b"\x20\x02\x00\x00", BROKEN),
        # Section 2.1.3: flags.
        (b"\x41\x02\x00\x01", MALFORMED),
        (b"\x52\x02\x00\x01", MALFORMED),
        (b"\x60\x02\x00\x01", MALFORMED),
        (b"\x72\x02\x00\x01", MALFORMED),
        (b"\x91\x03\x00\x01\x00", MALFORMED),
        (b"\xb1\x02\x00\x01", MALFORMED),
        (b"\xd1\x00", MALFORMED),
        # Section 2.2.3: lengths.
        (b"\x30\xff\xff\xff\xff\x01", MALFORMED),
        (b"\xd0\x80\x80\x80\x80", MALFORMED),
        (b"\x40\x01\x00", MALFORMED),
        (b"\x40\x00", MALFORMED),
        (b"\x62\x01\x00", MALFORMED),
        (b"\x90\x02\x00\x01", MALFORMED),
        (b"\xb0\x01\x00", MALFORMED),
        (b"\xd0\x01\x00", MALFORMED),
        (b"\x30\x02\x00\x00", MALFORMED),
        (b"\x30\x03\x00\x02t", MALFORMED),
        (b"\x32\x04\x00\x01t\x00", MALFORMED),
        (b"\x30\x05\xff\xfftxx", MALFORMED),
        # Section 2.2.1: packet ids of 0.
        (b"\x40\x02\x00\x00", BROKEN),
        (b"\x50\x02\x00\x00", BROKEN),
        (b"\x62\x02\x00\x00", BROKEN),
        (b"\x70\x02\x00\x00", BROKEN),
        (b"\x32\x06\x00\x01t\x00\x00\x00", BROKEN),
        (b"\x34\x06\x00\x01t\x00\x00\x00", BROKEN),
        # Section 3.3: PUBLISH.
        (b"\x36\x06\x00\x01t\x00\x01\x00", MALFORMED),
        (b"\x38\x04\x00\x01t\x00", MALFORMED),
        (b"\x30\x04\x00\x01+\x00", MALFORMED),
        (b"\x30\x06\x00\x03a/#\x00", MALFORMED),
    ],
)
def test_refused_by_every_version(version: int, data: bytes, code: int) -> None:
    assert refusal(version, data) == code


@pytest.mark.parametrize(
    "text",
    [
        *(
            b"\xff",
            b"\xc0\x80",
            b"\xc1\xbf",
            b"\xe0\x80\x80",
            b"\xed\xa0\x80",
            b"\xf0\x80\x80\x80",
            b"\xf4\x90\x80\x80",
        ),
        *(b"\xf5\x80\x80\x80", b"a\x00b", b"abcdefgh\x00", b"\xc3", b"\xe2\x82", b"abcdefghijk\x80", b"\xe2\x28\xa1"),
    ],
)
@pytest.mark.parametrize("version", ALL)
def test_topic_that_is_not_utf8(version: int, text: bytes) -> None:
    with_properties = b"\x00" if version == V5 else None
    assert refusal(version, packet(0x30, publish_body(text, None, with_properties))) == MALFORMED
    assert refusal(version, packet(0x30, publish_body(b"fine/" + text, None, with_properties))) == MALFORMED


def test_utf8_is_what_python_takes_for_it() -> None:
    chance = random.Random(3)
    inbound = parser(V311)
    for _ in range(20_000):
        text = bytes(chance.choice(b"\x7f\x80\x8f\x90\x9f\xa0\xbf\xc2\xdf\xe0\xed\xef\xf0\xf4a") for _ in range(4)) * 2
        text = text[: chance.randrange(1, 9)]
        try:
            text.decode()
            expected = True
        except UnicodeDecodeError:
            expected = False
        inbound.begin()
        inbound.feed(connack(V311) + packet(0x30, publish_body(text, None, None, b"x")))
        assert inbound.advance() == PACKET
        try:
            taken = inbound.advance() == MESSAGES
        except ProtocolError:
            taken = False
        assert taken is expected, text


@pytest.mark.parametrize(
    ("version", "data", "code"),
    [
        # 3.1 and 3.1.1 have no properties, no reason codes, and no DISCONNECT from a server.
        (V311, b"\x40\x03\x00\x01\x00", MALFORMED),
        (V31, b"\x62\x04\x00\x01\x00\x00", MALFORMED),
        (V311, b"\xb0\x03\x00\x01\x00", MALFORMED),
        (V311, b"\x90\x03\x00\x01\x03", BROKEN),
        (V311, b"\x90\x03\x00\x00\x01", BROKEN),
        (V311, b"\xe0\x00", BROKEN),
        (V311, b"\x30\x03\x00\x00x", BROKEN),
        (V311, b"\x6a\x02\x00\x01", MALFORMED),
        # Reason codes (MQTT 5, 2.4).
        (V5, b"\x40\x03\x00\x01\x01", BROKEN),
        (V5, b"\x50\x03\x00\x01\x7f", BROKEN),
        (V5, b"\x62\x03\x00\x01\x80", BROKEN),
        (V5, b"\x70\x03\x00\x01\x10", BROKEN),
        (V5, b"\x90\x04\x00\x01\x00\x03", BROKEN),
        (V5, b"\xb0\x04\x00\x01\x00\x01", BROKEN),
        (V5, b"\xe0\x01\x04", BROKEN),
        (V5, b"\xe1\x00", MALFORMED),
        (V5, b"\x90\x03\x00\x01\x00", MALFORMED),
        (V5, b"\xb0\x03\x00\x01\x00", MALFORMED),
        # A length that is longer than it needs to be (MQTT 5, 1.5.5).
        (V5, b"\xd0\x80\x00", MALFORMED),
        (V5, b"\xe0\x03\x00\x80\x00", MALFORMED),
        # Properties (MQTT 5, 2.2.2).
        (V5, b"\xe0\x02\x00\x01", MALFORMED),
        (V5, b"\xe0\x03\x00\x00\x00", MALFORMED),
        (V5, b"\x40\x05\x00\x01\x00\x01\x01", MALFORMED),
        (V5, b"\x40\x05\x00\x01\x00\x01\x7f", MALFORMED),
        (V5, b"\x40\x08\x00\x01\x00\x04\x1f\x00\x02x", MALFORMED),
        (V5, b"\x40\x08\x00\x01\x00\x04\x1f\x00\x01\x00", MALFORMED),
        (V5, b"\x40\x0c\x00\x01\x00\x08\x1f\x00\x01x\x1f\x00\x01x", BROKEN),
        (V5, b"\x40\x08\x00\x01\x00\x04\x26\x00\x01x", MALFORMED),
        (V5, b"\xe0\x07\x00\x05\x11\x00\x00\x00\x01", BROKEN),
    ],
)
def test_refused_by_a_version(version: int, data: bytes, code: int) -> None:
    assert refusal(version, data) == code


@pytest.mark.parametrize(
    ("properties", "code"),
    [
        (b"\x01\x01\x01\x01", BROKEN),
        (b"\x02\x00\x00\x00", MALFORMED),
        (b"\x09\x00\x02x", MALFORMED),
        (b"\x0b\x00", BROKEN),
        (b"\x0b\xff\xff\xff\xff\x01", MALFORMED),
        (b"\x0b\x80", MALFORMED),
        (b"\x0b\x81\x00", MALFORMED),
        (b"\x21\x00\x01", MALFORMED),
        (b"\x23\x00\x00", ALIAS),
        (b"\x23\x00\x01", ALIAS),
        (b"\x26\x00\x01a\x00\x02b", MALFORMED),
        (b"\x26\x00\x01a", MALFORMED),
        (b"\x81\x01\x00", MALFORMED),
    ],
)
def test_refused_properties_of_publish(properties: bytes, code: int) -> None:
    packed = remaining_length(len(properties)) + properties
    assert refusal(V5, packet(0x30, publish_body(b"t", None, packed, b"payload"))) == code


@pytest.mark.parametrize("properties", [b"\x01\x02", b"\x08\x00\x03a/#", b"\x08\x00\x01+"])
def test_what_brokers_hand_on_of_other_clients_does_not_end_the_connection(properties: bytes) -> None:
    """It would come again with the next one, for ever."""
    inbound = parser(V5)
    inbound.feed(packet(0x30, publish_body(b"t", None, remaining_length(len(properties)) + properties, b"payload")))
    assert [message[:2] for message in everything(inbound)] == [("t", b"payload")]


@pytest.mark.parametrize(
    ("version", "data", "code"),
    [
        (V311, b"\x21\x02\x00\x00", MALFORMED),
        (V311, b"\x20\x02\x02\x00", MALFORMED),
        (V311, b"\x20\x03\x00\x00\x00", MALFORMED),
        (V311, b"\x20\x02\x01\x05", BROKEN),
        (V5, b"\x20\x02\x00\x00", MALFORMED),
        (V5, b"\x20\x03\x00\x01\x00", BROKEN),
        (V5, b"\x20\x06\x00\x00\x03\x21\x00\x00", BROKEN),
        (V5, b"\x20\x05\x00\x00\x02\x24\x02", BROKEN),
        (V5, b"\x20\x05\x00\x00\x02\x25\x02", BROKEN),
        (V5, b"\x20\x08\x00\x00\x05\x27\x00\x00\x00\x00", BROKEN),
        (V5, b"\x20\x05\x00\x00\x02\x01\x00", MALFORMED),
        (V311, b"\xd0\x00", BROKEN),
        (V5, b"\x30\x04\x00\x01t\x00", BROKEN),
    ],
)
def test_first_packet_that_is_refused(version: int, data: bytes, code: int) -> None:
    inbound = parser(version, accepted=False)
    inbound.feed(data)
    with pytest.raises(ProtocolError) as refused:
        inbound.advance()
    assert refused.value.reason_code == code


def test_topic_aliases() -> None:
    defined = packet(0x30, publish_body(b"t", None, b"\x03\x23\x00\x02"))
    used = packet(0x30, publish_body(b"", None, b"\x03\x23\x00\x02"))
    inbound = parser(V5)
    inbound.topic_alias_maximum = 2
    inbound.feed(defined + used)
    assert [message[0] for message in everything(inbound)] == ["t", "t"]
    inbound.begin()
    inbound.feed(used)
    with pytest.raises(ProtocolError):
        everything(inbound)
    assert refusal(V5, used, topic_alias_maximum=2) == BROKEN
    assert refusal(V5, packet(0x30, publish_body(b"", None, b"\x00", b"x")), topic_alias_maximum=2) == BROKEN
    assert refusal(V5, packet(0x30, publish_body(b"t", None, b"\x03\x23\x00\x03")), topic_alias_maximum=2) == ALIAS


def test_more_than_was_allowed_is_refused_before_it_comes() -> None:
    inbound = parser(V5)
    inbound.max_packet_bytes = 100
    inbound.feed(packet(0x30, publish_body(b"t", None, b"\x00", b"x" * 94)))
    assert inbound.advance() == MESSAGES
    inbound.feed(b"\x30\x63")
    with pytest.raises(ProtocolError) as refused:
        inbound.advance()
    assert refused.value.reason_code == TOO_LARGE


@pytest.mark.parametrize("head", ["20", "90", "b0", "e0"])
def test_a_control_packet_of_any_length_is_refused_before_it_comes(head: str) -> None:
    inbound = parser(V5, accepted=head != "20")
    inbound.feed(bytes.fromhex(head + "808004"))
    assert inbound.advance() == NEED_DATA
    inbound = parser(V5, accepted=head != "20")
    inbound.feed(bytes.fromhex(head + "818004"))
    with pytest.raises(ProtocolError) as refused:
        inbound.advance()
    assert refused.value.reason_code == TOO_LARGE


@pytest.mark.parametrize("version", ALL)
def test_an_announcement_takes_no_memory(version: int) -> None:
    inbound = parser(version)
    inbound.feed(b"\x30\xff\xff\xff\x7f" + b"\x00\x01t" + b"\x00" * 100)
    assert inbound.advance() == NEED_DATA
    assert inbound.buffered_bytes == 108
    assert inbound.buffer_bytes < 4096


def test_what_is_right_comes_before_what_is_wrong() -> None:
    message = packet(0x30, publish_body(b"t"))
    inbound = parser(V311)
    inbound.feed(message + message + b"\xf0\x00")
    assert inbound.advance() == MESSAGES
    assert len(inbound.messages) == 2
    with pytest.raises(ProtocolError):
        inbound.advance()
