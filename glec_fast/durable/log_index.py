"""SQLite's index of the write-ahead log, which says of the log what it has, whichever program wrote to it last.

SQLite reads the log's head when it opens the log. Whoever writes over the log of an open file goes unnoticed until
then: what is committed meanwhile stands behind bytes of which the next opening can make nothing.
"""

from __future__ import annotations

import os
import struct

# "WAL-Index File Format", 2.1: size of a page, frames in use, the log's salts.
_INDEX = struct.Struct("=14xHI12x8s8x")
# Magic number, version, page size, count of checkpoints, two salts; behind them the checksum of these.
_HEAD = struct.Struct(">6I2I")
_SALTS = slice(16, 24)
_COUNTED = 24
# The last bit says in which byte order checksums are made.
_MAGIC = 0x377F0682
_WORD = 0xFFFFFFFF
_FRAME_HEAD_BYTES = 24
# SQLite has so much of it in its memory at a time.
_INDEX_BYTES_MIN = 32 * 1024


class LogIndex:
    """Looks into a log that is open and its index. Raises OSError.

    Closing any descriptor of it drops SQLite's locks in this process: SQLite has to let go of it before `close`.
    """

    def __init__(self, name: str, log_name: str) -> None:
        self._descriptor = os.open(name, os.O_RDWR | os.O_CLOEXEC)
        try:
            # Not one of SQLite's locks is on this file.
            self._log = os.open(log_name, os.O_RDONLY | os.O_CLOEXEC)
        except BaseException:
            os.close(self._descriptor)
            raise
        self._sound_head = b""

    def explains(self) -> bool:
        """False where somebody who is not SQLite has cut the log, or written over its beginning."""
        said = self._read()
        page_bytes, frames, salts = _INDEX.unpack(said)
        # With none in use SQLite begins it anew.
        if not frames:
            return True
        # 65,536 does not fit.
        frame_bytes = _FRAME_HEAD_BYTES + (page_bytes & ~1 | (page_bytes & 1) << 16)
        # Another program may be at it.
        return self._is_whole(_HEAD.size + frames * frame_bytes, salts) or self._read() != said

    def _read(self) -> bytes:
        said = os.pread(self._descriptor, _INDEX.size, 0)
        if len(said) < _INDEX.size:
            # Cut: to look at it would end the process. Of zero bytes SQLite makes it anew, in less room than the log's.
            os.ftruncate(self._descriptor, max(_INDEX_BYTES_MIN, os.fstat(self._log).st_size))
            return bytes(_INDEX.size)
        return said

    def _is_whole(self, bytes_min: int, salts: bytes) -> bool:
        # As of now: the log that the index tells of may be longer than it was before.
        size_bytes = os.fstat(self._log).st_size
        head = os.pread(self._log, _HEAD.size, 0)
        if size_bytes < bytes_min or head[_SALTS] != salts or (head != self._sound_head and not _is_sound(head)):
            return False
        self._sound_head = head
        return True

    def close(self) -> None:
        """Idempotent."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)
            os.close(self._log)


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
