"""Messages that come to a manager: one delivery of each, in threads, with a bound of what is held."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest

from glec_fast import MQTTManager, QueueClosedError
from support.gateway import BOTH_VERSIONS, TIMEOUT_S, eventually, quick_config
from support.odd_broker import SUBSCRIBE, OddBroker, granted
from support.subscribing import Handled, publishing, running
from support.wire_reference import PUBACK

if TYPE_CHECKING:
    from pathlib import Path

    from glec_fast.testbed.broker import Broker
    from glec_fast.testbed.link import Link
    from support.wire_reference import Packet


@BOTH_VERSIONS
@pytest.mark.parametrize("qos", [1, 2])
def test_a_handler_that_a_cut_link_finds_at_work_is_not_called_again(
    broker: Broker, link: Link, tmp_path: Path, protocol_version: int, qos: int
) -> None:
    handled = Handled()
    handled.gate.clear()
    config = quick_config(f"tcp://127.0.0.1:{link.port}", tmp_path, protocol_version=protocol_version)
    with running(config) as (manager, recorder), publishing(broker, tmp_path / "platform") as platform:
        subscription = manager.subscribe("a", handled, qos)
        manager.connect()
        assert subscription.wait_granted(TIMEOUT_S)
        platform.publish("a", "once", qos)
        assert eventually(lambda: bool(handled.threads))
        link.cut()
        assert recorder.wait_for_losses()
        link.restore()
        assert recorder.wait_for_connections(2)
        handled.gate.set()
        platform.publish("a", "next", qos)
        assert handled.wait_for([b"once", b"next"])
        assert eventually(lambda: manager.get_metrics().inbox_size == 0)


def test_a_message_goes_to_every_handler_whose_filter_matches(broker: Broker, tmp_path: Path) -> None:
    one, all_of_them = Handled(), Handled()
    with running(quick_config(broker.url, tmp_path)) as (manager, _):
        subscriptions = [manager.subscribe("a/b", one, 2), manager.subscribe("a/#", all_of_them, 2)]
        manager.connect()
        assert all(each.wait_granted(TIMEOUT_S) for each in subscriptions)
        with publishing(broker, tmp_path / "platform") as platform:
            platform.publish("a/c", "c", 2)
            assert all_of_them.wait_for([b"c"])
        assert one.payloads == []


@BOTH_VERSIONS
def test_filters_that_overlap_have_one_copy_each(broker: Broker, tmp_path: Path, protocol_version: int) -> None:
    """A server may send a copy for each (3.3.5); mosquitto does in MQTT 5."""
    handlers = {each: Handled() for each in ("a/b", "a/#", "+/b", "$share/g/a/+", "a/c")}
    config = quick_config(broker.url, tmp_path, protocol_version=protocol_version)
    with running(config) as (manager, _), publishing(broker, tmp_path / "platform") as platform:
        subscriptions = [manager.subscribe(each, handler, 2) for each, handler in handlers.items()]
        manager.connect()
        assert all(each.wait_granted(TIMEOUT_S) for each in subscriptions)
        numbers = [b"%d" % number for number in range(5)]
        for number in range(5):
            platform.publish("a/b", f"{number}", 2)
        platform.publish("a/c", "end", 2)
        expected = {"a/b": numbers, "+/b": numbers, "a/c": [b"end"]}
        expected |= {each: [*numbers, b"end"] for each in ("a/#", "$share/g/a/+")}
        assert all(handlers[each].wait_for(payloads) for each, payloads in expected.items())
        assert eventually(lambda: manager.get_metrics().inbox_size == 0)
        assert {each: handler.payloads for each, handler in handlers.items()} == expected


def test_a_slow_handler_holds_up_neither_the_network_nor_other_filters(broker: Broker, tmp_path: Path) -> None:
    slow, quick = Handled(), Handled()
    slow.gate.clear()
    with running(quick_config(broker.url, tmp_path)) as (manager, _):
        subscriptions = [manager.subscribe("slow", slow), manager.subscribe("quick", quick)]
        manager.connect()
        assert all(each.wait_granted(TIMEOUT_S) for each in subscriptions)
        with publishing(broker, tmp_path / "platform") as platform:
            platform.publish("slow", "1")
            platform.publish("slow", "2")
            platform.publish("quick", "3")
            assert quick.wait_for([b"3"])
            manager.publish("out", "x", 1).wait_for_publish(TIMEOUT_S)
            slow.gate.set()
            assert slow.wait_for([b"1", b"2"])


def test_a_handler_that_raises_is_counted_and_told_of_in_the_log(
    broker: Broker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_message: object) -> None:
        raise ValueError("cannot be applied")

    with running(quick_config(broker.url, tmp_path)) as (manager, _):
        subscription = manager.subscribe("a", fail, 2)
        manager.connect()
        assert subscription.wait_granted(TIMEOUT_S)
        with publishing(broker, tmp_path / "platform") as platform:
            platform.publish("a", "x", 2)
            assert eventually(lambda: manager.get_metrics().handler_errors == 1)
        assert eventually(lambda: manager.get_metrics().inbox_size == 0)
        assert eventually(lambda: "cannot be applied" in caplog.text)


@pytest.mark.parametrize("qos", [1, 2])
def test_more_than_is_held_is_asked_for_again_in_order(broker: Broker, tmp_path: Path, qos: int) -> None:
    """Nothing that comes once a place is free overtakes what was left."""
    handled = Handled()
    handled.gate.clear()
    config = quick_config(broker.url, tmp_path, inbox_max_size=3)
    with running(config) as (manager, recorder), publishing(broker, tmp_path / "platform") as platform:
        subscription = manager.subscribe("a", handled, qos)
        manager.connect()
        assert subscription.wait_granted(TIMEOUT_S)
        sent = [f"{number}".encode() for number in range(30)]
        for payload in sent:
            platform.publish("a", payload, qos)
        assert platform.flush(TIMEOUT_S)
        # As many as it has on its way at once.
        assert eventually(lambda: manager.get_metrics().messages_received >= 20)
        assert manager.get_metrics().inbox_size == 3
        handled.gate.set()
        assert eventually(lambda: set(handled.payloads) == set(sent))
        assert list(dict.fromkeys(handled.payloads)) == sent
        if qos == 2:
            assert len(handled.payloads) == len(sent)
        assert recorder.wait_for_connections(2)


def test_one_handler_that_never_returns_does_not_keep_what_was_left(broker: Broker, tmp_path: Path) -> None:
    stuck, handled = Handled(), Handled()
    stuck.gate.clear()
    config = quick_config(broker.url, tmp_path, inbox_max_size=8)
    with running(config) as (manager, _), publishing(broker, tmp_path / "platform") as platform:
        subscriptions = [manager.subscribe("stuck", stuck), manager.subscribe("a", handled)]
        manager.connect()
        assert all(each.wait_granted(TIMEOUT_S) for each in subscriptions)
        platform.publish("stuck", "x")
        for number in range(40):
            platform.publish("a", f"{number}")
        assert eventually(lambda: set(handled.payloads) == {b"%d" % number for number in range(40)})
        stuck.gate.set()


class OneByOne(OddBroker):
    """Sends a message of QoS 1 to "a" as soon as the one before was acknowledged: no more than Receive Maximum, 1."""

    sent = 0

    def answer(self, packet: Packet) -> bytes:
        if packet.kind == SUBSCRIBE:
            return granted(packet, self.protocol_version) + self._next()
        return self._next() if packet.kind == PUBACK and self.sent < 300 else super().answer(packet)

    def _next(self) -> bytes:
        self.sent += 1
        return b"\x32\x07\x00\x01a\x00\x01\x00x"


def test_a_place_is_free_before_the_broker_hears_of_it(tmp_path: Path) -> None:
    handled = Handled()
    with OneByOne(protocol_version=5) as broker:
        config = quick_config(broker.url, tmp_path, protocol_version=5, inbox_max_size=1)
        with running(config) as (manager, _):
            manager.subscribe("a", handled, 1)
            manager.connect()
            assert handled.wait_for([b"x"] * 300)
        assert broker.connections == 1


def test_qos_0_beyond_what_is_held_is_dropped_and_counted(broker: Broker, tmp_path: Path) -> None:
    handled = Handled()
    handled.gate.clear()
    with running(quick_config(broker.url, tmp_path, inbox_max_size=2)) as (manager, _):
        subscription = manager.subscribe("a", handled, 0)
        manager.connect()
        assert subscription.wait_granted(TIMEOUT_S)
        with publishing(broker, tmp_path / "platform") as platform:
            for _ in range(5):
                platform.publish("a", "x", 0)
            assert eventually(lambda: manager.get_metrics().messages_unhandled == 3)
        handled.gate.set()
        assert handled.wait_for([b"x", b"x"])


def test_disconnect_waits_for_a_handler_that_runs_and_begins_none(broker: Broker, tmp_path: Path) -> None:
    handled = Handled()
    handled.gate.clear()
    manager = MQTTManager(quick_config(broker.url, tmp_path))
    subscription = manager.subscribe("a", handled, 1)
    manager.connect()
    assert subscription.wait_granted(TIMEOUT_S)
    with publishing(broker, tmp_path / "platform") as platform:
        platform.publish("a", "runs", 1)
        platform.publish("a", "waits", 1)
        assert eventually(lambda: manager.get_metrics().inbox_size == 2)
    leaving = threading.Thread(target=manager.disconnect)
    leaving.start()
    handled.gate.set()
    leaving.join(TIMEOUT_S)
    assert not leaving.is_alive()
    assert handled.payloads in ([b"runs"], [b"runs", b"waits"])
    with pytest.raises(QueueClosedError):
        manager.subscribe("b", handled)


@BOTH_VERSIONS
def test_retained_messages_come_with_each_start(broker: Broker, tmp_path: Path, protocol_version: int) -> None:
    with publishing(broker, tmp_path / "platform") as platform:
        platform.publish("settings", "v1", 2, retain=True).wait_for_publish(TIMEOUT_S)
        for _ in range(2):
            handled = Handled()
            with running(quick_config(broker.url, tmp_path, protocol_version=protocol_version)) as (manager, _):
                manager.subscribe("settings", handled, 2)
                manager.connect()
                assert handled.wait_for([b"v1"])
                assert handled.messages[0].retain


@BOTH_VERSIONS
@pytest.mark.parametrize("qos", [1, 2])
def test_what_a_handler_may_do(broker: Broker, tmp_path: Path, protocol_version: int, qos: int) -> None:
    """It publishes, subscribes, unsubscribes, waits, and ends the manager; the message does not come again."""
    answers, later = Handled(), Handled()
    config = quick_config(broker.url, tmp_path, protocol_version=protocol_version)
    has_left = threading.Event()
    with running(config) as (manager, _), publishing(broker, tmp_path / "platform") as platform:

        def handle(message: Any) -> None:
            if message.payload == b"leave":
                manager.disconnect()
                has_left.set()
                return
            assert manager.subscribe("later", later, qos).wait_granted(TIMEOUT_S)
            manager.publish("answer", message.payload, qos).wait_for_publish(TIMEOUT_S)
            manager.unsubscribe("answer/none")

        platform.subscribe("answer", answers, qos)
        subscription = manager.subscribe("a", handle, qos)
        manager.connect()
        assert subscription.wait_granted(TIMEOUT_S)
        platform.publish("a", "x", qos)
        assert answers.wait_for([b"x"])
        platform.publish("later", "y", qos)
        assert later.wait_for([b"y"])
        platform.publish("a", "leave", qos)
        assert has_left.wait(TIMEOUT_S)
    again = Handled()
    with running(config) as (manager, _), publishing(broker, tmp_path / "platform") as platform:
        assert not manager.subscribe("a", again, qos).wait_granted(0)
        manager.connect()
        platform.publish("a", "next", qos)
        # Its end came before the broker could hear that it was handled.
        assert eventually(lambda: again.payloads in ([b"leave", b"next"], [b"next"]))
        assert all(message.dup for message in again.messages[:-1])


def test_after_disconnect_nothing_is_taken_and_another_manager_goes_on(broker: Broker, tmp_path: Path) -> None:
    handled = Handled()
    for count in (1, 2):
        with running(quick_config(broker.url, tmp_path)) as (manager, _):
            subscription = manager.subscribe("a", handled, 2)
            manager.connect()
            assert subscription.wait_granted(TIMEOUT_S)
            manager.publish("a", "x", 2).wait_for_publish(TIMEOUT_S)
            assert handled.wait_for([b"x"] * count)
        for call in (lambda: manager.subscribe("b", handled), lambda: manager.unsubscribe("a"), manager.connect):
            with pytest.raises(QueueClosedError):
                call()
