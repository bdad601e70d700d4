"""TCP to a host of several addresses, within one deadline."""

from __future__ import annotations

import socket
import time


def resolve(host: str, port: int) -> list[tuple[socket.AddressFamily, tuple[str, int]]]:
    """The host's addresses in the system's order. Not bounded in time: the system's resolver is. Raises gaierror."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [(family, address) for family, _, _, _, address in found]  # type: ignore[misc]


def dial(host: str, port: int, timeout_s: float, source: tuple[str, int] = ("", 0)) -> socket.socket:
    """Connect to the first address that answers. Raises OSError, that of the last address.

    Those that remain share the time that remains: one that a firewall swallows must not take the time of the others.
    source: the local address and port to connect from; empty and 0 for any.
    """
    addresses = resolve(host, port)
    deadline_s = time.monotonic() + timeout_s
    failure: OSError | None = None
    for tried, (family, address) in enumerate(addresses):
        remaining_s = deadline_s - time.monotonic()
        if remaining_s <= 0:
            break
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.settimeout(remaining_s / (len(addresses) - tried))
            if source != ("", 0):
                sock.bind(source)
            sock.connect(address)
        except OSError as error:
            sock.close()
            failure = error
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise failure or TimeoutError(f"no address of {host} answered within {timeout_s:g} s")
