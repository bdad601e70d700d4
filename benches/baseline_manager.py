"""The baseline: the manager of the specification ("MQTTManager Integration") in pure Python, paho + sqlite3 + json.

Where the pseudo-code leaves it open, the better choice is taken: a row is deleted once the broker has acknowledged it,
WAL with synchronous=NORMAL spares a sync per deletion, and one connection serves the life of the manager.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from paho.mqtt.client import MQTT_ERR_SUCCESS, CallbackAPIVersion, Client

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

SCHEMA = """
CREATE TABLE IF NOT EXISTS mqtt_offline_queue (
    id INTEGER PRIMARY KEY AUTOINCREMENT, topic TEXT NOT NULL, payload TEXT NOT NULL, qos INTEGER NOT NULL,
    timestamp BIGINT NOT NULL, ttl BIGINT NOT NULL, retry_count INTEGER DEFAULT 0);
CREATE INDEX IF NOT EXISTS idx_timestamp ON mqtt_offline_queue(timestamp);
CREATE INDEX IF NOT EXISTS idx_ttl ON mqtt_offline_queue(ttl);
"""
INSERT = "INSERT INTO mqtt_offline_queue (topic, payload, qos, timestamp, ttl) VALUES (?, ?, ?, ?, ?)"
SELECT_ALL = "SELECT id, topic, payload, qos, retry_count FROM mqtt_offline_queue ORDER BY timestamp, id"
DELETE_OLDEST = (
    "DELETE FROM mqtt_offline_queue WHERE id IN (SELECT id FROM mqtt_offline_queue ORDER BY timestamp, id LIMIT ?)"
)
DAY_MS = 24 * 60 * 60 * 1000


class QueuedMessage(NamedTuple):
    id: int
    topic: str
    payload: str
    qos: int
    retry_count: int


class BaselineQueue:
    """The specification's OfflineQueueManager: every change is a transaction of its own, under one lock."""

    def __init__(self, path: str | Path, max_size: int = 10_000, ttl_ms: int = DAY_MS, max_retry: int = 3) -> None:
        self._max_size = max_size
        self._ttl_ms = ttl_ms
        self.max_retry = max_retry
        self._lock = threading.Lock()
        self._db = sqlite3.connect(path, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.executescript(SCHEMA)

    def enqueue(self, topic: str, payload: str, qos: int) -> None:
        self.enqueue_many([(topic, payload, qos)])

    def enqueue_many(self, rows: Iterable[tuple[str, str, int]]) -> None:
        now_ms = time.time_ns() // 1_000_000
        values = [(topic, payload, qos, now_ms, now_ms + self._ttl_ms) for topic, payload, qos in rows]
        with self._lock, self._db:
            excess = self._count() + len(values) - self._max_size
            if excess > 0:
                self._db.execute(DELETE_OLDEST, (excess,))
            self._db.executemany(INSERT, values)

    def dequeue_all(self) -> list[QueuedMessage]:
        with self._lock:
            return [QueuedMessage(*row) for row in self._db.execute(SELECT_ALL)]

    def delete(self, row_id: int) -> None:
        with self._lock, self._db:
            self._db.execute("DELETE FROM mqtt_offline_queue WHERE id = ?", (row_id,))

    def increment_retry_count(self, row_id: int) -> None:
        with self._lock, self._db:
            self._db.execute("UPDATE mqtt_offline_queue SET retry_count = retry_count + 1 WHERE id = ?", (row_id,))

    def cleanup_expired(self) -> int:
        with self._lock, self._db:
            now_ms = time.time_ns() // 1_000_000
            return self._db.execute("DELETE FROM mqtt_offline_queue WHERE ttl < ?", (now_ms,)).rowcount

    def get_queue_size(self) -> int:
        with self._lock:
            return self._count()

    def release(self) -> None:
        with self._lock:
            self._db.close()

    def _count(self) -> int:
        return int(self._db.execute("SELECT COUNT(*) FROM mqtt_offline_queue").fetchone()[0])


class BaselineManager:
    """Publishes when connected, queues when not, flushes the queue in paho's network thread at each CONNACK."""

    def __init__(
        self, host: str, port: int, client_id: str, queue_path: str | Path, max_inflight: int, ca: str = ""
    ) -> None:
        self._address = (host, port)
        self._queue = BaselineQueue(queue_path)
        self._row_of_mid: dict[int, int] = {}
        self._flushed = threading.Event()
        self.on_connected: Callable[[], None] = lambda: None
        self._client = Client(CallbackAPIVersion.VERSION2, client_id=client_id, clean_session=False)
        self._client.max_inflight_messages_set(max_inflight)
        if ca:
            self._client.tls_set(ca)
        self._client.on_connect = self._on_connect
        self._client.on_publish = self._on_publish

    def connect(self) -> None:
        self._client.connect_async(*self._address)
        self._client.loop_start()

    def disconnect(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()
        self._queue.release()

    def publish(self, topic: str, payload: Mapping[str, Any], qos: int) -> bool:
        text = json.dumps(payload)
        if not self._client.is_connected():
            self._queue.enqueue(topic, text, qos)
            return True
        return self._client.publish(topic, text, qos).rc == MQTT_ERR_SUCCESS

    def wait_flushed(self, timeout_s: float) -> bool:
        return self._flushed.wait(timeout_s)

    def _on_connect(self, _client: Client, _userdata: Any, _flags: Any, reason_code: Any, _properties: Any) -> None:
        if reason_code.is_failure:
            return
        self.on_connected()
        self._flush_offline_queue()

    def _flush_offline_queue(self) -> None:
        self._queue.cleanup_expired()
        # After a reconnect paho itself sends again what it was given before.
        with_paho = set(self._row_of_mid.values())
        for message in self._queue.dequeue_all():
            if message.id in with_paho:
                continue
            if message.retry_count >= self._queue.max_retry:
                self._queue.delete(message.id)
                continue
            info = self._client.publish(message.topic, message.payload, message.qos)
            if info.rc != MQTT_ERR_SUCCESS:
                self._queue.increment_retry_count(message.id)
                break
            self._row_of_mid[info.mid] = message.id
        if not self._row_of_mid:
            self._flushed.set()

    def _on_publish(self, _client: Client, _userdata: Any, mid: int, _reason_code: Any, _properties: Any) -> None:
        row_id = self._row_of_mid.pop(mid, None)
        if row_id is None:
            return
        self._queue.delete(row_id)
        if not self._row_of_mid:
            self._flushed.set()
