"""paho's Client with its hot paths replaced: PUBLISH, the acknowledgements, bulk reads and bulk writes.

paho keeps connect, TLS, WebSocket, proxies, keep alive, SUBSCRIBE, properties and the callbacks; see `glec_fast._paho`
for what of it is used here. Bytes and states are the session's, what waits is the outbox's; this module moves bytes.
"""

from __future__ import annotations

import select
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion, LogLevel, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from glec_fast import _paho
from glec_fast._session import NEED_DATA
from glec_fast.errors import ProtocolError
from glec_fast.outbox import DurableOutbox, MemoryOutbox

if TYPE_CHECKING:
    from glec_fast.handle import PublishHandle

_paho.check()

_State = paho._ConnectionState
_RECEIVE_BYTES = 64 * 1024
_SEND_BYTES = 256 * 1024
# Reads in one turn, so that a peer that never stops cannot keep the loop from its other duties.
_READS_A_TURN = 16
# A read of so many bytes means that acknowledgements come in a stream.
_STREAM_READ_BYTES = 64
# With a full window: long enough for the broker to answer a batch, short enough that it never runs out of work.
_GATHER_S = 0.002
_GATHER_MIN_S = 0.0001
_DISCONNECT = 0xE0
_RECEIVE_MAXIMUM = 65_535


class Client(paho.Client):
    """A drop-in for `paho.mqtt.client.Client`: the same arguments, methods, callbacks and results."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._woken = False
        self._acks_stream = False
        self._is_tcp = self._transport == "tcp" and hasattr(socket, "TCP_QUICKACK")
        self._interrupt = threading.Event()
        self._write_lock = threading.Lock()
        self._use_outbox(MemoryOutbox(self._max_inflight_messages, self._wake))

    def _use_outbox(self, outbox: MemoryOutbox | DurableOutbox) -> None:
        self._outbox = outbox
        self._out_messages = _paho.Unfinished(outbox if isinstance(outbox, MemoryOutbox) else ())  # type: ignore[assignment]
        self._out_packet = _paho.Unfinished(_UnsentBytes(outbox))  # type: ignore[assignment]

    # ---- publishing

    def publish(
        self,
        topic: str,
        payload: paho.PayloadType = None,
        qos: int = 0,
        retain: bool = False,
        properties: Properties | None = None,
    ) -> PublishHandle:
        """As paho's; the handle is a `PublishHandle`. From any thread and any callback."""
        if self._protocol != MQTTProtocolVersion.MQTTv5 and (topic is None or len(topic) == 0):
            raise ValueError("Invalid topic.")
        topic_bytes = topic.encode("utf-8")
        self._raise_for_invalid_topic(topic_bytes)
        if qos < 0 or qos > 2:
            raise ValueError("Invalid QoS level.")
        data = paho._encode_payload(payload)
        if len(data) > 268_435_455:
            raise ValueError("Payload too large.")
        outbox = self._outbox
        if isinstance(outbox, DurableOutbox):
            if retain or properties is not None:
                raise ValueError(
                    "a queued message carries neither retain nor properties: the queue's table has no place for them"
                )
            return outbox.publish(topic, bytes(data), qos)
        packed = properties.pack() if properties is not None and self._protocol == MQTTProtocolVersion.MQTTv5 else None
        handle = outbox.publish(topic_bytes, data, qos, retain, packed, linked=self._sock is not None)
        if handle.rc == MQTTErrorCode.MQTT_ERR_SUCCESS:
            self._after_queueing()
        return handle

    def drop_out_messages(self) -> list[paho.MQTTMessage]:
        """As paho's: forget all unacknowledged QoS 1 and 2 messages, and return them."""
        outbox = self._outbox
        if not isinstance(outbox, MemoryOutbox):
            raise TypeError("the queue is on disk: use its own methods to take messages out of it")
        messages = []
        for dropped in outbox.clear():
            message = paho.MQTTMessage(dropped.mid, dropped.topic)
            message.payload, message.qos, message.retain = dropped.payload, dropped.qos, dropped.retain
            message.info = dropped.handle
            messages.append(message)
        return messages

    @property
    def max_inflight_messages(self) -> int:
        """Most QoS 1 and 2 messages on their way at once; 0 means as many as there are packet ids."""
        return self._max_inflight_messages

    @max_inflight_messages.setter
    def max_inflight_messages(self, value: int) -> None:
        paho.Client.max_inflight_messages.fset(self, value)  # type: ignore[attr-defined]
        self._outbox.session.set_window(value)

    @property
    def max_queued_messages(self) -> int:
        """Most unacknowledged messages in memory; 0 means no limit."""
        return self._max_queued_messages

    @max_queued_messages.setter
    def max_queued_messages(self, value: int) -> None:
        paho.Client.max_queued_messages.fset(self, value)  # type: ignore[attr-defined]
        if isinstance(self._outbox, MemoryOutbox):
            self._outbox.max_queued = value

    # ---- the loop

    def _wake(self) -> None:
        """Have the network thread look for something to send."""
        writer = self._sockpairW
        if self._woken or writer is None:
            return
        self._woken = True
        try:
            writer.send(paho.sockpair_data)
        except BlockingIOError:
            # Its buffer is full of wake-ups already.
            return
        except OSError as error:
            self._easy_log(LogLevel.MQTT_LOG_DEBUG, "the loop ended while it was woken: %s", error)

    def loop_start(self) -> MQTTErrorCode:
        """As paho's."""
        if self._thread is None:
            self._woken = False
            for end in (self._sockpairR, self._sockpairW):
                if end is not None:
                    end.close()
        return super().loop_start()

    def loop_stop(self) -> MQTTErrorCode:
        """As paho's, which fails where the thread ends by itself just then."""
        thread = self._thread
        if thread is None:
            return MQTTErrorCode.MQTT_ERR_INVAL
        self._thread_terminate = True
        self._wake()
        if threading.current_thread() is not thread:
            thread.join()
        return MQTTErrorCode.MQTT_ERR_SUCCESS

    def _after_queueing(self) -> MQTTErrorCode:
        self._wake()
        if self._thread is None and self._on_socket_register_write is None and self._in_callback_mutex.acquire(False):
            self._in_callback_mutex.release()
            return self.loop_write()
        self._call_socket_register_write()
        return MQTTErrorCode.MQTT_ERR_SUCCESS

    def _loop(self, timeout: float = 1.0) -> MQTTErrorCode:
        if timeout < 0.0:
            raise ValueError("Invalid timeout.")
        sock = self._sock
        if sock is None:
            return self._no_connection()
        self._let_acks_gather()
        events = self._wait_for_events(sock, timeout)
        if events is None:
            if self._state not in (_State.MQTT_CS_DISCONNECTING, _State.MQTT_CS_DISCONNECTED):
                self._state = _State.MQTT_CS_CONNECTION_LOST
            return MQTTErrorCode.MQTT_ERR_CONN_LOST
        readable, writable = events
        if readable:
            rc = self.loop_read()
            if rc or self._sock is None:
                return rc
        if writable or self.want_write():
            rc = self.loop_write()
            if rc or self._sock is None:
                return rc
        return self.loop_misc()

    def _let_acks_gather(self) -> None:
        """Under load, take acknowledgements by the hundred: a turn of the loop costs as much as the acks of many."""
        session = self._outbox.session
        if self._acks_stream and not session.sendable_bytes:
            pause_s = _GATHER_S * session.in_flight / session.window
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
        """(readable, writable), or None where the socket is gone. poll, as select ends at descriptor 1,023."""
        wake = self._sockpairR
        pending = sock.pending() > 0 if hasattr(sock, "pending") else False
        try:
            descriptor = sock.fileno()
            poll = select.poll()
            poll.register(descriptor, select.POLLIN | (select.POLLOUT if self.want_write() else 0))
            if wake is not None:
                poll.register(wake.fileno(), select.POLLIN)
            ready = dict(poll.poll(0 if pending else timeout * 1000))
        except (TypeError, ValueError, OSError):
            return None
        if ready.get(descriptor, 0) & select.POLLNVAL:
            return None
        woken = wake is not None and wake.fileno() in ready
        if woken:
            try:
                wake.recv(10_000)  # type: ignore[union-attr]
            except BlockingIOError:
                woken = False
            # After the read and before the pull: whoever wakes from here on is either seen by it or writes again.
            self._woken = False
            self._outbox.pull()
        flags = ready.get(descriptor, 0)
        return pending or bool(flags & ~select.POLLOUT), woken or bool(flags & select.POLLOUT)

    # ---- bytes in

    def loop_read(self, max_packets: int = 1) -> MQTTErrorCode:
        """As paho's, in bulk: one read may bring many packets."""
        for _ in range(_READS_A_TURN):
            sock = self._sock
            if sock is None:
                return MQTTErrorCode.MQTT_ERR_NO_CONN
            try:
                data = self._sock_recv(_RECEIVE_BYTES)
            except BlockingIOError:
                self._hasten_connack(sock)
                return MQTTErrorCode.MQTT_ERR_SUCCESS
            except OSError as error:
                self._easy_log(LogLevel.MQTT_LOG_ERR, "failed to receive on socket: %s", error)
                return self._loop_rc_handle(MQTTErrorCode.MQTT_ERR_CONN_LOST)
            if not data:
                return self._loop_rc_handle(MQTTErrorCode.MQTT_ERR_CONN_LOST)
            with self._msgtime_mutex:
                self._last_bytes_received = paho.time_func()
            rc = self._on_bytes(bytes(data))
            if rc:
                return self._loop_rc_handle(rc)
            self._hasten_acks(sock, len(data))
            if self._sock is not sock or not (len(data) == _RECEIVE_BYTES or self._has_pending(sock)):
                break
        return MQTTErrorCode.MQTT_ERR_SUCCESS

    def _hasten_acks(self, sock: Any, received_bytes: int) -> None:
        """A broker with Nagle's algorithm holds acks back until our kernel acknowledges the last, 40 ms later."""
        self._acks_stream = received_bytes >= _STREAM_READ_BYTES
        is_open = self._sock is sock
        if is_open and self._is_tcp and self._outbox.session.in_flight:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    def _hasten_connack(self, sock: Any) -> None:
        """TLS session tickets have come: with Nagle's algorithm CONNACK follows once our kernel acknowledges them."""
        if self._ssl and self._is_tcp and self._state != _State.MQTT_CS_CONNECTED:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    @staticmethod
    def _has_pending(sock: Any) -> bool:
        return hasattr(sock, "pending") and sock.pending() > 0

    def _on_bytes(self, data: bytes) -> MQTTErrorCode:
        outbox = self._outbox
        session = outbox.session
        # Another thread may have sent what these bytes acknowledge, and not yet told the session.
        with self._write_lock, outbox.lock:
            session.feed(data)
        while True:
            broken: ProtocolError | None = None
            found = NEED_DATA
            with outbox.lock:
                try:
                    found = session.advance()
                except ProtocolError as error:
                    broken = error
                command, body = session.packet_command, session.packet_body
                finished = outbox.settle()
                reasons = session.take_reasons()
            outbox.after_settle()
            self._on_finished(finished, reasons)
            if broken is not None:
                self._easy_log(LogLevel.MQTT_LOG_ERR, "closing the connection: %s", broken)
                return MQTTErrorCode.MQTT_ERR_PROTOCOL
            if found == NEED_DATA:
                break
            rc = self._on_packet(command, body)
            if rc or self._sock is None:
                return rc
        outbox.pull()
        return MQTTErrorCode.MQTT_ERR_SUCCESS

    def _on_packet(self, command: int, body: bytes) -> MQTTErrorCode:
        self._in_packet = {
            "command": command,
            "have_remaining": 1,
            "remaining_count": [],
            "remaining_mult": 1,
            "remaining_length": len(body),
            "packet": bytearray(body),
            "to_process": 0,
            "pos": 0,
        }
        try:
            return self._packet_handle()
        except paho.MalformedPacket as error:
            self._easy_log(LogLevel.MQTT_LOG_DEBUG, "Received malformed packet: %s", error)
            return MQTTErrorCode.MQTT_ERR_PROTOCOL

    def _handle_connack(self) -> MQTTErrorCode:
        body = bytes(self._in_packet["packet"])
        rc = super()._handle_connack()
        if rc == MQTTErrorCode.MQTT_ERR_SUCCESS and self._state == _State.MQTT_CS_CONNECTED:
            self._outbox.resume(bool(body[0] & 1), self._receive_maximum(body))
        return rc

    def _receive_maximum(self, connack: bytes) -> int:
        """MQTT 5, 3.2.2.3.3; the highest value where the server names none."""
        if self._protocol != MQTTProtocolVersion.MQTTv5:
            return _RECEIVE_MAXIMUM
        properties = Properties(PacketTypes.CONNACK)
        properties.unpack(connack[2:])
        return int(getattr(properties, "ReceiveMaximum", _RECEIVE_MAXIMUM))

    def _on_finished(self, handles: list[PublishHandle], reasons: dict[int, tuple[int, int, int, bytes]]) -> None:
        """Call `on_publish` for each, then let its waiters go on, as paho does."""
        if not handles:
            return
        with self._callback_mutex:
            on_publish = self.on_publish
        for handle in handles:
            if on_publish:
                self._call_on_publish(on_publish, handle, reasons.get(handle.message_id))
            handle._set_as_published()

    def _call_on_publish(
        self, on_publish: Any, handle: PublishHandle, reason: tuple[int, int, int, bytes] | None
    ) -> None:
        with self._in_callback_mutex:
            try:
                if self._callback_api_version == CallbackAPIVersion.VERSION1:
                    on_publish(self, self._userdata, handle.mid)
                else:
                    on_publish(self, self._userdata, handle.mid, *_reason_and_properties(reason))
            except Exception as error:
                self._easy_log(LogLevel.MQTT_LOG_ERR, "Caught exception in on_publish: %s", error)
                if not self.suppress_exceptions:
                    raise

    # ---- bytes out

    def _packet_queue(
        self, command: int, packet: bytes | bytearray, mid: int, qos: int, info: Any = None
    ) -> MQTTErrorCode:
        self._outbox.put_packet(packet, last=(command & 0xF0) == _DISCONNECT)
        return self._after_queueing()

    def _mid_generate(self) -> int:
        return self._outbox.next_packet_id()

    def want_write(self) -> bool:
        """As paho's."""
        return bool(self._outbox.session.sendable_bytes)

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
            with outbox.lock:
                finished = outbox.settle()
            outbox.after_settle()
            self._on_finished(finished, {})
            if sent:
                with self._msgtime_mutex:
                    self._last_msg_out = paho.time_func()
            if is_last:
                self._on_disconnect_sent()
                return MQTTErrorCode.MQTT_ERR_SUCCESS
            if not sent:
                return MQTTErrorCode.MQTT_ERR_SUCCESS
            outbox.pull()

    def _write_some(self) -> tuple[int, bool]:
        """(bytes that the socket took, whether DISCONNECT was among them)."""
        outbox = self._outbox
        with self._write_lock:
            with outbox.lock:
                chunk = outbox.session.peek(_SEND_BYTES)
            if not chunk or self._sock is None:
                return 0, False
            sent = self._sock_send(chunk)
            with outbox.lock:
                return sent, outbox.session.on_sent(sent)

    def _on_disconnect_sent(self) -> None:
        self._do_on_disconnect(packet_from_broker=False, v1_rc=MQTTErrorCode.MQTT_ERR_SUCCESS)
        self._sock_close()
        if self._state == _State.MQTT_CS_DISCONNECTING:
            self._state = _State.MQTT_CS_DISCONNECTED

    # ---- connections

    def _create_socket_connection(self) -> socket.socket:
        sock = self._dial()
        # We send whole batches; Nagle's algorithm would hold the last piece of each until the broker's kernel answers.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def _dial(self) -> socket.socket:
        return super()._create_socket_connection()

    def _handshake_timeout_s(self) -> float:
        """paho's: as long again as TCP had."""
        return float(self._connect_timeout)

    def _ssl_wrap_socket(self, tcp_sock: Any) -> Any:
        context = self._ssl_context
        if context is None or not (context.check_hostname or self._tls_insecure):
            return super()._ssl_wrap_socket(tcp_sock)
        sock = context.wrap_socket(tcp_sock, server_hostname=self._host, do_handshake_on_connect=False)
        try:
            sock.settimeout(self._handshake_timeout_s())
            sock.do_handshake()
        except BaseException:
            # paho leaves it to the garbage collector.
            sock.close()
            raise
        return sock

    def _sock_close(self) -> None:
        had_socket = self._sock is not None
        super()._sock_close()
        if had_socket:
            self._outbox.park()

    def _messages_reconnect_reset(self) -> None:
        self._outbox.park()
        self._outbox.session.protocol_version = int(self._protocol)
        self._outbox.session.offered_may_leave = self._ssl or self._transport == "websockets"
        self._messages_reconnect_reset_in()

    def _next_reconnect_delay_s(self) -> float:
        with self._reconnect_delay_mutex:
            if self._reconnect_delay is None:
                self._reconnect_delay = self._reconnect_min_delay
            else:
                self._reconnect_delay = min(self._reconnect_delay * 2, self._reconnect_max_delay)
            return self._reconnect_delay

    def _reconnect_wait(self) -> None:
        deadline_s = paho.time_func() + self._next_reconnect_delay_s()
        while not self._thread_terminate and self._state not in (
            _State.MQTT_CS_DISCONNECTING,
            _State.MQTT_CS_DISCONNECTED,
        ):
            remaining_s = deadline_s - paho.time_func()
            if remaining_s <= 0 or self._interrupt.wait(min(remaining_s, 1.0)):
                return


class _UnsentBytes:
    def __init__(self, outbox: MemoryOutbox | DurableOutbox) -> None:
        self._session = outbox.session

    def __len__(self) -> int:
        return int(self._session.unsent_bytes)


def _reason_and_properties(reason: tuple[int, int, int, bytes] | None) -> tuple[ReasonCode, Properties]:
    properties = Properties(PacketTypes.PUBACK)
    if reason is None:
        return ReasonCode(PacketTypes.PUBACK), properties
    packet_type, _packet_id, code, packed = reason
    properties = Properties(packet_type >> 4)
    if packed:
        properties.unpack(packed)
    return ReasonCode(packet_type >> 4, identifier=code), properties
