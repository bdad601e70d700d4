"""Whose session the server keeps, and how one that is not ours is discarded."""

from __future__ import annotations

import pytest

from glec_fast.engine.takeover import Takeover

BOTH = pytest.mark.parametrize("is_mqtt_5", [False, True])


def connect(
    takeover: Takeover, *, is_mqtt_5: bool, owner: str = "a", present: bool = True, foreign: bool = True
) -> str:
    """How the connection is made, "c0" or "c1", with "+" if it lasts."""
    takeover.turn_to(owner)
    how = "c1" if takeover.discards else "c0"
    again = takeover.must_connect_again(session_present=present, is_foreign=foreign, is_mqtt_5=is_mqtt_5)
    return how if again else how + "+"


@BOTH
def test_a_foreign_session_is_discarded_once(is_mqtt_5: bool) -> None:
    takeover = Takeover()
    assert connect(takeover, is_mqtt_5=is_mqtt_5) == "c0"
    if is_mqtt_5:
        assert connect(takeover, is_mqtt_5=True, present=False) == "c1+"
    else:
        assert connect(takeover, is_mqtt_5=False, present=False) == "c1"
        # Whatever it says of a session.
        assert connect(takeover, is_mqtt_5=False) == "c0+"
    assert connect(takeover, is_mqtt_5=is_mqtt_5, foreign=False) == "c0+"


@BOTH
def test_each_owner_has_its_own_discarded(is_mqtt_5: bool) -> None:
    takeover = Takeover()
    connect(takeover, is_mqtt_5=is_mqtt_5)
    connect(takeover, is_mqtt_5=is_mqtt_5, present=False)
    assert connect(takeover, is_mqtt_5=is_mqtt_5, owner="b") == "c0"
    assert connect(takeover, is_mqtt_5=is_mqtt_5, owner="b", present=False)[:2] == "c1"


@BOTH
def test_what_is_ours_at_another_owner_is_not_discarded_in_place_of_that(is_mqtt_5: bool) -> None:
    takeover = Takeover()
    assert connect(takeover, is_mqtt_5=is_mqtt_5) == "c0"
    assert connect(takeover, is_mqtt_5=is_mqtt_5, owner="b", foreign=False) == "c0+"
