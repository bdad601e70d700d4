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
    assert "delete 1 messages for good? [y/N] nothing was deleted" in capsys.readouterr().err
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    assert printed(capsys, "purge", path, "--topic", "b/#") == "1 messages deleted\n"
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


def test_a_file_in_use_is_not_purged(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with OfflineQueueManager(path):
        assert main(["queue", "purge", str(path), "--qos", "0", "--yes"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    with OfflineQueueManager(path) as queue:
        assert queue.get_queue_size() == COUNT + 1
