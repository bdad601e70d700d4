"""Real handshakes on loopback: who is refused before a byte of MQTT, who is accepted, and what the manager tells."""

from __future__ import annotations

import datetime as dt
import logging
import socket
import ssl
import threading
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.x509 import DNSName

from glec_fast import ConnectionCallback, MQTTManager, PinningError, TLSConfig, TLSError, TLSFileError
from glec_fast.durable.clock import Clocks
from glec_fast.engine.connector import SecureConnector
from glec_fast.errors import GlecError
from glec_fast.tls.config import build_ssl_context
from glec_fast.tls.handshake import RequestWatch, await_verdict, explain, verified_chain
from support.gateway import TIMEOUT_S, Recorder, eventually, quick_config
from support.loopback import LoopbackServer
from support.tls_cases import (
    CASES,
    GOOD,
    NOW,
    TLS_1_2,
    TLS_1_3,
    WEAK,
    Case,
    Cases,
    Good,
    leaf_der,
    new_authority,
    pin_of,
    write_crl,
)
from support.tls_peer import CountingRelay, TLSPeer, can_connect_without_scruples, server_context

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from glec_fast.testbed.certificates import CertificateAuthority

# CONNECT carries it, so that a CONNECT is larger than all that a client says in a handshake.
PASSWORD = "x" * 8000
HANDSHAKE_MAX_BYTES = 4000


class Failures(ConnectionCallback):
    """Keeps the causes of attempts that failed."""

    def __init__(self) -> None:
        self.causes: list[Exception] = []

    def on_connect_failed(self, cause: Exception) -> None:
        self.causes.append(cause)


def config_for(port: int, directory: Path, tls: TLSConfig | None, scheme: str = "ssl", **settings: Any) -> Any:
    settings = {"username": "gateway", "password": PASSWORD, **settings}
    return quick_config(f"{scheme}://localhost:{port}", directory, tls_config=tls, **settings)


@pytest.fixture
def cases(authority: CertificateAuthority, tmp_path: Path) -> Cases:
    """Certificates of one's own: the session's authority lends its name, this one signs."""
    return Cases(new_authority(tmp_path, "trusted"), tmp_path)


@contextmanager
def failing_once(case: Case, directory: Path, scheme: str) -> Iterator[tuple[Exception, CountingRelay, MQTTManager]]:
    """(the cause, the relay in between, the manager) after an attempt that failed, and before the next."""
    with ExitStack() as stack:
        stack.enter_context(case.peer)
        relay = stack.enter_context(CountingRelay(case.peer.port))
        config = config_for(
            relay.port, directory, case.tls, scheme, retry_initial_delay_ms=60_000, retry_max_delay_ms=60_000
        )
        manager = stack.enter_context(MQTTManager(config))
        failures = Failures()
        manager.set_connection_callback(failures)
        manager.connect()
        assert eventually(lambda: bool(failures.causes))
        yield failures.causes[0], relay, manager


@pytest.mark.parametrize("scheme", ["ssl", "wss"])
@pytest.mark.parametrize("name", CASES)
def test_refused_before_any_byte_of_mqtt(cases: Cases, name: str, scheme: str, tmp_path: Path) -> None:
    case: Case = getattr(cases, name)()
    with failing_once(case, tmp_path, scheme) as (cause, relay, manager):
        assert isinstance(cause, case.error)
        assert_says(cause, case.says)
        assert relay.connections == 1
        assert manager.get_metrics().pin_failures == (case.error is PinningError)
        assert PASSWORD not in str(cause)
    assert relay.after_hello_bytes < HANDSHAKE_MAX_BYTES
    if isinstance(case.peer, TLSPeer):
        assert bytes(case.peer.received) == b""


def assert_says(cause: Exception, says: str) -> None:
    assert any(each in str(cause) for each in says.split("|")), cause


@pytest.mark.parametrize("name", WEAK)
def test_the_refusal_of_weak_peers_is_ours(cases: Cases, name: str) -> None:
    with getattr(cases, name)().peer as peer:
        assert can_connect_without_scruples(peer.port)


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError(104, "Connection reset by peer"),
        ssl.SSLEOFError(8, "EOF occurred in violation of protocol"),
        ssl.SSLZeroReturnError(6, "TLS/SSL connection has been closed (EOF)"),
    ],
)
def test_a_peer_that_closes_is_said_to_have_closed(error: OSError) -> None:
    assert explain(error, "localhost").found.startswith("the peer closed the connection")


def test_a_stalled_handshake_ends_with_the_timeout(cases: Cases, tmp_path: Path) -> None:
    def serve(sock: socket.socket) -> None:
        # A byte now and then must not prolong it: a ServerHello that never ends.
        with sock:
            sock.sendall(b"\x16\x03\x03\x40\x00")
            while True:
                sock.sendall(b"\x02")
                time.sleep(0.05)

    with LoopbackServer(serve) as peer:
        config = config_for(peer.port, tmp_path, cases.trust(), connection_timeout_s=0.5)
        failures = Failures()
        with MQTTManager(config) as manager:
            manager.set_connection_callback(failures)
            started_s = time.monotonic()
            manager.connect()
            assert eventually(lambda: bool(failures.causes))
            assert 0.4 < time.monotonic() - started_s < TIMEOUT_S
        assert explain(failures.causes[0], "localhost").found == "the peer did not answer in time"


@pytest.mark.parametrize("name", GOOD)
def test_accepted(cases: Cases, name: str, tmp_path: Path) -> None:
    case: Case = getattr(Good(cases), name)()
    peer = case.peer
    assert isinstance(peer, TLSPeer)
    with peer, CountingRelay(peer.port) as relay:
        with MQTTManager(config_for(relay.port, tmp_path, case.tls)) as manager:
            recorder = Recorder()
            manager.set_connection_callback(recorder)
            manager.connect()
            assert recorder.wait_for_connections()
            assert manager.get_metrics().pin_failures == 0
        assert peer.received.startswith(b"\x10"), "the control: the relay and the peer do see MQTT where it is sent"
        assert PASSWORD.encode() in peer.received
        assert relay.after_hello_bytes > len(PASSWORD) > HANDSHAKE_MAX_BYTES
        assert peer.server_names == ["localhost"], "SNI"
        assert "AES_256_GCM" in peer.suites[0][1].replace("AES256-GCM", "AES_256_GCM")


def test_only_a_peer_that_asked_for_a_certificate_is_waited_for(
    cases: Cases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither sends session tickets: the one that asked costs the wait, the other must not."""
    waits: list[float] = []

    def wait(sock: ssl.SSLSocket, handshake_s: float) -> None:
        waits.append(handshake_s)
        await_verdict(sock, handshake_s)

    monkeypatch.setattr("glec_fast.engine.connector.await_verdict", wait)
    ca = cases.authority.certificate_path
    ours = cases.authority.issue_client()
    mutual = TLSConfig.create_mutual_tls(ca, ours.certificate_path, ours.key_path)
    for tls, client_ca, asked in ((cases.trust(), None, 0), (mutual, None, 0), (mutual, ca, 1)):
        context = server_context(cases.authority.issue_server(), versions=TLS_1_3, client_ca=client_ca)
        context.num_tickets = 0
        with TLSPeer(context) as peer, MQTTManager(config_for(peer.port, tmp_path, tls)) as manager:
            recorder = Recorder()
            manager.set_connection_callback(recorder)
            manager.connect()
            assert recorder.wait_for_connections()
        assert len(waits) == asked
        waits.clear()


def test_without_a_look_at_the_handshake_every_peer_is_waited_for(
    cases: Cases, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("glec_fast.tls.handshake._MESSAGES", None)
    context = build_ssl_context(cases.trust())
    with (
        TLSPeer(server_context(cases.authority.issue_server(), versions=TLS_1_3)) as peer,
        socket.create_connection(("127.0.0.1", peer.port), TIMEOUT_S) as sock,
        RequestWatch(context) as watch,
        context.wrap_socket(sock, server_hostname="localhost") as tls,
    ):
        watch.end(tls)
        assert watch.is_verdict_due(tls)


def test_nothing_watches_a_connection_once_it_is_made(cases: Cases) -> None:
    """OpenSSL would stop for Python at each record."""
    context = build_ssl_context(cases.trust())
    seen: list[object] = []
    with (
        TLSPeer(server_context(cases.authority.issue_server(), versions=TLS_1_3)) as peer,
        socket.create_connection(("127.0.0.1", peer.port), TIMEOUT_S) as sock,
    ):
        with RequestWatch(context) as watch:
            tls = context.wrap_socket(sock, server_hostname="localhost")
            watch.end(tls)
        context._msg_callback = lambda *message: seen.append(message)  # type: ignore[attr-defined]
        with tls:
            tls.sendall(b"\x10\x00")
            assert tls.recv(4)
    assert seen == []


@pytest.mark.parametrize("is_mutual", [False, True])
def test_session_tickets_are_acknowledged_before_connack(
    cases: Cases, tmp_path: Path, is_mutual: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broker with Nagle's algorithm waits for that with CONNACK, as this peer does."""
    acknowledged = threading.Event()

    def setsockopt(_sock: object, *option: int) -> None:
        if option == (socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1):
            acknowledged.set()

    monkeypatch.setattr(ssl.SSLSocket, "setsockopt", setsockopt, raising=False)
    ca = cases.authority.certificate_path
    ours = cases.authority.issue_client()
    tls = TLSConfig.create_mutual_tls(ca, ours.certificate_path, ours.key_path) if is_mutual else cases.trust()
    context = server_context(cases.authority.issue_server(), versions=TLS_1_3, client_ca=ca if is_mutual else None)
    with TLSPeer(context) as peer, MQTTManager(config_for(peer.port, tmp_path, tls)) as manager:
        peer.before_connack = lambda: acknowledged.wait(TIMEOUT_S)
        recorder = Recorder()
        manager.set_connection_callback(recorder)
        manager.connect()
        assert recorder.wait_for_connections()
    assert acknowledged.is_set()


def test_tcp_and_tls_share_one_time_out(cases: Cases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TCP takes most of it; a handshake that stalls then gets what is left."""

    def slow_dial(connector: SecureConnector, host: str, port: int, *_: object) -> socket.socket:
        connector._deadline_s -= 2999.9
        return socket.create_connection((host, port), TIMEOUT_S)

    monkeypatch.setattr(SecureConnector, "dial", slow_dial)

    def stall(sock: socket.socket) -> None:
        with sock:
            while sock.recv(1000):
                pass

    with LoopbackServer(stall) as peer:
        with MQTTManager(config_for(peer.port, tmp_path, cases.trust(), connection_timeout_s=3000)) as manager:
            failures = Failures()
            manager.set_connection_callback(failures)
            manager.connect()
            assert eventually(lambda: bool(failures.causes))
        assert isinstance(failures.causes[0], TimeoutError)


def test_no_name_is_sent_for_an_address(cases: Cases, tmp_path: Path) -> None:
    with cases.peer() as peer:
        config = quick_config(f"ssl://127.0.0.1:{peer.port}", tmp_path, tls_config=cases.trust())
        with MQTTManager(config) as manager:
            recorder = Recorder()
            manager.set_connection_callback(recorder)
            manager.connect()
            assert recorder.wait_for_connections()
        assert peer.server_names == [None]


def test_aes_256_is_preferred_where_the_server_takes_our_order(cases: Cases, tmp_path: Path) -> None:
    context = server_context(cases.authority.issue_server(), versions=TLS_1_2)
    context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
    context.set_ciphers("ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES256-GCM-SHA384")
    with TLSPeer(context) as peer, MQTTManager(config_for(peer.port, tmp_path, cases.trust())) as manager:
        recorder = Recorder()
        manager.set_connection_callback(recorder)
        manager.connect()
        assert recorder.wait_for_connections()
        assert peer.suites == [("TLSv1.2", "ECDHE-ECDSA-AES256-GCM-SHA384")]


def test_names_not_verified_is_logged(cases: Cases, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with MQTTManager(config_for(1, tmp_path, cases.trust(verify_hostname=False))):
        assert "host name is not verified" in caplog.text


def test_a_wrong_pin_is_told_counted_and_tried_again_at_the_slow_rate(
    cases: Cases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    waits: list[float] = []

    def wait(_policy: object, _interrupt: object, delay_s: float) -> bool:
        waits.append(delay_s)
        return False

    monkeypatch.setattr("glec_fast.fleet.policy.FleetPolicy.wait", wait)
    server = cases.authority.issue_server("good")
    pins = {"certificate_pins": [pin_of(server)]}
    with cases.peer(name="bad") as peer:
        assert isinstance(peer, TLSPeer)
        config = config_for(
            peer.port,
            tmp_path,
            cases.trust(**pins),
            retry_initial_delay_ms=2000,
            retry_max_delay_ms=77_000,
            retry_jitter="none",
        )
        with MQTTManager(config) as manager:
            failures = Failures()
            recorder = Recorder()
            manager.set_connection_callback(failures)
            manager.connect()
            assert eventually(lambda: len(failures.causes) >= 3)
            manager.set_connection_callback(recorder)
            peer.set_certificate(server)
            assert recorder.wait_for_connections(), "once the broker shows the pinned key again, all is well"
            failed = manager.get_metrics().pin_failures
    assert failed >= 3
    assert waits[:3] == [77.0, 77.0, 77.0]
    assert all(isinstance(cause, PinningError) for cause in failures.causes)
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert any("is pinned" in record.getMessage() for record in errors)


def test_a_fault_of_the_network_keeps_its_own_rate(
    cases: Cases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []

    def wait(_policy: object, _interrupt: object, delay_s: float) -> bool:
        waits.append(delay_s)
        return False

    monkeypatch.setattr("glec_fast.fleet.policy.FleetPolicy.wait", wait)
    with cases.unknown_ca().peer as peer:
        waits_ms = {"retry_initial_delay_ms": 2000, "retry_max_delay_ms": 77_000, "retry_jitter": "none"}
        config = config_for(peer.port, tmp_path, cases.trust(), **waits_ms)
        with MQTTManager(config) as manager:
            manager.connect()
            assert eventually(lambda: len(waits) >= 2)
    assert waits[:2] == [2.0, 4.0]


def test_rotated_files_work_without_a_restart(cases: Cases, tmp_path: Path) -> None:
    """Both sides move to a new authority while the link is down; the manager lives on."""
    old, new = cases.authority, new_authority(tmp_path, "successor")
    paths = [tmp_path / name for name in ("ca.pem", "client.pem", "client.key")]

    def install(authority: CertificateAuthority) -> None:
        ours = authority.issue_client()
        for path, source in zip(paths, (authority.certificate_path, ours.certificate_path, ours.key_path), strict=True):
            path.write_bytes(source.read_bytes())
            path.chmod(0o600)

    def peer_of(authority: CertificateAuthority) -> TLSPeer:
        return TLSPeer(server_context(authority.issue_server(), client_ca=authority.certificate_path))

    install(old)
    with peer_of(old) as first, peer_of(new) as second, CountingRelay(first.port) as relay:
        config = config_for(relay.port, tmp_path, TLSConfig.create_mutual_tls(*paths))
        with MQTTManager(config) as manager:
            recorder, failures = Recorder(), Failures()
            manager.set_connection_callback(recorder)
            manager.connect()
            assert recorder.wait_for_connections()
            relay.target_port = second.port
            manager.set_connection_callback(failures)
            relay.cut()
            assert eventually(lambda: bool(failures.causes)), "the control: the old files do not serve"
            manager.set_connection_callback(recorder)
            install(new)
            assert recorder.wait_for_connections(2)


def test_a_certificate_revoked_while_it_runs_is_refused_from_then_on(cases: Cases, tmp_path: Path) -> None:
    server = cases.authority.issue_server()
    crl = write_crl(cases.authority, tmp_path / "fleet.crl")
    with (
        TLSPeer(server_context(server)) as peer,
        MQTTManager(config_for(peer.port, tmp_path, cases.trust(crl_file=crl))) as manager,
    ):
        recorder, failures = Recorder(), Failures()
        manager.set_connection_callback(recorder)
        manager.connect()
        assert recorder.wait_for_connections()
        manager.set_connection_callback(failures)
        write_crl(cases.authority, crl, server.certificate_path)
        peer.cut()
        assert eventually(lambda: bool(failures.causes))
    assert "is revoked" in str(failures.causes[-1])
    assert isinstance(failures.causes[-1], TLSError)


@pytest.mark.parametrize("versions", [TLS_1_2, TLS_1_3], ids=["TLSv1.2", "TLSv1.3"])
@pytest.mark.parametrize("way", ["pins", "revocation"])
def test_no_session_is_resumed_past_pins_and_revocation(cases: Cases, tmp_path: Path, versions: Any, way: str) -> None:
    """A resumed session shows no certificate: it has passed the pins before, and lists have none."""
    old, new = cases.authority.issue_server("old"), cases.authority.issue_server("new")
    crl = write_crl(cases.authority, tmp_path / "fleet.crl")
    tls = cases.trust(certificate_pins=[pin_of(old)]) if way == "pins" else cases.trust(crl_file=crl)
    with TLSPeer(server_context(old, versions=versions)) as peer:
        assert can_resume(peer.port), "the control: the peer resumes for who asks"
        with MQTTManager(config_for(peer.port, tmp_path, tls)) as manager:
            recorder, failures = Recorder(), Failures()
            manager.set_connection_callback(recorder)
            manager.connect()
            assert recorder.wait_for_connections()
            peer.cut()
            assert recorder.wait_for_connections(2)
            assert peer.resumed[2:] == [False, way == "pins"]
            manager.set_connection_callback(failures)
            # Another server, which does not know the sessions of the one before.
            peer.use(server_context(new, versions=versions))
            write_crl(cases.authority, crl, new.certificate_path)
            peer.cut()
            assert eventually(lambda: bool(failures.causes))
    says = "is pinned" if way == "pins" else "is revoked"
    assert any(says in str(cause) for cause in failures.causes)


def can_resume(port: int) -> bool:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    session = None
    for _ in range(2):
        with (
            socket.create_connection(("127.0.0.1", port), TIMEOUT_S) as sock,
            context.wrap_socket(sock, server_hostname="localhost", session=session) as tls,
        ):
            tls.sendall(b"\x10\x00")
            assert tls.recv(4), "with TLS 1.3 the ticket has come by now"
            session, resumed = tls.session, tls.session_reused
    return bool(resumed)


# What stands in subjectAltName (and CN where it begins with it), the host, whether the one is for the other.
NAMES = [
    (["broker.example"], "broker.example", True),
    (["BROKER.example"], "broker.EXAMPLE", True),
    (["broker.example"], "a.broker.example", False),
    (["*.fleet.example"], "mqtt.fleet.example", True),
    (["*.fleet.example"], "fleet.example", False),
    (["*.fleet.example"], "a.mqtt.fleet.example", False),
    (["m*.fleet.example"], "mqtt.fleet.example", False),
    (["*q.fleet.example"], "q.fleet.example", False),
    (["mqtt.*.example"], "mqtt.fleet.example", False),
    (["*.*.example"], "mqtt.fleet.example", False),
    (["*.example"], "fleet.example", False),
    (["*"], "localhost", False),
    (["other.example", "broker.example"], "broker.example", True),
    (["127.0.0.1"], "127.0.0.1", True),
    (["127.0.0.1"], "127.0.0.2", False),
    (["::1"], "::1", True),
    (["::1"], "0:0:0:0:0:0:0:1", True),
    (["localhost"], "127.0.0.1", False),
    (["dns:127.0.0.1"], "127.0.0.1", False),
    (["dns:*.0.0.1"], "127.0.0.1", False),
    (["cn:127.0.0.1"], "127.0.0.1", False),
    (["cn:broker.example"], "broker.example", False),
    (["cn:broker.example", "127.0.0.1"], "broker.example", False),
    (["xn--brker-kua.example"], "br\u00f6ker.example", True),
]


@pytest.mark.parametrize(("names", "host", "is_right"), NAMES, ids=lambda value: str(value))
def test_which_names_a_certificate_is_for(cases: Cases, names: list[str], host: str, is_right: bool) -> None:
    """RFC 9525, 6: whole labels only, one wildcard as the left-most, addresses by their own kind of name, no CN."""
    common = [name.removeprefix("cn:") for name in names if name.startswith("cn:")]
    hosts = [DNSName(name[4:]) if name.startswith("dns:") else name for name in names if not name.startswith("cn:")]
    server = cases.authority.issue_server(common[0] if common else "server", hosts=hosts)
    context = build_ssl_context(cases.trust())
    with TLSPeer(server_context(server)) as peer, socket.create_connection(("127.0.0.1", peer.port), TIMEOUT_S) as sock:
        if is_right:
            context.wrap_socket(sock, server_hostname=host).close()
            return
        with pytest.raises(ssl.SSLCertVerificationError) as caught:
            context.wrap_socket(sock, server_hostname=host)
        assert explain(caught.value, host).check == "hostname"


@pytest.mark.parametrize(("host", "name"), [("localhost.", "localhost"), ("fe80::1%eth0", None)])
def test_what_is_for_the_look_up_alone_is_not_compared(cases: Cases, host: str, name: str | None) -> None:
    """The dot of an absolute name, and which of our interfaces leads to a link-local address."""
    connector = SecureConnector(cases.trust(), host)
    peer = cases.peer(hosts=["localhost", "fe80::1"])
    with peer, socket.create_connection(("127.0.0.1", peer.port), TIMEOUT_S) as sock:
        connector.begin(TIMEOUT_S)
        context = connector.context()
        assert context is not None
        connector.shake_hands(sock, context, host).close()
    assert peer.server_names == [name]


def test_a_file_that_vanishes_is_told_and_found_again(cases: Cases, tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    content = cases.authority.certificate_path.read_bytes()
    path.write_bytes(content)
    with cases.peer() as peer:
        config = config_for(peer.port, tmp_path, TLSConfig.create_server_auth(path))
        with MQTTManager(config) as manager:
            recorder, failures = Recorder(), Failures()
            manager.set_connection_callback(failures)
            path.unlink()
            manager.connect()
            assert eventually(lambda: bool(failures.causes))
            assert isinstance(failures.causes[0], TLSFileError)
            assert str(path) in str(failures.causes[0])
            manager.set_connection_callback(recorder)
            path.write_bytes(content)
            assert recorder.wait_for_connections()


@pytest.mark.parametrize(("days", "is_told"), [(29, True), (31, False)])
def test_certificates_that_end_within_30_days(
    cases: Cases, tmp_path: Path, caplog: pytest.LogCaptureFixture, days: int, is_told: bool
) -> None:
    """A clock of 2 days before their end less `days` makes them end in so many days; TLS looks at the real one."""
    ours = cases.authority.issue_client("gateway")
    context = server_context(cases.authority.issue_server(), client_ca=cases.authority.certificate_path)
    tls = TLSConfig.create_mutual_tls(cases.authority.certificate_path, ours.certificate_path, ours.key_path)
    now = NOW + dt.timedelta(days=2 - days)
    clocks = Clocks(wall_ms=lambda: int(now.timestamp() * 1000))
    with (
        TLSPeer(context) as peer,
        MQTTManager(config_for(peer.port, tmp_path, tls), clocks=clocks) as manager,
    ):
        recorder = Recorder()
        manager.set_connection_callback(recorder)
        manager.connect()
        assert recorder.wait_for_connections()
        told = {(each.owner, each.subject) for each in manager.get_metrics().expiring_certificates}
    everyone = {("broker", "CN=server"), ("broker", "CN=trusted"), ("client", "CN=gateway")}
    assert told == (everyone if is_told else set())
    assert caplog.text.count("CN=gateway expires on") == is_told


def test_the_verified_chain_is_whole(cases: Cases, tmp_path: Path) -> None:
    middle = new_authority(tmp_path, "middle", issuer=cases.authority)
    server = middle.issue_server()
    context = ssl.create_default_context(cafile=str(cases.authority.certificate_path))
    with (
        TLSPeer(server_context(server)) as peer,
        socket.create_connection(("127.0.0.1", peer.port), TIMEOUT_S) as sock,
        context.wrap_socket(sock, server_hostname="localhost") as tls,
    ):
        chain = verified_chain(tls)
    paths = (server.certificate_path, middle.certificate_path, cases.authority.certificate_path)
    assert chain == [leaf_der(path) for path in paths]


def test_errors_tell_whether_a_retry_helps() -> None:
    assert issubclass(PinningError, GlecError)
    assert issubclass(PinningError, OSError)
    assert PinningError.retryable is False
    assert TLSError.retryable is True
