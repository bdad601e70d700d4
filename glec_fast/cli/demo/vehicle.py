"""The vehicle's process: plays a drive into an MQTTManager and says on stdout what became of each message.

Its argument is a `VehicleSettings` as JSON. It plays up to the message numbers that it reads from stdin, one a line,
and ends when stdin does. What it writes, one report a line, survives its death in the pipe:

    begun N         about to publish message N
    safe N          message N is on disk; it must arrive from now on
    connected       and: lost CAUSE
    queue N         so many messages are waiting
    flushed N S     N messages were waiting when the link came back, S seconds until none was
    ran ID          a command of this id is run
    done            the drive is over and nothing is waiting; or: unflushed N
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections import deque
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from glec_fast import ConnectionCallback, MQTTConfig, MQTTManager, PublishHandle, Status, TLSConfig
from glec_fast.cli.demo.drive import Drive, Kind, Message
from glec_fast.cli.demo.typed import alert_of, inference_of, telemetry_of
from glec_fast.fleet.device import available_storage_mb, memory_usage_mb

if TYPE_CHECKING:
    from collections.abc import Callable

    from glec_fast.fleet.commands import CommandContext

PASSWORD_VARIABLE = "GLEC_MQTT_PASSWORD"  # noqa: S105  # the name of a variable
WATCH_PERIOD_S = 0.05
DURABLE_TIMEOUT_S = 30.0
FLUSH_WORTH_TIMING = 10
# A demo's outages last seconds, not hours.
RETRY_INITIAL_DELAY_MS = 200
RETRY_MAX_DELAY_MS = 1000
COMMAND = "locate"
# Of the drive's time: as many messages are in memory when the process is killed as there would be on the road.
QOS0_COMMIT_DELAY_S = 5.0


@dataclass(frozen=True)
class VehicleSettings:
    """All that the process needs to know. `resolve` is a host name that stands for loopback, where the link listens."""

    broker_url: str
    client_id: str
    queue_path: str
    queue_max_size: int
    drive: Drive
    start_ms: int
    first_number: int
    speed: float
    batch_s: float
    flush_timeout_s: float
    ca_cert: str | None = None
    username: str | None = None
    resolve: str | None = None
    # Copies of commands that come, of which the last are waited for at the end of the drive.
    commands: int = 0

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> VehicleSettings:
        fields = json.loads(text)
        fields["drive"] = Drive(**fields["drive"])
        return cls(**fields)


def say(*words: object) -> None:
    """One report in one write, so that a kill cannot leave half of it."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


class Permission:
    """How far the parent lets the drive go."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._until = -1
        self._ended = False
        threading.Thread(target=self._read, name="parent", daemon=True).start()

    def wait_until_allowed(self, number: int) -> bool:
        """Wait until message `number` may be published; False when there will be no more."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended or number < self._until)
            return not self._ended

    def _read(self) -> None:
        for line in sys.stdin:
            with self._changed:
                self._until = int(line)
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()


class Watch(ConnectionCallback):
    """Reports the connection, the queue, each flush, and which QoS 0 messages have reached the disk."""

    def __init__(self, manager: MQTTManager, flush_timeout_s: float) -> None:
        self._manager = manager
        self._flush_timeout_s = flush_timeout_s
        self._pending: deque[tuple[int, PublishHandle]] = deque()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def on_connected(self) -> None:
        say("connected")
        connected_s = time.perf_counter()
        waiting = self._manager.get_metrics().queue_size
        if waiting >= FLUSH_WORTH_TIMING:
            # A callback runs on the network thread, which has the flush to do.
            threading.Thread(target=self._time_flush, args=(waiting, connected_s), name="flush", daemon=True).start()

    def on_connection_lost(self, cause: Exception | None) -> None:
        if cause is not None:
            say("lost", " ".join(str(cause).split()))

    def on_reconnecting(self) -> None:
        say("queue", self._manager.get_metrics().queue_size)

    def follow(self, number: int, handle: PublishHandle) -> None:
        """Report message `number` once it is on disk. One that went straight out never is, and owes nothing."""
        self._pending.append((number, handle))

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(WATCH_PERIOD_S):
            self._report_safe()
            say("queue", self._manager.get_metrics().queue_size)

    def _report_safe(self) -> None:
        while self._pending:
            number, handle = self._pending[0]
            is_durable = handle.wait_durable(0)
            # Asked second: where the socket took it meanwhile, wait_durable says True, and it may be lost in the air.
            if not handle.is_published():
                if not is_durable:
                    return
                say("safe", number)
            self._pending.popleft()

    def _time_flush(self, waiting: int, connected_s: float) -> None:
        if self._manager.flush(self._flush_timeout_s):
            say("flushed", waiting, time.perf_counter() - connected_s)


def declare_command(manager: MQTTManager) -> None:
    """Have the vehicle do what a platform asks for, and say so."""

    @manager.command(COMMAND, on_crash="fail")
    def locate(_arguments: dict[str, Any], context: CommandContext) -> dict[str, Any]:
        say("ran", context.id)
        return {"queue": manager.get_metrics().queue_size}


def await_commands(manager: MQTTManager, count: int, timeout_s: float) -> None:
    """Until so many have come and are answered; whether they were is for the parent to count."""
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        metrics = manager.get_metrics()
        if metrics.messages_received >= count and not metrics.inbox_size:
            return
        time.sleep(WATCH_PERIOD_S)


class Vehicle:
    """Plays the drive from `first_number` on."""

    def __init__(self, settings: VehicleSettings, manager: MQTTManager, watch: Watch, permission: Permission) -> None:
        self._settings = settings
        self._manager = manager
        self._watch = watch
        self._permission = permission
        self._started_s = time.monotonic()

    def drive(self) -> bool:
        """Publish the rest of the drive; False if the parent went away before its end."""
        offset_s: float | None = None
        for message in self._settings.drive.messages(self._settings.start_ms):
            if message.number < self._settings.first_number:
                continue
            held_s = time.monotonic()
            if not self._permission.wait_until_allowed(message.number):
                return False
            due_s = message.sample.t_s / self._settings.speed
            now_s = time.monotonic()
            # The drive's clock stands still while the parent holds it.
            offset_s = now_s - due_s if offset_s is None else offset_s + now_s - held_s
            if (ahead_s := offset_s + due_s - now_s) > 0:
                time.sleep(ahead_s)
            self._publish(message)
        return True

    def _publish(self, message: Message) -> None:
        say("begun", message.number)
        may_leave_at_once = self._manager.is_connected() and not self._settings.batch_s
        handle = self._PUBLISHERS[message.kind](self, message)
        if message.kind.qos == 0:
            # Behind others one goes to the disk with a link too; and then out, and may be in the air at the cut.
            if not may_leave_at_once:
                self._watch.follow(message.number, handle)
        elif handle.wait_durable(DURABLE_TIMEOUT_S):
            say("safe", message.number)
        else:
            raise SystemExit(f"message {message.number} is not on disk after {DURABLE_TIMEOUT_S:.0f} s")

    def _publish_telemetry(self, message: Message) -> PublishHandle:
        return self._manager.publish_telemetry(telemetry_of(message))

    def _publish_inference(self, message: Message) -> PublishHandle:
        return self._manager.publish_inference(inference_of(message))

    def _publish_alert(self, message: Message) -> PublishHandle:
        return self._manager.publish_alert(alert_of(message))

    def _publish_status(self, message: Message) -> PublishHandle:
        metrics = self._manager.get_metrics()
        return self._manager.publish_status(
            Status(
                status="ONLINE",
                uptime_seconds=int(time.monotonic() - self._started_s),
                battery_voltage=message.sample.battery_v,
                memory_usage_mb=memory_usage_mb(),
                storage_available_mb=available_storage_mb(self._settings.queue_path),
                can_messages_received=int(message.sample.t_s) + 1,
                mqtt_messages_sent=metrics.messages_sent,
                offline_queue_size=metrics.queue_size,
                timestamp_ms=message.timestamp_ms,
            )
        )

    _PUBLISHERS: ClassVar[dict[Kind, Callable[[Vehicle, Message], PublishHandle]]] = {
        Kind.TELEMETRY: _publish_telemetry,
        Kind.INFERENCE: _publish_inference,
        Kind.ALERT: _publish_alert,
        Kind.STATUS: _publish_status,
    }


def resolve_to_loopback(host: str) -> None:
    """Make `host` mean loopback in this process: the link is dialled, the broker's certificate checked for its name."""
    resolve = socket.getaddrinfo

    def resolve_link(name: object, *arguments: object, **options: object) -> object:
        return resolve("127.0.0.1" if name == host else name, *arguments, **options)  # type: ignore[arg-type]

    socket.getaddrinfo = resolve_link  # type: ignore[assignment]


def end_with_any_thread(failure: threading.ExceptHookArgs) -> None:
    """A process of which one thread has failed must not look well to its parent."""
    threading.__excepthook__(failure)
    os._exit(1)


def run(settings: VehicleSettings, manager_class: type[MQTTManager] = MQTTManager) -> int:
    """Play the drive with a manager of `manager_class`; 0 once all of it has been handed over."""
    threading.excepthook = end_with_any_thread
    if settings.resolve is not None:
        resolve_to_loopback(settings.resolve)
    manager = manager_class(
        MQTTConfig(
            broker_url=settings.broker_url,
            client_id=settings.client_id,
            username=settings.username,
            password=os.environ.get(PASSWORD_VARIABLE) if settings.username else None,
            tls_config=TLSConfig.create_server_auth(settings.ca_cert) if settings.ca_cert else None,
            queue_path=settings.queue_path,
            queue_max_size=settings.queue_max_size,
            retry_initial_delay_ms=RETRY_INITIAL_DELAY_MS,
            retry_max_delay_ms=RETRY_MAX_DELAY_MS,
            telemetry_batch_s=settings.batch_s,
            qos0_commit_delay_s=QOS0_COMMIT_DELAY_S / max(1.0, settings.speed),
        )
    )
    watch = Watch(manager, settings.flush_timeout_s)
    manager.set_connection_callback(watch)
    declare_command(manager)
    manager.connect()
    watch.start()
    complete = Vehicle(settings, manager, watch, Permission()).drive()
    if complete:
        await_commands(manager, settings.commands, settings.flush_timeout_s)
    flushed = complete and manager.flush(settings.flush_timeout_s)
    watch.stop()
    waiting = manager.get_metrics().queue_size
    manager.disconnect()
    say("done") if flushed else say("unflushed", waiting)
    return 0 if flushed else 1


if __name__ == "__main__":
    sys.exit(run(VehicleSettings.from_json(sys.argv[1])))
