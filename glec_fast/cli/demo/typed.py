"""The typed messages of a drive, as the demo's vehicle publishes them and the plan counts their bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from glec_fast.cli.demo.drive import SEVERE_BRAKING_KMH_PER_S, Message, braking_kmh_per_s
from glec_fast.fleet.messages import Alert, GpsFix, Inference, Telemetry

if TYPE_CHECKING:
    from glec_fast.cli.demo.recording import Sample


def telemetry_of(message: Message) -> Telemetry:
    """Of any message."""
    sample = message.sample
    return Telemetry(
        vehicle_speed=sample.speed_kmh,
        engine_rpm=sample.engine_rpm,
        throttle_position=sample.throttle_pct,
        fuel_level=sample.fuel_pct,
        gps=_gps(sample),
        timestamp_ms=message.timestamp_ms,
    )


def inference_of(message: Message) -> Inference:
    """Of a message with a judgement."""
    judgement = message.judgement
    assert judgement is not None
    return Inference(
        behavior=judgement.behavior,
        confidence=judgement.confidence,
        safety_score=judgement.safety_score,
        fuel_efficiency=judgement.fuel_efficiency_km_per_l,
        latency_ms=judgement.latency_ms,
        timestamp_ms=message.timestamp_ms,
    )


def alert_of(message: Message) -> Alert:
    """Of a message about a harsh braking."""
    assert message.previous is not None
    braking = braking_kmh_per_s(message.previous, message.sample)
    return Alert(
        alert_type="HARSH_BRAKING",
        severity="HIGH" if braking > SEVERE_BRAKING_KMH_PER_S else "MEDIUM",
        location=_gps(message.sample),
        details={
            "deceleration": round(-braking / 3.6, 2),
            "speed_before": message.previous.speed_kmh,
            "speed_after": message.sample.speed_kmh,
        },
        timestamp_ms=message.timestamp_ms,
    )


def _gps(sample: Sample) -> GpsFix | None:
    if sample.lat_deg is None or sample.lon_deg is None:
        return None
    return GpsFix(sample.lat_deg, sample.lon_deg, sample.speed_kmh)
