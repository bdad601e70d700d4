"""A broker that keeps a session which is not this queue file's: its packet ids are of other messages, so it must go."""

from __future__ import annotations

import re
from contextlib import closing
from typing import TYPE_CHECKING

import apsw
import pytest

from glec_fast import MQTTManager
from glec_fast.testbed.link import Link
from glec_fast.testbed.subscriber import Subscriber
from support.gateway import BOTH_VERSIONS, TIMEOUT_S, Recorder, quick_config
from support.scripted_gateway import BROKER_NAME, CLIENT_ID, ScriptedGateway

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import StartBroker
    from glec_fast.testbed.broker import Broker

# A connection that shows what is kept, one that has it forgotten, and before MQTT 5 one to stay.
DISCARDING = {4: ["c0", "c1", "c0"], 5: ["c0", "c1"]}
CONNACK_BYTES = 4


def clean_flags(broker: Broker) -> list[str]:
    """c0 or c1 for each connection of the gateway, as mosquitto logs it."""
    return re.findall(r" as DTG-TEST \(p\d, (c\d),", broker.log_text())


@BOTH_VERSIONS
def test_another_broker_and_back_again(start_broker: StartBroker, tmp_path: Path, protocol_version: int) -> None:
    first, second = start_broker(), start_broker()
    with Subscriber(first, "t") as at_first, Subscriber(second, "t") as at_second:
        with Link((first.host, first.port)) as link:
            config = quick_config(f"tcp://127.0.0.1:{link.port}", tmp_path, protocol_version=protocol_version)
            with MQTTManager(config) as manager:
                manager.set_connection_callback(recorder := Recorder())
                manager.connect()
                assert recorder.wait_for_connections()
                # Of PUBREC too little.
                link.cut_after(1, "down")
                manager.publish("t", "the first", 2)
                assert link.wait_for(lambda link: link.is_down, TIMEOUT_S)
            with MQTTManager(quick_config(second.url, tmp_path, protocol_version=protocol_version)) as manager:
                manager.connect()
                assert manager.flush(TIMEOUT_S)
            link.restore()
            with MQTTManager(config) as manager:
                manager.publish("t", "the second", 2)
                manager.connect()
                assert manager.flush(TIMEOUT_S)
        assert clean_flags(first) == ["c0", *DISCARDING[protocol_version]]
        assert at_second.wait_for_count(1)
        assert at_second.payloads() == [b"the first"]
        assert at_first.wait_for_count(1)
        assert at_first.payloads() == [b"the second"]


@BOTH_VERSIONS
def test_a_new_queue_file_discards_the_session_once(broker: Broker, tmp_path: Path, protocol_version: int) -> None:
    recorder = Recorder()
    (tmp_path / "old").mkdir()
    with MQTTManager(quick_config(broker.url, tmp_path / "old", protocol_version=protocol_version)) as manager:
        manager.connect()
        manager.publish("t", "x", 2).wait_for_publish(TIMEOUT_S)
    once = ["c0", *DISCARDING[protocol_version]]
    with Subscriber(broker, "glec/dtg/DTG-TEST/status") as wills:
        for expected in (once, [*once, "c0"]):
            with MQTTManager(quick_config(broker.url, tmp_path, protocol_version=protocol_version)) as manager:
                manager.set_connection_callback(recorder)
                manager.connect()
                manager.publish("t", "x", 2).wait_for_publish(TIMEOUT_S)
                assert manager.get_metrics().reconnect_count == 0
            assert clean_flags(broker) == expected
        assert recorder.causes == [None, None]
        assert wills.payloads() == [], "the gateway left in order each time"


def test_a_link_that_is_cut_while_the_session_is_discarded(broker: Broker, link: Link, tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    with MQTTManager(quick_config(broker.url, tmp_path / "old")) as manager:
        manager.connect()
        manager.publish("t", "x", 2).wait_for_publish(TIMEOUT_S)
    with Subscriber(broker, "t") as subscriber:
        with MQTTManager(quick_config(f"tcp://127.0.0.1:{link.port}", tmp_path)) as manager:
            for connections in (1, 2):
                # CONNACK of so many connections comes through, and then nothing.
                link.restore_for(connections * CONNACK_BYTES, "down")
                manager.connect()
                assert link.wait_for(lambda link: link.is_down, TIMEOUT_S)
            link.restore()
            manager.publish("t", "once", 2).wait_for_publish(TIMEOUT_S)
        assert subscriber.wait_for_count(1)
        assert subscriber.payloads() == [b"once"]
    flags = clean_flags(broker)
    assert "c1" in flags
    assert flags[-1] == "c0"


def identity_on_disk(path: Path) -> tuple[str, str]:
    with closing(apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)) as database:
        found: tuple[str, str] = database.execute("SELECT client_id, broker FROM glec_session").get
    return found


def test_whose_session_it_is_is_on_disk_before_the_first_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "queue.db"
    names: list[tuple[str, str]] = []
    with ScriptedGateway(path) as gateway:
        assert gateway.outbox.is_session_foreign
        gateway.publish("2-0", 2)
        # The network thread alone: its own commits are of the image, and name nobody.
        monkeypatch.setattr(gateway.store, "request_commit", lambda: None)
        gateway.connect(session_present=False)
        assert not gateway.outbox.is_session_foreign
        assert gateway.send() == b""
        gateway.commit()
        assert gateway.send(on_leaving=lambda _chunk: names.append(identity_on_disk(path)))
    assert names == [(CLIENT_ID, BROKER_NAME)]
    with ScriptedGateway(path) as gateway:
        assert not gateway.outbox.is_session_foreign


@pytest.mark.parametrize("other", [{"client_id": "other"}, {"broker_name": "other:1883"}])
def test_a_process_that_never_connected_has_made_no_session_its_own(tmp_path: Path, other: dict[str, str]) -> None:
    path = tmp_path / "queue.db"
    with ScriptedGateway(path) as gateway:
        gateway.publish("2-0", 2)
        gateway.connect(session_present=False)
        gateway.commit()
        gateway.send()
    for settings in (other, other, {}, {}):
        with ScriptedGateway(path, **settings) as gateway:
            assert gateway.outbox.is_session_foreign
            assert gateway.session.parked_ids() == []
