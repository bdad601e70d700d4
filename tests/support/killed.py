"""A process of tests/support that is to be killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

from support.gateway import TIMEOUT_S
from support.places import REPOSITORY


class Killed:
    """`module`: the child's name. It says "ready" once it has begun."""

    def __init__(self, module: str, **settings: object) -> None:
        command = [sys.executable, str(REPOSITORY / f"tests/support/{module}.py"), json.dumps(settings)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env=environment)

    def wait_ready(self) -> None:
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n", self.kill()

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
