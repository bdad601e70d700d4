"""Queue files as damage, mix-ups and other programs leave them, each by a seed; and what must hold for every one."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import apsw

from glec_fast.durable import command_log, state_rows
from glec_fast.durable._table import QueueTable
from glec_fast.durable.command_log import Key, Origin
from glec_fast.durable.database import SCHEMA
from glec_fast.durable.extras import Extras
from glec_fast.durable.received_ids import add_received, delete_received, received_ids
from glec_fast.durable.store import Store
from glec_fast.errors import GlecError, MessageError, QueueFormatError
from glec_fast.mqtt.inbound_message import kept_message
from support.queue_files import SPECIFIED_SCHEMA
from support.scripted_broker import ScriptedBroker
from support.scripted_gateway import ScriptedGateway

NAME = "queue.db"
PAGE_BYTES = 1024
ROWS = 60
# The damage that is met in use is carried over by the next opening; its own may be met in use once more.
OPENINGS_MAX = 4


def _columns() -> dict[str, list[str]]:
    with closing(apsw.Connection(":memory:")) as made:
        made.execute(SCHEMA)
        tables = [name for (name,) in made.execute("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name")]
        return {name: [row[1] for row in made.execute(f"PRAGMA table_info({name})")] for name in tables}


COLUMNS = _columns()
ODD = (
    "NULL", "0", "-1", "-5", "1", "2", "3", "7", "1.5", "1e300", "-1e300", "1e999", "9223372036854775807",
    "9223372036854775806", "-9223372036854775808", "4611686018427387904", "''", "'x'", "'soon'",
    "'2026-11-27T00:00:00'",
    "'12'", "x''", "x'FF'", "x'00'", "zeroblob(100)", "zeroblob(100000)", "CAST(x'FF' AS TEXT)", "CAST(x'00' AS TEXT)",
    "'a/+'", "'#'", "char(55357)", "'sent_again'",
)  # fmt: skip
OBJECTS = (
    "CREATE TRIGGER glec_t BEFORE INSERT ON mqtt_offline_queue BEGIN SELECT RAISE(ABORT, 'no'); END",
    "CREATE TRIGGER glec_t AFTER INSERT ON mqtt_offline_queue BEGIN DELETE FROM mqtt_offline_queue; END",
    "CREATE TRIGGER glec_t BEFORE DELETE ON mqtt_offline_queue BEGIN SELECT RAISE(IGNORE); END",
    "CREATE TRIGGER glec_t BEFORE INSERT ON mqtt_offline_queue WHEN NEW.qos = 2 BEGIN SELECT RAISE(IGNORE); END",
    "CREATE TRIGGER glec_t BEFORE DELETE ON mqtt_offline_queue WHEN OLD.qos = 2 BEGIN SELECT RAISE(IGNORE); END",
    "CREATE TRIGGER glec_t AFTER UPDATE ON glec_session BEGIN SELECT nothing(); END",
    "CREATE UNIQUE INDEX glec_i ON mqtt_offline_queue(topic, qos) WHERE qos = 2 AND topic = ''",
    "CREATE INDEX glec_i ON mqtt_offline_queue(json(payload)) WHERE json_valid(payload)",
    "CREATE VIEW glec_more AS SELECT nothing FROM nowhere",
    "CREATE TABLE more (id INTEGER PRIMARY KEY) WITHOUT ROWID",
    "DROP INDEX idx_timestamp",
    "DROP INDEX idx_timestamp; CREATE TABLE idx_timestamp (id)",
    "DROP INDEX idx_ttl; CREATE INDEX idx_ttl ON mqtt_offline_queue(topic) WHERE qos = 1",
    "CREATE UNIQUE INDEX one_topic ON mqtt_offline_queue(id, topic)",
    "ALTER TABLE mqtt_offline_queue ADD COLUMN more TEXT",
    "ALTER TABLE mqtt_offline_queue ADD COLUMN more TEXT NOT NULL DEFAULT 'x'",
    "ALTER TABLE mqtt_offline_queue ADD COLUMN twice INTEGER AS (qos * 2)",
    "DELETE FROM sqlite_sequence",
    "INSERT INTO sqlite_sequence VALUES ('mqtt_offline_queue', 3)",
    *(f"DROP TABLE {table}" for table in COLUMNS if table.startswith("glec_")),
    *(f"DROP TABLE {table}; CREATE VIEW {table} AS SELECT 1" for table in COLUMNS if table.startswith("glec_")),
    *(f"DROP TABLE {table}; CREATE TABLE {table} (id TEXT)" for table in COLUMNS if table.startswith("glec_")),
    (
        "DROP TABLE glec_clock; CREATE TABLE glec_clock (id INTEGER PRIMARY KEY, boot_id, queue_offset AS (1) STORED,"
        " wall_offset, queue_time, first_id) WITHOUT ROWID"
    ),
)
# The queue's table as others declare it: what is to be replaced in the specification's statement.
DECLARED = (
    ("id INTEGER PRIMARY KEY AUTOINCREMENT", "id TEXT PRIMARY KEY"),
    ("id INTEGER PRIMARY KEY AUTOINCREMENT", "id INTEGER PRIMARY KEY"),
    ("id INTEGER PRIMARY KEY AUTOINCREMENT", "id INTEGER"),
    ("timestamp BIGINT NOT NULL", "timestamp TEXT"),
    ("timestamp BIGINT NOT NULL", "timestamp REAL"),
    ("timestamp BIGINT NOT NULL", "timestamp"),
    ("timestamp BIGINT NOT NULL", "timestamp DATETIME DEFAULT CURRENT_TIMESTAMP"),
    ("ttl BIGINT NOT NULL", "ttl TEXT"),
    ("qos INTEGER NOT NULL", "qos TEXT CHECK (qos < 1)"),
    ("payload TEXT NOT NULL", "payload BLOB"),
    ("topic TEXT NOT NULL", "topic TEXT COLLATE NOCASE UNIQUE"),
    ("retry_count INTEGER DEFAULT 0", "retry_count INTEGER NOT NULL"),
    ("retry_count INTEGER DEFAULT 0", "retry_count INTEGER DEFAULT 0, more TEXT NOT NULL"),
    ("retry_count INTEGER DEFAULT 0", "retry_count INTEGER AS (qos)"),
)

# Of a session that came in, and of one that was left.
IDENTITY = ("other", "else:1883")

Files = dict[str, bytes]


def specimens(folder: Path) -> list[Files]:
    """The files of one gateway over time, as a process that is killed leaves them, and as one leaves them that ends."""
    folder.mkdir()
    path = folder / NAME
    taken: list[Files] = []

    def take() -> None:
        found = {file.name: file.read_bytes() for file in folder.iterdir() if file.name != NAME + "-lock"}
        taken.append({name: data for name, data in found.items() if data})

    broker = ScriptedBroker()
    for life in range(3):
        with ScriptedGateway(path, window=8) as gateway:
            for number in range(ROWS // 3):
                gateway.publish(f"payload {life} {number} " + "x" * 20 * number, number % 3, retain=number == 5)
            gateway.store.append("t", "x", 1, extras=Extras(True, 10**6, b"\x03\x00\x01x"))
            gateway.store.run(fill)
            gateway.commit()
            if life == 1:
                broker.lose_session()
            gateway.connect(session_present=life != 1)
            gateway.commit()
            broker.feed(gateway.send())
            gateway.receive(broker.handle(5))
            gateway.commit()
            take()
            gateway.cut()
            broker.cut(arrives=True)
            gateway.commit()
        take()
    return taken


def fill(table: QueueTable) -> None:
    """Rows of the tables that a gateway alone writes nothing to."""
    add_received(table, IDENTITY, {7: 5, 8: None})
    key = Key("doors", b"begun", b"digest")
    if command_log.find(table, key) is None:
        command_log.begin(table, key, Origin(5, 1, "c", b"{}", b"\x00"))
        command_log.end(table, key._replace(id=b"ended"), Origin(6, 2, "c", b"{}", None), b"reply", 10)
    state_rows.keep_session(table, *IDENTITY, bytes(40))
    state_rows.save_gathered(table, ("batch", b"[1]", b""))
    table.connection.execute(
        "INSERT INTO glec_set_aside (time, reason, message_id, topic, payload, qos, timestamp, ttl, retry_count)"
        " VALUES (5, 'refused', 1, 't', 'x', 1, 5, 6, 3)"
    )


def look_beside(store: Store) -> None:
    """Use the tables beside the queue's, as those do who have them."""
    store.kept_sessions()
    store.run(_use_beside)
    for entry in store.quarantined()[:3]:
        with suppress(MessageError):
            store.retry_quarantined(entry.number)
    store.delete_quarantined([1, 2])


def _use_beside(table: QueueTable) -> None:
    if state_rows.has_gathered(table):
        with suppress(MessageError):
            state_rows.load_gathered(table)
    assert {type(mark) for mark in received_ids(table, IDENTITY, ("member",)).values()} <= {int, type(None)}
    add_received(table, IDENTITY, {9: 1})
    delete_received(table, IDENTITY, [7, 9])
    begun, unknown = command_log.begun(table)
    for each in begun:
        origin = each.origin
        assert kept_message(origin.topic, origin.payload, origin.properties).topic == origin.topic
        assert isinstance(each.id, bytes)
    command_log.forget(table, unknown)
    assert not command_log.begun(table)[1]
    for identifier in (b"begun", b"ended", b"another"):
        key = Key("doors", identifier, b"digest")
        found = command_log.find(table, key)
        if found is None:
            command_log.begin(table, key, Origin(5, 1, "c", b"{}", None))
        else:
            assert found.reply is None or isinstance(found.reply, bytes)
        command_log.end(table, key, Origin(5, 1, "c", b"{}", None), b"reply", 10)
        ended = command_log.find(table, key)
        assert ended is not None
        assert ended.reply == b"reply"


def database(path: Path, statements: str) -> None:
    """Change the file as another program, also as no other program could."""
    with suppress(apsw.Error), closing(apsw.Connection(str(path))) as connection:
        connection.execute(statements)


def odd_value(dice: random.Random, path: Path) -> str:
    """One value of one column, as only a table without constraints takes it; the constraints are back afterwards."""
    table = dice.choice([*COLUMNS, "mqtt_offline_queue", "mqtt_offline_queue"])
    column, value = dice.choice(COLUMNS[table]), dice.choice(ODD)
    where = "" if dice.random() < 0.2 else f" WHERE rowid IN (SELECT rowid FROM {table} ORDER BY random() LIMIT 1)"
    database(
        path,
        "PRAGMA writable_schema = 1; CREATE TEMP TABLE was AS SELECT name, sql FROM sqlite_schema;"
        "UPDATE sqlite_schema SET sql = replace(replace(sql, ' NOT NULL', ''), 'CHECK (id = 1)', '')"
        f" WHERE name = '{table}'"
        "; PRAGMA writable_schema = reset",
    )
    database(path, f"UPDATE {table} SET {column} = {value}{where}")
    if dice.random() < 0.7:
        body = re.search(rf"CREATE TABLE IF NOT EXISTS {table} (\(.*?\));", SCHEMA, re.DOTALL)
        if body is not None:
            sql = f"CREATE TABLE {table} {body[1]}".replace("'", "''")
            database(
                path,
                f"PRAGMA writable_schema = 1; UPDATE sqlite_schema SET sql = '{sql}' WHERE name = '{table}'"
                "; PRAGMA writable_schema = reset",
            )
    return f"{table}.{column} = {value}{where and ' once'}"


def declared(dice: random.Random, path: Path) -> str:
    """The queue's table with another declaration, and its rows in it."""
    old, new = dice.choice(DECLARED)
    statements = [each for each in SPECIFIED_SCHEMA.split(";") if each.strip()]
    statements[0] = statements[0].replace(old, new)
    database(
        path,
        "CREATE TABLE kept AS SELECT * FROM mqtt_offline_queue; DROP TABLE mqtt_offline_queue;" + ";".join(statements),
    )
    for extra in (", NULL", ", 'x'", ""):
        database(path, f"INSERT OR IGNORE INTO mqtt_offline_queue SELECT *{extra} FROM kept")
    database(
        path,
        "INSERT OR IGNORE INTO mqtt_offline_queue (id, topic, payload, qos, timestamp, ttl)"
        " SELECT id, topic, payload, qos, timestamp, ttl FROM kept",
    )
    database(path, "DROP TABLE kept" if dice.random() < 0.9 else "")
    if dice.random() < 0.3:
        for table in COLUMNS:
            if table.startswith("glec_"):
                database(path, f"DROP TABLE {table}")
    return f"declared {new}"


def objects(dice: random.Random, path: Path) -> str:
    statement = dice.choice(OBJECTS)
    database(path, statement)
    return statement


def image(dice: random.Random, path: Path) -> str:
    """The in-flight image in its row."""
    with suppress(apsw.Error), closing(apsw.Connection(str(path))) as connection:
        found = connection.execute("SELECT in_flight FROM glec_session").get
        if isinstance(found, bytes):
            stored = bytearray(found)
            damage_bytes(dice, stored)
            connection.execute("UPDATE glec_session SET in_flight = ?", (bytes(stored),))
    return "image"


def damage_bytes(dice: random.Random, data: bytearray) -> None:
    if not data:
        return
    at = dice.randrange(len(data))
    kind = dice.randrange(5)
    if kind <= 1:
        data[at] ^= 1 << dice.randrange(8)
    elif kind == 2:
        del data[at:]
    else:
        size = dice.choice((1, 2, 8, 100, PAGE_BYTES))
        data[at : at + size] = (bytes if kind == 3 else dice.randbytes)(min(size, len(data) - at))


def bytes_of_a_file(dice: random.Random, path: Path) -> str:
    found = [file for file in path.parent.iterdir() if not file.name.endswith(("-lock", "-shm"))]
    file = dice.choice([*found, *[path] * 4]) if found else path
    data = bytearray(file.read_bytes())
    for _ in range(dice.choice((1, 1, 1, 3, 20))):
        damage_bytes(dice, data)
    file.write_bytes(data)
    return f"bytes of {file.name}"


def header(dice: random.Random, path: Path) -> str:
    data = bytearray(path.read_bytes())
    at = dice.randrange(100)
    if at < len(data):
        data[at] = dice.choice((0, 255, data[at] ^ 1 << dice.randrange(8)))
    path.write_bytes(data)
    return f"header byte {at}"


def page(dice: random.Random, path: Path) -> str:
    """One page, or the end from there on."""
    data = bytearray(path.read_bytes())
    at = dice.randrange(max(len(data) // PAGE_BYTES, 1)) * PAGE_BYTES
    kind = dice.randrange(4)
    if kind == 0:
        del data[at:]
    elif kind == 3:
        other = dice.randrange(max(len(data) // PAGE_BYTES, 1)) * PAGE_BYTES
        data[at : at + PAGE_BYTES] = data[other : other + PAGE_BYTES]
    else:
        data[at : at + PAGE_BYTES] = (b"\x00" if kind == 1 else b"\xff") * min(PAGE_BYTES, len(data) - at)
    path.write_bytes(data)
    return f"page {at // PAGE_BYTES} kind {kind}"


def companion(dice: random.Random, path: Path) -> str:
    suffix = dice.choice(("-wal", "-shm", "-journal", "-qos2", "-lock", "-salvage", "-new", "-new-wal", "-copy"))
    file = path.with_name(NAME + suffix)
    kind = dice.randrange(5)
    file.unlink(missing_ok=True)
    if kind == 1:
        file.write_bytes(dice.randbytes(dice.choice((0, 5, 100, 40_000))))
    elif kind == 2:
        file.mkdir()
    elif kind == 3:
        file.symlink_to("nowhere")
    elif kind == 4:
        file.write_bytes(path.read_bytes())
    return f"{suffix} kind {kind}"


def make(dice: random.Random, taken: list[Files], folder: Path) -> str:
    """Lay a damaged queue into an empty folder; returns what was done to it."""
    path = folder / NAME
    now = dice.randrange(len(taken))
    files = dict(taken[now])
    done = [f"specimen {now}"]
    if dice.random() < 0.3:
        # Of another time, or gone.
        name = dice.choice((NAME, NAME + "-wal", NAME + "-qos2"))
        other = dice.randrange(len(taken) + 1)
        files.pop(name, None)
        if other < len(taken) and name in taken[other]:
            files[name] = taken[other][name]
        done.append(f"{name} of {other}")
    for name, data in files.items():
        (folder / name).write_bytes(data)
    if not path.exists():
        path.touch()
    damages: tuple[Callable[[random.Random, Path], str], ...] = (
        *[odd_value] * 3, *[bytes_of_a_file] * 2, image, header, page, companion, objects, declared,
    )  # fmt: skip
    for _ in range(dice.choice((1, 1, 1, 2, 4))):
        with suppress(OSError):
            done.append(dice.choice(damages)(dice, path))
    return "; ".join(done)


def use(path: Path, counts: Counter[str]) -> bool:
    """Open the queue, publish, read all there is and close; False where damage was met meanwhile.

    Raises an error of the family where it does not open, and AssertionError where it opens and is of no use.
    """
    with ScriptedGateway(path, window=8, max_queue_size=10**6) as gateway:
        store = gateway.store
        salvage = store.salvage
        if salvage is not None:
            counts["set aside"] += 1
            counts["rows carried over"] += salvage.rows_carried
            counts["rows lost"] += salvage.rows_lost
        look_beside(store)
        store.supply.rewind(gateway.session.parked_ids(), gateway.outbox._finished.ids)
        published = [gateway.publish("new", qos).message_id for qos in (1, 2)]
        read: list[int] = []
        is_last = False
        while not is_last:
            rows, is_last = store.supply.read(7)
            read += [row[0] for row in rows]
            assert len(read) < 10 * ROWS, "the reading does not end"
        store.run(lambda _table: None)
        store.in_doubt()
        on_disk = store.run(lambda table: table.count())
        if store._reader.has_failed:
            return False
        assert set(published) <= set(read), (published, read)
        assert len(read) == len(set(read)) == on_disk, (sorted(read), on_disk)
        counts["rows read"] += len(read)
        counts["rows unsendable"] += store.drops.get("unsendable", 0)
    return True


def check(path: Path, counts: Counter[str]) -> None:
    """What must hold for any file: it opens or is set aside, and is then of use. Else AssertionError."""
    for _ in range(OPENINGS_MAX):
        try:
            if use(path, counts):
                break
            counts["met in use"] += 1
        except QueueFormatError as error:
            # A number that only a later version writes, or what nothing of ours is left in.
            counts[f"refused: {str(error).partition(': ')[0].partition(NAME)[2].strip()}"] += 1
            return
        except GlecError as error:
            counts[f"failed: {type(error).__name__}: {str(error).partition(' (')[2]}"] += 1
    else:
        raise AssertionError("it is never of use")
    assert use(path, counts)
    counts["opened"] += 1
