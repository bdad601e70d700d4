"""Brokers as they are: each does one thing otherwise than MQTT wants it. Nothing stands still, and all is told."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

import glec_fast.outbox.unanswered
from glec_fast import Decision, DropReason, MQTTManager
from glec_fast.cli.main import main
from glec_fast.outbox.unanswered import TRIES
from glec_fast.testbed.link import Link
from glec_fast.testbed.subscriber import Subscriber
from support.faulty_link import FaultyLink
from support.gateway import BOTH_VERSIONS, TIMEOUT_S, eventually, quick_config
from support.odd_broker import CLOSE, RESET, OddBroker
from support.scripted_broker import ScriptedBroker
from support.scripted_gateway import ScriptedGateway
from support.wire_reference import PUBACK, PUBCOMP, PUBLISH, PUBREC, PUBREL, Packet, ack, parse

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import StartBroker

LOST = b"\x92"
PINGREQ, PINGRESP = b"\xc0\x00", b"\xd0\x00"
CONNACK_BYTES = 4


def ledger(manager: MQTTManager) -> list[tuple[int, Decision]]:
    return [(entry.message_id, entry.decision) for entry in manager.in_doubt()]


def warnings(caplog: pytest.LogCaptureFixture, text: str) -> int:
    return sum(text in record.getMessage() and record.levelno >= logging.WARNING for record in caplog.records)


# ---- QoS 2 acknowledged as QoS 1


class NoMoreThanQos1(OddBroker):
    """As RabbitMQ 3.10."""

    def on_publish(self, packet: Packet) -> bytes:
        self.delivered.append(packet.body.rpartition(b"=")[2])
        return ack(PUBACK, packet.packet_id) if packet.flags & 6 else b""


@BOTH_VERSIONS
def test_qos_2_that_is_acknowledged_as_qos_1_is_done_and_said_once(
    tmp_path: Path, protocol_version: int, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    with NoMoreThanQos1(protocol_version, keeps_sessions=False) as broker:
        config = quick_config(broker.url, tmp_path, protocol_version=protocol_version)
        with MQTTManager(config) as manager:
            manager.connect()
            handles = [manager.publish("t", f"={number}", 2) for number in range(50)]
            for handle in handles:
                handle.wait_for_publish(TIMEOUT_S)
            assert manager.flush(TIMEOUT_S)
            metrics = manager.get_metrics()
            assert metrics.weaknesses == {"qos2_as_qos1": 50}
            assert (metrics.in_doubt, metrics.messages_failed, metrics.messages_sent) == (0, 0, 50)
            ((_, decision),) = ledger(manager)
            assert decision is Decision.AT_LEAST_ONCE
        assert broker.counts() == {b"%d" % number: 1 for number in range(50)}
        assert broker.connections == 1
        assert PUBREL not in {kind for kind, _ in broker.seen}
    assert warnings(caplog, "acknowledges QoS 2 as QoS 1") == 1
    assert main(["in-doubt", str(tmp_path / "queue.db")]) == 0
    assert capsys.readouterr().out.rstrip().endswith("at_least_once")


def test_each_reconnect_to_a_broker_without_qos_2_does_not_fill_the_ledger(tmp_path: Path) -> None:
    with ScriptedGateway(tmp_path / "queue.db") as gateway:
        for number in range(10):
            gateway.publish(f"first {number}", 2)
            gateway.publish(f"cut off {number}", 2)
            gateway.connect(session_present=False)
            gateway.commit()
            packets, _ = parse(gateway.send())
            gateway.receive(ack(PUBACK, packets[0].packet_id))
            gateway.cut()
        gateway.commit()
        assert [entry.decision for entry in gateway.store.in_doubt()] == [Decision.AT_LEAST_ONCE]
        counts = gateway.outbox.weaknesses.counts()
        assert counts == {"qos2_as_qos1": 10, "session_forgotten": 9}
        assert gateway.outbox.in_doubt_count == 0


def test_pubrec_then_puback_ends_the_connection_and_acknowledges_nothing(tmp_path: Path) -> None:
    class Both(OddBroker):
        def on_publish(self, packet: Packet) -> bytes:
            answer = super().on_publish(packet)
            return answer + ack(PUBACK, packet.packet_id) if self.connections == 1 else answer

    with Both() as broker, MQTTManager(quick_config(broker.url, tmp_path)) as manager:
        manager.connect()
        manager.publish("t", "=once", 2).wait_for_publish(TIMEOUT_S)
        assert broker.connections == 2
        assert broker.counts() == {b"once": 1}
        assert manager.get_metrics().weaknesses == {}


# ---- refusals by any code


@pytest.mark.parametrize("code", [0x95, 0x92, 0x81, 0xC3, 0xFF])
@pytest.mark.parametrize("qos", [1, 2])
def test_any_failure_code_is_a_refusal(tmp_path: Path, qos: int, code: int) -> None:
    class Refusing(OddBroker):
        def on_publish(self, packet: Packet) -> bytes:
            if packet.body.endswith(b"=bad"):
                return ack(PUBACK if qos == 1 else PUBREC, packet.packet_id, bytes([code]))
            return super().on_publish(packet)

    with Refusing(5) as broker:
        config = quick_config(broker.url, tmp_path, protocol_version=5, queue_max_retry=1)
        dropped = []
        with MQTTManager(config) as manager:
            manager.set_drop_callback(dropped.append)
            manager.connect()
            manager.publish("t", "=bad", qos)
            manager.publish("t", "=good", qos)
            assert manager.flush(TIMEOUT_S)
        assert [each.reason for each in dropped] == [DropReason.QUARANTINED]
        assert broker.counts() == {b"good": 1}
        assert broker.connections == 1


def test_mosquittos_limit_of_a_message_stops_no_other(start_broker: StartBroker, tmp_path: Path) -> None:
    broker = start_broker(settings=["message_size_limit 1000"])
    config = quick_config(broker.url, tmp_path, protocol_version=5, queue_max_retry=1)
    with Subscriber(broker) as subscriber, MQTTManager(config) as manager:
        manager.connect()
        for qos in (1, 2):
            manager.publish("t", "x" * 2000, qos)
            manager.publish("t", "y" * 900, qos)
        assert manager.flush(TIMEOUT_S)
        assert subscriber.wait_for_count(2)
        # mosquitto 2.0.11 ends the connection all the same.
        assert manager.get_metrics().drops == {"quarantined": 2}


# ---- PUBCOMP 0x92


def release(gateway: ScriptedGateway) -> None:
    """One message of QoS 2, up to its PUBREL, which has left."""
    gateway.publish("x", 2)
    gateway.connect(session_present=False)
    gateway.commit()
    (packet,), _ = parse(gateway.send())
    gateway.receive(ack(PUBREC, packet.packet_id))
    gateway.commit()
    assert gateway.send() == ack(PUBREL, packet.packet_id)


def test_an_unknown_exchange_is_no_failure_where_pubrel_was_sent_again(tmp_path: Path) -> None:
    """As ejabberd does, which forgets it with the first."""
    with ScriptedGateway(tmp_path / "queue.db", protocol_version=5) as gateway:
        gateway.outbox.tell_all(True)
        release(gateway)
        gateway.cut()
        gateway.connect()
        assert gateway.send() == ack(PUBREL, 1)
        with gateway.outbox.lock:
            gateway._answers.receive(ack(PUBCOMP, 1, LOST))
            assert gateway.session.take_reasons() == {}
        gateway._settle()
        gateway.commit()
        assert gateway.store.in_doubt() == []
        assert (gateway.outbox.in_doubt_count, gateway.store.size) == (0, 0)


@pytest.mark.parametrize("resend", [False, True])
def test_an_unknown_exchange_is_in_doubt_where_pubrel_was_sent_once(tmp_path: Path, resend: bool) -> None:
    with ScriptedGateway(tmp_path / "queue.db", protocol_version=5, resend_in_doubt=resend) as gateway:
        handle = gateway.outbox.handle_for
        release(gateway)
        held = handle(1)
        gateway.receive(ack(PUBCOMP, 1, LOST))
        gateway.commit()
        decision = Decision.SENT_AGAIN if resend else Decision.LEFT_TO_BROKER
        assert [(entry.message_id, entry.decision) for entry in gateway.store.in_doubt()] == [(1, decision)]
        assert gateway.outbox.in_doubt_count == 1
        assert held is not None
        if resend:
            assert not held.is_published()
            ((kind, packet_id, dup),) = [(each.kind, each.packet_id, each.dup) for each in parse(gateway.send())[0]]
            assert (kind, dup) == (PUBLISH, False)
            gateway.receive(ack(PUBREC, packet_id))
            gateway.commit()
            assert gateway.send() == ack(PUBREL, packet_id)
            gateway.receive(ack(PUBCOMP, packet_id))
            gateway.commit()
        assert held.is_published()
        assert gateway.store.size == 0
        assert len(gateway.store.in_doubt()) == 1


# ---- sessions that are not kept


def test_a_broker_that_keeps_no_session_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with OddBroker(keeps_sessions=False) as broker:
        config = quick_config(broker.url, tmp_path)
        with Link(("127.0.0.1", broker.port)) as link:
            config = quick_config(f"tcp://127.0.0.1:{link.port}", tmp_path)
            with MQTTManager(config) as manager:
                manager.connect()
                for number in range(4):
                    manager.publish("t", f"={number}", 2).wait_for_publish(TIMEOUT_S)
                    link.drop()
                    assert eventually(lambda number=number: manager.get_metrics().reconnect_count > number)
                assert manager.get_metrics().weaknesses == {"session_forgotten": 4}
                assert ledger(manager) == []
    assert warnings(caplog, "has not kept our session") == 1


def test_a_session_that_is_lost_now_and_then_is_in_the_ledger_each_time(tmp_path: Path) -> None:
    """As where a node of a cluster ends with it: a rare case, however often."""
    with ScriptedGateway(tmp_path / "queue.db") as gateway:
        for number in range(1, 5):
            gateway.connect(session_present=False)
            gateway.cut()
            gateway.connect()
            handle = gateway.publish(f"{number}", 2)
            gateway.commit()
            gateway.send()
            gateway.cut()
            gateway.connect(session_present=False)
            gateway.commit()
            assert handle.message_id in {entry.message_id for entry in gateway.store.in_doubt()}
            (packet,), _ = parse(gateway.send())
            gateway.receive(ack(PUBREC, packet.packet_id))
            gateway.commit()
            assert gateway.send() == ack(PUBREL, packet.packet_id)
            gateway.receive(ack(PUBCOMP, packet.packet_id))
            gateway.commit()
            gateway.cut()
        assert len(gateway.store.in_doubt()) == gateway.outbox.in_doubt_count == 4


def test_a_clean_session_that_was_asked_for_is_no_weakness(tmp_path: Path) -> None:
    with OddBroker(keeps_sessions=False) as broker:
        for _ in range(2):
            with MQTTManager(quick_config(broker.url, tmp_path, clean_session=True)) as manager:
                manager.connect()
                manager.publish("t", "=x", 2).wait_for_publish(TIMEOUT_S)
                assert manager.get_metrics().weaknesses == {}


@pytest.mark.parametrize(("expiry_s", "counted"), [(3600, {"session_shortened": 1}), (0xFFFFFFFF, {}), (None, {})])
def test_a_session_that_is_kept_for_less_long_is_said(
    tmp_path: Path, expiry_s: int | None, counted: dict[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    with (
        OddBroker(5, expiry_s=expiry_s) as broker,
        MQTTManager(quick_config(broker.url, tmp_path, protocol_version=5)) as manager,
    ):
        manager.connect()
        manager.publish("t", "=x", 2).wait_for_publish(TIMEOUT_S)
        assert manager.get_metrics().weaknesses == counted
    assert warnings(caplog, "keeps it for 3600 s") == len(counted)


# ---- PUBRELs that are not answered


class ForgetsAtPubrel(OddBroker):
    """The link ends at the first PUBREL, which it has taken; it does not know the packet id any more."""

    released: int = 0

    def on_pubrel(self, packet_id: int) -> bytes:
        if packet_id not in self.held:
            return self.on_unknown(packet_id)
        super().on_pubrel(packet_id)
        self.released += 1
        return CLOSE if self.released <= 3 else ack(PUBCOMP, packet_id)

    def on_unknown(self, packet_id: int) -> bytes:
        raise NotImplementedError


class EndsTheConnection(ForgetsAtPubrel):
    """As rumqttd."""

    def on_unknown(self, packet_id: int) -> bytes:
        return CLOSE


class ResetsTheConnection(ForgetsAtPubrel):
    """As a broker does that ends it with bytes unread."""

    def on_unknown(self, packet_id: int) -> bytes:
        return RESET


class SaysNothing(ForgetsAtPubrel):
    """As amqtt."""

    def on_unknown(self, packet_id: int) -> bytes:
        return b""


@pytest.mark.parametrize("kind", [EndsTheConnection, ResetsTheConnection, SaysNothing])
@pytest.mark.parametrize("resend", [False, True])
@BOTH_VERSIONS
def test_the_rest_goes_on_behind_a_pubrel_that_is_never_answered(
    tmp_path: Path,
    kind: type[OddBroker],
    resend: bool,
    protocol_version: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(glec_fast.outbox.unanswered, "ANSWER_WAIT_S", 0.2)
    settings = {"protocol_version": protocol_version, "resend_in_doubt": resend}
    with kind(protocol_version) as broker, MQTTManager(quick_config(broker.url, tmp_path, **settings)) as manager:
        handles = [manager.publish("t", f"={number}", 1 + number % 2) for number in range(40)]
        manager.connect()
        assert manager.flush(TIMEOUT_S * 2)
        for handle in handles:
            handle.wait_for_publish(TIMEOUT_S)
        counts = broker.counts()
        doubtful = ledger(manager)
        metrics = manager.get_metrics()
    assert sorted(counts) == sorted(b"%d" % number for number in range(40))
    assert 1 <= len(doubtful) <= 3
    assert {decision for _, decision in doubtful} == {Decision.SENT_AGAIN if resend else Decision.LEFT_TO_BROKER}
    assert (metrics.in_doubt, metrics.weaknesses) == (len(doubtful), {"pubrel_unanswered": len(doubtful)})
    doubled = {message_id for message_id, _ in doubtful} if resend else set()
    assert {int(payload) + 1 for payload, count in counts.items() if count > 1 and int(payload) % 2} == doubled
    assert warnings(caplog, "does not complete QoS 2 messages") == 1


def reconnect(gateway: ScriptedGateway) -> None:
    # For CONNECT: control packets go behind it.
    gateway.outbox.put_packet(b"", first=True)
    gateway.connect()


def test_an_answer_that_is_slow_is_waited_for_and_taken(tmp_path: Path) -> None:
    """Nothing is given up without PINGRESP, which comes behind the answer."""
    with ScriptedGateway(tmp_path / "queue.db") as gateway:
        release(gateway)
        gateway.cut()
        reconnect(gateway)
        assert gateway.send() == ack(PUBREL, 1)
        gateway.outbox.unanswered._due_s = 0.0
        gateway.outbox.look_for_answers()
        assert gateway.send() == PINGREQ
        gateway.receive(ack(PUBCOMP, 1))
        gateway.outbox.on_pingresp()
        assert not gateway.outbox.is_to_settle
        gateway.commit()
        assert (gateway.store.in_doubt(), gateway.store.size) == ([], 0)


def test_a_pubrel_that_has_not_left_is_not_asked_about(tmp_path: Path) -> None:
    """A PINGREQ that passed it at the gate would prove nothing."""
    with ScriptedGateway(tmp_path / "queue.db") as gateway:
        release(gateway)
        gateway.cut()
        reconnect(gateway)
        for expected in (ack(PUBREL, 1), PINGREQ):
            gateway.outbox.unanswered._due_s = 0.0
            gateway.outbox.look_for_answers()
            assert gateway.send() == expected
        gateway.outbox.on_pingresp()
        gateway.commit()
        assert [entry.decision for entry in gateway.store.in_doubt()] == [Decision.LEFT_TO_BROKER]
        assert gateway.store.size == 0
        # Its answer may come yet.
        gateway.receive(ack(PUBCOMP, 1) + PINGRESP)


def test_behind_a_pubrel_that_ended_a_connection_exchanges_go_singly(tmp_path: Path) -> None:
    with ScriptedGateway(tmp_path / "queue.db") as gateway:
        for _ in range(3):
            gateway.publish("x", 2)
        gateway.connect(session_present=False)
        gateway.commit()
        gateway.send()
        gateway.receive(b"".join(ack(PUBREC, packet_id) for packet_id in (1, 2, 3)))
        gateway.commit()
        gateway.send()
        for expected in ((1, 2, 3), (1,)):
            gateway.cut()
            reconnect(gateway)
            assert [packet.packet_id for packet in parse(gateway.send())[0]] == list(expected)
        # It did not end in order: was it the link?
        gateway.cut()
        reconnect(gateway)
        assert gateway.send() == PINGREQ
        gateway.outbox.on_pingresp()
        assert gateway.send() == ack(PUBREL, 1)
        # The answer to a keep alive says nothing about it.
        gateway.outbox.on_pingresp()
        assert not gateway.outbox.is_to_settle
        gateway.outbox.pull()
        assert gateway.send() == b""
        gateway.receive(ack(PUBCOMP, 1))
        gateway.commit()
        assert gateway.send() == ack(PUBREL, 2) + ack(PUBREL, 3)


@pytest.mark.parametrize("reset", [False, True])
def test_links_that_are_cut_behind_connack_give_up_nothing(tmp_path: Path, reset: bool) -> None:
    """However often, where the broker answers all that it reads."""
    with OddBroker() as broker, FaultyLink(("127.0.0.1", broker.port)) as link:
        with MQTTManager(quick_config(f"tcp://127.0.0.1:{link.port}", tmp_path)) as manager:
            # Before it connects, as what passes is counted from now on: CONNACK and PUBREC come through.
            link.restore_for(2 * CONNACK_BYTES, "down")
            handle = manager.publish("t", "=once", 2)
            manager.connect()
            assert link.wait_for(lambda link: link.is_down, TIMEOUT_S)
            for passing in (4, 5, 6, 7):
                link.restore_until(passing, "down", reset=reset)
                assert link.wait_for(lambda link: link.is_down, TIMEOUT_S)
            for _ in range(2 * TRIES):
                # Reset, as a radio that comes back finds it.
                connections = link.accepted_connections
                link.restore()
                assert link.wait_for(lambda link, count=connections: link.accepted_connections > count, TIMEOUT_S)
                link.cut()
            link.restore()
            handle.wait_for_publish(TIMEOUT_S)
            assert ledger(manager) == []
            assert manager.get_metrics().weaknesses == {}
        assert broker.counts() == {b"once": 1}


def test_what_a_lost_session_leaves_is_not_held_against_the_next(tmp_path: Path) -> None:
    broker = ScriptedBroker()
    with ScriptedGateway(tmp_path / "queue.db") as gateway:
        release(gateway)
        gateway.outbox.is_left = True
        gateway.cut()
        gateway.connect(session_present=False)
        gateway.publish("y", 2)
        while gateway.store.size:
            gateway.commit()
            broker.feed(gateway.send())
            gateway.receive(broker.handle(broker.waiting_packets()))
        assert broker.counts() == {"y": 1}
        assert gateway.session.room() == 10
