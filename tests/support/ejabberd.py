"""A second kind of broker: ejabberd's mod_mqtt on a free loopback port, with all its files in a folder of its own.

It runs without Erlang's distribution, so that no other daemon is started, and one process is all there is to end.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

from glec_fast.testbed.broker import HOST, free_port

if TYPE_CHECKING:
    from collections.abc import Iterable

START_TIMEOUT_S = 60.0
# Anybody may log in under any name; it wants one.
USERNAME, PASSWORD = "gateway", "any"
_POLL_S = 0.02
_CONFIGURATION = """
hosts: [localhost]
loglevel: warning
listen:
  - port: {port}
    ip: "{host}"
    module: mod_mqtt
auth_method: [anonymous]
anonymous_protocol: login_anon
allow_multiple_connections: true
modules:
  mod_mqtt:
    access_publish: {{"#": [{{allow: all}}]}}
    access_subscribe: {{"#": [{{allow: all}}]}}
    session_expiry: 1 hour
    max_queue: 100000
"""


def libraries() -> Path | None:
    """Where Debian's package has put ejabberd's code for Erlang; None where it is not installed."""
    if shutil.which("erl") is None:
        return None
    found: Iterable[Path] = Path("/usr/lib").glob("*/ejabberd-[0-9]*")
    return next((path.parent for path in sorted(found)), None)


class Ejabberd:
    """One ejabberd process. It keeps sessions in memory, so that they end with it."""

    def __init__(self, directory: Path) -> None:
        self.host = HOST
        self.port = free_port()
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"tcp://{self.host}:{self.port}"

    def start(self) -> None:
        """Returns once it listens."""
        found = libraries()
        assert found is not None, "ejabberd is not installed: make brokers"
        configuration = self._directory / "ejabberd.yml"
        configuration.write_text(_CONFIGURATION.format(host=self.host, port=self.port))
        environment = {
            **os.environ,
            "HOME": str(self._directory),
            "ERL_LIBS": str(found),
            "ERL_CRASH_DUMP": "/dev/null",
            "EJABBERD_CONFIG_PATH": str(configuration),
            "EJABBERD_LOG_PATH": str(self._directory / "ejabberd.log"),
        }
        # One scheduler that does not spin: the tests' other processes share the machine.
        flags = ["+S", "1:1", "+sbwt", "none", "+sbwtdcpu", "none", "+sbwtdio", "none"]
        spool = f'"{self._directory / "spool"}"'
        with (self._directory / "output.txt").open("wb") as output:
            self._process = subprocess.Popen(
                ["erl", *flags, "-noinput", "-mnesia", "dir", spool, "-s", "ejabberd"],
                cwd=self._directory,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not self._listens():
            said = (self._directory / "output.txt").read_text(errors="replace")
            assert self._process.poll() is None, f"ejabberd ended: {said[-2000:]}"
            assert time.monotonic() < deadline_s, f"ejabberd does not listen: {said[-2000:]}"
            time.sleep(_POLL_S)

    def kill(self) -> None:
        """SIGKILL, as it has nothing to write."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex((self.host, self.port)) == 0

    def __enter__(self) -> Ejabberd:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
