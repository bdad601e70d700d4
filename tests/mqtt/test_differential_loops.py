"""Loops of a program's own, and paho's, with either client: asyncio, select, loop, loop_forever, the thread."""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest
from paho.mqtt import client as paho

import glec_fast.mqtt
from support.differential import (
    API2,
    AS_2_2,
    CALLBACKS,
    LEAVES_SOCKETS,
    V5,
    V311,
    VERSIONS,
    WAIT_S,
    Close,
    Expect,
    Run,
    Send,
    Step,
    ack,
    compare,
    connack,
    inbound,
    suback,
)
from support.loops import RUNNERS, run_in_select

if TYPE_CHECKING:
    from conftest import StartBroker

BOTH = pytest.mark.parametrize("module", [paho, glec_fast.mqtt], ids=["paho", "glec"])
MESSAGES = 60
LARGE = bytes(300_000)


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
@BOTH
def test_a_client_that_hears_itself(
    module: Any, secure: bool, runner: str, start_broker: StartBroker, authority: Any
) -> None:
    """Messages of every QoS and of many sizes there and back over a real broker; it all happens in callbacks."""
    broker = start_broker(certificate=authority.issue_server())
    client = module.Client(API2, "device")
    seen: list[tuple[str, int, bytes]] = []
    published: list[int] = []
    expected = [(f"t/{each}", each % 3, (LARGE if each % 20 == 0 else b"x" * each) + b"!") for each in range(MESSAGES)]

    def on_subscribe(*_: Any) -> None:
        for topic, qos, payload in expected:
            client.publish(topic, payload, qos)

    def on_message(_client: Any, _userdata: Any, message: Any) -> None:
        seen.append((message.topic, message.qos, message.payload))
        leave_when_done()

    def on_publish(_client: Any, _userdata: Any, mid: int, *_: Any) -> None:
        published.append(mid)
        leave_when_done()

    def leave_when_done() -> None:
        if len(seen) == len(published) == MESSAGES:
            client.disconnect()

    client.on_connect = lambda *_: client.subscribe("t/#", 2)
    client.on_subscribe, client.on_message, client.on_publish = on_subscribe, on_message, on_publish
    if secure:
        client.tls_set(str(authority.certificate_path))
    RUNNERS[runner](client, lambda: client.connect("localhost", broker.tls_port if secure else broker.port))
    assert sorted(seen) == sorted(expected)
    assert len(set(published)) == MESSAGES
    assert not client.is_connected()


@pytest.mark.parametrize("runner", ["asyncio", "select", "loop", pytest.param("loop_forever", marks=AS_2_2)])
@VERSIONS
def test_each_loop_over_the_scripted_server(version: int, runner: str) -> None:
    def program(run: Run) -> None:
        run.watch(*(name for name in CALLBACKS if not name.startswith("on_socket")))

        def on_message(_client: Any, _userdata: Any, message: Any) -> None:
            run.record("on_message", message)
            run.call("publish", "answers", message.payload, message.qos)

        def on_publish(_client: Any, _userdata: Any, mid: int, *_: Any) -> None:
            run.record("on_publish", mid)
            if run.counts["on_publish"] == 3:
                run.call("disconnect")

        def on_connect(client: Any, *_: Any) -> None:
            run.record("on_connect")
            run.call("subscribe", "t", 2)

        run.client.on_message, run.client.on_publish, run.client.on_connect = on_message, on_publish, on_connect
        RUNNERS[runner](run.client, run.connect)

    steps: list[Step] = [Expect(), Send(connack(version)), Expect(), Send(suback(version, 1, b"\x02"))]
    # One at a time: which of them one read brings is not the same.
    steps += [Send(inbound(version, "t", b"zero", 0)), Expect()]
    steps += [Send(inbound(version, "t", b"one", 1, 1)), Expect(2), Send(ack(0x40, 3))]
    steps += [Send(inbound(version, "t", b"two", 2, 2)), Expect(), Send(ack(0x62, 2)), Expect(2)]
    steps += [Send(ack(0x50, 4)), Expect(), Send(ack(0x70, 4)), Expect()]
    compare(program, [steps], version)


def test_the_order_of_socket_callbacks() -> None:
    def program(run: Run) -> None:
        run.watch("on_socket_open", "on_socket_close", "on_socket_register_write", "on_socket_unregister_write")
        run.watch("on_connect", "on_publish", "on_disconnect", "on_message")
        run_in_select(run.client, lambda: (run.connect(), run.client.subscribe("t"))[0])

    steps: list[Step] = [Expect(2), Send(connack(V311)), Send(inbound(V311, "t", b"m", 1, 1)), Expect(), Close()]
    compare(program, [steps])


def test_a_subclass_that_overrides_the_callbacks() -> None:
    def program(run: Run) -> None:
        run.connect()
        run.loop_until("message")
        run.call("disconnect")
        run.loop_until("left")

    for_each: dict[str, Any] = {
        "on_connect": lambda self, *rest: (self.run.record("connected", *rest[1:]), self.subscribe("t", 1)),
        "on_message": lambda self, *rest: self.run.record("message", *rest[1:]),
        "on_subscribe": lambda self, *rest: self.run.record("subscribed", *rest[1:]),
        "on_disconnect": lambda self, *rest: self.run.record("left", *rest[1:]),
        "on_log": lambda self, *rest: self.run.record("log", *rest[1:]),
    }

    def bound(run: Run) -> None:
        run.client.run = run
        program(run)

    steps: list[Step] = [Expect(), Send(connack(V311)), Expect()]
    steps += [Send(suback(V311, 1, b"\x01") + inbound(V311, "t", b"m", 1, 5)), Expect(2)]
    compare(bound, [steps], subclass=for_each)


@pytest.mark.parametrize("retry", [pytest.param(True, marks=AS_2_2), False])
def test_loop_forever_where_nobody_listens(retry: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

    def program(run: Run) -> None:
        run.watch("on_pre_connect", "on_log")

        def on_connect_fail(*_: Any) -> None:
            run.record("on_connect_fail")
            if run.counts["on_connect_fail"] == 3:
                run.client.disconnect()

        run.client.on_connect_fail = on_connect_fail
        run.client.reconnect_delay_set(0, 0)
        run.client.connect_async("127.0.0.1", port)
        try:
            run.call("loop_forever", retry_first_connection=retry)
        finally:
            run.call("is_connected")

    seen, _ = compare(program, [])
    assert sum(name == "on_connect_fail" for name, *_ in seen) == (3 if retry else 1)


@pytest.mark.parametrize("reconnects", [pytest.param(True, marks=AS_2_2), False])
@pytest.mark.parametrize("version", [V311, V5], ids=["3.1.1", "5"])
def test_loop_forever_over_a_cut(version: int, reconnects: bool) -> None:
    def program(run: Run) -> None:
        run.watch("on_connect", "on_disconnect", "on_publish", "on_socket_open", "on_socket_close")
        run.client.reconnect_delay_set(0, 0)

        def on_subscribe(*_: Any) -> None:
            run.record("on_subscribe")
            run.call("disconnect")

        def on_connect(*_: Any) -> None:
            run.record("on_connect")
            if run.counts["on_connect"] == 2:
                run.call("subscribe", "t")
            else:
                run.call("publish", "t", b"x", 1)

        run.client.on_subscribe, run.client.on_connect = on_subscribe, on_connect
        run.connect()
        run.call("loop_forever")
        run.call("is_connected")

    first: list[Step] = [Expect(), Send(connack(version)), Expect(), Close()]
    second: list[Step] = [Expect(), Send(connack(version)), Expect(), Send(suback(version, 2, b"\x00"))]
    connections = [first]
    if reconnects:
        # The publish is acknowledged before its resend is seen: see the table for DUP.
        first[2:3] = [Expect(), Send(ack(0x40, 1))]
        connections.append(second)
    compare(program, connections, version, reconnect_on_failure=reconnects)


@AS_2_2
def test_keep_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    """PINGREQ when it is due."""

    def program(run: Run) -> None:
        now_s = 1000.0
        monkeypatch.setattr(paho, "time_func", lambda: now_s)
        run.watch("on_connect", "on_disconnect", "on_log")
        run.connect(keepalive=60)
        run.loop_until("on_connect")
        now_s += 59
        run.call("loop_misc")
        now_s += 1
        run.call("loop_misc")
        run.loop_until_received(2)
        while "Received PINGRESP" not in str(run.seen):
            run.client.loop(0.02)
        now_s += 61
        run.call("loop_misc")
        run.loop_until_received(3)
        run.call("disconnect")
        monkeypatch.undo()

    compare(program, [[Expect(), Send(connack(V311)), Expect(), Send(b"\xd0\x00"), Expect()]])


@LEAVES_SOCKETS
def test_the_thread_is_started_and_stopped_again() -> None:
    def program(run: Run) -> None:
        run.watch("on_publish")
        connected = threading.Semaphore(0)
        run.client.on_connect = lambda *_: connected.release()
        assert run.peer is not None
        run.client.connect_async("127.0.0.1", run.peer.port)
        for number in (1, 2):
            run.call("loop_start")
            run.call("loop_start")
            if number == 1:
                assert connected.acquire(timeout=WAIT_S)
            info = run.client.publish("t", b"%d" % number, 1)
            info.wait_for_publish(WAIT_S)
            run.record("info", info.is_published(), info.mid, info.rc)
            run.call("loop_stop")
            run.call("loop_stop")
            run.call("is_connected")
        run.call("disconnect")
        run.client.loop_write()

    steps: list[Step] = [Expect(), Send(connack(V311)), Expect(), Send(ack(0x40, 1)), Expect(), Send(ack(0x40, 2))]
    compare(program, [steps])
