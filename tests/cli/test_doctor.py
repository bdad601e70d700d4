"""The doctor names the cause of each failure, and finds nothing where all is well; pin prints what a server shows."""

from __future__ import annotations

import gc
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from glec_fast import MQTTManager
from glec_fast.cli.main import main
from support.doctor import CHECKS, Doctor
from support.gateway import Recorder, quick_config
from support.loopback import LoopbackServer
from support.properties_file import write_properties
from support.tls_cases import CASES, GOOD, NOT_A_PIN_OF_ANYONE, Case, Cases, Good, new_authority, pin_of
from support.tls_peer import CountingRelay, TLSPeer

if TYPE_CHECKING:
    from conftest import StartBroker
    from glec_fast.testbed.broker import Broker

# The check that must fail, and what it must say.
CAUSES = {
    "unknown_ca": ("chain", "not signed by a trusted authority"),
    "wrong_host": ("hostname", "not for localhost"),
    "common_name_only": ("hostname", "not for localhost"),
    "common_name_beside_another_name": ("hostname", "not for localhost"),
    "revoked": ("chain", "is revoked"),
    "revoked_tls_1_2": ("chain", "is revoked"),
    "revoked_where_names_are_not_verified": ("chain", "is revoked"),
    "revoked_though_pinned": ("chain", "is revoked"),
    "revoked_intermediate": ("chain", "is revoked"),
    "revoked_by_an_intermediate_that_is_trusted_alone": ("chain", "is revoked"),
    "intermediate_without_a_list": ("chain", "has no list of the authority"),
    "list_of_another_authority": ("chain", "has no list of the authority"),
    "list_that_has_expired": ("chain", "that has expired"),
    "list_not_yet_in_force": ("chain", "not yet in force"),
    "list_signed_by_another_key": ("chain", "its authority did not sign"),
    "intermediate_as_the_only_authority": ("chain", "is no root"),
    "another_intermediate_of_the_same_root": ("chain", "not signed by a trusted authority"),
    "expired": ("expiry", "has expired"),
    "not_yet_valid": ("expiry", "not yet valid"),
    "revoked_pin": ("pins", "is pinned"),
    "wrong_pin": ("pins", "is pinned"),
    "wrong_pin_tls_1_2": ("pins", "is pinned"),
    "man_in_the_middle_of_the_same_ca": ("pins", "someone is between"),
    "man_in_the_middle_who_shows_the_pinned_certificate_too": ("pins", "is pinned"),
    "tls_1_0": ("tls", "it offers TLSv1 with"),
    "tls_1_1": ("tls", "it offers TLSv1.1 with"),
    "tls_1_2_where_1_3_is_wanted": ("tls", "it offers TLSv1.2 with"),
    "rsa_key_exchange": ("tls", "it offers TLSv1.2 with AES256-GCM-SHA384"),
    "cbc_suite": ("tls", "it offers TLSv1.2 with ECDHE-ECDSA-AES256-SHA384"),
    "no_encryption": ("tls", "it offers TLSv1.2 with ECDHE-ECDSA-NULL-SHA"),
    "finite_field_dh": ("tls", "it offers TLSv1.2 with DHE-RSA-AES256-GCM-SHA384"),
    "client_certificate_missing_tls_1_2": ("client certificate", "wants a client certificate, and none is set"),
    "client_certificate_missing_tls_1_3": ("client certificate", "wants a client certificate"),
    "client_certificate_missing_where_no_tickets_come": ("client certificate", "wants a client certificate"),
    "client_certificate_of_another_tls_1_2": ("client certificate", "refuse"),
    "client_certificate_of_another_tls_1_3": ("client certificate", "refuse"),
    "client_certificate_expired": ("client certificate", "refuse"),
    "plain_tcp": ("tls", "does not speak TLS"),
    "closes_at_once": ("tls", "closed the connection"),
}
# A wrong clock is the other thing that it may mean; our own certificate's end is told of beside the broker's.
ALSO_FAILED = {"not_yet_valid": {"clock"}, "client_certificate_expired": {"expiry"}}


@pytest.fixture
def doctor(capsys: pytest.CaptureFixture[str]) -> Doctor:
    return Doctor(capsys)


@pytest.fixture
def cases(tmp_path: Path) -> Cases:
    return Cases(new_authority(tmp_path, "trusted"), tmp_path)


def test_every_failure_is_tried() -> None:
    assert set(CAUSES) == set(CASES)


@pytest.mark.parametrize("name", CAUSES)
def test_the_cause_is_named(cases: Cases, name: str, tmp_path: Path, doctor: Doctor) -> None:
    case: Case = getattr(cases, name)()
    check, says = CAUSES[name]
    with case.peer, CountingRelay(case.peer.port) as relay:
        properties = write_properties(
            tmp_path, f"ssl://localhost:{relay.port}", case.tls, broker_username="gateway", broker_password="x" * 8000
        )
        report = doctor(properties)
    assert report.status == 1
    assert report.failed() == {check} | ALSO_FAILED.get(name, set())
    assert says in report.found(check)
    assert report.findings[check]["advice"]
    assert report.status_of("login") == "skipped"
    assert list(report.findings) == CHECKS
    if isinstance(case.peer, TLSPeer):
        assert bytes(case.peer.received) == b"", "nothing of MQTT was sent"


@pytest.mark.parametrize("name", GOOD)
def test_nothing_is_found_where_all_is_well(cases: Cases, name: str, tmp_path: Path, doctor: Doctor) -> None:
    case: Case = getattr(Good(cases), name)()
    with case.peer:
        report = doctor(write_properties(tmp_path, f"ssl://localhost:{case.peer.port}", case.tls))
    assert report.status == 0, report.text
    assert report.all["ok"] is True
    assert report.failed() == set()
    assert report.status_of("login") == "ok"
    assert list(report.findings) == CHECKS


def test_a_stalled_handshake(cases: Cases, tmp_path: Path, doctor: Doctor) -> None:
    def stall(sock: socket.socket) -> None:
        with sock:
            while sock.recv(1000):
                pass

    with LoopbackServer(stall) as peer:
        properties = write_properties(tmp_path, f"ssl://localhost:{peer.port}", cases.trust(), connection_timeout="0.5")
        report = doctor(properties)
    assert report.failed() == {"tls"}
    assert "did not answer in time" in report.found("tls")


def test_a_real_broker(cases: Cases, start_broker: StartBroker, tmp_path: Path, doctor: Doctor) -> None:
    server = cases.authority.issue_server()
    broker = start_broker(certificate=server)
    tls = cases.trust(certificate_pins=[pin_of(server), NOT_A_PIN_OF_ANYONE])
    for url in (f"ssl://localhost:{broker.tls_port}", f"tcp://localhost:{broker.port}"):
        report = doctor(write_properties(tmp_path, url, tls if url.startswith("ssl") else None))
        assert report.status == 0, report.text
        assert "accepted as 'DTG-TEST-doctor'" in report.found("login")
    assert report.status_of("tls") == "warning", "tcp:// is not encrypted"
    report = doctor(write_properties(tmp_path, f"ssl://localhost:{broker.tls_port}", tls), "--as-device")
    assert "accepted as 'DTG-TEST'" in report.found("login")


def test_a_refused_login(start_broker: StartBroker, tmp_path: Path, doctor: Doctor) -> None:
    broker = start_broker(settings=("allow_anonymous false",))
    properties = write_properties(tmp_path, broker.url, broker_username="gateway", broker_password="s3cr3t-pa55")
    report = doctor(properties)
    assert report.status == 1
    assert report.failed() == {"login"}
    assert "Not authorized" in report.found("login")
    assert "username and password" in report.findings["login"]["advice"]
    assert "--as-device" in report.findings["login"]["advice"]
    assert "s3cr3t" not in report.text


def open_descriptors() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


def test_a_login_leaves_nothing_open(broker: Broker, tmp_path: Path, doctor: Doctor) -> None:
    properties = write_properties(tmp_path, broker.url)
    doctor(properties)
    gc.collect()
    gc.disable()
    try:
        before = open_descriptors()
        doctor(properties)
        assert open_descriptors() == before
    finally:
        gc.enable()


def test_a_port_without_a_broker(tmp_path: Path, doctor: Doctor) -> None:
    """Something answers TCP and says nothing, or ends the connection."""

    def be_silent(sock: socket.socket) -> None:
        with sock:
            while sock.recv(1000):
                pass

    def hang_up(sock: socket.socket) -> None:
        with sock:
            sock.recv(1000)

    for serve, says in ((be_silent, "did not answer CONNECT"), (hang_up, "closed the connection")):
        with LoopbackServer(serve) as peer:
            properties = write_properties(tmp_path, f"tcp://127.0.0.1:{peer.port}", connection_timeout="0.5")
            report = doctor(properties)
        assert report.failed() == {"login"}
        assert says in report.found("login")


def test_the_running_service_keeps_its_connection(broker: Broker, tmp_path: Path, doctor: Doctor) -> None:
    with MQTTManager(quick_config(broker.url, tmp_path)) as manager:
        recorder = Recorder()
        manager.set_connection_callback(recorder)
        manager.connect()
        assert recorder.wait_for_connections()
        report = doctor(write_properties(tmp_path, broker.url))
        handle = manager.publish("t", "still there", 1)
        handle.wait_for_publish(10)
        assert handle.is_published()
        assert recorder.events == ["connected"]
    assert report.status == 0, report.text
    assert "in use by a running program" in report.found("queue")


def test_dns_and_tcp(tmp_path: Path, doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    report = doctor(write_properties(tmp_path, "tcp://broker.invalid:1883"))
    assert report.failed() == {"dns"}
    assert "broker.invalid has no address" in report.found("dns")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    report = doctor(write_properties(tmp_path, f"tcp://127.0.0.1:{port}"))
    assert report.failed() == {"tcp"}
    assert f"127.0.0.1 port {port}: Connection refused" in report.found("tcp")


def test_one_address_of_two_is_dead(
    broker: Broker, tmp_path: Path, doctor: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = socket.getaddrinfo

    def getaddrinfo(host: Any, *arguments: Any, **named: Any) -> list[Any]:
        found = real("127.0.0.2" if host == "broker.test" else host, *arguments, **named)
        return found + real("127.0.0.1", *arguments, **named) if host == "broker.test" else found

    monkeypatch.setattr("socket.getaddrinfo", getaddrinfo)
    report = doctor(write_properties(tmp_path, f"tcp://broker.test:{broker.port}"))
    assert report.status == 0, report.text
    assert report.status_of("tcp") == "warning"
    assert "127.0.0.1" in report.found("tcp")
    assert f"127.0.0.2 port {broker.port}: Connection refused" in report.found("tcp")


def test_settings_that_are_none(tmp_path: Path, doctor: Doctor) -> None:
    path = tmp_path / "broker_config.properties"
    path.write_text("mqtt.broker.url=ssl://host\nmqtt.broker.pasword=x\n")
    report = doctor(path)
    assert report.status == 1
    assert report.failed() == {"settings"}
    assert "line 2" in report.found("settings")
    assert "mqtt.broker.password" in report.found("settings")


def test_people_get_lines(cases: Cases, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with cases.expired().peer as peer:
        path = write_properties(tmp_path, f"ssl://localhost:{peer.port}", cases.trust())
        assert main(["doctor", "--config", str(path), "--device-id", "D"]) == 1
    lines = capsys.readouterr().out.splitlines()
    number = next(at for at, line in enumerate(lines) if line.startswith("FAILED"))
    assert "expiry" in lines[number]
    assert "-> have it renewed" in lines[number + 1]
    assert lines[-1] == f"1 of {len(CHECKS)} checks failed"


def test_the_services_own_settings(
    broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GLEC_BROKER_URL", broker.url)
    monkeypatch.setenv("GLEC_CLIENT_ID", "DTG-TEST")
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path))
    assert main(["doctor"]) == 0
    assert "no check failed" in capsys.readouterr().out


def test_each_of_several_brokers_is_looked_at(
    start_broker: StartBroker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = start_broker(), start_broker()
    first.stop()
    path = tmp_path / "broker_config.properties"
    path.write_text(f"mqtt.broker.urls={first.url},{second.url}\nmqtt.queue.path={tmp_path}/queue.db\n")
    assert main(["doctor", "--config", str(path), "--device-id", "D"]) == 1
    lines = capsys.readouterr().out.splitlines()
    places = [at for at, line in enumerate(lines) if " of 2: tcp://" in line]
    of_first, of_second = lines[places[0] : places[1]], lines[places[1] :]
    assert any(line.startswith("FAILED") and "tcp" in line for line in of_first)
    assert any(line.startswith("ok") and "accepted as" in line and "protocol_version 5" in line for line in of_second)
