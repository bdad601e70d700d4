"""A question to the running service, over the socket that programs publish through."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glec_fast.cli.service import SOCKET_NAME
from glec_fast.errors import ConfigError

if TYPE_CHECKING:
    import argparse

_TIMEOUT_S = 10.0
_ANSWER_MAX_BYTES = 1 << 20
_SYSTEMD_DIRECTORY = "/run/glec-fast"


def add_socket_option(parser: argparse.ArgumentParser) -> None:
    """--socket PATH."""
    default = Path(os.environ.get("RUNTIME_DIRECTORY") or _SYSTEMD_DIRECTORY) / SOCKET_NAME
    parser.add_argument(
        "--socket", metavar="PATH", type=Path, default=default, help="the service's socket (default: %(default)s)"
    )


def ask(path: Path, question: str) -> dict[str, Any]:
    """The service's answer to `{"ask": question}`. Raises ConfigError where there is none."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as link:
            link.settimeout(_TIMEOUT_S)
            link.connect(os.fspath(path))
            link.send(json.dumps({"ask": question}).encode())
            answer = json.loads(link.recv(_ANSWER_MAX_BYTES))
    except PermissionError as error:
        raise ConfigError(f"{path} may not be opened by this user: join the group of the service") from error
    except TimeoutError as error:
        raise ConfigError(f"the service at {path} gave no answer within {_TIMEOUT_S:.0f} s: see its log") from error
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"no service answers at {path} ({error}): start it, or name its socket by --socket"
        ) from error
    if not isinstance(answer, dict) or "error" in answer:
        raise ConfigError(f"the service at {path} does not know the question {question!r}: update it")
    return answer
