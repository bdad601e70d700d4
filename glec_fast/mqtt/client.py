"""paho's Client with its hot paths replaced: PUBLISH, the acknowledgements, bulk reads and bulk writes.

paho keeps connect, TLS, a WebSocket's upgrade, proxies, keep alive, SUBSCRIBE, properties and the callbacks; see
`glec_fast._paho` for what of it is used here. Bytes and states are the session's, what waits is the outbox's; this
module moves bytes.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable
from copy import copy
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion, LogLevel, MessageState, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import MalformedPacket, Properties

from glec_fast import _paho
from glec_fast._paho import ConnectionState as _State
from glec_fast._paho import MQTTMessage, PahoClient
from glec_fast.durable.extras import extras_of
from glec_fast.durable.outcomes import Dropped
from glec_fast.durable.store import Store
from glec_fast.engine.connector import Connector
from glec_fast.engine.policy import Policy
from glec_fast.engine.takeover import Takeover
from glec_fast.errors import ConfigError, GlecError
from glec_fast.mqtt.dispatch import PINGRESP, Dispatcher
from glec_fast.mqtt.inbound_message import properties_from
from glec_fast.outbox._outbox import MemoryOutbox, Outbox, publish
from glec_fast.outbox.owners import OnOwnerAway, Owner
from glec_fast.outbox.stored import DurableOutbox
from glec_fast.runtime import process
from glec_fast.runtime._lock import CallbackMark, Lock
from glec_fast.runtime.thread import Thread
from glec_fast.transport.dial import acknowledge_at_once, break_link, end_sending
from glec_fast.transport.poller import Poller
from glec_fast.transport.upgrade import upgrade
from glec_fast.transport.websocket import WebSocket
from glec_fast.validation import check_publish, check_size

if TYPE_CHECKING:
    from paho.mqtt.reasoncodes import ReasonCode

    from glec_fast.outbox.handle import PublishHandle

_SEND_BYTES = 256 * 1024
_RECEIVE_BYTES = 64 * 1024
# A broker needs the time of a round trip to close a connection.
_HEAR_OUT_S = 1.0
# With a full window: long enough for the broker to answer a batch, short enough that it never runs out of work.
_GATHER_S = 0.002
_GATHER_MIN_S = 0.0001
# Keep alive and the like need no better; a busy loop has thousands of turns a second.
_MISC_INTERVAL_S = 0.05
# DISCONNECT waits so long for what goes before it, and the thread after `loop_stop` for what is unacknowledged.
_FAREWELL_TIMEOUT_S = 5.0
# With a farewell that waits for the disk or the broker: how late its deadline may be seen.
_FAREWELL_LOOK_S = 0.1
# Long enough for a slow link to take what is left to send, short enough for a service manager that waits for our end.
_LEAVE_TIMEOUT_S = 5.0
_MAX_UNRELEASED = 20
_FIRST_ONLY = paho.MQTT_CLEAN_START_FIRST_ONLY
# MQTT 5, 3.1.2.11.2: the session does not end.
_FOR_EVER = 0xFFFFFFFF
# Reads in one turn, so that a peer that never stops cannot keep the loop from its other duties.
_READS_A_TURN = 16
# More of them where TLS has decrypted what no poll of the socket tells of: a record of WebSocket frames of two bytes.
_PENDING_READS_A_TURN = 8192
# Of TLS, however small they are.
_RECORDS_A_READ = 1024
# A read of so many bytes means that acknowledgements come in a stream.
_STREAM_READ_BYTES = 64
_RECEIVE_MAXIMUM = 65_535
_PAYLOAD_FORMAT_INVALID = 0x99
# An exception may leave paho's own held, and a signal's handler cannot take them again.
_PAHO_LOCKS = (
    "_callback_mutex",
    "_in_message_mutex",
    "_mid_generate_mutex",
    "_msgtime_mutex",
    "_out_message_mutex",
    "_reconnect_delay_mutex",
)
_CONNECT = 0x10
_DISCONNECT = 0xE0
_DISCONNECT_PACKET = b"\xe0\x00"
_PINGREQ_PACKET = b"\xc0\x00"
_PACKET_IDS = 65_535
_PUBREL = 0x60
_PUBREL_PACKET = b"\x62\x02"
_MQTT_5 = MQTTProtocolVersion.MQTTv5
# An enum's members are looked up at some cost.
_SUCCESS = MQTTErrorCode.MQTT_ERR_SUCCESS
_AGAIN = MQTTErrorCode.MQTT_ERR_AGAIN
_CONN_LOST = MQTTErrorCode.MQTT_ERR_CONN_LOST

Self = TypeVar("Self", bound="Client")

logger = logging.getLogger("glec_fast")


class Client(process.OfOneProcess, PahoClient):
    """A drop-in for `paho.mqtt.client.Client`: the same arguments, methods, callbacks and results.

    Thread-safe, and every method may be called from a callback. `close` ends it, or a with statement.

        client = Client(CallbackAPIVersion.VERSION2, "gateway-7", store="queue.db")
        client.on_connect = lambda client, userdata, flags, reason, properties: client.subscribe("commands/#")
        client.connect("broker.example")
        client.loop_start()
        client.publish("positions", payload, qos=1)

    The eight arguments of paho:

    callback_api_version: what callbacks are called with; VERSION1 is deprecated, by paho too.
    client_id: the name under which the broker keeps the session, at most 65,535 bytes of UTF-8. Empty: the broker gives
    one (MQTT 3.1.1 and 5), or one is made (MQTT 3.1), with a clean session only.
    clean_session: before MQTT 5, whether the broker forgets subscriptions and messages with the connection. None means
    True, and False with a store. In MQTT 5 it must be None: see `clean_start` of `connect`.
    userdata: handed to each callback.
    protocol: MQTTv31, MQTTv311 or MQTTv5.
    transport: "tcp", "websockets" or "unix"; with the last, the host of `connect` is the path of a socket.
    reconnect_on_failure: whether `loop_forever` and the thread of `loop_start` connect again.
    manual_ack: QoS 1 and 2 messages that arrive are acknowledged by `ack` alone.

    What is ours:

    store: path of a queue file, which is opened with `Store`'s defaults, or an open Store, which is the client's from
    then on: every accepted message is on disk until the broker has it. None keeps messages in memory, as paho does.
    wait_for_disk: with a store, `publish` of QoS 2 returns only once the message is on disk.
    resend_in_doubt: with a store, send a QoS 2 message again that a broker had received before it lost its session.
    max_unreleased: with a store, the broker's limit of QoS 2 messages without PUBREL, 1 to 65,534; fewer go ahead.
    broker_name: with a store, whose the session is, so that the broker may have several addresses; "" for host:port.
    on_owner_away: with a store, "wait" or "move" where a broker of another name follows; see `MQTTConfig`.
    connector, policy: how connections are made, and what follows a failure, where that is not paho's way.

    Raises ValueError as paho does, ConfigError, and the errors of `Store`.
    """

    # paho's destructor asks for these, also where __init__ has refused its arguments.
    _sock: Any = None
    _sockpairR: Any = None
    _sockpairW: Any = None

    def __init__(
        self,
        callback_api_version: CallbackAPIVersion = CallbackAPIVersion.VERSION1,
        client_id: str | None = "",
        clean_session: bool | None = None,
        userdata: Any = None,
        protocol: MQTTProtocolVersion = MQTTProtocolVersion.MQTTv311,
        transport: Literal["tcp", "websockets", "unix"] = "tcp",
        reconnect_on_failure: bool = True,
        manual_ack: bool = False,
        *,
        store: str | os.PathLike[str] | Store | None = None,
        wait_for_disk: bool = True,
        resend_in_doubt: bool = False,
        max_unreleased: int = _MAX_UNRELEASED,
        broker_name: str = "",
        on_owner_away: OnOwnerAway = "move",
        connector: Connector | None = None,
        policy: Policy | None = None,
    ) -> None:
        # (client, user data, Dropped) of each message that will not be sent; called by the store's thread.
        self.on_drop: Callable[[Any, Any, Dropped], None] | None = None
        # Where on_log is a method of a subclass, or is set, or a logger.
        self._is_logging = False
        if store is None:
            if (wait_for_disk, resend_in_doubt, max_unreleased) != (True, False, _MAX_UNRELEASED):
                raise ConfigError("wait_for_disk, resend_in_doubt and max_unreleased are for a client with a store")
        else:
            if not 1 <= max_unreleased <= 65_534:
                raise ConfigError(f"max_unreleased is {max_unreleased}; it must be 1 to 65534 messages")
            if on_owner_away not in ("wait", "move"):
                raise ConfigError(f"on_owner_away is {on_owner_away!r}; it must be 'wait' or 'move'")
            if not client_id:
                text = "a client with a store needs a client_id: the broker keeps its session under that name"
                raise ConfigError(text)
            if protocol != _MQTT_5 and clean_session is None:
                clean_session = False
        super().__init__(
            callback_api_version,
            client_id,
            clean_session,
            userdata,
            protocol,
            transport,
            reconnect_on_failure,
            manual_ack,
        )
        # paho's is a lock, held while a callback runs.
        self._in_callback_mutex = CallbackMark()  # type: ignore[assignment]
        for name in _PAHO_LOCKS:
            setattr(self, name, Lock(name))
        # Which threads are making a connection.
        self._connecting = CallbackMark()
        self._acks_stream = False
        # TLS or WebSocket: bytes may wait that no poll of the socket tells of.
        self._is_layered = False
        # DISCONNECT, which waits for what was published before it, and until when at most.
        self._farewell: tuple[Callable[[], MQTTErrorCode], float] | None = None
        # One connection makes room for the next, which the program takes for the same.
        self._connects_again = False
        self._takeover = Takeover()
        self._connector = connector or Connector()
        self._policy = policy or Policy()
        # Without a name it is the address that is connected to.
        self._owner = Owner(broker_name)
        self._pollers: list[Poller] = []
        # The thread that was last in a loop of the program's own.
        self._looped_by = 0
        # Until then the thread of a client with a store goes on after `loop_stop`.
        self._stops_by_s: float | None = None
        self._misc_done_s = float("-inf")
        if store is None:
            self._use_outbox(MemoryOutbox(self._max_inflight_messages, self._wake))
        else:
            self._use_outbox(self._open_outbox(store, wait_for_disk, resend_in_doubt, max_unreleased, on_owner_away))
            process.watch_exit(self)
        process.watch_forks(self)

    def _open_outbox(
        self,
        given: str | os.PathLike[str] | Store,
        wait_for_disk: bool,
        resend_in_doubt: bool,
        max_unreleased: int,
        on_owner_away: OnOwnerAway,
    ) -> DurableOutbox:
        """Its `on_work` may be called at once."""
        store = given if isinstance(given, Store) else Store(given)
        try:
            return DurableOutbox(
                store,
                self._max_inflight_messages,
                self._wake,
                self._tell_dropped,
                wait_for_disk=wait_for_disk,
                resend_in_doubt=resend_in_doubt,
                max_unreleased=max_unreleased,
                on_owner_away=on_owner_away,
            )
        except BaseException:
            if store is not given:
                store.close()
            raise

    def _use_outbox(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._dispatcher = Dispatcher(self, outbox)
        self._link = self._dispatcher.link
        outbox.is_traced = self._is_logging
        self._out_messages = _paho.Unfinished(_Unacknowledged(self, outbox))  # type: ignore[assignment]
        self._out_packet = _paho.Unfinished(_SendableBytes(self, outbox))  # type: ignore[assignment]
        self._note_on_publish()

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
        address = f"{self._host}:{self._port}"
        owner = self._owner._replace(name=self._owner.name or address, members={*self._owner.members, address})
        self._takeover.turn_to(owner.name)
        self._outbox.identify(self._client_id.decode("utf-8", "backslashreplace"), *owner)

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

    # paho reads and writes these two; what is logged decides how packets are taken.

    @property
    def _on_log(self) -> Any:
        return self.__dict__.get("_on_log")

    @_on_log.setter
    def _on_log(self, value: Any) -> None:
        self.__dict__["_on_log"] = value
        self._note_logging()

    @property
    def _logger(self) -> Any:
        return self.__dict__.get("_logger")

    @_logger.setter
    def _logger(self, value: Any) -> None:
        self.__dict__["_logger"] = value
        self._note_logging()

    def _note_logging(self) -> None:
        is_method = type(self).on_log is not PahoClient.on_log
        self._is_logging = is_method or self._on_log is not None or self._logger is not None
        if "_outbox" in self.__dict__:
            self._outbox.is_traced = self._is_logging

    # ---- publishing

    publish = publish

    def _after_publish(self, is_worth_writing: bool) -> MQTTErrorCode:
        """For `publish`, where something is to be sent."""
        if is_worth_writing and self._thread is not None:
            self._write_for_thread()
        return self._after_queueing()

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
        self._link.do(outbox.pull)
        if outbox.session.sendable_bytes:
            self._call_socket_register_write()

    def drop_out_messages(self) -> list[MQTTMessage]:
        """As paho's: forget all unacknowledged QoS 1 and 2 messages, and return them."""
        messages = []
        for dropped in self._outbox.clear():
            message = MQTTMessage(dropped.mid, dropped.topic.encode())
            message.payload, message.qos, message.retain = dropped.payload, dropped.qos, dropped.retain
            message.info, message.state = dropped.handle, MessageState.MQTT_MS_PUBLISH
            messages.append(message)
        return messages

    @property
    def max_inflight_messages(self) -> int:
        """Most QoS 1 and 2 messages on their way at once; 0 means as many as there are packet ids."""
        return self._max_inflight_messages

    @max_inflight_messages.setter
    def max_inflight_messages(self, value: int) -> None:
        PahoClient.max_inflight_messages.fset(self, value)  # type: ignore[attr-defined]
        self._outbox.session.set_window(min(value, _PACKET_IDS))

    @property
    def max_queued_messages(self) -> int:
        """Most unacknowledged messages in memory, 0 means no limit; with a store, most in the queue, and fixed."""
        return self._outbox.max_queued

    @max_queued_messages.setter
    def max_queued_messages(self, value: int) -> None:
        PahoClient.max_queued_messages.fset(self, value)  # type: ignore[attr-defined]
        self._outbox.set_max_queued(value)

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

    # ---- leaving

    def disconnect(self, reasoncode: ReasonCode | None = None, properties: Properties | None = None) -> MQTTErrorCode:
        """As paho's: DISCONNECT goes behind what was published before.

        It waits, 5 s at most, for the broker to accept a connection that is being made, and with a store for the disk
        and until the window is full; for no acknowledgement. What is left is sent on the next connection, with a store
        also by the next process. It returns at once where a thread or the program's own loop sends it.
        """

        def leave() -> MQTTErrorCode:
            return PahoClient.disconnect(self, reasoncode, properties)

        outbox = self._outbox
        if not self._connects_again and (self._sock is None or not outbox.has_to_send()):
            return leave()
        self._farewell = leave, time.monotonic() + _FAREWELL_TIMEOUT_S
        outbox.hasten()
        self._wake()
        if self._thread is None and self._on_socket_register_write is None and self._in_callback_mutex.acquire(False):
            self._loop_until_left()
        return _SUCCESS

    def _loop_until_left(self) -> None:
        """Nobody else would, unless another thread of the program has the loop."""
        looped_by = self._looped_by
        if looped_by != threading.get_ident() and any(each.ident == looped_by for each in threading.enumerate()):
            return
        while self._farewell is not None and self._sock is not None:
            self.loop()

    def _leave_when_due(self) -> None:
        """Send DISCONNECT once what goes before it has been encoded."""
        farewell = self._farewell
        if farewell is None:
            return
        leave, deadline_s = farewell
        self._link.do(self._outbox.pull)
        if not self._outbox.has_to_send() or time.monotonic() >= deadline_s:
            self._farewell = None
            leave()

    def _leave_now(self) -> None:
        farewell, self._farewell = self._farewell, None
        if farewell is not None:
            farewell[0]()

    def _end_farewell(self) -> None:
        """The connection has ended, and is not to be made again."""
        if self._farewell is not None and not self._connects_again:
            self._farewell = None
            self._state = _State.MQTT_CS_DISCONNECTING

    def reconnect(self) -> MQTTErrorCode:
        """As paho's; where it raises, it leaves no connection."""
        if not self._connects_again:
            # Of the connection that ends with this.
            self._farewell = None
        policy, is_first = self._policy, self._state == _State.MQTT_CS_CONNECT_ASYNC
        policy.begin_attempt()
        try:
            with self._connecting:
                context = self._connector.context()
                if context is not None:
                    self._ssl_context = context
                return super().reconnect()
        except OSError as error:
            self._sock_close()
            failure = self._connector.explain(error)
            if policy.fail_attempt(failure) and is_first and not self._connector.interrupt.is_set():
                # paho's loop for the first connection would end here, and its other one begin with a second wait.
                self._state = _State.MQTT_CS_CONNECT_ASYNC
            if failure is error:
                raise
            raise failure from error
        except BaseException:
            # CONNECT would follow, and does not: the server would wait for it, and we for the server.
            self._sock_close()
            raise

    def is_connected(self) -> bool:
        """As paho's: False from `disconnect` on."""
        return self._farewell is None and super().is_connected()

    # ---- the loop

    def _wake(self) -> None:
        """Have the network thread look for something to send."""
        writer = self._sockpairW
        if writer is None:
            return
        try:
            self._link.wake(writer)
        except OSError as error:
            self._easy_log(LogLevel.MQTT_LOG_DEBUG, "the loop ended while it was woken: %s", error)

    def _open_wake_pair(self) -> None:
        """Not paho's, which goes over TCP: dearer to make and to write to, and any process may connect to it first."""
        # First, as it may fail: a loop cannot go on with a pair that is closed.
        reader, writer = socket.socketpair()
        reader.setblocking(False)
        writer.setblocking(False)
        for end in (self._sockpairR, self._sockpairW):
            if end is not None:
                end.close()
        # Who woke the loop by the old pair was heard by nobody.
        self._outbox.is_woken = False
        self._sockpairR, self._sockpairW = reader, writer

    def loop(self, timeout: float = 1.0) -> MQTTErrorCode:
        """As paho's."""
        self._looped_by = threading.get_ident()
        if self._sockpairR is None or self._sockpairW is None:
            self._open_wake_pair()
        return self._loop(timeout)

    def loop_forever(self, timeout: float = 1.0, retry_first_connection: bool = False) -> MQTTErrorCode:
        """As paho's; with a store, it learns at once of what has reached the disk."""
        self._looped_by = threading.get_ident()
        outbox = self._outbox
        if outbox.is_stored:
            if self._sockpairR is None:
                self._open_wake_pair()
            # Who woke the loop before this one, if any, was heard by nobody.
            outbox.is_woken = False
            self._wake()
        return super().loop_forever(timeout, retry_first_connection)

    def loop_start(self) -> MQTTErrorCode:
        """As paho's."""
        if self._thread is not None:
            return MQTTErrorCode.MQTT_ERR_INVAL
        self._open_wake_pair()
        self._thread_terminate = False
        self._stops_by_s = None
        name = f"paho-mqtt-client-{self._client_id.decode()}"
        self._thread = Thread(target=self._thread_main, name=name, daemon=True)
        self._thread.start()
        return _SUCCESS

    def loop_stop(self) -> MQTTErrorCode:
        """As paho's, which fails where the thread ends by itself just then.

        The thread ends once what was published has been acknowledged, or with the connection; with a store, which has
        what is left, after 5 s at most.
        """
        thread = self._thread
        if thread is None:
            return MQTTErrorCode.MQTT_ERR_INVAL
        if self._outbox.is_stored:
            # DISCONNECT, where it waits, goes first.
            leaving_s = 0.0 if self._farewell is None else _HEAR_OUT_S
            self._stops_by_s = time.monotonic() + _FAREWELL_TIMEOUT_S + leaving_s
        self._thread_terminate = True
        self._wake()
        if threading.current_thread() is not thread:
            thread.join()
        return MQTTErrorCode.MQTT_ERR_SUCCESS

    def _is_stop_due(self) -> bool:
        return self._stops_by_s is not None and time.monotonic() >= self._stops_by_s

    def _thread_main(self) -> None:
        """The network thread. Where its loop raises, the policy says whether it begins again."""
        try:
            while not self._run_loop():
                pass
        finally:
            try:
                if not self._thread_terminate:
                    self._close_for_good()
                elif self._connector.interrupt.is_set():
                    # A connection that was being made while `close` was called.
                    self._sock_close()
            finally:
                self._thread = None
                # Where a callback of this thread has called `close`, nobody else would.
                self._connector.interrupt.clear()

    def _run_loop(self) -> bool:
        """True where the thread is to end."""
        try:
            self.loop_forever(retry_first_connection=self._policy.retries_first)
        except Exception as error:
            return not self._policy.goes_on(self, error)
        return True

    def _goes_on_behind(self) -> bool:
        """Pass over what failed; False where there is neither a connection nor another to be made."""
        if self._thread_terminate:
            return False
        self._dispatcher.pass_over()
        if self._state in (_State.MQTT_CS_DISCONNECTING, _State.MQTT_CS_DISCONNECTED):
            return self._sock is not None
        return self._sock is not None or self._reconnect_on_failure

    def _begins_anew(self) -> bool:
        """End the connection, wait, and have the next be made as the first; False where none is to be made."""
        self._sock_close()
        if not self._reconnect_on_failure:
            return False
        self._reconnect_wait()
        self._state = _State.MQTT_CS_CONNECT_ASYNC
        return not self._thread_terminate

    def _close_for_good(self) -> None:
        """The thread ends and nobody asked it to: nobody must go on waiting for its connection."""
        if self._state not in (_State.MQTT_CS_DISCONNECTING, _State.MQTT_CS_DISCONNECTED):
            self._state = _State.MQTT_CS_CONNECTION_LOST
        self._sock_close()

    def _after_queueing(self, *, wake: bool = True) -> MQTTErrorCode:
        """See to it that what was queued leaves: by the thread, by the program's own loop, or at once."""
        thread = self._thread
        if thread is not None:
            # The thread itself looks for something to send at every turn.
            if wake and not self._outbox.is_woken and threading.get_ident() != thread.ident:
                self._wake()
        else:
            if wake:
                self._wake()
                # The next message is written at once too, whether `loop` was called meanwhile or not.
                self._outbox.is_woken = False
            if self._on_socket_register_write is None and self._in_callback_mutex.acquire(False):
                return self.loop_write()
        if not self._registered_write:
            self._ask_for_room()
        return _SUCCESS

    def _loop(self, timeout: float = 1.0) -> MQTTErrorCode:
        if timeout < 0.0:
            raise ValueError("Invalid timeout.")
        sock = self._sock
        if sock is None:
            return self._no_connection()
        if self._is_torn():
            return self._end_torn()
        if self._farewell is not None:
            self._leave_when_due()
            if self._sock is None:
                return self._no_connection()
            timeout = min(timeout, _FAREWELL_LOOK_S)
        self._let_acks_gather()
        # More is there as a rule, and the read tells it as well as a wait.
        is_stream = self._acks_stream and not self._outbox.is_woken
        events = (
            (True, False)
            if is_stream
            else self._wait_for_events(sock, 0.0 if self._dispatcher.is_behind() else timeout)
        )
        if events is None:
            self._end_farewell()
            if self._state not in (_State.MQTT_CS_DISCONNECTING, _State.MQTT_CS_DISCONNECTED):
                self._state = _State.MQTT_CS_CONNECTION_LOST
            return MQTTErrorCode.MQTT_ERR_CONN_LOST
        readable, writable = events
        if readable or self._dispatcher.is_behind():
            rc = self.loop_read()
            if rc or self._sock is None:
                return rc
        if writable or self._outbox.session.sendable_bytes:
            rc = self.loop_write()
            if rc or self._sock is None:
                return rc
        now_s = time.monotonic()
        if self._thread is not None and now_s - self._misc_done_s < _MISC_INTERVAL_S:
            return _SUCCESS
        self._misc_done_s = now_s
        return self.loop_misc()

    def _let_acks_gather(self) -> None:
        """Under load, take acknowledgements by the hundred: a turn of the loop costs as much as the acks of many."""
        session = self._outbox.session
        if self._acks_stream and not session.sendable_bytes:
            pause_s = _GATHER_S * min(session.in_flight / session.window, 1.0)
            if pause_s > _GATHER_MIN_S:
                time.sleep(pause_s)

    def _no_connection(self) -> MQTTErrorCode:
        self._easy_log(
            LogLevel.MQTT_LOG_ERR,
            "Client is not connected. Socket: %r). Last known Connection State: %s",
            self._sock,
            self._state.name,
        )
        return MQTTErrorCode.MQTT_ERR_NO_CONN

    def _wait_for_events(self, sock: Any, timeout: float) -> tuple[bool, bool] | None:
        """(readable, writable), or None where the socket is gone."""
        wake = self._sockpairR
        pending = self._is_layered and self._has_pending(sock)
        try:
            # A program's own loop may have several threads wait.
            poller = self._pollers.pop()
        except IndexError:
            poller = Poller()
        try:
            flags, woken = poller.wait(
                sock.fileno(),
                -1 if wake is None else wake.fileno(),
                for_room=self.want_write(),
                timeout_ms=0 if pending else timeout * 1000,
            )
            self._pollers.append(poller)
        except (TypeError, ValueError, OSError):
            return None
        if flags & select.POLLNVAL:
            return None
        if woken and wake is not None:
            # Before the pull: whoever wakes from here on is either seen by it or writes again.
            woken = self._link.hear(wake)
            self._link.do(self._outbox.pull)
        return pending or bool(flags & ~select.POLLOUT), woken or bool(flags & select.POLLOUT)

    # ---- bytes in

    def loop_read(self, max_packets: int = 1) -> MQTTErrorCode:
        """As paho's, in bulk: one read may bring many packets."""
        if self._is_torn() and self._sock is not None:
            return self._end_torn()
        if self._dispatcher.is_behind() and self._sock is not None:
            rc = self._dispatcher.handle(self._sock)
            if rc:
                return self._loop_rc_handle(rc)
        for number in range(_PENDING_READS_A_TURN):
            sock = self._sock
            if sock is None:
                return MQTTErrorCode.MQTT_ERR_NO_CONN
            received_bytes, ended, failure = self._feed(sock)
            if received_bytes:
                rc = self._dispatcher.handle(sock)
                if rc:
                    return self._loop_rc_handle(rc)
                self._hasten_acks(sock, received_bytes)
                if self._sock is not sock:
                    break
            if ended is _AGAIN:
                if not received_bytes:
                    self._acks_stream = False
                    self._hasten_connack(sock)
                break
            if failure is not None:
                self._easy_log(LogLevel.MQTT_LOG_ERR, "failed to receive on socket: %s", failure)
            if ended:
                return self._loop_rc_handle(ended)
            may_be_more = received_bytes >= _RECEIVE_BYTES and number < _READS_A_TURN
            if not may_be_more and not (self._is_layered and self._has_pending(sock)):
                break
        return _SUCCESS

    def _feed(self, sock: Any) -> tuple[int, MQTTErrorCode, OSError | None]:
        """Give the parser what one read brings: (its size, MQTT_ERR_AGAIN where nothing more is there, what failed).

        Over TLS a read brings a record, and a broker makes one of each packet: then all that have come, as a turn of
        the loop costs as much as reading tens of them.
        """
        received_bytes = 0
        now_s = paho.time_func()
        ended, failure = _SUCCESS, None
        for _ in range(_RECORDS_A_READ if self._ssl else 1):
            try:
                size = self._link.read(sock, _RECEIVE_BYTES, now_s)
            except ssl.SSLWantWriteError:
                # A handshake within the connection.
                self._call_socket_register_write()
                ended = _AGAIN
                break
            except (BlockingIOError, ssl.SSLWantReadError):
                ended = _AGAIN
                break
            except OSError as error:
                ended, failure = _CONN_LOST, error
                break
            if not size:
                self._outbox.is_left = True
                ended = _CONN_LOST
                break
            received_bytes += size
            if received_bytes >= _RECEIVE_BYTES or self._sock is not sock:
                break
        if received_bytes:
            setattr(self, _paho.LAST_RECEIVED, now_s)
        return received_bytes, ended, failure

    def _is_leaving(self) -> bool:
        """True once DISCONNECT was put; paho's state says so before, and also where an exception kept it from that."""
        return bool(self._outbox.session.has_last)

    def _is_torn(self) -> bool:
        """True where an exception has left a connection of no use: one whose bytes nobody knows, or without CONNECT."""
        return self._link.is_torn or (self._link.lacks_connect and not self._connecting.is_anywhere)

    def _end_torn(self) -> MQTTErrorCode:
        """An exception has cut a write or a read short: what was in flight goes again on the next connection."""
        self._easy_log(
            LogLevel.MQTT_LOG_ERR, "closing the connection: an exception cut into its making, a write or a read"
        )
        return self._loop_rc_handle(_CONN_LOST)

    @property
    def _is_tcp(self) -> bool:
        return self._transport == "tcp"

    def _hasten_acks(self, sock: Any, received_bytes: int) -> None:
        """A broker with Nagle's algorithm holds acks back until our kernel acknowledges the last, 40 ms later."""
        self._acks_stream = received_bytes >= _STREAM_READ_BYTES
        session = self._outbox.session
        is_waiting = session.in_flight and not session.sendable_bytes
        # What is sent next acknowledges as well.
        if is_waiting and self._sock is sock and self._is_tcp:
            acknowledge_at_once(sock)

    def _hasten_connack(self, sock: Any) -> None:
        """TLS session tickets have come: with Nagle's algorithm CONNACK follows once our kernel acknowledges them."""
        if self._ssl and self._is_tcp and self._state != _State.MQTT_CS_CONNECTED:
            acknowledge_at_once(sock)

    @staticmethod
    def _has_pending(sock: Any) -> bool:
        return hasattr(sock, "pending") and sock.pending() > 0

    # ---- bytes out

    def _packet_queue(
        self, command: int, packet: bytes | bytearray, mid: int, qos: int, info: Any = None
    ) -> MQTTErrorCode:
        kind = command & 0xF0
        taken = self._outbox.put_packet(packet, first=kind == _CONNECT, last=kind == _DISCONNECT)
        if not taken and self._sock is not None:
            return MQTTErrorCode.MQTT_ERR_NO_CONN
        if kind == _CONNECT:
            self._link.lacks_connect = False
        return self._after_queueing()

    def _mid_generate(self) -> int:
        mid = self._outbox.reserve_packet_id()
        if mid == 0:
            raise GlecError("all 65,535 packet ids are in use: wait until some messages are acknowledged (MQTT 2.2.1)")
        return mid

    def _send_last_words(self, packet: bytes) -> None:
        """As much of it as the socket takes now; the connection is closed next."""
        self._outbox.put_packet(packet, last=True)
        self._write_out()

    def _write_out(self) -> None:
        """As much as the socket takes now."""
        try:
            while self._write_some()[0]:
                pass
        except OSError as error:
            self._easy_log(LogLevel.MQTT_LOG_DEBUG, "the server did not hear why: %s", error)

    def _log_sent(self) -> None:
        """paho's texts for what the outbox has encoded since."""
        outbox = self._outbox
        for message, command in outbox.take_trace():
            if command & 0xF0 == _PUBREL:
                self._easy_log(LogLevel.MQTT_LOG_DEBUG, "Sending PUBREL (Mid: %d)", message.mid)
                continue
            text = "Sending PUBLISH (d%d, q%d, r%d, m%d), '%s'"
            values = [command >> 3 & 1, message.qos, message.retain, message.mid, message.topic.encode()]
            if self._protocol == _MQTT_5:
                text += ", properties=%s"
                packed = message.properties
                values.append(None if packed is None else properties_from(PacketTypes.PUBLISH, packed))
            if message.payload:
                text += ", ... (%d bytes)"
                values.append(len(message.payload))
            else:
                text += " (NULL payload)"
            self._easy_log(LogLevel.MQTT_LOG_DEBUG, text, *values)

    def want_write(self) -> bool:
        """As paho's."""
        return bool(self._outbox.session.sendable_bytes)

    def loop_write(self) -> MQTTErrorCode:
        """As paho's."""
        if self._sock is None:
            return MQTTErrorCode.MQTT_ERR_NO_CONN
        try:
            rc = self._packet_write()
            # MQTT_ERR_AGAIN is below it.
            return self._loop_rc_handle(rc) if rc > _SUCCESS else _SUCCESS
        finally:
            if self._outbox.session.sendable_bytes:
                self._ask_for_room()
            elif self._on_socket_unregister_write is None:
                self._registered_write = False
            else:
                self._call_socket_unregister_write()

    def _ask_for_room(self) -> None:
        """Have the program's own loop call `loop_write`."""
        if self._on_socket_register_write is None and self._sock is not None:
            self._registered_write = True
        else:
            self._call_socket_register_write()

    def _packet_write(self) -> MQTTErrorCode:
        outbox = self._outbox
        while True:
            try:
                sent, is_last = self._write_some()
            except BlockingIOError:
                return MQTTErrorCode.MQTT_ERR_AGAIN
            except OSError as error:
                self._easy_log(LogLevel.MQTT_LOG_ERR, "failed to receive on socket: %s", error)
                return MQTTErrorCode.MQTT_ERR_CONN_LOST
            if outbox.is_to_settle:
                self._settle_sent()
            if sent:
                self._last_msg_out = paho.time_func()
            if is_last:
                self._on_disconnect_sent()
                return _SUCCESS
            if not sent:
                return _SUCCESS
            self._link.do(outbox.pull)
            if outbox.has_trace:
                self._log_sent()
            if not outbox.session.sendable_bytes:
                return _SUCCESS

    def loop_misc(self) -> MQTTErrorCode:
        """As paho's; what an exception kept from being told, or asked for, is made up for.

        With a store, what is on disk by now is made ready to be sent.
        """
        self._policy.tick()
        if self._policy.is_moving and self._state == _State.MQTT_CS_CONNECTED:
            return self._leave_for_another()
        outbox = self._outbox
        if self._sock is not None:
            if outbox.is_to_settle:
                self._settle_sent()
            if outbox.session.sendable_bytes and not self._registered_write:
                self._ask_for_room()
        if self._sock is not None:
            if self._thread is None:
                self._pull_for_own_loop(outbox)
            elif outbox.is_due:
                self._link.do(outbox.pull)
            outbox.look_for_answers()
            self._leave_when_due()
        sock = self._sock
        if self._is_torn() and sock is not None:
            return self._end_torn()
        if self._dispatcher.is_behind() and sock is not None:
            # Whole packets that a callback's exception left behind: the socket has no more to say about them.
            rc = self._dispatcher.handle(sock)
            if rc:
                return self._loop_rc_handle(rc)
        return super().loop_misc()

    def _settle_sent(self) -> None:
        outbox = self._outbox
        outbox.settle_into(self._dispatcher.finished)
        self._link.do(outbox.after_settle)
        # It has left all the same, also where a callback raises; those behind it are told of in the loop's next turn.
        self._dispatcher.tell_published(again=False)

    def _write_some(self) -> tuple[int, bool]:
        """(bytes that the socket took, whether DISCONNECT was among them)."""
        return self._link.write(self, _SEND_BYTES)

    def _write_for_thread(self) -> None:
        """Under load the network thread waits long for the GIL. What follows from the writing stays its business."""
        if self._ssl or not self._is_tcp:
            return
        try:
            with self._link.lock.attempt() as is_free:
                if is_free and not self._outbox.session.has_last:
                    self._write_some()
        except BlockingIOError:
            # The network thread goes on once the socket has room.
            return
        except OSError as error:
            self._easy_log(LogLevel.MQTT_LOG_DEBUG, "the network thread is to end the connection: %s", error)

    def _on_disconnect_sent(self) -> None:
        try:
            self._hear_out(0.0 if self._on_socket_register_write is not None else _HEAR_OUT_S)
            self._do_on_disconnect(packet_from_broker=False, v1_rc=MQTTErrorCode.MQTT_ERR_SUCCESS)
        finally:
            self._sock_close()
            if self._state == _State.MQTT_CS_DISCONNECTING:
                self._state = _State.MQTT_CS_DISCONNECTED

    def _hear_out(self, wait_s: float = _HEAR_OUT_S, until: int = 0) -> bool:
        """Let the broker, which closes the connection at DISCONNECT (MQTT 3.14.4), do so first.

        Where we closed it with anything of the broker's unread, or still coming, our kernel would reset it, and the
        broker lose what it has not read yet. A store takes the last acknowledgements, and need not send those messages
        again. A program's own loop has other duties, and is not held up.
        until: a packet's type, after which it listens no longer; True where that came.
        """
        sock = self._sock
        if sock is None:
            return False
        if not until:
            end_sending(sock)
        deadline_s = time.monotonic() + wait_s
        has_come = False
        poller = Poller()
        takes_acks = self._outbox.is_stored
        while self._sock is sock:
            if takes_acks:
                has_come = until in self._dispatcher.take_last_acks()
            if has_come:
                break
            remaining_s = max(deadline_s - time.monotonic(), 0.0)
            try:
                flags, _ = poller.wait(sock.fileno(), -1, for_room=False, timeout_ms=remaining_s * 1000)
                if not flags and not self._has_pending(sock):
                    break
                if takes_acks:
                    size = self._link.read(sock, _RECEIVE_BYTES, paho.time_func())
                else:
                    size = len(self._sock_recv(_RECEIVE_BYTES))
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                continue
            except (OSError, ValueError):
                # However it ended.
                break
            if not size:
                break
        self._dispatcher.tell_published()
        return has_come

    # ---- connections

    def _aim(self, host: str, port: int, transport: Literal["tcp", "websockets"], path: str, owner: Owner) -> None:
        """Where the next connection leads, and whose session is there; see `_identify`."""
        self._host, self._port, self._transport, self._owner = host, port, transport, owner
        if transport == "websockets":
            self.ws_set_options(path)

    def _leave_for_another(self) -> MQTTErrorCode:
        """In order, so that no will is published; the loop makes the next connection."""
        self._send_last_words(_DISCONNECT_PACKET)
        self._hear_out()
        return self._loop_rc_handle(MQTTErrorCode.MQTT_ERR_CONN_LOST)

    def _send_connect(self, keepalive: int) -> MQTTErrorCode:
        if not self._takeover.discards:
            return super()._send_connect(keepalive)
        name = "_clean_start" if self._protocol == MQTTProtocolVersion.MQTTv5 else "_clean_session"
        asked_for = getattr(self, name)
        setattr(self, name, True)
        try:
            return super()._send_connect(keepalive)
        finally:
            setattr(self, name, asked_for)

    def _connect_again_if_needed(self, session_present: bool) -> MQTTErrorCode | None:
        """Leave in order, so that no will is published, and come back at once; None where this connection lasts."""
        is_ours = not self._takeover.must_connect_again(
            session_present=session_present,
            is_foreign=self._outbox.is_session_foreign,
            is_mqtt_5=self._protocol == _MQTT_5,
        )
        if is_ours:
            return None
        if self._takeover.discards and not self._release_left():
            self._takeover.discards = False
            return MQTTErrorCode.MQTT_ERR_CONN_LOST
        self._send_last_words(_DISCONNECT_PACKET)
        # To the program it is the same connection.
        self._connects_again = True
        try:
            return self.reconnect()
        except (OSError, GlecError) as error:
            self._easy_log(LogLevel.MQTT_LOG_ERR, "connecting again failed: %s", error)
            return MQTTErrorCode.MQTT_ERR_CONN_LOST
        finally:
            self._connects_again = False
            # Also what was published in between.
            self._outbox.is_awaited = True

    def _release_left(self) -> bool:
        """Let the session that is to be discarded hand on what was left to it; False where the broker may not have."""
        left = self._outbox.left_packet_ids()
        if not left:
            return True
        for packet_id in left:
            self._outbox.put_packet(_PUBREL_PACKET + packet_id.to_bytes(2, "big"))
        self._outbox.put_packet(_PINGREQ_PACKET)
        self._write_out()
        # Whoever answers that has read what was before it.
        if not self._hear_out(self._connect_timeout, PINGRESP):
            return False
        self._outbox.on_left_released()
        return True

    def _handle_connack(self) -> MQTTErrorCode:
        body = bytes(self._in_packet["packet"])
        if body[1] == _PAYLOAD_FORMAT_INVALID and self._protocol == MQTTProtocolVersion.MQTTv5:
            raise MalformedPacket("CONNACK with reason code 0x99, for which paho has no name")
        if body[1] != 0:
            return super()._handle_connack()
        rc = self._link.do(self._connect_again_if_needed, bool(body[0] & 1))
        if rc is not None:
            return rc
        sock = self._sock
        self._on_accepted(body)
        accepted = bool(body[0] & 1), self._receive_maximum(body)
        if not self._outbox.is_open:
            self._outbox.greet(*accepted)
        try:
            return super()._handle_connack()
        finally:
            if self._sock is sock and not self._outbox.is_open:
                # Also where on_connect raised: what waits must not wait for ever.
                self._link.do(self._outbox.resume, *accepted)
                self._outbox.settle_into(self._dispatcher.finished)

    def _on_accepted(self, connack: bytes) -> None:
        if not connack[0] & 1:
            # The server has nothing of an earlier session (MQTT 3.2.2.2): a PUBREL can only be for a new message.
            with self._in_message_mutex:
                self._in_messages.clear()
        properties = self._connack_properties(connack)
        if "ServerKeepAlive" in properties:
            # MQTT 5, 3.2.2.3.14; paho from 2.2 on.
            self._keepalive = properties["ServerKeepAlive"]
        self._outbox.meet(properties, self._asked_expiry_s())

    def _connack_properties(self, connack: bytes) -> dict[str, Any]:
        if self._protocol != MQTTProtocolVersion.MQTTv5:
            return {}
        return dict(vars(properties_from(PacketTypes.CONNACK, connack[2:])))

    def _receive_maximum(self, connack: bytes) -> int:
        """MQTT 5, 3.2.2.3.3; the highest value where the server names none."""
        return int(self._connack_properties(connack).get("ReceiveMaximum", _RECEIVE_MAXIMUM))

    def _loop_rc_handle(self, rc: MQTTErrorCode) -> MQTTErrorCode:
        try:
            return super()._loop_rc_handle(rc)
        finally:
            self._note_loss()

    def _do_on_disconnect(self, *args: Any, **kwargs: Any) -> None:
        try:
            super()._do_on_disconnect(*args, **kwargs)
        finally:
            self._note_loss()

    def _note_loss(self) -> None:
        """paho goes on saying that it is connected: after a server's DISCONNECT, and after most errors."""
        if self._sock is None and self._state == _State.MQTT_CS_CONNECTED:
            self._state = _State.MQTT_CS_CONNECTION_LOST

    def _create_socket(self) -> Any:
        """As paho's; `close` cuts it short."""
        attempt = self._connector.begin(self._connect_timeout)
        try:
            is_websocket = self._transport == "websockets" and not _paho.has_own_websocket()
            sock = self._create_websocket() if is_websocket else super()._create_socket()
        except BaseException:
            # paho leaves it to the garbage collector.
            attempt.fail()
            raise
        attempt.succeed()
        return sock

    def _create_websocket(self) -> WebSocket:
        sock: Any = self._create_socket_connection()
        if self._ssl:
            sock = self._ssl_wrap_socket(sock)
        address = self._host, self._port, self._websocket_path
        upgrade(sock, *address, self._websocket_extra_headers, self._connect_timeout, is_tls=self._ssl)
        return WebSocket(sock, *address, is_tls=self._ssl)

    def _create_socket_connection(self) -> socket.socket:
        if self._get_proxy():
            sock: socket.socket = super()._create_socket_connection()
        else:
            source = (self._bind_address, self._bind_port)
            sock = self._connector.dial(self._host, self._port, source)
        self._connector.attempt.follow(sock)
        # We send whole batches; Nagle's algorithm would hold the last piece of each until the broker's kernel answers.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def _ssl_wrap_socket(self, tcp_sock: Any) -> Any:
        context = self._ssl_context
        if context is None or not (context.check_hostname or self._tls_insecure):
            return super()._ssl_wrap_socket(tcp_sock)
        return self._connector.shake_hands(tcp_sock, context, self._host)

    def _sock_close(self) -> None:
        # Not paho's, which fails in its own way where an exception cuts in.
        sock = self._sock
        if sock is None:
            return
        try:
            self._sock = None
            self._call_socket_unregister_write(sock)
            self._call_socket_close(sock)
        finally:
            sock.close()
            self._dispatcher.drop()
            self._end_farewell()

    def _messages_reconnect_reset(self) -> None:
        self._dispatcher.drop()
        self._link.begin()
        self._identify()
        self._expect()
        self._outbox.session.protocol_version = int(self._protocol)
        self._outbox.session.offered_may_leave = self._is_layered = self._ssl or self._transport == "websockets"
        self._messages_reconnect_reset_in()

    def _expect(self) -> None:
        """Tell the parser what CONNECT allows the server."""
        inbound = self._dispatcher.inbound
        inbound.protocol_version = int(self._protocol)
        properties = self._connect_properties if self._protocol == _MQTT_5 else None
        inbound.max_packet_bytes = getattr(properties, "MaximumPacketSize", 0)
        inbound.topic_alias_maximum = getattr(properties, "TopicAliasMaximum", 0)

    def _next_reconnect_delay_s(self) -> float:
        with self._reconnect_delay_mutex:
            if self._reconnect_delay is None:
                self._reconnect_delay = self._reconnect_min_delay
            else:
                self._reconnect_delay = min(self._reconnect_delay * 2, self._reconnect_max_delay)
            return self._reconnect_delay

    def _reconnect_wait(self) -> None:
        policy = self._policy
        delay_s = policy.next_delay_s()
        remaining_s = self._next_reconnect_delay_s() if delay_s is None else delay_s
        while remaining_s > 0 and not self._thread_terminate:
            if self._state in (_State.MQTT_CS_DISCONNECTING, _State.MQTT_CS_DISCONNECTED):
                return
            slice_s = min(remaining_s, max(policy.tick(), 0.01))
            if policy.wait(self._connector.interrupt, slice_s):
                return
            remaining_s -= slice_s

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
        is_leaving = self._farewell is not None or self._state == _State.MQTT_CS_DISCONNECTING
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


class _SendableBytes:
    """paho's thread stays until they have left. What waits at the gate is on disk, and may wait for ever."""

    def __init__(self, client: Client, outbox: Outbox) -> None:
        self._client = client
        self._session = outbox.session

    def __len__(self) -> int:
        if self._client._is_stop_due():
            return 0
        return int(self._session.sendable_bytes) or int(self._client._farewell is not None)


class _Unacknowledged:
    """paho's thread stays until there are none. A store's messages outlive it, and may be many: it stays a while."""

    def __init__(self, client: Client, outbox: Outbox) -> None:
        self._client = client
        self._outbox = outbox

    def __len__(self) -> int:
        return self._outbox.unfinished(self._client._stops_by_s)


def with_session_expiry(given: Properties | None) -> Properties:
    """A copy of `given` that asks for a session without an end, where it says nothing of it."""
    properties = Properties(PacketTypes.CONNECT) if given is None else copy(given)
    if not hasattr(properties, "SessionExpiryInterval"):
        properties.SessionExpiryInterval = _FOR_EVER
    return properties
