"""Commands to a device: each run once and answered once, over duplicates, expiry, bad handlers and unknown names."""

from __future__ import annotations

import json
import logging
import threading
import time
from contextlib import closing, contextmanager
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import apsw
import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from glec_fast import ConfigError, MessageError, MQTTManager
from glec_fast.durable import command_log
from glec_fast.durable.clock import Clocks
from glec_fast.durable.store import Store
from glec_fast.fleet import command_request, commands
from support.gateway import BOTH_VERSIONS, TIMEOUT_S, eventually, quick_config
from support.killed import Killed
from support.odd_broker import SUBSCRIBE, OddBroker, granted
from support.queue_files import plain
from support.wire_reference import PUBREC, ack, remaining_length

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from conftest import StartBroker
    from glec_fast.fleet.commands import CommandContext
    from glec_fast.testbed.broker import Broker
    from glec_fast.testbed.link import Link
    from support.wire_reference import Packet

COMMANDS = "glec/dtg/DTG-TEST/commands"
V5 = MQTTProtocolVersion.MQTTv5


class Platform:
    """Sends commands as anybody's client would, and keeps the replies: (topic, what it says, Correlation Data)."""

    def __init__(self, broker: Broker) -> None:
        self._changed = threading.Condition()
        self.replies: list[tuple[str, dict[str, Any], bytes | None]] = []
        self._client = paho.Client(CallbackAPIVersion.VERSION2, client_id="platform", protocol=V5)
        self._is_ready = threading.Event()
        self._client.on_connect = lambda client, *_: client.subscribe([(f"{COMMANDS}/+/reply", 2), ("answers/#", 2)])
        self._client.on_subscribe = lambda *_: self._is_ready.set()
        self._client.on_message = self._on_message
        self._client.connect(broker.host, broker.port)
        self._client.loop_start()
        assert self._is_ready.wait(TIMEOUT_S)

    def _on_message(self, _client: object, _userdata: object, message: paho.MQTTMessage) -> None:
        with self._changed:
            correlation = getattr(message.properties, "CorrelationData", None)
            self.replies.append((message.topic, json.loads(message.payload), correlation))
            self._changed.notify_all()

    def send(self, name: str, payload: Any, qos: int = 2, **properties: Any) -> None:
        found = Properties(PacketTypes.PUBLISH)
        for key, value in properties.items():
            setattr(found, key, value)
        data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        self._client.publish(f"{COMMANDS}/{name}", data, qos, properties=found).wait_for_publish(TIMEOUT_S)

    def wait_for(self, count: int) -> list[dict[str, Any]]:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.replies) >= count, TIMEOUT_S), self.replies
            return [reply for _, reply, _ in self.replies]

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@pytest.fixture
def platform(broker: Broker) -> Iterator[Platform]:
    found = Platform(broker)
    yield found
    found.close()


class Doors:
    """A handler that counts what it did; `gate` holds it."""

    def __init__(self) -> None:
        self.calls: list[tuple[dict[str, Any], CommandContext]] = []
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, arguments: dict[str, Any], context: CommandContext) -> Any:
        self.calls.append((arguments, context))
        assert self.gate.wait(TIMEOUT_S)
        return {"unlocked": arguments.get("doors", 0)}


@contextmanager
def vehicle(url: str, directory: Path, doors: Any, on_crash: Any = "fail", **settings: Any) -> Iterator[MQTTManager]:
    with MQTTManager(quick_config(url, directory, **settings)) as manager:
        manager.command("unlock_doors", on_crash=on_crash)(doors)
        manager.connect()
        # The platform's first command must not come before the subscription.
        subscription = manager.subscribe("ready", print)
        assert subscription.wait_granted(TIMEOUT_S)
        yield manager


@BOTH_VERSIONS
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_a_command_is_run_and_answered(
    broker: Broker, platform: Platform, tmp_path: Path, protocol_version: int, qos: int
) -> None:
    doors = Doors()
    with vehicle(broker.url, tmp_path, doors, protocol_version=protocol_version) as manager:
        platform.send("unlock_doors", {"id": "c-1", "doors": 4}, qos)
        assert platform.wait_for(1) == [{"id": "c-1", "status": "done", "result": {"unlocked": 4}}]
        assert platform.replies[0][0] == f"{COMMANDS}/unlock_doors/reply"
        ((arguments, context),) = doors.calls
        assert arguments == {"doors": 4}
        assert (context.name, context.id, context.is_retry) == ("unlock_doors", "c-1", False)
        assert eventually(lambda: manager.get_metrics().inbox_size == 0)
        assert {name: count for name, count in manager.get_metrics().commands.items() if count} == {"done": 1}


def test_response_topic_and_correlation_data(broker: Broker, platform: Platform, tmp_path: Path) -> None:
    with vehicle(broker.url, tmp_path, Doors(), protocol_version=5):
        platform.send("unlock_doors", {"doors": 2}, ResponseTopic="answers/1", CorrelationData=b"\xff\x01")
        platform.send("unlock_doors", b"", CorrelationData=b"plain")
        platform.wait_for(2)
    assert platform.replies == [
        ("answers/1", {"id": "ff01", "status": "done", "result": {"unlocked": 2}}, b"\xff\x01"),
        (f"{COMMANDS}/unlock_doors/reply", {"id": "plain", "status": "done", "result": {"unlocked": 0}}, b"plain"),
    ]


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_a_duplicate_gets_the_reply_that_was_kept(broker: Broker, platform: Platform, tmp_path: Path, qos: int) -> None:
    doors = Doors()
    with vehicle(broker.url, tmp_path, doors):
        for expires_at in (2e12, 3e12):
            platform.send("unlock_doors", {"id": 7, "doors": 4, "expires_at": expires_at}, qos)
        first, second = platform.wait_for(2)
        assert first == second == {"id": "7", "status": "done", "result": {"unlocked": 4}}
    # Also the next process.
    with vehicle(broker.url, tmp_path, doors):
        platform.send("unlock_doors", {"id": 7, "doors": 4}, qos)
        assert platform.wait_for(3)[2] == first
    assert len(doors.calls) == 1


def test_a_duplicate_of_one_that_runs_gets_its_reply(broker: Broker, platform: Platform, tmp_path: Path) -> None:
    doors = Doors()
    doors.gate.clear()
    with vehicle(broker.url, tmp_path, doors) as manager:
        for _ in range(3):
            platform.send("unlock_doors", {"id": "a"})
        assert eventually(lambda: manager.get_metrics().inbox_size == 3)
        doors.gate.set()
        assert len(platform.wait_for(3)) == 3
        assert eventually(lambda: manager.get_metrics().inbox_size == 0)
        counts = manager.get_metrics().commands
        assert (counts["done"], counts["duplicate"]) == (1, 2)
    assert len(doors.calls) == 1


def test_an_id_with_other_arguments_is_refused(broker: Broker, platform: Platform, tmp_path: Path) -> None:
    doors = Doors()
    with vehicle(broker.url, tmp_path, doors):
        platform.send("unlock_doors", {"id": "a", "doors": 1})
        platform.wait_for(1)
        platform.send("unlock_doors", {"id": "a", "doors": 2})
        reply = platform.wait_for(2)[1]
        assert (reply["id"], reply["status"], reply["error"]["code"]) == ("a", "error", "id_in_use")
        platform.send("unlock_doors", {"id": "a", "doors": 1})
        assert platform.wait_for(3)[2]["result"] == {"unlocked": 1}
    assert len(doors.calls) == 1


@pytest.mark.parametrize(
    ("name", "payload", "properties", "code"),
    [
        ("open_roof", {"id": "a"}, {}, "unknown_command"),
        ("unlock_doors", {"id": "a", "expires_at": 1000}, {}, "expired"),
        ("unlock_doors", {"id": "a", "expires_at": "soon"}, {}, "invalid"),
        ("unlock_doors", b"{", {"CorrelationData": b"a"}, "invalid"),
        ("unlock_doors", b"[1]", {"CorrelationData": b"a"}, "invalid"),
        ("unlock_doors", b"[" * 60_000, {"CorrelationData": b"a"}, "invalid"),
        ("unlock_doors", {"id": "a", "filler": "x" * 70_000}, {"CorrelationData": b"a"}, "invalid"),
        ("unlock_doors", {"doors": 1}, {}, "invalid"),
        ("unlock_doors", {"id": ""}, {}, "invalid"),
        ("unlock_doors", {"id": "x" * 300}, {}, "invalid"),
        ("unlock_doors", b'{"id": "\\ud800"}', {}, "invalid"),
        ("unlock_doors", b'{"id": NaN}', {}, "invalid"),
        pytest.param("unlock_doors", b'{"id": 1' + b"0" * 400 + b"}", {}, "invalid", id="a large id"),
        pytest.param("unlock_doors", b'{"id": "a", "n": ' + b"9" * 5000 + b"}", {}, "invalid", id="a large number"),
        pytest.param("unlock_doors", b'{"id": "a", "expires_at": -1' + b"0" * 400 + b"}", {}, "expired", id="long ago"),
        ("unlock_doors", b'{"id": "a", "n": NaN}', {"CorrelationData": b"a"}, "invalid"),
        ("unlock_doors", b'{"id": "a", "n": 1e999}', {}, "invalid"),
        ("unlock_doors", b'{"id": "a", "doors": 1, "doors": 2}', {}, "invalid"),
        ("unlock_doors", b'{"id": "a", "id": "b"}', {}, "invalid"),
        ("unlock_doors", {"id": "a", "expires_at": "1970-01-01T00:00:01Z"}, {}, "expired"),
        ("unlock_doors", {"id": "a", "expires_at": "2020-02-29T23:59:60+09:00"}, {}, "invalid"),
        ("unlock_doors", {"id": "a", "expires_at": "2999-01-01T00:00:00"}, {}, "invalid"),
        ("unlock_doors", {"id": [1]}, {}, "invalid"),
        ("unlock_doors", {"id": True}, {}, "invalid"),
        ("unlock_doors", {"id": None}, {}, "invalid"),
        ("unlock_doors", {}, {"CorrelationData": b""}, "invalid"),
        ("unlock_doors", b"", {}, "invalid"),
        ("unlock_doors", b'{"id": "\xff"}', {}, "invalid"),
        ("unlock_doors", b'{"id": "a", "expires_at": NaN}', {}, "invalid"),
        ("unlock_doors", b'{"id": "a", "expires_at": Infinity}', {}, "invalid"),
        ("unlock_doors", {"id": "a", "expires_at": True}, {}, "invalid"),
        ("unlock_doors", {"id": "a", "expires_at": -5}, {}, "expired"),
        ("unlock_doors", {"id": "a", "expires_at": 1e-300}, {}, "expired"),
        ("unlock_doors", {"id": "a"}, {"ResponseTopic": f"{COMMANDS}/unlock_doors"}, "invalid"),
    ],
)
def test_what_is_not_run_is_answered_so(
    broker: Broker, platform: Platform, tmp_path: Path, name: str, payload: Any, properties: Any, code: str
) -> None:
    doors = Doors()
    with vehicle(broker.url, tmp_path, doors, protocol_version=5) as manager:
        platform.send(name, payload, **properties)
        (reply,) = platform.wait_for(1)
        assert (reply["status"], reply["error"]["code"]) == ("error", code)
        assert eventually(lambda: manager.get_metrics().inbox_size == 0)
        assert manager.get_metrics().commands[code] == 1
    assert doors.calls == []


class RawPlatform(OddBroker):
    """Sends one command with properties that no client of ours makes, and is sent the reply."""

    def __init__(self, properties: bytes) -> None:
        super().__init__(protocol_version=5)
        topic = f"{COMMANDS}/unlock_doors".encode()
        body = len(topic).to_bytes(2, "big") + topic + b"\x00\x05" + bytes([len(properties)]) + properties
        body += b'{"id": "a"}'
        self._command = b"\x32" + remaining_length(len(body)) + body

    def answer(self, packet: Packet) -> bytes:
        if packet.kind == SUBSCRIBE:
            return granted(packet, 5) + self._command
        return super().answer(packet)

    def on_publish(self, packet: Packet) -> bytes:
        self.delivered.append(packet.body)
        return ack(PUBREC, packet.packet_id)


@pytest.mark.parametrize("topic", [b"answers/+", b"answers/#", b"+"])
def test_a_response_topic_with_a_wildcard_is_refused(tmp_path: Path, topic: bytes) -> None:
    """mosquitto hands it on. A connection that ends over it would end with each repetition."""
    doors = Doors()
    with RawPlatform(b"\x08" + len(topic).to_bytes(2, "big") + topic) as broker:
        config = quick_config(broker.url, tmp_path, protocol_version=5)
        with MQTTManager(config) as manager:
            manager.command("unlock_doors")(doors)
            manager.connect()
            assert eventually(lambda: len(broker.delivered) == 1)
        (reply,) = broker.delivered
    assert f"{COMMANDS}/unlock_doors/reply".encode() in reply
    assert b'"id":"a","status":"error"' in reply
    assert b"Response Topic" in reply
    assert broker.connections == 1
    assert doors.calls == []


class LaterTime:
    """The clock of commands, once `later_s` is set ahead of the others."""

    later_s = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.later_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> LaterTime:
    found = LaterTime()
    for module in (commands, command_request):
        monkeypatch.setattr(module, "time", found)
    return found


def test_one_that_waits_longer_than_its_message_expiry_is_not_run(
    broker: Broker, platform: Platform, tmp_path: Path, clock: LaterTime
) -> None:
    doors = Doors()
    doors.gate.clear()
    with vehicle(broker.url, tmp_path, doors, protocol_version=5) as manager:
        platform.send("unlock_doors", {"id": "first"})
        assert eventually(lambda: len(doors.calls) == 1)
        for name, expiry_s in (("late", 60), ("in time", 600)):
            platform.send("unlock_doors", {"id": name}, MessageExpiryInterval=expiry_s)
        assert eventually(lambda: manager.get_metrics().inbox_size == 3)
        clock.later_s = 100.0
        doors.gate.set()
        replies = platform.wait_for(3)
        assert [reply["status"] for reply in replies] == ["done", "error", "done"]
        assert replies[1]["error"]["code"] == "expired"
    assert [context.id for _, context in doors.calls] == ["first", "in time"]


class Textless(Exception):  # noqa: N818 - as a program may have it
    def __str__(self) -> str:
        raise ValueError("no text")

    __repr__ = __str__


@pytest.mark.parametrize(
    ("returned", "text"),
    [
        (ValueError("the lock is frozen"), "ValueError: the lock is frozen"),
        pytest.param(ValueError("\ud800"), "ValueError: ?", id="half a character"),
        (KeyError("doors"), "KeyError: 'doors'"),
        (Textless(), "Textless"),
        (SystemExit(3), "SystemExit: 3"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (object(), "JSON"),
        (float("nan"), "JSON"),
        ({1: 2}, "JSON"),
        (b"x", "JSON"),
        ("x" * 9000, "9"),
    ],
)
def test_a_handler_that_fails(
    broker: Broker, platform: Platform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, returned: Any, text: str
) -> None:
    # pytest cannot hand on a log with half a character in it.
    monkeypatch.setattr(logging.getLogger("glec_fast"), "disabled", True)

    def handler(_arguments: object, _context: object) -> Any:
        if isinstance(returned, BaseException):
            raise returned
        return returned

    with vehicle(broker.url, tmp_path, handler) as manager:
        platform.send("unlock_doors", {"id": "a"})
        (reply,) = platform.wait_for(1)
        assert reply["error"]["code"] == "failed"
        assert text in reply["error"]["message"]
        platform.send("unlock_doors", {"id": "a"})
        assert platform.wait_for(2)[1] == reply
        assert eventually(lambda: manager.get_metrics().inbox_size == 0)


@pytest.mark.parametrize("result", [None, True, 1.5, "text", [1, {"a": None}], {}])
def test_results_are_json(broker: Broker, platform: Platform, tmp_path: Path, result: Any) -> None:
    with vehicle(broker.url, tmp_path, lambda _arguments, _context: result):
        platform.send("unlock_doors", {"id": "a"})
        assert platform.wait_for(1)[0]["result"] == result


def begin_in_an_earlier_process(directory: Path, name: str, identifier: str, qos: int) -> None:
    """What a process leaves that is killed while the handler runs."""
    payload = json.dumps({"id": identifier}).encode()
    key = command_log.Key(name, b"j" + identifier.encode(), sha256(b"{}").digest())
    origin = command_log.Origin(40_000 * bool(qos), qos, f"{COMMANDS}/{name}", payload, None)
    with closing(Store(directory / "queue.db")) as store:
        store.run(lambda table: command_log.begin(table, key, origin))


@pytest.mark.parametrize("on_crash", ["fail", "retry"])
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_one_that_was_begun_and_does_not_come_again(
    broker: Broker, platform: Platform, tmp_path: Path, clock: LaterTime, qos: int, on_crash: Any
) -> None:
    """The broker has the session, and the command no more: it expired there, or went with what the broker lost."""
    doors = Doors()
    with vehicle(broker.url, tmp_path, doors):
        pass
    begin_in_an_earlier_process(tmp_path, "unlock_doors", "a", qos)
    begin_in_an_earlier_process(tmp_path, "of_an_earlier_version", "b", qos)
    with vehicle(broker.url, tmp_path, doors, on_crash=on_crash) as manager:
        if qos:
            assert platform.replies == []
        clock.later_s = 100.0
        # The loop sleeps by a clock that is not ahead.
        assert manager.publish("any", "x", 1).wait_for_publish(TIMEOUT_S) is None
        replies = {reply["id"]: reply for reply in platform.wait_for(2)}
        if on_crash == "retry":
            assert replies["a"]["status"] == "done"
        else:
            assert replies["a"]["error"]["code"] == "interrupted"
        assert replies["b"]["error"]["code"] == "interrupted"
    assert [context.is_retry for _, context in doors.calls] == [True] * (on_crash == "retry")


@pytest.mark.parametrize(
    "damage",
    [
        "topic = CAST(x'FF' AS TEXT)",
        "payload = x'7B'",
        "payload = 5",
        'payload = CAST(\'{"id": "another"}\' AS BLOB)',
        'payload = CAST(\'{"id": "b", "doors": 9}\' AS BLOB)',
        "properties = x'05FF'",
        "digest = x'00'",
    ],
)
def test_one_that_was_begun_and_cannot_be_read_is_answered_and_not_run(
    broker: Broker, platform: Platform, tmp_path: Path, damage: str
) -> None:
    """Nobody knows what it was; those behind it are run."""
    doors = Doors()
    with vehicle(broker.url, tmp_path, doors, "retry"):
        pass
    for identifier in ("b", "c"):
        begin_in_an_earlier_process(tmp_path, "unlock_doors", identifier, 0)
    with plain(tmp_path / "queue.db") as database:
        database.execute(f"UPDATE glec_command SET {damage} WHERE id = CAST('jb' AS BLOB)")
    for _ in range(2):
        with vehicle(broker.url, tmp_path, doors, "retry"):
            replies = {reply["id"]: reply for reply in platform.wait_for(2)}
            assert replies["c"]["status"] == "done"
            if damage.startswith(("properties", "topic")):
                assert replies["b"]["status"] == "done"
            else:
                assert replies["b"]["error"]["code"] == "interrupted"
    assert len(platform.replies) == 2
    assert all(context.is_retry for _, context in doors.calls)


def test_one_that_nobody_can_name_is_told_once(
    broker: Broker, platform: Platform, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    doors = Doors()
    with vehicle(broker.url, tmp_path, doors):
        pass
    for name, identifier in (("unlock_doors", "a"), ("lock_doors", "b")):
        begin_in_an_earlier_process(tmp_path, name, identifier, 0)
    with plain(tmp_path / "queue.db") as database:
        database.execute("UPDATE glec_command SET id = 'text' WHERE name = 'lock_doors'")
    with vehicle(broker.url, tmp_path, doors):
        assert platform.wait_for(1)[0]["id"] == "a"
        assert eventually(lambda: "of 1 commands that had begun name or id cannot be read" in caplog.text)
    assert "'lock_doors'" in caplog.text
    caplog.clear()
    with vehicle(broker.url, tmp_path, doors):
        pass
    assert "cannot be read" not in caplog.text


def begun_on_disk(path: Path) -> int:
    with closing(apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)) as connection:
        return int(connection.execute("SELECT count(*) FROM glec_command WHERE reply IS NULL").get)


@pytest.mark.parametrize("expiry_s", [None, 60, 6000])
def test_properties_outlive_a_kill(broker: Broker, platform: Platform, tmp_path: Path, expiry_s: int | None) -> None:
    """Of QoS 0, which the broker does not send again: id, way of the reply, and since when it waits, are on disk."""
    doors, path = Doors(), tmp_path / "queue.db"
    child = Killed(
        "receiving_child", kind="commands", port=broker.port, protocol_version=5, client_id="DTG-TEST",
        queue_path=str(path), seen=str(tmp_path / "seen"),
    )  # fmt: skip
    child.wait_ready()

    def is_subscribed() -> bool:
        platform.send("once", {"id": "first", "work_s": 0})
        return bool(platform.replies)

    assert eventually(is_subscribed)
    expiry = {} if expiry_s is None else {"MessageExpiryInterval": expiry_s}
    platform.send("again", {"work_s": 100}, 0, ResponseTopic="answers/1", CorrelationData=b"\xff", **expiry)
    assert eventually(lambda: begun_on_disk(path) == 1)
    child.kill()
    later = Clocks(wall_ms=lambda: time.time_ns() // 1_000_000 + 1_000_000, is_right=lambda: True)
    with MQTTManager(quick_config(broker.url, tmp_path, protocol_version=5), clocks=later) as manager:
        manager.command("again", on_crash="retry")(doors)
        manager.connect()
        assert eventually(lambda: any(each[0] == "answers/1" for each in platform.replies))
    ((_, reply, correlation),) = (each for each in platform.replies if each[0] == "answers/1")
    assert (reply["id"], correlation) == ("ff", b"\xff")
    if expiry_s == 60:
        assert reply["error"]["code"] == "interrupted"
    else:
        assert reply["status"] == "done"
    assert [context.is_retry for _, context in doors.calls] == [True] * (expiry_s != 60)


class Repeating(OddBroker):
    """Sends one command on each connection, under one packet id, and has each session only once."""

    def __init__(self) -> None:
        super().__init__(keeps_sessions=False)

    def answer(self, packet: Packet) -> bytes:
        if packet.kind != SUBSCRIBE:
            return super().answer(packet)
        topic = f"{COMMANDS}/unlock_doors".encode()
        body = len(topic).to_bytes(2, "big") + topic + b"\x00\x05" + b'{"id": "a"}'
        # The second has been sent before, too, and was lost.
        return b"\x90\x03" + packet.body[:2] + b"\x01" + bytes((0x32 | (self.connections > 1) << 3, len(body))) + body


def test_a_duplicate_under_the_packet_id_of_an_ended_session_is_answered(tmp_path: Path) -> None:
    doors = Doors()
    with Repeating() as broker:
        for count in (1, 2):
            with MQTTManager(quick_config(broker.url, tmp_path)) as manager:
                manager.command("unlock_doors")(doors)
                manager.connect()
                assert eventually(lambda count=count: len(broker.delivered) == count)  # type: ignore[misc]
    assert len(doors.calls) == 1


@pytest.mark.parametrize("qos", [1, 2])
def test_a_cut_link_while_it_runs(broker: Broker, link: Link, platform: Platform, tmp_path: Path, qos: int) -> None:
    doors = Doors()
    doors.gate.clear()
    with vehicle(f"tcp://127.0.0.1:{link.port}", tmp_path, doors) as manager:
        platform.send("unlock_doors", {"id": "a"}, qos)
        assert eventually(lambda: len(doors.calls) == 1)
        link.cut()
        doors.gate.set()
        link.restore()
        platform.wait_for(1)
        platform.send("unlock_doors", {"id": "b"}, qos)
        assert [reply["id"] for reply in platform.wait_for(2)] == ["a", "b"]
        assert eventually(lambda: manager.get_metrics().inbox_size == 0)
    assert len(doors.calls) == 2


def test_one_that_disconnect_did_not_let_begin_is_run_by_the_next_process(
    broker: Broker, platform: Platform, tmp_path: Path
) -> None:
    doors = Doors()
    doors.gate.clear()
    with vehicle(broker.url, tmp_path, doors) as manager:
        for name in ("runs", "waits"):
            platform.send("unlock_doors", {"id": name})
        assert eventually(lambda: manager.get_metrics().inbox_size == 2)
        leaving = threading.Thread(target=manager.disconnect)
        leaving.start()
        assert eventually(lambda: manager.get_metrics().state == "closed")
        doors.gate.set()
        leaving.join(TIMEOUT_S)
    with vehicle(broker.url, tmp_path, doors):
        assert sorted(reply["id"] for reply in platform.wait_for(2)) == ["runs", "waits"]
        assert {reply["status"] for reply in platform.wait_for(2)} == {"done"}
    assert [context.id for _, context in doors.calls] == ["runs", "waits"]
    assert not any(context.is_retry for _, context in doors.calls)


@pytest.mark.parametrize(("protocol_version", "max_qos"), [(4, 0), (5, 0), (5, 1)])
def test_a_broker_of_a_lower_qos(
    start_broker: StartBroker, tmp_path: Path, protocol_version: int, max_qos: int
) -> None:
    """MQTT 5 says so, of the will too; before it the setting does."""
    broker, doors, came = start_broker(settings=[f"max_qos {max_qos}"]), Doors(), threading.Event()
    settings = {"protocol_version": protocol_version} | ({"max_qos": max_qos} if protocol_version == 4 else {})
    with vehicle(broker.url, tmp_path, doors, **settings) as manager:
        reply = manager.subscribe(f"{COMMANDS}/unlock_doors/reply", lambda _: came.set(), qos=2)
        assert reply.wait_granted(TIMEOUT_S)
        assert reply.granted_qos == max_qos
        manager.publish(f"{COMMANDS}/unlock_doors", {"id": "a"}, max_qos)
        assert came.wait(TIMEOUT_S)
        assert eventually(lambda: manager.get_metrics().inbox_size == 0)
    assert len(doors.calls) == 1


def test_a_declaration_behind_one_that_was_refused(broker: Broker, platform: Platform, tmp_path: Path) -> None:
    with MQTTManager(quick_config(broker.url, tmp_path)) as manager:
        with pytest.raises(ConfigError):
            manager.command("a/b")(Doors())
        manager.command("unlock_doors")(Doors())
        manager.connect()
        assert manager.subscribe("ready", print).wait_granted(TIMEOUT_S)
        platform.send("unlock_doors", {"id": "a"})
        assert platform.wait_for(1)[0]["status"] == "done"


def test_declarations_that_make_no_sense(tmp_path: Path) -> None:
    with MQTTManager(quick_config("tcp://localhost:1", tmp_path)) as manager:
        for name in ("", "a/b", "+", "#"):
            with pytest.raises(ConfigError):
                manager.command(name)(Doors())
        with pytest.raises(ConfigError, match="on_crash"):
            manager.command("a", on_crash="again")(Doors())  # type: ignore[arg-type]
        # Without brackets, it would stand in the handler's place.
        with pytest.raises(ConfigError, match="name"):
            manager.command(Doors())  # type: ignore[arg-type]

        async def coroutine(*_: object) -> None:
            """Nobody would run it."""

        def generator(*_: object) -> Iterator[int]:
            yield 1

        class Called:
            async def __call__(self, *_: object) -> None:
                """Nor this."""

        for handler in (None, coroutine, partial(coroutine, 1), Called(), generator):
            for call in (manager.command("a"), lambda handler: manager.subscribe("a", handler)):
                with pytest.raises(ConfigError, match="handler"):
                    call(handler)  # type: ignore[operator]
        with pytest.raises(MessageError, match="commands"):
            manager.subscribe(f"{COMMANDS}/+", print)
