"""The contract with paho-mqtt: every internal name that `glec_fast.mqtt.client` overrides or uses, checked at import.

paho may change what is not public. Then this module refuses, rather than let a message go the wrong way.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import paho.mqtt
from paho.mqtt import client as paho_client
from paho.mqtt.matcher import MQTTMatcher

METHODS = (
    "_call_socket_close",
    "_call_socket_register_write",
    "_call_socket_unregister_write",
    "_create_socket",
    "_create_socket_connection",
    "_do_on_disconnect",
    "_easy_log",
    "_get_proxy",
    "_handle_connack",
    "_handle_on_message",
    "_loop",
    "_loop_rc_handle",
    "_messages_reconnect_reset",
    "_messages_reconnect_reset_in",
    "_mid_generate",
    "_packet_handle",
    "_packet_queue",
    "_packet_write",
    "_raise_for_invalid_topic",
    "_reconnect_wait",
    "_reset_sockets",
    "_send_connect",
    "_sock_close",
    "_sock_recv",
    "_ssl_wrap_socket",
    "_thread_main",
)
ATTRIBUTES = (
    "_bind_address",
    "_bind_port",
    "_callback_api_version",
    "_callback_mutex",
    "_clean_session",
    "_clean_start",
    "_client_id",
    "_connect_properties",
    "_connect_timeout",
    "_host",
    "_in_callback_mutex",
    "_in_message_mutex",
    "_in_messages",
    "_in_packet",
    "_keepalive",
    "_last_msg_out",
    "_logger",
    "_manual_ack",
    "_max_inflight_messages",
    "_max_queued_messages",
    "_mid_generate_mutex",
    "_msgtime_mutex",
    "_on_log",
    "_on_message_filtered",
    "_on_publish",
    "_on_socket_register_write",
    "_on_socket_unregister_write",
    "_out_message_mutex",
    "_out_messages",
    "_out_packet",
    "_port",
    "_protocol",
    "_reconnect_delay",
    "_reconnect_delay_mutex",
    "_reconnect_max_delay",
    "_reconnect_min_delay",
    "_reconnect_on_failure",
    "_registered_write",
    "_sock",
    "_sockpairR",
    "_sockpairW",
    "_ssl",
    "_ssl_context",
    "_state",
    "_thread",
    "_thread_terminate",
    "_tls_insecure",
    "_transport",
    "_userdata",
)
FUNCTIONS = (
    "_ConnectionState",
    "_WebsocketWrapper",
    "_encode_payload",
    "error_string",
    "time_func",
)
# When bytes last came: 2.2 renamed it.
_LAST_RECEIVED = ("_last_bytes_received", "_last_msg_in")


class _Sized(Protocol):
    def __len__(self) -> int: ...


class Unfinished:
    """Stands where paho keeps a collection of its own: as long as what it counts, empty to whoever walks through it."""

    def __init__(self, counted: _Sized) -> None:
        self._counted = counted

    def __len__(self) -> int:
        return len(self._counted)

    def __iter__(self) -> Iterator[object]:
        return iter(())

    def values(self) -> tuple[object, ...]:
        """None: paho would send them a second time."""
        return ()

    def clear(self) -> None:
        """Does nothing: the outbox ends what a connection ends."""


def _initialised_names() -> set[str]:
    return set(paho_client.Client.__init__.__code__.co_names)


LAST_RECEIVED = next((name for name in _LAST_RECEIVED if name in _initialised_names()), _LAST_RECEIVED[0])


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


def _websocket_names() -> tuple[str, ...]:
    wrapper = getattr(paho_client, "_WebsocketWrapper", None)
    return () if wrapper is None else wrapper.__init__.__code__.co_names


def missing_internals() -> list[str]:
    """Names of the contract that the installed paho-mqtt does not have."""
    initialised = _initialised_names()
    return [
        *(name for name in METHODS if not callable(getattr(paho_client.Client, name, None))),
        *(name for name in ATTRIBUTES if name not in initialised),
        *(name for name in FUNCTIONS if not hasattr(paho_client, name)),
        *(name for name in _LAST_RECEIVED[:1] if initialised.isdisjoint(_LAST_RECEIVED)),
        *(name for name in ("MQTTMatcher._root._children",) if not hasattr(_root_of(MQTTMatcher()), "_children")),
        *(name for name in ("_WebsocketWrapper._socket",) if "_socket" not in _websocket_names()),
    ]


def check() -> None:
    """Raises ImportError where paho's internals are not those that this version was written for."""
    missing = missing_internals()
    if missing:
        raise ImportError(
            f"paho-mqtt {paho.mqtt.__version__} lacks {', '.join(missing)}, which glec_fast builds on: "
            "install a version from 2.1 on and below 2.3"
        )
