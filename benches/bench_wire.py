"""Bytes on the wire for a telemetry message: MQTT 3.1.1, MQTT 5 without topic aliases, and with them.

Each figure is what the socket took for --messages of them, by the manager's own count, over that number; PINGREQs that
ask how far the broker has read are in it. `live`: QoS 0 as it is published. `flushed`: from the queue.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from harness import BenchError, machine, mosquitto, print_table

from glec_fast import GpsFix, MQTTConfig, MQTTManager, Telemetry

if TYPE_CHECKING:
    from collections.abc import Callable

TIMEOUT_S = 60.0
DEVICE = "DTG-0001-SEOUL"
TELEMETRY = Telemetry(62.5, 1850, 23.5, 71, GpsFix(37.5665, 126.978, 61.9))


class Setting(NamedTuple):
    """max_topic_alias: mosquitto's."""

    title: str
    protocol_version: int
    max_topic_alias: int


SETTINGS = (Setting("MQTT 3.1.1", 4, 10), Setting("MQTT 5, no alias", 5, 0), Setting("MQTT 5, topic alias", 5, 10))


def bytes_per_message(setting: Setting, messages: int, *, is_live: bool) -> float:
    extra = f"max_topic_alias {setting.max_topic_alias}"
    with mosquitto(nodelay=True, extra=extra) as broker, tempfile.TemporaryDirectory() as directory:
        config = MQTTConfig(
            broker_url=broker.url,
            client_id=DEVICE,
            queue_path=Path(directory) / "queue.db",
            protocol_version=setting.protocol_version,
            status_interval_s=0,
        )
        with MQTTManager(config) as manager:
            if not is_live:
                publish(manager, messages)
            manager.connect()
            wait_for(manager.is_connected)
            before = manager.get_metrics()
            if is_live:
                publish(manager, messages)
            if not manager.flush(TIMEOUT_S):
                raise BenchError("the queue was not flushed in time")
            wait_for(lambda: manager.get_metrics().messages_sent == messages)
            sent_bytes = manager.get_metrics().sent_bytes
            # Of a flush, CONNECT too: it is in the same writes.
            return (sent_bytes - (before.sent_bytes if is_live else 0)) / messages


def publish(manager: MQTTManager, messages: int) -> None:
    for _ in range(messages):
        manager.publish_telemetry(TELEMETRY)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + TIMEOUT_S
    while not condition():
        if time.monotonic() > deadline_s:
            raise BenchError("the broker did not take it in time")
        time.sleep(0.01)


def main() -> int:
    parser = argparse.ArgumentParser(description="Bytes on the wire a telemetry message.")
    parser.add_argument("--messages", type=int, default=2000)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    args = parser.parse_args()
    logging.getLogger("glec_fast").setLevel(logging.ERROR)
    results = []
    try:
        for setting in SETTINGS:
            live, flushed = (bytes_per_message(setting, args.messages, is_live=each) for each in (True, False))
            results.append({"setting": setting.title, "live": round(live, 1), "flushed": round(flushed, 1)})
    except (BenchError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps({"machine": machine(), "messages": args.messages, "results": results}, indent=2))
    else:
        topic = f"glec/dtg/{DEVICE}/telemetry"
        rows = [[str(each["setting"]), str(each["live"]), str(each["flushed"])] for each in results]
        print_table(f"Bytes a message, topic {topic} ({len(topic)})", ("", "live", "flushed"), rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
