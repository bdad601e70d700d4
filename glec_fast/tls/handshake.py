"""What a TLS peer has shown, what became of our own certificate, and the cause of a handshake that failed."""

from __future__ import annotations

import socket
import ssl
import time
from typing import Any, NamedTuple

from glec_fast.errors import PinningError, TLSError, TLSFileError
from glec_fast.runtime.polling import is_readable

# Long enough for a busy broker nearby to answer, short enough that nobody notices it where no answer comes.
_VERDICT_MIN_S = 0.25
# Of the class below ssl's own, which makes an enum of each number: a twentieth of a fast handshake's time.
_MESSAGES: Any = vars(ssl.SSLContext.__mro__[1]).get("_msg_callback")
# RFC 8446, B.1 and B.3.
_HANDSHAKE_RECORD, _CERTIFICATE_REQUEST = 22, 13

# X509_V_ERR_* of OpenSSL's x509_vfy.h.
_NOT_YET_VALID, _EXPIRED = 9, 10
_UNKNOWN_ISSUERS = frozenset({18, 19, 20, 21, 24, 79})
_WEAK_KEYS = frozenset({66, 67, 68})
_WRONG_HOSTS = frozenset({62, 64})
_REVOKED = 23
_WITHOUT_ROOT = 2
# What is wrong with a revocation list, and what helps.
_LISTS = {
    3: ("has no list of the authority that signed a certificate of {}", "add the list of each authority of the chain"),
    8: ("has a list for {} that its authority did not sign", "get it anew from the authority"),
    11: ("has a list for {} that is not yet in force", "set this device's clock, then see whether it remains"),
    12: ("has a list for {} that has expired", "get the current one from the authority, or set this device's clock"),
    33: ("has a list for {} of an unknown authority", "get the list of the authority that signed the certificate"),
    35: ("has a list for {} of an authority that may not sign lists", "have its certificate issued with cRLSign"),
    44: ("has a list for {} of another scope", "get the list that covers the broker's certificate"),
}


def verified_chain(sock: ssl.SSLSocket) -> list[bytes]:
    """The peer's certificates in DER as they were verified, its own first, the trusted authority last.

    Public from Python 3.13 on. 3.10 to 3.12, which change no more, have the same one level deeper; where neither is
    found, the peer's own certificate alone.
    """
    return _chain(sock, "get_verified_chain")


def shown_chain(sock: ssl.SSLSocket) -> list[bytes]:
    """The peer's certificates in DER as it sent them, verified or not, its own first; see `verified_chain`."""
    return _chain(sock, "get_unverified_chain")


def _chain(sock: ssl.SSLSocket, method: str) -> list[bytes]:
    getter: Any = getattr(sock, method, None) or getattr(getattr(sock, "_sslobj", None), method, None)
    chain = getter() if getter is not None else None
    if chain:
        return [each if isinstance(each, bytes) else ssl.PEM_cert_to_DER_cert(each.public_bytes()) for each in chain]
    leaf = sock.getpeercert(binary_form=True)
    return [] if leaf is None else [leaf]


class RequestWatch:
    """Notes whether the peer asked for a certificate of ours: only then is there a verdict on it to wait for.

    `asked` tells. Python shows a handshake's messages through a context's `_msg_callback` alone. Where that is missing,
    every peer is taken to have asked. A context serves one handshake at a time meanwhile.
    """

    def __init__(self, context: Any) -> None:
        self._context = context
        self.asked = _MESSAGES is None

    def __enter__(self) -> RequestWatch:
        self._listen(self._on_message)
        return self

    def __exit__(self, *_: object) -> None:
        self._listen(None)

    def end(self, sock: ssl.SSLSocket) -> None:
        """Once the handshake is done: OpenSSL would go on to take the GIL twice for each record."""
        self._listen(None)
        # The connection takes its callback anew from the context that it is given.
        sock.context = self._context

    def is_verdict_due(self, sock: ssl.SSLSocket) -> bool:
        """With TLS 1.3 our handshake ends before the peer has judged our certificate (RFC 8446, 4.4.2.4)."""
        return self.asked and sock.version() == "TLSv1.3"

    def _listen(self, callback: Any) -> None:
        if _MESSAGES is not None:
            _MESSAGES.__set__(self._context, callback)

    def _on_message(
        self, _sock: object, direction: str, _version: int, content: int, message: int | None, _data: bytes
    ) -> None:
        if message == _CERTIFICATE_REQUEST and content == _HANDSHAKE_RECORD and direction == "read":
            self.asked = True


def await_verdict(sock: ssl.SSLSocket, handshake_s: float) -> None:
    """Hear what a peer that asked for our certificate thinks of it, or of there being none.

    A peer that is content sends session tickets, as a rule; one that is not, an alert. The wait is as long as the
    handshake was, at least 250 ms, and ends with the first word; a peer that says nothing is taken to be content.
    sock: does not block. Raises ssl.SSLError or ConnectionError where the peer is not content.
    """
    deadline_s = time.monotonic() + max(handshake_s, _VERDICT_MIN_S)
    if not is_readable(sock, max(0.0, deadline_s - time.monotonic()) * 1000):
        return
    try:
        data = sock.recv(1)
    except ssl.SSLWantReadError:
        return
    if data:
        raise ConnectionAbortedError("the peer spoke first, which no MQTT broker does")
    raise ConnectionResetError("the peer closed the connection right after the handshake")


class Failure(NamedTuple):
    """A cause. `check` is which of the doctor's checks it belongs to."""

    check: str
    found: str
    advice: str


def explain(error: BaseException, host: str) -> Failure:
    """What is behind a failed connection or handshake, in words for people."""
    if isinstance(error, PinningError):
        return Failure("pins", str(error), "run glec-fast pin from a trusted network, compare, and add the new pin")
    if isinstance(error, TLSFileError):
        return Failure("tls files", str(error), "mend the file; it is read again at the next connection")
    if isinstance(error, ssl.SSLCertVerificationError):
        return _explain_verification(error, host)
    if isinstance(error, TimeoutError):
        return Failure("tls", "the peer did not answer in time", "see whether the broker or a firewall stalls")
    if isinstance(error, (ssl.SSLEOFError, ssl.SSLZeroReturnError)) or (
        isinstance(error, ConnectionError) and not isinstance(error, ConnectionRefusedError)
    ):
        return Failure(
            "tls", f"the peer closed the connection ({_text(error)})", "see whether this port is the broker's TLS port"
        )
    if isinstance(error, ssl.SSLError):
        return _explain_alert(error)
    if isinstance(error, socket.gaierror):
        return Failure("dns", f"{host} has no address ({_text(error)})", "check the name in broker_url and the DNS")
    return Failure("tcp", f"no connection ({_text(error)})", "check the port, the broker and the firewall")


def as_tls_error(error: OSError, host: str) -> OSError:
    """An error of the TLS layer as TLSError that names the cause; others, and those that do so, as they are."""
    if isinstance(error, TLSError) or not isinstance(error, ssl.SSLError):
        return error
    return handshake_error(error, host)


def handshake_error(error: OSError, host: str) -> TLSError:
    """What the handshake failed with, also where the peer just ended the connection, as TLSError with the cause."""
    if isinstance(error, TLSError):
        return error
    failure = explain(error, host)
    made = TLSError(f"no TLS connection to {host}: {failure.found}; {failure.advice}")
    made.__cause__ = error
    return made


def _explain_verification(error: ssl.SSLCertVerificationError, host: str) -> Failure:
    code, text = error.verify_code, error.verify_message
    if code == _EXPIRED:
        return Failure("expiry", f"a certificate of {host} has expired", "have it renewed, or set this device's clock")
    if code == _NOT_YET_VALID:
        return Failure(
            "expiry",
            f"a certificate of {host} is not yet valid: this device's clock is behind, or it was issued ahead",
            "set the clock (NTP or GPS), then see whether it remains",
        )
    if code in _WRONG_HOSTS:
        return Failure(
            "hostname",
            f"the certificate is not for {host} ({text})",
            "check the host name in broker_url; the certificate needs it as a subjectAltName, its CN does not count",
        )
    if code == _REVOKED:
        return Failure("chain", f"a certificate of {host} is revoked", "have the broker's certificate issued anew")
    if code in _LISTS:
        says, advice = _LISTS[code]
        return Failure("chain", f"crl_file {says.format(host)}", advice)
    if code == _WITHOUT_ROOT:
        return Failure(
            "chain",
            f"the certificate of {host} leads to a trusted authority that is no root ({text})",
            "add the root to ca_cert, or set partial_chain",
        )
    if code in _UNKNOWN_ISSUERS:
        return Failure(
            "chain",
            f"the certificate of {host} is not signed by a trusted authority ({text})",
            "check ca_cert, and that the broker sends its intermediate certificates",
        )
    if code in _WEAK_KEYS:
        return Failure(
            "chain", f"a certificate of {host} is too weak ({text})", "have it issued anew, with a strong key"
        )
    return Failure(
        "chain", f"the certificate of {host} is refused ({text})", "check ca_cert and the broker's certificate"
    )


def _explain_alert(error: ssl.SSLError) -> Failure:
    reason = error.reason or ""
    if reason in ("UNSUPPORTED_PROTOCOL", "TLSV1_ALERT_PROTOCOL_VERSION", "UNSUPPORTED_SSL_VERSION"):
        return Failure(
            "tls", "the peer has no TLS version that is accepted here", "have the broker offer TLS 1.2 or 1.3"
        )
    if reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE", "UNKNOWN_PROTOCOL"):
        return Failure("tls", "what answers does not speak TLS", "check that this port is the broker's TLS port")
    if reason in ("SSLV3_ALERT_HANDSHAKE_FAILURE", "NO_SHARED_CIPHER", "WRONG_CIPHER_RETURNED", "NO_CIPHERS_AVAILABLE"):
        return Failure(
            "tls",
            "the peer shares no cipher suite with us, or wants a client certificate",
            "have the broker offer ECDHE with AES-GCM; check client_cert",
        )
    if reason in ("TLSV13_ALERT_CERTIFICATE_REQUIRED", "PEER_DID_NOT_RETURN_A_CERTIFICATE"):
        return Failure("client certificate", "the broker wants a client certificate", "set client_cert and client_key")
    if "ALERT" in reason and ("CERTIFICATE" in reason or "UNKNOWN_CA" in reason or "ACCESS_DENIED" in reason):
        return Failure(
            "client certificate",
            f"the broker refuses our client certificate ({reason.lower()})",
            "have client_cert signed by the authority that the broker trusts, or renewed",
        )
    if reason in ("DH_KEY_TOO_SMALL", "EE_KEY_TOO_SMALL", "BAD_SIGNATURE", "WRONG_SIGNATURE_TYPE"):
        return Failure("tls", f"the peer's keys are too weak ({reason.lower()})", "have them made anew at the broker")
    return Failure("tls", f"the handshake failed ({_text(error)})", "see the broker's log")


def _text(error: BaseException) -> str:
    return str(error) or type(error).__name__
