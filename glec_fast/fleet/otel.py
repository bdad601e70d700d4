"""A manager's figures as OpenTelemetry instruments (`pip install glec-fast[otel]`), for any exporter of its SDK.

    provider = MeterProvider([PeriodicExportingMetricReader(OTLPMetricExporter("http://collector:4318/v1/metrics"))])
    observe(manager, provider)

Nothing is counted anew: at each collection one snapshot is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, TypeAlias

from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation, get_meter

from glec_fast.durable.outcomes import DropReason

if TYPE_CHECKING:
    from glec_fast.fleet.manager import MQTTManager
    from glec_fast.fleet.metrics import Metrics

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
    gauge("glec_fast.queue.messages", "{message}", "Not finished yet.", lambda metrics: [(metrics.queue_size, {})])
    gauge("glec_fast.queue.size", "By", "The queue file and its logs.", lambda metrics: [(metrics.queue_bytes, {})])
    gauge("glec_fast.link.up", "1", "1 while connected.", lambda metrics: [(int(metrics.is_connected), {})])


def _drops(metrics: Metrics) -> Iterable[tuple[float, dict[str, str]]]:
    reasons = {reason.value: 0 for reason in DropReason} | dict(metrics.drops)
    return [(count, {"reason": reason}) for reason, count in reasons.items()]
