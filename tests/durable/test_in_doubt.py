"""A broker that lost its session: what becomes of each QoS 2 message, and what the ledger says of it."""

from __future__ import annotations

import json
import shutil
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import apsw
import pytest

from glec_fast import Decision, OfflineQueueManager
from glec_fast.cli.main import main
from glec_fast.durable.store import Store
from glec_fast.errors import MessageError, PublishError
from support.gateway import BOTH_VERSIONS
from support.scripted_broker import ScriptedBroker
from support.scripted_gateway import ScriptedGateway

QUEUE = "queue.db"
# Published in this order; at the cut the broker has sent PUBREC for the first alone.
RECEIVED, SENT, WAITING = "2-received", "2-sent", "2-waiting"


def lose_session_in_the_middle(gateway: ScriptedGateway, broker: ScriptedBroker) -> None:
    """One message PUBREC'd, one sent, one not yet sent; then the link and the broker's session are gone."""
    for payload in (RECEIVED, SENT, WAITING):
        gateway.publish(payload, 2)
    gateway.commit()
    gateway.connect()
    gateway.commit()
    broker.feed(gateway.send())
    assert broker.waiting_packets() == 2
    gateway.receive(broker.handle(1))
    gateway.commit()
    gateway.cut()
    broker.cut(arrives=True)
    broker.lose_session()


def exchange_all(gateway: ScriptedGateway, broker: ScriptedBroker) -> None:
    while gateway.store.size:
        gateway.commit()
        broker.feed(gateway.send())
        gateway.receive(broker.handle(broker.waiting_packets()))


@BOTH_VERSIONS
@pytest.mark.parametrize(
    ("resend", "arrivals", "decisions"),
    [
        (False, {RECEIVED: 1, SENT: 2, WAITING: 1}, {1: Decision.LEFT_TO_BROKER, 2: Decision.SENT_AGAIN}),
        (True, {RECEIVED: 2, SENT: 2, WAITING: 1}, {1: Decision.SENT_AGAIN, 2: Decision.SENT_AGAIN}),
    ],
)
def test_the_policy_is_carried_out_and_recorded(
    tmp_path: Path, resend: bool, arrivals: dict[str, int], decisions: dict[int, Decision], protocol_version: int
) -> None:
    broker = ScriptedBroker(protocol_version)
    with ScriptedGateway(
        tmp_path / QUEUE, window=2, resend_in_doubt=resend, protocol_version=protocol_version
    ) as gateway:
        lose_session_in_the_middle(gateway, broker)
        gateway.connect(session_present=False)
        exchange_all(gateway, broker)
        assert broker.counts() == arrivals
        assert {each.message_id: each.decision for each in gateway.store.in_doubt()} == decisions
        assert gateway.outbox.in_doubt_count == 2
    with OfflineQueueManager(tmp_path / QUEUE) as queue:
        assert {each.message_id: each.decision for each in queue.in_doubt()} == decisions
        assert {each.topic for each in queue.in_doubt()} == {"t"}


def test_what_is_left_to_the_broker_is_told_to_a_client_with_on_publish(tmp_path: Path) -> None:
    with ScriptedGateway(tmp_path / QUEUE, window=2) as gateway:
        gateway.outbox.tell_all(True)
        lose_session_in_the_middle(gateway, ScriptedBroker())
        gateway.outbox.resume(False, 65_535)
        with gateway.outbox.lock:
            assert [(handle.mid, handle.qos) for handle in gateway.outbox.settle()] == [(1, 2)]


def test_a_session_that_is_present_leaves_nothing_in_doubt(tmp_path: Path) -> None:
    broker = ScriptedBroker()
    with ScriptedGateway(tmp_path / QUEUE, window=2) as gateway:
        lose_session_in_the_middle(gateway, ScriptedBroker())
        gateway.connect(session_present=True)
        gateway.store.run(lambda _table: None)
        assert gateway.store.in_doubt() == []
        assert gateway.outbox.in_doubt_count == 0
        exchange_all(gateway, broker)


def killed(gateway: ScriptedGateway, where: Path) -> Path:
    """The queue file as a process that is killed now leaves it."""
    where.mkdir()
    for path in gateway.store._file.path.parent.glob(QUEUE + "*"):
        shutil.copy(path, where / path.name)
    return where / QUEUE


def test_killed_unconnected_it_hands_on_no_ids_of_another_name(tmp_path: Path) -> None:
    with ScriptedGateway(tmp_path / QUEUE, window=2) as gateway:
        lose_session_in_the_middle(gateway, ScriptedBroker())
    with ScriptedGateway(tmp_path / QUEUE, window=2, client_id="DTG-OTHER") as gateway:
        left = killed(gateway, tmp_path / "left")
        assert gateway.session.parked_ids() == []
    broker = ScriptedBroker()
    with ScriptedGateway(left, window=2, client_id="DTG-OTHER") as gateway:
        assert gateway.session.parked_ids() == []
        # A session of the new name, from another device or an earlier life, knows none of the old packet ids.
        gateway.connect(session_present=True)
        exchange_all(gateway, broker)
        assert broker.counts() == {SENT: 1, WAITING: 1}
        assert [(each.message_id, each.decision) for each in gateway.store.in_doubt()] == [
            (2, Decision.SENT_AGAIN),
            (1, Decision.LEFT_TO_BROKER),
        ]


def flipped(path: Path, byte: int) -> None:
    with closing(apsw.Connection(str(path))) as database:
        stored = bytearray(database.execute("SELECT in_flight FROM glec_session").get)
        stored[byte] ^= 1
        database.execute("UPDATE glec_session SET in_flight = ?", (bytes(stored),))


@pytest.mark.parametrize("byte", [0, 5, 16, 17, 20, 26, 27, 28, 35, -4])
def test_an_unreadable_image_voids_the_session_and_sends_all_again(tmp_path: Path, byte: int) -> None:
    """What is in flight, and what of it is finished, is unknown: nothing is lost, and what may come twice is told."""
    with ScriptedGateway(tmp_path / QUEUE, window=2) as gateway:
        lose_session_in_the_middle(gateway, ScriptedBroker())
    flipped(tmp_path / QUEUE, byte)
    broker = ScriptedBroker()
    with ScriptedGateway(tmp_path / QUEUE, window=2) as gateway:
        assert gateway.session.parked_ids() == []
        assert gateway.outbox.is_session_foreign, "the broker's session is discarded before anything is sent"
        assert gateway.outbox.in_doubt_count == 3
        gateway.connect(session_present=False)
        exchange_all(gateway, broker)
        assert broker.counts() == {RECEIVED: 1, SENT: 1, WAITING: 1}
        assert {each.message_id: each.decision for each in gateway.store.in_doubt()} == dict.fromkeys(
            (1, 2, 3), Decision.SENT_AGAIN
        )
    with ScriptedGateway(tmp_path / QUEUE, window=2) as gateway:
        assert not gateway.outbox.is_session_foreign
        assert gateway.outbox.in_doubt_count == 0


@pytest.mark.parametrize("stored", ["x'01FF'", "'text'", "CAST(x'FF' AS TEXT)", "zeroblob(17)", "5"])
def test_a_session_of_other_types_is_one_that_cannot_be_read(tmp_path: Path, stored: str) -> None:
    with OfflineQueueManager(tmp_path / QUEUE) as queue:
        message_id = queue.enqueue("t", "kept", 2)
    with closing(apsw.Connection(str(tmp_path / QUEUE))) as database:
        database.execute(f"INSERT INTO glec_session VALUES (1, 'DTG-TEST', 'broker:1883', {stored})")
    with OfflineQueueManager(tmp_path / QUEUE) as queue:
        assert [message.id for message in queue.dequeue_all()] == [message_id]
    with ScriptedGateway(tmp_path / QUEUE) as gateway:
        assert gateway.outbox.is_session_foreign
        assert [each.message_id for each in gateway.store.in_doubt()] == [message_id]


def test_entries_of_the_ledger_that_are_none_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with OfflineQueueManager(tmp_path / QUEUE):
        pass
    entries = [
        (1, 5, 1, "'t'", "'sent_again'"), (2, "'noon'", 2, "'t'", "'sent_again'"), (3, 5, "'x'", "'t'", "'sent_again'"),
        (4, 5, 4, "x'FF'", "'sent_again'"), (5, 5, 5, "'t'", "'forgotten'"), (6, 2**62, 6, "'t'", "'sent_again'"),
        (7, 5, 7, "CAST(x'FF' AS TEXT)", "'sent_again'"), (8, 5, 8, "'t'", "CAST(x'FF' AS TEXT)"),
    ]  # fmt: skip
    with closing(apsw.Connection(str(tmp_path / QUEUE))) as database:
        for entry in entries:
            database.execute(f"INSERT INTO glec_in_doubt VALUES ({', '.join(map(str, entry))})")
    with OfflineQueueManager(tmp_path / QUEUE) as queue:
        assert [(each.message_id, each.topic) for each in queue.in_doubt()] == [(1, "t"), (7, "\ufffd")]
    assert main(["in-doubt", str(tmp_path / QUEUE)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


class TestHandleFor:
    def test_a_message_of_an_earlier_process_can_be_waited_for(self, tmp_path: Path) -> None:
        with ScriptedGateway(tmp_path / QUEUE) as gateway:
            message_id = gateway.publish(RECEIVED, 2).message_id
        broker = ScriptedBroker()
        with ScriptedGateway(tmp_path / QUEUE) as gateway:
            handle = gateway.outbox.handle_for(message_id)
            assert handle is not None
            assert gateway.outbox.handle_for(message_id) is handle
            assert handle.wait_durable(0)
            assert not handle.is_published()
            gateway.connect()
            exchange_all(gateway, broker)
            assert handle.is_published()
            handle.wait_for_publish(0)

    def test_none_where_it_is_finished(self, tmp_path: Path) -> None:
        broker = ScriptedBroker()
        with ScriptedGateway(tmp_path / QUEUE) as gateway:
            message_id = gateway.publish(RECEIVED, 2).message_id
            gateway.connect()
            exchange_all(gateway, broker)
            assert gateway.outbox.handle_for(message_id) is None
        with ScriptedGateway(tmp_path / QUEUE) as gateway:
            assert gateway.outbox.handle_for(message_id) is None

    def test_none_where_a_crash_came_before_it_was_on_disk(self, tmp_path: Path) -> None:
        crashed = tmp_path / "crashed"
        crashed.mkdir()
        with ScriptedGateway(tmp_path / QUEUE) as gateway:
            kept = gateway.publish(RECEIVED, 2).message_id
            for file in tmp_path.glob(f"{QUEUE}*"):
                shutil.copy(file, crashed)
            lost = gateway.publish(SENT, 1).message_id
        with ScriptedGateway(crashed / QUEUE) as gateway:
            assert gateway.outbox.handle_for(kept) is not None
            assert gateway.outbox.handle_for(lost) is None
            # It is never another's.
            assert gateway.publish(SENT, 1).message_id > lost

    @pytest.mark.parametrize("message_id", [0, -1, 2, 1 << 62])
    def test_an_id_that_no_message_has_is_refused(self, tmp_path: Path, message_id: int) -> None:
        with ScriptedGateway(tmp_path / QUEUE) as gateway:
            gateway.publish(RECEIVED, 2)
            with pytest.raises(MessageError, match="no message has the id"):
                gateway.outbox.handle_for(message_id)

    def test_it_hears_of_a_drop(self, tmp_path: Path) -> None:
        with ScriptedGateway(tmp_path / QUEUE) as gateway:
            message_id = gateway.publish(RECEIVED, 2).message_id
        with ScriptedGateway(tmp_path / QUEUE, max_queue_size=1) as gateway:
            handle = gateway.outbox.handle_for(message_id)
            assert handle is not None
            gateway.publish(SENT, 2)
            gateway.store.run(lambda _table: None)
            with pytest.raises(PublishError, match="overflow"):
                handle.wait_for_publish(20)


class TestCommandLine:
    def test_it_lists_the_ledger_while_the_file_is_in_use(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with ScriptedGateway(tmp_path / QUEUE, window=2) as gateway:
            lose_session_in_the_middle(gateway, ScriptedBroker())
            gateway.connect(session_present=False)
            gateway.commit()
            assert main(["in-doubt", str(tmp_path / QUEUE), "--json"]) == 0
            listed = json.loads(capsys.readouterr().out)
            assert [(entry["message_id"], entry["decision"]) for entry in listed] == [
                (2, "sent_again"),
                (1, "left_to_broker"),
            ]
            assert main(["in-doubt", str(tmp_path / QUEUE)]) == 0
            lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 2
        assert "2024-01-11T00:00:00Z" in lines[0]
        assert lines[0].endswith("sent_again")

    def test_it_says_that_there_is_nothing(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        Store(tmp_path / QUEUE).close()
        assert main(["in-doubt", str(tmp_path / QUEUE)]) == 0
        assert capsys.readouterr().out == "no message was ever in doubt\n"

    def test_a_file_that_is_no_queue_is_named(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "text").write_text("not a database, but long enough to have been one")
        assert main(["in-doubt", str(tmp_path / "text")]) == 2
        assert main(["in-doubt", str(tmp_path / "missing")]) == 2
        first, second = capsys.readouterr().err.splitlines()
        assert "text" in first
        assert "missing" in second
        assert not (tmp_path / "missing").exists()


def test_exchanges_whose_rows_are_gone_are_ended_and_take_up_no_place(tmp_path: Path) -> None:
    count = 19
    broker = ScriptedBroker(max_unreleased=count + 1, hands_on_at_release=True)
    path = tmp_path / QUEUE
    with ScriptedGateway(path, window=50, max_unreleased=count + 1) as gateway:
        for number in range(count):
            gateway.publish(f"old {number}", 2)
        gateway.connect(session_present=False)
        gateway.commit()
        broker.feed(gateway.send())
    broker.cut(arrives=True)
    assert len(broker.held) == count
    # As damage would, or a program that has other plans.
    with OfflineQueueManager(path) as queue:
        for message in queue.dequeue_all()[1:]:
            assert queue.delete(message.id)
    with ScriptedGateway(path, window=50, max_unreleased=count + 1) as gateway:
        assert len(gateway.session.parked_ids()) == count
        for number in range(count):
            gateway.publish(f"new {number}", 2)
        gateway.connect()
        exchange_all(gateway, broker)
        gateway.commit()
        assert gateway.session.parked_ids() == []
        assert gateway.session.in_flight == 0
    assert broker.held == {}
    assert sorted(broker.delivered) == sorted(f"{age} {number}" for age in ("old", "new") for number in range(count))


def test_a_disk_that_fails_lets_no_exchange_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / QUEUE
    with ScriptedGateway(path) as gateway:
        gateway.publish(SENT, 2)
        gateway.connect(session_present=False)
        gateway.commit()
        gateway.send()
        gateway.cut()

        def fail(*_: object) -> None:
            raise apsw.IOError("a bad sector")

        monkeypatch.setattr(gateway.store._reader, "table", SimpleNamespace(read_after=fail, holds=fail))
        gateway.connect()
        assert gateway.session.parked_ids() == [1]
        assert gateway.send() == b""
        monkeypatch.undo()
        gateway.commit()
        assert SENT.encode() in gateway.send()
