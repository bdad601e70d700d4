"""Who is compared: how each peer is found, built and started, and what to do where it is not there."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
MQTTJS = "mqtt@5"
COMPILE_TIMEOUT_S = 60.0
NPM_TIMEOUT_S = 180.0


class MissingPeerError(RuntimeError):
    """The peer cannot be run here. The text says how to install it."""


class Setup(NamedTuple):
    """Where a peer may be built, and whether it may be fetched from the network."""

    build_directory: Path
    may_install: bool


@dataclass(frozen=True)
class Peer:
    """One contender: the actions of peer.py that it knows, whether it bounds what is in flight, and takes a CA."""

    name: str
    language: str
    program: str
    install: str
    has_window: bool = True
    qos: tuple[int, ...] = (0, 1, 2)
    actions: tuple[str, ...] = ("publish",)
    over_tls: bool = False

    def command(self, _setup: Setup) -> list[str]:
        """The start of the command line. Raises MissingPeerError."""
        raise NotImplementedError

    def missing(self, why: str) -> MissingPeerError:
        return MissingPeerError(f"{why}; {self.install}")


@dataclass(frozen=True)
class PythonPeer(Peer):
    module: str = ""

    def command(self, _setup: Setup) -> list[str]:
        if importlib.util.find_spec(self.module) is None:
            raise self.missing(f"no module {self.module}")
        return [sys.executable, str(HERE / self.program)]


@dataclass(frozen=True)
class CPeer(Peer):
    library: str = ""

    def command(self, setup: Setup) -> list[str]:
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            raise self.missing("no C compiler")
        executable = setup.build_directory / Path(self.program).stem
        arguments = ["-O2", "-pthread", "-o", str(executable), str(HERE / self.program), f"-l{self.library}"]
        done = subprocess.run(
            [compiler, *arguments], capture_output=True, text=True, timeout=COMPILE_TIMEOUT_S, check=False
        )
        if done.returncode != 0:
            first = next((line for line in done.stderr.splitlines() if "error" in line or "cannot find" in line), "")
            raise self.missing(f"it does not compile: {first.strip()}")
        return [str(executable)]


@dataclass(frozen=True)
class NodePeer(Peer):
    def command(self, setup: Setup) -> list[str]:
        node, npm = shutil.which("node"), shutil.which("npm")
        if node is None or npm is None:
            raise self.missing("no node or no npm")
        directory = cache_directory()
        modules = directory / "node_modules"
        if not (modules / "mqtt" / "package.json").is_file():
            if not setup.may_install:
                raise self.missing(f"not in {directory}")
            self._install(npm, directory)
        return ["env", f"NODE_PATH={modules}", node, str(HERE / self.program)]

    def _install(self, npm: str, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        command = [npm, "install", "--prefix", str(directory), "--silent", "--no-fund", "--no-audit", MQTTJS]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=NPM_TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired as error:
            raise self.missing(f"npm did not end in {NPM_TIMEOUT_S:.0f} s") from error
        if done.returncode != 0:
            raise self.missing(f"npm failed: {done.stderr.strip() or done.stdout.strip()}")


def cache_directory() -> Path:
    """Where MQTT.js is kept between runs."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "glec-fast-benches"


PYTHON_ACTIONS = ("publish", "call", "receive")
PAHO_ACTIONS = (*PYTHON_ACTIONS, "backlog", "drain", "pace")
RAW, PAHO, GLEC, LIBMOSQUITTO = "raw socket", "paho-mqtt", "glec-fast", "libmosquitto"

PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        PythonPeer(RAW, "-", "with_raw.py", "", module="json", actions=("publish", "receive", "backlog", "drain")),
        PythonPeer(
            GLEC,
            "Python",
            "with_glec.py",
            "pip install -e . in the repository",
            module="glec_fast",
            actions=PAHO_ACTIONS,
            over_tls=True,
        ),
        PythonPeer(
            PAHO,
            "Python",
            "with_paho.py",
            "pip install paho-mqtt",
            module="paho",
            actions=PAHO_ACTIONS,
            over_tls=True,
        ),
        PythonPeer(
            "gmqtt", "Python", "with_gmqtt.py", "pip install gmqtt", False, module="gmqtt", actions=PYTHON_ACTIONS
        ),
        PythonPeer(
            "awscrt",
            "C, from Python",
            "with_awscrt.py",
            "pip install awscrt",
            False,
            qos=(0, 1),
            module="awscrt",
            actions=PYTHON_ACTIONS,
        ),
        PythonPeer(
            "aiomqtt", "Python", "with_aiomqtt.py", "pip install aiomqtt", module="aiomqtt", actions=PYTHON_ACTIONS
        ),
        PythonPeer(
            "mqttium",
            "Python",
            "with_mqttium.py",
            "pip install mqttium (Python 3.11 or later)",
            module="mqttium",
            actions=PYTHON_ACTIONS,
        ),
        CPeer(LIBMOSQUITTO, "C", "with_libmosquitto.c", "apt-get install gcc libmosquitto-dev", library="mosquitto"),
        CPeer("Paho C", "C", "with_paho_c.c", "apt-get install gcc libpaho-mqtt-dev", library="paho-mqtt3a"),
        NodePeer("MQTT.js", "JavaScript", "with_mqttjs.cjs", "apt-get install nodejs npm, or npm's network", False),
    )
}
