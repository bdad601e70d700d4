"""What `make compat` says of a package: by outcomes made here, without one."""

from __future__ import annotations

import importlib.util
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from support.gateway import eventually
from support.places import REPOSITORY

if TYPE_CHECKING:
    from collections.abc import Iterator

RUNNER = REPOSITORY / "compat" / "run.py"

pytestmark = pytest.mark.skipif(not RUNNER.exists(), reason="reads compat/, which a wheel has not")


@pytest.fixture(scope="module")
def compat() -> Any:
    if sys.version_info < (3, 11):
        pytest.skip("the runner reads TOML, which Python has from 3.11 on")
    spec = importlib.util.spec_from_file_location("compat_run", RUNNER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["compat_run"] = module
    spec.loader.exec_module(module)
    return module


def amiss(compat: Any, theirs: dict[str, str], ours: dict[str, str], **entry: Any) -> int:
    package = compat.Package("package", "1", **entry)
    results = compat.Result(theirs), compat.Result(ours)
    found: int = compat.report(package, *results, compat.differing(*results), {"known"})
    return found


def test_what_differs_is_amiss_unless_it_is_named(compat: Any) -> None:
    tests = {"tests": ["tests"]}
    assert amiss(compat, {"a": "passed", "b": "failed"}, {"a": "passed", "b": "failed"}, **tests) == 0
    assert amiss(compat, {"a": "passed", "known": "passed"}, {"a": "passed", "known": "failed"}, **tests) == 0
    assert amiss(compat, {"a": "passed", "b": "passed"}, {"a": "passed", "b": "failed"}, **tests) == 1
    assert amiss(compat, {"a": "passed", "b": "passed"}, {"a": "passed"}, **tests) == 1


def test_a_job_that_fails_with_either_is_amiss(compat: Any) -> None:
    failed = {"0: True": "passed", "ended with 1": "failed"}
    assert amiss(compat, failed, failed, job="job.py") == 1
    assert amiss(compat, {}, {}, tests=["tests"]) == 1
    assert amiss(compat, {"a": "failed"}, {"a": "failed"}, tests=["tests"]) == 1


def test_a_failed_job_does_not_count_as_passed(compat: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = tmp_path / "job.py"
    job.write_text("print('RESULT', 1); raise SystemExit(3)")
    package = compat.Package("package", "1", job=str(job))
    monkeypatch.setenv("COMPAT_DIR", str(tmp_path))
    package.folder().mkdir()
    monkeypatch.setattr(compat.Package, "python", lambda _: sys.executable)

    class Broker:
        host, port, tls_port = "127.0.0.1", 1, 2

    result = package.run(ours=False, broker=Broker, ca=tmp_path)
    assert result.outcomes == {"0: 1": "passed", "ended with 3": "failed"}


def test_a_test_of_a_report_is_found_again(compat: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPAT_DIR", str(tmp_path))
    package = compat.Package("package", "1", tests=["tests"])
    module = package.folder() / "source" / "package-1" / "tests" / "test_client.py"
    module.parent.mkdir(parents=True)
    module.touch()
    assert package._node("tests.test_client.TestIt::test_a[x-1]") == "tests/test_client.py::TestIt::test_a[x-1]"
    assert package._node("tests.test_client::test_a") == "tests/test_client.py::test_a"


def test_each_package_is_one_version_with_tests_or_a_job(compat: Any) -> None:
    import tomllib

    entries = tomllib.loads((RUNNER.parent / "packages.toml").read_text())["package"]
    packages = [compat.Package(**entry) for entry in entries]
    assert len({(each.name, each.version) for each in packages}) == len(packages)
    for each in packages:
        assert bool(each.tests) != bool(each.job)
        assert not each.job or (RUNNER.parent / "jobs" / each.job).exists()
        assert all((RUNNER.parent / path).is_dir() for path in each.path)


def test_the_table_is_what_was_run(compat: Any) -> None:
    """One row of a package that is listed; those that were not run keep theirs, those that are gone have none."""
    before = compat.table(["a 1", "b 1"], "| gone 1 | its tests |\n| b 1 | old |\n", "| a 1 | its tests |")
    assert rows_of(before) == ["| a 1 | its tests |", "| b 1 | old |"]
    assert rows_of(compat.table(["a 1", "b 1"], before, "| b 1 | new |")) == ["| a 1 | its tests |", "| b 1 | new |"]


def test_every_package_has_the_row_that_the_runner_writes(compat: Any) -> None:
    import tomllib

    entries = tomllib.loads((RUNNER.parent / "packages.toml").read_text())["package"]
    labels = [compat.Package(**entry).label() for entry in entries]
    page = compat.TABLE.read_text()
    rows = rows_of(page)
    assert [compat.label_of(row) for row in rows] == labels
    assert without_python(compat.table(labels, page, rows[0])) == without_python(page)


def rows_of(page: str) -> list[str]:
    return [line for line in page.splitlines() if line.startswith("| ")][1:]


def without_python(page: str) -> str:
    return re.sub(r"Python \d+\.\d+", "Python", page)


def test_ours_is_that_of_this_tree(compat: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in an environment that another tree has made."""
    monkeypatch.setenv("COMPAT_DIR", str(tmp_path))
    package = compat.Package("package", "1", job="job.py")
    package.folder().mkdir()
    stale = package.folder() / "glec_fast_alone"
    stale.mkdir()
    (stale / "glec_fast").symlink_to(tmp_path / "another" / "glec_fast")
    assert (package.link() / "glec_fast").resolve() == REPOSITORY / "glec_fast"


def commands() -> Iterator[bytes]:
    """Of all processes."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            yield path.read_bytes()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_what_it_started_ends_with_it(compat: Any, tmp_path: Path, number: signal.Signals) -> None:
    program = tmp_path / "runner.py"
    program.write_text(
        "import importlib.util, os, pathlib, signal, sys\n"
        f"spec = importlib.util.spec_from_file_location('run', {str(RUNNER)!r})\n"
        "sys.modules['run'] = run = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(run)\n"
        "run.end_in_order()\n"
        "here = pathlib.Path.cwd()\n"
        "with open('log', 'w') as log:\n"
        "    run.run_group(['sh', '-c', 'sleep 100 & echo $$ $! > child; wait'], log, here, dict(os.environ))\n"
    )
    child = tmp_path / "child"
    with subprocess.Popen([sys.executable, str(program)], cwd=tmp_path) as runner:
        assert eventually(lambda: child.exists() and child.read_text().endswith("\n"))
        group, sleeper = child.read_text().split()
        # Who is to end it if the runner cannot.
        assert eventually(lambda: any(f"\0-{group}\0".encode() in command for command in commands()))
        runner.send_signal(number)
    process = Path("/proc", sleeper, "cmdline")
    assert eventually(lambda: not process.exists() or b"sleep" not in process.read_bytes())
