"""A reconnect resumes the TLS session of a connection that has passed every check, and no other."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from glec_fast import MQTTManager, PinningError, TLSConfig
from glec_fast.engine.connector import SecureConnector
from support.gateway import TIMEOUT_S, Recorder, quick_config

if TYPE_CHECKING:
    from pathlib import Path

    from glec_fast.testbed.broker import Broker
    from glec_fast.testbed.certificates import CertificateAuthority
    from glec_fast.testbed.link import Link


@pytest.fixture
def handshakes(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of each handshake that passed, whether it was a resumed one."""
    seen: list[bool] = []
    shake = SecureConnector.shake_hands

    def noting(connector: SecureConnector, *arguments: Any) -> Any:
        sock = shake(connector, *arguments)
        seen.append(sock.session_reused)
        return sock

    monkeypatch.setattr(SecureConnector, "shake_hands", noting)
    return seen


def reconnect(link: Link, recorder: Recorder, count: int) -> None:
    link.drop()
    assert recorder.wait_for_connections(count)


def config_of(link: Link, directory: Path, **tls: Any) -> Any:
    return quick_config(f"ssl://localhost:{link.port}", directory, tls_config=TLSConfig(**tls))


def test_a_reconnect_resumes_and_a_changed_file_does_not(
    tls_link: Link, authority: CertificateAuthority, tmp_path: Path, handshakes: list[bool]
) -> None:
    trusted = tmp_path / "ca.crt"
    trusted.write_bytes(authority.certificate_path.read_bytes())
    recorder = Recorder()
    with MQTTManager(config_of(tls_link, tmp_path, ca_cert=trusted)) as manager:
        manager.set_connection_callback(recorder)
        manager.connect()
        assert recorder.wait_for_connections()
        manager.publish("t", "x", 1).wait_for_publish(TIMEOUT_S)
        full_bytes = tls_link.bytes_up + tls_link.bytes_down
        reconnect(tls_link, recorder, 2)
        manager.publish("t", "x", 1).wait_for_publish(TIMEOUT_S)
        resumed_bytes = tls_link.bytes_up + tls_link.bytes_down - full_bytes
        assert handshakes == [False, True]
        assert resumed_bytes < full_bytes
        assert manager.get_metrics().expiring_certificates, "those of the full handshake"
        trusted.write_bytes(trusted.read_bytes() + b"\n")
        reconnect(tls_link, recorder, 3)
        assert handshakes == [False, True, False]
        reconnect(tls_link, recorder, 4)
        assert handshakes[3]


def test_a_session_that_did_not_pass_the_pins_is_not_kept(
    tls_link: Link, tls_broker: Broker, authority: CertificateAuthority, tmp_path: Path
) -> None:
    wrong = "sha256/" + "A" * 43 + "="
    connector = SecureConnector(TLSConfig(authority.certificate_path, certificate_pins=(wrong,)), "localhost")
    for _ in range(2):
        context = connector.context()
        assert context is not None
        connector.begin(TIMEOUT_S)
        sock = connector.dial("localhost", tls_broker.tls_port, ("", 0))
        with pytest.raises(PinningError):
            connector.shake_hands(sock, context, "localhost")
        connector.attempt.fail()
        connector.on_closing()
        assert connector._resumable is None


def test_with_revocation_lists_each_handshake_is_a_full_one(
    tls_broker: Broker, authority: CertificateAuthority, tmp_path: Path
) -> None:
    connector = SecureConnector(TLSConfig(authority.certificate_path), "localhost")
    connector._resumes = SecureConnector(
        TLSConfig(authority.certificate_path, crl_file=b"-----BEGIN X509 CRL-----\n"), "localhost"
    )._resumes
    assert not connector._resumes
    assert [shaken(connector, "localhost", tls_broker.tls_port) for _ in range(2)] == [False, False]


def shaken(connector: SecureConnector, host: str, port: int) -> bool:
    """Whether a handshake that is made now is a resumed one; it ends in order, with its tickets read."""
    context = connector.context()
    assert context is not None
    connector.begin(TIMEOUT_S)
    sock = connector.shake_hands(connector.dial(host, port, ("", 0)), context, host)
    resumed: bool = sock.session_reused
    sock.settimeout(0.2)
    with suppress(TimeoutError):
        sock.recv(1)
    connector.on_closing()
    sock.close()
    return resumed


def test_another_host_and_an_ended_certificate_make_a_full_handshake(
    tls_broker: Broker, authority: CertificateAuthority, monkeypatch: pytest.MonkeyPatch
) -> None:
    connector = SecureConnector(TLSConfig(authority.certificate_path), "localhost")
    port = tls_broker.tls_port
    assert [shaken(connector, "localhost", port) for _ in range(2)] == [False, True]
    assert not shaken(connector, "127.0.0.1", port)
    assert shaken(connector, "127.0.0.1", port)
    far_s = time.time() + 100 * 365 * 86_400
    monkeypatch.setattr("glec_fast.engine.connector.time.time", lambda: far_s)
    assert not shaken(connector, "127.0.0.1", port)


def test_the_pins_are_checked_against_the_chain_of_the_full_handshake(
    tls_broker: Broker, authority: CertificateAuthority, monkeypatch: pytest.MonkeyPatch
) -> None:
    connector = SecureConnector(TLSConfig(authority.certificate_path), "localhost")
    assert not shaken(connector, "localhost", tls_broker.tls_port)
    checked: list[list[bytes]] = []

    class Pinner:
        def check(self, _host: str, chain: list[bytes]) -> None:
            checked.append(chain)

    connector._pinner = Pinner()  # type: ignore[assignment]
    assert shaken(connector, "localhost", tls_broker.tls_port)
    assert len(checked[0]) == 2
