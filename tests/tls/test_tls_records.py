"""TLS has a record a read, and a broker makes one of each packet: many are taken in a turn, and none is lost."""

from __future__ import annotations

import os
import select
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest
from paho.mqtt.enums import CallbackAPIVersion

import glec_fast.mqtt
from glec_fast.testbed.certificates import CertificateAuthority
from support.loopback import LoopbackServer
from support.tls_peer import CONNACK, server_context

if TYPE_CHECKING:
    from collections.abc import Iterator

TIMEOUT_S = 10.0
MESSAGES = 200
PUBLISH_BYTES = 2 + 2 + len("t") + 2 + len("x")


class RecordPeer(LoopbackServer):
    """Accepts a client, takes MESSAGES of PUBLISH, and answers each with a record of its own when it is told to."""

    def __init__(self, authority: CertificateAuthority, last: bytes) -> None:
        super().__init__(self._answer)
        self._context = server_context(authority.issue_server())
        # What goes over TCP behind the last record.
        self._last = last
        self.go_on = threading.Event()

    def _answer(self, sock: socket.socket) -> None:
        with self._context.wrap_socket(sock, server_side=True) as tls:
            tls.recv(1024)
            tls.sendall(CONNACK)
            taken = 0
            while taken < MESSAGES * PUBLISH_BYTES:
                taken += len(tls.recv(65_536))
            for packet_id in range(1, MESSAGES + 1):
                tls.sendall(b"\x40\x02" + packet_id.to_bytes(2, "big"))
            os.write(tls.fileno(), self._last)
            self.go_on.wait(TIMEOUT_S)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    return CertificateAuthority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def client(authority: CertificateAuthority) -> Iterator[Any]:
    client = glec_fast.mqtt.Client(CallbackAPIVersion.VERSION2, reconnect_on_failure=False)
    client.tls_set(str(authority.certificate_path))
    client.max_inflight_messages_set(MESSAGES)
    yield client
    client.disconnect()


def turn(client: Any) -> None:
    assert select.select([client.socket()], [], [], TIMEOUT_S)[0]
    client.loop_read()


def connect_and_publish(client: Any, peer: RecordPeer) -> list[Any]:
    client.connect("localhost", peer.port)
    while not client.is_connected():
        turn(client)
    return [client.publish("t", b"x", 1) for _ in range(MESSAGES)]


def test_many_records_are_taken_in_a_turn(client: Any, authority: CertificateAuthority) -> None:
    with RecordPeer(authority, b"") as peer:
        infos = connect_and_publish(client, peer)
        turns = 0
        while not all(info.is_published() for info in infos):
            turn(client)
            turns += 1
        peer.go_on.set()
    # As many as the peer's thread was interrupted, and not one for each record.
    assert turns < MESSAGES / 4


@pytest.mark.parametrize(
    ("last", "logged"),
    [pytest.param(b"", [], id="eof"), pytest.param(b"no record of TLS", ["on_log"], id="garbage")],
)
def test_what_came_before_the_end_is_told_first(
    client: Any, authority: CertificateAuthority, last: bytes, logged: list[str]
) -> None:
    seen: list[str] = []

    def on_log(_client: Any, _userdata: Any, _level: int, text: str) -> None:
        if text.startswith("failed to receive"):
            seen.append("on_log")

    client.on_log = on_log
    client.on_publish = lambda *_: seen.append("on_publish")
    client.on_disconnect = lambda *_: seen.append("on_disconnect")
    with RecordPeer(authority, last) as peer:
        infos = connect_and_publish(client, peer)
        peer.go_on.set()
        while client.socket() is not None:
            turn(client)
    assert seen == ["on_publish"] * MESSAGES + logged + ["on_disconnect"]
    assert all(info.is_published() for info in infos)
