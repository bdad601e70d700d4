"""Programs in processes of their own, each forked from a server that has imported what it uses.

It is as if an interpreter had been started for it, at a tenth of what that takes; not for what asks about the start
itself, or about options of the interpreter.
"""

from __future__ import annotations

import atexit
import ctypes
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

# Of <sys/prctl.h>: orphans are its children.
PR_SET_CHILD_SUBREAPER = 36


class Server:
    """Lives until this process ends."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        with theirs:
            start = [sys.executable, "-m", "support.fork_server", str(theirs.fileno())]
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}
            self._process = subprocess.Popen(start, pass_fds=[theirs.fileno()], env=environment)
        atexit.register(self._end)

    def fork(self, words: Sequence[str], environment: dict[str, str], folder: str, streams: list[int]) -> int:
        """The pid of the program, which is a child of this process."""
        request = json.dumps({"words": words, "environment": environment, "folder": folder}).encode()
        with self._lock:
            socket.send_fds(self._requests, [request], streams)
            return int(self._requests.recv(32))

    def _end(self) -> None:
        self._requests.close()
        self._process.wait()


server = cache(Server)


class Forked(subprocess.Popen):
    """As `Popen` of `sys.executable` with these words: a path or "-c" and text, and its arguments.

    All but the start is Popen's own. Of its options those for streams, text, folder and environment are heeded.
    """

    def _execute_child(self, words: Any, *given: Any) -> None:  # type: ignore[override]
        folder, environment = given[4:6]
        ends = p2cread, _, _, c2pwrite, _, errwrite = given[9:15]
        streams = [own if end == -1 else end for own, end in enumerate((p2cread, c2pwrite, errwrite))]
        try:
            words = list(map(str, words))
            self.pid = server().fork(words, dict(environment or os.environ), str(folder or Path.cwd()), streams)
            self._child_created = True
        finally:
            self._close_pipe_fds(*ends)


def run(words: Sequence[object], timeout_s: float, **options: Any) -> subprocess.CompletedProcess[str]:
    """As `subprocess.run` does it, with what it writes as text."""
    pipe = subprocess.PIPE
    with Forked(words, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True, **options) as child:
        try:
            said, errors = child.communicate(timeout=timeout_s)
        except BaseException:
            child.kill()
            raise
    return subprocess.CompletedProcess(child.args, child.returncode, said, errors)
