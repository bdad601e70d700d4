"""What `glec-fast doctor --json` printed, taken apart."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from glec_fast.cli.main import main

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

CHECKS = [
    *("settings", "tls files", "dns", "tcp", "tls", "chain", "hostname", "expiry", "pins", "client certificate"),
    *("login", "clock", "queue", "disk"),
]


class Report:
    """What `glec-fast doctor --json` printed."""

    def __init__(self, status: int, text: str) -> None:
        self.status = status
        self.text = text
        self.all = json.loads(text)
        self.findings = {check["check"]: check for check in self.all["checks"]}

    def failed(self) -> set[str]:
        return {name for name, check in self.findings.items() if check["status"] == "failed"}

    def status_of(self, check: str) -> str:
        return str(self.findings[check]["status"])

    def found(self, check: str) -> str:
        return str(self.findings[check]["found"])


class Doctor:
    """Calls it in this process."""

    def __init__(self, output: pytest.CaptureFixture[str]) -> None:
        self._output = output

    def __call__(self, config: Path, *arguments: str) -> Report:
        """What it says of a properties file."""
        status = main(["doctor", "--config", str(config), "--device-id", "DTG-TEST", "--json", *arguments])
        return Report(status, self._output.readouterr().out)
