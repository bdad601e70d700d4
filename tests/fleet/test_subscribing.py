"""What a manager asks brokers for, over links and sessions, and what they refuse."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest

from glec_fast import MessageError, MQTTManager, SubscriptionRefusedError
from glec_fast.fleet import subscriptions as module
from glec_fast.fleet.subscriptions import Subscriptions
from glec_fast.mqtt.greeting import Accepted
from glec_fast.runtime.summing_log import SummingLog
from glec_fast.testbed.link import Link
from support.gateway import BOTH_VERSIONS, TIMEOUT_S, Recorder, eventually, quick_config
from support.odd_broker import CLOSE, CONNECT, SUBSCRIBE, OddBroker, filters_of, granted
from support.subscribing import Handled, publishing, running
from support.wire_reference import PUBLISH

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import StartBroker
    from glec_fast.testbed.broker import Broker
    from support.wire_reference import Packet


@BOTH_VERSIONS
@pytest.mark.parametrize("is_before", [True, False])
def test_before_and_behind_connect(broker: Broker, tmp_path: Path, protocol_version: int, is_before: bool) -> None:
    handled = Handled()
    config = quick_config(broker.url, tmp_path, protocol_version=protocol_version)
    with running(config) as (manager, recorder), publishing(broker, tmp_path / "platform") as platform:
        if not is_before:
            manager.connect()
            assert recorder.wait_for_connections()
        subscription = manager.subscribe("fleet/+/config", handled, qos=2)
        if is_before:
            manager.connect()
        assert subscription.wait_granted(TIMEOUT_S)
        assert subscription.granted_qos == 2
        expected = []
        for qos in (0, 1, 2):
            platform.publish("fleet/1/config", f"{qos}", qos)
            expected.append(f"{qos}".encode())
            assert handled.wait_for(expected)
        assert [each.qos for each in handled.messages] == [0, 1, 2]
        assert all(name.startswith("glec-fast-handler") for name in handled.threads)
        assert eventually(lambda: manager.get_metrics().inbox_size == 0)
        assert manager.get_metrics().messages_received == 3


@BOTH_VERSIONS
def test_a_session_that_is_there_is_not_asked_again(
    start_broker: StartBroker, tmp_path: Path, protocol_version: int
) -> None:
    broker, handled = start_broker(settings=["log_type all"]), Handled()
    with Link((broker.host, broker.port)) as link:
        _go_over_a_cut(broker, link, handled, tmp_path, protocol_version)
    requests = [line for line in broker.log_text().splitlines() if "Received SUBSCRIBE from DTG-TEST" in line]
    assert len(requests) == 2


def _go_over_a_cut(broker: Broker, link: Link, handled: Handled, tmp_path: Path, protocol_version: int) -> None:
    config = quick_config(f"tcp://127.0.0.1:{link.port}", tmp_path, protocol_version=protocol_version)
    with running(config) as (manager, recorder), publishing(broker, tmp_path / "platform") as platform:
        first = manager.subscribe("a", handled, 1)
        manager.connect()
        assert first.wait_granted(TIMEOUT_S)
        link.cut()
        assert recorder.wait_for_losses()
        platform.publish("a", "kept", 1)
        link.restore()
        assert handled.wait_for([b"kept"])
        # One that comes anew is asked for alone.
        assert manager.subscribe("b", handled, 1).wait_granted(TIMEOUT_S)
        platform.publish("b", "too", 1)
        assert handled.wait_for([b"kept", b"too"])


class Forgetful(OddBroker):
    """Loses its session, and the link under the CONNACK that says so. The next finds the session that began there.

    A QoS 0 message to "cut" ends the connection.
    """

    def __init__(self, protocol_version: int) -> None:
        super().__init__(protocol_version)
        # Of each connection, the filters that it was asked for.
        self.asked: list[list[bytes]] = []

    def answer(self, packet: Packet) -> bytes:
        if packet.kind == CONNECT:
            self.asked.append([])
            return CLOSE if self.connections == 2 else super().answer(packet)
        if packet.kind == PUBLISH and b"cut" in packet.body:
            return CLOSE
        if packet.kind == SUBSCRIBE:
            self.asked[-1] += filters_of(packet, self.protocol_version)
            return granted(packet, self.protocol_version)
        return super().answer(packet)


@BOTH_VERSIONS
def test_a_session_that_began_unseen_is_asked_again(tmp_path: Path, protocol_version: int) -> None:
    with (
        Forgetful(protocol_version) as broker,
        MQTTManager(quick_config(broker.url, tmp_path, protocol_version=protocol_version)) as manager,
    ):
        recorder = Recorder()
        manager.set_connection_callback(recorder)
        manager.connect()
        assert recorder.wait_for_connections()
        assert manager.subscribe("a", Handled()).wait_granted(TIMEOUT_S)
        manager.publish("cut", "", 0)
        assert eventually(lambda: broker.connections >= 3)
        assert eventually(lambda: broker.asked[2:3] == [[b"a"]]), broker.asked
        # The next one is known again.
        manager.publish("cut", "", 0)
        assert recorder.wait_for_connections(3)
        assert manager.subscribe("b", Handled()).wait_granted(TIMEOUT_S)
        assert broker.asked[3] == [b"b"]


def test_each_broker_of_several_is_asked(start_broker: StartBroker, tmp_path: Path) -> None:
    """Also one that has a session of ours, from another time, and other subscriptions."""
    first, second, handled = start_broker(), start_broker(), Handled()
    with running(quick_config(second.url, tmp_path, broker_name="two")) as (manager, recorder):
        manager.connect()
        assert recorder.wait_for_connections()
    settings = {"broker_urls": [first.url, second.url], "broker_name": ["one", "two"]}
    with running(quick_config(first.url, tmp_path, **settings)) as (manager, recorder):
        subscription = manager.subscribe("a", handled, 1)
        manager.connect()
        assert subscription.wait_granted(TIMEOUT_S)
        first.kill()
        assert recorder.wait_for_connections(2)
        with publishing(second, tmp_path / "platform") as platform:
            assert eventually(lambda: subscription.granted_qos == 1)
            platform.publish("a", "x", 1)
            assert handled.wait_for([b"x"])


def test_a_session_that_is_lost_is_asked_again(start_broker: StartBroker, tmp_path: Path) -> None:
    broker, handled = start_broker(), Handled()
    with running(quick_config(broker.url, tmp_path)) as (manager, recorder):
        assert not manager.subscribe("a", handled, 2).wait_granted(0)
        manager.connect()
        assert recorder.wait_for_connections()
        broker.kill()
        assert recorder.wait_for_losses()
        broker.restart()
        assert recorder.wait_for_connections(2)
        assert manager.subscribe("a", handled, 2).wait_granted(TIMEOUT_S)
        with publishing(broker, tmp_path / "platform") as platform:
            platform.publish("a", "x", 2)
            assert handled.wait_for([b"x"])


class Refusals(Recorder):
    """Keeps the filters that were refused."""

    def on_subscription_refused(self, topic_filter: str, cause: SubscriptionRefusedError) -> None:
        self._add((topic_filter, cause))


class Refusing(OddBroker):
    """Refuses the filters that have "secret" in them, and ends the connection with the topic "cut"."""

    def __init__(self, protocol_version: int) -> None:
        super().__init__(protocol_version)
        self.code = 0x87 if protocol_version == 5 else 0x80

    def answer(self, packet: Packet) -> bytes:
        if packet.kind == PUBLISH and b"cut" in packet.body:
            return CLOSE
        if packet.kind != SUBSCRIBE:
            return super().answer(packet)
        return granted(packet, self.protocol_version, self.code if b"secret" in packet.body else 1)


@BOTH_VERSIONS
def test_a_refused_filter_is_told_of_and_asked_for_with_each_connection(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, protocol_version: int
) -> None:
    refusals = Refusals()
    with (
        Refusing(protocol_version) as broker,
        MQTTManager(quick_config(broker.url, tmp_path, protocol_version=protocol_version)) as manager,
    ):
        manager.set_connection_callback(refusals)
        manager.connect()
        assert refusals.wait_for_connections()
        allowed = manager.subscribe("allowed", Handled())
        assert allowed.wait_granted(TIMEOUT_S)
        refused = manager.subscribe("secret", Handled())
        text = r"'secret' \(reason code 0x87, not authorized" if protocol_version == 5 else "'secret'"
        with pytest.raises(SubscriptionRefusedError, match=text):
            refused.wait_granted(TIMEOUT_S)
        assert refused.granted_qos is None
        assert eventually(lambda: manager.get_metrics().subscriptions_refused == 1)
        assert eventually(lambda: "refused the subscription to 'secret'" in caplog.text)
        assert refusals.wait_for(lambda events: any(each[0] == "secret" for each in events))
        manager.publish("cut", "", 0)
        assert eventually(lambda: manager.get_metrics().subscriptions_refused == 2)


class Plain(OddBroker):
    """Says that it takes neither wildcards nor shared subscriptions, and ends the connection over them."""

    def answer(self, packet: Packet) -> bytes:
        if packet.kind == CONNECT:
            return b"\x20\x07\x00\x00\x04\x28\x00\x2a\x00"
        if packet.kind != SUBSCRIBE:
            return super().answer(packet)
        odd = [each for each in filters_of(packet, 5) if set(each) & set(b"+#$")]
        return CLOSE if odd else granted(packet, 5)


def test_what_the_broker_says_it_does_not_take_is_refused_and_not_asked_for(tmp_path: Path) -> None:
    refusals = Refusals()
    with (
        Plain(protocol_version=5) as broker,
        MQTTManager(quick_config(broker.url, tmp_path, protocol_version=5)) as manager,
    ):
        manager.set_connection_callback(refusals)
        before = manager.subscribe("$share/g/a", Handled())
        manager.connect()
        assert refusals.wait_for_connections()
        behind = [manager.subscribe(each, Handled()) for each in ("a/+", "#")]
        assert manager.subscribe("a", Handled()).wait_granted(TIMEOUT_S)
        for each, text in zip((before, *behind), ("0x9E, shared", "0xA2, wildcard", "0xA2, wildcard"), strict=True):
            with pytest.raises(SubscriptionRefusedError, match=text):
                each.wait_granted(TIMEOUT_S)
        assert manager.get_metrics().subscriptions_refused == 3
        assert broker.connections == 1
    assert [each[0] for each in refusals.events if isinstance(each, tuple)][:3] == ["$share/g/a", "a/+", "#"]


class Fatal(OddBroker):
    """Ends the connection over whatever packet has "secret" among its filters."""

    def answer(self, packet: Packet) -> bytes:
        if packet.kind != SUBSCRIBE:
            return super().answer(packet)
        return CLOSE if b"secret" in packet.body else granted(packet, self.protocol_version)


@BOTH_VERSIONS
def test_a_filter_that_the_broker_ends_the_connection_over_stops_nothing_else(
    tmp_path: Path, protocol_version: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told of as refused; other filters are granted, and messages go out on a connection that lasts."""
    monkeypatch.setattr(module, "_LASTS_S", 0.1)
    refusals = Refusals()
    with (
        Fatal(protocol_version) as broker,
        MQTTManager(quick_config(broker.url, tmp_path, protocol_version=protocol_version)) as manager,
    ):
        manager.set_connection_callback(refusals)
        others = [manager.subscribe(each, Handled()) for each in ("a", "b")]
        refused = manager.subscribe("secret", Handled())
        others.append(manager.subscribe("c", Handled()))
        manager.connect()
        with pytest.raises(SubscriptionRefusedError, match="ends the connection over"):
            refused.wait_granted(TIMEOUT_S)
        assert all(each.wait_granted(TIMEOUT_S) for each in others)
        assert refusals.wait_for(lambda events: any(each[0] == "secret" for each in events))
        assert eventually(lambda: broker.connections == 5 and manager.is_connected())
        for _ in range(3):
            manager.publish("t", "x", 1).wait_for_publish(TIMEOUT_S)
        assert broker.connections == 5
        # Whoever asks again is taken at his word.
        manager.subscribe("secret", Handled())
        assert eventually(lambda: broker.connections > 5)


def test_unsubscribe(start_broker: StartBroker, tmp_path: Path) -> None:
    broker, handled = start_broker(settings=["log_type all"]), Handled()
    config = quick_config(broker.url, tmp_path)
    with running(config) as (manager, _), publishing(broker, tmp_path / "platform") as platform:
        a, b = manager.subscribe("a", handled, 1), manager.subscribe("b", handled, 1)
        manager.connect()
        assert a.wait_granted(TIMEOUT_S)
        assert b.wait_granted(TIMEOUT_S)
        manager.unsubscribe("a")
        assert a.granted_qos is None
        assert eventually(lambda: "Received UNSUBSCRIBE" in broker.log_text())
        platform.publish("a", "not wanted", 1)
        platform.publish("b", "wanted", 1)
        assert handled.wait_for([b"wanted"])


@pytest.mark.parametrize("topic_filter", ["", "a/#/b", "a+", "a#", "a\0", None, "$share/g", "$share//a", "$share/+/a"])
def test_a_filter_that_mqtt_does_not_know(tmp_path: Path, topic_filter: Any) -> None:
    with (
        running(quick_config("tcp://localhost:1", tmp_path)) as (manager, _),
        pytest.raises(MessageError, match=r"topic filter|qos"),
    ):
        manager.subscribe(topic_filter, Handled())


def test_a_shared_subscription(broker: Broker, tmp_path: Path) -> None:
    handled = Handled()
    with running(quick_config(broker.url, tmp_path, protocol_version=5)) as (manager, _):
        subscription = manager.subscribe("$share/workers/jobs/+", handled, 2)
        manager.connect()
        assert subscription.wait_granted(TIMEOUT_S)
        with publishing(broker, tmp_path / "platform") as platform:
            platform.publish("jobs/1", "x", 2)
            assert handled.wait_for([b"x"])


@BOTH_VERSIONS
def test_from_several_threads_before_during_and_behind_connect(
    broker: Broker, tmp_path: Path, protocol_version: int
) -> None:
    """In the end the broker has what is wanted, and nothing else."""
    filters = [f"f/{number}" for number in range(24)]
    handlers = {each: Handled() for each in filters}
    config = quick_config(broker.url, tmp_path, protocol_version=protocol_version)
    with running(config) as (manager, recorder), publishing(broker, tmp_path / "platform") as platform:

        def work(part: list[str]) -> None:
            for each in part:
                manager.subscribe(each, Handled(), 1)
                manager.unsubscribe(each)
                manager.subscribe(each, handlers[each], 2)
            manager.unsubscribe(part[-1])

        threads = [threading.Thread(target=work, args=(filters[at::4],)) for at in range(4)]
        threads[0].start()
        manager.connect()
        for thread in threads[1:]:
            thread.start()
        for thread in threads:
            thread.join(TIMEOUT_S)
        assert recorder.wait_for_connections()
        kept = filters[:-4]
        assert all(manager.subscribe(each, handlers[each], 2).wait_granted(TIMEOUT_S) for each in kept)
        # With the first all UNSUBSCRIBEs have left, with the second they have arrived.
        for each in ("end", "end of all"):
            assert manager.subscribe(each, handlers[filters[-1]], 2).wait_granted(TIMEOUT_S)
        for each in filters:
            platform.publish(each, each, 2)
        assert all(handlers[each].wait_for([each.encode()]) for each in kept)
        platform.publish("end", "end", 2)
        assert handlers[filters[-1]].wait_for([b"end"])
        assert all(handlers[each].payloads == [] for each in filters[-4:-1])


@BOTH_VERSIONS
def test_unsubscribed_while_there_is_no_link(broker: Broker, link: Link, tmp_path: Path, protocol_version: int) -> None:
    """Also of what another process had subscribed to."""
    config = quick_config(f"tcp://127.0.0.1:{link.port}", tmp_path, protocol_version=protocol_version)
    with running(config) as (manager, _):
        earlier = manager.subscribe("earlier", Handled(), 1)
        manager.connect()
        assert earlier.wait_granted(TIMEOUT_S)
    wanted, unwanted = Handled(), Handled()
    with running(config) as (manager, recorder), publishing(broker, tmp_path / "platform") as platform:
        subscriptions = [manager.subscribe("a", unwanted, 1), manager.subscribe("b", wanted, 1)]
        manager.connect()
        assert all(each.wait_granted(TIMEOUT_S) for each in subscriptions)
        link.cut()
        assert recorder.wait_for_losses()
        manager.unsubscribe("a")
        manager.unsubscribe("earlier")
        link.restore()
        assert recorder.wait_for_connections(2)
        # Behind the UNSUBSCRIBE.
        assert manager.subscribe("c", wanted, 1).wait_granted(TIMEOUT_S)
        for topic in ("a", "earlier", "b"):
            platform.publish(topic, topic, 1)
        assert wanted.wait_for([b"b"])
        assert unwanted.payloads == []
        assert manager.get_metrics().messages_received == 1


class Asked:
    """In the place of a client: what was asked for."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, list[str]]] = []

    def subscribe(self, filters: list[tuple[str, int]], **_: Any) -> tuple[int, int]:
        self.requests.append(("subscribe", [each for each, _ in filters]))
        return 0, len(self.requests)

    def unsubscribe(self, filters: list[str]) -> tuple[int, int]:
        self.requests.append(("unsubscribe", filters))
        return 0, len(self.requests)


CONTINUED = Accepted(session_present=True, is_continued=True, takes_identifiers=False)
NEW = Accepted(session_present=False, is_continued=False, takes_identifiers=False)


@pytest.mark.parametrize("by_peer", [True, False])
def test_what_was_being_ended_and_is_wanted_again_is_asked_for_where_the_answer_is_lost(by_peer: bool) -> None:
    client: Any = Asked()
    subscriptions = Subscriptions(client, SummingLog(), lambda *_: None)
    subscriptions.on_connected(NEW)
    subscriptions.want("a", 1)
    subscriptions.on_answer(1, [1])
    subscriptions.unwant("a")
    subscriptions.want("a", 1)
    subscriptions.on_disconnected(by_peer=by_peer)
    subscriptions.on_connected(CONTINUED)
    assert client.requests == [("subscribe", ["a"]), ("unsubscribe", ["a"]), ("subscribe", ["a"])]
    assert subscriptions.granted_qos("a", 1) is None
    subscriptions.on_answer(3, [1])
    assert subscriptions.granted_qos("a", 1) == 1


def test_links_that_fall_silent_say_nothing_of_a_filter() -> None:
    client: Any = Asked()
    refused: list[str] = []
    subscriptions = Subscriptions(client, SummingLog(), lambda each, _: refused.append(each))
    subscriptions.want("a", 1)
    for number in range(1, 10):
        subscriptions.on_connected(NEW)
        assert client.requests == [("subscribe", ["a"])] * number
        subscriptions.on_disconnected(by_peer=False)
    assert refused == []
