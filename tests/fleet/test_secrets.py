"""No password and no key in anything that a whole run leaves behind: logs, reprs, errors, metrics, output, files."""

from __future__ import annotations

import base64
import logging
import traceback
import urllib.parse
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from cryptography.hazmat.primitives import serialization as forms
from cryptography.hazmat.primitives.asymmetric import ec

from glec_fast import (
    BrokerRefusalError,
    CertificatePinner,
    ConfigError,
    GlecError,
    MQTTConfig,
    MQTTManager,
    QueueLockedError,
    TLSConfig,
    build_ssl_context,
)
from glec_fast.cli.main import main
from support.gateway import TIMEOUT_S, Recorder, eventually
from support.properties_file import write_properties
from support.tls_cases import NOT_A_PIN_OF_ANYONE, leaf_der, new_authority
from support.tls_peer import TLSPeer, server_context

if TYPE_CHECKING:
    from conftest import StartBroker
    from glec_fast.testbed.certificates import CertificateAuthority

PASSWORD = "s3cr3t-pa55/w0rd"
KEY_PASSWORD = "k3y-0pener+77"
NOT_AUTHORIZED = b"\x20\x02\x00\x05"


class Secrets:
    """Every form in which one of them might show."""

    def __init__(self, key_path: Path) -> None:
        """Encrypts the key on the way."""
        key = forms.load_pem_private_key(key_path.read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        number = key.private_numbers().private_value
        forms_of = {"broker password": _forms(PASSWORD.encode()), "key password": _forms(KEY_PASSWORD.encode())}
        forms_of["private key"] = {*_forms(number.to_bytes(32, "big")), str(number).encode()}
        plain = key_path.read_bytes()
        encryption = forms.BestAvailableEncryption(KEY_PASSWORD.encode())
        key_path.write_bytes(key.private_bytes(forms.Encoding.PEM, forms.PrivateFormat.PKCS8, encryption))
        for name, pem in (("private key", plain), ("encrypted key", key_path.read_bytes())):
            forms_of.setdefault(name, set()).update(line for line in pem.splitlines() if b"-----" not in line)
        self.forms_of = forms_of

    def shown_in(self, data: bytes | str) -> set[str]:
        """The names of those that are to be seen."""
        whole = data.encode("utf-8", "surrogateescape") if isinstance(data, str) else data
        return {name for name, shapes in self.forms_of.items() if any(shape in whole for shape in shapes)}


def _forms(secret: bytes) -> set[bytes]:
    quoted = urllib.parse.quote(secret, safe="").encode()
    # Of base64 what does not depend on where in a longer text the secret begins.
    shifted = {base64.b64encode(b"\0" * shift + secret)[4:-4] for shift in range(3)}
    return {secret, secret.hex().encode(), repr(secret)[2:-1].encode(), quoted, *shifted}


class Listener(Recorder):
    """Keeps the causes of failures too."""

    def on_connect_failed(self, cause: Exception) -> None:
        self._add(cause)


class Run(NamedTuple):
    """What a gateway is made of, and the texts that came up while it ran."""

    directory: Path
    authority: CertificateAuthority
    tls: TLSConfig
    texts: list[str]

    def config(self, port: int, **tls: Any) -> MQTTConfig:
        """Settings from a properties file with both passwords filled in from the environment."""
        settings = self.tls.__class__(**{**vars(self.tls), **tls, "key_password": None})
        path = write_properties(
            self.directory,
            f"ssl://localhost:{port}",
            settings,
            broker_username="gateway",
            broker_password="{SECURE_PASSWORD}",
            tls_key_password="{KEY_PASSWORD}",
            retry_initial_delay_ms=60_000,
            retry_max_delay_ms=60_000,
        )
        return MQTTConfig.from_properties(path, device_id="DTG-TEST")

    def note(self, *things: object) -> None:
        for thing in things:
            self.texts.extend((repr(thing), str(thing)))

    def note_error(self, error: BaseException) -> None:
        self.note(error, error.args, vars(error), error.__cause__, error.__context__)
        self.texts.extend(traceback.format_exception(error))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Run, Secrets]:
    authority = new_authority(tmp_path, "trusted")
    ours = authority.issue_client("gateway")
    secrets = Secrets(ours.key_path)
    monkeypatch.setenv("SECURE_PASSWORD", PASSWORD)
    monkeypatch.setenv("KEY_PASSWORD", KEY_PASSWORD)
    tls = TLSConfig.create_mutual_tls(
        authority.certificate_path, ours.certificate_path, ours.key_path, key_password=KEY_PASSWORD
    )
    (tmp_path / "gateway").mkdir()
    return Run(tmp_path / "gateway", authority, tls, []), secrets


def test_a_whole_run_shows_no_secret(
    run: tuple[Run, Secrets],
    start_broker: StartBroker,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    gateway, secrets = run
    caplog.set_level(logging.DEBUG)
    broker = start_broker(
        certificate=gateway.authority.issue_server(),
        plain=False,
        settings=(f"cafile {gateway.authority.certificate_path}", "require_certificate true"),
    )
    publish_and_flush(gateway, broker.tls_port)
    with TLSPeer(server_context(gateway.authority.issue_server("peer"))) as peer:
        log_in(gateway, peer)
        assert PASSWORD.encode() in peer.received, "the control: it was in use"
        peer.connack = NOT_AUTHORIZED
        assert any(isinstance(cause, BrokerRefusalError) for cause in fail_once(gateway, peer.port))
        fail_once(gateway, peer.port, certificate_pins=(NOT_A_PIN_OF_ANYONE,))
        fail_once(gateway, peer.port, ca_cert=new_authority(gateway.directory.parent, "another").certificate_path)
        refuse_settings(gateway, peer.port)
        for port in (broker.tls_port, peer.port):
            gateway.config(port)
            for options in ([], ["--json"]):
                main(["doctor", "--device-id", "DTG-TEST", *options, "--config", str(properties_of(gateway))])
    shown = capfd.readouterr()
    logged = [text for record in caplog.records for text in (record.getMessage(), repr(vars(record)), caplog.text)]
    assert any("Sending CONNECT" in text for text in logged), "the control: debug is on"
    for text in [*gateway.texts, *logged, shown.out, shown.err]:
        assert not secrets.shown_in(text), text
    files = [path for path in gateway.directory.rglob("*") if path.is_file()]
    assert "queue.db" in {path.name for path in files}
    for path in files:
        assert not secrets.shown_in(path.read_bytes()), path


def test_the_search_finds_each(run: tuple[Run, Secrets]) -> None:
    """The control of the test above."""
    gateway, secrets = run
    assert secrets.shown_in(Path(str(gateway.tls.client_key)).read_bytes()) == {"encrypted key"}
    assert secrets.shown_in(f"user:{PASSWORD}@host") == {"broker password"}
    assert secrets.shown_in(base64.b64encode(f"user:{PASSWORD}".encode())) == {"broker password"}
    assert secrets.shown_in(KEY_PASSWORD) == {"key password"}
    assert secrets.shown_in("a harmless text") == set()


def properties_of(gateway: Run) -> Path:
    return gateway.directory / "broker_config.properties"


def publish_and_flush(gateway: Run, port: int) -> None:
    """With a loss in between, so that there is a queue on disk while it runs."""
    config = gateway.config(port)
    with MQTTManager(config) as manager:
        manager.enable_debug_logging()
        listener = Listener()
        manager.set_connection_callback(listener)
        handles = [manager.publish("glec/t", f"message {number}", number % 3) for number in range(30)]
        manager.connect()
        assert listener.wait_for_connections()
        assert manager.flush(TIMEOUT_S)
        context = build_ssl_context(config.tls_config)
        pinner = CertificatePinner("localhost", [NOT_A_PIN_OF_ANYONE])
        gateway.note(config, config.tls_config, manager, manager._client, manager.get_metrics(), handles[0], context)
        gateway.note(pinner, listener, manager._outbox, manager._store, manager._connector._contexts)
        with suppress(QueueLockedError):
            try:
                MQTTManager(config)
            except QueueLockedError as error:
                gateway.note_error(error)
                raise


def log_in(gateway: Run, peer: TLSPeer) -> None:
    with MQTTManager(gateway.config(peer.port)) as manager:
        manager.enable_debug_logging()
        listener = Listener()
        manager.set_connection_callback(listener)
        manager.connect()
        assert listener.wait_for_connections()
        manager.publish("glec/t", "stays in the queue: this peer acknowledges nothing", 1).wait_durable(TIMEOUT_S)


def fail_once(gateway: Run, port: int, **tls: Any) -> list[Exception]:
    """The causes of an attempt that failed."""
    config = gateway.config(port, **tls)
    with MQTTManager(config) as manager:
        manager.enable_debug_logging()
        listener = Listener()
        manager.set_connection_callback(listener)
        manager.connect()
        assert eventually(lambda: any(isinstance(event, Exception) for event in listener.events))
        causes = [event for event in listener.events if isinstance(event, Exception)]
        for cause in causes:
            gateway.note_error(cause)
        gateway.note(config, manager.get_metrics(), listener.events)
    return causes


def refuse_settings(gateway: Run, port: int) -> None:
    """Each with a secret in the place that is wrong."""
    tls, key = gateway.tls, str(gateway.tls.client_key)
    leaf = leaf_der(gateway.authority.certificate_path)
    attempts: list[Any] = [
        lambda: MQTTConfig(f"ssl://gateway:{PASSWORD}@localhost:{port}", "D"),
        lambda: MQTTConfig("tcp://localhost", "D", password=PASSWORD),
        lambda: MQTTConfig("tcp://localhost", "D", "user", PASSWORD + "\ud800"),
        lambda: MQTTConfig("tcp://localhost", "D", "user", PASSWORD, tls_config=tls),
        lambda: TLSConfig(tls.ca_cert, key_password=KEY_PASSWORD),
        lambda: TLSConfig(tls.ca_cert, tls.client_cert, Path(key).read_text(), KEY_PASSWORD),
        lambda: build_ssl_context(TLSConfig(tls.ca_cert, tls.client_cert, key, PASSWORD)),
        lambda: build_ssl_context(TLSConfig(tls.ca_cert, tls.client_cert, key)),
        lambda: build_ssl_context(TLSConfig(tls.ca_cert, key, key, KEY_PASSWORD)),
        lambda: build_ssl_context(TLSConfig(key, tls.client_cert, key, KEY_PASSWORD)),
        lambda: build_ssl_context(TLSConfig(leaf, leaf, key, KEY_PASSWORD)),
        lambda: from_text(gateway, f"mqtt.broker.password={PASSWORD}\\q\n"),
        lambda: from_text(gateway, f"mqtt.broker.password {PASSWORD}\n"),
        lambda: from_text(gateway, f"mqtt.broker.password={PASSWORD}\\ud800\n"),
        lambda: from_text(gateway, f"mqtt.broker.password={PASSWORD}\n"),
        lambda: from_text(gateway, f"mqtt.tls.key_password={KEY_PASSWORD}\n"),
        lambda: from_text(gateway, "mqtt.broker.username=gateway-{SECURE_PASSWORD}\n"),
    ]
    for attempt in attempts:
        with pytest.raises(ConfigError) as caught:
            attempt()
        assert isinstance(caught.value, GlecError)
        # A traceback quotes the lines of this file, in which the secrets have their names only.
        gateway.note_error(caught.value)


def from_text(gateway: Run, text: str) -> MQTTConfig:
    """A properties file with a secret in it, which goes when it has been read."""
    path = gateway.directory / "wrong.properties"
    path.touch(0o600)
    try:
        path.write_text(f"mqtt.broker.url=ssl://localhost\n{text}")
        return MQTTConfig.from_properties(path, device_id="D")
    finally:
        path.unlink()
