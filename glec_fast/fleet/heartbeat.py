"""The gateway's own status: said as it comes and now and then, and by the broker where it has gone."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from glec_fast.fleet._payload import encode_message
from glec_fast.fleet.device import available_storage_mb, memory_usage_mb
from glec_fast.fleet.messages import Status
from glec_fast.fleet.topics import topic_of

if TYPE_CHECKING:
    from glec_fast.durable.store import Store
    from glec_fast.fleet.config import MQTTConfig
    from glec_fast.mqtt.client import Client
    from glec_fast.outbox.stored import DurableOutbox


# MQTT 5, 3.2.2.2: of the will.
_RETAIN_NOT_SUPPORTED, _QOS_NOT_SUPPORTED = 0x9A, 0x9B


class Heartbeat:
    """Any thread. It is quiet where `status_interval_s` is 0, but for `status` and the will."""

    def __init__(self, config: MQTTConfig, client: Client, store: Store, outbox: DurableOutbox) -> None:
        self._client, self._store, self._outbox = client, store, outbox
        self._device_id = config.client_id
        self._topic = topic_of(config.client_id, Status.SUFFIX)
        self._queue_directory = Path(config.queue_path).absolute().parent
        self._interval_s = config.status_interval_s or float("inf")
        self._is_quiet = not config.status_interval_s
        # A will that is never followed by another status would be kept for ever.
        self._is_retained = config.status_retained and config.status_interval_s > 0
        # A broker ends the connection over a will of more than it takes.
        self._will_qos = min(Status.QOS, config.max_qos)
        self._started_s = time.monotonic()
        self._due_s = self._started_s + self._interval_s
        self._can_frames = 0
        self._battery_voltage: float | None = None

    def report_vehicle(self, can_messages_received: int | None, battery_voltage: float | None) -> None:
        """See `MQTTManager.report_vehicle`."""
        Status("online", 0, battery_voltage, 0, 0, can_messages_received or 0, 0, 0)
        if can_messages_received is not None:
            self._can_frames = can_messages_received
        if battery_voltage is not None:
            self._battery_voltage = battery_voltage

    def status(self, status: str) -> Status:
        """With the figures of now."""
        return Status(
            status=status,
            uptime_seconds=int(time.monotonic() - self._started_s),
            battery_voltage=self._battery_voltage,
            memory_usage_mb=memory_usage_mb(),
            storage_available_mb=available_storage_mb(self._queue_directory),
            can_messages_received=self._can_frames,
            mqtt_messages_sent=self._outbox.sent_count,
            offline_queue_size=self._outbox.stored_count,
        )

    def set_will(self) -> None:
        """Told when the link has broken, with the figures of the moment of connecting: MQTT fixes a will in CONNECT."""
        self._client.will_set(self._topic, self._encoded("OFFLINE"), qos=self._will_qos, retain=self._is_retained)

    def on_refused(self, code: int) -> None:
        """CONNACK's reason code: what the broker does not take of a will, the next attempt does without."""
        if code == _RETAIN_NOT_SUPPORTED:
            self._is_retained = False
        elif code == _QOS_NOT_SUPPORTED:
            self._will_qos = 0
        else:
            return
        self.set_will()

    def begin(self) -> None:
        """Say that it is there, and when it is said again."""
        self.say("ONLINE")
        self._due_s = time.monotonic() + self._interval_s

    def say(self, status: str) -> None:
        """Ahead of the queue, on this connection alone: later it would not be true."""
        if not self._is_quiet:
            self._outbox.direct.say(self._topic, self._encoded(status), retain=self._is_retained)

    def take_due(self) -> bool:
        """True where it is time for the next."""
        now_s = time.monotonic()
        is_due = now_s >= self._due_s
        if is_due:
            self._due_s = now_s + self._interval_s
        return is_due

    @property
    def due_in_s(self) -> float:
        """Until the next; without end where there is none."""
        return self._due_s - time.monotonic()

    def _encoded(self, status: str) -> bytes:
        return encode_message(self.status(status), self._device_id, self._store.clock.unix_ms())
