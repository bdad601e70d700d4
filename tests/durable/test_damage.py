"""Each kind of damage to a queue file, and each way in which others declare its tables: what can be read is kept."""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from contextlib import closing
from pathlib import Path

import apsw
import pytest

from glec_fast.durable.store import Store
from glec_fast.fleet.offline_queue import OfflineQueueManager
from support.gateway import eventually
from support.queue_files import SPECIFIED_SCHEMA, WAIT_S, plain
from support.queue_fuzz import DECLARED, OBJECTS, PAGE_BYTES, check, database

COUNT = 40
FAR_MS = 10**13
INSERT = "INSERT INTO mqtt_offline_queue (topic, payload, qos, timestamp, ttl) VALUES (?, ?, ?, ?, ?)"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "queue.db"


@pytest.fixture
def filled(path: Path) -> Path:
    with OfflineQueueManager(path) as queue:
        queue.enqueue_many([("t", f"payload {number} " + "x" * 200, 1) for number in range(COUNT)])
    return path


def read_numbers(path: Path) -> list[int]:
    with closing(Store(path)) as store:
        rows, is_last = store.supply.read(10 * COUNT)
        assert is_last
    return sorted(int(row[2].split()[1]) for row in rows)


def pages_of(path: Path, name: str) -> list[int]:
    """Numbers of all pages of a table or an index, the root first, then the other inner ones."""
    with closing(apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)) as connection:
        query = "SELECT pageno FROM dbstat WHERE name = ? ORDER BY pagetype = 'leaf', length(path)"
        return [number for (number,) in connection.execute(query, (name,))]


def overwrite(path: Path, *pages: int) -> None:
    with path.open("r+b") as file:
        for number in pages:
            file.seek((number - 1) * PAGE_BYTES)
            file.write(b"\xff" * PAGE_BYTES)


class TestBrokenTree:
    """What its leaves have is carried over, and nothing of what was deleted."""

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        """600 messages, of which 100 are left, scattered; some longer than a page, some BLOBs."""
        path = tmp_path / "queue.db"
        with OfflineQueueManager(path) as queue:
            for number in range(600):
                payload = f"payload {number} " + "x" * (9000 if number % 50 == 0 else 150)
                queue.enqueue("t", payload if number % 7 else payload.encode() + b"\xff", 2)
        database(path, "DELETE FROM mqtt_offline_queue WHERE id NOT BETWEEN 201 AND 250 AND id NOT BETWEEN 401 AND 450")
        with closing(apsw.Connection(str(path))) as connection:
            assert connection.pragma("freelist_count") > 20
        return path

    @pytest.mark.parametrize("with_indexes", [True, False])
    def test_its_root_is_lost(self, path: Path, with_indexes: bool) -> None:
        overwrite(path, pages_of(path, "mqtt_offline_queue")[0])
        if not with_indexes:
            overwrite(path, pages_of(path, "idx_timestamp")[0], pages_of(path, "idx_ttl")[0])
        with closing(Store(path)) as store:
            assert store.salvage is not None
            rows = store.supply.read(1000)[0]
        assert [row[0] for row in rows] == [*range(201, 251), *range(401, 451)]
        for row in rows:
            kind = str if (row[0] - 1) % 7 else bytes
            assert isinstance(row[2], kind)
            assert len(row[2]) > (9000 if (row[0] - 1) % 50 == 0 else 150)

    def test_where_nothing_tells_what_was_deleted_nothing_comes_back(self, path: Path) -> None:
        overwrite(path, *(pages_of(path, name)[0] for name in ("mqtt_offline_queue", "idx_timestamp", "idx_ttl")))
        with path.open("r+b") as file:
            file.seek(32)
            trunk = int.from_bytes(file.read(4), "big")
        overwrite(path, trunk)
        with closing(Store(path)) as store:
            assert store.supply.read(1000)[0] == []

    def test_what_is_accepted_behind_the_damage_is_kept(self, path: Path) -> None:
        with closing(Store(path)) as store:
            with store._writer.lock:
                store._writer.connection.wal_checkpoint()
            root = pages_of(path, "mqtt_offline_queue")[0]
            overwrite(path, root)
            # Into the last leaf: the root is not written again.
            message_id = store.append("t", "new", 2)
            assert store.wait_durable(message_id, WAIT_S)
            copy = path.parent / "copy" / path.name
            copy.parent.mkdir()
            # As a crash leaves it.
            for suffix in ("", "-wal"):
                shutil.copy(path.with_name(path.name + suffix), copy.with_name(copy.name + suffix))
        with closing(Store(copy)) as store:
            assert store.salvage is not None
            kept = [row[0] for row in store.supply.read(1000)[0]]
        assert kept == [*range(201, 251), *range(401, 451), message_id]


@pytest.mark.parametrize("statement", OBJECTS)
def test_objects_of_others(filled: Path, statement: str) -> None:
    database(filled, statement)
    check(filled, Counter())
    with closing(Store(filled)) as store:
        kept = [row[2] for row in store.supply.read(10 * COUNT)[0] if row[2].startswith("payload")]
    assert len(kept) == COUNT


RENAMED = [
    "ALTER TABLE mqtt_offline_queue RENAME TO other",
    "ALTER TABLE mqtt_offline_queue RENAME TO other; CREATE TABLE mqtt_offline_queue (a)",
    "ALTER TABLE mqtt_offline_queue RENAME TO other; CREATE VIEW mqtt_offline_queue AS SELECT * FROM other",
    "CREATE TABLE other AS SELECT * FROM mqtt_offline_queue; DROP TABLE mqtt_offline_queue",
    "ALTER TABLE mqtt_offline_queue RENAME COLUMN payload TO data",
    "ALTER TABLE mqtt_offline_queue RENAME COLUMN id TO number; ALTER TABLE mqtt_offline_queue RENAME COLUMN qos TO q",
    "DROP INDEX idx_ttl; ALTER TABLE mqtt_offline_queue DROP COLUMN ttl",
]


@pytest.mark.parametrize("is_in_use", [False, True])
@pytest.mark.parametrize("statement", RENAMED)
def test_messages_under_another_name(filled: Path, statement: str, is_in_use: bool) -> None:
    if not is_in_use:
        database(filled, statement)
    with closing(Store(filled)) as store:
        if is_in_use:
            database(filled, statement)
            assert store.wait_durable(store.append("t", f"payload {COUNT} later", 2), WAIT_S)
    assert read_numbers(filled) == list(range(COUNT + is_in_use))


def test_a_table_that_is_gone_stops_nothing(filled: Path) -> None:
    database(filled, "DROP TABLE mqtt_offline_queue")
    with closing(Store(filled)) as store:
        assert store.salvage is not None
        assert store.wait_durable(store.append("t", "payload 1 later", 2), WAIT_S)
    assert read_numbers(filled) == [1]


@pytest.mark.parametrize("with_null", [False, True])
@pytest.mark.parametrize(("old", "new"), DECLARED)
def test_a_table_that_is_declared_in_another_way(path: Path, old: str, new: str, with_null: bool) -> None:
    """The rows are those of the specification, as far as the table takes them."""
    schema = SPECIFIED_SCHEMA.replace(old, new)
    if with_null:
        schema = schema.replace(" NOT NULL", "")
    with plain(path) as connection:
        connection.executescript(schema)
        columns, values = "topic, payload, qos, timestamp, ttl", "?, ?, ?, ?, ?"
        if "more TEXT" in new:
            columns, values = columns + ", more", values + ", ''"
        if "retry_count INTEGER NOT NULL" in schema:
            columns, values = columns + ", retry_count", values + ", 0"
        if "id TEXT" in new or new == "id INTEGER":
            columns, values = columns + ", id", values + ", (SELECT count(*) + 1 FROM mqtt_offline_queue)"
        qos = 0 if "CHECK" in new else 1
        connection.executemany(
            f"INSERT INTO mqtt_offline_queue ({columns}) VALUES ({values})",
            [(f"t/{number}", f"payload {number} x", qos, 5 + number, FAR_MS) for number in range(COUNT)],
        )
    assert read_numbers(path) == list(range(COUNT))
    check(path, Counter())


@pytest.mark.parametrize("seq", ["9223372036854775807", "9223372036854775806", "'abc'", "NULL", "-5", "1.5", "x'FF'"])
@pytest.mark.parametrize("table", ["mqtt_offline_queue", "glec_in_doubt", "glec_set_aside"])
def test_a_sequence_that_is_none(filled: Path, seq: str, table: str) -> None:
    database(filled, f"DELETE FROM sqlite_sequence WHERE name = '{table}'")
    database(filled, f"INSERT INTO sqlite_sequence VALUES ('{table}', {seq})")
    for is_marked in (False, True):
        if is_marked:
            filled.with_name("queue.db-salvage").touch()
        with OfflineQueueManager(filled) as queue:
            first = queue.enqueue("t", "payload 0 x", 2)
            assert COUNT < first < queue.enqueue("t", "payload 0 x", 2) < 2**62
    check(filled, Counter())


def test_ids_at_the_ends_of_the_range(filled: Path) -> None:
    with plain(filled) as connection:
        connection.executemany(
            INSERT.replace("(topic", "(id, topic").replace("(?", "(?, ?"),
            [(number, "t", f"payload {COUNT} x", 2, 5, FAR_MS) for number in (2**63 - 1, 2**62, -(2**63), 0, -1)],
        )
    with closing(Store(filled)) as store:
        ids = [row[0] for row in store.supply.read(10 * COUNT)[0]]
        assert len(ids) == COUNT + 5
        assert all(0 < number < 2**62 for number in ids)
    check(filled, Counter())


def test_every_byte_of_the_header(filled: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "glec_fast")
    whole = filled.read_bytes()
    # Of the version: one that is newer, by all that can be known, is refused.
    for at in (*range(60), *range(64, 100)):
        for file in filled.parent.iterdir():
            file.unlink()
        damaged = bytearray(whole)
        damaged[at] ^= 1 << at * 5 % 8
        filled.write_bytes(damaged)
        assert read_numbers(filled) == list(range(COUNT)), f"byte {at}"


def test_cut_at_every_page(filled: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "glec_fast")
    whole = filled.read_bytes()
    for at in [*range(0, len(whole), PAGE_BYTES), 1, 15, 16, 17, 99, 100, 511, 512, PAGE_BYTES - 1, PAGE_BYTES + 1]:
        for file in filled.parent.iterdir():
            file.unlink()
        filled.write_bytes(whole[:at])
        check(filled, Counter())


@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
def test_cut_in_front_of_inner_pages(path: Path, share: float) -> None:
    """All leaves that are left are read, and what was deleted stays deleted."""
    with closing(Store(path, max_queue_size=10_000)) as store:
        ids = store.append_many([("t", f"payload {number} " + "x" * 200, 1) for number in range(4000)])
        store.run(lambda table: table.delete(ids[:1000]))
    whole = path.read_bytes()
    left = whole[: round(len(whole) * share) // PAGE_BYTES * PAGE_BYTES]
    path.write_bytes(left)
    Store(path, max_queue_size=10_000).close()
    with plain(path) as opened:
        numbers = {int(payload.split()[1]) for (payload,) in opened.execute("SELECT payload FROM mqtt_offline_queue")}
    assert numbers == {number for number in range(1000, 4000) if b"payload %d " % number in left}


@pytest.mark.parametrize("pages", [3, 10])
def test_cut_in_front_of_other_tables(path: Path, pages: int) -> None:
    """Those have not one page left; the messages have all of theirs."""
    with OfflineQueueManager(path) as queue:
        queue.enqueue_many([("t", f"payload {number}", 1) for number in range(5)])
    path.write_bytes(path.read_bytes()[: pages * PAGE_BYTES])
    assert read_numbers(path) == list(range(5))


def test_an_empty_file_whose_log_has_all(path: Path, tmp_path: Path) -> None:
    """As a file system leaves it that has lost the one and kept the other."""
    folder = tmp_path / "left"
    folder.mkdir()
    with OfflineQueueManager(path) as queue:
        queue.enqueue_many([("t", f"payload {number} x", 1) for number in range(COUNT)])
        (folder / "queue.db").touch()
        (folder / "queue.db-wal").write_bytes(path.with_name("queue.db-wal").read_bytes())
    assert set(read_numbers(folder / "queue.db")) == set(range(COUNT))


def test_a_cell_that_claims_a_gigabyte(filled: Path) -> None:
    """The size of a payload in the header of its record: 2 * 10**9 + 13 as a varint."""
    data = bytearray(filled.read_bytes())
    at = data.index(b"payload 20 ")
    # Topic t, before the payload: the record's header ends with the types of qos, timestamp, ttl and retry_count.
    head = data.rindex(b"\x09\x00\x0f\x83", 0, at) if b"\x09\x00\x0f\x83" in data[:at] else at - 12
    data[head + 3 : head + 5] = b"\xff\xff"
    filled.write_bytes(data)
    check(filled, Counter())
    with closing(apsw.Connection(str(filled))) as connection:
        assert connection.execute("PRAGMA integrity_check(1)").get == "ok"


def test_any_one_page_costs_no_more_than_what_it_has(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Also one that has a part of the schema, of which there are several."""
    with OfflineQueueManager(path) as queue:
        queue.enqueue_many([("t", "x" * 100, 1)] * COUNT)
    whole = path.read_bytes()
    page_bytes = int.from_bytes(whole[16:18], "big")
    for at in range(0, len(whole), page_bytes):
        for beside in path.parent.glob(f"{path.name}*"):
            beside.unlink()
        path.write_bytes(whole[:at] + b"\xff" * 8 + whole[at + 8 :])
        with OfflineQueueManager(path) as queue:
            # A leaf has less than `page_bytes` of rows.
            assert queue.get_queue_size() >= COUNT - page_bytes // 100, at // page_bytes + 1


class TestBrokenLog:
    """Frames of the write-ahead log that are not what was written, and whole ones behind them."""

    @staticmethod
    def fill(connection: apsw.Connection, first: int, count: int) -> None:
        """One transaction for each; the log stays as it is as long as the connection is open."""
        for number in range(first, first + count):
            connection.execute(INSERT, ("t", f"payload {number} " + "x" * 200, 1, number + 1, FAR_MS))

    @pytest.mark.parametrize(("at", "size"), [(32, 3000), (32, 8), (60, 4), (1000, 2000), (4000, 5000), (40, 1)])
    def test_what_came_behind_it_is_carried_over(self, path: Path, tmp_path: Path, at: int, size: int) -> None:
        Store(path).close()
        taken = tmp_path / "taken.db"
        with closing(apsw.Connection(str(path))) as connection:
            self.fill(connection, 0, COUNT)
            for suffix in ("", "-wal"):
                shutil.copyfile(f"{path}{suffix}", f"{taken}{suffix}")
        with Path(f"{taken}-wal").open("r+b") as log:
            log.seek(at)
            log.write(b"\xa5" * size)
        taken.with_name(taken.name + "-salvage").touch()
        assert read_numbers(taken) == list(range(COUNT))

    def test_nothing_that_was_deleted_comes_back(self, path: Path, tmp_path: Path) -> None:
        Store(path).close()
        taken = tmp_path / "taken.db"
        with closing(apsw.Connection(str(path))) as connection:
            self.fill(connection, 0, COUNT)
            at = Path(f"{path}-wal").stat().st_size
            connection.execute("DELETE FROM mqtt_offline_queue WHERE id % 2 = 0")
            self.fill(connection, COUNT, 1)
            for suffix in ("", "-wal"):
                shutil.copyfile(f"{path}{suffix}", f"{taken}{suffix}")
        with Path(f"{taken}-wal").open("r+b") as log:
            log.seek(at // 2)
            log.write(b"\xa5" * 3000)
        taken.with_name(taken.name + "-salvage").touch()
        assert read_numbers(taken) == list(range(0, COUNT + 1, 2))

    def test_what_is_lost_of_a_file_in_use_is_counted(self, path: Path) -> None:
        with closing(Store(path)) as store:
            ids = store.append_many([("t", f"payload {number} " + "x" * 200, 1) for number in range(COUNT)])
            assert store.wait_durable(ids[-1], WAIT_S)
            size = Path(f"{path}-wal").stat().st_size
            for name, at in ((f"{path}-wal", 32), (f"{path}", 0)):
                with Path(name).open("r+b") as file:
                    file.seek(at)
                    file.write(b"\xa5" * (size if at else path.stat().st_size))
            assert store.wait_durable(store.append("t", "payload 0", 2), WAIT_S)
            # Whoever meets the damage has it mended.
            assert eventually(lambda: bool(store.supply.read(10 * COUNT) and store.drops.get("damaged_file")))
            carried = store.run(lambda table: len(table.read_all()))
            assert carried + store.drops["damaged_file"] == COUNT + 1
