"""Peers for every way in which a handshake can go wrong, and for those in which it must not."""

from __future__ import annotations

import datetime as dt
import ssl
from typing import TYPE_CHECKING, Any, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from glec_fast import PinningError, TLSConfig, TLSError
from glec_fast.testbed.certificates import CertificateAuthority
from glec_fast.tls.pinning import certificate_pin
from support.loopback import LoopbackServer
from support.tls_peer import CONNACK, TLSPeer, server_context

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from pathlib import Path

    from glec_fast.testbed.certificates import Certificate, KeyType

NOT_A_PIN_OF_ANYONE = "sha256/" + "A" * 43 + "="
NOW = dt.datetime.now(dt.timezone.utc)
TLS_1_2 = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2)
TLS_1_3 = (ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_3)
TLS_1_0 = (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1)
TLS_1_1 = (ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_1)


def pin_of(certificate: Certificate) -> str:
    return certificate_pin(leaf_der(certificate.certificate_path))


def leaf_der(path: Path) -> bytes:
    pem = path.read_text().split("-----END CERTIFICATE-----")[0] + "-----END CERTIFICATE-----\n"
    return ssl.PEM_cert_to_DER_cert(pem)


def new_authority(directory: Path, name: str, **options: Any) -> CertificateAuthority:
    folder = directory / name
    folder.mkdir()
    return CertificateAuthority(folder, name, **options)


def write_crl(
    authority: CertificateAuthority,
    path: Path,
    *revoked: Path,
    encoding: Encoding = Encoding.PEM,
    since: dt.datetime = NOW - dt.timedelta(days=1),
    until: dt.datetime = NOW + dt.timedelta(days=1),
    key: Any = None,
    is_delta: bool = False,
) -> Path:
    """A revocation list of `authority` at `path`, signed with `key` in place of its own."""
    builder = x509.CertificateRevocationListBuilder(authority._name).last_update(since).next_update(until)
    for each in revoked:
        serial = x509.load_der_x509_certificate(leaf_der(each)).serial_number
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(since).build()
        builder = builder.add_revoked_certificate(entry)
    key_identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority._key.public_key())
    builder = builder.add_extension(x509.CRLNumber(1), False).add_extension(key_identifier, False)
    if is_delta:
        builder = builder.add_extension(x509.DeltaCRLIndicator(1), True)
    path.write_bytes(builder.sign(key or authority._key, hashes.SHA256()).public_bytes(encoding))
    return path


class Case(NamedTuple):
    """A peer (TLSPeer or other), our settings for it, and what the cause must say."""

    peer: LoopbackServer
    tls: TLSConfig
    says: str
    error: type[Exception] = TLSError


class Cases:
    """Each method makes the one thing of its name wrong."""

    def __init__(self, authority: CertificateAuthority, directory: Path) -> None:
        self.authority = authority
        self.directory = directory

    def trust(self, **options: Any) -> TLSConfig:
        return TLSConfig.create_server_auth(self.authority.certificate_path, **options)

    def peer(self, *, versions: Any = None, ciphers: str | None = None, **options: Any) -> TLSPeer:
        return TLSPeer(server_context(self.authority.issue_server(**options), versions=versions, ciphers=ciphers))

    def unknown_ca(self) -> Case:
        stranger = new_authority(self.directory, "stranger")
        return Case(TLSPeer(server_context(stranger.issue_server())), self.trust(), "trusted authority")

    def wrong_host(self) -> Case:
        return Case(self.peer(hosts=["other.example"]), self.trust(), "not for localhost")

    def common_name_only(self) -> Case:
        return Case(self.peer(name="localhost", hosts=()), self.trust(), "as a subjectAltName")

    def common_name_beside_another_name(self) -> Case:
        return Case(self.peer(name="localhost", hosts=["other.example"]), self.trust(), "not for localhost")

    def revoked(self) -> Case:
        server = self.authority.issue_server()
        tls = self.trust(crl_file=self._crl(server.certificate_path))
        return Case(TLSPeer(server_context(server)), tls, "is revoked")

    def revoked_tls_1_2(self) -> Case:
        server = self.authority.issue_server()
        tls = self.trust(crl_file=self._crl(server.certificate_path))
        return Case(TLSPeer(server_context(server, versions=TLS_1_2)), tls, "is revoked")

    def revoked_where_names_are_not_verified(self) -> Case:
        server = self.authority.issue_server(hosts=["other.example"])
        tls = self.trust(crl_file=self._crl(server.certificate_path), verify_hostname=False)
        return Case(TLSPeer(server_context(server)), tls, "is revoked")

    def revoked_though_pinned(self) -> Case:
        server = self.authority.issue_server()
        tls = self.trust(crl_file=self._crl(server.certificate_path), certificate_pins=[pin_of(server)])
        return Case(TLSPeer(server_context(server)), tls, "is revoked")

    def revoked_intermediate(self) -> Case:
        middle = new_authority(self.directory, "middle", issuer=self.authority)
        lists = self._crl(middle.certificate_path)
        lists.write_bytes(lists.read_bytes() + write_crl(middle, self.directory / "m").read_bytes())
        return Case(TLSPeer(server_context(middle.issue_server())), self.trust(crl_file=lists), "is revoked")

    def revoked_by_an_intermediate_that_is_trusted_alone(self) -> Case:
        middle = new_authority(self.directory, "middle", issuer=self.authority)
        server = middle.issue_server()
        lists = write_crl(middle, self.directory / "m", server.certificate_path)
        tls = TLSConfig.create_server_auth(middle.certificate_path, crl_file=lists, partial_chain=True)
        return Case(TLSPeer(server_context(server)), tls, "is revoked")

    def intermediate_without_a_list(self) -> Case:
        middle = new_authority(self.directory, "middle", issuer=self.authority)
        return Case(TLSPeer(server_context(middle.issue_server())), self.trust(crl_file=self._crl()), "has no list")

    def list_of_another_authority(self) -> Case:
        stranger = new_authority(self.directory, "stranger")
        tls = self.trust(crl_file=write_crl(stranger, self.directory / "crl"))
        return Case(self.peer(), tls, "has no list of the authority")

    def list_that_has_expired(self) -> Case:
        return Case(self.peer(), self.trust(crl_file=self._crl(until=NOW - dt.timedelta(hours=1))), "that has expired")

    def list_not_yet_in_force(self) -> Case:
        crl = self._crl(since=NOW + dt.timedelta(hours=1))
        return Case(self.peer(), self.trust(crl_file=crl), "not yet in force")

    def list_signed_by_another_key(self) -> Case:
        crl = self._crl(key=new_authority(self.directory, "stranger")._key)
        return Case(self.peer(), self.trust(crl_file=crl), "its authority did not sign")

    def intermediate_as_the_only_authority(self) -> Case:
        middle = new_authority(self.directory, "middle", issuer=self.authority)
        tls = TLSConfig.create_server_auth(middle.certificate_path)
        return Case(TLSPeer(server_context(middle.issue_server())), tls, "or set partial_chain")

    def another_intermediate_of_the_same_root(self) -> Case:
        middle = new_authority(self.directory, "middle", issuer=self.authority)
        tls = TLSConfig.create_server_auth(middle.certificate_path, partial_chain=True)
        return Case(self.peer(), tls, "not signed by a trusted authority")

    def expired(self) -> Case:
        return Case(self.peer(not_after=NOW - dt.timedelta(minutes=5)), self.trust(), "has expired")

    def not_yet_valid(self) -> Case:
        return Case(self.peer(not_before=NOW + dt.timedelta(hours=1)), self.trust(), "not yet valid")

    def revoked_pin(self) -> Case:
        old, new = self.authority.issue_server("old"), self.authority.issue_server("new")
        tls = self.trust(certificate_pins=[pin_of(new), NOT_A_PIN_OF_ANYONE])
        return Case(TLSPeer(server_context(old)), tls, "is pinned", PinningError)

    def wrong_pin(self) -> Case:
        tls = self.trust(certificate_pins=[NOT_A_PIN_OF_ANYONE])
        return Case(self.peer(), tls, "is pinned", PinningError)

    def wrong_pin_tls_1_2(self) -> Case:
        tls = self.trust(certificate_pins=[NOT_A_PIN_OF_ANYONE])
        return Case(self.peer(versions=TLS_1_2), tls, "is pinned", PinningError)

    def man_in_the_middle_of_the_same_ca(self) -> Case:
        real = self.authority.issue_server("real")
        tls = self.trust(certificate_pins=[pin_of(real)])
        return Case(self.peer(name="middle"), tls, "is pinned", PinningError)

    def man_in_the_middle_who_shows_the_pinned_certificate_too(self) -> Case:
        real, other = self.authority.issue_server("real"), self.authority.issue_server("middle")
        shown = other.certificate_path.read_bytes() + real.certificate_path.read_bytes()
        other.certificate_path.write_bytes(shown)
        return Case(
            TLSPeer(server_context(other)), self.trust(certificate_pins=[pin_of(real)]), "is pinned", PinningError
        )

    def tls_1_0(self) -> Case:
        return Case(self.peer(versions=TLS_1_0, ciphers="ALL"), self.trust(), "no TLS version")

    def tls_1_1(self) -> Case:
        return Case(self.peer(versions=TLS_1_1, ciphers="ALL"), self.trust(), "no TLS version")

    def tls_1_2_where_1_3_is_wanted(self) -> Case:
        return Case(self.peer(versions=TLS_1_2), self.trust(tls_version="TLSv1.3"), "no TLS version")

    def rsa_key_exchange(self) -> Case:
        peer = self.peer(versions=TLS_1_2, ciphers="AES256-GCM-SHA384", key_type="rsa")
        return Case(peer, self.trust(), "no cipher suite")

    def cbc_suite(self) -> Case:
        return Case(self.peer(versions=TLS_1_2, ciphers="ECDHE-ECDSA-AES256-SHA384"), self.trust(), "no cipher suite")

    def no_encryption(self) -> Case:
        return Case(self.peer(versions=TLS_1_2, ciphers="ECDHE-ECDSA-NULL-SHA"), self.trust(), "no cipher suite")

    def finite_field_dh(self) -> Case:
        peer = self.peer(versions=TLS_1_2, ciphers="DHE-RSA-AES256-GCM-SHA384", key_type="rsa")
        return Case(peer, self.trust(), "no cipher suite")

    def client_certificate_missing_tls_1_2(self) -> Case:
        return self._wants_client(TLS_1_2, self.trust(), "no cipher suite with us, or wants a client certificate")

    def client_certificate_missing_tls_1_3(self) -> Case:
        return self._wants_client(TLS_1_3, self.trust(), "wants a client certificate")

    def client_certificate_missing_where_no_tickets_come(self) -> Case:
        case = self._wants_client(TLS_1_3, self.trust(), "wants a client certificate")
        assert isinstance(case.peer, TLSPeer)
        case.peer.send_no_tickets()
        return case

    def client_certificate_of_another_tls_1_2(self) -> Case:
        return self._wants_client(TLS_1_2, self._strangers_certificate(), "refuses our client certificate")

    def client_certificate_of_another_tls_1_3(self) -> Case:
        return self._wants_client(TLS_1_3, self._strangers_certificate(), "refuses our client certificate")

    def client_certificate_expired(self) -> Case:
        ours = self.authority.issue_client(not_after=NOW - dt.timedelta(minutes=5))
        tls = TLSConfig.create_mutual_tls(self.authority.certificate_path, ours.certificate_path, ours.key_path)
        return self._wants_client(TLS_1_3, tls, "refuses our client certificate")

    def plain_tcp(self) -> Case:
        def serve(sock: socket.socket) -> None:
            with sock:
                sock.recv(100)
                sock.sendall(CONNACK * 10)
                sock.recv(100)

        return Case(LoopbackServer(serve), self.trust(), "does not speak TLS")

    def closes_at_once(self) -> Case:
        def serve(sock: socket.socket) -> None:
            with sock:
                sock.recv(100)

        return Case(LoopbackServer(serve), self.trust(), "closed the connection|reset|EOF", OSError)

    def _crl(self, *revoked: Path, **options: Any) -> Path:
        return write_crl(self.authority, self.directory / "crl", *revoked, **options)

    def _strangers_certificate(self) -> TLSConfig:
        other = new_authority(self.directory, "another").issue_client()
        return TLSConfig.create_mutual_tls(self.authority.certificate_path, other.certificate_path, other.key_path)

    def _wants_client(self, versions: Any, tls: TLSConfig, says: str) -> Case:
        context = server_context(
            self.authority.issue_server(), versions=versions, client_ca=self.authority.certificate_path
        )
        return Case(TLSPeer(context), tls, says)


CASES = [name for name in vars(Cases) if not name.startswith("_") and name not in ("trust", "peer")]
WEAK = ["tls_1_0", "tls_1_1", "rsa_key_exchange", "cbc_suite", "no_encryption", "finite_field_dh"]


class Good:
    """Each method makes a peer that must be accepted."""

    def __init__(self, cases: Cases) -> None:
        self._cases = cases

    def plain(self) -> Case:
        return self._accept(self._cases.authority.issue_server(), TLS_1_3)

    def tls_1_2(self) -> Case:
        return self._accept(self._cases.authority.issue_server(), TLS_1_2)

    def rsa(self) -> Case:
        return self._accept(self._cases.authority.issue_server(key_type="rsa"), TLS_1_3)

    def rsa_tls_1_2(self) -> Case:
        return self._accept(self._cases.authority.issue_server(key_type="rsa"), TLS_1_2)

    def ed25519(self) -> Case:
        return self._accept(self._cases.authority.issue_server(key_type="ed25519"), TLS_1_3)

    def ed25519_tls_1_2(self) -> Case:
        return self._accept(self._cases.authority.issue_server(key_type="ed25519"), TLS_1_2)

    def rsa_authority(self) -> Case:
        return self._of_authority("rsa")

    def ed25519_authority(self) -> Case:
        return self._of_authority("ed25519")

    def backup_pin(self) -> Case:
        server = self._cases.authority.issue_server()
        pins = [NOT_A_PIN_OF_ANYONE, pin_of(server)]
        return Case(TLSPeer(server_context(server)), self._cases.trust(certificate_pins=pins), "")

    def with_revocation_lists(self) -> Case:
        """One of each authority, and another server's certificate in one of them."""
        authority, directory = self._cases.authority, self._cases.directory
        middle = new_authority(directory, "middle", issuer=authority)
        other = middle.issue_server("other").certificate_path
        lists = write_crl(authority, directory / "1")
        lists.write_bytes(lists.read_bytes() + write_crl(middle, directory / "2", other).read_bytes())
        tls = self._cases.trust(crl_file=lists)
        return Case(TLSPeer(server_context(middle.issue_server())), tls, "")

    def with_a_revocation_list_in_der(self) -> Case:
        path = write_crl(self._cases.authority, self._cases.directory / "crl.der", encoding=Encoding.DER)
        return Case(self._cases.peer(), self._cases.trust(crl_file=path), "")

    def intermediate_as_the_only_authority(self) -> Case:
        middle = new_authority(self._cases.directory, "middle", issuer=self._cases.authority)
        server = middle.issue_server()
        lists = write_crl(middle, self._cases.directory / "crl")
        tls = TLSConfig.create_server_auth(
            middle.certificate_path, certificate_pins=[pin_of(server)], crl_file=lists, partial_chain=True
        )
        return Case(TLSPeer(server_context(server)), tls, "")

    def intermediate_pin_of_leaf(self) -> Case:
        return self._intermediate(lambda server, _middle: pin_of(server))

    def intermediate_pin_of_intermediate(self) -> Case:
        return self._intermediate(lambda _server, middle: certificate_pin(leaf_der(middle.certificate_path)))

    def pin_of_the_root(self) -> Case:
        return self._intermediate(
            lambda _server, _middle: certificate_pin(leaf_der(self._cases.authority.certificate_path))
        )

    def mutual_tls_1_2(self) -> Case:
        return self._mutual(TLS_1_2)

    def mutual_tls_1_3(self) -> Case:
        return self._mutual(TLS_1_3)

    def other_host_where_names_are_not_verified(self) -> Case:
        tls = self._cases.trust(verify_hostname=False)
        return Case(self._cases.peer(hosts=["other.example"]), tls, "")

    def _accept(self, server: Certificate, versions: Any) -> Case:
        tls = self._cases.trust(certificate_pins=[pin_of(server)])
        return Case(TLSPeer(server_context(server, versions=versions)), tls, "")

    def _of_authority(self, key_type: KeyType) -> Case:
        authority = new_authority(self._cases.directory, key_type, key_type=key_type)
        server = authority.issue_server(key_type=key_type)
        return Case(TLSPeer(server_context(server)), TLSConfig.create_server_auth(authority.certificate_path), "")

    def _intermediate(self, choose: Callable[[Certificate, CertificateAuthority], str]) -> Case:
        middle = new_authority(self._cases.directory, "middle", issuer=self._cases.authority)
        server = middle.issue_server()
        return Case(TLSPeer(server_context(server)), self._cases.trust(certificate_pins=[choose(server, middle)]), "")

    def _mutual(self, versions: Any) -> Case:
        authority = self._cases.authority
        ours = authority.issue_client()
        context = server_context(authority.issue_server(), versions=versions, client_ca=authority.certificate_path)
        tls = TLSConfig.create_mutual_tls(authority.certificate_path, ours.certificate_path, ours.key_path)
        return Case(TLSPeer(context), tls, "")


GOOD = [name for name in vars(Good) if not name.startswith("_")]
