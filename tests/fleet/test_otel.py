"""The instruments, read by OpenTelemetry's own SDK."""

from __future__ import annotations

from pathlib import Path

import pytest

from glec_fast import MQTTManager
from glec_fast.durable.outcomes import DropReason
from glec_fast.testbed.broker import Broker
from support.gateway import TIMEOUT_S, eventually, quick_config

pytest.importorskip("opentelemetry.sdk.metrics", reason="of the extra otel")

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from glec_fast.fleet.otel import observe


def test_one_snapshot_is_read_at_each_collection(broker: Broker, tmp_path: Path) -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    with MQTTManager(quick_config(broker.url, tmp_path)) as manager:
        observe(manager, provider)
        manager.connect()
        assert eventually(manager.is_connected)
        for _ in range(3):
            manager.publish("t", "x", 1).wait_for_publish(TIMEOUT_S)
        data = reader.get_metrics_data()
        assert data is not None
        metrics = {metric.name: metric for metric in data.resource_metrics[0].scope_metrics[0].metrics}
        points = {name: list(metric.data.data_points) for name, metric in metrics.items()}
        (sent,) = points["messaging.client.sent.messages"]
        assert (sent.value, metrics["messaging.client.sent.messages"].unit) == (3, "{message}")
        assert sent.attributes == {"messaging.system": "mqtt", "messaging.client.id": "DTG-TEST"}
        reasons = {point.attributes["reason"] for point in points["glec_fast.messages.dropped"]}
        assert reasons == {reason.value for reason in DropReason}
        assert {
            point.attributes["network.io.direction"]: point.value > 0 for point in points["glec_fast.network.io"]
        } == {
            "transmit": True,
            "receive": True,
        }
        assert points["glec_fast.link.up"][0].value == 1
        counts = {
            kind: [point.value for point in points[f"glec_fast.messages.{kind}"]]
            for kind in ("accepted", "on_disk", "published", "acknowledged")
        }
        assert counts == {kind: [0, 3, 0] for kind in counts}
        took = {point.attributes["quantile"]: point.value for point in points["glec_fast.publish.to_acknowledgement"]}
        assert 0 <= took["0.5"] <= took["0.99"] <= took["1"] < TIMEOUT_S
        assert points["glec_fast.queue.size"][0].value > 4096
    provider.shutdown()
