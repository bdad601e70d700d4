"""Which of several brokers is connected to next, and when the first is looked for again."""

from __future__ import annotations

import pytest

from glec_fast.engine.routes import RETURN_MAX_S, RETURN_MIN_S, Routes


class Trip:
    """Routes with a clock of their own, and a count of how often the first was looked for."""

    def __init__(self, count: int, spread: float = 0.5) -> None:
        self.now_s = 100.0
        self.asked = 0
        self.routes = Routes(count, self._ask, lambda: self.now_s, lambda: spread)

    def _ask(self) -> None:
        self.asked += 1

    def fail(self) -> tuple[bool, int]:
        return self.routes.turn(), self.routes.current

    def lose(self, after_s: float) -> tuple[bool, int]:
        self.routes.on_accepted()
        self.now_s += after_s
        return self.fail()


def test_the_next_is_tried_at_once_and_the_first_after_a_pause() -> None:
    trip = Trip(3)
    assert [trip.fail() for _ in range(4)] == [(True, 1), (True, 2), (False, 0), (True, 1)]
    assert [Trip(1).fail() for _ in range(3)] == [(False, 0)] * 3


def test_a_connection_that_is_lost_is_made_again_where_the_session_is() -> None:
    trip = Trip(3)
    trip.fail()
    assert [trip.lose(60.0) for _ in range(5)] == [(False, 1)] * 5


def test_a_broker_that_keeps_nobody_does_not_answer() -> None:
    trip = Trip(2)
    assert [trip.lose(0.5) for _ in range(3)] == [(False, 0), (False, 0), (True, 1)]
    assert [trip.lose(0.5), trip.lose(0.5), trip.lose(20.0), trip.lose(0.5)] == [(False, 1)] * 4


def test_the_first_is_looked_for_within_bounds_and_with_less_and_less_zeal() -> None:
    trip = Trip(2)
    trip.fail()
    trip.routes.on_accepted()
    pauses = []
    for _ in range(10):
        began_s, asked = trip.now_s, trip.asked
        while trip.asked == asked:
            trip.now_s += 0.5
            trip.routes.tick()
        pauses.append(trip.now_s - began_s)
        trip.routes.on_probed(False)
        assert not trip.routes.is_returning
    assert pauses[:3] == pytest.approx([RETURN_MIN_S, RETURN_MIN_S * 2, RETURN_MIN_S * 4], abs=1)
    assert pauses[-1] == pytest.approx(RETURN_MAX_S, abs=1)


def test_it_returns_once_the_first_answers_and_goes_on_where_that_comes_to_nothing() -> None:
    trip = Trip(2)
    trip.fail()
    trip.routes.on_accepted()
    trip.routes.on_probed(True)
    assert trip.routes.is_returning
    assert trip.fail() == (True, 0)
    assert not trip.routes.is_returning
    assert trip.fail() == (True, 1)
    trip.routes.on_accepted()
    # A probe's answer that comes late.
    assert trip.lose(60.0) == (False, 1)
    trip.routes.on_probed(True)
    assert not trip.routes.is_returning


def test_vehicles_spread_over_time() -> None:
    early, late = Trip(2, 0.0), Trip(2, 1.0)
    for trip in (early, late):
        trip.fail()
        trip.routes.on_accepted()
        trip.now_s += RETURN_MIN_S
        trip.routes.tick()
    assert (early.asked, late.asked) == (1, 0)
    assert 0.0 == early.routes.spread_s(2.0) < late.routes.spread_s(2.0) == 2.0
