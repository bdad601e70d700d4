"""Peers for handshakes on loopback: a TLS server that keeps what it was sent, one that is none, a relay that counts."""

from __future__ import annotations

import base64
import contextlib
import socket
import ssl
import threading
import warnings
from typing import TYPE_CHECKING

from support.loopback import TIMEOUT_S, LoopbackServer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from glec_fast.testbed.certificates import Certificate

CONNACK = b"\x20\x02\x00\x00"
_READ_BYTES = 65_536
# RFC 2409, 6.2: the second Oakley group, 1,024 bits.
_DH_PRIME = (
    "FFFFFFFFFFFFFFFFC90FDAA22168C234C4C6628B80DC1CD129024E088A67CC74020BBEA63B139B22514A08798E3404DD"
    "EF9519B3CD3A431B302B0A6DF25F14374FE1356D6D51C245E485B576625E7EC6F44C42E9A637ED6B0BFF5CB6F406B7ED"
    "EE386BFB5A899FA5AE9F24117C4B1FE649286651ECE65381FFFFFFFFFFFFFFFF"
)
# SEQUENCE of the prime and the generator 2, in DER.
_DH_DER = bytes.fromhex(f"308187 028181 00 {_DH_PRIME} 020102")
_DH_PEM = b"-----BEGIN DH PARAMETERS-----\n%b-----END DH PARAMETERS-----\n" % base64.encodebytes(_DH_DER)


class TLSPeer(LoopbackServer):
    """Speaks TLS as `context` says, keeps what came after the handshake, and accepts an MQTT CONNECT."""

    def __init__(self, context: ssl.SSLContext) -> None:
        super().__init__(self._handshake)
        self._context = context
        # The answer to CONNECT, and what is waited for before it.
        self.connack = CONNACK
        self.before_connack: Callable[[], object] = lambda: None
        self.received = bytearray()
        self.failures: list[OSError] = []
        self.server_names: list[str | None] = []
        self.suites: list[tuple[str, str]] = []
        self.resumed: list[bool] = []
        context.sni_callback = lambda _socket, name, _context: self.server_names.append(name)

    def send_no_tickets(self) -> None:
        """The first word after the handshake is then the client's, unless it is refused."""
        self._context.num_tickets = 0

    def set_certificate(self, certificate: Certificate) -> None:
        """For connections from now on."""
        self._context.load_cert_chain(certificate.certificate_path, certificate.key_path)

    def use(self, context: ssl.SSLContext) -> None:
        """For connections from now on."""
        self._context = context

    def _handshake(self, sock: socket.socket) -> None:
        try:
            with self._context.wrap_socket(sock, server_side=True) as tls:
                name, version, _ = tls.cipher() or ("", "", 0)
                self.resumed.append(bool(tls.session_reused))
                self.suites.append((tls.version() or version, name))
                while data := tls.recv(_READ_BYTES):
                    is_connect = not self.received or data[0] == 0x10
                    # Before the answer: whoever has that looks for what was sent.
                    self.received += data
                    if is_connect:
                        self.before_connack()
                        tls.send(self.connack)
        except OSError as error:
            self.failures.append(error)
            _close_half_made(error)
        finally:
            sock.close()


def _close_half_made(error: OSError) -> None:
    """Where the client has gone before the handshake began, `wrap_socket` leaves the socket open that it had made."""
    place = error.__traceback__
    while place is not None:
        made = place.tb_frame.f_locals.get("self")
        if isinstance(made, ssl.SSLSocket):
            made.close()
        place = place.tb_next


class CountingRelay(LoopbackServer):
    """Relays to `target_port` on loopback, which may be changed for connections to come.

    `after_hello_bytes` is what the client sent once the server had answered.
    """

    def __init__(self, port: int) -> None:
        super().__init__(self._relay)
        self.target_port = port
        self.after_hello_bytes = 0

    def _relay(self, client: socket.socket) -> None:
        answered = threading.Event()
        with client, socket.create_connection(("127.0.0.1", self.target_port), TIMEOUT_S) as server:
            back = threading.Thread(target=self._back, args=(server, client, answered))
            back.start()
            try:
                while data := client.recv(_READ_BYTES):
                    if answered.is_set():
                        self.after_hello_bytes += len(data)
                    server.sendall(data)
            finally:
                with contextlib.suppress(OSError):
                    server.shutdown(socket.SHUT_RDWR)
                back.join()

    @staticmethod
    def _back(server: socket.socket, client: socket.socket, answered: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(_READ_BYTES):
                answered.set()
                client.sendall(data)
        with contextlib.suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)


def server_context(
    certificate: Certificate,
    *,
    versions: tuple[ssl.TLSVersion, ssl.TLSVersion] | None = None,
    ciphers: str | None = None,
    client_ca: Path | None = None,
) -> ssl.SSLContext:
    """A server's context; with old versions or weak ciphers OpenSSL's own scruples are turned off."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if ciphers is not None:
        context.set_ciphers(f"{ciphers}:@SECLEVEL=0")
        if ciphers.startswith("DHE"):
            path = certificate.key_path.with_suffix(".dh")
            path.write_bytes(_DH_PEM)
            context.load_dh_params(path)
    if versions is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            context.minimum_version, context.maximum_version = versions
    context.load_cert_chain(certificate.certificate_path, certificate.key_path)
    if client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(client_ca)
    return context


def can_connect_without_scruples(port: int) -> bool:
    """Whether a client that accepts any version and suite gets through: then a refusal by ours is ours."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("ALL:COMPLEMENTOFALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.TLSv1
    with (
        socket.create_connection(("127.0.0.1", port), TIMEOUT_S) as sock,
        context.wrap_socket(sock, server_hostname="localhost") as tls,
    ):
        return tls.version() is not None
