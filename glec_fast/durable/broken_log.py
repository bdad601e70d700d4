"""What a write-ahead log has behind a frame that is broken: SQLite's own recovery stops there, and forgets the rest.

Each frame is a page, and its checksum goes on from that of the frame before; so the frames behind a broken one can be
told to be whole all the same, but for the first ("WAL File Format", 4.1 to 4.3 of "Database File Format"). Frames of an
earlier use of the file have other salts.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from glec_fast.durable.log_index import checksum
from glec_fast.durable.salvage import copy

_HEADER = struct.Struct(">8I")
_FRAME = struct.Struct(">6I")
_MAGIC, _WORDS_ARE_BIG = 0x377F0682, 1
_SUMMED_BYTES = 8
_PAGE_MAX_BYTES = 65_536
# Of a database's header: its count of pages, where that is as new as the change counter says.
_CHANGES, _PAGES, _PAGES_VALID_FOR = slice(24, 28), slice(28, 32), slice(92, 96)
_HEADER_BYTES = 100


class _Frame(NamedTuple):
    """page: its number. pages: of the file, in the last frame of a transaction, else 0."""

    page: int
    pages: int
    data: bytes
    is_whole: bool


def with_whole_frames(path: Path, target: Path) -> bool:
    """Have `target` be a copy of `path` with all whole frames of its log in their places.

    False, and no copy, where SQLite sees as much. Raises OSError.
    """
    log = path.with_name(path.name + "-wal")
    try:
        with log.open("rb") as file:
            header = file.read(_HEADER.size)
        if len(header) < _HEADER.size:
            return False
    except FileNotFoundError:
        return False
    magic, _, page_bytes, _, *salts_and_sum = _HEADER.unpack(header)
    if magic & ~_WORDS_ARE_BIG != _MAGIC or not 512 <= page_bytes <= _PAGE_MAX_BYTES:
        return False
    pages: dict[int, bytes] = {}
    begun: dict[int, bytes] = {}
    count, is_broken, goes_on = 0, False, False
    for frame in _frames(log, page_bytes, salts_and_sum, bool(magic & _WORDS_ARE_BIG)):
        if not frame.is_whole:
            is_broken = True
            continue
        begun[frame.page] = frame.data
        if frame.pages:
            goes_on = goes_on or is_broken
            pages |= begun
            begun, count = {}, frame.pages
    if not goes_on:
        return False
    copy(path, target)
    with target.open("r+b") as file:
        for number, data in pages.items():
            file.seek((number - 1) * page_bytes)
            file.write(data)
        file.truncate(count * page_bytes)
        # Also where its own last frame is lost.
        file.seek(0)
        first = bytearray(file.read(_HEADER_BYTES))
        if len(first) == _HEADER_BYTES:
            first[_PAGES], first[_PAGES_VALID_FOR] = count.to_bytes(4, "big"), first[_CHANGES]
            file.seek(0)
            file.write(first)
    return True


def _frames(log: Path, page_bytes: int, salts_and_sum: list[int], is_big: bool) -> Iterator[_Frame]:
    """All of it, those that are broken too."""
    salts, before = salts_and_sum[:2], (salts_and_sum[2], salts_and_sum[3])
    known: tuple[int, int] | None = before
    with log.open("rb") as file:
        file.seek(_HEADER.size)
        while len(head := file.read(_FRAME.size)) == _FRAME.size and len(data := file.read(page_bytes)) == page_bytes:
            page, pages, *rest = _FRAME.unpack(head)
            if rest[:2] != salts or not page:
                known = None
                yield _Frame(page, pages, data, False)
                continue
            stored = rest[2], rest[3]
            summed = head[:_SUMMED_BYTES] + data
            is_whole = known is None or checksum(known, summed, is_big=is_big) == stored
            known = stored
            yield _Frame(page, pages, data, is_whole)
