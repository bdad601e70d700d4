"""`glec-fast pub`: publish messages from the command line, with the settings, TLS and pins of the gateway.

With --store the messages are on disk first: what is not acknowledged in time stays in that queue file for the next
call, or for a service. Exit status 1 where the broker did not take over all of them in time.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from glec_fast.cli.arguments import seconds, topic
from glec_fast.cli.connection import Connection, add_connection_options, config_of
from glec_fast.cli.listing import counted
from glec_fast.errors import ConfigError, PublishError
from glec_fast.fleet.manager import MQTTManager

if TYPE_CHECKING:
    import argparse

SUMMARY = "publish messages, as mosquitto_pub does"
EXIT_NOT_TAKEN = 1
# So many are on their way before the first is waited for.
_AHEAD_MAX = 1000


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser("pub", help=SUMMARY, description=__doc__)
    parser.add_argument("-t", "--topic", metavar="TOPIC", type=topic, required=True)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("-m", "--message", metavar="TEXT", help="one message")
    what.add_argument("-f", "--file", metavar="FILE", type=Path, help="one message, the content of FILE")
    what.add_argument("-l", "--lines", action="store_true", help="each line of standard input is a message")
    what.add_argument("-s", "--stdin", action="store_true", help="one message, the whole of standard input")
    what.add_argument("-n", "--null", action="store_true", help="one empty message")
    parser.add_argument("-q", "--qos", type=int, choices=(0, 1, 2), default=1, help="(default: %(default)s)")
    parser.add_argument("-r", "--retain", action="store_true", help="the broker keeps it for those who come later")
    parser.add_argument("--store", metavar="QUEUE", help="put them into this queue file first")
    parser.add_argument("--timeout", metavar="S", type=seconds, default=30.0, help="(default: %(default)s)")
    add_connection_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    config = config_of(arguments)
    if arguments.store is None:
        with Connection(config, arguments.client_id, "-pub") as connection:
            return _publish(connection, arguments)
    changes = {"queue_path": arguments.store, "status_interval_s": 0}
    if arguments.client_id is not None:
        changes["client_id"] = arguments.client_id
    with MQTTManager(dataclasses.replace(config, **changes)) as manager:
        manager.connect()
        count = 0
        for count, payload in enumerate(_payloads(arguments), 1):  # noqa: B007 - told behind the loop
            manager.publish(arguments.topic, payload, arguments.qos, retain=arguments.retain)
        is_done = manager.flush(arguments.timeout)
        metrics = manager.get_metrics()
    if is_done and not metrics.messages_failed:
        return 0
    told = []
    if metrics.messages_failed:
        reasons = ", ".join(f"{reason} {lost}" for reason, lost in metrics.drops.items() if lost)
        told.append(
            counted(metrics.messages_failed, "message was", "messages were")
            + " dropped or refused"
            + (f" ({reasons})" if reasons else "")
        )
    if not is_done:
        waiting = counted(metrics.queue_size, "message waits", "messages wait")
        told.append(f"{waiting} in {arguments.store} (given: {count}), to be sent once there is a link")
    text = "; ".join(told) + _ended(metrics.connects - metrics.is_connected, metrics.last_failure)
    sys.stderr.write(f"glec-fast: {text}\n")
    return EXIT_NOT_TAKEN


def _publish(connection: Connection, arguments: argparse.Namespace) -> int:
    client, handles = connection.client, []
    deadline_s = time.monotonic() + arguments.timeout
    for payload in _payloads(arguments):
        handles.append(client.publish(arguments.topic, payload, arguments.qos, arguments.retain))
        if len(handles) > _AHEAD_MAX:
            handles.pop(0).wait_for_publish(max(deadline_s - time.monotonic(), 0))
    for handle in handles:
        handle.wait_for_publish(max(deadline_s - time.monotonic(), 0))
    missing = sum(not handle.is_published() for handle in handles)
    if not missing:
        return 0
    of_all = f"{missing} of {counted(len(handles), 'message', 'messages')}"
    says = f"the broker has not taken over {of_all} within {arguments.timeout:g} s"
    advice = _ended(connection.ends, connection.cause) or ": try again, or keep them with --store"
    raise PublishError(says + advice, "link_lost")


def _ended(count: int, cause: str | None) -> str:
    """What is said of connections that ended meanwhile, which no repetition may help; nothing where none did."""
    often = "once" if count == 1 else f"{count} times"
    return f"; the connection ended {often} ({cause}): ask `glec-fast doctor`" if count else ""


def _payloads(arguments: argparse.Namespace) -> Iterator[bytes]:
    if arguments.lines:
        for line in sys.stdin.buffer:
            yield line.rstrip(b"\r\n")
    elif arguments.message is not None:
        yield arguments.message.encode()
    elif arguments.file is not None:
        try:
            yield arguments.file.read_bytes()
        except OSError as error:
            raise ConfigError(f"{arguments.file} cannot be read ({error.strerror}): check its path") from error
    else:
        yield sys.stdin.buffer.read() if arguments.stdin else b""
