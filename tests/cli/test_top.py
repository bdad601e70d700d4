"""`glec-fast top`: the page within 80 columns, in a pipe and on a terminal."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from glec_fast import MQTTManager
from glec_fast.cli.main import main
from glec_fast.cli.top import Page, _span
from glec_fast.engine.connector import CertificateExpiry
from glec_fast.fleet.metrics import Metrics, metrics_as_json
from glec_fast.runtime.latency import Latency
from support.gateway import TIMEOUT_S, quick_config
from support.queue_files import child_environment


def answer(**figures: Any) -> dict[str, Any]:
    defaults: dict[str, Any] = {
        "is_connected": True,
        "messages_sent": 0,
        "messages_failed": 0,
        "queue_size": 0,
        "reconnect_count": 0,
        "state": "connected",
    }
    metrics = Metrics(**{**defaults, **figures})
    return {"client_id": "DTG-SN-12345", "version": "1", "metrics": metrics_as_json(metrics)}


LINES = [{"time_ms": number, "level": "WARNING", "text": f"line {number}\nof " + "x" * 200} for number in range(50)]


def shown(page: Page, width: int = 80) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(page.fitted(24))
    return out.getvalue()


def test_rates_are_those_between_two_looks() -> None:
    page = Page()
    page.take(answer(messages_sent=10, sent_bytes=100), 1.0)
    assert "10 msg" in shown(page)
    page.take(answer(messages_sent=30, sent_bytes=5100, queue_size=7, drops={"overflow": 3, "expired": 0}), 3.0)
    text = shown(page)
    assert "10 msg/s" in text
    assert "2,500 B/s" in text
    assert "overflow 3" in text
    assert "expired" not in text
    page.take(answer(messages_sent=0), 4.0)
    assert "0 msg/s" in shown(page), "the service was started anew"


def test_it_fits_a_small_terminal() -> None:
    page = Page()
    for second in range(100):
        large = {"messages_sent": second * 10**6, "sent_bytes": second * 10**9, "queue_size": 10**6 + second}
        latency = Latency(10**9, 10**9, 10**6, 0.0123, 12_345.0)
        counts = {
            "accepted": (10**9,) * 3,
            "on_disk": (10**9,) * 3,
            "to_disk": latency,
            "clock_steps": 12,
            "oldest_s": 10**7,
        }
        certificates = (CertificateExpiry("broker", "CN=x", 2e9),)
        drops = {"drops": {"overflow": 10**9}, "drops_by_qos": {"overflow": [10**9, 0, 0]}}
        figures = {**large, **counts, **drops, "certificates": certificates}
        page.take(answer(**figures, last_failure="no connection: " + "x" * 500), float(second), LINES)
    lines = shown(page).splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 24
    text = "\n".join(lines)
    assert "line 49 of x" in text
    assert "p50 12 ms" in text
    assert "a certificate ends in" in text
    assert len(shown(page, 200).splitlines()) <= 24


@pytest.mark.parametrize(("seconds", "text"), [(0, "0 s"), (59.9, "59 s"), (3661, "1 h 1 min"), (90_000, "1 d 1 h")])
def test_spans(seconds: float, text: str) -> None:
    assert _span(seconds) == text


def test_one_page_for_a_pipe(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    odd = [{}, 5, {**LINES[0], "time_ms": 1 << 70}, {**LINES[0], "text": None}]
    told = json.loads(json.dumps(answer(queue_size=5)))
    monkeypatch.setattr("glec_fast.cli.service_client.ask", lambda _path, _question: told)
    monkeypatch.setattr("glec_fast.cli.top.ask", lambda _path, _question: {"lines": LINES + odd})
    assert main(["top"]) == 0
    out = capsys.readouterr().out
    assert "DTG-SN-12345" in out
    assert "line 45" in out
    assert "line 44" not in out
    assert "\x1b" not in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [(["--socket", "/nowhere"], "no service answers"), (["--period", "0.01"], "--period must be")],
)
def test_what_cannot_be_is_said_in_one_line(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["top", *arguments]) == 2
    said = capsys.readouterr()
    assert says in said.err
    assert (said.out, said.err.count("\n")) == ("", 1)


def test_it_is_drawn_on_a_terminal_and_leaves_it_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "ask.sock"
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    with MQTTManager(quick_config("tcp://127.0.0.1:1", tmp_path, metrics_socket=path)):
        # A shell that starts the tests in the background has it ignored, also by their children.
        command = ["env", "--default-signal=INT", sys.executable, "-m", "glec_fast", "top"]
        command += ["--socket", str(path), "--period", "0.1"]
        environment = {**child_environment(), "TERM": "xterm-256color"}
        environment.pop("COLUMNS", None)
        with subprocess.Popen(command, stdin=its, stdout=its, stderr=subprocess.PIPE, env=environment) as top:
            os.close(its)
            seen = b""
            while seen.count(b"QoS 2") < 3:
                assert select.select([ours], [], [], TIMEOUT_S)[0], seen
                seen += os.read(ours, 65_536)
            top.send_signal(signal.SIGINT)
            while True:
                try:
                    read = os.read(ours, 65_536)
                except OSError:
                    # It has ended.
                    break
                if not read:
                    break
                seen += read
            assert top.stderr is not None
            assert top.stderr.read() == b"glec-fast: interrupted\n"
            assert top.wait() == 130
    os.close(ours)
    # The other screen, and back.
    assert seen.count(b"\x1b[?1049h") == seen.count(b"\x1b[?1049l") == 1
    assert b"\x1b[2J" not in seen.partition(b"QoS 2")[2], "it is drawn over, and never cleared"
