"""Ready-made packets through a plain socket: what no client can beat. QoS 2 keeps as many unreleased as the window."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import peer

sys.path.append(str(Path(__file__).parent.parent))
import raw_socket

if TYPE_CHECKING:
    from peer import Job


def run_publish(job: Job) -> dict[str, Any]:
    texts = [payload.decode() for payload in job.payloads]
    flush = raw_socket.prepare_rows([(peer.TOPIC, text, job.qos) for text in texts], job.qos)
    with raw_socket.connect(job.port, "raw") as sock:
        stopwatch = peer.Stopwatch()
        if job.qos == 0:
            raw_socket.send_unacknowledged(sock, flush)
            return stopwatch.stop()
        acks = raw_socket.pump(sock, flush, job.window, job.window)
        figures = stopwatch.stop()
    raw_socket.check(acks, flush)
    return figures


def run_backlog(job: Job) -> dict[str, Any]:
    """As `run_receive`, of what the broker has kept."""
    texts = [payload.decode() for payload in job.payloads]
    flush = raw_socket.prepare_rows([(peer.TOPIC, text, job.qos) for text in texts], job.qos)
    watches: list[peer.Stopwatch] = []
    with raw_socket.connect(job.port, peer.SESSION, clean_session=False) as sock:
        raw_socket.subscribe(sock, peer.TOPIC, job.qos)
    peer.announce_ready()
    peer.wait_for_word()
    with raw_socket.connect(job.port, peer.SESSION, clean_session=False) as sock:
        raw_socket.receive(sock, flush, lambda: watches.append(peer.Stopwatch()))
        return watches[0].stop()


def run_receive(job: Job) -> dict[str, Any]:
    """The bytes that arrive, counted: what the broker can deliver."""
    texts = [payload.decode() for payload in job.payloads]
    flush = raw_socket.prepare_rows([(peer.TOPIC, text, job.qos) for text in texts], job.qos)
    watches: list[peer.Stopwatch] = []
    with raw_socket.connect(job.port, "raw") as sock:
        raw_socket.subscribe(sock, peer.TOPIC, job.qos)
        peer.announce_ready()
        raw_socket.receive(sock, flush, lambda: watches.append(peer.Stopwatch()))
        return watches[0].stop()


if __name__ == "__main__":
    peer.main("", {"publish": run_publish, "receive": run_receive, "backlog": run_backlog})
