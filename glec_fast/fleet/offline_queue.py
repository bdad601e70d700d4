"""The offline queue on its own: the specification's OfflineQueueManager, over the same store that MQTTManager uses."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import NamedTuple

from glec_fast.durable._table import QueueTable
from glec_fast.durable.clock import Clocks
from glec_fast.durable.outcomes import Dropped
from glec_fast.durable.store import DEFAULT_MAX_QUEUE_SIZE, DEFAULT_MAX_RETRY, Store
from glec_fast.durable.transaction import Row
from glec_fast.errors import MessageError, QueueStorageError
from glec_fast.fleet.config import check_queue_settings
from glec_fast.fleet.overseen import Overseen
from glec_fast.fleet.payload import as_payload
from glec_fast.protocol._session import Session
from glec_fast.runtime import process
from glec_fast.runtime.log import logger, shown
from glec_fast.runtime.thread import is_kept_in
from glec_fast.validation import check_id, check_publish, check_ttl

_HOUR_MS = 60 * 60 * 1000
_ROW_LENGTH = 3


class QueuedMessage(NamedTuple):
    """One row; immutable.

    id: of the message, for `delete`. topic, qos: it was accepted with them. payload: str, or bytes where it is not
    text. timestamp_ms, expires_at_ms: Unix milliseconds. retry_count: failed attempts.
    """

    id: int
    topic: str
    payload: str | bytes
    qos: int
    timestamp_ms: int
    expires_at_ms: int
    retry_count: int


class QueueStats(NamedTuple):
    """A snapshot; immutable.

    size: messages. oldest_timestamp_ms, newest_timestamp_ms: Unix milliseconds, None where the queue is empty.
    disk_bytes: of the file and its log. drops: messages dropped since the queue was opened, by `DropReason`'s values.
    """

    size: int
    oldest_timestamp_ms: int | None
    newest_timestamp_ms: int | None
    disk_bytes: int
    drops: Mapping[str, int]


class OfflineQueueManager(Overseen):
    """A durable first-in, first-out queue of messages in one SQLite file (specification, "Offline Queue").

    Every method that changes the queue returns once the change is on disk. Thread-safe. One process at a time.
    Expired and given-up messages go by themselves every five minutes.

    path: the queue file. max_queue_size: messages, 1 to 100,000,000; the oldest go first. ttl_hours: above 0.
    max_retry: failed attempts until `cleanup_max_retries` takes a message, at least 1.
    on_drop: told of each dropped message by the queue's own thread; keep it short. clocks: for tests.
    Raises ConfigError, QueueLockedError, QueueFormatError, QueueStorageError.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        max_queue_size: int = DEFAULT_MAX_QUEUE_SIZE,
        ttl_hours: float = 24,
        max_retry: int = DEFAULT_MAX_RETRY,
        *,
        on_drop: Callable[[Dropped], None] | None = None,
        clocks: Clocks | None = None,
    ) -> None:
        check_queue_settings(max_queue_size, ttl_hours, max_retry)
        self._on_drop = on_drop
        self._store = Store(
            path,
            max_queue_size=max_queue_size,
            ttl_ms=int(ttl_hours * _HOUR_MS),
            max_retry=max_retry,
            on_dropped=self._on_dropped,
            clocks=clocks,
        )
        try:
            self._delete_delivered()
        except BaseException:
            self._store.close()
            raise
        process.watch_forks(self)

    def _process_forked(self, pid: int) -> None:
        process.forbid(self, pid, {"release": None})

    def _delete_delivered(self) -> None:
        """A client that was killed had no time to delete what the broker has, but said so."""
        try:
            ranges = Session().load_image(self._store.load_session())
        except ValueError as error:
            logger.warning("messages that the broker has may still be in the queue: %s", error)
            return
        if ranges:
            self._store.run(lambda table: table.delete_finished(ranges))

    def enqueue(self, topic: str, payload: object, qos: int, ttl_millis: int | None = None) -> int:
        """Add a message and return its id.

        topic: without wildcards. payload: str, bytes, or a dict (as JSON). qos: 0, 1 or 2. ttl_millis: its age of
        expiry, the queue's own where None.

        Raises MessageError; QueueStorageError and QueueClosedError, after which it is not in the queue.
        """
        check_publish(topic, qos)
        check_ttl(ttl_millis)
        message_id = self._store.append(topic, as_payload(payload), qos, ttl_ms=ttl_millis)
        self._wait_durable([message_id])
        return message_id

    def enqueue_many(self, rows: Iterable[tuple[str, object, int]], ttl_millis: int | None = None) -> list[int]:
        """Add (topic, payload, qos) rows in one transaction and return their ids; one bad row refuses all.

        ttl_millis: of all of them. Raises as `enqueue`, after which none of them is in the queue.
        """
        check_ttl(ttl_millis)
        checked = []
        for row in rows if isinstance(rows, Iterable) else (rows,):
            if not isinstance(row, tuple | list) or len(row) != _ROW_LENGTH:
                raise MessageError(f"a row is {type(row).__name__}; give (topic, payload, qos) for each message")
            topic, payload, qos = row
            check_publish(topic, qos)
            checked.append((topic, as_payload(payload), qos))
        ids = self._store.append_many(checked, ttl_millis)
        if ids:
            self._wait_durable(ids)
        return ids

    def _wait_durable(self, ids: list[int]) -> None:
        while True:
            try:
                self._store.wait_durable(ids[-1])
            except QueueStorageError:
                # Not withdrawn: a later attempt has written them meanwhile, and the next wait says so.
                if not self._store.withdraw(*ids):
                    continue
                raise
            return

    def dequeue_all(self) -> list[QueuedMessage]:
        """Every message, oldest first; it stays until `delete`. Raises QueueStorageError, QueueClosedError."""

        def read(table: QueueTable) -> list[Row]:
            rows = table.read_all()
            # Deleted by the same transaction, so that none is met again.
            self._store.supply.set_aside(table.unsendable)
            return rows

        return [QueuedMessage(*row) for row in self._store.run(read)]

    def delete(self, message_id: int) -> bool:
        """Delete one message, by its `message_id`; False where there is none. Raises as `dequeue_all`, MessageError."""
        check_id(message_id)
        return self._store.run(lambda table: table.delete([message_id])) > 0

    def increment_retry_count(self, message_id: int) -> bool:
        """Count one more failed attempt of `message_id`; False where there is none. Raises as `delete`."""
        check_id(message_id)
        return self._store.run(lambda table: table.increment_retry_count([message_id])) > 0

    def cleanup_expired(self) -> int:
        """Delete messages whose time of expiry has passed; returns how many. Raises as `dequeue_all`."""
        return self._store.drop_expired()

    def cleanup_max_retries(self) -> int:
        """Delete messages with `max_retry` failed attempts or more; returns how many. Raises as `dequeue_all`."""
        return self._store.drop_given_up()

    def get_queue_size(self) -> int:
        """Messages in the queue. Never raises."""
        return self._store.size

    def stats(self) -> QueueStats:
        """Size, age span and bytes on disk. Raises as `dequeue_all`."""

        def measure(table: QueueTable) -> tuple[int, tuple[int | None, int | None]]:
            return table.count(), table.span_ms()

        size, (oldest_ms, newest_ms) = self._store.run(measure)
        return QueueStats(size, oldest_ms, newest_ms, self._store.disk_bytes(), self._store.drops)

    def _on_dropped(self, dropped: list[Dropped]) -> None:
        for each in dropped:
            self._tell(each)

    def _tell(self, dropped: Dropped) -> None:
        try:
            if self._on_drop is not None:
                self._on_drop(dropped)
        except BaseException as error:
            if not is_kept_in(error):
                raise
            self._store.log.note(logging.ERROR, "errors in the drop callback", shown(error), error=error)

    def release(self) -> None:
        """Write what is pending and let go of the file. Idempotent. Raises QueueStorageError where it cannot."""
        self._store.close()

    def __enter__(self) -> OfflineQueueManager:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()
