"""What it costs a connected manager to be looked at once a second by `glec-fast top`, or once a minute by an exporter.

Prints the CPU time of a look for the program that is asked, and for the one that asks and draws, and what that is of a
core. The program publishes ten messages a second meanwhile, and its own CPU time without anybody asking is taken off.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import tempfile
import time
from pathlib import Path

from glec_fast import MQTTConfig, MQTTManager
from glec_fast.testbed.broker import Broker

PERIOD_S = 0.1


def look(path: Path, count: int, result: object) -> None:
    from rich.console import Console

    from glec_fast.cli.service_client import ask
    from glec_fast.cli.top import Page

    page, console = Page(), Console(file=io.StringIO(), width=80, height=24, force_terminal=True)
    started_s = time.process_time()
    for number in range(count):
        page.take(ask(path, "metrics"), float(number), ask(path, "log")["lines"])
        console.print(page.fitted(24))
    result.put((time.process_time() - started_s) / count)  # type: ignore[attr-defined]


def publish(manager: MQTTManager, seconds: float) -> float:
    """CPU seconds a second."""
    started_s, ends_s = time.process_time(), time.monotonic() + seconds
    while time.monotonic() < ends_s:
        manager.publish("glec/dtg/D/telemetry", "x" * 250, 1)
        time.sleep(PERIOD_S)
    return (time.process_time() - started_s) / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--looks", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=5.0, help="without anybody asking")
    arguments = parser.parse_args()
    directory = Path(tempfile.mkdtemp())
    context = multiprocessing.get_context("spawn")
    result = context.Queue()
    path = directory / "ask.sock"
    with Broker(directory) as broker:
        config = MQTTConfig(broker.url, "D", queue_path=directory / "queue.db", metrics_socket=path)
        with MQTTManager(config) as manager:
            manager.connect()
            alone = publish(manager, arguments.seconds)
            child = context.Process(target=look, args=(path, arguments.looks, result))
            started_s, began_s = time.process_time(), time.monotonic()
            child.start()
            while child.is_alive():
                publish(manager, PERIOD_S)
            spent = time.process_time() - started_s - alone * (time.monotonic() - began_s)
            asked, drawn = spent / arguments.looks, result.get()
    for who, seconds in (("the program that is asked", asked), ("the one that asks and draws", drawn)):
        print(f"{who:28} {seconds * 1e6:8,.0f} us a look, {seconds * 100:.2f} % of a core once a second")


if __name__ == "__main__":
    main()
