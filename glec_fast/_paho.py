"""The contract with paho-mqtt: every internal name that `glec_fast.client` overrides or uses, checked at import.

paho may change what is not public. Then this module refuses, rather than let a message go the wrong way.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import paho.mqtt
from paho.mqtt import client as paho_client

METHODS = (
    "_call_socket_register_write",
    "_create_socket_connection",
    "_do_on_disconnect",
    "_easy_log",
    "_get_proxy",
    "_handle_connack",
    "_loop",
    "_loop_rc_handle",
    "_messages_reconnect_reset",
    "_mid_generate",
    "_packet_handle",
    "_packet_queue",
    "_packet_write",
    "_raise_for_invalid_topic",
    "_reconnect_wait",
    "_sock_close",
    "_sock_recv",
    "_sock_send",
    "_ssl_wrap_socket",
)
ATTRIBUTES = (
    "_bind_address",
    "_bind_port",
    "_callback_api_version",
    "_callback_mutex",
    "_connect_timeout",
    "_in_callback_mutex",
    "_host",
    "_in_packet",
    "_keepalive",
    "_last_bytes_received",
    "_last_msg_out",
    "_max_inflight_messages",
    "_max_queued_messages",
    "_msgtime_mutex",
    "_on_publish",
    "_on_socket_register_write",
    "_out_messages",
    "_out_packet",
    "_port",
    "_protocol",
    "_reconnect_delay",
    "_reconnect_max_delay",
    "_reconnect_min_delay",
    "_sock",
    "_sockpairR",
    "_sockpairW",
    "_ssl",
    "_ssl_context",
    "_state",
    "_thread",
    "_thread_terminate",
    "_userdata",
)
FUNCTIONS = ("_ConnectionState", "_encode_payload", "_socketpair_compat", "sockpair_data", "time_func")


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


def missing_internals() -> list[str]:
    """Names of the contract that the installed paho-mqtt does not have."""
    initialised = set(paho_client.Client.__init__.__code__.co_names)
    return [
        *(name for name in METHODS if not callable(getattr(paho_client.Client, name, None))),
        *(name for name in ATTRIBUTES if name not in initialised),
        *(name for name in FUNCTIONS if not hasattr(paho_client, name)),
    ]


def check() -> None:
    """Raises ImportError where paho's internals are not those that this version was written for."""
    missing = missing_internals()
    if missing:
        raise ImportError(
            f"paho-mqtt {paho.mqtt.__version__} lacks {', '.join(missing)}, which glec_fast builds on: "
            "install a version from 2.1 on and below 2.3"
        )
