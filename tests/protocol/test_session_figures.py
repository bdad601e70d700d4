"""What a session counts: packets and acknowledgements by QoS, and how long an acknowledgement took."""

from __future__ import annotations

import pytest

from glec_fast.protocol._session import Session
from glec_fast.runtime.latency import Latency

PUBACK, PUBREC, PUBCOMP = b"\x40\x02\x00", b"\x50\x02\x00", b"\x70\x02\x00"


def send_all(session: Session) -> None:
    if session.wants_commit:
        session.on_committed(session.take_image()[0])
    session.on_sent(len(session.peek(1 << 20)))


@pytest.mark.parametrize("qos", [1, 2])
def test_a_message_is_timed_from_its_row_to_its_last_answer_over_connections(qos: int) -> None:
    session = Session(10, True)
    # Accepted 20 ms before the boot, as the queue's time has it.
    row = (1, "t", "x", qos, 980, 0)
    assert session.admit_rows([row], 0, False, 1000) == 1
    send_all(session)
    session.park()
    session.resume(True)
    assert session.admit_rows([row], 0, False, 1000) == 1
    send_all(session)
    if qos == 2:
        session.on_acks(PUBREC + b"\x01")
        send_all(session)
    session.now_ms = 100
    session.on_acks((PUBCOMP if qos == 2 else PUBACK) + b"\x01")
    timed = Latency.of(*session.acknowledging)
    assert (timed.messages, timed.max_s) == (1, 0.12)
    expected = [0, 0, 0]
    expected[qos] = 1
    assert list(session.acknowledged_counts) == expected
    # Once on each connection.
    expected[qos] = 2
    assert list(session.encoded_counts) == expected


def test_what_has_no_time_is_counted_and_not_timed() -> None:
    session = Session(10, True)
    session.admit(1, "t", "x", 1)
    session.admit_rows([(2, "t", "x", 1, 5, 0)], 0)
    session.admit_rows([(3, "t", "x", 0, 5, 0), (4, "t", "x", 1)], 0, False, 0)
    send_all(session)
    session.on_acks(PUBACK + b"\x01" + PUBACK + b"\x02" + PUBACK + b"\x03")
    assert Latency.of(*session.acknowledging) == Latency()
    assert session.acknowledged_counts == (1, 3, 0)
    assert session.encoded_counts == (1, 3, 0)


def test_a_refusal_is_no_acknowledgement() -> None:
    session = Session(10, True)
    session.protocol_version = 5
    session.admit_rows([(1, "t", "x", 1, 5, 0)], 0, False, 0)
    send_all(session)
    session.on_acks(b"\x40\x03\x00\x01\x97")
    assert session.acknowledged_counts == (0, 0, 0)
    assert Latency.of(*session.acknowledging) == Latency()
    assert session.take_refused() == [1]
