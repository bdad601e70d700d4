"""Where programs run: green threads, loops of others, spawned processes, notebooks, a strict Python, frozen programs.

`make environments` installs what the slower of these need, and runs them all.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.gateway import TIMEOUT_S

if TYPE_CHECKING:
    from glec_fast.testbed.broker import Broker
    from glec_fast.testbed.certificates import CertificateAuthority

PROGRAMS = Path(__file__).parent / "programs"


def need(*packages: str) -> None:
    for package in packages:
        if importlib.util.find_spec(package) is None:
            if os.environ.get("ALL_ENVIRONMENTS"):
                pytest.fail(f"{package} is not installed, and none of the environments is to be left out")
            pytest.skip(f"{package} is not installed: `make environments` installs it")


# Exit status, standard output and standard error of a program that found nothing amiss.
DONE = (0, "done\n", "")


def run(name: str, *arguments: object, options: tuple[str, ...] = ()) -> tuple[int, str, str]:
    command = [sys.executable, *options, str(PROGRAMS / name), *map(str, arguments)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=10 * TIMEOUT_S, check=False)
    return ended.returncode, ended.stdout, ended.stderr


@pytest.mark.parametrize("stored", [False, True], ids=["memory", "store"])
@pytest.mark.parametrize("is_tls", [False, True], ids=["tcp", "tls"])
@pytest.mark.parametrize("library", ["gevent", "eventlet"])
def test_green_threads(
    library: str, is_tls: bool, stored: bool, tls_broker: Broker, authority: CertificateAuthority, tmp_path: Path
) -> None:
    need(library)
    port, ca = (tls_broker.tls_port, authority.certificate_path) if is_tls else (tls_broker.port, "-")
    assert run("green_threads.py", library, tls_broker.host, port, ca, tmp_path / "queue.db" if stored else "-") == DONE


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_loop_of_the_program_s_own(loop: str, broker: Broker) -> None:
    need(loop)
    assert run("own_loop.py", loop, broker.host, broker.port) == DONE


def test_spawned_processes(broker: Broker) -> None:
    assert run("spawned.py", broker.host, broker.port) == DONE


def test_a_strict_python_has_no_warning(tls_broker: Broker, authority: CertificateAuthority, tmp_path: Path) -> None:
    arguments = tls_broker.host, tls_broker.port, authority.certificate_path, tls_broker.tls_port, tmp_path
    assert run("whole_life.py", *arguments, options=("-X", "dev", "-W", "error")) == DONE


def test_a_notebook(broker: Broker, tmp_path: Path) -> None:
    need("nbclient", "nbformat", "ipykernel")
    import nbformat
    from nbclient import NotebookClient

    text = f"""
        import threading, glec_fast.mqtt as mqtt
        subscribed, heard = threading.Event(), threading.Event()

        client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
        client.on_message = lambda *_: heard.set()
        client.on_subscribe = lambda *_: subscribed.set()

        client.connect({broker.host!r}, {broker.port})
        client.loop_start()
        client.subscribe("notebook")
        subscribed.wait({TIMEOUT_S})

        info = client.publish("notebook", "x", 1)
        info.wait_for_publish({TIMEOUT_S})
        heard.wait({TIMEOUT_S})
        (info.is_published(), heard.is_set())

        client.close()"""
    cells = [nbformat.v4.new_code_cell(textwrap.dedent(each)) for each in text.split("\n\n")]
    notebook = nbformat.v4.new_notebook(cells=cells)
    # From elsewhere, so that it finds what is installed.
    elsewhere = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=int(10 * TIMEOUT_S), kernel_name="python3", resources=elsewhere).execute()
    assert notebook.cells[3].outputs[0]["data"]["text/plain"] == "(True, True)"


def test_a_frozen_program(broker: Broker, tmp_path: Path) -> None:
    need("PyInstaller")
    build = [sys.executable, "-m", "PyInstaller", "--log-level", "ERROR", "--onedir", "--name", "frozen"]
    build += ["--distpath", str(tmp_path / "dist"), "--workpath", str(tmp_path / "work"), "--specpath", str(tmp_path)]
    subprocess.run([*build, str(PROGRAMS / "frozen.py")], check=True, timeout=40 * TIMEOUT_S, cwd=tmp_path)
    # Nothing of the tree or of the environment is found by it.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = [str(tmp_path / "dist" / "frozen" / "frozen"), broker.host, str(broker.port), str(tmp_path)]
    ended = subprocess.run(
        command, capture_output=True, text=True, timeout=10 * TIMEOUT_S, cwd=tmp_path, env=environment, check=False
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "done\n", "")
    assert (tmp_path / "frozen.db").exists()
