"""The protocol, searched: every reachable state of a client, a link, a disk and a broker, for a few messages.

While the broker keeps its session no message is lost, none of QoS 2 comes twice, first deliveries are in order, and it
never gets stuck. Where the broker loses it, only what it had acknowledged with PUBREC may be missing. One that
takes QoS 2 as QoS 1 loses nothing, and stops nothing. A message that the broker ends connections over, and one that
becomes too old on its way, go, and nothing of this changes for the others.
"""

from __future__ import annotations

import os
import random
import sys

import pytest

from support.model_check import ALL_STATES, PROGRESS, Bounds, SearchError, World, first_root, follow, search

# 1 for what the suite has time for; see the Makefile's `torture`.
DEPTH = int(os.environ.get("MODEL_CHECK_DEPTH", "1"))
# Of each deep search; 0 for all of them.
STATES = int(os.environ.get("MODEL_CHECK_STATES", "0")) or ALL_STATES
SEED = int(os.environ.get("SEED", "1"))

SHALLOW = {
    "two of QoS 2": Bounds((2, 2)),
    "two of QoS 2, MQTT 5": Bounds((2, 2), protocol_version=5),
    "one at a time": Bounds((2, 2), crashes=2, window=1),
    "one, many faults": Bounds((2,), cuts=2, crashes=2),
    "QoS 1 and 2": Bounds((1, 2)),
    "QoS 2 taken as QoS 1": Bounds((2, 2), knows_qos_2=False),
    "alerts first": Bounds((1, 2), window=1, alerts_first=True),
    "one of QoS 2 is refused": Bounds((2, 2), cuts=0, crashes=1, refuses=1),
    "one expires": Bounds((2, 2), cuts=0, crashes=1, window=1, expiries=1),
    "the session is lost": Bounds((2,), cuts=1, crashes=1, lost_sessions=1),
    "the session is lost, handed on at PUBREL": Bounds(
        (2,), cuts=1, crashes=1, lost_sessions=1, hands_on_at_release=True
    ),
}
SHALLOW |= {
    "two brokers, moved": Bounds((2,), cuts=2, crashes=0, owners=2, moves=2, hands_on_at_release=True),
    "two brokers, waited for": Bounds((2,), cuts=2, crashes=0, owners=2, moves=2, on_owner_away="wait"),
    "a session comes back older": Bounds(
        (2, 1), cuts=1, crashes=0, older_sessions=1, max_unreleased=2, hands_on_at_release=True
    ),
}
# To begin without most of the packet ids takes longer than all that a world then does.
FEW_IDS = Bounds((2, 2), cuts=0, crashes=1, window=1, ids=2, expiries=1)
DEEP = {
    "one expires, packet ids come round": FEW_IDS,
    "two brokers, moved, and crashes": Bounds((2, 2), cuts=2, crashes=1, owners=2, moves=2, hands_on_at_release=True),
    "two brokers, waited for, and crashes": Bounds(
        (2, 2), cuts=2, crashes=1, owners=2, moves=2, on_owner_away="wait", hands_on_at_release=True
    ),
    "two sessions come back older": Bounds((2, 2, 1), cuts=1, crashes=1, older_sessions=1, max_unreleased=2),
    "QoS 2 taken as QoS 1, by one that forgets": Bounds((2, 2), cuts=2, crashes=1, lost_sessions=2, knows_qos_2=False),
    "two, many faults": Bounds((2, 2), cuts=2, crashes=2),
    "three": Bounds((2, 2, 2), cuts=1, crashes=1),
    "three of both kinds": Bounds((1, 2, 2), cuts=1, crashes=1),
    "alerts first, many faults": Bounds((1, 2), cuts=2, alerts_first=True),
    "alerts first, two of each": Bounds((1, 2, 1, 2), cuts=1, crashes=1, window=2, alerts_first=True),
    "alerts first, the session is lost": Bounds((1, 2), cuts=2, crashes=1, lost_sessions=1, alerts_first=True),
    "the first of three is refused": Bounds((2, 2, 1), cuts=1, crashes=1, refuses=1, alerts_first=True),
    "one is refused, one expires": Bounds((2, 2), cuts=1, crashes=1, refuses=1, expiries=1),
    "one of QoS 1 is refused": Bounds((2, 1), cuts=1, crashes=1, refuses=2),
    "two expire": Bounds((2, 1, 2), cuts=1, crashes=1, expiries=2),
    "three in a window of two": Bounds((2, 2, 2), cuts=1, crashes=1, window=2),
    "packet ids come round": Bounds((2, 2, 2, 2), cuts=0, crashes=1, window=1, ids=3),
    "the session is lost over two": Bounds((2, 2), cuts=1, crashes=1, lost_sessions=1, hands_on_at_release=True),
    "the session is lost twice": Bounds((2,), cuts=1, crashes=2, lost_sessions=2, hands_on_at_release=True),
}


@pytest.mark.parametrize("name", SHALLOW)
def test_no_reachable_state_loses_or_doubles(name: str) -> None:
    found = search(SHALLOW[name], ALL_STATES)
    assert found.is_all
    assert found.states > 900
    assert found.ends > 0


def test_packet_ids_that_come_round() -> None:
    """From the beginning to an end, at random: one world for each way, not two for each state."""
    chance = random.Random(SEED)
    for _ in range(200):
        world = World(first_root(FEW_IDS), FEW_IDS)
        while not PROGRESS.isdisjoint(steps := world.steps()):
            step = chance.choice(steps)
            if step.startswith("crash"):
                world = World(world.after_crash(step), FEW_IDS)
            else:
                world.do(step)
            world.check()
        assert world.is_done()


@pytest.mark.skipif(DEPTH < 2, reason="takes minutes: make torture")
@pytest.mark.parametrize("name", DEEP)
def test_no_reachable_state_loses_or_doubles_deeper(name: str) -> None:
    found = search(DEEP[name], STATES, SEED)
    sys.stdout.write(f"\n{name}: {found.states:,} states, {'all there are' if found.is_all else 'of more'}\n")
    assert found.is_all or found.states == STATES


# What a deep search has found, and no shallow one does.
FOUND = {
    "a name that was on its way to the disk": (
        DEEP["two brokers, moved, and crashes"],
        (
            "connect, cut, turn to another owner, begin commit, end commit, connect, begin commit, cut,"
            " turn to another owner, end commit, connect, begin commit, end commit, send, send, broker handles,"
            " answer arrives, begin commit, crash behind the write, connect"
        ),
    ),
    "a packet id that an older session still holds": (
        DEEP["two sessions come back older"],
        (
            "connect, begin commit, end commit, send, broker handles, answer arrives, begin commit, broker saves,"
            " end commit, send, broker handles, answer arrives, session comes back older, begin commit,"
            " crash behind the write, connect, begin commit, end commit, send, broker handles"
        ),
    ),
}


@pytest.mark.parametrize("name", FOUND)
def test_what_was_once_found_holds(name: str) -> None:
    """What does not hold is raised by the step that it shows at. And the crash was reached, and what is behind it."""
    bounds, steps = FOUND[name]
    world = follow(bounds, steps.split(", "))
    assert world.crashes < bounds.crashes
    assert world.linked


def test_a_client_that_forgets_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The search itself can fail: a disk that keeps no packet ids doubles a message."""
    begin_commit = World._begin_commit

    def forgetful(world: World) -> None:
        begin_commit(world)
        assert world.store.pending is not None
        world.store.pending = world.store.pending._replace(image=b"")

    monkeypatch.setattr(World, "_begin_commit", forgetful)
    with pytest.raises(SearchError, match=r"without DUP|came 2 times|was used for"):
        search(Bounds((2,)), ALL_STATES)
