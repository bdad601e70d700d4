"""The demo's scenario: drive, cut the link, kill the publisher, restore the link, flush, count."""

from __future__ import annotations

import json
import os
import secrets
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from glec_fast.cli.broker_probe import ask
from glec_fast.cli.demo import DemoError
from glec_fast.cli.demo.process import ENDED, VehicleProcess, VehicleReport, file_set_bytes
from glec_fast.cli.demo.report import Progress, Report
from glec_fast.cli.demo.target import Target, parse_target
from glec_fast.cli.demo.vehicle import COMMAND, PASSWORD_VARIABLE, VehicleSettings
from glec_fast.cli.demo.verdict import Batches, Ledger, Measures, Result, identify, split
from glec_fast.fleet.config import MQTTConfig
from glec_fast.testbed.broker import Broker
from glec_fast.testbed.link import Link
from glec_fast.testbed.subscriber import Login, Subscriber
from glec_fast.tls.config import TLSConfig

if TYPE_CHECKING:
    from collections.abc import Callable

    from glec_fast.cli.demo.drive import Drive

VEHICLE_MODULE = "glec_fast.cli.demo.vehicle"
# Without --speed a drive of any length takes about this long.
DEFAULT_PLAY_S = 18.0
SHORTEST_DRIVE_MESSAGES = 20
# As long as any but a batch.
MESSAGE_BYTES = 400

CONNECT_TIMEOUT_S = 20.0
FLUSH_TIMEOUT_S = 60.0
COUNT_TIMEOUT_S = 30.0
# A living vehicle reports its queue twenty times a second.
SILENCE_TIMEOUT_S = 20.0
START_ALLOWANCE_S = 10.0
# Before now, so that no status which the manager sends by itself has the time of one of the drive's.
DRIVE_AGE_MS = 24 * 3600 * 1000

# The parts of the drive at which the link goes and comes back.
CUT_AT = 0.25
RESTORE_AT = 0.75
# Of one command, as from a platform that got no reply.
COMMAND_COPIES = 2
COMMAND_ID = "demo-1"
# How much further the vehicle may drive before the parent has acted on what it sees.
LEEWAY = 0.02


class DemoRunError(DemoError):
    """The run itself went wrong: a process broke down, or did not finish in time."""


@dataclass(frozen=True)
class DemoSettings:
    """What the command line asks for. `broker_url` None starts a broker; `speed` None fits the drive to 18 s.

    batch_s: of the drive's time, for which telemetry is gathered; 0 for each alone.
    """

    drive: Drive
    speed: float | None = None
    broker_url: str | None = None
    ca_cert: str | None = None
    username: str | None = None
    kills: int = 1
    batch_s: float = 0.0
    vehicle_module: str = VEHICLE_MODULE


def run_demo(settings: DemoSettings, report: Report) -> Result:
    """Play the scenario in a temporary directory; nothing of it is left when this returns or raises."""
    start_ms = time.time_ns() // 1_000_000 - DRIVE_AGE_MS
    ledger = Ledger.of(settings.drive.messages(start_ms))
    total = len(ledger.qos_of)
    if total < SHORTEST_DRIVE_MESSAGES:
        raise DemoError(f"the drive is too short: it makes {total} messages, the demo needs {SHORTEST_DRIVE_MESSAGES}")
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="glec-fast-demo-")))
        target, subscriber_target, broker_name = find_broker(settings, directory, stack)
        device_id = f"DTG-DEMO-{secrets.token_hex(4)}"
        if settings.broker_url is not None:
            check_broker(settings, target, device_id)
        subscriber = stack.enter_context(_subscriber(subscriber_target, device_id, settings))
        link = stack.enter_context(Link(target.address))
        duration_s = max(ledger.duration_ms / 1000, 1.0)
        speed = settings.speed or duration_s / DEFAULT_PLAY_S
        vehicle = VehicleSettings(
            broker_url=target.url_through(link.port),
            client_id=device_id,
            queue_path=str(directory / "queue.db"),
            # However fast the drive is played, none of it may be displaced by the rest.
            queue_max_size=max(10_000, total),
            drive=settings.drive,
            start_ms=start_ms,
            first_number=0,
            speed=speed,
            batch_s=settings.batch_s / speed,
            flush_timeout_s=FLUSH_TIMEOUT_S,
            ca_cert=target.ca_cert,
            username=settings.username,
            resolve=target.host if target.ca_cert else None,
            commands=COMMAND_COPIES,
        )
        report.phase(f"{broker_name}; the vehicle reaches it through a link on port {link.port}")
        scenario = Scenario(settings, vehicle, ledger, link, subscriber, report, duration_s)
        stack.callback(scenario.close)
        scenario.play()
        result = ledger.judge(subscriber.tally, scenario.measures, broker_name)
        return replace(result, batches=Batches.of(subscriber.arrivals)) if settings.batch_s else result


def check_broker(settings: DemoSettings, target: Target, device_id: str) -> None:
    """Raises DemoError where a user's broker does not take what the demo publishes, and the errors of connecting."""
    config = MQTTConfig(
        broker_url=target.url,
        client_id=f"{device_id}-probe",
        username=settings.username,
        password=os.environ.get(PASSWORD_VARIABLE) if settings.username is not None else None,
        tls_config=None if target.ca_cert is None else TLSConfig(target.ca_cert),
    )
    topic = f"glec/dtg/{device_id}/probe"
    taken = ask(config, config.client_id, topic, b"x" * MESSAGE_BYTES)
    why = next(iter(taken.refused.values()), taken.too_large)
    if not why and not taken.is_handed_on:
        why = "a subscriber is not given what is published"
    if why:
        says = f"the demo needs a broker that takes QoS 0 to 2 on {topic}: {why}"
        raise DemoError(f"{says}; see its access rules and limits, or take another")


def find_broker(settings: DemoSettings, directory: Path, stack: ExitStack) -> tuple[Target, Target, str]:
    """The broker for the vehicle, the same for the subscriber, and its name for people."""
    if settings.broker_url is not None:
        target = parse_target(settings.broker_url, settings.ca_cert)
        return target, target, f"{target.host}:{target.port}{' with TLS' if target.ca_cert else ''}"
    try:
        from glec_fast.testbed.certificates import CertificateAuthority
    except ImportError:
        # Certificates are made by a package of the extra: the rest of what is shown needs none.
        broker = stack.enter_context(Broker(directory))
        target = Target(broker.host, broker.port)
        return target, target, f"{broker.version()} without TLS, for which there is: pip install 'glec-fast[cli]'"
    authority = CertificateAuthority(directory)
    broker = stack.enter_context(Broker(directory, certificate=authority.issue_server()))
    return (
        Target(broker.host, broker.tls_port, str(authority.certificate_path)),
        Target(broker.host, broker.port),
        f"{broker.version()} with TLS on loopback",
    )


def _subscriber(target: Target, device_id: str, settings: DemoSettings) -> Subscriber:
    login = Login(settings.username, os.environ.get(PASSWORD_VARIABLE), target.ca_cert)
    return Subscriber(
        target, f"glec/dtg/{device_id}/#", client_id=f"{device_id}-counter", identity=identify, split=split, login=login
    )


class Scenario:
    """One play of the drive, over as many processes as the kills make."""

    def __init__(
        self,
        settings: DemoSettings,
        vehicle: VehicleSettings,
        ledger: Ledger,
        link: Link,
        subscriber: Subscriber,
        report: Report,
        duration_s: float,
    ) -> None:
        self.measures = Measures()
        self._settings = settings
        self._vehicle = vehicle
        self._ledger = ledger
        self._link = link
        self._subscriber = subscriber
        self._report = report
        self._total = len(ledger.qos_of)
        self._drive_s = duration_s
        self._deadline_s = time.monotonic() + self._longest_s()
        self._queue_size = 0
        self._process = self._start()

    def play(self) -> None:
        self._read_until(lambda words: words[0] == "connected", CONNECT_TIMEOUT_S, "did not reach the broker")
        self._report.phase(
            f"connected: publishing {self._total} messages, a drive of {self._drive_s:.0f} s"
            f" at {self._vehicle.speed:.3g} times its speed"
        )
        cut_at, restore_at = int(self._total * CUT_AT), int(self._total * RESTORE_AT)
        self._drive_to(cut_at)
        # Its status is behind its subscription for commands, on the one connection.
        if not self._subscriber.wait_for_count(1, COUNT_TIMEOUT_S):
            raise DemoRunError(f"nothing of the vehicle arrived within {COUNT_TIMEOUT_S:.0f} s")
        self._link.cut()
        self._report.phase(f"link cut after {len(self._ledger.begun)} messages")
        self._send_command()
        for kill in range(1, self._settings.kills + 1):
            self._drive_to(cut_at + (restore_at - cut_at) * kill // (self._settings.kills + 1))
            self._kill_and_start_again()
        self._drive_to(restore_at)
        self._report.phase(f"link restored with {self._queue_size} messages in the queue")
        self._link.restore()
        self._process.allow(self._total)
        self._read_until(lambda words: words[0] in ("done", "unflushed"), self._longest_s(), "did not finish the drive")
        self._process.wait()
        self._count()

    def close(self) -> None:
        self._process.close()

    def _start(self) -> VehicleProcess:
        settings = replace(self._vehicle, first_number=self._ledger.next_number)
        return VehicleProcess(
            self._settings.vehicle_module, settings, Path(settings.queue_path).with_name("vehicle.err")
        )

    def _drive_to(self, number: int) -> None:
        """Let the vehicle go on until it publishes message `number`. It is still on the move when this returns."""
        self._process.allow(number + max(1, int(self._total * LEEWAY)))
        if self._ledger.next_number <= number:
            self._read_until(lambda _: self._ledger.next_number > number, self._longest_s(), "stopped driving")

    def _kill_and_start_again(self) -> None:
        pid = self._process.pid
        for words in self._process.kill():
            self._take(words)
        self._process.close()
        self.measures.kills += 1
        self._report.phase(f"process {pid} killed (SIGKILL) with {self._queue_size} messages in the queue")
        self._process = self._start()
        self._report.phase(f"started again as process {self._process.pid} at message {self._ledger.next_number}")

    def _send_command(self) -> None:
        """The broker keeps it for a vehicle that cannot be reached."""
        topic = f"glec/dtg/{self._vehicle.client_id}/commands/{COMMAND}"
        for _ in range(COMMAND_COPIES):
            self._subscriber.publish(topic, json.dumps({"id": COMMAND_ID}).encode(), 2)
        self.measures.command.copies = COMMAND_COPIES
        self._report.phase(f"command {COMMAND!r} sent {COMMAND_COPIES} times with one id, to a vehicle without a link")

    def _count(self) -> None:
        """Wait until the broker has read all that was sent to it, and the subscriber all that the broker had."""
        if not self._link.wait_for(lambda link: link.open_connections == 0, COUNT_TIMEOUT_S):
            raise DemoRunError(f"the broker did not end the connection within {COUNT_TIMEOUT_S:.0f} s")
        if not self._subscriber.wait_for_end(COUNT_TIMEOUT_S):
            raise DemoRunError(f"the broker did not deliver everything within {COUNT_TIMEOUT_S:.0f} s")
        self.measures.command.replies = sum(each.topic.endswith("/reply") for each in self._subscriber.arrivals)
        self._show_progress()

    def _read_until(self, condition: Callable[[VehicleReport], bool], timeout_s: float, failure: str) -> None:
        deadline_s = min(self._deadline_s, time.monotonic() + timeout_s)
        while True:
            words = self._process.next_report(min(SILENCE_TIMEOUT_S, max(0.0, deadline_s - time.monotonic())))
            if words == ENDED:
                raise DemoRunError(f"the publishing process broke down: {self._process.last_words()}")
            if words is None or time.monotonic() > deadline_s:
                raise DemoRunError(f"the vehicle {failure} in time: {self._process.last_words()}")
            self._take(words)
            if condition(words):
                return

    def _take(self, words: VehicleReport) -> None:
        match words:
            case ("begun", number):
                self._ledger.begun.add(int(number))
            case ("safe", number):
                self._ledger.safe.add(int(number))
            case ("queue", size):
                self._queue_size = int(size)
                self._measure()
                self._show_progress()
            case ("flushed", count, seconds):
                self.measures.note_flush(int(count), float(seconds))
                self._report.phase(f"flushed {count} messages in {float(seconds):.3f} s")
            case ("lost", *cause):
                self._report.phase(f"the vehicle noticed: {' '.join(cause)}")
            case ("unflushed", size):
                self._report.phase(f"{size} messages are still in the queue after {FLUSH_TIMEOUT_S:.0f} s")
            case ("ran", identifier):
                self.measures.command.runs += identifier == COMMAND_ID
                self._report.phase(f"the vehicle runs command {identifier}")
            case ("connected",) | ("done",):
                pass
            case _:
                raise DemoRunError(f"the publishing process said {' '.join(words)!r}")

    def _measure(self) -> None:
        measures = self.measures
        measures.queue_peak = max(measures.queue_peak, self._queue_size)
        measures.memory_bytes = max(measures.memory_bytes, self._process.private_bytes())
        measures.disk_bytes = max(measures.disk_bytes, file_set_bytes(Path(self._vehicle.queue_path)))

    def _show_progress(self) -> None:
        self._report.progress(
            Progress(
                published=len(self._ledger.begun),
                total=self._total,
                received=len(self._subscriber.tally),
                queue_size=self._queue_size,
                link="cut" if self._link.is_down else "up",
            )
        )

    def _longest_s(self) -> float:
        """A bound on the whole run, generous enough for a busy machine."""
        play_s = self._drive_s / self._vehicle.speed
        return 1.5 * play_s + (self._settings.kills + 1) * START_ALLOWANCE_S + FLUSH_TIMEOUT_S
