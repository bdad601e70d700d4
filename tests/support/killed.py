"""Processes of tests/support that are to be killed, once or again and again."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from typing import TYPE_CHECKING

from support.forked import Forked
from support.gateway import TIMEOUT_S, eventually
from support.places import TESTS

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from glec_fast.testbed.link import Link

# A life lasts at most as long as so many starts of the process.
LIFE_MAX_STARTS = 3


class Killed:
    """`module`: the child's name. It says "ready" once it has begun."""

    def __init__(self, module: str, **settings: object) -> None:
        words = [TESTS / f"support/{module}.py", json.dumps(settings)]
        pipe = subprocess.PIPE
        self._process = Forked(words, stdin=pipe, stdout=pipe, stderr=pipe)

    def wait_ready(self) -> None:
        self.wait_said("ready")

    def wait_said(self, text: str) -> None:
        """Until it has written this line, and others before it."""
        assert self._process.stdout is not None
        assert f"{text}\n".encode() in self._process.stdout, self.kill()

    def kill(self) -> bytes:
        """What it wrote to its standard error."""
        self._process.kill()
        return self._process.communicate()[1]

    def wait_killed(self) -> bool:
        """Until it has killed itself; True where it did."""
        ended = self._process.wait(4 * TIMEOUT_S)
        self.kill()
        return ended == -signal.SIGKILL

    def leave(self) -> None:
        """Have it end by itself."""
        _, errors = self._process.communicate(timeout=4 * TIMEOUT_S)
        assert self._process.returncode == 0, errors.decode(errors="replace")


def kill_again_and_again(
    begin: Callable[[], Killed],
    link: Link,
    dice: random.Random,
    kills: int,
    *,
    has_begun: Callable[[], bool],
    send: Callable[[], None],
) -> Killed:
    """Kill each process that `begin` starts at any moment, with SIGKILL; in half of their lives the link is cut too.

    has_begun: of the first one, once it has subscribed. send: what comes in each life. Returns the last one, ready.
    """
    began_s = time.monotonic()
    process = begin()
    process.wait_ready()
    life_max_s = LIFE_MAX_STARTS * (time.monotonic() - began_s)
    assert eventually(has_begun)
    for _ in range(kills):
        send()
        if dice.random() < 0.5:
            link.cut()
            link.restore()
        time.sleep(dice.uniform(0, life_max_s))
        process.kill()
        process = begin()
    process.wait_ready()
    return process
