"""A certificate authority of one's own, and what it signs. For loopback and for tests only."""

from __future__ import annotations

import datetime as dt
import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

PrivateKey: TypeAlias = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey
KeyType: TypeAlias = Literal["ec", "rsa", "ed25519"]

LOOPBACK_HOSTS = ("localhost", "127.0.0.1")
# Covers a machine whose clock is a day off, and outlives any test.
VALID_FOR = dt.timedelta(days=2)
_RSA_BITS = 2048
_MAKE_KEY: dict[KeyType, Callable[[], PrivateKey]] = {
    "ec": lambda: ec.generate_private_key(ec.SECP256R1()),
    "rsa": lambda: rsa.generate_private_key(65537, _RSA_BITS),
    "ed25519": ed25519.Ed25519PrivateKey.generate,
}


@dataclass(frozen=True)
class Certificate:
    """A certificate, with the intermediates above it, and its private key, as PEM files."""

    certificate_path: Path
    key_path: Path


class CertificateAuthority:
    """A new authority; everything it makes lands in `directory`. With `issuer` it is an intermediate below that one."""

    def __init__(
        self,
        directory: Path,
        common_name: str = "glec-fast demo CA",
        *,
        key_type: KeyType = "ec",
        issuer: CertificateAuthority | None = None,
    ) -> None:
        self._directory = directory
        self._key = _MAKE_KEY[key_type]()
        self._name = _name(common_name)
        signer = issuer or self
        now = dt.datetime.now(dt.timezone.utc)
        builder = (
            _builder(self._name, signer._name, self._key, now - VALID_FOR, now + VALID_FOR)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None if issuer is None else 0), critical=True)
            .add_extension(_key_usage(signs_certificates=True), critical=True)
            .add_extension(_issuer_identifier(signer._key), critical=False)
        )
        pem = signer._sign(builder)
        # What a peer sends above its own certificate: the authority at the top is the client's own business.
        self._chain: bytes = b"" if issuer is None else pem + issuer._chain
        self.certificate_path = directory / ("ca.crt" if issuer is None else f"{common_name}.crt")
        self.certificate_path.write_bytes(pem)

    def issue_server(
        self,
        name: str = "server",
        hosts: Sequence[str | x509.GeneralName] = LOOPBACK_HOSTS,
        not_after: dt.datetime | None = None,
        *,
        not_before: dt.datetime | None = None,
        key_type: KeyType = "ec",
        key: PrivateKey | None = None,
    ) -> Certificate:
        """A server certificate for `hosts` (names, IP addresses, or ready-made), for `key` or a new one of `key_type`.

        Without hosts it has no subjectAltName, only `name` as its common name.

        not_after in the past makes an expired one, not_before in the future one that is not yet valid.
        """
        alternatives = x509.SubjectAlternativeName([_general_name(host) for host in hosts]) if hosts else None
        validity = (not_before, not_after)
        key = key or _MAKE_KEY[key_type]()
        return self._issue(name, ExtendedKeyUsageOID.SERVER_AUTH, alternatives, validity, key)

    def issue_client(
        self, name: str = "client", not_after: dt.datetime | None = None, *, key_type: KeyType = "ec"
    ) -> Certificate:
        """A client certificate whose common name is `name`."""
        return self._issue(name, ExtendedKeyUsageOID.CLIENT_AUTH, None, (None, not_after), _MAKE_KEY[key_type]())

    def _issue(
        self,
        name: str,
        purpose: x509.ObjectIdentifier,
        alternatives: x509.SubjectAlternativeName | None,
        validity: tuple[dt.datetime | None, dt.datetime | None],
        key: PrivateKey,
    ) -> Certificate:
        not_before, not_after = validity
        end = not_after or (not_before or dt.datetime.now(dt.timezone.utc)) + VALID_FOR
        builder = (
            _builder(_name(name), self._name, key, not_before or end - 2 * VALID_FOR, end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
            .add_extension(_issuer_identifier(self._key), critical=False)
        )
        if alternatives is not None:
            builder = builder.add_extension(alternatives, critical=False)
        issued = Certificate(self._directory / f"{name}.crt", self._directory / f"{name}.key")
        issued.certificate_path.write_bytes(self._sign(builder) + self._chain)
        issued.key_path.touch(mode=0o600)
        issued.key_path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return issued

    def _sign(self, builder: x509.CertificateBuilder) -> bytes:
        algorithm = None if isinstance(self._key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
        return builder.sign(self._key, algorithm).public_bytes(serialization.Encoding.PEM)


def _issuer_identifier(key: PrivateKey) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())


def _builder(
    subject: x509.Name, issuer: x509.Name, key: PrivateKey, not_before: dt.datetime, not_after: dt.datetime
) -> x509.CertificateBuilder:
    public_key = key.public_key()
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(not_before)
        .not_valid_after(not_after)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _general_name(host: str | x509.GeneralName) -> x509.GeneralName:
    if isinstance(host, x509.GeneralName):
        return host
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
