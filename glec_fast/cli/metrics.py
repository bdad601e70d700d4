"""`glec-fast metrics`: the figures of the running service, for Prometheus, for node_exporter, or as JSON.

Prometheus's text format on standard output, so that any scraper of commands can take it; with --textfile, a file for
node_exporter's textfile collector, put in place in one step. Exit status 2 where no service answers.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from glec_fast.cli.service_client import add_socket_option, ask_figures
from glec_fast.errors import ConfigError
from glec_fast.fleet.prometheus import prometheus_text

if TYPE_CHECKING:
    import argparse

SUMMARY = "print the figures of the running service for Prometheus"


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser("metrics", help=SUMMARY, description=__doc__)
    add_socket_option(parser)
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--textfile", metavar="FILE", type=Path, help="write FILE, such as .../textfile/glec.prom")
    how.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    answer, figures = ask_figures(arguments.socket)
    if arguments.json:
        sys.stdout.write(json.dumps(answer, indent=2) + "\n")
        return 0
    text = prometheus_text(figures, answer["client_id"], answer["version"])
    if arguments.textfile is None:
        sys.stdout.write(text)
        return 0
    path: Path = arguments.textfile
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        try:
            beside.write_text(text)
            beside.chmod(0o644)
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error.strerror}): check its folder and rights") from error
    return 0
