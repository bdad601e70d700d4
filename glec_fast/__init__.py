"""Offline-first MQTT for vehicle gateways: the fleet API, and a fast, durable stand-in for paho's client."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

# Before whatever else imports paho: it keeps out what paho imports and rarely needs.
from glec_fast import _paho  # noqa: F401

if TYPE_CHECKING:
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
    from glec_fast.fleet.connection import ConnectionCallback
    from glec_fast.fleet.manager import MQTTManager
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

# Loaded when first asked for: all of them take 4 MB of memory, of which a program that has paho's API alone needs half.
_HOMES = {
    "durable.in_doubt": ("Decision", "InDoubt"),
    "durable.outcomes": ("Dropped", "DropReason"),
    "engine.connector": ("CertificateExpiry",),
    "errors": (
        "BrokerRefusalError",
        "CertificateError",
        "ConfigError",
        "ConnectionLostError",
        "ForkedError",
        "GlecError",
        "MessageError",
        "PayloadTypeError",
        "PinningError",
        "ProtocolError",
        "PublishError",
        "QueueClosedError",
        "QueueError",
        "QueueFormatError",
        "QueueLockedError",
        "QueueStorageError",
        "SubscriptionRefusedError",
        "TLSError",
        "TLSFileError",
        "UnsupportedError",
    ),
    "fleet.batches": ("decode_batch",),
    "fleet.config": ("MQTTConfig",),
    "fleet.connection": ("ConnectionCallback",),
    "fleet.manager": ("MQTTManager",),
    "fleet.messages": ("Alert", "GpsFix", "Inference", "Status", "Telemetry"),
    "fleet.metrics": ("Metrics",),
    "fleet.offline_queue": ("OfflineQueueManager", "QueuedMessage", "QueueStats"),
    "mqtt.client": ("Client",),
    "outbox.handle": ("PublishHandle",),
    "outbox.weaknesses": ("Weakness",),
    "tls.config": ("TLSConfig", "build_ssl_context"),
    "tls.pinning": ("CertificatePinner",),
}
# Of those that were loaded with the names.
_PACKAGES = {home.partition(".")[0] for home in _HOMES} | {
    "outbox",
    "protocol",
    "runtime",
    "settings",
    "transport",
    "validation",
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is not None:
        value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{home}"), name)
        return value
    if name in _PACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
