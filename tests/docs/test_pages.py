"""The pages: their programs run, their links lead somewhere, and the first of them stays short."""

from __future__ import annotations

import ast
import builtins
import json
import os
import re
import shlex
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import glec_fast
from glec_fast import MQTTConfig, aio, errors
from glec_fast.cli.main import build_parser
from glec_fast.testbed.broker import Broker
from glec_fast.testbed.subscriber import Subscriber
from support import forked
from support.gateway import eventually
from support.places import REPOSITORY

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGES = [
    *(REPOSITORY / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md")),
    *sorted((REPOSITORY / "docs").rglob("*.md")),
]
LINK = re.compile(r"\]\((?!https?://|mailto:)([^)#\s]+)[^)]*\)")
PROGRAM = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
TUTORIAL = (REPOSITORY / "docs" / "tutorial.md").read_text()
README = (REPOSITORY / "README.md").read_text()
HOW_TO = sorted((REPOSITORY / "docs" / "how-to").glob("*.md"))
# Each with programs that run by themselves. The tutorial's is killed, and has a test of its own.
WITH_PROGRAMS = [page for page in sorted((REPOSITORY / "docs").rglob("*.md")) if page.stem != "tutorial"]
# A program, and the comments before it: how many messages arrive, what it prints, which module it cannot do without,
# which program of somebody else's it imports, what runs beside it.
MARKED = re.compile(r"((?:^<!-- [^>]*-->\n)*)^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
MARK = re.compile(r"<!-- (\w+): (.*?) -->")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_lead_somewhere(page: Path) -> None:
    missing = [target for target in LINK.findall(page.read_text()) if not (page.parent / target).exists()]
    assert missing == []


def anchors(page: Path) -> set[str]:
    """As GitHub, and myst, make them of headings."""
    prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_into_a_page_lead_to_a_heading(page: Path) -> None:
    found = re.findall(r"\]\((?!https?://)([^)#\s]*)#([^)\s]+)\)", page.read_text())
    missing = [
        (target, anchor) for target, anchor in found if anchor not in anchors(page.parent / target if target else page)
    ]
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
        done = forked.run(["-W", "error", "-c", local], 60, cwd=tmp_path)
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


def blocks(language: str) -> list[Any]:
    """Each block of that language in the pages of docs/, with the page's name."""
    return [
        pytest.param(text, id=f"{page.relative_to(REPOSITORY / 'docs')}-{number}")
        for page in PAGES
        if page.is_relative_to(REPOSITORY / "docs")
        for number, (found, text) in enumerate(BLOCK.findall(page.read_text()))
        if found == language
    ]


@pytest.mark.parametrize(
    ("marks", "program"),
    [
        pytest.param(marks, program, id=f"{page.stem}-{number}")
        for page in WITH_PROGRAMS
        for number, (marks, program) in enumerate(MARKED.findall(page.read_text()))
    ],
)
def test_the_programs_of_the_pages_run_as_they_stand(marks: str, program: str, tmp_path: Path) -> None:
    known = dict(MARK.findall(marks))
    assert set(known) <= {"arrives", "prints", "needs", "beside", "with"}
    if "needs" in known:
        pytest.importorskip(known["needs"])
    with Broker(tmp_path) as broker, Subscriber(broker) as subscriber, ExitStack() as stack:
        path = tmp_path / "program.py"
        path.write_text(as_here(program, broker, tmp_path))
        if "beside" in known:
            path.with_name(f"{known['beside']}.py").write_text(as_here(OF_SOMEBODY_ELSE, broker, tmp_path))
        if "with" in known:
            stack.enter_context(service(broker, tmp_path))
        done = forked.run(["-W", "error", path], 60, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        assert known.get("prints", "") in done.stdout
        assert subscriber.wait_for(lambda arrivals: len(of_programs(arrivals)) >= int(known.get("arrives", 0)), 60)
        assert subscriber.wait_for_end(30)
        assert len(of_programs(subscriber.arrivals)) == int(known.get("arrives", 0))


OF_SOMEBODY_ELSE = """\
import paho.mqtt.client as mqtt

client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="theirs")
client.connect("localhost", 1883)
client.loop_start()
client.publish("t", "x", 1).wait_for_publish(30)
client.disconnect()
client.loop_stop()
"""


def as_here(program: str, broker: Broker, folder: Path) -> str:
    """With this broker, and a folder of ours in place of a system's."""
    for shown, here in (
        ('"localhost", 1883', f'"127.0.0.1", {broker.port}'),
        ("tcp://localhost:1883", broker.url),
        ("/run/glec-fast", str(folder)),
        ("/var/lib/gateway", str(folder)),
        ("/var/lib/app", str(folder)),
    ):
        program = program.replace(shown, here)
    return program


def of_programs(arrivals: Any) -> list[str]:
    """Their topics, but for what a manager says of itself."""
    return [each.topic for each in arrivals if not each.topic.endswith("/status")]


@contextmanager
def service(broker: Broker, folder: Path) -> Iterator[None]:
    """`glec-fast service`, with its socket in that folder."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "GLEC_BROKER_URL": broker.url,
        "GLEC_CLIENT_ID": "DTG-SN-12345",
        "STATE_DIRECTORY": str(folder),
        "RUNTIME_DIRECTORY": str(folder),
    }
    command = [sys.executable, "-m", "glec_fast", "service"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        try:
            assert eventually((folder / "publish.sock").exists)
            yield
        finally:
            process.terminate()


@pytest.mark.parametrize("text", blocks("properties"))
def test_the_settings_of_the_pages_are_settings(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECURE_PASSWORD", "secret")
    path = tmp_path / "broker_config.properties"
    path.write_text(text)
    config = MQTTConfig.from_properties(path)
    assert all(line.partition("=")[2] for line in text.splitlines())
    assert config.client_id


@pytest.mark.parametrize("text", blocks("yaml"))
def test_what_is_shown_of_yaml_is_yaml(text: str) -> None:
    assert list(pytest.importorskip("yaml").safe_load_all(text))


def commands() -> list[Any]:
    """Each call of the command line that a page shows, as far as a pipe, a comment or a redirection."""
    found = []
    for page in PAGES:
        for _, text in BLOCK.findall(page.read_text()):
            for line in re.findall(r"(?:^\$ |^|/bin/|\| )(glec-fast [a-z].*)$", text, re.MULTILINE):
                words = shlex.split(re.split(r" [|>#&]| \(", line)[0])
                found.append(pytest.param(words[1:], id=f"{page.stem}-{line}"))
    return found


@pytest.mark.parametrize("words", commands())
def test_the_command_line_takes_what_the_pages_show(words: list[str]) -> None:
    # Ends the program, with a line of what is wrong.
    assert build_parser().parse_args(words).run


def test_each_of_the_twelve_questions_has_a_page_that_answers_at_once() -> None:
    rows = re.findall(r"^\| .*? \| .*? \| (.*) \|$", (REPOSITORY / "docs" / "questions.md").read_text(), re.MULTILINE)
    pages = [LINK.findall(row) for row in rows if "](" in row]
    assert len(pages) == 12
    for page in {each for row in pages for each in row}:
        text = (REPOSITORY / "docs" / page).read_text()
        first = text.split("\n\n")[1]
        assert 80 <= len(first) <= 700, page
        assert not first.startswith(("|", "```", "#", "-")), page


@pytest.mark.parametrize("page", HOW_TO, ids=lambda page: page.stem)
def test_the_site_leads_to_each_how_to_page(page: Path) -> None:
    assert f"how-to/{page.stem}\n" in (REPOSITORY / "docs" / "index.md").read_text()


def test_the_reference_has_every_public_name() -> None:
    page = (REPOSITORY / "docs" / "reference.md").read_text()
    named = {each.rpartition(".")[2] for each in re.findall(r":: (glec_fast\.[\w.]+)", page)}
    # Of errors it has the module.
    missing = {name for name in glec_fast.__all__ if name not in named and not hasattr(errors, name)}
    assert missing == set()
    assert {"errors", *aio.__all__} <= named


def kinds_of_line() -> set[str]:
    """What our code says it logs: the kinds of `SummingLog.note`, by name."""
    found = set()
    for path in sorted((REPOSITORY / "glec_fast").rglob("*.py")):
        for call in ast.walk(ast.parse(path.read_text())):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "note":
                kind = call.args[1] if len(call.args) > 1 else None
                if isinstance(kind, ast.Constant) and isinstance(kind.value, str) and " " in kind.value:
                    found.add(kind.value)
    return found


def test_every_kind_of_line_in_the_log_is_explained() -> None:
    page = (REPOSITORY / "docs" / "log-lines.md").read_text()
    kinds = kinds_of_line()
    assert len(kinds) > 15
    assert [kind for kind in sorted(kinds) if kind not in page and kind.removeprefix("errors ") not in page] == []


def test_every_error_is_in_the_table_as_it_is() -> None:
    rows = {
        row[0]: (row[1], row[2])
        for row in re.findall(
            r"^\| `(\w+)` \| (.*?) \| (yes|no) \|", (REPOSITORY / "docs" / "errors.md").read_text(), re.MULTILINE
        )
    }
    family = {
        name: each
        for name, each in vars(errors).items()
        if isinstance(each, type) and issubclass(each, errors.GlecError)
    }
    assert set(rows) == set(family)
    for name, each in family.items():
        also, retryable = rows[name]
        assert retryable == ("yes" if each.retryable else "no"), name
        assert all(issubclass(each, getattr(builtins, kind)) for kind in re.findall(r"`(\w+)`", also)), name
