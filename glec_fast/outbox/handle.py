"""What `publish` returns: paho's MQTTMessageInfo, made cheap, and able to wait for the disk as well."""

from __future__ import annotations

import time
from collections.abc import Callable
from math import isnan

from paho.mqtt.enums import MQTTErrorCode

from glec_fast._paho import MQTTMessageInfo, error_string
from glec_fast.durable.outcomes import DropReason
from glec_fast.errors import PublishError, QueueClosedError
from glec_fast.runtime._lock import Condition
from glec_fast.validation import check_timeout


class PublishHandle(MQTTMessageInfo):
    """One accepted message. Thread-safe.

    mid: what `on_publish` is called with: the packet id, or the queue's name for the message, kept over restarts.
    qos: the message's. rc: paho's error code, MQTT_ERR_SUCCESS where the message was accepted.
    """

    # _fate: None while it waits, True once it is published, False where its queue was closed first, or why it was
    # dropped. _wait_durable: only in a queue.
    __slots__ = ("__weakref__", "_fate", "_wait_durable", "qos")

    # Not paho's initialiser: one condition serves all handles of a client, where paho makes one for each.
    # `glec_fast.outbox._outbox` makes handles without it.
    def __init__(  # pylint: disable=super-init-not-called
        self,
        mid: int,
        condition: Condition,
        qos: int,
        wait_durable: Callable[[int, float | None], bool] | None = None,
    ) -> None:
        self.mid = mid
        self.rc = MQTTErrorCode.MQTT_ERR_SUCCESS
        self.qos = qos
        self._condition: Condition = condition  # type: ignore[assignment]
        self._iterpos = 0
        self._fate: DropReason | bool | None = None
        if wait_durable is not None:
            self._wait_durable = wait_durable

    def __copy__(self) -> PublishHandle:
        """Itself, as there is one message: `dataclasses.asdict`, and a program's own copies, hold what they had."""
        return self

    def __deepcopy__(self, _memo: object) -> PublishHandle:
        return self

    @property
    def message_id(self) -> int:
        """The `mid`, by the name that the queue has for it."""
        return self.mid

    @property
    def _published(self) -> bool:  # type: ignore[override]
        return self._fate is True

    def wait_durable(self, timeout_s: float | None = None) -> bool:
        """Wait until the message is on disk, where no crash or power cut can lose it; False after `timeout_s` seconds.

        False at once for a QoS 0 message that went right to the broker. Raises QueueStorageError where the disk fails.
        """
        check_timeout(timeout_s)
        wait_durable = getattr(self, "_wait_durable", None)
        return wait_durable is not None and wait_durable(self.mid, timeout_s)

    def wait_for_publish(self, timeout: float | None = None) -> None:
        """Wait, at most `timeout` seconds, until the broker has taken the message over (QoS 0: until it has left).

        Raises ValueError and RuntimeError as paho does; of the latter PublishError where it was dropped, and
        QueueClosedError where its queue was closed first: if it was on disk, the file's next use sends it.
        """
        self._raise_for_error()
        # Of what is no number it says what paho's says.
        deadline_s = None if timeout is None else time.monotonic() + timeout
        if deadline_s is not None and isnan(deadline_s):
            check_timeout(timeout, "timeout")
        with self._condition:
            while self._fate is None:
                remaining_s = None if deadline_s is None else deadline_s - time.monotonic()
                if remaining_s is not None and remaining_s <= 0:
                    break
                self._condition.wait(remaining_s)
        self._raise_for_end()

    def _raise_for_end(self) -> None:
        self._raise_for_error()
        if self._fate is False:
            left = "if it was on disk, it stays in the file"
            raise QueueClosedError(f"the queue was closed before message {self.mid} was taken over: {left}")

    def is_published(self) -> bool:
        """True once the broker has taken the message over. Raises as `wait_for_publish`, but for QueueClosedError."""
        self._raise_for_error()
        return self._fate is True

    def _raise_for_error(self) -> None:
        if isinstance(self._fate, DropReason):
            raise PublishError(f"message {self.mid} was dropped: {self._fate.value}", self._fate.value)
        if self.rc == MQTTErrorCode.MQTT_ERR_QUEUE_SIZE:
            raise ValueError("Message is not queued due to ERR_QUEUE_SIZE")
        if self.rc > 0 and self.rc != MQTTErrorCode.MQTT_ERR_AGAIN:
            raise RuntimeError(f"Message publish failed: {error_string(self.rc)}")

    def _set_as_published(self) -> None:
        self._end(True)

    def _set_as_dropped(self, reason: DropReason) -> None:
        self._end(reason)

    def _set_as_left(self) -> None:
        if self._fate is None:
            self._end(False)

    def _end(self, fate: DropReason | bool) -> None:
        self._condition.change(self, "_fate", fate)
