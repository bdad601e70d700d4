"""Beside programs in C, in turn, round by round; medians, each ratio of one round.

  tls      durable flush of QoS 1 over TLS, against ready-made packets on OpenSSL (c/ready_made.c), to mosquitto as it
           comes
  sink     the same over TCP to a server in C that acknowledges at once (c/sink.c): no broker is the limit
  publish  Client.publish in memory, and libmosquitto, to that server, until the last message is acknowledged

What is in C is compiled first. A part whose library has no headers here says so, and is left out.

    python benches/bench_beside_c.py [--rounds 5] [--parts tls,sink,publish] [--messages 20000] [--json]
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import raw_socket
from bench_flush import Contender, count_rows, positive, prefill
from harness import BENCHES, BenchError, TLSFiles, machine, make_certificates, mosquitto_for_peers, print_table
from harness import run_contender as run_in_python
from peers.catalog import GLEC, LIBMOSQUITTO, PEERS, MissingPeerError, Setup
from peers.runs import LIMITS, Setting, run_at, write_payloads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WINDOW = 1000
RUN_TIMEOUT_S = 120.0
SOURCES = BENCHES / "c"
LIBSSL = ["-DWITH_TLS", "-lssl", "-lcrypto"]


class LeftOutError(Exception):
    """A part cannot be run here; says why."""


class Run:
    """One run of this benchmark: where its files are, and what it compiled."""

    def __init__(self, args: argparse.Namespace, directory: Path) -> None:
        self.args, self.directory = args, directory
        self.packets = directory / "packets"
        flush = raw_socket.prepare(args.messages, 1)
        self.packets.write_bytes(flush.publishes)
        self.packet_bytes = flush.publish_bytes

    def compiled(self, name: str, *libraries: str) -> Path:
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            raise LeftOutError("no C compiler")
        program = self.directory / name
        command = [compiler, "-O2", "-o", str(program), str(SOURCES / f"{name}.c"), *libraries]
        done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_TIMEOUT_S, check=False)
        if done.returncode:
            raise LeftOutError(f"c/{name}.c does not compile: {done.stderr.strip().splitlines()[0]}")
        return program

    def ready_made(self, program: Path, port: int, tls: TLSFiles | None) -> dict[str, float]:
        numbers = map(str, (self.packet_bytes, self.args.messages, WINDOW))
        command = [str(program), str(port), str(self.packets), *numbers, *([] if tls is None else [str(tls.ca)])]
        done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_TIMEOUT_S, check=False)
        if done.returncode:
            raise BenchError(f"{program.name} failed: {done.stderr.strip()}")
        return dict(json.loads(done.stdout))

    def durable(self, port: int, tls: TLSFiles | None) -> dict[str, float]:
        with tempfile.TemporaryDirectory(dir=self.args.directory) as folder:
            queue_path = Path(folder) / "queue.db"
            prefill(Contender(GLEC, "glec", self.args.messages, WINDOW), 1, queue_path)
            ca = None if tls is None else tls.ca
            figures = run_in_python("glec", port, 1, self.args.messages, WINDOW, WINDOW, queue_path, ca)
            if count_rows(queue_path):
                raise BenchError("rows are left in the queue")
        return {"wall_s": figures.wall_s, "cpu_s": figures.cpu_s}

    @contextmanager
    def sink(self) -> Iterator[int]:
        """A server of c/sink.c; its port."""
        with subprocess.Popen([self.compiled("sink")], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            try:
                yield int(process.stdout.readline())
            finally:
                process.kill()


Contest = dict[str, "Callable[[], dict[str, float]]"]


@contextmanager
def contest_tls(run: Run) -> Iterator[Contest]:
    """mosquitto is started anew for each run, as it begins with empty queues then."""
    tls = make_certificates(run.directory)
    program = run.compiled("ready_made", *LIBSSL)

    def at_broker(measure: Callable[[int], dict[str, float]]) -> dict[str, float]:
        with mosquitto_for_peers(tls, nodelay=False) as (_, port):
            return measure(port)

    yield {
        "C on OpenSSL, ready-made": lambda: at_broker(lambda port: run.ready_made(program, port, tls)),
        "glec-fast, durable": lambda: at_broker(lambda port: run.durable(port, tls)),
    }


@contextmanager
def contest_sink(run: Run) -> Iterator[Contest]:
    program = run.compiled("ready_made")
    with run.sink() as port:
        yield {
            "C, ready-made": lambda: run.ready_made(program, port, None),
            "glec-fast, durable": lambda: run.durable(port, None),
        }


@contextmanager
def contest_publish(run: Run) -> Iterator[Contest]:
    setting = Setting(LIMITS["none"], True, run.args.messages, 1, run.directory)
    write_payloads(setting)
    try:
        commands = {name: PEERS[name].command(Setup(run.directory, False)) for name in (LIBMOSQUITTO, GLEC)}
    except MissingPeerError as error:
        raise LeftOutError(str(error)) from error

    def measure(name: str) -> dict[str, float]:
        figures = run_at(port, commands[name], "publish", 1, setting)
        return {"wall_s": figures["wall_s"], "cpu_s": figures["cpu_s"]}

    with run.sink() as port:
        yield {name: lambda name=name: measure(name) for name in commands}  # type: ignore[misc]


PARTS = {"tls": contest_tls, "sink": contest_sink, "publish": contest_publish}
TITLES = {
    "tls": "durable flush over TLS, QoS 1, mosquitto as it comes",
    "sink": "durable flush, QoS 1, to a server in C that acknowledges at once",
    "publish": "publish in memory, QoS 1, to that server",
}


def measure_part(name: str, run: Run) -> dict[str, Any]:
    """Rate, CPU a message, and the ratio to the first of the contest."""
    with PARTS[name](run) as contest:
        rounds = [{each: measure() for each, measure in contest.items()} for _ in range(run.args.rounds)]
    base = next(iter(contest))
    messages = run.args.messages
    return {
        each: {
            "rate_msg_s": statistics.median(messages / found[each]["wall_s"] for found in rounds),
            "cpu_us_per_message": statistics.median(found[each]["cpu_s"] * 1e6 / messages for found in rounds),
            "ratio": statistics.median(found[base]["wall_s"] / found[each]["wall_s"] for found in rounds),
        }
        for each in contest
    }


def print_part(name: str, result: dict[str, Any], args: argparse.Namespace) -> None:
    rows = [
        [each, f"{found['rate_msg_s']:,.0f}", f"{found['cpu_us_per_message']:.2f}", f"{found['ratio']:.2f}"]
        for each, found in result.items()
    ]
    title = f"{TITLES[name]}, {args.messages:,} messages, median of {args.rounds}"
    print_table(title, ("contender", "msg/s", "CPU us/msg", "of the first"), rows)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--parts", default=",".join(PARTS), help="with commas between them (default: all)")
    parser.add_argument("--messages", type=positive, default=20_000)
    parser.add_argument("--directory", help="where queue files go")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    return parser.parse_args()


def main() -> int:
    args = parse_arguments()
    report: dict[str, Any] = {}
    try:
        with tempfile.TemporaryDirectory() as directory:
            run = Run(args, Path(directory))
            for name in args.parts.split(","):
                try:
                    report[name] = measure_part(name, run)
                except LeftOutError as error:
                    report[name] = {"left out": str(error)}
                    print(f"{name} is left out: {error}", file=sys.stderr)
                    continue
                if not args.json:
                    print_part(name, report[name], args)
    except BenchError as error:
        print(error, file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps({"machine": machine(), "rounds": args.rounds, **report}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
