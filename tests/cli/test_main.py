"""What every command has in common, and what is said of a file or an address that is another thing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from glec_fast import MQTTConfig, MQTTManager, OfflineQueueManager, QueueStorageError, __version__
from glec_fast.cli.doctor.pin import address_of
from glec_fast.cli.main import main
from support.queue_files import child_environment


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--version"])
    assert (left.value.code, capsys.readouterr().out) == (0, f"glec-fast {__version__}\n")


def test_a_reader_that_has_enough_is_no_error() -> None:
    command = f"{sys.executable} -m glec_fast settings | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=child_environment())
    assert done.stderr == ""
    assert done.stdout.splitlines()[0] == "broker_url"
    assert done.stdout.splitlines()[1] in ("0", "141")


def test_what_a_terminal_has_no_signs_for_is_escaped(tmp_path: Path) -> None:
    path = tmp_path / "q.db"
    with OfflineQueueManager(path) as queue:
        queue.enqueue("\ucc28\ub7c9", "\u4e00\U0001f600", 1)
    environment = child_environment() | {"PYTHONIOENCODING": "ascii"}

    def said(*words: str) -> bytes:
        command = [sys.executable, "-m", "glec_fast", "queue", *words]
        return subprocess.run(command, capture_output=True, check=True, env=environment).stdout

    assert said("list", str(path)).endswith(b" B \\ucc28\\ub7c9\n")
    # JSON is UTF-8.
    assert json.loads(said("export", str(path)))["payload"] == "\u4e00\U0001f600"


def test_streams_that_are_closed(tmp_path: Path) -> None:
    path = tmp_path / "q.db"
    with OfflineQueueManager(path) as queue:
        queue.enqueue("t", "x", 1)
    command = f"{sys.executable} -m glec_fast queue purge {path} --qos 1 <&- >&-"
    done = subprocess.run(["sh", "-c", command], stderr=subprocess.PIPE, text=True, env=child_environment())
    assert (done.returncode, done.stderr) == (1, "delete 1 message for good? [y/N] nothing was deleted\n")


def test_an_output_that_cannot_be_written_is_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "glec_fast", "settings"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=child_environment())
    says = "glec-fast: the output cannot be written (No space left on device): make room for it\n"
    assert (done.returncode, done.stderr) == (2, says)


@pytest.mark.parametrize("text", ["host:8883", "ssl://host:8883", "mqtts://host:8883", "wss://host:8883/mqtt"])
def test_pin_takes_a_url_as_well(text: str) -> None:
    assert address_of(text) == ("host", 8883)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["pin", "tcp://host:1883"], "tcp:// shows no key: give HOST:PORT of a TLS listener"),
        (["demo", "--ca-cert", "x"], "--ca-cert belongs to --broker URL"),
        (["demo", "--username", "x"], "--username belongs to --broker URL"),
        (["queue", "stats", "/"], "/ is a folder: name the queue file in it"),
        (["in-doubt", "/nowhere/q.db"], "/nowhere/q.db is no file"),
        (["in-doubt", "{text}"], "{text} is not a queue file"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(
    arguments: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "text"
    path.write_text("a text file\n" * 100)
    assert main([each.format(text=path) for each in arguments]) == 2
    said = capsys.readouterr()
    assert says.format(text=path) in said.err
    assert (said.out, said.err.count("\n")) == ("", 1)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["weather"], "invalid choice: 'weather'"),
        (["queue", "stats"], "the following arguments are required: PATH"),
        (["pub", "-t", "a/#", "-m", "x"], "argument -t/--topic: topic 'a/#' has a wildcard"),
        (
            ["pub", "-t", "a", "-m", "x", "--timeout", "nan"],
            "argument --timeout: 'nan' is no number of seconds above 0",
        ),
        (["sub", "-t", ""], "argument -t/--topic: topic filter is empty; give a str"),
        (["sub", "-t", "#/a"], "argument -t/--topic: topic filter '#/a' has a wildcard out of its place"),
        (["sub", "-t", "a", "-C", "0"], "argument -C/--count: '0' is no whole number above 0"),
        (["sub", "-t", "a", "-W", "-1"], "argument -W/--wait: '-1' is no number of seconds above 0"),
        (["queue", "list", "q.db", "--limit", "x"], "argument --limit: 'x' is no whole number above 0"),
        (["queue", "list", "q.db", "--topic", "a+"], "argument --topic: topic filter 'a+' has a wildcard out of its"),
        (["plan", "--offline-hours", "25"], "argument --offline-hours: 25 is more than a day"),
    ],
)
def test_a_wrong_argument_is_one_line_that_says_where_to_look(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    said = capsys.readouterr()
    assert left.value.code == 2
    assert says in said.err
    assert "--help\n" in said.err
    assert (said.out, said.err.count("\n")) == ("", 1)


COMMANDS = (
    *(
        "",
        "demo",
        "bench",
        "service",
        "service install",
        "metrics",
        "top",
        "plan",
        "in-doubt",
        "doctor",
        "pin",
        "settings",
    ),
    *("pub", "sub", "queue", "queue stats", "queue list", "queue purge", "queue quarantine", "queue quarantine retry"),
)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_breaks_its_lines_at_words(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as left:
        main([*command.split(), "--help"])
    assert left.value.code == 0
    assert [line for line in capsys.readouterr().out.splitlines() if len(line) > 80] == []


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "none" / "q.db"
    with pytest.raises(QueueStorageError, match=f"there is no folder {path.parent} for the queue file: make it"):
        OfflineQueueManager(path)
    with pytest.raises(QueueStorageError, match="there is no folder"):
        MQTTManager(MQTTConfig(broker_url="tcp://h", client_id="d", queue_path=path))
