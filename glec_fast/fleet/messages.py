"""The typed messages of the fleet: what a vehicle sends, checked when built and encoded in C."""

from glec_fast.fleet._payload import Alert, GpsFix, Inference, Status, Telemetry

__all__ = ["Alert", "GpsFix", "Inference", "Status", "Telemetry"]
