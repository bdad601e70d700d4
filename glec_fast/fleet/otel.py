"""A manager's figures as OpenTelemetry instruments (`pip install glec-fast[otel]`), for any exporter of its SDK.

    provider = MeterProvider([PeriodicExportingMetricReader(OTLPMetricExporter("http://collector:4318/v1/metrics"))])
    observe(manager, provider)

Nothing is counted anew: at each collection one snapshot is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import attrgetter
from typing import TYPE_CHECKING, TypeAlias

from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation, get_meter

from glec_fast.durable.outcomes import DropReason

if TYPE_CHECKING:
    from collections.abc import Mapping

    from glec_fast.fleet.manager import MQTTManager
    from glec_fast.fleet.metrics import Metrics
    from glec_fast.runtime.latency import Latency

_Observer: TypeAlias = "Callable[[CallbackOptions], Iterable[Observation]]"
_Figures: TypeAlias = "Callable[[Metrics], Iterable[tuple[float, Mapping[str, str]]]]"


def observe(manager: MQTTManager, meter_provider: MeterProvider | None = None) -> None:
    """Register the instruments; the global provider where None. Call it once for each manager.

    Attributes are those of OpenTelemetry's messaging conventions: messaging.system, messaging.client.id.
    """
    meter = get_meter("glec_fast", meter_provider=meter_provider)
    collections = _Collections(manager)
    for name, unit, description, figures in _COUNTERS:
        meter.create_observable_counter(name, [collections.observer(name, figures)], unit, description)
    for name, unit, description, figures in _GAUGES:
        meter.create_observable_gauge(name, [collections.observer(name, figures)], unit, description)


class _Collections:
    """One snapshot for all instruments of a collection: one that is asked again begins the next."""

    def __init__(self, manager: MQTTManager) -> None:
        self._manager = manager
        self._common = {"messaging.system": "mqtt", "messaging.client.id": manager.device_id}
        self._asked: set[str] = set()
        self._metrics: Metrics | None = None

    def observer(self, name: str, figures: _Figures) -> _Observer:
        """What the SDK calls for the instrument of that name."""

        def observed(_options: CallbackOptions) -> Iterable[Observation]:
            return [Observation(value, {**self._common, **more}) for value, more in figures(self._figures_for(name))]

        return observed

    def _figures_for(self, name: str) -> Metrics:
        metrics = self._metrics
        if metrics is None or name in self._asked:
            self._metrics = metrics = self._manager.get_metrics()
            self._asked = set()
        self._asked.add(name)
        return metrics


def _one(name: str, **attributes: str) -> _Figures:
    figure = attrgetter(name)
    return lambda metrics: [(figure(metrics), attributes)]


def _by_qos(name: str) -> _Figures:
    counts = attrgetter(name)
    return lambda metrics: [(count, {"qos": str(qos)}) for qos, count in enumerate(counts(metrics))]


def _by(attribute: str, name: str) -> _Figures:
    counts = attrgetter(name)
    return lambda metrics: [(count, {attribute: kind}) for kind, count in counts(metrics).items()]


def _quantiles(name: str) -> _Figures:
    latency = attrgetter(name)

    def figures(metrics: Metrics) -> Iterable[tuple[float, Mapping[str, str]]]:
        took: Latency = latency(metrics)
        shares = (("0.5", took.p50_s), ("0.99", took.p99_s), ("1", took.max_s))
        return [(seconds, {"quantile": share}) for share, seconds in shares] if took.messages else []

    return figures


def _drops(metrics: Metrics) -> Iterable[tuple[float, Mapping[str, str]]]:
    reasons = {reason.value: 0 for reason in DropReason} | dict(metrics.drops)
    return [(count, {"reason": reason}) for reason, count in reasons.items()]


def _network(metrics: Metrics) -> Iterable[tuple[float, Mapping[str, str]]]:
    return [
        (metrics.sent_bytes, {"network.io.direction": "transmit"}),
        (metrics.received_bytes, {"network.io.direction": "receive"}),
    ]


def _certificates(metrics: Metrics) -> Iterable[tuple[float, Mapping[str, str]]]:
    return [(each.expires_at_s, {"owner": each.owner, "subject": each.subject}) for each in metrics.certificates]


# Name, unit (UCUM), what it is, and the figures with their attributes.
_COUNTERS: tuple[tuple[str, str, str, _Figures], ...] = (
    (
        "messaging.client.sent.messages",
        "{message}",
        "Messages that the broker has taken over.",
        _one("messages_sent", **{"messaging.operation.name": "publish"}),
    ),
    (
        "messaging.client.consumed.messages",
        "{message}",
        "Messages that came.",
        _one("messages_received", **{"messaging.operation.name": "receive"}),
    ),
    ("glec_fast.messages.dropped", "{message}", "Messages that will not be sent.", _drops),
    ("glec_fast.messages.accepted", "{message}", "Accepted.", _by_qos("accepted")),
    ("glec_fast.messages.on_disk", "{message}", "Synchronised to the disk.", _by_qos("on_disk")),
    ("glec_fast.messages.published", "{message}", "PUBLISH packets, also of what is sent again.", _by_qos("published")),
    ("glec_fast.messages.acknowledged", "{message}", "Answered by the broker.", _by_qos("acknowledged")),
    ("glec_fast.messages.in_doubt", "{message}", "That a broker had before it lost its session.", _one("in_doubt")),
    ("glec_fast.messages.unhandled", "{message}", "That came and were dropped.", _one("messages_unhandled")),
    ("glec_fast.batches", "{batch}", "Of telemetry.", _one("batches")),
    ("glec_fast.batches.messages", "{message}", "That went in batches.", _one("batched_messages")),
    ("glec_fast.batches.saved", "By", "What batches kept from being sent.", _one("batch_saved_bytes")),
    ("glec_fast.connect.attempts", "{attempt}", "To connect.", _one("attempts")),
    ("glec_fast.connects", "{connection}", "Connections that the broker accepted.", _one("connects")),
    ("glec_fast.pin.failures", "{connection}", "Refused as no key was pinned.", _one("pin_failures")),
    ("glec_fast.network.io", "By", "MQTT's bytes, before TLS and TCP.", _network),
    (
        "glec_fast.disk.io",
        "By",
        "What this process has had the kernel write to disks.",
        _one("disk_written_bytes", **{"disk.io.direction": "write"}),
    ),
    ("glec_fast.disk.syncs", "{sync}", "Of the queue.", _one("disk_syncs")),
    ("glec_fast.clock.steps", "{step}", "Of the wall clock.", _one("clock_steps")),
    ("glec_fast.handler.errors", "{error}", "Exceptions of handlers.", _one("handler_errors")),
    ("glec_fast.subscriptions.refused", "{subscription}", "By the broker.", _one("subscriptions_refused")),
    ("glec_fast.commands", "{command}", "By what they came to.", _by("outcome", "commands")),
    ("glec_fast.broker.weaknesses", "{event}", "That make QoS 2 less than once.", _by("weakness", "weaknesses")),
)
_GAUGES: tuple[tuple[str, str, str, _Figures], ...] = (
    # Not histograms: those have no observable kind.
    ("glec_fast.publish.to_disk", "s", "From a message's acceptance to its being on disk.", _quantiles("to_disk")),
    (
        "glec_fast.publish.to_acknowledgement",
        "s",
        "From a message's acceptance to the broker's answer.",
        _quantiles("to_acknowledgement"),
    ),
    ("glec_fast.queue.messages", "{message}", "Not finished yet.", _one("queue_size")),
    ("glec_fast.queue.size", "By", "The queue file and its logs.", _one("queue_bytes")),
    ("glec_fast.queue.oldest", "s", "Age of the oldest message.", _one("oldest_s")),
    ("glec_fast.inbox.messages", "{message}", "That came and are not handled yet.", _one("inbox_size")),
    ("glec_fast.link.up", "1", "1 while connected.", lambda metrics: [(int(metrics.is_connected), {})]),
    ("glec_fast.link.state_time", "s", "How long the link is in its state.", _one("in_state_s")),
    ("glec_fast.certificate.expires", "s", "Unix time of the end of each of the last handshake.", _certificates),
)
