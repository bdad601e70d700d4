"""A question to the running service, or to a program with a `metrics_socket`."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glec_fast.cli.service import SOCKET_NAME
from glec_fast.errors import ConfigError, MessageError
from glec_fast.fleet.upkeep import NUMBERS_MAX

if TYPE_CHECKING:
    import argparse

_TIMEOUT_S = 10.0
_ANSWER_MAX_BYTES = 1 << 20
_SYSTEMD_DIRECTORY = "/run/glec-fast"


def add_socket_option(parser: argparse.ArgumentParser) -> None:
    """--socket PATH."""
    default = Path(os.environ.get("RUNTIME_DIRECTORY") or _SYSTEMD_DIRECTORY) / SOCKET_NAME
    parser.add_argument(
        "--socket",
        metavar="PATH",
        type=Path,
        default=default,
        help="of the service, or a program's metrics_socket (default: %(default)s)",
    )


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
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        says = f"no service answers at {path} ({why}): start it, or name its socket by --socket"
        raise ConfigError(says) from error
    if isinstance(answer, dict) and "error" not in answer:
        return answer
    refusal = str(answer["error"]) if isinstance(answer, dict) else ""
    if not refusal or refusal.startswith("a question must be"):
        raise ConfigError(f"the service at {path} does not know the question {question!r}: update it")
    raise MessageError(f"the service at {path} says: {refusal}")


def ask_owner_of(queue: Path, socket_path: Path, question: str, numbers: list[int]) -> list[Any]:
    """Have the service that has this queue file do something with messages of it; its answers.

    Raises ConfigError where no service has it, MessageError.
    """
    try:
        has = ask(socket_path, "metrics").get("queue_path")
    except ConfigError as error:
        says = f"{queue} is in use by another program, and {error}; or end that program"
        raise ConfigError(says) from error
    if has is None or not queue.exists() or not Path(has).exists() or not queue.samefile(has):
        raise ConfigError(f"{queue} is in use by another program than the service at {socket_path}: end that program")
    parts = [numbers[first : first + NUMBERS_MAX] for first in range(0, len(numbers), NUMBERS_MAX)]
    return [ask(socket_path, question, numbers=part) for part in parts]
