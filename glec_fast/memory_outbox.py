"""Messages that wait in memory, as paho's do."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from paho.mqtt.enums import MQTTErrorCode

from glec_fast.handle import PublishHandle
from glec_fast.outbox import Message, Outbox


class MemoryOutbox(Outbox):
    """Messages in memory, as in paho: they have their packet id from `publish` on, and end with the process."""

    def __init__(self, window: int, on_work: Callable[[], None]) -> None:
        super().__init__(window, on_work, durable=False)
        self.max_queued = 0
        self._next_id = 1
        self._waiting: deque[Message] = deque()
        self._in_flight: dict[int, Message] = {}
        # Kept apart, as they have no exchange: a lost connection ends them.
        self._unsent: dict[int, Message] = {}

    def __len__(self) -> int:
        return len(self._waiting) + len(self._in_flight)

    def publish(
        self,
        topic: bytes,
        payload: bytes | bytearray,
        qos: int,
        retain: bool,
        properties: bytes | None,
        linked: bool,
    ) -> PublishHandle:
        """Take a message; the handle's `rc` is MQTT_ERR_NO_CONN or MQTT_ERR_QUEUE_SIZE where paho says so."""
        with self.lock:
            if qos == 0:
                handle = PublishHandle(self.session.next_packet_id(), self._published, 0)
                if not linked:
                    handle.rc = MQTTErrorCode.MQTT_ERR_NO_CONN
                    return handle
                message = self._message(topic, payload, qos, retain, properties, handle)
                self._unsent[message.message_id] = message
                self.session.admit(message.message_id, topic, payload, 0, retain, properties)
                if self.is_traced:
                    self.trace.append((message, self.session.admitted_command))
                return handle
            full = 0 < self.max_queued <= len(self)
            mid = self.session.next_packet_id() if full else self.session.reserve_packet_id()
            handle = PublishHandle(mid, self._published, qos)
            if full or mid == 0:
                handle.rc = MQTTErrorCode.MQTT_ERR_QUEUE_SIZE
                return handle
            self._waiting.append(self._message(topic, payload, qos, retain, properties, handle))
            if not linked:
                handle.rc = MQTTErrorCode.MQTT_ERR_NO_CONN
            elif self.is_open:
                self._admit_waiting()
            return handle

    def _message(
        self,
        topic: bytes,
        payload: bytes | bytearray,
        qos: int,
        retain: bool,
        properties: bytes | None,
        handle: PublishHandle,
    ) -> Message:
        message_id = self._next_id
        self._next_id += 1
        return Message(message_id, topic, payload, qos, retain, properties, handle.mid, handle)

    def pull(self) -> None:
        """Admit what the window has room for."""
        if self._waiting and self.is_open:
            with self.lock:
                self._admit_waiting()

    def _admit_waiting(self) -> None:
        room = self.session.room()
        while room > 0 and self._waiting:
            message = self._waiting.popleft()
            message.handle.rc = MQTTErrorCode.MQTT_ERR_SUCCESS
            self._in_flight[message.message_id] = message
            self.session.admit(
                message.message_id,
                message.topic,
                message.payload,
                message.qos,
                message.retain,
                message.properties,
                message.mid,
            )
            if self.is_traced:
                self.trace.append((message, self.session.admitted_command))
            room -= 1

    def settle(self) -> list[PublishHandle]:
        """The handles of what is finished; the caller holds the lock."""
        finished = []
        for message_id in [*self.session.take_done(), *self.session.take_refused()]:
            message = self._in_flight.pop(message_id, None) or self._unsent.pop(message_id, None)
            if message is not None:
                finished.append(message.handle)
        self.sent_count += len(finished)
        return finished

    def park(self) -> list[PublishHandle]:
        """The connection is gone. Returns the handles of QoS 0 messages that went with it."""
        with self.lock:
            self.is_open = False
            self.session.park()
            self._release_control_ids()
            self._waiting.extendleft(reversed(self._in_flight.values()))
            self._in_flight.clear()
            lost = [message.handle for message in self._unsent.values()]
            self._unsent.clear()
        for handle in lost:
            handle.rc = MQTTErrorCode.MQTT_ERR_CONN_LOST
            handle._set_as_published()
        return lost

    def resume(self, session_present: bool, receive_maximum: int) -> list[PublishHandle]:
        """The broker accepted the connection: send again what was not acknowledged, then what waits.

        Returns the handles of QoS 2 messages that the broker had received before it lost its session: they are its own.
        """
        with self.lock:
            in_doubt = set(self.session.resume(session_present, receive_maximum))
            kept = [message for message in self._waiting if message.message_id not in in_doubt]
            doubtful = [message for message in self._waiting if message.message_id in in_doubt]
            self._waiting = deque(kept)
            self.is_open = True
        self.pull()
        return [message.handle for message in doubtful]

    def clear(self) -> list[Message]:
        """Forget every unacknowledged message and return them in order."""
        with self.lock:
            dropped = [*self._in_flight.values(), *self._waiting]
            for message in self._waiting:
                self.session.forget(message.message_id)
                self.session.release_packet_id(message.mid)
            self._in_flight.clear()
            self._waiting.clear()
            return dropped
