"""The programs of benches/, run in this process; those that they start are forked."""

from __future__ import annotations

import io
import logging
import runpy
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from unittest import mock

from support import forked
from support.places import REPOSITORY

BENCHES = REPOSITORY / "benches"


def run(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run one to its end."""
    words = [str(BENCHES / name), *map(str, arguments)]
    code: object = 0
    # Some are quiet about what the log says; those behind them in this process are not.
    logger = logging.getLogger("glec_fast")
    level = logger.level
    with (
        redirect_stdout(io.StringIO()) as said,
        redirect_stderr(io.StringIO()) as errors,
        mock.patch.object(sys, "argv", words),
        mock.patch.object(sys, "path", [str(BENCHES), *sys.path]),
        forked.in_place_of_starts(),
    ):
        try:
            runpy.run_path(words[0], run_name="__main__")
        except SystemExit as left:
            code = left.code
        finally:
            logger.setLevel(level)
    return subprocess.CompletedProcess(words, code or 0, said.getvalue(), errors.getvalue())
