"""Figures of the gateway for its status message, read from the system."""

from __future__ import annotations

import os
import resource

_MIB = 1 << 20
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_STATM = "/proc/self/statm"
# More than its seven numbers ever take.
_STATM_BYTES = 256
_IO = "/proc/self/io"
_IO_BYTES = 1024


def memory_usage_mb() -> int:
    """Resident memory of this process in MiB; its peak where that cannot be read: no /proc, no descriptor left."""
    try:
        # Asked for at each connection: a file object costs as much again as the figure.
        descriptor = os.open(_STATM, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    try:
        return int(os.read(descriptor, _STATM_BYTES).split()[1]) * _PAGE_BYTES // _MIB
    finally:
        os.close(descriptor)


def disk_written_bytes() -> int:
    """What this process has had the kernel write to disks; 0 where that does not say."""
    try:
        descriptor = os.open(_IO, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return 0
    try:
        for line in os.read(descriptor, _IO_BYTES).splitlines():
            if line.startswith(b"write_bytes:"):
                return int(line.split()[1])
        return 0
    finally:
        os.close(descriptor)


def available_storage_mb(path: str | os.PathLike[str]) -> int:
    """MiB that an unprivileged process may still write on the file system of `path`; 0 where that is gone."""
    try:
        figures = os.statvfs(path)
    except OSError:
        return 0
    return figures.f_bavail * figures.f_frsize // _MIB
