"""The watch over the order of locks: its table is about all of them, and it sees what is taken the other way round."""

from __future__ import annotations

import re
import threading
from typing import TYPE_CHECKING

import pytest

from glec_fast.runtime._lock import Condition, Lock
from support.lock_order import LOCKS, allowed
from support.places import REPOSITORY

if TYPE_CHECKING:
    from support.lock_order import Watch


def test_it_is_an_order() -> None:
    assert not {pair for pair in allowed() if pair[::-1] in allowed()}


def test_every_lock_is_in_the_table() -> None:
    places = [*REPOSITORY.glob("glec_fast/**/*.py"), *REPOSITORY.glob("cext/**/*.p[yx][xi]")]
    made = [name for place in places for name in re.findall(r"(?<![.\w])Lock\((.*?)\)", place.read_text())]
    assert "" not in made
    names = {name.strip('"') for name in made if name.startswith('"')}
    assert names == {name for name in LOCKS if not name.startswith("_")}


@pytest.mark.parametrize(("held", "taken"), sorted(allowed()))
def test_two_locks(held: str, taken: str, lock_watch: Watch) -> None:
    first, second = Lock(held), Lock(taken)
    with first, second:
        pass
    assert not lock_watch.take_violations()
    with second, first:
        pass
    assert f"{held} was taken under {taken}" in lock_watch.take_violations()


def test_two_of_one_kind_have_no_order(lock_watch: Watch) -> None:
    with Lock("Store._lock"), Lock("Store._lock"):
        pass
    assert "Store._lock was taken under Store._lock" in lock_watch.take_violations()


def test_one_without_a_name(lock_watch: Watch) -> None:
    with Lock("Store._lock"), Lock():
        pass
    assert "a lock without a name was taken under Store._lock" in lock_watch.take_violations()


def test_one_that_is_held_is_taken_again(lock_watch: Watch) -> None:
    first, second = Lock("Outbox.lock"), Lock("Store._lock")
    with first, second, first:
        pass
    with second:
        pass
    assert not lock_watch.take_violations()


def test_a_wait_that_has_an_end_is_not_judged_and_what_is_taken_then_is(lock_watch: Watch) -> None:
    with Lock("Store._lock"):
        for limit_s in (0.0, 0.01):
            with Lock("Writer.lock").attempt(limit_s):
                assert not lock_watch.take_violations()
        with Lock("WebSocket._lock").attempt(), Lock("Link.lock"):
            pass
    violations = lock_watch.take_violations()
    assert "Link.lock was taken under Store._lock" in violations
    assert "Link.lock was taken under WebSocket._lock" in violations


def test_it_is_taken_again_after_a_wait(lock_watch: Watch) -> None:
    condition = Condition(Lock("Outbox.lock"))
    with condition, Lock("Store._lock"):
        condition.wait(0)
    assert "Outbox.lock was taken under Store._lock" in lock_watch.take_violations()


def test_threads_have_nothing_in_common(lock_watch: Watch) -> None:
    with Lock("Store._lock"):
        lock = Lock("Outbox.lock")
        thread = threading.Thread(target=lock.acquire)
        thread.start()
        thread.join()
        # Given by another than took it, which may take others then.
        lock.release()
    with lock:
        pass
    assert not lock_watch.take_violations()


def test_a_finaliser_may_cut_in_anywhere(lock_watch: Watch) -> None:
    class Finalised:
        def __del__(self) -> None:
            with Lock("Link.lock"):
                pass

    with Lock("Store._lock"):
        found = Finalised()
        del found
    assert not lock_watch.take_violations()
