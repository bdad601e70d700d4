"""Offline-first MQTT for vehicle gateways: the fleet API, and a fast, durable stand-in for paho's client."""

# Before whatever else imports paho: it keeps out what paho imports and rarely needs.
from glec_fast import _paho  # noqa: F401
from glec_fast.durable.in_doubt import Decision, InDoubt
from glec_fast.durable.outcomes import Dropped, DropReason
from glec_fast.engine.connector import CertificateExpiry
from glec_fast.errors import (
    BrokerRefusalError,
    CertificateError,
    ConfigError,
    ConnectionLostError,
    ForkedError,
    GlecError,
    MessageError,
    PayloadTypeError,
    PinningError,
    ProtocolError,
    PublishError,
    QueueClosedError,
    QueueError,
    QueueFormatError,
    QueueLockedError,
    QueueStorageError,
    SubscriptionRefusedError,
    TLSError,
    TLSFileError,
    UnsupportedError,
)
from glec_fast.fleet.batches import decode_batch
from glec_fast.fleet.config import MQTTConfig
from glec_fast.fleet.manager import ConnectionCallback, MQTTManager
from glec_fast.fleet.messages import Alert, GpsFix, Inference, Status, Telemetry
from glec_fast.fleet.metrics import Metrics
from glec_fast.fleet.offline_queue import OfflineQueueManager, QueuedMessage, QueueStats
from glec_fast.mqtt.client import Client
from glec_fast.outbox.handle import PublishHandle
from glec_fast.outbox.weaknesses import Weakness
from glec_fast.tls.config import TLSConfig, build_ssl_context
from glec_fast.tls.pinning import CertificatePinner

__version__ = "0.1.0"

__all__ = [
    "Alert",
    "BrokerRefusalError",
    "CertificateError",
    "CertificateExpiry",
    "CertificatePinner",
    "Client",
    "ConfigError",
    "ConnectionCallback",
    "ConnectionLostError",
    "Decision",
    "DropReason",
    "Dropped",
    "ForkedError",
    "GlecError",
    "GpsFix",
    "InDoubt",
    "Inference",
    "MQTTConfig",
    "MQTTManager",
    "MessageError",
    "Metrics",
    "OfflineQueueManager",
    "PayloadTypeError",
    "PinningError",
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
    "SubscriptionRefusedError",
    "TLSConfig",
    "TLSError",
    "TLSFileError",
    "Telemetry",
    "UnsupportedError",
    "Weakness",
    "build_ssl_context",
    "decode_batch",
]
