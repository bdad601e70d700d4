"""`glec-fast in-doubt PATH`: the messages whose fate MQTT could not tell, from a queue file that may be in use."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from glec_fast.cli.listing import moment, one_line, write_entries
from glec_fast.cli.queue_file import read_table
from glec_fast.durable.in_doubt import InDoubt, read_entries

if TYPE_CHECKING:
    import argparse


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "in-doubt", help="list QoS 2 messages that a broker may have lost with its session, or have had twice"
    )
    parser.add_argument("path", metavar="PATH", type=Path, help="the queue file; a program may be using it")
    parser.add_argument("--json", action="store_true", help="print one JSON array")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    entries = read_ledger(arguments.path)
    return write_entries(
        entries, InDoubt._asdict, line_of, json_wanted=arguments.json, none="no message was ever in doubt"
    )


def line_of(entry: InDoubt) -> str:
    what = f"message {entry.message_id} {entry.topic} {entry.decision.value}"
    return one_line(f"{entry.number:6} {moment(entry.time_ms)} {what}") + "\n"


def read_ledger(path: Path) -> list[InDoubt]:
    """The ledger in a queue file, oldest first. Raises QueueStorageError, QueueFormatError, MessageError."""
    return read_table(path, read_entries)
