"""Certificates, private keys and revocation lists as people store them, PEM, DER or PKCS#12, as blocks of PEM."""

from __future__ import annotations

import re
import warnings
from itertools import pairwise
from typing import NamedTuple

from glec_fast.errors import CertificateError
from glec_fast.tls.certificate import DerReader
from glec_fast.tls.file_format import (
    CERTIFICATE,
    CRL,
    ENCRYPTED_KEY,
    KEY,
    PKCS12,
    der_elements,
    key_label,
    of_block,
    of_der,
    recognised,
)
from glec_fast.tls.pem import Block, PemError, block_of, blocks

# A line of a PEM file, or a piece of it.
_BASE64_RUN = re.compile(r"[A-Za-z0-9+/=]{40,}")
_RUN_CHARS = 40
_EXTENSION = re.compile(r"(\.[A-Za-z0-9]{1,8})+(/|$)")
# From here on a / may be one of base64 instead of one between folders.
_LONG_RUN_CHARS = 100


def looks_like_a_key(path: str) -> bool:
    """Whether what should be a path is the text of a key or certificate, or a part of it, and must not be repeated."""
    if "-----BEGIN" in path or "PRIVATE KEY" in path or any(sign in path for sign in "\r\n\0"):
        return True
    for found in _BASE64_RUN.finditer(path):
        run = found[0]
        is_long = len(run) >= _LONG_RUN_CHARS and run.count("/") * 16 <= len(run)
        *folders, last = [run] if is_long else run.split("/")
        is_name = _EXTENSION.match(path, found.end()) is not None and _is_of_words(last)
        if any(map(_is_mixed, folders)) or (_is_mixed(last) and not is_name):
            return True
    return False


def _is_mixed(text: str) -> bool:
    """What tells base64 from the names of files: length, and both cases beside digits, where a fingerprint has one."""
    upper, lower = sum(map(str.isupper, text)), sum(map(str.islower, text))
    return len(text) >= _RUN_CHARS and min(upper, lower) >= 6 and any(map(str.isdigit, text))


def _is_of_words(text: str) -> bool:
    """As in TheNameOfAFile2, where case changes at every third character; in base64 at two of three."""
    kinds = ["A" if sign.isupper() else "a" if sign.islower() else "0" for sign in text]
    changes = sum(before != after for before, after in pairwise(kinds))
    return changes * 2 < len(text)


class PasswordError(ValueError):
    """The password does not open the file, or there is none and it needs one."""


class MissingPackageError(ValueError):
    """PKCS#12 is read by the package cryptography, which is not installed."""


class Identity(NamedTuple):
    """A private key, and the certificates that came with it, its own first."""

    key: Block
    certificates: list[Block]


def as_certificates(content: bytes) -> list[Block]:
    """The certificates in a file, in its order; none where it has none. Raises PemError for a file that is cut."""
    return _of_kind(content, CERTIFICATE, "CERTIFICATE")


def as_revocation_lists(content: bytes) -> list[Block]:
    """The revocation lists in a file; none where it has none. Raises PemError for a file that is cut."""
    return _of_kind(content, CRL, "X509 CRL")


def _of_kind(content: bytes, kind: str, label: str) -> list[Block]:
    found = [block for block in blocks(content) if of_block(block) == kind]
    if not found and recognised(content) == kind:
        return [block_of(label, element) for element in der_elements(content) if of_der(element) == kind]
    return found


def der_of(certificate: Block) -> bytes:
    """A certificate in DER, without the trust that OpenSSL's own format adds. Raises PemError."""
    der = certificate.der
    if not certificate.label.startswith("TRUSTED"):
        return der
    try:
        return DerReader(der).any()[2]
    except CertificateError:
        pass
    raise PemError("a certificate in it is damaged")


def as_private_key(content: bytes) -> Block | None:
    """The first private key in a file; None where it has none. Raises PemError for a file that is cut."""
    for block in blocks(content):
        if of_block(block) in (KEY, ENCRYPTED_KEY):
            return block
    label = key_label(content)
    return None if label is None else block_of(label, der_elements(content)[0])


def is_pkcs12(content: bytes) -> bool:
    return of_der(content) == PKCS12


def open_pkcs12(content: bytes, password: str | None) -> Identity:
    """What a PKCS#12 file holds. Raises PemError, PasswordError, MissingPackageError."""
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.serialization.pkcs12 import load_pkcs12
    except ImportError as error:
        raise MissingPackageError("PKCS#12 needs the package cryptography") from error
    (content,) = der_elements(content)[:1] or [content]
    try:
        with warnings.catch_warnings():
            # Old exporters' DER is not strict.
            warnings.simplefilter("ignore")
            store = load_pkcs12(content, None if password is None else password.encode())
    except ValueError as error:
        raise PasswordError("the password does not open it") from error
    except UnsupportedAlgorithm as error:
        raise PemError("it is encrypted in a way that this system's OpenSSL has not") from error
    if store.key is None or store.cert is None:
        raise PemError("it holds no private key with its certificate")
    pem = store.key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    certificates = [store.cert, *store.additional_certs]
    ders = [each.certificate.public_bytes(serialization.Encoding.DER) for each in certificates]
    return Identity(next(blocks(pem)), [block_of("CERTIFICATE", der) for der in ders])
