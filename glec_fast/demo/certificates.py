"""A certificate authority of one's own, and what it signs. For loopback and for tests only."""

from __future__ import annotations

import datetime as dt
import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

LOOPBACK_HOSTS = ("localhost", "127.0.0.1")
# Covers a machine whose clock is a day off, and outlives any test.
VALID_FOR = dt.timedelta(days=2)


@dataclass(frozen=True)
class Certificate:
    """A certificate and its private key, as PEM files."""

    certificate_path: Path
    key_path: Path


class CertificateAuthority:
    """A new authority with a P-256 key; everything it makes lands in `directory`."""

    def __init__(self, directory: Path, common_name: str = "glec-fast demo CA") -> None:
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name(common_name)
        public_key = self._key.public_key()
        now = dt.datetime.now(dt.timezone.utc)
        builder = (
            _builder(self._name, self._name, public_key, now - VALID_FOR, now + VALID_FOR)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(signs_certificates=True), critical=True)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(public_key), critical=False)
        )
        self.certificate_path = directory / "ca.crt"
        self.certificate_path.write_bytes(_pem(builder.sign(self._key, hashes.SHA256())))

    def issue_server(
        self,
        name: str = "server",
        hosts: Sequence[str] = LOOPBACK_HOSTS,
        not_after: dt.datetime | None = None,
    ) -> Certificate:
        """A server certificate for `hosts` (names and IP addresses); `not_after` in the past makes an expired one."""
        alternatives = x509.SubjectAlternativeName([_general_name(host) for host in hosts])
        return self._issue(name, ExtendedKeyUsageOID.SERVER_AUTH, alternatives, not_after)

    def issue_client(self, name: str = "client", not_after: dt.datetime | None = None) -> Certificate:
        """A client certificate whose common name is `name`."""
        return self._issue(name, ExtendedKeyUsageOID.CLIENT_AUTH, None, not_after)

    def _issue(
        self,
        name: str,
        purpose: x509.ObjectIdentifier,
        alternatives: x509.SubjectAlternativeName | None,
        not_after: dt.datetime | None,
    ) -> Certificate:
        key = ec.generate_private_key(ec.SECP256R1())
        end = not_after or dt.datetime.now(dt.timezone.utc) + VALID_FOR
        issuer_key = self._key.public_key()
        builder = (
            _builder(_name(name), self._name, key.public_key(), end - 2 * VALID_FOR, end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False)
        )
        if alternatives is not None:
            builder = builder.add_extension(alternatives, critical=False)
        issued = Certificate(self._directory / f"{name}.crt", self._directory / f"{name}.key")
        issued.certificate_path.write_bytes(_pem(builder.sign(self._key, hashes.SHA256())))
        issued.key_path.touch(mode=0o600)
        issued.key_path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return issued


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    not_before: dt.datetime,
    not_after: dt.datetime,
) -> x509.CertificateBuilder:
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


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
