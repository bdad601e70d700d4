"""Every acknowledgement that a server can send, in every state: what it ends, what is ignored, what is an error.

The table is that of `answers.pxi`, in its head.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from glec_fast.errors import ProtocolError
from glec_fast.protocol._session import Session
from support.wire_reference import PUBACK, PUBCOMP, PUBLISH, PUBREC, PUBREL, ack, parse

if TYPE_CHECKING:
    from collections.abc import Callable

ALL_BYTES = 1 << 30
REFUSED, LOST = b"\x97", b"\x92"
MESSAGE, ID = 7, 1
DURABLE = pytest.mark.parametrize("durable", [False, True], ids=["memory", "durable"])


def send(session: Session) -> list[tuple[int, int]]:
    """What leaves once all that waits is on disk: (packet type, packet id)."""
    version, _ = session.take_image()
    session.on_committed(version)
    chunk = session.peek(ALL_BYTES)
    session.on_sent(len(chunk))
    return [(each.kind, each.packet_id) for each in parse(chunk)[0]]


def take(session: Session) -> tuple[list[int], list[int], list[int]]:
    return session.take_done(), session.take_refused(), session.take_doubtful()


def visible(session: Session) -> tuple[object, ...]:
    return session.unsent_bytes, session.in_flight, session.unreleased, session.parked_ids(), session.downgraded_count


def nothing(_session: Session) -> None:
    """Not in flight: never used."""


def reserved(session: Session) -> None:
    """For SUBSCRIBE."""
    assert session.reserve_packet_id() == ID


def unasked(session: Session, qos: int = 2) -> None:
    """Encoded; of the durable ones QoS 2 waits at the gate."""
    session.admit(MESSAGE, "t", "x", qos)


def sent(session: Session, qos: int = 2) -> None:
    unasked(session, qos)
    assert send(session) == [(PUBLISH, ID)]


def received(session: Session) -> None:
    """PUBREC came, PUBREL has not left."""
    sent(session)
    session.on_acks(ack(PUBREC, ID))


def released(session: Session) -> None:
    received(session)
    assert send(session) == [(PUBREL, ID)]


def finished(session: Session) -> None:
    released(session)
    session.on_acks(ack(PUBCOMP, ID))
    assert take(session) == ([MESSAGE], [], [])


def finished_qos_1(session: Session) -> None:
    sent(session, 1)
    session.on_acks(ack(PUBACK, ID))
    assert take(session) == ([MESSAGE], [], [])


def cut(session: Session) -> None:
    session.park()
    session.resume(True)


def parked(session: Session, before: Callable[[Session], None] = sent) -> None:
    before(session)
    cut(session)


def resent(session: Session, qos: int = 2) -> None:
    sent(session, qos)
    cut(session)
    session.admit(MESSAGE, "t", "x", qos)
    assert send(session) == [(PUBLISH, ID)]


def released_again(session: Session) -> None:
    released(session)
    cut(session)
    session.admit(MESSAGE, "t", "x", 2)
    assert send(session) == [(PUBREL, ID)]


def finished_after_resend(session: Session) -> None:
    resent(session, 1)
    session.on_acks(ack(PUBACK, ID))
    assert take(session) == ([MESSAGE], [], [])


STATES: dict[str, Callable[[Session], None]] = {
    "unknown": nothing,
    "reserved": reserved,
    "unasked, QoS 1": lambda session: unasked(session, 1),
    "unasked, QoS 2": unasked,
    "sent, QoS 1": lambda session: sent(session, 1),
    "sent, QoS 2": sent,
    "received": received,
    "released": released,
    "finished, QoS 1": finished_qos_1,
    "finished, QoS 2": finished,
    "parked, QoS 1": lambda session: parked(session, lambda session: sent(session, 1)),
    "parked, QoS 2": parked,
    "parked, released": lambda session: parked(session, released),
    "resent, QoS 1": lambda session: resent(session, 1),
    "resent, QoS 2": resent,
    "released again": released_again,
    "finished after a resend": finished_after_resend,
}
ANSWERS = {
    "PUBACK": (PUBACK, b""),
    "PUBREC": (PUBREC, b""),
    "PUBACK 0x97": (PUBACK, REFUSED),
    "PUBREC 0x97": (PUBREC, REFUSED),
    "PUBCOMP": (PUBCOMP, b""),
    "PUBCOMP 0x92": (PUBCOMP, LOST),
}
ERROR, IGNORED = "error", "ignored"
DONE, TURNED_DOWN, DOUBTFUL, ANSWERED = "done", "refused", "in doubt", "PUBREL"
# Of PUBACK, PUBREC, PUBACK 0x97, PUBREC 0x97, PUBCOMP, PUBCOMP 0x92.
TABLE = {
    "unknown": (ERROR, ANSWERED, ERROR, IGNORED, IGNORED, IGNORED),
    "reserved": (ERROR, ANSWERED, ERROR, IGNORED, IGNORED, IGNORED),
    "unasked, QoS 1": (ERROR,) * 6,
    "unasked, QoS 2": (ERROR,) * 6,
    "sent, QoS 1": (DONE, ERROR, TURNED_DOWN, ERROR, ERROR, ERROR),
    "sent, QoS 2": (DONE, ANSWERED, TURNED_DOWN, TURNED_DOWN, ERROR, ERROR),
    "received": (ERROR, ANSWERED, ERROR, ERROR, ERROR, ERROR),
    "released": (ERROR, ANSWERED, ERROR, ERROR, DONE, DOUBTFUL),
    "finished, QoS 1": (ERROR, ANSWERED, ERROR, IGNORED, IGNORED, IGNORED),
    "finished, QoS 2": (ERROR, ANSWERED, ERROR, IGNORED, IGNORED, IGNORED),
    "parked, QoS 1": (IGNORED,) * 6,
    "parked, QoS 2": (IGNORED,) * 6,
    "parked, released": (IGNORED,) * 6,
    "resent, QoS 1": (DONE, IGNORED, TURNED_DOWN, IGNORED, IGNORED, IGNORED),
    "resent, QoS 2": (DONE, ANSWERED, TURNED_DOWN, TURNED_DOWN, IGNORED, IGNORED),
    "released again": (ERROR, ANSWERED, ERROR, ERROR, DONE, DONE),
    "finished after a resend": (IGNORED, ANSWERED, IGNORED, IGNORED, IGNORED, IGNORED),
}


CASES = [
    (version, state, answer)
    for version in (4, 5)
    for state in STATES
    for answer, (_, reason) in ANSWERS.items()
    # Before MQTT 5 there are no reason codes.
    if version == 5 or not reason
]


@DURABLE
@pytest.mark.parametrize(("version", "state", "answer"), CASES)
def test_the_table(version: int, state: str, answer: str, durable: bool) -> None:
    kind, reason = ANSWERS[answer]
    expected = TABLE[state][list(ANSWERS).index(answer)]
    session = Session(10, durable)
    session.protocol_version = version
    STATES[state](session)
    before = visible(session)
    if expected == ERROR:
        with pytest.raises(ProtocolError, match=r"packet id 1: .*MQTT 4") as raised:
            session.on_acks(ack(kind, ID, reason))
        assert raised.value.reason_code == 0x82
    else:
        session.on_acks(ack(kind, ID, reason))
    outcome = take(session)
    if expected == DOUBTFUL and not durable:
        expected = DONE
    after = visible(session)
    assert outcome == {
        DONE: ([MESSAGE], [], []),
        TURNED_DOWN: ([], [MESSAGE], []),
        DOUBTFUL: ([MESSAGE], [], [MESSAGE]),
    }.get(expected, ([], [], []))
    if expected in (ERROR, IGNORED):
        assert after == before
        assert session.take_reasons() == {}
    if expected == ANSWERED:
        assert send(session)[-1] == (PUBREL, ID)
    assert session.downgraded_count == (expected == DONE and kind == PUBACK and "QoS 2" in state)


@DURABLE
def test_an_early_answer_to_a_first_copy_and_the_one_to_the_second(durable: bool) -> None:
    """What a server that answers late and a client that sends again do to each other is nobody's fault."""
    session = Session(10, durable)
    sent(session, 1)
    cut(session)
    session.admit(MESSAGE, "t", "x", 1)
    session.on_acks(ack(PUBACK, ID))
    assert take(session) == ([MESSAGE], [], [])
    assert send(session) == [(PUBLISH, ID)]
    session.on_acks(ack(PUBACK, ID))
    assert take(session) == ([], [], [])
    # On the next connection nothing explains a third.
    cut(session)
    with pytest.raises(ProtocolError, match="not in flight"):
        session.on_acks(ack(PUBACK, ID))


@DURABLE
def test_each_repeated_pubrec_is_answered_and_its_pubcomp_welcome(durable: bool) -> None:
    session = Session(10, durable)
    session.protocol_version = 5
    sent(session)
    session.on_acks(ack(PUBREC, ID) * 3)
    assert send(session) == [(PUBREL, ID)] * 3
    session.on_acks(ack(PUBCOMP, ID) + ack(PUBCOMP, ID, LOST) * 2)
    assert take(session) == ([MESSAGE], [], [])
    assert session.take_reasons() == {}


@DURABLE
def test_a_pubrel_that_was_repeated_for_a_repeated_pubrec_leaves_no_doubt(durable: bool) -> None:
    session = Session(10, durable)
    session.protocol_version = 5
    released(session)
    session.on_acks(ack(PUBREC, ID))
    send(session)
    session.on_acks(ack(PUBCOMP, ID, LOST))
    assert take(session) == ([MESSAGE], [], [])


def test_a_pubrel_that_never_left_before_the_cut_was_not_sent_again() -> None:
    session = Session(10, True)
    session.protocol_version = 5
    received(session)
    cut(session)
    session.admit(MESSAGE, "t", "x", 2)
    assert send(session) == [(PUBREL, ID)]
    session.on_acks(ack(PUBCOMP, ID, LOST))
    assert take(session) == ([MESSAGE], [], [MESSAGE])


def test_a_message_given_up_in_flight_may_yet_be_acknowledged() -> None:
    session = Session(10)
    parked(session, lambda session: sent(session, 1))
    session.forget(MESSAGE)
    session.on_acks(ack(PUBACK, ID))
    assert take(session) == ([], [], [])


def test_pubcomp_of_an_older_exchange_does_not_end_an_unsent_one() -> None:
    session = Session(10, True)
    session.on_acks(ack(PUBREC, ID))
    session.admit(MESSAGE, "t", "x", 2)
    session.on_acks(ack(PUBCOMP, ID))
    assert take(session) == ([], [], [])
    assert send(session) == [(PUBREL, ID), (PUBLISH, ID)]


def test_what_came_before_an_error_counts_and_the_rest_does_not() -> None:
    session = Session(10)
    for message_id in (1, 2):
        session.admit(message_id, "t", "x", 1)
    send(session)
    with pytest.raises(ProtocolError, match="packet id 9: PUBACK for a message that is not in flight"):
        session.on_acks(ack(PUBACK, 1) + ack(PUBACK, 9) + ack(PUBACK, 2))
    assert take(session) == ([1], [], [])
    assert session.in_flight == 1
