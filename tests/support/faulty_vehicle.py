"""The demo's vehicle with a manager that breaks its word: FAULT names how. Run by tests as a module."""

from __future__ import annotations

import os
import sys

from glec_fast import Alert, MQTTManager, PublishHandle
from glec_fast.cli.demo.vehicle import VehicleSettings, run


class LosesAlert(MQTTManager):
    """Reports its first alert as safe and never sends it."""

    lost = False

    def publish_alert(self, alert: Alert) -> PublishHandle:
        if self.lost:
            return super().publish_alert(alert)
        self.lost = True
        return self.publish("glec/elsewhere", "not the alert", qos=2)


class RepeatsAlert(MQTTManager):
    """Sends every alert twice."""

    def publish_alert(self, alert: Alert) -> PublishHandle:
        super().publish_alert(alert)
        return super().publish_alert(alert)


class BreaksDown(MQTTManager):
    """Fails at its first alert."""

    def publish_alert(self, alert: Alert) -> PublishHandle:
        raise RuntimeError("no alert today")


FAULTS = {"lose": LosesAlert, "repeat": RepeatsAlert, "break": BreaksDown}

if __name__ == "__main__":
    sys.exit(run(VehicleSettings.from_json(sys.argv[1]), FAULTS[os.environ["FAULT"]]))
