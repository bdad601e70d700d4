"""Rows of the queue's table from the pages that have them, where the tree above those is broken.

A tree is lost with one of its inner pages, and its leaves stand in the file all the same, those too that were written
behind the damage. Leaves that the tree gave up stand there as well, with rows that were sent long ago: nothing is taken
from a page that the file says is free. The format is SQLite's ("Database File Format", 1.5 to 1.6 and 2.1).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

_PAGE_SIZE, _RESERVED = slice(16, 18), 20
_FIRST_TRUNK, _FREE_COUNT = slice(32, 36), slice(36, 40)
_HEADER_BYTES = 100
_LEAF_OF_TABLE = 0x0D
_KINDS_OF_LEAVES = frozenset((0x0A, _LEAF_OF_TABLE))
# Of a page: its kind, first free block, count of cells; then where each cell is.
_LEAF_HEAD_BYTES = 8
_COLUMNS = 7
_INTEGER_BYTES = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}
_FLOAT, _ZERO, _ONE, _FIRST_BLOB = 7, 8, 9, 12
_VARINT_BYTES_MAX = 9
# Of the page where a payload goes on.
_PAGE_NUMBER_BYTES = 4

# As `salvage` reads a row: text as bytes, and behind the payload what it is.
RawRow = tuple[Any, ...]


class PageError(ValueError):
    """What is there is not of the format."""


def bytes_in_pages(path: Path, page_bytes: int) -> int:
    """How much of the file is in what must be leaves of trees, if its pages have this size."""
    count = 0
    with path.open("rb") as file:
        while page := file.read(page_bytes):
            count += len(page) == page_bytes and _is_leaf(page)
    return count * page_bytes


def _is_leaf(page: bytes) -> bool:
    kind, _, cells, start = struct.unpack_from(">BHHH", page)
    if kind not in _KINDS_OF_LEAVES or not 0 < cells <= (len(page) - _LEAF_HEAD_BYTES) // 2:
        return False
    found = struct.unpack_from(f">{cells}H", page, _LEAF_HEAD_BYTES)
    last = max(found)
    # Cells fill a page from its end.
    if not _LEAF_HEAD_BYTES + 2 * cells <= start <= min(found) or last >= len(page):
        return False
    try:
        size, at = _varint(page, last)
        if kind == _LEAF_OF_TABLE:
            at = _varint(page, at)[1]
    except IndexError:
        return False
    local = _local_bytes(size, len(page), kind)
    return at + local + (_PAGE_NUMBER_BYTES if local < size else 0) == len(page)


def _local_bytes(size: int, usable: int, kind: int = _LEAF_OF_TABLE) -> int:
    """How much of a payload is in its leaf; the rest is in pages of its own."""
    most = usable - 35 if kind == _LEAF_OF_TABLE else (usable - 12) * 64 // 255 - 23
    if size <= most:
        return size
    least = (usable - 12) * 32 // 255 - 23
    local = least + (size - least) % (usable - 4)
    return local if local <= most else least


class RawPages:
    """The pages of a file without a log. Raises PageError where even their size is unknown."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with path.open("rb") as file:
            header = file.read(_HEADER_BYTES)
        size = int.from_bytes(header[_PAGE_SIZE], "big")
        self._page_bytes = 65536 if size == 1 else size
        if len(header) < _HEADER_BYTES or self._page_bytes < 512 or self._page_bytes & (self._page_bytes - 1):
            raise PageError("its pages have no size")
        self._usable_bytes = self._page_bytes - header[_RESERVED]
        self._count = path.stat().st_size // self._page_bytes
        self._trunk = int.from_bytes(header[_FIRST_TRUNK], "big")
        self._free_count = int.from_bytes(header[_FREE_COUNT], "big")

    def free(self) -> set[int]:
        """The numbers of the pages that the file says are free. Raises PageError where it cannot tell."""
        found: set[int] = set()
        with self._path.open("rb") as file:
            trunk = self._trunk
            while trunk:
                page = self._page(file, trunk)
                trunk_after, count = struct.unpack_from(">II", page)
                if count > self._usable_bytes // 4 - 2:
                    raise PageError("the list of free pages is broken")
                before = len(found)
                found.update((trunk, *struct.unpack_from(f">{count}I", page, 8)))
                if len(found) != before + count + 1:
                    raise PageError("the list of free pages names one twice")
                trunk = trunk_after
        if len(found) != self._free_count:
            raise PageError("the list of free pages is not whole")
        return found

    def rows(self, free: set[int]) -> Iterator[RawRow]:
        """Each row that can be read, of no page that is in `free`."""
        with self._path.open("rb") as file:
            for number in range(1, self._count + 1):
                if number not in free:
                    yield from self._rows_of(file, self._page(file, number), _HEADER_BYTES if number == 1 else 0)

    def _page(self, file: BinaryIO, number: int) -> bytes:
        if not 0 < number <= self._count:
            raise PageError(f"there is no page {number}")
        file.seek((number - 1) * self._page_bytes)
        return file.read(self._page_bytes)

    def _rows_of(self, file: BinaryIO, page: bytes, start: int) -> Iterator[RawRow]:
        if page[start] != _LEAF_OF_TABLE:
            return
        (count,) = struct.unpack_from(">H", page, start + 3)
        first = start + _LEAF_HEAD_BYTES
        if first + 2 * count > self._usable_bytes:
            return
        for at in struct.unpack_from(f">{count}H", page, first):
            with suppress(PageError, IndexError, struct.error):
                yield self._row(file, page, at)

    def _row(self, file: BinaryIO, page: bytes, at: int) -> RawRow:
        size, at = _varint(page, at)
        message_id, at = _varint(page, at)
        if size > self._count * self._page_bytes:
            raise PageError("a row is longer than the file")
        usable = self._usable_bytes
        local = _local_bytes(size, usable)
        if at + local > usable:
            raise PageError("a row ends behind its page")
        data = page[at : at + local]
        if local < size:
            data += self._overflow(file, int.from_bytes(page[at + local : at + local + 4], "big"), size - local)
        return message_id, *_columns(data)

    def _overflow(self, file: BinaryIO, number: int, size: int) -> bytes:
        data = b""
        while len(data) < size:
            page = self._page(file, number)
            number = int.from_bytes(page[:4], "big")
            data += page[4 : self._usable_bytes]
        return data[:size]


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """(value, where it ends)."""
    value = 0
    for index in range(_VARINT_BYTES_MAX):
        byte = data[at + index]
        if index == _VARINT_BYTES_MAX - 1:
            return _signed(value << 8 | byte), at + index + 1
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, at + index + 1
    raise AssertionError


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _columns(record: bytes) -> tuple[Any, ...]:
    """Topic, payload, its type, and the others, of a row of the queue. Raises PageError for what is none."""
    end, at = _varint(record, 0)
    kinds = []
    while at < end:
        kind, at = _varint(record, at)
        kinds.append(kind)
    # The id is the row's number, and NULL in its record.
    if len(kinds) != _COLUMNS or kinds[0] != 0 or at != end:
        raise PageError("it is no row of the queue")
    values = []
    for kind in kinds:
        value, at = _value(record, kind, at)
        values.append(value)
    if at != len(record):
        raise PageError("it is no row of the queue")
    topic, payload = (_as_bytes(value) for value in values[1:3])
    return topic, payload, "blob" if kinds[2] >= _FIRST_BLOB and kinds[2] % 2 == 0 else "text", *values[3:]


def _value(record: bytes, kind: int, at: int) -> tuple[Any, int]:
    if kind >= _FIRST_BLOB:
        end = at + (kind - _FIRST_BLOB) // 2
        return record[at:end], end
    if kind in _INTEGER_BYTES:
        end = at + _INTEGER_BYTES[kind]
        return int.from_bytes(record[at:end], "big", signed=True), end
    if kind == _FLOAT:
        return struct.unpack_from(">d", record, at)[0], at + 8
    if kind in (_ZERO, _ONE):
        return kind - _ZERO, at
    if kind:
        raise PageError("a column is of no type")
    return None, at


def _as_bytes(value: Any) -> bytes | None:
    return value if value is None or isinstance(value, bytes) else str(value).encode()
