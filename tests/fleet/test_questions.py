"""`MQTTConfig(metrics_socket=...)`: a program that can be asked."""

from __future__ import annotations

import json
import logging
import os
import socket
import stat
from pathlib import Path

import pytest

from glec_fast import ConfigError, MQTTManager
from glec_fast.cli.main import main
from glec_fast.cli.service_client import ask
from glec_fast.fleet.questions import LastLines
from support.gateway import TIMEOUT_S, quick_config

NOBODY = "tcp://127.0.0.1:1"


def test_a_program_is_asked_as_the_service_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "ask.sock"
    with MQTTManager(quick_config(NOBODY, tmp_path, metrics_socket=path)) as manager:
        assert stat.filemode(path.stat().st_mode) == "srw-rw----"
        manager.publish("t", "x", 2)
        logging.getLogger("glec_fast").error("a line\nof two")
        assert ask(path, "metrics")["metrics"]["accepted"] == [0, 0, 1]
        assert ask(path, "metrics")["queue_path"] == str(tmp_path / "queue.db")
        assert ask(path, "health")["healthy"] is True
        assert ask(path, "log")["lines"][-1]["text"] == "a line\nof two"
        with pytest.raises(ConfigError, match="does not know the question 'purge'"):
            ask(path, "purge", numbers=[1])
        assert main(["metrics", "--socket", str(path)]) == 0
        assert 'glec_fast_messages_accepted_total{client_id="DTG-TEST",qos="2"} 1\n' in capsys.readouterr().out
        assert main(["top", "--once", "--socket", str(path)]) == 0
        assert "a line of two" in capsys.readouterr().out
    assert not path.exists()
    manager.disconnect()


def test_the_queue_s_path_is_told_from_wherever_the_program_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ask.sock"
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path)
    with MQTTManager(quick_config(NOBODY, tmp_path, queue_path="queue.db", metrics_socket=path)):
        monkeypatch.chdir(tmp_path / "gone")
        (tmp_path / "gone").rmdir()
        assert ask(path, "metrics")["queue_path"] == str(tmp_path / "queue.db")


@pytest.mark.parametrize("packet", [b"{", b"[]", b'{"ask": 1}', b'{"ask": [}', b'{"topic": "t", "payload": "x"}'])
def test_what_is_no_question_is_answered_too(tmp_path: Path, packet: bytes) -> None:
    path = tmp_path / "ask.sock"
    with (
        MQTTManager(quick_config(NOBODY, tmp_path, metrics_socket=path)),
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as program,
    ):
        program.settimeout(TIMEOUT_S)
        program.connect(str(path))
        for sent in (packet, b'{"ask": "health"}'):
            program.send(sent)
            answer = json.loads(program.recv(1 << 16))
            assert ("error" in answer) == (sent is packet)


def test_a_socket_that_cannot_be(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    for place in (file, tmp_path / "none/ask.sock", tmp_path / ("x" * 200)):
        with pytest.raises(ConfigError, match="cannot be listened on") as raised:
            MQTTManager(quick_config(NOBODY, tmp_path, metrics_socket=place))
        assert raised.value.field == "metrics_socket"
    assert file.read_text() == "mine"
    with pytest.raises(ConfigError, match="metrics_socket must be the path of a file"):
        quick_config(NOBODY, tmp_path, metrics_socket=3)


def test_one_that_is_left_behind_is_taken_and_one_in_use_is_not(tmp_path: Path) -> None:
    path = tmp_path / "ask.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as left:
        left.bind(str(path))
    (tmp_path / "other").mkdir()
    with MQTTManager(quick_config(NOBODY, tmp_path, metrics_socket=path)):
        with pytest.raises(ConfigError, match="another program listens on it"):
            MQTTManager(quick_config(NOBODY, tmp_path / "other", metrics_socket=path))
        assert ask(path, "health")["healthy"] is True


def test_a_forked_child_leaves_the_socket_to_its_parent(tmp_path: Path) -> None:
    path = tmp_path / "ask.sock"
    with MQTTManager(quick_config(NOBODY, tmp_path, metrics_socket=path)) as manager:
        child = os.fork()
        if not child:
            manager.disconnect()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert ask(path, "health")["healthy"] is True


def test_the_last_lines_pass_through() -> None:
    lines = LastLines()
    for number in range(60):
        assert lines.filter(logging.LogRecord("glec_fast", logging.INFO, "", 0, "%d", (number,), None))
    assert [each["text"] for each in lines.lines] == [str(number) for number in range(10, 60)]
    assert lines.filter(logging.LogRecord("glec_fast", logging.INFO, "", 0, "%d", ("x",), None))
    assert lines.lines[-1]["text"] == "%d"
