"""The typed messages of the fleet: what a vehicle sends, checked when built and encoded in C."""

from __future__ import annotations

from typing import TypeAlias

from glec_fast.fleet._payload import Alert, GpsFix, Inference, Status, Telemetry

__all__ = ["Alert", "GpsFix", "Inference", "Status", "Telemetry"]

TypedMessage: TypeAlias = Telemetry | Inference | Alert | Status
KINDS = (Telemetry, Inference, Alert, Status)
