"""What a private key is for, and what it is encrypted with, for the words of a refusal. Never holds any of the key."""

from __future__ import annotations

import re

from glec_fast.errors import CertificateError
from glec_fast.tls.certificate import DerReader
from glec_fast.tls.pem import Block, PemError

_INTEGER, _OBJECT_ID, _SEQUENCE = 0x02, 0x06, 0x30
_RSADSI = "2a864886f70d01"
# Of which no broker takes a certificate. RFC 5912, 8410.
_OF_NO_USE = {
    "2a8648ce380401": "DSA",
    f"{_RSADSI}0301": "DH",
    "2a8648ce3e0201": "DH",
    "2b656e": "X25519",
    "2b656f": "X448",
}
_PBES2 = f"{_RSADSI}050d"
# RFC 8018, A and B, and 7292, C: those of OpenSSL's legacy provider, which is not loaded as a rule.
_LEGACY = {
    f"{_RSADSI}0501": "DES",
    f"{_RSADSI}0503": "DES",
    f"{_RSADSI}0504": "RC2",
    f"{_RSADSI}0506": "RC2",
    f"{_RSADSI}050a": "DES",
    f"{_RSADSI}050b": "RC2",
    f"{_RSADSI}0c0101": "RC4",
    f"{_RSADSI}0c0102": "RC4",
    f"{_RSADSI}0c0105": "RC2",
    f"{_RSADSI}0c0106": "RC2",
    "2b0e030207": "DES",
    "2a864886f70d0302": "RC2",
    "2b0601040197550102": "BF",
    "2a864886f67d07420a": "CAST5",
    "2a831a8c9a440104": "SEED",
    "2b06010401813c07010102": "IDEA",
}
_LEGACY_HEADER = re.compile(rb"DEK-Info: *(DES-CBC|DES-CFB|DES-OFB|RC2|RC4|IDEA|CAST5?|BF|SEED)\b")


def of_no_use(key: Block) -> str | None:
    """Such as "DSA": the kind of a key that TLS has no use for. None for others, and for what is encrypted."""
    if key.label == "DSA PRIVATE KEY":
        return "DSA"
    fields = _fields(key)
    if fields is None or key.label != "PRIVATE KEY":
        return None
    try:
        fields.field(_INTEGER)
        return _OF_NO_USE.get(fields.inside(_SEQUENCE).field(_OBJECT_ID).hex())
    except CertificateError:
        return None


def legacy_cipher(key: Block) -> str | None:
    """Such as "RC2": what a key is encrypted with, if OpenSSL has it in its legacy provider alone."""
    for line in key.lines[:2]:
        header = _LEGACY_HEADER.match(line)
        if header is not None:
            return header[1].decode("ascii").partition("-")[0]
    fields = _fields(key)
    if fields is None or key.label != "ENCRYPTED PRIVATE KEY":
        return None
    try:
        algorithm = fields.inside(_SEQUENCE)
        scheme = algorithm.field(_OBJECT_ID).hex()
        if scheme == _PBES2:
            parameters = algorithm.inside(_SEQUENCE)
            parameters.any()
            scheme = parameters.inside(_SEQUENCE).field(_OBJECT_ID).hex()
    except CertificateError:
        return None
    return _LEGACY.get(scheme)


def _fields(key: Block) -> DerReader | None:
    try:
        return DerReader(key.der).inside(_SEQUENCE)
    except (PemError, CertificateError):
        return None
