"""A vehicle killed with SIGKILL at any moment while it runs commands, over a link that is cut; a platform counts.

KILLS says how often, half of it with either version of MQTT (`make commands KILLS=300`), SEED which moments. Each
command is answered once. Of "fail" the effect came once at most, and once where the answer says so; of "retry" once at
least, and every further one knew that it was a retry.
"""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING

from glec_fast import MQTTManager
from glec_fast.testbed.link import Link
from glec_fast.testbed.subscriber import Subscriber
from support.gateway import BOTH_VERSIONS, TIMEOUT_S, eventually, quick_config
from support.killed import Killed, kill_again_and_again

if TYPE_CHECKING:
    from pathlib import Path

    from glec_fast.testbed.broker import Broker

KILLS = int(os.environ.get("KILLS", "8"))
SEED = int(os.environ.get("SEED", "1"))
A_LIFE = 12
COMMANDS = "glec/dtg/DTG-DOORS/commands"


@BOTH_VERSIONS
def test_killed_while_it_runs_commands(broker: Broker, disk_folder: Path, protocol_version: int) -> None:
    dice, kills = random.Random(SEED), KILLS // 2
    effects, sent = disk_folder / "effects", 0
    effects.touch()
    with (
        Link((broker.host, broker.port)) as link,
        Subscriber(broker, "glec/dtg/DTG-DOORS/#") as replies,
        MQTTManager(quick_config(broker.url, disk_folder, client_id="platform")) as platform,
    ):
        settings = {
            "kind": "commands", "port": link.port, "protocol_version": protocol_version, "client_id": "DTG-DOORS",
            "queue_path": str(disk_folder / "doors.db"), "seen": str(effects),
        }  # fmt: skip
        platform.connect()

        def send() -> None:
            nonlocal sent
            for _ in range(A_LIFE):
                name = dice.choice(("once", "again"))
                command = {"id": f"{name}-{sent}", "work_s": dice.choice((0, 0, 0.01))}
                platform.publish(f"{COMMANDS}/{name}", command, dice.choice((1, 2)))
                sent += 1

        begin = partial(Killed, "receiving_child", **settings)
        has_begun = partial(_first_is_answered, platform, replies)
        vehicle = kill_again_and_again(begin, link, dice, kills, has_begun=has_begun, send=send)
        assert platform.flush(TIMEOUT_S)
        assert eventually(lambda: len(_answers(replies)) == sent, 4 * TIMEOUT_S), (sent, len(_answers(replies)))
        # Whatever it has yet to say.
        vehicle.leave()
        assert replies.wait_for_end(TIMEOUT_S)
        answers = _replies(replies)
    check(answers, [line.split() for line in effects.read_text().splitlines()], kills)


def check(answers: list[dict[str, str]], effects: list[list[str]], kills: int) -> None:
    counts = Counter(each["id"] for each in answers if not each["id"].startswith("first"))
    assert max(counts.values()) == 1, [each for each in answers if counts[each["id"]] > 1]
    runs = Counter(identifier for identifier, _ in effects)
    retried = {identifier for identifier, is_retry in effects if is_retry == "1"}
    interrupted = 0
    for answer in answers:
        identifier, name = answer["id"], answer["id"].split("-")[0]
        if name == "once" and answer["status"] == "done":
            assert runs[identifier] == 1, answer
        elif name == "once":
            interrupted += 1
            assert answer["error"]["code"] == "interrupted", answer  # type: ignore[index]
            assert runs[identifier] <= 1, answer
        elif name == "again":
            assert answer["status"] == "done", answer
            assert runs[identifier] >= 1, answer
            assert runs[identifier] == 1 or identifier in retried, answer
    # Two lanes, of which each has one command that a kill finds begun.
    assert interrupted <= kills
    assert len(retried) <= kills


def _first_is_answered(platform: MQTTManager, replies: Subscriber) -> bool:
    platform.publish(f"{COMMANDS}/once", {"id": "first", "work_s": 0}, 2).wait_for_publish(TIMEOUT_S)
    return bool(_replies(replies))


def _replies(subscriber: Subscriber) -> list[dict[str, str]]:
    return [json.loads(each.payload) for each in list(subscriber.arrivals) if each.topic.endswith("/reply")]


def _answers(replies: Subscriber) -> set[str]:
    return {each["id"] for each in _replies(replies)} - {"first"}
