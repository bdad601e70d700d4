"""Pins and the certificate reader, against the cryptography package, and against damage at every byte."""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from glec_fast import CertificateError, CertificatePinner, ConfigError, PinningError
from glec_fast.tls.certificate import parse_certificate
from glec_fast.tls.pinning import certificate_pin, check_pins

KEYS: dict[str, Any] = {
    "RSA 2048": lambda: rsa.generate_private_key(65537, 2048),
    "RSA 3072": lambda: rsa.generate_private_key(65537, 3072),
    "RSA exponent 3": lambda: rsa.generate_private_key(3, 2048),
    "EC P-256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "EC P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "EC P-521": lambda: ec.generate_private_key(ec.SECP521R1()),
    "Ed25519": ed25519.Ed25519PrivateKey.generate,
    "Ed448": ed448.Ed448PrivateKey.generate,
    "DSA": lambda: dsa.generate_private_key(1024),
}
UTC = dt.timezone.utc
START = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
END = dt.datetime(2036, 12, 31, 23, 59, 59, tzinfo=UTC)
PIN = "sha256/" + "A" * 43 + "="


def make(
    key: Any, start: dt.datetime = START, end: dt.datetime = END, name: x509.Name | None = None, serial: int = 1
) -> bytes:
    if name is None:
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "broker")])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(start)
        .not_valid_after(end)
    )
    algorithm = None if isinstance(key, (ed25519.Ed25519PrivateKey, ed448.Ed448PrivateKey)) else hashes.SHA256()
    return builder.sign(key, algorithm).public_bytes(Encoding.DER)


@pytest.fixture(scope="module")
def key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@pytest.mark.parametrize("kind", KEYS)
def test_the_pin_is_that_of_an_independent_library(kind: str) -> None:
    made = KEYS[kind]()
    der = make(made)
    spki = made.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert parse_certificate(der).spki == spki
    expected = "sha256/" + base64.b64encode(hashlib.sha256(spki).digest()).decode()
    assert certificate_pin(der) == CertificatePinner.calculate_pin(spki) == expected
    assert CertificatePinner("host", [PIN, expected]).check("host", [der]) == expected


@pytest.mark.parametrize(
    ("start", "end"),
    [
        (START, END),
        (dt.datetime(1950, 1, 1, tzinfo=UTC), dt.datetime(2049, 12, 31, 23, 59, 59, tzinfo=UTC)),
        (dt.datetime(1999, 12, 31, 23, 59, 59, tzinfo=UTC), dt.datetime(2050, 1, 1, tzinfo=UTC)),
        (dt.datetime(2024, 2, 29, tzinfo=UTC), dt.datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)),
    ],
)
def test_dates(key: Any, start: dt.datetime, end: dt.datetime) -> None:
    read = parse_certificate(make(key, start, end))
    assert (read.not_before_s, read.not_after_s) == (start.timestamp(), end.timestamp())


def test_names_cannot_forge_a_line_of_a_log(key: Any) -> None:
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.COUNTRY_NAME, "KR"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "GLEC 한국"),
            x509.NameAttribute(NameOID.COMMON_NAME, "a\nERROR b\x1b[31m\u202e"),
            x509.NameAttribute(NameOID.EMAIL_ADDRESS, "not@shown"),
        ]
    )
    subject = parse_certificate(make(key, name=name)).subject
    assert subject == "C=KR, O=GLEC 한국, CN=a\\nERROR b\\x1b[31m\\u202e"
    assert parse_certificate(make(key, name=x509.Name([]))).subject == "(no name)"


def test_every_cut_is_refused(key: Any) -> None:
    der = make(key)
    for size in range(len(der)):
        with pytest.raises(CertificateError):
            parse_certificate(der[:size])
    with pytest.raises(CertificateError, match="after its end"):
        parse_certificate(der + b"\0")


@settings(max_examples=200)
@given(data=st.data())
def test_damage_is_refused_or_harmless(data: st.DataObject) -> None:
    der = bytearray(SAMPLE)
    for _ in range(data.draw(st.integers(1, 4))):
        der[data.draw(st.integers(0, len(der) - 1))] = data.draw(st.integers(0, 255))
    try:
        read = parse_certificate(bytes(der))
    except CertificateError:
        return
    assert read.spki in bytes(der)
    assert read.subject.isprintable()


@given(st.binary(max_size=200))
def test_any_bytes_raise_nothing_else(data: bytes) -> None:
    with pytest.raises(CertificateError):
        parse_certificate(data)


SAMPLE = make(ec.generate_private_key(ec.SECP256R1()))


@pytest.mark.parametrize(
    ("damaged", "says"),
    [
        (b"\x30\x80\x00\x00", "length"),
        (b"\x30\x81\x01\x00", "shortest"),
        (b"\x30\x82\x00\x81" + b"\0" * 129, "shortest"),
        (b"\x30\x85\x01\x00\x00\x00\x00", "length"),
        (b"\x30\x84\x7f\xff\xff\xff", "ends within"),
        (b"\x31\x00", "tag"),
        (b"\x3f\x81\x01\x00", "tag"),
        (b"\x30\x00", "ends within"),
        (b"", "ends within"),
    ],
)
def test_what_der_forbids(damaged: bytes, says: str) -> None:
    with pytest.raises(CertificateError, match=says):
        parse_certificate(damaged)


@pytest.mark.parametrize(
    "pin",
    [
        "",
        "sha256/",
        "sha1/" + "A" * 43 + "=",
        "SHA256/" + "A" * 43 + "=",
        "sha256/" + "A" * 42 + "=",
        "sha256/" + "A" * 44,
        "sha256/" + "A" * 42 + "==",
        "sha256/" + "A" * 43 + "==",
        "sha256/" + "A" * 42 + "!=",
        "sha256/" + "A" * 42 + "\n=",
        " " + PIN,
        PIN + " ",
        PIN + PIN,
        "sha256/" + "-" * 43 + "=",
        "A" * 43 + "=",
        None,
        PIN.encode(),
    ],
)
def test_malformed_pins(pin: Any) -> None:
    with pytest.raises(ConfigError, match="pin"):
        check_pins([pin])


def test_a_pinner_needs_a_pin() -> None:
    with pytest.raises(ConfigError, match="at least one"):
        CertificatePinner("host", [])


def test_spare_bits_of_base64_do_not_count(key: Any) -> None:
    der = make(key)
    pin = certificate_pin(der)
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    other = pin[:-2] + alphabet[alphabet.index(pin[-2]) ^ 1] + "="
    assert other != pin
    assert CertificatePinner("host", [other]).check("host", [der]) == pin


def test_any_certificate_of_the_chain_matches(key: Any) -> None:
    other = ec.generate_private_key(ec.SECP256R1())
    chain = [make(key), make(other)]
    for der in chain:
        assert CertificatePinner("host", [certificate_pin(der)]).check("HOST", iter(chain)) == certificate_pin(der)


def test_what_was_shown_is_told(key: Any) -> None:
    der = make(key)
    with pytest.raises(PinningError, match=certificate_pin(der).replace("+", r"\+")):
        CertificatePinner("host", [PIN]).check("host", [der])
    with pytest.raises(PinningError, match="none"):
        CertificatePinner("host", [PIN]).check("host", [])


def test_pins_of_one_host_are_not_those_of_another(key: Any) -> None:
    der = make(key)
    for other in ("other", "", None, "host.example"):
        with pytest.raises(PinningError, match="another host"):
            CertificatePinner("host", [certificate_pin(der)]).check(other, [der])  # type: ignore[arg-type]


def test_a_certificate_that_cannot_be_read_is_refused(key: Any) -> None:
    der = make(key)
    with pytest.raises(PinningError, match="cannot be read"):
        CertificatePinner("host", [certificate_pin(der)]).check("host", [b"\x30\x00", der])
