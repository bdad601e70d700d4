"""TCP to the addresses of a host, raced within one deadline, and the end of an attempt that nobody wants any more."""

from __future__ import annotations

import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import zip_longest
from math import ceil
from typing import Any, NamedTuple, TypeAlias

from glec_fast.runtime._lock import Lock
from glec_fast.runtime.log import logger
from glec_fast.runtime.polling import WRITABLE, new_poll
from glec_fast.runtime.process import close_copy

# So long an address is waited for before the next is tried beside it (RFC 8305, 5).
ATTEMPT_DELAY_S = 0.25
Address: TypeAlias = "tuple[socket.AddressFamily, tuple[str, int]]"


class Attempt:
    """The sockets of a connection while it is made, so that another thread may end it. Thread-safe."""

    def __init__(self) -> None:
        self._lock = Lock("Attempt._lock")
        self._socks: list[Any] = []
        self._has_ended = self._is_over = False

    @property
    def is_without_socket(self) -> bool:
        """True while the host's name is looked up, and while a proxy is asked: nothing is there to end."""
        with self._lock:
            return not self._socks and not self._is_over

    def join(self, sock: Any) -> None:
        """It is about this socket too. Closes it and raises ConnectionAbortedError after `end`."""
        with self._lock:
            if self._has_ended:
                sock.close()
                self._refuse()
            self._socks.append(sock)

    def leave(self, sock: Any) -> None:
        """It is not about this socket any more, which is closed."""
        with self._lock:
            # Under the lock, as its number may be another's next.
            sock.close()
            if sock in self._socks:
                self._socks.remove(sock)

    def follow(self, sock: Any) -> None:
        """From now on it is about this socket alone. Closes it and raises ConnectionAbortedError after `end`."""
        with self._lock:
            self._socks.clear()
        self.join(sock)

    def refuse_if_ended(self) -> None:
        """Raises ConnectionAbortedError after `end`."""
        if self._has_ended:
            self._refuse()

    @staticmethod
    def _refuse() -> None:
        raise ConnectionAbortedError("the client was closed while it connected")

    def succeed(self) -> None:
        """The socket is somebody else's from now on."""
        with self._lock:
            self._socks.clear()
            self._is_over = True

    def fail(self) -> None:
        """Close the sockets."""
        with self._lock:
            for sock in self._socks:
                sock.close()
            self._socks.clear()
            self._is_over = True

    def let_go_in_child(self) -> None:
        """In a forked child: the connection is the parent's."""
        # Without the lock, which a thread that does not exist here may hold.
        for sock in self._socks:
            close_copy(sock)
        self._socks = []

    def end(self) -> None:
        """Have whoever waits for the peer fail at once, and every later `follow`."""
        with self._lock:
            self._has_ended = True
            for sock in self._socks:
                break_link(sock)


def break_link(sock: Any) -> None:
    """End the connection under a socket that another thread may be waiting on."""
    # Where it had ended already that is as wanted. Callers hold locks, under which nothing is logged.
    with suppress(OSError):
        _shut(sock, socket.SHUT_RDWR)


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
        _shut(sock, socket.SHUT_WR)
    except OSError as error:
        logger.debug("the link had ended already: %s", error)


def _shut(sock: Any, how: int) -> None:
    # By its descriptor: a WebSocket has no such method, and ssl's would take TLS from under a handshake.
    with socket.socket(fileno=os.dup(sock.fileno())) as link:
        link.shutdown(how)


def as_ascii(host: str) -> str | bytes:
    """As bytes, where it is ASCII: a str goes through Python's codec of international names, which takes 380 KiB."""
    return host.encode("ascii") if host.isascii() else host


def resolve(host: str, port: int) -> list[Address]:
    """The host's addresses in the system's order. Not bounded in time: the system's resolver is. Raises OSError."""
    # What a program has in the place of Python's own, or around it, may want a str.
    look_up: Any = socket.getaddrinfo
    is_pythons = look_up.__module__ == socket.__name__ and not hasattr(look_up, "__wrapped__")
    name = as_ascii(host) if is_pythons else host
    try:
        found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
    except UnicodeError as error:
        raise OSError(f"{host!r} is no name of a host: {error}") from error
    return [(family, address) for family, _, _, _, address in found]  # type: ignore[misc]


def in_turn(addresses: list[Address], first: Address | None = None) -> list[Address]:
    """In the order in which they are tried: families by turns (RFC 8305, 4), and `first`, if it is one of them, first.

    A family that leads nowhere must not be tried to its last address before the other has its turn.
    """
    lead = [each for each in addresses if each[0] == addresses[0][0]]
    others = [each for each in addresses if each[0] != addresses[0][0]]
    mixed = [each for pair in zip_longest(lead, others) for each in pair if each is not None]
    return sorted(mixed, key=lambda each: each != first)


class Route(NamedTuple):
    """How a host is reached.

    source: the local address and port to connect from; empty and 0 for any. first: the address that answered last.
    prepare: what each socket has to have before it connects. for_each: every address has all of the time, as with
    `socket.create_connection`.
    """

    source: tuple[str, int] = ("", 0)
    first: Address | None = None
    prepare: Callable[[socket.socket], None] | None = None
    for_each: bool = False


def dial(
    host: str, port: int, timeout_s: float, route: Route | None = None, attempt: Attempt | None = None
) -> socket.socket:
    """Connect to the address that answers first. Raises OSError, that of the address that failed last.

    Addresses are raced (RFC 8305): the next is tried beside those that have not answered after ATTEMPT_DELAY_S, or as
    soon as one has failed. So one whose packets are swallowed costs a quarter of a second.
    attempt: is to know of each socket. The socket has a time-out of `timeout_s`.
    """
    route, attempt = route or Route(), attempt or Attempt()
    return _Race(host, in_turn(resolve(host, port), route.first), timeout_s, route, attempt).run()


class _Race:
    """The addresses of one host. It belongs to one thread."""

    def __init__(self, host: str, addresses: list[Address], timeout_s: float, route: Route, attempt: Attempt) -> None:
        self._host = host
        self._waiting = deque(addresses)
        self._timeout_s = timeout_s
        self._route = route
        self._attempt = attempt
        # Those that are tried, and until when, by their descriptors.
        self._running: dict[int, tuple[socket.socket, float]] = {}
        self._poller = new_poll()
        self._ends_s = self._next_s = 0.0
        self._failure: OSError | None = None

    def run(self) -> socket.socket:
        now_s = time.monotonic()
        self._ends_s = now_s + self._timeout_s
        try:
            while (self._waiting or self._running) and (now_s < self._ends_s or self._route.for_each):
                if self._waiting and (now_s >= self._next_s or not self._running):
                    self._begin(now_s)
                winner = next(self._answers(self._wait_s(now_s)), None)
                if winner is not None:
                    return self._take(winner)
                now_s = time.monotonic()
                self._give_up(now_s)
        finally:
            for sock, _ in self._running.values():
                self._attempt.leave(sock)
        raise self._failure or TimeoutError(f"no address of {self._host} answered within {self._timeout_s:g} s")

    def _begin(self, now_s: float) -> None:
        self._next_s = now_s + ATTEMPT_DELAY_S
        family, address = self._waiting.popleft()
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            self._attempt.join(sock)
            sock.setblocking(False)
            if self._route.prepare is not None:
                self._route.prepare(sock)
            if self._route.source != ("", 0):
                sock.bind(self._route.source)
            sock.connect(address)
        except BlockingIOError:
            pass
        except ConnectionAbortedError:
            raise
        except OSError as error:
            self._fail(sock, error)
            return
        except BaseException:
            self._attempt.leave(sock)
            raise
        self._running[sock.fileno()] = sock, now_s + self._timeout_s if self._route.for_each else self._ends_s
        self._poller.register(sock, WRITABLE)

    def _wait_s(self, now_s: float) -> float:
        due_s = min((ends_s for _, ends_s in self._running.values()), default=now_s)
        return max(min(due_s, self._next_s) - now_s if self._waiting else due_s - now_s, 0.0)

    def _answers(self, wait_s: float) -> Iterator[socket.socket]:
        """Those that are connected; those that have failed make room for the next."""
        for descriptor, _ in self._poller.poll(ceil(wait_s * 1000)):
            self._attempt.refuse_if_ended()
            sock, _ = self._running[descriptor]
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                self._forget(descriptor)
                self._fail(sock, OSError(code, os.strerror(code)))
                continue
            yield sock

    def _fail(self, sock: socket.socket, error: OSError) -> None:
        self._attempt.leave(sock)
        self._failure = error
        self._next_s = 0.0

    def _give_up(self, now_s: float) -> None:
        for descriptor, (sock, ends_s) in tuple(self._running.items()):
            if now_s >= ends_s:
                self._forget(descriptor)
                self._attempt.leave(sock)
                self._failure = TimeoutError(f"no address of {self._host} answered within {self._timeout_s:g} s")

    def _forget(self, descriptor: int) -> None:
        self._poller.unregister(descriptor)
        del self._running[descriptor]

    def _take(self, winner: socket.socket) -> socket.socket:
        del self._running[winner.fileno()]
        for sock, _ in self._running.values():
            self._attempt.leave(sock)
        self._running.clear()
        self._attempt.follow(winner)
        winner.settimeout(self._timeout_s)
        return winner
