"""TCP to a host of several addresses, within one deadline, and the end of an attempt that nobody wants any more."""

from __future__ import annotations

import logging
import os
import socket
import time
from typing import Any

from glec_fast.runtime._lock import Lock
from glec_fast.runtime.process import close_copy

logger = logging.getLogger("glec_fast")


class Attempt:
    """The socket of a connection while it is made, so that another thread may end it. Thread-safe."""

    def __init__(self) -> None:
        self._lock = Lock("Attempt._lock")
        self._sock: Any = None
        self._has_ended = self._is_over = False

    @property
    def is_without_socket(self) -> bool:
        """True while the host's name is looked up, and while a proxy is asked: nothing is there to end."""
        with self._lock:
            return self._sock is None and not self._is_over

    def follow(self, sock: Any) -> None:
        """From now on it is about this socket. Closes it and raises ConnectionAbortedError after `end`."""
        with self._lock:
            if self._has_ended:
                sock.close()
                raise ConnectionAbortedError("the client was closed while it connected")
            self._sock = sock

    def succeed(self) -> None:
        """The socket is somebody else's from now on."""
        with self._lock:
            self._sock = None
            self._is_over = True

    def fail(self) -> None:
        """Close the socket."""
        with self._lock:
            # Under the lock, as its number may be another's next.
            if self._sock is not None:
                self._sock.close()
            self._sock = None
            self._is_over = True

    def let_go_in_child(self) -> None:
        """In a forked child: the connection is the parent's."""
        # Without the lock, which a thread that does not exist here may hold.
        close_copy(self._sock)
        self._sock = None

    def end(self) -> None:
        """Have whoever waits for the peer fail at once, and every later `follow`."""
        with self._lock:
            self._has_ended = True
            if self._sock is not None:
                break_link(self._sock)


def break_link(sock: Any) -> None:
    """End the connection under a socket that another thread may be waiting on."""
    try:
        # By its descriptor: a WebSocket has no such method, and ssl's would take TLS from under a handshake.
        with socket.socket(fileno=os.dup(sock.fileno())) as link:
            link.shutdown(socket.SHUT_RDWR)
    except OSError as error:
        logger.debug("the link had ended already: %s", error)


def acknowledge_at_once(sock: Any) -> None:
    """A peer with Nagle's algorithm holds the next piece back until our kernel acknowledges the last, 40 ms later."""
    if not hasattr(socket, "TCP_QUICKACK"):
        return
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
    except OSError:
        # A program's own socket that is not TCP's, or one that another thread has closed: the next read tells.
        return


def end_sending(sock: Any) -> None:
    """Let the peer see the end of what was sent; what it sends can still be read."""
    try:
        with socket.socket(fileno=os.dup(sock.fileno())) as link:
            link.shutdown(socket.SHUT_WR)
    except OSError as error:
        logger.debug("the link had ended already: %s", error)


def resolve(host: str, port: int) -> list[tuple[socket.AddressFamily, tuple[str, int]]]:
    """The host's addresses in the system's order. Not bounded in time: the system's resolver is. Raises gaierror."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [(family, address) for family, _, _, _, address in found]  # type: ignore[misc]


def dial(
    host: str,
    port: int,
    timeout_s: float,
    source: tuple[str, int] = ("", 0),
    attempt: Attempt | None = None,
    *,
    for_each: bool = False,
) -> socket.socket:
    """Connect to the first address that answers. Raises OSError, that of the last address.

    Those that remain share the time that remains: one that a firewall swallows must not take the time of the others.
    source: the local address and port to connect from; empty and 0 for any. attempt: is to know of each socket.
    for_each: every address has all of the time, as with `socket.create_connection`.
    """
    attempt = attempt or Attempt()
    addresses = resolve(host, port)
    deadline_s = time.monotonic() + timeout_s
    failure: OSError | None = None
    for tried, (family, address) in enumerate(addresses):
        remaining_s = deadline_s - time.monotonic()
        if for_each:
            share_s = timeout_s
        elif remaining_s > 0:
            share_s = remaining_s / (len(addresses) - tried)
        else:
            break
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            attempt.follow(sock)
            sock.settimeout(share_s)
            if source != ("", 0):
                sock.bind(source)
            sock.connect(address)
        except OSError as error:
            attempt.fail()
            failure = error
        except BaseException:
            attempt.fail()
            raise
        else:
            return sock
    raise failure or TimeoutError(f"no address of {host} answered within {timeout_s:g} s")
