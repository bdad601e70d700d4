"""`glec-fast service`: one publisher for all programs of a gateway, made for systemd.

A program connects to the Unix socket (SOCK_SEQPACKET) and sends one JSON object a packet:
`{"topic": "glec/dtg/D/alerts", "qos": 2, "payload": ...}`, the payload a string or an object, of at most 256 KiB as it
is published. The answer to each is `{"id": N}` once QoS 1 or 2 is on disk (QoS 0: once accepted), or
`{"error": "...", "retryable": true or false}`. `{"ask": "health"}`, `{"ask": "metrics"}` and `{"ask": "log"}` are
answered with what is so at this moment. A packet that is larger than the
sender's SO_SNDBUF (208 KiB unless it sets that) is refused by the kernel (EMSGSIZE). Its content may go as a memfd, of
which the descriptor (SCM_RIGHTS) is sent with any one byte.

Environment: GLEC_BROKER_URL and GLEC_CLIENT_ID, and every other setting where wanted (`glec-fast settings` lists them).
Or, in place of all but GLEC_CLIENT_ID: GLEC_CONFIG, the path of a broker_config.properties. From systemd:
STATE_DIRECTORY (the queue), RUNTIME_DIRECTORY (the socket), CREDENTIALS_DIRECTORY (glec_ca.crt, glec_client.crt,
glec_client.key, glec_password, glec_broker_config.properties and others, all optional), NOTIFY_SOCKET and
WATCHDOG_USEC.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from glec_fast.cli import service_install
from glec_fast.cli.environment import config_from, directory_from
from glec_fast.cli.listing import counted
from glec_fast.errors import GlecError, MessageError
from glec_fast.fleet.manager import MQTTManager
from glec_fast.fleet.packet_server import PacketServer
from glec_fast.fleet.payload import as_payload
from glec_fast.fleet.questions import Questions, asked
from glec_fast.fleet.upkeep import upkeep_of
from glec_fast.validation import TOPIC_MAX_BYTES

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from glec_fast.fleet.metrics import Metrics

    SubParsers = argparse._SubParsersAction[argparse.ArgumentParser]

SUMMARY = "publish for the other programs of a gateway, under systemd"
SOCKET_NAME = "publish.sock"
MAX_PAYLOAD_BYTES = 256 * 1024
# JSON may write a byte as \u0000.
MAX_PACKET_BYTES = 6 * (MAX_PAYLOAD_BYTES + TOPIC_MAX_BYTES) + 1024
DISK_TIMEOUT_S = 10.0


def add_parser(subparsers: SubParsers) -> None:
    parser = subparsers.add_parser("service", help=SUMMARY, description=__doc__)
    parser.set_defaults(run=run)
    service_install.add_parser(parser.add_subparsers(metavar="install"))


def run(_arguments: argparse.Namespace) -> int:
    """Serve until a signal ends it. Raises GlecError."""
    config = config_from(os.environ)
    path = directory_from(os.environ, "RUNTIME_DIRECTORY") / SOCKET_NAME
    notifier = Notifier(os.environ)
    try:
        with MQTTManager(config) as manager, closing(Service(manager, path)) as service:
            manager.connect()
            notifier.say("READY=1")
            while True:
                service.turn(notifier.period_s)
                if notifier.is_due and not manager.is_queue_damaged():
                    # Figures need the locks of every thread: one that hangs keeps the watchdog waiting.
                    notifier.keep_alive(status_of(manager.get_metrics()))
    finally:
        notifier.say("STOPPING=1")


def status_of(metrics: Metrics) -> str:
    """One line for `systemctl status`."""
    link = "connected" if metrics.is_connected else f"no link for {metrics.in_state_s:.0f} s"
    text = f"{link}, {counted(metrics.queue_size, 'message', 'messages')} waiting"
    if metrics.oldest_s >= 1:
        text += f", the oldest for {metrics.oldest_s:.0f} s"
    dropped = sum(metrics.drops.values())
    return f"{text}, {dropped} dropped" if dropped else text


class Service:
    """Publishes what programs send to its socket, and answers what they ask; one thread. Raises ConfigError."""

    def __init__(self, manager: MQTTManager, path: Path) -> None:
        self._manager = manager
        self._questions = Questions(manager, upkeep_of(manager))
        try:
            self._server = PacketServer(path, self._answer, MAX_PACKET_BYTES)
        except BaseException:
            self._questions.close()
            raise

    def turn(self, timeout_s: float) -> None:
        """Answer what has come, or wait for it for at most `timeout_s`. What is left after 5 s is for the next turn."""
        self._server.turn(timeout_s)

    def close(self) -> None:
        """Let go of every client, and of the socket."""
        self._server.close()
        self._questions.close()

    def _answer(self, packet: bytes, descriptors: list[int]) -> dict[str, object]:
        try:
            question = asked(packet)
            if question is not None:
                return self._questions.answer_to(question)
            topic, payload, qos = request_of(content_of(descriptors[0]) if descriptors else packet)
            handle = self._manager.publish(topic, payload, qos)
            if qos and not handle.wait_durable(DISK_TIMEOUT_S):
                return {"error": f"not on disk within {DISK_TIMEOUT_S:.0f} s; it may be sent yet", "retryable": True}
        except GlecError as error:
            return {"error": str(error), "retryable": error.retryable}
        return {"id": handle.message_id}


def content_of(descriptor: int) -> bytes:
    """What a memfd holds. Raises MessageError for any other file, the reading of which might not end."""
    try:
        fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
        return os.pread(descriptor, MAX_PACKET_BYTES + 1, 0)
    except OSError as error:
        raise MessageError(f"the descriptor that came with a packet is no memfd ({error.strerror})") from error


def request_of(packet: bytes) -> tuple[str, str | bytes, int]:
    """Topic, payload and QoS of a packet. Raises MessageError."""
    if len(packet) > MAX_PACKET_BYTES:
        raise MessageError(f"a packet has more than {MAX_PACKET_BYTES} bytes: send a smaller payload")
    try:
        request = json.loads(packet)
    except (ValueError, RecursionError) as error:
        raise MessageError(f"a packet is not JSON ({error}): send one object") from error
    if not isinstance(request, dict) or not {"topic", "payload"} <= request.keys() <= {"topic", "payload", "qos"}:
        raise MessageError("a packet must be an object with topic, payload and, unless it is 1, qos")
    payload = as_payload(request["payload"])
    size_bytes = len(payload.encode() if isinstance(payload, str) else payload)
    if size_bytes > MAX_PAYLOAD_BYTES:
        raise MessageError(f"a payload has {size_bytes} bytes, more than {MAX_PAYLOAD_BYTES}: send a smaller one")
    return request["topic"], payload, request.get("qos", 1)


class Notifier:
    """Tells systemd how it goes (sd_notify(3)); says nothing where no systemd listens."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        # "@" stands for the abstract name space.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        # A third of what systemd waits for, so that one late turn does no harm.
        self.period_s = int(environment.get("WATCHDOG_USEC") or 30_000_000) / 3e6
        self._next_s = 0.0

    def say(self, text: str) -> None:
        if not self._address:
            return
        # Whoever does not hear it draws his own conclusions.
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(text.encode(), self._address)

    @property
    def is_due(self) -> bool:
        """True where the watchdog is to hear that we live."""
        return time.monotonic() >= self._next_s

    def keep_alive(self, status: str) -> None:
        """Feed the watchdog, and say how it goes."""
        self._next_s = time.monotonic() + self.period_s / 2
        self.say(f"WATCHDOG=1\nSTATUS={status}")
