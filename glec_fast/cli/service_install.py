"""`glec-fast service install`: put the service's systemd units, its directories and its group in place.

What is there stays: settings and credentials are never written over, and a unit that differs from ours is kept beside
it as NAME.old. Nothing is started. With --root it all goes below DIR, as for an image, and nothing is run.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from glec_fast.errors import ConfigError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    SubParsers = argparse._SubParsersAction[argparse.ArgumentParser]

SUMMARY = "put the systemd units of the service in place"
UNITS = Path(__file__).with_name("systemd")
UNIT_DIRECTORY = "etc/systemd/system"
UNIT_NAMES = ("glec-fast.service", "glec-fast-credentials.path", "glec-fast-credentials.service")
SETTINGS, CREDENTIALS = "etc/glec-fast/service.env", "etc/glec-fast/credentials"
GROUP_FILE = "etc/sysusers.d/glec-fast.conf"
# What ExecStart= takes as it is: no blank, no quote, no specifier.
_PLAIN_PATH = re.compile(r"/[\w./+@:-]+", re.ASCII)
# ProtectHome= and PrivateTmp= of the unit.
_HIDDEN_FROM_SERVICE = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")  # noqa: S108 - names of what is hidden


class Piece(NamedTuple):
    """A file or, without content, a directory that must be there. One that is `kept` is never changed."""

    path: str
    mode: int
    content: str | None = None
    is_kept: bool = False


def add_parser(subparsers: SubParsers) -> None:
    parser = subparsers.add_parser("install", help=SUMMARY, description=__doc__)
    parser.add_argument("--root", metavar="DIR", type=Path, default=Path("/"), help="an image (default: this system)")
    parser.add_argument("--program", metavar="PATH", help="the glec-fast that the service starts (default: this one)")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Raises ConfigError where the service could not start from there, or a path cannot be written."""
    root = Path(os.path.abspath(arguments.root))  # noqa: PTH100 - a link in its name is the caller's business
    program = _program(arguments.program, root)
    try:
        for piece in pieces(program):
            said = _put(root, piece, dry_run=arguments.dry_run)
            sys.stdout.write(f"{said:<12} {_within(root, piece.path)}\n")
        if root == Path("/") and not arguments.dry_run:
            _tell_system()
    except OSError as error:
        advice = "run this as root" if isinstance(error, PermissionError) else "make room for it, then try again"
        raise ConfigError(f"{error.filename} cannot be put in place ({error.strerror}): {advice}") from error
    if arguments.dry_run:
        return 0
    sys.stdout.write(
        f"Next: set GLEC_BROKER_URL and GLEC_CLIENT_ID in /{SETTINGS}, put ca.crt, client.crt, client.key and\n"
        f"password, as far as you have them, into /{CREDENTIALS}, then: systemctl enable --now glec-fast\n"
        "(after an update: systemctl restart glec-fast)\n"
    )
    return 0


def pieces(program: str) -> Iterator[Piece]:
    """All that the service needs beside its program."""
    for name in UNIT_NAMES:
        unit = (UNITS / name).read_text()
        yield Piece(
            f"{UNIT_DIRECTORY}/{name}", 0o644, re.sub(r"(?<=^ExecStart=)/opt\S+", program, unit, flags=re.MULTILINE)
        )
    yield Piece(GROUP_FILE, 0o644, (UNITS / "sysusers.conf").read_text())
    yield Piece(CREDENTIALS, 0o700)
    # It may hold a password.
    yield Piece(SETTINGS, 0o600, (UNITS / "service.env").read_text(), is_kept=True)


def _program(given: str | None, root: Path) -> str:
    """The path that ExecStart= names, as it is once the system runs. Raises ConfigError."""
    path = given or str(Path(sysconfig.get_path("scripts"), "glec-fast"))
    if given is None and root != Path("/") and Path(path).is_relative_to(root):
        path = f"/{Path(path).relative_to(root)}"
    if not _PLAIN_PATH.fullmatch(path):
        raise ConfigError(f"{path!r} is no path that a unit can name: give --program /opt/glec-fast/bin/glec-fast")
    for hidden in _HIDDEN_FROM_SERVICE:
        if Path(path).is_relative_to(hidden):
            raise ConfigError(f"{path} is in {hidden}, which the service cannot see: install into /opt/glec-fast")
    if root == Path("/") and not os.access(path, os.X_OK):
        raise ConfigError(f"{path} is no program: install glec-fast there, or give --program PATH")
    return path


def _within(root: Path, path: str) -> Path:
    """`path` below the root, also where a link leads out of it. Raises ConfigError."""
    parent = (root / path).parent
    if not parent.resolve().is_relative_to(root.resolve()):
        raise ConfigError(f"{parent} leads out of {root}: make it a directory")
    return root / path


def _put(root: Path, piece: Piece, *, dry_run: bool) -> str:
    """Do it, and say what was done. Raises OSError."""
    path = _within(root, piece.path)
    if piece.content is None:
        if path.is_dir():
            return "is there"
        if not dry_run:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.mkdir(piece.mode)
        return "would make" if dry_run else "made"
    is_there = path.exists()
    if is_there and (piece.is_kept or path.read_text(errors="replace") == piece.content):
        return "is there"
    if not dry_run:
        path.parent.mkdir(parents=True, exist_ok=True)
        if is_there:
            path.replace(path.with_name(path.name + ".old"))
        _write(path, piece.content, piece.mode)
    if is_there:
        return "would change" if dry_run else "changed"
    return "would write" if dry_run else "wrote"


def _write(path: Path, content: str, mode: int) -> None:
    """In one step, and on disk: a gateway loses its power at any moment."""
    new = path.with_name(f".{path.name}.new")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, mode)
    with os.fdopen(descriptor, "w") as file:
        file.write(content)
        os.fchmod(file.fileno(), mode)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


def _tell_system() -> None:
    """Have the group made and the units read, by what of it is here."""
    makers = (["systemd-sysusers", f"/{GROUP_FILE}"], ["groupadd", "--system", "--force", "glec-fast"])
    maker = next((each for each in makers if shutil.which(each[0])), None)
    if maker is None:
        sys.stdout.write("there is no systemd-sysusers and no groupadd: make the group glec-fast\n")
    commands = [] if maker is None else [maker]
    # As sd_booted(3) asks.
    if Path("/run/systemd/system").is_dir():
        commands.append(["systemctl", "daemon-reload"])
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ConfigError(f"{' '.join(command)} failed: {done.stderr.strip()}")
        sys.stdout.write(f"{'ran':<12} {' '.join(command)}\n")
