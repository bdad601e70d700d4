"""A message that a broker ends connections over stops no other, and stands aside. A link that is bad has none do so."""

from __future__ import annotations

import random
import socket
import struct
import threading
from typing import TYPE_CHECKING, Any

import pytest

from glec_fast import Dropped, DropReason, MQTTManager, OfflineQueueManager
from glec_fast.testbed.link import Link
from glec_fast.testbed.subscriber import Subscriber
from support.gateway import BOTH_VERSIONS, TIMEOUT_S, eventually, quick_config
from support.killed import Killed
from support.odd_broker import CLOSE, RESET, OddBroker
from support.publisher_child import LARGE_BYTES

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import StartBroker
    from support.wire_reference import Packet

BOTH_QOS = pytest.mark.parametrize("qos", [1, 2])
# Closing with it resets the connection, and takes back what the peer has not read yet.
NO_LINGER = struct.pack("ii", 1, 0)
LONG_S = 60.0
# Of PUBLISH, for the topic "t".
TOPIC_AND_ID_BYTES = 5


class Refusing(OddBroker):
    """Ends the connection over each message whose payload begins with "bad". by: in order, or by a reset."""

    resets = False
    refused = 0

    def on_publish(self, packet: Packet) -> bytes:
        if packet.body.rpartition(b"=")[2].startswith(b"bad"):
            self.refused += 1
            return CLOSE
        return super().on_publish(packet)

    def _converse(self, link: socket.socket) -> None:
        super()._converse(link)
        if self.resets:
            link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)


def is_through(manager: MQTTManager) -> bool:
    return manager.get_metrics().queue_size == 0


@BOTH_VERSIONS
@BOTH_QOS
@pytest.mark.parametrize("resets", [False, True])
@pytest.mark.parametrize("bad_at", [{0}, {3}, {0, 1, 5}])
def test_it_stops_no_other_and_goes_into_quarantine(
    tmp_path: Path, protocol_version: int, qos: int, resets: bool, bad_at: set[int]
) -> None:
    payloads = [f"=bad{number}" if number in bad_at else f"={number}" for number in range(10)]
    dropped: list[Dropped] = []
    with Refusing(protocol_version) as broker:
        broker.resets = resets
        config = quick_config(broker.url, tmp_path, protocol_version=protocol_version)
        with MQTTManager(config) as manager:
            manager.set_drop_callback(dropped.append)
            ids = [manager.publish("t", payload, qos).message_id for payload in payloads]
            manager.connect()
            assert manager.flush(LONG_S)
            assert eventually(lambda: len(dropped) == len(bad_at), LONG_S)
            assert {each.message_id for each in dropped} == {ids[number] for number in bad_at}
            assert {each.reason for each in dropped} == {DropReason.QUARANTINED}
            assert manager.get_metrics().drops == {"quarantined": len(bad_at)}
            connections = broker.connections
            manager.publish("t", "=last", qos).wait_for_publish(TIMEOUT_S)
            assert broker.connections == connections, "the connection lasts"
        counts = broker.counts()
    good = {payload[1:].encode() for payload in payloads if "bad" not in payload} | {b"last"}
    assert set(counts) == good
    assert all(count <= (2 if qos == 1 else 1) for count in counts.values()), counts
    with OfflineQueueManager(tmp_path / "queue.db") as queue:
        entries = queue.quarantined()
        assert [entry.message_id for entry in entries] == [ids[number] for number in sorted(bad_at)]
        assert all("3 connections" in entry.reason for entry in entries)


@BOTH_QOS
def test_what_is_known_of_it_outlives_the_process(tmp_path: Path, qos: int) -> None:
    with Refusing(4) as broker:
        config = quick_config(broker.url, tmp_path)
        with MQTTManager(config) as manager:
            manager.publish("t", "=bad", qos)
            for number in range(5):
                manager.publish("t", f"={number}", qos)
            manager.connect()
            assert eventually(lambda: broker.refused >= 2)
        with MQTTManager(config) as manager:
            manager.connect()
            assert manager.flush(LONG_S)
            assert eventually(lambda: manager.get_metrics().drops == {"quarantined": 1}, LONG_S)
        refused = broker.refused
        with MQTTManager(config) as manager:
            manager.connect()
            manager.publish("t", "=after", qos).wait_for_publish(TIMEOUT_S)
        assert broker.refused == refused
        counts = broker.counts()
    assert set(counts) == {b"0", b"1", b"2", b"3", b"4", b"after"}
    assert max(counts.values()) <= (2 if qos == 1 else 1)
    # Exposed, three tries, and one that our own end cut short.
    assert refused <= 5


class RefusingUntilKilled(OddBroker):
    """Hands on what stands before a large message, says nothing of it, and resets the connection over that message.

    A process that comes back for a connection is to be killed before it is accepted, `lives` times.
    """

    def __init__(self, lives: int) -> None:
        super().__init__()
        self.lives = lives
        self.refused = 0
        self.waits = threading.Event()
        self._of_this_life = 0

    def on_connect(self) -> bytes:
        self._of_this_life += 1
        if self._of_this_life == 2 and self.lives:
            self.lives -= 1
            self._of_this_life = 0
            self.waits.set()
            return b""
        return super().on_connect()

    def on_publish(self, packet: Packet) -> bytes:
        head, payload = packet.body[:TOPIC_AND_ID_BYTES], packet.body[TOPIC_AND_ID_BYTES:]
        if len(payload) >= LARGE_BYTES:
            self.refused += 1
            return RESET
        answer = super().on_publish(packet._replace(body=head + b"=" + payload))
        return b"" if self.connections == 1 else answer


@pytest.mark.parametrize("levels", [[1], [2], [1, 2]])
def test_a_gateway_that_is_killed_again_and_again_goes_on_counting(tmp_path: Path, levels: list[int]) -> None:
    with RefusingUntilKilled(lives=3) as broker:
        for life in range(4):
            count = 0 if life else 9
            child = Killed(
                "publisher_child",
                url=broker.url,
                client_id="DTG-TEST",
                queue_path=str(tmp_path / "queue.db"),
                topic="t",
                first=1,
                count=count,
                qos=levels,
                large_every=5,
            )
            if life < 3:
                assert broker.waits.wait(LONG_S), child.kill()
                child.wait_said("published")
                broker.waits.clear()
                child.kill()
        assert eventually(lambda: len(set(broker.delivered)) == 8 * len(levels), LONG_S)
        child.kill()
        counts = broker.counts()
    assert all(count <= (2 if payload.startswith(b"1") else 1) for payload, count in counts.items()), counts


@BOTH_VERSIONS
@BOTH_QOS
@pytest.mark.parametrize(
    ("setting", "bad"),
    [
        ("max_packet_size 4000", {"topic": "t/bad", "payload": "x" * 8000}),
        ("max_packet_size 4000", {"topic": "t/bad", "payload": "x" * 2_000_000}),
        ("message_size_limit 4000", {"topic": "t/bad", "payload": "x" * 8000}),
    ],
)
def test_a_real_broker_with_limits(
    start_broker: StartBroker, tmp_path: Path, protocol_version: int, qos: int, setting: str, bad: dict[str, Any]
) -> None:
    broker = start_broker(settings=[setting])
    config = quick_config(broker.url, tmp_path, protocol_version=protocol_version, queue_max_retry=2)
    with Subscriber(broker) as subscriber, MQTTManager(config) as manager:
        manager.publish("t/before", "0", qos)
        manager.publish(**bad, qos=qos)
        for number in range(20):
            manager.publish("t/after", f"{number}", qos)
        manager.connect()
        assert subscriber.wait_for_count(21, LONG_S)
        if protocol_version == 4 and setting.startswith("max_packet_size"):
            assert eventually(lambda: manager.get_metrics().drops == {"quarantined": 1}, LONG_S)
        assert manager.publish("t/last", "last", qos).wait_for_publish(TIMEOUT_S) is None


@BOTH_QOS
@pytest.mark.parametrize("size", [300, 3000])
def test_a_link_that_cuts_again_and_again_puts_none_there(
    start_broker: StartBroker, tmp_path: Path, qos: int, size: int
) -> None:
    """Twenty-five connections, each cut after 0 to 20 kB, in order: as a broker would end it."""
    broker = start_broker()
    dice = random.Random(qos * size)
    count = 250_000 // size
    with Link((broker.host, broker.port)) as link, Subscriber(broker, "t") as subscriber:
        config = quick_config(
            f"tcp://{link.address[0]}:{link.port}", tmp_path, retry_initial_delay_ms=1, retry_max_delay_ms=1
        )
        with MQTTManager(config) as manager:
            handles = [manager.publish("t", f"{number:06}" + "x" * (size - 6), qos) for number in range(count)]
            link.restore_for(dice.randint(1, 20_000))
            manager.connect()
            for _ in range(25):
                assert link.wait_for(lambda each: each.is_down, LONG_S)
                link.restore_for(dice.randint(1, 20_000))
            link.restore()
            for handle in handles:
                handle.wait_for_publish(LONG_S)
            assert manager.flush(LONG_S)
            assert manager.get_metrics().drops == {}
            assert manager.get_metrics().reconnect_count >= 15
        assert subscriber.wait_for(lambda arrivals: len({each.payload for each in arrivals}) == count, LONG_S)
        payloads = subscriber.payloads()
        assert qos == 1 or len(payloads) == count
