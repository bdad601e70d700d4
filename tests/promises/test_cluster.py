"""A cluster of two ejabberd nodes, and a gateway that is moved between them in the middle of a flush."""

from __future__ import annotations

import random
from contextlib import ExitStack
from itertools import count
from typing import TYPE_CHECKING

import pytest

from glec_fast import Decision, MQTTManager
from glec_fast.testbed.link import Link
from glec_fast.testbed.subscriber import Login, Subscriber
from support.ejabberd import PASSWORD, USERNAME, libraries
from support.foreign_brokers import Cluster
from support.gateway import BOTH_VERSIONS, TIMEOUT_S, Recorder, quick_config

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.skipif(libraries() is None, reason="ejabberd is not installed: make brokers")

# Twenty, and with SIGTERM and SIGKILL: make broker-matrix.
MOVES = 4
# ejabberd 23.01 refuses a session that has moved away and comes back, for as long as it is asked again at once.
RETRY_MS = 2000
DEVICES = (f"DTG-{number}" for number in count())


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("cluster")) as nodes:
        yield nodes


class Move:
    """A gateway with a link to each node, and a listener at node 2."""

    def __init__(self, cluster: Cluster, directory: Path, version: int, stack: ExitStack) -> None:
        device = next(DEVICES)
        self.topic = device
        self.links = [stack.enter_context(Link((node.host, node.port))) for node in cluster.nodes]
        listener = Subscriber(cluster.nodes[1], device, client_id=f"{device}-listener", login=Login(USERNAME, PASSWORD))
        self.subscriber = stack.enter_context(listener)
        config = quick_config(
            "",
            directory,
            client_id=device,
            broker_urls=[f"tcp://127.0.0.1:{link.port}" for link in self.links],
            protocol_version=version,
            wait_for_disk=False,
            username=USERNAME,
            password=PASSWORD,
            retry_initial_delay_ms=RETRY_MS,
            retry_max_delay_ms=RETRY_MS,
        )
        self.manager = stack.enter_context(MQTTManager(config))
        self.recorder = Recorder()
        self.manager.set_connection_callback(self.recorder)
        self.sent: dict[int, bytes] = {}

    def publish(self, number: int) -> None:
        for payload in [b"%d-%d" % (1 + each % 3 % 2, each) for each in range(number, number + 30)]:
            self.sent[self.manager.publish(self.topic, payload, int(payload[:1])).message_id] = payload

    def doubled(self) -> set[bytes]:
        return {payload for payload in self.subscriber.repeated() if payload.startswith(b"2-")}


@BOTH_VERSIONS
def test_the_link_of_a_node_is_cut(cluster: Cluster, tmp_path: Path, protocol_version: int) -> None:
    dice = random.Random(protocol_version)
    with ExitStack() as stack:
        move = Move(cluster, tmp_path, protocol_version, stack)
        move.links[1].cut()
        move.manager.connect()
        for number in range(MOVES):
            here, there = move.links[number % 2], move.links[1 - number % 2]
            assert move.recorder.wait_for_connections(number + 1)
            here.cut_after(dice.randrange(1, 300), "up" if dice.random() < 0.5 else "down")
            move.publish(number * 30)
            if not here.wait_for(lambda link: link.is_down, 1.0):
                here.cut()
            there.restore()
        assert move.manager.flush(TIMEOUT_S)
        assert move.subscriber.wait_for_all(set(move.sent.values()))
        assert move.doubled() == set()
        assert move.manager.in_doubt() == []


# The last: the node does not come back.
def test_a_node_that_is_killed_takes_its_session_with_it(cluster: Cluster, tmp_path: Path) -> None:
    with ExitStack() as stack:
        move = Move(cluster, tmp_path, 4, stack)
        move.manager.connect()
        assert move.recorder.wait_for_connections(1)
        move.links[0].cut_after(200, "up")
        move.publish(0)
        assert move.links[0].wait_for(lambda link: link.is_down, TIMEOUT_S)
        cluster.nodes[0].kill()
        assert move.manager.flush(TIMEOUT_S)
        doubt = {entry.message_id: entry.decision for entry in move.manager.in_doubt()}
        left = {move.sent[each] for each, decision in doubt.items() if decision is Decision.LEFT_TO_BROKER}
        again = {move.sent[each] for each, decision in doubt.items() if decision is Decision.SENT_AGAIN}
        assert move.subscriber.wait_for_all(set(move.sent.values()) - left)
        assert move.doubled() <= again
        assert len(doubt) <= 20
