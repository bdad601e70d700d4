"""The files of TLS settings as people have them: read as OpenSSL reads them, or named, with what to do."""

from __future__ import annotations

import base64
import builtins
import datetime as dt
import logging
import re
import socket
import ssl
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    pkcs7,
    pkcs12,
)
from cryptography.x509.oid import NameOID

from glec_fast import TLSConfig, TLSFileError
from glec_fast.testbed.certificates import Certificate, CertificateAuthority
from glec_fast.tls.config import TLSContextSource, build_ssl_context
from support.tls_cases import leaf_der, new_authority, write_crl
from support.tls_peer import TLSPeer, server_context

PASSWORD = "s3cr3t-pa55"
END = b"-----END CERTIFICATE-----"


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Three authorities in PEM."""
    directory = tmp_path_factory.mktemp("roots")
    return [new_authority(directory, f"root {number}").certificate_path.read_bytes() for number in range(3)]


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """Our certificate below an intermediate, whose certificate is in the same file."""
    directory = tmp_path_factory.mktemp("ours")
    root = CertificateAuthority(directory, "root")
    return CertificateAuthority(directory, "middle", issuer=root).issue_client()


def trusted(source: Any, **options: Any) -> set[bytes]:
    return set(build_ssl_context(TLSConfig(source, **options)).get_ca_certs(binary_form=True))


def ders(*pems: bytes) -> set[bytes]:
    return {ssl.PEM_cert_to_DER_cert(pem.decode()) for pem in pems}


def as_openssl(content: bytes, directory: Path) -> set[bytes] | None:
    path = directory / "as-openssl.pem"
    path.write_bytes(content)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(path)
    except ssl.SSLError:
        return None
    return set(context.get_ca_certs(binary_form=True))


def with_trust(pem: bytes, aux: str) -> bytes:
    """OpenSSL's own form of a certificate, with what it is trusted for (X509_CERT_AUX) behind it."""
    der = ssl.PEM_cert_to_DER_cert(pem.decode()) + bytes.fromhex(aux)
    return ssl.DER_cert_to_PEM_cert(der).replace("CERTIFICATE", "TRUSTED CERTIFICATE").encode()


# trust and reject, each with 1.3.6.1.5.5.7.3.1, serverAuth.
TRUSTED_FOR_SERVERS = "300c 300a 06082b06010505070301"
REJECTED_FOR_SERVERS = "300c a00a 06082b06010505070301"


class TestAuthorities:
    """ca_cert."""

    @pytest.mark.parametrize("newline", [b"\n", b"\r\n", b" \n", b"\t\r\n"])
    def test_a_bundle_with_text_in_between(self, roots: list[bytes], tmp_path: Path, newline: bytes) -> None:
        text = b"# Bundle\n\nRoot 1\n======\n%b\n#-----BEGIN CERTIFICATE-----\n  -----BEGIN X-----\n%b\n"
        text += b"subject=/CN=x\n%b# End"
        content = (text % tuple(roots)).replace(b"\n", newline)
        assert trusted(content) == ders(*roots) == as_openssl(content, tmp_path)

    def test_a_byte_order_mark(self, roots: list[bytes]) -> None:
        assert trusted(b"\xef\xbb\xbf" + b"".join(roots)) == ders(*roots)

    def test_a_commented_block_is_none(self, roots: list[bytes], tmp_path: Path) -> None:
        content = roots[0] + b"".join(b"#" + line + b"\n" for line in roots[1].splitlines())
        assert trusted(content) == ders(roots[0]) == as_openssl(content, tmp_path)

    def test_a_label_of_old(self, roots: list[bytes], tmp_path: Path) -> None:
        content = roots[0].replace(b"CERTIFICATE", b"X509 CERTIFICATE")
        assert trusted(content) == ders(roots[0]) == as_openssl(content, tmp_path)

    def test_one_with_trust_added(self, roots: list[bytes], tmp_path: Path) -> None:
        content = with_trust(roots[0], TRUSTED_FOR_SERVERS) + roots[1]
        assert trusted(content) == ders(*roots[:2]) == as_openssl(content, tmp_path)

    @pytest.mark.parametrize("aux", ["", TRUSTED_FOR_SERVERS, REJECTED_FOR_SERVERS])
    def test_the_trust_that_was_added_is_what_counts(self, tmp_path: Path, aux: str) -> None:
        authority = new_authority(tmp_path, "authority")
        context = build_ssl_context(TLSConfig(with_trust(authority.certificate_path.read_bytes(), aux)))
        with (
            TLSPeer(server_context(authority.issue_server())) as peer,
            socket.create_connection(("127.0.0.1", peer.port), 10) as sock,
        ):
            if aux == REJECTED_FOR_SERVERS:
                with pytest.raises(ssl.SSLCertVerificationError, match="rejected"):
                    context.wrap_socket(sock, server_hostname="localhost")
                return
            context.wrap_socket(sock, server_hostname="localhost").close()

    @pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
    def test_a_bundle_that_is_cut(self, roots: list[bytes], tmp_path: Path, share: float) -> None:
        path = tmp_path / "bundle.pem"
        path.write_bytes(roots[0] + roots[1][: int(len(roots[1]) * share)])
        with pytest.raises(TLSFileError, match=rf"ca_cert '{path}' cannot be used: it is cut.*; copy it anew"):
            trusted(path)

    def test_one_that_is_cut_before_others(self, roots: list[bytes]) -> None:
        for cut in (roots[0][: len(roots[0]) // 2] + b"\n" + roots[1], roots[0][len(roots[0]) // 2 :] + roots[1]):
            with pytest.raises(TLSFileError, match="it is cut"):
                trusted(cut)

    def test_damaged_base64(self, roots: list[bytes], tmp_path: Path) -> None:
        content = roots[0] + roots[1].replace(b"\nMI", b"\nM!")
        assert as_openssl(content, tmp_path) is None
        with pytest.raises(TLSFileError, match="damaged base64"):
            trusted(content)

    def test_odd_ones_are_passed_over_with_one_warning(
        self, roots: list[bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        odd = b"-----BEGIN CERTIFICATE-----\nMAYCAQECAQE=\n" + END + b"\n"
        path = tmp_path / "bundle.pem"
        path.write_bytes(roots[0] + odd + roots[1] + odd + roots[2])
        with caplog.at_level(logging.WARNING):
            assert trusted(path) == ders(*roots)
        assert [record.getMessage() for record in caplog.records] == [
            f"of ca_cert, 3 certificates are trusted; passed over was: number 2 in {path}, number 4 in {path}"
        ]

    def test_a_root_that_is_not_strict_der_is_trusted_as_openssl_does(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Old roots have negative serial numbers, times without seconds, names in any encoding."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "old")])
        builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        start = dt.datetime(1999, 1, 1, tzinfo=dt.timezone.utc)
        made = builder.serial_number(0x7F01).not_valid_before(start).not_valid_after(start.replace(year=2040))
        made = made.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        der = made.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)
        odd = der.replace(bytes.fromhex("02027f01"), bytes.fromhex("0202ff01")).replace(
            b"990101000000Z", b"990101000000Y"
        )
        content = ssl.DER_cert_to_PEM_cert(odd).encode()
        expected = as_openssl(content, tmp_path)
        assert expected == {odd}, "the control"
        assert trusted(content) == expected
        assert not caplog.records

    def test_nothing_but_odd_ones(self) -> None:
        with pytest.raises(TLSFileError, match="no certificate that OpenSSL can read"):
            trusted(b"-----BEGIN CERTIFICATE-----\nMAYCAQECAQE=\n" + END)

    def test_der(self, roots: list[bytes], tmp_path: Path) -> None:
        path = tmp_path / "root.der"
        path.write_bytes(ders(roots[0]).pop())
        assert trusted(path) == ders(roots[0])

    @pytest.mark.parametrize("last", [b"\n", b"\r"])
    @pytest.mark.parametrize("added", [b"", b"\n", b"\r\n", b"\n\n\n"])
    def test_der_that_ends_as_a_line_does(self, roots: list[bytes], last: bytes, added: bytes) -> None:
        """One of 128 signatures; nobody looks at that of a root. Editors and shells add a line's end."""
        der = ssl.PEM_cert_to_DER_cert(roots[0].decode())[:-1] + last
        assert trusted(der + added) == {der}

    def test_a_folder(self, roots: list[bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        folder = tmp_path / "certs"
        (folder / "private").mkdir(parents=True)
        (folder / "one.pem").write_bytes(roots[0])
        (folder / "two.crt").write_bytes(ders(roots[1]).pop())
        (folder / "5ed36f99.0").symlink_to("one.pem")
        (folder / "README").write_text("These are ours.")
        with caplog.at_level(logging.WARNING):
            assert trusted(folder) == ders(*roots[:2])
        assert [record.getMessage() for record in caplog.records] == [
            f"of ca_cert, 2 certificates are trusted; passed over was: {folder / 'README'} has none"
        ]
        source = TLSContextSource(TLSConfig(folder))
        first = source.get()
        assert source.get() is first
        (folder / "three.pem").write_bytes(roots[2])
        assert len(source.get().ssl_context.get_ca_certs()) == 3

    def test_a_folder_with_a_file_that_is_cut(self, roots: list[bytes], tmp_path: Path) -> None:
        (tmp_path / "a.pem").write_bytes(roots[0])
        (tmp_path / "b.pem").write_bytes(roots[1][:200])
        with pytest.raises(TLSFileError, match=r"b\.pem' cannot be used: it is cut"):
            trusted(tmp_path)

    def test_a_folder_without_certificates(self, tmp_path: Path) -> None:
        with pytest.raises(TLSFileError, match="is an empty folder"):
            trusted(tmp_path)
        (tmp_path / "x").write_text("x")
        with pytest.raises(TLSFileError, match="no certificate"):
            trusted(tmp_path)

    def test_a_link_to_nothing_in_a_folder(self, roots: list[bytes], tmp_path: Path) -> None:
        (tmp_path / "a.pem").write_bytes(roots[0])
        (tmp_path / "b.pem").symlink_to("nowhere")
        assert trusted(tmp_path) == ders(roots[0])


def formats(ours: Certificate) -> dict[str, tuple[bytes, str, str, str]]:
    """name -> (content, what it is called, the command or advice for certificates, and for a key)."""
    key: Any = serialization.load_pem_private_key(ours.key_path.read_bytes(), None)
    certificate = x509.load_der_x509_certificate(leaf_der(ours.certificate_path))
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "gateway")])
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    store = pkcs12.serialize_key_and_certificates(b"us", key, certificate, None, BestAvailableEncryption(b"x"))
    ssh = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    public = key.public_key()
    plain = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    bare = b"\n".join(plain.splitlines()[1:-1])
    both = "give the certificate that belongs to it"
    signed = "it is what an authority signs"
    p7 = "openssl pkcs7 -in"
    return {
        "empty": (b"", "an empty file", "", ""),
        "blank": (b" \r\n\n", "an empty file", "", ""),
        "PKCS#12": (store, "a PKCS#12 file", "openssl pkcs12 -in {} -nokeys", "-"),
        "JKS": (
            bytes.fromhex("feedfeed00000002"),
            "a Java keystore",
            "keytool -importkeystore -srckeystore {}",
            "keytool",
        ),
        "JCEKS": (bytes.fromhex("cececece00000002"), "a Java keystore", "keytool", "keytool"),
        "CSR": (request.public_bytes(Encoding.PEM), "a certificate request", signed, signed),
        "CSR in DER": (request.public_bytes(Encoding.DER), "a certificate request", signed, signed),
        "key": (plain, "a private key", both, "-"),
        "key in DER": (
            key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()),
            "a private key",
            both,
            "-",
        ),
        "SEC 1": (
            key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()),
            "a private key",
            both,
            "-",
        ),
        "encrypted": (
            key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, BestAvailableEncryption(b"x")),
            "an encrypted private key",
            both,
            "-",
        ),
        "OpenSSH": (ssh, "an OpenSSH private key", "", "ssh-keygen -p -m PEM -f {}"),
        "PuTTY": (b"PuTTY-User-Key-File-3: ecdsa\nEncryption: none\n", "a PuTTY key", "", "puttygen {}"),
        "public": (
            public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
            "a public key",
            "",
            "give the private key that belongs to it",
        ),
        "public in DER": (
            public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
            "a public key",
            "",
            "private",
        ),
        "public of SSH": (public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH), "a public key", "", "private"),
        "PKCS#7": (pkcs7.serialize_certificates([certificate], Encoding.PEM), "a PKCS#7 file", p7, p7),
        "PKCS#7 in DER": (pkcs7.serialize_certificates([certificate], Encoding.DER), "a PKCS#7 file", p7, p7),
        "certificate": (certificate.public_bytes(Encoding.PEM), "a certificate", "-", "give the private key"),
        "certificate in DER": (certificate.public_bytes(Encoding.DER), "a certificate", "-", "give the private key"),
        "HTML": (b"\n<!DOCTYPE html><html><body>404</body></html>", r"a web page \(HTML\)", "", ""),
        "html": (b"<html>\n", r"a web page \(HTML\)", "", ""),
        "JSON": (b'{"error": "not found"}', "JSON", "", ""),
        "XML": (b"<?xml version='1.0'?><Error/>", "XML", "", ""),
        "ZIP": (b"PK\x03\x04" + bytes(30), "a ZIP archive", "", ""),
        "gzip": (b"\x1f\x8b\x08" + bytes(30), "gzip", "", ""),
        "UTF-16": (plain.decode().encode("utf-16"), "UTF-16 text", "iconv -f UTF-16", "iconv"),
        "base64 alone": (bare, "base64 without a BEGIN line", "base64 -d {}", "base64 -d {}"),
        "in one line": (
            plain.replace(b"\n", b" "),
            "PEM whose BEGIN is not a line of its own",
            "line ends",
            "line ends",
        ),
        "with \\n": (
            plain.replace(b"\n", b"\\n"),
            "PEM whose BEGIN is not a line of its own",
            "line ends",
            "line ends",
        ),
        "text": (b"see the other file", "no (certificate|private key) in PEM or DER", "in PEM or DER", "in PEM or DER"),
        "random": (bytes(range(256)), "no (certificate|private key) in PEM or DER", "", ""),
    }


FORMATS = [
    *[
        "empty",
        "blank",
        "PKCS#12",
        "JKS",
        "JCEKS",
        "CSR",
        "key",
        "encrypted",
        "OpenSSH",
        "PuTTY",
        "public",
        "PKCS#7",
        "certificate",
    ]
]
FORMATS += [
    "CSR in DER",
    "key in DER",
    "SEC 1",
    "public in DER",
    "public of SSH",
    "PKCS#7 in DER",
    "certificate in DER",
]
FORMATS += [
    "HTML",
    "html",
    "JSON",
    "XML",
    "ZIP",
    "gzip",
    "UTF-16",
    "base64 alone",
    "in one line",
    "with \\n",
    "text",
    "random",
]


def test_each_format_is_tried(ours: Certificate) -> None:
    assert set(formats(ours)) == set(FORMATS)


# What is read there.
WANTED: dict[str, set[str]] = {
    "ca_cert": {"certificate", "certificate in DER"},
    "client_cert": {"certificate", "certificate in DER", "PKCS#12"},
    "client_key": {"key", "key in DER", "SEC 1", "encrypted", "PKCS#12"},
    "crl_file": set(),
}


@pytest.mark.parametrize(
    ("name", "setting"), [(name, setting) for name in FORMATS for setting in WANTED if name not in WANTED[setting]]
)
def test_another_format_is_named(
    ours: Certificate, roots: list[bytes], tmp_path: Path, name: str, setting: str
) -> None:
    content, called, for_certificates, for_key = formats(ours)[name]
    advice = for_key if setting == "client_key" else for_certificates
    path = tmp_path / "a file"
    path.write_bytes(content)
    path.chmod(0o600)
    files: dict[str, Any] = {"client_cert": ours.certificate_path, "client_key": ours.key_path, "ca_cert": roots[0]}
    with pytest.raises(TLSFileError) as caught:
        build_ssl_context(TLSConfig(**{**files, setting: path}))
    text = str(caught.value)
    if setting == "crl_file":
        advice = "give revocation lists"
    assert re.search(rf"^{setting} '{path}' cannot be used: it is {called}; ", text), text
    assert advice.format(f"'{path}'") in text
    assert "0x" not in text
    with pytest.raises(TLSFileError, match=f"^{setting} cannot be used: it is {called}; "):
        build_ssl_context(TLSConfig(**{**files, setting: content or b" "}))


class TestClientKeys:
    """client_cert and client_key, each trouble with its own text."""

    def load(self, directory: Path, certificates: bytes, key: bytes, password: str | None = None) -> TLSContextSource:
        for name, content in (("our.crt", certificates), ("our.key", key)):
            (directory / name).write_bytes(content)
            (directory / name).chmod(0o600)
        return TLSContextSource(TLSConfig(None, directory / "our.crt", directory / "our.key", password))

    def refusal(self, directory: Path, *contents: Any) -> str:
        with pytest.raises(TLSFileError) as caught:
            self.load(directory, *contents).get()
        assert PASSWORD not in str(caught.value)
        return str(caught.value)

    @pytest.mark.parametrize("form", [PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL])
    def test_passwords(self, ours: Certificate, tmp_path: Path, form: PrivateFormat) -> None:
        certificates = ours.certificate_path.read_bytes()
        key: Any = serialization.load_pem_private_key(ours.key_path.read_bytes(), None)
        pem = key.private_bytes(Encoding.PEM, form, BestAvailableEncryption(PASSWORD.encode()))
        path = tmp_path / "our.key"
        assert self.refusal(tmp_path, certificates, pem).startswith(
            f"client_key '{path}' is encrypted and key_password is not"
        )
        says = f"key_password does not open client_key '{path}'; give the password that it was encrypted with"
        assert self.refusal(tmp_path, certificates, pem, "other") == says
        self.load(tmp_path, certificates, pem, PASSWORD).get()

    def test_a_key_of_another_kind_or_certificate(self, ours: Certificate, tmp_path: Path) -> None:
        for key in (ec.generate_private_key(ec.SECP256R1()), rsa.generate_private_key(65537, 2048)):
            pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            text = self.refusal(tmp_path, ours.certificate_path.read_bytes(), pem)
            assert "is not the key of client_cert; give the two that were made together" in text

    def test_the_wrong_order_of_a_chain(self, ours: Certificate, tmp_path: Path) -> None:
        leaf, middle = re.findall(
            rb"-----BEGIN.*?END CERTIFICATE-----\n", ours.certificate_path.read_bytes(), re.DOTALL
        )
        text = self.refusal(tmp_path, middle + leaf, ours.key_path.read_bytes())
        assert f"client_cert '{tmp_path / 'our.crt'}' begins with another certificate" in text
        assert "put that first" in text

    def test_a_weak_key(self, tmp_path: Path) -> None:
        key = rsa.generate_private_key(65537, 1024)
        weak = CertificateAuthority(tmp_path).issue_server(key=key)
        text = self.refusal(tmp_path, weak.certificate_path.read_bytes(), weak.key_path.read_bytes())
        assert "client_cert" in text
        assert "is too weak (ee_key_too_small); have it issued with an RSA key of 2,048 bits" in text

    def test_a_damaged_certificate_or_key(self, ours: Certificate, tmp_path: Path) -> None:
        certificates, key = ours.certificate_path.read_bytes(), ours.key_path.read_bytes()
        odd = b"-----BEGIN CERTIFICATE-----\nMAYCAQECAQE=\n" + END + b"\n"
        assert "our.crt' cannot be used: it has a damaged certificate" in self.refusal(tmp_path, odd, key)
        broken = key.splitlines()
        broken[1] = broken[1][:32]
        assert "our.key' cannot be used: its key is damaged" in self.refusal(tmp_path, certificates, b"\n".join(broken))
        for size in (len(key) // 2, len(key) - 10):
            assert "our.key' cannot be used: it is cut" in self.refusal(tmp_path, certificates, key[:size])
        assert "our.crt' cannot be used: it is cut" in self.refusal(tmp_path, certificates[:-30], key)

    def test_parameters_before_the_key(self, ours: Certificate, tmp_path: Path) -> None:
        """As openssl ecparam -genkey writes them."""
        before = b"-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"
        made = self.load(tmp_path, ours.certificate_path.read_bytes(), before + ours.key_path.read_bytes()).get()
        assert made.client_certificate == leaf_der(ours.certificate_path)


class TestPKCS12:
    """One file with all of it."""

    def store(self, ours: Certificate, directory: Path, password: str | None = PASSWORD, with_key: bool = True) -> Path:
        leaf, middle = x509.load_pem_x509_certificates(ours.certificate_path.read_bytes())
        key: Any = serialization.load_pem_private_key(ours.key_path.read_bytes(), None)
        encryption = NoEncryption() if password is None else BestAvailableEncryption(password.encode())
        content = pkcs12.serialize_key_and_certificates(
            b"us", key if with_key else None, leaf if with_key else None, [middle], encryption
        )
        path = directory / "our.p12"
        path.touch(0o600)
        path.write_bytes(content)
        return path

    @pytest.mark.parametrize("password", [PASSWORD, "", None])
    def test_it_is_read(self, ours: Certificate, roots: list[bytes], tmp_path: Path, password: str | None) -> None:
        path = self.store(ours, tmp_path, password or None)
        for source in (path, path.read_bytes()):
            made = TLSContextSource(TLSConfig.create_mutual_tls(roots[0], source, source, password)).get()
            assert made.client_certificate == leaf_der(ours.certificate_path)

    def test_its_key_beside_a_certificate_of_its_own(self, ours: Certificate, tmp_path: Path) -> None:
        container = self.store(ours, tmp_path)
        for certificate, key in ((ours.certificate_path, container), (container, ours.key_path)):
            made = TLSContextSource(TLSConfig(None, certificate, key, PASSWORD)).get()
            assert made.client_certificate == leaf_der(ours.certificate_path)

    @pytest.mark.parametrize("password", ["other", "", None])
    def test_a_wrong_password(self, ours: Certificate, tmp_path: Path, password: str | None) -> None:
        path = self.store(ours, tmp_path)
        with pytest.raises(TLSFileError, match=f"key_password does not open client_cert '{path}'; give the password"):
            TLSContextSource(TLSConfig(None, path, path, password)).get()

    def test_without_a_key(self, ours: Certificate, tmp_path: Path) -> None:
        path = self.store(ours, tmp_path, with_key=False)
        with pytest.raises(TLSFileError, match="it holds no private key"):
            TLSContextSource(TLSConfig(None, path, path, PASSWORD)).get()

    def test_an_encryption_that_is_not_there(
        self, ours: Certificate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As RC2 of old exporters, where OpenSSL has FIPS algorithms only."""

        def refuse(*_: object) -> None:
            raise UnsupportedAlgorithm("RC2")

        monkeypatch.setattr(pkcs12, "load_pkcs12", refuse)
        path = self.store(ours, tmp_path)
        with pytest.raises(TLSFileError, match="encrypted in a way that this system's OpenSSL has not"):
            TLSContextSource(TLSConfig(None, path, path, PASSWORD)).get()

    def test_without_the_package(self, ours: Certificate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = self.store(ours, tmp_path)
        imported = builtins.__import__

        def without(name: str, *arguments: Any) -> Any:
            if name.startswith("cryptography"):
                raise ImportError(name)
            return imported(name, *arguments)

        monkeypatch.setattr(builtins, "__import__", without)
        with pytest.raises(TLSFileError, match=rf"not installed; pip install .*, or: openssl pkcs12 -in {path} -nodes"):
            TLSContextSource(TLSConfig(None, path, path, PASSWORD)).get()


class TestRevocationLists:
    """crl_file; what they do is in test_tls.py."""

    def test_one_that_is_cut_or_damaged(self, roots: list[bytes], tmp_path: Path) -> None:
        authority = new_authority(tmp_path, "authority")
        path = write_crl(authority, tmp_path / "crl.pem")
        content = path.read_bytes()
        path.write_bytes(content[:-40])
        with pytest.raises(TLSFileError, match=r"crl_file '.*crl\.pem' cannot be used: it is cut"):
            trusted(roots[0], crl_file=path)
        path.write_bytes(b"-----BEGIN X509 CRL-----\nMAYCAQECAQE=\n-----END X509 CRL-----\n")
        with pytest.raises(TLSFileError, match="a revocation list in it is damaged"):
            trusted(roots[0], crl_file=path)
        path.unlink()
        with pytest.raises(TLSFileError, match=r"crl_file '.*' cannot be read"):
            trusted(roots[0], crl_file=path)

    @pytest.mark.parametrize("encoding", [Encoding.PEM, Encoding.DER])
    def test_a_new_one_makes_a_new_context(self, roots: list[bytes], tmp_path: Path, encoding: Encoding) -> None:
        authority = new_authority(tmp_path, "authority")
        path = write_crl(authority, tmp_path / "crl", encoding=encoding)
        source = TLSContextSource(TLSConfig(roots[0], crl_file=path))
        first = source.get()
        assert first.ssl_context.cert_store_stats()["crl"] == 1
        assert source.get() is first
        write_crl(authority, path, authority.certificate_path, encoding=encoding)
        assert source.get() is not first

    @pytest.mark.parametrize("encoding", [Encoding.PEM, Encoding.DER])
    def test_changes_to_a_list_are_not_taken_for_a_whole_one(
        self, roots: list[bytes], tmp_path: Path, encoding: Encoding
    ) -> None:
        """As OpenSSL does: what the list before them has revoked would be accepted."""
        authority = CertificateAuthority(tmp_path)
        whole = write_crl(authority, tmp_path / "whole", authority.certificate_path, encoding=encoding).read_bytes()
        path = write_crl(authority, tmp_path / "crl", encoding=encoding, is_delta=True)
        changes = path.read_bytes()
        for content in (changes, whole + changes, changes + whole):
            path.write_bytes(content)
            with pytest.raises(TLSFileError, match=r"crl_file '.*' cannot be used: .* delta"):
                trusted(roots[0], crl_file=path)


@pytest.mark.parametrize(
    "path",
    [
        "/var/lib/waagent/3A5F09C1D2E3F4A5B6C7D8E9F00112233445566A.crt",
        "/etc/ssl/certs/ca-certificates.crt",
        "/opt/Fleet/Gateways/DTG12345/Certificates/MyCompanyGatewayClient01.crt",
        "/nix/store/0c9wqsk2nn4ykzmrd2vbgajz8ifwb4xl-nss-cacert-3.98/etc/ssl/certs/ca-bundle.crt",
        "../geh\u00e4use/\u8a3c\u660e\u66f8.pem",
        "/opt/pki/InvalidSelfIssuedinhibitPolicyMappingTest11EE.crt",
        "SignedValidBasicSelfIssuedOldWithNewTest1.tar.gz",
        "/opt/FleetGatewaysOfTheNorthernRegionsDepot12.d/ca.pem",
    ],
)
def test_paths_that_are_no_text_of_a_key(path: str) -> None:
    assert TLSConfig(path).ca_cert == path


@pytest.mark.parametrize("setting", ["ca_cert", "client_cert", "client_key", "crl_file"])
def test_the_text_of_a_key_in_place_of_a_path_is_not_repeated(setting: str, ours: Certificate) -> None:
    pem = ours.key_path.read_text()
    inner = "".join(pem.splitlines()[1:-1])
    for text in (pem, pem.replace("-----", ""), inner, base64.b64encode(inner.encode()).decode(), inner[:44]):
        with pytest.raises(ValueError, match=f"{setting} is the text") as caught:
            TLSConfig(**{"client_cert": "x", "client_key": "y", setting: text})
        assert inner[:20] not in str(caught.value)
