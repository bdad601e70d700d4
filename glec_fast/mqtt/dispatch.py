"""What has arrived, to callbacks: strict packets, messages and acknowledgements.

Every packet goes through `glec_fast.protocol._inbound`, whatever the loop. What it hands out is kept here until its
callback has returned: where a callback raises, and the program goes on, the next turn of the loop begins with the same
packet, as paho's does.
"""

from __future__ import annotations

import enum
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from paho.mqtt.enums import CallbackAPIVersion, LogLevel, MessageState, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import MalformedPacket, Properties
from paho.mqtt.reasoncodes import ReasonCode

from glec_fast import _paho
from glec_fast._paho import MQTTMessage
from glec_fast.errors import ProtocolError
from glec_fast.mqtt.inbound_message import InboundMessage, properties_from, reason_from
from glec_fast.outbox._outbox import Outbox, take_up, tell, tell_waiters
from glec_fast.protocol._inbound import ACKS, NEED_DATA, Inbound
from glec_fast.runtime._lock import CallbackMark, Lock
from glec_fast.transport._link import Link

if TYPE_CHECKING:
    from glec_fast.outbox.handle import PublishHandle

# An enum's members are looked up at some cost.
_SUCCESS = MQTTErrorCode.MQTT_ERR_SUCCESS
# A server that keeps to 65,535 packet ids waits for answers of at most half as much.
_ANSWERS_MAX_BYTES = 1 << 20
_RECEIVE_MAXIMUM_EXCEEDED = 0x93
_EXACTLY_ONCE = 2
_PUBCOMP = b"\x70\x02"
_PUBREL_TYPE, _SUBACK_TYPE, _UNSUBACK_TYPE = 0x60, 0x90, 0xB0
PINGRESP, _DISCONNECT_TYPE = 0xD0, 0xE0
_ACK_NAMES = {0x40: "PUBACK", 0x50: "PUBREC", 0x70: "PUBCOMP"}


class Face(Protocol):
    """What it needs of the client: paho's callbacks and flags, and where else a packet leads."""

    _sock: Any
    _protocol: MQTTProtocolVersion
    _userdata: Any
    _callback_api_version: CallbackAPIVersion
    _manual_ack: bool
    _in_callback_mutex: CallbackMark
    _callback_mutex: Lock
    _in_messages: Any
    _on_message_filtered: Any
    _in_packet: Any
    _is_logging: bool
    suppress_exceptions: bool

    @property
    def on_publish(self) -> Any:
        """paho's."""

    @property
    def on_message(self) -> Any:
        """paho's."""

    def _easy_log(self, level: LogLevel, fmt: str, *args: Any) -> None: ...
    def _packet_handle(self) -> MQTTErrorCode: ...
    def _is_leaving(self) -> bool: ...
    def _log_sent(self) -> None: ...
    def _leave_when_due(self) -> None: ...
    def _after_queueing(self, *, wake: bool) -> MQTTErrorCode: ...
    def _send_last_words(self, packet: bytes) -> None: ...


class _At(enum.Enum):
    """What was being handled when a callback raised."""

    NOTHING = 0
    PACKET = 1
    MESSAGE = 2
    PUBLISHED = 3


class Dispatcher:
    """Of one client. For whoever has its loop; `finished` may be extended under the outbox's lock only."""

    def __init__(self, client: Any, outbox: Outbox) -> None:
        self._client: Face = client
        self._outbox = outbox
        self.inbound = Inbound(InboundMessage, MessageState.MQTT_MS_INVALID, MessageState.MQTT_MS_WAIT_FOR_PUBREL)
        self.link = Link(outbox, self.inbound)
        # Handed out by the parser and not yet through their callbacks.
        self.finished: deque[PublishHandle] = deque()
        self._arrived: deque[InboundMessage] = deque()
        # mid -> (packet type, packet id, reason code, packed properties), of acknowledgements that had more than an id.
        self._reasons: dict[int, tuple[int, int, int, bytes]] = {}
        self._failed_at = _At.NOTHING
        self._has_told_of_qos_1 = False

    def is_behind(self) -> bool:
        """True where something has come, or left, that no callback was told of yet."""
        return self.link.has_more or bool(self.finished)

    def handle(self, sock: Any) -> MQTTErrorCode:
        """Every whole packet that is there, until the connection ends or is about to."""
        inbound, outbox, link = self.inbound, self._outbox, self.link
        inbound.one_by_one = self._client._is_logging
        while True:
            if self.finished or self._arrived or link.packet is not None:
                rc = self._handle_held(sock)
                if rc or self._client._sock is not sock:
                    return rc
            if self._client._is_leaving():
                # As in paho, where DISCONNECT goes out before the next packet is looked at.
                outbox.put_acks()
                break
            try:
                found = link.advance(self._arrived, self.finished, self._reasons)
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
            self._client._log_sent()
        self._client._leave_when_due()
        if outbox.answer_bytes > _ANSWERS_MAX_BYTES:
            unread = "a server that does not read the answers to what it sends (MQTT 5, 4.9)"
            return self._on_violation(ProtocolError(unread, _RECEIVE_MAXIMUM_EXCEEDED))
        if outbox.session.sendable_bytes:
            return self._client._after_queueing(wake=False)
        return _SUCCESS

    def _handle_held(self, sock: Any) -> MQTTErrorCode:
        """What the parser handed out, as far as its callbacks return."""
        if self.link.packet is not None:
            self._failed_at = _At.PACKET
            rc = self._on_packet(*self.link.packet)
            self.link.packet = None
            if rc or self._client._sock is not sock:
                return rc
        if self.finished:
            self._failed_at = _At.PUBLISHED
            self.tell_published()
            if self._client._sock is not sock:
                return MQTTErrorCode.MQTT_ERR_SUCCESS
        if self._arrived:
            self._failed_at = _At.MESSAGE
            self._deliver(sock)
        self._failed_at = _At.NOTHING
        return MQTTErrorCode.MQTT_ERR_SUCCESS

    def pass_over(self) -> None:
        """Go on behind the packet whose callback raised, as `suppress_exceptions` would have."""
        failed_at, self._failed_at = self._failed_at, _At.NOTHING
        if failed_at is _At.PACKET:
            self.link.packet = None
        elif failed_at is _At.PUBLISHED and self.finished:
            self.finished.popleft()._set_as_published()
        elif failed_at is _At.MESSAGE and self._arrived:
            self._acknowledge()

    def drop(self) -> None:
        """The connection is gone, and with it what was not handled yet."""
        self.link.end()
        self._arrived.clear()

    def _on_violation(self, error: ProtocolError) -> MQTTErrorCode:
        """Say why, where the protocol has words for it (MQTT 5, 4.13), and end the connection."""
        self._failed_at = _At.PUBLISHED
        self.tell_published()
        self._failed_at = _At.NOTHING
        self._client._easy_log(LogLevel.MQTT_LOG_ERR, "closing the connection: %s", error)
        if self._client._protocol == MQTTProtocolVersion.MQTTv5:
            self._client._send_last_words(bytes((0xE0, 1, error.reason_code)))
        return MQTTErrorCode.MQTT_ERR_PROTOCOL

    # ---- acknowledgements of what was published

    def _log_ack(self, ack: bytes, answer_bytes: int) -> None:
        mid = ack[2] << 8 | ack[3]
        self._client._easy_log(LogLevel.MQTT_LOG_DEBUG, "Received %s (Mid: %d)", _ACK_NAMES[ack[0]], mid)
        if answer_bytes:
            self._client._easy_log(LogLevel.MQTT_LOG_DEBUG, "Sending PUBREL (Mid: %d)", mid)

    def _note_qos_1(self) -> None:
        self._has_told_of_qos_1 = True
        text = "the server acknowledges QoS 2 as QoS 1 (PUBACK): messages may arrive twice"
        self._client._easy_log(LogLevel.MQTT_LOG_WARNING, text)

    def take_last_acks(self) -> set[int]:
        """What came behind our DISCONNECT: the server has these messages; it keeps what we do not acknowledge.

        Returns the types of the packets among it that are no acknowledgements.
        """
        passed_over: deque[InboundMessage] = deque()
        kinds = set()
        try:
            while self.link.advance(passed_over, self.finished, self._reasons) != NEED_DATA:
                if self.link.packet is not None:
                    kinds.add(self.link.packet[0] & 0xF0)
                    self.link.packet = None
        except ProtocolError as error:
            self._client._easy_log(LogLevel.MQTT_LOG_DEBUG, "passed over what came behind DISCONNECT: %s", error)
        self.link.do(self._outbox.after_settle)
        return kinds

    def tell_published(self, *, again: bool = True) -> None:
        """Call `on_publish` for each. again: where it raises, it is called again for the same message."""
        on_publish = self._client.on_publish
        if on_publish:
            tell(self.finished, self._reasons, partial(self._call_on_publish, on_publish), again)
        else:
            tell_waiters(self.finished, self._reasons)

    def _call_on_publish(self, on_publish: Any, handle: PublishHandle) -> None:
        client = self._client
        with client._in_callback_mutex:
            try:
                if client._callback_api_version == CallbackAPIVersion.VERSION1:
                    on_publish(client, client._userdata, handle.mid)
                else:
                    reason = self._reasons.get(handle.mid)
                    on_publish(client, client._userdata, handle.mid, *_reason_and_properties(handle, reason))
            except Exception as error:
                client._easy_log(LogLevel.MQTT_LOG_ERR, "Caught exception in on_publish: %s", error)
                if not client.suppress_exceptions:
                    raise

    # ---- messages

    def _deliver(self, sock: Any) -> None:
        """Each message to its callbacks, and its acknowledgement behind it."""
        arrived, client = self._arrived, self._client
        is_logging = self.inbound.one_by_one
        with client._in_callback_mutex:
            while arrived:
                message = arrived[0]
                if is_logging:
                    self._log_received(message)
                if message.qos < 2:
                    self._hand_over(message)
                if client._sock is not sock:
                    return
                self._acknowledge()
                if client._is_leaving():
                    return

    def _acknowledge(self) -> None:
        """The first that has arrived is through its callbacks."""
        message = self._arrived[0]
        self._outbox.acknowledge(self._arrived, self._client._in_messages, self._client._manual_ack)
        if self.inbound.one_by_one and message.qos and not (message.qos == 1 and self._client._manual_ack):
            name = "PUBREC" if message.qos == _EXACTLY_ONCE else "PUBACK"
            self._client._easy_log(LogLevel.MQTT_LOG_DEBUG, f"Sending {name} (Mid: %d)", message.mid)

    def _hand_over(self, message: MQTTMessage, received: dict[int, Any] | None = None) -> None:
        """As paho's, in a callback already, and without its matching where no filter has a callback.

        received: where the message is taken from by its first callback.
        """
        received = {} if received is None else received
        callbacks: list[Any] = []
        if _paho.has_filters(self._client._on_message_filtered):
            with self._client._callback_mutex:
                callbacks = list(self._client._on_message_filtered.iter_match(message.topic))
        if callbacks:
            for callback in callbacks:
                self._call_filtered(callback, message, received)
            return
        on_message = self._client.on_message
        if on_message:
            try:
                take_up(received, message.mid, on_message, self._client, self._client._userdata, message)
            except Exception as error:
                self._client._easy_log(LogLevel.MQTT_LOG_ERR, "Caught exception in on_message: %s", error)
                if not self._client.suppress_exceptions:
                    raise

    def _call_filtered(self, callback: Any, message: MQTTMessage, received: dict[int, Any]) -> None:
        try:
            take_up(received, message.mid, callback, self._client, self._client._userdata, message)
        except Exception as error:
            name = getattr(callback, "__name__", repr(callback))
            self._client._easy_log(
                LogLevel.MQTT_LOG_ERR, "Caught exception in user defined callback function %s: %s", name, error
            )
            if not self._client.suppress_exceptions:
                raise

    def _log_received(self, message: InboundMessage) -> None:
        flags = (message.dup, message.qos, message.retain, message.mid)
        size = len(message.payload)
        if self._client._protocol == MQTTProtocolVersion.MQTTv5:
            self._client._easy_log(
                LogLevel.MQTT_LOG_DEBUG,
                "Received PUBLISH (d%d, q%d, r%d, m%d), '%s', properties=%s, ...  (%d bytes)",
                *(*flags, message.topic, message.properties, size),
            )
        else:
            self._client._easy_log(
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
        elif kind == PINGRESP:
            self.link.do(self._outbox.on_pingresp)
            self._outbox.settle_into(self.finished)
        elif kind == _DISCONNECT_TYPE:
            self._outbox.is_left = True
        self._client._in_packet = _paho.whole_packet(command, body)
        try:
            return self._client._packet_handle()
        except MalformedPacket as error:
            self._client._easy_log(LogLevel.MQTT_LOG_DEBUG, "Received malformed packet: %s", error)
            return MQTTErrorCode.MQTT_ERR_PROTOCOL

    def _on_pubrel(self, mid: int) -> MQTTErrorCode:
        if self.inbound.one_by_one:
            self._client._easy_log(LogLevel.MQTT_LOG_DEBUG, "Received PUBREL (Mid: %d)", mid)
        message = self._client._in_messages.get(mid)
        sock = self._client._sock
        if message is not None:
            with self._client._in_callback_mutex:
                self._hand_over(message, self._client._in_messages)
            # Where there was no callback.
            self._client._in_messages.pop(mid, None)
        if not self._client._manual_ack and self._client._sock is sock:
            if self.inbound.one_by_one:
                self._client._easy_log(LogLevel.MQTT_LOG_DEBUG, "Sending PUBCOMP (Mid: %d)", mid)
            self._outbox.put_ack(_PUBCOMP + mid.to_bytes(2, "big"))
        return MQTTErrorCode.MQTT_ERR_SUCCESS


def _reason_and_properties(
    handle: PublishHandle, reason: tuple[int, int, int, bytes] | None
) -> tuple[ReasonCode, Properties]:
    if reason is None:
        kind = PacketTypes.PUBCOMP if handle.qos == _EXACTLY_ONCE else PacketTypes.PUBACK
        return reason_from(kind, 0), properties_from(kind, b"")
    packet_type, _packet_id, code, packed = reason
    return reason_from(packet_type >> 4, code), properties_from(packet_type >> 4, packed)
