"""What every benchmark here stands on: a private broker, contenders in processes of their own, medians, a table."""

from __future__ import annotations

import getpass
import json
import os
import shutil
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from paho.mqtt.client import CallbackAPIVersion, Client, MQTTMessage

from glec_fast.testbed.certificates import CertificateAuthority

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

BENCHES = Path(__file__).parent
START_ATTEMPTS = 5
STOP_TIMEOUT_S = 10.0
COUNT_TIMEOUT_S = 60.0
CONTENDER_TIMEOUT_S = 900.0
END_TOPIC = "bench/end"


class BenchError(RuntimeError):
    """The run has no valid figure: a broker or contender failed, or messages are missing."""


class Broker(NamedTuple):
    port: int
    process: subprocess.Popen[bytes]


class TLSFiles(NamedTuple):
    """The broker's certificate and key, and the authority's that a client trusts."""

    ca: Path
    certificate: Path
    key: Path


class Figures(NamedTuple):
    """What one contender measured of itself in one round. All but wall_s cover its whole life after its imports."""

    wall_s: float
    cpu_s: float
    write_bytes: int
    private_bytes: int
    peak_rss_bytes: int


@contextmanager
def mosquitto(*, nodelay: bool, extra: str = "") -> Iterator[Broker]:
    """A mosquitto of its own on a free loopback port: its defaults, but for TCP_NODELAY and `extra` lines."""
    executable = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
    if executable is None:
        raise BenchError("mosquitto is not installed: apt-get install mosquitto")
    with tempfile.TemporaryDirectory() as directory:
        broker = start_mosquitto(executable, Path(directory) / "mosquitto.conf", nodelay=nodelay, extra=extra)
        try:
            yield broker
        finally:
            stop(broker.process)


def make_certificates(directory: Path) -> TLSFiles:
    authority = CertificateAuthority(directory)
    server = authority.issue_server()
    return TLSFiles(authority.certificate_path, server.certificate_path, server.key_path)


@contextmanager
def mosquitto_for_peers(tls: TLSFiles | None, *, nodelay: bool, extra: str = "") -> Iterator[tuple[Broker, int]]:
    """As `mosquitto`, with the port for peers: with `tls` it is another, as who feeds or counts is to be spared TLS."""
    if tls is None:
        with mosquitto(nodelay=nodelay, extra=extra) as broker:
            yield broker, broker.port
        return
    port = free_port()
    # Started as root, it would become a user who may not read the key.
    lines = f"user {getpass.getuser()}\nlistener {port} 127.0.0.1\n"
    lines += f"certfile {tls.certificate}\nkeyfile {tls.key}\n"
    with mosquitto(nodelay=nodelay, extra=extra + lines) as broker:
        yield broker, port


def start_mosquitto(executable: str, config: Path, *, nodelay: bool, extra: str) -> Broker:
    for _ in range(START_ATTEMPTS):
        port = free_port()
        config.write_text(
            f"listener {port} 127.0.0.1\nallow_anonymous true\nset_tcp_nodelay {str(nodelay).lower()}\n"
            f"{extra}"
            # Nobody reads the pipe once the broker runs, so nothing may be logged for each connection.
            "log_dest stderr\nlog_type information\nconnection_messages false\n"
        )
        process = subprocess.Popen([executable, "-c", config], stderr=subprocess.PIPE)
        # The whole end of the line: started by root, it says first as which user it is running.
        if process.stderr is not None and any(line.endswith(b" running\n") for line in process.stderr):
            return Broker(port, process)
        stop(process)
    raise BenchError(f"mosquitto ended at once, {START_ATTEMPTS} times")


def stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stderr is not None:
        process.stderr.close()


def free_port() -> int:
    """A port that was free just now; another process may take it before the broker does."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Counter:
    """An independent subscriber that counts what the broker hands on. It takes broker time: not for timed runs."""

    def __init__(self, broker: Broker) -> None:
        self.payloads: dict[bytes, int] = {}
        self._subscribed = threading.Event()
        self._ended = threading.Event()
        self._client = Client(CallbackAPIVersion.VERSION2, client_id="counter")
        self._client.on_connect = lambda *_: self._client.subscribe([("glec/#", 1), (END_TOPIC, 1)])
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        self._client.on_message = self._on_message
        self._client.connect("127.0.0.1", broker.port)
        self._client.loop_start()
        if not self._subscribed.wait(COUNT_TIMEOUT_S):
            raise BenchError("the counting subscriber was not let in")

    def finish(self) -> tuple[int, int]:
        """Messages received and how many of them are distinct, once the publisher has all its acks."""
        # What was acknowledged before stands before this message in the broker's queue for the subscriber.
        self._client.publish(END_TOPIC, b"", 1)
        ended = self._ended.wait(COUNT_TIMEOUT_S)
        self._client.disconnect()
        self._client.loop_stop()
        if not ended:
            raise BenchError("the counting subscriber did not see the end")
        return sum(self.payloads.values()), len(self.payloads)

    def _on_message(self, _client: Client, _userdata: Any, message: MQTTMessage) -> None:
        if message.topic == END_TOPIC:
            self._ended.set()
        else:
            self.payloads[message.payload] = self.payloads.get(message.payload, 0) + 1


def count_rows(queue_path: Path) -> int:
    """Rows left in a queue file, read by another SQLite than the one that wrote it."""
    with closing(sqlite3.connect(f"file:{queue_path}?mode=ro", uri=True)) as db:
        return int(db.execute("SELECT COUNT(*) FROM mqtt_offline_queue").fetchone()[0])


def run_contender(
    name: str,
    port: int,
    qos: int,
    messages: int,
    window: int,
    max_unreleased: int,
    queue_path: Path,
    ca: Path | None = None,
) -> Figures:
    """Run benches/contender.py in a fresh interpreter and return what it measured; with `ca` over TLS."""
    numbers = map(str, (port, qos, messages, window, max_unreleased))
    command = [sys.executable, BENCHES / "contender.py", name, *numbers, queue_path, *([] if ca is None else [ca])]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=CONTENDER_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"{name} did not finish in {CONTENDER_TIMEOUT_S:.0f} s") from error
    if done.returncode != 0:
        raise BenchError(f"{name} failed:\n{done.stderr}")
    return Figures(**json.loads(done.stdout))


def median_of_ratios(numerators: Sequence[float], denominators: Sequence[float]) -> float | None:
    """The median over rounds of each round's own ratio: what slows a whole round down falls out of it."""
    if not numerators or not denominators:
        return None
    return statistics.median(above / below for above, below in zip(numerators, denominators, strict=True))


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as their widest cell; the first is a name, the others are figures."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    print(f"\n{title}")
    for row in (header, *rows):
        cells = [
            cell.ljust(width) if at == 0 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells))


def machine() -> dict[str, Any]:
    return {
        "cpus": os.cpu_count(),
        "arch": os.uname().machine,
        "kernel": os.uname().release,
        "python": sys.version.split()[0],
    }
