"""Once a message was found that the broker ends connections over, what is like it goes last and alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.scripted_broker import PINGREQ, PINGRESP, publication_of
from support.scripted_gateway import ScriptedGateway
from support.wire_reference import PUBACK, PUBLISH, Packet, ack, parse

if TYPE_CHECKING:
    from pathlib import Path

TRIES = 3
DUE_S = 30.0


class Gateway(ScriptedGateway):
    """`sent`: of what leaves, what is not answered."""

    def publish_all(self, *payloads: str, qos: int = 1) -> None:
        for payload in payloads:
            self.publish(payload, qos)

    def go_on(self) -> list[str]:
        """What leaves now: payloads, and "?" for PINGREQ."""
        self.commit()
        packets = parse(self.send() + self.send())[0]
        self.sent = [each for each in packets if each.kind == PUBLISH]
        return ["?" if each.kind == PINGREQ else self._payload(each) for each in packets]

    def answer(self) -> list[str]:
        """The broker answers what left; returns what leaves then."""
        self.receive(b"".join(ack(PUBACK, each.packet_id) for each in self.sent if each.packet_id))
        return self.go_on()

    def wait(self, seconds: float) -> None:
        self.clock.now_s += seconds
        self.outbox.pull()

    def refuse(self) -> None:
        """The broker ends the connection, and takes the next."""
        self.outbox.is_left = True
        self.cut()
        self.connect()

    def find(self, payload: str, qos: int) -> None:
        """The broker ends connections over this message, until it stands aside."""
        self.publish(payload, qos)
        self.connect()
        for _ in range(1 + TRIES):
            assert self.go_on() == [payload]
            self.refuse()
        assert self.go_on() == []

    def _payload(self, packet: Packet) -> str:
        return publication_of(packet, self.session.protocol_version).payload


def test_what_is_like_it_in_the_most_ways_goes_last_and_alone(tmp_path: Path) -> None:
    with Gateway(tmp_path / "q.db") as gateway:
        gateway.find("bad" * 100, 2)
        gateway.publish_all("alert", "other alert", qos=2)
        gateway.publish_all("result", "long" * 100, "other result", qos=1)
        # All have its topic. The first that is answered shows that it is not that.
        assert gateway.go_on() == ["result"]
        assert gateway.answer() == ["other result"]
        assert gateway.answer() == ["alert"]
        gateway.publish_all("new result", qos=1)
        gateway.refuse()
        assert gateway.go_on() == ["new result"]
        # Those with the fewest tries.
        assert gateway.answer() == ["other alert"]
        gateway.refuse()
        assert gateway.go_on() == ["long" * 100]
        assert gateway.answer() == ["alert"]


def test_of_those_that_are_as_much_like_it_the_smallest_goes_first(tmp_path: Path) -> None:
    with Gateway(tmp_path / "q.db") as gateway:
        gateway.find("bad" * 100, 1)
        gateway.publish_all("medium" * 10, "small")
        assert gateway.go_on() == ["small"]


def test_a_qos_that_was_answered_holds_nothing_back(tmp_path: Path) -> None:
    with Gateway(tmp_path / "q.db") as gateway:
        gateway.find("bad", 1)
        gateway.publish_all("one", "two", "six")
        assert gateway.go_on() == ["one"]
        assert gateway.answer() == ["two", "six"]


def test_a_later_process_knows_what_was_found(tmp_path: Path) -> None:
    with Gateway(tmp_path / "q.db") as gateway:
        gateway.find("bad" * 100, 2)
        gateway.publish_all("result")
        assert gateway.go_on() == ["result"]
        gateway.answer()
    with Gateway(tmp_path / "q.db") as gateway:
        gateway.publish_all("alert", qos=2)
        gateway.publish_all("long" * 100, "other", "result")
        gateway.connect()
        assert gateway.go_on() == ["other", "result"]
        assert gateway.answer() == ["alert"]


@pytest.mark.parametrize("is_answered", [True, False])
def test_it_waits_until_qos_0_that_went_before_is_known_to_have_arrived(tmp_path: Path, is_answered: bool) -> None:
    with Gateway(tmp_path / "q.db") as gateway:
        gateway.find("bad", 2)
        gateway.publish_all("alert", qos=2)
        gateway.publish_all("telemetry", qos=0)
        assert gateway.go_on() == ["telemetry", "?"]
        gateway.publish_all("more", qos=0)
        assert gateway.go_on() == []
        if is_answered:
            gateway.receive(PINGRESP)
            assert gateway.go_on() == ["alert"]
        else:
            # Not for ever.
            gateway.wait(DUE_S)
            assert gateway.go_on() == ["more"]


def test_it_is_due_at_last_though_there_is_more_to_be_sent(tmp_path: Path) -> None:
    with Gateway(tmp_path / "q.db", window=2) as gateway:
        gateway.find("bad" * 100, 2)
        gateway.publish_all("result")
        assert gateway.go_on() == ["result"]
        gateway.publish_all(*"abcdefghij")
        gateway.publish_all("alert", qos=2)
        assert gateway.answer() == ["a", "b"]
        assert gateway.answer() == ["c", "d"]
        gateway.wait(DUE_S)
        assert gateway.answer() == ["alert"]
        gateway.refuse()
        assert gateway.go_on() == ["e", "f"]
        assert gateway.answer() == ["g", "h"]
        # It has had no turn on a connection that ends over something else.
        gateway.refuse()
        assert gateway.go_on() == ["i", "j"]
        assert gateway.answer() == ["g"]


def test_nothing_makes_way_for_ever(tmp_path: Path) -> None:
    with Gateway(tmp_path / "q.db", window=2) as gateway:
        gateway.find("bad" * 100, 2)
        gateway.publish_all("result")
        assert gateway.go_on() == ["result"]
        gateway.publish_all(*"abcdefgh")
        gateway.publish_all("alert", qos=2)
        assert gateway.answer() == ["a", "b"]
        never_answered, *gateway.sent = gateway.sent
        assert gateway.answer() == ["c"]
        gateway.wait(DUE_S)
        assert gateway.answer() == []
        gateway.wait(DUE_S - 1)
        assert gateway.go_on() == []
        assert gateway.outbox.has_timers
        assert not gateway.outbox.is_due
        gateway.clock.now_s += 1
        # Nothing else wakes the loop.
        assert gateway.outbox.is_due
        assert gateway.go_on() == ["d"]
        assert not gateway.outbox.is_due
        assert gateway.answer() == ["e"]
        gateway.wait(5 * DUE_S)
        assert gateway.answer() == ["f"]
        # And another time, later.
        gateway.wait(5 * DUE_S)
        assert gateway.answer() == []
        gateway.sent = [never_answered]
        assert gateway.answer() == ["alert"]


@pytest.mark.parametrize("is_found", [False, True])
def test_nothing_makes_way_for_what_is_gone(tmp_path: Path, is_found: bool) -> None:
    # More than are read at once.
    many = [str(number) for number in range(300)]
    with Gateway(tmp_path / "q.db", window=2) as gateway:
        if is_found:
            gateway.find("bad", 2)
            gateway.publish_all("result")
            assert gateway.go_on() == ["result"]
            gateway.publish_all("alert", qos=2)
            gateway.publish_all(*many)
            gateway.commit()
            assert gateway.answer() == many[:2]
        else:
            gateway.publish_all("alert")
            for _ in range(TRIES):
                gateway.connect()
                assert gateway.go_on() == ["alert"]
                gateway.outbox.is_silent = True
                gateway.cut()
            gateway.publish_all(*many)
            gateway.connect()
            assert gateway.go_on() == many[:2]
        gateway.wait(DUE_S)
        (rank,) = gateway.outbox.blame.last
        assert gateway.store.purge([rank[-1]]) == 1
        gateway.commit()
        assert gateway.answer() == many[2:4]


def test_where_traits_tell_nothing_apart_they_are_not_heeded(tmp_path: Path) -> None:
    with Gateway(tmp_path / "q.db") as gateway:
        gateway.find("bad", 1)
        gateway.publish_all("bad", "bad", "one", "two")
        assert gateway.go_on() == ["bad"]
        gateway.refuse()
        assert gateway.go_on() == ["bad", "one", "two"]
        gateway.refuse()
        # What was exposed, without what has had a try.
        assert gateway.go_on() == ["bad"]
        gateway.refuse()
        assert gateway.go_on() == ["one"]
        assert gateway.answer() == ["two"]


@pytest.mark.parametrize("is_answered", [False, True])
def test_only_an_answer_clears_a_trait(tmp_path: Path, is_answered: bool) -> None:
    with Gateway(tmp_path / "q.db") as gateway:
        gateway.find("bad", 1)
        gateway.publish_all("one")
        assert gateway.go_on() == ["one"]
        if is_answered:
            assert gateway.answer() == []
        else:
            gateway.outbox.blame.on_gone([2])
        assert any(gateway.outbox.blame.suspicion.traits.values()) is not is_answered


def test_qos_0_that_came_meanwhile_goes_before_what_goes_last(tmp_path: Path) -> None:
    with Gateway(tmp_path / "q.db") as gateway:
        gateway.find("bad" * 100, 2)
        gateway.publish_all("result")
        assert gateway.go_on() == ["result"]
        gateway.publish_all("one", "two")
        assert gateway.answer() == ["one", "two"]
        # They were exposed. What they have in common with what was found is cleared, so that an answer clears no more.
        gateway.refuse()
        assert gateway.go_on() == ["one"]
        one = gateway.sent
        gateway.publish_all("telemetry", qos=0)
        assert gateway.go_on() == []
        gateway.sent = one
        assert gateway.answer() == ["telemetry", "?"]
        gateway.receive(PINGRESP)
        assert gateway.go_on() == ["two"]


def test_what_goes_beside_a_suspect_that_is_not_sent_was_not_alone(tmp_path: Path) -> None:
    with Gateway(tmp_path / "q.db", protocol_version=5) as gateway:
        gateway.publish_all("large" * 100)
        gateway.connect()
        assert gateway.go_on() == ["large" * 100]
        gateway.outbox.is_left = True
    with Gateway(tmp_path / "q.db", protocol_version=5) as gateway:
        gateway.outbox.meet({"MaximumPacketSize": 100}, 0)
        gateway.connect()
        assert gateway.go_on() == []
        gateway.publish_all("other")
        for _ in range(1 + TRIES):
            assert gateway.go_on() == ["other"]
            gateway.refuse()
        assert gateway.go_on() == []


@pytest.mark.parametrize("is_found", [False, True])
def test_what_goes_alone_and_is_never_answered_holds_nothing_up_for_ever(tmp_path: Path, is_found: bool) -> None:
    with Gateway(tmp_path / "q.db") as gateway:
        if is_found:
            gateway.find("bad" * 100, 2)
            gateway.publish_all("result")
            assert gateway.go_on() == ["result"]
            assert gateway.answer() == []
            gateway.publish_all("ignored", qos=2)
        else:
            gateway.publish_all("ignored")
            gateway.connect()
            assert gateway.go_on() == ["ignored"]
            gateway.refuse()
        assert gateway.go_on() == ["ignored"]
        gateway.publish_all("one")
        assert gateway.go_on() == []
        gateway.outbox.look_for_answers()
        assert gateway.go_on() == ["?"]
        # The link is slow: nobody knows yet that the broker has it.
        gateway.wait(10 * DUE_S)
        gateway.outbox.look_for_answers()
        assert "one" not in gateway.go_on()
        gateway.receive(PINGRESP)
        gateway.outbox.look_for_answers()
        gateway.wait(DUE_S - 1)
        gateway.outbox.look_for_answers()
        assert gateway.outbox.has_timers
        assert "one" not in gateway.go_on()
        gateway.wait(1)
        gateway.outbox.look_for_answers()
        assert [each for each in gateway.go_on() if each != "?"] == ["one"]
        gateway.publish_all("two")
        assert gateway.answer() == ["two"]
        # Behind the others next time.
        gateway.refuse()
        assert gateway.go_on() == ["two"]
        assert gateway.answer() == ["ignored"]


def test_each_connection_shows_anew_that_what_goes_alone_was_read(tmp_path: Path) -> None:
    with Gateway(tmp_path / "q.db") as gateway:
        gateway.publish_all("ignored")
        gateway.connect()
        assert gateway.go_on() == ["ignored"]
        gateway.refuse()
        gateway.publish_all("one")
        for _ in range(TRIES - 1):
            assert gateway.go_on() == ["ignored"]
            gateway.outbox.look_for_answers()
            assert gateway.go_on() == ["?"]
            gateway.receive(PINGRESP)
            gateway.outbox.look_for_answers()
            gateway.refuse()
            gateway.wait(DUE_S)
        assert gateway.go_on() == ["ignored"]
        gateway.outbox.look_for_answers()
        assert gateway.go_on() == ["?"]
