"""`glec-fast queue`: look into a queue file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from glec_fast.cli.quarantine import add_quarantine
from glec_fast.cli.queue_views import add_views

if TYPE_CHECKING:
    import argparse


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser("queue", help="look into a queue file, also of one that is in use")
    subjects = parser.add_subparsers(title="subjects", metavar="SUBJECT", required=True)
    add_views(subjects)
    add_quarantine(subjects)
