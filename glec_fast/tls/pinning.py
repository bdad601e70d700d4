"""Certificate pins: SHA-256 of a SubjectPublicKeyInfo (RFC 7469, 2.4), as the specification writes them.

A pin names a key, not a certificate: a certificate that is renewed with the same key keeps its pin.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterable

from glec_fast.errors import CertificateError, ConfigError, PinningError
from glec_fast.tls.certificate import parse_certificate

_PREFIX = "sha256/"
_ENCODED_CHARS = 44
_DIGEST_BYTES = 32
# Of TLSConfig.
_FIELD = "certificate_pins"


class CertificatePinner:
    """The pins of one host: a primary, and backups for the day on which its key is replaced. Immutable, thread-safe.

    hostname: as in the broker's URL. pins: at least one, each "sha256/" and 44 characters of base64.
    Raises ConfigError.
    """

    def __init__(self, hostname: str, pins: Iterable[str]) -> None:
        if not isinstance(hostname, str) or not hostname.strip():
            raise ConfigError(f"hostname is {hostname!r}; name the host whose keys are pinned")
        self.hostname = hostname
        self.pins = check_pins(pins, are_shown=True)
        if not self.pins:
            raise ConfigError("a pinner without pins would refuse every peer; give at least one")
        self._digests = {_digest(pin) for pin in self.pins}

    def check(self, hostname: str, der_chain: Iterable[bytes]) -> str:
        """The pin of the first certificate with a pinned key. Raises PinningError where there is none.

        der_chain: the peer's verified certificates in DER, its own first.
        """
        if not isinstance(hostname, str) or hostname.lower() != self.hostname.lower():
            raise PinningError(f"the pins are those of {self.hostname}, and {hostname!r} is another host")
        shown = []
        for der in der_chain:
            try:
                digest = hashlib.sha256(parse_certificate(der).spki).digest()
            except CertificateError as error:
                raise PinningError(f"{hostname} showed a certificate that cannot be read: {error}") from error
            if digest in self._digests:
                return _pin(digest)
            shown.append(_pin(digest))
        raise PinningError(
            f"no key that {hostname} showed is pinned (it showed {', '.join(shown) or 'none'}): if the broker has a "
            "new key, add its pin; if not, someone is between this gateway and the broker"
        )

    @staticmethod
    def calculate_pin(spki_der: bytes) -> str:
        """The pin of a public key. spki_der: its SubjectPublicKeyInfo in DER. Never raises for bytes."""
        return _pin(hashlib.sha256(spki_der).digest())

    def __repr__(self) -> str:
        return f"CertificatePinner({self.hostname!r}, {list(self.pins)!r})"


def certificate_pin(der: bytes) -> str:
    """The pin of the key in a certificate in DER. Raises CertificateError."""
    return CertificatePinner.calculate_pin(parse_certificate(der).spki)


def check_pins(pins: Iterable[str], *, are_shown: bool = False) -> tuple[str, ...]:
    """The pins, each of them well-formed. Raises ConfigError.

    are_shown: whether an error may repeat one, which in settings may be a secret that came into the wrong place.
    """
    if isinstance(pins, (str, bytes)) or not isinstance(pins, Iterable):
        raise ConfigError(f"certificate pins are {type(pins).__name__}; give a list of str", field=_FIELD)
    checked = tuple(pins)
    for number, pin in enumerate(checked, 1):
        _digest(pin, repr(pin) if are_shown else f"number {number}")
    return checked


def _digest(pin: str, name: str = "") -> bytes:
    # Compared as bytes: two texts may stand for one digest, as the last character has two spare bits.
    if not isinstance(pin, str) or not pin.startswith(_PREFIX):
        raise ConfigError(f"certificate pin {name} must begin with {_PREFIX}", field=_FIELD)
    encoded = pin.removeprefix(_PREFIX)
    try:
        digest = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        digest = b""
    if len(encoded) != _ENCODED_CHARS or len(digest) != _DIGEST_BYTES:
        says = f"certificate pin {name} must have {_ENCODED_CHARS} characters of base64 after {_PREFIX}"
        raise ConfigError(says, field=_FIELD)
    return digest


def _pin(digest: bytes) -> str:
    return _PREFIX + base64.b64encode(digest).decode("ascii")
