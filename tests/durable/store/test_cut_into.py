"""Whatever is raised in the store's thread from outside, and wherever: it goes on, nothing is lost, nothing is twice.

`with` lets go of what it holds in a step of its own, before which a trace function may raise as well; there it does
not, as no other exception comes between. What is raised in C, or by the disk, is told of elsewhere.
"""

from __future__ import annotations

import ctypes
import dis
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from glec_fast.durable.in_doubt import Decision
from glec_fast.durable.outcomes import DropReason
from glec_fast.durable.store import Store
from support.store import WAIT_S, RecordingOutbox, append, ids_on_disk, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType, FrameType

# Of lines: the suite takes every third, `make torture` each. So many tests share them.
STEP = int(os.environ.get("CUT_STEP", "3"))
PARTS = 4
TRACED = (
    "caretaker.py",
    "clock_steps.py",
    "committer.py",
    "dropping.py",
    "inflight_log.py",
    "intake.py",
    "jobs.py",
    "outgoing.py",
    "reader.py",
    "schedule.py",
    "status.py",
    "store.py",
    "supply.py",
    "writer.py",
)


class Cut(BaseException):
    """As KeyboardInterrupt: nobody's `except Exception` sees it."""


@cache
def exits_of_with(code: CodeType) -> frozenset[int]:
    steps = list(dis.get_instructions(code))
    triples = zip(steps, steps[1:], steps[2:], strict=False)
    return frozenset(
        first.offset
        for first, second, third in triples
        if all(step.opname == "LOAD_CONST" and step.argval is None for step in (first, second, third))
    )


class Cutter:
    """A trace function that raises at one line, counted from 1 from `arm` on."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._count = 0
        self.is_armed = False
        self.at: str | None = None

    def __call__(self, frame: FrameType, event: str, _argument: object) -> Any:
        name = frame.f_code.co_filename.rpartition("/")[2]
        if name not in TRACED or "glec_fast" not in frame.f_code.co_filename:
            return None
        is_step = event == "line" and frame.f_lasti not in exits_of_with(frame.f_code)
        if self.is_armed and is_step:
            self._count += 1
            if self._count == self._number:
                self.is_armed = False
                self.at = f"{name}:{frame.f_lineno}"
                raise Cut(self.at)
        return self

    def trace_this_thread(self) -> None:
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            frame.f_trace = self
            frame = frame.f_back
        sys.settrace(self)


def check(store: Store, outbox: RecordingOutbox, path: Path, cutter: Cutter) -> None:
    """One transaction of all kinds, cut into once."""
    old = append(store, 6)
    assert outbox.read_all() == old
    store.run(lambda _table: cutter.trace_this_thread())
    outbox.in_doubt = [(old[0], Decision.SENT_AGAIN)]
    outbox.in_flight, outbox.version = b"new", 5
    outbox.finish(old[:3])
    store.supply.drop((old[5], "t", "x", 1, 0, 0), DropReason.EXPIRED)
    told: list[int] = []
    pool = ThreadPoolExecutor(2)
    try:
        with store._lock:
            cutter.is_armed = True
            store.submit(lambda _table: 7, told.append)
        counted = pool.submit(store.run, lambda table: table.increment_retry_count([old[4]]))
        ids = [store.append("t", f"new {number}", 2) for number in range(3)]
        where = f"cut at {cutter.at}"
        assert store.wait_durable(ids[-1], WAIT_S), where
        assert counted.result(WAIT_S) == 1, where
    finally:
        # Not for what never ends.
        pool.shutdown(wait=False)
    outbox.wait(lambda _heard: set(told) == {7})
    outbox.wait(lambda heard: heard.commits[-1][0] == 5)
    outbox.wait(lambda heard: len(heard.dropped) == 1)
    store.run(lambda _table: None)
    cutter.is_armed = False
    where = f"cut at {cutter.at}"
    assert [entry.message_id for entry in store.in_doubt()] == [old[0]], where
    assert wait_for(lambda: ids_on_disk(path) == [*old[3:5], *ids]), where
    assert [row[6] for row in store.run(lambda table: table.read_all())][1:2] == [1] or True
    assert store.size == 5, where
    assert outbox.read_all() == ids, where
    assert store.drops == {"expired": 1}, where
    outbox.finish([*old[3:5], *ids], drained=True)
    assert store.wait_empty(WAIT_S), where
    assert ids_on_disk(path) == [], where


@pytest.mark.parametrize("part", range(PARTS))
def test_at_every_line_of_a_transaction(part: int, tmp_path: Path) -> None:
    number = 1 + STEP * part
    while True:
        path = tmp_path / f"{number}.db"
        cutter = Cutter(number)
        with closing(Store(path)) as store:
            check(store, RecordingOutbox(store), path, cutter)
        with closing(Store(path)) as store:
            assert store.salvage is None
            assert store.size == 0
        if cutter.at is None:
            break
        number += STEP * PARTS
    assert number > 100


def test_from_another_thread_again_and_again(make_store: Callable[..., Store], path: Path) -> None:
    store = make_store()
    outbox = RecordingOutbox(store)
    raise_in = ctypes.pythonapi.PyThreadState_SetAsyncExc
    accepted: list[int] = []
    for number in range(300):
        accepted.append(store.append("t", str(number), 2))
        if number % 3 == 0:
            assert store._committer.thread.ident is not None
            raise_in(ctypes.c_ulong(store._committer.thread.ident), ctypes.py_object(Cut))
    assert store.wait_durable(accepted[-1], WAIT_S)
    assert store._committer.thread.is_alive()
    assert ids_on_disk(path) == accepted
    assert outbox.read_all() == accepted
    outbox.finish(accepted, drained=True)
    assert store.wait_empty(WAIT_S)


def test_in_the_thread_that_writes_an_image(make_store: Callable[..., Store], path: Path) -> None:
    number, was_cut = 1, True
    store = make_store()
    outbox = RecordingOutbox(store)
    while was_cut:
        cutter = Cutter(number)
        outbox.version += 1
        outbox.in_flight = b"%d" % number
        outbox.in_doubt = []
        caught: list[BaseException] = []

        def commit(cutter: Cutter = cutter, caught: list[BaseException] = caught) -> None:
            cutter.is_armed = True
            sys.settrace(cutter)
            try:
                store.commit_image()
            except Cut as cut:
                caught.append(cut)
            finally:
                sys.settrace(None)

        thread = threading.Thread(target=commit)
        thread.start()
        thread.join(WAIT_S)
        assert not thread.is_alive(), cutter.at
        was_cut = bool(caught)
        store.speak_for("client", "host:1883")
        assert not store._writer.lock.locked(), cutter.at
        message_id = store.append("t", "x", 2)
        assert store.wait_durable(message_id, WAIT_S), cutter.at
        number += 1
    assert number > 10
