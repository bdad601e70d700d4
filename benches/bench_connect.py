"""Connecting over TLS: from the call to CONNACK, with TCP, the handshake, pins and CONNECT in between.

Contenders, in turn round by round, each alone while it is timed:
  raw         a socket, OpenSSL's handshake and a CONNECT, all blocking: the lower bound
  paho        paho-mqtt's Client with its own tls_set, `connect` and then `loop_start`; it knows no pins
  paho-async  the same with `connect_async`: connects in the thread that it starts, as the manager does
  glec        glec_fast.MQTTManager with a durable queue, the broker's pin and a backup

What a program does once (reading certificates, opening the queue) is done before the clock starts. The broker is a
mosquitto of its own with TLS 1.3 and an EC key, as it comes and with set_tcp_nodelay: without that its kernel holds
CONNACK back until the client's has acknowledged the session tickets. Modes: `server` shows the broker's certificate,
`mutual` ours as well.

Then a manager that loses its connection again and again over a relay: the first handshake is a full one, all others
resume its session. Printed are the time from the beginning of an attempt to CONNACK, and the bytes either way by then.
"""

from __future__ import annotations

import argparse
import json
import logging
import queue
import socket
import ssl
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from harness import BenchError, machine, median_of_ratios, mosquitto, positive, print_table
from paho.mqtt.client import CallbackAPIVersion
from paho.mqtt.client import Client as PahoClient

from glec_fast import ConnectionCallback, MQTTConfig, MQTTManager, TLSConfig
from glec_fast.testbed.certificates import CertificateAuthority
from glec_fast.testbed.link import Link
from glec_fast.tls.pinning import certificate_pin

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from glec_fast.testbed.certificates import Certificate

MODES = ("server", "mutual")
BROKERS = {"default": False, "nodelay": True}
# The longest that a connect with pins may take, in connects of paho's.
BAR = 1.2
TIMEOUT_S = 20.0
# What was begun by making a client is over by then, and every contender begins with caches as cold.
SETTLE_S = 0.05
HOST = "localhost"
CLIENT_ID = "DTG-BENCH"
BACKUP_PIN = "sha256/" + "A" * 43 + "="
# MQTT 3.1.1, 3.1: a clean session, keep alive of 60 s.
CONNECT = b"\x10\x15\x00\x04MQTT\x04\x02\x00\x3c\x00\x09" + CLIENT_ID.encode()
CONNACK = b"\x20\x02\x00\x00"
HEADER = ("contender", "median ms", "p90 ms", "of raw", "of paho", "CPU ms")


class Timing(NamedTuple):
    wall_s: float
    cpu_s: float


class Reconnect(NamedTuple):
    """Until CONNACK; bytes of TLS and MQTT, without those of TCP."""

    wall_s: float
    up_bytes: int
    down_bytes: int


class Scene(NamedTuple):
    """Where to connect to and what to trust. `client` is our certificate, None in server mode."""

    port: int
    ca: Path
    pin: str
    client: Certificate | None


class Stopwatch:
    """Started by whoever connects, stopped by whatever thread learns of CONNACK."""

    def __init__(self) -> None:
        self._stopped = threading.Event()
        self._cpu_before_s = time.process_time()
        self._started_s = time.perf_counter()
        self._ended_s = 0.0

    def stop(self) -> None:
        self._ended_s = time.perf_counter()
        self._stopped.set()

    def wait(self) -> Timing:
        if not self._stopped.wait(TIMEOUT_S):
            raise BenchError(f"no CONNACK within {TIMEOUT_S:.0f} s")
        return Timing(self._ended_s - self._started_s, time.process_time() - self._cpu_before_s)


class Raw:
    def __init__(self, scene: Scene, _directory: Path) -> None:
        self._port = scene.port
        self._context = ssl.create_default_context(cafile=str(scene.ca))
        if scene.client is not None:
            self._context.load_cert_chain(scene.client.certificate_path, scene.client.key_path)

    def connect(self) -> Timing:
        watch = Stopwatch()
        with (
            socket.create_connection((HOST, self._port), TIMEOUT_S) as sock,
            self._context.wrap_socket(sock, server_hostname=HOST) as tls,
        ):
            tls.sendall(CONNECT)
            answer = tls.recv(len(CONNACK))
            watch.stop()
        if answer != CONNACK:
            raise BenchError(f"the broker answered {answer!r}")
        return watch.wait()


class Paho:
    def __init__(self, scene: Scene, _directory: Path) -> None:
        self._port = scene.port
        self._client = PahoClient(CallbackAPIVersion.VERSION2, client_id=CLIENT_ID)
        if scene.client is None:
            self._client.tls_set(str(scene.ca))
        else:
            self._client.tls_set(str(scene.ca), str(scene.client.certificate_path), str(scene.client.key_path))

    def connect(self) -> Timing:
        watch = Stopwatch()
        self._client.on_connect = lambda *_: watch.stop()
        try:
            self._begin()
            return watch.wait()
        finally:
            self._client.disconnect()
            self._client.loop_stop()

    def _begin(self) -> None:
        self._client.connect(HOST, self._port)
        self._client.loop_start()


class PahoAsync(Paho):
    """As the manager does it: returns at once, and connects in the thread that it starts."""

    def _begin(self) -> None:
        self._client.connect_async(HOST, self._port)
        self._client.loop_start()


class Glec(ConnectionCallback):
    def __init__(self, scene: Scene, directory: Path) -> None:
        client = (scene.client.certificate_path, scene.client.key_path) if scene.client else (None, None)
        tls = TLSConfig(scene.ca, *client, certificate_pins=(BACKUP_PIN, scene.pin))
        config = MQTTConfig(
            f"ssl://{HOST}:{scene.port}",
            CLIENT_ID,
            tls_config=tls,
            queue_path=directory / "queue.db",
            clean_session=True,
        )
        self._manager = MQTTManager(config)
        self._manager.set_connection_callback(self)
        self._watch: Stopwatch | None = None

    def on_connected(self) -> None:
        if self._watch is not None:
            self._watch.stop()

    def connect(self) -> Timing:
        self._watch = Stopwatch()
        try:
            self._manager.connect()
            return self._watch.wait()
        finally:
            self._manager.disconnect()


CONTENDERS: dict[str, Callable[[Scene, Path], Raw | Paho | Glec]] = {
    "raw": Raw,
    "paho": Paho,
    "paho-async": PahoAsync,
    "glec": Glec,
}


class Reconnecting(ConnectionCallback):
    """A manager behind a relay that cuts its connection."""

    def __init__(self, scene: Scene, directory: Path) -> None:
        self.link = Link(("127.0.0.1", scene.port))
        client = (scene.client.certificate_path, scene.client.key_path) if scene.client else (None, None)
        config = MQTTConfig(
            f"ssl://{HOST}:{self.link.port}",
            CLIENT_ID,
            tls_config=TLSConfig(scene.ca, *client, certificate_pins=(BACKUP_PIN, scene.pin)),
            queue_path=directory / "queue.db",
            clean_session=True,
            retry_initial_delay_ms=1,
            retry_max_delay_ms=1,
            status_interval_s=0,
        )
        self._manager = MQTTManager(config)
        self._manager.set_connection_callback(self)
        self._began_s, self._before = 0.0, (0, 0)
        self._found: queue.Queue[Reconnect] = queue.Queue()

    def _bytes(self) -> tuple[int, int]:
        return self.link.bytes_up, self.link.bytes_down

    def on_reconnecting(self) -> None:
        self._began_s, self._before = time.perf_counter(), self._bytes()

    def on_connected(self) -> None:
        up, down = self._bytes()
        self._found.put(Reconnect(time.perf_counter() - self._began_s, up - self._before[0], down - self._before[1]))

    def run(self, rounds: int) -> tuple[Reconnect, list[Reconnect]]:
        """The first connection, and those after it."""
        with self.link, self._manager:
            self._began_s = time.perf_counter()
            self._manager.connect()
            first = self._found.get(timeout=TIMEOUT_S)
            others = []
            for _ in range(rounds):
                # The session's ticket comes behind the handshake.
                time.sleep(SETTLE_S)
                self.link.cut()
                self.link.restore()
                others.append(self._found.get(timeout=TIMEOUT_S))
        return first, others


def measure_reconnects(scene: Scene, rounds: int) -> dict[str, Any]:
    """Medians of full handshakes, each of a manager of its own, and of those that resume one."""
    full, resumed = [], []
    for _ in range(max(rounds // 5, 3)):
        with tempfile.TemporaryDirectory() as directory:
            first, others = Reconnecting(scene, Path(directory)).run(5)
            full.append(first)
            resumed += others
    return {name: _medians(each) for name, each in (("full", full), ("resumed", resumed))}


def _medians(found: list[Reconnect]) -> dict[str, float]:
    columns = zip(*found, strict=True)
    return {name: statistics.median(values) for name, values in zip(Reconnect._fields, columns, strict=True)}


def connect_once(name: str, scene: Scene) -> Timing:
    """A client of its own each time, made before the clock starts."""
    with tempfile.TemporaryDirectory() as directory:
        contender = CONTENDERS[name](scene, Path(directory))
        time.sleep(SETTLE_S)
        return contender.connect()


def measure(mode: str, broker: str, rounds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as directory:
        authority = CertificateAuthority(Path(directory))
        server = authority.issue_server()
        client = authority.issue_client() if mode == "mutual" else None
        lines = [f"cafile {authority.certificate_path}"] if client else []
        lines += ["require_certificate true"] if client else []
        pin = certificate_pin(ssl.PEM_cert_to_DER_cert(server.certificate_path.read_text()))
        with mosquitto(nodelay=BROKERS[broker], extra="\n".join(lines), certificate=server, plain=False) as running:
            scene = Scene(running.tls_port, authority.certificate_path, pin, client)
            timings: dict[str, list[Timing]] = {name: [] for name in CONTENDERS}
            for name in CONTENDERS:
                # What is loaded at a first connect is no part of the next ones.
                connect_once(name, scene)
            for number in range(rounds):
                # Each goes first as often as the others.
                names = list(CONTENDERS)
                for name in names[number % len(names) :] + names[: number % len(names)]:
                    timings[name].append(connect_once(name, scene))
            reconnects = measure_reconnects(scene, rounds)
    figures = {name: summarize(name, timings) for name in timings}
    return {"broker": broker, "mode": mode, "contenders": figures, "reconnects": reconnects, **verdict(timings)}


def summarize(name: str, timings: dict[str, list[Timing]]) -> dict[str, Any]:
    walls = walls_s(timings[name])
    return {
        "connect_s": statistics.median(walls),
        "connect_p90_s": sorted(walls)[int(len(walls) * 0.9)],
        "connect_s_by_round": walls,
        "cpu_s": statistics.median(timing.cpu_s for timing in timings[name]),
        "ratio_to_raw": median_of_ratios(walls, walls_s(timings["raw"])),
        "ratio_to_paho": median_of_ratios(walls, walls_s(timings["paho"])),
    }


def walls_s(timings: Sequence[Timing]) -> list[float]:
    return [timing.wall_s for timing in timings]


def verdict(timings: dict[str, list[Timing]]) -> dict[str, Any]:
    ratio = median_of_ratios(walls_s(timings["glec"]), walls_s(timings["paho"]))
    return {"bar": BAR, "ratio": ratio, "met": ratio is not None and ratio <= BAR}


def print_result(result: dict[str, Any], rounds: int) -> None:
    rows = [
        [
            name,
            f"{figures['connect_s'] * 1e3:.2f}",
            f"{figures['connect_p90_s'] * 1e3:.2f}",
            f"{figures['ratio_to_raw']:.2f}",
            f"{figures['ratio_to_paho']:.2f}",
            f"{figures['cpu_s'] * 1e3:.2f}",
        ]
        for name, figures in result["contenders"].items()
    ]
    broker = "default broker" if result["broker"] == "default" else "broker with set_tcp_nodelay"
    print_table(f"TLS connect, {result['mode']}, {broker}, median of {rounds} rounds", HEADER, rows)
    handshakes = [
        [name, f"{each['wall_s'] * 1e3:.2f}", f"{each['up_bytes']:.0f}", f"{each['down_bytes']:.0f}"]
        for name, each in result["reconnects"].items()
    ]
    print_table("handshakes of a manager behind a relay", ("handshake", "median ms", "bytes up", "down"), handshakes)
    met = "met" if result["met"] else "MISSED"
    print(f"glec / paho, median of each round's ratio: {result['ratio']:.2f} (bar: at most {BAR:g}): {met}")


def main() -> int:
    parser = argparse.ArgumentParser(description="Time to connect over TLS with pins, beside paho and a raw socket.")
    parser.add_argument("--rounds", type=positive, default=100)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    parser.add_argument("--brokers", nargs="+", choices=list(BROKERS), default=list(BROKERS))
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    args = parser.parse_args()
    # Certificates that end in two days are what it would tell of at each connect.
    logging.getLogger("glec_fast").setLevel(logging.ERROR)
    results = []
    try:
        for broker in args.brokers:
            for mode in args.modes:
                results.append(measure(mode, broker, args.rounds))
                if not args.json:
                    print_result(results[-1], args.rounds)
    except (BenchError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps({"machine": machine(), "rounds": args.rounds, "results": results}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
