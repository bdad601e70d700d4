"""Client(store=...): paho's API over the queue file, from one process to the next, and what means nothing there."""

from __future__ import annotations

import threading
from contextlib import closing
from typing import TYPE_CHECKING, Any

import apsw
import pytest
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

import glec_fast
import glec_fast.mqtt as mqtt
from glec_fast import Dropped, DropReason, GlecError, QueueClosedError, UnsupportedError
from glec_fast.durable.store import Store
from glec_fast.testbed.subscriber import Subscriber
from support import forked
from support.gateway import TIMEOUT_S, eventually
from support.scripted_gateway import ScriptedGateway
from support.tapped_socket import TappedSocket

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from glec_fast.testbed.broker import Broker
    from glec_fast.testbed.link import Link

V2 = CallbackAPIVersion.VERSION2
V311, V5 = MQTTProtocolVersion.MQTTv311, MQTTProtocolVersion.MQTTv5
PROTOCOLS = pytest.mark.parametrize("protocol", [V311, V5])
MakeClient = "Callable[..., glec_fast.Client]"


class Heard:
    """What `on_publish` and `on_drop` were told."""

    def __init__(self, client: glec_fast.Client) -> None:
        self.changed = threading.Condition()
        self.mids: list[int] = []
        self.reasons: list[tuple[int, int]] = []
        self.dropped: list[Dropped] = []
        client.on_publish = self._on_publish
        client.on_drop = self._on_drop

    def _on_publish(self, _client: Any, _userdata: Any, mid: int, reason: Any, properties: Any) -> None:
        with self.changed:
            self.mids.append(mid)
            self.reasons.append((reason.packetType, properties.packetType))
            self.changed.notify_all()

    def _on_drop(self, _client: Any, _userdata: Any, dropped: Dropped) -> None:
        with self.changed:
            self.dropped.append(dropped)
            self.changed.notify_all()

    def wait(self, condition: Callable[[Heard], object]) -> bool:
        with self.changed:
            return bool(self.changed.wait_for(lambda: condition(self), TIMEOUT_S))


@pytest.fixture
def make_client(tmp_path: Path) -> Iterator[Callable[..., glec_fast.Client]]:
    made: list[glec_fast.Client] = []

    def make(store: Any = None, **options: Any) -> glec_fast.Client:
        client = glec_fast.Client(V2, **{"client_id": "stored", "store": store or tmp_path / "queue.db", **options})
        client.reconnect_delay_set(0.05, 0.05)  # type: ignore[arg-type]
        made.append(client)
        return client

    yield make
    for client in made:
        client.close()


def go_online(client: glec_fast.Client, broker: Broker) -> None:
    client.connect(broker.host, broker.port)
    client.loop_start()


@PROTOCOLS
def test_what_one_process_publishes_offline_the_next_one_sends(
    broker: Broker, tmp_path: Path, make_client: MakeClient, protocol: MQTTProtocolVersion
) -> None:
    queue = tmp_path / "queue.db"
    program = (
        "import sys, glec_fast.mqtt as mqtt\n"
        "client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, 'stored', store=sys.argv[1])\n"
        "for number in range(30):\n"
        "    handle = client.publish('t', f'{number}', number % 3)\n"
        "    assert handle.rc == mqtt.MQTT_ERR_SUCCESS and handle.mid == number + 1\n"
        "assert handle.wait_durable()\n"
        # The process ends as an accident would have it.
        "import os; os._exit(0)\n"
    )
    forked.run(["-c", program, queue], 60).check_returncode()
    with Subscriber(broker) as subscriber:
        client = make_client(protocol=protocol)
        heard = Heard(client)
        assert client.store.size == 30
        go_online(client, broker)
        assert heard.wait(lambda heard: len(heard.mids) == 30)
        assert client.flush(TIMEOUT_S)
        assert subscriber.wait_for_count(30)
        assert sorted(subscriber.payloads(), key=int) == [b"%d" % number for number in range(30)]
        assert sorted(heard.mids) == list(range(1, 31))
    kinds = {mid: packet_type for mid, (packet_type, _) in zip(heard.mids, heard.reasons, strict=True)}
    assert {mid % 3: kind for mid, kind in kinds.items()} == {
        1: PacketTypes.PUBACK, 2: PacketTypes.PUBACK, 0: PacketTypes.PUBCOMP,
    }  # fmt: skip


def test_a_handle_that_is_held_is_told_as_in_paho(broker: Broker, make_client: MakeClient) -> None:
    client = make_client()
    heard = Heard(client)
    go_online(client, broker)
    handles = [client.publish("t", f"{number}", number % 3) for number in range(60)]
    for handle in handles:
        handle.wait_for_publish(TIMEOUT_S)
        assert handle.is_published()
    # QoS 0 that went past the queue has a mid of its own, below 0.
    assert heard.wait(lambda heard: len(heard.mids) == 60)
    assert all(mid != 0 for mid in heard.mids)
    assert len(set(heard.mids)) == 60


def test_more_messages_wait_than_there_are_packet_ids(broker: Broker, tmp_path: Path, make_client: MakeClient) -> None:
    count = 66_000
    store = Store(tmp_path / "queue.db", max_queue_size=100_000)
    client = make_client(store)
    client.max_inflight_messages = 1000
    heard = Heard(client)
    handle = None
    for number in range(count):
        handle = client.publish("t", b"%d" % number, 1)
    assert handle is not None
    assert handle.mid == client.store.size == count
    with Subscriber(broker) as subscriber:
        go_online(client, broker)
        handle.wait_for_publish(60)
        assert subscriber.wait_for(lambda arrivals: len(arrivals) >= count, 60)
        assert subscriber.payloads() == [b"%d" % number for number in range(count)]
        assert heard.wait(lambda heard: len(heard.mids) == count)
        assert heard.mids == list(range(1, count + 1))


def test_disconnect_leaves_the_queue_open_and_close_does_not(broker: Broker, make_client: MakeClient) -> None:
    with Subscriber(broker) as subscriber, make_client() as client:
        for life in range(3):
            go_online(client, broker)
            client.publish("t", f"{life}", 1).wait_for_publish(TIMEOUT_S)
            assert client.disconnect() == MQTTErrorCode.MQTT_ERR_SUCCESS
            client.loop_stop()
            client.publish("t", f"{life} offline", 1)
        assert eventually(lambda: client.store.size == 1), "the last one alone waits"
        client.close()
        client.close()
        with pytest.raises(QueueClosedError):
            client.publish("t", "x", 1)
        with pytest.raises(QueueClosedError):
            client.connect(broker.host, broker.port)
        assert subscriber.wait_for_count(5)
    with make_client() as again:
        assert again.store.size == 1


def test_closing_in_a_callback_ends_all(broker: Broker, tmp_path: Path, make_client: MakeClient) -> None:
    client = make_client()
    client.on_publish = lambda client, *_: client.close()
    go_online(client, broker)
    thread = client._thread
    assert thread is not None
    client.publish("t", "x", 1)
    thread.join(TIMEOUT_S)
    assert not thread.is_alive()
    assert client.socket() is None
    assert eventually(lambda: "Client stored disconnected." in broker.log_text()), "it left without its will"
    Store(tmp_path / "queue.db").close()


def test_closing_in_a_drop_callback_during_a_wait_for_the_disk(
    broker: Broker, tmp_path: Path, make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("glec_fast.engine.network_thread.LEAVE_TIMEOUT_S", 0.1)
    client = make_client()
    subscribed, dropping, publishing, closed = (threading.Event() for _ in range(4))

    def on_message(*_: Any) -> None:
        publishing.set()
        client.publish("t", "last words", 2)

    def on_drop(*_: Any) -> None:
        dropping.set()
        # The disk waits for this callback, and on_message for the disk.
        assert publishing.wait(TIMEOUT_S)
        client.close()
        closed.set()

    client.on_message, client.on_drop = on_message, on_drop
    client.on_subscribe = lambda *_: subscribed.set()
    go_online(client, broker)
    thread = client._thread
    assert thread is not None
    client.publish("t", "x", 1).wait_for_publish(TIMEOUT_S)
    client.subscribe("in", 0)
    assert subscribed.wait(TIMEOUT_S)
    client.store.append("t", "expired", 1, ttl_ms=-1)
    assert dropping.wait(TIMEOUT_S)
    with closing(glec_fast.Client(V2)) as other:
        go_online(other, broker)
        other.publish("in", "x", 1).wait_for_publish(TIMEOUT_S)
    assert closed.wait(TIMEOUT_S)
    thread.join(TIMEOUT_S)
    assert not thread.is_alive()
    client.close()
    with closing(Store(tmp_path / "queue.db")) as store:
        assert store.size == 1


def test_a_disk_that_fails_does_not_keep_the_thread(
    broker: Broker, make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits at the gate is on disk, and goes with the next connection."""

    def fail(*_: object) -> None:
        raise apsw.IOError("disk I/O error")

    client = make_client()
    go_online(client, broker)
    client.disconnect()
    client.loop_stop()
    client.publish("t", "x", 2)
    with monkeypatch.context() as failing:
        failing.setattr(client.store._writer, "transact", fail)
        failing.setattr(client.store._writer.image, "save", fail)
        go_online(client, broker)
        assert eventually(lambda: client._glec_outbox.session.unsent_bytes)
        stopping = threading.Thread(target=client.loop_stop, daemon=True)
        stopping.start()
        stopping.join(TIMEOUT_S)
        assert not stopping.is_alive()


def test_a_program_s_own_loop_sends_what_is_on_disk(broker: Broker, make_client: MakeClient) -> None:
    client = make_client()
    heard = Heard(client)
    writable: list[Any] = []
    client.on_socket_register_write = lambda _client, _userdata, sock: writable.append(sock)
    client.connect(broker.host, broker.port)
    handles = [client.publish("t", f"{number}", number % 3) for number in range(30)]

    def turn() -> bool:
        client.loop_read()
        client.loop_misc()
        if client.want_write():
            assert writable, "an outer loop learns of it by the callback alone"
            client.loop_write()
        return len(heard.mids) == 30

    assert eventually(turn)
    assert all(handle.is_published() for handle in handles)


@pytest.mark.parametrize("step", ["publish", "loop_misc"])
def test_what_a_program_s_own_loop_had_read_is_sent_where_ctrl_c_cuts_in(
    step: str, broker: Broker, make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = make_client()
    client.connect(broker.host, broker.port)
    assert eventually(lambda: client.loop(0.01) or client.is_connected())
    store = client.store
    reads = store.supply.read

    def is_cut(limit: int, *, alerts: bool) -> object:
        rows = reads(limit, alerts=alerts)[0]
        if rows:
            monkeypatch.undo()
            raise KeyboardInterrupt
        return rows, True

    monkeypatch.setattr(store.supply, "read", is_cut)
    message_id = store.append("t", "x", 1)
    assert store.wait_durable(message_id, TIMEOUT_S)
    with pytest.raises(KeyboardInterrupt):
        client.publish("t", "y", 1) if step == "publish" else client.loop_misc()

    def is_sent() -> bool:
        if client.loop(0.01):
            client.reconnect()
        return store.size == 0

    assert eventually(is_sent)


def test_loop_forever_while_another_thread_publishes_and_subscribes(broker: Broker, make_client: MakeClient) -> None:
    client = make_client()
    client.connect(broker.host, broker.port)
    loop = threading.Thread(target=client.loop_forever)
    loop.start()
    with Subscriber(broker, "t") as subscriber:
        for number in range(600):
            client.publish("t", f"{number}", 1 + number % 2)
            if number % 10 == 0:
                client.subscribe(f"u/{number}")
        assert client.flush(TIMEOUT_S)
        assert subscriber.wait_for_count(600)
        assert subscriber.repeated() == []
    client.disconnect()
    loop.join(TIMEOUT_S)
    assert not loop.is_alive()


def test_loop_forever_hears_of_what_has_reached_the_disk(broker: Broker, make_client: MakeClient) -> None:
    client = make_client()
    connected = threading.Event()
    client.on_connect = lambda *_: connected.set()
    client.connect(broker.host, broker.port)
    # Far longer than the test may take.
    loop = threading.Thread(target=client.loop_forever, args=(10 * TIMEOUT_S,))
    loop.start()
    assert connected.wait(TIMEOUT_S)
    for qos in (1, 2, 1):
        handle = client.publish("t", "x", qos)
        handle.wait_for_publish(TIMEOUT_S)
        assert handle.is_published()
    client.disconnect()
    loop.join(TIMEOUT_S)
    assert not loop.is_alive()


def test_what_reaches_the_disk_between_two_loops_is_sent_by_the_second(broker: Broker, make_client: MakeClient) -> None:
    client = make_client()
    go_online(client, broker)
    client.publish("t", "x", 1).wait_for_publish(TIMEOUT_S)
    client.loop_stop()
    handle = client.publish("t", "x", 1)
    assert handle.wait_durable(TIMEOUT_S)
    assert eventually(lambda: client._glec_outbox.is_woken), "the first loop's socket has the word"
    client.loop_start()
    handle.wait_for_publish(TIMEOUT_S)
    assert handle.is_published()


def test_the_link_cut_again_and_again(broker: Broker, link: Link, make_client: MakeClient) -> None:
    client = make_client()
    client.connect("127.0.0.1", link.port)
    client.loop_start()
    expected = set()
    with Subscriber(broker, "t") as subscriber:
        for cut in range(10):
            link.cut_after(40 * (cut + 1), "up" if cut % 2 else "down")
            for number in range(20):
                expected.add(b"%d-%d" % (cut, number))
                client.publish("t", f"{cut}-{number}", 2)
            link.wait_for(lambda link: link.is_down, TIMEOUT_S)
            link.restore()
        assert client.flush(TIMEOUT_S)
        assert subscriber.wait_for_all(expected)
        assert subscriber.repeated() == []


class TestSession:
    def test_mqtt_5_asks_for_a_session_that_stays(self, broker: Broker, make_client: MakeClient) -> None:
        with Subscriber(broker, "t"):
            flags: list[bool] = []
            for _ in range(2):
                client = make_client(protocol=V5)
                connected = threading.Event()

                def on_connect(_c: Any, _u: Any, given: Any, *_: Any, connected: threading.Event = connected) -> None:
                    flags.append(given.session_present)
                    connected.set()

                client.on_connect = on_connect
                go_online(client, broker)
                assert connected.wait(TIMEOUT_S)
                client.close()
            assert flags == [False, True]

    @pytest.mark.parametrize(
        ("given", "asked"),
        [
            ({}, (False, 0xFFFFFFFF)),
            ({"clean_start": True}, (True, 0xFFFFFFFF)),
            ({"SessionExpiryInterval": 60}, (False, 60)),
            ({"ReceiveMaximum": 7}, (False, 0xFFFFFFFF)),
        ],
    )
    def test_what_the_caller_says_goes_before(
        self, make_client: MakeClient, given: dict[str, Any], asked: tuple[bool, int]
    ) -> None:
        client = make_client(protocol=V5)
        properties = None
        names = {name: value for name, value in given.items() if name[0].isupper()}
        if names:
            properties = Properties(PacketTypes.CONNECT)
            for name, value in names.items():
                setattr(properties, name, value)
        options = {name: value for name, value in given.items() if name not in names}
        client.connect_async("127.0.0.1", 1, properties=properties, **options)
        sent = client._connect_properties
        assert sent is not None
        assert (client._clean_start, sent.SessionExpiryInterval) == asked
        assert all(getattr(sent, name) == value for name, value in names.items())
        assert properties is None or hasattr(properties, "SessionExpiryInterval") == ("SessionExpiryInterval" in names)

    def test_mqtt_3_1_1_keeps_its_session_unless_told_otherwise(self, make_client: MakeClient, tmp_path: Path) -> None:
        assert make_client()._clean_session is False
        assert make_client(tmp_path / "2", clean_session=True)._clean_session is True

    def test_another_broker_is_a_session_not_present_before_it_is_connected_to(
        self, broker: Broker, link: Link, tmp_path: Path, make_client: MakeClient
    ) -> None:
        with closing(make_client()) as client, Subscriber(broker, "t") as subscriber:
            client.connect("127.0.0.1", link.port)
            client.loop_start()
            client.publish("t", "0", 2).wait_for_publish(TIMEOUT_S)
            assert client.store.identity == ("stored", f"127.0.0.1:{link.port}")
            # PUBREC never comes.
            link.cut_after(1, "down")
            left = client.publish("t", "1", 2)
            assert link.wait_for(lambda link: link.is_down, TIMEOUT_S)
            client.disconnect()
            client.loop_stop()
            assert client.store.in_doubt() == []
            seen: list[Any] = []

            def on_pre_connect(client: glec_fast.Client, _userdata: Any) -> None:
                seen.extend((client.store.identity, client.store.in_doubt()))

            client.on_pre_connect = on_pre_connect  # type: ignore[assignment]
            client.connect(broker.host, broker.port)
            identity, in_doubt = seen
            # The other broker's only once it has said that its session holds nothing, or has discarded it.
            assert identity == ("stored", "")
            assert [(each.message_id, each.decision) for each in in_doubt] == [
                (left.mid, glec_fast.Decision.SENT_AGAIN)
            ]
            client.loop_start()
            left.wait_for_publish(TIMEOUT_S)
            assert subscriber.wait_for_all({b"0", b"1"})
            assert client.store.identity == ("stored", f"{broker.host}:{broker.port}")


class TestMeansNothingHere:
    def test_a_client_id_is_needed(self, tmp_path: Path) -> None:
        for client_id in ("", None):
            with pytest.raises(ValueError, match="client_id") as caught:
                glec_fast.Client(V2, client_id=client_id, store=tmp_path / "queue.db")
            assert isinstance(caught.value, GlecError)
        assert not (tmp_path / "queue.db").exists()

    def test_settings_of_a_store_without_one(self) -> None:
        with pytest.raises(glec_fast.ConfigError, match="with a store"):
            glec_fast.Client(V2, resend_in_doubt=True)

    def test_calls_for_messages_in_memory_say_so(self, make_client: MakeClient) -> None:
        client = make_client()
        calls: list[Callable[[], object]] = [client.drop_out_messages, client.reinitialise]
        for call in calls:
            with pytest.raises(UnsupportedError):
                call()
        client.publish("t", "still works", 1)

    def test_a_bound_of_the_program_s_own_is_kept_beside_that_of_the_store(self, make_client: MakeClient) -> None:
        client = make_client()
        assert client.max_queued_messages == 10_000
        client.max_queued_messages_set(2)
        assert [client.publish("t", "x", 1).rc for _ in range(3)] == [
            *(MQTTErrorCode.MQTT_ERR_SUCCESS, MQTTErrorCode.MQTT_ERR_SUCCESS, MQTTErrorCode.MQTT_ERR_QUEUE_SIZE)
        ]
        client.max_queued_messages = 0
        assert client.max_queued_messages == 10_000
        assert client.publish("t", "x", 1).wait_durable(TIMEOUT_S)
        assert len(client._out_messages) == 3

    def test_calls_for_a_store_say_so_in_memory(self) -> None:
        client = mqtt.Client(V2)
        calls: list[Callable[[], object]] = [lambda: client.store, lambda: client.handle_for(1), client.flush]
        for call in calls:
            with pytest.raises(UnsupportedError, match="store="):
                call()
        client.close()

    def test_one_store_is_one_client_s(self, tmp_path: Path, make_client: MakeClient) -> None:
        store = Store(tmp_path / "queue.db")
        make_client(store)
        with pytest.raises(glec_fast.ConfigError, match="has a client already"):
            make_client(store)
        with pytest.raises(glec_fast.QueueLockedError):
            make_client()

    def test_a_refused_second_client_has_the_first_send_nothing_again(self, tmp_path: Path) -> None:
        with ScriptedGateway(tmp_path / "queue.db") as gateway:
            gateway.publish("first", 2)
            gateway.connect(session_present=False)
            gateway.commit()
            assert b"first" in gateway.send()
            with pytest.raises(glec_fast.ConfigError, match="has a client already"):
                glec_fast.Client(V2, client_id="stored", store=gateway.store)
            gateway.publish("second", 2)
            gateway.commit()
            sent = gateway.send()
            assert b"second" in sent
            assert b"first" not in sent

    @pytest.mark.parametrize("topic", ["", "a/+", "a/#", "a\0b", "x" * 65_536, None])
    def test_a_topic_that_no_broker_takes_is_refused(self, make_client: MakeClient, topic: Any) -> None:
        for protocol in (V311, V5):
            with make_client(protocol=protocol) as client:
                with pytest.raises((ValueError, AttributeError)):
                    client.publish(topic, "x", 1)
                assert client.store.size == 0

    def test_payloads_are_paho_s(self, broker: Broker, make_client: MakeClient) -> None:
        client = make_client()
        with pytest.raises(TypeError):
            client.publish("t", {"a": 1}, 1)  # type: ignore[arg-type]
        given = ["text", b"\xff\0", bytearray(b"bytes"), 5, 1.5, None]
        with Subscriber(broker) as subscriber:
            for payload in given:
                client.publish("t", payload, 1)
            go_online(client, broker)
            assert subscriber.wait_for_count(6)
            assert subscriber.payloads() == [b"text", b"\xff\0", b"bytes", b"5", b"1.5", b""]


def test_what_left_as_the_link_broke_is_told_to_whoever_settles_next(tmp_path: Path) -> None:
    with ScriptedGateway(tmp_path / "queue.db") as gateway:
        gateway.outbox.tell_all(True)
        gateway.publish("first", 0)
        gateway.commit()
        gateway.connect()
        gateway.commit()
        with gateway.outbox.lock:
            gateway.session.on_sent(len(gateway.session.peek(1000)))
        # Another thread ends the connection before the one that sent can settle.
        gateway.cut()
        assert gateway.outbox.is_to_settle
        with gateway.outbox.lock:
            assert [handle.mid for handle in gateway.outbox.settle()] == [1]
            assert gateway.outbox.settle() == []
        assert not gateway.outbox.is_to_settle


def test_what_another_thread_is_sending_as_the_link_ends_may_have_left(broker: Broker, make_client: MakeClient) -> None:
    client = make_client()
    go_online(client, broker)
    client.publish("t", "x", 2).wait_for_publish(TIMEOUT_S)
    client.loop_stop()
    ending = threading.Thread(target=client._sock_close)

    def end_meanwhile(_sent: bytes) -> None:
        ending.start()
        # Long enough for an end that does not wait for us.
        ending.join(0.5)

    handle = client.publish("t", "x", 2)
    assert eventually(client.want_write), "a slow disk: its thread allows it"
    client._sock = TappedSocket(client._sock, end_meanwhile)
    client.loop_write()
    ending.join(TIMEOUT_S)
    assert client._glec_outbox.session.parked_ids() == [handle.mid]


class TextlessError(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")

    __repr__ = __str__


def test_an_error_of_on_drop_that_has_no_text_keeps_nobody_waiting(tmp_path: Path, make_client: MakeClient) -> None:
    def fail(*_: object) -> None:
        raise TextlessError

    client = make_client(Store(tmp_path / "queue.db", max_queue_size=1))
    client.on_drop, client.on_log = fail, lambda *_: None
    handles = [client.publish("t", "x", 2) for _ in range(3)]
    for handle in handles[:2]:
        with pytest.raises(glec_fast.PublishError):
            handle.wait_for_publish(TIMEOUT_S)


def test_drops_are_told_to_on_drop(tmp_path: Path, make_client: MakeClient) -> None:
    client = make_client(Store(tmp_path / "queue.db", max_queue_size=2))
    heard = Heard(client)
    handles = [client.publish("t", "x", 2) for _ in range(3)]
    assert heard.wait(lambda heard: heard.dropped == [(1, "t", 2, DropReason.OVERFLOW)])
    with pytest.raises(glec_fast.PublishError):
        handles[0].wait_for_publish(TIMEOUT_S)
