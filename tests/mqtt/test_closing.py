"""A client that is closed while it connects does not wait for a peer that may never answer."""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest
from paho.mqtt import client as paho

import glec_fast.mqtt
from glec_fast import MQTTManager, OfflineQueueManager
from glec_fast.transport.dial import Attempt
from support.gateway import TIMEOUT_S, Recorder, eventually, quick_config

if TYPE_CHECKING:
    from pathlib import Path

    from glec_fast.testbed.broker import Broker

# The test fails long before.
CONNECTION_TIMEOUT_S = 6 * int(TIMEOUT_S)


class Failures(Recorder):
    """Keeps the causes of attempts that failed as well."""

    def on_connect_failed(self, cause: Exception) -> None:
        self._add(cause)


def leave(manager: MQTTManager) -> None:
    leaving = threading.Thread(target=manager.disconnect, daemon=True)
    leaving.start()
    leaving.join(TIMEOUT_S)
    assert not leaving.is_alive(), "it waits for the peer"


def test_while_tcp_waits(tmp_path: Path, swallowed: int) -> None:
    url = f"tcp://127.0.0.1:{swallowed}"
    manager = MQTTManager(quick_config(url, tmp_path, connection_timeout_s=CONNECTION_TIMEOUT_S))
    failures = Failures()
    manager.set_connection_callback(failures)
    manager.connect()
    assert eventually(lambda: manager._client._glec_connector.attempt._socks)
    leave(manager)
    assert failures.events == []


@pytest.mark.parametrize(("scheme", "first"), [("ssl", b"\x16"), ("ws", b"G"), ("wss", b"\x16")])
def test_while_the_peer_is_silent(scheme: str, first: bytes, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"{scheme}://127.0.0.1:{listener.getsockname()[1]}"
        manager = MQTTManager(quick_config(url, tmp_path, connection_timeout_s=CONNECTION_TIMEOUT_S))
        manager.connect()
        listener.settimeout(TIMEOUT_S)
        silent, _ = listener.accept()
        with silent:
            silent.settimeout(TIMEOUT_S)
            assert silent.recv(1) == first
            leave(manager)


def test_while_the_name_is_looked_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An offline gateway's resolver may take half a minute, and nothing can end it."""
    monkeypatch.setattr("glec_fast.engine.network_thread.LEAVE_TIMEOUT_S", 0.1)
    asked, answer = threading.Event(), threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        found = socket.getaddrinfo(*listener.getsockname(), type=socket.SOCK_STREAM)

        def getaddrinfo(*_: Any, **__: Any) -> Any:
            asked.set()
            assert answer.wait(TIMEOUT_S)
            return found

        monkeypatch.setattr("glec_fast.transport.dial.socket.getaddrinfo", getaddrinfo)
        manager = MQTTManager(quick_config("tcp://broker.invalid:1", tmp_path))
        manager.publish("t", "x", 0)
        failures = Failures()
        manager.set_connection_callback(failures)
        manager.connect()
        assert asked.wait(TIMEOUT_S)
        thread = manager._client._thread
        leave(manager)
        assert thread.is_alive(), "the control: it was still being looked up"
        answer.set()
        thread.join(TIMEOUT_S)
        assert not thread.is_alive()
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()
    assert failures.events == []
    with OfflineQueueManager(tmp_path / "queue.db") as queue:
        assert queue.get_queue_size() == 1


def test_a_client_that_was_closed_in_its_callback_connects_again(broker: Broker) -> None:
    client = glec_fast.mqtt.Client(paho.CallbackAPIVersion.VERSION2)
    connections = threading.Semaphore(0)

    def on_connect(*_: object) -> None:
        connections.release()
        client.close()

    client.on_connect = on_connect
    for _ in range(2):
        client.connect_async(broker.host, broker.port)
        client.loop_start()
        assert connections.acquire(timeout=TIMEOUT_S)
        assert eventually(lambda: client._thread is None)
    # Also without a thread.
    assert client.connect(broker.host, broker.port) == paho.MQTT_ERR_SUCCESS
    client.close()


def test_it_lets_go_of_what_wakes_its_loop(broker: Broker, tmp_path: Path) -> None:
    manager = MQTTManager(quick_config(broker.url, tmp_path))
    manager.connect()
    ends = (manager._client._sockpairR, manager._client._sockpairW)
    assert None not in ends
    manager.disconnect()
    assert [end.fileno() for end in ends if end is not None] == [-1, -1]


def test_an_attempt_that_has_ended_follows_no_socket() -> None:
    attempt = Attempt()
    with socket.socket() as sock:
        attempt.follow(sock)
        attempt.succeed()
        attempt.end()
        with pytest.raises(ConnectionAbortedError, match="closed while it connected"):
            attempt.follow(sock)
        assert sock.fileno() == -1
