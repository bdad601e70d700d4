"""Certificates and private keys as people store them: PEM (RFC 7468) or DER, told apart and brought to one form."""

from __future__ import annotations

import base64
import binascii
import re

from glec_fast.certificate import DerReader, parse_certificate
from glec_fast.errors import CertificateError

_BLOCK = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----(.*?)-----END \1-----", re.DOTALL)
_CERTIFICATES = (b"CERTIFICATE", b"X509 CERTIFICATE")
_KEY = b"PRIVATE KEY"
_INTEGER, _OCTET_STRING, _SEQUENCE = 0x02, 0x04, 0x30


# A line of a PEM file, or a piece of it.
_BASE64_RUN = re.compile(r"[A-Za-z0-9+/]{40,}")


class PemError(ValueError):
    """Neither PEM nor DER of what was expected. Never holds any of the content, which may be a key."""


def looks_like_a_key(path: str) -> bool:
    """Whether what should be a path is the text of a key or certificate, or a part of it, and must not be repeated."""
    if "-----BEGIN" in path or "PRIVATE KEY" in path or not path.isprintable():
        return True
    runs = (run[0] for run in _BASE64_RUN.finditer(path))
    # What tells it from the names of folders: many capitals, some digits, few slashes.
    return any(
        sum(map(str.isupper, run)) >= 6 and any(map(str.isdigit, run)) and run.count("/") * 8 <= len(run)
        for run in runs
    )


def as_certificates(content: bytes) -> list[bytes]:
    """The certificates in a file, in DER and in its order. Raises PemError."""
    ders = []
    for label, body in _BLOCK.findall(content):
        if label in _CERTIFICATES:
            try:
                ders.append(base64.b64decode(b"".join(body.split()), validate=True))
            except binascii.Error as error:
                raise PemError("a certificate in it has damaged base64") from error
    if not ders:
        ders = [content]
    try:
        for der in ders:
            parse_certificate(der)
    except CertificateError as error:
        raise PemError(f"no certificate in PEM or DER ({error})") from error
    return ders


def as_private_key(content: bytes) -> tuple[bytes, bool]:
    """(the private key in PEM, whether a password is needed to open it). Raises PemError."""
    for block in _BLOCK.finditer(content):
        if block[1].endswith(_KEY):
            return block[0] + b"\n", b"ENCRYPTED" in block[0]
    label = _label(content)
    # The traditional format's PEM reader insists on lines; 64 characters are what RFC 7468 asks for.
    encoded = base64.b64encode(content)
    lines = [encoded[start : start + 64] for start in range(0, len(encoded), 64)]
    pem = b"\n".join([b"-----BEGIN " + label + b"-----", *lines, b"-----END " + label + b"-----", b""])
    return pem, label.startswith(b"ENCRYPTED")


def _label(der: bytes) -> bytes:
    """The label of a key's PEM: PKCS #8 (RFC 5958), encrypted or not, PKCS #1 (RFC 8017), SEC 1 (RFC 5915)."""
    try:
        whole = DerReader(der)
        fields = whole.inside(_SEQUENCE)
        whole.end()
        first, _, _ = fields.any()
        second, _, _ = fields.any()
    except CertificateError as error:
        raise PemError("no private key in PEM or DER") from error
    labels = {
        (_INTEGER, _SEQUENCE): b"PRIVATE KEY",
        (_SEQUENCE, _OCTET_STRING): b"ENCRYPTED PRIVATE KEY",
        (_INTEGER, _INTEGER): b"RSA PRIVATE KEY",
        (_INTEGER, _OCTET_STRING): b"EC PRIVATE KEY",
    }
    if (first, second) not in labels:
        raise PemError("no private key in PEM or DER")
    return labels[first, second]
