"""What a file is that should hold certificates, a key or a revocation list, and what to do where it is another."""

from __future__ import annotations

import re
import shlex
from typing import NamedTuple

from glec_fast.errors import CertificateError
from glec_fast.tls.certificate import DerReader
from glec_fast.tls.pem import Block, PemError, blocks

CERTIFICATE, KEY, ENCRYPTED_KEY, PKCS12, CRL = (
    "a certificate",
    "a private key",
    "an encrypted private key",
    "a PKCS#12 file",
    "a certificate revocation list",
)
_REQUEST, _PUBLIC_KEY, _PKCS7 = "a certificate request", "a public key", "a PKCS#7 file"
_OPENSSH, _PUTTY, _JKS, _UTF16 = "an OpenSSH private key", "a PuTTY key", "a Java keystore", "UTF-16 text"
_BARE_BASE64, _LOST_LINES = "base64 without a BEGIN line", "PEM whose BEGIN is not a line of its own"

_LABELS = {
    "CERTIFICATE": CERTIFICATE,
    "X509 CERTIFICATE": CERTIFICATE,
    "TRUSTED CERTIFICATE": CERTIFICATE,
    "X509 CRL": CRL,
    "CERTIFICATE REQUEST": _REQUEST,
    "NEW CERTIFICATE REQUEST": _REQUEST,
    "PUBLIC KEY": _PUBLIC_KEY,
    "RSA PUBLIC KEY": _PUBLIC_KEY,
    "SSH2 PUBLIC KEY": _PUBLIC_KEY,
    "PKCS7": _PKCS7,
    "CMS": _PKCS7,
    "OPENSSH PRIVATE KEY": _OPENSSH,
    "ENCRYPTED PRIVATE KEY": ENCRYPTED_KEY,
}
_BEGINNINGS = (
    (re.compile(rb"\xfe\xed\xfe\xed|\xce\xce\xce\xce"), _JKS),
    (re.compile(rb"\xff\xfe|\xfe\xff"), _UTF16),
    (re.compile(rb"\s*<(!doctype html|html|head|body)", re.IGNORECASE), "a web page (HTML)"),
    (re.compile(rb"\s*<\?xml"), "XML"),
    (re.compile(rb"PK\x03\x04"), "a ZIP archive"),
    (re.compile(rb"\x1f\x8b"), "gzip"),
    (re.compile(rb"PuTTY-User-Key-File"), _PUTTY),
    (re.compile(rb"(ssh-|ecdsa-sha2-)\S+ AAAA"), _PUBLIC_KEY),
    (re.compile(rb"\s*[{\[]\s*[\"\]}]"), "JSON"),
)
_BASE64_ONLY = re.compile(rb"MI[A-Za-z0-9+/\s]+=*\s*")
_INTEGER, _BIT_STRING, _OCTET_STRING, _OBJECT_ID, _SEQUENCE = 0x02, 0x03, 0x04, 0x06, 0x30
_VERSION, _UTC_TIME, _GENERALIZED_TIME = 0xA0, 0x17, 0x18
# The tags of what a SEQUENCE begins with, by which files in DER are told apart: RFC 5958, 8017, 5915, 7292, 5280, 2315.
_OUTER = {
    (_INTEGER, _SEQUENCE): KEY,
    (_INTEGER, _INTEGER): KEY,
    (_INTEGER, _OCTET_STRING): KEY,
    (_SEQUENCE, _OCTET_STRING): ENCRYPTED_KEY,
    (_SEQUENCE, _BIT_STRING): _PUBLIC_KEY,
    (_OBJECT_ID, _VERSION): _PKCS7,
}
_DER_LABELS = {
    (_INTEGER, _SEQUENCE): "PRIVATE KEY",
    (_SEQUENCE, _OCTET_STRING): "ENCRYPTED PRIVATE KEY",
    (_INTEGER, _INTEGER): "RSA PRIVATE KEY",
    (_INTEGER, _OCTET_STRING): "EC PRIVATE KEY",
}
_PKCS12_VERSION = 3


class _Advice(NamedTuple):
    """What turns a file into certificates, and into a key; {} is its path."""

    certificates: str
    key: str


_OTHER = _Advice("give certificates in PEM or DER", "give a private key in PEM or DER")
_ADVICE = {
    PKCS12: _Advice("openssl pkcs12 -in {} -nokeys -out ca.pem", "openssl pkcs12 -in {} -nodes -out client.pem"),
    _JKS: _Advice(*["keytool -importkeystore -srckeystore {} -destkeystore store.p12 -deststoretype pkcs12"] * 2),
    _PKCS7: _Advice(*["openssl pkcs7 -in {} -print_certs -out certificates.pem"] * 2),
    _REQUEST: _Advice(*["it is what an authority signs: give what came back from it"] * 2),
    _OPENSSH: _Advice(_OTHER.certificates, "ssh-keygen -p -m PEM -f {}"),
    _PUTTY: _Advice(_OTHER.certificates, "puttygen {} -O private-openssh -o key && ssh-keygen -p -m PEM -f key"),
    _PUBLIC_KEY: _Advice(_OTHER.certificates, "give the private key that belongs to it"),
    _UTF16: _Advice(*["iconv -f UTF-16 -t UTF-8 {} > file.pem"] * 2),
    _BARE_BASE64: _Advice("base64 -d {} > file.der", "base64 -d {} > file.der"),
    _LOST_LINES: _Advice(*["give it as it was issued, with its line ends"] * 2),
    CERTIFICATE: _Advice(_OTHER.certificates, "give the private key that belongs to it"),
    KEY: _Advice("give the certificate that belongs to it", _OTHER.key),
    ENCRYPTED_KEY: _Advice("give the certificate that belongs to it", _OTHER.key),
}


def recognised(content: bytes) -> str | None:
    """What a file is, such as `PKCS12`; None for what is not known. Raises PemError for PEM that is cut."""
    if not content.strip():
        return "an empty file"
    for beginning, name in _BEGINNINGS:
        if beginning.match(content):
            return name
    first = next(blocks(content), None)
    if first is not None:
        return of_block(first)
    if b"-----BEGIN" in content:
        return _LOST_LINES
    if _BASE64_ONLY.fullmatch(content):
        return _BARE_BASE64
    return of_der(content)


def of_block(block: Block) -> str | None:
    """What a block of PEM is."""
    if block.label.endswith("PRIVATE KEY") and block.label not in _LABELS:
        return ENCRYPTED_KEY if block.is_encrypted else KEY
    return _LABELS.get(block.label)


def wrong_format(content: bytes, path: str | None, *, is_key: bool = False) -> str:
    """What a file is instead of what it should be, and what to do. path: None where it came as bytes."""
    try:
        found = recognised(content)
    except PemError as error:
        return f"{error}; copy it anew"
    advice = _ADVICE.get(found or "", _OTHER)
    command = (advice.key if is_key else advice.certificates).format("FILE" if path is None else shlex.quote(path))
    wanted = "no private key" if is_key else "no certificate"
    return f"it is {found}; {command}" if found else f"it is {wanted} in PEM or DER; {command}"


def key_label(der: bytes) -> str | None:
    """The label that a private key in DER has in PEM; None where it is none."""
    tags = _first_tags(der)
    return None if tags is None or of_der(der) == PKCS12 else _DER_LABELS.get(tags)


def _first_tags(der: bytes) -> tuple[int, int] | None:
    try:
        whole = DerReader(der)
        fields = whole.inside(_SEQUENCE)
        whole.end()
        return fields.any()[0], fields.any()[0]
    except CertificateError:
        return None


def of_der(content: bytes) -> str | None:
    """What a file in DER is; None for what is not known."""
    tags = _first_tags(content)
    if tags is None:
        return None
    fields = DerReader(content).inside(_SEQUENCE)
    first = fields.any()[1]
    if tags == (_INTEGER, _SEQUENCE) and first == bytes([_PKCS12_VERSION]):
        return PKCS12
    if tags == (_SEQUENCE, _SEQUENCE):
        return _signed(first)
    return _OUTER.get(tags)


def _signed(body: bytes) -> str | None:
    """A certificate, a request or a revocation list: something, an algorithm and a signature."""
    reader, tags = DerReader(body), []
    try:
        while reader.has_more():
            tags.append(reader.any()[0])
    except CertificateError:
        return None
    if tags[:1] == [_VERSION] or tags[:5] == [_INTEGER, *[_SEQUENCE] * 4]:
        return CERTIFICATE
    if tags[:3] == [_INTEGER, _SEQUENCE, _SEQUENCE] and tags[3:4] == [_VERSION]:
        return _REQUEST
    at = 1 if tags[:1] == [_INTEGER] else 0
    if tags[at : at + 2] == [_SEQUENCE] * 2 and tags[at + 2 : at + 3] in ([_UTC_TIME], [_GENERALIZED_TIME]):
        return CRL
    return None
