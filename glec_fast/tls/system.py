"""The system's authorities: a folder in which OpenSSL looks one up as it is needed, or a file with all of them."""

from __future__ import annotations

import hashlib
import os
import re
import ssl
from contextlib import suppress
from pathlib import Path

# Also of another kind, as of a certificate with what it is trusted for.
_BLOCK = re.compile(rb"-----BEGIN ([^-]+)-----(.+?)-----END", re.DOTALL)
# As OpenSSL looks for them: by a hash of whom a certificate is of.
_LOOKED_UP = re.compile(r"[0-9a-f]{8}\.[0-9]+")


def load_system_authorities(context: ssl.SSLContext) -> None:
    """Trust whom the system trusts. Where its folder has all of its file, as on Debian, the file is left alone.

    Read from the file all of them, 144 as a rule, are in memory: 0.8 MB, and 20 ms for each context.
    """
    paths = ssl.get_default_verify_paths()
    if paths.cafile and paths.capath and _has_all_of(Path(paths.capath), Path(paths.cafile)):
        context.load_verify_locations(capath=paths.capath)
    else:
        context.load_default_certs()


def state_of_system_authorities() -> list[tuple[int, int, int]]:
    """Changes when they are replaced, or one of them is added or taken away."""
    paths = ssl.get_default_verify_paths()
    state = []
    for path in (paths.cafile, paths.capath):
        with suppress(OSError, TypeError):
            found = os.stat(path)  # noqa: PTH116 - None where there is none
            state.append((found.st_ino, found.st_mtime_ns, found.st_size))
    return state


def _has_all_of(folder: Path, file: Path) -> bool:
    try:
        missing = _digests(file)
        names = os.listdir(folder)  # noqa: PTH208 - their paths would be twice as much in memory
    except OSError:
        return False
    for name in names:
        if missing and _LOOKED_UP.fullmatch(name):
            # One that leads nowhere has none.
            with suppress(OSError):
                missing -= _digests(folder / name)
    return not missing


def _digests(path: Path) -> set[bytes]:
    return {hashlib.sha256(b"".join(each[0].split())).digest() for each in _BLOCK.finditer(path.read_bytes())}
