"""Offline-first MQTT for vehicle gateways: the fleet API, and a fast, durable stand-in for paho's client."""

from glec_fast.client import Client
from glec_fast.config import MQTTConfig
from glec_fast.drops import Dropped, DropReason
from glec_fast.errors import (
    ConfigError,
    ConnectionLostError,
    GlecError,
    MessageError,
    PayloadTypeError,
    ProtocolError,
    PublishError,
    QueueClosedError,
    QueueError,
    QueueFormatError,
    QueueLockedError,
    QueueStorageError,
)
from glec_fast.handle import PublishHandle
from glec_fast.manager import ConnectionCallback, Metrics, MQTTManager
from glec_fast.messages import Alert, GpsFix, Inference, Status, Telemetry
from glec_fast.queue import OfflineQueueManager, QueuedMessage, QueueStats
from glec_fast.tls import TLSConfig, build_ssl_context

__version__ = "0.1.0"

__all__ = [
    "Alert",
    "Client",
    "ConfigError",
    "ConnectionCallback",
    "ConnectionLostError",
    "DropReason",
    "Dropped",
    "GlecError",
    "GpsFix",
    "Inference",
    "MQTTConfig",
    "MQTTManager",
    "MessageError",
    "Metrics",
    "OfflineQueueManager",
    "PayloadTypeError",
    "ProtocolError",
    "PublishError",
    "PublishHandle",
    "QueueClosedError",
    "QueueError",
    "QueueFormatError",
    "QueueLockedError",
    "QueueStats",
    "QueueStorageError",
    "QueuedMessage",
    "Status",
    "TLSConfig",
    "Telemetry",
    "build_ssl_context",
]
