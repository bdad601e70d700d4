"""The head of SQLite's write-ahead log, by which it shows whether the log is still the one that was written.

SQLite reads it when it opens the log. Whoever writes over the log of an open file goes unnoticed until then: what is
committed meanwhile stands behind bytes of which the next opening can make nothing.
"""

from __future__ import annotations

import os
import struct

# Magic number, version, page size, count of checkpoints, two salts; behind them the checksum of these.
_HEAD = struct.Struct(">6I2I")
_COUNTED = 24
_COUNT = slice(12, 16)
# The last bit says in which byte order checksums are made.
_MAGIC = 0x377F0682
_WORD = 0xFFFFFFFF


def read_log_head(name: str) -> bytes:
    """Empty, or of zero bytes, where nothing was written to the log yet. Raises OSError."""
    # Not one of SQLite's locks is on this file.
    descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.pread(descriptor, _HEAD.size, 0)
    finally:
        os.close(descriptor)


def follows(head: bytes, before: bytes) -> bool:
    """True where SQLite may have written `head` over `before`, as the log starts over at its front."""
    if len(head) < _HEAD.size or not _is_sound(head):
        return not head.strip(b"\0") and not before.strip(b"\0")
    return not before.strip(b"\0") or head[_COUNT] > before[_COUNT]


def _is_sound(head: bytes) -> bool:
    magic, *_, first, second = _HEAD.unpack(head)
    if magic & ~1 != _MAGIC:
        return False
    return checksum((0, 0), head[:_COUNTED], is_big=bool(magic & 1)) == (first, second)


def checksum(before: tuple[int, int], data: bytes, *, is_big: bool) -> tuple[int, int]:
    """That of the log ("WAL File Format", 4.2), which goes on from the one `before`."""
    words = struct.unpack(f"{'>' if is_big else '<'}{len(data) // 4}I", data)
    first, second = before
    for index in range(0, len(words), 2):
        first = (first + words[index] + second) & _WORD
        second = (second + words[index + 1] + first) & _WORD
    return first, second
