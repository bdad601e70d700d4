"""What an outbox over the store tells it in a flush, and when."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from support.scripted_gateway import ScriptedGateway


class Told(NamedTuple):
    waiting: int
    named: int
    drained: bool


class Asking:
    """Takes what the store would be told, and asks for more from `again_at` on."""

    def __init__(self, gateway: ScriptedGateway, monkeypatch: pytest.MonkeyPatch) -> None:
        self.told: list[Told] = []
        self.again_at = 0
        monkeypatch.setattr(gateway.store, "on_finished", self._on_finished)

    def _on_finished(self, waiting: int, *, named: int, drained: bool) -> int:
        self.told.append(Told(waiting, named, drained))
        return self.again_at


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[ScriptedGateway]:
    gateway = ScriptedGateway(tmp_path / "queue.db", window=10)
    yield gateway
    gateway.outbox.close()


def puback(packet_id: int) -> bytes:
    return b"\x40\x02" + packet_id.to_bytes(2, "big")


def go_online(gateway: ScriptedGateway, messages: int, qos: int) -> None:
    for number in range(messages):
        gateway.publish(str(number), qos)
    gateway.commit()
    gateway.connect()
    gateway.commit()
    gateway.send()


def test_the_store_is_told_of_what_is_finished_from_when_it_asked_to_be(
    gateway: ScriptedGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_online(gateway, 8, 1)
    asking = Asking(gateway, monkeypatch)
    asking.again_at = 4
    for packet_id in range(1, 8):
        gateway.receive(puback(packet_id))
    assert [told.waiting for told in asking.told] == [1, 4, 5, 6, 7]
    asking.again_at = 100
    gateway.receive(puback(8))
    assert asking.told[-1] == Told(8, 0, drained=True), "and whenever nothing is in flight"
    assert gateway.outbox.stored_count == 0, "whatever the store knows"


def test_a_log_that_fails_is_told_of_once_the_outbox_is_nobody_s(
    gateway: ScriptedGateway, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A handler of the program's log may publish: the order of locks is watched."""

    def fail(_descriptor: int) -> None:
        raise OSError(errno.EIO, "a bad disk")

    monkeypatch.setattr("glec_fast.durable.outgoing._QUICK_COMMIT_S", float("inf"))
    caplog.set_level(logging.DEBUG)
    go_online(gateway, 3, 2)
    monkeypatch.setattr(os, "fdatasync", fail)
    gateway.receive(b"\x50\x02\x00\x01")
    gateway.commit()
    # Whose turn it was has told by the end of it.
    gateway.store.run(lambda _table: None)
    assert "a bad disk" in caplog.text
    assert gateway.send() == b"\x62\x02\x00\x01"


def test_at_the_end_of_the_process_qos_0_goes_to_the_queue_too(gateway: ScriptedGateway) -> None:
    """From a handler of the program that runs behind ours; else nobody would know whether it left."""
    go_online(gateway, 0, 0)
    gateway.publish("past the queue", 0)
    assert gateway.store.size == 0
    gateway.store._status.is_ending = True
    gateway.publish("kept", 0)
    assert gateway.store.size == 1


def test_the_store_is_told_what_the_image_on_disk_names(
    gateway: ScriptedGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("glec_fast.durable.outgoing._QUICK_COMMIT_S", float("inf"))
    go_online(gateway, 3, 2)
    asking = Asking(gateway, monkeypatch)
    gateway.receive(b"\x50\x02\x00\x01\x50\x02\x00\x02")
    gateway.send()
    gateway.receive(b"\x70\x02\x00\x01")
    assert asking.told == [Told(1, 0, drained=False)]
    # Its PUBREL waits for an image, which names the first.
    gateway.receive(b"\x50\x02\x00\x03")
    gateway.send()
    gateway.receive(b"\x70\x02\x00\x02")
    assert asking.told[-1] == Told(2, 1, drained=False)
    assert gateway.outbox.take_finished() == [1, 2]
    gateway.receive(b"\x70\x02\x00\x03")
    assert asking.told[-1] == Told(1, 0, drained=True)
