"""TLSConfig and the context made of it: the specification's nineteen cases by name, and what they leave open."""

from __future__ import annotations

import io
import logging
import ssl
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat
from cryptography.x509 import load_pem_x509_certificate

from glec_fast import CertificatePinner, ConfigError, MQTTConfig, MQTTManager, PinningError, TLSConfig, TLSFileError
from glec_fast.testbed.certificates import Certificate, CertificateAuthority
from glec_fast.tls.config import TLSContextSource, build_ssl_context
from support.gateway import quick_config

PRIMARY = "sha256/" + "A" * 43 + "="
BACKUP = "sha256/" + "B" * 43 + "="
SECRET = "s3cr3t-pa55"
URL = "ssl://mqtt.fleet.glec.co.kr:8883"
HOST = "mqtt.fleet.glec.co.kr"


class TestSpecificationTLSConfig:
    """The TLS suite that the specification lists: validation of TLSConfig."""

    def test_valid_server_auth_tls_config(self) -> None:
        made = TLSConfig.create_server_auth("/path/to/ca.crt", tls_version="TLSv1.2")
        assert (made.ca_cert, made.tls_version) == ("/path/to/ca.crt", "TLSv1.2")
        assert made.is_mutual_tls() is False

    def test_valid_mutual_tls_config(self) -> None:
        made = TLSConfig.create_mutual_tls("/ca.crt", "/client.crt", "/client.key", tls_version="TLSv1.2")
        assert made.is_mutual_tls() is True

    @pytest.mark.parametrize("version", ["TLSv1.0", "TLSv1", "TLSv1.1", "SSLv3", "", None, 1.2])
    def test_invalid_tls_version(self, version: Any) -> None:
        with pytest.raises(ConfigError, match="tls_version"):
            TLSConfig.create_server_auth("/path/to/ca.crt", tls_version=version)

    def test_invalid_mutual_tls_missing_key(self) -> None:
        with pytest.raises(ConfigError, match="client_key is not"):
            TLSConfig("/path/to/ca.crt", client_cert="/path/to/client.crt")

    def test_invalid_mutual_tls_missing_cert(self) -> None:
        with pytest.raises(ConfigError, match="client_cert is not"):
            TLSConfig("/path/to/ca.crt", client_key="/path/to/client.key")

    def test_invalid_certificate_pin_format(self) -> None:
        for pins in (
            [PRIMARY, "invalid_pin"],
            ["sha256/VALID_BASE64_STRING_HERE=="],
            [PRIMARY[:-1]],
            [PRIMARY.upper()],
        ):
            with pytest.raises(ConfigError, match="pin"):
                TLSConfig.create_server_auth("/path/to/ca.crt", certificate_pins=pins)

    def test_certificate_pinning_enabled(self) -> None:
        made = TLSConfig.create_server_auth("/path/to/ca.crt", certificate_pins=[PRIMARY])
        assert made.is_certificate_pinning_enabled() is True

    def test_certificate_pinning_disabled(self) -> None:
        made = TLSConfig.create_server_auth("/path/to/ca.crt", certificate_pins=[])
        assert made.is_certificate_pinning_enabled() is False


class TestSpecificationCertificatePinner:
    """The TLS suite that the specification lists: pins."""

    def test_valid_pinner_configuration(self) -> None:
        pinner = CertificatePinner(HOST, [PRIMARY])
        assert (pinner.hostname, pinner.pins) == (HOST, (PRIMARY,))

    @pytest.mark.parametrize("hostname", ["", " ", None])
    def test_invalid_pinner_empty_hostname(self, hostname: Any) -> None:
        with pytest.raises(ConfigError, match="hostname"):
            CertificatePinner(hostname, [PRIMARY])

    def test_invalid_pinner_malformed_pin(self) -> None:
        with pytest.raises(ConfigError, match="invalid_pin"):
            CertificatePinner(HOST, ["invalid_pin"])

    def test_pin_validation_success(self, authority: CertificateAuthority) -> None:
        pin, der = pin_and_der(authority.certificate_path)
        assert CertificatePinner(HOST, [PRIMARY, pin]).check(HOST, [der]) == pin

    def test_pin_validation_failure(self, authority: CertificateAuthority) -> None:
        _, der = pin_and_der(authority.certificate_path)
        with pytest.raises(PinningError):
            CertificatePinner(HOST, [PRIMARY, BACKUP]).check(HOST, [der])

    def test_pin_calculation(self, authority: CertificateAuthority) -> None:
        key = load_pem_x509_certificate(authority.certificate_path.read_bytes()).public_key()
        spki = key.public_bytes(Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        pin = CertificatePinner.calculate_pin(spki)
        assert pin == pin_and_der(authority.certificate_path)[0] == CertificatePinner.calculate_pin(spki)
        empty = "sha256/47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="
        assert CertificatePinner.calculate_pin(b"") == empty, "SHA-256 of nothing, as FIPS 180-4 examples have it"


class TestSpecificationMQTTConfig:
    """The TLS suite that the specification lists: MQTTConfig with TLS."""

    def test_valid_mqtt_config_with_tls(self) -> None:
        made = MQTTConfig(URL, "DTG-SN-12345", tls_config=TLSConfig.create_server_auth("/path/to/ca.crt"))
        assert made.is_tls_enabled() is True

    def test_invalid_mqtt_config_ssl_without_tls_config(self, tmp_path: Path) -> None:
        """The specification's own example has ssl:// alone: that means full verification, by the system's authorities.

        What is invalid is ssl:// with TLS turned off.
        """
        context = build_ssl_context(MQTTConfig(URL, "DTG-SN-12345").tls_config)
        assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
        path = tmp_path / "broker_config.properties"
        path.write_text(f"mqtt.broker.url={URL}\nmqtt.tls.enabled=false\n")
        with pytest.raises(ConfigError, match="line 2"):
            MQTTConfig.from_properties(path, device_id="DTG-SN-12345")

    def test_valid_mqtt_config_tcp_without_tls(self) -> None:
        assert MQTTConfig("tcp://localhost:1883", "DTG-SN-12345").is_tls_enabled() is False

    def test_mqtt_config_with_mutual_tls(self) -> None:
        tls = TLSConfig.create_mutual_tls("/path/to/ca.crt", "/path/to/client.crt", "/path/to/client.key")
        made = MQTTConfig(URL, "DTG-SN-12345", "dtg-device-12345", SECRET, tls)
        assert made.tls_config is not None
        assert made.tls_config.is_mutual_tls() is True

    def test_mqtt_config_with_certificate_pinning(self) -> None:
        tls = TLSConfig.create_server_auth("/path/to/ca.crt", certificate_pins=[PRIMARY, BACKUP])
        made = MQTTConfig(URL, "DTG-SN-12345", tls_config=tls)
        assert made.tls_config is not None
        assert made.tls_config.certificate_pins == (PRIMARY, BACKUP)
        with pytest.raises(ConfigError, match="certificate pins are set"):
            MQTTConfig("tcp://localhost", "DTG-SN-12345", tls_config=tls)


def pin_and_der(path: Path) -> tuple[str, bytes]:
    certificate = load_pem_x509_certificate(path.read_bytes())
    key = certificate.public_key().public_bytes(Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return CertificatePinner.calculate_pin(key), certificate.public_bytes(Encoding.DER)


def test_the_context_is_strict(authority: CertificateAuthority) -> None:
    context = build_ssl_context(TLSConfig.create_server_auth(authority.certificate_path))
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.check_hostname is True
    assert context.security_level == 2
    assert context.options & ssl.OP_NO_RENEGOTIATION
    assert context.options & ssl.OP_NO_COMPRESSION
    suites = [suite["name"] for suite in context.get_ciphers()]
    of_1_2 = [name for name in suites if not name.startswith("TLS_")]
    assert suites[0] == "TLS_AES_256_GCM_SHA384"
    assert [name.split("-")[2] for name in of_1_2] == ["AES256", "AES256", "AES128", "AES128"]
    assert all(name.startswith("ECDHE-") and "-GCM-" in name for name in of_1_2)
    strict = build_ssl_context(TLSConfig.create_server_auth(authority.certificate_path, "TLSv1.3"))
    assert strict.minimum_version == ssl.TLSVersion.TLSv1_3


@pytest.mark.parametrize("form", ["path", "Path", "PEM bytes", "DER bytes", "open file", "text file", "bytearray"])
def test_every_form_of_a_ca(authority: CertificateAuthority, tmp_path: Path, form: str) -> None:
    pem = authority.certificate_path.read_bytes()
    path = tmp_path / "ca.der"
    path.write_bytes(pin_and_der(authority.certificate_path)[1])
    source: Any = {
        "path": str(authority.certificate_path),
        "Path": path,
        "PEM bytes": "Größe\n".encode() + pem,
        "DER bytes": path.read_bytes(),
        "open file": io.BytesIO(pem),
        "text file": io.StringIO(pem.decode()),
        "bytearray": bytearray(pem),
    }[form]
    made = TLSConfig.create_server_auth(source)
    for _ in range(2):
        assert build_ssl_context(made).get_ca_certs(binary_form=True) == [path.read_bytes()]
    assert hash(made) == hash(made)


def test_a_bundle_of_authorities(tmp_path: Path) -> None:
    ders = []
    bundle = b"# two of them\n"
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        path = CertificateAuthority(tmp_path / name, name).certificate_path
        bundle += path.read_bytes()
        ders.append(pin_and_der(path)[1])
    assert set(build_ssl_context(TLSConfig.create_server_auth(bundle)).get_ca_certs(binary_form=True)) == set(ders)


KEYS = {
    "ec": lambda: ec.generate_private_key(ec.SECP256R1()),
    "rsa": lambda: rsa.generate_private_key(65537, 2048),
    "ed25519": ed25519.Ed25519PrivateKey.generate,
}
PKCS8, TRADITIONAL = PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL


# The traditional format has no Ed25519, and is encrypted in PEM only.
FORMS = [
    (key_type, form, encoding, password)
    for key_type in KEYS
    for form in (PKCS8, TRADITIONAL)
    for encoding in (Encoding.PEM, Encoding.DER)
    for password in (None, SECRET)
    if form is PKCS8 or not (key_type == "ed25519" or (encoding is Encoding.DER and password))
]


@pytest.mark.parametrize(("key_type", "form", "encoding", "password"), FORMS)
def test_every_form_of_a_client_key(
    authority: CertificateAuthority, tmp_path: Path, key_type: Any, form: Any, encoding: Any, password: str | None
) -> None:
    (tmp_path / "a").mkdir()
    issued = CertificateAuthority(tmp_path / "a").issue_client(key_type=key_type)
    key = serialization.load_pem_private_key(issued.key_path.read_bytes(), None)
    encryption = BestAvailableEncryption(password.encode()) if password else NoEncryption()
    path = tmp_path / "client.key"
    path.write_bytes(key.private_bytes(encoding, form, encryption))
    path.chmod(0o600)
    for source in (path, path.read_bytes()):
        made = TLSConfig.create_mutual_tls(authority.certificate_path, issued.certificate_path, source, password)
        assert TLSContextSource(made).get().client_certificate == pin_and_der(issued.certificate_path)[1]
        if password is not None:
            for wrong in (None, "wrong", ""):
                bad = TLSConfig.create_mutual_tls(authority.certificate_path, issued.certificate_path, source, wrong)
                with pytest.raises(TLSFileError, match="password") as caught:
                    build_ssl_context(bad)
                assert SECRET not in str(caught.value)


def test_certificate_and_key_in_one_file(authority: CertificateAuthority, tmp_path: Path) -> None:
    issued = authority.issue_client("one-file")
    path = tmp_path / "both.pem"
    path.touch(0o600)
    path.write_bytes(issued.key_path.read_bytes() + issued.certificate_path.read_bytes())
    source = TLSContextSource(TLSConfig.create_mutual_tls(authority.certificate_path, path, path))
    assert source.get().client_certificate == pin_and_der(issued.certificate_path)[1]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("ca_cert", b"nonsense", "ca_cert"),
        ("ca_cert", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "ca_cert"),
        ("ca_cert", b"-----BEGIN CERTIFICATE-----\n!!!!\n-----END CERTIFICATE-----\n", "base64"),
        ("client_cert", b"nonsense", "client_cert"),
        ("client_key", b"nonsense", "client_key"),
        ("client_key", b"0\x00", "client_key"),
        ("client_key", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "client_key"),
    ],
)
def test_damaged_files(authority: CertificateAuthority, name: str, content: bytes, says: str) -> None:
    issued = authority.issue_client("damaged")
    files: dict[str, Any] = {
        "ca_cert": authority.certificate_path,
        "client_cert": issued.certificate_path,
        "client_key": issued.key_path,
        name: content,
    }
    with pytest.raises(TLSFileError, match=says) as caught:
        build_ssl_context(TLSConfig(**files))
    assert isinstance(caught.value, ConfigError)
    assert isinstance(caught.value, OSError)
    assert caught.value.retryable


def test_a_key_of_another_certificate(authority: CertificateAuthority) -> None:
    one, two = authority.issue_client("first"), authority.issue_client("second")
    with pytest.raises(TLSFileError, match="key of client_cert"):
        build_ssl_context(TLSConfig.create_mutual_tls(authority.certificate_path, one.certificate_path, two.key_path))


def test_missing_files_are_named(authority: CertificateAuthority, tmp_path: Path) -> None:
    with pytest.raises(TLSFileError, match=r"ca_cert '.*nowhere' cannot be read"):
        build_ssl_context(TLSConfig.create_server_auth(tmp_path / "nowhere"))
    with (
        pytest.raises(ConfigError, match="nowhere"),
        MQTTManager(quick_config("ssl://localhost", tmp_path, tls_config=TLSConfig(tmp_path / "nowhere"))),
    ):
        pytest.fail("it was made")
    assert not (tmp_path / "queue.db").exists(), "refused before the queue was opened"


@pytest.mark.parametrize(
    "settings",
    [
        {"ca_cert": 5},
        {"ca_cert": b""},
        {"ca_cert": ""},
        {"client_cert": [], "client_key": "k"},
        {"client_cert": "c", "client_key": "k", "key_password": b"x"},
        {"key_password": "x"},
        {"verify_hostname": 0},
        {"verify_hostname": None},
        {"certificate_pins": PRIMARY},
        {"certificate_pins": None},
        {"certificate_pins": [None]},
        {"ca_cert": f"-----BEGIN PRIVATE KEY-----{SECRET}"},
    ],
)
def test_malformed_settings(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        TLSConfig(**settings)
    assert SECRET not in str(caught.value)


def test_the_same_context_until_a_file_changes(authority: CertificateAuthority, tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    path.write_bytes(authority.certificate_path.read_bytes())
    source = TLSContextSource(TLSConfig.create_server_auth(path))
    first = source.get()
    path.touch()
    assert source.get() is first
    (tmp_path / "other").mkdir()
    path.write_bytes(CertificateAuthority(tmp_path / "other").certificate_path.read_bytes())
    second = source.get()
    assert second.ssl_context is not first.ssl_context
    assert second.ssl_context.get_ca_certs(binary_form=True) == [pin_and_der(path)[1]]
    path.unlink()
    with pytest.raises(TLSFileError):
        source.get()


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o604])
def test_a_world_readable_key_is_warned_about(
    authority: CertificateAuthority, tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: int
) -> None:
    issued: Certificate = authority.issue_client("readable")
    path = tmp_path / "client.key"
    path.write_bytes(issued.key_path.read_bytes())
    path.chmod(mode)
    with caplog.at_level(logging.WARNING):
        build_ssl_context(TLSConfig.create_mutual_tls(authority.certificate_path, issued.certificate_path, path))
    assert (f"can read client_key {path}: run chmod 600" in caplog.text) == (mode == 0o604)


def test_repr_shows_neither_key_nor_password() -> None:
    made = TLSConfig(b"CA CONTENT", b"CERT CONTENT", b"KEY CONTENT", SECRET, certificate_pins=(PRIMARY,))
    for text in (repr(made), str(made), f"{MQTTConfig(URL, 'x', tls_config=made)}"):
        assert "KEY CONTENT" not in text
        assert SECRET not in text
        assert "CONTENT" not in text
        assert PRIMARY in text
    assert "client.key" not in repr(TLSConfig("ca.crt", "client.crt", "client.key"))
    assert "client.crt" in repr(TLSConfig("ca.crt", "client.crt", "client.key"))


def test_the_systems_authorities_are_loaded_again_only_where_they_have_changed(
    authority: CertificateAuthority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = tmp_path / "system.pem"
    system.write_bytes(authority.certificate_path.read_bytes())
    monkeypatch.setenv("SSL_CERT_FILE", str(system))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    source = TLSContextSource(TLSConfig())
    made = source.get()
    assert len(made.ssl_context.get_ca_certs()) == 1
    assert source.get() is made
    CertificateAuthority(tmp_path, "another")
    replaced = tmp_path / "new.pem"
    replaced.write_bytes(authority.certificate_path.read_bytes() + b"\n")
    replaced.replace(system)
    assert source.get() is not made
