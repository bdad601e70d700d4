"""Topics that are sent by number: whatever becomes of a connection, a server that decodes strictly reads each topic."""

from __future__ import annotations

import random

import pytest

from glec_fast.protocol._session import Session
from support.alias_server import AliasDecoder, Publication
from support.wire_reference import PUBACK, PUBCOMP, PUBLISH, PUBREC, PUBREL, ack, parse

ALL_BYTES = 1 << 30
NO_LIMIT = 268_435_460
OWN = ["glec/dtg/DTG-TEST/telemetry", "glec/dtg/DTG-TEST/alerts"]


def session_of(own: list[str] | None = None, *, maximum: int = 10, packet_max: int = NO_LIMIT) -> Session:
    session = Session(100)
    session.protocol_version = 5
    session.use_aliases(OWN if own is None else own)
    session.allow_aliases(maximum, packet_max)
    return session


def publications(session: Session, decoder: AliasDecoder, limit: int = ALL_BYTES) -> list[Publication]:
    chunk = session.peek(limit)
    session.on_sent(len(chunk))
    return [decoder.decode(each) for each in parse(chunk)[0] if each.kind == PUBLISH]


def test_a_topic_is_named_once() -> None:
    session = session_of()
    for number in range(3):
        session.admit(number, OWN[0], b"x", 0)
    found = publications(session, AliasDecoder(10))
    assert [(each.topic, each.is_named, each.alias) for each in found] == [
        (OWN[0], True, 1),
        (OWN[0], False, 1),
        (OWN[0], False, 1),
    ]
    assert found[1].size_bytes == found[0].size_bytes - len(OWN[0])


def test_own_topics_take_the_numbers_of_others() -> None:
    session = session_of(maximum=3)
    topics = ["other/1", "other/2", "other/3", *OWN, "other/1", "other/2", "other/3", *OWN]
    for number, topic in enumerate(topics):
        session.admit(number, topic, b"x", 0)
    found = publications(session, AliasDecoder(3))
    assert [each.topic for each in found] == topics
    assert [each.alias for each in found] == [1, 2, 3, 3, 2, 1, 0, 0, 3, 2]
    assert [each.is_named for each in found] == [True] * 5 + [False, True, True, False, False]


def test_the_only_number_is_an_own_topics() -> None:
    session = session_of(maximum=1)
    for number, topic in enumerate(["other/1", OWN[1], OWN[0], OWN[1]]):
        session.admit(number, topic, b"x", 0)
    assert [each.alias for each in publications(session, AliasDecoder(1))] == [1, 1, 0, 1]


@pytest.mark.parametrize("maximum", [0, 1, 2, 31, 32, 33, 65_535])
def test_no_alias_is_beyond_what_the_server_takes(maximum: int) -> None:
    session = session_of(maximum=maximum)
    topics = [*OWN, *(f"topic/{number}" for number in range(60))]
    for number, topic in enumerate(topics * 2):
        session.admit(number, topic, b"x", 0)
    found = publications(session, AliasDecoder(maximum))
    assert [each.topic for each in found] == topics * 2
    assert sum(not each.is_named for each in found) >= min(maximum, 32)


def test_a_topic_too_short_to_gain_has_none() -> None:
    session = session_of()
    for number in range(2):
        session.admit(number, "a/b", b"x", 0)
    assert [each.alias for each in publications(session, AliasDecoder(10))] == [0, 0]


def test_no_packet_grows_past_what_the_server_takes() -> None:
    topic = "t" * 40
    for payload_bytes in range(70, 140):
        session = session_of([], packet_max=128)
        session.admit(1, topic, b"x" * payload_bytes, 0)
        plain = Session(100)
        plain.protocol_version = 5
        plain.admit(1, topic, b"x" * payload_bytes, 0)
        if plain.unsent_bytes <= 128:
            (found,) = publications(session, AliasDecoder(10))
            assert found.size_bytes <= 128
            assert found.topic == topic


def test_properties_stay_beside_the_alias() -> None:
    session = session_of()
    # The length of the properties takes a second byte with the alias.
    content_type = b"\x03\x00\x7aa" + b"a" * 121
    packed = bytes([len(content_type)]) + content_type
    for number in range(2):
        session.admit(number, OWN[0], b"x", 0, False, packed)
    found = publications(session, AliasDecoder(10))
    assert [each.properties for each in found] == [{"ContentType": "a" * 122}] * 2
    assert [each.payload for each in found] == [b"x"] * 2


def test_a_message_that_is_refused_leaves_no_name_behind() -> None:
    session = session_of([])
    with pytest.raises(ValueError, match="65535"):
        session.admit(1, "t" * 65_536, b"", 0)
    with pytest.raises(TypeError):
        session.admit(1, "topic/1", object(), 0)
    session.admit(1, "topic/1", b"x", 0)
    (found,) = publications(session, AliasDecoder(10))
    assert found.is_named


def test_before_mqtt_5_and_where_nobody_asked_there_is_none() -> None:
    for version, topics in ((4, OWN), (5, None)):
        session = Session(100)
        session.protocol_version = version
        session.use_aliases(topics)
        session.allow_aliases(10, NO_LIMIT)
        session.admit(1, OWN[0], b"x", 0)
        session.admit(2, OWN[0], b"x", 0)
        chunk = session.peek(ALL_BYTES)
        assert chunk.count(OWN[0].encode()) == 2


@pytest.mark.parametrize("seed", range(6))
def test_each_topic_is_read_right_over_any_life(seed: int) -> None:
    """Cuts in the middle of packets, the gate, resends, brokers with another maximum, a session that is lost."""
    rng = random.Random(seed)
    session = Session(30, durable=seed % 2 == 0)
    session.protocol_version = 5
    session.use_aliases(OWN)
    topics = OWN + [f"fleet/{number}" * rng.randrange(1, 9) for number in range(40)]
    topic_of: dict[int, str] = {}
    waiting: dict[int, tuple[str, int]] = {}
    admitted: set[int] = set()
    decoder, rest, seen, named = AliasDecoder(0), b"", 0, 0
    images: list[int] = []
    for number in range(1, 4000):
        step = rng.random()
        if step < 0.3:
            topic = rng.choice(topics[:2] if rng.random() < 0.5 else topics)
            topic_of[number] = topic
            waiting[number] = topic, rng.randrange(3)
        elif step < 0.35:
            session.put_packet(b"\xc0\x00")
        elif step < 0.36:
            session.park()
            session.resume(rng.random() < 0.7)
            decoder, rest = AliasDecoder(rng.choice([0, 1, 3, 50])), b""
            session.allow_aliases(decoder.maximum, NO_LIMIT)
            admitted.clear()
        elif step < 0.5:
            images.append(session.take_image()[0])
        elif step < 0.6 and images:
            session.on_committed(images[-1])
            images.clear()
        else:
            chunk = session.peek(rng.choice([1, 30, 500, ALL_BYTES]))
            session.on_sent(len(chunk))
            packets, rest = parse(rest + chunk)
            for packet in packets:
                if packet.kind == PUBREL:
                    session.on_acks(ack(PUBCOMP, packet.packet_id))
                if packet.kind != PUBLISH:
                    continue
                found = decoder.decode(packet)
                seen += 1
                named += found.is_named
                assert found.topic == topic_of[int(found.payload)]
                if found.qos and rng.random() < 0.98:
                    session.on_acks(ack(PUBACK if found.qos == 1 else PUBREC, found.packet_id))
        for message_id in session.take_done():
            waiting.pop(message_id, None)
        for message_id, (topic, qos) in waiting.items():
            if message_id in admitted:
                continue
            if qos and session.room() == 0:
                break
            session.admit(message_id, topic, str(message_id), qos)
            admitted.add(message_id)
    assert seen > 300
    assert named < seen
