"""`glec-fast plan`: its figures against runs that were measured, within a tenth, and what it refuses."""

from __future__ import annotations

import json
import socket
import struct
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from glec_fast import MQTTConfig, MQTTManager, OfflineQueueManager
from glec_fast.cli.main import main
from glec_fast.cli.plan.air import DAY_S, SEGMENT_BYTES, over_the_air
from glec_fast.cli.plan.load import Stream, from_drive, from_rate, timeline
from glec_fast.cli.plan.trial import try_out
from glec_fast.fleet.device import disk_written_bytes
from glec_fast.testbed.link import Link
from glec_fast.tls.config import TLSConfig
from support.gateway import TIMEOUT_S, eventually, quick_config
from support.written import is_counted

if TYPE_CHECKING:
    from collections.abc import Callable

    from glec_fast.testbed.broker import Broker

NOBODY = "tcp://127.0.0.1:1"


@pytest.fixture
def on_disk(disk_folder: Path) -> Path:
    """A folder of which the kernel says what is written."""
    if not is_counted(disk_folder):
        pytest.skip("the kernel does not say what is written there")
    return disk_folder


def play(manager: MQTTManager, streams: list[Stream], seconds: float) -> float:
    """The load at its pace; returns how late a message was at most."""
    began_s, latest_s = time.monotonic(), 0.0
    for message in timeline(streams):
        if message.at_s >= seconds:
            return latest_s
        time.sleep(max(began_s + message.at_s - time.monotonic(), 0))
        latest_s = max(latest_s, time.monotonic() - began_s - message.at_s)
        manager.publish(message.topic, message.payload, message.qos)
    return latest_s


def near(found: float, measured: float) -> bool:
    """Within a fifth, as runs of seconds are; those of minutes come within a tenth."""
    return abs(found - measured) <= measured / 5


def compare(found: float, measure: Callable[[], tuple[float, float]], may_be_late_s: float) -> None:
    """With what was measured, again where the machine was too busy for the load's pace: (figure, lateness)."""
    seen = []
    for _ in range(3):
        measured, late_s = measure()
        if near(found, measured):
            return
        seen.append((measured, late_s))
        if late_s <= may_be_late_s:
            break
    if seen[-1][1] > may_be_late_s:
        pytest.skip(f"the machine is too busy for the pace of the load: {seen}")
    pytest.fail(f"{found} is not near {seen}")


def test_flash_without_a_link(on_disk: Path) -> None:
    streams = [from_rate("0:80:250", "D"), from_rate("1:4:300", "D"), from_rate("2:2:200", "D")]
    # As five a second, twenty times as fast.
    config = quick_config(NOBODY, on_disk, qos0_commit_delay_s=0.0625)

    def measure() -> tuple[float, float]:
        with MQTTManager(config) as manager:
            play(manager, streams, 1.0)
            manager.publish("t", "x", 2)
            before = disk_written_bytes()
            late_s = play(manager, streams, 6.0)
            manager.publish("t", "x", 2)
            return (disk_written_bytes() - before) / 6, late_s

    compare(try_out(streams, config, on_disk).offline_per_s, measure, 0.01)


def test_flash_with_a_link(broker: Broker, on_disk: Path) -> None:
    streams = [from_rate("0:5:250", "D"), from_rate("1:1.5:300", "D"), from_rate("2:1/2:200", "D")]
    config = quick_config(broker.url, on_disk)

    def measure() -> tuple[float, float]:
        with MQTTManager(config) as manager:
            manager.connect()
            assert eventually(manager.is_connected)
            manager.publish("t", "x", 2).wait_for_publish(TIMEOUT_S)
            assert manager.flush(TIMEOUT_S)
            before = disk_written_bytes()
            late_s = play(manager, streams, 8.0)
            assert manager.flush(TIMEOUT_S)
            return (disk_written_bytes() - before) / 8, late_s

    compare(try_out(streams, config, on_disk).online_per_s, measure, 0.1)


@pytest.mark.parametrize(
    ("limits", "limit"),
    [({"queue_max_size": 700}, "queue_max_size"), ({"queue_max_bytes": 1_000_000}, "queue_max_bytes")],
)
def test_hours_that_fit(on_disk: Path, limits: dict[str, int], limit: str, capsys: pytest.CaptureFixture[str]) -> None:
    (name, value), *_ = limits.items()
    arguments = ["--rate", "1:1:600", "--set", f"{name}={value}", "--directory", str(on_disk), "--json"]
    assert main(["plan", *arguments]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert planned["limit"] == limit
    with MQTTManager(quick_config(NOBODY, on_disk, **limits)) as manager:
        fits = 0
        while not manager.get_metrics().drops:
            for _ in range(10):
                handle = manager.publish("glec/dtg/DTG-SN-12345/qos1", "x" * 600, 1)
            handle.wait_durable(TIMEOUT_S)
            fits += 10
    assert near(planned["hours"] * 3600, fits), (planned["hours"] * 3600, fits)


def segments_of(manager: MQTTManager) -> int:
    """That this connection has sent and received, as the kernel counts them (tcp_info)."""
    sock: Any = manager._client.socket()
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    return sum(struct.unpack_from("II", info, 136))


@pytest.mark.parametrize("protocol_version", [4, 5])
def test_bytes_over_the_air(tls_broker: Broker, authority: Any, tmp_path: Path, protocol_version: int) -> None:
    streams = [from_rate("0:10:250", "D"), from_rate("1:2:300", "D"), from_rate("2:2:200", "D")]
    with Link((tls_broker.host, tls_broker.tls_port)) as link:
        config = quick_config(
            f"ssl://127.0.0.1:{link.port}",
            tmp_path,
            tls_config=TLSConfig(authority.certificate_path),
            protocol_version=protocol_version,
        )

        def measure() -> tuple[float, float]:
            with MQTTManager(config) as manager:
                manager.connect()
                assert eventually(manager.is_connected)
                # Tickets of TLS, and what follows the login.
                manager.publish("t", "x", 2).wait_for_publish(TIMEOUT_S)
                time.sleep(0.3)
                bytes_before, segments_before = link.bytes_up + link.bytes_down, segments_of(manager)
                late_s = play(manager, streams, 4.0)
                assert manager.flush(TIMEOUT_S)
                # An acknowledgement may wait for company for 40 ms.
                time.sleep(0.3)
                segments = segments_of(manager) - segments_before
                moved = link.bytes_up + link.bytes_down - bytes_before + segments * SEGMENT_BYTES
                return moved / 4, late_s

        planned = over_the_air(streams, config)["topic alias" if protocol_version == 5 else "plain"]
        assert planned is not None
        compare(planned.per_day / DAY_S, measure, 0.02)


def test_batches_need_content(tmp_path: Path) -> None:
    config = MQTTConfig("ssl://h", "D")
    assert over_the_air([from_rate("0:1:250:telemetry", "D")], config)["batches"] is None
    bill = over_the_air(from_drive(None, "D"), config)
    assert bill["plain"] is not None
    assert bill["batches"] is not None
    assert bill["topic alias"] is not None
    assert bill["batches"].per_day < bill["plain"].per_day / 5
    assert bill["topic alias"].per_day < bill["plain"].per_day


def test_a_queue_file_is_a_load(on_disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = on_disk / "queue.db"
    with OfflineQueueManager(path) as queue:
        queue.enqueue_many([("glec/dtg/D/telemetry", '{"a":1}', 0)] * 100)
        queue._store.run(
            lambda _table: queue._store._writer.connection.execute(
                "UPDATE mqtt_offline_queue SET timestamp = timestamp + id * 100"
            )
        )
        assert main(["plan", "--queue", str(path), "--directory", str(on_disk), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["streams"] == [
            {"topic": "glec/dtg/D/telemetry", "qos": 0, "per_s": pytest.approx(10, rel=0.02), "payload_bytes": 7.0}
        ]
        assert found["air_per_month"]["batches"] < found["air_per_month"]["plain"]


def test_the_page_fits_a_terminal(on_disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--rate", "0:1:250", "--rate", "2:1/3600:200:alerts", "--directory", str(on_disk)]
    assert main(["plan", *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert list(on_disk.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--rate", "0:1"], "--rate 0:1 must be QOS:RATE:BYTES"),
        (["--rate", "3:1:1"], "QOS must be 0, 1 or 2"),
        (["--rate", "0:1/0:1"], "RATE a number or a fraction"),
        (["--rate", "0:nan:1"], "RATE 0.000001 to 1000 a second"),
        (["--rate", "0:1:1:a/#"], "has a wildcard"),
        (["--set", "queue_max"], "--set queue_max is no setting"),
        (["--set", "queue_max_size=x"], "--set queue_max_size: it must be a whole number"),
        (["--set", "queue_max_size=0"], "queue_max_size must be a whole number from 1"),
        (["--directory", "/nowhere"], "there is no folder /nowhere"),
        (["--drive", "/nowhere.csv"], "/nowhere.csv"),
        (["--queue", "/nowhere.db"], "/nowhere.db is no file"),
        (["--config", "/nowhere"], "/nowhere cannot be read"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *arguments]) == 2
    said = capsys.readouterr()
    assert says in said.err
    assert (said.out, said.err.count("\n")) == ("", 1)
