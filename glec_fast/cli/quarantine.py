"""`glec-fast queue quarantine list|retry|delete PATH`: messages that stand aside in a queue file.

`list` reads beside whoever has the file. What the running service has, it retries and deletes itself, as it is asked
over its socket; another program that has the file must be ended first.
"""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glec_fast.cli.queue_file import read_table
from glec_fast.cli.service_client import add_socket_option, ask_owner_of
from glec_fast.durable.quarantine import Quarantined, read_entries
from glec_fast.errors import MessageError, QueueLockedError
from glec_fast.fleet.offline_queue import OfflineQueueManager

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

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
        add_socket_option(action)
        chosen = action.add_mutually_exclusive_group(required=True)
        chosen.add_argument("numbers", metavar="NUMBER", type=int, nargs="*", default=[], help="as `list` shows them")
        chosen.add_argument("--all", action="store_true", help="all that `list` shows")
        action.set_defaults(run=run)


def run_list(arguments: argparse.Namespace) -> int:
    entries = _listed(arguments.path)
    if arguments.json:
        sys.stdout.write(json.dumps([entry._asdict() for entry in entries], indent=2) + "\n")
    elif entries:
        sys.stdout.writelines(line_of(entry) for entry in entries)
    else:
        sys.stdout.write("nothing is in quarantine\n")
    return 0


def run_retry(arguments: argparse.Namespace) -> int:
    def say(number: int, given: list[int]) -> bool:
        if given:
            sys.stdout.write(f"{number}: in the queue as message {given[0]}\n")
        return bool(given)

    return _for_each(
        arguments,
        say,
        lambda queue, number: queue.retry_quarantined([number]),
        lambda number: _ask_service(arguments, "retry", number)["given"],
    )


def run_delete(arguments: argparse.Namespace) -> int:
    def say(number: int, count: int) -> bool:
        if count:
            sys.stdout.write(f"{number}: deleted\n")
        return bool(count)

    return _for_each(
        arguments,
        say,
        lambda queue, number: queue.delete_quarantined([number]),
        lambda number: _ask_service(arguments, "delete", number)["deleted"],
    )


def _for_each(
    arguments: argparse.Namespace,
    say: Callable[[int, Any], bool],
    act: Callable[[OfflineQueueManager, int], Any],
    ask_service: Callable[[int], Any],
) -> int:
    """Act on each entry in the file, or have the service do it that has the file."""
    status = 0
    numbers = [entry.number for entry in _listed(arguments.path)] if arguments.all else arguments.numbers
    with ExitStack() as stack:
        try:
            queue: OfflineQueueManager | None = stack.enter_context(OfflineQueueManager(arguments.path))
        except QueueLockedError:
            queue = None
        for number in numbers:
            done = _attempt(number, lambda number: ask_service(number) if queue is None else act(queue, number))
            if done is None or not say(number, done):
                status = EXIT_SOME_FAILED
                if done is not None:
                    sys.stderr.write(f"{number}: nothing in quarantine has this number\n")
    return status


def _attempt(number: int, act: Callable[[int], Any]) -> Any:
    """What came of it; None where no message could be made of the entry, which is said."""
    try:
        return act(number)
    except MessageError as error:
        sys.stderr.write(f"{number}: no message can be made of it: {error}\n")
        return None


def _ask_service(arguments: argparse.Namespace, question: str, number: int) -> dict[str, Any]:
    answer: dict[str, Any] = ask_owner_of(arguments.path, arguments.socket, question, [number])[0]
    return answer


def _listed(path: Path) -> list[Quarantined]:
    return read_table(path, read_entries)


def line_of(entry: Quarantined) -> str:
    when = datetime.fromtimestamp(entry.time_ms / 1000, tz=timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    what = f"message {entry.message_id} {entry.topic!r} QoS {entry.qos} {entry.payload_bytes} bytes"
    return f"{entry.number:6} {when} {what}: {entry.reason}\n"
