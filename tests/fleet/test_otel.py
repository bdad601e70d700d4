"""The instruments, read by OpenTelemetry's own SDK, and as a collector gets them over HTTP."""

from __future__ import annotations

import gzip
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from glec_fast import MQTTManager
from glec_fast.durable.outcomes import DropReason
from glec_fast.testbed.broker import Broker
from support.gateway import TIMEOUT_S, eventually, quick_config
from support.places import REPOSITORY

pytest.importorskip("opentelemetry.sdk.metrics", reason="of the extra otel")

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, PeriodicExportingMetricReader

from glec_fast.fleet.metrics import Metrics
from glec_fast.fleet.otel import observe


class Counting:
    """A manager, and how often it was asked."""

    def __init__(self, manager: MQTTManager) -> None:
        self._manager = manager
        self.device_id = manager.device_id
        self.asked = 0

    def get_metrics(self) -> Metrics:
        self.asked += 1
        return self._manager.get_metrics()


def test_one_snapshot_is_read_at_each_collection(broker: Broker, tmp_path: Path) -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    with MQTTManager(quick_config(broker.url, tmp_path)) as manager:
        counting: Any = Counting(manager)
        observe(counting, provider)
        manager.connect()
        assert eventually(manager.is_connected)
        reader.get_metrics_data()
        for _ in range(3):
            manager.publish("t", "x", 1).wait_for_publish(TIMEOUT_S)
        data = reader.get_metrics_data()
        assert counting.asked == 2
        assert data is not None
        metrics = {metric.name: metric for metric in data.resource_metrics[0].scope_metrics[0].metrics}
        points = {name: list(metric.data.data_points) for name, metric in metrics.items()}
        (sent,) = points["messaging.client.sent.messages"]
        assert (sent.value, metrics["messaging.client.sent.messages"].unit) == (3, "{message}")
        assert sent.attributes == {
            "messaging.system": "mqtt",
            "messaging.client.id": "DTG-TEST",
            "messaging.operation.name": "publish",
        }
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


@contextmanager
def collector() -> Iterator[tuple[str, list[bytes]]]:
    """Takes OTLP over HTTP as a collector's receiver does: its endpoint, and the bodies that came."""
    bodies: list[bytes] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            is_packed = self.headers.get("Content-Encoding") == "gzip"
            bodies.append(gzip.decompress(body) if is_packed else body)
            is_ours = (self.path, self.headers["Content-Type"]) == ("/v1/metrics", "application/x-protobuf")
            self.send_response(200 if is_ours else 400)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1/metrics", bodies
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_collector_gets_what_opentelemetry_s_definitions_read(broker: Broker, tmp_path: Path) -> None:
    exporter = pytest.importorskip("opentelemetry.exporter.otlp.proto.http.metric_exporter", reason="of the extra otel")
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

    with collector() as (endpoint, bodies), MQTTManager(quick_config(broker.url, tmp_path)) as manager:
        reader = PeriodicExportingMetricReader(exporter.OTLPMetricExporter(endpoint), export_interval_millis=3_600_000)
        provider = MeterProvider([reader], shutdown_on_exit=False)
        observe(manager, provider)
        manager.connect()
        for qos in (0, 1, 2):
            manager.publish("t", "x", qos)
        assert manager.flush(TIMEOUT_S)
        assert provider.force_flush(TIMEOUT_S * 1000)
        provider.shutdown()
    request = ExportMetricsServiceRequest.FromString(bodies[0])
    (scope,) = request.resource_metrics[0].scope_metrics
    assert scope.scope.name == "glec_fast"
    metrics = {metric.name: metric for metric in scope.metrics}
    accepted = metrics["glec_fast.messages.accepted"]
    assert accepted.sum.is_monotonic
    assert [point.as_int for point in accepted.sum.data_points] == [1, 1, 1]
    assert {each.key for each in accepted.sum.data_points[0].attributes} == {
        "messaging.system",
        "messaging.client.id",
        "qos",
    }
    assert metrics["glec_fast.queue.size"].gauge.data_points[0].as_int > 4096
    assert all(metric.description.endswith(".") and metric.unit for metric in metrics.values())
    page = (REPOSITORY / "docs/metrics.md").read_text()
    named = set(re.findall(r"`((?:messaging|glec_fast)\.[a-z_.]+)`", page))
    # Commands, weaknesses, certificates: of those there were none.
    assert set(metrics) <= named
