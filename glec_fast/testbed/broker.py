"""A real mosquitto on free loopback ports: start, stop, kill, start again on the same ports."""

from __future__ import annotations

import secrets
import shutil
import signal
import socket
import subprocess
import time
from typing import TYPE_CHECKING

from glec_fast.testbed import ToolError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from glec_fast.testbed.certificates import Certificate

HOST = "127.0.0.1"
START_TIMEOUT_S = 15.0
STOP_TIMEOUT_S = 10.0
# Below the range from which Linux takes the local ports of outgoing connections: a broker that is down for a moment
# finds its port free when it comes back.
PORTS = range(20_000, 32_000)
PORT_ATTEMPTS = 50
_POLL_S = 0.01
_BUSY = "Address already in use"


def find_mosquitto() -> str:
    """The path of the mosquitto program; sbin is searched too, which is not on every user's PATH."""
    for name in ("mosquitto", "/usr/sbin/mosquitto", "/usr/local/sbin/mosquitto"):
        if path := shutil.which(name):
            return path
    raise ToolError(
        "mosquitto is not installed. Run: sudo apt-get install mosquitto (or use a broker of yours: --broker URL)"
    )


class Broker:
    """One mosquitto process with its configuration, log and saved state under `directory`.

    `plain` opens a TCP listener (`port`, `url`), `certificate` one with TLS (`tls_port`, `tls_url`). With
    `persistence` every change of state is saved within milliseconds; see `kill`. `settings` are further lines of
    mosquitto.conf(5).
    """

    def __init__(
        self,
        directory: Path,
        *,
        plain: bool = True,
        certificate: Certificate | None = None,
        persistence: bool = False,
        nodelay: bool = False,
        settings: Sequence[str] = (),
    ) -> None:
        if not plain and certificate is None:
            raise ToolError("a broker needs a listener: plain=True, a certificate, or both")
        self._program = find_mosquitto()
        self._directory = directory
        self._plain = plain
        self._certificate = certificate
        self._persistence = persistence
        self._nodelay = nodelay
        self._settings = tuple(settings)
        self._process: subprocess.Popen[bytes] | None = None
        self._log_path = directory / "mosquitto.log"
        self._saved_path = directory / "mosquitto.db"
        self._port: int | None = None
        self._tls_port: int | None = None
        self.host = HOST

    @property
    def port(self) -> int:
        return _opened(self._port, "plain")

    @property
    def tls_port(self) -> int:
        return _opened(self._tls_port, "TLS")

    @property
    def url(self) -> str:
        return f"tcp://{self.host}:{self.port}"

    @property
    def tls_url(self) -> str:
        return f"ssl://{self.host}:{self.tls_port}"

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        if self._process is None:
            raise ToolError("the broker is not running: call start()")
        return self._process.pid

    def log_text(self) -> str:
        """All that mosquitto has logged, over all its starts."""
        return self._log_path.read_text(errors="replace") if self._log_path.exists() else ""

    def version(self) -> str:
        """For people, as mosquitto says it: "mosquitto 2.0.11"."""
        for line in self.log_text().splitlines():
            if " version " in line and line.endswith(" running"):
                return f"mosquitto {line.split(' version ')[1].removesuffix(' running')}"
        return "mosquitto"

    def start(self) -> None:
        """Start, on new free ports the first time and on the same ones afterwards; ready when this returns."""
        if self.is_running:
            raise ToolError("the broker is running already")
        fresh = self._port is None and self._tls_port is None
        deadline = time.monotonic() + START_TIMEOUT_S
        for _ in range(PORT_ATTEMPTS):
            if fresh:
                self._choose_ports()
            failure = self._launch(deadline)
            if failure is None:
                return
            if _BUSY not in failure or time.monotonic() > deadline:
                break
            if not fresh:
                time.sleep(0.1)
        raise ToolError(f"mosquitto did not start: {failure}")

    def stop(self) -> None:
        """End it in order; it saves its state on the way. Does nothing if it is not running."""
        self._end(signal.SIGTERM)

    def kill(self, *, save_first: bool = False) -> None:
        """End it with SIGKILL.

        mosquitto acknowledges before it saves, so what it took in its last milliseconds may be gone. A test of what
        the client does, not of what mosquitto forgets, cuts the link and then calls this with `save_first`.
        """
        if save_first:
            self._save()
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Stop in order if it runs, then start on the same ports."""
        self.stop()
        self.start()

    def __enter__(self) -> Broker:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        # Nobody asks for its state any more, and in order it takes 0.1 s.
        self.kill()

    def _choose_ports(self) -> None:
        if self._plain:
            self._port = free_port()
        if self._certificate is not None:
            self._tls_port = free_port()

    def _launch(self, deadline: float) -> str | None:
        """Start the process; None when it listens, else the end of its log."""
        configuration = self._directory / "mosquitto.conf"
        configuration.write_text("\n".join(self._configuration()) + "\n")
        with self._log_path.open("ab") as log:
            log_start = log.tell()
            self._process = subprocess.Popen(
                [self._program, "-c", str(configuration)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        while True:
            ended = self._process.poll() is not None
            said = self._log_path.read_bytes()[log_start:].decode(errors="replace")
            if ended:
                self._process = None
                return " / ".join(said.splitlines()[-3:]) or "it ended without a word"
            if " running\n" in said:
                return None
            if time.monotonic() > deadline:
                self._end(signal.SIGKILL)
                return f"not listening after {START_TIMEOUT_S:.0f} s"
            time.sleep(_POLL_S)

    def _configuration(self) -> list[str]:
        lines = [
            "per_listener_settings false",
            "allow_anonymous true",
            # Started by root, it would drop to a user who cannot write here.
            "user root",
            "log_dest stderr",
            "log_type error",
            "log_type warning",
            "log_type notice",
            "log_type information",
            # A subscriber that lags must not make the broker drop messages.
            "max_queued_messages 0",
            f"set_tcp_nodelay {str(self._nodelay).lower()}",
            f"persistence {str(self._persistence).lower()}",
        ]
        if self._persistence:
            lines += [f"persistence_location {self._directory}/", "autosave_on_changes true", "autosave_interval 1"]
        if self._plain:
            lines.append(f"listener {self._port} {self.host}")
        if self._certificate is not None:
            lines += [
                f"listener {self._tls_port} {self.host}",
                f"certfile {self._certificate.certificate_path}",
                f"keyfile {self._certificate.key_path}",
            ]
        return [*lines, *self._settings]

    def _save(self) -> None:
        if not self._persistence:
            raise ToolError("this broker saves nothing: make it with persistence=True")
        before = _identity(self._saved_path)
        self._signal(signal.SIGUSR1)
        _wait_until(lambda: _identity(self._saved_path) != before, "mosquitto did not save its state")

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        self._signal(number)
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None


def free_port() -> int:
    """A loopback port that was free a moment ago; whoever uses it tries another when it is not."""
    for _ in range(PORT_ATTEMPTS):
        port = PORTS[secrets.randbelow(len(PORTS))]
        with socket.socket() as probe:
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port
    raise ToolError(f"no free port found on {HOST} between {PORTS.start} and {PORTS.stop}")


def _opened(port: int | None, kind: str) -> int:
    if port is None:
        raise ToolError(f"this broker has no {kind} listener, or was not started")
    return port


def _identity(path: Path) -> tuple[int, int] | None:
    """Changes with each save: mosquitto writes a new file and renames it over the old."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns


def _wait_until(condition: Callable[[], bool], failure: str) -> None:
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while not condition():
        if time.monotonic() > deadline:
            raise ToolError(f"{failure} within {STOP_TIMEOUT_S:.0f} s")
        time.sleep(_POLL_S)
