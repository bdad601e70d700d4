"""Client in memory: programs written for paho, on every loop that paho has, over both versions of the protocol."""

from __future__ import annotations

import os
import resource
import select
import threading
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion

from glec_fast import Client
from glec_fast.testbed.subscriber import Subscriber
from support.gateway import TIMEOUT_S, eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from glec_fast.testbed.broker import Broker
    from glec_fast.testbed.link import Link

V1, V2 = CallbackAPIVersion.VERSION1, CallbackAPIVersion.VERSION2
PROTOCOLS = [MQTTProtocolVersion.MQTTv311, MQTTProtocolVersion.MQTTv5]
# Above what select() can watch (FD_SETSIZE of glibc).
MANY_DESCRIPTORS = 1100


class Program:
    """A client that subscribes to what it publishes."""

    def __init__(self, api: CallbackAPIVersion = V2, **options: Any) -> None:
        self.changed = threading.Condition()
        self.subscribed = False
        self.connections = 0
        self.published: list[int] = []
        self.received: list[tuple[int, bytes]] = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            self.client = Client(api, **options)
        self.client.on_connect = self._on_connect_v1 if api == V1 else self._on_connect
        self.client.on_subscribe = self._on_subscribe
        self.client.on_message = self._on_message
        self.client.on_publish = self._on_publish

    def wait_for(self, condition: Callable[[], bool]) -> bool:
        with self.changed:
            return self.changed.wait_for(condition, TIMEOUT_S)

    def connect(self, broker: Broker) -> None:
        self.client.connect(broker.host, broker.port)

    def _on_connect(self, client: Any, userdata: Any, flags: Any, reason: Any, properties: Any) -> None:
        self._on_connect_v1(client, userdata, flags, reason)

    def _on_connect_v1(self, client: Any, _userdata: Any, _flags: Any, reason: Any, _properties: Any = None) -> None:
        assert reason == 0
        client.subscribe("t", 2)
        self._note(connections=1)

    def _on_subscribe(self, *_: Any) -> None:
        with self.changed:
            self.subscribed = True
            self.changed.notify_all()

    def _on_message(self, _client: Any, _userdata: Any, message: Any) -> None:
        with self.changed:
            self.received.append((message.qos, message.payload))
            self.changed.notify_all()

    def _on_publish(self, *arguments: Any) -> None:
        with self.changed:
            self.published.append(arguments[2])
            self.changed.notify_all()

    def _note(self, connections: int) -> None:
        with self.changed:
            self.connections += connections
            self.changed.notify_all()


@contextmanager
def running(program: Program) -> Iterator[Program]:
    program.client.loop_start()
    try:
        assert program.wait_for(lambda: program.subscribed)
        yield program
    finally:
        program.client.disconnect()
        program.client.loop_stop()


def publish_and_check(program: Program, wait: Callable[[Callable[[], bool]], bool]) -> None:
    handles = [program.client.publish("t", f"{number}", number % 3) for number in range(60)]
    assert all(handle.rc == MQTTErrorCode.MQTT_ERR_SUCCESS for handle in handles)
    assert wait(lambda: len(program.received) == 60 and len(program.published) == 60)
    assert all(handle.is_published() for handle in handles)
    assert sorted(program.published) == sorted(handle.mid for handle in handles)
    for qos in range(3):
        assert [payload for got, payload in program.received if got == qos] == [
            b"%d" % number for number in range(qos, 60, 3)
        ]


@pytest.mark.parametrize("api", [V1, V2])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_loop_start(broker: Broker, api: CallbackAPIVersion, protocol: MQTTProtocolVersion) -> None:
    program = Program(api, protocol=protocol)
    program.connect(broker)
    with running(program):
        publish_and_check(program, program.wait_for)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_loop_called_by_the_program(broker: Broker, protocol: MQTTProtocolVersion) -> None:
    program = Program(protocol=protocol)
    program.connect(broker)

    def turn_until(condition: Callable[[], bool]) -> bool:
        for _ in range(1000):
            if condition():
                return True
            assert program.client.loop(0.05) == MQTTErrorCode.MQTT_ERR_SUCCESS
        return False

    assert turn_until(lambda: program.subscribed)
    publish_and_check(program, turn_until)
    program.client.disconnect()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_loop_of_the_program_s_own(broker: Broker, protocol: MQTTProtocolVersion) -> None:
    program = Program(protocol=protocol)
    client = program.client
    program.connect(broker)

    def turn_until(condition: Callable[[], bool]) -> bool:
        for _ in range(1000):
            if condition():
                return True
            sock = client.socket()
            readable, writable, _ = select.select([sock], [sock] if client.want_write() else [], [], 0.05)
            if readable:
                assert client.loop_read() == MQTTErrorCode.MQTT_ERR_SUCCESS
            if writable:
                assert client.loop_write() == MQTTErrorCode.MQTT_ERR_SUCCESS
            assert client.loop_misc() == MQTTErrorCode.MQTT_ERR_SUCCESS
        return False

    assert turn_until(lambda: program.subscribed)
    publish_and_check(program, turn_until)
    client.disconnect()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_loop_forever_while_another_thread_publishes(broker: Broker, protocol: MQTTProtocolVersion) -> None:
    program = Program(protocol=protocol)
    program.connect(broker)
    loop = threading.Thread(target=program.client.loop_forever)
    loop.start()
    try:
        assert program.wait_for(lambda: program.subscribed)
        publish_and_check(program, program.wait_for)
        # The publishing thread writes to the socket itself here, while the other one reads the answers.
        for number in range(2000):
            program.client.publish("u", f"{number}", 1).wait_for_publish(TIMEOUT_S)
        assert program.connections == 1
    finally:
        program.client.disconnect()
        loop.join(TIMEOUT_S)
    assert not loop.is_alive()


def test_publishing_from_inside_on_message_and_on_publish(broker: Broker) -> None:
    program = Program()

    def on_message(client: Client, _userdata: Any, message: Any) -> None:
        program._on_message(client, _userdata, message)
        if (number := int(message.payload)) < 50:
            client.publish("t", str(number + 1), number % 3)

    program.client.on_message = on_message  # type: ignore[assignment]
    program.connect(broker)
    with running(program):
        program.client.publish("t", "0", 2)
        assert program.wait_for(lambda: len(program.received) == 51)
        chain: list[int] = []

        def on_publish(client: Client, _userdata: Any, mid: int, *_: Any) -> None:
            with program.changed:
                chain.append(mid)
                program.changed.notify_all()
            if len(chain) < 50:
                client.publish("u", "x", len(chain) % 3)

        program.client.on_publish = on_publish
        program.client.publish("u", "x", 1)
        assert program.wait_for(lambda: len(chain) >= 50)


def test_it_reconnects_and_sends_what_waited(broker: Broker, link: Link) -> None:
    program = Program(client_id="memory", clean_session=False)
    program.client.reconnect_delay_set(0.05, 0.05)  # type: ignore[arg-type]
    program.client.connect("127.0.0.1", link.port)
    with Subscriber(broker, "t") as subscriber, running(program):
        link.cut()
        assert eventually(lambda: program.client.socket() is None)
        handles = [program.client.publish("t", f"{number}", 1 + number % 2) for number in range(100)]
        assert {handle.rc for handle in handles} == {MQTTErrorCode.MQTT_ERR_NO_CONN}
        lost = program.client.publish("t", "lost", 0)
        assert lost.rc == MQTTErrorCode.MQTT_ERR_NO_CONN
        with pytest.raises(RuntimeError):
            lost.wait_for_publish(0.1)
        link.restore()
        for handle in handles:
            assert eventually(lambda handle=handle: handle.rc == 0)  # type: ignore[misc]
            handle.wait_for_publish(TIMEOUT_S)
        assert subscriber.wait_for_count(100)
        assert sorted(subscriber.payloads(), key=int) == [b"%d" % number for number in range(100)]


def test_qos_2_in_memory_over_a_link_that_is_cut_again_and_again(broker: Broker, link: Link) -> None:
    program = Program(client_id="memory", clean_session=False)
    program.client.reconnect_delay_set(0.02, 0.02)  # type: ignore[arg-type]
    program.client.connect("127.0.0.1", link.port)
    with Subscriber(broker, "u") as subscriber, running(program):
        for cut in range(1, 12):
            link.cut_after(5 * cut, "up" if cut % 2 else "down")
            for number in range(20):
                program.client.publish("u", f"{cut}-{number}", 2)
            assert link.wait_for(lambda link: link.is_down, TIMEOUT_S)
            link.restore()
            assert program.wait_for(lambda seen=cut: program.connections > seen)  # type: ignore[misc]
        assert subscriber.wait_for_count(220)
        assert subscriber.repeated() == []


def test_more_descriptors_than_select_can_watch(broker: Broker) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < MANY_DESCRIPTORS + 200:
        pytest.skip("this system allows too few descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, MANY_DESCRIPTORS + 200), hard))
    reader, writer = os.pipe()
    held = [reader, writer]
    try:
        held += [os.dup(reader) for _ in range(MANY_DESCRIPTORS)]
        program = Program()
        program.connect(broker)
        sock = program.client.socket()
        assert sock is not None
        assert sock.fileno() > 1023
        with running(program):
            publish_and_check(program, program.wait_for)
    finally:
        for descriptor in held:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_starting_and_stopping_the_loop_many_times(broker: Broker) -> None:
    program = Program()
    for _ in range(20):
        program.subscribed = False
        program.connect(broker)
        with running(program):
            handle = program.client.publish("t", "x", 1)
            handle.wait_for_publish(TIMEOUT_S)
            assert handle.is_published()
