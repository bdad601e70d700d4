"""Places that a broker keeps for QoS 2 without PUBREL: with none left, mosquitto acknowledges what it then drops."""

from __future__ import annotations

import random
import shutil
from typing import TYPE_CHECKING

import pytest

from glec_fast import MQTTManager
from glec_fast.testbed.link import Link
from glec_fast.testbed.subscriber import Subscriber
from support.gateway import BOTH_VERSIONS, TIMEOUT_S, Recorder, quick_config

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import StartBroker

PLACES = 20


@pytest.mark.parametrize(("places", "is_another_process"), [(PLACES, False), (PLACES, True), (3, True)])
@pytest.mark.parametrize("queue_order", ["alerts_first", "fifo"])
def test_a_broker_restored_from_an_older_save_drops_nothing(
    start_broker: StartBroker, tmp_path: Path, places: int, is_another_process: bool, queue_order: str
) -> None:
    broker = start_broker(persistence=True)
    saved, older = tmp_path / "broker-0" / "mosquitto.db", tmp_path / "older.db"
    with Link((broker.host, broker.port)) as link:
        config = quick_config(f"tcp://127.0.0.1:{link.port}", tmp_path, queue_order=queue_order)
        subscriber = Subscriber(broker, "t")
        subscriber.start()
        manager = MQTTManager(config)
        manager.set_connection_callback(recorder := Recorder())
        manager.connect()
        assert recorder.wait_for_connections()
        # No PUBREC comes through, so that all its places are taken.
        link.cut_after(1, "down")
        for number in range(places):
            manager.publish("t", f"before {number}", 2)
        assert link.wait_for(lambda link: link.is_down, TIMEOUT_S)
        broker.kill(save_first=True)
        shutil.copy(saved, older)
        broker.start()
        link.restore()
        assert manager.flush(TIMEOUT_S)
        link.cut()
        if is_another_process:
            manager.disconnect()
        subscriber.leave()
        broker.kill()
        shutil.copy(older, saved)
        broker.start()
        subscriber.start()
        if is_another_process:
            manager = MQTTManager(config)
            manager.connect()
        published = {b"%d after" % number for number in range(60)}
        for payload in sorted(published):
            manager.publish("t", payload, 1 + int(payload.split()[0]) % 2)
        # All that it lets go ahead goes at once.
        link.restore()
        assert manager.flush(TIMEOUT_S)
        assert subscriber.wait_for_all(published), published - set(subscriber.payloads())
        manager.disconnect()
        subscriber.stop()


@pytest.mark.parametrize("queue_order", ["alerts_first", "fifo"])
@BOTH_VERSIONS
def test_a_broker_with_one_place(
    start_broker: StartBroker, tmp_path: Path, protocol_version: int, queue_order: str
) -> None:
    broker = start_broker(settings=["max_inflight_messages 1"])
    published = {b"%d-%d" % (1 + number % 2, number) for number in range(200)}
    settings = {"protocol_version": protocol_version, "wait_for_disk": False, "queue_order": queue_order}
    with (
        Subscriber(broker, "t") as subscriber,
        MQTTManager(quick_config(broker.url, tmp_path, max_unreleased=1, **settings)) as manager,
    ):
        shuffled = sorted(published)
        random.Random(1).shuffle(shuffled)
        for payload in shuffled[:100]:
            manager.publish("t", payload, int(payload[:1]))
        manager.connect()
        for payload in shuffled[100:]:
            manager.publish("t", payload, int(payload[:1]))
        assert manager.flush(TIMEOUT_S)
        assert subscriber.wait_for_all(published), published - set(subscriber.payloads())
        assert sorted(subscriber.payloads()) == sorted(published)
