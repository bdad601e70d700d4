"""The demo: its verdict, its scenario from end to end, its command line, and what a broken product makes of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from glec_fast.cli.demo.drive import Drive, Kind
from glec_fast.cli.demo.report import PlainReport, verdict_line, write_table
from glec_fast.cli.demo.run import DemoRunError, DemoSettings, find_broker, run_demo
from glec_fast.cli.demo.verdict import Batches, CommandCounts, Ledger, Measures, identify, split
from glec_fast.cli.main import main
from glec_fast.fleet.batches import encode_batch
from support.places import REPOSITORY, SHARED_DATA

RECORDING = SHARED_DATA / "drive6_1hz.csv.gz"
KEYS = {
    "published", "received", "lost", "duplicates", "unconfirmed", "flush_rate_msg_s", "kills", "queue_peak",
    "disk_bytes", "memory_bytes", "broker", "command",
}  # fmt: skip
SHORT = Drive(duration_s=600)
FAST = 300.0


# ---- the verdict


@pytest.fixture
def ledger():
    """A drive of which every message is on disk, and the tally of a perfect broker."""
    ledger = Ledger.of(SHORT.messages(0))
    ledger.begun = set(range(len(ledger.qos_of)))
    ledger.safe = set(ledger.begun)
    tally = {(identity, ledger.qos_of[number]): 1 for identity, number in ledger.numbers.items()}
    return ledger, tally


def first(ledger: Ledger, kind: Kind) -> tuple[tuple[str, int], int]:
    return next((identity, kind.qos) for identity in ledger.numbers if identity[0] == kind.topic)


def test_the_messages_of_a_batch_count_as_each_alone():
    messages = [b'{"timestamp":1}', b'{"timestamp":2}']
    payload = encode_batch(messages)
    assert list(split("glec/dtg/x/telemetry/batch", payload)) == [("glec/dtg/x/telemetry", each) for each in messages]
    assert list(split("glec/dtg/x/alerts", payload)) == [("glec/dtg/x/alerts", payload)]
    assert list(split("glec/dtg/x/telemetry/batch", b"[]")) == []
    arrivals = [("glec/dtg/x/telemetry/batch", payload, 0), ("glec/dtg/x/alerts", b"{}", 2)]
    assert Batches.of(arrivals) == (1, 2, len(payload), 30)


def test_all_received_once_is_good(ledger):
    ledger, tally = ledger
    result = ledger.judge(tally, Measures(), "b")
    assert result.ok
    assert result.published == result.received
    assert sum(result.published.values()) == len(ledger.qos_of)
    assert verdict_line(result) == f"OK: {len(ledger.qos_of)} messages, none lost"


@pytest.mark.parametrize("kind", Kind)
def test_one_message_lost_from_disk_fails_at_any_qos(ledger, kind):
    ledger, tally = ledger
    del tally[first(ledger, kind)]
    result = ledger.judge(tally, Measures(), "b")
    assert not result.ok
    assert result.lost[str(kind.qos)] == 1
    assert result.published[str(kind.qos)] == result.received[str(kind.qos)] + 1


@pytest.mark.parametrize(("kind", "ok"), [(Kind.ALERT, False), (Kind.INFERENCE, True), (Kind.TELEMETRY, True)])
def test_a_second_copy_fails_only_at_qos_2(ledger, kind, ok):
    ledger, tally = ledger
    tally[first(ledger, kind)] += 1
    result = ledger.judge(tally, Measures(), "b")
    assert result.ok is ok
    assert result.duplicates[str(kind.qos)] == 1


def test_a_second_copy_at_another_qos_is_still_a_duplicate(ledger):
    ledger, tally = ledger
    identity, _ = first(ledger, Kind.ALERT)
    tally[identity, 1] = 1
    assert not ledger.judge(tally, Measures(), "b").ok


def test_what_was_never_said_to_be_on_disk_is_unconfirmed_and_not_lost(ledger):
    ledger, tally = ledger
    entry = first(ledger, Kind.TELEMETRY)
    ledger.safe.discard(ledger.numbers[entry[0]])
    del tally[entry]
    result = ledger.judge(tally, Measures(), "b")
    assert result.ok
    assert result.unconfirmed == {"0": 1, "1": 0, "2": 0}
    assert sum(result.published.values()) + 1 == len(ledger.begun)


def test_strange_messages_count_for_nothing(ledger):
    ledger, tally = ledger
    tally["status", -1] = 1
    tally["elsewhere", 0] = 1
    assert ledger.judge(tally, Measures(), "b").ok


@pytest.mark.parametrize(("runs", "replies"), [(0, 0), (2, 2), (1, 1)])
def test_a_command_that_did_not_run_once_is_bad(ledger, runs, replies):
    ledger, tally = ledger
    assert not ledger.judge(tally, Measures(command=CommandCounts(2, runs, replies)), "b").ok
    assert ledger.judge(tally, Measures(command=CommandCounts(2, 1, 2)), "b").ok


@pytest.mark.parametrize("payload", [b"", b"{", b"[1]", b'{"timestamp":"soon"}', b"\xff"])
def test_a_payload_that_is_no_message_has_no_identity(payload):
    assert identify("glec/dtg/x/status", payload) is None


# ---- the scenario


class Lines(list):
    """A report that keeps the events."""

    def phase(self, text):
        self.append(text)

    def progress(self, now):
        assert now.published <= now.total

    def close(self):
        pass


@pytest.mark.usefixtures("forked_starts")
def test_nothing_is_lost_over_a_cut_link_and_two_kills():
    lines = Lines()
    result = run_demo(DemoSettings(SHORT, speed=FAST, kills=2), lines)
    assert result.ok, result
    assert result.kills == 2
    assert result.published == result.received
    assert result.duplicates["2"] == 0
    assert result.queue_peak > 100
    assert result.command == CommandCounts(copies=2, runs=1, replies=2)
    assert result.flush_rate_msg_s > 0
    assert min(result.disk_bytes, result.memory_bytes) > 0
    assert sum("killed (SIGKILL)" in line for line in lines) == 2
    assert any(line.startswith("link cut") for line in lines)
    assert any(line.startswith("the vehicle noticed") for line in lines)


@pytest.mark.usefixtures("forked_starts")
def test_nothing_is_lost_where_telemetry_is_gathered():
    result = run_demo(DemoSettings(SHORT, speed=FAST, batch_s=60), Lines())
    assert result.ok, result
    assert result.batches is not None
    assert 1 < result.batches.batches < result.batches.messages == result.received["0"]
    assert result.batches.payload_bytes * 4 < result.batches.alone_bytes


@pytest.mark.usefixtures("forked_starts")
def test_a_recorded_drive_goes_through_the_command_line_as_json(capsys):
    if not RECORDING.exists():
        pytest.skip(f"the recorded drive {RECORDING} is not here; it is not part of the project")
    status = main(["demo", "--json", "--speed", "900", "--drive", str(RECORDING)])
    output = capsys.readouterr().out
    assert output.count("\n") == 1
    result = json.loads(output)
    assert set(result) == KEYS
    assert status == 0, result
    assert result["lost"] == {"0": 0, "1": 0, "2": 0}
    # A kill may fall between the call to publish and its return: that message is nobody's promise.
    for qos, count in (("0", 3468), ("1", 69), ("2", 6)):
        assert result["received"][qos] + result["unconfirmed"][qos] == count
    assert (result["duplicates"]["2"], result["kills"]) == (0, 1)


@pytest.mark.parametrize("secured", [False, True])
def test_a_broker_of_ones_own_is_reached_through_the_link(tls_broker, authority, secured, capsys):
    url = f"ssl://localhost:{tls_broker.tls_port}" if secured else tls_broker.url
    options = ["--ca-cert", str(authority.certificate_path)] if secured else []
    assert main(["demo", "--json", "--speed", "2000", "--broker", url, *options]) == 0
    assert json.loads(capsys.readouterr().out)["broker"].startswith("localhost" if secured else "127.0.0.1")


def test_a_broker_that_does_not_take_what_the_demo_publishes_is_one_line(start_broker, capsys):
    assert main(["demo", "--broker", start_broker(settings=["max_qos 1"]).url]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert "needs a broker that takes QoS 0 to 2" in said.err


@pytest.mark.usefixtures("forked_starts")
def test_a_broker_that_wants_a_password_gets_it_from_the_environment(start_broker, tmp_path, monkeypatch, capsys):
    passwords = tmp_path / "passwords"
    subprocess.run(["mosquitto_passwd", "-b", "-c", str(passwords), "van", "secret"], check=True)
    broker = start_broker(settings=["allow_anonymous false", f"password_file {passwords}"])
    monkeypatch.setenv("GLEC_MQTT_PASSWORD", "wrong")
    assert main(["demo", "--broker", broker.url, "--username", "van"]) == 2
    assert "refused the login: Not authorized" in capsys.readouterr().err
    monkeypatch.setenv("GLEC_MQTT_PASSWORD", "secret")
    assert main(["demo", "--json", "--speed", "2000", "--broker", broker.url, "--username", "van"]) == 0


# ---- a product that breaks its word


@pytest.fixture
def faulty(monkeypatch, forked_starts):
    def settings(fault: str) -> DemoSettings:
        paths = [str(REPOSITORY), str(REPOSITORY / "tests" / "support"), os.environ.get("PYTHONPATH", "")]
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in paths if path))
        monkeypatch.setenv("FAULT", fault)
        return DemoSettings(SHORT, speed=FAST, vehicle_module="faulty_vehicle")

    return settings


def test_a_lost_alert_is_found(faulty):
    result = run_demo(faulty("lose"), Lines())
    assert not result.ok
    # One in each process: before the kill and after it.
    assert result.lost["2"] in (1, 2)
    assert (result.lost["0"], result.lost["1"]) == (0, 0)


def test_a_repeated_alert_is_found(faulty):
    result = run_demo(faulty("repeat"), Lines())
    assert not result.ok
    assert result.duplicates["2"] == result.received["2"] > 0


def test_a_publisher_that_breaks_down_is_a_failure_with_its_last_words(faulty):
    with pytest.raises(DemoRunError, match=r"broke down: .*no alert today"):
        run_demo(faulty("break"), Lines())


def test_the_command_exits_1_for_a_bad_verdict(faulty, monkeypatch, capsys):
    bad = run_demo(faulty("repeat"), Lines())
    monkeypatch.setattr("glec_fast.cli.demo.run.run_demo", lambda settings, report: bad)
    assert main(["demo"]) == 1
    assert "FAILED: of" in capsys.readouterr().out


# ---- the command line


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--speed", "0"], "argument --speed: 0 is not a number above 0"),
        (["--speed", "nan"], "argument --speed: nan is not a number above 0"),
        (["--batch", "3601"], "argument --batch: 3601 is more than 3600"),
        (["--speed", "fast"], "argument --speed: fast is not a number above 0"),
        (["--kills", "-1"], "argument --kills"),
        (["--kills", "1.5"], "argument --kills: 1.5 is not a whole number from 0 to 100"),
        (["--nonsense"], "unrecognized arguments"),
        (["--drive", "no-such-file.csv"], "cannot read the drive no-such-file.csv: No such file or directory"),
        (["--broker", "http://localhost"], "the demo speaks tcp://"),
        (["--broker", "tcp://"], "expected tcp://host:port"),
        (["--broker", "tcp://localhost:99999"], "Port out of range"),
        (["--broker", "tcp://me:secret@localhost"], "no user name or password in the URL"),
        (["--broker", "tcp://127.0.0.1:1"], "no connection to tcp://127.0.0.1:1"),
        (["--broker", "ssl://localhost", "--ca-cert", "no-such.pem"], "no such file of authorities: no-such.pem"),
    ],
)
def test_bad_input_is_one_clear_line_and_status_2(options, complaint, capsys):
    try:
        status = main(["demo", *options])
    except SystemExit as ended:
        status = ended.code
    captured = capsys.readouterr()
    assert status == 2
    assert complaint in captured.err
    assert "secret" not in captured.err
    assert (captured.out, captured.err.count("\n")) == ("", 1)


def test_a_short_drive_is_refused(tmp_path, capsys):
    path = tmp_path / "short.csv"
    path.write_text("t_s,engine_rpm,vehicle_speed_kmh,throttle_position_pct,fuel_level_pct\n0,0,0,0,0\n")
    assert main(["demo", "--drive", str(path)]) == 2
    assert "too short" in capsys.readouterr().err


# A process started in the background of a script inherits an ignored SIGINT, and so would its demo.
INTERRUPTIBLE_DEMO = """
import signal
from glec_fast.cli.main import main
signal.signal(signal.SIGINT, signal.default_int_handler)
raise SystemExit(main())
"""


def test_an_interrupt_ends_every_process_and_leaves_no_files(tmp_path):
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    demo = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTIBLE_DEMO, "demo", "--speed", "20"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, cwd=REPOSITORY, text=True,
    )  # fmt: skip
    with demo:
        assert demo.stdout is not None
        while "connected" not in (line := demo.stdout.readline()):
            assert line, "the demo ended before it connected"
        assert list(tmp_path.iterdir())
        demo.send_signal(signal.SIGINT)
        _, errors = demo.communicate(timeout=20)
    assert (demo.returncode, errors) == (130, "glec-fast: interrupted\n")
    assert list(tmp_path.iterdir()) == []
    assert not [line for line in process_lines() if str(tmp_path) in line]


def process_lines() -> list[str]:
    return [command_line(path) for path in Path("/proc").glob("[0-9]*/cmdline")]


def command_line(path: Path) -> str:
    with suppress(FileNotFoundError, ProcessLookupError):
        return path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


def test_the_plain_table_lines_up(ledger, capsys):
    ledger, tally = ledger
    write_table(ledger.judge(tally, Measures(kills=1, flushed_messages=500, flush_s=0.1), "b"), sys.stdout)
    output = capsys.readouterr().out
    header, *rows = output.strip().splitlines()[:4]
    assert header.split() == ["published", "received", "lost", "duplicates", "unconfirmed"]
    assert len({len(row) for row in rows}) == 1
    assert "5,000 msg/s" in output


def test_the_plain_report_writes_a_line_for_each_event(capsys):
    report = PlainReport(sys.stdout)
    report.phase("link cut")
    report.close()
    assert capsys.readouterr().out.endswith("s] link cut\n")


def test_without_the_package_that_makes_certificates_it_runs_without_tls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "glec_fast.testbed.certificates", None)
    with ExitStack() as stack:
        vehicle, subscriber, name = find_broker(DemoSettings(drive=SHORT), tmp_path, stack)
        assert (vehicle.ca_cert, vehicle) == (None, subscriber)
        assert "without TLS" in name
        assert "pip install 'glec-fast[cli]'" in name
