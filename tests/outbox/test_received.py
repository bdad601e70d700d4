"""QoS 2 that comes in: its packet id is on disk before PUBREC, gone before PUBCOMP, and of one session."""

from __future__ import annotations

import threading
from contextlib import closing, contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import apsw
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from glec_fast import Client
from glec_fast.durable._table import QueueTable
from glec_fast.durable.database import create_schema
from glec_fast.outbox.received import Received
from glec_fast.runtime._lock import Lock
from support.gateway import TIMEOUT_S, eventually
from support.killed import Killed
from support.odd_broker import CLOSE, CONNECT, SUBSCRIBE, OddBroker
from support.scripted_gateway import BROKER_NAME, CLIENT_ID, ScriptedGateway
from support.wire_reference import PUBACK, PUBCOMP, PUBREC, PUBREL, Packet, ack

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Sender(OddBroker):
    """Sends PUBLISH of QoS 2, and looks into the queue file as each answer comes.

    sends: what goes out behind CONNACK of each connection; CLOSE in place of both. releases: whether PUBREC is answered
    with PUBREL.
    """

    def __init__(self, path: Path, *sends: bytes, present: bool = False, releases: bool = True) -> None:
        super().__init__()
        self._path = path
        self.sends = list(sends)
        self.present = present
        self.releases = releases
        # Of each PUBREC and PUBCOMP: (packet type, packet id, the ids on disk as it came).
        self.answers: list[tuple[int, int, set[int]]] = []

    def answer(self, packet: Packet) -> bytes:
        if packet.kind == CONNECT:
            # A session that it says it has is the client's from an earlier connection.
            present = self.present or self.connections > 1
            sent = self.sends.pop(0) if self.sends else b""
            return CLOSE if sent is CLOSE else bytes((0x20, 2, present, 0)) + sent
        if packet.kind == SUBSCRIBE:
            return b"\x90\x03" + packet.body[:2] + b"\x02"
        if packet.kind in (PUBREC, PUBCOMP):
            self.answers.append((packet.kind, packet.packet_id, on_disk(self._path)))
            return ack(PUBREL, packet.packet_id) if packet.kind == PUBREC and self.releases else b""
        return super().answer(packet)

    def wait_for(self, *kinds: int) -> bool:
        return eventually(lambda: [kind for kind, _, _ in self.answers] == list(kinds))


def on_disk(path: Path) -> set[int]:
    # Not by another SQLite: two in a process undo each other's locks.
    with closing(apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)) as connection:
        return {packet_id for (packet_id,) in connection.execute("SELECT packet_id FROM glec_received")}


def publish(payload: str, packet_id: int, *, dup: bool = False) -> bytes:
    body = b"\x00\x01t" + packet_id.to_bytes(2, "big") + payload.encode()
    return bytes((0x3C if dup else 0x34, len(body))) + body


def make(path: Path, client_id: str = "receiver", **options: Any) -> Client:
    """Whatever port the broker has, its session is the same."""
    return Client(CallbackAPIVersion.VERSION2, client_id, store=path, broker_name="b", **options)


@contextmanager
def receiving(broker: OddBroker, path: Path, **options: Any) -> Iterator[tuple[Client, list[Any]]]:
    """A client, and what `on_message` got."""
    client = make(path, **options)
    client.reconnect_delay_set(0.05, 0.05)  # type: ignore[arg-type]
    came: list[Any] = []
    client.on_message = lambda _client, _userdata, message: came.append(message)
    with client:
        client.connect("127.0.0.1", broker.port)
        client.loop_start()
        yield client, came


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "queue.db"


def test_the_id_is_on_disk_before_pubrec_and_gone_before_pubcomp(path: Path) -> None:
    sent = publish("a", 7) + publish("b", 8)
    with Sender(path, sent) as broker, receiving(broker, path) as (_, came):
        assert eventually(lambda: len(broker.answers) == 4)
        assert [message.payload for message in came] == [b"a", b"b"]
        for kind, packet_id, known in broker.answers:
            assert (packet_id in known) == (kind == PUBREC)


@contextmanager
def held_disk(gateway: ScriptedGateway) -> Iterator[None]:
    """Within it no transaction comes to its end; behind it all have."""
    is_held, goes_on = threading.Event(), threading.Event()

    def hold(_table: object) -> None:
        is_held.set()
        assert goes_on.wait(TIMEOUT_S)

    holding = threading.Thread(target=gateway.store.run, args=(hold,))
    holding.start()
    assert is_held.wait(TIMEOUT_S)
    yield
    goes_on.set()
    holding.join(TIMEOUT_S)
    gateway.store.run(lambda _table: None)


def leaving(gateway: ScriptedGateway) -> bytes:
    """What may leave, which then has."""
    with gateway.outbox.lock:
        chunk = gateway.session.peek(1000)
        gateway.session.on_sent(len(chunk))
    return chunk


def test_an_answer_waits_for_the_disk(path: Path) -> None:
    """A quick one would not show it."""
    with ScriptedGateway(path) as gateway:
        received = Received(gateway.outbox)
        received.turn_to((CLIENT_ID, BROKER_NAME), ())
        gateway.outbox.put_packet(b"\x10\x00", first=True)
        leaving(gateway)
        assert received.is_new(SimpleNamespace(mid=7, qos=2, dup=False, topic="t", payload=b"a"))
        with held_disk(gateway):
            received.acknowledge(7)
            assert leaving(gateway) == b""
        assert leaving(gateway) == ack(PUBREC, 7)
        with held_disk(gateway):
            received.release(7)
            assert leaving(gateway) == b""
        assert leaving(gateway) == ack(PUBCOMP, 7)


@pytest.mark.parametrize("is_leaving", [False, True])
def test_one_of_qos_1_that_is_handled_behind_our_disconnect_is_not_handled_again(path: Path, is_leaving: bool) -> None:
    """Its PUBACK cannot leave any more, and the broker sends it again."""
    message, again = (
        SimpleNamespace(mid=7, qos=1, dup=dup, topic="t", payload=b"a") for dup in (False, True)
    )  # fmt: skip
    with ScriptedGateway(path) as gateway:
        received = Received(gateway.outbox)
        received.keeps_qos_1 = True
        received.turn_to((CLIENT_ID, BROKER_NAME), ())
        gateway.outbox.put_packet(b"\x10\x00", first=True)
        assert received.is_new(message)
        if is_leaving:
            gateway.outbox.put_packet(b"\xe0\x00", last=True)
        received.acknowledge(7, message)
        assert leaving(gateway) == b"\x10\x00" + (b"\xe0\x00" if is_leaving else ack(PUBACK, 7))
        if is_leaving:
            gateway.outbox.park()
            gateway.outbox.drop_acks()
            gateway.outbox.put_packet(b"\x10\x00", first=True)
            received.begin()
            received.resume(is_continued=True)
            assert not received.is_new(again)
            gateway.outbox.put_acks()
            assert leaving(gateway) == b"\x10\x00" + ack(PUBACK, 7)


def test_an_id_of_an_ended_session_on_disk_is_no_leave_for_pubrec(path: Path) -> None:
    """The first of the session that began unseen is handled, and comes again, before the disk has anything of it."""
    with ScriptedGateway(path) as gateway:
        received = Received(gateway.outbox)
        received.turn_to((CLIENT_ID, BROKER_NAME), ())
        gateway.outbox.put_packet(b"\x10\x00", first=True)
        leaving(gateway)
        first, second, again = (
            SimpleNamespace(mid=7, qos=2, dup=dup, topic="t", payload=payload)
            for payload, dup in ((b"a", False), (b"b", False), (b"b", True))
        )
        assert received.is_new(first)
        assert received.acknowledge(7, first)
        gateway.store.run(lambda _table: None)
        leaving(gateway)
        received.resume(is_continued=False)
        with held_disk(gateway):
            assert received.is_new(second)
            assert received.acknowledge(7, second)
            received.begin()
            assert not received.is_new(again)
            gateway.outbox.put_acks()
            assert leaving(gateway) == b""
        assert leaving(gateway) == ack(PUBREC, 7)
        assert on_disk(path) == {7}


@pytest.mark.parametrize("is_handled_away", [True, False])
def test_one_that_is_handled_while_another_broker_is_turned_to(path: Path, is_handled_away: bool) -> None:
    """Back at the first one, it is not handed on again."""
    message, again = (
        SimpleNamespace(mid=7, qos=2, dup=dup, topic="t", payload=b"a") for dup in (False, True)
    )  # fmt: skip
    with ScriptedGateway(path) as gateway:
        received = Received(gateway.outbox)
        gateway.outbox.put_packet(b"\x10\x00", first=True)
        leaving(gateway)
        received.turn_to((CLIENT_ID, "first"), ())
        assert received.is_new(message)
        received.turn_to((CLIENT_ID, "second"), ())
        assert received.is_new(SimpleNamespace(mid=7, qos=2, dup=False, topic="t", payload=b"of the second"))
        if is_handled_away:
            assert not received.acknowledge(7, message)
        received.turn_to((CLIENT_ID, "first"), ())
        received.begin()
        received.resume(is_continued=False)
        assert not received.is_new(again)
        if not is_handled_away:
            assert received.acknowledge(7, message)
        gateway.store.run(lambda _table: None)
        # As the dispatcher does behind what it has read.
        gateway.outbox.put_acks()
        assert leaving(gateway) == ack(PUBREC, 7)
        assert on_disk(path) == {7}


def test_whoever_waits_for_one_of_an_ended_session_waits_no_longer(path: Path) -> None:
    """It is handled while the first of another session comes under its packet id, which takes its place."""
    waited: list[int] = []
    with ScriptedGateway(path) as gateway:
        received = Received(gateway.outbox)
        received.turn_to((CLIENT_ID, BROKER_NAME), ())
        first, second = (SimpleNamespace(mid=7, qos=2, dup=False, topic="t", payload=each) for each in (b"a", b"b"))
        assert received.is_new(first)
        received.resume(is_continued=False)
        with held_disk(gateway):
            assert received.acknowledge(7, first, lambda: waited.append(1))
            assert received.is_new(second)
        assert waited == [1]
        assert on_disk(path) == set()
        assert received.acknowledge(7, second)
        gateway.store.run(lambda _table: None)
        assert on_disk(path) == {7}


def test_one_that_is_known_is_answered_and_not_handed_on(path: Path) -> None:
    with (
        Sender(path, publish("a", 7), publish("a", 7, dup=True), releases=False) as broker,
        receiving(broker, path) as (client, came),
    ):
        assert broker.wait_for(PUBREC)
        client.reconnect()
        assert broker.wait_for(PUBREC, PUBREC)
        assert len(came) == 1


def test_the_next_process_knows_what_the_last_received(path: Path) -> None:
    with Sender(path, publish("a", 7), releases=False) as broker, receiving(broker, path):
        assert broker.wait_for(PUBREC)
    with Sender(path, publish("a", 7, dup=True), present=True) as broker, receiving(broker, path) as (_, came):
        assert broker.wait_for(PUBREC, PUBCOMP)
        assert came == []
        assert on_disk(path) == set()
    with Sender(path, publish("b", 7), present=True) as broker, receiving(broker, path) as (_, came):
        assert broker.wait_for(PUBREC, PUBCOMP)
        assert [message.payload for message in came] == [b"b"]


def test_pubrel_of_one_that_the_last_process_received(path: Path) -> None:
    with Sender(path, publish("a", 7), releases=False) as broker, receiving(broker, path):
        assert broker.wait_for(PUBREC)
    with Sender(path, ack(PUBREL, 7) + ack(PUBREL, 9), present=True) as broker, receiving(broker, path) as (_, came):
        assert broker.wait_for(PUBCOMP, PUBCOMP)
        assert came == []
        # One that nobody knows is answered too, or the server would wait for ever.
        assert {packet_id for _, packet_id, _ in broker.answers} == {7, 9}
        assert on_disk(path) == set()


def test_a_new_session_has_its_ids_anew(path: Path) -> None:
    with Sender(path, publish("a", 7), releases=False) as broker, receiving(broker, path):
        assert broker.wait_for(PUBREC)
        assert on_disk(path) == {7}
    seen: list[set[int]] = []
    with Sender(path, publish("b", 7, dup=True)) as broker:
        client = make(path)
        came: list[Any] = []
        client.on_connect = lambda *_: seen.append(on_disk(path))
        client.on_message = lambda _client, _userdata, message: came.append(message.payload)
        with client:
            client.connect("127.0.0.1", broker.port)
            client.loop_start()
            assert broker.wait_for(PUBREC, PUBCOMP)
    # Before a subscription can bring anything.
    assert seen == [set()]
    assert came == [b"b"]


def test_a_first_sending_shows_that_the_ids_of_an_earlier_process_are_over(path: Path) -> None:
    with Sender(path, publish("a", 7), releases=False) as broker, receiving(broker, path):
        assert broker.wait_for(PUBREC)
    with Sender(path, publish("b", 7), present=True) as broker, receiving(broker, path) as (_, came):
        assert broker.wait_for(PUBREC, PUBCOMP)
        assert [message.payload for message in came] == [b"b"]


def received_and_killed(path: Path, broker: OddBroker, **settings: Any) -> Killed:
    """A process that receives from `broker`, to be killed."""
    return Killed(
        "receiving_child", kind="client", port=broker.port, protocol_version=4, client_id="receiver",
        queue_path=str(path), seen=str(path.with_name("seen")), broker_name="b", **settings,
    )  # fmt: skip


def test_killed_before_the_ids_of_an_ended_session_are_forgotten(path: Path) -> None:
    """The server has begun a session, and the file has ids of the one before. A cut link has it repeat a PUBLISH."""
    with Sender(path, publish("a", 7), releases=False) as broker:
        process = received_and_killed(path, broker)
        assert broker.wait_for(PUBREC)
        process.kill()
    with Sender(path) as broker:
        process = received_and_killed(path, broker, dies_in="forget_session")
        assert process.wait_killed()
    assert on_disk(path) == {7}
    with Sender(path, publish("b", 7, dup=True), present=True) as broker, receiving(broker, path) as (_, came):
        assert broker.wait_for(PUBREC, PUBCOMP)
        assert [message.payload for message in came] == [b"b"]


@pytest.mark.parametrize(("payload", "dup"), [("a", False), ("b", False), ("b", True)])
def test_a_session_that_began_with_a_connack_that_nobody_saw(path: Path, payload: str, dup: bool) -> None:
    """The server lost its session, and the link broke under the CONNACK that said so."""
    sends = publish("a", 7), CLOSE, publish(payload, 7, dup=dup)
    with Sender(path, *sends, releases=False) as broker, receiving(broker, path) as (client, came):
        assert broker.wait_for(PUBREC)
        broker.releases = True
        client.reconnect()
        assert broker.wait_for(PUBREC, PUBREC, PUBCOMP)
        assert [message.payload for message in came] == [b"a", payload.encode()]


def test_one_that_is_handled_while_another_session_begins(path: Path) -> None:
    sends = publish("a", 7), CLOSE, publish("b", 7, dup=True)
    with Sender(path, *sends) as broker, receiving(broker, path, manual_ack=True) as (client, came):
        assert eventually(lambda: len(came) == 1)
        client.reconnect()
        assert eventually(lambda: len(came) == 2)
        assert broker.answers == []
        assert client.ack(7, 2) == 0
        assert broker.wait_for(PUBREC, PUBCOMP)


def test_the_first_of_a_session_is_handed_on_though_its_like_is_on_disk(path: Path) -> None:
    """It is not handled yet as the process is killed: what was on disk under its id is no more."""
    with Sender(path, publish("a", 7), releases=False) as broker, receiving(broker, path):
        assert broker.wait_for(PUBREC)
    with Sender(path, publish("a", 7), present=True) as broker, receiving(broker, path, manual_ack=True) as (_, came):
        assert eventually(lambda: len(came) == 1)
        assert eventually(lambda: on_disk(path) == set())
    with Sender(path, publish("a", 7, dup=True), present=True) as broker, receiving(broker, path) as (_, came):
        assert broker.wait_for(PUBREC, PUBCOMP)
        assert len(came) == 1


def test_a_file_of_a_version_that_kept_ids_alone(path: Path) -> None:
    with Sender(path, publish("a", 7), releases=False) as broker, receiving(broker, path):
        assert broker.wait_for(PUBREC)
    with closing(apsw.Connection(str(path))) as connection:
        connection.execute("ALTER TABLE glec_received DROP COLUMN mark")
    with Sender(path, publish("a", 7, dup=True), present=True) as broker, receiving(broker, path) as (_, came):
        assert broker.wait_for(PUBREC, PUBCOMP)
        assert came == []


def test_ids_are_of_one_client_id(path: Path) -> None:
    with Sender(path, publish("a", 7), releases=False) as broker, receiving(broker, path):
        assert broker.wait_for(PUBREC)
        came: list[Any] = []
    with Sender(path, publish("b", 7, dup=True)) as broker:
        client = make(path, client_id="another")
        client.on_message = lambda _client, _userdata, message: came.append(message.payload)
        with client:
            client.connect("127.0.0.1", broker.port)
            client.loop_start()
            assert broker.wait_for(PUBREC, PUBCOMP)
    assert came == [b"b"]


def test_what_the_program_acknowledges_itself(path: Path) -> None:
    with (
        Sender(path, publish("a", 7), publish("a", 7, dup=True)) as broker,
        receiving(broker, path, manual_ack=True) as (client, came),
    ):
        assert eventually(lambda: len(came) == 1)
        client.reconnect()
        assert broker.answers == []
        assert client.ack(7, 2) == 0
        assert broker.wait_for(PUBREC, PUBCOMP)
        assert len(came) == 1


def test_what_was_not_acknowledged_is_given_to_the_next_process(path: Path) -> None:
    with Sender(path, publish("a", 7)) as broker, receiving(broker, path, manual_ack=True) as (_, came):
        assert eventually(lambda: len(came) == 1)
    with Sender(path, publish("a", 7, dup=True), present=True) as broker, receiving(broker, path) as (_, came):
        assert broker.wait_for(PUBREC, PUBCOMP)
        assert [message.dup for message in came] == [True]


def test_a_callback_that_raises_is_called_again_and_nothing_is_answered_before(path: Path) -> None:
    calls: list[bytes] = []

    def fail_once(_client: Client, _userdata: object, message: Any) -> None:
        calls.append(message.payload)
        if len(calls) == 1:
            raise ValueError("once")

    with Sender(path, publish("a", 7)) as broker:
        client = make(path)
        client.on_message = fail_once
        with client:
            client.connect("127.0.0.1", broker.port)
            with pytest.raises(ValueError, match="once"):
                eventually(lambda: client.loop(0.01) != 0)
            assert broker.answers == []
            client.loop_start()
            assert broker.wait_for(PUBREC, PUBCOMP)
    assert calls == [b"a", b"a"]


def test_a_message_that_came_meanwhile_is_not_answered_by_the_commit_of_the_one_before() -> None:
    """A cut within a commit, and then another session that says nothing of it: PUBREC is the second one's own."""
    jobs: list[Any] = []
    acks: list[bytes] = []
    store = SimpleNamespace(submit=lambda *job: jobs.append(job))
    outbox: Any = SimpleNamespace(
        lock=Lock("outbox"), store=store, is_linked=True, put_ack=acks.append, put_acks=lambda: None, wake=lambda: None
    )
    received = Received(outbox)
    with closing(apsw.Connection(":memory:")) as connection:
        create_schema(connection)
        table = QueueTable(connection)
        first, second = (
            SimpleNamespace(mid=1, qos=2, topic="t", payload=payload, dup=False) for payload in (b"first", b"second")
        )
        assert received.is_new(first)
        received.acknowledge(1, first)
        write, on_written = jobs.pop()
        written = write(table)
        received.begin()
        received.resume(is_continued=False)
        assert received.is_new(second)
        on_written(written)
        assert acks == []
        assert received.holds(second)
        for job, told in jobs:
            told(job(table))
        assert acks == []
        received.acknowledge(1, second)
        write, on_written = jobs.pop()
        on_written(write(table))
        assert acks == [b"\x50\x02\x00\x01"]
