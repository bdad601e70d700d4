"""A broker that runs on has not gone back: over MQTT 3.1.1 its uptime says so, and QoS 2 need not go one by one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from paho.mqtt.enums import CallbackAPIVersion

from glec_fast.mqtt import Client
from glec_fast.testbed.subscriber import Subscriber
from support.clock import Clock
from support.gateway import TIMEOUT_S
from support.packet_tape import Tape, TappedLink
from support.scripted_gateway import ScriptedGateway
from support.wire_reference import PUBLISH, PUBREC

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import StartBroker

TOPIC = "$SYS/broker/uptime"


def most_ahead(tape: Tape) -> int:
    """QoS 2 messages that were at the broker, and had no PUBREC, at once."""
    ahead = most = 0
    for step in tape.steps:
        if step.packet is not None and (step.packet.kind, step.packet.flags & 6) == (PUBLISH, 4):
            ahead += 1
        elif step.packet is not None and step.packet.kind == PUBREC:
            ahead -= 1
        most = max(most, ahead)
    return most


def made(path: Path, heard: list[Any]) -> Client:
    client = Client(CallbackAPIVersion.VERSION2, "DTG", clean_session=False, store=path, wait_for_disk=False)
    client.reconnect_delay_set(0.05, 0.05)
    client.on_message = client.on_subscribe = client.on_unsubscribe = lambda *arguments: heard.append(arguments)
    return client


@pytest.mark.parametrize(("is_another_process", "is_another_broker"), [(False, False), (True, False), (False, True)])
def test_after_many_were_on_their_way_as_many_are_again_where_the_broker_runs_on(
    start_broker: StartBroker, tmp_path: Path, is_another_process: bool, is_another_broker: bool
) -> None:
    broker = start_broker(settings=["sys_interval 1"], persistence=True)
    with Subscriber(broker, TOPIC) as clock, Subscriber(broker, "t", client_id="counts") as subscriber:
        assert clock.wait_for(lambda arrivals: int(arrivals[-1].payload.split()[0] if arrivals else 0) >= 4, TIMEOUT_S)
        tape, heard, path = Tape(4), [], tmp_path / "queue.db"
        with TappedLink((broker.host, broker.port), tape) as link:
            client = made(path, heard)
            handles = [client.publish("t", f"before {number}", 2) for number in range(30)]
            client.connect(link.host, link.port)
            client.loop_start()
            for handle in handles:
                handle.wait_for_publish(TIMEOUT_S)
            assert most_ahead(tape) > 10
            link.cut()
            if is_another_process:
                client.close()
                client = made(path, heard)
            if is_another_broker:
                # What it is restored from may be older.
                clock.leave()
                # What it has in part, paho's subscriber forgets.
                assert subscriber.wait_for_count(30)
                subscriber.leave()
                broker.stop()
                broker.start()
                subscriber.start()
                clock.start()
            tape.steps.clear()
            for number in range(30):
                client.publish("t", f"after {number}", 2)
            link.restore()
            # Answers are long under way.
            link.slow(150, "down")
            if is_another_process:
                client.connect(link.host, link.port)
                client.loop_start()
            assert subscriber.wait_for_count(60)
            assert len(set(subscriber.payloads())) == 60
            assert (most_ahead(tape) > 10) is not is_another_broker
            client.disconnect()
            client.loop_stop()
            client.close()
    assert heard == []


def test_the_ids_of_a_question_without_an_answer_are_the_programs_again(tmp_path: Path) -> None:
    with ScriptedGateway(tmp_path / "queue.db") as gateway:
        gateway.connect()
        gateway.outbox.uptime._ask()
        assert gateway.outbox.is_asking
        gateway.outbox.park()
        gateway.connect()
        assert not any(gateway.outbox.uptime.take_answer(packet_id) for packet_id in range(1, 65_536))


def test_an_answer_that_is_read_late_is_as_old_as_its_question(tmp_path: Path) -> None:
    """Suspended in between: the broker may have gone back since."""
    clock = Clock()
    with ScriptedGateway(tmp_path / "queue.db", clock=clock) as gateway:
        store, session, uptime = gateway.store, gateway.session, gateway.outbox.uptime
        clock.now_s += 1000
        gateway.connect(session_present=False)
        assert store.clock.seconds_since(session.kept_until) == 1000
        uptime._ask()
        clock.now_s += 500
        assert uptime.take_message(b"3600 seconds")
        assert store.clock.seconds_since(session.kept_until) == 500
