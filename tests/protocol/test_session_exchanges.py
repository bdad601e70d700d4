"""Packet ids, links that end at any moment, images from disk, and the send buffer's own life."""

from __future__ import annotations

import random

import pytest

from glec_fast.protocol._session import Session
from support.session_model import commit, decode_image, receive
from support.wire_reference import PUBACK, PUBCOMP, PUBLISH, PUBREC, PUBREL, ack, parse, publish

ALL_BYTES = 1 << 30
SENT, RELEASED, FINISHED = 1, 2, 3


def send_all(session: Session) -> bytes:
    chunk = session.peek(ALL_BYTES)
    session.on_sent(len(chunk))
    return chunk


def kinds(stream: bytes) -> list[tuple[int, int, bool]]:
    packets, rest = parse(stream)
    assert rest == b""
    return [(each.kind, each.packet_id, each.kind == PUBLISH and each.dup) for each in packets]


# ---- packet ids


def test_ids_wrap_around_past_those_that_are_taken() -> None:
    session = Session(10)
    session.admit(1, "t", "x", 1)
    assert session.reserve_packet_id() == 2
    assert [session.next_packet_id() for _ in range(65_533)] == list(range(3, 65_536)), "65,533 ids from 3 on"
    assert session.next_packet_id() == 3
    session.release_packet_id(2)
    ids = [session.reserve_packet_id() for _ in range(65_534)]
    assert sorted(ids) == list(range(2, 65_536))
    assert session.reserve_packet_id() == session.next_packet_id() == 0
    with pytest.raises(AssertionError, match="no packet id is free"):
        session.admit(2, "t", "x", 1)
    assert (session.in_flight, session.wants_commit) == (1, False)


def test_a_full_window_of_65534_goes_through_twice() -> None:
    session = Session(0)
    for first in (1, 70_001):
        rows = [(message_id, "t", "", 1) for message_id in range(first, first + 65_535)]
        assert session.admit_rows(rows, 0) == 65_534
        assert session.room() == 0
        ids = [each.packet_id for each in parse(send_all(session))[0]]
        assert len(set(ids)) == 65_534
        assert len(receive(session, b"".join(ack(PUBACK, each) for each in reversed(ids)))) == 65_534
        assert (session.in_flight, session.unsent_bytes) == (0, 0)


def test_room_counts_ids_that_wait_for_the_disk() -> None:
    session = Session(0, True)
    rows = [(message_id, "t", "", 2) for message_id in range(1, 65_501)]
    assert session.admit_rows(rows, 0) == 65_500
    commit(session)
    send_all(session)
    # A refused PUBLISH retires its id at once, without the second half of the exchange.
    session.protocol_version = 5
    receive(session, b"".join(ack(PUBREC, packet_id, b"\x97") for packet_id in range(1, 65_001)))
    assert len(session.take_refused()) == 65_000
    assert session.room() == 65_535 - 65_000 - 500
    more = [(message_id, "t", "", 1) for message_id in range(70_001, 70_101)]
    assert session.admit_rows(more, 0) == 35, "no more, rather than one without an id"
    commit(session)
    assert session.admit_rows(more, 35) == 100


@pytest.mark.parametrize("window", [-1, 65_536])
def test_a_window_out_of_range_is_refused(window: int) -> None:
    with pytest.raises(ValueError, match="window"):
        Session(window)


def test_an_older_commit_neither_frees_an_id_nor_opens_the_gate() -> None:
    session = Session(10, True)
    session.admit(1, "t", "x", 2)
    old, _ = session.take_image()
    session.on_committed(old)
    send_all(session)
    receive(session, ack(PUBREC, 1))
    session.on_committed(old)
    assert send_all(session) == b"", "PUBREL waits for an image that has it"
    commit(session)
    assert send_all(session) == ack(PUBREL, 1)
    receive(session, ack(PUBCOMP, 1))
    session.on_committed(old)
    assert 1 not in {session.reserve_packet_id() for _ in range(65_535)}


def test_an_image_from_before_the_end_of_an_exchange_does_not_free_its_id() -> None:
    session = Session(10, True)
    session.admit(1, "t", "x", 2)
    commit(session)
    send_all(session)
    receive(session, ack(PUBREC, 1))
    commit(session)
    send_all(session)
    version, image = session.take_image()
    receive(session, ack(PUBCOMP, 1))
    session.on_committed(version)
    assert decode_image(image) == {(1, 1, RELEASED)}
    assert 1 not in {session.reserve_packet_id() for _ in range(65_535)}
    commit(session)
    assert session.reserve_packet_id() == 1


def test_what_is_parked_counts_as_unreleased() -> None:
    """The broker still has it, while an older message that it had refused comes first."""
    session = Session(100, True, 3)
    session.admit_rows([(2, "t", "x", 2), (3, "t", "x", 2)], 0)
    commit(session)
    send_all(session)
    session.park()
    session.resume(True)
    assert session.admit_rows([(0, "t", "x", 2), (1, "t", "x", 2)], 0) == 1


# ---- links that end


def test_a_resend_that_has_not_left_is_still_a_resend() -> None:
    session = Session(10, True)
    session.admit(1, "t", "x", 2)
    commit(session)
    send_all(session)
    for _ in range(3):
        session.park()
        session.resume(True)
        session.admit(1, "t", "x", 2)
    assert kinds(send_all(session)) == [(PUBLISH, 1, True)]


@pytest.mark.parametrize("image_was_taken", [False, True])
def test_pubrel_of_a_link_that_ended_waits_for_the_disk_on_the_next(image_was_taken: bool) -> None:
    session = Session(10, True)
    session.admit(1, "t", "x", 2)
    commit(session)
    send_all(session)
    receive(session, ack(PUBREC, 1))
    if image_was_taken:
        session.take_image()
    session.park()
    session.resume(True)
    session.admit(1, "t", "x", 2)
    assert send_all(session) == b""
    assert session.wants_commit
    assert decode_image(commit(session)) == {(1, 1, RELEASED)}
    assert send_all(session) == ack(PUBREL, 1)


@pytest.mark.parametrize(("bytes_left", "expected"), [(0, (PUBLISH, 1, True)), (1, (PUBLISH, 2, False))])
def test_the_last_byte_decides_also_where_a_ping_passed_the_gate(
    bytes_left: int, expected: tuple[int, int, bool]
) -> None:
    session = Session(10, True)
    session.admit(1, "t", "x", 2)
    session.put_packet(b"\xc0\x00")
    commit(session)
    session.on_sent(len(session.peek(session.sendable_bytes - bytes_left)))
    session.park()
    session.resume(True)
    session.admit(1, "t", "x", 2)
    commit(session)
    assert kinds(send_all(session)) == [expected]


@pytest.mark.parametrize(("hides", "expected"), [(False, (PUBLISH, 2, False)), (True, (PUBLISH, 1, True))])
def test_what_was_offered_may_have_left_where_the_transport_does_not_say(
    hides: bool, expected: tuple[int, int, bool]
) -> None:
    """TLS takes a part of a buffer, says that it would block, and wants the same bytes again."""
    session = Session(10, True)
    session.offered_may_leave = hides
    session.admit(1, "t", "x", 2)
    commit(session)
    assert session.peek(ALL_BYTES)
    session.park()
    session.resume(True)
    session.admit(1, "t", "x", 2)
    commit(session)
    assert kinds(send_all(session)) == [expected]


def test_a_report_of_bytes_from_an_ended_connection_is_ignored() -> None:
    """One thread is in `send` while another ends the connection and begins the next."""
    session = Session(10)
    session.admit(1, "t", "x" * 500, 1)
    stale = session.peek(ALL_BYTES)
    session.park()
    assert not session.on_sent(len(stale))
    session.put_packet(b"\x10" + bytes(20))
    assert not session.on_sent(5)
    assert session.sendable_bytes == session.unsent_bytes == 21
    assert send_all(session) == b"\x10" + bytes(20)


@pytest.mark.parametrize("durable", [False, True])
def test_session_lost_before_anything_was_received_sends_anew(durable: bool) -> None:
    session = Session(10, durable)
    session.admit(1, "t", "x", 1)
    session.admit(2, "t", "x", 2)
    commit(session)
    send_all(session)
    session.park()
    assert session.resume(False) == []
    session.admit_rows([(1, "t", "x", 1), (2, "t", "x", 2)], 0)
    commit(session)
    # Without a store QoS 1 is the same packet, of which a copy may have left (3.3.1.1).
    assert [(kind, dup) for kind, _, dup in kinds(send_all(session))] == [(PUBLISH, not durable), (PUBLISH, False)]


def test_pubrec_for_a_message_to_be_resent_is_answered_behind_it() -> None:
    """PUBREL now would end the exchange at the broker, which would then take the resend for a new message."""
    session = Session(10, True)
    for message_id in (1, 2):
        session.admit(message_id, "t", "x", 2)
    commit(session)
    send_all(session)
    session.park()
    session.resume(True, 1)
    session.admit(1, "t", "x", 2)
    receive(session, ack(PUBREC, 2))
    assert kinds(send_all(session)) == [(PUBLISH, 1, True)]


def test_an_ack_for_the_first_copy_is_taken_before_the_second_has_left() -> None:
    session = Session(10)
    session.admit(1, "t", "x", 1)
    send_all(session)
    session.park()
    session.resume(True)
    session.admit(1, "t", "x", 1)
    assert receive(session, ack(PUBACK, 1)) == [1]


def test_forgotten_exchanges_leave_the_image_and_give_their_id_back() -> None:
    session = Session(10, True)
    session.admit(1, "t", "x", 2)
    commit(session)
    send_all(session)
    session.park()
    session.forget(1)
    session.forget(1)
    assert decode_image(commit(session)) == set()
    assert session.parked_ids() == []
    assert 1 in {session.reserve_packet_id() for _ in range(65_535)}


def test_an_exchange_whose_message_is_gone_is_ended_behind_the_gate() -> None:
    session = Session(10, True)
    session.load_image(b"\x01" + entry(5, 7, SENT) + entry(6, 8, RELEASED))
    session.resume(True)
    for message_id in (5, 6, 5, 99):
        session.release_parked(message_id)
    assert session.parked_ids() == []
    assert send_all(session) == b"", "the broker must not have a PUBREL that the disk does not know of"
    assert decode_image(commit(session)) == {(5, 7, RELEASED), (6, 8, RELEASED)}
    assert kinds(send_all(session)) == [(PUBREL, 7, False), (PUBREL, 8, False)]
    assert receive(session, ack(PUBCOMP, 7) + ack(PUBCOMP, 8)) == [5, 6]
    assert decode_image(commit(session)) == set()
    assert {7, 8} <= {session.reserve_packet_id() for _ in range(65_535)}


# ---- images


def entry(message_id: int, packet_id: int, state: int) -> bytes:
    return message_id.to_bytes(8, "big", signed=True) + packet_id.to_bytes(2, "big") + bytes([state])


def test_image_goes_round() -> None:
    session = Session(10, True)
    image = b"\x01" + entry(2**62, 65_535, SENT) + entry(5, 1, RELEASED)
    session.load_image(image)
    assert decode_image(session.take_image()[1]) == decode_image(image)
    assert sorted(session.parked_ids()) == [5, 2**62]


def test_a_restart_gives_nobody_the_ids_of_what_was_in_flight() -> None:
    session = Session(10, True)
    session.load_image(b"\x01" + entry(5, 1, SENT) + entry(6, 3, RELEASED))
    # on_connect may subscribe before anything is resumed.
    assert [session.reserve_packet_id() for _ in range(2)] == [2, 4]
    assert {1, 3}.isdisjoint(session.reserve_packet_id() for _ in range(65_531))
    assert session.reserve_packet_id() == 0


@pytest.mark.parametrize(
    "entries",
    [
        entry(1, 0, SENT),
        entry(0, 1, SENT),
        entry(-1, 1, SENT),
        entry(1, 1, 0),
        entry(1, 0, FINISHED),
        entry(0, 1, FINISHED),
        entry(1, 1, 7),
        entry(1, 1, SENT) + entry(1, 2, SENT),
        entry(1, 1, SENT) + entry(2, 1, SENT),
        entry(1, 1, SENT)[:-1],
    ],
    ids=[
        "packet id 0",
        "message 0",
        "message -1",
        "state 0",
        "none finished",
        "message 0 finished",
        "state 7",
        "message twice",
        "packet id twice",
        "cut",
    ],
)
def test_a_malformed_image_is_refused_and_nothing_of_it_kept(entries: bytes) -> None:
    session = Session(10, True)
    with pytest.raises(ValueError, match="in-flight image"):
        session.load_image(b"\x01" + entry(9, 9, SENT) + entries)
    assert session.parked_ids() == []
    assert session.next_packet_id() == 1
    assert len({session.reserve_packet_id() for _ in range(65_535)}) == 65_535


def test_an_image_carries_notes_of_the_owner() -> None:
    session = Session(10, True)
    session.load_image(b"\x01" + entry(5, 1, RELEASED) + entry(5, 0, 0x80) + entry(2**62, 65_535, 0xFF))
    assert session.notes == [(5, 0, 0x80), (2**62, 65_535, 0xFF)]
    version, image = session.take_image()
    assert len(image) == 1 + 3 * 11
    session.notes = session.notes[1:]
    later, image = session.take_image()
    assert later == version + 1
    after = Session(10, True)
    after.load_image(image)
    assert (after.notes, after.parked_ids()) == ([(2**62, 65_535, 0xFF)], [5])
    session.notes = session.notes
    assert session.take_image() == (later, image), "nothing has changed"


def test_random_bytes_are_never_an_image_that_harms() -> None:
    rng = random.Random(1)
    loaded = 0
    for _ in range(300):
        session = Session(10, True)
        image = b"\x01" + b"".join(
            entry(rng.randrange(-2, 9), rng.randrange(5), rng.randrange(4)) for _ in range(rng.randrange(4))
        )
        try:
            finished = session.load_image(image)
        except ValueError:
            assert session.parked_ids() == []
            continue
        loaded += 1
        session.resume(True)
        session.admit_rows([(message_id, "t", "x", 2) for message_id in sorted(session.parked_ids())], 0)
        assert sorted(session.take_image(finished)[1]) == sorted(image)
    assert 0 < loaded < 300


def test_finished_rows_are_named_in_the_image_and_found_there_again() -> None:
    session = Session(10, True)
    session.admit(9, "t", "x", 2)
    ranges = [(1, 1), (3, 8), (100, 100 + 65_535)]
    image = session.take_image(ranges)[1]
    assert decode_image(image) >= {(9, 1, SENT), (1, 1, FINISHED), (3, 6, FINISHED), (100, 65_535, FINISHED)}
    after = Session(10, True)
    found = after.load_image(image)
    assert [message_id for first, last in found for message_id in range(first, last + 1)] == [
        message_id for first, last in ranges for message_id in range(first, last + 1)
    ]
    assert after.parked_ids() == [9]


# ---- the send buffer


def test_the_first_last_packet_is_the_last() -> None:
    session = Session(10)
    session.put_packet(b"\xe0\x00", last=True)
    session.admit(1, "t", "x", 1)
    session.put_packet(b"\xe0\x00", last=True)
    session.put_packet(b"\xc0\x00")
    assert session.peek(ALL_BYTES) == b"\xe0\x00"
    assert not session.on_sent(1)
    assert session.on_sent(1)
    assert session.sendable_bytes == 0
    session.park()
    session.put_packet(b"\xc0\x00")
    assert session.peek(ALL_BYTES) == b"\xc0\x00", "a new connection has no last packet yet"


def test_a_control_packet_passes_the_gate_and_moves_what_is_behind() -> None:
    session = Session(10, True)
    session.admit(1, "t", "a" * 30, 1)
    session.on_sent(len(session.peek(7)))
    session.admit(2, "t", "b" * 30, 2)
    session.admit(3, "t", "c" * 30, 0)
    version, _ = session.take_image()
    session.admit(4, "t", "d" * 30, 2)
    session.put_packet(b"\xc0\x00")
    session.put_packet(b"\xd0\x00")
    first = publish("t", b"a" * 30, 1, 1)
    assert send_all(session) == first[7:] + b"\xc0\x00\xd0\x00"
    session.on_committed(version)
    session.put_packet(b"\xc0\x00")
    assert session.sendable_bytes == len(publish("t", b"b" * 30, 2, 2) + publish("t", b"c" * 30, 0, 0)) + 2
    session.on_sent(len(session.peek(session.sendable_bytes - 3)))
    assert session.take_done() == [], "one byte of the QoS 0 message is still here"
    session.on_sent(len(session.peek(1)))
    assert session.take_done() == [3]
    assert send_all(session) == b"\xc0\x00"
    assert receive(session, ack(PUBACK, 1)) == [1]


def test_the_buffer_is_given_back_after_a_burst_and_works_on() -> None:
    session = Session(10)
    for size_bytes in (1, 5_000_000, 1, 2_000_000, 3):
        session.admit(1, "t", b"x" * size_bytes, 0)
        assert send_all(session) == publish("t", b"x" * size_bytes, 0, 0)
        assert session.take_done() == [1]
    assert session.unsent_bytes == 0


@pytest.mark.parametrize("size_bytes", [4095, 4096, 4097, 8192, 8193])
def test_a_packet_may_fill_the_buffer_to_its_last_byte(size_bytes: int) -> None:
    """A buffer one byte too small shows under a sanitizer."""
    session = Session(10)
    session.put_packet(b"\x30" * size_bytes)
    session.put_packet(b"\xc0\x00")
    assert send_all(session) == b"\x30" * size_bytes + b"\xc0\x00"
