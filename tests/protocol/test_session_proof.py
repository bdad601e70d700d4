"""What is known to have arrived: an answer proves all that went before its question, and nothing else does."""

from __future__ import annotations

import random

import pytest

from glec_fast.protocol._session import Session
from support.wire_reference import PUBACK, PUBCOMP, PUBLISH, PUBREC, PUBREL, ack, parse

ALL_BYTES = 1 << 30
PINGREQ, PINGRESP = b"\xc0\x00", b"\xd0\x00"


def send(session: Session, limit_bytes: int = ALL_BYTES) -> bytes:
    chunk = session.peek(limit_bytes)
    session.on_sent(len(chunk))
    return chunk


def admit(session: Session, *message_ids: int, qos: int = 0) -> None:
    for message_id in message_ids:
        session.admit(message_id, "t", "x" * 20, qos)


def test_puback_proves_what_went_before_its_publish() -> None:
    session = Session(10)
    admit(session, -1, -2)
    admit(session, 1, qos=1)
    admit(session, -3)
    send(session)
    assert (session.left_count, session.proven_count) == (3, 0)
    session.on_acks(ack(PUBACK, 1))
    assert (session.left_count, session.proven_count) == (3, 2)
    assert session.answered_to < session.sent_to


def test_pubrec_and_pubcomp_prove_what_went_before_their_questions() -> None:
    session = Session(10)
    admit(session, -1)
    admit(session, 1, qos=2)
    admit(session, -2)
    send(session)
    session.on_acks(ack(PUBREC, 1))
    assert session.proven_count == 1
    admit(session, -3)
    send(session)
    session.on_acks(ack(PUBREC, 1))
    assert session.proven_count == 1, "it may have been sent again before PUBREL came"
    session.on_acks(ack(PUBCOMP, 1))
    assert session.proven_count == 1, "nor is it known which PUBREL this answers"


def test_each_pingresp_answers_the_oldest_pingreq() -> None:
    session = Session(10)
    admit(session, -1)
    session.put_packet(PINGREQ)
    first_end = session.sent_to + session.unsent_bytes
    admit(session, -2)
    session.put_packet(PINGREQ)
    admit(session, -3)
    send(session)
    assert session.pinged_to == first_end
    session.on_pong()
    assert (session.proven_count, session.answered_to) == (1, first_end)
    session.on_pong()
    assert (session.proven_count, session.pinged_to) == (2, 0)
    session.on_pong()
    assert session.proven_count == 2


def test_pingreq_goes_before_what_waits_at_the_gate_and_does_not_prove_it() -> None:
    session = Session(10, durable=True)
    admit(session, -1)
    admit(session, 1, qos=2)
    admit(session, -2)
    session.put_packet(PINGREQ)
    send(session)
    session.on_pong()
    assert (session.left_count, session.proven_count) == (1, 1)
    version, _image = session.take_image()
    session.on_committed(version)
    send(session)
    assert (session.left_count, session.proven_count) == (2, 1)
    session.on_acks(ack(PUBREC, 1))
    assert session.proven_count == 1, "it is behind"


def test_an_answer_to_an_earlier_copy_proves_nothing() -> None:
    session = Session(10)
    admit(session, 1, qos=1)
    send(session)
    session.park()
    session.resume(session_present=True)
    admit(session, -1)
    admit(session, 1, qos=1)
    send(session)
    session.on_acks(ack(PUBACK, 1))
    assert session.proven_count == 0


def test_the_end_of_a_connection_settles_it() -> None:
    session = Session(10)
    admit(session, -1, -2)
    send(session, 30)
    assert (session.left_count, session.proven_count) == (1, 0)
    session.put_packet(PINGREQ)
    session.park()
    assert session.left_count == session.proven_count == session.unacknowledged_count == 2
    assert session.pinged_to == 0
    assert session.answered_to == session.sent_to
    admit(session, -3)
    send(session)
    session.prove_all()
    assert (session.left_count, session.proven_count) == (3, 3)


@pytest.mark.parametrize("durable", [False, True])
def test_an_exchange_waits_from_where_its_question_ends(durable: bool) -> None:
    session = Session(10, durable=durable)
    admit(session, 1, qos=1)
    send(session)
    end = session.sent_to
    admit(session, 2, qos=1)
    assert not session.has_unanswered(end - 1)
    assert session.has_unanswered(end)
    session.on_acks(ack(PUBACK, 1))
    assert not session.has_unanswered(end)


def test_bounded_rows_stop_until_what_is_on_its_way_is_proven() -> None:
    session = Session(10)
    session.bounds_unproven = True
    rows = [(number, "t", "x" * 100_000, 0) for number in range(1, 9)]
    assert session.admit_rows(rows, 0) == 3, "300 kB are on their way"
    assert session.wants_proof
    session.put_packet(PINGREQ)
    send(session)
    assert session.admit_rows(rows, 3) == 3
    session.on_pong()
    assert session.admit_rows(rows, 3) == 6
    session.bounds_unproven = False
    assert session.admit_rows(rows, 6) == 8


@pytest.mark.parametrize("seed", range(40))
def test_a_random_life_agrees_with_the_stream(seed: int) -> None:
    """The oracle reads the stream: proven is each QoS 0 before the furthest question that was answered."""
    rng = random.Random(seed)
    durable = seed % 2 == 1
    session = Session(30, durable)
    next_id, stream, proven, sent = 1, b"", 0, 0
    # What the broker has read and not answered: (the answer, QoS 0 before the question).
    questions: list[tuple[bytes, int]] = []
    for _ in range(400):
        step = rng.random()
        if step < 0.4:
            qos = rng.choice((0, 0, 0, 1, 2))
            if qos == 0 or session.room():
                session.admit(next_id if qos else -next_id, "t", "x" * rng.randrange(50), qos)
                next_id += 1
        elif step < 0.5:
            session.put_packet(PINGREQ)
        elif step < 0.75:
            packets, stream = parse(stream + send(session, rng.randrange(1, 200)))
            for packet in packets:
                qos = packet.flags >> 1 & 3
                if packet.kind == PUBLISH and qos == 0:
                    sent += 1
                elif packet.kind == PUBLISH:
                    questions.append((ack(PUBACK if qos == 1 else PUBREC, packet.packet_id), sent))
                else:
                    answer = ack(PUBCOMP, packet.packet_id) if packet.kind == PUBREL else PINGRESP
                    questions.append((answer, sent))
        elif step < 0.85 and durable:
            version, _image = session.take_image()
            session.on_committed(version)
        elif questions:
            answer, before = questions.pop(0)
            if answer == PINGRESP:
                session.on_pong()
            else:
                session.on_acks(answer)
            proven = max(proven, before)
        assert (session.left_count, session.proven_count) == (sent, proven)
        session.take_done()
    assert proven > 20
