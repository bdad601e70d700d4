"""`glec-fast bench`, with counts so small that its figures mean nothing, against real brokers."""

from __future__ import annotations

import json
import re
import socket
import ssl
import subprocess
import threading
from typing import TYPE_CHECKING, Any

import pytest

from glec_fast.cli.bench.command import MEASURES
from glec_fast.cli.bench.report import in_table
from glec_fast.cli.main import main
from glec_fast.testbed.broker import Broker
from glec_fast.testbed.certificates import CertificateAuthority
from glec_fast.testbed.subscriber import Subscriber

if TYPE_CHECKING:
    from pathlib import Path

TINY = ["--messages", "60", "--seconds", "0.2", "--bytes", "20"]


@pytest.mark.usefixtures("forked_starts")
def test_every_figure_of_every_contender(broker: Broker, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Subscriber(broker, "glec-fast/bench/#") as subscriber:
        options = ["--broker", broker.url, "--client-id", "B", "--directory", str(tmp_path), "--json", *TINY]
        assert main(["bench", *options]) == 0
        report = json.loads(capsys.readouterr().out)
        assert subscriber.wait_for_end(30)
        arrived = len(subscriber.arrivals)
    assert {name: tuple(kinds) for name, kinds in report["results"].items()} == {
        each.name: each.kinds for each in MEASURES
    }
    figures = [each for kinds in report["results"].values() for each in kinds.values()]
    assert all(value > 0 for each in figures for value in each.values()), figures
    # Each message that a figure counts, the mark behind each run of QoS 0, and those that ask what the broker takes.
    assert arrived == sum(each["count"] for each in figures) + 3 + 5
    assert report["notes"] == []
    assert [path for path in tmp_path.iterdir() if path.name.startswith("glec-fast-bench")] == []
    table = in_table(report)
    assert re.search(r"publish, QoS 1, msg/s +[\d,]+ +[\d,]+ \([\d.e+]+ x\)", table)
    assert re.search(r"flush of \d+ queued, QoS 2, msg/s +- +- +[\d,]+ +> 100 msg/s: [\d,]+ x", table)


@pytest.mark.parametrize(
    ("highest", "version", "says"),
    [
        (1, 4, "QoS 2 is not measured: the broker ended the connection over a message of QoS 2 ("),
        (1, 5, "QoS 2 is not measured: the broker says that it takes QoS 1 at most\n"),
        (0, 5, "QoS 1 is not measured: the broker says that it takes QoS 0 at most\n"),
    ],
)
def test_what_the_broker_has_no_qos_for_is_left_out_and_said(
    highest: int,
    version: int,
    says: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    only = [each._replace(kinds=("memory",)) for each in MEASURES if each.name in ("publish-0", "publish-2")]
    monkeypatch.setattr("glec_fast.cli.bench.command.MEASURES", only)
    with Broker(tmp_path, settings=[f"max_qos {highest}"]) as broker:
        config = tmp_path / "broker_config.properties"
        config.write_text(f"mqtt.broker.url={broker.url}\nmqtt.client.id=B\nmqtt.protocol.version={version}\n")
        assert main(["bench", "--config", str(config), *TINY]) == 0
    said = capsys.readouterr().out
    assert says in said
    assert re.search(r"publish, QoS 0, msg/s +- +[\d,]+ ", said)
    assert "publish, QoS 2" not in said


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("acl_file {acl}", "the broker takes no message to glec-fast/bench/B: the broker ended the connection"),
        ("max_packet_size 200", "the broker does not take 300 bytes of payload: the broker ended the connection"),
    ],
)
def test_a_broker_that_takes_nothing_of_it_is_one_line(
    setting: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "acl").write_text("topic readwrite other/#\n")
    with Broker(tmp_path, settings=[setting.format(acl=tmp_path / "acl")]) as broker:
        assert main(["bench", "--broker", broker.url, "--client-id", "B"]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n"), says in said.err) == ("", 1, True), said.err


def test_a_broker_that_closes_before_connack_is_not_waited_for(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        closer = threading.Thread(target=lambda: listener.accept()[0].close())
        closer.start()
        assert main(["bench", "--broker", f"tcp://127.0.0.1:{listener.getsockname()[1]}"]) == 2
        closer.join()
    assert "the connection ended before CONNACK" in capsys.readouterr().err


def test_over_tls_with_a_password_that_no_argument_shows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = CertificateAuthority(tmp_path)
    started: list[list[str]] = []
    run = subprocess.run

    def note(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        started.append(command)
        return run(command, **options)

    with Broker(tmp_path, plain=False, certificate=authority.issue_server()) as broker:
        monkeypatch.setattr("subprocess.run", note)
        # One that connects each kind of client.
        monkeypatch.setattr("glec_fast.cli.bench.command.MEASURES", MEASURES[2:3])
        monkeypatch.setattr("glec_fast.cli.bench.command.in_table", json.dumps)
        monkeypatch.setenv("GLEC_PASSWORD", "hunter2")
        options = ["--broker", broker.tls_url, "--ca-cert", str(authority.certificate_path), "--username", "u", *TINY]
        assert main(["bench", *options]) == 0
    assert set(json.loads(capsys.readouterr().out)["results"]["publish-2"]) == {"paho", "memory", "store"}
    assert len(started) == 3
    assert "hunter2" not in str(started)


def test_what_paho_cannot_read_is_told_before_anything_is_measured(
    tls_broker: Broker, authority: CertificateAuthority, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    in_der = tmp_path / "ca.der"
    in_der.write_bytes(ssl.PEM_cert_to_DER_cert(authority.certificate_path.read_text()))
    assert main(["bench", "--broker", tls_broker.tls_url, "--ca-cert", str(in_der), *TINY]) == 2
    assert "glec-fast: ca_cert must be a file in PEM for bench" in capsys.readouterr().err


def test_a_broker_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--broker", "tcp://127.0.0.1:1", *TINY]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n"), "no connection to tcp://127.0.0.1:1" in said.err) == ("", 1, True)


def test_a_contender_that_breaks_down_is_one_line(
    broker: Broker, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "contender.py").write_text("raise OSError('no room')")
    monkeypatch.setattr("glec_fast.cli.bench.command.CONTENDER", tmp_path / "contender.py")
    assert main(["bench", "--broker", broker.url, *TINY]) == 2
    assert "paho broke down at publish with QoS 0: OSError: no room" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--seconds", "nan"], "nan is not a number from 0.01 to 60"),
        (["--messages", "0"], "0 is not a whole number from 1"),
        (["--directory", "/nowhere"], "/nowhere cannot hold a queue file"),
    ],
)
def test_what_cannot_be_is_refused(
    options: list[str], says: str, broker: Broker, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status = main(["bench", "--broker", broker.url, *options])
    except SystemExit as left:
        status = left.code
    assert status == 2
    assert says in capsys.readouterr().err
