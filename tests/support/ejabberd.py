"""A second kind of broker: ejabberd's mod_mqtt on a free loopback port, with all its files in a folder of its own.

No other daemon is started, so that one process is all there is to end: a single node runs without Erlang's
distribution, and the nodes of a cluster, which have a loopback address each, find each other at one known port.
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

START_TIMEOUT_S = 240.0
STOP_TIMEOUT_S = 20.0
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


_JOIN = """
Join = fun(Again) ->
    case lists:keymember(ejabberd, 1, application:which_applications(infinity)) of
        true -> ok = ejabberd_cluster:join('ejabberd@{first}'), file:write_file("joined", []);
        false -> timer:sleep(200), Again(Again)
    end
end,
spawn(fun() -> Join(Join) end).
"""


class Ejabberd:
    """One ejabberd process. It keeps sessions in memory, so that they end with it.

    A node of a cluster has a `host` of its own, 127.0.0.x, and the `distribution_port` of all.
    """

    def __init__(self, directory: Path, *, host: str = HOST, port: int = 0, distribution_port: int = 0) -> None:
        self.host = host
        self.port = port or free_port()
        self._distribution_port = distribution_port
        self._joins = ""
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
        if self._distribution_port:
            flags += self._as_node()
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
        joined = self._directory / "joined"
        while not (self._listens() and (not self._joins or joined.exists())):
            said = (self._directory / "output.txt").read_text(errors="replace")
            assert self._process.poll() is None, f"ejabberd ended: {said[-2000:]}"
            assert time.monotonic() < deadline_s, f"ejabberd does not listen: {said[-2000:]}"
            time.sleep(_POLL_S)
        # From now on it knows.
        self._joins = ""

    def stop(self) -> None:
        """SIGTERM: it leaves its cluster in order."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.kill()
            self._process = None

    def kill(self) -> None:
        """SIGKILL, as it has nothing to write."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def join(self, host: str) -> None:
        """Have its first start join the node there; a node that has joined finds its cluster again."""
        self._joins = host

    def _as_node(self) -> list[str]:
        interface = "{" + self.host.replace(".", ",") + "}"
        flags = ["-name", f"ejabberd@{self.host}", "-setcookie", "glec", "-start_epmd", "false"]
        flags += ["-erl_epmd_port", str(self._distribution_port), "-kernel", "inet_dist_use_interface", interface]
        if self._joins:
            flags += ["-eval", _JOIN.format(first=self._joins)]
        return flags

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex((self.host, self.port)) == 0

    def __enter__(self) -> Ejabberd:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
