"""A connection's upgrade from HTTP to WebSocket, as the client's side has it (RFC 6455, 4.1).

paho looks for words in lines: it takes any status, and is put off by another header that has the word "connection".
"""

from __future__ import annotations

import base64
import hashlib
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

from glec_fast._paho import WebsocketConnectionError
from glec_fast.errors import GlecError

Headers = Mapping[str, str] | Callable[[dict[str, str]], Mapping[str, str]] | None

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_HEAD_MAX_BYTES = 64 * 1024
_SWITCHING = 101
_KEY, _PROTOCOL = "sec-websocket-key", "sec-websocket-protocol"
# The answer that RFC 6455 has as its example, in 1.3, names it; servers that are made after that mean nothing by it.
_OF_THE_EXAMPLE = "chat"
# paho's texts: programs compare them.
_FAILED = "WebSocket handshake error"
_NOT_UPGRADED = f"{_FAILED}, connection not upgraded"
_WRONG_KEY = f"{_FAILED}, invalid secret key"


class UpgradeError(GlecError, WebsocketConnectionError):
    """The server did not make the connection a WebSocket. `status` is that of its answer, None where there was none."""

    retryable = True

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


def upgrade(sock: Any, host: str, port: int, path: str, headers: Headers, timeout_s: float, *, is_tls: bool) -> None:
    """Ask for the upgrade on a connected socket, and check the answer. Not a byte behind the answer is read.

    headers: further ones, or a function that is given paho's and returns all that are sent. timeout_s: for all of it.
    Raises UpgradeError, and OSError where the connection fails.
    """
    deadline_s = time.monotonic() + timeout_s
    asked = _request_headers(host, port, headers, is_tls=is_tls)
    lines = [f"GET {path} HTTP/1.1", *(f"{name}: {value}" for name, value in asked.items()), "", ""]
    sock.settimeout(timeout_s)
    sock.sendall("\r\n".join(lines).encode())
    status, answer = 0, [""]
    while status < _SWITCHING or (status != _SWITCHING and status // 100 == 1):
        # Others of 1xx go before the answer proper (RFC 9110, 15.2).
        answer = _read_head(sock, deadline_s, timeout_s)
        status = _status_of(answer[0])
    if status != _SWITCHING:
        reason = "".join(each for each in answer[0][13:80] if each.isprintable())
        # Not what is behind the question mark, which may be a secret.
        where = f"{host}:{port} answers {status} {reason}".rstrip() + f" at {str(path).partition('?')[0]!r}"
        raise UpgradeError(f"{_FAILED}: {where}: check the address, and ws_set_options", status)
    _check(answer, {name.lower(): value for name, value in asked.items()})


def _request_headers(host: str, port: int, headers: Headers, *, is_tls: bool) -> dict[str, str]:
    """paho's, and in their order."""
    address = f"[{host}]" if ":" in host else host
    if port != (443 if is_tls else 80):
        address += f":{port}"
    asked = {
        "Host": address,
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Origin": f"{'https' if is_tls else 'http'}://{address}",
        "Sec-WebSocket-Key": base64.b64encode(os.urandom(16)).decode(),
        "Sec-Websocket-Version": "13",
        "Sec-Websocket-Protocol": "mqtt",
    }
    if callable(headers):
        return dict(headers(asked))
    return asked | dict(headers or {})


def _read_head(sock: Any, deadline_s: float, timeout_s: float) -> list[str]:
    """The lines of an answer. A byte at a time: what follows may be a frame, and is not ours to read."""
    head = bytearray()
    while not head.endswith((b"\n\r\n", b"\n\n")):
        try:
            remaining_s = deadline_s - time.monotonic()
            if remaining_s <= 0:
                raise TimeoutError
            sock.settimeout(remaining_s)
            byte = sock.recv(1)
        except ConnectionResetError:
            byte = b""
        except TimeoutError:
            raise TimeoutError(f"no whole answer to the WebSocket upgrade within {timeout_s:g} s") from None
        if not byte:
            raise UpgradeError(_FAILED) from ConnectionError("the server closed the connection before it answered")
        head += byte
        if len(head) > _HEAD_MAX_BYTES:
            raise UpgradeError(f"{_FAILED}: the answer has more than {_HEAD_MAX_BYTES} bytes of headers")
    lines: list[str] = []
    for line in head.decode("latin-1").split("\n"):
        text = line.rstrip("\r")
        if text[:1] in (" ", "\t") and len(lines) > 1:
            # The last header goes on (RFC 9112, 5.2).
            lines[-1] += " " + text.strip()
        elif text:
            lines.append(text)
    return lines or [""]


def _status_of(line: str) -> int:
    version, _, rest = line.partition(" ")
    number = rest[:3]
    if not version.startswith("HTTP/1.") or not (number.isascii() and number.isdigit() and len(number) == 3):
        raise UpgradeError(f"{_FAILED}: what answers is no HTTP server: check the port")
    return int(number)


def _check(answer: list[str], asked: Mapping[str, str]) -> None:
    found: dict[str, str] = {}
    for line in answer[1:]:
        name, _, value = line.partition(":")
        name = name.strip().lower()
        found[name] = f"{found[name]},{value.strip()}" if name in found else value.strip()
    if "websocket" not in _tokens(found.get("upgrade", "")) or "upgrade" not in _tokens(found.get("connection", "")):
        raise UpgradeError(_NOT_UPGRADED, _SWITCHING)
    accept = base64.b64encode(hashlib.sha1(asked.get(_KEY, "").encode() + _GUID).digest())  # noqa: S324
    if found.get("sec-websocket-accept", "").encode() != accept:
        raise UpgradeError(_WRONG_KEY, _SWITCHING)
    chosen = found.get(_PROTOCOL, "").lower()
    if chosen and chosen not in (*_tokens(asked.get(_PROTOCOL, "")), _OF_THE_EXAMPLE):
        raise UpgradeError(f"{_FAILED}: the server speaks another protocol than MQTT: check the address", _SWITCHING)
    if found.get("sec-websocket-extensions"):
        raise UpgradeError(f"{_FAILED}: the server uses an extension that was not asked for", _SWITCHING)


def _tokens(value: str) -> list[str]:
    return [each.strip().lower() for each in value.split(",")]
