"""The session's wire: every packet against the reference, however its bytes are cut, and peers that break the rules."""

from __future__ import annotations

import random

import pytest

from glec_fast.errors import MessageError, ProtocolError
from glec_fast.protocol._session import Session
from support.wire_reference import PUBACK, PUBCOMP, PUBREC, PUBREL, ack, parse, publish, remaining_length

ALL_BYTES = 1 << 30
MQTT_3, MQTT_5 = 4, 5


def session_of(window: int = 20, *, durable: bool = False, version: int = MQTT_3) -> Session:
    session = Session(window, durable)
    session.protocol_version = version
    return session


def send_all(session: Session) -> bytes:
    chunk = session.peek(ALL_BYTES)
    session.on_sent(len(chunk))
    return chunk


def random_topic(rng: random.Random) -> str:
    return "".join(rng.choice("abc/é한🚚") for _ in range(rng.choice([0, 1, 5, 40, 300])))


@pytest.mark.parametrize("version", [MQTT_3, MQTT_5])
@pytest.mark.parametrize("seed", range(3))
def test_random_publishes_are_what_the_reference_encodes(seed: int, version: int) -> None:
    rng = random.Random(seed)
    session = session_of(0, version=version)
    expected, packet_id = b"", 0
    for message_id in range(1, 400):
        topic, qos, retain = random_topic(rng), rng.randrange(3), rng.random() < 0.5
        payload = rng.randbytes(rng.choice([0, 1, 90, 110, 130, 3000]))
        packed = rng.randbytes(rng.choice([0, 3, 127, 128]))
        properties = rng.choice([None, remaining_length(len(packed)) + packed])
        session.admit(
            message_id,
            rng.choice([topic, topic.encode()]),
            rng.choice([bytes, bytearray, memoryview])(payload),
            qos,
            retain,
            properties,
        )
        packet_id += qos > 0
        on_wire = (properties or b"\x00") if version == MQTT_5 else b""
        expected += publish(topic, payload, qos, packet_id if qos else 0, retain=retain, properties=on_wire)
    assert send_all(session) == expected


@pytest.mark.parametrize("body_bytes", [127, 128, 16_383, 16_384, 2_097_151, 2_097_152])
def test_each_step_of_the_remaining_length(body_bytes: int) -> None:
    session = session_of()
    session.admit(1, "t", b"p" * (body_bytes - 5), 1)
    sent = send_all(session)
    assert sent == publish("t", b"p" * (body_bytes - 5), 1, 1)
    assert sent[1:5].startswith(remaining_length(body_bytes))


def test_what_came_before_an_ack_that_does_not_fit_counts() -> None:
    session = session_of()
    session.admit(1, "t", "x", 1)
    session.admit(2, "t", "x", 1)
    send_all(session)
    with pytest.raises(ProtocolError, match="PUBREC for a QoS 1 message"):
        session.on_acks(ack(PUBACK, 1) + ack(PUBREC, 2))
    assert session.take_done() == [1]
    assert session.in_flight == 1


@pytest.mark.parametrize(("kind", "qos"), [(PUBREC, 1), (PUBACK, 1), (PUBREC, 2), (PUBACK, 2)])
def test_protocol_error_leaves_the_exchange_as_it_was(kind: int, qos: int) -> None:
    session = session_of(durable=True)
    session.admit(1, "t", "x" * 50, qos)
    before = (session.unsent_bytes, session.wants_commit, session.unreleased)
    with pytest.raises(ProtocolError, match="before its PUBLISH"):
        session.on_acks(ack(kind, 1))
    assert (session.unsent_bytes, session.wants_commit, session.unreleased) == before
    assert (session.in_flight, session.take_done(), session.take_reasons()) == (1, [], {})


def test_an_ack_may_come_between_the_send_and_its_report() -> None:
    """Two threads: one in `send`, whose bytes are gone, one that reads what the broker answered to them."""
    session = session_of()
    session.admit(1, "t", "x", 1)
    chunk = session.peek(ALL_BYTES)
    session.on_acks(ack(PUBACK, 1))
    assert session.take_done() == [1]
    session.on_sent(len(chunk))
    assert session.unsent_bytes == 0


@pytest.mark.parametrize("state", ["sent", "released"])
def test_an_ack_that_does_not_fit_the_state_is_not_taken_for_one(state: str) -> None:
    session = session_of(version=MQTT_5)
    session.admit(1, "t", "x", 2)
    send_all(session)
    if state == "released":
        session.on_acks(ack(PUBREC, 1))
        send_all(session)
    unfit = [ack(PUBCOMP, 1)]
    if state == "released":
        unfit = [ack(PUBACK, 1), ack(PUBACK, 1, b"\x80"), ack(PUBREC, 1, b"\x80")]
    for each in unfit:
        with pytest.raises(ProtocolError, match="packet id 1"):
            session.on_acks(each)
        assert (session.take_done(), session.take_refused(), session.take_reasons()) == ([], [], {})
    assert session.in_flight == 1
    session.on_acks(ack(PUBREC, 1))
    send_all(session)
    session.on_acks(ack(PUBCOMP, 1))
    assert session.take_done() == [1]


def test_late_pubcomp_for_an_unknown_id_ends_no_other_message() -> None:
    session = session_of()
    session.on_acks(ack(PUBREC, 1))
    session.admit(1, "t", "x", 1)
    assert [each.packet_id for each in parse(send_all(session))[0]] == [1, 1], "PUBREL for the old, PUBLISH for the new"
    session.on_acks(ack(PUBCOMP, 1))
    assert session.take_done() == []
    session.on_acks(ack(PUBACK, 1))
    assert session.take_done() == [1]


def test_an_unknown_pubrec_is_answered_and_one_that_failed_is_not() -> None:
    session = session_of(version=MQTT_5)
    session.on_acks(ack(PUBREC, 9) + ack(PUBREC, 10, b"\x92") + ack(PUBCOMP, 12))
    assert send_all(session) == ack(PUBREL, 9, b"\x92")


def test_reason_of_a_pubrec_is_not_kept_for_an_exchange_that_goes_on() -> None:
    session = session_of(version=MQTT_5)
    session.admit(1, "t", "x", 2)
    send_all(session)
    session.on_acks(ack(PUBREC, 1, b"\x10"))
    assert session.take_reasons() == {}
    send_all(session)
    session.on_acks(ack(PUBCOMP, 1, b"\x92\x05\x1f\x00\x02no"))
    assert session.take_reasons() == {1: (0x70, 1, 0x92, b"\x05\x1f\x00\x02no")}
    assert (session.take_done(), session.take_refused()) == ([1], [])


BAD_MESSAGES = {
    "topic too long": ("t" * 65_536, b"", 1, MessageError),
    "QoS 3": ("t", b"", 3, MessageError),
    "QoS -1": ("t", b"", -1, MessageError),
    "no text": ("\ud800", b"", 2, UnicodeEncodeError),
    "topic of no kind": (7, b"", 0, TypeError),
    "payload of no kind": ("t", 7, 2, TypeError),
    "packet too large": ("t", bytes(268_435_455), 2, MessageError),
}


@pytest.mark.parametrize(("topic", "payload", "qos", "error"), BAD_MESSAGES.values(), ids=BAD_MESSAGES)
@pytest.mark.parametrize("is_parked", [False, True])
def test_a_message_that_cannot_be_encoded_changes_nothing(
    topic: str, payload: bytes, qos: int, error: type[Exception], is_parked: bool
) -> None:
    session = session_of(durable=True)
    session.admit(1, "t", "x", 2)
    session.on_committed(session.take_image()[0])
    send_all(session)
    if is_parked:
        session.park()
        session.resume(True)

    def seen() -> tuple[object, ...]:
        return session.unsent_bytes, session.in_flight, session.wants_commit, session.parked_ids(), session.take_image()

    before = seen()
    with pytest.raises(error):
        session.admit(1 if is_parked else 2, topic, payload, qos)
    assert seen() == before
    session.admit(1 if is_parked else 2, "t", "x", 2)
    assert session.in_flight == (1 if is_parked else 2)


def test_a_row_that_mqtt_cannot_carry_does_not_stop_the_queue() -> None:
    session = session_of()
    rows = [(1, "t", "x", 1), (2, "t" * 65_536, "x", 1), (3, "t", "x", 9), (4, "t", "x", -1), (5, "t", None, "?")]
    assert session.admit_rows([*rows, (6, "t", "x", 1)], 0) == 6
    assert session.take_refused() == [2, 3, 4, 5]
    assert len(parse(send_all(session))[0]) == session.in_flight == 2


@pytest.mark.parametrize("row", [(), (1, "t", "x"), None])
def test_a_row_that_is_too_short_is_refused(row: tuple[object, ...] | None) -> None:
    session = session_of()
    with pytest.raises((ValueError, TypeError)):
        session.admit_rows([row], 0)  # type: ignore[list-item]
    assert session.unsent_bytes == 0
