"""What an exception between any two steps leaves behind: on the wire, in locks, in what waits."""

from __future__ import annotations

import ast
import os
from pathlib import Path

import glec_fast
from support.interrupts import campaign

POINTS = int(os.environ.get("INTERRUPT_POINTS", "40"))
SEED = int(os.environ.get("SEED", "1"))
# Which run beside a vehicle, not in it.
TOOLS = {"cli", "testbed"}
# Whose locks an exception may leave held.
THEIR_LOCKS = {"Condition", "Event", "Lock", "RLock", "Semaphore", "BoundedSemaphore", "Barrier"}


def test_nothing_is_lost_or_sent_twice_wherever_an_exception_cuts_in() -> None:
    assert campaign(POINTS, SEED) == {"points": POINTS}


def test_our_code_has_only_locks_that_no_exception_leaves_held() -> None:
    """Not threading's, and none that is taken but by a with statement."""
    taken = []
    package = Path(glec_fast.__file__).parent
    places = [path for path in package.rglob("*.py") if path.relative_to(package).parts[0] not in TOOLS]
    assert len(places) > 50
    for path in places:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                is_theirs = node.value.id == "threading" and node.attr in THEIR_LOCKS
                if is_theirs:
                    taken.append(f"{path.name}:{node.lineno}")
            # A mark takes nothing.
            is_taken = isinstance(node, ast.Attribute) and node.attr == "acquire"
            if is_taken and not ast.unparse(node.value).endswith("_mark"):
                taken.append(f"{path.name}:{node.lineno}")
    assert taken == []
