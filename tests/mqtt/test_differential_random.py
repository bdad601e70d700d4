"""Long random lives of a client over a server that answers late and in any order: the same with paho's client and ours.

LIVES says how many, LIVES_SEED which.
"""

from __future__ import annotations

import os
import random
from typing import Any

import pytest
from paho.mqtt import client as paho
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

import glec_fast.mqtt
from support.differential import API1, API2, IS_2_1, NO_WARNING, V5, VERSIONS, Run
from support.lockstep import LockstepServer

pytestmark = NO_WARNING
LIVES = int(os.environ.get("LIVES", "12"))
SEED = int(os.environ.get("LIVES_SEED", "1"))
STEPS = 60
WATCHED = (
    *("on_connect", "on_disconnect", "on_message", "on_publish", "on_subscribe", "on_unsubscribe", "on_pre_connect"),
    *("on_socket_open", "on_socket_close", "on_log"),
)


class Life:
    """One client, what it does, and its server; all of it decided by `dice`."""

    def __init__(self, module: Any, version: int, seed: str) -> None:
        self.dice = random.Random(seed)
        self.version = version
        self.server = LockstepServer(version, random.Random(f"server {seed}"))
        settings = {} if version == V5 else {"clean_session": False}
        self.manual_ack = self.dice.random() < 0.3
        api = self.dice.choice((API1, API2))
        client = module.Client(api, "device", protocol=version, manual_ack=self.manual_ack, **settings)
        # Beyond the window paho's resends are among the differences; within it, what one read makes room for.
        self.is_cut = self.dice.random() < 0.6
        if not self.is_cut:
            window = self.dice.randrange(6)
            # In paho 2.1 a message that comes with QoS 2 makes room in the window for those that go.
            client.max_inflight_messages_set(0 if IS_2_1 else window)
        # Its answers are published from within the callback, so that messages come one at a time.
        self.echoes = self.dice.random() < 0.3
        self.run = Run(client, None)
        self.infos: list[Any] = []

    def live(self) -> tuple[list[Any], list[bytes]]:
        """(what the program saw, what the server read)."""
        self.run.watch(*WATCHED)
        if self.echoes:
            self.run.client.on_message = self._echo
        if self.dice.random() < 0.5:
            self.run.client.message_callback_add("a/#", lambda *rest: self.run.record("filtered", *rest[1:]))
        if self.is_cut and self.dice.random() < 0.5:
            self._publish()
        self.run.call(
            "connect", "127.0.0.1", self.server.port, **({"clean_start": False} if self.version == V5 else {})
        )
        self.server.accept(self.run)
        for _ in range(STEPS):
            self._step()
            self.run.record("fates", [info.is_published() for info in self.infos])
        self.run.call("disconnect")
        self.server.close()
        return self.run.seen, self.server.packets

    def _step(self) -> None:
        rare = (self._subscribe, self._unsubscribe, self._cut if self.is_cut else self._publish)
        act = self.dice.choice((self._publish,) * 4 + (self._hear,) * 4 + rare)
        act()
        if act != self._cut:
            self.server.settle(self.run)
        if self.dice.random() < 0.6:
            self.server.answer(one_by_one=not self.is_cut)
            self.server.settle(self.run)

    def _publish(self) -> None:
        for _ in range(self.dice.choice((1, 1, 1, 3))):
            properties = None
            if self.version == V5 and self.dice.random() < 0.3:
                properties = Properties(PacketTypes.PUBLISH)
                properties.MessageExpiryInterval = self.dice.randrange(100)
            noise = self.dice.randbytes(self.dice.choice((1, 300, 70_000)))
            payload = self.dice.choice((None, "", "text", 5, 1.5, noise))
            qos = self.dice.randrange(3)
            info = self.run.call("publish", "t/out", payload, qos, self.dice.random() < 0.2, properties)
            if info.rc == paho.MQTT_ERR_SUCCESS:
                # Not those from before a connection: see the table of differences.
                self.infos.append(info)

    def _echo(self, _client: Any, _userdata: Any, message: Any) -> None:
        self.run.record("on_message", message)
        self._publish()

    def _hear(self) -> None:
        for _ in range(1 if self.echoes else self.dice.randrange(1, 4)):
            self.server.message()
        if self.manual_ack and self.dice.random() < 0.5:
            self.server.settle(self.run)
            self.run.call("ack", self.dice.randrange(1, 9), self.dice.randrange(3))

    def _subscribe(self) -> None:
        self.run.call("subscribe", self.dice.choice(("t", ("t", 1), [("t", 0), ("a/#", 2)])))

    def _unsubscribe(self) -> None:
        self.run.call("unsubscribe", self.dice.choice(("t", ["t", "a/#"])))

    def _cut(self) -> None:
        self.server.settle(self.run)
        self.server.cut()
        ended = self.run.counts.get("on_disconnect", 0)
        self.run.loop_until("on_disconnect", ended + 1)
        if self.dice.random() < 0.5:
            self._publish()
        self.run.call("reconnect")
        self.server.accept(self.run)


@VERSIONS
@pytest.mark.parametrize("number", range(LIVES))
def test_the_same_life(version: int, number: int) -> None:
    seed = f"{SEED} {version} {number}"
    theirs, ours = (Life(module, version, seed).live() for module in (paho, glec_fast.mqtt))
    assert ours[0] == theirs[0]
    assert ours[1] == theirs[1]
    assert len(ours[1]) > STEPS
