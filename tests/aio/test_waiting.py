"""Who waits on a loop: in the order of ids, in several loops, and over rings that come at once."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar

import pytest

from glec_fast import PublishError, QueueClosedError, UnsupportedError
from glec_fast.aio import DeliveryHandle, _waiting
from glec_fast.aio.doorbell import Doorbell
from glec_fast.durable.outcomes import DropReason
from glec_fast.outbox._outbox import set_as_published
from glec_fast.runtime._lock import Condition
from support.async_runs import ON_BOTH_LOOPS, eventually, new_loop, run, run_within
from support.gateway import TIMEOUT_S


def test_the_compiled_module_is_the_one_loaded() -> None:
    assert not str(_waiting.__file__).endswith(".py")


@pytest.mark.parametrize("seed", range(3))
def test_those_go_on_whose_messages_are_on_disk_and_no_others(seed: int) -> None:
    rng = random.Random(seed)

    async def program() -> None:
        undurable = _waiting.Undurable(asyncio.get_running_loop())
        waiting: dict[int, _waiting.Wait] = {}
        last_id = committed_id = 0
        for _ in range(100):
            for _ in range(rng.randrange(20)):
                last_id += rng.randrange(1, 3)
                waiting[last_id] = undurable.wait_for(last_id)
            for future in rng.sample(list(waiting.values()), min(2, len(waiting))):
                future.cancel()
            committed_id = rng.randrange(committed_id, last_id + 1)
            undurable.let_go(committed_id)
            for message_id in [each for each in waiting if each <= committed_id]:
                assert waiting.pop(message_id).done()
            assert not any(future.done() and not future.cancelled() for future in waiting.values())
            assert len(undurable) == len(waiting)
        undurable.let_all_go()
        assert all(future.done() for future in waiting.values())
        assert len(undurable) == 0

    run(program)


def test_one_that_waits_again_goes_on_with_those_that_came_since() -> None:
    async def program() -> None:
        undurable = _waiting.Undurable(asyncio.get_running_loop())
        later, again = undurable.wait_for(7), undurable.wait_for(3)
        undurable.let_go(6)
        assert not later.done()
        undurable.let_go(7)
        assert later.done()
        assert again.done()

    run(program)


def handle_of(qos: int = 1) -> DeliveryHandle:
    return DeliveryHandle(7, Condition(), qos)


@ON_BOTH_LOOPS
def test_a_handle_is_awaited_before_and_after_its_end_by_several(kind: str) -> None:
    async def program() -> None:
        handle = handle_of()
        waiting = [asyncio.ensure_future(handle.delivered()) for _ in range(3)]
        cancelled = asyncio.ensure_future(handle.delivered())
        await asyncio.sleep(0)
        cancelled.cancel()
        assert not any(each.done() for each in waiting)
        set_as_published([handle])
        await asyncio.gather(*waiting)
        await handle
        assert handle.is_published()
        assert cancelled.cancelled()

    run(program, kind)


@ON_BOTH_LOOPS
def test_a_handle_tells_what_became_of_it_as_often_as_asked(kind: str) -> None:
    async def program() -> None:
        dropped, left = handle_of(), handle_of()
        waiting = [asyncio.ensure_future(each.delivered()) for each in (dropped, left)]
        await asyncio.sleep(0)
        dropped._set_as_dropped(DropReason.EXPIRED)
        left._set_as_left()
        for handle, waiter, error in zip((dropped, left), waiting, (PublishError, QueueClosedError), strict=True):
            with pytest.raises(error):
                await waiter
            with pytest.raises(error):
                await handle

    run(program, kind)


@ON_BOTH_LOOPS
@pytest.mark.parametrize("debug", [True, False])
def test_each_task_goes_on_in_its_own_context_and_in_order(kind: str, debug: bool) -> None:
    name: ContextVar[int] = ContextVar("name")

    async def program() -> None:
        handles = [handle_of() for _ in range(50)]
        seen: list[int] = []

        async def wait(number: int) -> None:
            name.set(number)
            await handles[number]
            seen.append(name.get())

        tasks = [asyncio.ensure_future(wait(number)) for number in range(50)]
        await asyncio.sleep(0)
        set_as_published(handles)
        await asyncio.gather(*tasks)
        assert seen == list(range(50))

    run(program, kind, debug=debug)


@ON_BOTH_LOOPS
def test_a_step_that_raises_or_lasts_or_runs_the_loop_leaves_the_others_to_it(kind: str) -> None:
    """As KeyboardInterrupt, and a notebook that runs a loop within a loop."""
    ended: list[int] = []

    async def interrupt() -> None:
        await handle
        raise KeyboardInterrupt

    async def wait(number: int) -> None:
        await handle
        # More than one callback of the loop has for all of them.
        time.sleep(0.0005)
        ended.append(number)

    handle = handle_of()
    loop = new_loop(kind)
    try:
        tasks = [loop.create_task(wait(0)), loop.create_task(interrupt())]
        tasks += [loop.create_task(wait(number)) for number in range(1, 20)]
        loop.call_soon(loop.call_soon, handle._set_as_published)
        with pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(asyncio.wait(tasks))
        loop.run_until_complete(asyncio.wait(tasks, timeout=TIMEOUT_S))
    finally:
        loop.close()
    assert ended == list(range(20))
    assert isinstance(tasks[1].exception(), KeyboardInterrupt)


@ON_BOTH_LOOPS
def test_a_handle_that_is_waited_for_again_and_again_keeps_nothing_of_it(kind: str) -> None:
    async def program() -> None:
        handle = handle_of()
        steady = asyncio.ensure_future(handle.delivered())
        waiting = [asyncio.ensure_future(handle.delivered()) for _ in range(5)]
        await asyncio.sleep(0)
        for each in waiting[::2] + waiting[1::2]:
            each.cancel("enough")
            with pytest.raises(asyncio.CancelledError, match="enough" if sys.version_info >= (3, 11) else None):
                await each
        last = weakref.ref(steady)
        assert handle._waits is not None
        steady.cancel()
        await asyncio.wait([steady])
        assert handle._waits is None
        del steady
        gc.collect()
        assert last() is None

    run(program, kind)


@ON_BOTH_LOOPS
def test_an_exception_that_cuts_into_the_loop_is_the_loops_and_all_go_on(kind: str) -> None:
    loop = new_loop(kind)
    handles = [handle_of() for _ in range(3)]
    try:
        tasks = [loop.create_task(handle.delivered()) for handle in handles]
        loop.run_until_complete(asyncio.sleep(0))
        cut = [True, True]

        class Cut:
            """As a signal's handler that raises within `call_soon`."""

            def __init__(self) -> None:
                self.call_soon = self.get_debug = self

            def __call__(self, *arguments: object) -> None:
                if not arguments:
                    return
                if cut and cut.pop():
                    raise KeyboardInterrupt
                loop.call_soon(*arguments)  # type: ignore[arg-type]

        undurable = _waiting.Undurable(Cut())  # type: ignore[arg-type]
        waits = [undurable.wait_for(number) for number in range(3)]
        undurable.let_go(2)
        assert all(each.done() for each in waits)
        with pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(asyncio.sleep(0))
        loop.call_soon(set_as_published, handles)
        loop.run_until_complete(asyncio.wait(tasks, timeout=TIMEOUT_S))
    finally:
        loop.close()
    assert all(task.done() for task in tasks)


def test_a_loop_that_is_to_send_it_is_not_blocked_until_it_has() -> None:
    async def program() -> None:
        handle = handle_of()
        with pytest.raises(UnsupportedError, match="await the handle"):
            handle.wait_for_publish(1)
        set_as_published([handle])
        handle.wait_for_publish(1)

    run(program)


@ON_BOTH_LOOPS
def test_a_handle_is_ended_by_any_thread_for_each_loop_that_waits(kind: str) -> None:
    handle = handle_of()
    are_waiting = threading.Barrier(4)

    def wait() -> None:
        async def program() -> None:
            waiter = asyncio.ensure_future(handle.delivered())
            await asyncio.sleep(0)
            await asyncio.to_thread(are_waiting.wait, TIMEOUT_S)
            await waiter

        run(program, kind)

    threads = [threading.Thread(target=wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    are_waiting.wait(TIMEOUT_S)
    handle._set_as_published()
    for thread in threads:
        thread.join(TIMEOUT_S)
        assert not thread.is_alive()


async def wait_and_end() -> None:
    handle = handle_of()
    waiting = asyncio.ensure_future(handle.delivered())
    await asyncio.sleep(0)
    set_as_published([handle])
    await waiting


@ON_BOTH_LOOPS
def test_a_handle_is_waited_for_in_a_loop_within_a_loop(kind: str) -> None:
    async def program() -> None:
        handle = handle_of()
        waiting = asyncio.ensure_future(handle.delivered())
        await asyncio.sleep(0)

        async def inner() -> None:
            await wait_and_end()
            set_as_published([handle])
            await asyncio.sleep(0)
            # The outer one hears of it once it goes on.
            assert not waiting.done()

        await run_within(inner, kind)
        await asyncio.wait_for(waiting, TIMEOUT_S)
        assert handle.is_published()

    run(program, kind)


@ON_BOTH_LOOPS
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_child_that_a_coroutine_forks_waits_in_its_own_loop(kind: str) -> None:
    async def program() -> None:
        handle = handle_of()
        waiting = asyncio.ensure_future(handle.delivered())
        await asyncio.sleep(0)
        child = os.fork()
        if not child:
            status = 1
            try:
                run(wait_and_end, kind)
                status = 0
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        set_as_published([handle])
        await waiting

    run(program, kind)


@ON_BOTH_LOOPS
def test_a_thread_that_ran_the_loop_before_is_another_one(kind: str) -> None:
    handle = handle_of()
    loop = new_loop(kind)
    # What is called from another thread, and is not made for it, raises.
    loop.set_debug(True)

    async def begin() -> asyncio.Task[None]:
        waiting = asyncio.ensure_future(handle.delivered())
        await asyncio.sleep(0)
        return waiting

    try:
        with ThreadPoolExecutor(1) as threads:
            waiting = threads.submit(loop.run_until_complete, begin()).result(TIMEOUT_S)

            async def go_on() -> None:
                await asyncio.wrap_future(threads.submit(handle._set_as_published))
                await asyncio.wait_for(waiting, TIMEOUT_S)

            loop.run_until_complete(go_on())
        assert waiting.done()
        assert handle.is_published()
    finally:
        loop.close()


@ON_BOTH_LOOPS
def test_who_waited_in_a_loop_that_is_closed_is_not_told(kind: str) -> None:
    handle = handle_of()

    async def program() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(handle, 0.01)

    run(program, kind)
    handle._set_as_published()
    run(handle.delivered, kind)


@ON_BOTH_LOOPS
def test_many_rings_are_answered_once_and_none_is_missed(kind: str) -> None:
    done = 0
    seen: list[int] = []

    async def program() -> None:
        nonlocal done
        bell = Doorbell(asyncio.get_running_loop(), lambda: seen.append(done))
        for _ in range(5):
            done += 1
            bell.ring()
        await asyncio.sleep(0)
        assert seen == [5]

        def work() -> None:
            nonlocal done
            for _ in range(2000):
                done += 1
                bell.ring()

        await asyncio.to_thread(work)
        assert await eventually(lambda: seen[-1] == 2005)
        assert len(seen) < 2005

    run(program, kind)


def test_a_ring_that_is_cut_into_does_not_silence_the_bell(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[None] = []

    async def program() -> None:
        loop = asyncio.get_running_loop()
        bell = Doorbell(loop, lambda: answers.append(None))
        with monkeypatch.context() as patched:
            patched.setattr(loop, "call_soon", _interrupted)
            with pytest.raises(KeyboardInterrupt):
                bell.ring()
        bell.ring()
        await asyncio.sleep(0)
        assert len(answers) == 1

    run(program)


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_nobody_listens_in_a_loop_that_is_closed() -> None:
    heard: list[str] = []

    async def make() -> Doorbell:
        return Doorbell(asyncio.get_running_loop(), lambda: heard.append("rung"))

    bell = run(make)
    bell.ring()
    assert heard == []
