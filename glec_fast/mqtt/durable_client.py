"""The half of Client that keeps messages in a store, where it was given one: over any loss of link, process or power.

Bytes, callbacks and loops are the other halves'. Who owns what: the client owns its store from the moment it is made.
"""

from __future__ import annotations

import inspect
import logging
import os
import threading
import time
from collections.abc import Callable
from copy import copy
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, cast

from paho.mqtt.client import MQTT_CLEAN_START_FIRST_ONLY
from paho.mqtt.enums import LogLevel, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from glec_fast._paho import ConnectionState, PahoClient
from glec_fast.durable.extras import extras_of
from glec_fast.durable.outcomes import Dropped
from glec_fast.durable.store import Store
from glec_fast.engine.connector import Connector
from glec_fast.engine.policy import Policy
from glec_fast.errors import ConfigError
from glec_fast.mqtt.receive import Receiver
from glec_fast.outbox._outbox import Outbox
from glec_fast.outbox.stored import DurableOutbox
from glec_fast.runtime import process
from glec_fast.transport.dial import break_link
from glec_fast.validation import check_publish, check_size

if TYPE_CHECKING:
    from glec_fast.outbox.handle import PublishHandle

Self = TypeVar("Self", bound="Durable")

_MQTT_5 = MQTTProtocolVersion.MQTTv5
_FIRST_ONLY = MQTT_CLEAN_START_FIRST_ONLY
# MQTT 5, 3.1.2.11.2: the session does not end.
_FOR_EVER = 0xFFFFFFFF
DEFAULT_MAX_UNRELEASED = 20
# Long enough for a slow link to take what is left to send, short enough for a service manager that waits for our end.
_LEAVE_TIMEOUT_S = 5.0
_SIGNATURE = inspect.signature(PahoClient.__init__)

logger = logging.getLogger("glec_fast")


class Durable(process.OfOneProcess, Receiver):
    """See the module's text.

    store: path of a queue file, which is opened with `Store`'s defaults, or an open Store, which is the client's from
    then on; None keeps messages in memory, as paho does. These are only for a client with a store:
    wait_for_disk: `publish` of QoS 2 returns only once the message is on disk.
    resend_in_doubt: send a QoS 2 message again that a broker had received before it lost its session.
    max_unreleased: the broker's limit of QoS 2 messages without PUBREL, 2 to 65,534; fewer are sent ahead.
    Raises ConfigError, and the errors of `Store`.
    """

    # paho's destructor asks for these, also where __init__ has refused its arguments.
    _sock: Any = None
    _sockpairR: Any = None
    _sockpairW: Any = None
    _connector: Connector
    _policy: Policy

    def __init__(
        self,
        *args: Any,
        store: str | os.PathLike[str] | Store | None = None,
        wait_for_disk: bool = True,
        resend_in_doubt: bool = False,
        max_unreleased: int = DEFAULT_MAX_UNRELEASED,
        **kwargs: Any,
    ) -> None:
        # (client, user data, Dropped) of each message that will not be sent; called by the store's thread.
        self.on_drop: Callable[[Any, Any, Dropped], None] | None = None
        self._given_store: str | os.PathLike[str] | Store | None = None
        self._outbox_settings: dict[str, Any] = {}
        if store is None:
            if (wait_for_disk, resend_in_doubt, max_unreleased) != (True, False, DEFAULT_MAX_UNRELEASED):
                raise ConfigError("wait_for_disk, resend_in_doubt and max_unreleased are for a client with a store")
            super().__init__(*args, **kwargs)
            return
        if not 2 <= max_unreleased <= 65_534:
            raise ConfigError(f"max_unreleased is {max_unreleased}; it must be 2 to 65534 messages")
        bound = _SIGNATURE.bind(self, *args, **kwargs)
        given = bound.arguments
        if not given.get("client_id"):
            raise ConfigError("a client with a store needs a client_id: the broker keeps its session under that name")
        if given.get("protocol") != _MQTT_5 and given.get("clean_session") is None:
            given["clean_session"] = False
        super().__init__(*bound.args[1:], **bound.kwargs)
        self._given_store = store
        self._outbox_settings = {
            "wait_for_disk": wait_for_disk,
            "resend_in_doubt": resend_in_doubt,
            "max_unreleased": max_unreleased,
        }

    def _wake(self) -> None:
        raise NotImplementedError

    def _leave_now(self) -> None:
        raise NotImplementedError

    def _open_wake_pair(self) -> None:
        raise NotImplementedError

    def _open_durable_outbox(self) -> DurableOutbox | None:
        """None for a client that keeps messages in memory. The outbox's `on_work` may be called at once."""
        given = self._given_store
        if given is None:
            return None
        settings = self._outbox_settings
        store = given if isinstance(given, Store) else Store(given)
        try:
            return DurableOutbox(store, self._max_inflight_messages, self._wake, self._tell_dropped, **settings)
        except BaseException:
            if store is not given:
                store.close()
            raise

    @property
    def store(self) -> Store:
        """The queue: its size, drops, ledger and settings. Raises UnsupportedError where there is none."""
        return self._outbox.store

    def handle_for(self, message_id: int) -> PublishHandle | None:
        """The handle of a message published before, also by an earlier process of this queue file.

        message_id: the `mid` of the handle that `publish` returned. None where the message is not in the queue any
        more. Raises MessageError where no message has it, UnsupportedError without a store.
        """
        return self._outbox.handle_for(message_id)

    def flush(self, timeout_s: float | None = None) -> bool:
        """Wait until every accepted message is finished; False after the time-out, with nothing lost.

        Not from a callback. Raises UnsupportedError without a store.
        """
        return self.store.wait_empty(timeout_s)

    # ---- who it is, and to whom it speaks

    def connect_async(
        self,
        host: str,
        port: int = 1883,
        keepalive: int = 60,
        bind_address: str = "",
        bind_port: int = 0,
        clean_start: Any = _FIRST_ONLY,
        properties: Properties | None = None,
    ) -> None:
        """As paho's. With a store and MQTT 5 it asks for a session that does not end, unless told otherwise.

        That is `clean_start` False where it is MQTT_CLEAN_START_FIRST_ONLY, and a SessionExpiryInterval of 0xFFFFFFFF
        where `properties` has none.
        """
        if self._outbox.is_stored and self._protocol == _MQTT_5:
            clean_start = False if clean_start == _FIRST_ONLY else clean_start
            properties = with_session_expiry(properties)
        super().connect_async(host, port, keepalive, bind_address, bind_port, clean_start, properties)

    def _identify(self) -> None:
        """Before each connection. Raises QueueStorageError, QueueClosedError: then there must be none."""
        self._outbox.identify(self._client_id.decode("utf-8", "backslashreplace"), f"{self._host}:{self._port}")

    def _on_accepted(self, connack: bytes) -> None:
        super()._on_accepted(connack)
        self._outbox.meet(self._connack_properties(connack), self._asked_expiry_s())

    def _asked_expiry_s(self) -> int:
        """For how long the broker was asked to keep the session once the connection ends, in seconds; 0 not at all."""
        if self._protocol != _MQTT_5:
            return 0 if self._clean_session else _FOR_EVER
        if self._clean_start is True:
            return 0
        return int(getattr(self._connect_properties, "SessionExpiryInterval", 0))

    def reinitialise(self, client_id: str = "", clean_session: bool = True, userdata: Any = None) -> None:
        """As paho's, in memory. Raises UnsupportedError with a store, whose messages would be left without a client."""
        self._outbox.refuse_renewal()
        super().reinitialise(client_id, clean_session, userdata)

    # ---- publishing

    def _publish_stored(
        self, topic: str, payload: bytes | bytearray, qos: int, retain: bool, properties: Properties | None
    ) -> PublishHandle:
        """For `publish`, where the outbox is over a store: what can be sent whenever there is a connection."""
        outbox = cast("DurableOutbox", self._outbox)
        check_publish(topic, qos)
        check_size(payload)
        extras = extras_of(retain, properties if self._protocol == _MQTT_5 else None)
        handle = outbox.publish(topic, bytes(payload), qos, extras)
        if self._thread is None and self._sock is not None:
            self._pull_for_own_loop(outbox)
        return handle

    def _pull_for_own_loop(self, outbox: Outbox) -> None:
        """Nobody else would: the program's own loop knows of sockets only."""
        outbox.pull()
        if outbox.session.sendable_bytes:
            self._call_socket_register_write()

    def loop_forever(self, timeout: float = 1.0, retry_first_connection: bool = False) -> MQTTErrorCode:
        """As paho's; with a store, it learns at once of what has reached the disk."""
        outbox = self._outbox
        if outbox.is_stored:
            if self._sockpairR is None:
                self._open_wake_pair()
            # Who woke the loop before this one, if any, was heard by nobody.
            outbox.is_woken = False
            self._wake()
        return super().loop_forever(timeout, retry_first_connection)

    def loop_misc(self) -> MQTTErrorCode:
        """As paho's; with a store, what is on disk by now is made ready to be sent."""
        outbox = self._outbox
        if self._sock is not None:
            if self._thread is None:
                self._pull_for_own_loop(outbox)
            elif outbox.is_due:
                outbox.pull()
            outbox.look_for_answers()
            self._leave_when_due()
        return super().loop_misc()

    @property
    def on_publish(self) -> Any:
        """As paho's. With a store, also for messages of an earlier process; `mid` is the message id."""
        return self._on_publish

    @on_publish.setter
    def on_publish(self, func: Any) -> None:
        PahoClient.on_publish.fset(self, func)  # type: ignore[attr-defined]
        self._note_on_publish()

    def _note_on_publish(self) -> None:
        """Messages whose handle nobody holds cost something only where they are asked for."""
        self._outbox.tell_all(bool(self.on_publish))

    def _tell_dropped(self, dropped: list[Dropped]) -> None:
        if self._policy.on_dropped is not None:
            self._policy.on_dropped(dropped)
        on_drop = self.on_drop
        if on_drop is None:
            return
        for each in dropped:
            try:
                on_drop(self, self._userdata, each)
            except Exception as error:  # noqa: PERF203 - each message is told of, whatever became of the others
                self._easy_log(LogLevel.MQTT_LOG_ERR, "Caught exception in on_drop: %s", error)
                logger.exception("on_drop failed")

    # ---- the end

    def close(self) -> None:
        """Leave the broker, end the thread of `loop_start`, write what is pending and let go of the queue file.

        Idempotent. A connection that is being made is given up at once; a link that takes no DISCONNECT, and a name
        that the system still looks up, after 5 s. What was not sent stays in the file.
        `disconnect` alone leaves the queue open: messages are accepted, and `connect` goes on with them.
        Raises QueueStorageError where something could not be written.
        """
        thread, outbox = self._thread, self._outbox
        self._connector.end()
        outbox.begin_close()
        self.disconnect()
        self._thread_terminate = True
        if thread in (None, threading.current_thread()):
            if self._sock is not None:
                self._leave_now()
                self.loop_write()
                self._sock_close()
        elif thread is not None:
            thread.join(_LEAVE_TIMEOUT_S)
            # Nothing ends a look-up but the system. The thread comes to nobody then, and ends.
            if thread.is_alive() and not self._connector.attempt.is_without_socket:
                sock = self._sock
                if sock is not None:
                    break_link(sock)
                # From a drop callback it may wait for us: for the disk, which the store's thread cannot write to.
                if not outbox.is_own_thread():
                    thread.join()
        if thread is not None and not thread.is_alive():
            # Nobody is to be woken; the next loop makes another pair.
            self._reset_sockets(sockpair_only=True)
        if outbox.is_stored:
            process.leave(self)
        outbox.close()
        if self._thread is None:
            self._connector.interrupt.clear()

    def _begin_exit(self, deadline_s: float) -> None:
        """The connection is left as it is, so that the will is published, as with paho's thread, which just ends.

        But for a program that has said `disconnect`: it leaves in order.
        """
        thread = self._thread
        is_leaving = self._farewell is not None or self._state == ConnectionState.MQTT_CS_DISCONNECTING
        if thread is not None and is_leaving:
            thread.join(max(deadline_s - time.monotonic(), 0.0))
        if not self._outbox.wait_direct(deadline_s):
            # A link that does not move: what went past the queue goes to the disk.
            self._sock_close()

    def _on_exit(self, deadline_s: float) -> None:
        """It is the store that waits for the disk."""

    def _in_child(self, pid: int) -> None:
        shared = self._sock, self._sockpairR, self._sockpairW
        is_own = self._sock is None and self._thread is None
        self._sock = self._sockpairR = self._sockpairW = self._thread = None
        outbox = self._outbox
        if is_own and not outbox.is_stored:
            # Made and not yet connected: a copy of the child's own, as with paho.
            outbox.is_woken = False
            process.watch_forks(self)
        else:
            self._forbid_in_child(outbox, pid)
        self._connector.attempt.let_go_in_child()
        for each in shared:
            process.close_copy(each)

    def _forbid_in_child(self, outbox: Outbox, pid: int) -> None:
        outbox.forbid(pid)
        # `publish` takes from it what it needs, also where a program kept the method from before the fork.
        self._outbox = process.Elsewhere(pid)  # type: ignore[assignment]
        process.forbid(self, pid, {"close": None, "is_connected": False, "_reset_sockets": None})

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def with_session_expiry(given: Properties | None) -> Properties:
    """A copy of `given` that asks for a session without an end, where it says nothing of it."""
    properties = Properties(PacketTypes.CONNECT) if given is None else copy(given)
    if not hasattr(properties, "SessionExpiryInterval"):
        properties.SessionExpiryInterval = _FOR_EVER
    return properties
