"""One run of one peer against a broker of its own: started, fed where it receives, its figures read or counted."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import raw_socket
from harness import ALL_TOPICS, BenchError, Broker, TLSFiles, counted, mosquitto_for_peers
from peers.peer import HOST, PACE_MSG_S, READY
from workload import make_payload

from glec_fast.testbed.subscriber import Subscriber

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractContextManager

RUN_TIMEOUT_S = 150.0
FEEDER_WINDOW = 1_000
PAYLOADS = "payloads"
# For QoS 0 too, a session's messages are kept while its client is away.
KEEPS_ALL = "queue_qos0_messages true\n"
# What a peer waits for once it has been fed.
WORD = b"go on\n"


class Limit(NamedTuple):
    """What the broker is told about messages in flight, and the window that this allows."""

    settings: str
    window: int


# mosquitto 2.0.11 keeps 20 unless told more: the 21st QoS 2 message without PUBREL is acknowledged and never handed on.
# max_queued_messages is for a subscriber slower than the publisher, which must not lose what is counted.
LIMITS = {
    "none": Limit("max_inflight_messages 0\nmax_queued_messages 0\n", 1_000),
    # 20 is what it has without the line. Not 0 queued: with 20 in flight that too makes it refuse QoS 2 messages.
    "default": Limit("max_inflight_messages 20\nmax_queued_messages 1000000\n", 20),
}


class Setting(NamedTuple):
    """What is the same for all runs of a report."""

    limit: Limit
    nodelay: bool
    messages: int
    pace_messages: int
    directory: Path
    tls: TLSFiles | None = None

    def count_of(self, action: str) -> int:
        return self.pace_messages if action == "pace" else self.messages


def write_payloads(setting: Setting) -> None:
    count = max(setting.messages, setting.pace_messages)
    (setting.directory / PAYLOADS).write_bytes(b"".join(make_payload(index).encode() for index in range(count)))


def broker_of(setting: Setting, action: str) -> AbstractContextManager[tuple[Broker, int]]:
    extra = setting.limit.settings + (KEEPS_ALL if action == "backlog" else "")
    return mosquitto_for_peers(setting.tls, nodelay=setting.nodelay, extra=extra)


def run(command: Sequence[str], action: str, qos: int, setting: Setting) -> dict[str, Any]:
    """The peer's own figures. Raises BenchError where it fails or does not end."""
    count = setting.count_of(action)
    if action == "drain":
        with ReadyMade(qos, count) as server:
            return run_at(server.port, command, "receive", qos, setting)
    with broker_of(setting, action) as (broker, port):
        return run_at(port, command, action, qos, setting, lambda: feed(broker.port, qos, count))


def prove(command: Sequence[str], qos: int, setting: Setting) -> dict[str, str]:
    """Publish once beside an independent subscriber. Empty where it got each message once, else what is wrong."""
    with broker_of(setting, "publish") as (broker, port), Subscriber(broker, ALL_TOPICS) as subscriber:
        figures = run_at(port, command, "publish", qos, setting)
        received, distinct = counted(subscriber)
    lost, doubled = setting.messages - distinct, received - distinct
    if not lost and not doubled:
        return {}
    faults = [
        f"{count:,} of {setting.messages:,} {fate}" for count, fate in ((lost, "lost"), (doubled, "doubled")) if count
    ]
    return {"version": figures["version"], "invalid": ", ".join(faults)}


def run_at(
    port: int,
    command: Sequence[str],
    action: str,
    qos: int,
    setting: Setting,
    feeder: Callable[[], None] | None = None,
) -> dict[str, Any]:
    count = setting.count_of(action)
    arguments = [action, *map(str, (port, qos, count, setting.limit.window)), str(setting.directory / PAYLOADS)]
    arguments += [] if setting.tls is None else [str(setting.tls.ca)]
    with tempfile.TemporaryFile("w+") as errors:
        # Unbuffered: what came behind READY would be lost to communicate().
        process = subprocess.Popen(
            [*command, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            bufsize=0,
            env=environment(),
        )
        try:
            if action in ("receive", "backlog") and process.stdout is not None:
                is_ready = process.stdout.readline().decode().strip() == READY
                if is_ready and feeder is not None:
                    feeder()
            output, _ = process.communicate(WORD, timeout=RUN_TIMEOUT_S + setting.pace_messages / PACE_MSG_S)
        except subprocess.TimeoutExpired as error:
            raise BenchError(f"{command[-1]}: {action} at QoS {qos} did not end") from error
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
        if process.returncode != 0:
            errors.seek(0)
            raise BenchError(f"{command[-1]}: {action} at QoS {qos} failed:\n{errors.read()}")
    return dict(json.loads(output))


def feed(port: int, qos: int, count: int) -> None:
    """Ready-made packets for a peer that receives: the feeder must not be what limits it."""
    flush = raw_socket.prepare(count, qos)
    with raw_socket.connect(port, "feeder") as sock:
        if qos == 0:
            raw_socket.send_unacknowledged(sock, flush)
        else:
            raw_socket.check(raw_socket.pump(sock, flush, FEEDER_WINDOW), flush)


class ReadyMade:
    """In a broker's place: a server for one client, which has its packets ready once the client has subscribed."""

    def __init__(self, qos: int, count: int) -> None:
        self._qos = qos
        self._flush = raw_socket.prepare(count, qos)
        self._listener = socket.create_server((HOST, 0))
        self._listener.settimeout(RUN_TIMEOUT_S)
        self.port = int(self._listener.getsockname()[1])
        self._thread = threading.Thread(target=self._serve)

    def _serve(self) -> None:
        sock, _ = self._listener.accept()
        with sock:
            sock.settimeout(RUN_TIMEOUT_S)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.recv(raw_socket.RECV_BYTES)
            sock.sendall(struct.pack(">BBH", raw_socket.CONNACK, 2, 0))
            # Its packet id is behind a remaining length of one byte.
            packet_id = sock.recv(raw_socket.RECV_BYTES)[2:4]
            sock.sendall(bytes([raw_socket.SUBACK, 3]) + packet_id + bytes([self._qos]))
            if self._qos == 0:
                sock.sendall(self._flush.publishes)
            else:
                raw_socket.pump(sock, self._flush, FEEDER_WINDOW)
            # Until the client leaves.
            while sock.recv(raw_socket.RECV_BYTES):
                pass

    def __enter__(self) -> ReadyMade:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        self._thread.join()


def environment() -> Mapping[str, str]:
    """This interpreter's search path for those in Python, whichever folder it came from."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
