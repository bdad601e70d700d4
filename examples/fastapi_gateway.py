"""HTTP in, MQTT out: other programs of the vehicle POST JSON, and it is on disk before they get their answer.

    pip install fastapi uvicorn
    python examples/fastapi_gateway.py --broker tcp://localhost:1883 --port 8000
    curl -X POST localhost:8000/alerts -H 'content-type: application/json' \
        -d '{"alert_type": "DOOR_OPEN", "severity": "HIGH", "lat": 37.56, "lon": 126.97}'

One process alone may hold a queue file: run one worker.
"""

import argparse
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel

from glec_fast import Alert, GlecError, GpsFix, MQTTConfig, MQTTManager


class AlertIn(BaseModel):
    """The body of POST /alerts."""

    alert_type: str
    severity: str
    lat: float
    lon: float


def make_app(config: MQTTConfig) -> FastAPI:
    """The application; its manager lives as long as it."""
    manager = MQTTManager(config)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        with manager:
            manager.connect()
            yield

    app = FastAPI(lifespan=lifespan)

    # A plain `def` runs in FastAPI's threads: it may wait for the disk without holding up the others.
    @app.post("/alerts", status_code=202)
    def post_alert(alert: AlertIn) -> dict[str, int | None]:
        try:
            where = GpsFix(alert.lat, alert.lon)
            handle = manager.publish_alert(Alert(alert.alert_type, alert.severity, where))
        except GlecError as error:
            # 503 tells the caller that the same request can succeed later.
            raise HTTPException(503 if error.retryable else 422, str(error)) from error
        return {"message_id": handle.message_id}

    @app.get("/health")
    def health() -> dict[str, bool | int]:
        metrics = manager.get_metrics()
        return {"connected": manager.is_connected(), "waiting": metrics.queue_size}

    return app


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--broker", default="tcp://localhost:1883")
    arguments.add_argument("--queue", default="fastapi_gateway.db")
    arguments.add_argument("--port", type=int, default=8000)
    options = arguments.parse_args()
    config = MQTTConfig(broker_url=options.broker, client_id="DTG-HTTP", queue_path=options.queue)
    uvicorn.run(make_app(config), host="127.0.0.1", port=options.port, workers=1)


if __name__ == "__main__":
    main()
