"""With few messages in flight, as paho has by itself, the loop waits for no acknowledgements to gather."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import TYPE_CHECKING

import glec_fast.mqtt as mqtt
from support.gateway import TIMEOUT_S

if TYPE_CHECKING:
    import pytest

    from glec_fast.testbed.broker import Broker


def pauses_of(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the loop slept, each time, while 500 messages went out."""
    pauses: list[float] = []
    stand_in = SimpleNamespace(**vars(time))
    stand_in.sleep = pauses.append
    monkeypatch.setattr("glec_fast.engine.loop.time", stand_in)
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="small-window")
    client.connect(broker.host, broker.port)
    client.loop_start()
    for _ in range(500):
        info = client.publish("t", b"x" * 300, 1)
    info.wait_for_publish(TIMEOUT_S)
    assert info.is_published()
    client.disconnect()
    client.loop_stop()
    return pauses


def test_paho_s_own_window_waits_for_nothing(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    assert pauses_of(broker, monkeypatch) == []
