"""Figures of the gateway for its status message, read from the system."""

from __future__ import annotations

import os
import resource
from pathlib import Path

_MIB = 1 << 20
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_STATM = Path("/proc/self/statm")


def memory_usage_mb() -> int:
    """Resident memory of this process in MiB; its peak where the system has no /proc."""
    try:
        with _STATM.open("rb", buffering=0) as file:
            return int(file.read().split()[1]) * _PAGE_BYTES // _MIB
    except FileNotFoundError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def available_storage_mb(path: str | os.PathLike[str]) -> int:
    """MiB that an unprivileged process may still write on the file system of `path`."""
    figures = os.statvfs(Path(path).absolute().parent)
    return figures.f_bavail * figures.f_frsize // _MIB
