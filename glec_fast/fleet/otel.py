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
    from glec_fast.fleet.manager import MQTTManager
    from glec_fast.fleet.metrics import Metrics
    from glec_fast.runtime.latency import Latency

_Figures: TypeAlias = "Callable[[Metrics], Iterable[tuple[float, dict[str, str]]]]"


def observe(manager: MQTTManager, meter_provider: MeterProvider | None = None) -> None:
    """Register the instruments; the global provider where None. Call it once for each manager.

    Attributes are those of OpenTelemetry's messaging conventions: messaging.system, messaging.client.id.
    """
    meter = get_meter("glec_fast", meter_provider=meter_provider)
    common = {"messaging.system": "mqtt", "messaging.client.id": manager.device_id}

    def counter(name: str, unit: str, description: str, figures: _Figures) -> None:
        meter.create_observable_counter(name, [_callback(figures)], unit, description)

    def gauge(name: str, unit: str, description: str, figures: _Figures) -> None:
        meter.create_observable_gauge(name, [_callback(figures)], unit, description)

    def _callback(figures: _Figures) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def observed(_options: CallbackOptions) -> Iterable[Observation]:
            return [Observation(value, common | attributes) for value, attributes in figures(manager.get_metrics())]

        return observed

    counter(
        "messaging.client.sent.messages",
        "{message}",
        "Messages that the broker has taken over.",
        lambda metrics: [(metrics.messages_sent, {})],
    )
    counter("glec_fast.messages.dropped", "{message}", "Messages that will not be sent.", _drops)
    counter(
        "glec_fast.connects",
        "{connection}",
        "Connections that the broker accepted.",
        lambda metrics: [(metrics.connects, {})],
    )
    counter(
        "glec_fast.network.io",
        "By",
        "MQTT's bytes, before TLS and TCP.",
        lambda metrics: [
            (metrics.sent_bytes, {"network.io.direction": "transmit"}),
            (metrics.received_bytes, {"network.io.direction": "receive"}),
        ],
    )
    for kind, meaning in (
        ("accepted", "Accepted."),
        ("on_disk", "Synchronised to the disk."),
        ("published", "PUBLISH packets made, also of what is sent again."),
        ("acknowledged", "Answered by the broker."),
    ):
        counter(f"glec_fast.messages.{kind}", "{message}", meaning, _by_qos(kind))
    # Not histograms: those have no observable kind.
    gauge(
        "glec_fast.publish.to_disk",
        "s",
        "From the acceptance of a message to its being on disk.",
        lambda metrics: _quantiles(metrics.to_disk),
    )
    gauge(
        "glec_fast.publish.to_acknowledgement",
        "s",
        "From the acceptance of a message to the broker's answer.",
        lambda metrics: _quantiles(metrics.to_acknowledgement),
    )
    counter(
        "glec_fast.disk.io",
        "By",
        "What this process has had the kernel write to disks.",
        lambda metrics: [(metrics.disk_written_bytes, {"disk.io.direction": "write"})],
    )
    counter("glec_fast.disk.syncs", "{sync}", "Of the queue.", lambda metrics: [(metrics.disk_syncs, {})])
    counter("glec_fast.clock.steps", "{step}", "Of the wall clock.", lambda metrics: [(metrics.clock_steps, {})])
    gauge("glec_fast.queue.oldest", "s", "Age of the oldest message.", lambda metrics: [(metrics.oldest_s, {})])
    gauge("glec_fast.queue.messages", "{message}", "Not finished yet.", lambda metrics: [(metrics.queue_size, {})])
    gauge("glec_fast.queue.size", "By", "The queue file and its logs.", lambda metrics: [(metrics.queue_bytes, {})])
    gauge("glec_fast.link.up", "1", "1 while connected.", lambda metrics: [(int(metrics.is_connected), {})])


def _by_qos(name: str) -> _Figures:
    counts = attrgetter(name)
    return lambda metrics: [(count, {"qos": str(qos)}) for qos, count in enumerate(counts(metrics))]


def _quantiles(latency: Latency) -> Iterable[tuple[float, dict[str, str]]]:
    shares = (("0.5", latency.p50_s), ("0.99", latency.p99_s), ("1", latency.max_s))
    return [(seconds, {"quantile": share}) for share, seconds in shares] if latency.messages else []


def _drops(metrics: Metrics) -> Iterable[tuple[float, dict[str, str]]]:
    reasons = {reason.value: 0 for reason in DropReason} | dict(metrics.drops)
    return [(count, {"reason": reason}) for reason, count in reasons.items()]
