"""The log of in-flight images: its format, and what writes it. What each does, for its callers, is in the stub.

Each QoS 2 message of a flush waits for it, so all but the two calls to the system is C.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.buffer cimport PyBUF_READ
from cpython.memoryview cimport PyMemoryView_FromMemory
from libc.stdint cimport uint64_t
from libc.stdio cimport snprintf
from libc.string cimport memcmp, memcpy
from posix.unistd cimport readlink

import errno
import os
from binascii import crc32

cdef enum:
    # CRC-32 of all behind it; generation, number, bytes of the image, which follows. Numbers are big-endian.
    CRC_BYTES = 4
    GENERATION_SIZE = 8
    NUMBER_AT = CRC_BYTES + GENERATION_SIZE
    SIZE_AT = NUMBER_AT + 8
    HEAD_BYTES = SIZE_AT + 4
    SLOT_SIZE = 16384
    # Longer than this is compared no further: of a path that is longer, its end alone could change unseen.
    PLACE_MAX = 4096
    LINK_MAX = 32

SLOT_BYTES = SLOT_SIZE
SLOTS = 2
GENERATION_BYTES = GENERATION_SIZE
IMAGE_BYTES_MAX = SLOT_SIZE - HEAD_BYTES


cdef void put(unsigned char* to, uint64_t value, int size) noexcept nogil:
    cdef int index
    for index in range(size - 1, -1, -1):
        to[index] = value & 0xFF
        value >>= 8


cdef uint64_t get(const unsigned char* start, int size) noexcept nogil:
    cdef uint64_t value = 0
    cdef int index
    for index in range(size):
        value = value << 8 | start[index]
    return value


def from_slot(bytes slot not None):
    cdef const unsigned char* start = <const unsigned char*>PyBytes_AS_STRING(slot)
    cdef uint64_t size
    if PyBytes_GET_SIZE(slot) < HEAD_BYTES:
        return None
    size = get(start + SIZE_AT, 4)
    if size > <uint64_t>(PyBytes_GET_SIZE(slot) - HEAD_BYTES):
        return None
    if get(start, CRC_BYTES) != crc32(slot[CRC_BYTES:HEAD_BYTES + size]):
        return None
    return slot[CRC_BYTES:NUMBER_AT], get(start + NUMBER_AT, 8), slot[HEAD_BYTES:HEAD_BYTES + size]


cdef class ImageLog:
    cdef readonly int descriptor
    cdef bytes generation
    cdef int slot
    # The kernel's name of the file: another one once it was moved, replaced or deleted.
    cdef char[LINK_MAX] link
    cdef char[PLACE_MAX] place
    cdef ssize_t place_bytes

    def __init__(self, int descriptor, bytes generation not None):
        if PyBytes_GET_SIZE(generation) != GENERATION_SIZE:
            raise ValueError(f"a generation has {GENERATION_SIZE} bytes")
        self.descriptor, self.generation = descriptor, generation
        snprintf(self.link, LINK_MAX, "/proc/self/fd/%d", descriptor)
        self.place_bytes = readlink(self.link, self.place, PLACE_MAX)

    def has_its_name(self) -> bool:
        # Not stat: where a file's times were asked for, the next write changes them, and its sync waits for the
        # journal.
        cdef char[PLACE_MAX] found
        cdef ssize_t size = readlink(self.link, found, PLACE_MAX)
        return size == self.place_bytes and (size < 0 or memcmp(found, self.place, size) == 0)

    def write(self, uint64_t number, bytes image not None):
        cdef Py_ssize_t size = PyBytes_GET_SIZE(image)
        cdef bytes record
        cdef unsigned char* start
        if size > SLOT_SIZE - HEAD_BYTES:
            raise ValueError("the image is too large for the log")
        record = PyBytes_FromStringAndSize(NULL, HEAD_BYTES + size)
        start = <unsigned char*>PyBytes_AS_STRING(record)
        memcpy(start + CRC_BYTES, PyBytes_AS_STRING(self.generation), GENERATION_SIZE)
        put(start + NUMBER_AT, number, 8)
        put(start + SIZE_AT, size, 4)
        memcpy(start + HEAD_BYTES, PyBytes_AS_STRING(image), size)
        put(start, crc32(PyMemoryView_FromMemory(
            <char*>start + CRC_BYTES, HEAD_BYTES + size - CRC_BYTES, PyBUF_READ)), CRC_BYTES)
        if os.pwrite(self.descriptor, record, self.slot * SLOT_SIZE) != HEAD_BYTES + size:
            raise OSError(errno.EIO, "a part was written")
        os.fdatasync(self.descriptor)
        self.slot = (self.slot + 1) % SLOTS
