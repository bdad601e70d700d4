"""The latest in-flight image on disk, and which of two places has it: the queue file's row, or a log beside the file.

QoS 2 has an image on disk before each PUBREL leaves. As a transaction that is a statement and two pages; in the log it
is one page and one sync. The log has two slots, written in turn, so that a write which a power cut tears leaves the one
before it. Images are numbered over both places, and the highest number counts. A generation, drawn anew by each
opening, says whether what is in the log goes on from the row at all.
"""

from __future__ import annotations

import logging
import os
import struct
from binascii import crc32
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from glec_fast.durable._image_log import GENERATION_BYTES, IMAGE_BYTES_MAX, SLOT_BYTES, SLOTS, ImageLog, from_slot
from glec_fast.durable._table import QueueTable
from glec_fast.durable.lock import sync_folder
from glec_fast.durable.state_rows import load_session, save_image, save_session
from glec_fast.runtime.summing_log import SummingLog

# Written by so much when the file is made: what is written in one piece the page cache keeps in one piece, and the disk
# would get all of it with each image.
_PAGE_BYTES = 4096
# Of a row: format, generation, number; the image follows. An image without them has another first byte.
_ROW_HEAD = struct.Struct(f">B{GENERATION_BYTES}sQ")
_ROW_FORMAT = 2
# The end of a row, behind an image, with the CRC-32 of all before it. It has the form of an entry that names a message
# as finished, of an id that none has: versions that know nothing of it make nothing of it.
_ROW_CHECK = struct.Struct(">QHB")
_CHECK_ID = 1 << 62
_CHECK_REST = (1, 3)


class Numbered(NamedTuple):
    """An image, and what says whether it is the latest."""

    generation: bytes
    number: int
    image: bytes


def log_of(queue_path: Path) -> Path:
    """The log's path."""
    return queue_path.with_name(queue_path.name + "-qos2")


class UnreadableImageError(ValueError):
    """What is in flight is not known: the record of it was damaged."""


def from_row(stored: bytes) -> Numbered:
    """What the row of `glec_session` holds. Raises UnreadableImageError."""
    if stored[:1] != bytes([_ROW_FORMAT]) or len(stored) < _ROW_HEAD.size:
        return Numbered(b"", 0, stored)
    _, generation, number = _ROW_HEAD.unpack_from(stored)
    image = stored[_ROW_HEAD.size :]
    if len(image) > _ROW_CHECK.size:
        check, *rest = _ROW_CHECK.unpack(image[-_ROW_CHECK.size :])
        if tuple(rest) == _CHECK_REST and check >> 32 == _CHECK_ID >> 32:
            if check - _CHECK_ID != crc32(stored[: -_ROW_CHECK.size]):
                raise UnreadableImageError("its checksum is wrong")
            image = image[: -_ROW_CHECK.size]
    return Numbered(generation, number, image)


def _as_row(image: Numbered) -> bytes:
    stored = _ROW_HEAD.pack(_ROW_FORMAT, image.generation, image.number) + image.image
    return stored + _ROW_CHECK.pack(_CHECK_ID + crc32(stored), *_CHECK_REST) if image.image else stored


def latest(queue_path: Path, row: Numbered) -> Numbered:
    """The row's image, or the one in the log that came after it. Raises OSError where the log cannot be read."""
    if not row.generation:
        return row
    try:
        descriptor = os.open(log_of(queue_path), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return row
    try:
        slots = [os.pread(descriptor, SLOT_BYTES, slot * SLOT_BYTES) for slot in range(SLOTS)]
    finally:
        os.close(descriptor)
    found = [Numbered(*each) for each in map(from_slot, slots) if each is not None and each[0] == row.generation]
    return max([row, *found], key=lambda each: each.number)


class SavedImage:
    """Belongs to whoever holds the writer's lock. A transaction calls `begin` first, and `on_committed` last."""

    def __init__(self, queue_path: Path, log: SummingLog) -> None:
        self._told = log
        # (client id, broker) on disk; of nobody yet in a new file.
        self.identity = ("", "")
        self._queue_path = queue_path
        self._log_name = str(log_of(queue_path))
        self._in_row = b""
        # What the transaction under way writes to the row.
        self._to_row: tuple[tuple[str, str], bytes] | None = None
        self._generation = os.urandom(GENERATION_BYTES)
        self._number = 0
        self._log: ImageLog | None = None
        # The row has this generation: what is written to the log goes on from it.
        self._is_log_valid = False
        # The row is older than what the log has, or may have, or nobody knows what is in it.
        self._is_log_ahead = True

    def load(self, table: QueueTable) -> bytes:
        """The image of the file's last use, empty in a new file; `identity` says whose it is. Within a transaction.

        Raises UnreadableImageError where it cannot be told which is the latest; see `forget`.
        """
        try:
            known = load_session(table)
            if known is None:
                self._is_log_ahead = False
                return b""
            row = from_row(known[2])
            found = latest(self._queue_path, row)
        except (ValueError, OSError) as error:
            raise UnreadableImageError(str(error)) from error
        self.identity, self._in_row, self._is_log_ahead = known[:2], row.image, found is not row
        # From here on the log may be made anew, or the file be moved without it.
        self.write(table, self.identity, found.image)
        return found.image

    def forget(self, table: QueueTable) -> None:
        """Write that nothing is in flight, and nobody's the session; the log counts no more. Within a transaction."""
        self._number += 1
        save_session(table, "", "", _as_row(Numbered(self._generation, self._number, b"")))
        self._to_row = ("", ""), b""

    def open_log(self) -> None:
        """Make the log, from now on for images that come alone. Where there can be none, they go to the row."""
        try:
            self._log = ImageLog(_make(log_of(self._queue_path)), self._generation)
        except OSError as error:
            self._note_slower(f"{self._log_name} cannot be made: {error}")
            # What there is of it may take the disk's last space.
            self._discard()

    def on_file_changed(self) -> None:
        """The queue file is another one, or made anew: the row must be written, and the log goes on from that."""
        self._is_log_ahead, self._is_log_valid = True, False
        if self._log is not None:
            self._close_log()
            self.open_log()

    def save(self, table: QueueTable, image: bytes) -> None:
        """Have an image on disk by itself, of the same client id and broker. Raises apsw.Error, OSError."""
        if self._log is not None and not self._log.has_its_name():
            text = f"{self._log_name} is gone: it is made anew"
            self._told.note(logging.ERROR, "losses of the log of images", "its name", text=text, later=True)
            self.on_file_changed()
        if self._log is None or not self._is_log_valid or len(image) > IMAGE_BYTES_MAX:
            self.begin()
            self._write_row(table, self.identity, image)
            self.on_committed()
            return
        self._number += 1
        # Whatever comes of it.
        self._is_log_ahead = True
        try:
            self._log.write(self._number, image)
        except OSError as error:
            # What a failed sync leaves in the page cache is no longer what the disk has.
            self._note_slower(f"{self._log_name} failed: {error}")
            self._close_log()
            raise

    def _note_slower(self, cause: str) -> None:
        # The reader's lock may be held.
        text = f"QoS 2 goes on more slowly, as {cause}"
        self._told.note(logging.WARNING, "troubles with the log of images", cause, text=text, later=True)

    def begin(self) -> None:
        """A transaction begins; of the one before, if it failed, nothing is left."""
        self._to_row = None

    def write(self, table: QueueTable, identity: tuple[str, str], image: bytes) -> None:
        """Write an image within a transaction, unless the row has it."""
        if identity != self.identity or image != self._in_row or self._is_log_ahead:
            self._write_row(table, identity, image)

    def _write_row(self, table: QueueTable, identity: tuple[str, str], image: bytes) -> None:
        # Also where it comes to nothing: a number is given once.
        self._number += 1
        # Until it is known what comes of it.
        self._is_log_ahead = True
        stored = _as_row(Numbered(self._generation, self._number, image))
        if self._is_log_valid and identity == self.identity:
            save_image(table, stored)
        elif any(identity):
            save_session(table, *identity, stored)
        self._to_row = identity, image

    def on_committed(self) -> None:
        """The transaction is on disk."""
        if self._to_row is not None:
            self.identity, self._in_row = self._to_row
            self._is_log_ahead = False
            # Until there is a name there is no row.
            self._is_log_valid = any(self.identity)

    def is_written(self, table: QueueTable) -> bool:
        """True where the row has the image of the last transaction that wrote one, whatever was said of it."""
        known = load_session(table)
        return self._to_row is not None and known is not None and from_row(known[2]).number == self._number

    def close(self) -> None:
        """Let go of the log, which goes where the row has the image; else it is the next opening's."""
        self._close_log()
        self._discard()

    def let_go_in_child(self) -> None:
        """In a forked child: the log is the parent's."""
        self._close_log()

    def _discard(self) -> None:
        if not self._is_log_ahead:
            # Where it stays all the same, its numbers are lower than the row's.
            with suppress(OSError):
                log_of(self._queue_path).unlink(missing_ok=True)

    def _close_log(self) -> None:
        log, self._log = self._log, None
        if log is not None:
            # What counts of it was synchronised before.
            with suppress(OSError):
                os.close(log.descriptor)


def _make(path: Path) -> int:
    """A descriptor of the log at its full size, all of it and its name on disk: a write to it needs no more room.

    What is in it counts no more, see `SavedImage.load`.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if os.fstat(descriptor).st_size != SLOTS * SLOT_BYTES:
            for offset in range(0, SLOTS * SLOT_BYTES, _PAGE_BYTES):
                os.pwrite(descriptor, bytes(_PAGE_BYTES), offset)
            os.fsync(descriptor)
        sync_folder(path.parent)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
