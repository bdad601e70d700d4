"""The same reconnects with paho's client and ours: either kind of session, every state of an exchange, both ways."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from support.differential import (
    API2,
    AS_2_2,
    V5,
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
)


def keeping(version: int) -> dict[str, Any]:
    """Settings for a session that the server keeps."""
    return {} if version == V5 else {"clean_session": False}


def kept(run: Run, version: int) -> dict[str, Any]:
    """Arguments of connect for a session that the server keeps."""
    if version != V5:
        return {}
    properties = Properties(PacketTypes.CONNECT)
    properties.SessionExpiryInterval = 3600
    return {"clean_start": False, "properties": properties}


@VERSIONS
@pytest.mark.parametrize("state", ["sent", "received", "released", "answered late"])
def test_qos_2_in_every_state(version: int, state: str) -> None:
    """Cut behind PUBLISH, PUBREC, PUBREL; and where PUBCOMP came, it is not sent again."""

    def program(run: Run) -> None:
        run.watch("on_connect", "on_publish", "on_disconnect", "on_log")
        run.connect(**kept(run, version))
        run.loop_until("on_connect")
        run.call("publish", "t", b"x", 2)
        run.loop_until("on_disconnect")
        run.call("is_connected")
        run.call("reconnect")
        run.loop_until("on_connect", 2)
        run.loop_until("on_publish")
        run.call("disconnect")
        run.loop_until("on_disconnect", 2)

    exchange: list[Step] = [Expect(), Send(ack(0x50, 1)), Expect(), Send(ack(0x70, 1))]
    done = {"sent": 1, "received": 2, "released": 3, "answered late": 4}[state]
    first: list[Step] = [Expect(), Send(connack(version)), *exchange[:done], Close()]
    rest = exchange if state == "sent" else [] if done == len(exchange) else exchange[2:]
    second: list[Step] = [Expect(), Send(connack(version, present=True)), *rest]
    compare(program, [first, second], version, **keeping(version))


@VERSIONS
def test_many_in_flight_and_more_waiting(version: int) -> None:
    """The order of the resends, DUP of those that were sent, and what waited comes behind, all within the window."""

    def program(run: Run) -> None:
        run.watch("on_connect", "on_publish", "on_disconnect")
        run.connect(**kept(run, version))
        run.loop_until("on_connect")
        for number in range(6):
            run.call("publish", f"t/{number}", b"%d" % number, 1 + number % 2)
        run.loop_until("on_disconnect")
        run.call("publish", "t/late", b"late", 1)
        run.call("reconnect")
        run.loop_until("on_publish", 7)
        run.call("disconnect")
        run.loop_until("on_disconnect", 2)

    first: list[Step] = [Expect(), Send(connack(version)), Expect(6), Send(ack(0x50, 4) + ack(0x50, 2)), Expect(2)]
    second: list[Step] = [Expect(), Send(connack(version, present=True)), Expect(7)]
    second += [Send(b"".join(ack(0x70, mid) for mid in (2, 4)) + ack(0x50, 6) + ack(0x40, 1) + ack(0x40, 3))]
    second += [Expect(), Send(ack(0x40, 5) + ack(0x70, 6) + ack(0x40, 7))]
    compare(program, [[*first, Close()], second], version, **keeping(version))


@VERSIONS
def test_several_cuts_of_the_same_message(version: int) -> None:
    def program(run: Run) -> None:
        run.watch("on_connect", "on_publish", "on_disconnect")
        run.connect(**kept(run, version))
        run.loop_until("on_connect")
        run.call("publish", "t", b"one", 1)
        run.call("publish", "t", b"two", 2)
        for cuts in (1, 2):
            run.loop_until("on_disconnect", cuts)
            run.call("reconnect")
            run.loop_until("on_connect", cuts + 1)
        run.loop_until("on_publish", 2)
        run.call("disconnect")
        run.loop_until("on_disconnect", 3)

    cut: list[Step] = [Expect(), Send(connack(version, present=True)), Expect(2), Close()]
    last = [*cut[:3], Send(ack(0x50, 2) + ack(0x40, 1)), Expect(), Send(ack(0x70, 2))]
    compare(program, [[Expect(), Send(connack(version)), Expect(2), Close()], cut, last], version, **keeping(version))


@VERSIONS
@pytest.mark.parametrize(("present", "repeated"), list(product([True, False], [True, False])))
def test_inbound_qos_2_over_a_reconnect(version: int, present: bool, repeated: bool) -> None:
    """A message that was received and not released: it is handed on once; in a new session a new one is its own."""

    def program(run: Run) -> None:
        run.watch("on_connect", "on_message", "on_disconnect", "on_log")
        run.connect(**kept(run, version))
        run.loop_until("on_connect")
        run.loop_until("on_disconnect")
        run.call("reconnect")
        run.loop_until("on_connect", 2)
        run.loop_until_received(4 if not repeated else 5)
        run.call("disconnect")
        run.loop_until("on_disconnect", 2)

    first: list[Step] = [Expect(), Send(connack(version) + inbound(version, "t", b"m", 2, 9)), Expect(), Close()]
    again = inbound(version, "t", b"m", 2, 9, dup=present)
    if not present and not repeated:
        # There is nothing to release: see the table of differences.
        again = b""
    second: list[Step] = [Expect(), Send(connack(version, present=present))]
    if repeated:
        second += [Send(again), Expect()]
    if present or repeated:
        second += [Send(ack(0x62, 9)), Expect()]
    else:
        second += [Send(inbound(version, "t", b"m", 1, 3)), Expect()]
    compare(program, [first, second], version, **keeping(version))


@pytest.mark.parametrize("clean_start", [True, False, 3], ids=["always", "never", "the first time"])
def test_clean_start_of_mqtt_5(clean_start: Any) -> None:
    def program(run: Run) -> None:
        run.watch("on_connect", "on_disconnect", "on_message")
        run.connect(clean_start=clean_start)
        for number in (1, 2):
            run.loop_until("on_disconnect", number)
            run.call("reconnect")
        run.loop_until("on_connect", 3)
        run.call("disconnect")
        run.loop_until("on_disconnect", 3)

    cut: list[Step] = [Expect(), Send(connack(V5)), Close()]
    compare(program, [cut, cut, cut[:2]], V5)


@VERSIONS
def test_qos_0_ends_with_its_connection(version: int) -> None:
    """What the socket did not take is lost, and its handle says so."""

    def program(run: Run) -> None:
        run.watch("on_connect", "on_publish", "on_disconnect")
        run.call("publish", "t", b"never", 0)
        run.connect()
        run.loop_until("on_connect")
        with run.client._in_callback_mutex:
            # As from a callback: it is left to the loop.
            info = run.call("publish", "t", b"late", 0)
        run.call("reconnect")
        run.record("rc", int(info.rc))
        run.call_of(info, "is_published")
        run.call_of(info, "wait_for_publish", 1)
        run.loop_until("on_connect", 2)
        run.call("disconnect")
        run.loop_until("on_disconnect")

    compare(program, [[Expect(), Send(connack(version))], [Expect(), Send(connack(version))]], version)


@VERSIONS
def test_what_on_connect_does_comes_before_the_resends(version: int) -> None:
    def program(run: Run) -> None:
        def on_connect(client: Any, *_: Any) -> None:
            run.record("on_connect")
            if run.counts["on_connect"] > 1:
                run.call("publish", "status", b"online", 1, True)
                run.call("publish", "status", b"at once", 0)
                run.call("publish", "status", b"exactly once", 2)
                run.call("subscribe", "status", 1)

        run.watch("on_publish", "on_disconnect", "on_subscribe")
        run.client.on_connect = on_connect
        run.connect(**kept(run, version))
        run.loop_until("on_connect")
        run.call("publish", "t", b"old", 1)
        run.loop_until("on_disconnect")
        run.call("reconnect")
        run.loop_until_received(8)
        run.client._sock_close()

    first: list[Step] = [Expect(), Send(connack(version)), Expect(), Close()]
    second: list[Step] = [Expect(), Send(connack(version, present=True)), Expect(5)]
    compare(program, [first, second], version, **keeping(version))


@VERSIONS
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_publishing_once_and_leaving_from_on_connect(version: int, qos: int) -> None:
    def program(run: Run) -> None:
        def on_connect(client: Any, *_: Any) -> None:
            run.call("publish", "t", b"once", qos)
            run.call("disconnect")

        run.watch("on_publish", "on_disconnect")
        run.client.on_connect = on_connect
        run.connect()
        run.loop_until("on_disconnect")

    _, packets = compare(program, [[Expect(), Send(connack(version))]], version)
    assert [packet[0] for _, packet in packets] == [0x10, 0x30 | qos << 1, 0xE0]


@AS_2_2
def test_forgetting_in_on_connect_what_would_be_sent_again() -> None:
    def program(run: Run) -> None:
        def on_connect(*_: Any) -> None:
            run.record("on_connect")
            dropped = run.client.drop_out_messages()
            run.record("dropped", [(each.mid, each.topic, each.payload, each.qos, each.retain) for each in dropped])

        run.watch("on_publish", "on_disconnect")
        run.client.on_connect = on_connect
        run.connect()
        run.loop_until("on_connect")
        run.call("publish", "t", b"one", 1)
        run.call("publish", "t", b"two", 2)
        run.loop_until("on_disconnect")
        run.call("reconnect")
        run.loop_until("on_connect", 2)
        run.call("publish", "t", b"new", 1)
        run.loop_until("on_publish")
        run.call("disconnect")
        run.loop_until("on_disconnect", 2)

    first: list[Step] = [Expect(), Send(connack(V311)), Expect(2), Close()]
    second: list[Step] = [Expect(), Send(connack(V311, present=True)), Expect(), Send(ack(0x40, 3))]
    compare(program, [first, second], V311, API2, clean_session=False)
