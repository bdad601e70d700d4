"""Callbacks with paho's client and ours: filters, exceptions, reasons to disconnect, decorators and loggers."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from support.differential import (
    APIS,
    AS_2_2,
    CALLBACKS,
    NO_WARNING,
    V5,
    V31,
    V311,
    VERSIONS,
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
    unsuback,
)

pytestmark = NO_WARNING


@VERSIONS
def test_filters_and_their_order(version: int) -> None:
    def program(run: Run) -> None:
        run.watch("on_connect", "on_message", "on_disconnect")
        for name in ("a/#", "+/x", "b"):
            run.client.message_callback_add(name, lambda _c, _u, message, name=name: run.record(name, message))
        run.client.message_callback_add("gone", lambda *_: run.record("gone"))
        run.client.message_callback_remove("gone")
        run.connect()
        run.loop_until("on_connect")
        run.loop_until("on_message", 2)
        run.call("disconnect")
        run.loop_until("on_disconnect")

    arriving = b"".join(inbound(version, topic, b"m", 0) for topic in ("a/x", "gone", "b", "a", "c/x", "none"))
    assert compare(program, [[Expect(), Send(connack(version) + arriving)]], version)


@APIS
@pytest.mark.parametrize(
    # How often on_socket_register_write is called depends on how much is done in one turn of `loop`.
    "name",
    sorted({*CALLBACKS} - {"on_connect_fail", "on_log", "on_socket_register_write", "on_socket_unregister_write"}),
)
def test_exceptions_in_callbacks_are_suppressed_where_asked(api: Any, name: str) -> None:
    def program(run: Run) -> None:
        run.watch("on_connect", "on_message", "on_publish", "on_subscribe", "on_unsubscribe", "on_disconnect", "on_log")
        run.watch(name)
        recorded = getattr(run.client, name)

        def failing(*arguments: Any) -> None:
            recorded(*arguments)
            raise LookupError("a fault of the program")

        setattr(run.client, name, failing)
        run.client.suppress_exceptions = True
        run.connect()
        run.loop_until("on_connect")
        run.call("subscribe", "t")
        run.loop_until("on_message")
        run.call("unsubscribe", "t")
        run.loop_until("on_unsubscribe")
        run.call("publish", "t", b"x", 1)
        run.loop_until("on_publish")
        run.call("disconnect")
        run.loop_until("on_disconnect")

    steps: list[Step] = [
        *(Expect(), Send(connack(V311))),
        *(Expect(), Send(suback(V311, 1, b"\x00") + inbound(V311, "t", b"m", 1, 5))),
        Expect(),
        *(Expect(), Send(unsuback(V311, 2, b"\x00"))),
        *(Expect(), Send(ack(0x40, 3))),
    ]
    assert compare(program, [steps], V311, api)


@APIS
@pytest.mark.parametrize("name", ["on_connect", "on_message", "on_publish", "on_subscribe"])
def test_exceptions_in_callbacks_reach_the_loop(api: Any, name: str) -> None:
    def program(run: Run) -> None:
        run.watch("on_connect", "on_message", "on_publish", "on_subscribe")
        recorded = getattr(run.client, name)

        def failing(*arguments: Any) -> None:
            recorded(*arguments)
            raise LookupError("a fault of the program")

        setattr(run.client, name, failing)
        try:
            run.connect()
            run.loop_until("on_connect")
            run.call("subscribe", "t")
            run.loop_until("on_message")
            run.call("publish", "t", b"x", 1)
            run.loop_until("on_publish")
        except LookupError as error:
            run.record("raised", str(error))
        run.client._sock_close()

    steps: list[Step] = [
        *(Expect(), Send(connack(V311))),
        *(Expect(), Send(suback(V311, 1, b"\x00") + inbound(V311, "t", b"m", 0))),
        *(Expect(), Send(ack(0x40, 2))),
    ]
    played = {"on_connect": 2, "on_message": 4, "on_subscribe": 4}.get(name, 6)
    seen, _ = compare(program, [[*steps[:played]]], V311, api)
    assert seen[-1] == ("raised", "a fault of the program")


@pytest.mark.parametrize(
    ("version", "how"),
    [
        *((version, how) for version in (V31, V311, V5) for how in ("closed", "closed before CONNACK")),
        # In MQTT 5 ours says why: see test_differences.
        *((version, "a length of 5 bytes") for version in (V31, V311)),
    ],
)
@APIS
def test_what_on_disconnect_is_told(version: int, api: Any, how: str) -> None:
    def program(run: Run) -> None:
        run.watch("on_connect", "on_disconnect", "on_socket_close")
        run.connect()
        run.loop_until("on_disconnect")
        run.call("disconnect")
        run.call("publish", "t", b"late", 0)

    steps: list[Step] = [Expect()]
    if how != "closed before CONNACK":
        steps.append(Send(connack(version)))
    if how == "a length of 5 bytes":
        steps.append(Send(b"\x30\xff\xff\xff\xff\x01"))
    compare(program, [[*steps, Close()]], version, api)


@APIS
def test_a_server_that_takes_its_leave(api: Any) -> None:
    def program(run: Run) -> None:
        run.watch("on_connect", "on_disconnect")
        run.connect()
        run.loop_until("on_connect")
        run.loop_until("on_disconnect")

    leave = b"\xe0\x0c\x8b\x0a\x1f\x00\x07restart"
    assert compare(program, [[Expect(), Send(connack(V5) + leave), Close()]], V5, api)


@AS_2_2
def test_loop_forever_and_decorators_and_a_logger(caplog: pytest.LogCaptureFixture) -> None:
    logged: list[list[tuple[int, str]]] = []

    def program(run: Run) -> None:
        caplog.clear()
        run.client.enable_logger(logging.getLogger("differential"))

        @run.client.connect_callback()
        def connected(client: Any, _userdata: Any, *arguments: Any) -> None:
            run.record("connected", *arguments)
            client.subscribe("t/#", 0)

        @run.client.topic_callback("t/+")
        def matched(client: Any, _userdata: Any, message: Any) -> None:
            run.record("matched", message)
            client.disconnect()

        @run.client.disconnect_callback()
        def left(_client: Any, _userdata: Any, *arguments: Any) -> None:
            run.record("left", *arguments)

        run.connect()
        run.call("loop_forever")
        run.client.disable_logger()
        logged.append([(record.levelno, record.getMessage()) for record in caplog.records])

    with caplog.at_level(logging.DEBUG, "differential"):
        steps: list[Step] = [Expect(), Send(connack(V311)), Expect()]
        assert compare(program, [[*steps, Send(suback(V311, 1, b"\x00") + inbound(V311, "t/x", b"m", 0))]], V311)
    assert logged[0] == logged[1]
    assert logged[0]
