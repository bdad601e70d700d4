"""`glec-fast bench`: rates, latency and memory on your own broker, against paho, in a minute.

Publishes to glec-fast/bench/CLIENT_ID: with paho's client, with ours in memory, and with ours over a queue file, each
in a process of its own. In flight are at most 20 messages with paho, as it comes, and 1,000 with ours, as MQTTManager
has it (in memory, with QoS 2, 20). The last column puts beside them what the specification asks for. One run
on a busy machine says little: the ratios of several do.

What the broker does not take, such as QoS 2, is left out, and said below the table. Exit status 1 where a client broke
down at a figure, 2 where there is none.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from glec_fast.cli.arguments import topic
from glec_fast.cli.bench.contender import MEMORY, PAHO, STORE
from glec_fast.cli.bench.report import in_table
from glec_fast.cli.broker_probe import Taken, ask
from glec_fast.cli.connection import Connection, add_connection_options, config_of
from glec_fast.errors import ConfigError, GlecError
from glec_fast.transport.way_out import parse_proxy, proxy_arguments

if TYPE_CHECKING:
    from collections.abc import Iterator

    from glec_fast.fleet.config import MQTTConfig

    SubParsers = argparse._SubParsersAction[argparse.ArgumentParser]

SUMMARY = "rates, latency and memory on your own broker, against paho"
CONTENDER = Path(__file__).with_name("contender.py")
MESSAGES, ANSWERS, PAYLOAD_BYTES = 10_000, 100, 300
SECONDS = 3.0
SUFFIX = "-bench"
TOPIC = "glec-fast/bench/"
EXIT_BROKEN = 1
# Each measure waits at most 30 s for an answer, after its time.
_PATIENCE_S = 120.0


class BenchError(GlecError):
    """A contender broke down, or the broker takes nothing of what is to be measured."""


class Measure(NamedTuple):
    """What is asked of each kind of client."""

    name: str
    action: str
    qos: int
    kinds: tuple[str, ...] = (PAHO, MEMORY, STORE)


MEASURES = (
    Measure("publish-0", "publish", 0),
    Measure("publish-1", "publish", 1),
    Measure("publish-2", "publish", 2),
    Measure("answer-1", "answer", 1),
    Measure("answer-2", "answer", 2),
    Measure("flush-1", "flush", 1, (STORE,)),
    Measure("flush-2", "flush", 2, (STORE,)),
)


def add_parser(subparsers: SubParsers) -> None:
    parser = subparsers.add_parser("bench", help=SUMMARY, description=__doc__)
    parser.add_argument("--seconds", metavar="S", type=_seconds, default=SECONDS, help="for each figure (default: 3)")
    parser.add_argument("--messages", metavar="N", type=_count, default=MESSAGES, help="at most (default: 10000)")
    parser.add_argument("--bytes", metavar="N", type=_count, default=PAYLOAD_BYTES, help="of payload (default: 300)")
    parser.add_argument("--topic", metavar="TOPIC", type=topic, help="(default: glec-fast/bench/CLIENT_ID)")
    parser.add_argument("--directory", metavar="DIR", type=Path, help="for the queue file (default: the temporary one)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_connection_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Raises GlecError where the broker cannot be reached, or no figure was measured."""
    config = config_of(arguments)
    client_id = arguments.client_id or config.client_id + SUFFIX
    arguments.topic = arguments.topic or TOPIC + client_id
    # What would fail each contender is told by the manager's own kind of connection, which also checks the pins.
    taken = _taken(config, client_id, arguments.topic, arguments.bytes)
    results: dict[str, dict[str, Any]] = {}
    broken: dict[tuple[str, int], str] = {}
    with _directory(arguments.directory) as directory:
        try:
            for measure in MEASURES:
                if measure.qos in taken.refused:
                    continue
                _say(f"{measure.action}, QoS {measure.qos}")
                figures = results[measure.name] = {}
                for kind in measure.kinds:
                    # Who broke down at this QoS would do so again.
                    if (kind, measure.qos) in broken:
                        continue
                    job = _job(arguments, config, client_id, measure, kind, directory, results)
                    job["is_marked_by_message"] = 1 not in taken.refused
                    try:
                        figures[kind] = _figures(job, measure, Path(directory))
                    except BenchError as error:
                        broken[kind, measure.qos] = str(error)
        finally:
            # Ours with a store asks the broker to keep its session; this ends it. What went wrong before is told.
            with suppress(GlecError), Connection(config, client_id, ""):
                pass
    if not any(results.values()):
        raise BenchError(next(iter(broken.values())))
    notes = [f"QoS {qos} is not measured: {why}" for qos, why in taken.refused.items()] + list(broken.values())
    if not taken.is_handed_on:
        notes.append(f"What is published to {arguments.topic} came back to no subscriber: the broker may drop it.")
    report = {
        "broker": config.broker_url or config.broker_urls[0],
        "payload_bytes": arguments.bytes,
        "seconds": arguments.seconds,
        "queue_directory": str(arguments.directory or tempfile.gettempdir()),
        "results": results,
        "notes": notes,
    }
    sys.stdout.write(json.dumps(report) + "\n" if arguments.json else in_table(report))
    return EXIT_BROKEN if broken else 0


def _taken(config: MQTTConfig, client_id: str, topic: str, payload_bytes: int) -> Taken:
    """What the broker takes. Raises BenchError where that is nothing, and the errors of connecting."""
    taken = ask(config, client_id, topic, b"x" * payload_bytes)
    if taken.nothing:
        raise BenchError(f"the broker takes no message to {topic}: {taken.nothing}; allow it, or give another --topic")
    if taken.too_large:
        says = f"the broker does not take {payload_bytes:,} bytes of payload: {taken.too_large}"
        raise BenchError(f"{says}; give fewer --bytes")
    return taken


def _directory(given: Path | None) -> tempfile.TemporaryDirectory[str]:
    try:
        return tempfile.TemporaryDirectory(prefix="glec-fast-bench-", dir=given)
    except OSError as error:
        raise ConfigError(f"{given} cannot hold a queue file ({error.strerror}): give another --directory") from error


def _job(
    arguments: argparse.Namespace,
    config: MQTTConfig,
    client_id: str,
    measure: Measure,
    kind: str,
    directory: str,
    results: dict[str, dict[str, Any]],
) -> dict[str, Any]:
    """What a contender is told."""
    count = min(ANSWERS, arguments.messages) if measure.action == "answer" else arguments.messages
    if measure.action == "flush":
        # On a slow link no more than goes in the time.
        before = results[f"publish-{measure.qos}"]
        rate_msg_s = before.get(MEMORY, before.get(kind, {"rate_msg_s": 1.0}))["rate_msg_s"]
        count = max(1, min(count, int(rate_msg_s * arguments.seconds)) - 1)
    broker = config.broker
    return {
        "kind": kind,
        "action": measure.action,
        "qos": measure.qos,
        "count": count,
        "seconds": arguments.seconds,
        "payload_bytes": arguments.bytes,
        "topic": arguments.topic,
        "queue_path": str(Path(directory, f"{measure.name}.db")),
        "client_id": client_id,
        "protocol": config.protocol_version,
        "host": broker.host,
        "port": broker.port,
        "transport": broker.transport,
        "path": broker.path,
        "headers": config.headers,
        "proxy": _proxy(config),
        "username": config.username,
        "password": config.password,
        "tls": _tls(config) if broker.tls else None,
    }


def _figures(job: dict[str, Any], measure: Measure, directory: Path) -> dict[str, Any]:
    """What the contender measured. Raises BenchError."""
    kind = job["kind"]
    # By standard input: what stands in the arguments of a process everybody may read.
    command = [sys.executable, str(CONTENDER)]
    try:
        done = subprocess.run(
            command, input=json.dumps(job), capture_output=True, text=True, timeout=_PATIENCE_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise BenchError(f"{kind} did not end {measure.action} with QoS {measure.qos}: try fewer --messages") from None
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()
        raise BenchError(f"{kind} broke down at {measure.action} with QoS {measure.qos}: {said[-1] if said else '?'}")
    figures: dict[str, Any] = json.loads(done.stdout)
    if measure.action == "flush":
        figures["queue_bytes"] = sum(path.stat().st_size for path in _files(directory, measure.name))
    return figures


def _files(directory: Path, name: str) -> Iterator[Path]:
    return directory.glob(f"{name}.db*")


def _proxy(config: MQTTConfig) -> dict[str, Any] | None:
    """For `proxy_set`. Raises ConfigError."""
    if config.options or config.local_address:
        says = "bench takes no network_interface, socket_options and local_address, as not all its clients know them"
        raise ConfigError(f"{says}: leave them out")
    return None if config.proxy_url is None else proxy_arguments(parse_proxy(config.proxy_url), ())


def _tls(config: MQTTConfig) -> dict[str, Any]:
    """The files as paths, for a process of its own. Raises ConfigError where they are none."""
    tls = config.tls_config
    files = {name: getattr(tls, name, None) for name in ("ca_cert", "client_cert", "client_key")}
    for name, value in files.items():
        # Read before, to ask what the broker takes.
        is_file = isinstance(value, str | os.PathLike) and Path(value).is_file()
        if value is not None and not (is_file and b"-----BEGIN " in Path(value).read_bytes()):
            raise ConfigError(f"{name} must be a file in PEM for bench, as paho takes no other: give it so", field=name)
    return {
        **{name: None if value is None else str(value) for name, value in files.items()},
        "key_password": getattr(tls, "key_password", None),
        "alpn": list(getattr(tls, "alpn", ())),
        "verify_hostname": getattr(tls, "verify_hostname", True),
        "partial_chain": getattr(tls, "partial_chain", False),
    }


def _say(text: str) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"{text} ...\n")


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.01 <= seconds <= 60:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0.01 to 60")
    return seconds


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 1_000_000):
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 1 to 1000000")
    return int(text)
