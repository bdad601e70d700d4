"""paho's Client with its hot paths replaced: PUBLISH, the acknowledgements, bulk reads and bulk writes.

A face: it takes paho's arguments and hands on to its parts, see `glec_fast.mqtt.parts`. paho keeps CONNECT, a
WebSocket's upgrade, proxies, keep alive, SUBSCRIBE, properties and the callbacks; see `glec_fast._paho` for what of it
is used here.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast, overload

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion, LogLevel, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.properties import Properties

from glec_fast import _paho
from glec_fast._paho import ConnectionState as _State
from glec_fast._paho import MQTTMessage, PahoClient
from glec_fast.durable.extras import extras_of
from glec_fast.durable.outcomes import Dropped
from glec_fast.durable.store import Store
from glec_fast.engine.connector import Connector
from glec_fast.engine.policy import Policy
from glec_fast.errors import ConfigError, GlecError, UnsupportedError
from glec_fast.mqtt.drops import tell_dropped
from glec_fast.mqtt.filters import Filters
from glec_fast.mqtt.inbound_message import unsent_message
from glec_fast.mqtt.parts import Parts, compose, open_outbox
from glec_fast.mqtt.views import OutMessages, OutPackets, counter
from glec_fast.outbox._outbox import MemoryOutbox, Outbox, publish
from glec_fast.outbox.owners import OnOwnerAway, Owner
from glec_fast.outbox.stored import DurableOutbox
from glec_fast.runtime import green, process
from glec_fast.runtime._lock import CallbackMark, Lock
from glec_fast.validation import PACKET_MAX_BYTES, check_publish, check_size

if TYPE_CHECKING:
    from paho.mqtt.reasoncodes import ReasonCode

    from glec_fast.outbox.handle import PublishHandle

_MAX_UNRELEASED = 20
_MAX_QOS = 2
_FIRST_ONLY = paho.MQTT_CLEAN_START_FIRST_ONLY
_PACKET_IDS = 65_535
_CONNECT = 0x10
_MQTT_5 = MQTTProtocolVersion.MQTTv5
Self = TypeVar("Self", bound="Client")


if TYPE_CHECKING:
    from glec_fast.mqtt.callbacks import WithCallbacks
else:
    WithCallbacks = PahoClient


class _NoStoreError(UnsupportedError, AttributeError):
    """For `hasattr`, and whoever looks at all that an object has: it has none."""


class _StoreOf:
    """The queue: its size, drops, ledger and settings. Raises UnsupportedError where there is none.

    A program's own class may have an attribute of that name: no property, which could not be set.
    """

    @overload
    def __get__(self, client: None, kind: type[Client]) -> _StoreOf: ...
    @overload
    def __get__(self, client: Client, kind: type[Client]) -> Store: ...
    def __get__(self, client: Client | None, kind: type[Client]) -> _StoreOf | Store:
        if client is None:
            return self
        outbox = client._glec_outbox
        if not outbox.is_stored:
            raise _NoStoreError("this client keeps its messages in memory: give it a store with store=")
        return outbox.store


class Client(process.OfOneProcess, WithCallbacks):
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
    resend_unproven: with a store, QoS 0 that was in the air as a link died is queued again. It may then arrive twice.
    answer_timeout_s: PINGREQ goes out as soon as so long nothing has come back for what went out, and is to be answered
    in the same time; 0 for the keep alive alone, as with paho.
    ack_timeout_s: a message that is unacknowledged for so long ends the connection, and goes again on the next. 0: no.
    max_qos: with a store, the highest QoS that the broker takes, 0 to 2: what has a higher one is sent with this.
    max_packet_bytes: with a store, the largest packet that it takes, from 64; `publish` refuses what needs more.
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
        resend_unproven: bool = False,
        answer_timeout_s: float = 0.0,
        ack_timeout_s: float = 0.0,
        max_qos: int = _MAX_QOS,
        max_packet_bytes: int = PACKET_MAX_BYTES,
        connector: Connector | None = None,
        policy: Policy | None = None,
    ) -> None:
        green.notice()
        # Where on_log is a method of a subclass, or is set, or a logger.
        self._glec_is_logging = False
        if store is None:
            for_a_store = wait_for_disk, resend_in_doubt, max_unreleased, resend_unproven
            if for_a_store != (True, False, _MAX_UNRELEASED, False):
                names = "wait_for_disk, resend_in_doubt, max_unreleased and resend_unproven"
                raise ConfigError(f"{names} are for a client with a store")
            if (max_qos, max_packet_bytes) != (_MAX_QOS, PACKET_MAX_BYTES):
                raise ConfigError("max_qos and max_packet_bytes are for a client with a store")
        else:
            if max_qos not in (0, 1, 2) or not 64 <= max_packet_bytes <= PACKET_MAX_BYTES:
                raise ConfigError(f"max_qos must be 0, 1 or 2, and max_packet_bytes 64 to {PACKET_MAX_BYTES}")
            if not 1 <= max_unreleased <= 65_534:
                raise ConfigError(f"max_unreleased is {max_unreleased}; it must be 1 to 65534 messages")
            if on_owner_away not in ("wait", "move"):
                raise ConfigError(f"on_owner_away is {on_owner_away!r}; it must be 'wait' or 'move'")
            if not client_id:
                text = "a client with a store needs a client_id: the broker keeps its session under that name"
                raise ConfigError(text)
            if protocol != _MQTT_5 and clean_session is None:
                clean_session = False
        given = callback_api_version, client_id, clean_session, userdata
        super().__init__(*given, protocol, transport, reconnect_on_failure, manual_ack)
        # paho's is a lock, held while a callback runs.
        self._in_callback_mutex = CallbackMark()  # type: ignore[assignment]
        for name in _paho.LOCKS:
            setattr(self, name, Lock(name))
        self._on_message_filtered = Filters()
        self._glec_connector = connector or Connector()
        self._glec_policy = policy or Policy()
        timeouts_s = {"answer_timeout_s": answer_timeout_s, "ack_timeout_s": ack_timeout_s}
        if any(each < 0 for each in timeouts_s.values()):
            raise ConfigError("answer_timeout_s and ack_timeout_s must be 0 s or more")
        if store is None:
            self._glec_compose(MemoryOutbox(self._max_inflight_messages, self._glec_wake), timeouts_s)
        else:
            make = partial(
                DurableOutbox,
                window=self._max_inflight_messages,
                on_work=self._glec_wake,
                on_dropped=self._glec_tell_dropped,
                wait_for_disk=wait_for_disk,
                resend_in_doubt=resend_in_doubt,
                max_unreleased=max_unreleased,
                on_owner_away=on_owner_away,
                resend_unproven=resend_unproven,
                max_qos=max_qos,
                max_packet_bytes=max_packet_bytes,
            )
            self._glec_compose(open_outbox(store, make), timeouts_s)
            process.watch_exit(self)
        if broker_name:
            self._glec_parts.greeting.owner = Owner(broker_name)
        process.watch_forks(self)

    def _glec_compose(self, outbox: Outbox, timeouts_s: dict[str, float]) -> None:
        self._glec_outbox = outbox
        self._glec_own_at_first = _overrides.of(self)
        self._glec_send_mark = CallbackMark()
        self._glec_parts = parts = compose(
            self, outbox, self._glec_connector, self._glec_policy, _overrides, **timeouts_s
        )
        self._glec_note_logging()
        outbox.session.protocol_version = int(self._protocol or 0)
        # For `publish`: where something is to be sent, and where what is sent is logged.
        self._glec_after_publish, self._glec_log_sent = parts.writer.after_publish, parts.writer.log_sent
        paho_s = _paho.Paho(self)
        unforgotten = parts.dispatcher.unforgotten
        self._out_messages = OutMessages(paho_s, outbox, parts.thread, unforgotten)  # type: ignore[assignment]
        self._out_packet = OutPackets(paho_s, outbox, parts.thread, parts.writer)  # type: ignore[assignment]
        self._glec_note_on_publish()

    store = _StoreOf()
    # (client, user data, Dropped) of each message that will not be sent; called by the store's thread.
    on_drop: Callable[[Any, Any, Dropped], None] | None = None

    def handle_for(self, message_id: int) -> PublishHandle | None:
        """The handle of a message published before, also by an earlier process of this queue file.

        message_id: the `mid` of the handle that `publish` returned. None where the message is not in the queue any
        more: the broker has it, it was dropped, or a process was killed before it was on disk, see
        `PublishHandle.wait_durable`. Raises MessageError where no message can have it, and UnsupportedError without a
        store.
        """
        return self._glec_outbox.handle_for(message_id)

    def flush(self, timeout_s: float | None = None) -> bool:
        """Wait until every accepted message is finished; False after `timeout_s` seconds, with nothing lost.

        timeout_s: None waits as long as it takes. From any thread, and not from a callback. Raises ConfigError for what
        is no time, UnsupportedError without a store.
        """
        return self._glec_outbox.store.wait_empty(timeout_s)

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
        """Say where to connect; returns at once, and a loop makes the connection. An existing one is closed.

        `connect`, with the same arguments, makes the connection itself and sends CONNECT; `on_connect` tells the rest.

        host, port: the broker's, 1 to 65,535; TLS has 8883 as a rule. keepalive: seconds, 0 to 65,535; a PINGREQ goes
        where nothing else did for so long (3.1.2.10). bind_address, bind_port: ours, "" and 0 for any.
        clean_start, properties: MQTT 5 only, see MQTT_CLEAN_START_FIRST_ONLY (3.1.2.4) and those of CONNECT (3.1.2.11).
        With a store, a session that does not end is asked for unless either says otherwise.
        Raises ValueError; from the loop or `connect`, OSError, and with a store QueueStorageError, QueueClosedError.
        """
        clean_start, properties = self._glec_parts.greeting.session_asked_for(clean_start, properties)
        super().connect_async(host, port, keepalive, bind_address, bind_port, clean_start, properties)

    def reinitialise(self, client_id: str = "", clean_session: bool = True, userdata: Any = None) -> None:
        """Make the client anew, as with these arguments of the class; it forgets its messages and callbacks.

        Raises UnsupportedError with a store, whose messages would be left without a client.
        """
        self._glec_outbox.refuse_renewal()
        super().reinitialise(client_id, clean_session, userdata)

    # What is logged decides how packets are taken.
    _on_log = _paho.noted("_on_log", "_glec_note_logging")
    _logger = _paho.noted("_logger", "_glec_note_logging")

    def _glec_note_logging(self) -> None:
        is_method = type(self).on_log is not PahoClient.on_log  # type: ignore[comparison-overlap]
        self._glec_is_logging = is_method or self._on_log is not None or self._logger is not None
        if "_glec_outbox" in self.__dict__:
            self._glec_outbox.is_traced = self._glec_is_logging or "_send_publish" in self._glec_own_at_first

    # ---- publishing

    publish = publish

    def _glec_publish_stored(
        self, topic: str, payload: bytes | bytearray, qos: int, retain: bool, properties: Properties | None
    ) -> PublishHandle:
        """For `publish`, where the outbox is over a store: what can be sent whenever there is a connection."""
        outbox = cast("DurableOutbox", self._glec_outbox)
        check_publish(topic, qos)
        check_size(payload)
        extras = extras_of(retain, properties if self._protocol == _MQTT_5 else None)
        handle = outbox.publish(topic, bytes(payload), qos, extras)
        if self._thread is None and self._sock is not None:
            self._glec_parts.writer.pull_for_own_loop()
        return handle

    def drop_out_messages(self) -> list[MQTTMessage]:
        """Forget all unacknowledged QoS 1 and 2 messages, and return them, the oldest first.

        From any thread. Raises UnsupportedError with a store: to drop what is on disk is for its limits.
        """
        unforgotten = self._glec_parts.dispatcher.unforgotten
        dropped = [*unforgotten.values(), *self._glec_outbox.clear()]
        unforgotten.clear()
        return [unsent_message(each) for each in dropped]

    # Written by `max_inflight_messages_set` and its like, and by programs themselves.
    _max_inflight_messages = _paho.noted("_max_inflight_messages", "_glec_note_window")
    _max_queued_messages = _paho.noted("_max_queued_messages", "_glec_note_bound")
    # Read by programs.
    _inflight_messages = counter(lambda client: client._glec_outbox.session.in_flight)
    _last_mid = counter(lambda client: client._glec_outbox.session.last_packet_id)

    def _glec_note_window(self) -> None:
        if "_glec_outbox" in self.__dict__:
            self._glec_outbox.session.set_window(min(self._max_inflight_messages, _PACKET_IDS))
            # There may be room by now.
            self._glec_wake()

    def _glec_note_bound(self) -> None:
        if "_glec_outbox" in self.__dict__:
            self._glec_outbox.set_max_queued(self._max_queued_messages)

    @property
    def max_queued_messages(self) -> int:
        """Most unacknowledged messages, 0 means no limit: `publish` returns MQTT_ERR_QUEUE_SIZE for any more.

        With a store, 0 means the store's limit, at which it drops messages instead.
        """
        return self._glec_outbox.max_queued

    @max_queued_messages.setter
    def max_queued_messages(self, value: int) -> None:
        PahoClient.max_queued_messages.fset(self, value)  # type: ignore[attr-defined]

    @property
    def on_publish(self) -> Any:
        """Called in the network loop for each message that the broker has taken over (QoS 0: the socket).

            def on_publish(client, userdata, mid, reason_code, properties): ...  # VERSION2
            def on_publish(client, userdata, mid): ...                           # VERSION1

        mid: that of the handle which `publish` returned, and perhaps has not returned yet. reason_code, properties: of
        PUBACK or PUBREC and PUBCOMP (MQTT 5, 3.4.2, 3.5.2, 3.7.2); success and none before MQTT 5, and for QoS 0. A
        `reason_code.is_failure` says that the broker has refused the message. With a store, it is called also for
        messages of an earlier process; `mid` is the message id. As a decorator: `publish_callback`. Set by any thread.
        """
        return self._on_publish

    @on_publish.setter
    def on_publish(self, func: Any) -> None:
        PahoClient.on_publish.fset(self, func)  # type: ignore[attr-defined]
        self._glec_note_on_publish()

    def _glec_note_on_publish(self) -> None:
        """Messages whose handle nobody holds cost something only where they are asked for."""
        self._glec_outbox.tell_all(bool(self.on_publish) or "_do_on_publish" in self._glec_own_at_first)

    def _glec_tell_dropped(self, dropped: list[Dropped]) -> None:
        tell_dropped(_paho.Paho(self), self._glec_policy, self.on_drop, dropped, self._glec_outbox.store.log)

    # ---- receiving

    def ack(self, mid: int, qos: int) -> MQTTErrorCode:
        """Acknowledge a message that arrived, where `manual_ack` is set: its `mid` and `qos`. From any thread.

        Returns MQTT_ERR_SUCCESS, also where there is nothing to acknowledge, or MQTT_ERR_NO_CONN (4.3.2, 4.3.3).
        With a store, one of QoS 2 is recorded on disk, and not given to the program again, also by the next process.
        """
        received = self._glec_parts.dispatcher.received
        if received is None or qos != _MAX_QOS or not self._manual_ack:
            return super().ack(mid, qos)
        received.acknowledge(mid)
        return MQTTErrorCode.MQTT_ERR_SUCCESS

    # ---- leaving

    def disconnect(self, reasoncode: ReasonCode | None = None, properties: Properties | None = None) -> MQTTErrorCode:
        """Leave the broker, behind what was published before; no connection follows. From any thread and any callback.

        reasoncode, properties: of DISCONNECT, MQTT 5 only (3.14). Returns MQTT_ERR_SUCCESS, or MQTT_ERR_NO_CONN.
        It waits, 5 s at most, for the broker to accept a connection that is being made, and with a store for the disk
        and until the window is full; for no acknowledgement. What is left is sent on the next connection, with a store
        also by the next process. It returns at once where a thread or the program's own loop sends it.
        """

        def leave() -> MQTTErrorCode:
            return PahoClient.disconnect(self, reasoncode, properties)

        return self._glec_parts.farewell.begin(leave)

    def reconnect(self) -> MQTTErrorCode:
        """Connect again, to where `connect` or `connect_async` said, and send CONNECT. For whoever has the loop.

        Raises ValueError where no host was given, OSError, and the connector's errors; then there is no connection.
        """
        return self._glec_parts.connecting.reconnect(super().reconnect)

    def is_connected(self) -> bool:
        """True from the broker's acceptance until the connection ends, or `disconnect` is called. From any thread."""
        return not self._glec_parts.farewell.is_waiting and super().is_connected()

    # ---- the loop

    def _glec_wake(self) -> None:
        """For the outbox, which calls it also while this client is being made."""
        if self._sockpairW is not None:
            self._glec_parts.wakeup.wake()

    def loop(self, timeout: float = 1.0) -> MQTTErrorCode:
        """One turn of the network loop: wait for at most `timeout` seconds, read, call back, write, keep alive.

        For programs without `loop_start` or `loop_forever`, which call it again and again. Returns MQTT_ERR_SUCCESS, or
        why the connection has ended; nothing connects again by itself. Raises ValueError where `timeout` is below 0.
        """
        parts = self._glec_parts
        parts.farewell.note_loop()
        if not parts.wakeup.is_open:
            parts.wakeup.open()
        return self._loop(timeout)

    def loop_forever(self, timeout: float = 1.0, retry_first_connection: bool = False) -> MQTTErrorCode:
        """Run the network loop in this thread until `disconnect`, and connect again where the connection is lost.

        timeout: seconds that a turn may wait. retry_first_connection: go on where the first connection of
        `connect_async` fails, which else raises OSError. Returns why it ended.
        """
        parts, outbox = self._glec_parts, self._glec_outbox
        parts.farewell.note_loop()
        if self._thread is None:
            # That of an earlier `loop_stop` was for the thread that has ended.
            self._thread_terminate = False
        if outbox.is_stored:
            if not parts.wakeup.is_open:
                parts.wakeup.open()
            # Who woke the loop before this one, if any, was heard by nobody.
            outbox.is_woken = False
            parts.wakeup.wake()
        return super().loop_forever(timeout, retry_first_connection)

    def loop_start(self) -> MQTTErrorCode:
        """Run `loop_forever` in a daemon thread of its own; callbacks are called in it. From any thread.

        Returns MQTT_ERR_SUCCESS, or MQTT_ERR_INVAL where one runs already. `loop_stop` ends it.
        """
        return self._glec_parts.thread.start()

    def loop_stop(self) -> MQTTErrorCode:
        """End the thread of `loop_start`, and wait for its end unless called from it; MQTT_ERR_INVAL without one.

        The thread ends once what was published has been acknowledged, or with the connection; with a store, which has
        what is left, after 5 s at most.
        """
        return self._glec_parts.thread.stop()

    def _loop(self, timeout: float = 1.0) -> MQTTErrorCode:
        return self._glec_parts.loop.turn(timeout)

    def loop_read(self, max_packets: int = 1) -> MQTTErrorCode:
        """For a loop of the program's own: the socket can be read. Reads all that has come, whatever `max_packets`.

        Returns MQTT_ERR_SUCCESS, MQTT_ERR_NO_CONN, or why the connection has ended.
        """
        return self._packet_read()

    def want_write(self) -> bool:
        """True where bytes wait for the socket, so that a program's own loop is to wait for room. From any thread."""
        return bool(self._glec_outbox.session.sendable_bytes)

    def loop_write(self) -> MQTTErrorCode:
        """For a loop of the program's own: the socket has room. Returns as `loop_read`."""
        return self._packet_write()

    def loop_misc(self) -> MQTTErrorCode:
        """For a loop of the program's own: keep alive, and what else is due; once a second.

        Returns as `loop_read`. What an exception kept from being told, or asked for, is made up for. With a store, what
        is on disk by now is made ready to be sent.
        """
        if self._sock is not None and self._glec_connector.is_unanswered:
            self._glec_connector.end_greeting()
            cause = "the server has not answered CONNECT in time (MQTT 3.1.4)"
            self._glec_parts.ending.note(cause)
            self._easy_log(LogLevel.MQTT_LOG_ERR, "closing the connection: %s", cause)
            return self._loop_rc_handle(MQTTErrorCode.MQTT_ERR_CONN_LOST)
        # One of the program's own returns nothing.
        return self._glec_parts.loop.do_misc() or self._check_keepalive() or MQTTErrorCode.MQTT_ERR_SUCCESS

    # ---- what a program's subclass may have its own of: see `_paho.overrides_of`

    def _check_keepalive(self) -> MQTTErrorCode:  # type: ignore[override]
        return self._glec_parts.liveness.check()

    def _thread_main(self) -> None:
        self._glec_parts.thread.main()

    def _packet_read(self) -> MQTTErrorCode:
        return self._glec_parts.reader.read()

    def _packet_write(self) -> MQTTErrorCode:
        return self._glec_parts.writer.write()

    def _handle_publish(self) -> MQTTErrorCode:
        self._glec_parts.dispatcher.take_message()
        return MQTTErrorCode.MQTT_ERR_SUCCESS

    def _handle_pubrel(self) -> MQTTErrorCode:
        return self._glec_parts.dispatcher.take_pubrel(int.from_bytes(self._in_packet["packet"][:2], "big"))

    def _handle_pubrec(self) -> MQTTErrorCode:
        # The session has it already; so with the next.
        return MQTTErrorCode.MQTT_ERR_SUCCESS

    def _handle_pubackcomp(self, cmd: Any) -> MQTTErrorCode:
        return MQTTErrorCode.MQTT_ERR_SUCCESS

    def _do_on_publish(self, mid: int, reason_code: ReasonCode, properties: Properties) -> MQTTErrorCode:
        self._glec_parts.dispatcher.forget_published()
        if on_publish := self.on_publish:
            is_first = self._callback_api_version == CallbackAPIVersion.VERSION1
            self._glec_parts.dispatcher.call_on_publish(on_publish, mid, () if is_first else (reason_code, properties))
        return MQTTErrorCode.MQTT_ERR_SUCCESS

    def _send_publish(self, mid: int, *args: Any, **kwargs: Any) -> MQTTErrorCode:
        if self._glec_send_mark.acquire(False):
            return super()._send_publish(mid, *args, **kwargs)
        # The outbox has encoded it already, and the program's own method is told.
        return MQTTErrorCode.MQTT_ERR_SUCCESS

    def _packet_queue(
        self, command: int, packet: bytes | bytearray, mid: int, qos: int, info: Any = None
    ) -> MQTTErrorCode:
        if command == _CONNECT:
            packet = self._glec_parts.greeting.amended(packet)
        return self._glec_parts.writer.put(command, packet)

    def _mid_generate(self) -> int:
        mid = self._glec_outbox.reserve_packet_id()
        if mid == 0:
            raise GlecError("all 65,535 packet ids are in use: wait until some messages are acknowledged (MQTT 2.2.1)")
        return mid

    # ---- connections

    def _send_connect(self, keepalive: int) -> MQTTErrorCode:
        self._glec_connector.begin_greeting()
        return self._glec_parts.greeting.send_connect(super()._send_connect, keepalive)

    def _handle_connack(self) -> MQTTErrorCode:
        self._glec_connector.end_greeting()
        return self._glec_parts.greeting.on_connack(super()._handle_connack)

    def _loop_rc_handle(self, rc: MQTTErrorCode) -> MQTTErrorCode:
        try:
            return super()._loop_rc_handle(rc)
        finally:
            self._glec_note_loss()

    def _do_on_disconnect(self, *args: Any, **kwargs: Any) -> None:
        try:
            super()._do_on_disconnect(*args, **kwargs)
        finally:
            self._glec_note_loss()

    def _glec_note_loss(self) -> None:
        """paho goes on saying that it is connected: after a server's DISCONNECT, and after most errors."""
        if self._sock is None and self._state == _State.MQTT_CS_CONNECTED:
            self._state = _State.MQTT_CS_CONNECTION_LOST

    def _create_socket(self) -> Any:
        return self._glec_parts.connecting.create_socket(super()._create_socket)

    def _create_socket_connection(self) -> socket.socket:
        return self._glec_parts.connecting.dial(super()._create_socket_connection)

    def _ssl_wrap_socket(self, tcp_sock: Any) -> Any:
        return self._glec_parts.connecting.shake_hands(tcp_sock, super()._ssl_wrap_socket)

    def _sock_close(self) -> None:
        # Not paho's, which fails in its own way where an exception cuts in.
        sock = self._sock
        if sock is None:
            return
        try:
            self._sock = None
            self._glec_connector.on_closing()
            self._call_socket_unregister_write(sock)
            self._call_socket_close(sock)
        finally:
            sock.close()
            self._glec_parts.dispatcher.drop()
            self._glec_parts.farewell.end()

    def _messages_reconnect_reset(self) -> None:
        self._glec_parts.greeting.begin()
        self._messages_reconnect_reset_in()

    def _reconnect_wait(self) -> None:
        self._glec_parts.thread.wait_to_reconnect()

    # ---- the end

    def close(self) -> None:
        """Leave the broker, end the thread of `loop_start`, write what is pending and let go of the queue file.

        Idempotent. A connection that is being made is given up at once; a link that takes no DISCONNECT, and a name
        that the system still looks up, after 5 s. What was not sent stays in the file.
        `disconnect` alone leaves the queue open: messages are accepted, and `connect` goes on with them.
        Raises QueueStorageError where something could not be written.
        """
        outbox = self._glec_outbox
        self._glec_parts.thread.end(self.disconnect)
        if outbox.is_stored:
            process.leave(self)
        outbox.close()
        if self._thread is None:
            self._glec_connector.interrupt.clear()

    def _process_ends(self, deadline_s: float) -> None:
        self._glec_parts.thread.begin_exit(deadline_s)

    def _process_ended(self, deadline_s: float) -> None:
        """It is the store that waits for the disk."""

    def _process_forked(self, pid: int) -> None:
        outbox = self._glec_outbox
        if self._glec_parts.thread.let_go_in_child() and not outbox.is_stored:
            # A copy of the child's own, as with paho.
            outbox.is_woken = False
            process.watch_forks(self)
        else:
            outbox.forbid(pid)
            # `publish` takes from it what it needs, also where a program kept the method from before the fork.
            self._glec_outbox = process.Elsewhere(pid)  # type: ignore[assignment]
            # So does every other method that hands on.
            self._glec_parts = process.Elsewhere(pid)  # type: ignore[assignment]
            process.forbid(self, pid, {"close": None, "is_connected": False, "_reset_sockets": None})

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def parts_of(client: Client) -> Parts:
    """What the client is made of, for other packages of ours."""
    return client._glec_parts


_overrides = _paho.overrides_of(Client)
