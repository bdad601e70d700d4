"""Debian roots of a foreign architecture, and commands in them under emulation.

Every command runs in mount and PID namespaces of its own: what is mounted for it (/proc, /dev, the emulators) is gone
with it, however it ends, and so are its children. Needs root.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from targets import PYTHON_VERSION

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from targets import Target

SUITE = "bookworm"
PACKAGES = (
    f"python{PYTHON_VERSION}",
    f"python{PYTHON_VERSION}-venv",
    f"libpython{PYTHON_VERSION}-dev",
    "dash",
    "coreutils",
    # cibuildwheel works with these inside its images.
    "bash",
    "debianutils",
    "tar",
)

# $1 names the emulators, separated by spaces. Entries live as long as binfmt_misc is mounted somewhere.
REGISTER_EMULATORS = """
misc=/proc/sys/fs/binfmt_misc
[ -e $misc/register ] || mount -t binfmt_misc binfmt_misc $misc
for emulator in $1; do
    [ -e $misc/$emulator ] || cat /usr/lib/binfmt.d/$emulator.conf > $misc/register || [ -e $misc/$emulator ]
done
shift
"""
ENTER_ROOT = """
root=$1
shift
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
exec chroot "$root" "$@"
"""
NAMESPACES = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--")


def emulated(emulators: Sequence[str], arguments: Sequence[str], then: str = 'exec "$@"') -> list[str]:
    """A command that runs `arguments` while the emulators are registered. `then` is shell to begin with."""
    script = f"set -eu{REGISTER_EMULATORS}{then}"
    return [*NAMESPACES, "sh", "-c", script, "emulated", " ".join(emulators), *arguments]


class Guest:
    """A root directory of `target`, and commands in it."""

    def __init__(self, target: Target, root: Path) -> None:
        self.target = target
        self.root = root

    def run(self, *arguments: str, directory: str = "/", environment: Mapping[str, str] | None = None) -> None:
        """Run a command with nothing of the caller's environment. Raises CalledProcessError."""
        base = {"PATH": "/usr/bin:/bin", "HOME": "/root", "LANG": "C.UTF-8", "QEMU_CPU": self.target.cpu}
        variables = {**base, **(environment or {})}
        words = ["env", "-i", f"--chdir={directory}", *(f"{name}={value}" for name, value in variables.items())]
        command = emulated([self.target.emulator], [str(self.root), *words, *arguments], ENTER_ROOT)
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


def pristine_root(target: Target, cache: Path) -> Path:
    """The root as Debian's archive gives it, made once for each list of packages."""
    root = cache / f"{SUITE}-{target.name}"
    recipe = root / "glec-recipe"
    contents = f"{SUITE} {target.debian} {' '.join(PACKAGES)}\n"
    if recipe.exists() and recipe.read_text() == contents:
        return root
    shutil.rmtree(root, ignore_errors=True)
    subprocess.run(
        [
            "mmdebstrap",
            "--quiet",
            "--variant=extract",
            f"--architectures={target.debian}",
            f"--include={','.join(PACKAGES)}",
            # A bench that lives for minutes: the release as it is will do.
            '--setup-hook=sed -i "/-security/d; /-updates/d" "$1"/etc/apt/sources.list',
            SUITE,
            str(root),
        ],
        check=True,
    )
    for directory in ("proc", "root", "run"):
        (root / directory).mkdir(exist_ok=True)
    for name in ("hosts", "resolv.conf"):
        shutil.copy(f"/etc/{name}", root / "etc" / name)
    recipe.write_text(contents)
    return root


def headers_of(target: Target, pristine: Path, directory: Path) -> Path:
    """Python's headers for a cross-compiler, which must not follow Debian's dispatching pyconfig.h into the host's.

    `directory` may be where they are in the root.
    """
    include = pristine / "usr" / "include"
    if directory != include / f"python{PYTHON_VERSION}":
        shutil.copytree(include / f"python{PYTHON_VERSION}", directory, dirs_exist_ok=True)
    shutil.copy(include / target.multiarch / f"python{PYTHON_VERSION}" / "pyconfig.h", directory)
    return directory


@contextmanager
def fresh_guest(target: Target, cache: Path) -> Iterator[Guest]:
    """A guest with nothing in it but Debian; removed at the end."""
    pristine = pristine_root(target, cache)
    with tempfile.TemporaryDirectory(prefix=f"guest-{target.name}-", dir=cache) as directory:
        root = Path(directory) / "root"
        subprocess.run(["cp", "-a", "--reflink=auto", str(pristine), str(root)], check=True)
        yield Guest(target, root)


def cache_directory() -> Path:
    """Where roots and downloads are kept: GLEC_CACHE, or glec-fast in the user's cache."""
    named = os.environ.get("GLEC_CACHE")
    base = Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "glec-fast"
    base.mkdir(parents=True, exist_ok=True)
    return base.resolve()
