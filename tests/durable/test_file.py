"""The queue file: what is refused and left alone, what is adopted, and what is carried over from a damaged one."""

from __future__ import annotations

import logging
import os
import random
import signal
import stat
import tempfile
from contextlib import closing
from pathlib import Path

import apsw
import pytest

from glec_fast.durable import salvage
from glec_fast.durable._table import QueueTable
from glec_fast.durable.database import SCHEMA_VERSION
from glec_fast.durable.file import QueueFile
from glec_fast.durable.raw_pages import bytes_in_pages
from glec_fast.durable.state_rows import load_session
from glec_fast.durable.store import Store
from glec_fast.errors import ConfigError, GlecError, QueueFormatError, QueueLockedError, QueueStorageError
from glec_fast.fleet.offline_queue import OfflineQueueManager
from support.queue_files import INSERT, SPECIFIED_SCHEMA, plain, run_child
from support.store import wait_for

FAR_MS = 10**13
ROOM_ROW = ("t", "payload 1 x", 1, 5)
PAGE_BYTES, FORMER_PAGE_BYTES = 1024, 4096
PAGE_SIZES = [512 << each for each in range(8)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "queue.db"


def fill(path: Path, count: int) -> None:
    with OfflineQueueManager(path, max_queue_size=1_000_000) as queue:
        queue.enqueue_many([(f"topic/{n % 7}", f"payload {n} " + "x" * 200, n % 3) for n in range(count)])


def payload_numbers(path: Path) -> list[int]:
    with OfflineQueueManager(path, max_queue_size=1_000_000) as queue:
        return [int(str(message.payload).split()[1]) for message in queue.dequeue_all()]


def contents(folder: Path) -> dict[str, bytes]:
    """What is in the files of a folder, but for SQLite's and our own locks; an empty log says nothing."""
    found = {file.name: file.read_bytes() for file in folder.iterdir() if not file.name.endswith(("-lock", "-shm"))}
    return {name: data for name, data in found.items() if data or not name.endswith("-wal")}


class TestRefused:
    def test_a_text_file(self, path: Path) -> None:
        path.write_text("speed,rpm\n60,1800\n")
        before = contents(path.parent)
        with pytest.raises(QueueFormatError, match="not a queue file"):
            OfflineQueueManager(path)
        assert contents(path.parent) == before

    def test_a_file_of_noise(self, path: Path) -> None:
        path.write_bytes(random.Random(1).randbytes(8 * PAGE_BYTES))
        before = contents(path.parent)
        with pytest.raises(QueueFormatError, match="not a queue file"):
            OfflineQueueManager(path)
        assert contents(path.parent) == before

    def test_a_dump_of_a_queue(self, path: Path) -> None:
        path.write_text(SPECIFIED_SCHEMA)
        with pytest.raises(QueueFormatError, match="not a queue file"):
            OfflineQueueManager(path)
        assert path.read_text() == SPECIFIED_SCHEMA

    def test_another_programs_database(self, path: Path) -> None:
        with plain(path) as database:
            database.executescript("CREATE TABLE contacts (name TEXT); PRAGMA user_version = 7;")
        before = contents(path.parent)
        with pytest.raises(QueueFormatError, match="another program"):
            OfflineQueueManager(path)
        assert contents(path.parent) == before

    def test_a_table_of_the_same_name_with_other_columns(self, path: Path) -> None:
        with plain(path) as database:
            database.execute("CREATE TABLE mqtt_offline_queue (id INTEGER PRIMARY KEY, message TEXT)")
        before = contents(path.parent)
        with pytest.raises(QueueFormatError, match=r"lacks.*payload"):
            OfflineQueueManager(path)
        assert contents(path.parent) == before

    def test_a_newer_version(self, path: Path) -> None:
        fill(path, 3)
        with plain(path) as database:
            database.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
        before = contents(path.parent)
        with pytest.raises(QueueFormatError, match="newer version"):
            OfflineQueueManager(path)
        assert contents(path.parent) == before

    def test_a_newer_version_keeps_its_write_ahead_log(self, path: Path) -> None:
        writer = f"""
            import os, sqlite3
            database = sqlite3.connect({str(path)!r}, isolation_level=None)
            database.executescript("PRAGMA journal_mode = wal; PRAGMA user_version = {SCHEMA_VERSION + 1};")
            database.executescript({SPECIFIED_SCHEMA!r} + "CREATE TABLE glec_session (id INTEGER)")
            os._exit(0)
        """
        assert run_child(writer).returncode == 0
        before = contents(path.parent)
        assert before["queue.db-wal"]
        with pytest.raises(QueueFormatError, match="newer version"):
            OfflineQueueManager(path)
        assert contents(path.parent) == before

    def test_a_folder(self, path: Path) -> None:
        path.mkdir()
        with pytest.raises(QueueStorageError):
            OfflineQueueManager(path)

    def test_a_folder_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(QueueStorageError, match="nowhere"):
            OfflineQueueManager(tmp_path / "nowhere" / "queue.db")

    def test_a_loop_of_links(self, tmp_path: Path) -> None:
        (tmp_path / "one").symlink_to(tmp_path / "two")
        (tmp_path / "two").symlink_to(tmp_path / "one")
        with pytest.raises(QueueStorageError, match=r"(?i)symlink loop|symbolic links"):
            QueueFile(tmp_path / "one")
        with pytest.raises(QueueStorageError):
            QueueFile(tmp_path / "one" / "queue.db")

    def test_a_name_that_is_too_long(self, tmp_path: Path) -> None:
        for path in (tmp_path / ("x" * 300), tmp_path / ("x" * 300) / "queue.db"):
            with pytest.raises(QueueStorageError):
                QueueFile(path)

    def test_a_working_folder_that_was_deleted(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "gone").mkdir()
        monkeypatch.chdir(tmp_path / "gone")
        (tmp_path / "gone").rmdir()
        with pytest.raises(QueueStorageError, match="the working folder of this process was deleted"):
            QueueFile("queue.db")
        QueueFile(tmp_path / "queue.db").close()

    def test_a_path_that_is_no_text(self, tmp_path: Path) -> None:
        """As the environment and the command line give bytes that are not UTF-8."""
        for path in (tmp_path / "q\udcff.db", tmp_path / "folder\udcff" / "queue.db"):
            with pytest.raises(ConfigError, match=r"\\xff.* is not UTF-8") as raised:
                QueueFile(path)
            assert raised.value.field == "queue_path"
        (tmp_path / "folder\udcff").mkdir()
        (tmp_path / "link.db").symlink_to(tmp_path / "folder\udcff" / "queue.db")
        with pytest.raises(ConfigError, match="is not UTF-8"):
            QueueFile(tmp_path / "link.db")

    def test_an_unwritable_folder(self) -> None:
        # Not under tmp_path, which only its owner can enter: root, who may write everywhere, becomes another user.
        opener = """
            import os
            from glec_fast.errors import QueueStorageError
            from glec_fast.fleet.offline_queue import OfflineQueueManager
            if os.getuid() == 0:
                os.setgid(65534)
                os.setuid(65534)
            try:
                OfflineQueueManager("queue.db")
            except QueueStorageError as error:
                print(error.retryable, error)
        """
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            folder.chmod(0o555)
            child = run_child(opener, cwd=folder)
            found = list(folder.iterdir())
            folder.chmod(0o755)
        assert child.stdout.startswith("True the queue file")
        assert "cannot be written" in child.stdout
        assert found == []

    def test_refusal_leaves_no_descriptor_open(self, path: Path) -> None:
        path.mkdir()
        before = len(list(Path("/proc/self/fd").iterdir()))
        for _ in range(5):
            with pytest.raises(QueueStorageError):
                OfflineQueueManager(path)
        assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_file_and_companions_are_for_their_owner_only(path: Path) -> None:
    mask = os.umask(0)
    try:
        with OfflineQueueManager(path) as queue:
            queue.enqueue("t", "x", 1)
            modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    finally:
        os.umask(mask)
    assert modes == dict.fromkeys(("queue.db", "queue.db-lock", "queue.db-shm", "queue.db-wal"), 0o600)


class TestAdopted:
    def test_a_file_of_the_specified_schema(self, path: Path) -> None:
        with plain(path) as database:
            database.executescript(SPECIFIED_SCHEMA)
            database.executemany(INSERT, [("t", f"payload {n} x", 1, 1000 - n, FAR_MS) for n in range(3)])
            database.execute("UPDATE mqtt_offline_queue SET retry_count = NULL WHERE id = 2")
        with OfflineQueueManager(path) as queue:
            assert [(m.id, m.payload, m.timestamp_ms, m.retry_count) for m in queue.dequeue_all()] == [
                (3, "payload 2 x", 998, 0),
                (2, "payload 1 x", 999, 0),
                (1, "payload 0 x", 1000, 0),
            ]
            assert queue.increment_retry_count(2)
            assert queue.enqueue("t", "ours", 2) == 4
        with plain(path) as database:
            query = "SELECT id, payload, qos, retry_count FROM mqtt_offline_queue ORDER BY id"
            rows = database.execute(query).fetchall()
            assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert rows == [(1, "payload 0 x", 1, 0), (2, "payload 1 x", 1, 1), (3, "payload 2 x", 1, 0), (4, "ours", 2, 0)]

    def test_a_file_of_androids_room(self, path: Path) -> None:
        with plain(path) as database:
            database.executescript(
                "CREATE TABLE IF NOT EXISTS `mqtt_offline_queue` (`id` INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL,"
                " `topic` TEXT NOT NULL, `payload` TEXT NOT NULL, `qos` INTEGER NOT NULL, `timestamp` INTEGER NOT NULL,"
                " `ttl` INTEGER NOT NULL, `retry_count` INTEGER NOT NULL);"
                "CREATE INDEX IF NOT EXISTS `idx_timestamp` ON `mqtt_offline_queue` (`timestamp`);"
                "CREATE INDEX IF NOT EXISTS `idx_ttl` ON `mqtt_offline_queue` (`ttl`);"
                "CREATE TABLE android_metadata (locale TEXT); CREATE TABLE room_master_table (id INTEGER PRIMARY KEY,"
                " identity_hash TEXT); PRAGMA user_version = 3;"
            )
            database.execute(INSERT.replace("ttl)", "ttl, retry_count)").replace("?)", "?, 0)"), (*ROOM_ROW, FAR_MS))
        with closing(Store(path)) as store:
            assert store.salvage is None
            store.wait_durable(store.append("t", "payload 2 x", 2), 10)
        assert payload_numbers(path) == [1, 2]
        with plain(path) as database:
            assert database.execute("PRAGMA user_version").fetchone() == (3,)

    def test_an_empty_file(self, path: Path) -> None:
        path.touch()
        fill(path, 2)
        assert payload_numbers(path) == [0, 1]

    def test_a_table_without_indexes(self, path: Path) -> None:
        with plain(path) as database:
            database.execute(SPECIFIED_SCHEMA.split(";")[0])
            database.execute(INSERT, ("t", "payload 9 x", 1, -5, FAR_MS))
        assert payload_numbers(path) == [9]


def fill_as_before(path: Path, count: int) -> None:
    """By a version whose files had pages of 4 KiB."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("glec_fast.durable.database.PAGE_BYTES", FORMER_PAGE_BYTES)
        fill(path, count)
    assert page_bytes(path) == FORMER_PAGE_BYTES


def page_bytes(path: Path) -> int:
    with closing(apsw.Connection(str(path))) as database:
        size: int = database.pragma("page_size")
        return size


def test_a_file_keeps_its_pages_and_a_new_one_has_small_ones(path: Path, tmp_path: Path) -> None:
    fill_as_before(path, 10)
    with closing(Store(path)) as store:
        store.append_many([("t", "x" * 300, 1)] * 100)
        store.run(lambda table: table.delete(list(range(1, 111))))
        store._writer.tidy()
    assert page_bytes(path) == FORMER_PAGE_BYTES
    fill(tmp_path / "new.db", 1)
    assert page_bytes(tmp_path / "new.db") == PAGE_BYTES


@pytest.mark.parametrize("auto_vacuum", ["NONE", "FULL", "INCREMENTAL"])
@pytest.mark.parametrize("size", [512, 65536])
def test_any_pages_are_as_good(path: Path, size: int, auto_vacuum: str) -> None:
    """Also those of which hardly one fits into SQLite's memory, so that what is tried out and undone is in the log."""
    with plain(path) as database:
        database.executescript(f"PRAGMA page_size = {size}; PRAGMA auto_vacuum = {auto_vacuum}; {SPECIFIED_SCHEMA}")
        database.executemany(INSERT, [("t", "x" * 900, 1, 1, 2**52)] * 500)
    file = path.stat().st_ino
    with closing(Store(path)) as store:
        for number in range(3):
            assert store.wait_durable(store.append("t", str(number), 2), 20)
        assert store.size == 503
    assert (path.stat().st_ino, page_bytes(path)) == (file, size)


class TestDamaged:
    """Each damage: the file is kept under a new name, and what can be read goes on."""

    COUNT = 2000

    @pytest.fixture
    def filled(self, path: Path) -> Path:
        fill(path, self.COUNT)
        assert not path.with_name("queue.db-wal").exists()
        return path

    def damage(self, path: Path, offset: int, data: bytes) -> bytes:
        with path.open("r+b") as file:
            file.seek(offset)
            file.write(data)
        return path.read_bytes()

    def reopened(self, path: Path, damaged: bytes, caplog: pytest.LogCaptureFixture) -> tuple[list[int], int]:
        """(payload numbers that were carried over, rows that were counted as lost)."""
        with caplog.at_level(logging.ERROR, "glec_fast"), closing(Store(path, max_queue_size=10**6)) as store:
            assert store.salvage is not None
            kept_as, carried, lost = store.salvage
            assert store.size == carried
        assert kept_as == path.with_name("queue.db.damaged-1")
        assert kept_as.read_bytes() == damaged
        assert f"{carried} messages carried over, at least {lost} lost" in caplog.text
        assert {file.name for file in path.parent.iterdir()} <= {
            "queue.db",
            "queue.db-lock",
            "queue.db.damaged-1",
            "queue.db.damaged-1-wal",
            "queue.db.damaged-1-shm",
        }
        numbers = payload_numbers(path)
        assert len(numbers) == carried
        assert numbers == sorted(numbers)
        return numbers, lost

    @pytest.mark.parametrize("overwritten", [(0, 16), (0, 100), (16, FORMER_PAGE_BYTES), (0, FORMER_PAGE_BYTES)])
    def test_a_file_of_an_earlier_version_has_larger_pages(
        self, path: Path, caplog: pytest.LogCaptureFixture, overwritten: tuple[int, int]
    ) -> None:
        fill_as_before(path, self.COUNT)
        first, end = overwritten
        damaged = self.damage(path, first, b"\xa5" * (end - first))
        assert self.reopened(path, damaged, caplog) == (list(range(self.COUNT)), 0)
        assert page_bytes(path) == PAGE_BYTES

    @pytest.mark.parametrize("share", [0.05, 0.8, 3])
    @pytest.mark.parametrize("size", PAGE_SIZES)
    def test_the_size_of_pages_is_known_without_a_header(
        self, path: Path, caplog: pytest.LogCaptureFixture, size: int, share: float
    ) -> None:
        """By their leaves, whether one has many messages, has one, or has only where that begins."""
        count = 100
        with plain(path) as database:
            database.executescript(f"PRAGMA page_size = {size}; {SPECIFIED_SCHEMA}")
            text = "x" * round(size * share)
            database.executemany(INSERT, [("t", f"payload {n} {text}", 1, n, FAR_MS) for n in range(count)])
        assert max(PAGE_SIZES, key=lambda each: bytes_in_pages(path, each)) == size
        damaged = self.damage(path, 0, bytes(100))
        assert self.reopened(path, damaged, caplog) == (list(range(count)), 0)

    @pytest.mark.parametrize("zeroed_bytes", [16, 100, PAGE_BYTES])
    def test_header_zeroed(self, filled: Path, caplog: pytest.LogCaptureFixture, zeroed_bytes: int) -> None:
        damaged = self.damage(filled, 0, bytes(zeroed_bytes))
        assert self.reopened(filled, damaged, caplog) == (list(range(self.COUNT)), 0)

    def test_first_page_overwritten_behind_the_magic(self, filled: Path, caplog: pytest.LogCaptureFixture) -> None:
        damaged = self.damage(filled, 16, b"\xa5" * (PAGE_BYTES - 16))
        assert self.reopened(filled, damaged, caplog) == (list(range(self.COUNT)), 0)

    def test_first_page_overwritten_with_anything(self, filled: Path, caplog: pytest.LogCaptureFixture) -> None:
        damaged = self.damage(filled, 0, b"\xa5" * PAGE_BYTES)
        assert self.reopened(filled, damaged, caplog) == (list(range(self.COUNT)), 0)

    @pytest.mark.parametrize("page_sets", [(60,), (40, 80), (30, 31, 90, 140)])
    def test_pages_overwritten(
        self, filled: Path, caplog: pytest.LogCaptureFixture, page_sets: tuple[int, ...]
    ) -> None:
        for page in page_sets:
            damaged = self.damage(filled, page * PAGE_BYTES, b"\xa5" * PAGE_BYTES)
        numbers, lost = self.reopened(filled, damaged, caplog)
        # A page holds some 15 rows, or the index entries of many more.
        assert len(numbers) >= self.COUNT - 20 * len(page_sets)
        assert len(numbers) + lost == self.COUNT

    def test_every_page_in_turn(self, path: Path, caplog: pytest.LogCaptureFixture) -> None:
        fill(path, 60)
        whole = path.read_bytes()
        for page in range(len(whole) // PAGE_BYTES):
            for file in path.parent.iterdir():
                file.unlink()
            path.write_bytes(whole)
            self.damage(path, page * PAGE_BYTES, b"\xff" * PAGE_BYTES)
            with closing(Store(path)) as store:
                salvage = store.salvage
                # A free page, or one of the session's, costs no message.
                assert store.size == 60 or salvage is not None
                assert store.append("t", "payload 60 x", 1) > 60

    def test_an_index_alone(self, filled: Path, caplog: pytest.LogCaptureFixture) -> None:
        with plain(filled) as database:
            (root,) = database.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'idx_ttl'").fetchone()
        damaged = self.damage(filled, (root - 1) * PAGE_BYTES, b"\xa5" * PAGE_BYTES)
        assert self.reopened(filled, damaged, caplog) == (list(range(self.COUNT)), 0)

    def test_truncated(self, filled: Path, caplog: pytest.LogCaptureFixture) -> None:
        os.truncate(filled, filled.stat().st_size // 2 // PAGE_BYTES * PAGE_BYTES)
        numbers, lost = self.reopened(filled, filled.read_bytes(), caplog)
        assert numbers[:500] == list(range(500))
        assert lost > 0

    def test_ids_go_on_behind_what_was_lost(self, filled: Path) -> None:
        os.truncate(filled, filled.stat().st_size // 2 // PAGE_BYTES * PAGE_BYTES)
        with OfflineQueueManager(filled) as queue:
            assert queue.enqueue("t", "x", 1) > self.COUNT

    def test_ids_go_on_where_the_sequence_is_gone_too(self, filled: Path) -> None:
        with plain(filled) as database:
            (root,) = database.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'sqlite_sequence'").fetchone()
            (last,) = database.execute("SELECT seq FROM sqlite_sequence").fetchone()
            database.execute("DELETE FROM mqtt_offline_queue WHERE id > 100")
        self.damage(filled, (root - 1) * PAGE_BYTES, b"\xa5" * PAGE_BYTES)
        with OfflineQueueManager(filled) as queue:
            assert queue.enqueue("t", "x", 1) > last

    def test_the_session_is_carried_over(self, filled: Path) -> None:
        with plain(filled) as database:
            database.execute("INSERT INTO glec_session VALUES (1, 'client', 'host:1883', x'01')")
        self.damage(filled, 60 * PAGE_BYTES, b"\xa5" * PAGE_BYTES)
        with closing(Store(filled)) as store:
            assert store.run(load_session) == ("client", "host:1883", b"\x01")

    def test_all_that_is_made_of_it_is_for_its_owner_only(self, filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Also what is there for a moment: looked at before each removal, and at the end."""
        modes: dict[str, set[int]] = {}

        def look() -> None:
            for file in filled.parent.iterdir():
                modes.setdefault(file.name, set()).add(stat.S_IMODE(file.stat().st_mode))

        def watched_remove(removed: Path) -> None:
            look()
            remove(removed)

        remove = salvage.remove
        for place in ("salvage", "remains"):
            monkeypatch.setattr(f"glec_fast.durable.{place}.remove", watched_remove)
        self.damage(filled, 0, bytes(100))
        log = filled.with_name("queue.db-wal")
        log.touch(0o600)
        log.write_bytes(b"torn")
        mask = os.umask(0)
        try:
            with closing(Store(filled)) as store:
                assert store.salvage is not None
                store._file.failed(apsw.CorruptError("a page"))
                look()
        finally:
            os.umask(mask)
        made = {"queue.db", "queue.db-copy", "queue.db-copy-wal", "queue.db-salvage", "queue.db.damaged-1"}
        assert made <= set(modes)
        assert all(each == {0o600} for each in modes.values()), modes

    def test_a_second_damage_gets_a_second_name(self, filled: Path) -> None:
        for number in (1, 2):
            self.damage(filled, 20 * PAGE_BYTES, b"\xa5" * PAGE_BYTES)
            payload_numbers(filled)
            assert filled.with_name(f"queue.db.damaged-{number}").exists()

    def test_damage_met_in_use_is_mended_in_use(self, filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("glec_fast.durable.database._CHECKED_AT_OPEN_BYTES", 0)
        self.damage(filled, 300 * PAGE_BYTES, b"\xa5" * PAGE_BYTES)
        with closing(Store(filled)) as store:
            assert store.salvage is None
            while not store.supply.read(500)[1]:
                pass
            assert wait_for(lambda: store.salvage is not None)
            message_id = store.append("t", "later", 1)
            assert store.wait_durable(message_id, 20)
            kept_as, carried, lost = store.salvage
            assert carried + lost == self.COUNT
            assert store.size == carried + 1
            assert store.rows_lost == store.drops["damaged_file"] == lost
        assert kept_as.exists()
        with closing(Store(filled)) as store:
            assert store.salvage is None
            assert store.size == carried + 1

    def test_a_full_disk_meanwhile_leaves_the_damaged_file(
        self, filled: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        damaged = self.damage(filled, 60 * PAGE_BYTES, b"\xa5" * PAGE_BYTES)

        def refuse(_connection: apsw.Connection) -> None:
            raise apsw.FullError("database or disk is full")

        with monkeypatch.context() as patched:
            patched.setattr("glec_fast.durable.salvage.create_schema", refuse)
            with pytest.raises(QueueStorageError, match="no space left"):
                OfflineQueueManager(filled)
        assert filled.read_bytes() == damaged
        assert not filled.with_name("queue.db-new").exists()
        numbers, lost = self.reopened(filled, damaged, caplog)
        assert len(numbers) + lost == self.COUNT

    @pytest.mark.parametrize("killed_at", ["_set_companions_aside", "finish_carry_over"])
    def test_a_crash_while_carrying_over_loses_nothing(
        self, filled: Path, monkeypatch: pytest.MonkeyPatch, killed_at: str
    ) -> None:
        self.damage(filled, 60 * PAGE_BYTES, b"\xa5" * PAGE_BYTES)
        killer = f"""
            import os, signal
            from glec_fast.durable import file as queue_file, salvage
            wanted = salvage.{killed_at}
            def killed(path, *rest):
                if not path.exists():
                    os.kill(os.getpid(), signal.SIGKILL)
                return wanted(path, *rest)
            salvage.{killed_at} = killed
            queue_file.QueueFile({str(filled)!r})
        """
        child = run_child(killer)
        assert child.returncode == -signal.SIGKILL
        assert not filled.exists()
        numbers = payload_numbers(filled)
        assert self.COUNT - 20 <= len(numbers) <= self.COUNT
        assert not filled.with_name("queue.db-new").exists()


def test_the_log_of_a_killed_process_is_recovered(path: Path) -> None:
    writer = f"""
        import os, signal
        from glec_fast.fleet.offline_queue import OfflineQueueManager
        queue = OfflineQueueManager({str(path)!r})
        for n in range(20):
            queue.enqueue("t", f"payload {{n}} x", n % 3)
        queue.delete(1)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    child = run_child(writer)
    assert child.returncode == -signal.SIGKILL
    assert path.with_name("queue.db-wal").stat().st_size > 0
    assert payload_numbers(path) == list(range(1, 20))


def test_a_torn_end_of_the_log_costs_only_what_was_not_committed(path: Path) -> None:
    writer = f"""
        import os, signal
        from glec_fast.fleet.offline_queue import OfflineQueueManager
        queue = OfflineQueueManager({str(path)!r})
        for n in range(5):
            queue.enqueue("t", f"payload {{n}} x", 1)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    assert run_child(writer).returncode == -signal.SIGKILL
    log = path.with_name("queue.db-wal")
    with log.open("ab") as file:
        file.write(b"\xa5" * 1000)
    assert payload_numbers(path) == [0, 1, 2, 3, 4]


def test_closing_is_idempotent_and_lets_go(path: Path) -> None:
    file = QueueFile(path)
    file.close()
    file.close()
    again = QueueFile(path)
    assert again.salvage is None
    again.close()


def test_every_refusal_is_of_one_family() -> None:
    assert issubclass(QueueFormatError, GlecError)
    assert issubclass(QueueLockedError, GlecError)
    assert issubclass(QueueStorageError, (GlecError, OSError))
    assert not QueueFormatError("x").retryable


def test_the_name_of_a_new_file_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    sync = os.fsync

    def recorded(descriptor: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", recorded)
    QueueFile(tmp_path / "queue.db").close()
    assert synced == [str(tmp_path)]
    QueueFile(tmp_path / "queue.db").close()
    assert synced == [str(tmp_path)], "the name of a file that was there is on disk already"


def test_a_statement_is_compiled_once_however_often_rows_are_read(path: Path) -> None:
    fill(path, 10)
    compiled: list[str | None] = []

    def note(_action: int, *about: str | None) -> int:
        compiled.append(about[0])
        return apsw.SQLITE_OK

    with closing(QueueFile(path)) as file, closing(file.reader()) as connection:
        connection.authorizer = note
        table = QueueTable(connection)
        ids = [[row[0] for row in table.read_after(0, 0, limit)] for limit in (3, 2)]
        first_compiled = len(compiled)
        compiled.clear()
        ids += [[row[0] for row in table.read_after(0, 0, limit)] for limit in (1, 4)]
        assert first_compiled > 0
        assert compiled == []
        assert ids == [[1, 2, 3], [1, 2], [1], [1, 2, 3, 4]]
