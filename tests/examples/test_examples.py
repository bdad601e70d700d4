"""Each example, run as a reader would, beside an independent subscriber that counts."""

from __future__ import annotations

import csv
import json
import re
import shutil
import socket
import subprocess
import sys
import urllib.request
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from glec_fast.testbed.broker import Broker
from glec_fast.testbed.subscriber import Subscriber
from support import forked
from support.forked import Forked
from support.places import REPOSITORY

if TYPE_CHECKING:
    from collections.abc import Iterator

EXAMPLES = REPOSITORY / "examples"
TIMEOUT_S = 60.0


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    with Broker(tmp_path) as broker:
        yield broker


def command(name: str, broker_port: int, queue: Path, *options: str) -> list[str]:
    url = f"tcp://127.0.0.1:{broker_port}"
    return ["-W", "error", str(EXAMPLES / name), "--broker", url, "--queue", str(queue), *options]


def run(arguments: list[str], tmp_path: Path, *, may_say: str = "") -> str:
    """What it printed; to stderr nothing, or `may_say` where it had time for that."""
    done = forked.run(arguments, TIMEOUT_S, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "" or (may_say and done.stderr.startswith(may_say) and done.stderr.count("\n") == 1)
    return done.stdout


def counts(subscriber: Subscriber) -> dict[str, int]:
    """How many messages came, by the last word of their topic; the status ones apart."""
    assert subscriber.wait_for_end(TIMEOUT_S)
    found: dict[str, int] = {}
    for arrival in subscriber.arrivals:
        kind = arrival.topic.rpartition("/")[2]
        if kind != "status":
            found[kind] = found.get(kind, 0) + 1
    return found


def payloads(subscriber: Subscriber, kind: str) -> list[dict[str, Any]]:
    return [json.loads(each.payload) for each in subscriber.arrivals if each.topic.endswith(f"/{kind}")]


def test_quickstart(broker: Broker, tmp_path: Path) -> None:
    with Subscriber(broker, "glec/#") as subscriber:
        out = run(command("quickstart.py", broker.port, tmp_path / "queue.db"), tmp_path)
        assert "the broker has everything" in out
        assert counts(subscriber) == {"telemetry": 10, "alerts": 1}


def test_quickstart_without_a_broker_keeps_all_for_the_next_start(broker: Broker, tmp_path: Path) -> None:
    queue = tmp_path / "queue.db"
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        offline = command("quickstart.py", nobody.getsockname()[1], queue, "--wait", "0")
        assert "for the next start" in run(offline, tmp_path, may_say="no connection to")
    with Subscriber(broker, "glec/#") as subscriber:
        assert "the broker has everything" in run(command("quickstart.py", broker.port, queue), tmp_path)
        assert counts(subscriber) == {"telemetry": 20, "alerts": 2}


def test_commands(broker: Broker, tmp_path: Path) -> None:
    arguments = command("commands.py", broker.port, tmp_path / "queue.db")
    reply = '{"id":"c-1","status":"done","result":{"unlocked":2}}\nagain the same\n'
    assert run(arguments, tmp_path) == "unlocking ['left', 'right'] (command c-1)\n" + reply
    # The id is known to the queue.
    assert run(arguments, tmp_path) == reply


def test_can_bus(broker: Broker, tmp_path: Path) -> None:
    pytest.importorskip("can", reason="python-can is not installed: pip install -e '.[examples]'")
    pytest.importorskip("cantools", reason="cantools is not installed: pip install -e '.[examples]'")
    with Subscriber(broker, "glec/#") as subscriber:
        out = run(command("can_bus.py", broker.port, tmp_path / "queue.db", "--seconds", "5"), tmp_path)
        assert out == "5 seconds of telemetry published, all delivered\n"
        assert counts(subscriber) == {"telemetry": 5}
        first = payloads(subscriber, "telemetry")[0]
        assert (first["vehicle_speed"], first["engine_rpm"], first["fuel_level"]) == (40.0, 1900.0, 78.0)


def test_edge_inference(broker: Broker, tmp_path: Path) -> None:
    pytest.importorskip("numpy")
    with Subscriber(broker, "glec/#") as subscriber:
        out = run(command("edge_inference.py", broker.port, tmp_path / "queue.db"), tmp_path)
        assert out.splitlines()[-1] == "delivered"
        speeds_kmh = [
            float(row["speed_kmh"]) for row in csv.DictReader((EXAMPLES / "drive.csv").read_text().splitlines())
        ]
        harsh = sum(before - after > 10 for before, after in pairwise(speeds_kmh))
        assert counts(subscriber) == {"inference": 10, "alerts": harsh}
        behaviors = [each["behavior"] for each in payloads(subscriber, "inference")]
        assert behaviors == re.findall(r"minute \d+: (\w+)", out)


def test_fastapi_gateway(broker: Broker, tmp_path: Path) -> None:
    pytest.importorskip("fastapi", reason="FastAPI is not installed: pip install -e '.[examples]'")
    pytest.importorskip("uvicorn", reason="uvicorn is not installed: pip install -e '.[examples]'")
    arguments = command("fastapi_gateway.py", broker.port, tmp_path / "queue.db", "--port", "0")
    arguments[1] = "default"  # of warnings: the framework's own are not ours to answer for
    with Subscriber(broker, "glec/#") as subscriber:
        server = subprocess.Popen([sys.executable, *arguments], stderr=subprocess.PIPE, text=True, cwd=tmp_path)
        assert server.stderr is not None
        try:
            started = next(line for line in server.stderr if "running on" in line)
            url = re.findall(r"http://127\.0\.0\.1:\d+", started)[0]
            alert = {"alert_type": "DOOR_OPEN", "severity": "HIGH", "lat": 37.56, "lon": 126.97}
            assert post(f"{url}/alerts", alert) == (202, {"message_id": 1})
            status, told = post(f"{url}/alerts", {**alert, "lat": 137.0})
            assert status == 422
            assert "lat" in told["detail"]
            assert subscriber.wait_for(lambda arrivals: any(each.topic.endswith("/alerts") for each in arrivals), 30)
        finally:
            server.terminate()
            server.communicate(timeout=TIMEOUT_S)
        assert counts(subscriber) == {"alerts": 1}


def test_paho_unchanged(broker: Broker, tmp_path: Path) -> None:
    """Offline it delivers nothing and loses nothing: the next start of the same program sends both runs' messages."""
    program = ["-W", "error", str(EXAMPLES / "paho_unchanged.py")]
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        offline = [*program, "--broker", f"tcp://127.0.0.1:{nobody.getsockname()[1]}", "--wait", "0"]
        assert run(offline, tmp_path) == "0 of 11 delivered\n"
    with Subscriber(broker, "house/#") as subscriber:
        assert run([*program, "--broker", broker.url, "--wait", "30"], tmp_path) == "11 of 11 delivered\n"
        assert counts(subscriber) == {"temperature": 20, "alarm": 2}
    assert "glec_fast" not in (EXAMPLES / "paho_unchanged.py").read_text().split("# ---- as it was")[1]


def test_the_vehicle_of_the_containers(broker: Broker, tmp_path: Path) -> None:
    arguments = command("compose/vehicle.py", broker.port, tmp_path / "queue.db", "--port", "0")
    with Subscriber(broker, "glec/#") as subscriber:
        with Forked(arguments, stdout=subprocess.PIPE, text=True, cwd=tmp_path) as vehicle:
            assert vehicle.stdout is not None
            port = int(vehicle.stdout.readline().split()[-1])
            assert subscriber.wait_for(lambda arrivals: any(each.topic.endswith("/telemetry") for each in arrivals), 30)
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
                page = answer.read().decode()
            vehicle.terminate()
            assert vehicle.wait(TIMEOUT_S) == 0
        assert re.search(r'^glec_fast_link_state\{client_id="DTG-COMPOSE",state="connected"\} 1$', page, re.MULTILINE)
        assert counts(subscriber)["telemetry"] >= 1
        assert payloads(subscriber, "status")[-1]["status"] == "OFFLINE"


def test_the_containers_are_described_as_docker_reads_it() -> None:
    """For syntax, and that what it names is there; no container is built here."""
    yaml = pytest.importorskip("yaml")
    folder = EXAMPLES / "compose"
    services = yaml.safe_load((folder / "compose.yaml").read_text())["services"]
    assert set(services) == {"broker", "vehicle", "prometheus", "grafana"}
    mounted = [each.split(":")[0] for service in services.values() for each in service["volumes"]]
    assert [each for each in mounted if each.startswith(".") and not (folder / each).exists()] == []
    for path in folder.rglob("*.y*ml"):
        assert yaml.safe_load(path.read_text())
    copied = re.findall(r"^COPY (.*) \S+$", (folder / "Dockerfile").read_text(), re.MULTILINE)
    assert [each for line in copied for each in line.split() if not (REPOSITORY / each).exists()] == []
    options = subprocess.run(
        [sys.executable, folder / "vehicle.py", "--help"], capture_output=True, text=True, timeout=60
    )
    assert [
        each for each in services["vehicle"]["command"] if each.startswith("--") and each not in options.stdout
    ] == []
    if shutil.which("docker-compose"):
        done = subprocess.run(
            ["docker-compose", "config", "--quiet"], capture_output=True, text=True, timeout=60, cwd=folder
        )
        assert done.returncode == 0, done.stderr


def post(url: str, body: object) -> tuple[int, dict[str, Any]]:
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_each_example_is_tried_here(path: Path) -> None:
    assert f'"{path.name}"' in Path(__file__).read_text()
