"""Compact JSON of plain data.

Contract
  - A value is what it is by the rules of `fleet.values`, wherever it stands. A member of an Enum is its name.
  - Output is compact JSON in UTF-8. An int stays an int, a float stays a float that reads back bit for bit.
  - What JSON or a reader in another language cannot carry is refused with MessageError or PayloadTypeError, which
    give the path to the value, show it and say what to do.
  - No I/O, clock, log or shared mutable state: any thread may encode at any time.
"""

from collections.abc import Mapping
from enum import Enum

from glec_fast.errors import MessageError, PayloadTypeError
from glec_fast.fleet.values import (
    conversion, described, dtype_name, number_of, refusal, shown, text_refusal, type_refusal
)

cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.float cimport PyFloat_AS_DOUBLE
from cpython.long cimport PyLong_AsLongLongAndOverflow, PyLong_AsUnsignedLongLong
from cpython.mem cimport PyMem_Free, PyMem_Realloc
from cpython.object cimport PyObject
from libc.math cimport isfinite
from libc.string cimport memcpy

from json_text cimport ESCAPED_ROOM, NUMBER_ROOM, put, put_double, put_escaped, put_int64, put_uint64
from utf8 cimport take_encode_error, utf8_of

cdef enum:
    MAX_DEPTH = 32                 # containers inside each other
    MAX_PAYLOAD_BYTES = 268435455  # MQTT's largest remaining length
    FIRST_BYTES = 256              # what most texts have room in
    TEXT_CHUNK_BYTES = 4096        # a long string reserves its worst case by parts


# In functions of their own, so that what calls them carries no code for a refusal.

cdef int refuse(str field, object value, str advice) except -1:
    raise refusal(field, value, advice)


cdef int refuse_type(str field, object value, str advice) except -1:
    raise type_refusal(field, value, advice)


cdef int refuse_text(str field, object text) except -1:
    raise text_refusal(field, text)


cdef object plain_name(object value):
    """An exact str for an enum's member or a subclass of str; anything else as it is."""
    name = value.name if isinstance(value, Enum) else value
    return str.__str__(name) if isinstance(name, str) else value


cdef struct Place:
    # Where in the data the encoder is; a chain of frames on the C stack, read only when an error is worded.
    const Place* outer  # NULL at the root; the caller's, alive until it returns
    PyObject* key       # the root's name or a dict's key, borrowed from the caller; NULL in a list
    Py_ssize_t index    # in a list
    int depth


cdef str path(const Place* place):
    if place.outer == NULL:
        return <str>place.key
    if place.key == NULL:
        return f"{path(place.outer)}[{place.index}]"
    return f"{path(place.outer)}[{shown(<object>place.key)}]"


@cython.internal
@cython.final
@cython.freelist(4)
@cython.auto_pickle(False)
cdef class Buffer:
    """Growing memory for one JSON text."""

    # `first`, or owned from `grow` until __dealloc__.
    cdef char* data
    cdef Py_ssize_t size
    cdef Py_ssize_t capacity
    cdef char[FIRST_BYTES] first

    def __cinit__(self):
        self.capacity = FIRST_BYTES
        self.data = self.first

    def __dealloc__(self):
        if self.data != self.first:
            PyMem_Free(self.data)

    cdef int check_size(self) except -1:
        if self.size > MAX_PAYLOAD_BYTES:
            raise MessageError(
                f"the payload is longer than {MAX_PAYLOAD_BYTES} bytes, the most MQTT can carry: split it"
            )
        return 0

    cdef int grow(self, Py_ssize_t more) except -1:
        cdef Py_ssize_t capacity
        cdef char* data
        # Checked first, so that twice the capacity fits 32 bits.
        self.check_size()
        capacity = max(2 * self.capacity, self.size + more)
        data = <char*>PyMem_Realloc(NULL if self.data == self.first else self.data, capacity)
        if data == NULL:
            raise MemoryError
        if self.data == self.first:
            memcpy(data, self.first, self.size)
        self.data = data
        self.capacity = capacity
        return 0

    cdef inline char* reserve(self, Py_ssize_t more) except NULL:
        """Where to write; `more` bytes are there."""
        if self.capacity - self.size < more:
            self.grow(more)
        return self.data + self.size

    cdef inline void commit(self, const char* end) noexcept:
        self.size = end - self.data

    cdef inline int add_byte(self, char byte) except -1:
        self.reserve(1)[0] = byte
        self.size += 1
        return 0

    cdef int add_text(self, object text, const Place* place) except -1:
        cdef Py_ssize_t size, part
        cdef const char* utf8 = utf8_of(text, &size)  # the string's own
        cdef char* p
        if utf8 == NULL:
            take_encode_error()
            return refuse_text(path(place), text)
        part = min(size, TEXT_CHUNK_BYTES)
        p = self.reserve(ESCAPED_ROOM * part + 2)
        p[0] = c'"'
        p = put_escaped(p + 1, utf8, part)
        while part < size:
            self.commit(p)
            utf8 += part
            size -= part
            part = min(size, TEXT_CHUNK_BYTES)
            p = put_escaped(self.reserve(ESCAPED_ROOM * part + 1), utf8, part)
        p[0] = c'"'
        self.commit(p + 1)
        return 0

    cdef int add_int(self, object value, const Place* place) except -1:
        cdef int overflow
        cdef long long number = PyLong_AsLongLongAndOverflow(value, &overflow)
        cdef unsigned long long large
        cdef char* p = self.reserve(NUMBER_ROOM)
        if not overflow:
            self.commit(put_int64(p, number))
            return 0
        try:
            large = PyLong_AsUnsignedLongLong(value)
        except OverflowError:
            pass
        else:
            self.commit(put_uint64(p, large))
            return 0
        return refuse(path(place), value, "give an int from -2**63 to 2**64 - 1, or send it as a str")

    cdef int add_float(self, object value, object given, const Place* place) except -1:
        cdef double number = PyFloat_AS_DOUBLE(value)
        if not isfinite(number):
            return refuse(path(place), given, "JSON has no such number; send None or leave it out")
        self.commit(put_double(self.reserve(NUMBER_ROOM), number))
        return 0

    cdef int close(self, char bracket) except -1:
        """End a container: each item left a comma behind."""
        if self.data[self.size - 1] == c',':
            self.size -= 1
        return self.add_byte(bracket)

    cdef int add_dict(self, dict items, const Place* inner) except -1:
        cdef Place at = inner[0]
        cdef Py_ssize_t start = self.size
        self.add_byte(c'{')
        for key, item in items.items():
            if type(key) is not str:
                self.size = start
                return self.add_dict(self.named(items, inner), inner)
            at.key = <PyObject*>key
            self.add_text(key, &at)
            self.add_byte(c':')
            self.add(item, &at)
            self.add_byte(c',')
        return self.close(c'}')

    cdef dict named(self, dict items, const Place* inner):
        """The same with an exact str for each key."""
        cdef dict plain = {}
        for key, item in items.items():
            name = plain_name(key)
            if not isinstance(name, str):
                raise PayloadTypeError(
                    f"{path(inner.outer)} has the key {described(key)}: give a str"
                )
            if name in plain:
                raise MessageError(
                    f"{path(inner.outer)} has the key {shown(name)} twice, once as {shown(key)}: keep one"
                )
            plain[name] = item
        return plain

    cdef int add_items(self, object items, const Place* inner) except -1:
        cdef Place at = inner[0]
        self.add_byte(c'[')
        for item in items:
            self.add(item, &at)
            self.add_byte(c',')
            at.index += 1
        return self.close(c']')

    cdef int add_container(self, object value, const Place* place) except -1:
        cdef Place inner
        inner.outer = place
        inner.key = NULL
        inner.index = 0
        inner.depth = place.depth + 1
        if inner.depth > MAX_DEPTH:
            return refuse(
                path(place), value, f"containers may be nested {MAX_DEPTH} deep; flatten it, or break the cycle"
            )
        if type(value) is dict:
            return self.add_dict(<dict>value, &inner)
        if isinstance(value, (list, tuple)):
            return self.add_items(value, &inner)
        return self.add_dict(dict(value), &inner)

    cdef int add_bool(self, bint value) except -1:
        if value:
            self.commit(put(self.reserve(4), b"true"))
        else:
            self.commit(put(self.reserve(5), b"false"))
        return 0

    cdef int add(self, object value, const Place* place) except -1:
        if type(value) is str:
            return self.add_text(value, place)
        if type(value) is float:
            return self.add_float(value, value, place)
        if value is True or value is False:
            return self.add_bool(value is True)
        if type(value) is int:
            return self.add_int(value, place)
        if value is None:
            self.commit(put(self.reserve(4), b"null"))
            return 0
        if type(value) is dict or type(value) is list:
            return self.add_container(value, place)
        return self.add_other(value, place)

    cdef int add_other(self, object value, const Place* place) except -1:
        """What is no plain data itself, but stands for some."""
        plain = plain_name(value)
        if type(plain) is str:
            return self.add_text(plain, place)
        if isinstance(value, (list, tuple, Mapping)):
            return self.add_container(value, place)
        plain = number_of(value)
        if type(plain) is int:
            return self.add_int(plain, place)
        if type(plain) is float:
            return self.add_float(plain, value, place)
        if dtype_name(value) == "bool" and not getattr(value, "shape", ()):
            return self.add_bool(bool(value))
        return refuse_type(
            path(place), value, f"give a str, int, float, bool, None, dict, list or tuple{conversion(value)}"
        )


cdef bytes encoded_data(object value, str name):
    cdef Buffer buffer = Buffer.__new__(Buffer)
    cdef Place root
    root.outer = NULL
    root.key = <PyObject*>name
    root.index = 0
    root.depth = 0
    buffer.add(value, &root)
    buffer.check_size()
    return PyBytes_FromStringAndSize(buffer.data, buffer.size)


def encode_json(obj):
    """Compact JSON bytes of plain data; MessageError or PayloadTypeError for what JSON cannot carry."""
    return encoded_data(obj, "the payload")
