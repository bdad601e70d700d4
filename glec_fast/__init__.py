"""Offline-first MQTT for vehicle gateways: the fleet API, and a fast, durable stand-in for paho's client."""

from glec_fast.client import Client
from glec_fast.config import MQTTConfig
from glec_fast.drops import Dropped, DropReason
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
    TLSError,
    TLSFileError,
    UnsupportedError,
)
from glec_fast.handle import PublishHandle
from glec_fast.in_doubt import Decision, InDoubt
from glec_fast.manager import ConnectionCallback, Metrics, MQTTManager
from glec_fast.messages import Alert, GpsFix, Inference, Status, Telemetry
from glec_fast.pinning import CertificatePinner
from glec_fast.queue import OfflineQueueManager, QueuedMessage, QueueStats
from glec_fast.secure import CertificateExpiry
from glec_fast.tls import TLSConfig, build_ssl_context
from glec_fast.weaknesses import Weakness

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
    "TLSConfig",
    "TLSError",
    "TLSFileError",
    "Telemetry",
    "UnsupportedError",
    "Weakness",
    "build_ssl_context",
]
