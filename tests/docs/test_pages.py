"""The pages: their programs run, their links lead somewhere, and the first of them stays short."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from glec_fast.testbed.broker import Broker
from glec_fast.testbed.subscriber import Subscriber
from support.places import REPOSITORY

PAGES = [
    *(REPOSITORY / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md")),
    *sorted((REPOSITORY / "docs").rglob("*.md")),
]
LINK = re.compile(r"\]\((?!https?://|mailto:)([^)#\s]+)[^)]*\)")
PROGRAM = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
TUTORIAL = (REPOSITORY / "docs" / "tutorial.md").read_text()
README = (REPOSITORY / "README.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_lead_somewhere(page: Path) -> None:
    missing = [target for target in LINK.findall(page.read_text()) if not (page.parent / target).exists()]
    assert missing == []


def test_a_newcomer_reads_no_more_than_a_page_and_a_maintainer_ten_minutes() -> None:
    assert len(README.encode()) <= 6_000
    assert len((REPOSITORY / "ARCHITECTURE.md").read_bytes()) <= 10_240


@pytest.mark.parametrize(("program", "arriving"), list(zip(PROGRAM.findall(README), (1, 2), strict=True)))
def test_the_programs_of_the_readme_run_as_they_stand(program: str, arriving: int, tmp_path: Path) -> None:
    with Broker(tmp_path) as broker, Subscriber(broker) as subscriber:
        local = program.replace('"localhost", 1883', f'"127.0.0.1", {broker.port}')
        local = local.replace("tcp://localhost:1883", f"tcp://127.0.0.1:{broker.port}")
        assert local != program
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", local], capture_output=True, text=True, timeout=60, cwd=tmp_path
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert subscriber.wait_for_end(30)
        topics = [each.topic for each in subscriber.arrivals if not each.topic.endswith("/status")]
        assert len(topics) == arriving


def test_the_truck_of_the_tutorial_survives_its_kill(tmp_path: Path) -> None:
    with Broker(tmp_path) as broker, Subscriber(broker, "glec/dtg/TRUCK-1/alerts") as subscriber:
        (program,) = PROGRAM.findall(TUTORIAL)
        truck = tmp_path / "truck.py"
        truck.write_text(program.replace("tcp://localhost:1883", f"tcp://127.0.0.1:{broker.port}"))
        command = [sys.executable, str(truck)]
        with subprocess.Popen([*command, "0", "1000000"], stdout=subprocess.PIPE, text=True, cwd=tmp_path) as killed:
            assert killed.stdout is not None
            printed = [killed.stdout.readline() for _ in range(200)]
            killed.kill()
            accepted = int((printed + killed.stdout.readlines())[-1])
        done = subprocess.run([*command, "0", "0"], capture_output=True, text=True, timeout=60, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (0, "delivered\n")
        assert subscriber.wait_for_end(30)
        numbers = [json.loads(each.payload)["details"]["number"] for each in subscriber.arrivals]
        # It may not have lived to print the last.
        assert numbers in (list(range(accepted + 1)), list(range(accepted + 2)))
