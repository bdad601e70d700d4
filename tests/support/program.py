"""A program of its own, from its text: what it leaves behind when it ends."""

from __future__ import annotations

import signal
import subprocess
import textwrap
from typing import TYPE_CHECKING

from glec_fast import OfflineQueueManager
from support import forked
from support.gateway import TIMEOUT_S

if TYPE_CHECKING:
    from pathlib import Path


def run(text: str, *arguments: object, timeout_s: float = 3 * TIMEOUT_S) -> subprocess.CompletedProcess[str]:
    """Run it to its end. `arguments` are its sys.argv[1:], as text."""
    return forked.run(["-c", textwrap.dedent(text), *arguments], timeout_s)


class Program:
    """One that is told when to go on: it says "ready" and reads a line, any number of times."""

    def __init__(self, text: str, *arguments: object) -> None:
        pipe = subprocess.PIPE
        words = ["-c", textwrap.dedent(text), *arguments]
        self._child = forked.Forked(words, stdin=pipe, stdout=pipe, stderr=pipe, text=True)

    def wait_ready(self) -> None:
        """Until it says so; raises AssertionError where it ends instead."""
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        assert line == "ready\n", line + self.end()

    def go_on(self) -> None:
        """Give it its line."""
        assert self._child.stdin is not None
        self._child.stdin.write("\n")
        self._child.stdin.flush()

    def interrupt(self) -> None:
        """As Ctrl-C does."""
        self._child.send_signal(signal.SIGINT)

    def end(self, timeout_s: float = 3 * TIMEOUT_S) -> str:
        """Wait for its end; what it wrote to its standard error."""
        return self._child.communicate(timeout=timeout_s)[1]

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        self._child.kill()
        self._child.communicate()


def kept(path: Path) -> list[str]:
    """The payloads in a queue file, which nobody else has open."""
    with OfflineQueueManager(path) as queue:
        return [str(message.payload) for message in queue.dequeue_all()]
