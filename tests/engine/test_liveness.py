"""When PINGREQ asks, and when a connection is given up: a clock and a kernel moved by hand, and the real session."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import pytest
from paho.mqtt import client as paho_client
from paho.mqtt.enums import MQTTErrorCode

from glec_fast._paho import ConnectionState
from glec_fast.engine import liveness
from glec_fast.engine.ending import Ending
from glec_fast.engine.liveness import Liveness, unacknowledged_bytes
from glec_fast.outbox._outbox import MemoryOutbox
from support.wire_reference import PUBACK, ack

if TYPE_CHECKING:
    from collections.abc import Iterator

KEEPALIVE_S, ANSWER_S, ACK_S = 60, 8.0, 40.0
SUCCESS, LOST = MQTTErrorCode.MQTT_ERR_SUCCESS, MQTTErrorCode.MQTT_ERR_CONN_LOST


class Scene:
    """A connection whose peer does what the test says. queued: bytes that its kernel has not acknowledged."""

    def __init__(self, sock: socket.socket, **settings: float) -> None:
        self.now_s = 1000.0
        self.queued = 0
        self.sock: Any = sock
        self.state = ConnectionState.MQTT_CS_CONNECTED
        self.keepalive_s = KEEPALIVE_S
        self.sent_s = self.received_s = self.now_s
        self.pings: list[float] = []
        self.ended: list[tuple[float, MQTTErrorCode]] = []
        self.outbox = MemoryOutbox(1000, lambda: None)
        self.session = self.outbox.session
        self.outbox.put_packet(b"\x10\x00", first=True)
        self.ending = Ending()
        timeouts_s = {"answer_timeout_s": ANSWER_S, "ack_timeout_s": ACK_S, **settings}
        paho: Any = self
        self.liveness = Liveness(paho, self.outbox, self.ending, **timeouts_s)
        self.write()
        self.session.on_accepted()

    # What it is asked as paho's face.

    def send_pingreq(self) -> None:
        self.pings.append(self.now_s - 1000.0)
        self.outbox.put_packet(b"\xc0\x00")
        self.write()

    def close(self) -> None:
        self.sock = None

    def tell_disconnected(self, rc: MQTTErrorCode) -> None:
        self.ended.append((self.now_s - 1000.0, rc))

    # What happens.

    def write(self, limit_bytes: int = 1 << 30) -> None:
        chunk = self.session.peek(limit_bytes)
        self.session.on_sent(len(chunk))
        if chunk:
            self.sent_s = self.now_s

    def publish(self, qos: int = 0, size_bytes: int = 100) -> None:
        self.session.admit(len(self.pings) + 1 if not qos else self.session.in_flight + 1, "t", "x" * size_bytes, qos)
        self.write()

    def receive(self) -> None:
        self.received_s = self.now_s

    def answer_ping(self) -> None:
        self.receive()
        self.session.on_pong()

    def wait(self, seconds: float, step_s: float = 1.0) -> None:
        """Time passes; the loop looks once a second."""
        ends_s = self.now_s + seconds
        while self.now_s < ends_s and self.sock is not None:
            self.now_s = min(self.now_s + step_s, ends_s)
            self.liveness.check()


@pytest.fixture
def make_scene(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    ours, theirs = socket.socketpair()

    def make(**settings: float) -> Scene:
        scene = Scene(ours, **settings)
        monkeypatch.setattr(paho_client, "time_func", lambda: scene.now_s)
        monkeypatch.setattr(liveness, "unacknowledged_bytes", lambda _sock: scene.queued)
        return scene

    make.theirs = theirs  # type: ignore[attr-defined]
    yield make
    ours.close()
    theirs.close()


def test_a_dead_link_is_noticed_within_20_s_while_something_is_published(make_scene: Any) -> None:
    scene = make_scene()
    scene.wait(30)
    for _ in range(30):
        # What swallows packets acknowledges them.
        scene.publish()
        scene.wait(1)
    ((ended_s, rc),) = scene.ended
    assert scene.pings == [39.0]
    assert 30 < ended_s <= 50
    assert rc is MQTTErrorCode.MQTT_ERR_KEEPALIVE
    assert scene.ending.cause == "keep alive: PINGREQ was not answered in time"
    assert scene.state == ConnectionState.MQTT_CS_CONNECTION_LOST


def test_a_link_that_acknowledges_nothing_is_noticed_as_soon(make_scene: Any) -> None:
    scene = make_scene()
    for _ in range(30):
        scene.publish()
        scene.queued = scene.session.sent_to
        scene.wait(1)
    assert scene.ended[0][0] <= 20


def test_without_anything_published_it_takes_the_keep_alive_and_10_s(make_scene: Any) -> None:
    scene = make_scene()
    scene.wait(100)
    assert scene.pings == [60.0]
    assert scene.ended[0][0] <= KEEPALIVE_S + 10


def test_a_link_that_answers_is_asked_as_seldom_as_that_allows(make_scene: Any) -> None:
    scene = make_scene()
    for _ in range(3600):
        scene.publish()
        scene.wait(1)
        if scene.session.pinged_to:
            scene.answer_ping()
    assert scene.ended == []
    assert len(scene.pings) <= 3600 / ANSWER_S
    scene.wait(30)
    assert scene.session.pinged_to or scene.session.proven_count == 3600


def test_acknowledgements_spare_pings(make_scene: Any) -> None:
    scene = make_scene()
    for _ in range(100):
        scene.publish(qos=1)
        scene.publish()
        scene.wait(1)
        scene.receive()
        scene.session.on_acks(ack(PUBACK, scene.session.next_packet_id() - 1))
    assert scene.ended == []
    # The QoS 0 behind the last PUBLISH of QoS 1 is proven by the next.
    assert scene.pings == []


def test_bytes_that_leave_are_life(make_scene: Any) -> None:
    """12 MB at 100 kB/s: PINGREQ goes behind them, and takes two minutes to be on its way."""
    scene = make_scene()
    scene.publish(1, 12_000_000)
    scene.queued = 12_000_000
    while scene.queued:
        scene.wait(1)
        scene.queued = max(scene.queued - 100_000, 0)
    assert scene.pings == [9.0]
    assert scene.ended == []
    # What is in the peer's buffer takes its time, too.
    scene.wait(8)
    assert scene.ended == []
    scene.wait(5)
    assert len(scene.ended) == 1


def test_a_backlog_that_stands_still_is_none(make_scene: Any) -> None:
    scene = make_scene()
    scene.publish(0, 1_000_000)
    scene.queued = 1_000_000
    for _ in range(10):
        scene.wait(1)
        scene.queued -= 10_000
    scene.wait(100)
    assert scene.ended[0][0] <= 10 + ANSWER_S + 1


def test_bytes_that_arrive_are_life(make_scene: Any) -> None:
    """PINGRESP is behind a large message."""
    scene = make_scene()
    scene.publish()
    for _ in range(200):
        scene.wait(1)
        scene.receive()
    # One asks, and those behind it keep the server from giving us up: a keep alive apart (3.1.2.10).
    assert scene.pings == [9.0, 69.0, 129.0, 189.0]
    assert scene.ended == []
    scene.wait(9)
    assert len(scene.ended) == 1


def test_what_was_not_read_yet_is_life(make_scene: Any) -> None:
    scene = make_scene()
    scene.publish()
    scene.wait(9)
    make_scene.theirs.send(b"\xd0\x00")
    # A callback of the program took a minute.
    scene.now_s += 60
    assert scene.liveness.check() is SUCCESS
    assert scene.ended == []


def test_a_message_that_is_never_acknowledged_ends_a_connection_that_lives(make_scene: Any) -> None:
    scene = make_scene()
    scene.publish(qos=1)
    for _ in range(100):
        scene.wait(1)
        if scene.session.pinged_to:
            scene.answer_ping()
        if scene.ended:
            break
    ((ended_s, rc),) = scene.ended
    assert ACK_S <= ended_s <= ACK_S * 1.25
    assert rc is LOST
    assert scene.ending.cause == "it left a message unacknowledged for 40 s"


def test_each_has_its_own_time(make_scene: Any) -> None:
    """Messages come and are acknowledged; one after a while is not."""
    scene = make_scene()
    for number in range(200):
        scene.publish(qos=1)
        scene.wait(1)
        scene.receive()
        if number != 50:
            scene.session.on_acks(ack(PUBACK, number + 1))
        if scene.ended:
            break
    assert 50 + ACK_S <= scene.ended[0][0] <= 50 + ACK_S * 1.25


def test_paho_s_way(make_scene: Any) -> None:
    """The keep alive alone, and as long again for the answer."""
    scene = make_scene(answer_timeout_s=0, ack_timeout_s=0)
    for _ in range(200):
        scene.publish(qos=1)
        scene.wait(1)
    assert scene.pings == [60.0]
    assert scene.ended == [(120.0, MQTTErrorCode.MQTT_ERR_KEEPALIVE)]


def test_no_keep_alive_no_end(make_scene: Any) -> None:
    scene = make_scene(answer_timeout_s=0)
    scene.keepalive_s = 0
    scene.wait(10_000, 10)
    assert (scene.pings, scene.ended) == ([], [])


def test_before_the_login_is_accepted_the_keep_alive_is_the_limit(make_scene: Any) -> None:
    scene = make_scene()
    scene.state = ConnectionState.MQTT_CS_CONNECTING
    scene.wait(100)
    assert scene.ended == [(60.0, MQTTErrorCode.MQTT_ERR_KEEPALIVE)]


def test_the_end_of_a_connection_that_is_left_is_no_error(make_scene: Any) -> None:
    scene = make_scene()
    scene.state = ConnectionState.MQTT_CS_CONNECTING
    scene.keepalive_s = 5
    scene.wait(4)
    scene.state = ConnectionState.MQTT_CS_DISCONNECTING
    scene.wait(2)
    assert scene.ended == [(5.0, SUCCESS)]
    assert scene.state == ConnectionState.MQTT_CS_DISCONNECTED
    assert scene.liveness.check() is MQTTErrorCode.MQTT_ERR_NO_CONN


def test_the_kernel_says_what_it_holds() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with socket.create_connection(listener.getsockname()) as client:
            peer, _ = listener.accept()
            with peer:
                client.setblocking(False)
                sent = client.send(b"x" * 10_000_000)
                assert 0 < unacknowledged_bytes(client) < sent
            client.close()
            assert unacknowledged_bytes(client) == 0
