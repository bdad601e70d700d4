"""python -m glec_fast.mqtt [--store DIRECTORY] PROGRAM [ARGUMENT ...]: run a paho program over our class, unchanged.

PROGRAM is what python itself takes: a file, `-m MODULE` or `-c TEXT`. It and all Python processes that it starts get
our class where they import `paho.mqtt.client`. --store: a queue file for each client id in this folder, so that what
is published outlives the process; without it messages are in memory, as with paho.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NoReturn

from glec_fast.mqtt import preload
from glec_fast.mqtt.preload.sitecustomize import PREFIX, STORE


def _options_of_python() -> list[str]:
    """Those that this process was started with, such as `-X dev`, without `-m glec_fast.mqtt`."""
    given = sys.orig_argv[1 : len(sys.orig_argv) - len(sys.argv) + 1]
    last = given.pop()
    # Its own word, or the end of one that has other letters too: `-um glec_fast.mqtt`, `-umglec_fast.mqtt`.
    letters = last.partition("m")[0] if last.startswith("-") else given.pop()[:-1]
    return given if letters == "-" else [*given, letters]


def _usage(problem: str = "") -> NoReturn:
    text = (__doc__ or "").partition("\n\n")
    if problem:
        sys.stderr.write(f"{problem}\nusage: {text[0].partition(':')[0]}\n")
        raise SystemExit(2)
    sys.stdout.write(f"usage: {text[0]}\n\n{text[2]}\n")
    raise SystemExit(0)


def main(arguments: list[str]) -> NoReturn:
    """Replaces this process by the program's. Ends with code 2 where that cannot be."""
    store = None
    while arguments and arguments[0].startswith("--"):
        option, _, value = arguments.pop(0).partition("=")
        if option == "--help":
            _usage()
        if option != "--store":
            _usage(f"unknown option {option}")
        if not value and not arguments:
            _usage("--store needs a folder")
        store = Path.cwd() / (value or arguments.pop(0))
    if arguments[:1] == ["-h"]:
        _usage()
    if not arguments:
        _usage("no program is given")
    if sys.flags.ignore_environment or sys.flags.no_site:
        _usage("python -E, -I and -S ignore PYTHONPATH, by which the program gets our class: leave them out")
    environment = os.environ
    folders = str(Path(preload.__file__).absolute().parent), environment.get("PYTHONPATH")
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, folders))
    environment[PREFIX] = sys.prefix
    if store is not None:
        environment[STORE] = str(store)
    try:
        os.execv(sys.executable, [sys.executable, *_options_of_python(), *arguments])  # noqa: S606
    except OSError as error:
        _usage(f"{sys.executable} cannot be started: {error.strerror}")


if __name__ == "__main__":
    main(sys.argv[1:])
