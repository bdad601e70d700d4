"""The only seam to paho-mqtt's private names: all that are overridden or used, read at import, and checked.

paho may change what is not public. Then this module refuses, rather than let a message go the wrong way. It reads
paho's class itself, whatever a program or another library has put in that one's place, or around its methods, by then;
only its clock, `time_func`, is looked up when it is read, as paho does. It is below all packages, as `publish` and what
it returns need it too.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import PathFinder
from types import CodeType, ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

from glec_fast.runtime._field import Facade, Field, Overrides


class _Late(ModuleType):
    """Stands in for a module of that name until something of it is asked for, which imports the module."""

    def __getattr__(self, name: str) -> Any:
        if name in _PROXY_QUESTIONS and not any(each.lower().endswith("_proxy") for each in os.environ):
            return _no_proxies
        if name == "system" and hasattr(os, "uname"):
            # paho asks it of `platform` as it is imported.
            return _system
        return getattr(importlib.import_module(self.__name__), name)


def _no_proxies(_host: str = "") -> dict[str, str]:
    return {}


def _system() -> str:
    return os.uname().sysname


# What paho, and what it imports, hardly ever use. The first is for proxies, with all of http and email: 2 MB of memory.
# The second is for addresses in brackets in a URL: 260 KiB. The third, where it is installed, for `connect_srv`: 3 MB.
# The fourth is for classes without a docstring: 800 KiB. The fifth is for errors that are logged: 200 KiB. The others
# are for the system's name, client ids that paho makes up, and sending whole files: 260 KiB.
_RARELY_USED = (
    *("urllib.request", "ipaddress", "dns.resolver", "inspect", "traceback"),
    *("platform", "uuid", "selectors"),
)
# What paho asks the first at each connection, where PySocks is installed; none without such a variable.
_PROXY_QUESTIONS = ("getproxies", "proxy_bypass")


def _is_there(name: str) -> bool:
    top, _, inner = name.partition(".")
    spec = PathFinder.find_spec(top)
    # A program may have a module of its own by the name of a package.
    return spec is not None and (not inner or spec.submodule_search_locations is not None)


@contextmanager
def _imported_late(names: Sequence[str]) -> Iterator[None]:
    """Whoever else imports one of them finds the true one."""
    found = [name for name in names if _is_there(name)]
    stand_ins = {name: _Late(name) for name in found if name not in sys.modules}
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name, stand_in in stand_ins.items():
            del sys.modules[name]
            package, _, attribute = name.rpartition(".")
            if package and not hasattr(sys.modules[package], attribute):
                setattr(sys.modules[package], attribute, stand_in)


with _imported_late(_RARELY_USED):
    import dataclasses  # noqa: F401
    import logging  # noqa: F401

    import paho.mqtt
    from paho.mqtt import client as paho_client
    from paho.mqtt.client import MQTTMessage, MQTTMessageInfo, WebsocketConnectionError, error_string
    from paho.mqtt.enums import MQTTErrorCode
    from paho.mqtt.matcher import MQTTMatcher

if TYPE_CHECKING:
    from paho.mqtt.enums import LogLevel

__all__ = ["MQTTMessage", "MQTTMessageInfo", "Paho", "PahoClient", "WebsocketConnectionError", "error_string"]

METHODS = (
    *("_call_socket_close", "_call_socket_register_write", "_call_socket_unregister_write", "_check_keepalive"),
    *("_create_socket", "_create_socket_connection", "_do_on_disconnect", "_do_on_publish", "_easy_log"),
    *("_get_proxy", "_handle_connack", "_handle_on_message", "_handle_pubackcomp", "_handle_publish"),
    *("_handle_pubrec", "_handle_pubrel", "_loop", "_loop_rc_handle", "_messages_reconnect_reset"),
    *("_messages_reconnect_reset_in", "_mid_generate", "_pack_remaining_length", "_packet_handle", "_packet_queue"),
    *("_packet_read", "_packet_write", "_raise_for_invalid_topic", "_reconnect_wait", "_reset_sockets"),
    *("_send_connect", "_send_pingreq", "_send_puback", "_send_pubcomp", "_send_publish", "_send_pubrec"),
    *("_sock_close", "_sock_recv", "_sock_send", "_ssl_wrap_socket", "_thread_main"),
)
ATTRIBUTES = (
    *("_bind_address", "_bind_port", "_callback_api_version", "_callback_mutex", "_clean_session", "_clean_start"),
    *("_client_id", "_connect_properties", "_connect_timeout", "_host", "_in_callback_mutex", "_in_message_mutex"),
    *("_in_messages", "_in_packet", "_keepalive", "_last_msg_out", "_logger", "_manual_ack"),
    *("_max_inflight_messages", "_max_queued_messages", "_mid_generate_mutex", "_msgtime_mutex", "_on_log"),
    *("_on_message_filtered", "_on_publish", "_on_socket_register_write", "_on_socket_unregister_write"),
    *("_out_message_mutex", "_out_messages", "_out_packet", "_password", "_port", "_protocol", "_reconnect_delay"),
    *("_reconnect_delay_mutex", "_reconnect_max_delay", "_reconnect_min_delay", "_reconnect_on_failure"),
    *("_registered_write", "_sock", "_sockpairR", "_sockpairW", "_ssl", "_ssl_context", "_state", "_thread"),
    *("_thread_terminate", "_tls_insecure", "_transport", "_userdata", "_username", "_websocket_extra_headers"),
    "_websocket_path",
)
# An exception may leave paho's own held, and a signal's handler cannot take them again.
LOCKS = (
    *("_callback_mutex", "_in_message_mutex", "_mid_generate_mutex", "_msgtime_mutex", "_out_message_mutex"),
    "_reconnect_delay_mutex",
)
FUNCTIONS = ("_ConnectionState", "_WebsocketWrapper", "_encode_payload")
# Of MQTTMessage: what the parser sets, and what is made when it is asked for.
MESSAGE = ("_topic", "info", "properties")
# Of MQTTMessageInfo.
INFO = ("_condition", "_iterpos", "_published", "_set_as_published")
# When bytes last came: 2.2 renamed it.
_LAST_RECEIVED = ("_last_bytes_received", "_last_msg_in")
# From so many bytes on it reads the reason in a DISCONNECT, which is the first of them: 2.2 has a reader of packets.
DISCONNECT_READ_BYTES = 1 if hasattr(paho_client, "_packet") else 3


def _its_own_client() -> Any:
    """paho's class, also where `paho.mqtt.client.Client` is another by now."""
    own = [
        each
        for each in object.__subclasses__()
        if (each.__module__, each.__qualname__) == (paho_client.__name__, "Client")
        and not vars(each).keys().isdisjoint(METHODS)
    ]
    named = paho_client.Client
    return named if named in own or not own else own[-1]


def _unwrapped(function: Any) -> Any:
    """As `inspect.unwrap`, which costs 1 MB."""
    seen = set()
    while (inner := getattr(function, "__wrapped__", None)) is not None and id(function) not in seen:
        seen.add(id(function))
        function = inner
    return function


def _names_in(kind: Any) -> set[str]:
    """What its methods name; those around which a program has put its own are seen as far as that lets them be seen."""
    names: set[str] = set()
    for member in vars(kind).values():
        for function in (member.fget, member.fset) if isinstance(member, property) else (member,):
            code = getattr(_unwrapped(function), "__code__", None) if callable(function) else None
            names.update(code.co_names if isinstance(code, CodeType) else ())
    return names


def _used_names() -> set[str]:
    return _names_in(PahoClient)


if TYPE_CHECKING:
    from paho.mqtt.client import Client as PahoClient
else:
    PahoClient = _its_own_client()

LAST_RECEIVED = next((name for name in _LAST_RECEIVED if name in _used_names()), _LAST_RECEIVED[0])


def _root_of(matcher: MQTTMatcher) -> Any:
    return getattr(matcher, "_root", None)


def has_filters(matcher: MQTTMatcher) -> bool:
    """True where a callback was added for some filter."""
    return bool(matcher._root._children)


def whole_packet(command: int, body: bytes) -> Any:
    """What paho's reader leaves for its handlers."""
    return {
        "command": command,
        "have_remaining": 1,
        "remaining_count": [],
        "remaining_mult": 1,
        "remaining_length": len(body),
        "packet": bytearray(body),
        "to_process": 0,
        "pos": 0,
    }


def missing_internals() -> list[str]:
    """Names of the contract that the installed paho-mqtt does not have."""
    used = _used_names()
    return [
        *(name for name in METHODS if not callable(getattr(PahoClient, name, None))),
        *(name for name in ATTRIBUTES if name not in used),
        *(name for name in FUNCTIONS if not hasattr(paho_client, name)),
        *(name for name in MESSAGE if name not in vars(MQTTMessage)),
        *(name for name in INFO if name not in vars(MQTTMessageInfo)),
        *(name for name in _LAST_RECEIVED[:1] if used.isdisjoint(_LAST_RECEIVED)),
        *(name for name in ("MQTTMatcher._root._children",) if not hasattr(_root_of(MQTTMatcher()), "_children")),
    ]


def _check() -> None:
    """Raises ImportError where paho's internals are not those that this version was written for."""
    missing = missing_internals()
    if missing:
        raise ImportError(
            f"paho-mqtt {paho.mqtt.__version__} lacks {', '.join(missing)}, which glec_fast builds on: "
            "install a version from 2.1 on and below 2.3"
        )


_check()

ConnectionState = paho_client._ConnectionState
encode_payload = paho_client._encode_payload
WebsocketWrapper: Any = paho_client._WebsocketWrapper
# paho's slots, under the properties of the same name of our own messages.
message_info: Any = vars(MQTTMessage)["info"]
message_properties: Any = vars(MQTTMessage)["properties"]


def has_own_websocket() -> bool:
    """True where a program has put a class of its own in the place of paho's."""
    return paho_client._WebsocketWrapper is not WebsocketWrapper


# What our own code does in the place of these; a program that has its own there is asked for each.
_OVERRIDABLE = (
    *("_packet_handle", "_handle_publish", "_handle_on_message", "_handle_pubrel", "_handle_pubackcomp"),
    *("_handle_pubrec", "_do_on_publish", "_send_publish", "_send_puback", "_send_pubrec", "_send_pubcomp"),
    *("_sock_recv", "_sock_send"),
)
# Those of them that move bytes.
_MOVE_BYTES = ("_sock_recv", "_sock_send")


def overrides_of(ours: type) -> Overrides:
    """Which private methods of paho a program has put its own in the place of. ours: whose are not the program's."""
    return Overrides(ours, _OVERRIDABLE)


def noted(name: str, method: str) -> Any:
    """That field of a client, which has its `method` called whenever the field is set."""

    def read(client: Any) -> Any:
        return client.__dict__.get(name)

    def note(client: Any, value: object) -> None:
        client.__dict__[name] = value
        getattr(client, method)()

    return property(read, note)


_SUCCESS = MQTTErrorCode.MQTT_ERR_SUCCESS


class _Tapped:
    """In the place of a client, for its socket: bytes go through the program's own `_sock_recv` and `_sock_send`."""

    def __init__(self, client: Any) -> None:
        self._client = client

    @property
    def sock(self) -> Any:
        client = self._client
        return None if client._sock is None else SimpleNamespace(recv=client._sock_recv, send=client._sock_send)


class Paho(Facade):
    """One client's fields and methods of paho's, by names of ours, for the parts that the client is made of.

    As thread-safe as paho's: fields are read by any thread, and set by whoever has the client's loop. Methods are
    looked up when they are called, so a program's subclass may have its own.
    """

    __slots__ = ("holder",)

    # For what is paho's public API, and to call callbacks with.
    client: PahoClient

    # ---- the connection
    sock = Field("_sock")
    state = Field("_state")
    keepalive_s = Field("_keepalive")
    # The packet that is being handled.
    packet = Field("_in_packet")
    # The program's loop is to call `loop_write`.
    is_registered = Field("_registered_write")
    # What `disconnect` and the loop are told by.
    wake_reader = Field("_sockpairR")
    wake_writer = Field("_sockpairW")
    # ---- the loop
    thread = Field("_thread")
    is_ending = Field("_thread_terminate")
    # Only says that this thread is in a callback.
    callback_mark = Field("_in_callback_mutex")
    # ---- what the program asked for
    client_id = Field("_client_id")
    username = Field("_username")
    password = Field("_password")
    protocol = Field("_protocol")
    transport = Field("_transport")
    is_tls = Field("_ssl")
    port = Field("_port")
    bind_address = Field("_bind_address")
    bind_port = Field("_bind_port")
    connect_timeout_s = Field("_connect_timeout")
    websocket_path = Field("_websocket_path")
    websocket_headers = Field("_websocket_extra_headers")
    ssl_context = Field("_ssl_context")
    is_tls_insecure = Field("_tls_insecure")
    clean_session = Field("_clean_session")
    clean_start = Field("_clean_start")
    connect_properties = Field("_connect_properties")
    reconnects = Field("_reconnect_on_failure")
    is_manual = Field("_manual_ack")
    userdata = Field("_userdata")
    callback_version = Field("_callback_api_version")
    filters = Field("_on_message_filtered")
    on_socket_register_write = Field("_on_socket_register_write")
    on_socket_unregister_write = Field("_on_socket_unregister_write")
    # ---- messages of QoS 2 that arrived: packet id -> message, until PUBREL
    received = Field("_in_messages")
    received_lock = Field("_in_message_mutex")
    # Around the callbacks' fields.
    callback_lock = Field("_callback_mutex")
    # ---- its wait between two attempts
    delay_s = Field("_reconnect_delay")
    min_delay_s = Field("_reconnect_min_delay")
    max_delay_s = Field("_reconnect_max_delay")
    delay_lock = Field("_reconnect_delay_mutex")

    def __init__(self, client: PahoClient) -> None:
        super().__init__(client)
        # Whose `sock` bytes are moved by.
        self.holder: Paho | _Tapped = self

    def note_connection(self, own: dict[str, Any]) -> None:
        """A connection is made. own: see `overrides_of`."""
        self.holder = self if own.keys().isdisjoint(_MOVE_BYTES) else _Tapped(self.client)

    def through(self, sock: Any) -> Any:
        """What reads from it: `sock` itself as a rule."""
        return sock if self.holder is self else self.holder.sock

    @property
    def host(self) -> str:
        """Where it connects to; an address of IPv6 may be given in brackets, as in an URL."""
        host: str | bytes = self.client._host
        if isinstance(host, bytes):
            host = host.decode()
        return host[1:-1] if host.startswith("[") and host.endswith("]") else host

    @host.setter
    def host(self, value: str) -> None:
        self.client._host = value

    def pack_length(self, packet: bytearray, size: int) -> None:
        """Append a Remaining Length (2.2.3)."""
        self.client._pack_remaining_length(packet, size)

    @property
    def is_tcp(self) -> bool:
        """With TLS or without."""
        return bool(self.transport == "tcp")

    def note_sent(self, now_s: float) -> None:
        """Bytes have left, at that time of `time_func`."""
        self.client._last_msg_out = now_s

    @property
    def sent_s(self) -> float:
        """When bytes last left, of `time_func`."""
        return float(self.client._last_msg_out)

    @property
    def received_s(self) -> float:
        """When bytes last came, of `time_func`."""
        return float(getattr(self.client, LAST_RECEIVED))

    def send_pingreq(self) -> MQTTErrorCode:
        """Ask whether the server is there."""
        return self.client._send_pingreq()

    def note_received(self, now_s: float) -> None:
        """Bytes have come, at that time of `time_func`."""
        setattr(self.client, LAST_RECEIVED, now_s)

    def has_proxy(self) -> bool:
        """True where connections are made through one."""
        return bool(self.client._get_proxy())

    def log(self, level: LogLevel, text: str, *values: Any) -> None:
        """To the program's `on_log` and logger."""
        self.client._easy_log(level, text, *values)

    def lose(self, rc: MQTTErrorCode) -> MQTTErrorCode:
        """End the connection for `rc`, where that is an error, and tell the program; returns it."""
        return self.client._loop_rc_handle(rc)

    def tell_disconnected(self, rc: MQTTErrorCode) -> None:
        """The connection ended as the program asked."""
        self.client._do_on_disconnect(packet_from_broker=False, v1_rc=rc)

    def close(self) -> None:
        """Close the socket, where there is one."""
        self.client._sock_close()

    def run_thread(self) -> None:
        """What the network thread does, from its beginning to its end."""
        self.client._thread_main()

    def close_wake_pair(self) -> None:
        """The sockets to wake the loop by."""
        self.client._reset_sockets(sockpair_only=True)

    def receive(self, limit: int) -> bytes:
        """What the socket has, at most `limit` bytes. Raises as it does, or BlockingIOError."""
        return self.client._sock_recv(limit)

    def handle_packet(self, command: int, body: bytes) -> MQTTErrorCode:
        """Have paho handle a whole packet. Raises MalformedPacket."""
        return self.enter_packet(command, body, self.client._packet_handle)

    def enter_packet(self, command: int, body: bytes, handle: Callable[[], Any]) -> MQTTErrorCode:
        """`handle()`, one of paho's handlers or of the program's in its place, of a whole packet."""
        self.packet = whole_packet(command, body)
        return handle() or _SUCCESS

    def open_tcp(self) -> Any:
        """A socket that is connected to the broker, or to it through a proxy. Raises OSError."""
        return self.client._create_socket_connection()

    def wrap_tls(self, sock: Any) -> Any:
        """TLS over it. Raises OSError."""
        return self.client._ssl_wrap_socket(sock)

    def register_write(self) -> None:
        """Have the program's own loop call `loop_write` once the socket has room."""
        self.client._call_socket_register_write()

    def unregister_write(self) -> None:
        """It need not any more."""
        self.client._call_socket_unregister_write()
