"""Where our Client is meant to differ from paho's: each row of the table in docs/differences.md, with either client."""

from __future__ import annotations

import re
import socket
import threading
import tracemalloc
from typing import Any

import pytest
from paho.mqtt import client as paho
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

import glec_fast.mqtt
from support.differential import (
    API2,
    AS_2_2,
    IS_2_1,
    V5,
    V31,
    V311,
    Close,
    Expect,
    Run,
    Send,
    Step,
    ack,
    connack,
    inbound,
    outcome,
)
from support.places import REPOSITORY, TESTS

TABLE = REPOSITORY / "docs" / "differences.md"
BOTH = pytest.mark.parametrize("module", [paho, glec_fast.mqtt], ids=["paho", "glec"])


def is_ours(module: Any) -> bool:
    return module is glec_fast.mqtt


@BOTH
def test_pubrel_is_not_sent_to_a_session_that_never_had_the_message(module: Any) -> None:
    def program(run: Run) -> None:
        run.watch("on_connect", "on_publish", "on_disconnect")
        run.connect()
        run.loop_until("on_connect")
        info = run.client.publish("t", b"x", 2)
        run.loop_until("on_disconnect")
        run.client.reconnect()
        run.loop_until("on_publish")
        assert info.is_published()
        run.client.disconnect()
        run.loop_until("on_disconnect", 2)

    first: list[Step] = [Expect(), Send(connack(V311)), Expect(), Send(ack(0x50, 1)), Expect(), Close()]
    second: list[Step] = [Expect(), Send(connack(V311))]
    if not is_ours(module):
        second += [Expect(), Send(ack(0x70, 1))]
    client = module.Client(API2, "device", clean_session=False)
    _, packets = outcome(client, program, [first, second])
    kinds = [packet[0] for number, packet in packets if number == 1]
    assert kinds == ([0x10, 0xE0] if is_ours(module) else [0x10, 0x62, 0xE0])


@BOTH
def test_a_refused_qos_2_message_ends_there(module: Any) -> None:
    def program(run: Run) -> None:
        run.watch("on_connect", "on_publish", "on_disconnect")
        run.connect()
        run.loop_until("on_connect")
        run.client.publish("t", b"x", 2)
        if is_ours(module):
            run.loop_until("on_publish")
            assert run.seen[-1][3][2] == 0x97
            run.client.disconnect()
        run.loop_until_received(3)
        run.client._sock_close()

    steps: list[Step] = [Expect(), Send(connack(V5)), Expect(), Send(ack(0x50, 1, b"\x97")), Expect()]
    _, packets = outcome(module.Client(API2, "device", protocol=V5), program, [steps])
    assert packets[2][1][0] == (0xE0 if is_ours(module) else 0x62)


@BOTH
def test_a_handle_from_before_the_connection_can_be_waited_for(module: Any) -> None:
    def program(run: Run) -> None:
        run.watch("on_connect", "on_publish", "on_disconnect")
        info = run.client.publish("t", b"x", 1)
        assert info.rc == paho.MQTT_ERR_NO_CONN
        run.connect()
        run.loop_until("on_publish")
        if is_ours(module):
            info.wait_for_publish(1)
            assert info.is_published()
        else:
            with pytest.raises(RuntimeError, match="not currently connected"):
                info.wait_for_publish(1)
        run.client.disconnect()
        run.loop_until("on_disconnect")

    steps: list[Step] = [Expect(), Send(connack(V311)), Expect(), Send(ack(0x40, 1))]
    outcome(module.Client(API2, "device"), program, [steps])


@BOTH
def test_no_lock_is_held_during_a_callback(module: Any) -> None:
    client = module.Client(API2, "device")
    entered, leave = threading.Event(), threading.Event()

    def program(run: Run) -> None:
        run.watch("on_connect", "on_disconnect")

        def on_message(*_: Any) -> None:
            entered.set()
            leave.wait(10)

        client.on_message = on_message
        run.client.connect_async("127.0.0.1", run.peer.port if run.peer is not None else 0)
        run.client.loop_start()
        assert entered.wait(10)
        # What paho's callbacks and its loop_write share.
        was_free = client._in_callback_mutex.acquire(False)
        if was_free:
            client._in_callback_mutex.release()
        assert was_free == is_ours(module)
        leave.set()
        run.client.disconnect()
        run.client.loop_stop()

    steps: list[Step] = [Expect(), Send(connack(V311) + inbound(V311, "t", b"x", 0))]
    outcome(client, program, [steps])


@BOTH
def test_the_thread_outlives_an_exception_of_a_callback(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(threading, "excepthook", lambda arguments: told.append(str(arguments.exc_value)))
    client = module.Client(API2, "device")
    raised, second = threading.Event(), threading.Event()
    failed: list[threading.Thread] = []

    def program(run: Run) -> None:
        def on_message(_client: Any, _userdata: Any, message: Any) -> None:
            if message.payload == b"bad":
                failed.append(threading.current_thread())
                raised.set()
                raise LookupError("a fault of the program")
            second.set()

        client.on_message = on_message
        assert run.peer is not None
        client.connect_async("127.0.0.1", run.peer.port)
        client.loop_start()
        if is_ours(module):
            assert second.wait(10)
            client.disconnect()
        else:
            assert raised.wait(10)
            failed[0].join(10)
            assert client.is_connected(), "it says so for ever"
            client._sock_close()
        client.loop_stop()

    steps: list[Step] = [Expect(), Send(connack(V311) + inbound(V311, "t", b"bad", 0) + inbound(V311, "t", b"good", 0))]
    outcome(client, program, [steps])
    assert told == ["a fault of the program"]


@pytest.mark.parametrize(
    ("packet", "code"),
    [
        (b"\x40\x02\x00\x00", 0x82),
        (b"\x36\x05\x00\x01t\x00\x01", 0x81),
        (b"\x30\x04\x00\x02\xff\xff", 0x81),
        (b"\x82\x02\x00\x01", 0x82),
        (b"\x30\xff\xff\xff\xff\x01", 0x81),
    ],
    ids=["id 0", "QoS 3", "not UTF-8", "a client's packet", "a length of 5 bytes"],
)
def test_a_malformed_packet_ends_the_connection_with_its_reason(packet: bytes, code: int) -> None:
    def program(run: Run) -> None:
        run.watch("on_connect", "on_message", "on_disconnect")
        run.connect()
        run.loop_until("on_connect")
        run.loop_until("on_disconnect")
        assert "on_message" not in run.counts

    _, packets = outcome(
        glec_fast.mqtt.Client(API2, "device", protocol=V5), program, [[Expect(), Send(connack(V5) + packet)]]
    )
    assert packets[-1][1] == bytes((0xE0, 1, code))


def test_what_was_acknowledged_before_a_malformed_packet_is_told_of() -> None:
    def program(run: Run) -> None:
        run.watch("on_connect", "on_publish", "on_disconnect")
        run.connect()
        run.loop_until("on_connect")
        infos = [run.client.publish("t", b"x", 1) for _ in range(2)]
        run.loop_until("on_disconnect")
        assert [name for name, *_ in run.seen][-2:] == ["on_publish", "on_disconnect"]
        assert [info.is_published() for info in infos] == [True, False]

    # PUBREC is no answer to QoS 1.
    steps: list[Step] = [Expect(), Send(connack(V5)), Expect(2), Send(ack(0x40, 1) + ack(0x50, 2)), Expect()]
    _, packets = outcome(glec_fast.mqtt.Client(API2, "device", protocol=V5), program, [steps])
    assert packets[-1][1] == b"\xe0\x01\x82"


@pytest.mark.parametrize("version", [V31, V311])
def test_a_malformed_packet_ends_an_older_connection_without_a_word(version: int) -> None:
    def program(run: Run) -> None:
        run.watch("on_connect", "on_message", "on_disconnect")
        run.connect()
        run.loop_until("on_disconnect")
        assert [name for name, *_ in run.seen] == ["connect returned", "on_connect", "on_disconnect"]
        assert not run.client.is_connected()

    client = glec_fast.mqtt.Client(API2, "device", protocol=version)
    _, packets = outcome(client, program, [[Expect(), Send(connack(version) + b"\x40\x02\x00\x00")]])
    assert [packet[0] for _, packet in packets] == [0x10]


def test_a_packet_that_is_announced_takes_no_memory() -> None:
    def program(run: Run) -> None:
        run.watch("on_connect", "on_subscribe", "on_disconnect")
        run.connect()
        run.loop_until("on_connect")
        tracemalloc.start()
        try:
            for _ in range(10):
                run.client.loop(0.01)
            _, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak_bytes < 1_000_000
        run.client._sock_close()

    # 256 MB are announced, three bytes come.
    announced = b"\x30\xff\xff\xff\x7f\x00\x01t"
    outcome(glec_fast.mqtt.Client(API2, "device"), program, [[Expect(), Send(connack(V311) + announced)]])


def sent_again(module: Any, *, session_present: bool, qos: int, **settings: Any) -> list[bytes]:
    """Two messages that are cut off, the second of QoS 2 behind its PUBREC; what goes out on the next connection."""

    def program(run: Run) -> None:
        run.watch("on_connect", "on_disconnect", "on_publish")
        run.connect()
        run.loop_until("on_connect")
        run.client.publish("t", b"first", qos)
        run.client.publish("t", b"second", qos)
        run.loop_until("on_disconnect")
        run.client.reconnect()
        run.loop_until("on_publish", 2)
        run.client.disconnect()

    first: list[Step] = [Expect(), Send(connack(V311)), Expect(2), Close()]
    answers = ack(0x40, 1) + ack(0x40, 2)
    second: list[Step] = [Expect(), Send(connack(V311, present=session_present)), Expect(2), Send(answers)]
    _, packets = outcome(module.Client(API2, "device", **settings), program, [first, second])
    return [packet for number, packet in packets if number == 1][1:-1]


@BOTH
def test_dup_of_qos_2_is_for_a_session_that_may_have_the_message(module: Any) -> None:
    in_the_old, in_a_new = (
        [packet[0] for packet in sent_again(module, session_present=present, qos=1, clean_session=not present)]
        for present in (True, False)
    )
    assert in_the_old == in_a_new == [0x3A, 0x3A]
    in_a_new = [packet[0] for packet in sent_again(module, session_present=False, qos=2)]
    assert in_a_new == ([0x34, 0x34] if is_ours(module) else [0x3C, 0x3C])


@BOTH
def test_a_message_that_the_server_has_is_not_published_again(module: Any) -> None:
    """A clean session, and a QoS 2 message cut off behind PUBREC."""

    def program(run: Run) -> None:
        run.watch("on_connect", "on_disconnect", "on_publish")
        run.connect()
        run.loop_until("on_connect")
        run.client.publish("t", b"x", 2)
        run.loop_until("on_disconnect")
        run.client.reconnect()
        run.loop_until("on_publish")
        run.client.disconnect()

    first: list[Step] = [Expect(), Send(connack(V311)), Expect(), Send(ack(0x50, 1)), Expect(), Close()]
    second: list[Step] = [Expect(), Send(connack(V311))]
    if not is_ours(module):
        second += [Expect(), Send(ack(0x50, 1)), Expect(), Send(ack(0x70, 1))]
    _, packets = outcome(module.Client(API2, "device"), program, [first, second])
    kinds = [packet[0] for number, packet in packets if number == 1]
    assert kinds == ([0x10, 0xE0] if is_ours(module) else [0x10, 0x3C, 0x62, 0xE0])


def sent_at_once(run: Run, before: int, count: int) -> int:
    """How many packets leave behind the first `before`, ahead of a PINGREQ that is sent behind `count` of them."""
    assert run.peer is not None
    run.loop_until_received(before + count)
    run.client._send_pingreq()
    while run.peer.packets[-1][1][0] != 0xC0:
        run.loop_until_received(len(run.peer.packets))
    return len(run.peer.packets) - before - 1


@BOTH
def test_resends_stay_within_the_window(module: Any) -> None:
    window, messages = 2, 6

    def program(run: Run) -> None:
        run.watch("on_connect", "on_publish", "on_disconnect")
        run.connect()
        run.loop_until("on_connect")
        for number in range(messages):
            run.client.publish("t", b"%d" % number, 1)
        run.loop_until("on_disconnect")
        run.client.reconnect()
        expected = window if is_ours(module) else messages
        assert sent_at_once(run, 1 + window + 1, expected) == expected
        run.client._sock_close()

    client = module.Client(API2, "device", clean_session=False)
    client.max_inflight_messages_set(window)
    first: list[Step] = [Expect(), Send(connack(V311)), Expect(window), Close()]
    outcome(client, program, [first, [Expect(), Send(connack(V311, present=True))]])


@BOTH
def test_the_window_of_the_server_is_kept(module: Any) -> None:
    window, messages = 2, 6

    def program(run: Run) -> None:
        run.watch("on_connect", "on_publish", "on_disconnect")
        run.connect()
        run.loop_until("on_connect")
        with run.client._in_callback_mutex:
            # As from a callback: it is left to the loop.
            infos = [run.client.publish("t", b"%d" % number, 1) for number in range(messages)]
        assert all(info.rc == paho.MQTT_ERR_SUCCESS for info in infos)
        expected = window if is_ours(module) else messages
        assert sent_at_once(run, 1, expected) == expected
        run.client._sock_close()

    steps: list[Step] = [Expect(), Send(connack(V5, properties=b"\x03\x21\x00" + bytes((window,))))]
    outcome(module.Client(API2, "device", protocol=V5), program, [steps])


@BOTH
def test_pubrec_for_an_unknown_id_is_answered(module: Any) -> None:
    def program(run: Run) -> None:
        run.watch("on_connect", "on_disconnect")
        run.connect()
        run.loop_until("on_connect")
        if is_ours(module):
            run.loop_until_received(2)
        run.client.disconnect()

    steps: list[Step] = [Expect(), Send(connack(V5) + ack(0x50, 77))]
    _, packets = outcome(module.Client(API2, "device", protocol=V5), program, [steps])
    assert [packet for _, packet in packets][1:-1] == ([b"\x62\x03\x00\x4d\x92"] if is_ours(module) else [])


@BOTH
@pytest.mark.parametrize("version", [V311, V5])
@pytest.mark.parametrize(
    ("qos", "answers"),
    [
        pytest.param(2, [ack(0x50, 1), ack(0x40, 1)], id="PUBACK behind PUBREC"),
        pytest.param(2, [ack(0x70, 1)], id="PUBCOMP for PUBLISH"),
        pytest.param(1, [ack(0x70, 1)], id="PUBCOMP for QoS 1"),
        pytest.param(1, [ack(0x40, 2), ack(0x40, 1)], id="PUBACK for nothing"),
        pytest.param(1, [ack(0x40, 1) + ack(0x40, 1)], id="PUBACK twice"),
    ],
)
def test_an_acknowledgement_that_nothing_explains_ends_the_connection(
    module: Any, version: int, qos: int, answers: list[bytes]
) -> None:
    def program(run: Run) -> None:
        run.watch("on_connect", "on_publish", "on_disconnect")
        run.connect()
        run.loop_until("on_connect")
        run.client.publish("t", b"x", qos)
        if is_ours(module):
            run.loop_until("on_disconnect")
        else:
            run.loop_until("on_publish")
            run.client.disconnect()
        is_twice = answers[-1].count(ack(0x40, 1)) == 2
        assert run.counts.get("on_publish", 0) == (0 if is_ours(module) and not is_twice else 1)

    steps: list[Step] = [Expect(), Send(connack(version)), Expect(), *(Send(each) for each in answers[:1])]
    if len(answers) > 1:
        steps += [Expect() if qos == 2 else Send(b""), Send(answers[1])]
    _, packets = outcome(module.Client(API2, "device", protocol=version), program, [[*steps, Expect()]])
    if is_ours(module) and version == V5:
        assert packets[-1][1] == b"\xe0\x01\x82"


@BOTH
def test_qos_2_that_is_acknowledged_as_qos_1_is_logged(module: Any) -> None:
    said: list[str] = []

    def program(run: Run) -> None:
        run.watch("on_connect", "on_publish", "on_disconnect")
        run.client.on_log = lambda _client, _userdata, level, text: said.append(text) if level == 4 else None
        run.connect()
        run.loop_until("on_connect")
        for _ in range(2):
            run.client.publish("t", b"x", 2)
        run.loop_until("on_publish", 2)
        run.client.disconnect()

    steps: list[Step] = [Expect(), Send(connack(V311)), Expect(2), Send(ack(0x40, 1) + ack(0x40, 2)), Expect()]
    outcome(module.Client(API2, "device"), program, [steps])
    expected = ["the server acknowledges QoS 2 as QoS 1 (PUBACK): messages may arrive twice"]
    assert said == (expected if is_ours(module) else [])


@BOTH
@pytest.mark.parametrize(("code", "name"), [(0x95, "Packet too large"), (0xC7, "Reason code 0xC7")])
@pytest.mark.parametrize("qos", [1, 2])
def test_any_reason_code_reaches_on_publish(module: Any, code: int, name: str, qos: int) -> None:
    if IS_2_1 and not is_ours(module):
        pytest.skip("paho-mqtt 2.1 raises what its table of names raises")
    reasons: list[Any] = []

    def program(run: Run) -> None:
        run.watch("on_connect", "on_disconnect")
        run.client.on_publish = lambda *arguments: reasons.append(arguments[3])
        run.connect()
        run.loop_until("on_connect")
        run.client.publish("t", b"x", qos)
        if is_ours(module):
            while not reasons:
                run.client.loop(0.02)
            run.client.disconnect()
        run.loop_until("on_disconnect")

    answer = ack(0x40 if qos == 1 else 0x50, 1, bytes([code]))
    steps: list[Step] = [Expect(), Send(connack(V5)), Expect(), Send(answer), Expect()]
    outcome(module.Client(API2, "device", protocol=V5), program, [steps])
    assert [(str(each), each.value, each.is_failure) for each in reasons] == ([(name, code, True)] * is_ours(module))


@BOTH
def test_a_new_session_releases_nothing_of_the_old(module: Any) -> None:
    def program(run: Run) -> None:
        run.watch("on_connect", "on_message", "on_disconnect")
        run.connect()
        run.loop_until("on_disconnect")
        run.client.reconnect()
        run.loop_until_received(4)
        assert run.counts.get("on_message", 0) == (0 if is_ours(module) else 1)
        run.client.disconnect()

    first: list[Step] = [Expect(), Send(connack(V311) + inbound(V311, "t", b"m", 2, 9)), Expect(), Close()]
    second: list[Step] = [Expect(), Send(connack(V311)), Send(ack(0x62, 9)), Expect()]
    outcome(module.Client(API2, "device", clean_session=False), program, [first, second])


@BOTH
def test_a_packet_id_is_used_once_at_a_time(module: Any) -> None:
    def program(run: Run) -> None:
        run.watch("on_connect", "on_disconnect")
        in_flight = run.client.publish("t", b"x", 1)
        assert in_flight.mid == 1
        for _ in range(65_534):
            run.client.publish("t", b"x", 0)
        run.connect()
        run.loop_until("on_connect")
        assert run.client.subscribe("t")[1] == (2 if is_ours(module) else in_flight.mid)
        run.client._sock_close()

    outcome(module.Client(API2, "device"), program, [[Expect(), Send(connack(V311))]])


@BOTH
def test_without_a_connection_publish_says_so(module: Any) -> None:
    def program(run: Run) -> None:
        run.watch("on_connect", "on_disconnect")
        run.connect()
        run.loop_until("on_connect")
        assert run.client.publish("t", b"in flight", 1).rc == paho.MQTT_ERR_SUCCESS
        run.loop_until("on_disconnect")
        expected = paho.MQTT_ERR_NO_CONN if is_ours(module) else paho.MQTT_ERR_SUCCESS
        assert run.client.publish("t", b"waits", 1).rc == expected

    client = module.Client(API2, "device")
    client.max_inflight_messages_set(1)
    outcome(client, program, [[Expect(), Send(connack(V311)), Expect(), Close()]])


@BOTH
def test_a_read_takes_all_that_has_come(module: Any) -> None:
    def program(run: Run) -> None:
        run.watch("on_connect", "on_message", "on_disconnect")
        run.connect()
        run.client.loop_write()
        sock = run.client.socket()
        sock.setblocking(True)
        while len(sock.recv(1000, socket.MSG_PEEK)) < len(arriving):
            pass
        sock.setblocking(False)
        run.client.loop_read()
        assert run.counts.get("on_message", 0) == (3 if is_ours(module) else 0)
        run.client._sock_close()

    arriving = connack(V311) + inbound(V311, "t", b"m", 0) * 3
    outcome(module.Client(API2, "device"), program, [[Expect(), Send(arriving)]])


@BOTH
def test_the_answers_to_a_read_are_registered_once(module: Any) -> None:
    def program(run: Run) -> None:
        run.watch("on_message", "on_socket_register_write", "on_disconnect")
        run.connect()
        run.client.loop_write()
        run.loop_until("on_message", 3)
        # One is CONNECT's.
        assert (run.counts["on_socket_register_write"] == 2) is is_ours(module)
        run.call("disconnect")
        run.loop_until("on_disconnect")

    arriving = b"".join(inbound(V311, "t", b"m", 1, mid) for mid in (1, 2, 3))
    outcome(module.Client(API2, "device"), program, [[Expect(), Send(connack(V311) + arriving), Expect(4)]])


@BOTH
def test_is_connected_is_about_now(module: Any) -> None:
    def program(run: Run) -> None:
        run.watch("on_connect", "on_disconnect")
        run.connect()
        run.loop_until("on_disconnect")
        assert run.client.socket() is None
        assert run.client.is_connected() is not is_ours(module)

    outcome(module.Client(API2, "device", protocol=V5), program, [[Expect(), Send(connack(V5) + b"\xe0\x00"), Close()]])


@AS_2_2
@BOTH
def test_dropped_messages_say_nothing_of_how_far_they_were(module: Any) -> None:
    def program(run: Run) -> None:
        run.watch("on_connect", "on_disconnect")
        run.connect()
        run.loop_until("on_connect")
        run.client.publish("t", b"x", 1)
        (dropped,) = run.client.drop_out_messages()
        expected = paho.mqtt_ms_publish if is_ours(module) else paho.mqtt_ms_wait_for_puback
        assert dropped.state == expected
        run.client._sock_close()

    outcome(module.Client(API2, "device"), program, [[Expect(), Send(connack(V311)), Expect()]])


@BOTH
def test_a_message_is_as_it_was_when_it_was_published(module: Any) -> None:
    def program(run: Run) -> None:
        run.watch("on_publish", "on_disconnect")
        payload = bytearray(b"first")
        properties = Properties(PacketTypes.PUBLISH)
        properties.ContentType = "first"
        run.client.publish("t", payload, 1, properties=properties)
        payload[:] = b"later"
        properties.ContentType = "later"
        run.connect()
        run.loop_until("on_publish")
        run.client.disconnect()

    steps: list[Step] = [Expect(), Send(connack(V5)), Expect(), Send(ack(0x40, 1))]
    _, packets = outcome(module.Client(API2, "device", protocol=V5), program, [steps])
    assert packets[1][1].count(b"first" if is_ours(module) else b"later") == 2


def test_every_row_of_the_table_has_its_test() -> None:
    rows = [line for line in TABLE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 5
    files = TESTS.rglob("test_*.py")
    tests = {name for path in files for name in re.findall(r"^ *def (test_\w+)", path.read_text("utf-8"), re.MULTILINE)}
    for row in rows:
        named = re.findall(r"`(test_\w+)`", row)
        assert named, row
        assert set(named) <= tests, row


@BOTH
def test_a_connection_that_does_not_answer_is_told_once(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def program(run: Run) -> None:
        now_s = 1000.0
        monkeypatch.setattr(paho, "time_func", lambda: now_s)
        run.watch("on_connect", "on_disconnect")
        run.connect(keepalive=60)
        run.loop_until("on_connect")
        now_s += 60
        run.call("loop_misc")
        run.loop_until_received(2)
        now_s += 61
        run.call("loop_misc")
        run.call("loop_misc")
        monkeypatch.undo()

    client = module.Client(API2, "device")
    seen, _ = outcome(client, program, [[Expect(), Send(connack(V311)), Expect()]])
    told = [each for each in seen if each[0] == "on_disconnect"]
    assert len(told) == (1 if is_ours(module) else 2)
    assert "Keep alive timeout" in str(told[0])
