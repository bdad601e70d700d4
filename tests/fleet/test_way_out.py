"""How a manager's connections leave the machine: what is set is what the socket, the proxy and the server see."""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest

from glec_fast import MQTTManager, TLSConfig
from glec_fast.engine.connector import SecureConnector
from glec_fast.transport.way_out import parse_interface, parse_option, parse_proxy
from support.gateway import TIMEOUT_S, eventually, quick_config
from support.odd_broker import OddBroker
from support.proxies import HTTPProxy, SOCKSProxy
from support.tls_peer import TLSPeer, server_context

if TYPE_CHECKING:
    from pathlib import Path

    from glec_fast.testbed.broker import Broker
    from glec_fast.testbed.certificates import CertificateAuthority


def publish_one(config: Any) -> socket.socket:
    """The manager's socket, once a message has gone over it."""
    with MQTTManager(config) as manager:
        manager.connect()
        manager.publish("t", "=x", 1).wait_for_publish(TIMEOUT_S)
        sock = manager._client.socket()
        return sock.dup()  # type: ignore[no-any-return, union-attr]


def test_the_socket_has_its_options_its_address_and_its_interface(tmp_path: Path) -> None:
    with OddBroker() as broker:
        config = quick_config(
            broker.url,
            tmp_path,
            local_address="127.0.0.3",
            network_interface="lo",
            socket_options=("SO_SNDBUF=40000", "TCP_USER_TIMEOUT=12345"),
        )
        with publish_one(config) as sock:
            assert sock.getsockname()[0] == "127.0.0.3"
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 12_345
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 80_000, "the kernel doubles it"
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16).rstrip(b"\0") == b"lo"


def test_a_proxy_is_asked_for_the_broker_and_given_its_login(broker: Broker, tmp_path: Path) -> None:
    proxy = HTTPProxy()
    try:
        config = quick_config(broker.url, tmp_path, proxy_url=f"http://user:p%40ss@127.0.0.1:{proxy.port}")
        assert "p%40ss" not in repr(config)
        publish_one(config).close()
        (request,) = proxy.requests
        assert request.startswith(b"CONNECT ")
        assert b"proxy-authorization: basic dXNlcjpwQHNz".lower() in request.lower()
    finally:
        proxy.close()


@pytest.mark.filterwarnings("ignore:unclosed <socks.socksocket:ResourceWarning")
def test_a_name_that_is_none_is_not_the_proxy_s_fault(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        url = f"http://127.0.0.1:{proxy.getsockname()[1]}"
        with MQTTManager(quick_config("tcp://" + "a" * 70 + ".example:1", tmp_path, proxy_url=url)) as manager:
            manager.connect()
            assert eventually(lambda: "no name that can be looked up" in str(manager.get_metrics().last_failure))


@pytest.mark.filterwarnings("ignore:unclosed <socks.socksocket:ResourceWarning")
def test_a_proxy_that_answers_with_no_text_is_told_of_as_any_failure(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        url = f"http://127.0.0.1:{proxy.getsockname()[1]}"
        with MQTTManager(quick_config("tcp://127.0.0.1:1", tmp_path, proxy_url=url)) as manager:
            manager.connect()
            client, _ = proxy.accept()
            with client:
                client.sendall(b"\xff\r\n\r\n")
                assert eventually(lambda: "is no text" in str(manager.get_metrics().last_failure))


@pytest.mark.parametrize(("scheme", "host"), [("socks5", b"\x01\x7f\x00\x00\x01"), ("socks5h", b"\x03\x09localhost")])
def test_a_socks_proxy_looks_the_name_up_or_not(broker: Broker, tmp_path: Path, scheme: str, host: bytes) -> None:
    proxy = SOCKSProxy()
    try:
        url = broker.url.replace("127.0.0.1", "localhost")
        publish_one(quick_config(url, tmp_path, proxy_url=f"{scheme}://user:p%40ss@127.0.0.1:{proxy.port}")).close()
        (request,) = proxy.requests
        assert request == b"\x01\x04user\x04p@ss" + b"\x05\x01\x00" + host
    finally:
        proxy.close()


@pytest.mark.parametrize("scheme", ["http", "socks5h"])
def test_tls_goes_through_a_proxy(
    tls_broker: Broker, authority: CertificateAuthority, tmp_path: Path, scheme: str
) -> None:
    """The name that is verified is the broker's."""
    proxy = HTTPProxy() if scheme == "http" else SOCKSProxy()
    try:
        config = quick_config(
            f"ssl://localhost:{tls_broker.tls_port}",
            tmp_path,
            proxy_url=f"{scheme}://user:p%40ss@127.0.0.1:{proxy.port}",
            tls_config=TLSConfig(authority.certificate_path),
        )
        with MQTTManager(config) as manager:
            manager.connect()
            manager.publish("t", "x", 1).wait_for_publish(TIMEOUT_S)
        assert len(proxy.requests) == 1
    finally:
        proxy.close()


def test_the_upgrade_has_the_headers_and_the_path(tmp_path: Path) -> None:
    requests: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            client, _ = listener.accept()
            with client:
                request = b""
                while not request.endswith(b"\r\n\r\n"):
                    request += client.recv(1)
                requests.append(request)

        thread = threading.Thread(target=serve)
        thread.start()
        url = f"ws://127.0.0.1:{listener.getsockname()[1]}/fleet/mqtt"
        config = quick_config(url, tmp_path, websocket_headers=("X-Token: abc def", "X-Fleet: 7"))
        assert "abc def" not in repr(config)
        with MQTTManager(config) as manager:
            manager.connect()
            assert eventually(lambda: bool(requests))
        thread.join(TIMEOUT_S)
    assert requests[0].startswith(b"GET /fleet/mqtt ")
    assert b"X-Token: abc def\r\n" in requests[0]
    assert b"X-Fleet: 7\r\n" in requests[0]


def test_alpn_is_offered(authority: CertificateAuthority) -> None:
    context = server_context(authority.issue_server())
    context.set_alpn_protocols(["x-amzn-mqtt-ca"])
    with TLSPeer(context) as peer:
        connector = SecureConnector(TLSConfig(authority.certificate_path, alpn=("x-amzn-mqtt-ca",)), "localhost")
        client_context = connector.context()
        assert client_context is not None
        connector.begin(TIMEOUT_S)
        sock = connector.shake_hands(connector.dial("localhost", peer.port, ("", 0)), client_context, "localhost")
        assert sock.selected_alpn_protocol() == "x-amzn-mqtt-ca"
        sock.close()


@pytest.mark.parametrize(
    "text", ["SO_SNDBUF", "so_sndbuf=1", "SO_SNDBUF=", "TCP_NO_SUCH=1", "AF_INET=1", "SO_SNDBUF=1;"]
)
def test_what_is_no_socket_option_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="socket option"):
        parse_option(text)


def test_parts() -> None:
    assert parse_option("TCP_NODELAY=1") == (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    assert parse_interface("wwan0") == (socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"wwan0\0")
    assert parse_proxy("socks5h://proxy:1080") == ("SOCKS5", "proxy", 1080, True, None, None)
    assert parse_proxy("http://a:b%3Ac@[::1]:8080/") == ("HTTP", "::1", 8080, True, "a", "b:c")
