"""Wrong arguments to each command: one line that names what is wrong as it was typed, and an exit status."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from glec_fast import OfflineQueueManager
from glec_fast.cli.main import main

HERE = "tcp://127.0.0.1:1"


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a queue and a text, and nothing of the service's environment."""
    for name in [*os.environ]:
        if name.startswith(("GLEC_", "CREDENTIALS_DIRECTORY")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").write_text("no queue\n")
    with OfflineQueueManager(tmp_path / "q.db") as queue:
        queue.enqueue("t", "x", 1)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("", "arguments are required: SUBCOMMAND; see glec-fast --help"),
        ("nonsense", "invalid choice: 'nonsense'"),
        # Of the subcommand, whose help has what there is.
        ("metrics more", "glec-fast metrics: unrecognized arguments: more; see glec-fast metrics --help"),
        ("queue list q.db --limt 3", "glec-fast queue list: unrecognized arguments: --limt 3;"),
        ("doctor --broker tcp://h", "glec-fast doctor: unrecognized arguments: --broker;"),
        ("top --period x", "'x' is no number of seconds above 0"),
        ("top --period 0.01", "--period must be a number of seconds from 0.1 to 3600"),
        ("metrics --socket text", "no service answers at text"),
        ("queue", "arguments are required: SUBJECT"),
        ("queue stats text", "text is not a queue file"),
        ("queue stats nothing", "nothing is no file"),
        ("queue stats .", "is a folder: name the queue file in it"),
        ("queue show q.db x", "argument ID: 'x' is no id of a message, which is a whole number"),
        ("queue list q.db --limit 0", "'0' is no whole number above 0"),
        ("queue list q.db --qos 3", "invalid choice: 3"),
        ("queue list q.db --topic a/#/b", "has a wildcard out of its place"),
        ("queue purge q.db", "say which messages: --topic FILTER, --qos N"),
        ("queue quarantine retry q.db", "one of the arguments NUMBER --all is required"),
        ("queue quarantine delete q.db x", "argument NUMBER: 'x' is no whole number above 0"),
        (
            "pub -t t -m x",
            "no broker is named: give --broker URL or --config FILE, or set GLEC_BROKER_URL and GLEC_CLIENT_ID",
        ),
        ("pub -t t -m x --device-id D", "--device-id belongs to --config or --broker URL"),
        ("pub -t t -m x --ca-cert c", "--ca-cert belongs to --broker"),
        ("pub -t t -m x --broker nonsense", "--broker: broker_url must begin with one of tcp://"),
        (
            f"pub -t t -m x --broker {HERE} --ca-cert text",
            "--ca-cert: tls_config is set but broker_url is not encrypted",
        ),
        (f"pub -t t -m x --broker {HERE} --client-id a/b", "--client-id: client_id has /"),
        (f"pub -t t -m x --broker {HERE} --config c", "--broker and --config name two brokers"),
        (f"pub -t t -m x --broker {HERE} --store text", "text is not a queue file"),
        (
            f"pub -t t -m x --broker {HERE}",
            "no connection to tcp://127.0.0.1:1: Connection refused; ask `glec-fast doctor`",
        ),
        ("pub -t t/# -m x", "+ and # are for subscriptions only"),
        ("pub -t t", "one of the arguments -m/--message"),
        ("sub -t t -C 0", "'0' is no whole number above 0"),
        ("bench", "no broker is named"),
        ("pin http://h", "http:// shows no key: give HOST:PORT"),
        ("pin h:99999", "that is no HOST:PORT: give one such as host:8883"),
        ("pin some/file", "that is no HOST:PORT"),
        ("plan --queue text", "text is not a queue file"),
        ("demo --kills x", "x is not a whole number"),
        ("settings more", "glec-fast settings: unrecognized arguments: more"),
        ("service", "GLEC_BROKER_URL and GLEC_CLIENT_ID not set: the service's environment file"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(words: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status: object = main(words.split())
    except SystemExit as end:
        status = end.code
    captured = capsys.readouterr()
    assert (status, captured.out) == (2, "")
    assert captured.err.startswith("glec-fast")
    assert captured.err.count("\n") == 1
    assert says in captured.err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("doctor --device-id D", "--device-id belongs to --config or URL"),
        ("doctor --ca-cert c", "--ca-cert belongs to URL"),
        ("doctor", "no broker is named: give URL or --config FILE"),
        ("doctor nonsense", "URL: broker_url must begin with one of"),
        (f"doctor {HERE} --ca-cert text", "--ca-cert: tls_config is set but broker_url is not encrypted"),
    ],
)
def test_the_doctor_finds_them_wrong(words: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words.split()) == 1
    assert says in capsys.readouterr().out


def test_of_those_that_were_asked_for_there_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["queue", "list", "q.db", "--qos", "2"]) == 0
    assert capsys.readouterr().out == "no such message waits\n"
    assert main(["queue", "quarantine", "list", "q.db"]) == 0
    assert capsys.readouterr().out == "nothing is in quarantine\n"
    assert main(["queue", "quarantine", "delete", "q.db", "7"]) == 1
    assert capsys.readouterr().err == "7: nothing in quarantine has this number\n"
