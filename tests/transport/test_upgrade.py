"""A server's answers to the upgrade to WebSocket: what is one, and what is not (RFC 6455, 4.1)."""

from __future__ import annotations

import base64
import hashlib
import socket
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
from paho.mqtt import client as paho

import glec_fast.mqtt as mqtt
from glec_fast import GlecError
from glec_fast.transport.upgrade import UpgradeError, upgrade
from support.gateway import TIMEOUT_S, eventually
from support.loopback import LoopbackServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
V2 = paho.CallbackAPIVersion.VERSION2
OK = "HTTP/1.1 101 Switching Protocols\r\n"
ACCEPT = "Sec-WebSocket-Accept: {key}\r\n"
HALF = "Upgrade: websocket\r\nConnection: Upgrade\r\n"
WELL = HALF + ACCEPT
TAKEN = {
    "plain": f"{OK}{WELL}Sec-WebSocket-Protocol: mqtt\r\n\r\n",
    "any case": f"{OK}upgrade: WebSocket\r\nCONNECTION: uPGRADE\r\nsec-websocket-accept: {{key}}\r\n"
    "sec-websocket-protocol: MQTT\r\n\r\n",
    "no space": f"{OK}Upgrade:websocket\r\nConnection:Upgrade\r\nSec-WebSocket-Accept:{{key}}\r\n\r\n",
    "spaces and tabs": f"{OK}Upgrade:\t websocket \r\nConnection:  Upgrade\t\r\n{ACCEPT[:-2]} \t\r\n\r\n",
    "a list": f"{OK}Connection: keep-alive, Upgrade\r\nUpgrade: h2c, websocket\r\n{ACCEPT}\r\n",
    "in two lines": f"{OK}Connection: keep-alive\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n{ACCEPT}\r\n",
    "folded": f"{OK}Upgrade: websocket\r\nConnection: keep-alive,\r\n  Upgrade\r\n{ACCEPT}\r\n",
    "a header named alike": f"{OK}X-Connection-Id: 77\r\n{WELL}Proxy-Connection: close\r\n\r\n",
    "a value with the word": f"{OK}Server: Connection-Manager\r\n{WELL}X-Sec-WebSocket-Accept: no\r\n\r\n",
    "Latin-1": f"{OK}X-Via: caf\xe9\r\n{WELL}\r\n",
    "no reason": f"HTTP/1.1 101\r\n{WELL}\r\n",
    "lines that end with LF": (OK + WELL + "\r\n").replace("\r\n", "\n"),
    "an interim answer before": f"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n{OK}{WELL}\r\n",
    "no extension": f"{OK}{WELL}Sec-WebSocket-Extensions:\r\n\r\n",
    "the standard's example": f"{OK}{WELL}Sec-WebSocket-Protocol: chat\r\n\r\n",
    "a line without a colon": f"{OK}nonsense\r\n{WELL}\r\n",
}
REFUSED = {
    "forbidden": ("HTTP/1.1 403 Forbidden\r\nContent-Length: 5\r\n\r\nno no", "403 Forbidden"),
    "a bad gateway": ("HTTP/1.1 502 Bad Gateway\r\nConnection: close\r\n\r\n", "502 Bad Gateway"),
    "moved": ("HTTP/1.1 301 Moved\r\nLocation: https://else.example/\r\n\r\n", "301 Moved"),
    "200 with every header": (f"HTTP/1.1 200 OK\r\n{WELL}\r\n", "200 OK"),
    "another key": (
        f"{OK}{HALF}Sec-WebSocket-Accept: AAAA\r\n\r\n",
        "invalid secret key",
    ),
    "no key": (f"{OK}{HALF}\r\n", "invalid secret key"),
    "two keys": (f"{OK}{WELL}Sec-WebSocket-Accept: AAAA\r\n\r\n", "invalid secret key"),
    "the key in another header": (
        f"{OK}{HALF}X: {ACCEPT}\r\n",
        "invalid secret key",
    ),
    "another subprotocol": (f"{OK}{WELL}Sec-WebSocket-Protocol: amqp\r\n\r\n", "another protocol"),
    "several subprotocols": (f"{OK}{WELL}Sec-WebSocket-Protocol: mqtt, amqp\r\n\r\n", "another protocol"),
    "an extension": (f"{OK}{WELL}Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n", "extension"),
    "no upgrade": (f"{OK}Connection: Upgrade\r\n{ACCEPT}\r\n", "not upgraded"),
    "to something else": (
        f"{OK}Upgrade: h2c\r\nConnection: Upgrade\r\n{ACCEPT}\r\n",
        "not upgraded",
    ),
    "connection: close": (
        f"{OK}Upgrade: websocket\r\nConnection: close\r\n{ACCEPT}\r\n",
        "not upgraded",
    ),
    "MQTT": ("\x20\x02\x00\x00\r\n\r\n", "no HTTP server"),
    "SSH": ("SSH-2.0-OpenSSH_9.2\r\n\r\n", "no HTTP server"),
    "nothing": ("", "handshake error"),
    "half of it": (f"{OK}{WELL}", "handshake error"),
    "headers without end": (OK + "X: " + "x" * 70_000, "headers"),
}


def answer_to(request: bytes, template: str) -> bytes:
    lines = request.decode().split("\r\n")
    key = next(line.partition(":")[2].strip() for line in lines if line.lower().startswith("sec-websocket-key:"))
    accept = base64.b64encode(hashlib.sha1((key + GUID).encode()).digest()).decode()
    return template.replace("{key}", accept).encode("latin-1")


class Server(LoopbackServer):
    """Answers each upgrade with `template`, and, where that was one, CONNECT with CONNACK in one frame."""

    def __init__(self, template: str, behind: bytes = b"\x82\x04\x20\x02\x00\x00") -> None:
        super().__init__(self._answer)
        self._template, self._behind = template, behind
        self.requests: list[bytes] = []

    def _answer(self, sock: socket.socket) -> None:
        request = b""
        while not request.endswith(b"\r\n\r\n") and (byte := sock.recv(1)):
            request += byte
        self.requests.append(request)
        if not request.endswith(b"\r\n\r\n"):
            return
        sock.sendall(answer_to(request, self._template))
        if sock.recv(1000):
            sock.sendall(self._behind)
            while sock.recv(1000):
                pass


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    with ExitStack() as servers:
        yield lambda *arguments: servers.enter_context(Server(*arguments))


def asked(template: str, **options: Any) -> bytes:
    """What `upgrade` leaves unread behind that answer."""
    ours, theirs = socket.socketpair()
    with ours, theirs:

        def serve() -> None:
            request = b""
            while not request.endswith(b"\r\n\r\n"):
                request += theirs.recv(1)
            theirs.sendall(answer_to(request, template))
            theirs.shutdown(socket.SHUT_WR)

        server = threading.Thread(target=serve)
        server.start()
        try:
            upgrade(ours, "broker.example", 80, "/mqtt?token=secret", None, TIMEOUT_S, is_tls=False, **options)
        finally:
            server.join(TIMEOUT_S)
        return ours.recv(1000)


@pytest.mark.parametrize("answer", TAKEN.values(), ids=TAKEN)
def test_an_answer_that_is_one_is_taken_and_nothing_behind_it(answer: str) -> None:
    assert asked(f"{answer}\x89\x00") == b"\x89\x00"


@pytest.mark.parametrize(("answer", "why"), REFUSED.values(), ids=REFUSED)
def test_any_other_is_refused_and_says_why(answer: str, why: str) -> None:
    with pytest.raises(UpgradeError) as raised:
        asked(answer)
    text = str(raised.value)
    assert why in text
    assert "token" not in text
    assert isinstance(raised.value, paho.WebsocketConnectionError)
    assert isinstance(raised.value, GlecError)
    has_status = answer.startswith("HTTP") and "\r\n\r\n" in answer
    assert raised.value.status == (int(answer[9:12]) if has_status else None)


def test_it_ends_in_time_also_with_a_server_that_drips() -> None:
    ours, theirs = socket.socketpair()
    stop = threading.Event()

    def drip() -> None:
        for byte in OK.encode() * 1000:
            try:
                theirs.send(bytes((byte,)))
            except OSError:
                return
            if stop.wait(0.02):
                return

    thread = threading.Thread(target=drip)
    thread.start()
    try:
        with pytest.raises(TimeoutError, match=r"within 0\.3 s"):
            upgrade(ours, "broker.example", 80, "/mqtt", None, 0.3, is_tls=False)
    finally:
        stop.set()
        ours.close()
        thread.join(TIMEOUT_S)
        theirs.close()


@pytest.mark.parametrize(
    "make",
    [lambda: paho.Client(V2, transport="websockets"), lambda: mqtt.Client(V2, transport="websockets")],
    ids=["paho", "ours"],
)
def test_the_request_is_paho_s(make: Callable[[], Any], serve: Callable[..., Server]) -> None:
    server = serve(TAKEN["plain"])
    client = make()
    client.ws_set_options(
        "/a path?x=1", headers=lambda headers: {**headers, "Authorization": "Bearer t", "Host": "proxy.example"}
    )
    connected = threading.Event()
    client.on_connect = lambda *_: connected.set()
    client.connect("127.0.0.1", server.port)
    client.loop_start()
    assert connected.wait(TIMEOUT_S)
    client.disconnect()
    client.loop_stop()
    lines = server.requests[0].decode().split("\r\n")
    assert [line for line in lines if not line.startswith("Sec-WebSocket-Key: ")] == [
        *("GET /a path?x=1 HTTP/1.1", "Host: proxy.example", "Upgrade: websocket", "Connection: Upgrade"),
        *(f"Origin: http://127.0.0.1:{server.port}", "Sec-Websocket-Version: 13", "Sec-Websocket-Protocol: mqtt"),
        *("Authorization: Bearer t", "", ""),
    ]


def test_a_refusal_is_told_to_on_connect_fail(serve: Callable[..., Server]) -> None:
    server = serve(REFUSED["forbidden"][0])
    with mqtt.Client(V2, transport="websockets") as client:
        told = threading.Event()
        client.on_connect_fail = lambda *_: told.set()
        client.reconnect_delay_set(1, 1)
        client.connect_async("127.0.0.1", server.port)
        client.loop_start()
        assert told.wait(TIMEOUT_S)
        assert eventually(lambda: len(server.requests) >= 2)


def test_what_programs_ask_of_the_socket_works(serve: Callable[..., Server]) -> None:
    server = serve(TAKEN["plain"])
    opened: list[Any] = []

    def on_socket_open(client: Any, userdata: Any, sock: Any) -> None:
        # As Home Assistant does.
        inner = sock._socket if not hasattr(sock, "setsockopt") and hasattr(sock, "_socket") else sock
        inner.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65_536)
        opened.append(sock)

    with mqtt.Client(V2, transport="websockets") as client:
        client.on_socket_open = on_socket_open
        client.connect("127.0.0.1", server.port)
        client.loop_start()
        assert eventually(client.is_connected)
        sock = opened[0]
        assert sock is client.socket()
        assert isinstance(sock, mqtt._WebsocketWrapper)
        assert isinstance(sock, paho._WebsocketWrapper)  # type: ignore[attr-defined]
        assert (sock._host, sock._port, sock._path, sock.connected) == ("127.0.0.1", server.port, "/mqtt", True)
        assert sock.getpeername() == ("127.0.0.1", server.port)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert sock.gettimeout() == 0.0
        assert {name for name in dir(paho._WebsocketWrapper) if not name.startswith("_")} <= set(dir(sock))  # type: ignore[attr-defined]
        assert not hasattr(sock, "sendall")
        client.disconnect()


def test_a_program_s_own_wrapper_is_used(serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve(TAKEN["plain"])
    made = []

    class Own(paho._WebsocketWrapper):  # type: ignore[name-defined,misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            made.append(self)

    monkeypatch.setattr(paho, "_WebsocketWrapper", Own)
    with mqtt.Client(V2, transport="websockets") as client:
        client.connect("127.0.0.1", server.port)
        client.loop_start()
        assert eventually(client.is_connected)
        assert client.socket() is made[0]
        client.disconnect()
