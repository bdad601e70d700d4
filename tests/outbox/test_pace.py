"""The bound of what is on its way: over simulated links, with a clock of their own, and at the outbox."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

import pytest

from glec_fast.outbox._pace import Pace
from support.scripted_broker import ScriptedBroker
from support.scripted_gateway import ScriptedGateway
from support.wire_reference import parse

if TYPE_CHECKING:
    from pathlib import Path

MESSAGE_BYTES = 300
PINGREQ = b"\xc0\x00"


class Link(NamedTuple):
    rate_bytes_s: float
    round_trip_s: float


class Sender:
    """Always has something to send. The server reads at the link's rate, and answers half a round trip later."""

    def __init__(self, link: Link) -> None:
        self.pace = Pace()
        self.link = link
        self.now_s = 0.0
        self.sent = self.answered = 0
        self._read_s = 0.0
        # (when the answer comes, what it proves), in order.
        self._answers: deque[tuple[float, int]] = deque()

    def run(self, seconds: float) -> tuple[float, float]:
        """(bytes a second that were answered, the longest that a message waited behind others, in seconds)."""
        began_s, answered, longest_s = self.now_s, self.answered, 0.0
        while self.now_s < began_s + seconds:
            sent = self.sent
            while self.sent - self.answered < self.pace.window_bytes:
                self.sent += MESSAGE_BYTES
                arrives_s = self.now_s + self.link.round_trip_s / 2
                self._read_s = max(self._read_s, arrives_s) + MESSAGE_BYTES / self.link.rate_bytes_s
                longest_s = max(longest_s, self._read_s - arrives_s)
                self._answers.append((self._read_s + self.link.round_trip_s / 2, self.sent))
            if self.sent > sent:
                self.pace.on_sent(self.sent, self.answered, self.now_s)
            self.now_s, self.answered = self._answers.popleft()
            self.pace.on_answered(self.answered, self.now_s)
        return (self.answered - answered) / (self.now_s - began_s), longest_s


@pytest.mark.parametrize("rate_bytes_s", [5_000, 20_000, 100_000, 2_000_000])
@pytest.mark.parametrize("round_trip_s", [0.0001, 0.02, 0.1, 0.3, 0.8])
def test_no_link_stands_idle_and_none_is_filled(rate_bytes_s: float, round_trip_s: float) -> None:
    sender = Sender(Link(rate_bytes_s, round_trip_s))
    sender.run(3 + 10 * round_trip_s)
    rate, longest_s = sender.run(3)
    assert rate > 0.97 * rate_bytes_s
    # The least that is on its way is 2,000 bytes; where they take longer than the target, the link is taken for longer.
    assert longest_s < max(0.35, 1.1 * round_trip_s) + 3_500 / rate_bytes_s


@pytest.mark.parametrize("round_trip_s", [0.1, 0.3])
def test_the_first_answers_show_the_rate(round_trip_s: float) -> None:
    """Two round trips; TCP, which doubles, would have 50 kB on its way."""
    sender = Sender(Link(3_000_000, round_trip_s))
    sender.run(2 * round_trip_s)
    assert sender.pace.window_bytes > 150_000


@pytest.mark.parametrize("rate_bytes_s", [5_000, 20_000, 100_000])
@pytest.mark.parametrize("round_trip_s", [0.0001, 0.1, 0.3, 0.8])
def test_the_first_answers_of_a_slow_link_do_not_show_a_fast_one(rate_bytes_s: float, round_trip_s: float) -> None:
    sender = Sender(Link(rate_bytes_s, round_trip_s))
    _, longest_s = sender.run(2 + 5 * round_trip_s)
    assert longest_s < max(12_300 / rate_bytes_s, 0.35, 2.1 * round_trip_s)


def test_answers_that_were_held_back_and_come_at_once_show_a_little_at_most() -> None:
    """A modem that sleeps, say: 12 kB in half a second are 24 kB/s for certain."""
    pace = Pace()
    pace.on_sent(12_000, 0, 1.0)
    assert pace.on_answered(6_000, 1.5) == 12_000
    assert pace.on_answered(12_000, 1.5001) <= 8 * 24_000 * 2 * 0.5


def test_a_link_that_becomes_slow() -> None:
    sender = Sender(Link(1_000_000, 0.05))
    sender.run(5)
    sender.link = Link(20_000, 0.05)
    sender.run(30)
    rate, longest_s = sender.run(5)
    assert rate > 0.97 * 20_000
    assert longest_s < 0.4


def test_a_link_that_becomes_long() -> None:
    sender = Sender(Link(100_000, 0.02))
    sender.run(5)
    sender.link = Link(100_000, 1.0)
    sender.run(60)
    rate, _ = sender.run(10)
    assert rate > 0.9 * 100_000


def test_few_messages_say_nothing_of_the_link() -> None:
    pace = Pace()
    for number in range(1, 50):
        pace.on_sent(number * 300, (number - 1) * 300, number)
        pace.on_answered(number * 300, number + 0.05)
    assert not pace.is_measured
    assert pace.round_trip_s == pytest.approx(0.05)


class TestAtTheOutbox:
    def test_a_backlog_waits_for_answers_and_an_alert_does_not(self, tmp_path: Path) -> None:
        with ScriptedGateway(tmp_path / "queue.db", window=1000, queue_order="alerts_first") as gateway:
            for _ in range(100):
                gateway.publish("x" * 500, 1)
            gateway.connect()
            gateway.commit()
            first = gateway.send()
            assert 12_000 <= len(first) < 13_000
            gateway.publish("alert", 2)
            gateway.commit()
            alert = gateway.send()
            assert alert.endswith(b"alert")
            assert len(alert) < 30
            broker = ScriptedBroker()
            broker.feed(first)
            gateway.receive(broker.handle(5))
            assert len(gateway.send()) > 5 * 500

    @pytest.mark.parametrize("qos", [0, 1])
    def test_all_of_it_arrives(self, tmp_path: Path, qos: int) -> None:
        broker = ScriptedBroker()
        with ScriptedGateway(tmp_path / "queue.db", window=1000) as gateway:
            for number in range(300):
                gateway.publish(f"{number:0500}", qos)
            gateway.connect()
            gateway.commit()
            for _ in range(300):
                broker.feed(gateway.send())
                gateway.receive(broker.handle(7))
                if not broker.inbox and not gateway.session.unanswered_bytes:
                    break
                gateway.commit()
            assert len(broker.delivered) == 300
            assert broker.counts().most_common(1)[0][1] == 1
            gateway.commit()
            assert gateway.rows() == {}

    def test_qos_0_is_asked_about(self, tmp_path: Path) -> None:
        with ScriptedGateway(tmp_path / "queue.db") as gateway:
            for _ in range(100):
                gateway.publish("x" * 500, 0)
            gateway.connect()
            gateway.commit()
            sent = gateway.send()
            assert len(sent) < 14_000
            assert 2 <= len([packet for packet in parse(sent)[0] if packet.kind == 12]) <= 8

    def test_an_answer_of_an_earlier_question_gives_nothing_up(self, tmp_path: Path) -> None:
        with ScriptedGateway(tmp_path / "queue.db") as gateway:
            gateway.connect()
            gateway.outbox.put_packet(b"\x10\x00", first=True)
            gateway.outbox.put_packet(PINGREQ)
            gateway.send()
            gateway.outbox.unanswered.ask()
            gateway.outbox.unanswered.asked = [99]
            gateway.outbox.on_pingresp()
            assert gateway.outbox.unanswered.asked == [99]
            gateway.outbox.on_pingresp()
            assert gateway.outbox.unanswered.asked == []
