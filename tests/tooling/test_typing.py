"""A program typed against paho, and one with mistakes, as mypy --strict and pyright see them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from paho.mqtt import client as paho

import glec_fast.mqtt as mqtt

PROGRAMS = Path(__file__).parent / "typed"
ROOT = Path(mqtt.__file__).parents[2]
TIMEOUT_S = 300


def tool(name: str) -> str:
    path = Path(sys.executable).parent / name
    if not path.exists():
        if os.environ.get("CI"):
            pytest.fail(f"no {name} here, which `make lint` installs before these tests")
        pytest.skip(f"no {name} here: make lint")
    return str(path)


def by_mypy(programs: list[str], tmp_path: Path, paths: list[str]) -> dict[tuple[str, int], str]:
    """(Program, line) -> finding, of those programs alone. From elsewhere, so that they are found as those of others.

    paths: where the package is; empty for where it is installed.
    """
    command = [
        tool("mypy"),
        "--strict",
        "--python-executable",
        sys.executable,
        "--cache-dir",
        # What one of these tests has read of the libraries is read for the other too.
        str(tmp_path.parent / "mypy"),
        *(str(PROGRAMS / program) for program in programs),
    ]
    environment = os.environ | {"MYPYPATH": os.pathsep.join(paths)}
    ended = subprocess.run(
        command, capture_output=True, text=True, timeout=TIMEOUT_S, cwd=tmp_path, env=environment, check=False
    )
    found = re.findall(r"(\w+\.py):(\d+): error: (.*)", ended.stdout)
    assert found or "Found" in ended.stdout or "Success" in ended.stdout, ended.stdout + ended.stderr
    return {(name, int(line)): text for name, line, text in found if name in programs}


def by_pyright(programs: list[str], tmp_path: Path, paths: list[str]) -> dict[tuple[str, int], str]:
    """As `by_mypy`."""
    settings = {
        "typeCheckingMode": "standard",
        "extraPaths": paths,
        "include": [str(PROGRAMS / program) for program in programs],
        "venvPath": str(Path(sys.prefix).parent),
        "venv": Path(sys.prefix).name,
    }
    project = tmp_path / "pyrightconfig.json"
    project.write_text(json.dumps(settings))
    command = [tool("basedpyright"), "--outputjson", "-p", str(project)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, cwd=tmp_path, check=False)
    report = json.loads(ended.stdout)
    assert report["summary"]["filesAnalyzed"] == len(programs)
    errors = [each for each in report["generalDiagnostics"] if each["severity"] == "error"]
    return {(Path(each["file"]).name, each["range"]["start"]["line"] + 1): each["message"] for each in errors}


CHECKERS = pytest.mark.parametrize("check", [by_mypy, by_pyright], ids=["mypy", "pyright"])


@CHECKERS
def test_each_mistake_is_found_and_nothing_in_a_program_typed_against_paho(check: object, tmp_path: Path) -> None:
    lines = (PROGRAMS / "bad.py").read_text().splitlines()
    bad = {("bad.py", number) for number, line in enumerate(lines, 1) if line.endswith("# BAD")}
    assert check(["good.py", "bad.py"], tmp_path, [str(ROOT)]).keys() == bad  # type: ignore[operator]


@CHECKERS
def test_an_editable_install_is_found(check: object, tmp_path: Path) -> None:
    """By a path, and not by a hook in Python's import, which no checker follows."""
    installed = Path(sysconfig.get_path("purelib")).glob("__editable__*.pth")
    if str(ROOT) not in [each.read_text().strip() for each in installed]:
        if os.environ.get("CI"):
            pytest.fail("no editable install of this tree by a path, which `make build` makes before these tests")
        pytest.skip("this environment has no editable install of this tree by a path: make build")
    assert check(["good.py"], tmp_path, []) == {}  # type: ignore[operator]


def test_the_stub_has_every_name_of_paho_s_module() -> None:
    stub = (Path(mqtt.__file__).parent / "__init__.pyi").read_text()
    named = set(re.findall(r" as (\w+)", stub))
    modules_and_typing = {
        name
        for name, value in vars(paho).items()
        if type(value).__name__ == "module"
        or getattr(value, "__module__", "") in ("typing", "collections.abc", "__future__")
    }
    plain = {
        "TYPE_CHECKING",
        "Any",
        "Callable",
        "Iterator",
        "Literal",
        "NamedTuple",
        "Sequence",
        "Union",
        "cast",
        "socks",
    }
    public = {name for name in vars(paho) if not name.startswith("_")}
    assert public - modules_and_typing - plain <= named | {
        "CleanStartOption",
        "HTTPHeader",
        "PayloadType",
        "WebSocketHeaders",
    }
