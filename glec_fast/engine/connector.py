"""How a connection is made: paho's way, or that of the fleet, which refuses a peer before anything of MQTT is sent."""

from __future__ import annotations

import logging
import socket
import ssl
import time
from collections.abc import Collection
from typing import Any, NamedTuple

from glec_fast.errors import CertificateError
from glec_fast.runtime._lock import Event
from glec_fast.runtime.summing_log import SummingLog
from glec_fast.tls.certificate import parse_certificate
from glec_fast.tls.config import TLSConfig, TLSContext, TLSContextSource
from glec_fast.tls.handshake import RequestWatch, as_tls_error, await_verdict, handshake_error, verified_chain
from glec_fast.tls.pinning import CertificatePinner
from glec_fast.transport._records import gather
from glec_fast.transport.dial import Address, Attempt, Route, acknowledge_at_once, as_ascii, dial
from glec_fast.transport.way_out import SocketOption, set_options

EXPIRY_NOTICE_S = 30 * 24 * 3600


class Connector:
    """paho's way: each address of the host has all of the time, and TLS as long again.

    One connection is made at a time, by whoever runs the loop; `end` is for any thread.
    """

    def __init__(self) -> None:
        # Ends the pause between two attempts as well.
        self.interrupt = Event()
        self.attempt = Attempt()
        # What each socket is to have before it connects.
        self.options: Collection[SocketOption] = ()
        self._timeout_s = 0.0
        # When a server that has not answered CONNECT is left.
        self._connack_due_s = float("inf")
        # (host, port), and the address of it that answered last, which is tried first.
        self._answered: tuple[tuple[str, int], Address] | None = None

    def begin(self, timeout_s: float) -> Attempt:
        """A connection is to be made now."""
        self._timeout_s = timeout_s
        self.attempt = attempt = Attempt()
        if self.interrupt.is_set():
            # Set before it looked for an attempt to end.
            attempt.end()
        return attempt

    def end(self) -> None:
        """Give up the connection that is being made, and each that is begun before `interrupt` is cleared."""
        self.interrupt.set()
        self.attempt.end()

    def context(self) -> ssl.SSLContext | None:
        """For the next connection; None where the client has its own, or TLS is not used. Raises TLSFileError."""
        return None

    def dial(self, host: str, port: int, source: tuple[str, int]) -> socket.socket:
        """Connect over TCP, from `source`. Raises OSError."""
        return self._dial(host, port, Route(source, for_each=True))

    def _dial(self, host: str, port: int, route: Route) -> socket.socket:
        named, first = self._answered or (None, None)
        if named == (host, port):
            route = route._replace(first=first)
        if self.options:
            route = route._replace(prepare=lambda sock: set_options(sock, self.options))
        sock = dial(host, port, self._timeout_s, route, self.attempt)
        self._answered = (host, port), (sock.family, sock.getpeername())
        return sock

    def shake_hands(self, tcp_sock: socket.socket, context: ssl.SSLContext, host: str) -> Any:
        """Begin TLS on it. Raises OSError."""
        # For the look-up alone, and in no certificate: the dot that ends an absolute name (RFC 6066, 3), and which of
        # our interfaces leads to a link-local address (RFC 4007, 11).
        name = host.partition("%")[0].removesuffix(".")
        # A context that wraps in its own way, as those of green threads do, has its reasons.
        is_plain = getattr(context.wrap_socket, "__module__", "") == "ssl"
        shown = as_ascii(name) if is_plain else name
        session = self._session_for(context, host)
        sock = context.wrap_socket(tcp_sock, server_hostname=shown, do_handshake_on_connect=False, session=session)
        self.attempt.follow(sock)
        if is_plain:
            gather(sock, session)
        sock.settimeout(self._handshake_timeout_s())
        sock.do_handshake()
        return sock

    def _session_for(self, _context: ssl.SSLContext, _host: str) -> ssl.SSLSession | None:
        """A TLS session to resume, None for a full handshake."""
        return None

    def on_closing(self) -> None:
        """The connection that was made last is about to be closed."""

    def _handshake_timeout_s(self) -> float:
        return self._timeout_s

    def begin_greeting(self) -> None:
        """CONNECT is sent now."""
        self._connack_due_s = self._greeting_ends_s()

    def end_greeting(self) -> None:
        """CONNACK came, or is not waited for any more."""
        self._connack_due_s = float("inf")

    @property
    def is_unanswered(self) -> bool:
        """True where the server has not answered CONNECT in time."""
        return time.monotonic() >= self._connack_due_s

    def _greeting_ends_s(self) -> float:
        return time.monotonic() + self._timeout_s

    def explain(self, error: OSError) -> OSError:
        """What is raised where an attempt failed with `error`."""
        return error


class CertificateExpiry(NamedTuple):
    """When a certificate ends; immutable.

    owner: "broker" (its whole chain) or "client" (ours). subject: whom it names. expires_at_s: Unix seconds.
    """

    owner: str
    subject: str
    expires_at_s: float


class Resumable(NamedTuple):
    """A TLS session of a connection that has passed every check, and what it was checked with.

    context: made of the files as they were, and another one where they have changed. chain: as it was verified.
    """

    context: ssl.SSLContext
    host: str
    chain: list[bytes]
    session: ssl.SSLSession


class SecureConnector(Connector):
    """The fleet's and the doctor's way: one time-out for all, and TLS with the rules of a TLSConfig, None for no TLS.

    Its files are read anew at each connection. log: what an operator reads of it, its own where None.
    Raises TLSFileError.
    """

    def __init__(self, tls_config: TLSConfig | None, host: str, log: SummingLog | None = None) -> None:
        super().__init__()
        self._log = log or SummingLog()
        self._host = host
        self._pinner: CertificatePinner | None = None
        self._contexts: TLSContextSource | None = None
        self._tls: TLSContext | None = None
        self._deadline_s = 0.0
        # Replaced as a whole, never changed: read by other threads.
        self.certificates: tuple[CertificateExpiry, ...] = ()
        # The connection that was made last, with what it was checked with; and the session to resume.
        self._shaken: tuple[ssl.SSLSocket, ssl.SSLContext, str, list[bytes]] | None = None
        self._resumable: Resumable | None = None
        # A revocation list that has run out must be noticed, and a resumed session does not look.
        self._resumes = tls_config is not None and tls_config.crl_file is None
        if tls_config is not None:
            if tls_config.certificate_pins:
                self._pinner = CertificatePinner(host, tls_config.certificate_pins)
            self._contexts = TLSContextSource(tls_config)

    def begin(self, timeout_s: float) -> Attempt:
        """See `Connector`."""
        self._deadline_s = time.monotonic() + timeout_s
        return super().begin(timeout_s)

    def context(self) -> ssl.SSLContext | None:
        """See `Connector`."""
        if self._contexts is None:
            return None
        self._tls = self._contexts.get()
        return self._tls.ssl_context

    def dial(self, host: str, port: int, source: tuple[str, int]) -> socket.socket:
        """See `Connector`."""
        self._host = host
        return self._dial(host, port, Route(source))

    def _handshake_timeout_s(self) -> float:
        # 0 would mean a socket that does not block.
        return max(self._deadline_s - time.monotonic(), 0.001)

    def _greeting_ends_s(self) -> float:
        return self._deadline_s

    def shake_hands(self, tcp_sock: socket.socket, context: ssl.SSLContext, host: str) -> Any:
        """See `Connector`. Raises PinningError too."""
        started_s = time.monotonic()
        with RequestWatch(context) as watch:
            try:
                sock = super().shake_hands(tcp_sock, context, host)
            except (ConnectionResetError, BrokenPipeError) as error:
                raise handshake_error(error, host) from error
            watch.end(sock)
        resumed = self._resumable if sock.session_reused else None
        # A resumed session shows no certificates: it is one whose chain was verified, and passed the same pins, before.
        chain = verified_chain(sock) if resumed is None else resumed.chain
        if self._pinner is not None:
            self._pinner.check(host, chain)
        sock.settimeout(0)
        if watch.is_verdict_due(sock):
            await_verdict(sock, time.monotonic() - started_s)
            acknowledge_at_once(sock)
        self.certificates = self._expiries(chain)
        self._shaken = sock, context, host, chain
        return sock

    def _session_for(self, context: ssl.SSLContext, host: str) -> ssl.SSLSession | None:
        """That of the last connection, if files and host are the same, and no certificate has ended since."""
        known = self._resumable
        if known is None or known.context is not context or known.host != host:
            return None
        now_s = time.time()
        return known.session if all(each.expires_at_s > now_s for each in self.certificates) else None

    def on_closing(self) -> None:
        """See `Connector`. With TLS 1.3 the session comes behind the handshake, as a ticket (RFC 8446, 4.6.1)."""
        shaken, self._shaken = self._shaken, None
        if shaken is None:
            return
        sock, context, host, chain = shaken
        session = sock.session
        if session is not None and self._resumes:
            self._resumable = Resumable(context, host, chain, session)

    def explain(self, error: OSError) -> OSError:
        """See `Connector`: TLSError, PinningError and TLSFileError too."""
        return as_tls_error(error, self._host)

    def _expiries(self, chain: list[bytes]) -> tuple[CertificateExpiry, ...]:
        owned = [("broker", der) for der in chain]
        if self._tls is not None and self._tls.client_certificate is not None:
            owned.append(("client", self._tls.client_certificate))
        expiries = []
        for owner, der in owned:
            try:
                certificate = parse_certificate(der)
            except CertificateError as error:
                text = f"the end of a certificate of the {owner} is not known: {error}"
                self._log.note(logging.WARNING, "certificates whose end is not known", str(error), text=text)
                continue
            expiries.append(CertificateExpiry(owner, certificate.subject, certificate.not_after_s))
        return tuple(expiries)

    def expiring(self, now_s: float) -> tuple[CertificateExpiry, ...]:
        """Certificates of the last handshake that end within 30 days of `now_s` (Unix seconds)."""
        return tuple(each for each in self.certificates if each.expires_at_s - now_s <= EXPIRY_NOTICE_S)
