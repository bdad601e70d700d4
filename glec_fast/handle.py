"""What `publish` returns: paho's MQTTMessageInfo, made cheap, and able to wait for the disk as well."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from enum import Enum

from paho.mqtt.client import MQTTMessageInfo
from paho.mqtt.enums import MQTTErrorCode

from glec_fast.drops import DropReason
from glec_fast.errors import PublishError


class _Fate(Enum):
    WAITING = 0
    PUBLISHED = 1
    DROPPED = 2


def _never_on_disk(_message_id: int, _timeout_s: float | None) -> bool:
    return False


class PublishHandle(MQTTMessageInfo):
    """One accepted message. Thread-safe.

    message_id: the queue's name for it, kept over restarts; `mid` is what `on_publish` is called with.
    qos: the message's. rc: paho's error code, MQTT_ERR_SUCCESS where the message was accepted.
    """

    __slots__ = ("__weakref__", "_fate", "_reason", "_wait_durable", "message_id", "qos")

    # Not paho's initialiser: one condition serves all handles of a client, where paho makes one for each.
    def __init__(  # pylint: disable=super-init-not-called
        self,
        mid: int,
        condition: threading.Condition,
        qos: int,
        wait_durable: Callable[[int, float | None], bool] = _never_on_disk,
    ) -> None:
        self.mid = self.message_id = mid
        self.rc = MQTTErrorCode.MQTT_ERR_SUCCESS
        self.qos = qos
        self._condition = condition
        self._published = False
        self._iterpos = 0
        self._fate = _Fate.WAITING
        self._reason: DropReason | None = None
        self._wait_durable = wait_durable

    def wait_durable(self, timeout_s: float | None = None) -> bool:
        """Wait until the message is on disk, where no crash or power cut can lose it; False after the time-out.

        False at once for a QoS 0 message that went right to the broker. Raises QueueStorageError where the disk fails.
        """
        return self._wait_durable(self.message_id, timeout_s)

    def wait_for_publish(self, timeout: float | None = None) -> None:
        """Wait, at most `timeout` seconds, until the broker has taken the message over (QoS 0: until it has left).

        Raises ValueError and RuntimeError as paho does; PublishError, which is a RuntimeError, where it was dropped.
        """
        self._raise_for_error()
        deadline_s = None if timeout is None else time.monotonic() + timeout
        with self._condition:
            while self._fate is _Fate.WAITING:
                remaining_s = None if deadline_s is None else deadline_s - time.monotonic()
                if remaining_s is not None and remaining_s <= 0:
                    break
                self._condition.wait(remaining_s)
        self._raise_for_error()

    def is_published(self) -> bool:
        """True once the broker has taken the message over. Raises as `wait_for_publish` does."""
        self._raise_for_error()
        return self._fate is _Fate.PUBLISHED

    def _raise_for_error(self) -> None:
        if self._fate is _Fate.DROPPED:
            reason = DropReason.OVERFLOW if self._reason is None else self._reason
            raise PublishError(f"message {self.message_id} was dropped: {reason.value}", reason.value)
        if self.rc == MQTTErrorCode.MQTT_ERR_QUEUE_SIZE:
            raise ValueError("Message is not queued due to ERR_QUEUE_SIZE")
        if self.rc > 0 and self.rc != MQTTErrorCode.MQTT_ERR_AGAIN:
            raise RuntimeError(
                f"Message publish failed: {self.rc.name if isinstance(self.rc, MQTTErrorCode) else self.rc}"
            )

    def _set_as_published(self) -> None:
        self._fate = _Fate.PUBLISHED
        self._published = True
        with self._condition:
            self._condition.notify_all()

    def _set_as_dropped(self, reason: DropReason) -> None:
        self._reason = reason
        self._fate = _Fate.DROPPED
        with self._condition:
            self._condition.notify_all()
