"""What has become too old while it was on its way goes unsent on the next connection."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from glec_fast import DropReason
from support.clock import Clock
from support.gateway import eventually
from support.scripted_gateway import ScriptedGateway
from support.wire_reference import PUBREC, ack, parse

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("qos", [1, 2])
@pytest.mark.parametrize("protocol_version", [4, 5])
def test_without_an_answer(tmp_path: Path, qos: int, protocol_version: int) -> None:
    clock = Clock()
    given = {"clock": clock, "ttl_ms": 60_000, "protocol_version": protocol_version}
    with ScriptedGateway(tmp_path / "queue.db", **given) as gateway:
        gateway.publish("old", qos)
        gateway.commit()
        gateway.connect()
        gateway.commit()
        (sent,), _ = parse(gateway.send())
        gateway.cut()
        clock.now_s += 61
        gateway.connect()
        gateway.commit()
        assert gateway.send() == b""
        assert eventually(lambda: [each.reason for each in gateway.dropped] == [DropReason.EXPIRED])
        # The packet id of QoS 2 stays out of use.
        gateway.publish("new", qos)
        gateway.commit()
        (new,), _ = parse(gateway.send())
        assert new.packet_id != sent.packet_id
        assert len(gateway.session.reserved_ids()) == (qos == 2)


def test_what_the_broker_acknowledged_goes_on(tmp_path: Path) -> None:
    clock = Clock()
    with ScriptedGateway(tmp_path / "queue.db", clock=clock, ttl_ms=60_000) as gateway:
        gateway.publish("old", 2)
        gateway.commit()
        gateway.connect()
        gateway.commit()
        (sent,), _ = parse(gateway.send())
        gateway.receive(ack(PUBREC, sent.packet_id))
        gateway.commit()
        gateway.send()
        gateway.cut()
        clock.now_s += 61
        gateway.connect()
        gateway.commit()
        assert [packet.kind for packet in parse(gateway.send())[0]] == [6]
        assert gateway.dropped == []
