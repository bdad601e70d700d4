"""The same programs over every transport with paho's client and ours: TLS, WebSockets, Unix sockets, proxies."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from paho.mqtt import client as paho

import glec_fast.mqtt
from support.differential import (
    API2,
    LEAVES_SOCKETS,
    V5,
    V311,
    VERSIONS,
    Expect,
    Run,
    Send,
    Step,
    ack,
    compare,
    connack,
    inbound,
    outcome,
    suback,
)
from support.loops import run_in_select
from support.transports import Proxy, WebSocket

if TYPE_CHECKING:
    from collections.abc import Callable

    from glec_fast.testbed.certificates import CertificateAuthority

LARGE = bytes(range(256)) * 800


def a_short_life(run: Run) -> None:
    run.watch("on_connect", "on_publish", "on_subscribe", "on_message", "on_disconnect", "on_log")
    run.watch("on_socket_open", "on_socket_close")
    run.connect()
    run.loop_until("on_connect")
    for number, qos in enumerate((0, 1, 2)):
        run.call("publish", "t", LARGE if qos == 1 else b"x", qos)
        run.loop_until("on_publish", number + 1)
    run.call("subscribe", "in/#", 2)
    run.loop_until("on_message", 4)
    run.loop_until_received(8)
    run.call("disconnect")
    run.loop_until("on_disconnect")


def its_server(version: int) -> list[Step]:
    arriving = (
        inbound(version, "in/a", b"zero", 0)
        + inbound(version, "in/b", LARGE, 1, 7)
        + inbound(version, "in/c", b"two", 2, 8)
        + inbound(version, "in/d", b"", 0)
    )
    return [
        *(Expect(), Send(connack(version)), Expect()),
        *(Expect(), Send(ack(0x40, 2)), Expect(), Send(ack(0x50, 3)), Expect(), Send(ack(0x70, 3))),
        *(Expect(), Send(suback(version, 4, b"\x02") + arriving), Expect(2), Send(ack(0x62, 8)), Expect()),
    ]


@pytest.fixture(scope="module")
def server_side(authority: CertificateAuthority) -> ssl.SSLContext:
    certificate = authority.issue_server()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.certificate_path, certificate.key_path)
    return context


def over_tls(context: ssl.SSLContext) -> Callable[[Any], Any]:
    return lambda sock: context.wrap_socket(sock, server_side=True)


@VERSIONS
def test_tls(version: int, server_side: ssl.SSLContext, authority: CertificateAuthority) -> None:
    compare(
        a_short_life,
        [its_server(version)],
        version,
        prepare=lambda client: client.tls_set(str(authority.certificate_path)),
        wrap=over_tls(server_side),
    )


@pytest.mark.parametrize("how", ["context", "insecure", "insecure by hand"])
def test_ways_to_set_tls(how: str, server_side: ssl.SSLContext, authority: CertificateAuthority) -> None:
    def prepare(client: Any) -> None:
        if how == "context":
            client.tls_set_context(ssl.create_default_context(cafile=str(authority.certificate_path)))
        elif how == "insecure":
            client.tls_set(cert_reqs=ssl.CERT_NONE)
            client.tls_insecure_set(True)
        else:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            client.tls_set_context(context)
            client.tls_insecure_set(True)

    compare(a_short_life, [its_server(V311)], prepare=prepare, wrap=over_tls(server_side))


@LEAVES_SOCKETS
def test_a_server_that_is_not_trusted(server_side: ssl.SSLContext) -> None:
    def program(run: Run) -> None:
        run.watch("on_connect", "on_connect_fail", "on_disconnect", "on_socket_open", "on_log")
        run.connect()
        run.call("is_connected")
        run.call("tls_insecure_set", False)
        run.call("tls_set")
        run.call("tls_set_context", ssl.create_default_context())

    compare(program, [[]], prepare=lambda client: client.tls_set(), wrap=over_tls(server_side))


def test_calls_about_tls_that_are_refused() -> None:
    def program(run: Run) -> None:
        run.call("tls_insecure_set", True)
        for wrong in ("/nowhere/ca.pem", ""):
            run.call("tls_set", wrong)
        run.call("tls_set", certfile="/nowhere/certificate.pem", keyfile="/nowhere/key.pem")
        run.call("tls_set", ciphers="none such")
        run.call("tls_set_context")
        run.call("tls_set_context", ssl.create_default_context())
        run.call("ws_set_options", headers="a: b")
        run.call("proxy_set", proxy_type=1)

    compare(program, [])


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
@VERSIONS
def test_websockets(version: int, secure: bool, server_side: ssl.SSLContext, authority: CertificateAuthority) -> None:
    opened: list[WebSocket] = []

    def prepare(client: Any) -> None:
        client.ws_set_options("/the/path", {"X-Own": "header"})
        if secure:
            client.tls_set(str(authority.certificate_path))

    def wrap(sock: Any) -> WebSocket:
        opened.append(WebSocket(over_tls(server_side)(sock) if secure else sock))
        return opened[-1]

    compare(a_short_life, [its_server(version)], version, prepare=prepare, wrap=wrap, transport="websockets")
    theirs, ours = (
        [line for line in each.request if not line.startswith((b"Sec-WebSocket-Key", b"Host", b"Origin"))]
        for each in opened
    )
    assert ours == theirs
    assert ours[0] == b"GET /the/path HTTP/1.1"
    assert b"X-Own: header" in ours
    assert opened[0].pongs == opened[1].pongs


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("kind", ["SOCKS5", "HTTP"])
def test_proxies(kind: str, secure: bool, server_side: ssl.SSLContext, authority: CertificateAuthority) -> None:
    socks = pytest.importorskip("socks")
    proxies = [Proxy(), Proxy()]

    def program(run: Run) -> None:
        assert run.peer is not None
        run.client.proxy_set(
            proxy_type=getattr(socks, kind), proxy_addr="127.0.0.1", proxy_port=run.peer.port, proxy_rdns=True
        )
        run.connect = lambda: run.call("connect", "localhost", 18830)  # type: ignore[method-assign]
        a_short_life(run)

    outcomes = []
    for module, proxy in zip((paho, glec_fast.mqtt), proxies, strict=True):
        client = module.Client(API2, "device")
        if secure:
            client.tls_set(str(authority.certificate_path))

        def wrap(sock: Any, proxy: Proxy = proxy) -> Any:
            sock = proxy(sock)
            return over_tls(server_side)(sock) if secure else sock

        outcomes.append(outcome(client, program, [its_server(V311)], wrap=wrap))
    assert outcomes[0] == outcomes[1]
    assert proxies[0].asked == proxies[1].asked
    assert b"localhost" in proxies[1].asked[0]


def test_a_proxy_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("socks")
    proxy = Proxy()

    def program(run: Run) -> None:
        assert run.peer is not None
        monkeypatch.setenv("mqtt_proxy", f"socks://127.0.0.1:{run.peer.port}")
        run.connect = lambda: run.call("connect", "broker.invalid", 18830)  # type: ignore[method-assign]
        a_short_life(run)

    compare(program, [its_server(V311)], wrap=proxy)
    assert proxy.asked[0] == proxy.asked[1]


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
def test_a_unix_socket(
    secure: bool, tmp_path: Path, server_side: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Relative, as TLS sends it for the server's name.
    monkeypatch.chdir(tmp_path)
    path = "socket"

    def program(run: Run) -> None:
        run.connect = lambda: run.call("connect", path)  # type: ignore[method-assign]
        a_short_life(run)

    outcomes = []
    for module in (paho, glec_fast.mqtt):
        # The transport is not settled by the constructor.
        client = module.Client(API2, "device", protocol=V5)
        client.transport = "unix"
        if secure:
            client.tls_set(cert_reqs=ssl.CERT_NONE)
            client.tls_insecure_set(True)
        wrap = over_tls(server_side) if secure else None
        outcomes.append(outcome(client, program, [its_server(V5)], path, wrap))
        Path(path).unlink()
    assert outcomes[0] == outcomes[1]


def test_many_websocket_frames_in_one_record_of_tls(
    server_side: ssl.SSLContext, authority: CertificateAuthority
) -> None:
    """A loop of the program's own is not told of what TLS has decrypted already: one call must take all of it."""

    messages = 500
    arriving = connack(V311) + b"".join(inbound(V311, "t", b"%d" % number, 0) for number in range(messages))
    client = glec_fast.mqtt.Client(API2, "device", transport="websockets")
    client.tls_set(str(authority.certificate_path))

    def wrap(sock: Any) -> WebSocket:
        return WebSocket(over_tls(server_side)(sock), frame_bytes=8)

    seen: list[str] = []

    def leave_at_the_last(run: Run) -> None:
        run.watch("on_disconnect")

        def on_message(_client: Any, _userdata: Any, message: Any) -> None:
            seen.append(message.payload.decode())
            if len(seen) == messages:
                run.client.disconnect()

        run.client.on_message = on_message
        run_in_select(run.client, run.connect)

    # Nothing follows.
    outcome(client, leave_at_the_last, [[Expect(), Send(arriving)]], wrap=wrap)
    assert seen == [str(number) for number in range(messages)]
