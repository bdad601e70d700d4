"""How a connection leaves the machine: the proxy, the network interface, and options of its socket.

Each is a text, as a properties file has it, and taken apart here. Raises ValueError, which does not repeat the text: a
proxy's may hold a password.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterable
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

# What the kernel takes for a name: IFNAMSIZ with the NUL at its end, no "/", ":" or space.
_INTERFACE = re.compile(r"[!-.0-9;-~]{1,15}")
_OPTION = re.compile(r"(SO|TCP|IP|IPV6)_[A-Z0-9_]+=-?[0-9]{1,10}")
_LEVELS = {
    "SO": socket.SOL_SOCKET,
    "TCP": socket.IPPROTO_TCP,
    "IP": socket.IPPROTO_IP,
    "IPV6": socket.IPPROTO_IPV6,
}
# By PySocks' names of them; with "a" or "h" the proxy looks up the broker's name.
_PROXIES = {
    "http": ("HTTP", True),
    "socks4": ("SOCKS4", False),
    "socks4a": ("SOCKS4", True),
    "socks5": ("SOCKS5", False),
    "socks5h": ("SOCKS5", True),
}

SocketOption = tuple[int, int, "int | bytes"]


class Proxy(NamedTuple):
    """kind: HTTP, SOCKS4 or SOCKS5. looks_up: it is given the broker's name, not its address."""

    kind: str
    host: str
    port: int
    looks_up: bool
    username: str | None
    password: str | None


def parse_option(text: str) -> SocketOption:
    """Of setsockopt(2), from "NAME=NUMBER", such as TCP_USER_TIMEOUT=30000."""
    if not _OPTION.fullmatch(text):
        raise ValueError("it must be a socket option as NAME=NUMBER, such as TCP_USER_TIMEOUT=30000")
    name, _, value = text.partition("=")
    option = getattr(socket, name, None)
    if not isinstance(option, int):
        raise ValueError("it names a socket option that this system does not know")
    return _LEVELS[name.partition("_")[0]], option, int(value)


def parse_interface(text: str) -> SocketOption:
    """What binds a socket to a network interface (Linux)."""
    if not _INTERFACE.fullmatch(text):
        raise ValueError("it must be the name of a network interface, such as wwan0")
    return socket.SOL_SOCKET, socket.SO_BINDTODEVICE, text.encode() + b"\0"


def parse_proxy(text: str) -> Proxy:
    """From http://, socks4://, socks4a://, socks5:// or socks5h://, host and port, if need be with user:password@."""
    says = "it must be http://, socks4://, socks4a://, socks5:// or socks5h://, a host and a port"
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise ValueError(says) from error
    if parts.scheme not in _PROXIES or not parts.hostname or not port or parts.path not in ("", "/"):
        raise ValueError(says)
    kind, looks_up = _PROXIES[parts.scheme]
    username = None if parts.username is None else unquote(parts.username)
    password = None if parts.password is None else unquote(parts.password)
    return Proxy(kind, parts.hostname, port, looks_up, username, password)


def proxy_arguments(proxy: Proxy, options: Iterable[SocketOption]) -> dict[str, Any]:
    """For `Client.proxy_set`. Raises ImportError without PySocks."""
    import socks

    return {
        "proxy_type": getattr(socks, proxy.kind),
        "proxy_addr": proxy.host,
        "proxy_port": proxy.port,
        "proxy_rdns": proxy.looks_up,
        "proxy_username": proxy.username,
        "proxy_password": proxy.password,
        "socket_options": list(options),
    }


def set_options(sock: socket.socket, options: Iterable[SocketOption]) -> None:
    """Before it connects. Raises OSError, PermissionError where an interface is not ours to choose."""
    for option in options:
        sock.setsockopt(*option)
