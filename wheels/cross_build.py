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
from typing import TYPE_CHECKING

from check import check, report
from dependencies import REPOSITORY
from guest import cache_directory, headers_of, pristine_root
from inspect_wheel import WheelError, inspect_wheel
from targets import PYTHON_TAG, PYTHON_VERSION, TARGETS, Target

if TYPE_CHECKING:
    from collections.abc import Callable

DIST = REPOSITORY / "wheels" / "dist"
TOOLS = Path(sys.executable).parent


def make_wheels(
    names: list[str], dist: Path, build: Callable[[Target, Path, Path, Path], Path], *, is_tested: bool
) -> int:
    """Build, inspect and check the wheels of `names`, or of all targets; returns the exit status.

    build: gets the target, the sources, a directory of its own and the cache; returns the repaired wheel. is_tested:
    it has already run the tests of every wheel.
    """
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
                dist.mkdir(parents=True, exist_ok=True)
                for old in dist.glob(f"*_{name}.whl"):
                    old.unlink()
                wheel = Path(shutil.copy(wheel, dist))
                check(TARGETS[name], wheel, workplace / name, cache, is_tested=is_tested)
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


if __name__ == "__main__":
    sys.exit(make_wheels(sys.argv[1:], DIST, build, is_tested=False))
