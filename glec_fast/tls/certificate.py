"""An X.509 certificate's subject, validity and public key (RFC 5280, 4.1), read from its DER.

Only what pins and expiry need. Strict: what DER forbids is refused, and nothing outside a field's bounds is looked at.
Signatures and chains are OpenSSL's business.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

from glec_fast.errors import CertificateError

_INTEGER, _BIT_STRING, _OBJECT_ID, _SEQUENCE, _SET = 0x02, 0x03, 0x06, 0x30, 0x31
_UTC_TIME, _GENERALIZED_TIME = 0x17, 0x18
# The same tag, at the beginning of a certificate and at the end of a revocation list.
_VERSION = _EXTENSIONS = 0xA0
_DELTA = b"\x55\x1d\x1b"
_MULTIBYTE_TAG = 0x1F
# A certificate of 64 KiB is beyond what TLS peers show; a length of more than four bytes is an attack or an accident.
_LENGTH_BYTES_MAX = 4
_ATTRIBUTES = {
    b"\x55\x04\x03": "CN",
    b"\x55\x04\x06": "C",
    b"\x55\x04\x07": "L",
    b"\x55\x04\x08": "ST",
    b"\x55\x04\x0a": "O",
    b"\x55\x04\x0b": "OU",
}
# From the first of January of the year 1 to that of 1970, and one, as days count from one.
_DAYS_BEFORE_1970 = 719_163
_TEXT_ENCODINGS = {0x0C: "utf-8", 0x13: "ascii", 0x14: "latin-1", 0x16: "ascii", 0x1E: "utf-16-be"}


class Certificate(NamedTuple):
    """Fields of one certificate. Times are Unix seconds; spki is the whole SubjectPublicKeyInfo in DER."""

    subject: str
    not_before_s: float
    not_after_s: float
    spki: bytes


class DerReader:
    """Takes one DER element after another out of a field; `end` says that nothing may follow."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def has_more(self) -> bool:
        return self._position < len(self._data)

    def next_tag(self) -> int | None:
        return self._data[self._position] if self.has_more() else None

    def any(self) -> tuple[int, bytes, bytes]:
        """(tag, content, the whole element)."""
        data, start = self._data, self._position
        if start + 2 > len(data):
            raise CertificateError("the certificate ends within a field")
        tag, length = data[start], data[start + 1]
        if tag & _MULTIBYTE_TAG == _MULTIBYTE_TAG:
            raise CertificateError("the certificate has a tag that X.509 does not use")
        content = start + 2
        if length & 0x80:
            size = length & 0x7F
            encoded = data[content : content + size]
            if not 1 <= size <= _LENGTH_BYTES_MAX or len(encoded) < size:
                raise CertificateError("the certificate has a length that DER does not allow")
            length = int.from_bytes(encoded, "big")
            if length < 0x80 or encoded[0] == 0:
                raise CertificateError("the certificate has a length that is not the shortest, which DER forbids")
            content += size
        end = content + length
        if end > len(data):
            raise CertificateError("the certificate ends within a field")
        self._position = end
        return tag, data[content:end], data[start:end]

    def field(self, expected: int) -> bytes:
        tag, content, _ = self.any()
        if tag != expected:
            raise CertificateError(f"the certificate has tag {tag:#x} where X.509 has {expected:#x}")
        return content

    def inside(self, expected: int) -> DerReader:
        return DerReader(self.field(expected))

    def end(self) -> None:
        if self.has_more():
            raise CertificateError("the certificate has bytes after its end")


# A broker shows the same few at each connection.
@functools.lru_cache(maxsize=16)
def parse_certificate(der: bytes) -> Certificate:
    """Read one certificate. Raises CertificateError where it is not X.509 in DER."""
    whole = DerReader(der)
    outer = whole.inside(_SEQUENCE)
    whole.end()
    body = outer.inside(_SEQUENCE)
    outer.field(_SEQUENCE)
    outer.field(_BIT_STRING)
    outer.end()
    if body.next_tag() == _VERSION:
        body.field(_VERSION)
    body.field(_INTEGER)
    body.field(_SEQUENCE)
    body.field(_SEQUENCE)
    validity = body.inside(_SEQUENCE)
    not_before_s, not_after_s = _time(validity), _time(validity)
    validity.end()
    subject = _name(body.inside(_SEQUENCE))
    return Certificate(subject, not_before_s, not_after_s, _public_key(body))


def is_delta_list(der: bytes) -> bool:
    """Whether a revocation list has changes to another alone (RFC 5280, 5.2.4). Raises CertificateError."""
    body = DerReader(der).inside(_SEQUENCE).inside(_SEQUENCE)
    tag, content = 0, b""
    while body.has_more():
        tag, content, _ = body.any()
    extensions = DerReader(content).inside(_SEQUENCE) if tag == _EXTENSIONS else body
    while extensions.has_more():
        if extensions.inside(_SEQUENCE).field(_OBJECT_ID) == _DELTA:
            return True
    return False


def _public_key(body: DerReader) -> bytes:
    tag, content, element = body.any()
    if tag != _SEQUENCE:
        raise CertificateError("the certificate has no public key where X.509 has one")
    key = DerReader(content)
    key.inside(_SEQUENCE).field(_OBJECT_ID)
    key.field(_BIT_STRING)
    key.end()
    return element


def _time(validity: DerReader) -> float:
    tag, content, _ = validity.any()
    try:
        text = content.decode("ascii")
        if tag == _UTC_TIME and len(text) == 13:
            # RFC 5280, 4.1.2.5.1: two digits from 50 on are of the last century.
            text = ("19" if text >= "50" else "20") + text
        elif tag != _GENERALIZED_TIME or len(text) != 15:
            raise ValueError
        if text[-1] != "Z" or not text[:-1].isdigit():
            raise ValueError
        date = (int(text[:4]), int(text[4:6]), int(text[6:8]))
        hour, minute, second = int(text[8:10]), int(text[10:12]), int(text[12:14])
        if hour > 23 or minute > 59 or second > 59:
            raise ValueError
        return float(days_since_1970(*date) * 86_400 + hour * 3600 + minute * 60 + second)
    except ValueError as error:
        raise CertificateError("the certificate has a time that RFC 5280 does not allow") from error


def days_since_1970(year: int, month: int, day: int) -> int:
    """Of the Gregorian calendar (`datetime` costs 350 KiB of memory). Raises ValueError where there is no such day."""
    is_leap_year = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    lengths = (31, 29 if is_leap_year else 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
    if not (year and 1 <= month <= 12 and 1 <= day <= lengths[month - 1]):
        raise ValueError
    before = year - 1
    leap_days = before // 4 - before // 100 + before // 400
    return 365 * before + leap_days + sum(lengths[: month - 1]) + day - _DAYS_BEFORE_1970


def _name(names: DerReader) -> str:
    """For people, such as "CN=broker, O=GLEC". What could forge a line of a log is escaped."""
    parts = []
    while names.has_more():
        group = names.inside(_SET)
        while group.has_more():
            attribute = group.inside(_SEQUENCE)
            kind = _ATTRIBUTES.get(attribute.field(_OBJECT_ID))
            tag, content, _ = attribute.any()
            attribute.end()
            if kind is not None:
                text = content.decode(_TEXT_ENCODINGS.get(tag, "latin-1"), errors="replace")
                parts.append(f"{kind}={_printable(text)}")
    return ", ".join(parts) or "(no name)"


def _printable(text: str) -> str:
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)
