"""The half of Client that takes what arrives: bulk reads, strict packets, messages and acknowledgements to callbacks.

Every packet goes through `glec_fast.protocol._inbound`, whatever the loop. What it hands out is kept here until its
callback has returned: where a callback raises, and the program goes on, the next turn of the loop begins with the same
packet, as paho's does.
"""

from __future__ import annotations

import enum
import ssl
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion, LogLevel, MessageState, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import MalformedPacket, Properties
from paho.mqtt.reasoncodes import ReasonCode

from glec_fast import _paho
from glec_fast._paho import ConnectionState as _State
from glec_fast._paho import MQTTMessage, PahoClient
from glec_fast.errors import GlecError, ProtocolError
from glec_fast.mqtt.inbound_message import InboundMessage, properties_from, reason_from
from glec_fast.outbox._outbox import Outbox, take_up, tell, tell_waiters
from glec_fast.protocol._inbound import ACKS, NEED_DATA, Inbound
from glec_fast.runtime._lock import CallbackMark, Lock
from glec_fast.transport._link import Link
from glec_fast.transport.dial import acknowledge_at_once

if TYPE_CHECKING:
    from glec_fast.outbox.handle import PublishHandle

# An enum's members are looked up at some cost.
_SUCCESS = MQTTErrorCode.MQTT_ERR_SUCCESS
_AGAIN = MQTTErrorCode.MQTT_ERR_AGAIN
_CONN_LOST = MQTTErrorCode.MQTT_ERR_CONN_LOST
_RECEIVE_BYTES = 64 * 1024
# Reads in one turn, so that a peer that never stops cannot keep the loop from its other duties.
_READS_A_TURN = 16
# More of them where TLS has decrypted what no poll of the socket tells of: a record of WebSocket frames of two bytes.
_PENDING_READS_A_TURN = 8192
# Of TLS, however small they are.
_RECORDS_A_READ = 1024
# A read of so many bytes means that acknowledgements come in a stream.
_STREAM_READ_BYTES = 64
_RECEIVE_MAXIMUM = 65_535
# A server that keeps to 65,535 packet ids waits for answers of at most half as much.
_ANSWERS_MAX_BYTES = 1 << 20
_RECEIVE_MAXIMUM_EXCEEDED = 0x93
_EXACTLY_ONCE = 2
_DISCONNECT = b"\xe0\x00"
_PUBCOMP = b"\x70\x02"
_CONNACK_TYPE, _PUBREL_TYPE, _SUBACK_TYPE, _UNSUBACK_TYPE = 0x20, 0x60, 0x90, 0xB0
_PINGRESP_TYPE, _DISCONNECT_TYPE = 0xD0, 0xE0
_PAYLOAD_FORMAT_INVALID = 0x99
_ACK_NAMES = {0x40: "PUBACK", 0x50: "PUBREC", 0x70: "PUBCOMP"}
# An exception may leave paho's own held, and a signal's handler cannot take them again.
_PAHO_LOCKS = (
    "_callback_mutex",
    "_in_message_mutex",
    "_mid_generate_mutex",
    "_msgtime_mutex",
    "_out_message_mutex",
    "_reconnect_delay_mutex",
)


class _At(enum.Enum):
    """What was being handled when a callback raised."""

    NOTHING = 0
    PACKET = 1
    MESSAGE = 2
    PUBLISHED = 3


class Receiver(PahoClient):
    """paho's client with its reading half replaced. `Client` adds the writing half."""

    _outbox: Outbox
    # DISCONNECT, which waits for what was published before it, and until when at most.
    _farewell: tuple[Callable[[], MQTTErrorCode], float] | None = None
    # Of the outbox and the parser below.
    _link: Link

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # Where on_log is a method of a subclass, or is set, or a logger.
        self._is_logging = False
        super().__init__(*args, **kwargs)
        # paho's is a lock, held while a callback runs.
        self._in_callback_mutex = CallbackMark()  # type: ignore[assignment]
        for name in _PAHO_LOCKS:
            setattr(self, name, Lock())
        self._inbound = Inbound(InboundMessage, MessageState.MQTT_MS_INVALID, MessageState.MQTT_MS_WAIT_FOR_PUBREL)
        self._acks_stream = False
        # TLS or WebSocket: bytes may wait that no poll of the socket tells of.
        self._is_layered = False
        # Handed out by the parser and not yet through their callbacks.
        self._finished: deque[PublishHandle] = deque()
        # mid -> (packet type, packet id, reason code, packed properties), of acknowledgements that had more than an id.
        self._reasons: dict[int, tuple[int, int, int, bytes]] = {}
        self._arrived: deque[InboundMessage] = deque()
        self._failed_at = _At.NOTHING
        self._has_told_of_qos_1 = False
        # The next CONNECT has the server forget the session that it keeps.
        self._discards_session = False
        self._has_discarded_session = False

    def _after_queueing(self, *, wake: bool = True) -> MQTTErrorCode:
        raise NotImplementedError

    def _log_sent(self) -> None:
        raise NotImplementedError

    def _leave_when_due(self) -> None:
        raise NotImplementedError

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

    # ---- reading

    def loop_read(self, max_packets: int = 1) -> MQTTErrorCode:
        """As paho's, in bulk: one read may bring many packets."""
        if self._link.is_torn and self._sock is not None:
            return self._end_torn()
        if self._is_behind() and self._sock is not None:
            rc = self._handle_buffered(self._sock)
            if rc:
                return self._loop_rc_handle(rc)
        for number in range(_PENDING_READS_A_TURN):
            sock = self._sock
            if sock is None:
                return MQTTErrorCode.MQTT_ERR_NO_CONN
            received_bytes, ended, failure = self._feed(sock)
            if received_bytes:
                rc = self._handle_buffered(sock)
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

    def loop_misc(self) -> MQTTErrorCode:
        """As paho's."""
        sock = self._sock
        if self._link.is_torn and sock is not None:
            return self._end_torn()
        if self._is_behind() and sock is not None:
            # Whole packets that a callback's exception left behind: the socket has no more to say about them.
            rc = self._handle_buffered(sock)
            if rc:
                return self._loop_rc_handle(rc)
        return super().loop_misc()

    def _is_leaving(self) -> bool:
        """True once DISCONNECT was put; paho's state says so before, and also where an exception kept it from that."""
        return bool(self._outbox.session.has_last)

    def _is_behind(self) -> bool:
        """True where something has come, or left, that no callback was told of yet."""
        return self._link.has_more or bool(self._finished)

    def _end_torn(self) -> MQTTErrorCode:
        """An exception has cut a write or a read short: what was in flight goes again on the next connection."""
        self._easy_log(LogLevel.MQTT_LOG_ERR, "closing the connection: an exception cut into a write or a read")
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

    def _handle_buffered(self, sock: Any) -> MQTTErrorCode:
        """Every whole packet that is there, until the connection ends or is about to."""
        inbound, outbox, link = self._inbound, self._outbox, self._link
        inbound.one_by_one = self._is_logging
        while True:
            if self._finished or self._arrived or link.packet is not None:
                rc = self._handle_held(sock)
                if rc or self._sock is not sock:
                    return rc
            if self._is_leaving():
                # As in paho, where DISCONNECT goes out before the next packet is looked at.
                outbox.put_acks()
                break
            try:
                found = link.advance(self._arrived, self._finished, self._reasons)
            except ProtocolError as error:
                return self._on_violation(error)
            if found == NEED_DATA:
                break
            if found == ACKS:
                link.do(outbox.after_settle)
                if inbound.one_by_one:
                    self._log_ack(inbound.acks, link.answer_bytes)
                if outbox.session.downgraded_count and not self._has_told_of_qos_1:
                    self._note_qos_1()
        if outbox.has_trace:
            self._log_sent()
        self._leave_when_due()
        if outbox.answer_bytes > _ANSWERS_MAX_BYTES:
            unread = "a server that does not read the answers to what it sends (MQTT 5, 4.9)"
            return self._on_violation(ProtocolError(unread, _RECEIVE_MAXIMUM_EXCEEDED))
        if outbox.session.sendable_bytes:
            return self._after_queueing(wake=False)
        return _SUCCESS

    def _handle_held(self, sock: Any) -> MQTTErrorCode:
        """What the parser handed out, as far as its callbacks return."""
        if self._link.packet is not None:
            self._failed_at = _At.PACKET
            rc = self._on_packet(*self._link.packet)
            self._link.packet = None
            if rc or self._sock is not sock:
                return rc
        if self._finished:
            self._failed_at = _At.PUBLISHED
            self._tell_published()
            if self._sock is not sock:
                return MQTTErrorCode.MQTT_ERR_SUCCESS
        if self._arrived:
            self._failed_at = _At.MESSAGE
            self._deliver(sock)
        self._failed_at = _At.NOTHING
        return MQTTErrorCode.MQTT_ERR_SUCCESS

    def _pass_over(self) -> None:
        """Go on behind the packet whose callback raised, as `suppress_exceptions` would have."""
        failed_at, self._failed_at = self._failed_at, _At.NOTHING
        if failed_at is _At.PACKET:
            self._link.packet = None
        elif failed_at is _At.PUBLISHED and self._finished:
            self._finished.popleft()._set_as_published()
        elif failed_at is _At.MESSAGE and self._arrived:
            self._acknowledge()

    def _drop_received(self) -> None:
        """The connection is gone, and with it what was not handled yet."""
        self._link.end()
        self._arrived.clear()

    def _on_violation(self, error: ProtocolError) -> MQTTErrorCode:
        """Say why, where the protocol has words for it (MQTT 5, 4.13), and end the connection."""
        self._failed_at = _At.PUBLISHED
        self._tell_published()
        self._failed_at = _At.NOTHING
        self._easy_log(LogLevel.MQTT_LOG_ERR, "closing the connection: %s", error)
        if self._protocol == MQTTProtocolVersion.MQTTv5:
            self._send_last_words(bytes((0xE0, 1, error.reason_code)))
        return MQTTErrorCode.MQTT_ERR_PROTOCOL

    def _send_last_words(self, packet: bytes) -> None:
        raise NotImplementedError

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

    # ---- acknowledgements of what was published

    def _log_ack(self, ack: bytes, answer_bytes: int) -> None:
        mid = ack[2] << 8 | ack[3]
        self._easy_log(LogLevel.MQTT_LOG_DEBUG, "Received %s (Mid: %d)", _ACK_NAMES[ack[0]], mid)
        if answer_bytes:
            self._easy_log(LogLevel.MQTT_LOG_DEBUG, "Sending PUBREL (Mid: %d)", mid)

    def _note_qos_1(self) -> None:
        self._has_told_of_qos_1 = True
        text = "the server acknowledges QoS 2 as QoS 1 (PUBACK): messages may arrive twice"
        self._easy_log(LogLevel.MQTT_LOG_WARNING, text)

    def _take_last_acks(self) -> None:
        """What came behind our DISCONNECT: the server has these messages; it keeps what we do not acknowledge."""
        passed_over: deque[InboundMessage] = deque()
        try:
            while self._link.advance(passed_over, self._finished, self._reasons) != NEED_DATA:
                self._link.packet = None
        except ProtocolError as error:
            self._easy_log(LogLevel.MQTT_LOG_DEBUG, "passed over what came behind DISCONNECT: %s", error)
        self._link.do(self._outbox.after_settle)

    def _tell_published(self, *, again: bool = True) -> None:
        """Call `on_publish` for each. again: where it raises, it is called again for the same message."""
        on_publish = self.on_publish
        if on_publish:
            tell(self._finished, self._reasons, partial(self._call_on_publish, on_publish), again)
        else:
            tell_waiters(self._finished, self._reasons)

    def _call_on_publish(self, on_publish: Any, handle: PublishHandle) -> None:
        with self._in_callback_mutex:
            try:
                if self._callback_api_version == CallbackAPIVersion.VERSION1:
                    on_publish(self, self._userdata, handle.mid)
                else:
                    reason = self._reasons.get(handle.mid)
                    on_publish(self, self._userdata, handle.mid, *_reason_and_properties(handle, reason))
            except Exception as error:
                self._easy_log(LogLevel.MQTT_LOG_ERR, "Caught exception in on_publish: %s", error)
                if not self.suppress_exceptions:
                    raise

    # ---- messages

    def _deliver(self, sock: Any) -> None:
        """Each message to its callbacks, and its acknowledgement behind it."""
        arrived = self._arrived
        is_logging = self._inbound.one_by_one
        with self._in_callback_mutex:
            while arrived:
                message = arrived[0]
                if is_logging:
                    self._log_received(message)
                if message.qos < 2:
                    self._handle_on_message(message)
                if self._sock is not sock:
                    return
                self._acknowledge()
                if self._is_leaving():
                    return

    def _acknowledge(self) -> None:
        """The first that has arrived is through its callbacks."""
        message = self._arrived[0]
        self._outbox.acknowledge(self._arrived, self._in_messages, self._manual_ack)
        if self._inbound.one_by_one and message.qos and not (message.qos == 1 and self._manual_ack):
            name = "PUBREC" if message.qos == _EXACTLY_ONCE else "PUBACK"
            self._easy_log(LogLevel.MQTT_LOG_DEBUG, f"Sending {name} (Mid: %d)", message.mid)

    def _handle_on_message(self, message: MQTTMessage, received: dict[int, Any] | None = None) -> None:
        """As paho's, in a callback already, and without its matching where no filter has a callback.

        received: where the message is taken from by its first callback.
        """
        received = {} if received is None else received
        callbacks: list[Any] = []
        if _paho.has_filters(self._on_message_filtered):
            with self._callback_mutex:
                callbacks = list(self._on_message_filtered.iter_match(message.topic))
        if callbacks:
            for callback in callbacks:
                self._call_filtered(callback, message, received)
            return
        on_message = self.on_message
        if on_message:
            try:
                take_up(received, message.mid, on_message, self, self._userdata, message)
            except Exception as error:
                self._easy_log(LogLevel.MQTT_LOG_ERR, "Caught exception in on_message: %s", error)
                if not self.suppress_exceptions:
                    raise

    def _call_filtered(self, callback: Any, message: MQTTMessage, received: dict[int, Any]) -> None:
        try:
            take_up(received, message.mid, callback, self, self._userdata, message)
        except Exception as error:
            name = getattr(callback, "__name__", repr(callback))
            self._easy_log(
                LogLevel.MQTT_LOG_ERR, "Caught exception in user defined callback function %s: %s", name, error
            )
            if not self.suppress_exceptions:
                raise

    def _log_received(self, message: InboundMessage) -> None:
        flags = (message.dup, message.qos, message.retain, message.mid)
        size = len(message.payload)
        if self._protocol == MQTTProtocolVersion.MQTTv5:
            self._easy_log(
                LogLevel.MQTT_LOG_DEBUG,
                "Received PUBLISH (d%d, q%d, r%d, m%d), '%s', properties=%s, ...  (%d bytes)",
                *(*flags, message.topic, message.properties, size),
            )
        else:
            self._easy_log(
                LogLevel.MQTT_LOG_DEBUG,
                "Received PUBLISH (d%d, q%d, r%d, m%d), '%s', ...  (%d bytes)",
                *(*flags, message.topic, size),
            )

    # ---- every other packet

    def _on_packet(self, command: int, body: bytes) -> MQTTErrorCode:
        kind = command & 0xF0
        if kind == _PUBREL_TYPE:
            return self._on_pubrel(body[0] << 8 | body[1])
        if kind in (_SUBACK_TYPE, _UNSUBACK_TYPE):
            self._outbox.release_packet_id(body[0] << 8 | body[1])
        elif kind == _PINGRESP_TYPE:
            self._outbox.on_pingresp()
            self._outbox.settle_into(self._finished)
        elif kind == _DISCONNECT_TYPE:
            self._outbox.is_left = True
        self._in_packet = _paho.whole_packet(command, body)
        try:
            return self._packet_handle()
        except MalformedPacket as error:
            self._easy_log(LogLevel.MQTT_LOG_DEBUG, "Received malformed packet: %s", error)
            return MQTTErrorCode.MQTT_ERR_PROTOCOL

    def _on_pubrel(self, mid: int) -> MQTTErrorCode:
        if self._inbound.one_by_one:
            self._easy_log(LogLevel.MQTT_LOG_DEBUG, "Received PUBREL (Mid: %d)", mid)
        message = self._in_messages.get(mid)
        sock = self._sock
        if message is not None:
            with self._in_callback_mutex:
                self._handle_on_message(message, self._in_messages)
            # Where there was no callback.
            self._in_messages.pop(mid, None)
        if not self._manual_ack and self._sock is sock:
            if self._inbound.one_by_one:
                self._easy_log(LogLevel.MQTT_LOG_DEBUG, "Sending PUBCOMP (Mid: %d)", mid)
            self._outbox.put_ack(_PUBCOMP + mid.to_bytes(2, "big"))
        return MQTTErrorCode.MQTT_ERR_SUCCESS

    def _send_connect(self, keepalive: int) -> MQTTErrorCode:
        if not self._discards_session:
            return super()._send_connect(keepalive)
        name = "_clean_start" if self._protocol == MQTTProtocolVersion.MQTTv5 else "_clean_session"
        asked_for = getattr(self, name)
        setattr(self, name, True)
        try:
            return super()._send_connect(keepalive)
        finally:
            setattr(self, name, asked_for)

    def _must_connect_again(self, session_present: bool) -> bool:
        """True where this connection only shows, or only serves to discard, a session that is not ours."""
        if self._discards_session:
            self._discards_session, self._has_discarded_session = False, True
            # Before MQTT 5 a clean session lasts no longer than its connection (MQTT 3.1.1, 3.1.2.4).
            return self._protocol != MQTTProtocolVersion.MQTTv5
        has_discarded, self._has_discarded_session = self._has_discarded_session, False
        self._discards_session = session_present and self._outbox.is_session_foreign and not has_discarded
        return self._discards_session

    def _connect_again_if_needed(self, session_present: bool) -> MQTTErrorCode | None:
        """Leave in order, so that no will is published, and come back at once; None where this connection lasts."""
        if not self._must_connect_again(session_present):
            return None
        self._send_last_words(_DISCONNECT)
        is_awaited, farewell = self._outbox.is_awaited, self._farewell
        try:
            rc = self.reconnect()
        except (OSError, GlecError) as error:
            self._easy_log(LogLevel.MQTT_LOG_ERR, "connecting again failed: %s", error)
            return MQTTErrorCode.MQTT_ERR_CONN_LOST
        # To the program it is the same connection.
        self._outbox.is_awaited, self._farewell = is_awaited, farewell
        return rc

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
                self._outbox.settle_into(self._finished)

    def _on_accepted(self, connack: bytes) -> None:
        if not connack[0] & 1:
            # The server has nothing of an earlier session (MQTT 3.2.2.2): a PUBREL can only be for a new message.
            with self._in_message_mutex:
                self._in_messages.clear()
        properties = self._connack_properties(connack)
        if "ServerKeepAlive" in properties:
            # MQTT 5, 3.2.2.3.14; paho from 2.2 on.
            self._keepalive = properties["ServerKeepAlive"]

    def _connack_properties(self, connack: bytes) -> dict[str, Any]:
        if self._protocol != MQTTProtocolVersion.MQTTv5:
            return {}
        return dict(vars(properties_from(PacketTypes.CONNACK, connack[2:])))

    def _receive_maximum(self, connack: bytes) -> int:
        """MQTT 5, 3.2.2.3.3; the highest value where the server names none."""
        return int(self._connack_properties(connack).get("ReceiveMaximum", _RECEIVE_MAXIMUM))


def _reason_and_properties(
    handle: PublishHandle, reason: tuple[int, int, int, bytes] | None
) -> tuple[ReasonCode, Properties]:
    if reason is None:
        kind = PacketTypes.PUBCOMP if handle.qos == _EXACTLY_ONCE else PacketTypes.PUBACK
        return reason_from(kind, 0), properties_from(kind, b"")
    packet_type, _packet_id, code, packed = reason
    return reason_from(packet_type >> 4, code), properties_from(packet_type >> 4, packed)
