"""A broker that ends connections over a message of QoS 0, which is queued again each time it was in the air."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from glec_fast import DropReason, MQTTManager
from glec_fast.protocol._session import Session
from support.gateway import eventually, quick_config
from support.odd_broker import CLOSE, RESET, OddBroker
from support.wire_reference import PUBLISH, parse

if TYPE_CHECKING:
    from pathlib import Path

    from support.wire_reference import Packet


class Closing(OddBroker):
    """Over one message. asked: how often it was sent that."""

    way = CLOSE
    asked = 0

    def on_publish(self, packet: Packet) -> bytes:
        if not packet.body.endswith(b"=bad"):
            return super().on_publish(packet)
        self.asked += 1
        return self.way


@pytest.mark.parametrize("way", [CLOSE, RESET])
@pytest.mark.parametrize("settings", [{}, {"max_qos": 0}, {"queue_order": "fifo"}])
def test_it_stops_no_other(tmp_path: Path, way: bytes, settings: dict[str, object]) -> None:
    broker, dropped = Closing(4), []
    broker.way = way
    with broker, MQTTManager(quick_config(broker.url, tmp_path, resend_unproven=True, **settings)) as manager:
        manager.set_drop_callback(dropped.append)
        manager.connect()
        assert eventually(manager.is_connected)
        good = {b"%d" % number for number in range(40)}
        manager.publish("t", "=bad", 0)
        for number in range(40):
            manager.publish("t", f"={number}", number % 3)
        assert eventually(lambda: good <= set(broker.counts()), 60.0), broker.counts()
        assert eventually(lambda: bool(dropped), 60.0)
        # Twice among others, and then alone as often as any other message.
        assert broker.asked <= 2 + 3 + 3
        assert {each.reason for each in dropped} == {DropReason.LOST_IN_THE_AIR}


def test_each_waits_for_the_proof_of_the_one_before() -> None:
    session = Session(10, True)
    session.bounds_unproven = session.proves_each = True
    rows = [(each, "t", "x", 0, 0, 0) for each in range(1, 4)]
    at = 0
    for count in (1, 2, 3):
        at = session.admit_rows(rows, at)
        assert at == count
        assert session.wants_proof
        session.put_packet(b"\xc0\x00")
        sent = session.peek(1000)
        session.on_sent(len(sent))
        assert [packet.kind for packet in parse(sent)[0]] == [PUBLISH, 12]
        assert session.admit_rows(rows, at) == at
        session.on_pong()
