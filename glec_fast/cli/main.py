"""The command line: `glec-fast SUBCOMMAND`. Each subcommand is a module with `add_parser` and a function that runs it.

Exit status: 0 well, 1 a check failed, 2 the request cannot be met (one line says why), 130 interrupted,
141 whoever read the output has gone.
"""

from __future__ import annotations

import argparse
import errno
import io
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from glec_fast import __version__
from glec_fast.cli import in_doubt as in_doubt_command
from glec_fast.cli import metrics, publish, queue, service, settings, subscribe, top
from glec_fast.cli.bench import command as bench_command
from glec_fast.cli.demo import command as demo_command
from glec_fast.cli.doctor import command as doctor_command
from glec_fast.cli.doctor import pin
from glec_fast.cli.plan import command as plan_command
from glec_fast.errors import GlecError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType

EXIT_UNUSABLE = 2
EXIT_INTERRUPTED = 130
EXIT_PIPE_CLOSED = 141
_OUTPUT_FAILURES = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)

SUBCOMMANDS = (
    demo_command,
    bench_command,
    service,
    metrics,
    top,
    queue,
    in_doubt_command,
    doctor_command,
    pin,
    plan_command,
    settings,
    publish,
    subscribe,
)


class Paragraphs(argparse.HelpFormatter):
    """Breaks the lines of each paragraph at words, for the width of the terminal."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        filled = [super(Paragraphs, self)._fill_text(each, width, indent) for each in text.strip().split("\n\n")]
        return "\n\n".join(filled)


class OneLineParser(argparse.ArgumentParser):
    """Says what is wrong in one line; the usage is what --help is for."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        options.setdefault("formatter_class", Paragraphs)
        super().__init__(*arguments, **options)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        # Here, and not at the top, whose help has nothing of this subcommand's.
        parsed, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return parsed, unknown

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_UNUSABLE, f"{self.prog}: {message}; see {self.prog} --help\n")


def build_parser() -> argparse.ArgumentParser:
    parser = OneLineParser(prog="glec-fast", description="Offline-first MQTT for vehicle gateways.")
    parser.add_argument("--version", action="version", version=f"glec-fast {__version__}")
    subparsers = parser.add_subparsers(title="subcommands", metavar="SUBCOMMAND", required=True)
    for subcommand in SUBCOMMANDS:
        subcommand.add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    _open_streams()
    arguments = build_parser().parse_args(argv)
    previous = signal.signal(signal.SIGTERM, _interrupt)
    try:
        status: int = arguments.run(arguments)
        sys.stdout.flush()
    except GlecError as error:
        sys.stderr.write(f"glec-fast: {error}\n")
        return EXIT_UNUSABLE
    except BrokenPipeError:
        # Whoever read has had enough, as in `glec-fast settings | head`.
        _write_no_more()
        return EXIT_PIPE_CLOSED
    except OSError as error:
        if error.errno not in _OUTPUT_FAILURES:
            raise
        _write_no_more()
        sys.stderr.write(f"glec-fast: the output cannot be written ({error.strerror}): make room for it\n")
        return EXIT_UNUSABLE
    except KeyboardInterrupt:
        sys.stderr.write("glec-fast: interrupted\n")
        return EXIT_INTERRUPTED
    finally:
        signal.signal(signal.SIGTERM, previous)
    return status


def _open_streams() -> None:
    """Have whatever a topic or a payload contains written to any terminal, in its escapes if need be."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # The shell has closed it.
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115 - as long as the process
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _write_no_more() -> None:
    """The end of the process flushes once more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    """A request to end is like Ctrl-C: whatever was started is ended on the way out."""
    raise KeyboardInterrupt
