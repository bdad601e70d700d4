"""`glec-fast service`, as systemd sees it and as a gateway's other programs do."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import sqlite3
import stat
import subprocess
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import apsw
import pytest

from glec_fast import MQTTManager, OfflineQueueManager
from glec_fast.cli.environment import config_from
from glec_fast.cli.service import MAX_PACKET_BYTES, MAX_PAYLOAD_BYTES, Notifier, Service, request_of, status_of
from glec_fast.errors import ConfigError, MessageError
from glec_fast.fleet.metrics import Metrics
from glec_fast.testbed.subscriber import Subscriber
from support.forked import Forked
from support.gateway import TIMEOUT_S, eventually, quick_config

if TYPE_CHECKING:
    from collections.abc import Iterator

    from glec_fast.testbed.broker import Broker

WATCHDOG_S = 0.6
REQUEST = b'{"topic": "t", "payload": "x"}'


class RunningService:
    """The process, what it tells systemd, and a program that publishes through it."""

    def __init__(self, directory: Path, url: str) -> None:
        self.queue = directory / "queue.db"
        self.systemd = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.systemd.settimeout(TIMEOUT_S)
        self.systemd.bind(str(directory / "notify"))
        self.process = Forked(
            ["-m", "glec_fast", "service"],
            env={
                **os.environ,
                "GLEC_BROKER_URL": url,
                "GLEC_CLIENT_ID": "DTG-TEST",
                "STATE_DIRECTORY": str(directory),
                "RUNTIME_DIRECTORY": str(directory),
                "NOTIFY_SOCKET": str(directory / "notify"),
                "WATCHDOG_USEC": str(int(WATCHDOG_S * 1e6)),
            },
            stderr=subprocess.PIPE,
        )
        assert self.told() == "READY=1"
        self.program = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.program.settimeout(TIMEOUT_S)
        self.program.connect(str(directory / "publish.sock"))

    def told(self) -> str:
        return self.systemd.recv(4096).decode()

    def publish(self, request: Any) -> dict[str, Any]:
        self.program.send(request if isinstance(request, bytes) else json.dumps(request).encode())
        answer: dict[str, Any] = json.loads(self.program.recv(4096))
        return answer

    def rows(self) -> int:
        with closing(sqlite3.connect(self.queue)) as connection:
            return int(connection.execute("SELECT count(*) FROM mqtt_offline_queue").fetchone()[0])

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        self.program.close()
        self.systemd.close()


@pytest.fixture
def service(tmp_path: Path, broker: Broker) -> Iterator[RunningService]:
    with closing(RunningService(tmp_path, broker.url)) as service:
        yield service


def test_it_publishes_what_a_program_hands_it(service: RunningService, broker: Broker) -> None:
    with Subscriber(broker, "t/#") as subscriber:
        first = service.publish({"topic": "t/1", "payload": {"a": [1, "é"]}, "qos": 2})
        second = service.publish({"topic": "t/2", "payload": "text"})
        assert second["id"] > first["id"]
        assert subscriber.wait_for_count(2)
        assert {each.topic: (each.payload, each.qos) for each in subscriber.arrivals} == {
            "t/1": ('{"a":[1,"é"]}'.encode(), 2),
            "t/2": (b"text", 1),
        }


@pytest.fixture
def by_hand(tmp_path: Path) -> Iterator[Service]:
    """In this process, a turn at a time."""
    with (
        MQTTManager(quick_config("tcp://127.0.0.1:1", tmp_path)) as manager,
        closing(Service(manager, tmp_path / "publish.sock")) as service,
    ):
        yield service


def test_programs_that_are_too_many_wait_until_one_leaves(
    by_hand: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("glec_fast.fleet.packet_server.MAX_CLIENTS", 2)
    programs = [connected(tmp_path) for _ in range(3)]
    for program in programs:
        program.send(REQUEST)
    for _ in range(6):
        by_hand.turn(0)
    assert [is_answered(program) for program in programs] == [True, True, False]
    assert "the most that are served at once" in caplog.text
    programs[0].close()
    for _ in range(4):
        by_hand.turn(0)
    assert is_answered(programs[2])
    for program in programs:
        program.close()


@contextmanager
def no_more_descriptors() -> Iterator[None]:
    """Those that are open stay."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("pause_s", [0.0, 3600.0])
def test_without_descriptors_it_serves_on_and_takes_others_later(
    by_hand: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, pause_s: float
) -> None:
    monkeypatch.setattr("glec_fast.fleet.packet_server._ACCEPT_PAUSE_S", pause_s)
    with closing(connected(tmp_path)) as first:
        by_hand.turn(0)
        second = connected(tmp_path)
        for program in (first, second):
            program.send(REQUEST)
        with no_more_descriptors():
            by_hand.turn(0)
            by_hand.turn(0)
        assert is_answered(first)
        assert not is_answered(second)
        assert "no further program can connect for now" in caplog.text
        for _ in range(3):
            by_hand.turn(0)
        # Nobody asks in each turn who waits.
        assert is_answered(second) is (pause_s == 0.0)
        second.close()


def test_a_descriptor_that_was_lost_for_want_of_others_is_asked_for_again(by_hand: Service, tmp_path: Path) -> None:
    with closing(connected(tmp_path)) as program:
        by_hand.turn(0)
        send(program, REQUEST, "memfd")
        with no_more_descriptors():
            by_hand.turn(0)
        assert json.loads(program.recv(4096))["retryable"] is True
        send(program, REQUEST, "memfd")
        by_hand.turn(0)
        assert is_answered(program)


def test_a_burst_of_programs_is_taken_at_once(by_hand: Service, tmp_path: Path) -> None:
    """None of them may wait to connect, and none until the next turn to be taken."""
    programs = [connected(tmp_path) for _ in range(128)]
    for program in programs:
        program.send(REQUEST)
    by_hand.turn(0)
    by_hand.turn(0)
    assert [is_answered(program) for program in programs] == [True] * 128
    for program in programs:
        program.close()


@pytest.mark.parametrize("umask", [0, 0o022, 0o077, 0o777])
def test_only_the_group_may_connect(tmp_path: Path, umask: int) -> None:
    with MQTTManager(quick_config("tcp://127.0.0.1:1", tmp_path)) as manager:
        before = os.umask(umask)
        try:
            with closing(Service(manager, tmp_path / "publish.sock")):
                assert stat.filemode((tmp_path / "publish.sock").stat().st_mode) == "srw-rw----"
        finally:
            os.umask(before)


# 256 KiB, as they are published.
LARGEST: dict[str, object] = {
    "ascii": "x" * MAX_PAYLOAD_BYTES,
    "quotes": '"\\' * (MAX_PAYLOAD_BYTES // 2),
    "control characters": "\x01" * MAX_PAYLOAD_BYTES,
    "NUL": "\0" * MAX_PAYLOAD_BYTES,
    "two bytes each": "ä" * (MAX_PAYLOAD_BYTES // 2),
    "four bytes each": "😀" * (MAX_PAYLOAD_BYTES // 4),
    "an object": {"a": "\n" * ((MAX_PAYLOAD_BYTES - 8) // 2)},
}


@pytest.mark.parametrize("way", ["packet", "memfd"])
@pytest.mark.parametrize("content", LARGEST)
def test_the_largest_payload_in_any_content(by_hand: Service, tmp_path: Path, content: str, way: str) -> None:
    with closing(connected(tmp_path)) as program:
        send(program, json.dumps({"topic": "t", "payload": LARGEST[content]}).encode(), way)
        by_hand.turn(0)
        by_hand.turn(0)
        answer = json.loads(program.recv(4096))
        assert "id" in answer, answer
    handle = by_hand._manager.handle_for(answer["id"])
    assert handle is not None


@pytest.mark.parametrize("way", ["packet", "memfd"])
@pytest.mark.parametrize(
    "payload", ["x" * (MAX_PAYLOAD_BYTES + 1), "ä" * (MAX_PAYLOAD_BYTES // 2 + 1), {"a": "x" * MAX_PAYLOAD_BYTES}]
)
def test_a_payload_that_is_larger_is_refused(by_hand: Service, tmp_path: Path, payload: object, way: str) -> None:
    with closing(connected(tmp_path)) as program:
        send(program, json.dumps({"topic": "t", "payload": payload}).encode(), way)
        by_hand.turn(0)
        by_hand.turn(0)
        answer = json.loads(program.recv(4096))
    assert f"more than {MAX_PAYLOAD_BYTES}" in answer["error"]
    assert answer["retryable"] is False


def send(program: socket.socket, packet: bytes, way: str) -> None:
    if way == "packet":
        program.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, len(packet) + 4096)
        if program.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) < len(packet) + 4096:
            pytest.skip("this system's net.core.wmem_max is too small for it: it goes as a memfd")
        program.send(packet)
        return
    descriptor = os.memfd_create("request")
    os.write(descriptor, packet)
    socket.send_fds(program, [b"\0"], [descriptor])
    os.close(descriptor)


def test_a_descriptor_of_anything_else_is_refused_and_closed(by_hand: Service, tmp_path: Path) -> None:
    """The reading of a pipe would not end."""
    reading, writing = os.pipe()
    # A file of a tmpfs, as /tmp may be, is one to the kernel.
    file = os.open("/proc/self/status", os.O_RDONLY)
    with closing(connected(tmp_path)) as program:
        by_hand.turn(0)
        before = len(list(Path("/proc/self/fd").iterdir()))
        for descriptors in ([reading], [file], [writing, reading, file]):
            socket.send_fds(program, [REQUEST], descriptors)
            by_hand.turn(0)
            assert "no memfd" in json.loads(program.recv(4096))["error"]
        program.send(REQUEST)
        by_hand.turn(0)
        assert is_answered(program)
        assert len(list(Path("/proc/self/fd").iterdir())) == before
    for descriptor in (reading, writing, file):
        os.close(descriptor)


def test_a_turn_ends_in_time_for_the_watchdog_and_the_next_goes_on(
    by_hand: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = [connected(tmp_path) for _ in range(3)]
    for _ in programs:
        by_hand.turn(0)
    for program in programs:
        program.send(REQUEST)
    monkeypatch.setattr("glec_fast.fleet.packet_server._TURN_MAX_S", -1.0)
    answered = []
    for _ in programs:
        by_hand.turn(0)
        answered.append(sum(is_answered(program) for program in programs))
    assert answered == [1, 1, 1]
    for program in programs:
        program.close()


def test_a_program_that_sends_ahead_of_its_answers_is_held_up_alone(by_hand: Service, tmp_path: Path) -> None:
    """It may be slow to read them, but every one comes, in order, and none of its packets is lost."""
    most = 1000
    sent = 0
    ids: list[int] = []
    with closing(connected(tmp_path)) as hasty, closing(connected(tmp_path)) as other:
        while len(ids) < most:
            # The second time the answers to the first take all the room there is.
            for _ in range(2):
                with suppress(BlockingIOError):
                    while sent < most:
                        hasty.send(b'{"topic": "t", "payload": "x", "qos": 0}')
                        sent += 1
                other.send(REQUEST)
                for _ in range(most):
                    by_hand.turn(0)
                assert is_answered(other)
            with suppress(BlockingIOError):
                while len(ids) < most:
                    ids.append(json.loads(hasty.recv(4096))["id"])
        assert ids == sorted(set(ids))
        # Served on as before.
        hasty.send(REQUEST)
        by_hand.turn(0)
        assert is_answered(hasty)


def test_nobody_waits_while_others_are_served_twice(
    by_hand: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a disk on which each answer takes all of a turn; and each program sends again once it is answered."""
    programs = [connected(tmp_path) for _ in range(3)]
    for program in programs:
        program.send(REQUEST)
    by_hand.turn(0)
    monkeypatch.setattr("glec_fast.fleet.packet_server._TURN_MAX_S", -1.0)
    counts = [0, 0, 0]
    for _ in range(9):
        by_hand.turn(0)
        for number, program in enumerate(programs):
            if is_answered(program):
                counts[number] += 1
                program.send(REQUEST)
    assert counts == [3, 3, 3]
    for program in programs:
        program.close()


def connected(directory: Path) -> socket.socket:
    program = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    # Where the backlog is full it fails at once.
    program.setblocking(False)
    program.connect(str(directory / "publish.sock"))
    return program


def is_answered(program: socket.socket) -> bool:
    try:
        return b'"id"' in program.recv(4096)
    except BlockingIOError:
        return False


@pytest.mark.parametrize(
    "request_packet",
    [b"{", b"[]", {"topic": "t"}, {"topic": "#", "payload": "x"}, {"topic": "t", "payload": 1, "qos": 7}],
)
def test_a_bad_request_is_answered_and_the_next_one_served(service: RunningService, request_packet: Any) -> None:
    answer = service.publish(request_packet)
    assert answer["error"]
    assert answer["retryable"] is False
    assert "id" in service.publish({"topic": "t", "payload": "good"})


@pytest.mark.parametrize(
    "request_packet",
    [
        {"topic": "#" * 60_000, "payload": "x"},
        {"topic": "\N{PILE OF POO}\0" * 9000, "payload": "x"},
        {"topic": "t", "payload": {"k" * 60_000: [1e999]}},
        {"topic": "t", "payload": ["\0" * 30_000]},
        {"topic": "t", "payload": "x", "qos": "\0" * 30_000},
        {"topic": "t", "payload": "x", "qos": [10**4000]},
        {"ask": "x" * 60_000},
    ],
)
def test_an_answer_to_a_bad_request_is_short(by_hand: Service, tmp_path: Path, request_packet: Any) -> None:
    """Who publishes reads 4 KiB, as docs/gateway.md does."""
    with closing(connected(tmp_path)) as program:
        program.send(json.dumps(request_packet).encode())
        by_hand.turn(0)
        by_hand.turn(0)
        assert json.loads(program.recv(4096))["error"]


def test_without_a_link_the_answer_means_on_disk_even_if_killed_at_once(tmp_path: Path) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        closing(RunningService(tmp_path, f"tcp://127.0.0.1:{silent.getsockname()[1]}")) as service,
    ):
        for number in range(20):
            assert "id" in service.publish({"topic": "t", "payload": str(number), "qos": 1 + number % 2})
        service.process.kill()
        service.process.wait()
        assert service.rows() == 20


def test_the_watchdog_is_fed_while_it_lives_and_starves_when_it_hangs(service: RunningService) -> None:
    assert eventually(lambda: "STATUS=connected, 0 messages waiting" in service.told())
    assert service.told().startswith("WATCHDOG=1\n")
    service.process.send_signal(signal.SIGSTOP)
    service.systemd.settimeout(WATCHDOG_S)

    def listen_on() -> None:
        # What it had said before it was stopped may still be there.
        for _ in range(10):
            service.told()

    with pytest.raises(TimeoutError):
        listen_on()


def test_sigterm_ends_it_in_order(service: RunningService, tmp_path: Path) -> None:
    service.process.send_signal(signal.SIGTERM)
    assert eventually(lambda: service.told() == "STOPPING=1")
    assert service.process.wait(TIMEOUT_S) == 130
    assert not (tmp_path / "publish.sock").exists()


def test_settings_come_from_the_environment_and_the_credentials(tmp_path: Path) -> None:
    environment = {
        "GLEC_BROKER_URL": "ssl://b.example:8883",
        "GLEC_CLIENT_ID": "DTG-1",
        "GLEC_USERNAME": "gateway",
        "STATE_DIRECTORY": str(tmp_path),
        "CREDENTIALS_DIRECTORY": str(tmp_path),
    }
    for name, text in (("ca.crt", "A"), ("client.crt", "C"), ("client.key", "K"), ("password", "secret\n")):
        (tmp_path / f"glec_{name}").write_text(text)
    config = config_from(environment)
    assert (config.username, config.password) == ("gateway", "secret")
    assert config.queue_path == tmp_path / "queue.db"
    assert config.tls_config is not None
    assert config.tls_config.client_key == tmp_path / "glec_client.key"
    (tmp_path / "glec_password").write_bytes(b"\xffsecret")
    with pytest.raises(ConfigError, match="not UTF-8") as caught:
        config_from(environment)
    assert "secret" not in str(caught.value).replace(str(tmp_path), "")
    assert caught.value.__context__ is None
    (tmp_path / "glec_ca.crt").unlink()
    with pytest.raises(ConfigError, match=r"no ca\.crt"):
        config_from(environment)
    with pytest.raises(ConfigError, match="GLEC_CLIENT_ID not set"):
        config_from({**environment, "GLEC_CLIENT_ID": ""})
    with pytest.raises(ConfigError, match="GLEC_QUEUE_MAX_SIZE"):
        config_from({"GLEC_BROKER_URL": "tcp://b", "GLEC_CLIENT_ID": "d", "GLEC_QUEUE_MAX_SIZE": "many"})


def test_settings_come_from_a_properties_file(tmp_path: Path) -> None:
    """Named by GLEC_CONFIG, or handed over as a credential, with the password and the CA beside it."""
    text = (
        "mqtt.broker.url=ssl://b.example:8883\nmqtt.broker.username=gateway-{DEVICE_ID}\n"
        "mqtt.broker.password={SECURE_PASSWORD}\nmqtt.tls.ca_cert=glec_ca.crt\nmqtt.queue.max_size=77\n"
    )
    for name, content in (("ca.crt", "A"), ("password", "secret\n"), ("broker_config.properties", text)):
        path = tmp_path / f"glec_{name}"
        path.write_text(content)
        path.chmod(0o600)
    handed_over = {
        "GLEC_CLIENT_ID": "DTG-1",
        "STATE_DIRECTORY": str(tmp_path / "state"),
        "CREDENTIALS_DIRECTORY": str(tmp_path),
    }
    named = {**handed_over, "GLEC_CONFIG": str(tmp_path / "elsewhere.properties")}
    (tmp_path / "elsewhere.properties").write_text(text + f"mqtt.queue.path={tmp_path}/own.db\n")
    for environment, queue_path in ((handed_over, tmp_path / "state/queue.db"), (named, tmp_path / "own.db")):
        config = config_from(environment)
        assert (config.username, config.password, config.queue_max_size) == ("gateway-DTG-1", "secret", 77)
        assert config.tls_config is not None
        assert config.tls_config.ca_cert == str(tmp_path / "glec_ca.crt")
        assert Path(config.queue_path) == queue_path
    with pytest.raises(ConfigError, match="GLEC_BROKER_URL set beside"):
        config_from({**named, "GLEC_BROKER_URL": "tcp://b"})
    with pytest.raises(ConfigError, match="device_id is not given"):
        config_from({**named, "GLEC_CLIENT_ID": ""})
    with pytest.raises(ConfigError, match="STATE_DIRECTORY is not set"):
        config_from({**handed_over, "STATE_DIRECTORY": ""})


def test_a_packet_that_is_too_long_is_refused() -> None:
    with pytest.raises(MessageError, match="more than"):
        request_of(b"x" * (MAX_PACKET_BYTES + 1))


def test_it_is_silent_where_no_systemd_listens(tmp_path: Path) -> None:
    for environment in ({}, {"NOTIFY_SOCKET": str(tmp_path / "nobody")}):
        notifier = Notifier(environment)
        assert notifier.say("READY=1") is None
        assert notifier.is_due
        # All the same as with one: when the next is due, and no file of its own.
        notifier.keep_alive("idle")
        assert not notifier.is_due
    assert list(tmp_path.iterdir()) == []


def test_a_queue_that_is_damaged_in_use_takes_messages_and_keeps_them(tmp_path: Path) -> None:
    with OfflineQueueManager(tmp_path / "queue.db", 100_000) as queue:
        queue.enqueue_many([("t", "x" * 300, 1)] * 9_000)
    with closing(RunningService(tmp_path, "tcp://127.0.0.1:1")) as service:
        with service.queue.open("r+b") as file:
            for page in range(2, service.queue.stat().st_size // 4096):
                file.seek(page * 4096)
                file.write(b"\xff" * 8)
        answers = [service.publish({**json.loads(REQUEST), "qos": 2}) for _ in range(10)]
        assert all("id" in answer for answer in answers), answers
        assert "WATCHDOG=1" in service.told()
    with OfflineQueueManager(tmp_path / "queue.db", 100_000) as queue:
        # The first may have gone into the damaged file.
        assert {answer["id"] for answer in answers[1:]} <= {message.id for message in queue.dequeue_all()}


def test_it_ends_where_another_file_has_the_queue_s_name(tmp_path: Path) -> None:
    with closing(RunningService(tmp_path, "tcp://127.0.0.1:1")) as service:
        accepted = service.publish(REQUEST)["id"]
        (tmp_path / "other").touch()
        (tmp_path / "other").rename(service.queue)
        assert "start anew" in service.publish(REQUEST)["error"]
        assert service.process.wait(TIMEOUT_S) != 0
    with OfflineQueueManager(tmp_path / "queue.db.replaced-1") as kept:
        assert accepted in [message.id for message in kept.dequeue_all()]


def test_the_watchdog_is_not_fed_while_a_damaged_queue_cannot_be_mended(
    by_hand: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = by_hand._manager
    manager.publish("t", "x", 1).wait_durable(TIMEOUT_S)
    assert not manager.is_queue_damaged()

    def refuse(_damage: Exception, _row_count: int) -> None:
        raise OSError("no")

    with monkeypatch.context() as patched:
        patched.setattr(manager._store._file, "salvage_in_use", refuse)
        manager._store.supply.on_read_failure(apsw.CorruptError("a page"))
        assert eventually(manager.is_queue_damaged)
    assert eventually(lambda: not manager.is_queue_damaged())


@pytest.mark.parametrize(
    ("figures", "text"),
    [
        ({"is_connected": True}, "connected, 0 messages waiting"),
        (
            {"is_connected": False, "in_state_s": 61.4, "queue_size": 3, "oldest_s": 59.6, "drops": {"expired": 2}},
            "no link for 61 s, 3 messages waiting, the oldest for 60 s, 2 dropped",
        ),
    ],
)
def test_the_status_is_one_line(figures: dict[str, Any], text: str) -> None:
    defaults = {"messages_sent": 0, "messages_failed": 0, "queue_size": 0, "reconnect_count": 0}
    assert status_of(Metrics(**{**defaults, **figures})) == text
