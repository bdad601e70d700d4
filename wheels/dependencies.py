"""What is installed in a guest besides our wheel: others' wheels for its architecture, none of them built here."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomllib

from targets import PYTHON_VERSION

if TYPE_CHECKING:
    from collections.abc import Sequence

    from guest import Guest
    from targets import Target

REPOSITORY = Path(__file__).resolve().parents[1]
# Where they are in the guest.
WHEELS = "/wheels"


def project_settings() -> dict[str, Any]:
    """pyproject.toml."""
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text())


def shared_settings() -> dict[str, Any]:
    """cibuildwheel's: the same tests, with the same packages, for every wheel, whoever builds it."""
    settings: dict[str, Any] = project_settings()["tool"]["cibuildwheel"]
    return settings


def download(target: Target, requirements: Sequence[str], cache: Path) -> Path:
    """A directory with wheels of all that `requirements` ask for. Raises CalledProcessError where there is none."""
    directory = cache / f"dependencies-{target.name}"
    directory.mkdir(exist_ok=True)
    platforms = [word for platform in target.platforms for word in ("--platform", platform)]
    wheels = ["--only-binary=:all:", "--python-version", PYTHON_VERSION, "--implementation", "cp", *platforms]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(directory)]
    subprocess.run([*pip, *wheels, *requirements], check=True)
    for own in directory.glob("glec_fast-*.whl"):
        own.unlink()
    return directory


def install(guest: Guest, wheels: Path, requirements: Sequence[str], environment: str) -> None:
    """`pip install` of names or of file names in `wheels`, in a virtual environment of the guest's at `environment`,

    without a network and without a compiler.
    """
    shutil.copytree(wheels, guest.root / WHEELS.lstrip("/"), dirs_exist_ok=True)
    (pip,) = (guest.root / "usr" / "share" / "python-wheels").glob("pip-*.whl")
    guest.run(f"python{PYTHON_VERSION}", "-m", "venv", "--without-pip", environment)
    guest.run(
        f"{environment}/bin/python", "-m", "pip", "install", "--quiet", "--no-index", "--find-links", WHEELS,
        "--only-binary=:all:", *requirements,
        environment={"PYTHONPATH": f"/{pip.relative_to(guest.root)}"},
    )  # fmt: skip
