"""Small runs of the benchmarks: they work, prove what they measured, and print the keys that readers rely on."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from glec_fast.testbed.broker import free_port
from glec_fast.testbed.subscriber import Subscriber
from support import bench
from support.written import is_counted

MESSAGES = 200
# Above a bare interpreter, connected over TLS: 12,500 today.
PEAK_KIB_MAX = 18_000
# 0 of what is in memory alone.
WRITTEN = "write_bytes_per_message"
FIGURES = {
    "messages",
    "rate_msg_s",
    "rate_msg_s_by_round",
    "rate_ratio_to_raw",
    "rate_ratio_to_glec",
    "multiple_of_specified_rate",
    "cpu_us_per_message",
    "cpu_ratio_to_baseline",
    WRITTEN,
    "private_bytes_above_bare",
    "peak_rss_bytes_above_bare",
}


def run_bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return bench.run("bench_flush.py", "--messages", MESSAGES, "--rounds", 1, *arguments)


def report_of(*arguments: str) -> dict[str, Any]:
    done = run_bench(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_over_tls_those_run_that_can() -> None:
    report = report_of("--tls", "--brokers", "default")
    assert [(result["tls"], set(result["contenders"])) for result in report["results"]] == [
        (True, {"baseline", "glec"})
    ] * 2


@pytest.mark.parametrize(
    ("arguments", "brokers"),
    [(["raw"], ["default", "nodelay", "raised"]), (["baseline", "--brokers", "nodelay"], ["nodelay"])],
)
def test_contender_runs_on_its_own(arguments: list[str], brokers: list[str]) -> None:
    contender = arguments[0]
    report = report_of("--contenders", *arguments)
    assert [(result["broker"], result["qos"]) for result in report["results"]] == [
        (broker, qos) for broker in brokers for qos in (1, 2)
    ]
    for result in report["results"]:
        assert set(result["contenders"]) == {contender}
        assert set(result["contenders"][contender]) == FIGURES


def test_glec_is_set_against_raw_synced_and_baseline() -> None:
    report = report_of("--brokers", "default", "--large", str(2 * MESSAGES))
    for result in report["results"]:
        figures = result["contenders"]
        assert set(figures) == {"raw", "synced", "baseline", "glec", "glec-large"}
        assert all(figures["glec"][key] > 0 for key in FIGURES - {"rate_msg_s_by_round", WRITTEN})
        assert (figures["glec"][WRITTEN] > 0) is is_counted()
        assert figures["glec-large"]["messages"] == 2 * MESSAGES
        assert figures["glec-large"]["rate_ratio_to_glec"] > 0


def test_ratio_without_its_baseline_is_null() -> None:
    (result,) = report_of("--contenders", "raw", "--brokers", "default", "--qos", "1")["results"]
    assert result["contenders"]["raw"]["rate_ratio_to_raw"] == 1
    assert result["contenders"]["raw"]["cpu_ratio_to_baseline"] is None


def test_table_names_the_baseline_of_each_ratio() -> None:
    done = run_bench("--contenders", "raw,baseline", "--brokers", "default", "--qos", "2")
    assert done.returncode == 0, done.stderr
    assert "QoS 2, default broker, 300 bytes" in done.stdout
    for column in ("of raw", "of baseline CPU", "x 100 msg/s"):
        assert column in done.stdout


@pytest.mark.parametrize("arguments", [("--contenders", "nobody"), ("--qos", "0"), ("--rounds", "0")])
def test_wrong_argument_is_refused(arguments: tuple[str, str]) -> None:
    done = run_bench(*arguments)
    assert done.returncode == 2
    assert arguments[0] in done.stderr


def test_harness_counts_what_the_broker_hands_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(bench.BENCHES)
    import harness

    with harness.mosquitto(nodelay=True) as broker, Subscriber(broker, harness.ALL_TOPICS) as subscriber:
        harness.run_contender("raw", broker.port, 2, MESSAGES, 10, 20, tmp_path / "queue.db")
        assert harness.counted(subscriber) == (MESSAGES, MESSAGES)
    assert not broker.is_running


def test_baseline_keeps_rows_that_no_broker_has_acknowledged(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(bench.BENCHES)
    import baseline_manager
    import harness

    path = tmp_path / "queue.db"
    manager = baseline_manager.BaselineManager("127.0.0.1", free_port(), "DTG-BENCH", path, max_inflight=20)
    assert manager.publish("glec/dtg/DTG-BENCH/alerts", {"severity": "HIGH"}, 2)
    manager.disconnect()
    with sqlite3.connect(path) as db:
        assert db.execute("SELECT payload, qos FROM mqtt_offline_queue").fetchall() == [('{"severity": "HIGH"}', 2)]
    db.close()
    assert harness.count_rows(path) == 1


def test_connecting_is_set_against_paho() -> None:
    command = ("bench_connect.py", "--rounds", 2, "--brokers", "nodelay")
    done = bench.run(*command, "--json")
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)["results"]
    assert [(result["broker"], result["mode"]) for result in results] == [("nodelay", "server"), ("nodelay", "mutual")]
    for result in results:
        assert set(result["contenders"]) == {"raw", "paho", "paho-async", "glec"}
        assert result["contenders"]["paho"]["ratio_to_paho"] == 1
        assert result["met"] == (result["ratio"] <= result["bar"] == 1.2)
        assert all(len(figures["connect_s_by_round"]) == 2 for figures in result["contenders"].values())
    done = bench.run(*command, "--modes", "server")
    assert "(bar: at most 1.2)" in done.stdout


SMALL_COST = (
    *("bench_cost.py", "--rounds", "1", "--messages", "300", "--rate", "3000", "--rows", "400", "--few-rows", "200"),
    *("--acknowledged", "50"),
)


def test_the_cost_of_exactly_once_is_set_against_its_bars_and_the_table_says_which_are_missed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done = bench.run(*SMALL_COST, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert [flush["broker"] for flush in report["flush"]] == ["raised", "default"]
    for flush in report["flush"]:
        assert flush["rate_ratio_to_raw"] == pytest.approx(flush["rate_msg_s"] / flush["raw_rate_msg_s"])
        # Opening, flushing and closing a queue synchronises some file.
        assert flush["syncs_per_message"] > 0
    assert set(report["bytes"]) == {"one_transaction_a_message", "qos0", "qos1", "qos2", "qos2-waiting"}
    few, many = report["start"]
    assert (few["rows"], many["rows"]) == (200, 400)
    assert many["file_bytes"] > few["file_bytes"]
    assert few["connack_to_publish_s"] > 0
    assert [bar["limit"] for bar in report["bars"]] == [0.8, 0.02, 2500, 2500, 2500, 1, 1 << 20]
    for bar in report["bars"]:
        reached = bar["value"] >= bar["limit"] if bar["limit"] == 0.8 else bar["value"] <= bar["limit"]
        assert bar["met"] == reached

    monkeypatch.syspath_prepend(bench.BENCHES)
    import bench_cost

    monkeypatch.setattr(bench_cost, "measure", lambda *_: report)
    monkeypatch.setattr(sys, "argv", list(SMALL_COST))
    assert bench_cost.main() == 0
    table = capsys.readouterr().out
    verdicts = [line for line in table.splitlines() if "(bar: " in line]
    assert [line.split()[0] for line in verdicts] == ["met" if bar["met"] else "MISSED" for bar in report["bars"]]
    assert "one transaction a message" in table


def test_a_cost_that_would_empty_the_file_is_refused() -> None:
    done = bench.run(*SMALL_COST, "--acknowledged", 200)
    assert done.returncode == 2
    assert "--acknowledged" in done.stderr


def test_the_simulated_restart_connects_all_and_jitter_spreads_them(tmp_path: Path) -> None:
    pytest.importorskip("numpy")
    plot = tmp_path / "restart.svg"
    command = ("simulate_restart.py", "--gateways", 100, 3000, "--rate", 500)
    done = bench.run(*command, "--backlog", 500, "--runs", 1, "--svg", plot, "--json")
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)["results"]
    assert [(result["gateways"], result["jitter"]) for result in results] == [
        (count, jitter) for count in (100, 3000) for jitter in ("none", "full", "equal", "decorrelated")
    ]
    for result in results:
        assert result["last_s"] is not None
        assert result["last_s"] >= result["percent_99_s"] >= result["half_s"] >= 0
        assert result["last_s"] >= result["gateways"] / 500 - 1
        assert result["attempts"] >= result["gateways"]
    for none, *jittered in (results[:4], results[4:]):
        assert none["peak_attempts_per_s"] == none["gateways"]
        assert all(result["peak_attempts_per_s"] < none["gateways"] / 5 for result in jittered)
    assert plot.read_text().count("<polyline") == 8


def test_what_a_topic_alias_takes_off_the_wire() -> None:
    done = bench.run("bench_wire.py", "--messages", "50", "--json")
    assert done.returncode == 0, done.stderr
    by_setting = {each["setting"]: each for each in json.loads(done.stdout)["results"]}
    plain, with_alias = by_setting["MQTT 5, no alias"], by_setting["MQTT 5, topic alias"]
    for kind in ("live", "flushed"):
        # The first message names it.
        assert plain[kind] - with_alias[kind] > 28, by_setting


def test_the_footprint_is_measured_in_all_its_parts() -> None:
    small = "--messages 100 --reconnects 1 --flash-messages 60 --air-messages 60 --keepalive 1 --intervals 1 --rounds 1"
    # Memory is a process's.
    command = [sys.executable, str(bench.BENCHES / "bench_footprint.py"), *small.split(), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert all(each["peak"] >= each["import"] > 0 for each in report["memory"])
    assert max(each["peak"] for each in report["memory"]) < PEAK_KIB_MAX
    assert [each["module"] for each in report["import"]] == ["paho.mqtt.client", "glec_fast"]
    bytes_of = [each["tls_bytes_per_message"] for each in report["air"]]
    assert bytes_of
    assert all(gathered * 4 < single for single, gathered in zip(bytes_of[::2], bytes_of[1::2], strict=True))
    assert len(report["flash"]) == 7
    assert report["alert"][0]["p50"] > 0
    assert report["idle"]


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_a_flush_beside_programs_in_c() -> None:
    done = bench.run("bench_beside_c.py", "--rounds", "1", "--messages", "300", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    # The others need headers that a machine may not have; then it says so.
    assert {"C, ready-made", "glec-fast, durable"} == report["sink"].keys()
    for name in ("tls", "sink", "publish"):
        assert "left out" in report[name] or all(each["rate_msg_s"] > 0 for each in report[name].values())


def test_durable_publishers_are_killed_and_counted(tmp_path: Path) -> None:
    options = ["--contenders", "glec-fast", "--messages", "50", "--rounds", "1", "--kills", "2"]
    files = ["--json", str(tmp_path / "durable.json"), "--plot", str(tmp_path / "durable.svg")]
    done = bench.run("bench_durable.py", *options, *files)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "durable.json").read_text())["results"]
    assert [(each["contender"], each["qos"]) for each in results] == [
        ("glec-fast", 1),
        ("glec-fast", 2),
    ]
    for each in results:
        assert min(each["rate_msg_s"], each["cpu_us_per_message"]) > 0
        assert (each[WRITTEN] > 0) is is_counted()
        assert each["accepted"] > 0
        assert each["lost"] == 0
        assert each["qos"] == 1 or each["doubled"] == 0
    assert (tmp_path / "durable.svg").read_text().count("<rect") == 1 + len(results)


def test_a_message_that_is_accepted_and_never_arrives_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """A contender that keeps nothing: the count must see it."""
    monkeypatch.syspath_prepend(bench.BENCHES)
    import bench_durable

    forgets = "import sys; print('ready', *range(9), sep=chr(10), flush=True)"
    monkeypatch.setattr(bench_durable, "QUIET_S", 0.1)
    figures = bench_durable.trouble(
        bench_durable.CONTENDERS[0], [sys.executable, "-c", f"{forgets}; sys.stdin.read()"], 1, 1, None
    )
    assert figures["lost"] == figures["accepted"] > 0


def test_weeks_without_a_link_keep_results_and_alerts_and_a_coarser_way(tmp_path: Path) -> None:
    plot = tmp_path / "weeks.svg"
    small = ["--days", "0.02", "--alerts-a-day", "500", "--queue-max-size", "400", "--svg", str(plot)]
    done = bench.run("simulate_weeks.py", *small, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    accepted, kept = result["accepted"], result["kept"]
    assert accepted == {"telemetry, QoS 0": 1728, "results, QoS 1": 29, "alerts, QoS 2": 10}
    assert (kept["results, QoS 1"], kept["alerts, QoS 2"]) == (29, 10)
    assert 200 < kept["telemetry, QoS 0"] <= 361
    assert result["longest_gap_s"] < 60, "all of the way"
    assert plot.read_text().startswith("<svg")


def test_asyncio_beside_its_peers_and_what_a_flush_does_to_the_loop() -> None:
    pytest.importorskip("aiomqtt", reason="aiomqtt is not installed: pip install -e '.[bench]'")
    counts = ["--rounds", "1", "--messages", "200", "--sequence", "5", "--backlog", "500", "--tasks", "20"]
    done = bench.run("bench_aio.py", *counts, "--contenders", "glec", "aiomqtt", "--json")
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)["results"]
    assert all(results[name][key] > 0 for name in ("glec", "aiomqtt") for key in ("sequence", "concurrent"))
    assert {"callback_p999_ms", "callback_cpu_max_ms", "late_max_ms"} <= results["flush"].keys()
