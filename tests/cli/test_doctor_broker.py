"""What the doctor says of a broker that is named by a URL alone, and of a port that is spoken to in the wrong way."""

from __future__ import annotations

import json
import re
import socket
from typing import TYPE_CHECKING, Any

import pytest

from glec_fast.cli.doctor.broker import CHECKS
from glec_fast.cli.main import main
from glec_fast.testbed.subscriber import Subscriber
from support.doctor import Report
from support.loopback import LoopbackServer
from support.properties_file import write_properties
from support.proxies import HTTPProxy

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import StartBroker
    from glec_fast.testbed.broker import Broker


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str]) -> Any:
    def asked(*arguments: str) -> Report:
        status = main(["doctor", *arguments, "--json"])
        return Report(status, capsys.readouterr().out)

    return asked


def test_a_url_alone(broker: Broker, ask: Any) -> None:
    # On a busy machine our kernel's acknowledgement may not be late.
    report = next(
        (each for each in (ask(broker.url) for _ in range(5)) if each.status_of("answers") == "warning"), None
    )
    assert report is not None
    assert report.status == 0, report.text
    assert not {"queue", "disk"} & set(report.findings)
    assert report.found("versions") == "it speaks MQTT 3.1.1 and MQTT 5"
    found = {check: report.status_of(check) for check in CHECKS}
    # mosquitto as it comes answers late, unless this machine is later still.
    assert found.pop("answers") == "ok" or "Nagle" in report.found("answers")
    assert set(found.values()) == {"ok"}
    assert "20 messages unacknowledged at once" in report.found("limits")


def test_over_tls_and_without_nagle(start_broker: StartBroker, authority: Any, ask: Any) -> None:
    broker = start_broker(certificate=authority.issue_server(), nodelay=True)
    report = ask(broker.tls_url, "--ca-cert", str(authority.certificate_path))
    assert report.status == 0, report.text
    assert {report.status_of(check) for check in CHECKS} == {"ok"}


def test_it_leaves_nothing_behind(broker: Broker, ask: Any) -> None:
    assert ask(broker.url, "--device-id", "D").status_of("retain") == "ok"
    with Subscriber(broker, "#") as subscriber:
        # What is retained comes before it.
        assert main(["pub", "--broker", broker.url, "-t", "end", "-m", "x"]) == 0
        assert subscriber.wait_for_count(1)
        assert [each.topic for each in subscriber.arrivals] == ["end"]
        assert ask(broker.url, "--device-id", "D").status_of("retain") == "ok"
        assert {each.topic for each in subscriber.arrivals} == {"end", "glec-fast/doctor/D-doctor"}


@pytest.mark.parametrize(
    ("settings", "check", "found", "advice"),
    [
        (["max_qos 1"], "qos 2", "it ends the connection over QoS 2", "set max_qos"),
        (["max_qos 0"], "qos 2", "it ends the connection over QoS 2", "max_qos) to 0"),
        (["retain_available false"], "retain", "", "set status_retained to false"),
        (["max_packet_size 10000"], "limits", "packets of 10,000 bytes", ""),
        (["persistent_client_expiration 1h"], "session", "it keeps a session", ""),
    ],
)
def test_what_a_broker_does_not_do(
    start_broker: StartBroker, ask: Any, settings: list[str], check: str, found: str, advice: str
) -> None:
    report = ask(start_broker(settings=settings).url)
    assert report.status == 0, report.text
    assert found in report.found(check)
    assert advice in report.findings[check]["advice"]
    assert (report.status_of(check) == "warning") == bool(advice)


def test_the_commands_go_through_the_gateways_proxy(broker: Broker, ask: Any, tmp_path: Path) -> None:
    proxy = HTTPProxy()
    try:
        properties = write_properties(tmp_path, broker.url, proxy_url=f"http://127.0.0.1:{proxy.port}")
        report = ask("--config", str(properties), "--device-id", "D", "--probe")
        assert report.status == 0, report.text
        assert report.found("tcp").startswith(f"127.0.0.1 port {proxy.port} answers")
        assert (report.status_of("login"), report.found("qos 2")) == ("ok", "it is not tried out through a proxy")
        assert main(["pub", "--config", str(properties), "--device-id", "D", "-t", "t", "-m", "x"]) == 0
        assert len(proxy.requests) == 2
    finally:
        proxy.close()


def test_the_commands_connect_from_the_gateways_address(broker: Broker, ask: Any, tmp_path: Path) -> None:
    properties = write_properties(tmp_path, broker.url, connection_local_address="127.0.0.3")
    assert ask("--config", str(properties), "--device-id", "D", "--probe").status == 0
    assert main(["pub", "--config", str(properties), "--device-id", "D", "-t", "t", "-m", "x"]) == 0
    named = re.findall(r"New client connected from ([\d.]+)", broker.log_text())
    assert set(named) == {"127.0.0.3"}
    assert len(named) > 5


def test_mqtt_5_names_its_highest_qos(start_broker: StartBroker, ask: Any, tmp_path: Path) -> None:
    broker = start_broker(settings=["max_qos 1"])
    properties = write_properties(tmp_path, broker.url)
    with properties.open("a") as file:
        file.write("mqtt.protocol.version=5\n")
    report = ask("--config", str(properties), "--device-id", "D", "--probe")
    assert report.found("qos 2") == "it takes QoS 1 at most, as it says"


def test_a_tls_port_in_the_clear_and_the_other_way_round(tls_broker: Broker, authority: Any, ask: Any) -> None:
    report = ask(f"tcp://127.0.0.1:{tls_broker.tls_port}")
    assert report.failed() == {"login"}
    assert report.found("login") == "TLS is spoken there, and it was spoken to in the clear"
    report = ask(f"ssl://127.0.0.1:{tls_broker.port}", "--ca-cert", str(authority.certificate_path))
    assert report.failed() == {"tls"}
    assert report.found("tls") == "the peer does not speak TLS on this port, but MQTT in the clear"
    assert {report.status_of(check) for check in CHECKS} == {"skipped"}


def test_a_broker_that_closes_before_connack(ask: Any) -> None:
    def hang_up(sock: socket.socket) -> None:
        with sock:
            sock.recv(1000)

    with LoopbackServer(hang_up) as peer:
        report = ask(f"tcp://127.0.0.1:{peer.port}")
    assert report.failed() == {"login"}
    assert report.found("login") == "the broker closed the connection before CONNACK"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["host:1883"], "broker_url must begin with one of tcp://"),
        (["tcp://h", "--config", "x"], "URL and --config name two brokers"),
        (["--ca-cert", "x"], "--ca-cert belongs to URL"),
        (["--username", "x"], "--username belongs to URL"),
        (["tcp://h", "--ca-cert", "x"], "tls_config is set but broker_url is not encrypted"),
    ],
)
def test_what_cannot_be(arguments: list[str], says: str, ask: Any) -> None:
    report = ask(*arguments)
    assert report.status == 1
    assert says in report.found("settings")
    assert json.loads(report.text)["ok"] is False
