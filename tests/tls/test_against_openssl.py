"""Files of certificates and keys in every form: each is read where OpenSSL reads it, and named where it does not.

`make vectors` does the same with the 1,300 files of the package cryptography_vectors.
"""

from __future__ import annotations

import base64
import os
import shutil
import sys
from pathlib import Path

import pytest

from glec_fast.testbed.certificates import Certificate, CertificateAuthority
from support.openssl_verdict import PKCS12_SUFFIXES, found_by_openssl, openssl, refusal_of, refusals_of

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="asks the command openssl")

PASSWORD = "s3cr3t-pa55"
KINDS = {
    "rsa": "RSA -pkeyopt rsa_keygen_bits:2048",
    "ec": "EC -pkeyopt ec_paramgen_curve:P-256",
    "p384": "EC -pkeyopt ec_paramgen_curve:P-384",
    "ed25519": "ED25519",
    "ed448": "ED448",
    "pss": "RSA-PSS -pkeyopt rsa_keygen_bits:2048",
}
PKCS8_CIPHERS = ["aes-128-cbc", "aes-192-cbc", "aes-256-cbc", "camellia-256-cbc", "aria-256-cbc", "des3"]
PBES1 = ["PBE-SHA1-3DES", "PBE-SHA1-2DES"]
TRADITIONAL = ["aes128", "aes192", "aes256", "des3", "camellia256"]
# name: (options of openssl pkcs8 or rsa, what is said).
LEGACY = {
    "des": ("-v2 des", "DES"),
    "rc2": ("-v2 rc2", "RC2"),
    "bf": ("-v2 bf-cbc", "BF"),
    "cast5": ("-v2 cast5-cbc", "CAST5"),
    "seed": ("-v2 seed-cbc", "SEED"),
    "PBE-MD5-DES": ("-v1 PBE-MD5-DES", "DES"),
    "PBE-SHA1-RC2-40": ("-v1 PBE-SHA1-RC2-40", "RC2"),
    "PBE-SHA1-RC4-128": ("-v1 PBE-SHA1-RC4-128", "RC4"),
}


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key of each kind, NAME.key, and its certificate, NAME.crt."""
    directory = tmp_path_factory.mktemp("pki")
    for name, options in KINDS.items():
        openssl("genpkey", "-algorithm", *options.split(), "-out", f"{name}.key", cwd=directory)
        subject = ["-subj", f"/CN={name}", "-days", "9"]
        openssl("req", "-new", "-x509", "-key", f"{name}.key", *subject, "-out", f"{name}.crt", cwd=directory)
    return directory


@pytest.fixture(scope="module")
def another(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return CertificateAuthority(tmp_path_factory.mktemp("another")).issue_client()


def identity_refusal(pki: Path, key: Path, name: str = "rsa", password: str | None = PASSWORD) -> str:
    return refusal_of(client_cert=pki / f"{name}.crt", client_key=key, key_password=password)


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_key(pki: Path, tmp_path: Path, name: str) -> None:
    key = pki / f"{name}.key"
    openssl("pkey", "-in", str(key), "-outform", "DER", "-out", str(tmp_path / "der"))
    openssl("pkcs8", "-topk8", "-in", str(key), "-scrypt", "-passout", f"pass:{PASSWORD}", "-out", str(tmp_path / "e"))
    for each in (key, tmp_path / "der", tmp_path / "e"):
        assert identity_refusal(pki, each, name) == ""


@pytest.mark.parametrize("cipher", PKCS8_CIPHERS)
@pytest.mark.parametrize("form", ["PEM", "DER"])
def test_every_cipher_of_pkcs8(pki: Path, tmp_path: Path, cipher: str, form: str) -> None:
    key = tmp_path / "key"
    options = ["-v2", cipher, "-passout", f"pass:{PASSWORD}", "-outform", form, "-out", str(key)]
    openssl("pkcs8", "-topk8", "-in", str(pki / "rsa.key"), *options)
    assert identity_refusal(pki, key) == ""
    assert "key_password does not open client_key" in identity_refusal(pki, key, password="other")


def test_older_encryptions(pki: Path, tmp_path: Path) -> None:
    key = tmp_path / "key"
    out = ["-passout", f"pass:{PASSWORD}", "-out", str(key)]
    for scheme in PBES1:
        openssl("pkcs8", "-topk8", "-in", str(pki / "rsa.key"), "-v1", scheme, *out)
        assert identity_refusal(pki, key) == "", scheme
    for cipher in TRADITIONAL:
        openssl("rsa", "-traditional", "-in", str(pki / "rsa.key"), f"-{cipher}", *out)
        assert identity_refusal(pki, key) == "", cipher
        openssl("ec", "-in", str(pki / "ec.key"), f"-{cipher}", *out)
        assert identity_refusal(pki, key, "ec") == "", cipher


@pytest.mark.parametrize("name", LEGACY)
def test_ciphers_that_openssl_gave_up_are_named(pki: Path, tmp_path: Path, name: str) -> None:
    options, called = LEGACY[name]
    key = tmp_path / "key"
    provider = ["-provider", "legacy", "-provider", "default"]
    out = ["-passout", f"pass:{PASSWORD}", "-out", str(key)]
    openssl("pkcs8", *provider, "-topk8", "-in", str(pki / "rsa.key"), *options.split(), *out)
    said = identity_refusal(pki, key)
    if said:  # Else this OpenSSL has it.
        assert f"is encrypted with {called}, which OpenSSL reads with its legacy provider alone; openssl pkey" in said


@pytest.mark.parametrize("name", ["X25519", "X448", "DSA"])
def test_kinds_that_tls_has_no_certificates_of(pki: Path, tmp_path: Path, name: str) -> None:
    key = tmp_path / "key"
    if name == "DSA":
        openssl("dsaparam", "-genkey", "-noout", "-out", str(key), "1024")
    else:
        openssl("genpkey", "-algorithm", name, "-out", str(key))
    openssl("pkey", "-in", str(key), "-outform", "DER", "-out", str(tmp_path / "der"))
    for each in (key, tmp_path / "der"):
        assert f"is for {name}, which TLS has no certificates of" in identity_refusal(pki, each)


def changed(pem: bytes) -> dict[str, bytes]:
    """As programs, mails and editors change a file of PEM without harm."""
    first, *body, last = pem.splitlines()
    return {
        "Windows": pem.replace(b"\n", b"\r\n"),
        "Mac": pem.replace(b"\n", b"\r"),
        "byte order mark": b"\xef\xbb\xbf" + pem,
        "text before": b"Bag Attributes\n    friendlyName: x\nKey Attributes: <No Attributes>\n" + pem,
        "text behind": pem + b"garbage \x00\xff\n",
        "end of file": pem + b"\x1a",
        "no last line's end": pem.rstrip(),
        "spaces": pem.replace(b"\n", b"  \n"),
        "empty lines": pem.replace(b"\n", b"\n\n"),
        "one long line": b"\n".join([first, b"".join(body), last, b""]),
        "a space that does not break": pem.replace(b"\n", b"\xc2\xa0\n", 1),
        "comment": b"# ours\n" + pem,
    }


@pytest.mark.parametrize("change", changed(b"a\nb\nc\n"))
def test_changes_without_harm(pki: Path, tmp_path: Path, change: str) -> None:
    for name in ("rsa.crt", "rsa.key"):
        (tmp_path / name).write_bytes(changed((pki / name).read_bytes())[change])
    assert refusal_of(ca_cert=tmp_path / "rsa.crt") == ""
    assert identity_refusal(tmp_path, tmp_path / "rsa.key") == ""


def test_files_put_together(pki: Path, tmp_path: Path) -> None:
    pem = b"\xef\xbb\xbf".join((pki / f"{name}.crt").read_bytes() for name in ("rsa", "ec"))
    for name in ("rsa", "ec"):
        openssl("x509", "-in", str(pki / f"{name}.crt"), "-outform", "DER", "-out", str(tmp_path / name))
    der = (tmp_path / "rsa").read_bytes() + (tmp_path / "ec").read_bytes()
    for content in (pem, der, der + b"\r\n"):
        (tmp_path / "both").write_bytes(content)
        assert len(found_by_openssl(tmp_path / "both", ["x"])) == 1
        assert refusal_of(ca_cert=tmp_path / "both") == ""


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (base64.b64encode, "base64 of a PEM file"),
        (lambda pem: b"data:\n  tls.crt: " + base64.b64encode(pem), "YAML"),
        (
            lambda pem: b"a: |\n" + b"".join(b"  %b\n" % line for line in pem.splitlines()),
            "PEM whose BEGIN is not a line of its own",
        ),
        (lambda pem: pem.replace(b"-----", b"----"), "PEM whose BEGIN has not five hyphens"),
        (lambda pem: pem.replace(b"-----", "\u2014\u2013\u2014".encode()), "PEM whose BEGIN has not five hyphens"),
        (lambda pem: pem.lower(), "PEM whose BEGIN has not five hyphens"),
        (lambda pem: pem.decode().encode("utf-16-le"), "UTF-16 text"),
        (lambda pem: b"<pre>" + pem + b"</pre>", "a web page (HTML)"),
        (lambda pem: pem.hex().encode(), "hexadecimal text"),
        (lambda pem: b"a.pem" + bytes(252) + b"ustar\x0000" + pem, "a tar archive"),
        (lambda _: bytes.fromhex("0000000200000014") + bytes(20), "an Android keystore (BKS)"),
        (lambda _: bytes.fromhex("1ef1b5b0") + bytes(20), "a Windows key (PVK)"),
        (lambda _: b"<RSAKeyValue><Modulus>x</Modulus></RSAKeyValue>", "XML"),
    ],
)
def test_what_is_no_pem_is_named(pki: Path, tmp_path: Path, change: object, says: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(change((pki / "rsa.crt").read_bytes()))  # type: ignore[operator]
    with_key = {"client_cert": pki / "rsa.crt", "client_key": path}
    for said in (refusal_of(ca_cert=path), refusal_of(**with_key), refusal_of(crl_file=path)):
        assert f"'{path}' cannot be used: it is {says}" in said
        assert "; " in said


# Passwords of the package's files.
VECTOR_PASSWORDS = ["password", "123456", "a123456", "cryptography", "asdf", "foobar", "secret", "1234", "test"]
NO_FILES_OF_TLS = (".eml", ".txt", ".rsp", ".fax", ".sh", ".ldif", ".input", ".schema")
OF_NO_USE = ("is for D", "is for X", "it holds no private key with its certificate")
# DSA certificates that leave their parameters to their issuer's, which the package cryptography does not read.
NOT_READ = ("DSAParameter",)


def test_the_vectors_of_cryptography(another: Certificate) -> None:
    vectors = pytest.importorskip("cryptography_vectors", reason="make vectors installs it")
    folder = Path(vectors.__file__).parent
    files = [
        path
        for name in ("x509", "asymmetric", "pkcs12")
        for path in sorted((folder / name).rglob("*"))
        if path.is_file() and path.suffix not in NO_FILES_OF_TLS
    ]
    if not os.environ.get("ALL_VECTORS"):
        files = files[::50]
    wrong, of_no_use = {}, 0
    for path in files:
        found = found_by_openssl(path, VECTOR_PASSWORDS)
        said = refusals_of(path, another, [None, *VECTOR_PASSWORDS])
        if path.suffix in PKCS12_SUFFIXES:
            # As a file of certificates it is refused, with the command that makes one of it. What OpenSSL has given
            # up, the package cryptography may still read.
            found = {"Pkey"} if not said["Pkey"] else found - {"Certificate"}
        if any(text in said["Pkey"] for text in OF_NO_USE) or any(name in path.name for name in NOT_READ):
            found.discard("Pkey")
            of_no_use += 1
        expected = {kind: kind in found for kind in said}
        if {kind: not text for kind, text in said.items()} != expected:
            wrong[str(path.relative_to(folder))] = (found, said)
    count = len(files)
    sys.stdout.write(f"{count - len(wrong)} of {count} as OpenSSL has it, {of_no_use} of them keys of no use to TLS\n")
    assert wrong == {}
