"""Build the sdist, and the wheel from it alone, to the same bytes each time: `build.py DIRECTORY`, or `--twice`.

The same commit and the same versions of compiler, Python, setuptools and Cython give the same files, whatever the
hour, the directory and the umask. --twice shows it: the second time everything is built from the sdist of the first.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
EXECUTABLE = 0o100


def epoch_of(tree: Path) -> int:
    """What all files are dated: the environment's word, the commit's time, or that of the sdist we are in."""
    given = os.environ.get("SOURCE_DATE_EPOCH")
    if given:
        return int(given)
    packed = tree / "PKG-INFO"
    if packed.exists():
        return int(packed.stat().st_mtime)
    command = ["git", "-C", str(tree), "log", "-1", "--format=%ct"]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def run_build(kind: str, tree: Path, into: Path, epoch: int) -> Path:
    """One call of PyPA's build, which takes the versions that pyproject.toml names."""
    # Without debug information, which names the directory that was built in.
    environment = {**os.environ, "SOURCE_DATE_EPOCH": str(epoch), "LDFLAGS": "-s"}
    command = [sys.executable, "-m", "build", "--quiet", f"--{kind}", "--outdir", str(into), str(tree)]
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    (built,) = into.iterdir()
    return built


def level(source: Path, target: Path, epoch: int) -> None:
    """The same tar with nothing in it of who packed it, and when: setuptools leaves each file its own date."""
    packed = io.BytesIO()
    with tarfile.open(source) as old, tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as new:
        for member in sorted(old.getmembers(), key=lambda each: each.name):
            member.mtime, member.uid, member.gid, member.uname, member.gname = epoch, 0, 0, "", ""
            member.mode = 0o755 if member.isdir() or member.mode & EXECUTABLE else 0o644
            member.pax_headers = {}
            new.addfile(member, old.extractfile(member) if member.isfile() else None)
    with target.open("wb") as file, gzip.GzipFile("", "wb", fileobj=file, mtime=epoch) as compressed:
        compressed.write(packed.getvalue())


def build(tree: Path, into: Path) -> dict[str, str]:
    """Both files, into a directory; returns their hashes by name."""
    os.umask(0o022)
    epoch = epoch_of(tree)
    into.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        raw = run_build("sdist", tree, place / "raw", epoch)
        level(raw, into / raw.name, epoch)
        unpacked = unpack(into / raw.name, place)
        wheel = run_build("wheel", unpacked, place / "wheel", epoch)
        (into / wheel.name).write_bytes(wheel.read_bytes())
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (into / raw.name, into / wheel.name)}


def unpack(sdist: Path, into: Path) -> Path:
    with tarfile.open(sdist) as packed:
        packed.extractall(into, filter="data")
    return into / sdist.name.removesuffix(".tar.gz")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--twice", action="store_true", help="build again from the sdist, elsewhere, and compare")
    arguments = parser.parse_args()
    first = build(REPOSITORY, arguments.directory)
    for name, digest in first.items():
        print(f"{digest}  {name}")
    if not arguments.twice:
        return 0
    os.environ.pop("SOURCE_DATE_EPOCH", None)
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        sdist = next(arguments.directory.glob("*.tar.gz"))
        second = build(unpack(sdist, place), place / "again")
    different = [name for name in first if first[name] != second.get(name)]
    print(f"different: {', '.join(different)}" if different else "built twice, the same bytes")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
