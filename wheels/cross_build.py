"""`make wheels`: build wheels for ARM with a cross-compiler, then install and test them under emulation.

Usage: python wheels/cross_build.py [aarch64] [armv7l]      (default: both)

The wheels are built from the sdist alone into wheels/dist/. A wheel gets there only once it has been inspected; the
tests then run in a Debian root of its architecture where pip installed it, against a broker on this machine.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import tomllib

from glec_fast.demo.broker import Broker
from glec_fast.demo.certificates import CertificateAuthority
from guest import Guest, cache_directory, fresh_guest, headers_of, pristine_root
from inspect_wheel import WheelError, inspect_wheel
from targets import PYTHON_TAG, PYTHON_VERSION, TARGETS, Target

REPOSITORY = Path(__file__).resolve().parents[1]
DIST = REPOSITORY / "wheels" / "dist"
TOOLS = Path(sys.executable).parent
GUEST_PYTHON = "/venv/bin/python"


def main(names: list[str]) -> int:
    if unknown := set(names) - set(TARGETS):
        sys.stderr.write(f"no such target: {', '.join(sorted(unknown))}; there are {', '.join(TARGETS)}\n")
        return 2
    if sys.version_info[:2] != tuple(map(int, PYTHON_VERSION.split("."))):
        sys.stderr.write(f"the guests have Python {PYTHON_VERSION}: run this with PYTHON=python{PYTHON_VERSION}\n")
        return 2
    cache = cache_directory()
    with tempfile.TemporaryDirectory(prefix="cross-build-", dir=cache) as directory:
        workplace = Path(directory)
        source = unpack_sdist(workplace)
        for name in names or TARGETS:
            started_s = time.monotonic()
            try:
                wheel = build(TARGETS[name], source, workplace / name, cache)
                report(f"built {inspect_wheel(wheel)}")
                DIST.mkdir(exist_ok=True)
                for old in DIST.glob(f"*_{name}.whl"):
                    old.unlink()
                wheel = Path(shutil.copy(wheel, DIST))
                test(TARGETS[name], wheel, workplace / name, cache)
            except (subprocess.CalledProcessError, WheelError) as failure:
                sys.stderr.write(f"{name}: FAILED: {failure}\n")
                return 1
            report(f"{name}: built, installed and tested in {time.monotonic() - started_s:.0f} s")
    return 0


def unpack_sdist(workplace: Path) -> Path:
    """The sdist of this tree, unpacked where both targets share what Cython makes of it."""
    build_command = [sys.executable, "-m", "build", "--quiet", "--no-isolation", "--sdist", "--outdir", str(workplace)]
    subprocess.run([*build_command, str(REPOSITORY)], check=True)
    (archive,) = workplace.glob("*.tar.gz")
    shutil.unpack_archive(archive, workplace)
    return workplace / archive.name.removesuffix(".tar.gz")


def build(target: Target, source: Path, workplace: Path, cache: Path) -> Path:
    """The repaired and tagged wheel of `source`."""
    headers = headers_of(target, pristine_root(target, cache), workplace / "include")
    compiler = shlex.join([sys.executable, "-m", "ziglang", "cc", *target.compiler_options])
    environment = {
        **os.environ,
        "PATH": f"{TOOLS}{os.pathsep}{os.environ['PATH']}",
        "CC": compiler,
        "LDSHARED": f"{compiler} -shared",
        "LDFLAGS": "-s",
        # These replace the flags that Python was built with. zig's default is to trap on what UBSan finds.
        "CFLAGS": f"-I{headers} -O2 -DNDEBUG -fwrapv -fno-sanitize=undefined",
        "_PYTHON_HOST_PLATFORM": f"linux-{target.name}",
        "SETUPTOOLS_EXT_SUFFIX": f".cpython-{PYTHON_TAG.removeprefix('cp')}-{target.multiarch}.so",
    }
    raw, repaired = workplace / "raw", workplace / "repaired"
    command = [sys.executable, "-m", "build", "--quiet", "--no-isolation", "--wheel", "--outdir", str(raw), str(source)]
    subprocess.run(command, check=True, env=environment)
    (wheel,) = raw.glob("*.whl")
    # For a foreign architecture auditwheel takes no --plat; it finds the lowest tag itself, by the symbols used.
    subprocess.run(["auditwheel", "repair", "--wheel-dir", str(repaired), str(wheel)], check=True, env=environment)
    (wheel,) = repaired.glob("*.whl")
    return wheel


def test(target: Target, wheel: Path, workplace: Path, cache: Path) -> None:
    """Install the wheel in a fresh guest, as a gateway would, and test it there."""
    dependencies = download_dependencies(target, wheel, cache)
    broker_files = workplace / "broker"
    broker_files.mkdir()
    authority = CertificateAuthority(broker_files)
    with (
        Broker(broker_files, certificate=authority.issue_server()) as broker,
        fresh_guest(target, cache) as guest,
    ):
        install(guest, wheel, dependencies)
        shutil.copy(authority.certificate_path, guest.root / "ca.crt")
        shutil.copytree(REPOSITORY / "tests", guest.root / "check" / "tests")
        shutil.copytree(REPOSITORY / "wheels" / "guest", guest.root / "check" / "gateway")
        shutil.copy(REPOSITORY / "pyproject.toml", guest.root / "check")
        # CI takes hypothesis's deadlines away: under emulation everything takes ten times as long.
        environment = {"CI": "1", "PATH": "/venv/bin:/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"}
        report(f"{target.name}: the tests of every wheel")
        guest.run("sh", "-euc", shared_settings()["test-command"], directory="/check", environment=environment)
        report(f"{target.name}: durable publish and flush over TLS, kill and restart")
        gateway = {
            "GLEC_MACHINE": target.name,
            "GLEC_BROKER_PORT": str(broker.port),
            "GLEC_BROKER_TLS_URL": broker.tls_url,
            "GLEC_BROKER_CA": "/ca.crt",
        }
        guest.run("pytest", "-q", "gateway", directory="/check", environment={**environment, **gateway})
        report(f"{target.name}: the demo")
        guest.run(
            "glec-fast", "demo", "--broker", broker.tls_url, "--ca-cert", "/ca.crt", environment=environment
        )  # fmt: skip


def shared_settings() -> dict[str, Any]:
    """cibuildwheel's: the same tests, with the same packages, for every wheel, whoever builds it."""
    settings: dict[str, Any] = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["cibuildwheel"]
    return settings


def download_dependencies(target: Target, wheel: Path, cache: Path) -> Path:
    """Wheels of all that our wheel asks for, none of them built here."""
    directory = cache / f"dependencies-{target.name}"
    directory.mkdir(exist_ok=True)
    platforms = [word for platform in target.platforms for word in ("--platform", platform)]
    wheels = ["--only-binary=:all:", "--python-version", PYTHON_VERSION, "--implementation", "cp", *platforms]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(directory)]
    subprocess.run([*pip, *wheels, str(wheel), *shared_settings()["test-requires"]], check=True)
    for own in directory.glob("glec_fast-*.whl"):
        own.unlink()
    return directory


def install(guest: Guest, wheel: Path, dependencies: Path) -> None:
    """`pip install` in a virtual environment of the guest's, without a network and without a compiler."""
    shutil.copytree(dependencies, guest.root / "wheels")
    shutil.copy(wheel, guest.root / "wheels")
    (pip,) = (guest.root / "usr" / "share" / "python-wheels").glob("pip-*.whl")
    guest.run(f"python{PYTHON_VERSION}", "-m", "venv", "--without-pip", "/venv")
    guest.run(
        GUEST_PYTHON, "-m", "pip", "install", "--quiet", "--no-index", "--find-links", "/wheels", "--only-binary=:all:",
        f"/wheels/{wheel.name}", *shared_settings()["test-requires"],
        environment={"PYTHONPATH": f"/{pip.relative_to(guest.root)}"},
    )  # fmt: skip


def report(text: str) -> None:
    sys.stdout.write(f"== {text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
