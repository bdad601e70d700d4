"""Small runs of the peers' benchmark: who is installed runs, who is not is named, no loss passes for a rate."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from support import bench

MESSAGES = 200
ALWAYS_THERE = {"raw socket", "glec-fast", "paho-mqtt"}


@pytest.fixture(autouse=True)
def _benches_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(bench.BENCHES)


def run_bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    counts = ("--rounds", 1, "--messages", MESSAGES, "--pace-messages", 5)
    return bench.run("bench_peers.py", "--no-install", *counts, *arguments)


def report_of(*arguments: str) -> dict[str, Any]:
    done = run_bench(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_every_peer_publishes_or_is_named_as_missing(tmp_path: Path) -> None:
    from peers.catalog import PEERS

    plot = tmp_path / "peers.svg"
    report = report_of("--measure", "publish", "--qos", "1", "--plot", str(plot))
    assert set(report["peers"]) == set(PEERS)
    (result,) = report["results"]
    for name, peer in report["peers"].items():
        if peer["missing"]:
            assert PEERS[name].install in peer["missing"]
            assert name not in result["peers"]
        else:
            assert result["peers"][name]["rate_msg_s"] > 0
            assert result["peers"][name]["cpu_us_per_message"] > 0
    assert set(result["peers"]) >= ALWAYS_THERE
    drawn = "".join(ET.parse(plot).getroot().itertext())
    assert all(name in drawn for name in result["peers"])


def test_ours_and_paho_are_measured_in_every_way() -> None:
    report = report_of("--peers", "glec-fast,paho-mqtt,raw socket")
    keys = {
        "publish": {"rate_msg_s", "cpu_us_per_message"},
        "receive": {"rate_msg_s", "cpu_us_per_message"},
        "backlog": {"rate_msg_s", "cpu_us_per_message"},
        "drain": {"rate_msg_s", "cpu_us_per_message"},
        "call": {"call_p50_s", "call_p99_s"},
        "pace": {"ack_p50_s", "ack_p99_s", "call_p50_s"},
    }
    seen = {(result["action"], result["qos"]) for result in report["results"]}
    sent = {(action, qos) for action in ("publish", "call") for qos in (0, 1, 2)}
    received = {(action, qos) for action in ("receive", "backlog", "drain") for qos in (0, 1)}
    assert seen == sent | received | {("pace", 1)}
    for result in report["results"]:
        clients = {"glec-fast", "paho-mqtt"}
        assert set(result["peers"]) == (clients if result["action"] in ("call", "pace") else clients | {"raw socket"})
        for figures in result["peers"].values():
            assert all(figures[key] > 0 for key in keys[result["action"]])
    assert {verdict["bar"].split(" x ")[1] for verdict in report["bars"]} == {"paho-mqtt", "raw socket"}


def test_over_tls_those_run_that_can() -> None:
    report = report_of("--tls", "--qos", "1")
    assert report["tls"]
    assert {result["action"] for result in report["results"]} == {"publish", "call", "receive", "backlog", "pace"}
    assert all(set(result["peers"]) == {"glec-fast", "paho-mqtt"} for result in report["results"])


def test_table_is_markdown_and_says_what_the_broker_was_told() -> None:
    done = run_bench(
        "--peers", "raw socket,glec-fast", "--measure", "publish", "--qos", "1", "--broker-limit", "default"
    )
    assert done.returncode == 0, done.stderr
    assert "max_inflight_messages 20" in done.stdout
    assert "window 20" in done.stdout
    assert "| client | QoS 1 msg/s | QoS 1 CPU/msg |\n| --- | ---: | ---: |\n| raw socket" in done.stdout


def test_messages_that_the_broker_drops_are_a_loss_and_no_rate(tmp_path: Path) -> None:
    import bench_peers
    from peers.catalog import PEERS, Setup
    from peers.runs import LIMITS, Limit, Setting, write_payloads

    # 100 unreleased QoS 2 messages at a broker that keeps 20: it acknowledges them all.
    setting = Setting(Limit(LIMITS["default"].settings, 100), False, MESSAGES, 1, tmp_path)
    write_payloads(setting)
    command = PEERS["raw socket"].command(Setup(tmp_path, may_install=False))
    result = bench_peers.measure({"raw socket": command}, "publish", 2, 1, setting)
    figures = result["peers"]["raw socket"]
    assert figures["invalid"].endswith(f"of {MESSAGES} lost")
    assert "rate_msg_s" not in figures


def test_peer_that_fails_is_told_and_fails_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import bench_peers
    from peers.runs import LIMITS, Setting, write_payloads

    setting = Setting(LIMITS["none"], False, MESSAGES, 1, tmp_path)
    write_payloads(setting)
    broken = [sys.executable, "-c", "raise SystemExit('out of order')"]
    result = bench_peers.measure({"raw socket": broken}, "publish", 1, 1, setting)
    assert "out of order" in result["peers"]["raw socket"]["invalid"]
    monkeypatch.setattr(bench_peers, "report_of", lambda *_: {"results": [result]})
    monkeypatch.setattr(sys, "argv", ["bench_peers.py", "--json"])
    assert bench_peers.main() == 1


def test_javascript_is_fetched_only_when_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from peers.catalog import PEERS, MissingPeerError, Setup

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(MissingPeerError, match="npm"):
        PEERS["MQTT.js"].command(Setup(tmp_path, may_install=False))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("ratio", "met"), [(4.9, False), (5.0, True)])
def test_bar_is_met_from_its_ratio_on(ratio: float, met: bool) -> None:
    from peers.bars import judge

    peers = {"glec-fast": {"rate_msg_s_by_round": [ratio * 1_000]}, "paho-mqtt": {"rate_msg_s_by_round": [1_000]}}
    verdicts = judge([{"action": "publish", "qos": 1, "peers": peers}])
    assert verdicts[0] == {"what": "publish, QoS 1", "bar": ">= 5 x paho-mqtt", "ratio": ratio, "met": met}
    assert verdicts[1]["bar"] == "> 1 x paho-mqtt"


@pytest.mark.parametrize(("call_s", "met"), [(1.0, True), (1.1, False)])
def test_bar_on_time_is_an_upper_limit(call_s: float, met: bool) -> None:
    from peers.bars import judge

    peers = {"glec-fast": {"call_p50_s_by_round": [call_s]}, "paho-mqtt": {"call_p50_s_by_round": [5.0]}}
    (verdict,) = judge([{"action": "call", "qos": 0, "peers": peers}])
    assert verdict["met"] is met


@pytest.mark.parametrize(("percent", "expected"), [(50, 50), (99, 99), (100, 100)])
def test_percentile_is_a_value_that_was_measured(percent: int, expected: int) -> None:
    from peers.peer import percentile

    assert percentile(list(range(100, 0, -1)), percent) == expected
    assert percentile([7.0], percent) == 7.0
