"""Calls at every point of a connection's life, with paho's client and ours: before it, in it, twice, and behind it."""

from __future__ import annotations

import logging
import threading
from typing import Any

import pytest
from paho.mqtt import client as paho

from support.differential import (
    AS_2_2,
    CALLBACKS,
    VERSIONS,
    Expect,
    Run,
    Send,
    Step,
    ack,
    compare,
    connack,
    inbound,
)

# A batch of ours is one write, so that the socket is registered once for it.
TELLING = [name for name in CALLBACKS if not name.endswith("register_write")]


@VERSIONS
def test_every_call_before_and_behind_a_connection(version: int) -> None:
    idle = ("loop_read", "loop_write", "loop_misc", "want_write", "socket", "is_connected", "disconnect")

    def program(run: Run) -> None:
        run.watch(*TELLING)
        for name in (*idle, "reconnect", "loop_stop"):
            run.call(name)
        for qos in range(3):
            run.call("publish", "t", b"before", qos)
        run.connect()
        run.call("is_connected")
        run.loop_until("on_publish", 2)
        run.call("is_connected")
        run.call("disconnect")
        run.loop_until("on_disconnect")
        for qos in range(3):
            run.call("publish", "t", b"behind", qos)
        run.call("subscribe", "t")
        run.call("unsubscribe", "t")
        for name in idle:
            run.call(name)

    steps: list[Step] = [Expect(), Send(connack(version)), Expect(2), Send(ack(0x40, 2) + ack(0x50, 3))]
    compare(program, [[*steps, Expect(), Send(ack(0x70, 3))]], version)


@VERSIONS
def test_a_connection_over_another(version: int) -> None:
    def program(run: Run) -> None:
        run.watch(*TELLING)
        run.connect()
        run.loop_until("on_connect")
        run.connect()
        run.loop_until("on_connect", 2)
        run.call("reconnect")
        run.call("publish", "t", b"early", 0)
        run.loop_until("on_connect", 3)
        run.call("disconnect")
        run.call("disconnect")

    steps: list[Step] = [Expect(), Send(connack(version))]
    compare(program, [steps] * 3, version)


@VERSIONS
def test_a_connection_that_is_made_later(version: int) -> None:
    def program(run: Run) -> None:
        assert run.peer is not None
        run.watch(*TELLING)
        for arguments in (("",), ("h", 0), ("h", 1, -1)):
            run.call("connect_async", *arguments)
        run.call("connect_async", "127.0.0.1", 1)
        run.call("reconnect")
        run.call("is_connected")
        run.call("connect_async", b"127.0.0.1", run.peer.port)
        run.call("publish", "t", b"x", 1)
        run.call("reconnect")
        run.loop_until("on_publish")
        run.call("disconnect")

    compare(program, [[Expect(), Send(connack(version)), Expect(), Send(ack(0x40, 1))]], version)


def test_a_thread_whose_first_connection_fails() -> None:
    def program(run: Run) -> None:
        failed = threading.Event()

        def on_connect_fail(client: Any, _userdata: Any) -> None:
            run.record("on_connect_fail", client.is_connected(), client.socket())
            client.disconnect()
            failed.set()

        run.client.on_connect_fail = on_connect_fail
        run.client.connect_async("127.0.0.1", 1)
        run.client.loop_start()
        assert failed.wait(10)
        run.client.loop_stop()
        run.call("loop_stop")
        run.call("is_connected")

    compare(program, [])


@VERSIONS
@pytest.mark.parametrize("fails", [False, True])
def test_on_pre_connect(version: int, fails: bool) -> None:
    def program(run: Run) -> None:
        run.watch(*TELLING)

        def on_pre_connect(client: Any, _userdata: Any) -> None:
            run.record("on_pre_connect", client.is_connected(), client.socket())
            if fails:
                raise KeyError("before the connection")
            for qos in range(2):
                run.call("publish", "t", b"x", qos)

        run.client.on_pre_connect = on_pre_connect
        if fails:
            run.call("connect", "127.0.0.1", 1)
            run.call("socket")
            return
        run.connect()
        run.loop_until("on_publish")
        run.call("disconnect")

    connection: list[Step] = [Expect(), Send(connack(version)), Expect(), Send(ack(0x40, 2))]
    compare(program, [] if fails else [connection], version)


@VERSIONS
def test_waiting_for_a_message(version: int) -> None:
    def program(run: Run) -> None:
        run.watch("on_connect", "on_publish", "on_disconnect")
        run.connect()
        run.loop_until("on_connect")
        told = run.call("publish", "t", b"x", 1)
        untold = run.call("publish", topic="t", payload="y", qos=2, retain=True, properties=None)
        run.record("kind", isinstance(told, paho.MQTTMessageInfo), told == untold, bool(told), str(told))
        for timeout in (0, -1, "x", [1]):
            run.call_of(told, "wait_for_publish", timeout)
        run.call_of(told, "is_published")
        run.loop_until("on_publish")
        run.call_of(told, "wait_for_publish")
        run.call_of(told, "is_published")
        for rc in (paho.MQTT_ERR_NO_CONN, paho.MQTT_ERR_QUEUE_SIZE, paho.MQTT_ERR_AGAIN):
            told.rc = rc
            run.record("with another rc", str(told), told[0])
            run.call_of(told, "is_published")
            run.call_of(told, "wait_for_publish", 1)
        run.call("disconnect")
        run.loop_until("on_disconnect")
        run.call_of(untold, "is_published")
        run.call_of(untold, "wait_for_publish", 0.01)

    compare(program, [[Expect(), Send(connack(version)), Expect(2), Send(ack(0x40, 1))]], version)


@VERSIONS
@pytest.mark.parametrize("manual_ack", [False, True])
def test_forms_of_ack(version: int, manual_ack: bool) -> None:
    def program(run: Run) -> None:
        run.watch("on_connect", "on_message", "on_disconnect", "on_log")
        run.call("ack", 1, 1)
        run.connect()
        run.loop_until("on_connect")
        run.call("manual_ack_set", not manual_ack)
        run.call("publish", "t", b"go on", 0)
        run.loop_until("on_message", 2)
        for mid, qos in ((1, 1), (1, 1), (2, 2), (9, 2), (0, 1), (65536, 1), (1, 3), (None, 1)):
            run.call("ack", mid, qos)
        run.call("disconnect")

    arriving = inbound(version, "t", b"1", 1, 1) + inbound(version, "t", b"2", 2, 2) + ack(0x62, 2)
    steps: list[Step] = [Expect(), Send(connack(version)), Expect(), Send(arriving)]
    compare(program, [steps], version, manual_ack=manual_ack)


@VERSIONS
def test_a_logger_that_comes_and_goes(version: int) -> None:
    def program(run: Run) -> None:
        class Handler(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                run.record("logged", record.levelno, record.getMessage())

        own = logging.Logger("own")
        own.addHandler(Handler())
        run.watch("on_connect", "on_disconnect")
        run.call("enable_logger", own)
        run.record("logger", run.client.logger is own)
        run.connect()
        run.loop_until("on_connect")
        run.call("publish", "t", None, 1, True)
        run.call("disable_logger")
        run.call("subscribe", "t")
        run.call("enable_logger")
        run.record("logger", run.client.logger.name)
        run.call("disconnect")

    compare(program, [[Expect(), Send(connack(version))]], version)


@AS_2_2
@VERSIONS
def test_what_arrives_makes_no_room_for_what_leaves(version: int) -> None:
    def program(run: Run) -> None:
        run.watch("on_connect", "on_message", "on_publish", "on_disconnect")
        run.client.max_inflight_messages_set(1)
        run.connect()
        run.loop_until("on_connect")
        for number in range(2):
            run.call("publish", "t", b"%d" % number, 1)
        run.loop_until("on_message")
        run.call("publish", "t", b"2", 1)
        run.call("publish", "t", b"go on", 0)
        run.loop_until("on_publish", 4)
        run.call("disconnect")

    steps: list[Step] = [Expect(), Send(connack(version)), Expect(), Send(inbound(version, "t", b"in", 2, 7)), Expect()]
    steps += [Send(ack(0x62, 7)), Expect(2)]
    for mid in (1, 2, 3):
        steps += [Send(ack(0x40, mid)), Expect()]
    compare(program, [steps], version)
