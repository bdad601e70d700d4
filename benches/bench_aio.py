"""Publishing on asyncio: AsyncMQTTManager, with its queue on disk, beside aiomqtt and mqttium, which are in memory.

QoS 1, --sequence messages each awaited before the next is begun, and --messages of which --tasks are awaited at once:

  on disk        until `publish` has returned: no crash loses the message. The others promise that of no message.
  acknowledged   until the broker has acknowledged it, which is when aiomqtt's `publish` returns

cpu is the process's, of --tasks at once, in microseconds a message: where a machine has other work to do it tells more
than the rate.

`bare` has the least that is on disk before it is awaited no longer: a thread that writes the payloads which wait over a
file that is as long already, calls fdatasync and wakes the loop. Of what a queue is for it does nothing.

`asyncio` has the least that asyncio itself takes: a coroutine a message, a future until `publish` returns and one until
the acknowledgement, and all that are due ended in one callback of the loop. No disk, no broker.

Each contender in a process of its own, in turn, round by round, against one mosquitto; the figures are medians over
--rounds. And what a flush of --backlog messages does to a loop: the longest a callback took (as asyncio's debug mode
measures it), the most CPU that one took, and the longest that a task which sleeps 1 ms was late. On a machine that has
other work to do, the CPU says what is ours.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from harness import BenchError, machine, mosquitto, print_table

from glec_fast import MQTTConfig
from glec_fast.aio import AsyncMQTTManager

TIMEOUT_S = 600.0
PAYLOAD = b"x" * 300
TOPIC = "bench/aio"
CONTENDERS = ("glec", "glec-uvloop", "aiomqtt", "mqttium", "bare", "asyncio")
FIGURES = ("sequence_on_disk", "sequence", "concurrent_on_disk", "concurrent", "cpu_us")
_BARE_FILE_BYTES = 1 << 20
_TICK_S = 0.001

Publish = Callable[[], Awaitable[None]]


async def in_sequence(publish: Publish, messages: int) -> float:
    started_s = time.perf_counter()
    for _ in range(messages):
        await publish()
    return messages / (time.perf_counter() - started_s)


async def concurrently(publish: Publish, messages: int, tasks: int) -> float:
    remaining = iter(range(messages))

    async def work() -> None:
        for _ in remaining:
            await publish()

    started_s = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(tasks)))
    return messages / (time.perf_counter() - started_s)


async def measure(publish: Publish, options: argparse.Namespace, suffix: str = "") -> dict[str, float]:
    await in_sequence(publish, 20)
    in_sequence_msg_s = await in_sequence(publish, options.sequence)
    started_cpu_s = time.process_time()
    concurrent_msg_s = await concurrently(publish, options.messages, options.tasks)
    cpu_us = (time.process_time() - started_cpu_s) / options.messages * 1e6
    return {
        f"sequence{suffix}": in_sequence_msg_s,
        f"concurrent{suffix}": concurrent_msg_s,
        f"cpu_us{suffix}": cpu_us,
    }


async def run_glec(port: int, directory: Path, options: argparse.Namespace) -> dict[str, float]:
    async with AsyncMQTTManager(glec_config(port, directory)) as manager:

        async def publish() -> None:
            await manager.publish(TOPIC, PAYLOAD, 1)

        async def publish_and_await() -> None:
            await (await manager.publish(TOPIC, PAYLOAD, 1))

        while not manager.is_connected():
            await asyncio.sleep(_TICK_S)
        on_disk = await measure(publish, options, "_on_disk")
        await manager.flush()
        return {**on_disk, **await measure(publish_and_await, options)}


class BareLog:
    """Payloads on disk, by a thread of its own."""

    def __init__(self, path: Path) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: list[asyncio.Future[None]] = []
        self._is_ended = False
        self._work = threading.Condition()
        self._file = os.open(path, os.O_RDWR | os.O_CREAT)
        os.pwrite(self._file, bytes(_BARE_FILE_BYTES), 0)
        os.fsync(self._file)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    async def publish(self) -> None:
        future = self._loop.create_future()
        with self._work:
            self._waiting.append(future)
            self._work.notify()
        await future

    def end(self) -> None:
        with self._work:
            self._is_ended = True
            self._work.notify()
        self._thread.join()
        os.close(self._file)

    def _run(self) -> None:
        at = 0
        while True:
            with self._work:
                self._work.wait_for(lambda: self._waiting or self._is_ended)
                futures, self._waiting = self._waiting, []
            if not futures:
                return
            data = PAYLOAD * len(futures)
            at = at if at + len(data) <= _BARE_FILE_BYTES else 0
            os.pwrite(self._file, data, at)
            os.fdatasync(self._file)
            at += len(data)
            self._loop.call_soon_threadsafe(self.tell, futures)

    @staticmethod
    def tell(futures: list[asyncio.Future[None]]) -> None:
        for future in futures:
            future.set_result(None)


async def run_bare(_port: int, directory: Path, options: argparse.Namespace) -> dict[str, float]:
    log = BareLog(directory / "bare")
    try:
        return await measure(log.publish, options, "_on_disk")
    finally:
        log.end()


class Futures:
    """Those that the loop's next round ends."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: list[asyncio.Future[None]] = []

    def new(self) -> asyncio.Future[None]:
        if not self._waiting:
            self._loop.call_soon(self._end)
        future = self._loop.create_future()
        self._waiting.append(future)
        return future

    def _end(self) -> None:
        futures, self._waiting = self._waiting, []
        BareLog.tell(futures)


async def run_asyncio(_port: int, _directory: Path, options: argparse.Namespace) -> dict[str, float]:
    futures = Futures()

    async def publish() -> asyncio.Future[None]:
        await futures.new()
        return futures.new()

    async def publish_and_await() -> None:
        await (await publish())

    return await measure(publish_and_await, options)


async def run_aiomqtt(port: int, _directory: Path, options: argparse.Namespace) -> dict[str, float]:
    import aiomqtt

    # It warns of more than ten calls at once, each time.
    logger = logging.getLogger("aiomqtt-bench")
    logger.setLevel(logging.ERROR)
    async with aiomqtt.Client(
        "127.0.0.1", port, max_inflight_messages=options.tasks, timeout=TIMEOUT_S, logger=logger
    ) as client:
        return await measure(lambda: client.publish(TOPIC, PAYLOAD, 1), options)


async def run_mqttium(port: int, _directory: Path, options: argparse.Namespace) -> dict[str, float]:
    from mqttium.api import AsyncClient

    client = AsyncClient(max_outbound_inflight=options.tasks)
    await client.connect("127.0.0.1", port)

    async def publish() -> None:
        receipt = await client.publish(TOPIC, PAYLOAD, qos=1)
        await receipt.wait()

    figures = await measure(publish, options)
    await client.disconnect()
    return figures


def glec_config(port: int, directory: Path, **settings: Any) -> MQTTConfig:
    return MQTTConfig(
        broker_url=f"tcp://127.0.0.1:{port}",
        client_id="DTG-AIO",
        queue_path=directory / "queue.db",
        queue_max_size=1_000_000,
        queue_max_bytes=1 << 30,
        status_interval_s=0,
        **settings,
    )


async def run_flush(port: int, directory: Path, options: argparse.Namespace) -> dict[str, float]:
    """The backlog is there; the loop is watched from the connection on until it is flushed."""
    loop = asyncio.get_running_loop()
    callbacks_s: list[float] = []
    cpu_s: list[float] = []
    late_s: list[float] = []
    run = asyncio.Handle._run

    def timed(handle: asyncio.Handle) -> None:
        started_s, started_cpu_s = time.perf_counter(), time.thread_time()
        run(handle)
        cpu_s.append(time.thread_time() - started_cpu_s)
        callbacks_s.append(time.perf_counter() - started_s)

    async def tick() -> None:
        while True:
            due_s = loop.time() + _TICK_S
            await asyncio.sleep(_TICK_S)
            late_s.append(loop.time() - due_s)

    async with AsyncMQTTManager(glec_config(port, directory)) as manager:
        while not manager.is_connected():
            await asyncio.sleep(0.001)
        ticking = loop.create_task(tick())
        asyncio.Handle._run = timed  # type: ignore[method-assign]
        started_s = time.perf_counter()
        is_flushed = await manager.flush(TIMEOUT_S)
        wall_s = time.perf_counter() - started_s
        asyncio.Handle._run = run  # type: ignore[method-assign]
        ticking.cancel()
    if not is_flushed:
        raise BenchError("the queue was not flushed in time")
    return {
        "flush_msg_s": options.backlog / wall_s,
        "callbacks": float(len(callbacks_s)),
        "callback_p999_ms": quantile(callbacks_s, 0.999) * 1000,
        "callback_max_ms": max(callbacks_s) * 1000,
        "callback_cpu_p999_ms": quantile(cpu_s, 0.999) * 1000,
        "callback_cpu_max_ms": max(cpu_s) * 1000,
        "late_p50_ms": quantile(late_s, 0.5) * 1000,
        "late_p999_ms": quantile(late_s, 0.999) * 1000,
        "late_max_ms": max(late_s) * 1000,
    }


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(int(len(values) * share), len(values) - 1)]


def fill(directory: Path, messages: int) -> None:
    """A queue file with a backlog, by a manager that finds no broker."""
    from glec_fast import MQTTManager

    with MQTTManager(glec_config(1, directory)) as manager:
        for _ in range(messages):
            manager.publish(TOPIC, PAYLOAD, 1)


RUNS = {
    "glec": run_glec,
    "glec-uvloop": run_glec,
    "aiomqtt": run_aiomqtt,
    "mqttium": run_mqttium,
    "bare": run_bare,
    "asyncio": run_asyncio,
    "flush": run_flush,
}


def run_here(options: argparse.Namespace) -> None:
    """In a process of its own: what --run says; prints its figures."""
    with tempfile.TemporaryDirectory(dir=options.directory) as name:
        directory = Path(name)
        if options.run == "flush":
            fill(directory, options.backlog)
        if options.run.endswith("uvloop"):
            import uvloop

            loop = uvloop.new_event_loop()
        else:
            loop = asyncio.new_event_loop()
        try:
            asyncio.set_event_loop(loop)
            figures = loop.run_until_complete(RUNS[options.run](options.port, directory, options))
        finally:
            loop.close()
    print(json.dumps(figures))


def run_apart(name: str, port: int, options: argparse.Namespace) -> dict[str, float]:
    arguments = ["--run", name, "--port", port, "--messages", options.messages, "--sequence", options.sequence]
    arguments += ["--tasks", options.tasks, "--backlog", options.backlog]
    arguments += [] if options.directory is None else ["--directory", options.directory]
    command = [sys.executable, __file__, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S * 2, check=False)
    if done.returncode != 0:
        raise BenchError(f"{name} failed:\n{done.stderr}")
    return dict(json.loads(done.stdout))


def main() -> int:
    parser = argparse.ArgumentParser(description="Publishing on asyncio, beside aiomqtt and mqttium.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--sequence", type=int, default=300)
    parser.add_argument("--tasks", type=int, default=1000)
    parser.add_argument("--backlog", type=int, default=100_000)
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=CONTENDERS)
    parser.add_argument("--nodelay", action="store_true", help="mosquitto with set_tcp_nodelay")
    parser.add_argument("--directory", help="where the queue files are; a temporary one by default")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    parser.add_argument("--run", choices=RUNS, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    logging.getLogger("glec_fast").setLevel(logging.ERROR)
    if options.run:
        run_here(options)
        return 0
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in (*options.contenders, "flush")}
    try:
        with mosquitto(nodelay=options.nodelay) as broker:
            for _ in range(options.rounds):
                for name, figures in rounds.items():
                    figures.append(run_apart(name, broker.port, options))
    except (BenchError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    medians = {
        name: {key: statistics.median(each[key] for each in figures) for key in figures[0]}
        for name, figures in rounds.items()
    }
    if args_json(options, medians):
        return 0
    head = ("", *(key.replace("_", " ") for key in FIGURES))
    print_table("QoS 1, msg/s and us a message", head, rows_of(medians, options, {}))
    if "aiomqtt" in medians:
        print_table("Of aiomqtt's", head, rows_of(medians, options, medians["aiomqtt"]))
    flush = medians["flush"]
    print_table(
        f"A flush of {options.backlog:,} messages on the loop",
        ("", "figure"),
        [[key, f"{value:,.2f}"] for key, value in flush.items()],
    )
    return 0


def rows_of(
    medians: dict[str, dict[str, float]], options: argparse.Namespace, base: dict[str, float]
) -> list[list[str]]:
    """Each contender's figures; with a base, as a ratio to what that has for acknowledged ones."""

    def cell(figures: dict[str, float], key: str) -> str:
        if key not in figures:
            return "-"
        return f"{figures[key] / base[key.removesuffix('_on_disk')]:.2f}" if base else f"{figures[key]:,.0f}"

    return [[name, *(cell(medians[name], key) for key in FIGURES)] for name in options.contenders]


def args_json(options: argparse.Namespace, medians: dict[str, dict[str, float]]) -> bool:
    if options.json:
        print(json.dumps({"machine": machine(), "messages": options.messages, "results": medians}, indent=2))
    return bool(options.json)


if __name__ == "__main__":
    sys.exit(main())
