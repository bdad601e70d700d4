"""The tests that every wheel takes run where there is no broker: in PyPA's images, and under emulation."""

from __future__ import annotations

import shlex
import subprocess
import sys

import pytest

from support.places import REPOSITORY

PLAN = """
import sys, pytest
class Fixtures:
    def pytest_collection_finish(self, session):
        print("fixtures:", *sorted({name for item in session.items for name in item.fixturenames}))
sys.exit(pytest.main(["-p", "no:cacheprovider", "--collect-only", "-qq", *sys.argv[1:]], plugins=[Fixtures()]))
"""


def test_tests_of_every_wheel_start_no_broker() -> None:
    tomllib = pytest.importorskip("tomllib", reason="reads pyproject.toml: from Python 3.11 on")
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    program, arguments = settings["tool"]["cibuildwheel"]["test-command"].split(" ", 1)
    assert program == "pytest"
    command = shlex.join([sys.executable, "-c", PLAN]) + f" {arguments}"
    planned = subprocess.run(["sh", "-c", command], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    (line,) = [line for line in planned.splitlines() if line.startswith("fixtures: ")]
    fixtures = line.split()[1:]
    assert "make_store" in fixtures
    assert not [name for name in fixtures if "broker" in name]
