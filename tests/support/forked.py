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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from subprocess import Popen
from typing import Any
from unittest import mock

# Of <sys/prctl.h>: orphans are its children.
PR_SET_CHILD_SUBREAPER = 36


class Server:
    """Lives until this process ends."""

    def __init__(self, *options: str) -> None:
        self._lock = threading.Lock()
        self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        with theirs:
            start = [sys.executable, *options, "-m", "support.fork_server", str(theirs.fileno())]
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}
            self._process = Popen(start, pass_fds=[theirs.fileno()], env=environment)
        atexit.register(self._end)

    def fork(self, request: dict[str, Any], streams: list[int]) -> int:
        """The pid of the program, which is a child of this process."""
        with self._lock:
            socket.send_fds(self._requests, [json.dumps(request).encode()], streams)
            return int(self._requests.recv(32))

    def _end(self) -> None:
        self._requests.close()
        self._process.wait()


server = cache(Server)


class Forked(Popen):
    """As `Popen` of `sys.executable` with these words: a path, "-c" and text or "-m" and a module, and its arguments.

    In front of them there may be "-W" and what it is to do with warnings.

    All but the start is Popen's own. Heeded are its options for streams, text, folder, environment and session.
    """

    def _execute_child(self, words: Any, *given: Any) -> None:  # type: ignore[override]
        options = 2 if words[0] == "-W" else 0
        folder, environment = given[4:6]
        ends = p2cread, _, _, c2pwrite, _, errwrite = given[9:15]
        streams = [own if end == -1 else end for own, end in enumerate((p2cread, c2pwrite, errwrite))]
        request = {
            "words": list(map(str, words[options:])),
            "environment": dict(environment or os.environ),
            "folder": str(folder or Path.cwd()),
            "has_session": given[20],
        }
        try:
            self.pid = server(*words[:options]).fork(request, streams)
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


@contextmanager
def in_place_of_starts() -> Iterator[None]:
    """Whatever this process starts meanwhile with `sys.executable` and no option of it but -W."""

    def start(words: Any, *given: Any, **options: Any) -> Any:
        is_ours = (
            isinstance(words, list) and words[0] == sys.executable and "LD_PRELOAD" not in (options.get("env") or ())
        )
        if is_ours and (str(words[1])[0] != "-" or words[1] in ("-c", "-m", "-W")):
            return Forked(words[1:], *given, **options)
        return Popen(words, *given, **options)

    with mock.patch.object(subprocess, "Popen", start):
        yield
