"""Where the broker is, and how its address looks from behind the link."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from glec_fast.cli.demo import DemoError

PLAIN_SCHEMES = ("tcp", "mqtt")
TLS_SCHEMES = ("ssl", "mqtts")
DEFAULT_PLAIN_PORT = 1883
DEFAULT_TLS_PORT = 8883


@dataclass(frozen=True)
class Target:
    """A broker's address. `ca_cert` is set where it speaks TLS."""

    host: str
    port: int
    ca_cert: str | None = None

    @property
    def address(self) -> tuple[str, int]:
        return self.host, self.port

    @property
    def url(self) -> str:
        """As a client that is not behind the link dials it."""
        return f"{'ssl' if self.ca_cert else 'tcp'}://{self.host}:{self.port}"

    def url_through(self, link_port: int) -> str:
        """The URL that a client dials to come here through a link on loopback.

        With TLS it keeps the broker's name, for which the certificate is checked; the client has to take that name
        for loopback then.
        """
        return f"ssl://{self.host}:{link_port}" if self.ca_cert else f"tcp://127.0.0.1:{link_port}"


def parse_target(url: str, ca_cert: str | None) -> Target:
    """The target of a user's URL; `ca_cert` is a PEM file, by default the system's authorities."""
    known = ", ".join(f"{scheme}://" for scheme in PLAIN_SCHEMES + TLS_SCHEMES)
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise DemoError(f"--broker {url}: {error}") from error
    if parts.scheme not in PLAIN_SCHEMES + TLS_SCHEMES:
        raise DemoError(f"--broker {url}: the demo speaks {known}; for example tcp://localhost:1883")
    if "@" in parts.netloc:
        raise DemoError("--broker: no user name or password in the URL; give --username and GLEC_MQTT_PASSWORD")
    if not host or port == 0 or parts.path not in ("", "/"):
        raise DemoError(f"--broker {url}: expected {parts.scheme}://host:port")
    if ":" in host:
        raise DemoError(f"--broker {url}: give the broker's name instead of its IPv6 address")
    if parts.scheme in PLAIN_SCHEMES:
        return Target(host, port or DEFAULT_PLAIN_PORT)
    return Target(host, port or DEFAULT_TLS_PORT, _authorities(ca_cert))


def _authorities(ca_cert: str | None) -> str:
    path = ca_cert or ssl.get_default_verify_paths().cafile
    if path is None:
        raise DemoError("this system has no file of trusted authorities: give the broker's with --ca-cert FILE")
    if not Path(path).is_file():
        raise DemoError(f"no such file of authorities: {path}")
    return path
