"""A question to the running service, or to a program with a `metrics_socket`."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glec_fast.cli.service import SOCKET_NAME
from glec_fast.errors import ConfigError, MessageError
from glec_fast.fleet.metrics import Metrics, metrics_from_json
from glec_fast.fleet.upkeep import NUMBERS_MAX

if TYPE_CHECKING:
    import argparse

_TIMEOUT_S = 10.0
_ANSWER_MAX_BYTES = 1 << 20
_SYSTEMD_DIRECTORY = "/run/glec-fast"
OF_THE_OWNER = "of the service that has the file; another program must be ended first"


class UnknownQuestionError(ConfigError):
    """Somebody answers, who does not know the question."""


def add_socket_option(
    parser: argparse.ArgumentParser, says: str = "of the service, or a program's metrics_socket"
) -> None:
    """--socket PATH. says: whose it is."""
    default = Path(os.environ.get("RUNTIME_DIRECTORY") or _SYSTEMD_DIRECTORY) / SOCKET_NAME
    parser.add_argument("--socket", metavar="PATH", type=Path, default=default, help=f"{says} (default: %(default)s)")


def ask(path: Path, question: str, **content: object) -> dict[str, Any]:
    """The answer to `{"ask": question}`, with what else belongs to it.

    Raises ConfigError where there is none, MessageError where it is that something is wrong.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as link:
            link.settimeout(_TIMEOUT_S)
            link.connect(os.fspath(path))
            link.send(json.dumps({"ask": question, **content}).encode())
            answer = json.loads(link.recv(_ANSWER_MAX_BYTES))
    except PermissionError as error:
        raise ConfigError(f"{path} may not be opened by this user: join the group of the service") from error
    except TimeoutError as error:
        raise ConfigError(f"the service at {path} gave no answer within {_TIMEOUT_S:.0f} s: see its log") from error
    except (OSError, ValueError, RecursionError) as error:
        why = getattr(error, "strerror", None) or error
        says = f"no service answers at {path} ({why}): start it, or name its socket by --socket"
        raise ConfigError(says) from error
    if isinstance(answer, dict) and "error" not in answer:
        return answer
    refusal = str(answer["error"]) if isinstance(answer, dict) else ""
    if not refusal or refusal.startswith("a question must be"):
        raise UnknownQuestionError(f"the service at {path} does not know the question {question!r}: update it")
    raise MessageError(f"the service at {path} says: {refusal}")


def ask_figures(path: Path) -> tuple[dict[str, Any], Metrics]:
    """The answer to `metrics`, with its client_id and version, and the figures in it. Raises as `ask`."""
    answer = ask(path, "metrics")
    try:
        figures = metrics_from_json(answer.get("metrics"))
        if not isinstance(answer.get("client_id"), str) or not isinstance(answer.get("version"), str):
            raise ValueError("client_id or version is missing")
    except ValueError as error:
        raise _not_ours(path, str(error)) from error
    return answer, figures


def ask_owner_of(queue: Path, socket_path: Path, question: str, numbers: list[int], answer: str) -> list[Any]:
    """Have the service that has this queue file do something with messages of it; what `answer` has, of each part.

    Raises ConfigError where no service has it, MessageError.
    """
    try:
        has = ask(socket_path, "metrics").get("queue_path")
    except ConfigError as error:
        says = f"{queue} is in use by another program, and {error}; or end that program"
        raise ConfigError(says) from error
    if not _are_same(queue, has):
        raise ConfigError(f"{queue} is in use by another program than the service at {socket_path}: end that program")
    parts = [numbers[first : first + NUMBERS_MAX] for first in range(0, len(numbers), NUMBERS_MAX)]
    try:
        answers = [ask(socket_path, question, numbers=part) for part in parts]
    except UnknownQuestionError as error:
        says = f"the program that answers at {socket_path} has {queue}, and changes nothing of it when asked, as only"
        raise ConfigError(f"{says} the service of this version does: end it, then try again") from error
    if not all(answer in each for each in answers):
        raise _not_ours(socket_path, f"{answer} is missing")
    return [each[answer] for each in answers]


def _are_same(queue: Path, has: object) -> bool:
    try:
        return isinstance(has, str) and queue.samefile(has)
    except (OSError, ValueError):
        return False


def _not_ours(path: Path, why: str) -> ConfigError:
    return ConfigError(f"what answers at {path} is no service of this version ({why}): update it, or name another")
