"""How long the pauses between connections are, when they begin anew, and how long one may take to be accepted."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from glec_fast import MQTTConfig, MQTTManager
from glec_fast.engine.backoff import Backoff
from glec_fast.engine.routes import Routes
from glec_fast.fleet.policy import FleetPolicy
from glec_fast.runtime.summing_log import SummingLog
from support.gateway import BOTH_VERSIONS, TIMEOUT_S, eventually, quick_config
from support.odd_broker import OddBroker

if TYPE_CHECKING:
    import socket
    from pathlib import Path

    from glec_fast.testbed.broker import Broker

# Of many connections, on a busy machine.
LONG_S = 60.0


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
            # Behind so many that were dropped, only one that lasts is proof.
            assert manager._policy.backoff.next_delay_s() == pytest.approx(0.16)


@BOTH_VERSIONS
def test_two_clients_of_one_name_wait_longer_and_longer_and_say_so_once(
    broker: Broker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    protocol_version: int,
) -> None:
    """Each has its status acknowledged before the other comes, and has the broker end the other's connection."""
    waits: list[float] = []

    def wait(_policy: object, interrupt: threading.Event, delay_s: float) -> bool:
        waits.append(delay_s)
        return interrupt.wait(delay_s)

    monkeypatch.setattr("glec_fast.engine.policy.Policy.wait", wait)
    with ExitStack() as stack:
        for name in ("one", "other"):
            (tmp_path / name).mkdir()
            config = quick_config(
                broker.url,
                tmp_path / name,
                retry_initial_delay_ms=10,
                retry_max_delay_ms=640,
                retry_jitter="none",
                status_interval_s=300,
                protocol_version=protocol_version,
            )
            stack.enter_context(MQTTManager(config)).connect()
        assert eventually(lambda: any(each > 0.3 for each in waits), LONG_S)
        assert eventually(lambda: "is there another client with this client id?" in caplog.text, LONG_S)
    assert 1 <= caplog.text.count("is there another client with this client id?") <= 2, "once for each of them"


def test_a_connection_without_acknowledgements_proves_itself_by_lasting(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 1000.0
    monkeypatch.setattr("glec_fast.fleet.policy.time.monotonic", lambda: now_s)
    config = MQTTConfig("tcp://h", "c", retry_jitter="none")
    policy = FleetPolicy(config, lambda: 1.0, lambda _dropped: None, SummingLog(), Routes(1, lambda: None))
    for lasts_s, expected_s in ((29.0, 4.0), (31.0, 2.0)):
        policy.backoff.reset()
        assert policy.next_delay_s() == 2.0
        policy.on_accepted(5)
        now_s += lasts_s
        policy.on_ended(5, in_order=True)
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
