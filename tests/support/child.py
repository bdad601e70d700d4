"""A publishing process to be killed, as the test that kills it sees it."""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from support.forked import Forked
from support.gateway import TIMEOUT_S

CHILD = Path(__file__).parent / "publisher_child.py"


class Child:
    """A publishing process, and what it said it had accepted."""

    def __init__(self, url: str, directory: Path, *, wait_ready: bool = True, **settings: Any) -> None:
        settings = {
            "url": url, "client_id": "DTG-TEST", "queue_path": str(directory / "queue.db"), "topic": "t",
            "qos": [1, 2], "first": 0, "count": 0, **settings,
        }  # fmt: skip
        self.accepted: set[bytes] = set()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`
        self._process = Forked(
            [CHILD, json.dumps(settings)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors
        )
        assert self._process.stdout is not None
        self._output = self._process.stdout
        if wait_ready:
            assert self._line() == b"ready"

    def read_accepted(self, count: int) -> None:
        """Read until so many are accepted, or all are."""
        while len(self.accepted) < count and (line := self._line()) != b"published":
            self.accepted.add(line)

    def kill(self) -> None:
        """SIGKILL; then read what it had still said."""
        self._process.kill()
        self._process.wait()
        self.accepted.update(
            line for line in self._output.read().split(b"\n")[:-1] if line not in (b"ready", b"published", b"flushed")
        )
        self.close()

    def wait_flushed(self) -> None:
        while self._line() != b"flushed":
            pass

    def leave(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        assert self._process.wait(TIMEOUT_S) == 0, self._end()
        self.close()

    def _line(self) -> bytes:
        line = self._output.readline()
        assert line.endswith(b"\n"), self._end()
        return line[:-1]

    def _end(self) -> str:
        """How it ended, for whom that fails."""
        status = self._process.wait(TIMEOUT_S)
        self._errors.seek(0)
        return f"the publishing process ended with {status}: {self._errors.read().decode(errors='replace')}"

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._output.close()
        self._process.kill()
        self._process.wait()
        self._errors.close()
