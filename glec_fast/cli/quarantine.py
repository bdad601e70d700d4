"""`glec-fast queue quarantine list|retry|delete PATH`: messages that stand aside in a queue file.

`list` reads beside whoever has the file. What the running service has, it retries and deletes itself, as it is asked
over its socket; another program that has the file must be ended first.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from glec_fast.cli.arguments import count_of
from glec_fast.cli.listing import moment, one_line, write_entries
from glec_fast.cli.queue_file import read_table
from glec_fast.cli.service_client import OF_THE_OWNER, add_socket_option, ask_owner_of
from glec_fast.durable.quarantine import Quarantined, read_entries
from glec_fast.errors import MessageError, QueueLockedError
from glec_fast.fleet.offline_queue import OfflineQueueManager

if TYPE_CHECKING:
    import argparse

EXIT_SOME_FAILED = 1


class Order(NamedTuple):
    """What can be done with entries: by us in the file, or by its owner, whose answer has `answer`.

    told: what is said of what came of it, which is empty or 0 where there was no such entry.
    """

    name: str
    help: str
    act: Callable[[OfflineQueueManager, list[int]], Any]
    answer: str
    told: Callable[[Any], str]


ORDERS = (
    Order(
        "retry",
        "put messages back into the queue",
        OfflineQueueManager.retry_quarantined,
        "given",
        lambda given: f"in the queue as message {given[0]}",
    ),
    Order(
        "delete",
        "delete messages for good",
        OfflineQueueManager.delete_quarantined,
        "deleted",
        lambda _count: "deleted",
    ),
)


def add_quarantine(subjects: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The subject of `glec-fast queue`."""
    quarantine = subjects.add_parser("quarantine", help="messages that the broker would not take")
    actions = quarantine.add_subparsers(title="actions", metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="what stands aside, and why")
    listing.add_argument("path", metavar="PATH", type=Path, help="the queue file")
    listing.add_argument("--json", action="store_true", help="print one JSON array")
    listing.set_defaults(run=run_list)
    for order in ORDERS:
        action = actions.add_parser(order.name, help=order.help)
        action.add_argument("path", metavar="PATH", type=Path, help="the queue file")
        add_socket_option(action, OF_THE_OWNER)
        chosen = action.add_mutually_exclusive_group(required=True)
        says = "as `list` shows them"
        chosen.add_argument("numbers", metavar="NUMBER", type=count_of, nargs="*", default=[], help=says)
        chosen.add_argument("--all", action="store_true", help="all that `list` shows")
        action.set_defaults(run=run_order, order=order)


def run_list(arguments: argparse.Namespace) -> int:
    entries = _listed(arguments.path)
    return write_entries(
        entries, Quarantined._asdict, line_of, json_wanted=arguments.json, none="nothing is in quarantine"
    )


def run_order(arguments: argparse.Namespace) -> int:
    """Act on each entry in the file, or have the service do it that has the file."""
    order: Order = arguments.order
    numbers = [entry.number for entry in _listed(arguments.path)] if arguments.all else arguments.numbers
    status = 0
    with ExitStack() as stack:
        try:
            queue: OfflineQueueManager | None = stack.enter_context(OfflineQueueManager(arguments.path))
        except QueueLockedError:
            queue = None
        for number in numbers:
            try:
                done = _asked(arguments, order, number) if queue is None else order.act(queue, [number])
                text = order.told(done) if done else ""
            except MessageError as error:
                text, done = f"no message can be made of it: {error}", None
            if done:
                sys.stdout.write(f"{number}: {text}\n")
            else:
                status = EXIT_SOME_FAILED
                sys.stderr.write(f"{number}: {text or 'nothing in quarantine has this number'}\n")
    return status


def _asked(arguments: argparse.Namespace, order: Order, number: int) -> Any:
    return ask_owner_of(arguments.path, arguments.socket, order.name, [number], order.answer)[0]


def _listed(path: Path) -> list[Quarantined]:
    return read_table(path, read_entries)


def line_of(entry: Quarantined) -> str:
    what = f"message {entry.message_id} {entry.topic!r} QoS {entry.qos} {entry.payload_bytes} bytes"
    return one_line(f"{entry.number:6} {moment(entry.time_ms)} {what}: {entry.reason}") + "\n"
