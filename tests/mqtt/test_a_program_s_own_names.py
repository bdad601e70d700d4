"""A subclass of a program may use any name that paho's class does not have, also one that ours has."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest
from paho.mqtt import client as paho

import glec_fast.mqtt as mqtt
from glec_fast.durable.outcomes import DropReason
from glec_fast.durable.store import Store
from support.gateway import TIMEOUT_S, eventually

if TYPE_CHECKING:
    from pathlib import Path

    from glec_fast.testbed.broker import Broker

V2 = paho.CallbackAPIVersion.VERSION2
PUBLIC = {"store", "flush", "handle_for", "close", "on_drop"}
BOTH = pytest.mark.parametrize("make", [paho.Client, mqtt.Client], ids=["paho", "ours"])


def own_names() -> set[str]:
    ours, theirs = mqtt.Client(V2), paho.Client(V2)
    of_paho = {*dir(theirs), *paho.Client.__init__.__code__.co_names}
    return {name for name in dir(ours) if name not in of_paho and not name.startswith("__")}


def test_ours_are_told_from_any_other() -> None:
    assert own_names() >= PUBLIC
    # paho's own, of 2.2 alone.
    others = own_names() - PUBLIC - {"drop_out_messages"}
    assert others
    assert not [name for name in others if not name.startswith(("_glec_", "_process_"))]


@BOTH
def test_all_that_a_client_has_can_be_looked_at(make: Any) -> None:
    client = make(V2)
    assert not hasattr(client, "store")
    assert dict(inspect.getmembers(client))["on_message"] is None
    mock.create_autospec(client).publish("t")


@BOTH
def test_a_program_s_own_attributes_of_those_names(make: Any, broker: Broker) -> None:
    class Own(make):  # type: ignore[misc]
        def __init__(self) -> None:
            # Before paho's is called, as some do.
            self.store, self.flush, self.handle_for = {"mine": 1}, True, None
            self._outbox, self._parts, self._policy, self._connector = [], (), "", 0
            super().__init__(V2)
            self.on_drop = self.close
            self.heard: list[bytes] = []

        def close(self) -> None:
            self.disconnect()
            self.loop_stop()

        def _wake(self) -> None:
            raise AssertionError("it is the program's")

        _compose = _on_exit = _in_child = _wake

        def on_connect(self, *_: Any) -> None:
            self.subscribe("own", 1)

        def on_subscribe(self, *_: Any) -> None:
            self.publish("own", b"x", 1)

        def on_message(self, _client: Any, _userdata: Any, message: Any) -> None:
            self.heard.append(message.payload)

    own = Own()
    own.connect(broker.host, broker.port)
    own.loop_start()
    assert eventually(lambda: own.heard == [b"x"])
    own.close()
    assert (own.store, own.flush, own.handle_for, own._outbox, own._parts) == ({"mine": 1}, True, None, [], ())
    assert own._policy == ""
    assert own._connector == 0


def test_a_client_that_left_lets_go_of_its_file_whatever_its_close_does(tmp_path: Path) -> None:
    with mqtt.install(store=lambda client_id: tmp_path / f"{client_id}.db") as installed:

        class Own(installed):  # type: ignore[misc,valid-type]
            def close(self) -> None:
                """The program's own, which knows of no file."""

        first = Own(V2, "own")
        first.publish("t", b"x", 2)
        second = Own(V2, "own")
        assert len(second._out_messages) == 1
        mqtt.Client.close(second)


def test_on_drop_may_be_a_method(tmp_path: Path) -> None:
    class Own(mqtt.Client):
        def __init__(self, store: Store) -> None:
            super().__init__(V2, "own", store=store)
            self.dropped: list[Any] = []

        def on_drop(self, client: Any, _userdata: Any, dropped: Any) -> None:
            assert client is self
            self.dropped.append(dropped.reason)

    with Own(Store(tmp_path / "queue.db", max_queue_size=1)) as client:
        for _ in range(2):
            client.publish("t", b"x", 1).wait_durable(TIMEOUT_S)
        assert eventually(lambda: client.dropped == [DropReason.OVERFLOW])
