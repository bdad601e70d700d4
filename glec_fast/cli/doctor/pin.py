"""`glec-fast pin HOST:PORT`: the pins of the chain that a server shows."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from glec_fast.errors import CertificateError, ConfigError, TLSError
from glec_fast.tls.handshake import explain

if TYPE_CHECKING:
    import argparse

    SubParsers = argparse._SubParsersAction[argparse.ArgumentParser]

SUMMARY = "print the pins of a server's certificates"
DESCRIPTION = """\
Print the pin, subject and expiry of each certificate that a server shows, its own first. Nothing is verified: run it
from two networks, and pin what both show."""
DEFAULT_PORT = 8883
TIMEOUT_S = 10.0


def add_parser(subparsers: SubParsers) -> None:
    parser = subparsers.add_parser("pin", help=SUMMARY, description=DESCRIPTION)
    parser.add_argument("address", metavar="HOST:PORT", help=f"where the broker listens (default port: {DEFAULT_PORT})")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """0 once the chain is printed. Raises ConfigError, TLSError."""
    from glec_fast.cli.doctor.peer import look_at

    host, port = address_of(arguments.address)
    try:
        peer = look_at(host, port, TIMEOUT_S)
    except (OSError, CertificateError, UnicodeError) as error:
        failure = explain(error, host)
        raise TLSError(f"{host} port {port}: {failure.found}; {failure.advice}") from error
    if arguments.json:
        chain = [
            {
                "pin": each.pin,
                "subject": each.certificate.subject,
                "not_before": int(each.certificate.not_before_s),
                "not_after": int(each.certificate.not_after_s),
            }
            for each in peer.chain
        ]
        report = {"host": host, "port": port, "version": peer.version, "suite": peer.suite, "chain": chain}
        sys.stdout.write(json.dumps(report) + "\n")
        return 0
    for each in peer.chain:
        sys.stdout.write(f"{each.pin}  {each.certificate.subject}, until {each.ends}\n")
    sys.stderr.write("Not verified: compare with what another network shows before you pin it.\n")
    return 0


def address_of(text: str) -> tuple[str, int]:
    """Host and port; an IPv6 address stands in brackets. Raises ConfigError."""
    from glec_fast.fleet.config import TLS_SCHEMES, parse_broker_url

    scheme, _, address = text.rpartition("://")
    if scheme not in ("", *TLS_SCHEMES):
        raise ConfigError(f"{scheme}:// shows no key: give HOST:PORT of a TLS listener, such as host:8883")
    try:
        broker = parse_broker_url(f"ssl://{address.partition('/')[0] if scheme else address}")
    except ConfigError as error:
        # Without the text: it may be a URL with a password.
        raise ConfigError("that is no HOST:PORT: give one such as host:8883, the port 1 to 65535") from error
    return broker.host, broker.port
