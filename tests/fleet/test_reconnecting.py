"""How long the pauses between connections are, when they begin anew, and how long one may take to be accepted."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from glec_fast import MQTTConfig, MQTTManager
from glec_fast.engine.backoff import Backoff
from glec_fast.engine.routes import Routes
from glec_fast.fleet.manager import FleetPolicy
from glec_fast.runtime.summing_log import SummingLog
from support.gateway import TIMEOUT_S, eventually, quick_config
from support.odd_broker import OddBroker

if TYPE_CHECKING:
    import socket
    from pathlib import Path


@pytest.mark.parametrize(("jitter", "least"), [("none", 1.0), ("equal", 0.5), ("full", 0.0)])
def test_with_jitter_the_waits_are_upper_bounds(jitter: str, least: float) -> None:
    waits = [2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]
    for drawn in (0.0, 0.25, 1.0):
        backoff = Backoff(2.0, 60.0, 5, jitter, lambda: drawn)  # noqa: B023 - called at once
        expected = [wait * (least + (1 - least) * drawn) for wait in waits]
        assert [backoff.next_delay_s() for _ in waits] == pytest.approx(expected)
        assert backoff.longest_delay_s() == pytest.approx(expected[-1])


def test_what_is_drawn_differs_from_gateway_to_gateway() -> None:
    first = {Backoff(2.0, 60.0, 5, "full").next_delay_s() for _ in range(50)}
    assert len(first) == 50
    assert all(0 <= wait < 2.0 for wait in first)
    assert max(first) - min(first) > 0.5


class Dropping(OddBroker):
    """Accepts each connection, and ends it behind CONNACK."""

    drops = True

    def _converse(self, link: socket.socket) -> None:
        if self.drops:
            link.recv(65_536)
            link.sendall(self.on_connect())
            return
        super()._converse(link)


def test_a_broker_that_accepts_and_drops_does_not_let_the_waits_begin_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    enough = threading.Event()

    def wait(_policy: object, _interrupt: object, delay_s: float) -> bool:
        waits.append(delay_s)
        if len(waits) >= 5:
            enough.set()
        return False

    monkeypatch.setattr("glec_fast.engine.policy.Policy.wait", wait)
    with Dropping() as broker:
        config = quick_config(
            broker.url, tmp_path, retry_initial_delay_ms=10, retry_max_delay_ms=160, retry_jitter="none"
        )
        with MQTTManager(config) as manager:
            manager.connect()
            assert enough.wait(TIMEOUT_S)
            assert waits[:5] == pytest.approx([0.01, 0.02, 0.04, 0.08, 0.16], rel=0.5)
            broker.drops = False
            manager.publish("t", "=x", 1).wait_for_publish(TIMEOUT_S)
            assert eventually(lambda: manager._policy._unproven is None), "an acknowledgement is proof"
            assert manager._policy.backoff.next_delay_s() == pytest.approx(0.01)


def test_a_connection_without_acknowledgements_proves_itself_by_lasting(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 1000.0
    monkeypatch.setattr("glec_fast.fleet.manager.time.monotonic", lambda: now_s)
    config = MQTTConfig("tcp://h", "c", retry_jitter="none")
    policy = FleetPolicy(config, lambda: 1.0, lambda _dropped: None, SummingLog(), Routes(1, lambda: None))
    for lasts_s, expected_s in ((29.0, 4.0), (31.0, 2.0)):
        policy.backoff.reset()
        assert policy.next_delay_s() == 2.0
        policy.on_accepted(5)
        now_s += lasts_s
        policy.look_for_proof(5, has_ended=True)
        assert policy.next_delay_s() == expected_s


@pytest.mark.parametrize("keepalive_s", [0, 60])
def test_a_server_that_never_sends_connack_is_left_in_time(tmp_path: Path, keepalive_s: int) -> None:
    class Silent(OddBroker):
        def on_connect(self) -> bytes:
            return b"" if self.connections == 1 else super().on_connect()

    with Silent(keeps_sessions=False) as broker:
        config = quick_config(broker.url, tmp_path, connection_timeout_s=0.5, keepalive_s=keepalive_s)
        with MQTTManager(config) as manager:
            manager.connect()
            manager.publish("t", "=x", 1).wait_for_publish(TIMEOUT_S)
            assert broker.connections >= 2
            assert broker.counts() == {b"x": 1}
