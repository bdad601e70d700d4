"""What has arrived, to callbacks: strict packets, messages and acknowledgements.

Every packet goes through `glec_fast.protocol._inbound`, whatever the loop. What it hands out is kept here until its
callback has returned: where a callback raises, and the program goes on, the next turn of the loop begins with the same
packet, as paho's does.
"""

from __future__ import annotations

import enum
from collections import deque
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from paho.mqtt.enums import CallbackAPIVersion, LogLevel, MessageState, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import MalformedPacket, Properties
from paho.mqtt.reasoncodes import ReasonCode

from glec_fast._paho import MQTTMessage, Paho, has_filters
from glec_fast.errors import ProtocolError
from glec_fast.mqtt.inbound_message import InboundMessage, packed_publish, properties_from, reason_from
from glec_fast.mqtt.paho_words import in_paho_words
from glec_fast.outbox._outbox import Outbox, call_once, take_up, tell, tell_waiters
from glec_fast.outbox.received import Received
from glec_fast.outbox.stored import DurableOutbox
from glec_fast.outbox.uptime import TOPIC, Uptime
from glec_fast.protocol._inbound import ACKS, NEED_DATA, Inbound
from glec_fast.transport._link import Link

if TYPE_CHECKING:
    from glec_fast.engine.ending import Ending
    from glec_fast.outbox._outbox import Message
    from glec_fast.outbox.handle import PublishHandle
    from glec_fast.runtime._field import Overrides

# An enum's members are looked up at some cost.
_SUCCESS = MQTTErrorCode.MQTT_ERR_SUCCESS
# A server that keeps to 65,535 packet ids waits for answers of at most half as much.
_ANSWERS_MAX_BYTES = 1 << 20
_RECEIVE_MAXIMUM_EXCEEDED = 0x93
_EXACTLY_ONCE = 2
_PUBCOMP = b"\x70\x02"
_PUBREL_TYPE, _SUBACK_TYPE, _UNSUBACK_TYPE = 0x60, 0x90, 0xB0
PINGRESP, _DISCONNECT_TYPE = 0xD0, 0xE0
_PUBREC_TYPE = 0x50
_UNNAMED = "the server gave reason code 0x%02X, which is taken for 0x80, Unspecified error"
_ACK_NAMES = {0x40: "PUBACK", 0x50: "PUBREC", 0x70: "PUBCOMP"}


class _At(enum.Enum):
    """What was being handled when a callback raised."""

    NOTHING = 0
    PACKET = 1
    MESSAGE = 2
    PUBLISHED = 3


class Dispatcher:
    """Of one client. For whoever has its loop; `finished` may be extended under the outbox's lock only."""

    def __init__(self, paho: Paho, outbox: Outbox, ending: Ending, overrides: Overrides) -> None:
        # With a store; without, the packet ids of QoS 2 are paho's, in memory.
        self.received: Received | None = Received(outbox) if isinstance(outbox, DurableOutbox) else None
        self._uptime = outbox.uptime if isinstance(outbox, DurableOutbox) else None
        self._paho = paho
        self._ending = ending
        # Neither is replaced in a client's life.
        self._client, self._filters = paho.client, paho.filters
        self._outbox = outbox
        self.inbound = Inbound(InboundMessage, MessageState.MQTT_MS_INVALID, MessageState.MQTT_MS_WAIT_FOR_PUBREL)
        self.link = Link(outbox, self.inbound)
        # Handed out by the parser and not yet through their callbacks.
        self.finished: deque[PublishHandle] = deque()
        self._arrived: deque[InboundMessage] = deque()
        # With a store: the message that is with its callbacks, and those that have not returned yet, so that what cuts
        # in behind one gives it no message a second time.
        self._given: MQTTMessage | None = None
        self._left: list[Any] = []
        # mid -> (packet type, packet id, reason code, packed properties), of acknowledgements that had more than an id.
        self._reasons: dict[int, tuple[int, int, int, bytes]] = {}
        self._failed_at = _At.NOTHING
        self._has_told_of_qos_1 = False
        self._overrides = overrides
        # The program's own methods in the place of paho's, by their names: asked for what is done here else.
        self._own: dict[str, Any] = overrides.of(paho.client)
        # For a `_do_on_publish` of the program's own: mid -> message, of those that may end with the next read, and of
        # those that have, and that it has not let be forgotten. They go again on the next connection.
        self._may_end: dict[int, Message] = {}
        self.unforgotten: dict[int, Message] = {}
        self._is_forgotten = True

    def is_behind(self) -> bool:
        """True where something has come, or left, that no callback was told of yet."""
        return self.link.has_more or bool(self.finished)

    def handle(self, sock: Any) -> MQTTErrorCode:
        """Every whole packet that is there, until the connection ends or is about to."""
        inbound, outbox, link = self.inbound, self._outbox, self.link
        self._own = self._overrides.of(self._client)
        inbound.one_by_one = outbox.is_traced or bool(self._own)
        if "_do_on_publish" in self._own and not outbox.is_stored:
            messages = ((mid, self._may_end.get(mid) or outbox.find(mid)) for mid in outbox.message_ids())
            self._may_end = {mid: message for mid, message in messages if message is not None}
        while True:
            if self.finished or self._arrived or link.packet is not None:
                rc = self._handle_held(sock)
                if rc or self._paho.sock is not sock:
                    return rc
            if outbox.session.has_last:
                # As in paho, where DISCONNECT goes out before the next packet is looked at.
                outbox.put_acks()
                break
            try:
                found = link.advance(self._arrived, self.finished, self._reasons)
            except ProtocolError as error:
                return self._on_violation(error)
            if self._uptime is not None and outbox.is_asking:
                self._take_uptime(self._uptime)
            if found == NEED_DATA:
                break
            if found == ACKS:
                link.do(outbox.after_settle)
                if inbound.one_by_one:
                    self._log_ack(inbound.acks, link.answer_bytes)
                    if self._own:
                        self._tell_of_ack(inbound.acks)
                if outbox.session.downgraded_count and not self._has_told_of_qos_1:
                    self._note_qos_1()
        if outbox.answer_bytes > _ANSWERS_MAX_BYTES:
            unread = "a server that does not read the answers to what it sends (MQTT 5, 4.9)"
            return self._on_violation(ProtocolError(unread, _RECEIVE_MAXIMUM_EXCEEDED))
        return _SUCCESS

    def _handle_held(self, sock: Any) -> MQTTErrorCode:
        """What the parser handed out, as far as its callbacks return."""
        if self.link.packet is not None:
            self._failed_at = _At.PACKET
            rc = self._on_packet(*self.link.packet)
            self.link.packet = None
            if rc or self._paho.sock is not sock:
                return rc
        if self.finished:
            self._failed_at = _At.PUBLISHED
            self.tell_published()
            if self._paho.sock is not sock:
                return MQTTErrorCode.MQTT_ERR_SUCCESS
        if self._arrived:
            self._failed_at = _At.MESSAGE
            rc = self._deliver(sock)
            if rc:
                return rc
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
        """Put what says why, where the protocol has words for it (MQTT 5, 4.13); the connection is to end."""
        self._failed_at = _At.PUBLISHED
        self.tell_published()
        self._failed_at = _At.NOTHING
        self._ending.note(str(error))
        self._outbox.is_violated = True
        self._paho.log(LogLevel.MQTT_LOG_ERR, "closing the connection: %s", error)
        # Before CONNACK there is nothing yet that it could end.
        if self._paho.protocol == MQTTProtocolVersion.MQTTv5 and self.inbound.has_connack:
            self._outbox.put_packet(bytes((0xE0, 1, error.reason_code)), last=True)
        return MQTTErrorCode.MQTT_ERR_PROTOCOL

    # ---- acknowledgements of what was published

    def _log_ack(self, ack: bytes, answer_bytes: int) -> None:
        mid = ack[2] << 8 | ack[3]
        self._paho.log(LogLevel.MQTT_LOG_DEBUG, "Received %s (Mid: %d)", _ACK_NAMES[ack[0]], mid)
        if answer_bytes:
            self._paho.log(LogLevel.MQTT_LOG_DEBUG, "Sending PUBREL (Mid: %d)", mid)

    def _tell_of_ack(self, ack: bytes) -> None:
        """A program that has its own handler of acknowledgements; what it returns changes nothing any more."""
        enter = self._own.get("_packet_handle")
        if enter is None and ack[0] == _PUBREC_TYPE:
            enter = self._own.get("_handle_pubrec")
        elif enter is None and (handler := self._own.get("_handle_pubackcomp")):
            enter = partial(handler, _ACK_NAMES[ack[0]])
        if enter is not None:
            self._paho.enter_packet(ack[0], ack[2:], enter)

    def _note_qos_1(self) -> None:
        self._has_told_of_qos_1 = True
        text = "the server acknowledges QoS 2 as QoS 1 (PUBACK): messages may arrive twice"
        self._paho.log(LogLevel.MQTT_LOG_WARNING, text)

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
            self._paho.log(LogLevel.MQTT_LOG_DEBUG, "passed over what came behind DISCONNECT: %s", error)
        self.link.do(self._outbox.after_settle)
        return kinds

    def tell_published(self, *, again: bool = True) -> None:
        """Call `on_publish` for each. again: where it raises, it is called again for the same message."""
        on_publish = self._client.on_publish
        own = self._own.get("_do_on_publish")
        if own is not None:
            tell(self.finished, self._reasons, partial(self._enter_on_publish, own, on_publish), again)
        elif on_publish:
            tell(self.finished, self._reasons, partial(self._call_on_publish, on_publish), again)
        else:
            tell_waiters(self.finished, self._reasons)

    def settle_sent(self) -> None:
        """The socket took what ends messages of QoS 0: tell of them."""
        self._outbox.settle_into(self.finished)
        self.link.do(self._outbox.after_settle)
        # It has left all the same, also where a callback raises; those behind it are told of in the loop's next turn.
        self.tell_published(again=False)

    def _reason_of(self, handle: PublishHandle) -> tuple[ReasonCode, Properties]:
        return _reason_and_properties(handle, self._reasons.get(handle.mid))

    def _enter_on_publish(self, own: Any, on_publish: Any, handle: PublishHandle) -> None:
        """As with paho, whose own is for what was acknowledged."""
        if handle.qos:
            self._is_forgotten = False
            own(handle.mid, *self._reason_of(handle))
            message = self._may_end.pop(handle.mid, None)
            if not self._is_forgotten and message is not None:
                self.unforgotten[handle.mid] = message
        elif on_publish:
            self._call_on_publish(on_publish, handle)

    def _call_on_publish(self, on_publish: Any, handle: PublishHandle) -> None:
        is_first = self._paho.callback_version == CallbackAPIVersion.VERSION1
        self.call_on_publish(on_publish, handle.mid, () if is_first else self._reason_of(handle))

    def forget_published(self) -> None:
        """The message that is being told of need not be sent again."""
        self._is_forgotten = True

    def restore_unforgotten(self) -> None:
        """On the connection that is being made they go again, as far as their ids are free."""
        for mid, message in self.unforgotten.items():
            with suppress(ValueError):
                properties = message.properties
                self._outbox.restore(mid, message.topic, message.payload, message.qos, message.retain, properties)
        self.unforgotten.clear()

    def call_on_publish(self, on_publish: Any, mid: int, more: tuple[Any, ...]) -> None:
        """Call it. more: what the second version of paho's callbacks is given besides."""
        paho, client = self._paho, self._client
        with paho.callback_mark:
            try:
                on_publish(client, paho.userdata, mid, *more)
            except Exception as error:
                paho.log(LogLevel.MQTT_LOG_ERR, "Caught exception in on_publish: %s", error)
                if not self._client.suppress_exceptions:
                    raise

    # ---- messages

    def _take_uptime(self, uptime: Uptime) -> None:
        """The program has not asked for it."""
        for message in self._arrived:
            if message.retain and not message.qos and message.topic == TOPIC:
                if uptime.take_message(message.payload):
                    self._arrived.remove(message)
                return

    def _deliver(self, sock: Any) -> MQTTErrorCode:
        """Each message to its callbacks, and its acknowledgement behind it."""
        enter = self._own.get("_packet_handle") or self._own.get("_handle_publish")
        if enter is None:
            self._take_messages(sock)
            return _SUCCESS
        arrived, paho = self._arrived, self._paho
        is_5 = paho.protocol == MQTTProtocolVersion.MQTTv5
        with paho.callback_mark:
            while arrived and paho.sock is sock and not self._outbox.session.has_last:
                message = arrived[0]
                rc = paho.enter_packet(*packed_publish(message, is_5=is_5), enter)
                if paho.sock is sock and arrived and arrived[0] is message:
                    # The program has kept it from what is done here: nobody is told, and nothing answered.
                    arrived.popleft()
                if rc:
                    return rc
        return _SUCCESS

    def take_message(self) -> None:
        """The first that has arrived, where there is one."""
        self._take_messages(self._paho.sock, only_first=True)

    def _take_messages(self, sock: Any, *, only_first: bool = False) -> None:
        arrived, paho, kept = self._arrived, self._paho, self.received
        is_logging = self.inbound.one_by_one
        with paho.callback_mark:
            while arrived:
                message = arrived[0]
                if is_logging:
                    self._log_received(message)
                if kept is not None:
                    if kept.is_new(message):
                        self._hand_over(message)
                elif message.qos < _EXACTLY_ONCE:
                    self._hand_over(message)
                if paho.sock is not sock:
                    return
                self._acknowledge()
                if only_first or self._outbox.session.has_last:
                    return

    def _acknowledge(self) -> None:
        """The first that has arrived is through its callbacks."""
        message = self._arrived[0]
        qos = message.qos
        if not qos:
            self._arrived.popleft()
            return
        paho = self._paho
        is_manual = paho.is_manual
        if self._own and self._answer_by_own(message, is_manual=is_manual):
            return
        if qos == 1:
            self._outbox.acknowledge(self._arrived, None, is_manual)
        elif self.received is None:
            self._outbox.acknowledge(self._arrived, paho.received, is_manual)
        else:
            if not is_manual:
                self.received.acknowledge(message.mid)
            self._arrived.popleft()
            return
        if self.inbound.one_by_one and not (qos == 1 and is_manual):
            name = "PUBREC" if qos == _EXACTLY_ONCE else "PUBACK"
            paho.log(LogLevel.MQTT_LOG_DEBUG, f"Sending {name} (Mid: %d)", message.mid)

    def _answer_by_own(self, message: InboundMessage, *, is_manual: bool) -> bool:
        """True where the program has its own method that answers."""
        answer = self._own.get("_send_pubrec" if message.qos == _EXACTLY_ONCE else "_send_puback")
        if answer is None or self.received is not None:
            return False
        self._arrived.popleft()
        if message.qos == _EXACTLY_ONCE:
            self._paho.received[message.mid] = message
            answer(message.mid)
        elif not is_manual:
            answer(message.mid)
        return True

    def _hand_over(self, message: MQTTMessage, received: dict[int, Any] | None = None) -> None:
        """To the callbacks whose filter matches, else to `on_message`; the caller has said that this is a callback.

        received: where the message is taken from by its first callback. An exception of one does not keep it from the
        others; the first that was raised is, behind them.
        """
        if self._own and (own := self._own.get("_handle_on_message")):
            take_up({} if received is None else received, message.mid, own, message)
            return
        callbacks: list[Any] = []
        if has_filters(self._filters):
            with self._paho.callback_lock:
                callbacks = list(self._filters.iter_match(message.topic))
        named = bool(callbacks)
        if not callbacks and (on_message := self._client.on_message):
            callbacks = [on_message]
        if self.received is not None:
            if self._given is not message:
                self._left, self._given = callbacks.copy(), message
            callbacks = self._left.copy()
        failure: Exception | None = None
        for callback in callbacks:
            text = "Caught exception in on_message: %s"
            if named:
                name = getattr(callback, "__name__", repr(callback)).replace("%", "%%")
                text = f"Caught exception in user defined callback function {name}: %s"
            try:
                self._call(callback, text, message, received)
            except Exception as error:
                failure = failure or error
        if failure is not None:
            raise failure

    def _call(self, callback: Any, on_failure: str, message: MQTTMessage, received: dict[int, Any] | None) -> None:
        try:
            if received is not None:
                take_up(received, message.mid, callback, self._client, self._paho.userdata, message)
            elif self.received is not None:
                call_once(self._left, callback, self._client, self._paho.userdata, message)
            else:
                callback(self._client, self._paho.userdata, message)
        except Exception as error:
            self._paho.log(LogLevel.MQTT_LOG_ERR, on_failure, error)
            if not self._client.suppress_exceptions:
                raise

    def acknowledge_returned(self) -> None:
        """Nobody has the loop any more: what an exception kept from being acknowledged, behind its callbacks."""
        given = self._given
        if self.received is not None and given is not None and not self._left and not self._paho.is_manual:
            self.received.acknowledge(given.mid, given)

    def _log_received(self, message: InboundMessage) -> None:
        flags = (message.dup, message.qos, message.retain, message.mid)
        size = len(message.payload)
        if self._paho.protocol == MQTTProtocolVersion.MQTTv5:
            self._paho.log(
                LogLevel.MQTT_LOG_DEBUG,
                "Received PUBLISH (d%d, q%d, r%d, m%d), '%s', properties=%s, ...  (%d bytes)",
                *(*flags, message.topic, message.properties, size),
            )
        else:
            self._paho.log(
                LogLevel.MQTT_LOG_DEBUG,
                "Received PUBLISH (d%d, q%d, r%d, m%d), '%s', ...  (%d bytes)",
                *(*flags, message.topic, size),
            )

    # ---- every other packet

    def _on_packet(self, command: int, body: bytes) -> MQTTErrorCode:
        kind = command & 0xF0
        if kind == _PUBREL_TYPE:
            enter = self._own.get("_packet_handle") or self._own.get("_handle_pubrel")
            if enter is None:
                return self.take_pubrel(body[0] << 8 | body[1])
            return self._paho.enter_packet(command, body, enter)
        if kind in (_SUBACK_TYPE, _UNSUBACK_TYPE):
            packet_id = body[0] << 8 | body[1]
            self._outbox.release_packet_id(packet_id)
            if self._uptime is not None and self._uptime.take_answer(packet_id):
                return _SUCCESS
        elif kind == PINGRESP and self._outbox.probes > 1:
            # Thousands of them in a row, and the last is the one that tells.
            self._outbox.probes -= 1
            self._outbox.on_pong()
            return _SUCCESS
        elif kind == PINGRESP:
            self.link.do(self._outbox.on_pingresp)
            self._outbox.settle_into(self.finished)
        elif kind == _DISCONNECT_TYPE:
            self._outbox.is_left = True
            self._outbox.left_reason = body[0] if body else 0
        if self._paho.protocol == MQTTProtocolVersion.MQTTv5:
            body, unnamed = in_paho_words(kind >> 4, body)
            for code in unnamed:
                self._paho.log(LogLevel.MQTT_LOG_WARNING, _UNNAMED, code)
        try:
            return self._paho.handle_packet(command, body)
        except ProtocolError as error:
            return self._on_violation(error)
        except MalformedPacket as error:
            self._ending.note(f"malformed packet: {error}")
            self._paho.log(LogLevel.MQTT_LOG_DEBUG, "Received malformed packet: %s", error)
            return MQTTErrorCode.MQTT_ERR_PROTOCOL

    def take_pubrel(self, mid: int) -> MQTTErrorCode:
        """Release the message, and answer."""
        if self.inbound.one_by_one:
            self._paho.log(LogLevel.MQTT_LOG_DEBUG, "Received PUBREL (Mid: %d)", mid)
        if self.received is not None:
            self.received.release(mid)
            return MQTTErrorCode.MQTT_ERR_SUCCESS
        message = self._paho.received.get(mid)
        sock = self._paho.sock
        if message is not None:
            with self._paho.callback_mark:
                self._hand_over(message, self._paho.received)
            # Where there was no callback.
            self._paho.received.pop(mid, None)
        if not self._paho.is_manual and self._paho.sock is sock:
            if self.inbound.one_by_one:
                self._paho.log(LogLevel.MQTT_LOG_DEBUG, "Sending PUBCOMP (Mid: %d)", mid)
            if answer := self._own.get("_send_pubcomp"):
                return answer(mid)  # type: ignore[no-any-return]
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
