"""`glec-fast queue quarantine list|retry|delete PATH`: messages that stand aside in a queue file.

The file must not be in use: stop the program that has it.
"""

from __future__ import annotations

import json
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from glec_fast.errors import MessageError
from glec_fast.fleet.offline_queue import OfflineQueueManager

if TYPE_CHECKING:
    import argparse

    from glec_fast.durable.quarantine import Quarantined

EXIT_SOME_FAILED = 1


def add_quarantine(subjects: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The subject of `glec-fast queue`."""
    quarantine = subjects.add_parser("quarantine", help="messages that the broker would not take")
    actions = quarantine.add_subparsers(title="actions", metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="what stands aside, and why")
    listing.add_argument("path", metavar="PATH", type=Path, help="the queue file")
    listing.add_argument("--json", action="store_true", help="print one JSON array")
    listing.set_defaults(run=run_list)
    for name, run, text in (
        ("retry", run_retry, "put messages back into the queue"),
        ("delete", run_delete, "delete messages for good"),
    ):
        action = actions.add_parser(name, help=text)
        action.add_argument("path", metavar="PATH", type=Path, help="the queue file")
        chosen = action.add_mutually_exclusive_group(required=True)
        chosen.add_argument("numbers", metavar="NUMBER", type=int, nargs="*", default=[], help="as `list` shows them")
        chosen.add_argument("--all", action="store_true", help="all that `list` shows")
        action.set_defaults(run=run)


def run_list(arguments: argparse.Namespace) -> int:
    with _opened(arguments.path) as queue:
        entries = queue.quarantined()
    if arguments.json:
        sys.stdout.write(json.dumps([entry._asdict() for entry in entries], indent=2) + "\n")
    elif entries:
        sys.stdout.writelines(line_of(entry) for entry in entries)
    else:
        sys.stdout.write("nothing is in quarantine\n")
    return 0


def run_retry(arguments: argparse.Namespace) -> int:
    status = 0
    with _opened(arguments.path) as queue:
        for number in _numbers(queue, arguments):
            try:
                given = queue.retry_quarantined([number])
            except MessageError as error:
                sys.stderr.write(f"{number}: no message can be made of it: {error}\n")
                status = EXIT_SOME_FAILED
                continue
            if given:
                sys.stdout.write(f"{number}: in the queue as message {given[0]}\n")
            else:
                status = _say_missing(number)
    return status


def run_delete(arguments: argparse.Namespace) -> int:
    status = 0
    with _opened(arguments.path) as queue:
        for number in _numbers(queue, arguments):
            if queue.delete_quarantined([number]):
                sys.stdout.write(f"{number}: deleted\n")
            else:
                status = _say_missing(number)
    return status


def line_of(entry: Quarantined) -> str:
    when = datetime.fromtimestamp(entry.time_ms / 1000, tz=timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    what = f"message {entry.message_id} {entry.topic!r} QoS {entry.qos} {entry.payload_bytes} bytes"
    return f"{entry.number:6} {when} {what}: {entry.reason}\n"


def _say_missing(number: int) -> int:
    sys.stderr.write(f"{number}: nothing in quarantine has this number\n")
    return EXIT_SOME_FAILED


def _numbers(queue: OfflineQueueManager, arguments: argparse.Namespace) -> list[int]:
    return [entry.number for entry in queue.quarantined()] if arguments.all else arguments.numbers


def _opened(path: Path) -> OfflineQueueManager:
    """A file that is there; a new one would have nothing to show. Raises GlecError."""
    if not path.exists():
        raise MessageError(f"{path} is no file: name the queue_path of a program that ran")
    return OfflineQueueManager(path)
