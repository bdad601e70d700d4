"""`glec-fast queue`: what waits in a file, also while a program has it."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from glec_fast import OfflineQueueManager
from glec_fast.cli import queue_views
from glec_fast.cli.main import main
from glec_fast.fleet.batches import encode_batch
from glec_fast.protocol._session import Session
from support.queue_files import SPECIFIED_SCHEMA, plain

COUNT = 500


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A queue of 500 messages, and one that is not text."""
    path = tmp_path / "queue.db"
    with OfflineQueueManager(path) as queue:
        queue.enqueue_many([(f"t/{number % 3}", "x" * number, number % 3) for number in range(COUNT)])
        queue.enqueue("b/\u00e9", b"\xff\x00", 2)
    return path


def printed(capsys: pytest.CaptureFixture[str], *arguments: object, status: int = 0) -> str:
    assert main(["queue", *map(str, arguments)]) == status
    return capsys.readouterr().out


def test_stats(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(printed(capsys, "stats", path, "--json"))
    assert (found["messages"], [each["messages"] for each in found["by_qos"]]) == (COUNT + 1, [167, 167, 167])
    assert sum(each["payload_bytes"] for each in found["by_qos"]) == COUNT * (COUNT - 1) // 2 + 2
    assert found["disk_bytes"] >= path.stat().st_size
    lines = printed(capsys, "stats", path).splitlines()
    assert lines[0].startswith("501 messages wait; the file and its logs take ")
    assert len(lines) == 4


@pytest.mark.parametrize(
    ("payload", "count"), [(encode_batch([b"{}"] * 40), 40), (encode_batch([b"{}"]), 1), (b"?", 1)]
)
def test_stats_know_of_what_is_gathered(
    path: Path, capsys: pytest.CaptureFixture[str], payload: bytes, count: int
) -> None:
    assert "gathered" not in printed(capsys, "stats", path)
    with plain(path) as database:
        database.execute("INSERT INTO glec_gathered VALUES (1, 't', ?, x'')", (payload,))
    assert json.loads(printed(capsys, "stats", path, "--json"))["gathered"] == count
    assert f"\n{count} message{'s are' if count > 1 else ' is'} gathered for a batch" in printed(capsys, "stats", path)


def test_what_is_finished_waits_no_more(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, image = Session().take_image([(1, 200), (203, 203), (300, COUNT - 1)])
    with plain(path) as database:
        database.execute("INSERT INTO glec_session VALUES (1, 'truck', 'broker', ?)", (image,))
    waiting = [201, 202, *range(204, 300), COUNT, COUNT + 1]
    found = json.loads(printed(capsys, "list", path, "--limit", COUNT + 1, "--json"))
    assert [each["id"] for each in found] == waiting
    assert json.loads(printed(capsys, "stats", path, "--json"))["messages"] == len(waiting)
    assert len(printed(capsys, "export", path).splitlines()) == len(waiting)


def test_a_list_is_in_the_order_of_sending(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with plain(path) as database:
        database.execute("UPDATE mqtt_offline_queue SET timestamp = 1 WHERE id = 400")
    found = json.loads(printed(capsys, "list", path, "--limit", COUNT + 1, "--json"))
    assert [each["id"] for each in found] == [400, *range(1, 400), *range(401, COUNT + 2)]
    assert len(printed(capsys, "list", path).splitlines()) == 50
    assert printed(capsys, "list", path, "--limit", 1).split()[:4] == ["400", "1970-01-01T00:00:00Z", "QoS", "0"]


def test_filters(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for filters, count in ((["--qos", 1], 167), (["--topic", "t/+"], 500), (["--topic", "t/#", "--qos", 2], 166)):
        assert len(printed(capsys, "export", path, *filters).splitlines()) == count
    assert printed(capsys, "list", path, "--topic", "nobody") == "no such message waits\n"


def test_one_message(path: Path, capsysbinary: Any) -> None:
    assert main(["queue", "show", str(path), "501"]) == 0
    assert b"payload_hex    ff00\n" in capsysbinary.readouterr().out
    assert main(["queue", "show", str(path), "501", "--payload"]) == 0
    assert capsysbinary.readouterr().out == b"\xff\x00"
    assert main(["queue", "show", str(path), "900"]) == 1
    assert b"no message 900 waits" in capsysbinary.readouterr().err


def test_an_export_holds_every_payload(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [json.loads(line) for line in printed(capsys, "export", path).splitlines()]
    assert rows == [json.loads(line) for line in printed(capsys, "export", path, "--jsonl").splitlines()]
    assert [row["payload"] for row in rows[:-1]] == ["x" * number for number in range(COUNT)]
    assert (rows[-1]["topic"], rows[-1]["payload_hex"]) == ("b/\u00e9", "ff00")


def test_the_tail(path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert [line.split()[0] for line in printed(capsys, "tail", path, "--limit", 2).splitlines()] == ["500", "501"]
    with OfflineQueueManager(path) as queue:

        def come(_seconds: float) -> None:
            if queue.get_queue_size() > COUNT + 2:
                raise KeyboardInterrupt
            queue.enqueue("t", "new", 1)

        monkeypatch.setattr("glec_fast.cli.queue_views.time.sleep", come)
        shown = printed(capsys, "tail", path, "--limit", 2, "--follow", status=130)
    assert [line.split()[0] for line in shown.splitlines()] == ["500", "501", "502", "503"]


def test_reading_beside_a_program_holds_nothing_of_the_file(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Between two pages the log may start over, so that it does not grow for us."""
    with OfflineQueueManager(path) as queue:
        queue.enqueue("t", "x", 1)
        arguments = queue_arguments("export", path)
        rows = queue_views._matching(arguments)
        assert next(rows).id == 1
        with plain(path) as database:
            busy, *_ = database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        assert busy == 0
        assert sum(1 for _ in rows) == COUNT + 1
        assert "502 messages wait" in printed(capsys, "stats", path)


def queue_arguments(*arguments: object) -> Any:
    from glec_fast.cli.main import build_parser

    return build_parser().parse_args(["queue", *map(str, arguments)])


def test_purge(path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("n\n"))
    assert main(["queue", "purge", str(path), "--topic", "b/#"]) == 1
    assert "delete 1 message for good? [y/N] nothing was deleted" in capsys.readouterr().err
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    assert printed(capsys, "purge", path, "--topic", "b/#") == "1 message deleted\n"
    assert printed(capsys, "purge", path, "--qos", 0, "--yes") == "167 messages deleted\n"
    assert printed(capsys, "purge", path, "--qos", 0, "--yes") == "no such message waits\n"
    with OfflineQueueManager(path) as queue:
        assert queue.get_queue_size() == 333


def test_rows_of_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "other.db"
    with plain(path) as database:
        database.executescript(SPECIFIED_SCHEMA.replace(" NOT NULL", ""))
        insert = "INSERT INTO mqtt_offline_queue (topic, payload, qos, timestamp, ttl) VALUES (?, ?, ?, ?, ?)"
        odd = [(None, None, None, None, None), (b"\xff", 5, "x", "2026-01-01", "soon"), ("t", "x", 1, 5, 6)]
        database.executemany(insert, odd)
    assert len(printed(capsys, "list", path).splitlines()) == 3
    assert len(printed(capsys, "export", path).splitlines()) == 3
    assert printed(capsys, "stats", path).startswith("3 messages")


ODD_VALUES = (
    "NULL",
    "''",
    "'x'",
    "'a' || char(10, 27) || 'b'",
    "x''",
    "x'FF'",
    "CAST(x'FF41' AS TEXT)",
    "CAST(x'6100' AS TEXT)",
    f"x'{'39' * 400}'",
    "1e300",
    "-9e999",
    "9e999",
    "9223372036854775807",
    "-9223372036854775808",
)
ODD_COLUMNS = {
    "mqtt_offline_queue": ("topic", "payload", "qos", "timestamp", "ttl", "retry_count"),
    "glec_set_aside": ("time", "reason", "message_id", "topic", "payload", "qos", "retry_count"),
    "glec_in_doubt": ("time", "message_id", "topic", "decision"),
}


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


@pytest.mark.parametrize("value", ODD_VALUES)
def test_whatever_another_program_wrote_is_shown(path: Path, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each command shows every row, a line each, and its JSON is some."""
    with plain(path) as database:
        database.execute("DELETE FROM mqtt_offline_queue WHERE id > 3")
        database.execute("INSERT INTO glec_set_aside (time, reason, message_id, topic) VALUES (5, 'refused', 50, 't')")
        database.execute(
            "INSERT INTO glec_in_doubt (time, message_id, topic, decision) VALUES (5, 51, 't', 'sent_again')"
        )
        database.execute("PRAGMA writable_schema = 1")
        database.execute("UPDATE sqlite_schema SET sql = replace(sql, ' NOT NULL', '')")
    with plain(path) as database:
        for table, columns in ODD_COLUMNS.items():
            changes = ", ".join(f"{column} = {value}" for column in columns)
            database.execute(f"UPDATE {table} SET {changes} WHERE rowid = 1")

    def read(*arguments: object) -> Any:
        return json.loads(printed(capsys, *arguments), parse_constant=refuse)

    assert len(read("list", path, "--json")) == 3
    assert len(printed(capsys, "list", path).splitlines()) == 3
    assert len(printed(capsys, "tail", path).splitlines()) == 3
    exported = [json.loads(line, parse_constant=refuse) for line in printed(capsys, "export", path).splitlines()]
    assert {each["id"] for each in exported} == {1, 2, 3}
    assert printed(capsys, "show", path, 1).startswith("id             1\n")
    assert printed(capsys, "stats", path).startswith("3 messages wait")
    assert read("stats", path, "--json")["messages"] == 3
    assert len(printed(capsys, "quarantine", "list", path).splitlines()) == 1
    assert len(read("quarantine", "list", path, "--json")) == 1
    assert len(read("in-doubt", path, "--json")) <= 1


def test_every_row_of_many_is_listed_once_whatever_its_time_is(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Over pages, whose places are times of every type."""
    with plain(path) as database:
        for rest, value in enumerate(("id", "-9e999", "CAST(x'FF' || id AS TEXT)", "CAST(id || 'x' AS BLOB)")):
            database.execute(f"UPDATE mqtt_offline_queue SET timestamp = {value} WHERE id % 4 = {rest}")
    ids = [json.loads(line)["id"] for line in printed(capsys, "export", path).splitlines()]
    assert sorted(ids) == list(range(1, COUNT + 2))


def test_ids_that_no_message_has(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with plain(path) as database:
        database.execute("UPDATE mqtt_offline_queue SET id = -7 WHERE id = 7")
    assert printed(capsys, "show", path, -7).startswith("id             -7\n")
    printed(capsys, "show", path, 2**63 - 1, status=1)
    for number in (2**63, 10**30, "x", ""):
        with pytest.raises(SystemExit, match="2"):
            main(["queue", "show", str(path), str(number)])
        assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["stats", "/nowhere"], "/nowhere is no file"),
        (["list", "{text}"], "{text} is not a queue file"),
        (["purge", "{queue}"], "say which messages"),
        (["in-doubt", "/nowhere"], "/nowhere is no file"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(
    path: Path, tmp_path: Path, arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text"
    text.write_text("text\n" * 100)
    assert main(["queue", *(each.format(text=text, queue=path) for each in arguments)]) == 2
    said = capsys.readouterr()
    assert says.format(text=text) in said.err
    assert (said.out, said.err.count("\n")) == ("", 1)


@pytest.mark.parametrize("overwritten", [(0, 16), (0, 100), (16, 18)])
def test_a_file_that_has_lost_its_header_is_a_damaged_one(
    path: Path, overwritten: tuple[int, int], capsys: pytest.CaptureFixture[str]
) -> None:
    first, end = overwritten
    with path.open("r+b") as file:
        file.seek(first)
        file.write(bytes(end - first))
    assert main(["queue", "stats", str(path)]) == 2
    assert f"the queue file {path} is damaged" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["stats", "list", "export", "tail", "in-doubt", "quarantine list", "purge --qos 1"])
def test_a_path_that_cannot_be_looked_at(tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path in (tmp_path / "loop", tmp_path / "loop" / "q.db", tmp_path / ("x" * 300), tmp_path / "q\udcff.db"):
        subject, *options = command.split()
        action = [options.pop(0)] if subject == "quarantine" else []
        assert main(["queue", subject, *action, str(path), *options]) == 2
        said = capsys.readouterr()
        assert (said.out, said.err.count("\n")) == ("", 1)


def test_a_file_in_use_is_not_purged(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with OfflineQueueManager(path):
        assert main(["queue", "purge", str(path), "--qos", "0", "--yes"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    with OfflineQueueManager(path) as queue:
        assert queue.get_queue_size() == COUNT + 1
