"""What comes in, searched: every reachable state of a vehicle that receives, a link, a disk and a broker.

Nothing that the broker was told of as received is unhandled; QoS 2 comes once, but for what a crash finds handled and
not on disk, which says so; a command is answered once, and run as its declaration says; packet ids are on disk before
PUBREC and gone before PUBCOMP; and whatever the broker has not lost comes, and is answered, in the end.
"""

from __future__ import annotations

import os

import pytest

from glec_fast.engine.takeover import Continuity
from glec_fast.outbox import received
from glec_fast.outbox.received import Received
from support.inbound_check import Bounds, search
from support.model_check import SearchError

# 1 for what the suite has time for; see the Makefile's `torture`.
DEPTH = int(os.environ.get("MODEL_CHECK_DEPTH", "1"))
STATES = int(os.environ.get("INBOUND_STATES", "300000"))

SHALLOW = {
    "one of QoS 2": Bounds(("plain 2",), cuts=1, crashes=1),
    "one of QoS 1": Bounds(("plain 1",), cuts=1, crashes=1),
    "the session is lost": Bounds(("plain 2",), cuts=1, crashes=0, lost_sessions=1),
    "two, and a packet id comes again": Bounds(("plain 2", "plain 2"), cuts=0, crashes=1),
    "one of QoS 2, told late": Bounds(("plain 2",), cuts=1, crashes=1, tells_late=True),
    "a command of QoS 1, and a cut": Bounds(("fail 1",), cuts=1, crashes=0),
    "a command of QoS 1, and a crash": Bounds(("fail 1",), cuts=0, crashes=1),
    "a command of QoS 2, and a crash": Bounds(("fail 2",), cuts=0, crashes=1),
    "a command that is tried again": Bounds(("retry 2",), cuts=0, crashes=1),
    "a command, and the session is lost": Bounds(("fail 2",), cuts=0, crashes=0, lost_sessions=1),
}
DEEP = {
    "the session is lost, and a packet id comes again": Bounds(
        ("plain 2", "plain 2"), cuts=1, crashes=0, lost_sessions=1
    ),
    "one of QoS 2, many faults": Bounds(("plain 2",), cuts=2, crashes=2, lost_sessions=1),
    "two of QoS 2": Bounds(("plain 2", "plain 2"), cuts=1, crashes=1),
    "the session is lost over two, with two cuts": Bounds(("plain 2", "plain 2"), cuts=2, crashes=0, lost_sessions=1),
    "the session is lost over two, with a crash": Bounds(("plain 2", "plain 2"), cuts=1, crashes=1, lost_sessions=1),
    "both kinds of QoS": Bounds(("plain 1", "plain 2"), cuts=1, crashes=1),
    "a command of QoS 2": Bounds(("fail 2",), cuts=1, crashes=1),
    "a command of QoS 1": Bounds(("fail 1",), cuts=1, crashes=1),
    "one that is tried again": Bounds(("retry 2",), cuts=1, crashes=1),
    "one that is tried again, of QoS 1": Bounds(("retry 1",), cuts=1, crashes=1),
    "a command, many faults": Bounds(("fail 2",), cuts=1, crashes=1, lost_sessions=1),
    "a command, told late": Bounds(("fail 2",), cuts=0, crashes=1, tells_late=True),
    "a command and a message": Bounds(("fail 2", "plain 2"), cuts=1, crashes=1),
}


@pytest.mark.parametrize("name", SHALLOW)
def test_whatever_happens_it_comes_once(name: str) -> None:
    found = search(SHALLOW[name], STATES)
    assert 100 < found.states < STATES
    assert found.ends > 0


@pytest.mark.skipif(DEPTH < 2, reason="takes minutes: make inbound")
@pytest.mark.parametrize("name", DEEP)
def test_whatever_happens_it_comes_once_deeper(name: str) -> None:
    assert search(DEEP[name], STATES).states > 1000


# ---- the search can fail


def unmarked(_message: object) -> int:
    return 0


BREAKAGES = {
    "marks": (received, "_mark", unmarked, Bounds(("plain 2", "plain 2"), cuts=2, crashes=0, lost_sessions=1)),
    "ids on disk": (received, "add_received", lambda *_: None, Bounds(("plain 2",), cuts=1, crashes=0)),
    "ids gone": (received, "delete_received", lambda *_: None, Bounds(("plain 2",), cuts=1, crashes=0)),
    "continuity": (
        Continuity, "on_accepted", lambda _self, _whose, session_present: session_present,
        Bounds(("plain 2",), cuts=2, crashes=0, lost_sessions=1),
    ),
    "the transaction of the reply": (
        Received, "record", lambda *_: None, Bounds(("fail 2",), cuts=0, crashes=0),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BREAKAGES)
def test_what_is_broken_on_purpose_is_found(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    owner, attribute, broken, bounds = BREAKAGES[name]
    monkeypatch.setattr(owner, attribute, broken)
    with pytest.raises(SearchError):
        search(bounds, STATES)
