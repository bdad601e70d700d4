"""`glec-fast metrics` and what the service answers to questions: read by Prometheus's own parser."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import threading
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from glec_fast import MQTTManager
from glec_fast.cli.main import main
from glec_fast.cli.service import Service
from glec_fast.cli.service_client import ask
from glec_fast.durable.outcomes import DropReason
from glec_fast.engine.connector import CertificateExpiry
from glec_fast.fleet.metrics import Metrics, metrics_as_json, metrics_from_json
from glec_fast.fleet.prometheus import prometheus_text
from glec_fast.runtime.latency import Latency
from support.gateway import TIMEOUT_S, eventually, quick_config
from support.places import REPOSITORY

if TYPE_CHECKING:
    from collections.abc import Iterator

    from glec_fast.testbed.broker import Broker

ODD = 'D"1\\\n\u00e9'
FULL = Metrics(
    is_connected=True,
    messages_sent=2**60 + 1,
    messages_failed=3,
    queue_size=4,
    reconnect_count=5,
    in_doubt=6,
    drops={"overflow": 7},
    drops_by_qos={"overflow": [4, 2, 0]},
    pin_failures=8,
    expiring_certificates=(CertificateExpiry("broker", f"CN={ODD}", 1_800_000_000.5),),
    weaknesses={"no_qos2": 9},
    state="connected",
    in_state_s=1.25,
    last_failure="gone",
    attempts=10,
    connects=11,
    sent_bytes=12,
    received_bytes=13,
    queue_bytes=14,
    accepted=(15, 16, 17),
    on_disk=(18, 19, 20),
    published=(21, 22, 23),
    acknowledged=(24, 25, 26),
    to_disk=Latency(3, 0.75, 0.5, 0.01, 0.5, ((0.001, 1), (0.002, 2), (0.004, 2), (0.512, 3))),
    to_acknowledgement=Latency(1, 86_400.0, 86_400.0, 86_400.0, 86_400.0, ((134_217.728, 1),)),
    oldest_s=27.5,
    disk_written_bytes=28,
    disk_syncs=29,
    clock_steps=30,
    certificates=(CertificateExpiry("broker", f"CN={ODD}", 1_800_000_000.5),),
)


def test_the_text_is_read_by_prometheus_s_own_parser() -> None:
    parser = pytest.importorskip("prometheus_client.parser")
    families = {
        family.name: family for family in parser.text_string_to_metric_families(prometheus_text(FULL, ODD, "1"))
    }
    samples = {
        (sample.name, *(value for name, value in sample.labels.items() if name != "client_id")): sample.value
        for family in families.values()
        for sample in family.samples
    }
    assert all(sample.labels["client_id"] == ODD for family in families.values() for sample in family.samples)
    assert all(family.documentation.endswith(".") for family in families.values())
    assert samples["glec_fast_link_state", "connected"] == 1
    assert samples["glec_fast_link_state", "connecting"] == 0
    assert samples["glec_fast_messages_sent_total",] == 2**60
    dropped = {
        key[2]: value for key, value in samples.items() if key[:2] == ("glec_fast_messages_dropped_total", "overflow")
    }
    assert dropped == {"0": 4, "1": 2, "2": 0, "unknown": 1}
    assert {key[1] for key in samples if key[0] == "glec_fast_messages_dropped_total"} == {
        reason.value for reason in DropReason
    }
    assert samples["glec_fast_sent_bytes_total",] == 12
    assert samples["glec_fast_certificate_expires_timestamp_seconds", "broker", f"CN={ODD}"] == 1_800_000_000.5
    assert [samples["glec_fast_messages_acknowledged_total", qos] for qos in "012"] == [24, 25, 26]
    to_disk = {key[1]: value for key, value in samples.items() if key[0] == "glec_fast_publish_to_disk_seconds_bucket"}
    assert (to_disk["0.001"], to_disk["0.004"], to_disk["+Inf"]) == (1, 2, 3)
    assert list(to_disk.values()) == sorted(to_disk.values())
    assert (samples["glec_fast_publish_to_disk_seconds_count",], samples["glec_fast_publish_to_disk_seconds_sum",]) == (
        3,
        0.75,
    )
    kinds = {name: family.type for name, family in families.items()}
    assert kinds["glec_fast_connects"] == "counter"
    assert kinds["glec_fast_queue_bytes"] == "gauge"


def test_prometheus_s_own_tool_finds_nothing_to_blame() -> None:
    tool = shutil.which("promtool") or shutil.which(REPOSITORY / "build/promtool/usr/bin/promtool")
    if tool is None:
        pytest.skip("there is no promtool: make promtool")
    checked = subprocess.run(
        [tool, "check", "metrics"], input=prometheus_text(FULL, ODD, "1"), capture_output=True, text=True, check=False
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def test_a_snapshot_goes_through_json() -> None:
    content = json.loads(json.dumps(metrics_as_json(FULL)))
    assert metrics_from_json(content) == FULL
    del content["accepted"], content["to_disk"]
    content["of_a_later_version"] = 1
    older = metrics_from_json(content)
    assert (older.accepted, older.to_disk, older.on_disk) == ((0, 0, 0), Latency(), FULL.on_disk)


def test_the_dashboard_and_the_page_name_what_there_is() -> None:
    names = set(re.findall(r"^# TYPE (\S+)", prometheus_text(FULL, "D"), re.MULTILINE))
    dashboard = (REPOSITORY / "packaging/grafana/glec-fast.json").read_text()
    assert {re.sub("_bucket$", "", name) for name in re.findall(r"glec_fast_\w+", dashboard)} <= names
    assert json.loads(dashboard)["panels"]
    page = (REPOSITORY / "docs/metrics.md").read_text()
    assert set(re.findall(r"^\| `(glec_fast_\w+)", page, re.MULTILINE)) == names


@pytest.fixture
def running(tmp_path: Path, broker: Broker) -> Iterator[Path]:
    """The socket of a service that is connected."""
    path = tmp_path / "publish.sock"
    stop = threading.Event()
    with MQTTManager(quick_config(broker.url, tmp_path)) as manager, closing(Service(manager, path)) as service:

        def serve() -> None:
            while not stop.is_set():
                service.turn(0.05)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            assert ask(path, "metrics")["metrics"]["state"] == "idle"
            manager.connect()
            assert eventually(manager.is_connected)
            manager.publish("t", "x", 2).wait_for_publish(TIMEOUT_S)
            yield path
        finally:
            stop.set()
            thread.join()


def test_the_figures_of_a_running_service(running: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["metrics", "--socket", str(running), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    figures = metrics_from_json(answer["metrics"])
    assert answer["client_id"] == "DTG-TEST"
    assert (figures.state, figures.connects, figures.attempts, figures.messages_sent) == ("connected", 1, 1, 1)
    assert figures.sent_bytes > 20
    assert figures.received_bytes > 8
    assert figures.queue_bytes > 4096
    assert (figures.accepted, figures.on_disk, figures.published, figures.acknowledged) == ((0, 0, 1),) * 4
    assert (figures.to_disk.messages, figures.to_acknowledgement.messages) == (1, 1)
    assert figures.to_disk.max_s <= figures.to_acknowledgement.max_s
    # The row, and the images for PUBLISH and PUBREL.
    assert figures.disk_syncs >= 2
    assert main(["metrics", "--socket", str(running)]) == 0
    assert 'glec_fast_messages_sent_total{client_id="DTG-TEST"} 1\n' in capsys.readouterr().out
    path = tmp_path / "glec.prom"
    assert main(["metrics", "--socket", str(running), "--textfile", str(path)]) == 0
    assert path.read_text().startswith("# HELP glec_fast_info ")
    assert path.stat().st_mode & 0o777 == 0o644
    assert [each.name for each in tmp_path.glob("*glec.prom*")] == ["glec.prom"]
    assert capsys.readouterr().out == ""


def test_health(running: Path) -> None:
    health = ask(running, "health")
    assert (health["healthy"], health["state"], health["last_failure"]) == (True, "connected", None)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--socket", "/nowhere/x.sock"], "no service answers at /nowhere/x.sock"),
        (["--textfile", "/nowhere/x.prom"], "/nowhere/x.prom cannot be written"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(
    running: Path, arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    socket = [] if "--socket" in arguments else ["--socket", str(running)]
    assert main(["metrics", *socket, *arguments]) == 2
    said = capsys.readouterr()
    assert says in said.err
    assert (said.out, said.err.count("\n")) == ("", 1)


OLDEST: dict[str, Any] = {
    "client_id": "D",
    "version": "1",
    "metrics": {
        "is_connected": True,
        "messages_sent": 1,
        "messages_failed": 0,
        "queue_size": 2,
        "reconnect_count": 0,
    },
}
ODD_ANSWERS: list[Any] = [
    {},
    [],
    None,
    5,
    {"metrics": {}},
    {**OLDEST, "metrics": []},
    {**OLDEST, "client_id": 5},
    {"metrics": OLDEST["metrics"]},
    *(
        {**OLDEST, "metrics": {**OLDEST["metrics"], **odd}}
        for odd in (
            {"queue_size": "many"},
            {"queue_size": float("nan")},
            {"is_connected": None},
            {"drops": [1]},
            {"drops": {"overflow": "1"}},
            {"drops_by_qos": {"overflow": [1]}},
            {"accepted": [1, 2]},
            {"to_disk": {}},
            {"certificates": [{"where": "broker"}]},
            {"state": None},
            {"last_failure": 5},
        )
    ),
]


@contextmanager
def answering(path: Path, answer: bytes) -> Iterator[None]:
    """Somebody who gives the same answer to every question."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.bind(str(path))
        server.listen()

        def serve() -> None:
            while True:
                link, _ = server.accept()
                with link:
                    if link.recv(1 << 16) == b"end":
                        return
                    link.send(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as program:
                program.connect(str(path))
                program.send(b"end")
            thread.join()


@pytest.mark.parametrize("command", [["metrics"], ["metrics", "--json"], ["top", "--once"]], ids=" ".join)
def test_an_answer_that_is_none_is_said_in_one_line(
    tmp_path: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for number, odd in enumerate([*map(json.dumps, ODD_ANSWERS), "[" * 60_000, "\xff"]):
        path = tmp_path / f"{number}.sock"
        with answering(path, odd.encode("latin-1")):
            assert main([*command, "--socket", str(path)]) == 2, odd[:80]
        said = capsys.readouterr()
        assert (said.out, said.err.count("\n")) == ("", 1), odd[:80]
        assert str(path) in said.err


@pytest.mark.parametrize("command", [["metrics"], ["metrics", "--json"], ["top", "--once"]], ids=" ".join)
def test_an_older_service_has_told_what_it_can(
    tmp_path: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "old.sock"
    with answering(path, json.dumps(OLDEST).encode()):
        assert main([*command, "--socket", str(path)]) == 0
    assert re.search(r"queue(_messages\{client_id=\"D\"\}|_size\":|) +2\b", capsys.readouterr().out)


def test_a_question_that_is_none(running: Path) -> None:
    with pytest.raises(ValueError, match="does not know the question 'weather'"):
        ask(running, "weather")
