"""Durable publishers that one could pick: rate, CPU and bytes written, then what kills and cut links lose and double.

    glec-fast        paho's API with store="queue.db"
    glec 3.1.1       the same with MQTT 3.1.1, as all but mqttium speak it
    glec unwaited    the same with wait_for_disk=False: QoS 2 too is on disk soon after publish returns, not before
    sqlite3          a paho program with sqlite3, as the specification's pseudo-code goes (baseline_manager.py)
    reliomq          DurableMode; its Relay runs beside it, and costs are the sender's alone
    mqttium          with SqliteInflightStore
    robmqtt          as its quick start has it
    Paho C           MQTTAsync with its default persistence, files, and sendWhileDisconnected

Each from its own virtual environment (--install makes them), each as its documentation has it; what was set is in
durable/with_*.py. One mosquitto. For the rates a contender publishes --messages and waits until the broker has all. For
the losses it publishes 500 messages a second through a link, and is killed with SIGKILL --kills times; each second time
the link is cut before. "Accepted" is what it said so of before it was killed; a last life may then send what is left.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from durable.plot import in_svg
from harness import BenchError, machine, mosquitto, print_table

from glec_fast.testbed.link import Link
from glec_fast.testbed.subscriber import Subscriber

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parent / "durable"
ENVIRONMENTS = Path(__file__).parents[1] / "build" / "durable-peers"
LONG_QUEUE = "max_queued_messages 1000000\n"
TOPIC = "bench/durable"
NUMBER = re.compile(rb'"number": ?(\d+)')
START_TIMEOUT_S, RATE_TIMEOUT_S = 30.0, 400.0
# A last life that brings nothing new for so long has nothing more.
QUIET_S, LAST_LIFE_S = 20.0, 600.0
SEED = 1
HEADER = ("contender", "QoS", "msg/s", "CPU us/msg", "written B/msg", "accepted", "lost", "doubled")


class Contender(NamedTuple):
    """package: on PyPI; None where it is this repository's own environment. program: of HERE."""

    name: str
    package: str | None
    program: str
    qos: tuple[int, ...] = (1, 2)

    def python(self) -> str:
        if self.package is None:
            return sys.executable
        return str(ENVIRONMENTS / self.package.partition("=")[0] / "bin" / "python")


CONTENDERS = (
    Contender("glec-fast", None, "with_glec.py"),
    Contender("glec 3.1.1", None, "with_glec_3_1_1.py"),
    Contender("glec unwaited", None, "with_glec_unwaited.py", qos=(2,)),
    Contender("sqlite3", None, "with_sqlite3.py"),
    Contender("reliomq", "reliomq==0.6.2", "with_reliomq.py", qos=(1,)),
    Contender("mqttium", "mqttium==1.2.1", "with_mqttium.py"),
    Contender("robmqtt", "robmqtt==1.0.0", "with_robmqtt.py"),
    Contender("Paho C", None, "with_paho_c.c"),
)


def command_of(contender: Contender, build: Path) -> list[str]:
    """The start of its command line. Raises BenchError where it is not there."""
    program = HERE / contender.program
    if program.suffix == ".c":
        compiler = shutil.which("cc")
        executable = build / program.stem
        arguments = ["-O2", "-pthread", "-o", str(executable), str(program), "-lpaho-mqtt3a"]
        if compiler is None or subprocess.run([compiler, *arguments], capture_output=True).returncode:
            raise BenchError("it does not compile: apt-get install gcc libpaho-mqtt-dev")
        return [str(executable)]
    if not Path(contender.python()).exists():
        raise BenchError("it is not installed: run with --install")
    return [contender.python(), str(program)]


def install(contenders: list[Contender]) -> None:
    for contender in contenders:
        if contender.package is not None and not Path(contender.python()).exists():
            place = Path(contender.python()).parents[1]
            subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
            subprocess.run([contender.python(), "-m", "pip", "install", "--quiet", contender.package], check=True)


@contextmanager
def relay_of(contender: Contender, command: list[str], port: int) -> Iterator[None]:
    """What a contender needs beside it."""
    if contender.name != "reliomq":
        yield
        return
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "bufsize": 0}
    with subprocess.Popen([*command, "relay", str(port)], **pipes, stderr=subprocess.DEVNULL) as relay:
        assert relay.stdout is not None
        try:
            if relay.stdout.readline() != b"ready\n":
                raise BenchError("its relay did not start")
            time.sleep(1)
            yield
        finally:
            relay.kill()


def rate(contender: Contender, command: list[str], qos: int, messages: int, directory: str | None) -> dict[str, float]:
    with (
        mosquitto(nodelay=False) as broker,
        tempfile.TemporaryDirectory(dir=directory) as state,
        relay_of(contender, command, broker.port),
    ):
        words = [*command, "rate", str(broker.port), state, str(qos), "0", str(messages)]
        try:
            done = subprocess.run(words, capture_output=True, text=True, timeout=RATE_TIMEOUT_S, cwd=state)
        except subprocess.TimeoutExpired:
            raise BenchError(f"{messages} messages took more than {RATE_TIMEOUT_S:.0f} s") from None
    if done.returncode != 0:
        raise BenchError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "it broke down")
    figures = json.loads(done.stdout.splitlines()[-1])
    return {
        "rate_msg_s": messages / figures["wall_s"],
        "cpu_us_per_message": figures["cpu_s"] * 1e6 / messages,
        "write_bytes_per_message": figures["write_bytes"] / messages,
    }


def number_of(_topic: str, payload: bytes) -> int | None:
    found = NUMBER.search(payload)
    return None if found is None else int(found[1])


class Life:
    """One process, until it is killed."""

    def __init__(self, command: list[str], port: int, state: str, qos: int, first: int, count: int) -> None:
        words = [*command, "life", str(port), state, str(qos), str(first), str(count)]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        # Unbuffered: what `kill` reads must not be in a buffer of this one.
        self._process = subprocess.Popen(words, **pipes, bufsize=0, cwd=state)
        assert self._process.stdout is not None
        self._first: list[bytes] = []
        said = self._process.stdout.readline()
        if said == b"ready\n" and count:
            # It is killed at its work, not before.
            said = self._process.stdout.readline()
            self._first = [said]
        if not said:
            self._process.kill()
            self._process.communicate()
            raise BenchError("it did not start again")

    def kill(self) -> list[int]:
        """What it said that it had accepted."""
        self._process.kill()
        said, _ = self._process.communicate()
        # The last line may be cut.
        return [int(line) for line in (*self._first, *said.split(b"\n")[:-1])]


def trouble(contender: Contender, command: list[str], qos: int, kills: int, directory: str | None) -> dict[str, int]:
    chance = random.Random(SEED)
    accepted: set[int] = set()
    with (
        mosquitto(nodelay=False, extra=LONG_QUEUE) as broker,
        tempfile.TemporaryDirectory(dir=directory) as state,
        Subscriber(broker, f"{TOPIC}/#", identity=number_of) as subscriber,
        Link((broker.host, broker.port)) as link,
        relay_of(contender, command, broker.port),
    ):
        following = 0
        for kill in range(kills):
            life = Life(command, link.port, state, qos, following, 1_000_000)
            time.sleep(chance.uniform(0.1, 0.4))
            if kill % 2:
                link.cut()
                time.sleep(chance.uniform(0.0, 0.3))
                if kill % 4 == 1:
                    link.restore()
                    time.sleep(chance.uniform(0.0, 0.3))
            said = life.kill()
            link.restore()
            accepted.update(said)
            # The one behind the last may have been accepted, and was not said: its number is used for no other.
            following = (said[-1] if said else following) + 2
        last = Life(command, link.port, state, qos, following, 0)
        wait_until_quiet(subscriber, accepted)
        last.kill()
        if not subscriber.wait_for_end(START_TIMEOUT_S):
            raise BenchError("the counting subscriber did not see the end")
        tally = Counter[Any]()
        for (number, _), count in subscriber.tally.items():
            tally[number] += count
    lost = sum(number not in tally for number in accepted)
    return {"accepted": len(accepted), "lost": lost, "doubled": sum(count > 1 for count in tally.values())}


def wait_until_quiet(subscriber: Subscriber, accepted: set[int]) -> None:
    ends_s = time.monotonic() + LAST_LIFE_S
    seen, changed_s = -1, time.monotonic()
    while time.monotonic() < ends_s and time.monotonic() < changed_s + QUIET_S:
        arrived = {number for number, _ in list(subscriber.tally)}
        if accepted <= arrived:
            return
        if len(subscriber.arrivals) != seen:
            seen, changed_s = len(subscriber.arrivals), time.monotonic()
        time.sleep(0.2)


def measure(contender: Contender, qos: int, args: argparse.Namespace, build: Path) -> dict[str, Any]:
    result: dict[str, Any] = {"contender": contender.name, "qos": qos}
    try:
        command = command_of(contender, build)
        rounds = [rate(contender, command, qos, args.messages, args.directory) for _ in range(args.rounds)]
        result |= {key: statistics.median(each[key] for each in rounds) for key in rounds[0]}
        if args.kills:
            result |= trouble(contender, command, qos, args.kills, args.directory)
    except BenchError as error:
        result["failed"] = str(error)
    return result


def cells(result: dict[str, Any]) -> list[str]:
    def cell(key: str) -> str:
        return f"{result[key]:,.0f}" if key in result else "-"

    keys = ("rate_msg_s", "cpu_us_per_message", "write_bytes_per_message", "accepted", "lost", "doubled")
    return [result["contender"], str(result["qos"]), *map(cell, keys)]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [each.name for each in CONTENDERS]
    parser.add_argument("--contenders", default=",".join(names), help="(default: all)")
    parser.add_argument("--qos", default="1,2", help="(default: 1,2)")
    parser.add_argument("--messages", type=int, default=1_000, help="for the rates (default: 1000)")
    parser.add_argument("--rounds", type=int, default=3, help="of the rates (default: 3)")
    parser.add_argument("--kills", type=int, default=50, help="(default: 50)")
    parser.add_argument("--directory", help="where queue files go; written bytes need a real disk, not tmpfs")
    parser.add_argument("--install", action="store_true", help="make the contenders' virtual environments")
    parser.add_argument("--plot", type=Path, help="write the rates, with what was lost and doubled, as SVG")
    parser.add_argument("--json", type=Path, help="write all figures")
    args = parser.parse_args()
    args.contenders = [each for each in CONTENDERS if each.name in args.contenders.split(",")]
    return args


def main() -> int:
    args = parse_arguments()
    if args.install:
        install(args.contenders)
    results = []
    with tempfile.TemporaryDirectory() as build:
        for qos in map(int, args.qos.split(",")):
            for contender in args.contenders:
                if qos in contender.qos:
                    results.append(measure(contender, qos, args, Path(build)))
                    print(" ".join(cells(results[-1])), results[-1].get("failed", ""), file=sys.stderr, flush=True)
    title = f"{args.messages} messages of 300 bytes, median of {args.rounds} rounds; then {args.kills} kills"
    print_table(title, HEADER, [cells(each) for each in results])
    report = {"machine": machine(), "python": platform.python_version(), "kills": args.kills, "results": results}
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    if args.plot:
        args.plot.write_text(in_svg(report))
    return 1 if any("failed" in each for each in results) else 0


if __name__ == "__main__":
    sys.exit(main())
