"""The files of TLS settings: read, their formats told apart, given to a context; what is wrong named, with its path."""

from __future__ import annotations

import hashlib
import os
import ssl
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from glec_fast.errors import CertificateError, TLSFileError
from glec_fast.runtime.log import logger
from glec_fast.tls.certificate import is_delta_list
from glec_fast.tls.file_format import damage, in_a_command, wrong_format
from glec_fast.tls.key_format import (
    Identity,
    MissingPackageError,
    PasswordError,
    as_certificates,
    as_private_key,
    as_revocation_lists,
    der_of,
    is_pkcs12,
    open_pkcs12,
)
from glec_fast.tls.key_kind import legacy_cipher, of_no_use
from glec_fast.tls.pem import Block, PemError

if TYPE_CHECKING:
    from glec_fast.tls.config import TLSConfig

# OpenSSL's names for what a certificate and a key are refused for.
_WEAK = frozenset({"EE_KEY_TOO_SMALL", "CA_KEY_TOO_SMALL", "CA_MD_TOO_WEAK"})
_UNKNOWN_KIND = "UNKNOWN_CERTIFICATE_TYPE"
_MISMATCHES = frozenset({"KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED"})
# How many of those that were passed over a warning names.
_LISTED_MAX = 5


class File(NamedTuple):
    """What a setting names. label: for errors, with the path; path: None where it came as bytes."""

    label: str
    path: str | None
    content: bytes


class Material(NamedTuple):
    """The files of each setting; more than one only of a folder, none where it is not set."""

    ca_cert: tuple[File, ...]
    client_cert: tuple[File, ...]
    client_key: tuple[File, ...]
    crl_file: tuple[File, ...]

    def digest(self) -> bytes:
        """Changes when a file does. The key itself need not stay in memory for that."""
        return b"|".join(b",".join(hashlib.sha256(file.content).digest() for file in files) for files in self)


def read_files(config: TLSConfig) -> Material:
    return Material(*(tuple(_files(name, getattr(config, name))) for name in Material._fields))


def _files(name: str, source: object) -> Iterator[File]:
    if source is None:
        return
    if isinstance(source, bytes):
        yield File(name, None, source)
        return
    path = Path(str(source))
    try:
        found = _files_in(name, path) if name == "ca_cert" and path.is_dir() else [_file(name, path)]
    except OSError as error:
        raise TLSFileError(f"{name} {str(path)!r} cannot be read: {error.strerror}; mend its path or rights") from error
    if not found:
        raise TLSFileError(f"{name} {str(path)!r} is an empty folder; put certificates into it")
    yield from found


def _file(name: str, path: Path) -> File:
    return File(f"{name} {str(path)!r}", str(path), path.read_bytes())


def _files_in(name: str, folder: Path) -> list[File]:
    """One of each content: OpenSSL's folders name a file a second time by a hash."""
    files = {file.content: file for file in (_file(name, path) for path in sorted(folder.iterdir()) if path.is_file())}
    return list(files.values())


def load_authorities(context: ssl.SSLContext, files: Sequence[File]) -> None:
    """Trust each certificate that OpenSSL can read. The others, which may be odd old roots, are told of together."""
    passed_over: list[str] = []
    count = 0
    for file in files:
        certificates = _parsed(file, as_certificates)
        if not certificates and len(files) == 1:
            raise TLSFileError(f"{file.label} cannot be used: {wrong_format(file.content, file.path)}")
        if not certificates:
            passed_over.append(f"{file.path} has none")
        if certificates and not _is_loaded(context, certificates):
            odd = [number for number, each in enumerate(certificates, 1) if not _is_loaded(context, [each])]
            passed_over.extend(f"number {number} in {file.path or file.label}" for number in odd)
            count -= len(odd)
        count += len(certificates)
    if count == 0:
        raise TLSFileError(
            f"{files[0].label} cannot be used: it has no certificate that OpenSSL can read; copy it anew"
        )
    if passed_over:
        listed = ", ".join(passed_over[:_LISTED_MAX]) + (", ..." if len(passed_over) > _LISTED_MAX else "")
        logger.warning("of ca_cert, %d certificates are trusted; passed over was: %s", count, listed)


def load_revocation_lists(context: ssl.SSLContext, file: File) -> None:
    lists = _parsed(file, as_revocation_lists)
    if not lists:
        says = wrong_format(file.content, file.path).partition("; ")[0]
        raise TLSFileError(f"{file.label} cannot be used: {says}; give revocation lists (CRL) in PEM or DER")
    try:
        has_delta = any(is_delta_list(each.der) for each in lists)
    except CertificateError:
        has_delta = None
    if has_delta is None or not _is_loaded(context, lists):
        raise TLSFileError(f"{file.label} cannot be used: a revocation list in it is damaged; copy it anew")
    if has_delta:
        # OpenSSL takes it for a whole one, and the latest for the one that counts.
        says = "a list in it has only changes to another (a delta CRL); give whole lists alone"
        raise TLSFileError(f"{file.label} cannot be used: {says}")


def _parsed(file: File, parse: Callable[[bytes], list[Block]]) -> list[Block]:
    try:
        found = parse(file.content)
        for block in found:
            _ = block.der
    except PemError as error:
        raise TLSFileError(f"{file.label} cannot be used: {damage(error, file.content, file.path)}") from error
    return found


def _is_loaded(context: ssl.SSLContext, trusted: Sequence[Block]) -> bool:
    """Whether OpenSSL takes all of these, of which it keeps those before one that it does not."""
    with ExitStack() as stack:
        path = _in_memory(stack, b"".join(block.encode() for block in trusted))
        try:
            context.load_verify_locations(path)
        except (ssl.SSLError, ValueError):
            return False
    return True


def load_client(context: ssl.SSLContext, certificates: File, key: File, password: str | None) -> bytes:
    """Give the context our certificate and key. ssl takes them from paths only: these are of memory, not of a disk."""
    chain, private_key = _identity(certificates, key, password)
    try:
        _load_chain(context, chain, private_key, password)
    except (ssl.SSLError, ValueError) as error:
        raise _refused_identity(error, certificates, key, chain, private_key, password) from error
    return der_of(chain[0])


def _identity(certificates: File, key: File, password: str | None) -> tuple[list[Block], Block]:
    """Our chain and private key out of two files, or one that holds both. Raises TLSFileError."""
    chain = _opened(certificates, password).certificates if is_pkcs12(certificates.content) else None
    if chain is None:
        chain = _parsed(certificates, as_certificates)
    if not chain:
        raise TLSFileError(
            f"{certificates.label} cannot be used: {wrong_format(certificates.content, certificates.path)}"
        )
    if is_pkcs12(key.content):
        return chain, _opened(key, password).key
    try:
        private_key = as_private_key(key.content)
    except PemError as error:
        raise TLSFileError(f"{key.label} cannot be used: {damage(error, key.content, key.path)}") from error
    if private_key is None:
        raise TLSFileError(f"{key.label} cannot be used: {wrong_format(key.content, key.path, is_key=True)}")
    if private_key.is_encrypted and password is None:
        raise TLSFileError(f"{key.label} is encrypted and key_password is not set; give the password that opens it")
    return chain, private_key


def _opened(file: File, password: str | None) -> Identity:
    try:
        return open_pkcs12(file.content, password)
    except MissingPackageError as error:
        text = f"{file.label} is PKCS#12, and the package cryptography that reads it is not installed; "
        text += (
            "pip install 'glec-fast[cli]', or: " + wrong_format(file.content, file.path, is_key=True).partition("; ")[2]
        )
        raise TLSFileError(text) from error
    except PasswordError as error:
        raise TLSFileError(
            f"key_password does not open {file.label}; give the password of that PKCS#12 file"
        ) from error
    except PemError as error:
        raise TLSFileError(f"{file.label} cannot be used: {error}; export it anew, with both") from error


def _load_chain(context: ssl.SSLContext, chain: Sequence[Block], key: Block, password: str | None) -> None:
    chain_pem = "".join(ssl.DER_cert_to_PEM_cert(der_of(each)) for each in chain).encode("ascii")
    with ExitStack() as stack:
        paths = [_in_memory(stack, content) for content in (chain_pem, key.encode())]
        # Never None: OpenSSL would ask for it on the terminal.
        context.load_cert_chain(paths[0], paths[1], password or "")


def _refused_identity(
    error: ssl.SSLError | ValueError,
    certificates: File,
    key: File,
    chain: Sequence[Block],
    private_key: Block,
    password: str | None,
) -> TLSFileError:
    """What OpenSSL's refusal of our certificate and key comes from."""
    reason = getattr(error, "reason", None) or ""
    kind = of_no_use(private_key) or ("DH, X25519 or X448" if reason == _UNKNOWN_KIND else None)
    if kind is not None:
        says = f"is for {kind}, which TLS has no certificates of; have key and certificate made with EC, RSA or Ed25519"
        return TLSFileError(f"{key.label} {says}")
    if reason in _WEAK:
        says = f"is too weak ({reason.lower()}); have it issued with an RSA key of 2,048 bits or EC, and SHA-256"
        return TLSFileError(f"{certificates.label} {says}")
    if reason in _MISMATCHES:
        if any(_belong_together(each, private_key, password) for each in chain[1:]):
            says = "begins with another certificate than the one of client_key; put that first, its issuers after it"
            return TLSFileError(f"{certificates.label} {says}")
        return TLSFileError(f"{key.label} is not the key of client_cert; give the two that were made together")
    if not _is_loaded(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), chain):
        return TLSFileError(f"{certificates.label} cannot be used: it has a damaged certificate; copy it anew")
    cipher = legacy_cipher(private_key)
    if cipher is not None:
        says = (
            f"is encrypted with {cipher}, which OpenSSL reads with its legacy provider alone; openssl pkey -provider "
        )
        says += f"legacy -provider default -in {in_a_command(key.path)} -aes256 -out new.key"
        return TLSFileError(f"{key.label} {says}")
    if private_key.is_encrypted:
        return TLSFileError(f"key_password does not open {key.label}; give the password that it was encrypted with")
    return TLSFileError(f"{key.label} cannot be used: its key is damaged; copy it anew")


def _belong_together(certificate: Block, key: Block, password: str | None) -> bool:
    try:
        _load_chain(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), [certificate], key, password)
    except (ssl.SSLError, ValueError):
        return False
    return True


def _in_memory(stack: ExitStack, content: bytes) -> str:
    descriptor = os.memfd_create("glec_fast", os.MFD_CLOEXEC)
    stack.callback(os.close, descriptor)
    os.write(descriptor, content)
    return f"/proc/self/fd/{descriptor}"
