"""Exchanges that are given up without an answer: their packet ids serve no other message that could be taken for it."""

from __future__ import annotations

import pytest

from glec_fast.errors import ProtocolError
from glec_fast.protocol._session import Session
from support.wire_reference import PUBACK, PUBCOMP, PUBLISH, PUBREC, PUBREL, ack, parse

ALL_BYTES = 1 << 20


def send(session: Session) -> list[tuple[int, int]]:
    """(packet type, packet id) of all that may leave, which leaves."""
    if session.wants_commit:
        version, _ = session.take_image()
        session.on_committed(version)
    data = session.peek(ALL_BYTES)
    session.on_sent(len(data))
    return [(packet.kind, packet.packet_id) for packet in parse(data)[0]]


def in_flight(qos: int, message_id: int = 7) -> Session:
    session = Session(10, True)
    session.admit(message_id, "t", "x", qos)
    assert send(session) == [(PUBLISH, 1)]
    return session


def ids_of(session: Session, count: int = 65_535) -> set[int]:
    """The packet ids that are given out next."""
    return {session.reserve_packet_id() for _ in range(count)} - {0}


@pytest.mark.parametrize("qos", [1, 2])
def test_its_packet_id_is_no_other_message_s_on_this_connection(qos: int) -> None:
    session = in_flight(qos)
    assert session.abandon([7]) == []
    assert (session.in_flight, session.holds(7)) == (0, False)
    assert 1 not in ids_of(session)


def test_a_late_puback_acknowledges_nothing() -> None:
    session = in_flight(1)
    session.abandon([7])
    session.admit(8, "t", "y", 1)
    assert send(session) == [(PUBLISH, 2)]
    session.on_acks(ack(PUBACK, 1))
    assert session.take_done() == []
    session.on_acks(ack(PUBACK, 2))
    assert session.take_done() == [8]


def test_qos_1_needs_its_id_no_longer_than_the_connection() -> None:
    session = in_flight(1)
    session.abandon([7])
    session.park()
    assert len(ids_of(session)) == 65_535


def test_qos_2_keeps_its_id_over_connections_and_a_restart() -> None:
    session = in_flight(2)
    session.abandon([7])
    session.park()
    assert session.resume(True) == []
    assert len(session.reserved_ids()) == 1
    _, image = session.take_image()
    later = Session(10, True)
    assert later.load_image(image) == []
    assert (later.parked_ids(), len(later.reserved_ids())) == ([], 1)
    assert 1 not in ids_of(later)


@pytest.mark.parametrize("restarts", [False, True])
def test_qos_2_is_free_again_once_the_server_has_lost_the_session(restarts: bool) -> None:
    session = in_flight(2)
    session.abandon([7])
    session.park()
    if restarts:
        _, image = session.take_image()
        session = Session(10, True)
        session.load_image(image)
    session.resume(False)
    assert len(session.reserved_ids()) == 0
    assert len(ids_of(session)) == 65_535
    assert session.take_image()[1] == b"\x01"


def test_a_late_pubrec_gets_its_pubrel_and_pubcomp_frees_the_id() -> None:
    session = in_flight(2)
    session.abandon([7])
    session.on_acks(ack(PUBREC, 1))
    assert (session.wants_commit, session.sendable_bytes) == (True, 0), "a restart would send it again, as a new one"
    assert send(session) == [(PUBREL, 1)]
    assert len(session.reserved_ids()) == 1
    session.on_acks(ack(PUBREC, 1))
    assert (session.wants_commit, send(session)) == (False, [(PUBREL, 1)])
    session.on_acks(ack(PUBCOMP, 1))
    assert len(session.reserved_ids()) == 0
    assert session.take_done() == []
    assert 1 in ids_of(session)


@pytest.mark.parametrize("answer", [ack(PUBACK, 1), ack(PUBREC, 1, b"\x97"), ack(PUBACK, 1, b"\x97")])
def test_any_other_late_answer_frees_it(answer: bytes) -> None:
    session = in_flight(2)
    session.abandon([7])
    session.on_acks(answer)
    assert (len(session.reserved_ids()), session.take_done(), session.take_refused()) == (0, [], [])


def test_what_the_server_has_stays() -> None:
    session = in_flight(2)
    session.on_acks(ack(PUBREC, 1))
    assert session.abandon([7]) == [7]
    session.park()
    assert session.abandon([7]) == [7]
    assert session.parked_ids() == [7]


def test_what_was_acknowledged_and_not_taken_yet_stays() -> None:
    session = in_flight(1)
    session.on_acks(ack(PUBACK, 1))
    assert session.abandon([7]) == [7]
    assert session.take_done() == [7]


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_what_was_not_offered_yet_stays(qos: int) -> None:
    session = Session(10, True)
    session.admit(7, "t", "x", qos)
    assert session.abandon([7]) == [7]
    assert send(session) == [(PUBLISH, 1 if qos else 0)] or qos == 0


@pytest.mark.parametrize("qos", [1, 2])
def test_of_an_earlier_connection(qos: int) -> None:
    session = in_flight(qos)
    session.park()
    session.resume(True)
    assert session.abandon([7, 9]) == []
    assert session.parked_ids() == []
    assert len(session.reserved_ids()) == (qos == 2)
    session.admit(8, "t", "y", 1)
    assert send(session) == [(PUBLISH, 2)], "the first copy may be answered late, on this connection"
    session.on_acks(ack(PUBACK, 1))
    assert session.take_done() == []
    session.park()
    assert (1 in ids_of(session)) == (qos == 1 or len(session.reserved_ids()) == 0)


def test_a_server_that_answers_none_does_not_use_up_the_ids() -> None:
    session = Session(10, True)
    for number in range(1, 2000):
        session.admit(number, "t", "x", 2)
        send(session)
        assert session.abandon([number]) == []
    assert len(session.reserved_ids()) == 512
    assert session.room() == 10
    assert len(session.take_image()[1]) == 1 + 512 * 11


def test_acknowledgements_are_counted_where_they_fit() -> None:
    session = Session(10, True)
    for message_id, qos in ((1, 1), (2, 2)):
        session.admit(message_id, "t", "x", qos)
    send(session)
    session.on_acks(ack(PUBACK, 1))
    session.on_acks(ack(PUBREC, 2))
    assert session.answered_count == 2
    with pytest.raises(ProtocolError):
        session.on_acks(ack(PUBACK, 9))
    send(session)
    session.on_acks(ack(PUBCOMP, 2))
    assert session.answered_count == 3


def test_what_is_exposed() -> None:
    session = Session(10, False)
    for message_id in (1, 2, 3):
        session.admit(message_id, "t", "x" * 100, 1)
    assert session.exposed_ids() == []
    session.peek(ALL_BYTES)
    session.on_sent(110)
    assert session.exposed_ids() == [1], "of those behind it nothing has left, but of the last that is not known"
    session.peek(ALL_BYTES)
    session.on_sent(150)
    assert session.exposed_ids() == [1, 2, 3], "a part is enough for a server to end the connection"
    session.on_acks(ack(PUBACK, 1))
    assert session.exposed_ids() == [2, 3]
    assert session.sent_to - session.publish_start == 260 - 2 * (session.publish_start // 2)


@pytest.mark.parametrize(("qos", "late"), [(1, PUBACK), (2, PUBREC)])
def test_the_server_counts_it_until_it_answers(qos: int, late: int) -> None:
    """MQTT 5, 4.9: no more than its Receive Maximum, on each connection anew."""
    session = in_flight(qos)
    session.resume(True, 2)
    session.abandon([7])
    assert (session.room(), session.unanswered_count) == (1, 1)
    session.admit(8, "t", "y", qos)
    send(session)
    assert session.room() == 0
    end = session.sent_to
    assert session.has_unanswered(end)
    session.on_acks(ack(late, 1))
    if late == PUBREC:
        assert session.room() == 0
        session.on_acks(ack(PUBCOMP, 1))
    assert session.room() == 1
    session.abandon([8])
    session.park()
    session.resume(True, 2)
    assert session.room() == 2


def test_what_the_server_may_hold_of_it_takes_a_place() -> None:
    session = Session(10, True, 4)
    rows = [(each, "t", "x", 2, 0, 0) for each in range(1, 9)]
    assert session.admit_rows(rows, 0) == 3
    send(session)
    assert session.abandon([1, 2]) == []
    assert session.admit_rows(rows, 3) == 3
    session.on_acks(ack(PUBREC, 1) + ack(PUBCOMP, 1))
    assert session.admit_rows(rows, 3) == 4
