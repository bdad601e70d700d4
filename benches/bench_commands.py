"""Commands: from the publish of a request to its reply, with the disk synced for each.

A requester (paho-mqtt with TCP_NODELAY, in its own process) sends one command after another to a vehicle
(glec_fast.MQTTManager), whose handler returns at once, through a mosquitto of its own: as it comes, and with
set_tcp_nodelay. In between are the mark that the command has begun, its handler in a thread, and one transaction with
"done", the reply and the packet id, each on disk before the next. `echo` is the floor: the same two clients, paho on
both sides, and no disk. A mosquitto as it comes holds a reply back until the requester's kernel has acknowledged what
came before it, 40 ms: that is in both rows, and `--check` looks at the other broker's.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import socket
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import paho.mqtt.client as paho
from harness import machine, mosquitto, print_table
from paho.mqtt.enums import CallbackAPIVersion

from glec_fast import MQTTConfig, MQTTManager

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

BROKERS = {"default": False, "nodelay": True}
DEVICE_ID = "DTG-BENCH"
COMMANDS = f"glec/dtg/{DEVICE_ID}/commands"
TIMEOUT_S = 20.0
# What --check allows, of QoS 1 and 2, with the disk synced.
P50_BAR_MS, P99_BAR_MS = 5.0, 20.0
HEADER = ("vehicle", "broker", "QoS", "p50 ms", "p90 ms", "p99 ms", "max ms")


def without_delay(_client: object, _userdata: object, sock: socket.socket) -> None:
    """Else a PUBLISH waits in the requester's own kernel for the acknowledgement of the PUBACK before it."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def requests(port: int, qos: int, count: int, results: Any) -> None:
    """The requester's process: times of all round trips, in seconds."""
    replied, subscribed = threading.Event(), threading.Event()
    client = paho.Client(CallbackAPIVersion.VERSION2, client_id=f"platform-{qos}")
    client.on_connect = lambda *_: client.subscribe(f"{COMMANDS}/echo/reply", 2)
    client.on_subscribe = lambda *_: subscribed.set()
    client.on_message = lambda *_: replied.set()
    client.on_socket_open = without_delay
    client.connect("127.0.0.1", port)
    client.loop_start()
    assert subscribed.wait(TIMEOUT_S)
    times = []
    for number in range(-count // 10, count):
        replied.clear()
        began_s = time.perf_counter()
        client.publish(f"{COMMANDS}/echo", json.dumps({"id": f"{qos}-{number}"}), qos)
        assert replied.wait(TIMEOUT_S), f"no reply to {number}"
        # The first tenth warms up.
        if number >= 0:
            times.append(time.perf_counter() - began_s)
    client.disconnect()
    client.loop_stop()
    results.put(times)


def measured(port: int, qos: int, count: int) -> list[float]:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=requests, args=(port, qos, count, results))
    process.start()
    times: list[float] = results.get(timeout=TIMEOUT_S * 10)
    process.join()
    return times


def by_glec(port: int, directory: Path, qos: int, count: int) -> list[float]:
    config = MQTTConfig(f"tcp://127.0.0.1:{port}", DEVICE_ID, queue_path=directory / f"{qos}.db", status_interval_s=0)
    with MQTTManager(config) as manager:
        manager.command("echo")(lambda _arguments, context: context.id)
        manager.connect()
        assert manager.subscribe("ready", print).wait_granted(TIMEOUT_S)
        return measured(port, qos, count)


def by_paho(port: int, _directory: Path, qos: int, count: int) -> list[float]:
    ready = threading.Event()
    client = paho.Client(CallbackAPIVersion.VERSION2, client_id="echo")
    client.on_subscribe = lambda *_: ready.set()
    client.on_socket_open = without_delay
    client.on_message = lambda _client, _userdata, message: client.publish(f"{message.topic}/reply", b"", qos)
    client.connect("127.0.0.1", port)
    client.subscribe(f"{COMMANDS}/echo", 2)
    client.loop_start()
    assert ready.wait(TIMEOUT_S)
    try:
        return measured(port, qos, count)
    finally:
        client.disconnect()
        client.loop_stop()


def rows(count: int, qos_levels: Sequence[int]) -> Iterator[tuple[str, str, int, list[float]]]:
    for name, nodelay in BROKERS.items():
        with tempfile.TemporaryDirectory() as folder, mosquitto(nodelay=nodelay) as broker:
            for qos in qos_levels:
                for vehicle, measure in (("glec", by_glec), ("echo", by_paho)):
                    yield vehicle, name, qos, sorted(measure(broker.port, Path(folder), qos, count))


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--count", type=int, default=1000, help="commands of each row (default: 1000)")
    arguments.add_argument(
        "--check", action="store_true", help="fail where a row of glec and nodelay is above the bars"
    )
    options = arguments.parse_args()
    print(machine())
    table, is_good = [], True
    for vehicle, broker, qos, times in rows(options.count, (1, 2)):
        cuts = [1000 * each for each in statistics.quantiles(times, n=100)]
        p50_ms, p90_ms, p99_ms = cuts[49], cuts[89], cuts[98]
        if vehicle == "glec" and BROKERS[broker]:
            is_good = is_good and p50_ms <= P50_BAR_MS and p99_ms <= P99_BAR_MS
        table.append(
            (vehicle, broker, str(qos), *(f"{each:.2f}" for each in (p50_ms, p90_ms, p99_ms, 1000 * times[-1])))
        )
    print_table("request to reply", HEADER, table)
    return 0 if is_good or not options.check else 1


if __name__ == "__main__":
    sys.exit(main())
