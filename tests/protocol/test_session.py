"""The session alone: what it encodes, what it makes of bytes that come in, and when it lets a byte leave."""

from __future__ import annotations

import random

import pytest

from glec_fast.errors import ProtocolError
from glec_fast.protocol._session import Session
from support.answers import Answers
from support.session_model import commit, receive
from support.wire_reference import PUBACK, PUBCOMP, PUBLISH, PUBREC, PUBREL, ack, parse, publish


def send_all(session: Session) -> bytes:
    sent = b""
    while chunk := session.peek(1 << 20):
        session.on_sent(len(chunk))
        sent += chunk
    return sent


@pytest.mark.parametrize(
    "payload_bytes", [0, 1, 117, 118, 119, 16_373, 16_374, 16_375, 2_097_141, 2_097_142, 2_097_143]
)
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_publish_is_what_the_reference_encodes(payload_bytes: int, qos: int) -> None:
    session = Session(10)
    payload = random.Random(payload_bytes).randbytes(payload_bytes)
    session.admit(7, "a/b/ü", payload, qos, retain=True)
    assert send_all(session) == publish("a/b/ü", payload, qos, 1 if qos else 0, retain=True)


def test_text_bytes_and_buffers_are_the_same_on_the_wire() -> None:
    session = Session(10)
    for message_id, payload in enumerate(
        ("é{}", "é{}".encode(), bytearray("é{}".encode()), memoryview("é{}".encode()))
    ):
        session.admit(message_id + 1, b"t", payload, 0)
    assert send_all(session) == publish("t", "é{}".encode(), 0, 0) * 4


def test_mqtt_5_has_properties() -> None:
    session = Session(10)
    session.protocol_version = 5
    session.admit(1, "t", "x", 1)
    session.admit(2, "t", "x", 1, properties=b"\x02\x01\x01")
    assert send_all(session) == publish("t", b"x", 1, 1, properties=b"\x00") + publish(
        "t", b"x", 1, 2, properties=b"\x02\x01\x01"
    )


def test_pubrec_for_a_qos_1_message_is_refused() -> None:
    session = Session(10)
    session.admit(1, "t", "x", 1)
    send_all(session)
    with pytest.raises(ProtocolError, match="PUBREC for a QoS 1 message"):
        session.on_acks(ack(PUBREC, 1))


@pytest.mark.parametrize("kind", [PUBACK, PUBREC, PUBCOMP])
def test_what_is_not_a_run_of_whole_acknowledgements_is_refused(kind: int) -> None:
    session = Session(10)
    session.protocol_version = 5
    session.admit(1, "t", "x", 1)
    send_all(session)
    whole = ack(kind, 9, b"\x10\x00")
    for data in (*(whole[:size] for size in range(1, len(whole))), bytes([kind << 4, 1, 9]), b"\x20" + whole[1:]):
        with pytest.raises(ValueError, match="not whole acknowledgements"):
            session.on_acks(data)
        with pytest.raises(ValueError, match="not whole acknowledgements"):
            session.on_acks(ack(PUBCOMP, 8) + data)
    session.on_acks(b"")
    assert session.in_flight == 1


def test_an_ack_before_its_publish_has_left_is_refused() -> None:
    session = Session(10)
    session.admit(1, "t", "x" * 100, 1)
    session.on_sent(len(session.peek(50)))
    with pytest.raises(ProtocolError, match="before its PUBLISH"):
        session.on_acks(ack(PUBACK, 1))


def test_unknown_acks_do_no_harm_and_an_unknown_pubrec_is_answered() -> None:
    session = Session(10)
    assert receive(session, ack(PUBCOMP, 9) + ack(PUBREC, 9)) == []
    assert send_all(session) == ack(PUBREL, 9)


def test_the_window_and_receive_maximum_bound_what_is_in_flight() -> None:
    session = Session(3)
    assert session.admit_rows([(each, "t", "x", 1, 0, 0) for each in range(1, 6)], 0) == 3
    session.park()
    session.resume(True, 2)
    assert session.admit_rows([(each, "t", "x", 1, 0, 0) for each in range(1, 6)], 0) == 2


def test_no_more_than_max_unreleased_are_without_pubrel() -> None:
    session = Session(100, True, 3)
    rows = [(each, "t", "x", 2, 0, 0) for each in range(1, 6)] + [(6, "t", "x", 1, 0, 0)]
    at = session.admit_rows(rows, 0)
    assert at == 2
    commit(session)
    send_all(session)
    receive(session, ack(PUBREC, 1))
    assert session.admit_rows(rows, at) == 3
    commit(session)
    kinds = [packet.kind for packet in parse(send_all(session))[0]]
    assert kinds == [PUBREL, PUBLISH], "the broker must see the PUBREL first"


@pytest.mark.parametrize(("protocol_version", "ahead"), [(4, 1), (5, 3)])
def test_places_that_a_resumed_session_may_hold_are_counted(protocol_version: int, ahead: int) -> None:
    session = Session(100, True, 4)
    session.protocol_version = protocol_version
    rows = [(each, "t", "x", 2, 0, 0) for each in range(1, 9)]
    assert session.admit_rows(rows, 0) == 3
    commit(session)
    send_all(session)
    session.park()
    assert session.stale == 3
    # Sent again, as many as have a place whatever the broker still holds.
    at = session.admit_rows(rows, 0)
    assert at == ahead
    for packet_id in range(1, 4):
        commit(session)
        send_all(session)
        receive(session, ack(PUBREC, packet_id))
        at = session.admit_rows(rows, at)
    assert at == 3 + ahead
    session.park()
    session.resume(False)
    assert session.stale == 0
    assert session.admit_rows(rows, 0) == 3


def test_a_later_process_knows_how_many_places_were_ever_taken() -> None:
    session = Session(100, True, 6)
    rows = [(each, "t", "x", 2, 0, 0) for each in range(1, 9)]
    session.admit_rows(rows[:2], 0)
    version, image = session.take_image()
    session.on_committed(version)
    send_all(session)
    receive(session, ack(PUBREC, 1) + ack(PUBREC, 2))
    version, image = session.take_image()
    session.on_committed(version)
    send_all(session)
    receive(session, ack(PUBCOMP, 1) + ack(PUBCOMP, 2))
    _, image = session.take_image()
    later = Session(100, True, 6)
    later.load_image(image)
    later.expect_stale()
    assert later.stale == 2
    assert later.admit_rows(rows, 2) == 5, "five places, and two may be held"
    later.park()
    assert later.stale == 5
    unsure = Session(100, True, 6)
    unsure.load_image(image)
    unsure.expect_stale(False)
    assert unsure.stale == 5
    unsure.load_image(b"")
    unsure.expect_stale()
    assert unsure.stale == 5


def test_a_session_that_has_not_gone_back_holds_nothing_stale() -> None:
    session = Session(100, True, 6)
    rows = [(each, "t", "x", 2, 0, 0) for each in range(1, 20)]
    session.kept_until = 77
    assert session.admit_rows(rows, 0) == 5
    commit(session)
    send_all(session)
    session.park()
    _, image = session.take_image()
    for resumed in (session, Session(100, True, 6)):
        if resumed is not session:
            resumed.load_image(image)
            resumed.expect_stale()
        resumed.resume(True)
        assert (resumed.kept_until, resumed.is_held_by_stale) == (77, False)
        assert resumed.admit_rows(rows, 0) == 1
        assert resumed.is_held_by_stale
        resumed.prove_kept()
        assert resumed.admit_rows(rows, 1) == 5
        assert not resumed.is_held_by_stale
        resumed.park()
        assert resumed.stale == 5
        resumed.resume(False)
        assert resumed.kept_until == 1


def test_a_resend_that_takes_more_places_than_an_image_says_waits_for_one() -> None:
    session = Session(100, True, 6)
    rows = [(each, "t", "x", 2, 0, 0) for each in range(1, 9)]
    session.admit_rows(rows[:2], 0)
    commit(session)
    send_all(session)
    session.park()
    session.resume(True)
    # A session that is older may have two places of others, and neither of these.
    session.admit_rows(rows[:2], 0)
    assert session.wants_commit
    assert send_all(session) == b""
    commit(session)
    assert [packet.kind for packet in parse(send_all(session))[0]] == [PUBLISH, PUBLISH]


def test_a_limit_of_one_leaves_qos_1_no_place_beside_it() -> None:
    session = Session(100, True, 1)
    rows = [(1, "t", "x", 1, 0, 0), (2, "t", "x", 2, 0, 0), (3, "t", "x", 1, 0, 0), (4, "t", "x", 2, 0, 0)]
    assert session.admit_rows(rows, 0) == 2
    commit(session)
    send_all(session)
    receive(session, ack(PUBREC, 2))
    assert session.admit_rows(rows, 2) == 4
    commit(session)
    kinds = [packet.kind for packet in parse(send_all(session))[0]]
    assert kinds == [PUBREL, PUBLISH, PUBLISH]


def test_nothing_of_qos_2_leaves_before_its_image_is_on_disk() -> None:
    session = Session(10, True)
    session.admit(1, "t", "one", 1)
    session.admit(2, "t", "two", 2)
    session.admit(3, "t", "three", 1)
    assert send_all(session) == publish("t", b"one", 1, 1)
    version, _ = session.take_image()
    assert send_all(session) == b""
    session.admit(4, "t", "four", 2)
    session.on_committed(version)
    assert send_all(session) == publish("t", b"two", 2, 2) + publish("t", b"three", 1, 3)
    commit(session)
    assert send_all(session) == publish("t", b"four", 2, 4)


def test_pubrel_waits_for_the_disk_and_pings_do_not() -> None:
    session = Session(10, True)
    session.admit(1, "t", "x", 2)
    commit(session)
    send_all(session)
    receive(session, ack(PUBREC, 1))
    session.put_packet(b"\xc0\x00")
    assert send_all(session) == b"\xc0\x00"
    commit(session)
    assert send_all(session) == ack(PUBREL, 1)


def test_a_packet_id_is_free_again_only_when_its_deletion_is_on_disk() -> None:
    session = Session(0, True)
    session.admit(1, "t", "x", 2)
    commit(session)
    send_all(session)
    receive(session, ack(PUBREC, 1))
    commit(session)
    send_all(session)
    assert receive(session, ack(PUBCOMP, 1)) == [1]
    taken = {session.reserve_packet_id() for _ in range(65_535)}
    assert 1 not in taken
    assert session.reserve_packet_id() == 0
    commit(session)
    assert session.reserve_packet_id() == 1


def test_dup_only_where_the_whole_packet_had_left() -> None:
    session = Session(10, True)
    for message_id in (1, 2, 3):
        session.admit(message_id, "t", "x" * 50, 1)
    one_bytes = len(publish("t", b"x" * 50, 1, 1))
    session.on_sent(len(session.peek(one_bytes + 10)))
    session.park()
    session.resume(True)
    session.admit_rows([(each, "t", "x" * 50, 1, 0, 0) for each in (1, 2, 3)], 0)
    packets, _ = parse(send_all(session))
    assert [packet.dup for packet in packets] == [True, False, False]
    assert packets[0].packet_id == 1


def test_a_restart_goes_on_where_the_image_says() -> None:
    before = Session(10, True)
    for message_id in (1, 2, 3):
        before.admit(message_id, "t", "x", 2)
    commit(before)
    send_all(before)
    receive(before, ack(PUBREC, 1))
    image = commit(before)

    after = Session(10, True)
    after.load_image(image)
    assert sorted(after.parked_ids()) == [1, 2, 3]
    assert after.resume(True) == []
    after.admit_rows([(each, "t", "x", 2, 0, 0) for each in (1, 2, 3, 4)], 0)
    commit(after)
    packets, _ = parse(send_all(after))
    assert [(each.kind, each.packet_id, each.dup) for each in packets] == [
        (PUBREL, 1, False),
        (PUBLISH, 2, True),
        (PUBLISH, 3, True),
        (PUBLISH, 4, False),
    ]


def test_a_pubrec_for_what_is_parked_waits_for_its_resend() -> None:
    session = Session(10, True)
    session.admit(1, "t", "x", 2)
    commit(session)
    send_all(session)
    session.park()
    session.resume(True)
    receive(session, ack(PUBREC, 1))
    assert send_all(session) == b"", "a PUBREL would make the resend a new message"
    session.admit_rows([(1, "t", "x", 2, 0, 0)], 0)
    receive(session, ack(PUBREC, 1))
    commit(session)
    assert [packet.kind for packet in parse(send_all(session))[0]] == [PUBLISH, PUBREL]


def test_a_lost_session_voids_ids_and_names_what_is_in_doubt() -> None:
    session = Session(10, True)
    for message_id in (1, 2):
        session.admit(message_id, "t", "x", 2)
    commit(session)
    send_all(session)
    receive(session, ack(PUBREC, 1))
    session.park()
    assert session.resume(False) == [1]
    session.admit_rows([(2, "t", "x", 2, 0, 0)], 0)
    commit(session)
    packets, _ = parse(send_all(session))
    assert [(each.kind, each.dup) for each in packets] == [(PUBLISH, False)]


@pytest.mark.parametrize("image", [b"\x02", b"\x01123", b"\xff" * 12])
def test_a_foreign_image_is_refused(image: bytes) -> None:
    with pytest.raises(ValueError, match="in-flight image"):
        Session(10, True).load_image(image)


def test_mqtt_5_reasons_and_refusals() -> None:
    session = Session(10)
    session.protocol_version = 5
    for message_id in (1, 2, 3):
        session.admit(message_id, "t", "x", 1 + (message_id == 3))
    send_all(session)
    assert receive(session, ack(PUBACK, 1, b"\x10") + ack(PUBACK, 2, b"\x97\x00") + ack(PUBREC, 3, b"\x87")) == [1]
    assert session.take_refused() == [2, 3]
    assert session.take_reasons() == {1: (0x40, 1, 0x10, b""), 2: (0x40, 2, 0x97, b"\x00"), 3: (0x50, 3, 0x87, b"")}
    assert send_all(session) == b"", "a refused PUBREC ends the exchange: no PUBREL"
    assert session.in_flight == 0


def test_nothing_leaves_behind_the_last_packet() -> None:
    session = Session(10)
    session.put_packet(b"\xe0\x00", last=True)
    session.admit(1, "t", "x", 1)
    chunk = session.peek(1000)
    assert chunk == b"\xe0\x00"
    assert session.on_sent(len(chunk))
    assert session.peek(1000) == b""


@pytest.mark.parametrize("seed", range(50))
def test_any_interleaving_delivers_each_message_in_order_and_once(seed: int) -> None:
    """A random owner, socket, disk and broker; the broker keeps its session over cut links and restarts."""
    chance = random.Random(seed)
    rows = [(each, "t", str(each), chance.choice((0, 1, 2)), 0, 0) for each in range(1, 201)]
    qos_of = {row[0]: row[3] for row in rows}
    limit = chance.choice((2, 3, 5, 50))
    session = Session(chance.choice((1, 3, 20, 100)), True, limit)
    session.resume(True)
    inbound = Answers(session)
    at, image = 0, b""
    commit_pending: tuple[int, bytes, set[int]] | None = None
    finished: set[int] = set()
    deleted: set[int] = set()
    wire, answers = b"", b""
    broker_ids: set[int] = set()
    delivered: list[int] = []

    def broker(packet_kind: int, packet_id: int, body: bytes, qos: int, dup: bool) -> bytes:
        if packet_kind == PUBREL:
            broker_ids.discard(packet_id)
            return ack(PUBCOMP, packet_id)
        payload = int(body[(5 if qos else 3) :])
        assert not qos or packet_id in broker_ids or len(broker_ids) < limit, "mosquitto would drop it"
        if qos == 2:
            if packet_id in broker_ids:
                assert dup, "a second copy must say so"
                return ack(PUBREC, packet_id)
            broker_ids.add(packet_id)
        delivered.append(payload)
        return b"" if qos == 0 else ack(PUBACK if qos == 1 else PUBREC, packet_id)

    for _ in range(100_000):
        if len(deleted) == len(rows):
            break
        action = chance.random()
        if action < 0.3:
            pending = [row for row in rows if row[0] not in finished]
            todo = [row for row in pending if row[0] > at]
            stop = session.admit_rows(todo, 0)
            at = todo[stop - 1][0] if stop else at
        elif action < 0.5:
            chunk = session.peek(chance.randrange(1, 60))
            session.on_sent(len(chunk))
            wire += chunk
        elif action < 0.65:
            packets, wire = parse(wire)
            for each in packets:
                answers += broker(each.kind, each.packet_id, each.body, each.flags >> 1 & 3, each.dup)
        elif action < 0.8:
            size = chance.randrange(1, 40)
            inbound.receive(answers[:size])
            answers = answers[size:]
        elif action < 0.95:
            if commit_pending is None:
                finished.update(session.take_done())
                commit_pending = (*session.take_image(), set(finished))
            else:
                version, image, deleted = commit_pending
                commit_pending = None
                session.on_committed(version)
        else:
            # QoS 0 that had left is gone with the link; what the socket took may be lost or may arrive.
            if chance.random() < 0.5:
                packets, _ = parse(wire)
                for each in packets:
                    broker(each.kind, each.packet_id, each.body, each.flags >> 1 & 3, each.dup)
            wire = answers = b""
            session.park()
            if chance.random() < 0.5:
                commit_pending = None
                session = Session(session.window, True, limit)
                session.load_image(image)
                finished = set(deleted)
            else:
                finished.update(session.take_done())
            session.resume(True)
            inbound = Answers(session)
            at = 0
    else:
        pytest.fail(f"not finished: {len(deleted)} of {len(rows)}")

    counts = {each: delivered.count(each) for each in qos_of}
    assert [each for each, qos in qos_of.items() if qos and not counts[each]] == [], "lost"
    assert [each for each, qos in qos_of.items() if qos == 2 and counts[each] != 1] == [], "not exactly once"
    firsts = [each for each in dict.fromkeys(delivered) if qos_of[each] == 2]
    assert firsts == sorted(firsts), "out of order"
