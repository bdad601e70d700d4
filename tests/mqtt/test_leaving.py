"""paho's own ending: what was published goes before DISCONNECT, and leaving takes no longer than it must."""

from __future__ import annotations

import select
import socket
import threading
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import apsw
import paho.mqtt.client as paho
import pytest

import glec_fast.mqtt as mqtt
from glec_fast import MQTTManager
from glec_fast.mqtt.client import parts_of
from glec_fast.testbed.subscriber import Subscriber
from support.gateway import TIMEOUT_S, eventually, quick_config
from support.program import kept

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from glec_fast.testbed.broker import Broker
    from glec_fast.testbed.link import Link

V2 = paho.CallbackAPIVersion.VERSION2
WINDOW = 20
QOS = pytest.mark.parametrize("qos", [0, 1, 2])
MAKERS = pytest.mark.parametrize("kind", ["paho", "memory", "store"])


def make(kind: str, tmp_path: Path, **settings: Any) -> Any:
    if kind == "paho":
        return paho.Client(V2, "device", **settings)
    return mqtt.Client(V2, "device", **settings, **({"store": tmp_path / "queue.db"} if kind == "store" else {}))


@pytest.fixture
def subscriber(broker: Broker) -> Iterator[Subscriber]:
    with Subscriber(broker) as found:
        yield found


def arrived(subscriber: Subscriber) -> list[bytes]:
    """What has come once a mark behind it is back."""
    assert subscriber.wait_for_end(TIMEOUT_S)
    return subscriber.payloads("t")


def publish(client: Any, count: int, qos: int) -> list[bytes]:
    payloads = [b"%d" % number for number in range(count)]
    for payload in payloads:
        client.publish("t", payload, qos)
    return payloads


@pytest.mark.parametrize("is_connected", [False, True], ids=["at once", "connected"])
@pytest.mark.parametrize("loop", ["thread", "own thread", "none"])
@pytest.mark.parametrize("kind", ["memory", "store"])
@QOS
def test_disconnect_goes_behind_what_was_published(
    kind: str, qos: int, loop: str, is_connected: bool, broker: Broker, subscriber: Subscriber, tmp_path: Path
) -> None:
    client = make(kind, tmp_path)
    client.connect(broker.host, broker.port)
    thread = threading.Thread(target=client.loop_forever, daemon=True)
    if loop == "thread":
        client.loop_start()
    elif loop == "own thread":
        thread.start()
    if is_connected:
        assert eventually(lambda: client.is_connected() or (loop == "none" and client.loop(0.01) and False))
    payloads = publish(client, WINDOW, qos)
    client.disconnect()
    client.loop_stop()
    if loop == "own thread":
        thread.join(TIMEOUT_S)
    assert client.socket() is None
    if qos == 2:
        # A broker hands it on at PUBREL, which paho does not wait for either: here the next connection brings it.
        client.connect(broker.host, broker.port)
        client.loop_start()
        assert eventually(lambda: len(client._glec_outbox) == 0)
    assert arrived(subscriber) == payloads
    if kind == "store":
        client.close()
        # The acknowledgements that came before the broker closed are not lost.
        assert kept(tmp_path / "queue.db") == []


@pytest.mark.parametrize("is_connected", [False, True], ids=["at once", "connected"])
@MAKERS
@QOS
def test_loop_stop_waits_for_acknowledgements(
    kind: str, qos: int, is_connected: bool, broker: Broker, subscriber: Subscriber, tmp_path: Path
) -> None:
    client = make(kind, tmp_path)
    client.connect(broker.host, broker.port)
    client.loop_start()
    if is_connected:
        assert eventually(client.is_connected)
    # More than the window.
    payloads = publish(client, 3 * WINDOW, qos)
    client.loop_stop()
    client.disconnect()
    found = arrived(subscriber)
    # paho may close before it has read CONNACK, and the broker then loses what it has not read.
    is_cut = kind == "paho" and not qos and not is_connected
    assert found == (payloads[: len(found)] if is_cut else payloads)
    if kind == "store":
        client.close()
        assert kept(tmp_path / "queue.db") == []


@pytest.mark.parametrize("kind", ["memory", "store"])
def test_a_burst_of_qos_0_of_many_buffers(kind: str, broker: Broker, subscriber: Subscriber, tmp_path: Path) -> None:
    client = make(kind, tmp_path)
    client.connect(broker.host, broker.port)
    client.loop_start()
    assert eventually(client.is_connected)
    for number in range(1000):
        client.publish("t", b"%04d" % number + bytes(2000), 0)
    client.disconnect()
    client.loop_stop()
    numbers = [int(payload[:4]) for payload in arrived(subscriber)]
    assert numbers == list(range(1000))


@pytest.mark.parametrize("kind", ["memory", "store"])
def test_a_window_of_more_bytes_than_are_on_their_way(
    kind: str, broker: Broker, subscriber: Subscriber, tmp_path: Path
) -> None:
    """More than may leave before the broker's first answer."""
    client = make(kind, tmp_path)
    client.connect(broker.host, broker.port)
    client.loop_start()
    assert eventually(client.is_connected)
    payloads = [b"%04d" % number + bytes(5000) for number in range(WINDOW)]
    for payload in payloads:
        client.publish("t", payload, 1)
    client.disconnect()
    client.loop_stop()
    assert arrived(subscriber) == payloads
    if kind == "store":
        client.close()


@pytest.fixture
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits to the end of the farewell's time is seen to wait."""
    monkeypatch.setattr("glec_fast.engine.farewell.TIMEOUT_S", 4 * TIMEOUT_S)
    monkeypatch.setattr("glec_fast.engine.network_thread.LEAVE_TIMEOUT_S", 4 * TIMEOUT_S)


@pytest.mark.usefixtures("_patient")
def test_a_backlog_is_not_sent_before_leaving(link: Link, subscriber: Subscriber, tmp_path: Path) -> None:
    """paho would send what is in its window."""
    client = make("store", tmp_path)
    for number in range(9_000):
        client.publish("t", b"%d" % number, 1)
    client.connect(*link.address)
    client.loop_start()
    assert eventually(client.is_connected)
    client.publish("t", b"last", 1)
    started_s = time.monotonic()
    client.disconnect()
    client.loop_stop()
    assert time.monotonic() - started_s < TIMEOUT_S
    client.close()
    assert len(subscriber.arrivals) < 8000
    # What is not known to have arrived is still there.
    missing = {b"last", *(b"%d" % number for number in range(9_000))}.difference(
        each.encode() for each in kept(tmp_path / "queue.db")
    )
    assert eventually(lambda: missing.issubset({each.payload for each in subscriber.arrivals}))


@pytest.mark.parametrize("kind", ["memory", "store"])
@QOS
def test_disconnect_in_a_callback(kind: str, qos: int, broker: Broker, subscriber: Subscriber, tmp_path: Path) -> None:
    client = make(kind, tmp_path)
    took_s: list[float] = []

    def on_connect(client: Any, *_: object) -> None:
        publish(client, 5, min(qos, 1))
        publish(client, 5, 2) if qos == 2 else None
        started_s = time.monotonic()
        client.disconnect()
        took_s.append(time.monotonic() - started_s)
        assert not client.is_connected()

    client.on_connect = on_connect
    client.connect(broker.host, broker.port)
    client.loop_forever()
    assert took_s[0] < 4
    assert arrived(subscriber)[:5] == [b"%d" % number for number in range(5)]
    if kind == "store":
        client.close()


@pytest.mark.usefixtures("_patient")
@pytest.mark.parametrize("kind", ["memory", "store"])
def test_a_program_that_drives_the_loop_itself_is_not_held_up(
    kind: str, broker: Broker, subscriber: Subscriber, tmp_path: Path
) -> None:
    """`disconnect` returns at once; the loop's own turns send what was published, and DISCONNECT."""
    client = make(kind, tmp_path)
    asked: list[bool] = []
    client.on_socket_register_write = lambda *_: asked.append(True)
    client.on_socket_unregister_write = lambda *_: asked.clear()
    client.connect(broker.host, broker.port)
    client.publish("t", b"x", 1)
    started_s = time.monotonic()
    client.disconnect()
    assert time.monotonic() - started_s < TIMEOUT_S

    def turn() -> bool:
        sock = client.socket()
        if sock is None:
            return True
        client.loop_read()
        client.loop_misc()
        if client.want_write():
            client.loop_write()
        return client.socket() is None

    assert eventually(turn)
    assert arrived(subscriber) == [b"x"]
    if kind == "store":
        client.close()


@pytest.fixture
def silent() -> Iterator[int]:
    """A port that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.mark.parametrize("loop", ["thread", "none"])
@pytest.mark.parametrize("kind", ["memory", "store"])
def test_a_server_that_says_nothing(
    kind: str, loop: str, silent: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("glec_fast.engine.farewell.TIMEOUT_S", 0.5)
    client = make(kind, tmp_path)
    client.connect("127.0.0.1", silent)
    if loop == "thread":
        client.loop_start()
    client.publish("t", "x", 1)
    started_s = time.monotonic()
    client.disconnect()
    client.loop_stop()
    # Besides, a second to let it end the connection.
    assert time.monotonic() - started_s < TIMEOUT_S
    assert client.socket() is None
    if kind == "store":
        client.close()
        assert kept(tmp_path / "queue.db") == ["x"]


def test_without_anything_to_send_it_does_not_wait(silent: int, tmp_path: Path) -> None:
    """Not for a server that says nothing, though there is a backlog."""
    client = make("store", tmp_path)
    client.publish("t", "x", 1).wait_durable(TIMEOUT_S)
    client.connect("127.0.0.1", silent)
    client.loop_start()
    assert not client._glec_outbox.has_to_send()
    client.close()


@pytest.mark.parametrize("end", ["disconnect", "close", "loop_stop"])
def test_a_link_that_does_not_move(end: str, link: Link, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glec_fast.engine.farewell.TIMEOUT_S", 0.5)
    monkeypatch.setattr("glec_fast.engine.network_thread.LEAVE_TIMEOUT_S", 0.5)
    client = make("store", tmp_path)
    client.connect(*link.address)
    client.loop_start()
    assert eventually(client.is_connected)
    link.stall()
    # More than the buffers on the way hold, in one window.
    for _ in range(40):
        client.publish("t", bytes(1_000_000), 1)
    started_s = time.monotonic()
    getattr(client, end)()
    assert time.monotonic() - started_s < TIMEOUT_S
    if end != "close":
        client.close()
    assert len(kept(tmp_path / "queue.db")) == 40


@pytest.mark.usefixtures("_patient")
def test_a_disk_that_fails(broker: Broker, tmp_path: Path) -> None:
    """There is nothing to wait for."""
    client = make("store", tmp_path)
    client.connect(broker.host, broker.port)
    client.loop_start()
    assert eventually(client.is_connected)
    with closing(apsw.Connection(str(tmp_path / "queue.db"))) as other:
        other.set_busy_timeout(int(TIMEOUT_S * 1000))
        other.execute("BEGIN IMMEDIATE")
        client.publish("t", "x", 1)
        assert eventually(lambda: client.store.is_failing)
        started_s = time.monotonic()
        client.disconnect()
        client.loop_stop()
        assert time.monotonic() - started_s < TIMEOUT_S
        assert client.socket() is None
        other.execute("ROLLBACK")
    client.close()
    assert kept(tmp_path / "queue.db") == ["x"]


@pytest.mark.usefixtures("_patient")
def test_a_disk_that_is_slow(broker: Broker, subscriber: Subscriber, tmp_path: Path) -> None:
    """DISCONNECT waits for it, the caller does not."""
    client = make("store", tmp_path)
    client.connect(broker.host, broker.port)
    client.loop_start()
    assert eventually(client.is_connected)
    with closing(apsw.Connection(str(tmp_path / "queue.db"))) as other:
        other.set_busy_timeout(int(TIMEOUT_S * 1000))
        other.execute("BEGIN IMMEDIATE")
        client.publish("t", b"x", 1)
        started_s = time.monotonic()
        client.disconnect()
        assert time.monotonic() - started_s < TIMEOUT_S
        assert not client.is_connected()
        assert client.socket() is not None
        other.execute("ROLLBACK")
    client.loop_stop()
    assert client.socket() is None
    assert arrived(subscriber) == [b"x"]
    client.close()


@pytest.mark.parametrize("kind", ["memory", "store"])
def test_a_link_that_breaks_while_disconnect_waits(
    kind: str, tmp_path: Path, silent: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program has left: no connection is made again."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = make(kind, tmp_path)
        client.connect(*listener.getsockname())
        accepted, _ = listener.accept()
        ended = threading.Event()
        client.on_disconnect = lambda *_: ended.set()
        client.loop_start()
        client.publish("t", "x", 1)
        client.disconnect()
        accepted.close()
        assert ended.wait(TIMEOUT_S)
        assert eventually(lambda: client._thread is None)
        listener.settimeout(0.2)
        with pytest.raises(TimeoutError):
            listener.accept()
    if kind == "store":
        client.close()
        assert kept(tmp_path / "queue.db") == ["x"]


def test_it_connects_again_afterwards(broker: Broker, subscriber: Subscriber, tmp_path: Path) -> None:
    client = make("store", tmp_path)
    for number in range(3):
        client.connect(broker.host, broker.port)
        client.loop_start()
        client.publish("t", f"{number}", 1)
        client.disconnect()
        client.loop_stop()
    client.close()
    assert arrived(subscriber) == [b"0", b"1", b"2"]


def test_a_session_that_is_discarded_first(broker: Broker, subscriber: Subscriber, tmp_path: Path) -> None:
    """To the program it is one connection, also where it takes several."""
    for number in range(3):
        client = mqtt.Client(V2, "device", store=tmp_path / f"{number}.db")
        client.connect(broker.host, broker.port)
        client.loop_start()
        client.publish("t", f"{number}", 1)
        client.disconnect()
        client.loop_stop()
        assert client.socket() is None
        client.close()
        assert kept(tmp_path / f"{number}.db") == []
    assert arrived(subscriber) == [b"0", b"1", b"2"]


@pytest.mark.parametrize("kind", ["memory", "store"])
def test_connect_while_disconnect_waits(
    kind: str, silent: int, broker: Broker, subscriber: Subscriber, tmp_path: Path
) -> None:
    client = make(kind, tmp_path)
    client.connect("127.0.0.1", silent)
    client.loop_start()
    client.publish("t", b"x", 1)
    client.disconnect()
    client.connect(broker.host, broker.port)
    assert eventually(lambda: len(client._glec_outbox) == 0)
    client.loop_start()
    assert eventually(client.is_connected)
    client.close()
    assert arrived(subscriber) == [b"x"]


def test_a_manager_sends_what_was_published_before_it_leaves(
    broker: Broker, subscriber: Subscriber, tmp_path: Path
) -> None:
    manager = MQTTManager(quick_config(broker.url, tmp_path))
    manager.connect()
    assert eventually(manager.is_connected)
    manager.publish("t", b"x", 1)
    manager.disconnect()
    assert arrived(subscriber) == [b"x"]
    assert kept(tmp_path / "queue.db") == []


@pytest.mark.parametrize("leave", ["disconnect", "close"])
@pytest.mark.parametrize("kind", ["memory", "store"])
def test_leaving_between_the_acceptance_and_the_opening_of_the_queue(
    kind: str, leave: str, broker: Broker, subscriber: Subscriber, tmp_path: Path
) -> None:
    client = make(kind, tmp_path)
    client.publish("t", "before", 1)
    is_accepted, has_left = threading.Event(), threading.Event()

    def on_connect(*_: object) -> None:
        is_accepted.set()
        assert has_left.wait(TIMEOUT_S)

    client.on_connect = on_connect
    client.connect(broker.host, broker.port)
    client.loop_start()
    assert is_accepted.wait(TIMEOUT_S)
    client.publish("t", "behind it", 1)
    if leave == "disconnect":
        client.disconnect()
        has_left.set()
        client.loop_stop()
        client.close()
    else:
        closing = threading.Thread(target=client.close)
        closing.start()
        assert eventually(lambda: parts_of(client).farewell.is_waiting or client._state.name == "MQTT_CS_DISCONNECTING")
        has_left.set()
        closing.join(TIMEOUT_S)
    assert sorted(arrived(subscriber)) == [b"before", b"behind it"]
    if kind == "store":
        assert kept(tmp_path / "queue.db") == []


@pytest.mark.parametrize("kind", ["memory", "store"])
def test_close_in_a_callback_leaves_in_order(kind: str, broker: Broker, subscriber: Subscriber, tmp_path: Path) -> None:
    client = make(kind, tmp_path)
    client.will_set("will", "x")
    left = threading.Event()

    def on_connect(client: Any, *_: object) -> None:
        client.publish("t", "x", 1)
        client.close()
        left.set()

    client.on_connect = on_connect
    client.connect(broker.host, broker.port)
    client.loop_start()
    assert left.wait(TIMEOUT_S)
    assert eventually(lambda: client._thread is None)
    client.close()
    waiting = kept(tmp_path / "queue.db") if kind == "store" else []
    assert arrived(subscriber) or waiting == ["x"]
    assert "will" not in {each.topic for each in subscriber.arrivals}


def test_a_publisher_that_goes_on_holds_nothing_up(broker: Broker, tmp_path: Path) -> None:
    client = make("store", tmp_path)
    client.connect(broker.host, broker.port)
    client.loop_start()
    assert eventually(client.is_connected)
    over = threading.Event()

    def work() -> None:
        while not over.is_set():
            client.publish("t", "x", 1)

    publisher = threading.Thread(target=work)
    publisher.start()
    try:
        started_s = time.monotonic()
        client.disconnect()
        client.loop_stop()
        # Its own bound, and time for a machine that is busy.
        assert time.monotonic() - started_s < TIMEOUT_S
        assert client.socket() is None
    finally:
        over.set()
        publisher.join()
    client.close()


# ---- where it differs from paho

BOTH = pytest.mark.parametrize("kind", ["paho", "memory"])


class Server:
    """Takes one connection, says `greeting` to its first bytes, and reads until it ends."""

    def __init__(self, greeting: bytes) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(TIMEOUT_S)
        self.address = self._listener.getsockname()
        self._greeting = greeting
        self.received = b""
        self.was_reset = False
        self.is_to_end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        accepted, _ = self._listener.accept()
        accepted.settimeout(0.05)
        with accepted:
            while not self.is_to_end.is_set():
                try:
                    data = accepted.recv(1 << 16)
                except TimeoutError:
                    continue
                except ConnectionResetError:
                    self.was_reset = True
                    return
                if not data:
                    return
                if not self.received:
                    accepted.sendall(self._greeting)
                self.received += data

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.is_to_end.set()
        self._thread.join(TIMEOUT_S)
        self._listener.close()


CONNACK = bytes((0x20, 2, 0, 0))


@BOTH
def test_disconnect_lets_the_broker_close(kind: str, tmp_path: Path) -> None:
    with Server(CONNACK) as server:
        client = make(kind, tmp_path)
        client.connect(*server.address)
        # What the server says is there, and not read.
        assert select.select([client.socket()], [], [], TIMEOUT_S)[0]
        client.publish("t", bytes(1000), 0)
        client.disconnect()
        server._thread.join(TIMEOUT_S)
        assert server.was_reset == (kind == "paho")


@BOTH
def test_disconnect_waits_for_connack(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which here never comes."""
    monkeypatch.setattr("glec_fast.engine.farewell.TIMEOUT_S", 0.3)
    with Server(b"") as server:
        client = make(kind, tmp_path)
        client.connect(*server.address)
        client.publish("t", b"message", 1)
        client.disconnect()
        server._thread.join(TIMEOUT_S)
        assert (b"message" in server.received) == (kind == "paho")
        assert server.received.endswith(b"\xe0\x00")


@pytest.mark.parametrize("kind", ["paho", "store"])
def test_loop_stop_is_bounded_with_a_store(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server never acknowledges."""
    monkeypatch.setattr("glec_fast.engine.farewell.TIMEOUT_S", 0.3)
    with Server(CONNACK) as server:
        client = make(kind, tmp_path)
        client.connect(*server.address)
        client.loop_start()
        client.publish("t", b"message", 1)
        assert eventually(lambda: b"message" in server.received)
        stopping = threading.Thread(target=client.loop_stop)
        stopping.start()
        stopping.join(3)
        assert stopping.is_alive() == (kind == "paho")
    stopping.join(TIMEOUT_S)
    assert not stopping.is_alive()
    client.disconnect()
    if kind == "store":
        client.close()
        assert kept(tmp_path / "queue.db") == ["message"]
