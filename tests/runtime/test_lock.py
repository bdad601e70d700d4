"""Locks, conditions and events: given back wherever an exception cuts in, and waits that a signal's handler ends."""

from __future__ import annotations

import signal
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from glec_fast.runtime._lock import CallbackMark, Condition, Event, Lock
from glec_fast.runtime.thread import Thread
from support import program
from support.gateway import TIMEOUT_S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NOTICE_S = 0.05


class CutError(Exception):
    """What cuts in."""


def is_free(lock: Lock) -> bool:
    """To another thread."""
    answers = []

    def ask() -> None:
        with lock.attempt() as is_held:
            answers.append(is_held)

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    return answers[0]


def cut_at_each_step(function: Callable[[], None]) -> Iterator[BaseException]:
    """Yield what was raised in it, with all that its traceback keeps, for each byte code and each event of a trace."""
    step = 0
    while True:
        step += 1
        left = step

        def trace(frame: Any, _event: str, _argument: Any) -> Any:
            nonlocal left
            if frame.f_code is not function.__code__:
                return None
            frame.f_trace_opcodes = True
            left -= 1
            if left == 0:
                raise CutError
            return trace

        sys.settrace(trace)
        try:
            function()
        except CutError as error:
            sys.settrace(None)
            yield error
        else:
            return
        finally:
            sys.settrace(None)


@contextmanager
def handler_that_raises(after_s: float = NOTICE_S) -> Iterator[None]:
    def on_alarm(*_: object) -> None:
        raise CutError

    before = signal.signal(signal.SIGALRM, on_alarm)
    signal.setitimer(signal.ITIMER_REAL, after_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_lock_is_given_back_wherever_an_exception_cuts_in() -> None:
    first, second = Lock("Outbox.lock"), Lock("Store._lock")

    def use() -> None:
        with first, second:
            assert first
        with first.attempt() as is_held:
            assert is_held
        with first, second:
            assert first

    kept = list(cut_at_each_step(use))
    assert len(kept) > 40
    assert is_free(first)
    assert is_free(second)


def test_each_cut_leaves_the_lock_free_at_once() -> None:
    lock = Lock()

    def use() -> None:
        with lock:
            assert lock

    for error in cut_at_each_step(use):
        assert is_free(lock), error


def test_a_lock_is_held_within() -> None:
    lock = Lock()
    with lock:
        assert not is_free(lock)
        with lock:
            assert not is_free(lock)
        assert not is_free(lock)
    assert is_free(lock)


def test_an_attempt_is_not_re_entrant() -> None:
    lock = Lock()
    with lock, lock.attempt(-1) as is_held:
        assert not is_held
    with lock.attempt() as is_held:
        assert is_held
        assert not is_free(lock)


@contextmanager
def held_elsewhere(lock: Lock) -> Iterator[None]:
    is_held, is_over = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            is_held.set()
            is_over.wait(TIMEOUT_S)

    thread = threading.Thread(target=hold)
    thread.start()
    assert is_held.wait(TIMEOUT_S)
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def test_a_handler_that_raises_ends_a_wait_for_a_lock() -> None:
    lock = Lock()
    with held_elsewhere(lock), handler_that_raises(), pytest.raises(CutError), lock:
        pytest.fail("it is another's")
    assert is_free(lock)


def test_an_attempt_ends_in_time() -> None:
    lock = Lock()
    with held_elsewhere(lock):
        with lock.attempt() as is_held:
            assert not is_held
        with lock.attempt(NOTICE_S) as is_held:
            assert not is_held
    assert is_free(lock)


class TestCondition:
    def test_a_wait_lets_go_of_the_lock_and_holds_it_again(self) -> None:
        condition = Condition()
        with condition:
            assert not condition.wait(NOTICE_S)
            assert not is_free(condition.lock)
        assert is_free(condition.lock)

    def test_all_who_wait_are_told(self) -> None:
        condition = Condition()
        is_over = False
        told = []

        def wait() -> None:
            with condition:
                told.append(condition.wait_for(lambda: is_over, TIMEOUT_S))

        threads = [threading.Thread(target=wait) for _ in range(3)]
        for thread in threads:
            thread.start()
        with condition:
            is_over = True
            condition.notify_all()
        for thread in threads:
            thread.join()
        assert told == [True] * 3

    def test_a_handler_that_raises_ends_a_wait(self) -> None:
        condition = Condition()
        with handler_that_raises(), pytest.raises(CutError), condition, condition:
            condition.wait(TIMEOUT_S)
        assert is_free(condition.lock)
        with condition:
            condition.notify_all()

    def test_a_wait_without_the_lock_is_refused(self) -> None:
        with pytest.raises(RuntimeError, match="without the lock"):
            Condition().wait(0)

    def test_a_change_is_told(self) -> None:
        condition, mark = Condition(), CutError()
        thread = threading.Thread(target=lambda: condition.change(mark, "__notes__", ["changed"]))
        with condition:
            thread.start()
            assert condition.wait(TIMEOUT_S)
        thread.join()
        assert mark.__notes__ == ["changed"]


class TestEvent:
    def test_it_is_waited_for(self) -> None:
        event = Event()
        assert not event.wait(NOTICE_S)
        thread = threading.Thread(target=event.set)
        thread.start()
        assert event.wait(TIMEOUT_S)
        thread.join()
        event.clear()
        assert not event.is_set()

    def test_a_handler_that_raises_ends_a_wait(self) -> None:
        event = Event()
        with handler_that_raises(), pytest.raises(CutError):
            event.wait(TIMEOUT_S)
        event.set()
        assert event.wait(0)


def test_a_callback_s_mark_goes_wherever_an_exception_cuts_in() -> None:
    mark = CallbackMark()

    def use() -> None:
        with mark:
            assert not mark.acquire(False)
            with mark:
                assert not mark.acquire(False)

    for error in cut_at_each_step(use):
        assert mark.acquire(False), error


def test_a_thread_is_alive_after_a_wait_for_its_end_was_cut_short() -> None:
    is_over = threading.Event()
    thread = Thread(target=is_over.wait, daemon=True)
    assert not thread.is_alive()
    thread.start()
    with handler_that_raises(), pytest.raises(CutError):
        thread.join()
    assert thread.is_alive()
    thread.join(NOTICE_S)
    assert thread.is_alive()
    is_over.set()
    thread.join()
    assert not thread.is_alive()


def test_locks_of_green_threads_wait_by_what_their_library_has() -> None:
    """Threads stand for greenlets here: what says who asks, how to pause, and what to wait on is a program's own."""
    text = """
        import threading, time
        from glec_fast.runtime._lock import Condition, Event, Lock, be_green
        pauses, locks = [], []

        def pause(seconds):
            pauses.append(seconds)
            time.sleep(seconds)

        def new_lock():
            locks.append(threading.Lock())
            return locks[-1]

        be_green(threading.current_thread, pause, new_lock)
        lock, counts = Lock(), [0]

        def count():
            for _ in range(200):
                with lock:
                    found = counts[0]
                    time.sleep(0)
                    counts[0] = found + 1

        threads = [threading.Thread(target=count) for _ in range(4)]
        [each.start() for each in threads]
        [each.join() for each in threads]
        with lock, lock:
            assert lock.is_mine and not lock.acquire(False)
            other = threading.Thread(target=lambda: counts.append(lock.acquire(True, 0.05)))
            other.start()
            other.join()
        assert counts == [800, False] and pauses and not lock.locked()
        event, condition = Event(), Condition()
        assert not event.wait(0.01) and locks
        threading.Timer(0.05, event.set).start()
        assert event.wait(30)
        with condition:
            assert not condition.wait(0.01)

            def tell():
                with condition:
                    counts.append("told")
                    condition.notify_all()

            threading.Timer(0.05, tell).start()
            assert condition.wait_for(lambda: "told" in counts, 30)
        print("done")
    """
    ended = program.run(text)
    assert (ended.stdout, ended.stderr) == ("done\n", "")
