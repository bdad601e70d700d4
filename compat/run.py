"""Runs programs of others over paho and over our class, compares them test by test, and prints a table: `make compat`.

Each package of packages.toml has an environment of its own, outside the tree, and comes from PyPI in the version that
is named. Ours is put in paho's place by `python -m glec_fast.mqtt`. With names as arguments, those packages alone.
A test that differs is run again, alone, up to twice over either: what fails now and then with both is no difference.
--write: also docs/compatibility.md, in which a package that was not run keeps its row. COMPAT_DIR: where environments
and sources are kept, ~/.cache/glec-fast-compat.
Ends with 1 where any test differs that docs/differences.md does not name, and where a job fails.
"""

from __future__ import annotations

import argparse
import datetime
import os
import re
import signal
import socket
import subprocess
import sys
import tarfile
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, TYPE_CHECKING, Any
from xml.etree import ElementTree

import tomllib

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
HERE = ROOT / "compat"
TABLE = ROOT / "docs" / "compatibility.md"
PAHO = "2.2.0"
TIMEOUT_S = 1800
TEST_TIMEOUT_S = 60
# What differs is run so many times more.
TRIES = 2
# Where some packages' tests look for a broker.
COMMON_PORT = 1883


@dataclass
class Result:
    """One run: how each test ended, and what a job printed, line by line."""

    outcomes: dict[str, str] = field(default_factory=dict)

    def count(self, outcome: str) -> int:
        return sum(each == outcome for each in self.outcomes.values())


@dataclass
class Package:
    """An entry of packages.toml."""

    name: str
    version: str
    tests: list[str] = field(default_factory=list)
    job: str = ""
    extra: str = ""
    install: list[str] = field(default_factory=list)
    without: list[str] = field(default_factory=list)
    no_deps: bool = False
    path: list[str] = field(default_factory=list)
    paho: str = PAHO
    # Folder in the sources -> (git repository, commit).
    checkouts: dict[str, list[str]] = field(default_factory=dict)

    def folder(self) -> Path:
        default = Path.home() / ".cache" / "glec-fast-compat"
        return Path(os.environ.get("COMPAT_DIR", default)) / f"{self.name}-{self.version}"

    def label(self) -> str:
        """How the table names it."""
        return f"{self.name} {self.version}"

    def link(self) -> Path:
        """A folder with our package and nothing else of this tree, whichever tree made the environment."""
        folder = self.folder() / "glec_fast_alone"
        folder.mkdir(exist_ok=True)
        (folder / "glec_fast").unlink(missing_ok=True)
        (folder / "glec_fast").symlink_to(ROOT / "glec_fast")
        return folder

    def python(self) -> Path:
        return self.folder() / "venv" / "bin" / "python"

    def prepare(self) -> None:
        """Its environment, and its sources where there are tests."""
        done = self.folder() / "prepared"
        if done.exists():
            return
        self.folder().mkdir(parents=True, exist_ok=True)
        run([sys.executable, "-m", "venv", "--clear", str(self.folder() / "venv")])
        wanted = f"{self.name}[{self.extra}]=={self.version}" if self.extra else f"{self.name}=={self.version}"
        self._pip("install", *(["--no-deps"] if self.no_deps else []), wanted)
        self._pip(
            "install", "pytest", "pytest-asyncio", "pytest-mock", "pytest-timeout", "apsw", "orjson", *self.install
        )
        # Whatever the package asks for: both run over the same paho.
        self._pip("install", "--no-deps", f"paho-mqtt=={self.paho}")
        if self.tests:
            self._pip("download", "--no-deps", "--no-binary", self.name, "-d", str(self.folder()), wanted)
            with tarfile.open(next(self.folder().glob("*.tar.gz"))) as archive:
                archive.extractall(self.folder() / "source", filter="data")
            for source in (self.folder() / "source").glob("*/src/paho"):
                # The installed one is tested.
                source.rename(source.with_name("paho.not-used"))
            for name, (repository, commit) in self.checkouts.items():
                self._check_out(next((self.folder() / "source").iterdir()) / name, repository, commit)
        done.touch()

    def _check_out(self, folder: Path, repository: str, commit: str) -> None:
        """What the sdist leaves out; without it the tests that need it are skipped, and the table says so."""
        try:
            run(["git", "clone", "--quiet", repository, str(folder)])
            run(["git", "-C", str(folder), "checkout", "--quiet", commit])
        except subprocess.CalledProcessError as error:
            print(f"    {self.name}: {folder.name} is not there: {error}", flush=True)

    def _pip(self, *arguments: str) -> None:
        run([str(self.python()), "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments])

    def run(self, *, ours: bool, broker: Any, ca: Path, only: list[str] | None = None) -> Result:
        """Over paho, or over our class. only: these tests of its own."""
        swap = ["-m", "glec_fast.mqtt"] if ours else []
        with TemporaryDirectory() as folder:
            paths = [str(self.link()), *(str(HERE / each) for each in self.path)]
            environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "TMPDIR": folder, "HOME": folder}
            if not self.tests:
                command = [str(self.python()), *swap, str(HERE / "jobs" / self.job)]
                command += [broker.host, str(broker.port), str(broker.tls_port), str(ca)]
                log_path = self.folder() / f"{'ours' if ours else 'paho'}.log"
                with log_path.open("w") as log:
                    status = run_group(command, log, Path(folder), environment)
                lines = [
                    line.partition("RESULT ")[2]
                    for line in log_path.read_text(errors="replace").splitlines()
                    if line.startswith("RESULT ")
                ]
                result = Result({f"{number}: {line}": "passed" for number, line in enumerate(lines)})
                if status or not lines:
                    result.outcomes[f"ended with {status}"] = "failed"
                return result
            report = Path(folder) / "report.xml"
            source = self._source()
            environment["PYTHONPATH"] = os.pathsep.join([*paths, str(source), str(source / "tests")])
            options = ["-q", "-p", "no:cacheprovider", "--timeout", str(TEST_TIMEOUT_S), "--junitxml", str(report)]
            for each in self.without:
                options += ["--deselect", each]
            command = [str(self.python()), *swap, "-m", "pytest", *options]
            command += self.tests if only is None else [self._node(each) for each in only]
            with (self.folder() / f"{'ours' if ours else 'paho'}.log").open("w" if only is None else "a") as log:
                run_group(command, log, source, environment)
            return outcomes_of(report)

    def _source(self) -> Path:
        return next((self.folder() / "source").iterdir())

    def _node(self, test: str) -> str:
        """What pytest calls a test that its report calls so."""
        module, _, name = test.partition("::")
        parts = module.split(".")
        for size in range(len(parts), 0, -1):
            path = Path(*parts[:size]).with_suffix(".py")
            if (self._source() / path).exists():
                return "::".join([str(path), *parts[size:], name])
        raise FileNotFoundError(test)


def outcomes_of(report: Path) -> Result:
    """By test: passed, failed, skipped."""
    result = Result()
    for case in ElementTree.parse(report).iter("testcase"):
        kinds = {child.tag for child in case}
        outcome = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        name = f"{case.get('classname')}::{case.get('name')}"
        # An error behind a test is a second entry.
        if result.outcomes.get(name) != "failed":
            result.outcomes[name] = outcome
    return result


def run(command: list[str]) -> None:
    subprocess.run(command, check=True, timeout=TIMEOUT_S)


@contextmanager
def ending_with_us(target: int) -> Iterator[None]:
    """Have a process (or, below 0, a group of them) killed once this process has ended, however that came about."""
    command = ["sh", "-c", 'read -r _; kill -s KILL -- "$1"', "sh", str(target)]
    # By the end of its input, which is our death at the latest.
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True) as guard:
        try:
            yield
        finally:
            guard.kill()


def run_group(command: list[str], log: IO[str], folder: Path, environment: dict[str, str]) -> int:
    """Run it to its end; what it has left running is ended then. Returns the exit status."""
    with (
        subprocess.Popen(
            command, stdout=log, stderr=log, cwd=folder, env=environment, start_new_session=True
        ) as process,
        ending_with_us(-process.pid),
    ):
        try:
            return process.wait(TIMEOUT_S)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def named_differences() -> set[str]:
    """Tests of others that docs/differences.md explains."""
    text = (ROOT / "docs" / "differences.md").read_text()
    return set(re.findall(r"`theirs:([^`]+)`", text))


def is_named(test: str, named: set[str]) -> bool:
    return any(each in test for each in named)


def differing(theirs: Result, ours: Result) -> list[str]:
    tests = sorted({*theirs.outcomes, *ours.outcomes})
    return [test for test in tests if theirs.outcomes.get(test) != ours.outcomes.get(test)]


def compare(package: Package, broker: Any, ca: Path) -> tuple[Result, Result]:
    """Over paho, and over ours; what differs at first counts as passed with whom it passes when it is run again."""
    theirs = package.run(ours=False, broker=broker, ca=ca)
    ours = package.run(ours=True, broker=broker, ca=ca)
    for _ in range(TRIES if package.tests else 0):
        again = differing(theirs, ours)
        for result, is_ours in (theirs, False), (ours, True):
            failed = [test for test in again if result.outcomes.get(test) == "failed"]
            if failed:
                found = package.run(ours=is_ours, broker=broker, ca=ca, only=failed)
                result.outcomes |= {test: found.outcomes.get(test, "failed") for test in failed}
    return theirs, ours


def end_in_order() -> None:
    """Have signals end what was started on the way out."""
    # paho's tests end programs by it; a shell that starts this in the background has it ignored, also by its children.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))


def is_free(port: int) -> bool:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def main() -> int:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    end_in_order()
    sys.path.insert(0, str(ROOT))
    from glec_fast.testbed.broker import Broker
    from glec_fast.testbed.certificates import CertificateAuthority

    entries = tomllib.loads((HERE / "packages.toml").read_text())["package"]
    packages = [Package(**entry) for entry in entries if not given.names or entry["name"] in given.names]
    named, amiss = named_differences(), 0
    with TemporaryDirectory() as folder:
        authority = CertificateAuthority(Path(folder))
        certificate = authority.issue_server()
        listener = [f"listener {COMMON_PORT} 127.0.0.1"] if is_free(COMMON_PORT) else []
        for package in packages:
            package.prepare()
            # One of its own: some leave retained messages behind, and some listen to all there are.
            with (
                TemporaryDirectory() as broker_s,
                Broker(Path(broker_s), certificate=certificate, settings=listener) as broker,
                ending_with_us(broker.pid),
            ):
                theirs, ours = compare(package, broker, authority.certificate_path)
            differ = differing(theirs, ours)
            amiss += report(package, theirs, ours, differ, named)
            row = row_of(package, theirs, ours, differ)
            print(row, flush=True)
            if given.write:
                TABLE.write_text(table([Package(**entry).label() for entry in entries], TABLE.read_text(), row))
    return 1 if amiss else 0


def report(package: Package, theirs: Result, ours: Result, differ: list[str], named: set[str]) -> int:
    """Print what differs, and a job that failed; returns how much of it nothing explains."""
    amiss = 0
    for test in differ:
        is_new = not is_named(test, named)
        amiss += is_new
        mark = "NOT EXPLAINED" if is_new else "explained"
        print(f"    {mark}: {test}: {theirs.outcomes.get(test)} -> {ours.outcomes.get(test)}", flush=True)
    if not theirs.count("passed") or (package.job and theirs.count("failed")):
        amiss += 1
        print(f"    FAILED with either: see the logs in {package.folder()}", flush=True)
    return amiss


def row_of(package: Package, theirs: Result, ours: Result, differ: list[str]) -> str:
    kind = "its tests" if package.tests else f"[a job](../compat/jobs/{package.job})"
    if package.paho != PAHO:
        kind += f", paho {package.paho}"
    figures = [
        f"{each.count('passed')}" + (f", {each.count('failed')} failed" if each.count("failed") else "")
        for each in (theirs, ours)
    ]
    day = datetime.datetime.now(tz=datetime.timezone.utc).date()
    counts = f"{figures[0]} | {figures[1]} | {theirs.count('skipped')} | {len(differ)}"
    return f"| {package.label()} | {kind} | {counts} | {day} |"


def table(labels: list[str], before: str, row: str) -> str:
    """The page with that row in it; of those that it had before, the packages of these labels keep theirs."""
    rows = {label_of(each): each for each in [*before.splitlines(), row] if each.startswith("| ")}
    kept = [rows[label] for label in labels if label in rows]
    return (
        f"""# Programs of others over `glec_fast.mqtt`

`make compat` fetches these packages from PyPI, runs each over paho-mqtt {PAHO} and, by `python -m glec_fast.mqtt`, over our class, and compares
test by test. A package whose sdist has no tests does its main job against a broker instead; each line that it prints counts as one test.
Run with Python {sys.version_info.major}.{sys.version_info.minor}. What differs is explained in [differences.md](differences.md), in the rows that name the test. What
fails with either wants what is not there: certificates that have not expired and a machine with nothing else to do (paho 2.1), a broker
of its own (ebus-mqtt-client, flask-mqtt), an older asyncio (mqtt-hass-base). Expected failures of theirs count as skipped.

| package | what is run | passed with paho | passed with ours | skipped | different | run on |
|---|---|---|---|---|---|---|
"""
        + "\n".join(kept)
        + "\n"
    )


def label_of(row: str) -> str:
    return row.split("|")[1].strip()


if __name__ == "__main__":
    sys.exit(main())
