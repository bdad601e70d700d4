"""The demo's messages through each broker that is there, under each kind of trouble: what was lost, what came twice.

    python -m support.broker_matrix [--only NAME] [--moves COUNT] [--markdown FILE] [--json FILE]

The vehicle is the product's manager, with MQTT 3.1.1 and, where the broker speaks it, MQTT 5; each second of the demo's
drive is a telemetry (QoS 0), an inference (1) and an alert (2). The listener is paho, with a session of its own; it is
away while its broker is killed, so that what paho makes of that is no part of the figures.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import signal
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import glec_fast.engine.routes
from glec_fast import MQTTConfig, MQTTManager
from glec_fast.cli.demo.drive import Drive, Kind
from glec_fast.cli.demo.verdict import identify
from glec_fast.testbed import ToolError
from glec_fast.testbed.link import Link
from glec_fast.testbed.subscriber import Login, Subscriber
from support.foreign_brokers import KINDS, Cluster, ForeignBroker
from support.packet_tape import Tape, TappedLink

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

KINDS_SENT = (Kind.TELEMETRY, Kind.INFERENCE, Kind.ALERT)
SECONDS = 200
CUTS = 20
FLUSH_TIMEOUT_S = 180.0
ARRIVAL_TIMEOUT_S = 20.0
# ejabberd 23.01 refuses a session that has moved away and comes back, for as long as it is asked again at once.
CLUSTER_RETRY_MS = 2000
_POLL_S = 0.02
_START_MS = 1_700_000_000_000


@dataclass
class Cell:
    """By QoS: how many were published, lost and came again; how many the ledger has; what is said of the broker."""

    broker: str
    version: str
    trouble: str
    published: dict[str, int] = field(default_factory=dict)
    lost: dict[str, int] = field(default_factory=dict)
    doubled: dict[str, int] = field(default_factory=dict)
    in_doubt: int = 0
    weaknesses: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    failure: str = ""
    # Of what was lost or came again with QoS 1 or 2: how many had which packets, see `Tape.history`.
    packets: list[dict[str, Any]] = field(default_factory=list)

    def figures(self) -> str:
        """Lost/doubled by QoS."""
        if not self.lost:
            return f"failed: {self.failure}"
        shown = "; ".join(f"{self.lost[qos]}/{self.doubled[qos]}" for qos in ("0", "1", "2"))
        return shown + (f" ({self.failure})" if self.failure else "")


class Run:
    """One cell: a vehicle, its links, and who listens."""

    def __init__(
        self,
        vehicle_s: list[ForeignBroker],
        listens_at: ForeignBroker,
        login: Login,
        version: int,
        directory: Path,
        stack: ExitStack,
    ) -> None:
        self.tape = Tape(version)
        self.links: list[Link] = [
            stack.enter_context(TappedLink((each.host, each.port), self.tape)) for each in vehicle_s
        ]
        ear = stack.enter_context(TappedLink((listens_at.host, listens_at.port), self.tape, is_listener=True))
        self.dice = random.Random(version)
        self.samples = list(Drive(seed=7, duration_s=SECONDS).samples())[:SECONDS]
        self.name = f"M{random.randrange(1 << 40):x}"
        config = MQTTConfig(
            client_id=self.name,
            broker_urls=[f"tcp://127.0.0.1:{link.port}" for link in self.links],
            username=login.username,
            password=login.password,
            queue_path=directory / "queue.db",
            protocol_version=version,
            retry_initial_delay_ms=50 if len(vehicle_s) == 1 else CLUSTER_RETRY_MS,
            retry_max_delay_ms=500 if len(vehicle_s) == 1 else CLUSTER_RETRY_MS,
            connection_timeout_s=10,
            status_interval_s=0,
            keepalive_s=10,
            wait_for_disk=False,
        )
        self.subscriber = Subscriber(
            ear, f"glec/dtg/{self.name}/#", client_id=f"{self.name}-listener", identity=identify, login=login
        )
        self.subscriber.start()
        stack.callback(self.subscriber.leave)
        self.manager = MQTTManager(config)
        stack.callback(self.manager.disconnect)
        self.sent: dict[tuple[str, int], int] = {}

    def publish(self, first: int = 0, count: int = SECONDS) -> None:
        for number in range(first, first + count):
            sample = self.samples[number % SECONDS]
            for kind in KINDS_SENT:
                timestamp_ms = _START_MS + number * 1000
                payload = {"timestamp": timestamp_ms, "deviceId": self.name, "speed": sample.speed_kmh}
                self.manager.publish(f"glec/dtg/{self.name}/{kind.topic}", payload, kind.qos)
                self.sent[kind.topic, timestamp_ms] = kind.qos

    def flush(self) -> None:
        if not self.manager.flush(FLUSH_TIMEOUT_S):
            raise TimeoutError(f"{self.manager.get_metrics().queue_size} messages wait after {FLUSH_TIMEOUT_S:g} s")

    def await_connection(self) -> None:
        deadline_s = time.monotonic() + FLUSH_TIMEOUT_S
        while not self.manager.is_connected():
            if time.monotonic() > deadline_s:
                raise TimeoutError("no connection")
            time.sleep(_POLL_S)

    def judge(self, cell: Cell) -> None:
        def copies() -> dict[tuple[str, int], int]:
            found: dict[tuple[str, int], int] = {}
            for (identity, _qos), count in dict(self.subscriber.tally).items():
                if identity in self.sent:
                    found[identity] = found.get(identity, 0) + count  # type: ignore[index]
            return found

        total, since_s = -1, time.monotonic()
        while time.monotonic() - since_s < (1.0 if len(copies()) == len(self.sent) else ARRIVAL_TIMEOUT_S):
            if (now := sum(copies().values())) != total:
                total, since_s = now, time.monotonic()
            time.sleep(_POLL_S)
        found = copies()
        for qos in (0, 1, 2):
            of_qos = [identity for identity, each in self.sent.items() if each == qos]
            cell.published[str(qos)] = len(of_qos)
            cell.lost[str(qos)] = sum(identity not in found for identity in of_qos)
            cell.doubled[str(qos)] = sum(found.get(identity, 1) - 1 for identity in of_qos)
            if qos:
                lost = [identity for identity in of_qos if identity not in found]
                doubled = [identity for identity in of_qos if found.get(identity, 1) > 1]
                cell.packets += self.tape.summary(f"QoS {qos} lost", lost)
                cell.packets += self.tape.summary(f"QoS {qos} more than once", doubled)
        metrics = self.manager.get_metrics()
        cell.in_doubt, cell.weaknesses = metrics.in_doubt, dict(metrics.weaknesses)


# ---- the troubles


def online(run: Run, _broker: ForeignBroker) -> None:
    run.manager.connect()
    run.await_connection()
    run.publish()
    run.flush()


def offline(run: Run, _broker: ForeignBroker) -> None:
    run.publish()
    run.manager.connect()
    run.flush()


def cuts(run: Run, _broker: ForeignBroker) -> None:
    """Each at a random byte of what is sent or answered."""
    (link,) = run.links
    run.manager.connect()
    step = SECONDS // CUTS
    for number in range(CUTS):
        run.await_connection()
        link.cut_after(run.dice.randrange(1, 3000), "up" if run.dice.random() < 0.7 else "down")
        run.publish(number * step, step)
        link.wait_for(lambda link: link.is_down, 0.5)
        link.cut()
        link.restore()
    run.flush()


def killed(run: Run, broker: ForeignBroker) -> None:
    """In the middle of a flush."""
    (link,) = run.links
    run.publish()
    link.cut_after(run.dice.randrange(10_000, 30_000), "up")
    run.manager.connect()
    link.wait_for(lambda link: link.is_down, FLUSH_TIMEOUT_S)
    run.subscriber.leave()
    broker.kill()
    run.tape.mark("[broker killed]")
    broker.start()
    for tries_left in range(5, -1, -1):
        try:
            run.subscriber.start()
            break
        except ToolError:
            # It listens before it answers.
            if not tries_left:
                raise
    link.restore()
    run.flush()


TROUBLES: dict[str, Callable[[Run, ForeignBroker], None]] = {
    "online": online,
    "offline": offline,
    f"{CUTS} cuts": cuts,
    "broker killed": killed,
}
WAYS = ("link cut", "SIGTERM", "SIGKILL")


def cell_of(kind: type[ForeignBroker], version: int, trouble: str) -> Cell:
    cell = Cell(kind.name, {4: "3.1.1", 5: "5"}[version], trouble)
    with measured(cell) as (scratch, stack):
        broker = stack.enter_context(kind(scratch / "broker"))
        run = Run([broker], broker, broker.login, version, scratch, stack)
        try:
            TROUBLES[trouble](run, broker)
        finally:
            run.judge(cell)
    return cell


def moved(version: int, how: str, moves: int) -> Cell:
    """From node 1 to node 2 and back, so often, each time in the middle of a flush; the listener is on node 2."""
    cell = Cell(Cluster.name, {4: "3.1.1", 5: "5"}[version], f"moved {moves} times: {how}")
    with measured(cell) as (scratch, stack):
        cluster = stack.enter_context(Cluster(scratch))
        run = Run(cluster.nodes, cluster.nodes[1], cluster.login, version, scratch, stack)  # type: ignore[arg-type]
        links = run.links
        try:
            run.manager.connect()
            for move in range(moves):
                run.await_connection()
                here, there = links[move % 2], links[1 - move % 2]
                there.restore()
                here.cut_after(run.dice.randrange(1, 1500), "up" if run.dice.random() < 0.7 else "down")
                run.publish(move * 10, 10)
                here.wait_for(lambda link: link.is_down, 0.5)
                here.cut()
                if how != "link cut" and move % 2 == 0:
                    (cluster.nodes[0].stop if how == "SIGTERM" else cluster.nodes[0].kill)()
                    run.tape.mark(f"[node 1 ended by {how}]")
                    cluster.nodes[0].start()
            there.restore()
            run.flush()
        finally:
            run.judge(cell)
    return cell


@contextmanager
def measured(cell: Cell) -> Iterator[tuple[Path, ExitStack]]:
    """A folder and a stack for a cell, whose failure is written into it."""
    began_s = time.monotonic()
    try:
        with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
            yield Path(scratch), stack
    except Exception as error:
        cell.failure = f"{type(error).__name__}: {error}".splitlines()[0][:160]
    cell.seconds = round(time.monotonic() - began_s, 1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--only", default="", help="brokers whose name has this in it")
    parser.add_argument("--moves", type=int, default=20)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    logging.getLogger("glec_fast").setLevel(logging.CRITICAL)
    # As Ctrl-C, so that no broker outlives it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    glec_fast.engine.routes.RETURN_MIN_S = 3600.0  # the moves are the matrix's
    cells: list[Cell] = []

    def note(cell: Cell) -> None:
        cells.append(cell)
        what = f"{cell.broker}, MQTT {cell.version}, {cell.trouble}"
        sys.stdout.write(f"{what}: {cell.figures()}, {cell.in_doubt} in doubt {cell.weaknesses}\n")
        sys.stdout.flush()
        write(cells, arguments.markdown, arguments.json)

    for kind in KINDS:
        if arguments.only.lower() not in kind.name.lower():
            continue
        if not kind.is_installed():
            sys.stdout.write(f"{kind.name}: not installed, see make brokers\n")
            continue
        for version in kind.versions:
            for trouble in TROUBLES:
                note(cell_of(kind, version, trouble))
    if arguments.only.lower() in Cluster.name and any(
        kind.name == "ejabberd" and kind.is_installed() for kind in KINDS
    ):
        for version in (4, 5):
            for how in WAYS:
                note(moved(version, how, arguments.moves))
    return 0


def write(cells: list[Cell], markdown: Path | None, as_json: Path | None) -> None:
    if as_json is not None:
        as_json.write_text(json.dumps([asdict(cell) for cell in cells], indent=1) + "\n")
    if markdown is not None:
        lines = [
            "| broker | MQTT | trouble | lost/doubled at QoS 0; 1; 2 | in doubt | weaknesses that were told |",
            "|---|---|---|---|---|---|",
        ]
        for cell in cells:
            weak = ", ".join(f"{name} {count}" for name, count in cell.weaknesses.items())
            row = cell.broker, cell.version, cell.trouble, cell.figures(), str(cell.in_doubt), weak
            lines.append(f"| {' | '.join(row)} |")
        lines += ["", "| broker | MQTT | trouble | what | how many | packets |", "|---|---|---|---|---|---|"]
        for cell in cells:
            for each in cell.packets:
                row = cell.broker, cell.version, cell.trouble, each["what"], str(each["count"]), each["packets"]
                lines.append(f"| {' | '.join(row)} |")
        markdown.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    sys.exit(main())
