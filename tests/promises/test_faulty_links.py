"""Links that cut after any byte, delay, split, stall or reset, with the real manager and mosquitto: exactly once.

What goes up is cut after some bytes, and what goes over TLS; LINK_STEP=1 (`make torture`) takes each.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from paho.mqtt import client as paho

from glec_fast import MQTTManager, TLSConfig
from glec_fast.errors import ConnectionLostError
from glec_fast.testbed.subscriber import Subscriber
from support.faulty_link import FaultyLink
from support.gateway import TIMEOUT_S, Recorder, eventually, quick_config

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from glec_fast.testbed.broker import Broker
    from glec_fast.testbed.certificates import CertificateAuthority
    from glec_fast.testbed.link import Direction

LINK_STEP = os.environ.get("LINK_STEP")
KEEPALIVE_S = 60
BOTH_WAYS = pytest.mark.parametrize("direction", ["up", "down"])
OVER_BOTH = pytest.mark.parametrize("tls", [False, True], ids=["tcp", "tls"])


class Scene:
    """A manager, a faulty link between it and the broker, and a subscriber straight at the broker."""

    def __init__(self, link: FaultyLink, manager: MQTTManager, subscriber: Subscriber) -> None:
        self.link = link
        self.manager = manager
        self.subscriber = subscriber
        self.recorder = Recorder()
        manager.set_connection_callback(self.recorder)
        self.published: set[bytes] = set()

    def publish(self, name: str) -> None:
        """One message of each QoS."""
        for qos in (0, 1, 2):
            payload = f"{qos}-{name}"
            self.manager.publish("t", payload, qos)
            self.published.add(payload.encode())

    def check(self) -> None:
        """QoS 1 and 2 came, 0 and 2 not twice; the subscriber had all that the broker had."""
        kept = {payload for payload in self.published if not payload.startswith(b"0-")}
        assert self.subscriber.wait_for_all(kept), f"lost: {sorted(kept - set(self.subscriber.payloads()))[:10]}"
        assert [payload for payload in self.subscriber.repeated() if not payload.startswith(b"1-")] == []


@pytest.fixture
def make_scene(tls_broker: Broker, authority: CertificateAuthority, tmp_path: Path) -> Iterator[Callable[..., Scene]]:
    with ExitStack() as stack:

        def make(*, tls: bool, **settings: object) -> Scene:
            port = tls_broker.tls_port if tls else tls_broker.port
            link = stack.enter_context(FaultyLink((tls_broker.host, port)))
            trust = TLSConfig.create_server_auth(authority.certificate_path) if tls else None
            url = f"{'ssl' if tls else 'tcp'}://127.0.0.1:{link.port}"
            quick = {"client_id": "g", "retry_initial_delay_ms": 1, "retry_max_delay_ms": 1, "wait_for_disk": False}
            subscriber = stack.enter_context(Subscriber(tls_broker, "t"))
            config = quick_config(url, tmp_path, tls_config=trust, **{**quick, **settings})
            return Scene(link, stack.enter_context(MQTTManager(config)), subscriber)

        yield make


@OVER_BOTH
@BOTH_WAYS
@pytest.mark.parametrize("reset", [False, True], ids=["end", "reset"])
def test_cut_after_every_byte_of_an_exchange(
    make_scene: Callable[..., Scene], tls: bool, direction: Direction, reset: bool
) -> None:
    """Each time from CONNECT on: the handshake, CONNECT, a message of each QoS, and their acknowledgements."""
    # Both versions over either transport, and with either end.
    scene = make_scene(tls=tls, protocol_version=4 if tls == reset else 5)
    link, manager = scene.link, scene.manager
    step_bytes = int(LINK_STEP or (31 if tls else 1 if direction == "down" else 7 if reset else 3))
    position, cuts = 1, 0
    link.cut()
    manager.connect()
    while True:
        scene.publish(str(position))
        link.restore_until(position, direction, reset=reset)
        assert eventually(lambda: link.is_down or not manager.get_metrics().queue_size)
        if not link.is_down:
            break
        cuts += 1
        position += step_bytes
        link.restore()
        assert manager.flush(TIMEOUT_S)
        link.cut()
    assert cuts > 12
    scene.check()


@OVER_BOTH
def test_a_link_that_hands_on_single_bytes(make_scene: Callable[..., Scene], tls: bool) -> None:
    scene = make_scene(tls=tls)
    for number in range(20):
        scene.publish(f"before-{number}")
    scene.link.piece_bytes = 1
    scene.manager.connect()
    assert scene.recorder.wait_for_connections()
    for number in range(20):
        scene.publish(f"meanwhile-{number}")
    assert scene.manager.flush(TIMEOUT_S)
    assert scene.recorder.events.count("connected") == 1
    scene.check()
    # No link broke, so QoS 0 came too.
    assert scene.subscriber.wait_for_all(scene.published)


@OVER_BOTH
def test_a_link_that_delays(make_scene: Callable[..., Scene], tls: bool) -> None:
    scene = make_scene(tls=tls)
    scene.link.delay_s = 0.02
    scene.manager.connect()
    for number in range(20):
        scene.publish(str(number))
    assert scene.manager.flush(TIMEOUT_S)
    assert scene.recorder.events.count("connected") == 1
    scene.check()


class Time:
    """Stands in for paho's clock, which the keep alive goes by."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 1000.0
        monkeypatch.setattr(paho, "time_func", lambda: self.now_s)


@OVER_BOTH
def test_a_half_open_link_is_given_up_without_an_answer_to_pings(
    make_scene: Callable[..., Scene], tls: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    time = Time(monkeypatch)
    scene = make_scene(tls=tls, keepalive_s=KEEPALIVE_S)
    link, recorder = scene.link, scene.recorder
    scene.manager.connect()
    scene.publish("before")
    assert scene.manager.flush(TIMEOUT_S)
    link.stall()
    for number in range(10):
        # What is published meanwhile does not count as a sign of life.
        scene.publish(f"into the void-{number}")
    client = scene.manager._client
    time.now_s += KEEPALIVE_S
    assert eventually(lambda: client._ping_t == time.now_s), "PINGREQ goes out"
    assert recorder.causes == []
    time.now_s += KEEPALIVE_S

    def is_lost() -> bool:
        # That the peer's kernel has the question is seen a look later, from when on its answer is due.
        time.now_s += 0.05
        return bool(recorder.causes)

    assert eventually(is_lost)
    assert isinstance(recorder.causes[0], ConnectionLostError)
    link.restore()
    assert scene.manager.flush(TIMEOUT_S)
    scene.check()


@OVER_BOTH
def test_a_link_that_refuses_is_tried_again(make_scene: Callable[..., Scene], tls: bool) -> None:
    scene = make_scene(tls=tls)
    scene.link.cut()
    scene.publish("before")
    scene.manager.connect()
    assert scene.recorder.wait_for(lambda events: events.count("reconnecting") >= 20)
    scene.link.restore()
    assert scene.manager.flush(TIMEOUT_S)
    scene.check()
    assert scene.recorder.causes == [], "what was never made was not lost"


@BOTH_WAYS
def test_a_reset_in_the_tls_handshake_is_told_and_tried_again(
    make_scene: Callable[..., Scene], direction: Direction
) -> None:
    scene = make_scene(tls=True)
    link, recorder = scene.link, scene.recorder
    link.cut()
    scene.publish("before")
    scene.manager.connect()
    for count_bytes in (1, 5, 100, 200):
        link.restore_until(count_bytes, direction, reset=True)
        assert link.wait_for(lambda link: link.is_down, TIMEOUT_S)
    assert recorder.events.count("connected") == 0
    link.restore()
    assert scene.manager.flush(TIMEOUT_S)
    assert recorder.events.count("connected") == 1
    scene.check()
