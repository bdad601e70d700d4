"""Queue files as other programs make and use them: the specified tables, and processes of their own."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from support import forked

SPECIFIED_SCHEMA = """
CREATE TABLE mqtt_offline_queue (
    id INTEGER PRIMARY KEY AUTOINCREMENT, topic TEXT NOT NULL, payload TEXT NOT NULL, qos INTEGER NOT NULL,
    timestamp BIGINT NOT NULL, ttl BIGINT NOT NULL, retry_count INTEGER DEFAULT 0);
CREATE INDEX idx_timestamp ON mqtt_offline_queue(timestamp);
CREATE INDEX idx_ttl ON mqtt_offline_queue(ttl);
"""
INSERT = "INSERT INTO mqtt_offline_queue (topic, payload, qos, timestamp, ttl) VALUES (?, ?, ?, ?, ?)"
WAIT_S = 30


@contextmanager
def plain(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(path)) as database, database:
        yield database


def child_environment() -> dict[str, str]:
    """The environment in which a child finds the modules that this process does."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path)}


def run_child(program: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a program in a process of its own."""
    return forked.run(["-c", textwrap.dedent(program)], WAIT_S, cwd=cwd)
