"""When a connection lets the waits between attempts begin anew."""

from __future__ import annotations

import pytest

from glec_fast.engine.proof import PROVEN_AFTER_S, SHORT_LIFE_S, SHORT_LIVES, Proof


def live(proof: Proof, now_s: float, lasts_s: float, *, is_answered: bool, in_order: bool = True) -> tuple[bool, bool]:
    """(proven, to be said) of a connection."""
    proof.begin(now_s, 7)
    is_proven = proof.look(now_s + lasts_s, 8 if is_answered else 7)
    return is_proven, proof.end(now_s + lasts_s, in_order=in_order)


@pytest.mark.parametrize(
    ("lasts_s", "is_answered", "is_proven"),
    [(0.1, False, False), (0.1, True, True), (PROVEN_AFTER_S - 1, False, False), (PROVEN_AFTER_S, False, True)],
)
def test_an_acknowledgement_or_time_is_proof(lasts_s: float, is_answered: bool, is_proven: bool) -> None:
    assert live(Proof(), 100.0, lasts_s, is_answered=is_answered) == (is_proven, False)


def test_it_proves_itself_once() -> None:
    proof = Proof()
    proof.begin(0.0, 0)
    assert proof.look(1.0, 1)
    assert not proof.look(2.0, 2)


def test_acknowledgements_are_none_where_the_server_ends_one_after_the_other() -> None:
    proof = Proof()
    found = [live(proof, number * 10.0, 1.0, is_answered=True) for number in range(SHORT_LIVES + 2)]
    assert found == [(True, False)] * (SHORT_LIVES - 1) + [(True, True)] + [(False, False)] * 2
    assert live(proof, 100.0, SHORT_LIFE_S, is_answered=True) == (True, False), "it lasted"
    assert live(proof, 110.0, 1.0, is_answered=True) == (True, False), "and the series is over"


def test_a_link_that_breaks_often_is_no_such_server() -> None:
    proof = Proof()
    for number in range(10):
        assert live(proof, number * 10.0, 1.0, is_answered=True, in_order=False) == (True, False)
