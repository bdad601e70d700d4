"""Why there is no connection: told to the callback and in the log, each cause once, also before CONNACK."""

from __future__ import annotations

import logging
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion

from glec_fast import MQTTManager, TLSConfig
from glec_fast.errors import BrokerRefusalError, ConnectionLostError, PinningError, TLSError
from support.gateway import TIMEOUT_S, Recorder, quick_config
from support.loopback import LoopbackServer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import StartBroker
    from glec_fast.testbed.broker import Broker
    from glec_fast.testbed.certificates import CertificateAuthority

PORTAL = b"HTTP/1.1 302 Found\r\nLocation: http://portal/\r\nContent-Length: 5\r\n\r\nhello"
PIN = "sha256/" + "A" * 43 + "="


class Failures(Recorder):
    """And the attempts that failed."""

    def __init__(self) -> None:
        super().__init__()
        self.failures: list[Exception] = []

    def on_connect_failed(self, cause: Exception) -> None:
        with self.changed:
            self.failures.append(cause)
            self.changed.notify_all()


def failures_of(url: str, directory: Path, **settings: Any) -> list[Exception]:
    """What three attempts were told to fail for."""
    failures = Failures()
    with MQTTManager(quick_config(url, directory, **settings)) as manager:
        manager.set_connection_callback(failures)
        manager.connect()
        assert failures.wait_for(lambda _events: len(failures.failures) >= 3)
    # The last may have been cut short.
    assert manager._reports.attempts - len(failures.failures) in (0, 1), "one for each attempt"
    assert "connected" not in failures.events
    assert failures.causes == [], "what was never made was not lost"
    return failures.failures


def check_log(caplog: pytest.LogCaptureFixture, text: str) -> None:
    """It is said once, however often it is tried; the others are summed up at the end."""
    said = [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]
    assert [line for line in said if line.startswith("no connection to")] == [said[0]]
    assert text in said[0]
    assert "attempts to connect failed in the last" in said[-1]
    assert len(said) <= 4, said


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (PORTAL, "speaks HTTP: a captive portal"),
        (b"\x15\x03\x01\x00\x02\x02\x46", "speaks TLS: use ssl:// or wss://"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "speaks SSH: 'SSH-2.0-OpenSSH_9.2'"),
        (b"220 mail.example ESMTP\r\n", "speaks no MQTT: '220 mail.example ESMTP'"),
        (b"-ERR unknown command\r\n", "speaks no MQTT: '-ERR unknown command'"),
        (b"\x20", "closed it before it took the login"),
        (b"", "closed it before it took the login"),
    ],
    ids=["http", "tls", "ssh", "smtp", "redis", "half a CONNACK", "nothing"],
)
def test_what_answers_is_no_broker(tmp_path: Path, caplog: pytest.LogCaptureFixture, answer: bytes, text: str) -> None:
    def serve(link: socket.socket) -> None:
        with link:
            link.recv(4096)
            if answer:
                link.sendall(answer)
            link.shutdown(socket.SHUT_WR)
            link.recv(4096)

    with LoopbackServer(serve) as peer:
        failures = failures_of(f"tcp://127.0.0.1:{peer.port}", tmp_path)
    assert all(isinstance(each, ConnectionLostError) and text in str(each) for each in failures)
    check_log(caplog, text)


def test_the_tls_port_spoken_to_in_the_clear(
    tls_broker: Broker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    failures = failures_of(f"tcp://127.0.0.1:{tls_broker.tls_port}", tmp_path)
    assert all(isinstance(each, ConnectionLostError) for each in failures)
    assert "closed it before" in str(failures[0]) or "speaks TLS" in str(failures[0])
    check_log(caplog, str(failures[0]))


def test_tcp_but_no_tls(
    broker: Broker, authority: CertificateAuthority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trust = TLSConfig.create_server_auth(authority.certificate_path)
    failures = failures_of(f"ssl://127.0.0.1:{broker.port}", tmp_path, tls_config=trust)
    assert all(isinstance(each, TLSError) for each in failures)
    check_log(caplog, "see whether this port is the broker's TLS port")


def test_a_key_that_is_not_pinned(
    tls_broker: Broker, authority: CertificateAuthority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trust = TLSConfig.create_server_auth(authority.certificate_path, certificate_pins=[PIN])
    failures = failures_of(f"ssl://127.0.0.1:{tls_broker.tls_port}", tmp_path, tls_config=trust)
    assert all(isinstance(each, PinningError) for each in failures)
    check_log(caplog, str(failures[0]))


def test_a_port_where_nobody_listens(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    failures = failures_of(f"tcp://127.0.0.1:{port}", tmp_path)
    assert all(isinstance(each, ConnectionRefusedError) for each in failures)
    check_log(caplog, "refused")


def test_a_name_that_has_no_address(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    failures = failures_of("tcp://no.such.host.invalid", tmp_path)
    assert all(isinstance(each, socket.gaierror) for each in failures)
    check_log(caplog, str(failures[0]))


@pytest.mark.parametrize("protocol_version", [4, 5])
def test_a_refused_login(
    start_broker: StartBroker, tmp_path: Path, caplog: pytest.LogCaptureFixture, protocol_version: int
) -> None:
    broker = start_broker(settings=("allow_anonymous false",))
    failures = failures_of(f"tcp://127.0.0.1:{broker.port}", tmp_path, protocol_version=protocol_version)
    assert all(isinstance(each, BrokerRefusalError) for each in failures)
    check_log(caplog, "refused the login")


def text_property(identifier: int, text: str) -> bytes:
    data = text.encode()
    return bytes((identifier, 0, len(data))) + data


WORDS = text_property(0x1F, "go\u00e9 away; now") + text_property(0x1C, "other:999")


@pytest.mark.parametrize(
    ("code", "words", "text"),
    [
        (
            0x87,
            WORDS,
            "Not authorized (it says 'go\u00e9 away; now', and names the server 'other:999'); check username",
        ),
        (0x9D, WORDS, "Server moved (it says 'go\u00e9 away; now', and names the server 'other:999'); set broker_url"),
        (0x9C, b"", "Use another server; set broker_url"),
        (0x87, b"\x1f\x00\x00", "Not authorized; check username"),
    ],
)
def test_a_refusal_has_the_broker_s_own_words(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, code: int, words: bytes, text: str
) -> None:
    def serve(link: socket.socket) -> None:
        with link:
            link.recv(4096)
            body = bytes((0, code, len(words))) + words
            link.sendall(bytes((0x20, len(body))) + body)
            link.recv(4096)

    with LoopbackServer(serve) as peer:
        failures = failures_of(f"tcp://127.0.0.1:{peer.port}", tmp_path, protocol_version=5)
    assert all(isinstance(each, BrokerRefusalError) and text in str(each) for each in failures)
    check_log(caplog, text)


def lost_to(url: str, directory: Path, end: Callable[[], None], **settings: Any) -> str:
    """The cause that is told where `end` has the broker end a connection."""
    failures = Failures()
    with MQTTManager(quick_config(url, directory, auto_reconnect=False, **settings)) as manager:
        manager.set_connection_callback(failures)
        manager.connect()
        assert failures.wait_for_connections()
        end()
        assert failures.wait_for_losses()
    assert failures.failures == []
    assert isinstance(failures.causes[0], ConnectionLostError)
    return str(failures.causes[0])


def test_another_client_takes_over(broker: Broker, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    is_there = threading.Event()
    other = paho.Client(CallbackAPIVersion.VERSION2, "DTG-TEST")
    other.on_connect = lambda *_: is_there.set()

    def take_over() -> None:
        other.connect("127.0.0.1", broker.port)
        other.loop_start()

    try:
        cause = lost_to(f"tcp://127.0.0.1:{broker.port}", tmp_path, take_over)
        assert is_there.wait(TIMEOUT_S)
    finally:
        other.disconnect()
        other.loop_stop()
    assert "the broker closed the connection" in cause
    assert caplog.text.count(cause) == 1


@pytest.mark.parametrize(
    ("code", "words", "text"),
    [
        (0x8E, b"", "Session taken over"),
        (0x8B, b"", "Server shutting down"),
        (0, b"", "Norm"),
        (0x9D, WORDS, "Server moved (it says 'go\u00e9 away; now', and names the server 'other:999')"),
    ],
)
def test_the_broker_says_why_it_ends_the_connection(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, code: int, words: bytes, text: str
) -> None:
    links: list[socket.socket] = []

    def serve(link: socket.socket) -> None:
        link.recv(4096)
        links.append(link)
        with link:
            link.sendall(b"\x20\x03\x00\x00\x00")
            while link.recv(4096):
                pass

    with LoopbackServer(serve) as peer:
        url = f"tcp://127.0.0.1:{peer.port}"
        body = bytes((code, len(words))) + words if words else bytes([code])
        cause = lost_to(url, tmp_path, lambda: links[0].sendall(bytes((0xE0, len(body))) + body), protocol_version=5)
    assert f"the broker ended it: {text}" in cause
    assert caplog.text.count(cause) == 1
