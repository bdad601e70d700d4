"""`glec-fast sub`: print what arrives, with the settings, TLS and pins of the gateway.

A lost connection is made again, and the topics are subscribed to anew. Exit status 1 where --wait ended before --count
messages had come.
"""

from __future__ import annotations

import json
import queue
import sys
import time
from typing import TYPE_CHECKING, Any

from glec_fast.cli.arguments import count_of, seconds, topic_filter
from glec_fast.cli.connection import Connection, add_connection_options, config_of
from glec_fast.errors import BrokerRefusalError

if TYPE_CHECKING:
    import argparse

    from paho.mqtt.client import MQTTMessage

    from glec_fast.mqtt.client import Client

SUMMARY = "print what arrives, as mosquitto_sub does"
EXIT_TOO_FEW = 1
_LOOK_PERIOD_S = 0.5


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser("sub", help=SUMMARY, description=__doc__)
    parser.add_argument(
        "-t", "--topic", metavar="FILTER", type=topic_filter, action="append", required=True, help="may be given again"
    )
    parser.add_argument("-q", "--qos", type=int, choices=(0, 1, 2), default=1, help="(default: %(default)s)")
    parser.add_argument("-C", "--count", metavar="N", type=count_of, help="end after N messages")
    parser.add_argument("-W", "--wait", metavar="S", type=seconds, help="end after so many seconds")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("-v", "--verbose", action="store_true", help="the topic before each payload")
    how.add_argument("--json", action="store_true", help="an object a line: topic, payload, qos, retain, time_ms")
    add_connection_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    arrived: queue.SimpleQueue[MQTTMessage | BrokerRefusalError] = queue.SimpleQueue()

    def subscribe(client: Client) -> None:
        client.subscribe([(topic, arguments.qos) for topic in arguments.topic])

    def on_subscribe(_client: Any, _userdata: Any, _mid: int, reasons: list[Any], _properties: Any) -> None:
        for topic, reason in zip(arguments.topic, reasons, strict=False):
            if reason.is_failure:
                arrived.put(BrokerRefusalError(f"the broker refused to subscribe to {topic!r}: {reason}", reason.value))

    connection = Connection(config_of(arguments), arguments.client_id, "-sub")
    connection.client.on_message = lambda _client, _userdata, message: arrived.put(message)
    connection.client.on_subscribe = on_subscribe
    connection.on_connected = subscribe
    deadline_s = None if arguments.wait is None else time.monotonic() + arguments.wait
    count = 0
    with connection:
        while arguments.count is None or count < arguments.count:
            left_s = _LOOK_PERIOD_S if deadline_s is None else min(deadline_s - time.monotonic(), _LOOK_PERIOD_S)
            if left_s <= 0:
                return 0 if arguments.count is None else EXIT_TOO_FEW
            try:
                message = arrived.get(timeout=left_s)
            except queue.Empty:
                continue
            if isinstance(message, BrokerRefusalError):
                raise message
            sys.stdout.buffer.write(_line_of(message, arguments))
            sys.stdout.buffer.flush()
            count += 1
    return 0


def _line_of(message: MQTTMessage, arguments: argparse.Namespace) -> bytes:
    payload = bytes(message.payload)
    if not arguments.json:
        return (message.topic.encode() + b" " if arguments.verbose else b"") + payload + b"\n"
    content: dict[str, object] = {"topic": message.topic}
    try:
        content["payload"] = payload.decode()
    except UnicodeDecodeError:
        content["payload_hex"] = payload.hex()
    content |= {"qos": message.qos, "retain": message.retain, "time_ms": time.time_ns() // 1_000_000}
    return json.dumps(content, ensure_ascii=False).encode() + b"\n"
