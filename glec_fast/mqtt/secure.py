"""A Client that reads its TLS files anew at each connection, and refuses a peer before anything of MQTT is sent."""

from __future__ import annotations

import logging
import socket
import time
from typing import Any, NamedTuple

from paho.mqtt.enums import MQTTErrorCode

from glec_fast.errors import CertificateError
from glec_fast.mqtt.client import Client
from glec_fast.tls.certificate import parse_certificate
from glec_fast.tls.config import TLSConfig, TLSContext, TLSContextSource
from glec_fast.tls.handshake import RequestWatch, as_tls_error, await_verdict, verified_chain
from glec_fast.tls.pinning import CertificatePinner
from glec_fast.transport.dial import dial

EXPIRY_NOTICE_S = 30 * 24 * 3600

logger = logging.getLogger("glec_fast")


class CertificateExpiry(NamedTuple):
    """When a certificate ends. owner: "broker" (its whole chain) or "client" (ours). expires_at_s: Unix seconds."""

    owner: str
    subject: str
    expires_at_s: float


class SecureClient(Client):
    """As Client, over TLS with the rules of a TLSConfig once `use_tls` was called. For the manager and the doctor."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._contexts: TLSContextSource | None = None
        self._tls: TLSContext | None = None
        self._pinner: CertificatePinner | None = None
        self._connect_deadline_s = 0.0
        # Replaced as a whole, never changed: read by other threads.
        self.certificates: tuple[CertificateExpiry, ...] = ()

    def use_tls(self, tls_config: TLSConfig, host: str) -> None:
        """Reach `host` over TLS from now on. Raises TLSFileError."""
        if tls_config.certificate_pins:
            self._pinner = CertificatePinner(host, tls_config.certificate_pins)
        self._contexts = TLSContextSource(tls_config)
        self._tls = self._contexts.get()
        self.tls_set_context(self._tls.ssl_context)

    def reconnect(self) -> MQTTErrorCode:
        """As paho's. Raises TLSError, PinningError and TLSFileError as well, all of them OSError."""
        if self._contexts is not None:
            self._tls = self._contexts.get()
            self._ssl_context = self._tls.ssl_context
        try:
            return super().reconnect()
        except OSError as error:
            failure = as_tls_error(error, self._host)
            if failure is error:
                raise
            raise failure from error

    def _create_socket_connection(self) -> socket.socket:
        self._connect_deadline_s = time.monotonic() + self._connect_timeout
        return super()._create_socket_connection()

    def _dial(self) -> socket.socket:
        if self._get_proxy():
            return super()._dial()
        source = (self._bind_address, self._bind_port)
        return dial(self._host, self._port, self._connect_timeout, source, self._attempt)

    def _handshake_timeout_s(self) -> float:
        # 0 would mean a socket that does not block.
        return max(self._connect_deadline_s - time.monotonic(), 0.001)

    def _ssl_wrap_socket(self, tcp_sock: Any) -> Any:
        started_s = time.monotonic()
        with RequestWatch(self._ssl_context) as watch:
            sock = super()._ssl_wrap_socket(tcp_sock)
            watch.end(sock)
        chain = verified_chain(sock)
        if self._pinner is not None:
            self._pinner.check(self._host, chain)
        sock.settimeout(0)
        if watch.is_verdict_due(sock):
            await_verdict(sock, time.monotonic() - started_s)
            self._hasten_connack(sock)
        self.certificates = self._expiries(chain)
        return sock

    def _expiries(self, chain: list[bytes]) -> tuple[CertificateExpiry, ...]:
        owned = [("broker", der) for der in chain]
        if self._tls is not None and self._tls.client_certificate is not None:
            owned.append(("client", self._tls.client_certificate))
        expiries = []
        for owner, der in owned:
            try:
                certificate = parse_certificate(der)
            except CertificateError as error:
                logger.warning("the end of a certificate of the %s is not known: %s", owner, error)
                continue
            expiries.append(CertificateExpiry(owner, certificate.subject, certificate.not_after_s))
        return tuple(expiries)

    def expiring(self, now_s: float) -> tuple[CertificateExpiry, ...]:
        """Certificates of the last handshake that end within 30 days of `now_s` (Unix seconds)."""
        return tuple(each for each in self.certificates if each.expires_at_s - now_s <= EXPIRY_NOTICE_S)
