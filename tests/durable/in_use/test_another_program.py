"""Another program writes to the queue file while it is in use: its rows are sent, and ours lose nothing by it."""

from __future__ import annotations

import os
from collections import Counter
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from glec_fast.durable.database import LOG_RESERVE_BYTES
from glec_fast.durable.in_doubt import Decision, add_entries
from glec_fast.durable.store import Store
from support import forked
from support.queue_fuzz import COLUMNS, fill, look_beside
from support.scripted_broker import ScriptedBroker, publication_of
from support.scripted_gateway import ScriptedGateway
from support.store import WAIT_S, RecordingOutbox, append, ids_on_disk, wait_for
from support.wire_reference import PUBACK, PUBREC, ack, parse

if TYPE_CHECKING:
    from pathlib import Path
from support.file_in_use import flush

FAR = 10**15
QUOTA_EXCEEDED = 0x97
INSERT = "INSERT INTO mqtt_offline_queue (topic, payload, qos, timestamp, ttl) VALUES ('t', '{}', 2, {}, {})"


def foreign(path: Path, *statements: str) -> None:
    """Another program, with another SQLite: in this process it would let go of the locks of ours."""
    program = (
        "import sqlite3, sys\nk = sqlite3.connect(sys.argv[1], timeout=10)\n"
        "k.create_collation('theirs', lambda a, b: (a > b) - (a < b))\n"
        "for statement in sys.argv[2:]: k.execute(statement)\nk.commit()"
    )
    forked.run(["-c", program, path, *statements], WAIT_S).check_returncode()


def payloads(stream: bytes) -> list[str]:
    return [publication_of(each, 5).payload for each in parse(stream)[0]]


def answers_to(stream: bytes, reason: int) -> bytes:
    kinds = {2: PUBACK, 4: PUBREC}
    return b"".join(ack(kinds[each.flags & 6], each.packet_id, bytes([reason])) for each in parse(stream)[0])


class TestAnotherProgram:
    """Its rows are sent as ours are, and ours lose nothing by it."""

    @pytest.mark.parametrize("timestamp", [1, "CAST(strftime('%s','now') AS INTEGER) * 1000", 2**62, 5.5, "'text'"])
    @pytest.mark.parametrize("ttl", [FAR, FAR + 0.5, "'never'"])
    def test_a_row_of_it_and_ours_are_sent(
        self, gateway: ScriptedGateway, path: Path, timestamp: object, ttl: object
    ) -> None:
        broker = ScriptedBroker()
        gateway.connect()
        gateway.publish("2-first", 2)
        flush(gateway, broker)
        foreign(path, INSERT.format("2-foreign", timestamp, ttl))
        handles = [gateway.publish(f"2-{number}", 2) for number in range(5)]
        assert flush(gateway, broker) == Counter(["2-first", "2-foreign", *(f"2-{number}" for number in range(5))])
        assert all(handle.is_published() for handle in handles)
        assert ids_on_disk(path) == []

    @pytest.mark.parametrize("values", ["'a/#', 1", "'', 1", "x'ff00', 1", "'t', 7", "'t', 'text'"])
    def test_a_row_that_no_message_can_be_made_of_is_dropped(
        self, gateway: ScriptedGateway, path: Path, values: str
    ) -> None:
        broker = ScriptedBroker()
        gateway.connect()
        gateway.publish("2-first", 2)
        columns = "(payload, timestamp, ttl, topic, qos)"
        foreign(path, f"INSERT INTO mqtt_offline_queue {columns} VALUES ('theirs', 1, {FAR}, {values})")
        gateway.publish("2-last", 2)
        assert flush(gateway, broker) == Counter(["2-first", "2-last"])
        assert gateway.store.drops == {"unsendable": 1}
        assert len(gateway.dropped) == 1
        assert ids_on_disk(path) == []

    @pytest.mark.parametrize("message_id", [1, 2, 9])
    def test_a_row_put_back_where_all_was_read(self, gateway: ScriptedGateway, path: Path, message_id: int) -> None:
        """As of what was set aside, under the id and the times that it had."""
        broker = ScriptedBroker()
        gateway.connect()
        for number in range(9):
            gateway.publish(f"2-{number}", 2)
        expected = flush(gateway, broker)
        assert ids_on_disk(path) == []
        foreign(
            path,
            "INSERT INTO mqtt_offline_queue (id, topic, payload, qos, timestamp, ttl)"
            f" VALUES ({message_id}, 't', '2-again', 2, 1, {FAR})",
        )
        gateway.publish("2-9", 2)
        gateway.publish("0", 0)
        assert flush(gateway, broker) == expected + Counter(["2-again", "2-9", "0"])
        assert ids_on_disk(path) == []

    @pytest.mark.parametrize(
        "statement",
        [
            "DROP TABLE glec_session",
            "DROP TABLE glec_clock",
            "DROP TABLE glec_received",
            "ALTER TABLE glec_command RENAME COLUMN reply TO answer",
            "DROP TABLE mqtt_offline_queue",
            "ALTER TABLE mqtt_offline_queue RENAME COLUMN payload TO data",
        ],
    )
    def test_tables_that_it_declares_anew(self, gateway: ScriptedGateway, path: Path, statement: str) -> None:
        broker = ScriptedBroker()
        gateway.connect()
        for number in range(5):
            gateway.publish(f"2-{number}", 2)
        gateway.commit()
        broker.feed(gateway.send())
        foreign(path, statement)
        handles = [gateway.publish(f"2-{number}", 2) for number in range(5, 10)]
        assert flush(gateway, broker) == Counter(f"2-{number}" for number in range(10))
        assert all(handle.is_published() for handle in handles)
        assert gateway.store.wait_empty(WAIT_S)
        assert gateway.store.salvage is not None

    @pytest.mark.parametrize(
        "statement",
        [
            "CREATE TRIGGER t BEFORE INSERT ON mqtt_offline_queue BEGIN SELECT RAISE(ABORT, 'no'); END",
            "CREATE TRIGGER t AFTER INSERT ON mqtt_offline_queue BEGIN DELETE FROM mqtt_offline_queue; END",
            "CREATE TRIGGER t BEFORE DELETE ON mqtt_offline_queue BEGIN SELECT RAISE(IGNORE); END",
            "CREATE TRIGGER t BEFORE INSERT ON mqtt_offline_queue WHEN NEW.qos = 2 BEGIN SELECT RAISE(IGNORE); END",
            "CREATE TRIGGER t BEFORE DELETE ON mqtt_offline_queue WHEN OLD.qos = 2 BEGIN SELECT RAISE(IGNORE); END",
            'CREATE TRIGGER "a ""b" AFTER INSERT ON Mqtt_Offline_Queue BEGIN INSERT INTO audit VALUES (NEW.id); END',
            "CREATE TRIGGER t BEFORE INSERT ON glec_session BEGIN SELECT RAISE(IGNORE); END",
        ],
    )
    def test_triggers_of_it_are_dropped(self, gateway: ScriptedGateway, path: Path, statement: str) -> None:
        """Each time, as one may swallow alerts alone, and say nothing."""
        broker, expected = ScriptedBroker(), Counter[str]()
        gateway.connect()
        foreign(path, "CREATE TABLE audit (id)")
        for number in range(4):
            gateway.publish(f"2-{number}", 2)
            gateway.commit()
            foreign(path, statement)
            for qos in (2, 1, 0):
                gateway.publish(f"{qos}-more-{number}", qos)
            expected.update([f"2-{number}", *(f"{qos}-more-{number}" for qos in (2, 1, 0))])
            assert flush(gateway, broker) == expected
        assert gateway.store.wait_empty(WAIT_S)
        assert ids_on_disk(path) == []
        assert gateway.store.salvage is None

    @pytest.mark.parametrize(
        "statement",
        [
            "CREATE UNIQUE INDEX i ON mqtt_offline_queue(topic)",
            "CREATE UNIQUE INDEX i ON Mqtt_Offline_Queue(topic, qos) WHERE qos = 2",
            "CREATE INDEX i ON mqtt_offline_queue(json_extract(payload, '$.id'))",
            """CREATE INDEX "a ""b" ON mqtt_offline_queue(timestamp) WHERE json_extract(payload, '$.id') > 0""",
            "CREATE UNIQUE INDEX i ON glec_extras(retain)",
            "CREATE INDEX i ON mqtt_offline_queue(topic COLLATE theirs)",
        ],
    )
    def test_indexes_of_it_that_may_refuse_rows_are_dropped(
        self, gateway: ScriptedGateway, path: Path, statement: str
    ) -> None:
        gateway.connect()
        gateway.publish("2-first", 2)
        assert flush(gateway, ScriptedBroker()) == Counter(["2-first"])
        assert gateway.store.wait_empty(WAIT_S)
        foreign(path, statement)
        expected = [f"{qos}-{number}" for qos in (2, 1, 0) for number in range(2)]
        for payload in expected:
            gateway.publish(payload, int(payload[0]), retain=True)
        assert flush(gateway, ScriptedBroker()) == Counter(expected)
        assert gateway.store.salvage is None

    @pytest.mark.parametrize(
        "statement",
        [
            "VACUUM",
            "ANALYZE",
            "CREATE INDEX more ON mqtt_offline_queue(topic)",
            "ALTER TABLE mqtt_offline_queue ADD COLUMN more TEXT",
            *(f"ALTER TABLE {name} ADD COLUMN more TEXT" for name in sorted(COLUMNS) if name.startswith("glec_")),
        ],
    )
    def test_what_it_may_declare(self, gateway: ScriptedGateway, path: Path, statement: str) -> None:
        gateway.connect()
        gateway.publish("2-0", 2)
        foreign(path, statement)
        gateway.store.append_many([("t", "2-1", 2), ("t", "2-2", 2)])
        gateway.store.run(fill)
        look_beside(gateway.store)
        assert flush(gateway, ScriptedBroker()) == Counter(["2-0", "2-1", "2-2", "x"])
        assert gateway.store.salvage is None

    @pytest.mark.parametrize(
        "statement",
        [
            f"INSERT INTO glec_in_doubt VALUES ({2**63 - 1}, 5, 1, 't', 'sent_again')",
            f"INSERT INTO glec_set_aside (number, time, reason, message_id) VALUES ({2**63 - 1}, 5, 'r', 1)",
            f"INSERT INTO glec_command VALUES ({2**63 - 1}, 'n', x'00', x'00', 1, 1, 't', x'', NULL, NULL, NULL)",
            f"INSERT INTO glec_extras SELECT value, 1, NULL, x'' FROM json_each('{list(range(2, 40))}')",
            f"UPDATE sqlite_sequence SET seq = {2**63 - 1}",
        ],
    )
    def test_rows_of_it_in_any_table_stop_nothing(self, gateway: ScriptedGateway, path: Path, statement: str) -> None:
        """Also where no number is left for the next row there, or ours is taken."""
        gateway.connect()
        gateway.publish("2-0", 2)
        foreign(path, statement)
        gateway.store.run(fill)
        look_beside(gateway.store)
        message_id = gateway.publish("2-1", 2, retain=True).message_id
        gateway.store.run(lambda table: add_entries(table, 5, [(message_id, Decision.SENT_AGAIN)]))
        assert gateway.store.in_doubt()[-1].message_id == message_id
        assert flush(gateway, ScriptedBroker()) == Counter(["2-0", "2-1", "x"])

    def test_flush_sees_it_in_an_idle_queue(self, gateway: ScriptedGateway, path: Path) -> None:
        gateway.connect()
        gateway.commit()
        foreign(path, INSERT.format("2-foreign", 1, FAR))
        assert not gateway.store.wait_empty(0.1)
        assert flush(gateway, ScriptedBroker()) == Counter(["2-foreign"])
        assert gateway.store.wait_empty(WAIT_S)

    def test_many_between_each_two_of_ours(self, gateway: ScriptedGateway, path: Path) -> None:
        broker = ScriptedBroker()
        gateway.connect()
        expected = []
        for turn in range(4):
            expected += [f"2-{turn}-{number}" for number in range(30)]
            foreign(path, *(INSERT.format(f"2-foreign-{turn}-{number}", number, FAR) for number in range(20)))
            expected += [f"2-foreign-{turn}-{number}" for number in range(20)]
            for number in range(30):
                gateway.publish(f"2-{turn}-{number}", 2)
        assert flush(gateway, broker) == Counter(expected)

    @pytest.mark.parametrize("mode", ["PASSIVE", "RESTART", "TRUNCATE"])
    def test_it_has_the_log_start_over(self, gateway: ScriptedGateway, path: Path, mode: str) -> None:
        """That is no damage: whoever has the file open would write to one without a name from then on."""
        file = path.stat().st_ino
        gateway.connect()
        for number in range(3):
            gateway.publish(f"2-{number}", 2)
            foreign(path, f"PRAGMA wal_checkpoint({mode})", INSERT.format(f"2-foreign-{number}", 1, FAR))
        gateway.publish("2-3", 2)
        assert path.stat().st_ino == file
        assert path.with_name("queue.db-wal").stat().st_size >= LOG_RESERVE_BYTES
        expected = [*(f"2-{number}" for number in range(4)), *(f"2-foreign-{number}" for number in range(3))]
        assert flush(gateway, ScriptedBroker()) == Counter(expected)

    def test_it_writes_to_the_log_while_that_is_looked_at(
        self, gateway: ScriptedGateway, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What is read of the log's index then is of a log that is longer than it was."""
        file, stat = path.stat().st_ino, os.stat
        gateway.connect()
        gateway.publish("2-0", 2)
        foreign(path, "PRAGMA wal_checkpoint(TRUNCATE)")
        statements = [INSERT.format("2-foreign", 1, FAR)]

        def look_at(name: Any, **how: Any) -> os.stat_result:
            found = stat(name, **how)
            if str(name).endswith("-wal") and statements:
                foreign(path, statements.pop())
            return found

        monkeypatch.setattr("os.stat", look_at)
        gateway.publish("2-1", 2)
        assert not statements
        assert path.stat().st_ino == file
        assert flush(gateway, ScriptedBroker()) == Counter(["2-0", "2-1", "2-foreign"])

    def test_it_empties_the_index_of_the_log(self, path: Path) -> None:
        """SQLite has it in its memory, where to look behind the end of a file ends the process."""
        path.parent.mkdir()
        with closing(Store(path)) as store:
            append(store, 3)
            os.truncate(path.with_name("queue.db-shm"), 0)
            append(store, 3)
            assert store.size == len(ids_on_disk(path)) == 6

    def test_an_id_that_waits_in_memory(self, path: Path) -> None:
        path.parent.mkdir()
        with closing(Store(path)) as store:
            outbox = RecordingOutbox(store)
            append(store, 2)
            ids = [store.append("t", "ours", 0, urgent=False) for _ in range(3)]
            foreign(
                path,
                "INSERT INTO mqtt_offline_queue (id, topic, payload, qos, timestamp, ttl)"
                f" VALUES ({ids[1]}, 't', 'theirs', 1, 1, {FAR})",
            )
            # Not yet: its id is that of a message of ours.
            assert outbox.read_all() == []
            assert store.wait_durable(ids[-1], WAIT_S)
            assert wait_for(lambda: (store.request_commit(), len(outbox.read_all()), len(outbox.sent))[2] == 6)
            assert Counter(row[2] for row in outbox.sent)["theirs"] == 1
            assert [row[2] for row in outbox.sent if row[0] in ids] == ["ours"] * 3
            assert store.size == 6

    def test_rows_that_it_deletes_and_changes(self, gateway: ScriptedGateway, path: Path) -> None:
        broker = ScriptedBroker()
        for number in range(40):
            gateway.publish(f"2-{number}", 2)
        gateway.connect()
        broker.feed(gateway.send())
        foreign(
            path,
            "DELETE FROM mqtt_offline_queue WHERE id IN (1, 2, 39)",
            "UPDATE mqtt_offline_queue SET qos = 1 WHERE id = 3",
        )
        gateway.publish("2-last", 2)
        assert set(flush(gateway, broker).values()) == {1}
        assert gateway.store.wait_empty(WAIT_S)

    @pytest.mark.parametrize("timestamp", ["timestamp + 100000", "9e15", "9e999", "'text'"])
    @pytest.mark.parametrize("are_on_their_way", [True, False])
    def test_times_that_it_changes(
        self, gateway: ScriptedGateway, path: Path, are_on_their_way: bool, timestamp: str
    ) -> None:
        broker = ScriptedBroker()
        expected = Counter(f"{number % 3}-{number}" for number in range(40))
        for number in range(40):
            gateway.publish(f"{number % 3}-{number}", number % 3)
        gateway.commit()
        sent = b""
        if are_on_their_way:
            gateway.connect()
            sent = gateway.send()
        foreign(path, f"UPDATE mqtt_offline_queue SET timestamp = {timestamp}")
        gateway.publish("2-last", 2)
        gateway.commit()
        if not are_on_their_way:
            gateway.connect()
        sent += gateway.send()
        broker.feed(sent)
        assert flush(gateway, broker) == expected + Counter(["2-last"])
        assert gateway.store.wait_empty(WAIT_S)

    @pytest.mark.parametrize("are_deleted_meanwhile", [True, False])
    def test_times_of_what_is_finished_and_still_there(
        self, gateway: ScriptedGateway, path: Path, are_deleted_meanwhile: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Taken by the store, and its rows not deleted, or deleted as they are met again."""
        monkeypatch.setattr("glec_fast.durable.schedule.DONE_COMMIT_DELAY_S", 3600.0)
        supply, broker = gateway.store.supply, ScriptedBroker()
        for number in range(30):
            gateway.publish(f"2-{number}", 2)
        gateway.commit()
        gateway.connect()
        for _ in range(4):
            gateway.turn()
            broker.feed(gateway.send())
            gateway.receive(broker.handle(broker.waiting_packets()))
        gateway.turn()
        foreign(path, "UPDATE mqtt_offline_queue SET timestamp = timestamp + 100000")
        gateway.publish("2-last", 2)
        gateway.turn()
        assert len(ids_on_disk(path)) == 31
        assert gateway.session.in_flight == 10
        if are_deleted_meanwhile:
            read = supply.read

            def read_slowly(*given: Any, **named: Any) -> Any:
                found = read(*given, **named)
                gateway.store.run(lambda _table: None)
                return found

            monkeypatch.setattr(supply, "read", read_slowly)
        for _ in range(4):
            gateway.turn()
            broker.feed(gateway.send())
            gateway.receive(broker.handle(broker.waiting_packets()))
        assert flush(gateway, broker) == Counter([*(f"2-{number}" for number in range(30)), "2-last"])

    def test_times_of_what_the_socket_takes_meanwhile(self, gateway: ScriptedGateway, path: Path) -> None:
        gateway.publish("0", 0)
        gateway.commit()
        gateway.connect()
        with gateway.outbox.lock:
            sent = gateway.session.peek(100)
            gateway.session.on_sent(len(sent))
        foreign(path, "UPDATE mqtt_offline_queue SET timestamp = timestamp + 100000")
        gateway.publish("1-last", 1)
        gateway.commit()
        broker = ScriptedBroker()
        broker.feed(sent + gateway.send())
        assert flush(gateway, broker) == Counter(["0", "1-last"])

    @pytest.mark.parametrize("qos", [1, 2])
    def test_times_of_what_the_broker_refuses(self, path: Path, qos: int) -> None:
        """It waits for its next attempt all the same, and is sent once then."""
        path.parent.mkdir()
        with ScriptedGateway(path, protocol_version=5) as gateway:
            for number in range(3):
                gateway.publish(f"{number}", qos)
            gateway.commit()
            gateway.connect()
            gateway.commit()
            gateway.receive(answers_to(gateway.send(), QUOTA_EXCEEDED))
            for _ in range(2):
                gateway.clock.now_s += 2.0
                foreign(path, "UPDATE mqtt_offline_queue SET timestamp = timestamp + 1000")
                gateway.publish("last", 1)
                gateway.commit()
                sent = gateway.send()
                assert payloads(sent) == ["last"]
                gateway.receive(answers_to(sent, 0))
            gateway.outbox._again_at_s = 0.0
            gateway.commit()
            assert payloads(gateway.send()) == ["0", "1", "2"]

    @pytest.mark.parametrize("order", ["fifo", "alerts_first"])
    def test_what_is_published_behind_times_in_the_future(self, path: Path, order: str) -> None:
        path.parent.mkdir()
        broker = ScriptedBroker()
        with ScriptedGateway(path, queue_order=order) as gateway:
            for number in range(6):
                gateway.publish(f"{number % 3}-{number}", number % 3)
            gateway.commit()
            foreign(path, "UPDATE mqtt_offline_queue SET timestamp = timestamp + 100000")
            # It is noticed before the queue is rewound.
            gateway.commit()
            gateway.connect()
            expected = flush(gateway, broker)
            gateway.publish("1-late", 1)
            gateway.publish("2-late", 2)
            assert flush(gateway, broker) == expected + Counter(["1-late", "2-late"])

    def test_the_queue_s_size_holds_for_it_too(self, path: Path) -> None:
        path.parent.mkdir()
        with closing(Store(path, max_queue_size=10)) as store:
            append(store, 5)
            foreign(path, *(INSERT.format("x", 1, FAR) for _ in range(20)))
            append(store, 1)
            append(store, 1)
            assert store.size == len(ids_on_disk(path)) == 10
