"""Connections made, lost and refused: what the callbacks are told, how long the pauses are, what it costs (nothing)."""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest

from glec_fast import (
    BrokerRefusalError,
    ConnectionCallback,
    ConnectionLostError,
    MQTTManager,
    QueueClosedError,
    QueueLockedError,
)
from glec_fast.cli.doctor.login import examine_login
from glec_fast.engine.backoff import Backoff
from glec_fast.runtime._lock import Event
from glec_fast.testbed.subscriber import Subscriber
from support.gateway import TIMEOUT_S, Recorder, eventually, quick_config

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import StartBroker
    from glec_fast.testbed.broker import Broker
    from glec_fast.testbed.link import Link

# RFC 6335: no service is meant to be there, and as root we know that none is.
# As mosquitto_passwd writes it for the user vehicle with the password right.
PASSWORD_LINE = (
    "vehicle:$7$101$OPNdhWuef8OdAYkZ$Exv9jqkKn+e6+8w66+KNAIOdFmEEQGsxKPdrXk"
    "vCyb9N4b/+yXu/8xv1WH3vAZNo8H/6r1y6P4gAvQ3POgTreA==\n"
)
CLOSED_URL = "tcp://127.0.0.1:1"


class FailureRecorder(Recorder):
    """Keeps the causes of attempts that failed as well."""

    def on_connect_failed(self, cause: Exception) -> None:
        self._add(cause)


def test_the_waits_double_and_then_stay_at_the_longest() -> None:
    backoff = Backoff(2.0, 60.0, 5, "none")
    waits = [2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0]
    assert [backoff.next_delay_s() for _ in waits] == waits
    backoff.reset()
    assert backoff.next_delay_s() == 2.0


@pytest.mark.parametrize(
    ("initial_s", "maximum_s", "attempts", "waits"),
    [(1.0, 10.0, 3, [1, 2, 4, 10, 10]), (5.0, 7.0, 5, [5, 7, 7]), (2.0, 60.0, 0, [60, 60]), (9.0, 3.0, 2, [3, 3, 3])],
)
def test_the_waits_follow_the_settings(initial_s: float, maximum_s: float, attempts: int, waits: list[float]) -> None:
    backoff = Backoff(initial_s, maximum_s, attempts)
    assert [backoff.next_delay_s() for _ in waits] == waits


def test_the_manager_waits_once_between_two_attempts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    story: list[Any] = []
    enough = threading.Event()

    def wait(_policy: object, _interrupt: object, delay_s: float) -> bool:
        story.append(delay_s)
        if len(story) >= 14:
            enough.set()
            return not enough.wait(0)
        return False

    class Attempts(ConnectionCallback):
        def on_reconnecting(self) -> None:
            story.append("attempt")

    monkeypatch.setattr("glec_fast.fleet.policy.FleetPolicy.wait", wait)
    waits = {"retry_initial_delay_ms": 2000, "retry_max_delay_ms": 60_000, "retry_jitter": "none"}
    config = quick_config(CLOSED_URL, tmp_path, **waits)
    with MQTTManager(config) as manager:
        manager.set_connection_callback(Attempts())
        manager.connect()
        assert enough.wait(TIMEOUT_S)
    expected = [step for delay_s in (2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0) for step in (delay_s, "attempt")]
    assert story[:14] == expected


def test_a_connection_begins_the_waits_anew(
    monkeypatch: pytest.MonkeyPatch, broker: Broker, link: Link, tmp_path: Path
) -> None:
    waits: list[float] = []
    recorder = Recorder()

    def wait(_policy: object, interrupt: Event, delay_s: float) -> bool:
        waits.append(delay_s)
        if len(waits) == 3:
            link.restore()
        return bool(interrupt.wait(0.01))

    monkeypatch.setattr("glec_fast.fleet.policy.FleetPolicy.wait", wait)
    times = {"retry_initial_delay_ms": 2000, "retry_max_delay_ms": 60_000, "retry_jitter": "none"}
    config = quick_config(f"tcp://127.0.0.1:{link.port}", tmp_path, **times)
    link.cut()
    with MQTTManager(config) as manager:
        manager.set_connection_callback(recorder)
        manager.connect()
        # An acknowledgement, with which the connection has proved itself.
        manager.publish("t", "x", 1).wait_for_publish(TIMEOUT_S)
        assert recorder.wait_for_connections(1)
        link.drop()
        assert recorder.wait_for_connections(2)
    assert waits[:4] == [2.0, 4.0, 8.0, 2.0]


def test_the_callbacks_tell_the_story_in_order(broker: Broker, link: Link, tmp_path: Path) -> None:
    recorder = Recorder()
    with MQTTManager(quick_config(f"tcp://127.0.0.1:{link.port}", tmp_path)) as manager:
        manager.set_connection_callback(recorder)
        manager.connect()
        assert recorder.wait_for_connections(1)
        assert manager.is_connected()
        link.cut()
        assert recorder.wait_for_losses(1)
        assert not manager.is_connected()
        assert recorder.wait_for(lambda events: events.count("reconnecting") >= 2)
        link.restore()
        assert recorder.wait_for_connections(2)
        assert manager.get_metrics().reconnect_count == 1
    names = [event if isinstance(event, str) else event[0] for event in recorder.events]
    attempts = names.count("reconnecting")
    assert names == ["connected", "lost", *["reconnecting"] * attempts, "connected", "lost"]
    lost, left = recorder.causes
    assert isinstance(lost, ConnectionLostError)
    assert left is None


def test_the_first_connection_after_failures_is_no_reconnection(link: Link, tmp_path: Path) -> None:
    recorder = Recorder()
    link.cut()
    with MQTTManager(quick_config(f"tcp://127.0.0.1:{link.port}", tmp_path)) as manager:
        manager.set_connection_callback(recorder)
        manager.connect()
        assert recorder.wait_for(lambda events: "reconnecting" in events)
        link.restore()
        assert recorder.wait_for_connections()
        assert manager.get_metrics().reconnect_count == 0


def test_inside_on_connected_the_manager_is_connected(broker: Broker, tmp_path: Path) -> None:
    seen: list[bool] = []
    done = threading.Event()

    class Callback(ConnectionCallback):
        def on_connected(self) -> None:
            seen.append(manager.is_connected())
            done.set()

    with MQTTManager(quick_config(broker.url, tmp_path)) as manager:
        manager.set_connection_callback(Callback())
        manager.connect()
        assert done.wait(TIMEOUT_S)
    assert seen == [True]


@pytest.mark.parametrize("kind", [ValueError, SystemExit])
def test_exceptions_in_the_callbacks_change_nothing(
    broker: Broker, link: Link, tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: type[BaseException]
) -> None:
    class Broken(Recorder):
        def _add(self, event: Any) -> None:
            super()._add(event)
            raise kind("from the callback")

    recorder = Broken()
    config = quick_config(f"tcp://127.0.0.1:{link.port}", tmp_path)
    with Subscriber(broker, "t") as subscriber, MQTTManager(config) as manager:
        manager.set_connection_callback(recorder)
        manager.connect()
        assert recorder.wait_for_connections(1)
        link.drop()
        assert recorder.wait_for_connections(2)
        manager.publish("t", "still here", 2)
        assert manager.flush(TIMEOUT_S)
        assert subscriber.wait_for_count(1)
    assert "the connection callback's on_reconnecting failed" in caplog.text


def test_publishing_from_inside_the_callbacks(broker: Broker, link: Link, tmp_path: Path) -> None:
    published: list[str] = []

    class Publishing(Recorder):
        def _add(self, event: Any) -> None:
            for qos in range(3):
                published.append(f"{len(published)}")
                manager.publish("t", published[-1], qos)
            manager.get_metrics()
            manager.connect()
            super()._add(event)

    recorder = Publishing()
    config = quick_config(f"tcp://127.0.0.1:{link.port}", tmp_path)
    with Subscriber(broker, "t") as subscriber:
        with MQTTManager(config) as manager:
            manager.set_connection_callback(recorder)
            manager.connect()
            assert recorder.wait_for_connections(1)
            link.drop()
            assert recorder.wait_for_connections(2)
            assert manager.flush(TIMEOUT_S)
            manager.set_connection_callback(ConnectionCallback())
        # Their QoS is the number's remainder by three: the lost link may swallow QoS 0 and repeat QoS 1.
        assert subscriber.wait_for_all({each.encode() for each in published if int(each) % 3})
        assert {int(payload) % 3 for payload in subscriber.repeated()} <= {1}


@pytest.mark.parametrize("event", ["on_connected", "on_connection_lost", "on_reconnecting"])
def test_disconnecting_from_inside_a_callback(broker: Broker, link: Link, tmp_path: Path, event: str) -> None:
    config = quick_config(f"tcp://127.0.0.1:{link.port}", tmp_path)
    left = threading.Event()

    class Leaving(ConnectionCallback):
        pass

    def leave(*_: object) -> None:
        manager.disconnect()
        left.set()

    callback = Leaving()
    setattr(callback, event, leave)
    recorder = Recorder()
    manager = MQTTManager(config)
    manager.publish("t", "kept", 1)
    if event != "on_connected":
        manager.set_connection_callback(recorder)
        manager.connect()
        assert recorder.wait_for_connections(1)
        manager.publish("t", "x", 1)
        manager.set_connection_callback(callback)
        link.drop()
    else:
        manager.set_connection_callback(callback)
        manager.connect()
    assert left.wait(TIMEOUT_S)
    with pytest.raises(QueueClosedError):
        manager.publish("t", "x", 1)
    assert eventually(lambda: manager._client._thread is None)
    with Subscriber(broker, "t") as subscriber, MQTTManager(config) as successor:
        successor.connect()
        assert successor.flush(TIMEOUT_S)
        assert set(subscriber.payloads()) <= {b"kept", b"x"}


@pytest.mark.parametrize("is_wrong", [True, False])
def test_a_wrong_password_is_reported_retried_and_costs_nothing(
    start_broker: StartBroker, tmp_path: Path, caplog: pytest.LogCaptureFixture, is_wrong: bool
) -> None:
    passwords = tmp_path / "passwords"
    passwords.write_text(PASSWORD_LINE)
    broker = start_broker(settings=(f"password_file {passwords}", "allow_anonymous false"))
    config = quick_config(broker.url, tmp_path, username="vehicle", password="wrong" if is_wrong else "right")
    recorder = FailureRecorder()
    with caplog.at_level(logging.ERROR, "glec_fast"), MQTTManager(config) as manager:
        manager.set_connection_callback(recorder)
        handle = manager.publish("t", "kept", 1)
        manager.connect()
        if is_wrong:
            assert recorder.wait_for(lambda events: events.count("reconnecting") >= 2)
            assert "connected" not in recorder.events
            refusal = next(event for event in recorder.events if isinstance(event, BrokerRefusalError))
            assert refusal.reason_code == 135
            assert refusal.retryable
            assert "refused the login: Not authorized; check username and password" in str(refusal)
            assert str(refusal) in caplog.text
            assert "wrong" not in caplog.text
            assert manager.get_metrics().queue_size == 1
            assert not manager.is_connected()
        else:
            handle.wait_for_publish(TIMEOUT_S)


def test_without_auto_reconnect_the_first_failure_is_the_last(link: Link, tmp_path: Path) -> None:
    link.cut()
    recorder = Recorder()
    with MQTTManager(quick_config(f"tcp://127.0.0.1:{link.port}", tmp_path, auto_reconnect=False)) as manager:
        manager.set_connection_callback(recorder)
        manager.connect()
        assert eventually(lambda: manager._client._thread is None)
        assert recorder.events == []
        link.restore()
        manager.connect()
        assert recorder.wait_for_connections()
        link.drop()
        assert recorder.wait_for_losses()
        assert eventually(lambda: manager._client._thread is None)
        assert recorder.events.count("connected") == 1


def test_a_dead_link_is_noticed_by_the_keep_alive(broker: Broker, link: Link, tmp_path: Path) -> None:
    recorder = Recorder()
    with Subscriber(broker, "t") as subscriber:
        with MQTTManager(quick_config(f"tcp://127.0.0.1:{link.port}", tmp_path, keepalive_s=1)) as manager:
            manager.set_connection_callback(recorder)
            manager.connect()
            assert recorder.wait_for_connections()
            link.stall()
            manager.publish("t", "into the void", 2)
            assert recorder.wait_for_losses()
            assert isinstance(recorder.causes[0], ConnectionLostError)
            assert "eep alive" in str(recorder.causes[0])
            link.restore()
            assert manager.flush(TIMEOUT_S)
        assert subscriber.wait_for_count(1)
        assert subscriber.payloads() == [b"into the void"]


def test_leaving_over_a_dead_link_does_not_wait_for_the_keep_alive(broker: Broker, link: Link, tmp_path: Path) -> None:
    recorder = Recorder()
    manager = MQTTManager(quick_config(f"tcp://127.0.0.1:{link.port}", tmp_path, keepalive_s=600))
    manager.set_connection_callback(recorder)
    manager.connect()
    assert recorder.wait_for_connections()
    link.stall()
    # More than all the buffers on the way take, so that DISCONNECT cannot leave.
    for _ in range(40):
        manager.publish("t", b"x" * 1_000_000, 1).wait_durable(TIMEOUT_S)
    left = threading.Thread(target=manager.disconnect, daemon=True)
    left.start()
    left.join(TIMEOUT_S)
    is_stuck = left.is_alive()
    link.close()
    left.join(TIMEOUT_S)
    assert not is_stuck
    with MQTTManager(quick_config(broker.url, tmp_path)) as successor:
        assert successor.get_metrics().queue_size == 40


def test_leaving_while_the_broker_does_not_answer_the_connection(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=5) as silent:
        manager = MQTTManager(quick_config(f"tcp://127.0.0.1:{silent.getsockname()[1]}", tmp_path))
        manager.connect()
        connection, _ = silent.accept()
        with connection:
            connection.settimeout(TIMEOUT_S)
            assert connection.recv(1)[:1] == b"\x10"
            manager.disconnect()
            while connection.recv(65_536):
                pass


def test_connecting_twice_makes_one_connection(link: Link, tmp_path: Path) -> None:
    recorder = Recorder()
    with MQTTManager(quick_config(f"tcp://127.0.0.1:{link.port}", tmp_path)) as manager:
        manager.set_connection_callback(recorder)
        manager.connect()
        manager.connect()
        assert recorder.wait_for_connections()
        manager.connect()
        manager.publish("t", "x", 1).wait_for_publish(TIMEOUT_S)
        assert link.accepted_connections == 1


def test_after_disconnect_everything_says_closed(broker: Broker, tmp_path: Path) -> None:
    manager = MQTTManager(quick_config(broker.url, tmp_path))
    manager.connect()
    manager.disconnect()
    manager.disconnect()
    for call in CALLS_ON_A_CLOSED_MANAGER:
        with pytest.raises(QueueClosedError):
            call(manager)
    assert not manager.is_connected()
    assert manager.get_metrics().queue_size == 0


def test_disconnect_comes_between_the_check_of_connect_and_its_thread(
    broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = MQTTManager(quick_config(broker.url, tmp_path))

    class Late:
        """The manager's lock, which another thread's `disconnect` gets first."""

        def __enter__(self, lock: Any = manager._lock) -> None:
            monkeypatch.undo()
            manager.disconnect()
            lock.acquire()

        def __exit__(self, *_: object) -> None:
            manager._lock.release()

    monkeypatch.setattr(manager, "_lock", Late())
    try:
        with pytest.raises(QueueClosedError):
            manager.connect()
    finally:
        thread = manager._client._thread
        manager._client._thread_terminate = True
        manager._connector.interrupt.set()
    assert thread is None, "it would try for ever, with a queue that is closed"


CALLS_ON_A_CLOSED_MANAGER: list[Callable[[MQTTManager], object]] = [
    lambda manager: manager.publish("t", "x", 0),
    lambda manager: manager.publish("t", "x", 1),
    lambda manager: manager.publish("t", "x", 2),
    lambda manager: manager.publish_status(),
    lambda manager: manager.connect(),
]


def test_disconnect_without_connect_keeps_what_was_published(broker: Broker, tmp_path: Path) -> None:
    config = quick_config(broker.url, tmp_path)
    with MQTTManager(config) as manager:
        for qos in range(3):
            manager.publish("t", str(qos), qos)
        with pytest.raises(QueueLockedError):
            MQTTManager(config)
    with MQTTManager(config) as successor:
        assert successor.get_metrics().queue_size == 3


def test_disconnecting_many_times_over(broker: Broker, tmp_path: Path) -> None:
    for _ in range(30):
        recorder = Recorder()
        with MQTTManager(quick_config(broker.url, tmp_path)) as manager:
            manager.set_connection_callback(recorder)
            manager.connect()
            assert recorder.wait_for_connections()
        assert recorder.events == ["connected", ("lost", None)]


def test_the_heartbeat_has_real_figures(broker: Broker, tmp_path: Path) -> None:
    config = quick_config(broker.url, tmp_path, status_interval_s=0.2)
    with Subscriber(broker, "glec/dtg/DTG-TEST/status") as subscriber, MQTTManager(config) as manager:
        manager.report_vehicle(can_messages_received=4711, battery_voltage=12.4)
        manager.publish("t", "x", 1)
        manager.connect()
        assert subscriber.wait_for_count(3)
        first, *_, last = (json.loads(each.payload) for each in subscriber.arrivals)
    assert {each.qos for each in subscriber.arrivals} == {1}
    assert last["status"] == "ONLINE"
    assert last["device_id"] == "DTG-TEST"
    assert last["battery_voltage"] == 12.4
    assert last["can_messages_received"] == 4711
    assert 5 < last["memory_usage_mb"] < 2000
    assert last["storage_available_mb"] > 0
    assert last["mqtt_messages_sent"] > first["mqtt_messages_sent"]
    assert last["timestamp"] > first["timestamp"]
    assert last["uptime_seconds"] >= 0


def test_debug_logging_names_the_packets(broker: Broker, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("glec_fast")
    recorder = Recorder()
    with MQTTManager(quick_config(broker.url, tmp_path)) as manager:
        manager.set_connection_callback(recorder)
        manager.enable_debug_logging(True)
        try:
            assert logger.level == logging.DEBUG
            manager.connect()
            assert recorder.wait_for_connections()
            manager.publish("some/topic", "x", 1).wait_for_publish(TIMEOUT_S)
            for packet in ("CONNECT", "CONNACK"):
                assert packet in caplog.text
        finally:
            manager.enable_debug_logging(False)
        assert logger.level == logging.NOTSET
        caplog.clear()
    assert caplog.text == ""


@pytest.mark.parametrize("fails", ["statvfs", "open", "anything"])
def test_what_the_system_fails_does_not_end_the_connection_for_good(
    broker: Broker, link: Link, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    """As without a descriptor left, or where somebody renames the folder of the queue."""
    opened = os.open
    failed: list[str] = []

    def failing(*given: Any) -> int:
        if not given:
            failed.append("heartbeat")
        if given and isinstance(given[0], str) and not given[0].startswith("/proc"):
            return opened(*given)
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    recorder = Recorder()
    config = quick_config(f"tcp://127.0.0.1:{link.port}", tmp_path, status_interval_s=0.02)
    with MQTTManager(config) as manager:
        manager.set_connection_callback(recorder)
        manager.connect()
        assert recorder.wait_for_connections()
        with monkeypatch.context() as patched:
            patched.setattr(
                "glec_fast.fleet.heartbeat.memory_usage_mb" if fails == "anything" else f"os.{fails}", failing
            )
            if fails == "anything":
                assert eventually(lambda: failed.count("heartbeat") > 1)
            else:
                manager.publish_status()
        link.drop()
        count = recorder.events.count("connected")
        assert recorder.wait_for_connections(count + 1)


def test_what_fails_again_and_again_between_connections_does_not_end_them_for_good(
    broker: Broker, link: Link, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = 0

    def failing() -> float:
        nonlocal failed
        failed += 1
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    recorder = Recorder()
    with MQTTManager(quick_config(f"tcp://127.0.0.1:{link.port}", tmp_path)) as manager:
        manager.set_connection_callback(recorder)
        manager.connect()
        assert recorder.wait_for_connections()
        with monkeypatch.context() as patched:
            patched.setattr(manager._policy, "_tick", failing)
            link.drop()
            assert eventually(lambda: failed >= 3)
        assert recorder.wait_for_connections(2)


@pytest.mark.parametrize(("clean", "present"), [(False, [False, True, True]), (True, [False, False, False])])
def test_mqtt_5_keeps_its_session_or_ends_it_with_the_connection(
    broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clean: bool, present: list[bool]
) -> None:
    seen: list[bool] = []
    on_connect = MQTTManager._on_connect

    def watched(manager: MQTTManager, client: Any, userdata: Any, flags: Any, *others: Any) -> None:
        seen.append(flags.session_present)
        on_connect(manager, client, userdata, flags, *others)

    monkeypatch.setattr(MQTTManager, "_on_connect", watched)
    config = quick_config(broker.url, tmp_path, protocol_version=5, clean_session=clean)
    for _ in present:
        recorder = Recorder()
        with MQTTManager(config) as manager:
            manager.set_connection_callback(recorder)
            manager.connect()
            assert recorder.wait_for_connections()
        # As the device itself, which must not end the session.
        assert examine_login(config, as_device=True).status == "ok"
    assert seen == present
