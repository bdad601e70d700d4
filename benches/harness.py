"""What every benchmark here stands on: a private broker, contenders in processes of their own, medians, a table."""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from glec_fast.testbed import ToolError
from glec_fast.testbed.broker import Broker
from glec_fast.testbed.certificates import Certificate, CertificateAuthority

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from glec_fast.testbed.subscriber import Subscriber

BENCHES = Path(__file__).parent
COUNT_TIMEOUT_S = 60.0
CONTENDER_TIMEOUT_S = 900.0
# What everything is published under. It takes broker time to subscribe to: not in timed runs.
ALL_TOPICS = "glec/#"
# Of mosquitto as it comes.
DEFAULT_QUEUED_MESSAGES = 1000


class BenchError(RuntimeError):
    """The run has no valid figure: a broker or contender failed, or messages are missing."""


class TLSFiles(NamedTuple):
    """What the broker shows, and the authority that a client trusts."""

    ca: Path
    server: Certificate


class Figures(NamedTuple):
    """What one contender measured of itself in one round. All but wall_s cover its whole life after its imports."""

    wall_s: float
    cpu_s: float
    write_bytes: int
    private_bytes: int
    peak_rss_bytes: int


@contextmanager
def mosquitto(
    *, nodelay: bool, extra: str = "", certificate: Certificate | None = None, plain: bool = True
) -> Iterator[Broker]:
    """A mosquitto of its own: its defaults, but for TCP_NODELAY and `extra` lines. It logs nothing of connections."""
    settings = [f"max_queued_messages {DEFAULT_QUEUED_MESSAGES}", "connection_messages false", *extra.splitlines()]
    options: dict[str, Any] = {"plain": plain, "certificate": certificate, "nodelay": nodelay, "settings": settings}
    try:
        with tempfile.TemporaryDirectory() as directory, Broker(Path(directory), **options) as broker:
            yield broker
    except ToolError as error:
        raise BenchError(str(error)) from error


def make_certificates(directory: Path) -> TLSFiles:
    authority = CertificateAuthority(directory)
    return TLSFiles(authority.certificate_path, authority.issue_server())


@contextmanager
def mosquitto_for_peers(tls: TLSFiles | None, *, nodelay: bool, extra: str = "") -> Iterator[tuple[Broker, int]]:
    """As `mosquitto`, with the port for peers: with `tls` it is another, as who feeds or counts is to be spared TLS."""
    with mosquitto(nodelay=nodelay, extra=extra, certificate=None if tls is None else tls.server) as broker:
        yield broker, broker.port if tls is None else broker.tls_port


def counted(subscriber: Subscriber) -> tuple[int, int]:
    """Messages received and how many of them are distinct, once the publisher has all its acks."""
    # What was acknowledged before stands before its mark in the broker's queue for the subscriber.
    if not subscriber.wait_for_end(COUNT_TIMEOUT_S):
        raise BenchError("the counting subscriber did not see the end")
    payloads = subscriber.payloads()
    return len(payloads), len(set(payloads))


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


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


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
