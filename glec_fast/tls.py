"""TLS settings and the context made of them (specification, "TLS Configuration"): TLS 1.2 or later, ECDHE, AES-GCM."""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass, field

from glec_fast.errors import ConfigError

_VERSIONS = {"TLSv1.2": ssl.TLSVersion.TLSv1_2, "TLSv1.3": ssl.TLSVersion.TLSv1_3}
# AES-256-GCM ahead of the others, forward secrecy only; TLS 1.3 suites are OpenSSL's own.
_CIPHERS = (
    "ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-GCM-SHA384:"
    "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256"
)


@dataclass(frozen=True)
class TLSConfig:
    """How to reach a broker over TLS. Make one with `create_server_auth` or `create_mutual_tls`.

    Paths are read when a connection is made. tls_version: lowest accepted, TLSv1.2 or TLSv1.3.
    """

    ca_cert: str | os.PathLike[str]
    client_cert: str | os.PathLike[str] | None = None
    client_key: str | os.PathLike[str] | None = None
    key_password: str | None = field(default=None, repr=False)
    tls_version: str = "TLSv1.2"

    def __post_init__(self) -> None:
        if self.tls_version not in _VERSIONS:
            raise ConfigError(f"tls_version is {self.tls_version!r}; it must be TLSv1.2 or TLSv1.3")
        if (self.client_cert is None) != (self.client_key is None):
            raise ConfigError("client_cert and client_key belong together; give both or neither")

    @classmethod
    def create_server_auth(cls, ca_cert: str | os.PathLike[str], tls_version: str = "TLSv1.2") -> TLSConfig:
        """Verify the broker against the certificate authority in the PEM file `ca_cert`. Raises ConfigError."""
        return cls(ca_cert, tls_version=tls_version)

    @classmethod
    def create_mutual_tls(
        cls,
        ca_cert: str | os.PathLike[str],
        client_cert: str | os.PathLike[str],
        client_key: str | os.PathLike[str],
        key_password: str | None = None,
        tls_version: str = "TLSv1.2",
    ) -> TLSConfig:
        """As `create_server_auth`, and show the broker a certificate of our own (PEM files). Raises ConfigError."""
        return cls(ca_cert, client_cert, client_key, key_password, tls_version)


def build_ssl_context(tls_config: TLSConfig | None) -> ssl.SSLContext:
    """A client context for these settings; None trusts the system's authorities. Raises ConfigError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = _VERSIONS["TLSv1.2" if tls_config is None else tls_config.tls_version]
    context.set_ciphers(_CIPHERS)
    if tls_config is None:
        context.load_default_certs()
        return context
    try:
        context.load_verify_locations(cafile=os.fspath(tls_config.ca_cert))
        if tls_config.client_cert is not None:
            context.load_cert_chain(tls_config.client_cert, tls_config.client_key, tls_config.key_password)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"the TLS files cannot be used ({error}): check ca_cert, client_cert and client_key"
        ) from error
    return context
