"""A connection that began with what is suspected alone, and goes on with all: the queue is read anew, in order."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.scripted_broker import publication_of
from support.scripted_gateway import ScriptedGateway
from support.wire_reference import PUBACK, PUBLISH, PUBREC, ack, parse

if TYPE_CHECKING:
    from pathlib import Path

QUOTA_EXCEEDED = b"\x97"


def payloads(stream: bytes) -> list[str]:
    return [publication_of(each, 5).payload for each in parse(stream)[0] if each.kind == PUBLISH]


def send_all(gateway: ScriptedGateway) -> list[str]:
    gateway.commit()
    return payloads(gateway.send() + gateway.send())


@pytest.mark.parametrize("qos", [1, 2])
def test_what_was_refused_goes_once_more_and_not_twice(tmp_path: Path, qos: int) -> None:
    with ScriptedGateway(tmp_path / "q.db", protocol_version=5) as gateway:
        gateway.publish("suspect", qos)
        gateway.connect()
        assert send_all(gateway) == ["suspect"]
        gateway.outbox.is_left = True
        gateway.cut()
        gateway.publish("other", 0)
        gateway.publish("last", 1)
        gateway.connect()
        assert (gateway.outbox.is_narrow, send_all(gateway)) == (True, ["suspect"])
        gateway.receive(ack(PUBACK if qos == 1 else PUBREC, 1, QUOTA_EXCEEDED))
        assert (gateway.outbox.is_narrow, sorted(send_all(gateway))) == (False, ["last", "other"])
        gateway.outbox._again_at_s = 0.0
        gateway.outbox.pull()
        assert send_all(gateway) == ["suspect"]
        gateway.outbox.pull()
        assert send_all(gateway) == []


def test_what_is_refused_behind_it_is_sent_again_on_this_connection(tmp_path: Path) -> None:
    with ScriptedGateway(tmp_path / "q.db", protocol_version=5) as gateway:
        for payload in ("first", "second"):
            gateway.publish(payload, 1)
        gateway.connect()
        assert send_all(gateway) == ["first", "second"]
        gateway.outbox.is_left = True
        gateway.cut()
        gateway.publish("other", 0)
        gateway.commit()
        gateway.connect()
        assert gateway.outbox.next_rows.has_held_back
        assert send_all(gateway) == ["first"]
        gateway.receive(ack(PUBACK, 1))
        assert send_all(gateway) == ["second"]
        # In flight, as the window is widened.
        gateway.outbox.blame.suspicion.suspects.clear()
        gateway.outbox.pull()
        assert (gateway.outbox.is_narrow, send_all(gateway)) == (False, ["other"])
        gateway.receive(ack(PUBACK, 2, QUOTA_EXCEEDED))
        assert send_all(gateway) == []
        gateway.outbox._again_at_s = 0.0
        gateway.outbox.pull()
        assert send_all(gateway) == ["second"]
