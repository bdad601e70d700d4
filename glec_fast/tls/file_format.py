"""What a file is that should hold certificates, a key or a revocation list, and what to do where it is another."""

from __future__ import annotations

import re
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
_BKS, _PVK, _YAML, _HEX = "an Android keystore (BKS)", "a Windows key (PVK)", "YAML", "hexadecimal text"
_PARAMETERS, _OCSP = "parameters without a key", "an OCSP message"
_BARE_BASE64, _LOST_LINES = "base64 without a BEGIN line", "PEM whose BEGIN is not a line of its own"
_PEM_IN_BASE64, _LOST_DASHES = "base64 of a PEM file", "PEM whose BEGIN has not five hyphens, or no capital letters"

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
    "DH PARAMETERS": _PARAMETERS,
    "X9.42 DH PARAMETERS": _PARAMETERS,
    "DSA PARAMETERS": _PARAMETERS,
    "EC PARAMETERS": _PARAMETERS,
    "OCSP REQUEST": _OCSP,
    "OCSP RESPONSE": _OCSP,
    "PGP PRIVATE KEY BLOCK": "an OpenPGP key",
    "PGP PUBLIC KEY BLOCK": "an OpenPGP key",
    "ENCRYPTED PRIVATE KEY": ENCRYPTED_KEY,
}
_BEGINNINGS = (
    (re.compile(rb"\xfe\xed\xfe\xed|\xce\xce\xce\xce"), _JKS),
    (re.compile(rb"\0\0\0[\1\2]\0\0\0\x14"), _BKS),
    (re.compile(rb"\x1e\xf1\xb5\xb0|[\x06\x07]\x02\0\0\0[\x24\xa4]\0\0"), _PVK),
    (re.compile(rb"\xff\xfe|\xfe\xff|(-\0){5}|(\0-){5}"), _UTF16),
    (re.compile(rb"\s*<(!doctype html|html|head|body|pre|div|p)\b", re.IGNORECASE), "a web page (HTML)"),
    (re.compile(rb"\s*<[A-Za-z]+>"), "XML"),
    (re.compile(rb".{257}ustar", re.DOTALL), "a tar archive"),
    # -----BEGIN, and the same behind a byte order mark.
    (re.compile(rb"(LS0tLS1CRUdJTi|77u/LS0tLS1CRUdJTi)"), _PEM_IN_BASE64),
    (
        re.compile(rb"(---\s|(\s*#[^\n]*\n)*\s*[A-Za-z][A-Za-z0-9_.]*:([ \t][^\n]*)?\r?\n\s*[A-Za-z][A-Za-z0-9_.]*:)"),
        _YAML,
    ),
    (re.compile(rb"(\s*[0-9a-fA-F]{2}:?){32,}\s*\Z"), _HEX),
    (re.compile(rb"\s*<\?xml"), "XML"),
    (re.compile(rb"PK\x03\x04"), "a ZIP archive"),
    (re.compile(rb"\x1f\x8b"), "gzip"),
    (re.compile(rb"PuTTY-User-Key-File"), _PUTTY),
    (re.compile(rb"(ssh-|ecdsa-sha2-)\S+ AAAA"), _PUBLIC_KEY),
    (re.compile(rb"\s*[{\[]\s*[\"\]}]"), "JSON"),
)
_DAMAGED_BEGIN = re.compile(rb"(?i)begin ([a-z0-9]+ )*(certificate|private key)")
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
# Its length not told beforehand, as browsers export it.
_PKCS12_IN_BER = bytes.fromhex("3080020103")
# Version, p, q, g, y, x; an RSA key has nine.
_DSA_NUMBERS = 6


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
    _BKS: _Advice(*["keytool -importkeystore -srckeystore {} -srcstoretype BKS -destkeystore store.p12"] * 2),
    _PVK: _Advice(_OTHER.certificates, "openssl rsa -inform PVK -in {} -out client.key"),
    _YAML: _Advice(
        *["take out what it holds: of a Kubernetes Secret, base64 -d of its tls.crt, tls.key or ca.crt"] * 2
    ),
    _HEX: _Advice(*["xxd -r -p {} > file.der"] * 2),
    _PEM_IN_BASE64: _Advice(*["base64 -d {} > file.pem"] * 2),
    _LOST_DASHES: _Advice(*["give it as it was issued; a word processor changes it"] * 2),
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
    name = _by_beginning(content)
    if name is not None:
        return name
    first = next(blocks(content), None)
    if first is not None:
        return of_block(first)
    if b"-----BEGIN" in content:
        return _LOST_LINES
    if _DAMAGED_BEGIN.search(content):
        return _LOST_DASHES
    if _BASE64_ONLY.fullmatch(content):
        return _BARE_BASE64
    return of_der(content)


def _by_beginning(content: bytes) -> str | None:
    return next((name for beginning, name in _BEGINNINGS if beginning.match(content)), None)


def of_block(block: Block) -> str | None:
    """What a block of PEM is."""
    if block.label.endswith("PRIVATE KEY") and block.label not in _LABELS:
        return ENCRYPTED_KEY if block.is_encrypted else KEY
    return _LABELS.get(block.label)


def in_a_command(path: str | None) -> str:
    """The path as a shell takes it; FILE where there is none."""
    # For refusals alone.
    import shlex

    return "FILE" if path is None else shlex.quote(path)


def wrong_format(content: bytes, path: str | None, *, is_key: bool = False) -> str:
    """What a file is instead of what it should be, and what to do. path: None where it came as bytes."""
    try:
        found = recognised(content)
    except PemError as error:
        return damage(error, content, path)
    advice = _ADVICE.get(found or "", _OTHER)
    command = (advice.key if is_key else advice.certificates).format(in_a_command(path))
    wanted = "no private key" if is_key else "no certificate"
    return f"it is {found}; {command}" if found else f"it is {wanted} in PEM or DER; {command}"


def damage(error: PemError, content: bytes, path: str | None) -> str:
    """What is wrong with PEM that cannot be read, and what to do: it may be in something else, such as a web page."""
    return f"{error}; copy it anew" if _by_beginning(content) is None else wrong_format(content, path)


def key_label(der: bytes) -> str | None:
    """The label that a private key in DER has in PEM; None where it is none."""
    tags = _first_tags(der)
    if tags is None or of_der(der) == PKCS12:
        return None
    if tags == (_INTEGER, _INTEGER) and _tags(DerReader(der).field(_SEQUENCE)) == [_INTEGER] * _DSA_NUMBERS:
        return "DSA PRIVATE KEY"
    return _DER_LABELS.get(tags)


def der_elements(content: bytes) -> list[bytes]:
    """What a file in DER is made of: one element, or several that were put together. None where it is not DER."""
    reader, found = DerReader(content), []
    try:
        while reader.has_more():
            found.append(reader.any()[2])
    except CertificateError:
        # Editors and shells add a line's end, and a signature may end as one does.
        rest = content[sum(map(len, found)) :]
        return [] if rest.strip(b"\r\n") else found
    return found


def _first_tags(der: bytes) -> tuple[int, int] | None:
    elements = der_elements(der)
    if not elements:
        return None
    try:
        fields = DerReader(elements[0]).inside(_SEQUENCE)
        return fields.any()[0], fields.any()[0]
    except CertificateError:
        return None


def of_der(content: bytes) -> str | None:
    """What a file in DER is; None for what is not known."""
    if content.startswith(_PKCS12_IN_BER):
        return PKCS12
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
    tags = _tags(body)
    if tags[:1] == [_VERSION] or tags[:5] == [_INTEGER, *[_SEQUENCE] * 4]:
        return CERTIFICATE
    if tags[:3] == [_INTEGER, _SEQUENCE, _SEQUENCE] and tags[3:4] == [_VERSION]:
        return _REQUEST
    at = 1 if tags[:1] == [_INTEGER] else 0
    if tags[at : at + 2] == [_SEQUENCE] * 2 and tags[at + 2 : at + 3] in ([_UTC_TIME], [_GENERALIZED_TIME]):
        return CRL
    return None


def _tags(body: bytes) -> list[int]:
    """Those of what a SEQUENCE holds; none where it is no DER."""
    reader, tags = DerReader(body), []
    try:
        while reader.has_more():
            tags.append(reader.any()[0])
    except CertificateError:
        return []
    return tags
