"""What a broker refuses by an MQTT 5 reason code: sent again after a pause, and given up after so many attempts."""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING, Any

import apsw
import pytest

from glec_fast import Dropped, DropReason, MQTTManager, PublishError
from glec_fast.outbox.server_limits import ServerLimits
from glec_fast.protocol._session import Session
from glec_fast.testbed.subscriber import Subscriber
from support.gateway import TIMEOUT_S, eventually, quick_config
from support.lock_order import held_elsewhere
from support.scripted_gateway import ScriptedGateway
from support.wire_reference import PUBACK, PUBCOMP, PUBLISH, PUBREC, PUBREL, Packet, ack, parse

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import StartBroker

CONNECT = 1
ACCEPTED = b"\x20\x03\x00\x00\x00"
QUOTA_EXCEEDED = 0x97
PAUSE = "glec_fast.outbox.next_rows._REFUSED_PAUSE_S"


def refusal(packet: bytes) -> bytes:
    (publish,), rest = parse(packet)
    assert publish.kind == PUBLISH
    assert not publish.flags & 8, "a new attempt is no repeated one"
    assert not rest
    kind = PUBACK if publish.flags & 6 == 2 else PUBREC
    return bytes((kind << 4, 3)) + publish.packet_id.to_bytes(2, "big") + bytes((QUOTA_EXCEEDED,))


@pytest.mark.parametrize("qos", [1, 2])
def test_it_is_sent_so_often_and_then_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, qos: int) -> None:
    monkeypatch.setattr(PAUSE, 0.0)
    with ScriptedGateway(tmp_path / "queue.db", protocol_version=5, max_retry=3) as gateway:
        handle = gateway.publish("refused", qos)
        gateway.commit()
        gateway.connect()
        for _ in range(3):
            gateway.commit()
            gateway.receive(refusal(gateway.send()))
        gateway.commit()
        assert gateway.send() == b""
        assert eventually(lambda: len(gateway.dropped) == 1)
        assert gateway.dropped[0].reason is DropReason.QUARANTINED
        with pytest.raises(PublishError):
            handle.is_published()
        assert gateway.store.size == 0


def test_before_the_pause_is_over_only_others_are_sent(tmp_path: Path) -> None:
    with ScriptedGateway(tmp_path / "queue.db", protocol_version=5) as gateway:
        gateway.publish("refused", 1)
        gateway.commit()
        gateway.connect()
        gateway.commit()
        gateway.receive(refusal(gateway.send()))
        gateway.publish("another", 1)
        gateway.commit()
        sent = gateway.send()
        assert sent.endswith(b"another")
        assert b"refused" not in sent
        gateway.outbox._again_at_s = 0.0
        gateway.outbox.pull()
        assert gateway.send().endswith(b"refused")


def test_a_new_connection_sends_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PAUSE, 0.0)
    with ScriptedGateway(tmp_path / "queue.db", protocol_version=5) as gateway:
        gateway.publish("refused", 1)
        gateway.commit()
        gateway.connect()
        gateway.commit()
        answer = refusal(gateway.send())
        with gateway.outbox.lock:
            gateway.session.on_acks(answer)
        gateway._settle()
        gateway.cut()
        gateway.connect()
        gateway.commit()
        assert gateway.send().count(b"refused") == 1


@pytest.mark.parametrize("qos", [1, 2])
def test_what_a_new_connection_sends_again_is_not_given_up_meanwhile(tmp_path: Path, qos: int) -> None:
    with ScriptedGateway(tmp_path / "queue.db", protocol_version=5, max_retry=1) as gateway:
        handle = gateway.publish("refused", qos)
        gateway.commit()
        gateway.connect()
        gateway.commit()
        answer = refusal(gateway.send())
        # A slow disk: the refusal is not counted yet.
        with held_elsewhere(gateway.store._writer.lock):
            gateway.receive(answer)
            gateway.cut()
            gateway.connect()
        gateway.commit()
        sent = gateway.send()
        assert b"refused" in sent
        gateway.commit()
        assert gateway.dropped == []
        gateway.receive(refusal(sent))
        gateway.commit()
        assert eventually(lambda: len(gateway.dropped) == 1)
        with pytest.raises(PublishError):
            handle.is_published()


def test_one_more_is_refused_while_another_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PAUSE, 0.0)
    with ScriptedGateway(tmp_path / "queue.db", protocol_version=5) as gateway:
        for payload in ("first", "other"):
            gateway.publish(payload, 1)
        gateway.commit()
        gateway.connect()
        gateway.commit()
        sent = gateway.send()
        first, second = (refusal(packet) for packet in (sent[: len(sent) // 2], sent[len(sent) // 2 :]))
        answers = [second]

        def read_again(ids: list[int], real: Any = gateway.store.supply.read_again) -> Any:
            found = real(ids)
            # As another thread of the program's own loop would.
            while answers:
                with gateway.outbox.lock:
                    gateway.session.on_acks(answers.pop())
                gateway._settle()
            return found

        monkeypatch.setattr(gateway.store.supply, "read_again", read_again)
        gateway.receive(first)
        again = b""
        for _ in range(3):
            gateway.commit()
            again += gateway.send()
        assert not answers
        assert (again.count(b"first"), again.count(b"other")) == (1, 1)


def test_a_disk_that_fails_once_as_it_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PAUSE, 0.0)
    with ScriptedGateway(tmp_path / "queue.db", protocol_version=5) as gateway:
        gateway.publish("refused", 1)
        gateway.commit()
        gateway.connect()
        gateway.commit()
        answer = refusal(gateway.send())
        errors = [apsw.IOError("a bad sector")]

        class Failing:
            def __init__(self, table: Any) -> None:
                self.table = table

            def __getattr__(self, name: str) -> Any:
                return getattr(self.table, name)

            def read_rows(self, *arguments: Any) -> Any:
                if errors:
                    raise errors.pop()
                return self.table.read_rows(*arguments)

        monkeypatch.setattr(gateway.store._reader, "table", Failing(gateway.store._reader.table))
        gateway.receive(answer)
        again = b""
        for _ in range(3):
            gateway.commit()
            again += gateway.send()
        assert not errors
        assert again.count(b"refused") == 1


class MoodyServer:
    """Takes one MQTT 5 connection, refuses each message once, and then takes it. It serves until it is left."""

    def __init__(self) -> None:
        self.payloads: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        link, _ = self._listener.accept()
        with link:
            received = b""
            while data := link.recv(4096):
                packets, received = parse(received + data)
                for packet in packets:
                    link.sendall(self._answer(packet))

    def _answer(self, packet: Packet) -> bytes:
        if packet.kind == CONNECT:
            return ACCEPTED
        if packet.kind == PUBREL:
            return ack(PUBCOMP, packet.packet_id)
        if packet.kind != PUBLISH:
            return b""
        payload = packet.body[-1:]
        self.payloads.append(payload)
        kind = PUBACK if packet.flags & 6 == 2 else PUBREC
        if self.payloads.count(payload) == 1:
            return bytes((kind << 4, 3)) + packet.packet_id.to_bytes(2, "big") + bytes((QUOTA_EXCEEDED,))
        return ack(kind, packet.packet_id)

    def __enter__(self) -> MoodyServer:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join(TIMEOUT_S)
        self._listener.close()
        assert not self._thread.is_alive()


def test_a_broker_that_changes_its_mind_gets_it_on_the_same_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PAUSE, 0.05)
    with MoodyServer() as server:
        config = quick_config(f"tcp://127.0.0.1:{server.port}", tmp_path, protocol_version=5)
        with MQTTManager(config) as manager:
            manager.connect()
            handles = [manager.publish("t", f"{number}", 1 + number % 2) for number in range(4)]
            for handle in handles:
                handle.wait_for_publish(TIMEOUT_S)
            metrics = manager.get_metrics()
            assert (metrics.messages_failed, metrics.reconnect_count) == (4, 0)
    assert sorted(server.payloads) == sorted([b"0", b"1", b"2", b"3"] * 2)


@pytest.mark.parametrize(
    ("setting", "over"),
    [
        ("max_packet_size 1000", {"payload": "x" * 995, "qos": 1}),
        ("max_packet_size 1000", {"payload": "x" * 995, "qos": 0}),
        ("retain_available false", {"payload": "x", "qos": 1, "retain": True}),
    ],
)
def test_what_a_server_does_not_take_holds_up_no_other_message(
    start_broker: StartBroker, tmp_path: Path, setting: str, over: dict[str, Any]
) -> None:
    broker = start_broker(settings=[setting])
    config = quick_config(broker.url, tmp_path, protocol_version=5, queue_max_retry=1)
    dropped: list[Dropped] = []
    with Subscriber(broker) as subscriber, MQTTManager(config) as manager:
        manager.set_drop_callback(dropped.append)
        for _ in range(2):
            manager.publish("t", **over)
            manager.publish("t", "y" * 900, 1)
            manager.connect()
            assert manager.flush(TIMEOUT_S)
        assert subscriber.wait_for_count(2)
        assert [each.reason for each in dropped] == [DropReason.QUARANTINED] * 2
        assert manager.get_metrics().reconnect_count == 0


@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.parametrize("properties", [None, b"\x02\x01\x01"])
@pytest.mark.parametrize("body_bytes", [127, 128, 16_383, 16_384])
def test_the_largest_packet_that_a_server_takes(qos: int, properties: bytes | None, body_bytes: int) -> None:
    session = Session(10)
    session.protocol_version = 5
    topic = "\u00fc"
    payload = "y" * (body_bytes - 2 - 2 - (2 if qos else 0) - len(properties or b"\0"))
    size_bytes = session.admit(1, topic, payload, qos, False, properties)
    (packet,), rest = parse(session.peek(size_bytes))
    assert (len(packet.body), rest) == (body_bytes, b"")
    row = (1, topic, payload, qos, 0, 0, *((False, properties) if properties else ()))
    assert ServerLimits(2, True, size_bytes).allow(row)
    assert not ServerLimits(2, True, size_bytes - 1).allow(row)


def test_what_a_server_takes_is_said_in_words() -> None:
    assert str(ServerLimits(1, True, 5)) == "it takes QoS 1 at most, packets of 5 bytes at most"
    assert str(ServerLimits(2, False, 5)) == "it takes QoS 2 at most, no retained messages, packets of 5 bytes at most"
