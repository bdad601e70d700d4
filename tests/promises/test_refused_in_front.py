"""With every kind of message that a broker will not take in front, what is behind it arrives.

At most one copy more of each QoS 1 message, none of QoS 2; from the manager and from a client with a store, and where
the process begins anew in between. Each is tried in one of these ways; `make refused` tries all of them.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from glec_fast import Client, Dropped, DropReason, MQTTManager
from glec_fast.durable.store import Store
from glec_fast.errors import MessageError
from glec_fast.outbox import next_rows
from glec_fast.testbed.subscriber import Subscriber
from support.gateway import TIMEOUT_S, eventually, quick_config
from support.odd_broker import CLOSE, MQTT_5, RESET, OddBroker
from support.wire_reference import PUBLISH

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from pathlib import Path

    from conftest import StartBroker
    from support.wire_reference import Packet

LONG_S = 60.0
LARGE_BYTES = 4000
RETRY_S = 0.05
BAD = "=bad"
GOOD = [f"={number}" for number in range(9)]


class Kind(NamedTuple):
    """What the broker will not take. refuses: of a PUBLISH, its flags and body. reason: MQTT 5's code."""

    refuses: Callable[[int, bytes], bool]
    reason: int
    topic: str = "t"
    payload: str = BAD
    property_name: str = ""


KINDS = {
    "too large": Kind(lambda _flags, body: len(body) > LARGE_BYTES, 0x95, payload="x" * LARGE_BYTES + BAD),
    "its QoS": Kind(lambda flags, _body: flags & 6 == 4, 0x9B),
    "its topic": Kind(lambda _flags, body: body[2:].startswith(b"$SYS"), 0x90, topic="$SYS/of the broker"),
    "no right to it": Kind(lambda _flags, body: body[2:].startswith(b"denied"), 0x87, topic="denied/t"),
    "a user property": Kind(lambda _flags, body: b"odd name" in body, 0x83, property_name="odd name"),
}
# How the broker says so: it ends the connection in order, or at once, or answers what MQTT does not allow. In MQTT 5 it
# says why before that, or refuses.
WAYS_4, WAYS_5 = ("closes", "resets", "babbles"), ("closes", "resets", "babbles", "disconnects", "refuses")
CASES = [
    (kind, version, way, qos)
    for kind in KINDS
    for version, ways in ((4, WAYS_4), (5, WAYS_5))
    for way in ways
    for qos in (1, 2)
    if not (kind == "a user property" and version != MQTT_5) and not (kind == "its QoS" and qos == 1)
]
# Whether through the manager, and whether the process begins anew.
RUNS = list(product((True, False), (True, False)))
TRIED = (
    [(*case, *run) for case in CASES for run in RUNS]
    if "ALL_REFUSED" in os.environ
    else [(*case, *RUNS[number % len(RUNS)]) for number, case in enumerate(CASES)]
)


class Refusing(OddBroker):
    """Takes all but one kind. refused: how often it was sent that. came_on: payloads, by their first connection."""

    kind: Kind
    way: str
    refused = 0

    def __init__(self, protocol_version: int) -> None:
        super().__init__(protocol_version)
        self.came_on: dict[bytes, int] = {}

    def answer(self, packet: Packet) -> bytes:
        known = len(self.delivered)
        answer = super().answer(packet)
        for payload in self.delivered[known:]:
            self.came_on.setdefault(payload, self.connections)
        return answer

    def on_publish(self, packet: Packet) -> bytes:
        if not self.kind.refuses(packet.flags, packet.body):
            return super().on_publish(packet)
        self.refused += 1
        if self.way == "refuses":
            command = 0x50 if packet.flags & 6 == 4 else 0x40
            return bytes((command, 3)) + packet.packet_id.to_bytes(2, "big") + bytes((self.kind.reason,))
        if self.way == "babbles":
            return b"\x40\x02\xff\xfe"
        if self.way == "disconnects":
            self._link.sendall(bytes((0xE0, 2, self.kind.reason, 0)))
        return RESET if self.way == "resets" else CLOSE

    def _converse(self, link: socket.socket) -> None:
        self._link = link
        super()._converse(link)


class Sender:
    """A process's life: the manager, or a client with a store."""

    def __init__(self, stack: ExitStack, broker: Refusing, directory: Path, *, is_manager: bool) -> None:
        self.dropped: list[Dropped] = []
        self._version = broker.protocol_version
        # What is refused with a reason is sent again after half a minute.
        settings = {"queue_max_retry": 1} if broker.way == "refuses" else {}
        if is_manager:
            config = quick_config(broker.url, directory, protocol_version=self._version, **settings)
            self._manager: MQTTManager | None = stack.enter_context(MQTTManager(config))
            self._manager.set_drop_callback(self.dropped.append)
            self.connect: Callable[[], object] = self._manager.connect
            self._store = self._manager._store
            return
        self._manager = None
        store = Store(directory / "queue.db", **({"max_retry": 1} if settings else {}))
        self._client = stack.enter_context(
            Client(CallbackAPIVersion.VERSION2, "DTG-TEST", protocol=MQTTProtocolVersion(self._version), store=store)
        )
        self._client.on_drop = lambda _client, _userdata, dropped: self.dropped.append(dropped)
        self._client.reconnect_delay_set(RETRY_S, RETRY_S)
        self._client.connect_async("127.0.0.1", broker.port)
        self.connect = self._client.loop_start
        self._store = store

    def publish(self, topic: str, payload: str, qos: int, property_name: str = "") -> Any:
        if self._manager is not None:
            named = {property_name: "1"} if property_name else None
            return self._manager.publish(topic, payload, qos, user_properties=named)
        properties = None
        if property_name:
            properties = Properties(PacketTypes.PUBLISH)
            properties.UserProperty = (property_name, "1")
        return self._client.publish(topic, payload, qos, properties=properties)

    def flush(self) -> bool:
        return self._store.wait_empty(LONG_S)


@pytest.mark.parametrize(("kind", "version", "way", "qos", "is_manager", "begins_anew"), TRIED)
def test_what_is_behind_it_arrives(
    tmp_path: Path, kind: str, version: int, way: str, qos: int, is_manager: bool, begins_anew: bool
) -> None:
    # Of what is behind it the broker takes all.
    good_qos = [1, 1] if kind == "its QoS" else [1, 2]
    broker = Refusing(version)
    broker.kind, broker.way = KINDS[kind], way
    bad = broker.kind.topic, broker.kind.payload, qos, broker.kind.property_name
    with broker, ExitStack() as stack:
        sender = Sender(stack, broker, tmp_path, is_manager=is_manager)
        sender.publish(*bad)
        for number, payload in enumerate(GOOD):
            sender.publish("t", payload, good_qos[number % 2])
            if number == len(GOOD) // 2:
                sender.publish(*bad)
        sender.connect()
        if begins_anew:
            # What babbles reads on, and may be sent both on its first connection.
            assert eventually(lambda: broker.refused >= 2 and (broker.connections >= 2 or way == "refuses"))
            stack.close()
            sender = Sender(stack, broker, tmp_path, is_manager=is_manager)
            sender.connect()
        assert sender.flush(), broker.counts()
        assert eventually(lambda: sender.dropped or begins_anew, LONG_S)
        assert {each.reason for each in sender.dropped} <= {DropReason.QUARANTINED}
        sender.publish("t", "=last", 1).wait_for_publish(TIMEOUT_S)
        assert eventually(lambda: b"last" in broker.delivered)
        counts = broker.counts()
    assert set(counts) == {payload[1:].encode() for payload in GOOD} | {b"last"}
    for number, payload in enumerate(GOOD):
        most = 2 if good_qos[number % 2] == 1 else 1
        assert counts[payload[1:].encode()] <= most, (payload, good_qos[number % 2], counts)


# The oldest of them is exposed, perhaps twice, and has three tries. What is behind it goes on the next connection, and
# what was exposed beside another of them perhaps on the one after that. A restart ends one more.
CONNECTIONS_MAX = 8
MANY = 40
# (kind, version, way, QoS, whether through the manager, whether the process begins anew).
CASES_OF_MANY = [
    (kind, version, way, qos, (version + qos + number) % 2 == 0, (version // 5 + number) % 2 == 0)
    for number, (kind, way) in enumerate(product(KINDS, ("closes", "resets")))
    for version in (4, 5)
    for qos in (1, 2)
    if not (kind == "a user property" and version != MQTT_5) and not (kind == "its QoS" and qos == 1)
]


@pytest.mark.parametrize(("kind", "version", "way", "qos", "is_manager", "begins_anew"), CASES_OF_MANY)
def test_what_is_behind_many_of_them_arrives_as_soon(
    tmp_path: Path, kind: str, version: int, way: str, qos: int, is_manager: bool, begins_anew: bool
) -> None:
    good_qos = [1, 1] if kind == "its QoS" else [1, 2]
    good = [f"={number}" for number in range(3 * MANY)]
    broker = Refusing(version)
    broker.kind, broker.way = KINDS[kind], way
    bad = broker.kind.topic, broker.kind.payload, qos, broker.kind.property_name
    with broker, ExitStack() as stack:
        sender = Sender(stack, broker, tmp_path, is_manager=is_manager)
        for _ in range(MANY // 2):
            sender.publish(*bad)
        for number, payload in enumerate(good):
            sender.publish("t", payload, good_qos[number % 2])
            if number % 6 == 0:
                sender.publish(*bad)
        sender.connect()
        if begins_anew:
            assert eventually(lambda: broker.refused >= 2)
            stack.close()
            sender = Sender(stack, broker, tmp_path, is_manager=is_manager)
            sender.connect()
        wanted = {payload[1:].encode() for payload in good}
        assert eventually(lambda: wanted <= set(broker.came_on), LONG_S), broker.connections
        sender.publish("t", "=last", 1).wait_for_publish(TIMEOUT_S)
        counts = broker.counts()
    assert max(broker.came_on[payload] for payload in wanted) <= CONNECTIONS_MAX
    for number, payload in enumerate(good):
        most = 2 if good_qos[number % 2] == 1 else 1
        assert counts[payload[1:].encode()] <= most, (payload, good_qos[number % 2], counts)


def test_what_is_behind_many_of_several_kinds_arrives(tmp_path: Path) -> None:
    kinds = [KINDS[name] for name in ("too large", "no right to it", "its topic")]
    broker = Refusing(4)
    broker.kind = Kind(lambda flags, body: any(kind.refuses(flags, body) for kind in kinds), 0)
    broker.way = "closes"
    with broker, MQTTManager(quick_config(broker.url, tmp_path)) as manager:
        for number in range(3 * MANY):
            kind = kinds[number % len(kinds)]
            manager.publish("t", f"={number}", 1 + number % 2)
            manager.publish(kind.topic, kind.payload, 1 + number // 2 % 2)
        manager.connect()
        wanted = {f"{number}".encode() for number in range(3 * MANY)}
        assert eventually(lambda: wanted <= set(broker.came_on), LONG_S), broker.connections
    # Each kind is to be found.
    assert max(broker.came_on[payload] for payload in wanted) <= 2 * CONNECTIONS_MAX


@pytest.mark.parametrize("qos", [1, 2])
def test_what_nothing_tells_apart_costs_a_connection_or_two_each(tmp_path: Path, qos: int) -> None:
    broker = Refusing(4)
    broker.kind = Kind(lambda _flags, body: b"=bad" in body, 0)
    broker.way = "closes"
    with broker, MQTTManager(quick_config(broker.url, tmp_path)) as manager:
        for number in range(MANY):
            manager.publish("t", f"=bad{number:02}", qos)
        for number in range(MANY):
            manager.publish("t", f"=good{number:02}", qos)
            manager.publish("t", f"=bad{number:02}", qos)
        manager.connect()
        wanted = {f"good{number:02}".encode() for number in range(MANY)}
        assert eventually(lambda: wanted <= set(broker.came_on), LONG_S), broker.connections
        counts = broker.counts()
    assert max(broker.came_on[payload] for payload in wanted) <= CONNECTIONS_MAX + 2 * 2 * MANY
    assert max(counts.values()) <= 3 - qos


def test_many_alerts_for_a_real_broker_without_qos_2(start_broker: StartBroker, tmp_path: Path) -> None:
    broker = start_broker(settings=["max_qos 1"])
    payloads = {f"{number}".encode() for number in range(3 * MANY)}
    config = quick_config(broker.url, tmp_path, resend_unproven=True)
    with Subscriber(broker, "t/#") as subscriber, MQTTManager(config) as manager:
        for number in range(3 * MANY):
            manager.publish("t/of the vehicle", f"{number}", number % 2)
            if number % 3 == 0:
                manager.publish("t/of the vehicle", "alert", 2)
        manager.connect()
        assert subscriber.wait_for_all(payloads, LONG_S)
        connections = manager.get_metrics().reconnect_count
    # It goes on with the alerts, one connection for each.
    assert connections < MANY // 2
    assert max(subscriber.payloads().count(f"{number}".encode()) for number in range(1, 3 * MANY, 2)) <= 2


@pytest.mark.parametrize(("kind", "protocol_version"), [("its QoS", 4), ("its QoS", 5), ("no right to it", 5)])
def test_a_real_broker(start_broker: StartBroker, tmp_path: Path, kind: str, protocol_version: int) -> None:
    rights = tmp_path / "rights"
    rights.write_text("topic readwrite t/#\n")
    settings = ["max_qos 1"] if kind == "its QoS" else [f"acl_file {rights}"]
    broker = start_broker(settings=settings)
    config = quick_config(broker.url, tmp_path, protocol_version=protocol_version, queue_max_retry=1)
    with Subscriber(broker, "t/#") as subscriber, MQTTManager(config) as manager:
        manager.publish("t/bad" if kind == "its QoS" else "denied", "bad", 2 if kind == "its QoS" else 1)
        payloads = {f"{number}".encode() for number in range(20)}
        for payload in sorted(payloads):
            manager.publish("t/good", payload, 1)
        manager.connect()
        assert subscriber.wait_for_all(payloads, LONG_S)
        assert manager.flush(LONG_S)
        drops = manager.get_metrics().drops
    counts = {payload: subscriber.payloads().count(payload) for payload in payloads}
    assert max(counts.values()) <= 2
    if protocol_version == MQTT_5 and kind == "its QoS":
        assert drops == {}, "MQTT 5 says so: it goes with QoS 1"
    else:
        assert drops == {"quarantined": 1}


class Silent(OddBroker):
    """Says nothing more on a connection once it was sent what is bad: as a path does that loses what is large."""

    silent_on = 0

    def answer(self, packet: Packet) -> bytes:
        if packet.kind == PUBLISH and BAD.encode() in packet.body:
            self.silent_on = self.connections
        return b"" if self.silent_on == self.connections else super().answer(packet)


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("max_in_flight", [1, 20])
@pytest.mark.parametrize("qos", [1, 2])
def test_what_is_behind_it_arrives_though_the_link_falls_silent(
    tmp_path: Path, qos: int, max_in_flight: int, version: int
) -> None:
    """Nothing tells such a link from a tunnel: the message stays, and the others go between its tries."""
    broker = Silent(version)
    timeouts = {"answer_timeout_s": 0.3, "ack_timeout_s": 0.3, "queue_max_retry": 2}
    config = quick_config(
        "tcp://127.0.0.1", tmp_path, protocol_version=version, max_in_flight=max_in_flight, **timeouts
    )
    with broker, MQTTManager(replace(config, broker_url=broker.url)) as manager:
        bad = manager.publish("t", BAD, qos)
        for number, payload in enumerate(GOOD):
            manager.publish("t", payload, 1 + number % 2)
        manager.connect()
        wanted = {payload[1:].encode() for payload in GOOD}
        assert eventually(lambda: wanted <= set(broker.delivered), LONG_S), broker.counts()
        counts, metrics = broker.counts(), manager.get_metrics()
        assert metrics.queue_size >= 1
        assert not bad.is_published()
    assert metrics.drops == {}
    assert all(counts[payload[1:].encode()] <= 2 - number % 2 for number, payload in enumerate(GOOD)), counts


class Recovering(Silent):
    """Falls silent over it on the first connections, and then no more: as a link does that was in a tunnel."""

    silent_times = 3

    def answer(self, packet: Packet) -> bytes:
        return super().answer(packet) if self.connections <= self.silent_times else OddBroker.answer(self, packet)


@pytest.mark.parametrize("qos", [1, 2])
def test_a_message_that_was_passed_over_goes_where_there_is_no_other(
    tmp_path: Path, qos: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(next_rows, "_REFUSED_PAUSE_S", 0.1)
    broker = Recovering()
    timeouts = {"answer_timeout_s": 0.3, "ack_timeout_s": 0.3, "queue_max_retry": 3}
    with broker, MQTTManager(quick_config(broker.url, tmp_path, **timeouts)) as manager:
        alone = manager.publish("t", BAD, qos)
        manager.connect()
        alone.wait_for_publish(LONG_S)
        assert alone.is_published()
        assert broker.connections == Recovering.silent_times + 1
    assert broker.counts() == {b"bad": 1}


def test_qos_0_that_is_larger_than_the_queue_is_refused_with_a_link_too(tmp_path: Path) -> None:
    with OddBroker() as broker, MQTTManager(quick_config(broker.url, tmp_path, queue_max_bytes=1_000_000)) as manager:
        manager.connect()
        assert eventually(manager.is_connected)
        with pytest.raises(MessageError, match="queue_max_bytes"):
            manager.publish("t", b"x" * 1_000_000, 0)
        manager.publish("t", "=small", 1).wait_for_publish(TIMEOUT_S)
        assert broker.delivered == [b"small"]
