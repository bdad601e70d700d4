"""TLS settings and the context made of them (specification, "TLS Configuration"): TLS 1.2 or later, ECDHE, AES-GCM."""

from __future__ import annotations

import os
import ssl
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple, TypeAlias

from glec_fast.errors import ConfigError
from glec_fast.runtime.log import logger
from glec_fast.settings import (
    FILE,
    FLAG,
    PINS,
    check_settings,
    one_of,
    optional_text,
    parsed_list,
    refusing_unknown,
    setting,
)
from glec_fast.tls.files import Material, load_authorities, load_client, load_revocation_lists, read_files
from glec_fast.tls.key_format import looks_like_a_key
from glec_fast.tls.pinning import check_pins
from glec_fast.tls.system import load_system_authorities, state_of_system_authorities

# A path is read again at each connection; bytes and what an open file holds are kept as they were.
Source: TypeAlias = str | os.PathLike[str] | bytes | IO[bytes] | IO[str]

_VERSIONS = {"TLSv1.2": ssl.TLSVersion.TLSv1_2, "TLSv1.3": ssl.TLSVersion.TLSv1_3}
# AES-256-GCM ahead of the others, forward secrecy only; TLS 1.3 suites are OpenSSL's own, AES-256-GCM first of them.
# Security level 2 refuses RSA below 2,048 bits and SHA-1 signatures, whatever the system's default is.
_CIPHERS = (
    "ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-GCM-SHA384:"
    "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:@SECLEVEL=2"
)
# RFC 7301, 3.1.
_PROTOCOL_MAX_BYTES = 255


def _check_protocol(text: str) -> None:
    if not 0 < len(text) <= _PROTOCOL_MAX_BYTES or not text.isascii() or not text.isprintable():
        raise ValueError("it must be the name of a protocol, of ASCII and at most 255 characters")


@refusing_unknown
@dataclass(frozen=True, repr=False)
class TLSConfig:
    """How to reach a broker over TLS. Make one with `create_server_auth` or `create_mutual_tls`. Immutable.

    A file is a path, bytes or an open file, in PEM or DER. Paths are read when a connection is made, each time.
    docs/settings.md has all settings with their ranges and names elsewhere. Raises ConfigError.
    """

    ca_cert: Source | None = setting(
        None,
        "mqtt.tls.ca_cert",
        FILE,
        "Authorities to trust, or a folder of such files. Without it, the system's.",
        credential="ca.crt",
    )
    client_cert: Source | None = setting(
        None,
        "mqtt.tls.client_cert",
        FILE,
        "Our certificate and its intermediates. It may hold the key as well, where client_key is the same file; "
        "that may be PKCS#12.",
        credential="client.crt",
    )
    client_key: Source | None = setting(
        None, "mqtt.tls.client_key", FILE, "The private key of client_cert.", credential="client.key"
    )
    key_password: str | None = setting(
        None,
        "mqtt.tls.key_password",
        optional_text(is_secret=True),
        "What an encrypted client_key or the PKCS#12 file is opened with.",
        credential="key_password",
    )
    tls_version: str = setting(
        "TLSv1.2", "mqtt.tls.version", one_of(dict.fromkeys(_VERSIONS, "")), "The lowest version accepted."
    )
    certificate_pins: tuple[str, ...] = setting(
        (),
        "mqtt.tls.certificate_pins",
        PINS,
        "Keys, one of which must be in the broker's verified chain; `glec-fast pin` prints them.",
    )
    verify_hostname: bool = setting(
        True,
        "mqtt.tls.verify_hostname",
        FLAG,
        "Off, the certificate of any host is accepted that a trusted authority signed; a warning is logged.",
    )
    crl_file: Source | None = setting(
        None,
        "mqtt.tls.crl",
        FILE,
        "Revocation lists: there must be one, in force, of each authority above the broker's certificate.",
        credential="crl.pem",
    )
    alpn: tuple[str, ...] = setting(
        (),
        "mqtt.tls.alpn",
        parsed_list("name of a protocol", _check_protocol),
        "Protocols offered by ALPN (RFC 7301), for a broker that shares its port with others, such as "
        "x-amzn-mqtt-ca on port 443.",
    )
    partial_chain: bool = setting(
        False,
        "mqtt.tls.partial_chain",
        FLAG,
        "On, an intermediate in ca_cert is trusted without its root. Of revocation lists, that of the authority "
        "that signed the broker's certificate is then the only one looked at.",
    )

    def __post_init__(self) -> None:
        for name in Material._fields:
            object.__setattr__(self, name, _source(name, getattr(self, name)))
        check_settings(self)
        if self.client_cert is not None and self.client_key is None:
            says = "client_cert is set but client_key is not; they belong together: give both or neither"
            raise ConfigError(says, field="client_cert")
        if self.client_key is not None and self.client_cert is None:
            says = "client_key is set but client_cert is not; they belong together: give both or neither"
            raise ConfigError(says, field="client_key")
        if self.key_password is not None and self.client_key is None:
            says = "key_password is set but client_key is not; give the key that it opens"
            raise ConfigError(says, field="key_password")
        object.__setattr__(self, "certificate_pins", check_pins(self.certificate_pins))

    @classmethod
    def create_server_auth(
        cls,
        ca_cert: Source,
        tls_version: str = "TLSv1.2",
        certificate_pins: Iterable[str] = (),
        *,
        verify_hostname: bool = True,
        crl_file: Source | None = None,
        partial_chain: bool = False,
    ) -> TLSConfig:
        """Verify the broker against the authorities in `ca_cert`, and its key against the pins. Raises ConfigError.

        tls_version: the lowest, "TLSv1.2" or "TLSv1.3". certificate_pins: "sha256/...", of which one must be in the
        chain; none for any. verify_hostname: False accepts the certificate of any host. crl_file: revocation lists.
        partial_chain: an intermediate in `ca_cert` needs no root.
        """
        return cls(
            ca_cert,
            tls_version=tls_version,
            certificate_pins=check_pins(certificate_pins),
            verify_hostname=verify_hostname,
            crl_file=crl_file,
            partial_chain=partial_chain,
        )

    @classmethod
    def create_mutual_tls(
        cls,
        ca_cert: Source,
        client_cert: Source,
        client_key: Source,
        key_password: str | None = None,
        tls_version: str = "TLSv1.2",
        certificate_pins: Iterable[str] = (),
        *,
        verify_hostname: bool = True,
        crl_file: Source | None = None,
        partial_chain: bool = False,
    ) -> TLSConfig:
        """As `create_server_auth`, and show the broker a certificate of our own.

        client_cert: ours, and its intermediates. client_key: its private key. key_password: of an encrypted one. As
        there: ca_cert, tls_version, certificate_pins, verify_hostname, crl_file, partial_chain. Raises ConfigError.
        """
        return cls(
            ca_cert,
            client_cert,
            client_key,
            key_password,
            tls_version=tls_version,
            certificate_pins=check_pins(certificate_pins),
            verify_hostname=verify_hostname,
            crl_file=crl_file,
            partial_chain=partial_chain,
        )

    def is_mutual_tls(self) -> bool:
        """True where a certificate of our own is shown."""
        return self.client_cert is not None

    def is_certificate_pinning_enabled(self) -> bool:
        """True where the broker's key must be one of the pinned."""
        return bool(self.certificate_pins)

    def __repr__(self) -> str:
        shown = {
            "ca_cert": _shown(self.ca_cert),
            "client_cert": _shown(self.client_cert),
            "client_key": None if self.client_key is None else "(not shown)",
            "key_password": None if self.key_password is None else "(not shown)",
            "tls_version": self.tls_version,
            "certificate_pins": self.certificate_pins,
            "verify_hostname": self.verify_hostname,
            "crl_file": _shown(self.crl_file),
            "partial_chain": self.partial_chain,
            "alpn": self.alpn,
        }
        return f"TLSConfig({', '.join(f'{name}={value!r}' for name, value in shown.items())})"


class TLSContext(NamedTuple):
    """A client context, and our own certificate in DER, if there is one."""

    ssl_context: ssl.SSLContext
    client_certificate: bytes | None


class TLSContextSource:
    """Makes contexts from files that may change: a new one when their content has, else the same again.

    Not thread-safe; the network thread's.
    """

    def __init__(self, tls_config: TLSConfig) -> None:
        self._config = tls_config
        self._digest = b""
        self._made: TLSContext | None = None

    def get(self) -> TLSContext:
        """Read the files. Raises TLSFileError."""
        material = read_files(self._config)
        digest = material.digest()
        if not material.ca_cert:
            # To load them again may take 20 ms and 0.8 MB at each connection.
            digest += repr(state_of_system_authorities()).encode()
        if self._made is None or digest != self._digest:
            self._made = _build(self._config, material)
            self._digest = digest
        return self._made


def build_ssl_context(tls_config: TLSConfig | None) -> ssl.SSLContext:
    """A client context for `tls_config`; None trusts the system's authorities. Raises TLSFileError (a ConfigError).

    Pins are checked after the handshake, which a context cannot do: MQTTManager does, or `CertificatePinner.check`.
    """
    return TLSContextSource(TLSConfig() if tls_config is None else tls_config).get().ssl_context


def _build(config: TLSConfig, material: Material) -> TLSContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = _VERSIONS[config.tls_version]
    context.set_ciphers(_CIPHERS)
    context.options |= ssl.OP_NO_RENEGOTIATION
    # RFC 9525, 2: a name stands in subjectAltName, and a CN is none.
    context.hostname_checks_common_name = False
    if not config.verify_hostname:
        logger.warning("the broker's host name is not verified: any certificate of a trusted authority is accepted")
        context.check_hostname = False
    if material.ca_cert:
        load_authorities(context, material.ca_cert)
    else:
        load_system_authorities(context)
    if config.alpn:
        context.set_alpn_protocols(list(config.alpn))
    if config.partial_chain:
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    for file in material.crl_file:
        load_revocation_lists(context, file)
        # An anchor without its root has no authority whose list could be looked at.
        checked = ssl.VERIFY_CRL_CHECK_LEAF if config.partial_chain else ssl.VERIFY_CRL_CHECK_CHAIN
        context.verify_flags |= checked
    client_certificate = None
    for certificates, key in zip(material.client_cert, material.client_key, strict=True):
        warn_if_world_readable("client_key", config.client_key)
        client_certificate = load_client(context, certificates, key, config.key_password)
    return TLSContext(context, client_certificate)


def warn_if_world_readable(name: str, source: object) -> None:
    """Log a warning where any user of this machine may read the secret in this file."""
    if not isinstance(source, (str, os.PathLike)):
        return
    path = Path(source)
    try:
        mode = path.stat().st_mode
    except OSError as error:
        logger.debug("the rights of %s are not known: %s", path, error)
        return
    if mode & stat.S_IROTH:
        logger.warning("every user of this machine can read %s %s: run chmod 600 on it", name, path)


def _source(name: str, value: object) -> str | bytes | None:
    if value is None or isinstance(value, (str, os.PathLike)):
        # The text is not repeated: it may be a key.
        if value is not None and looks_like_a_key(os.fspath(value)):
            raise ConfigError(
                f"{name} is the text of a PEM file or no path; give its path, or the text as bytes", field=name
            )
        if value is not None and not os.fspath(value):
            raise ConfigError(f"{name} is empty; give a path, bytes or an open file", field=name)
        return value  # type: ignore[return-value]
    if hasattr(value, "read"):
        value = value.read()
        if isinstance(value, str):
            value = value.encode()
    if isinstance(value, (bytearray, memoryview)):
        value = bytes(value)
    if not isinstance(value, bytes) or not value:
        raise ConfigError(f"{name} is {type(value).__name__} or empty; give a path, bytes or an open file", field=name)
    return value


def _shown(source: object) -> object:
    return f"({len(source)} bytes)" if isinstance(source, bytes) else source
