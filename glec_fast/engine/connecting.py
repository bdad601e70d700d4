"""How paho's `reconnect` is carried out: its socket, TLS, and what follows where that fails."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

from glec_fast._paho import ConnectionState, has_own_websocket
from glec_fast.runtime._lock import CallbackMark

if TYPE_CHECKING:
    from collections.abc import Callable

    from paho.mqtt.enums import MQTTErrorCode

    from glec_fast._paho import Paho
    from glec_fast.engine.connector import Connector
    from glec_fast.engine.ending import Ending
    from glec_fast.engine.farewell import Farewell
    from glec_fast.engine.policy import Policy
    from glec_fast.transport.websocket import WebSocket


class Connecting:
    """Of one client. For whoever has its loop, or calls `connect`: one connection is made at a time.

    silence_max_s: what goes out is acknowledged by the peer's kernel within that time, or the connection ends; 0 leaves
    that to the system, which may try for a quarter of an hour.
    """

    def __init__(
        self,
        paho: Paho,
        farewell: Farewell,
        connector: Connector,
        policy: Policy,
        ending: Ending,
        *,
        silence_max_s: float,
    ) -> None:
        self._paho = paho
        self._farewell = farewell
        self._connector = connector
        self._policy = policy
        self._ending = ending
        self._silence_max_s = silence_max_s
        # Which threads are making a connection.
        self._mark = CallbackMark()

    @property
    def is_under_way(self) -> bool:
        """True while any thread is making a connection."""
        return self._mark.is_anywhere

    def reconnect(self, make: Callable[[], MQTTErrorCode]) -> MQTTErrorCode:
        """`make` is paho's. Raises OSError, and the connector's errors; then there is no connection."""
        self._farewell.forget()
        paho, connector, policy = self._paho, self._connector, self._policy
        is_first = paho.state == ConnectionState.MQTT_CS_CONNECT_ASYNC
        policy.begin_attempt()
        self._ending.begin()
        try:
            with self._mark:
                context = connector.context()
                if context is not None:
                    paho.ssl_context = context
                return make()
        except OSError as error:
            paho.close()
            failure = connector.explain(error)
            if policy.fail_attempt(failure) and is_first and not connector.interrupt.is_set():
                # paho's loop for the first connection would end here, and its other one begin with a second wait.
                paho.state = ConnectionState.MQTT_CS_CONNECT_ASYNC
            if failure is error:
                raise
            raise failure from error
        except BaseException:
            # CONNECT would follow, and does not: the server would wait for it, and we for the server.
            paho.close()
            raise

    def create_socket(self, create: Callable[[], Any]) -> Any:
        """`create` is paho's, which also makes TLS and a program's own WebSocket of it. Raises OSError."""
        paho = self._paho
        attempt = self._connector.begin(paho.connect_timeout_s)
        try:
            is_websocket = paho.transport == "websockets" and not has_own_websocket()
            sock = self._create_websocket() if is_websocket else create()
        except BaseException:
            # paho leaves it to the garbage collector.
            attempt.fail()
            raise
        attempt.succeed()
        return sock

    def _create_websocket(self) -> WebSocket:
        # 60 KiB that most programs have no use for.
        from glec_fast.transport.upgrade import upgrade
        from glec_fast.transport.websocket import WebSocket

        paho = self._paho
        sock = paho.open_tcp()
        if paho.is_tls:
            sock = paho.wrap_tls(sock)
        address = paho.host, paho.port, paho.websocket_path
        upgrade(sock, *address, paho.websocket_headers, paho.connect_timeout_s, is_tls=paho.is_tls)
        return WebSocket(sock, *address, is_tls=paho.is_tls)

    def dial(self, dial_proxy: Callable[[], socket.socket]) -> socket.socket:
        """Over TCP; `dial_proxy` is paho's, for where there is a proxy. Raises OSError."""
        paho = self._paho
        if paho.has_proxy():
            sock = None
            try:
                sock = dial_proxy()
            except UnicodeDecodeError:
                says = "what the proxy answers is no text"
            except UnicodeError as error:
                says = f"{paho.host!r} is no name that can be looked up ({error})"
            if sock is None:
                # Without the error, whose frames would keep PySocks' socket open.
                raise OSError(says)
        else:
            sock = self._connector.dial(paho.host, paho.port, (paho.bind_address, paho.bind_port))
        self._connector.attempt.follow(sock)
        # We send whole batches; Nagle's algorithm would hold the last piece of each until the broker's kernel answers.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if (
            self._silence_max_s
            and hasattr(socket, "TCP_USER_TIMEOUT")
            # One that is a setting stands.
            and not sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
        ):
            # Also where the loop is busy, the kernel ends what the peer's does not acknowledge.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(self._silence_max_s * 1000))
        return sock

    def shake_hands(self, tcp_sock: Any, wrap: Callable[[Any], Any]) -> Any:
        """Begin TLS; `wrap` is paho's, for a context that checks the name in its own way. Raises OSError."""
        context = self._paho.ssl_context
        if context is None or not (context.check_hostname or self._paho.is_tls_insecure):
            return wrap(tcp_sock)
        return self._connector.shake_hands(tcp_sock, context, self._paho.host)
