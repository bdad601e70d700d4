"""A handshake that is only looked at: nothing of MQTT follows, so that it may be made without trust."""

from __future__ import annotations

import ssl
import time
import warnings
from contextlib import suppress
from typing import NamedTuple

from glec_fast.errors import CertificateError
from glec_fast.tls.certificate import Certificate, parse_certificate
from glec_fast.tls.config import TLSConfig, build_ssl_context
from glec_fast.tls.handshake import shown_chain
from glec_fast.tls.pinning import certificate_pin
from glec_fast.transport.dial import dial


class Shown(NamedTuple):
    """One certificate of a chain. pin: that of its key."""

    certificate: Certificate
    pin: str

    @property
    def ends(self) -> str:
        return utc(self.certificate.not_after_s)


class Peer(NamedTuple):
    """What a peer speaks, and the chain that it sent, its own certificate first. Nothing of it is verified."""

    version: str
    suite: str
    chain: tuple[Shown, ...]


def look_at(host: str, port: int, timeout_s: float) -> Peer:
    """The peer as anybody sees it, with our versions and suites. Raises OSError, CertificateError."""
    context = build_ssl_context(TLSConfig(verify_hostname=True))
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return _shake_hands(context, host, port, timeout_s)


def look_without_scruples(host: str, port: int, timeout_s: float) -> Peer:
    """The same with any version and suite that OpenSSL can speak: to name what a peer has that we refuse."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("ALL:COMPLEMENTOFALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.TLSv1
    return _shake_hands(context, host, port, timeout_s)


def _shake_hands(context: ssl.SSLContext, host: str, port: int, timeout_s: float) -> Peer:
    deadline_s = time.monotonic() + timeout_s
    with dial(host, port, timeout_s) as sock:
        sock.settimeout(max(deadline_s - time.monotonic(), 0.001))
        with context.wrap_socket(sock, server_hostname=host) as tls:
            return Peer(tls.version() or "", suite_of(tls), shown(shown_chain(tls)))


def shown(chain: list[bytes]) -> tuple[Shown, ...]:
    """The certificates read; above the peer's own, those that can be. Raises CertificateError."""
    read = [_shown(der) for der in chain[:1]]
    for der in chain[1:]:
        # OpenSSL trusts old roots that are no strict DER.
        with suppress(CertificateError):
            read.append(_shown(der))
    return tuple(read)


def _shown(der: bytes) -> Shown:
    return Shown(parse_certificate(der), certificate_pin(der))


def suite_of(sock: ssl.SSLSocket) -> str:
    """The name of the cipher suite."""
    cipher = sock.cipher()
    return cipher[0] if cipher else ""


def utc(at_s: float) -> str:
    """Unix seconds, for people."""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(at_s))
