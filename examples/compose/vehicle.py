"""A vehicle that publishes once a second, and its figures for Prometheus at /metrics, without another package.

`python examples/compose/vehicle.py --broker tcp://localhost:1883`, then `curl localhost:9641/metrics`.
"""

import argparse
import math
import signal
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

from glec_fast import Alert, GpsFix, MQTTConfig, MQTTManager, Telemetry
from glec_fast.fleet.prometheus import prometheus_text


def serve_metrics(manager: MQTTManager, port: int) -> int:
    """In a thread that ends with the process. Returns the port, which the system chose if it was 0."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = prometheus_text(manager.get_metrics(), manager.device_id).encode()
            self.send_response(200 if self.path == "/metrics" else 404)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("", port), Page)
    Thread(target=server.serve_forever, daemon=True).start()
    return server.server_port


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--broker", default="tcp://localhost:1883")
    arguments.add_argument("--client-id", default="DTG-COMPOSE")
    arguments.add_argument("--queue", default="vehicle.db")
    arguments.add_argument("--port", type=int, default=9641, help="of the figures (default: 9641)")
    arguments.add_argument("--seconds", type=float, default=math.inf, help="until it ends (default: never)")
    options = arguments.parse_args()

    # So that `docker stop` ends it in order, with the queue written and the broker told.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    config = MQTTConfig(broker_url=options.broker, client_id=options.client_id, queue_path=options.queue)
    with MQTTManager(config) as manager:
        manager.connect()
        print(f"figures at port {serve_metrics(manager, options.port)}", flush=True)
        start_s = time.monotonic()
        second = 0
        while time.monotonic() < start_s + options.seconds:
            speed_kmh = 60 + 30 * math.sin(second / 20)
            here = GpsFix(37.5665 + second * 1e-5, 126.978, speed_kmh)
            manager.publish_telemetry(Telemetry(speed_kmh, 1800, 25.3, 78.2, here))
            if second % 30 == 29:
                manager.publish_alert(Alert("HARSH_BRAKING", "HIGH", here, {"deceleration": -6.5}))
            second += 1
            time.sleep(max(0.0, start_s + second - time.monotonic()))


if __name__ == "__main__":
    main()
