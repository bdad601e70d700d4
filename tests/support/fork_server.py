"""Forks programs from one that has imported what they use; `support.forked` starts it, and says which programs.

It has no thread and opens nothing, so that a program finds all as if it had just been started. A request is one packet:
its words, environment and folder, whether it has a session of its own, and with it what its standard streams are. The
answer is its pid.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import signal
import socket
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import glec_fast.mqtt  # noqa: F401
from glec_fast import *  # noqa: F403 - each part is loaded as its names are asked for
from support import lock_order  # noqa: F401

REQUEST_MAX_BYTES = 1 << 17
STANDARD_STREAMS = 3


def next_program(requests: socket.socket) -> list[str]:
    """In a child, its words: a path or `-c` and text, and its arguments. In the server it does not return."""
    while True:
        packet, streams, _, _ = socket.recv_fds(requests, REQUEST_MAX_BYTES, STANDARD_STREAMS)
        if not packet:
            sys.exit()
        reader, writer = os.pipe()
        between = os.fork()
        if not between:
            pid = os.fork()
            if pid:
                # Whoever asked is the parent of the child, as this one ends.
                os.write(writer, str(pid).encode())
                os._exit(0)
            requests.close()
            os.close(reader)
            os.close(writer)
            return _become(json.loads(packet), streams)
        os.waitpid(between, 0)
        os.close(writer)
        for each in streams:
            os.close(each)
        requests.send(os.read(reader, 32))
        os.close(reader)


def _become(request: dict[str, Any], streams: list[int]) -> list[str]:
    for own, given in enumerate(streams):
        os.dup2(given, own)
        os.close(given)
    if request["has_session"]:
        os.setsid()
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    return list(request["words"])


def main() -> None:
    # A shell that starts the tests in the background has it ignored, also by their children.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    gc.freeze()
    words = next_program(socket.socket(fileno=int(sys.argv[1])))
    sys.path[1:1] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    sys.modules["__main__"] = program = ModuleType("__main__")
    kind, name, sys.path[0] = words[0], "<string>", ""
    if kind in ("-c", "-m"):
        text = words.pop(1)
    else:
        program.__file__ = name = kind
        text, sys.path[0] = Path(name).read_text(), str(Path(name).parent)
    sys.argv[:] = words
    if kind == "-m":
        runpy.run_module(text, run_name="__main__", alter_sys=True)
    else:
        exec(compile(text, name, "exec"), vars(program))


if __name__ == "__main__":
    main()
