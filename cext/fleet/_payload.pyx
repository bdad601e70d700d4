"""The four fleet messages and a JSON encoder for plain data.

Contract
  - A message is checked when it is built and cannot change afterwards: numbers and strings are kept as exact
    Python int, float and str, `details` as the JSON bytes it becomes. What was built always encodes.
  - One rule for a value, wherever it stands, in a message or in plain data. A number is what has `__index__` or
    `__float__` and is neither text, a bool, a time, complex nor an array. An Enum's member is its name; where a number
    is asked for, its value.
  - Output is compact JSON in UTF-8, fields in the order of the specification ("Example Payloads"). An int stays an
    int, a float stays a float that reads back bit for bit.
  - What JSON or a reader in another language cannot carry is refused with MessageError or PayloadTypeError, which
    name the field, show the value and say what to do.
  - No I/O, clock, log or shared mutable state: any thread may encode any message at any time.
"""

import json
import reprlib
import struct
from collections.abc import Iterable, Mapping
from enum import Enum
from math import inf, nan
from operator import index

from glec_fast.errors import MessageError, PayloadTypeError

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_Clear, PyErr_ExceptionMatches
from cpython.float cimport PyFloat_AS_DOUBLE, PyFloat_FromDouble
from cpython.long cimport (
    PyLong_AsLongLongAndOverflow,
    PyLong_AsUnsignedLongLong,
)
from cpython.mem cimport PyMem_Free, PyMem_Malloc, PyMem_Realloc
from cpython.object cimport PyObject
from libc.math cimport isfinite
from libc.stdint cimport int64_t
from libc.string cimport memcpy

from json_text cimport ESCAPED_ROOM, NUMBER_ROOM, put, put_double, put_escaped, put_int64, put_uint64


cdef extern from *:
    """
    /* An ASCII string is its own UTF-8: most need no call. NULL with an exception set on failure. */
    static inline const char *glec_utf8(PyObject *text, Py_ssize_t *size) {
        if (PyUnicode_IS_COMPACT_ASCII(text)) {
            *size = PyUnicode_GET_LENGTH(text);
            return (const char *)PyUnicode_DATA(text);
        }
        return PyUnicode_AsUTF8AndSize(text, size);
    }
    """
    # Checked by hand, so that the common case carries no try block.
    const char* utf8_of "glec_utf8"(object text, Py_ssize_t* size) noexcept


cdef enum:
    MAX_DEPTH = 32                 # containers inside each other
    MAX_NAME_BYTES = 65535         # an MQTT string
    MAX_PAYLOAD_BYTES = 268435455  # MQTT's largest remaining length
    TEXT_CHUNK_BYTES = 4096        # a long string reserves its worst case by parts
    STACK_ROOM = 1024
    # Status, the longest: 190 bytes of literals and eight numbers of NUMBER_ROOM, without its strings.
    FIXED_ROOM = 512

cdef int64_t YEAR_2000_MS = 946684800000
cdef int64_t YEAR_2100_MS = 4102444800000


# ----------------------------------------------------------------------------------------------------------- errors

cdef str shown(object value):
    """On one line, and not longer than a line."""
    try:
        return " ".join(reprlib.repr(value).split())
    except Exception:  # a repr that fails (an int of 5,000 digits) must not hide the refusal
        return f"<{type(value).__name__}>"


cdef str described(object value):
    """The value and its type, such as `5, an int`."""
    name = type(value).__name__
    return f"{shown(value)}, {'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


cdef int refuse(str field, object value, str advice) except -1:
    raise MessageError(f"{field} is {described(value)}: {advice}")


# The default of what has none: a constructor without it would fail in Cython's code, which names no field.
cdef object MISSING = object()


cdef int refuse_type(str field, object value, str advice) except -1:
    if value is MISSING:
        raise PayloadTypeError(f"{field} is missing: {advice}")
    raise PayloadTypeError(f"{field} is {described(value)}: {advice}")


cdef int take_encode_error() except -1:
    """After utf8_of failed, and before any Python code runs, which must not find an exception set."""
    if not PyErr_ExceptionMatches(UnicodeEncodeError):
        return -1
    PyErr_Clear()
    return 0


cdef int refuse_text(str field, object text) except -1:
    return refuse(field, text, "a lone surrogate has no UTF-8 form; replace it, e.g. by decoding with errors='replace'")


# ----------------------------------------------------------------------------------------------- checks of one field

# What a dtype's name begins with, of the libraries whose scalars and 0-d arrays have one: others convert with a loss.
cdef tuple NUMERIC_DTYPES = ("int", "uint", "float", "bfloat", "longdouble")
# In struct's terms: the floats in which a decimal of few digits is not the nearest double to itself.
cdef dict NARROW_FLOATS = {"float16": "<e", "float32": "<f"}


cdef str dtype_name(object value):
    """Such as "float32"; None for what is not of an array library."""
    dtype = getattr(value, "dtype", None)
    if dtype is None:
        return None
    name = getattr(dtype, "name", None)
    return name if isinstance(name, str) else str(dtype).rpartition(".")[2]


cdef object shortest(double number, str layout):
    """The least digits that a float of this layout reads back as itself: a confidence of 0.953 stays 0.953.

    As a double it would be 0.953000009059906, digits that no sensor or model has given. Who reads the decimal into
    the narrow float again gets the same one.
    """
    for digits in range(1, 9):
        near = float(f"{number:.{digits}g}")
        try:
            if struct.unpack(layout, struct.pack(layout, near))[0] == number:
                return near
        except OverflowError:  # rounded up, above the largest
            pass
    return float(f"{number:.9g}")


cdef object number_of(object value):
    """An exact int or float of what is a number by its own account, not checked for its range; else None."""
    if isinstance(value, (bool, str, bytes, bytearray)):
        return None
    if isinstance(value, float):
        return PyFloat_FromDouble(PyFloat_AS_DOUBLE(value))
    if isinstance(value, int):
        return int.__index__(value)
    name = dtype_name(value)
    if name is not None and (not name.startswith(NUMERIC_DTYPES) or tuple(getattr(value, "shape", ())) != ()):
        return None
    try:
        return int.__index__(index(value))
    except TypeError:
        pass
    if not hasattr(type(value), "__float__"):
        return None
    try:
        number = float(value)
    except TypeError:
        return None
    except OverflowError:
        return inf
    except ValueError:  # a signalling NaN of decimal
        return nan
    layout = NARROW_FLOATS.get(name)
    return number if layout is None else shortest(number, layout)


cdef str conversion(object value):
    """How to make what can be sent of a value that cannot."""
    from datetime import date, datetime  # costs memory that only a refusal is worth

    if isinstance(value, str):
        return "; int() or float() makes one of a str"
    if isinstance(value, (bytes, bytearray)):
        return "; .decode() makes a str of bytes"
    if type(value).__name__ in ("NAType", "NaTType", "MaskedConstant"):
        return "; None or nothing where nothing was measured"
    if isinstance(value, datetime):
        return "; int(value.timestamp() * 1000) makes milliseconds of a datetime, .isoformat() a str"
    if isinstance(value, date):
        return "; .isoformat() makes a str of a date"
    if getattr(value, "shape", ()):
        return "; .tolist() makes lists of an array, .item() a number of one"
    if hasattr(type(value), "__dataclass_fields__"):
        return "; dataclasses.asdict() makes a dict of a dataclass"
    if isinstance(value, Iterable) and not isinstance(value, (list, tuple, Mapping)):
        return "; list() makes one of what can be iterated"
    return ""


cdef const char* utf8_name(object text, str field, Py_ssize_t* size) except NULL:
    """The string's own UTF-8, borrowed until the string dies."""
    cdef const char* utf8
    if not isinstance(text, str):
        refuse_type(field, text, "give a str" + (conversion(text) if isinstance(text, bytes) else ""))
    utf8 = utf8_of(text, size)
    if utf8 == NULL:
        take_encode_error()
        refuse_text(field, text)
    elif size[0] > MAX_NAME_BYTES:
        refuse(field, text, f"give at most {MAX_NAME_BYTES} bytes of UTF-8, it has {size[0]}")
    return utf8


cdef object plain_name(object value):
    """An exact str for an enum's member or a subclass of str; anything else as it is."""
    name = value.name if isinstance(value, Enum) else value
    return str.__str__(name) if isinstance(name, str) else value


cdef str checked_name(object value, str field, Py_ssize_t* room):
    """An exact str; adds what it can take in JSON to `room`."""
    cdef Py_ssize_t size
    if type(value) is not str:
        value = plain_name(value)
    utf8_name(value, field, &size)
    room[0] += ESCAPED_ROOM * size
    return <str>value


cdef object plain_number(object value):
    """As number_of; of an enum's member, its value."""
    return number_of(value.value if isinstance(value, Enum) else value)


cdef object exact_int(object value, str field, str advice):
    number = plain_number(value)
    if type(number) is float:
        refuse_type(field, value, f"give an int{advice}; int() or round() makes one of a float")
    if type(number) is not int:
        refuse_type(field, value, f"give an int{advice}{conversion(value)}")
    return number


cdef int64_t checked_int64(object value, str field, str advice) except? -1:
    number = value if type(value) is int else exact_int(value, field, advice)
    try:
        return <int64_t>number
    except OverflowError:
        pass
    return refuse(field, value, "give an int from -2**63 to 2**63 - 1")


cdef int64_t checked_clock(object value) except -1:
    """The time of a clock that may not be set yet."""
    cdef int64_t timestamp_ms = checked_int64(
        value, "timestamp_ms", " of milliseconds since 1970-01-01 UTC, such as int(time.time() * 1000)"
    )
    if timestamp_ms < 0:
        refuse("timestamp_ms", value, "give milliseconds since 1970-01-01 UTC, 0 or more")
    return timestamp_ms


cdef str likely_unit(int64_t timestamp):
    """What a time that is none in milliseconds was meant to be, and what to do."""
    if YEAR_2000_MS // 1000 <= timestamp <= YEAR_2100_MS // 1000:
        return "; this looks like seconds, multiply them by 1000"
    if YEAR_2000_MS <= timestamp // 1000 <= YEAR_2100_MS:
        return "; this looks like microseconds, divide them by 1000"
    if YEAR_2000_MS <= timestamp // 1000000 <= YEAR_2100_MS:
        return "; this looks like nanoseconds, divide them by 1000000"
    if timestamp < YEAR_2000_MS:
        return "; while the clock is not set leave it out, and the message gets the time of the queue"
    return ""


cdef int64_t checked_timestamp(object value) except -1:
    """A time that a caller gives: in seconds or nanoseconds it would be one of 1970, or far from now."""
    cdef int64_t timestamp_ms = checked_clock(value)
    if not YEAR_2000_MS <= timestamp_ms <= YEAR_2100_MS:
        refuse(
            "timestamp_ms",
            value,
            f"give milliseconds since 1970-01-01 UTC, a time from 2000 to 2100{likely_unit(timestamp_ms)}",
        )
    return timestamp_ms


cdef object checked_int(object value, str field):
    """An exact int of 64 bits."""
    cdef int64_t exact = checked_int64(value, field, "")
    return value if type(value) is int else exact


cdef object checked_other(object value, str field):
    """checked_number of what is no exact float."""
    number = value if type(value) is int else plain_number(value)
    if number is None:
        refuse_type(field, value, f"give an int or a float{conversion(value)}")
    if type(number) is int:
        checked_int64(value, field, "")
    elif not isfinite(PyFloat_AS_DOUBLE(number)):
        refuse_not_finite(field, value)
    return number


cdef int refuse_not_finite(str field, object value) except -1:
    return refuse(field, value, "JSON has no such number; leave the message out or send a known value")


cdef inline object checked_number(object value, str field):
    """An exact int of 64 bits or an exact finite float."""
    if type(value) is not float:
        return checked_other(value, field)
    if not isfinite(PyFloat_AS_DOUBLE(value)):
        refuse_not_finite(field, value)
    return value


cdef object checked_degrees(object value, str field, double limit):
    cdef object number = checked_number(value, field)
    if not -limit <= <double>number <= limit:
        refuse(field, value, f"give degrees from -{limit:.0f} to {limit:.0f}")
    return number


cdef object checked_count(object value, str field):
    cdef object count = checked_int(value, field)
    if <int64_t>count < 0:
        refuse(field, value, "give 0 or more")
    return count


cdef GpsFix checked_fix(object value, str field):
    if value is not None and not isinstance(value, GpsFix):
        refuse_type(field, value, "give a GpsFix or None; GpsFix(lat, lon, speed) makes one")
    return <GpsFix>value


# ----------------------------------------------------------------------------------------------- encoder of any data

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
@cython.auto_pickle(False)
cdef class Buffer:
    """Growing memory for one JSON text."""

    cdef char* data  # owned, from __cinit__ until __dealloc__
    cdef Py_ssize_t size
    cdef Py_ssize_t capacity

    def __cinit__(self):
        self.size = 0
        self.capacity = 256
        self.data = <char*>PyMem_Malloc(self.capacity)
        if self.data == NULL:
            raise MemoryError

    def __dealloc__(self):
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
        data = <char*>PyMem_Realloc(self.data, capacity)
        if data == NULL:
            raise MemoryError
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

    cdef int add_byte(self, char byte) except -1:
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
            raise MessageError(
                f"{path(place)} is {described(value)}: give an int from -2**63 to 2**64 - 1, or send it as a str"
            ) from None
        self.commit(put_uint64(p, large))
        return 0

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
    cdef Buffer buffer = Buffer()
    cdef Place root
    root.outer = NULL
    root.key = <PyObject*>name
    root.index = 0
    root.depth = 0
    buffer.add(value, &root)
    buffer.check_size()
    return PyBytes_FromStringAndSize(buffer.data, buffer.size)


def as_number(value, str name, str advice):
    """The exact int, of any size, or finite float that a value is; MessageError or, with `advice`, PayloadTypeError."""
    number = plain_number(value)
    if number is None:
        refuse_type(name, value, advice + conversion(value))
    if type(number) is float and not isfinite(PyFloat_AS_DOUBLE(number)):
        refuse(name, value, "JSON has no such number; send it as a str")
    return number


def encode_json(obj):
    """Compact JSON bytes of plain data; MessageError or PayloadTypeError for what JSON cannot carry."""
    return encoded_data(obj, "the payload")


# ---------------------------------------------------------------------------------------------------------- messages

cdef inline char* put_name(char* p, str name) except NULL:
    cdef Py_ssize_t size
    cdef const char* utf8 = utf8_of(name, &size)  # the string's own
    if utf8 == NULL:
        return NULL
    p[0] = c'"'
    p = put_escaped(p + 1, utf8, size)
    p[0] = c'"'
    return p + 1


cdef inline char* put_number(char* p, object number) except NULL:
    """An exact float or an exact int of 64 bits."""
    if type(number) is float:
        return put_double(p, PyFloat_AS_DOUBLE(number))
    return put_int64(p, <int64_t>number)


@cython.internal
@cython.auto_pickle(False)
cdef class Record:
    """What all five share: equality, hash and repr by value, and copies that go through the constructor."""

    cdef tuple values(self):
        """In the order of the constructor."""
        return ()

    cdef tuple hashable(self):
        return self.values()

    def __reduce__(self):
        return type(self), self.values()

    def __eq__(self, other):
        if type(self) is not type(other):
            return NotImplemented
        return self.values() == (<Record>other).values()

    def __hash__(self):
        return hash((type(self), self.hashable()))

    def __repr__(self):
        cdef tuple values = self.values()
        fields = ", ".join([f"{name}={value!r}" for name, value in zip(type(self).__match_args__, values, strict=True)])
        return f"{type(self).__name__}({fields})"


@cython.final
@cython.no_gc
cdef class GpsFix(Record):
    """A position in degrees (WGS 84), with the receiver's speed in km/h if known."""

    __match_args__ = ("lat", "lon", "speed")

    cdef readonly object lat
    cdef readonly object lon
    cdef readonly object speed

    def __cinit__(self, lat=MISSING, lon=MISSING, speed=None):
        self.lat = checked_degrees(lat, "lat", 90)
        self.lon = checked_degrees(lon, "lon", 180)
        self.speed = None if speed is None else checked_number(speed, "speed")

    cdef tuple values(self):
        return self.lat, self.lon, self.speed

    cdef char* put_position(self, char* p) except NULL:
        """An object left open, for the speed where it belongs."""
        p = put_number(put(p, b'{"lat":'), self.lat)
        return put_number(put(p, b',"lon":'), self.lon)


@cython.internal
@cython.auto_pickle(False)
cdef class Message(Record):
    cdef readonly object timestamp_ms
    cdef Py_ssize_t text_room  # the most that this message's own strings and details take

    cdef char* put_fields(self, char* p) except NULL:
        """What follows the device id; at most FIXED_ROOM + text_room bytes together with what precedes it."""
        return p

    cdef char* put_message(self, char* p, int64_t timestamp_ms, const char* device_id, Py_ssize_t size) except NULL:
        p = put_int64(put(p, b'{"timestamp":'), timestamp_ms)
        p = put_escaped(put(p, b',"device_id":"'), device_id, size)
        p = self.put_fields(put(p, b'"'))
        p[0] = c'}'
        return p + 1

    cdef bytes encoded(self, object device_id, int64_t now):
        cdef char[STACK_ROOM] stack
        cdef Buffer heap
        cdef Py_ssize_t size, room
        cdef const char* utf8 = utf8_name(device_id, "device_id", &size)  # alive as long as the argument
        cdef char* start
        cdef char* end
        if self.timestamp_ms is not None:
            now = self.timestamp_ms
        room = FIXED_ROOM + ESCAPED_ROOM * size + self.text_room
        if room <= STACK_ROOM:
            start = stack
        else:
            heap = Buffer()
            start = heap.reserve(room)
        end = self.put_message(start, now, utf8, size)
        return PyBytes_FromStringAndSize(start, end - start)


# Each class has an `encode` of its own, a plain method descriptor: CPython specializes a call only for a method of the
# object's exact type, and that is worth a tenth of the time.

@cython.final
@cython.no_gc
cdef class Telemetry(Message):
    """One sample of the vehicle's bus, published once a second with QoS 0."""

    SUFFIX = "telemetry"
    QOS = 0
    __match_args__ = ("vehicle_speed", "engine_rpm", "throttle_position", "fuel_level", "gps", "timestamp_ms")

    cdef readonly object vehicle_speed
    cdef readonly object engine_rpm
    cdef readonly object throttle_position
    cdef readonly object fuel_level
    cdef readonly GpsFix gps

    def __cinit__(
        self,
        vehicle_speed=MISSING,
        engine_rpm=MISSING,
        throttle_position=MISSING,
        fuel_level=MISSING,
        gps=None,
        timestamp_ms=None,
    ):
        self.vehicle_speed = checked_number(vehicle_speed, "vehicle_speed")
        self.engine_rpm = checked_number(engine_rpm, "engine_rpm")
        self.throttle_position = checked_number(throttle_position, "throttle_position")
        self.fuel_level = checked_number(fuel_level, "fuel_level")
        self.gps = checked_fix(gps, "gps")
        self.timestamp_ms = None if timestamp_ms is None else checked_timestamp(timestamp_ms)

    @cython.binding(False)
    def encode(self, device_id, timestamp_ms):
        """Compact JSON bytes; `timestamp_ms` is used if the message has none of its own."""
        return self.encoded(device_id, checked_timestamp(timestamp_ms))

    cdef tuple values(self):
        return (
            self.vehicle_speed, self.engine_rpm, self.throttle_position, self.fuel_level, self.gps, self.timestamp_ms
        )

    cdef char* put_fields(self, char* p) except NULL:
        p = put_number(put(p, b',"vehicle_speed":'), self.vehicle_speed)
        p = put_number(put(p, b',"engine_rpm":'), self.engine_rpm)
        p = put_number(put(p, b',"throttle_position":'), self.throttle_position)
        p = put_number(put(p, b',"fuel_level":'), self.fuel_level)
        if self.gps is None:
            return p
        p = self.gps.put_position(put(p, b',"gps":'))
        if self.gps.speed is not None:
            p = put_number(put(p, b',"speed":'), self.gps.speed)
        return put(p, b"}")


@cython.final
@cython.no_gc
cdef class Inference(Message):
    """A result of the driving model, published once a minute with QoS 1."""

    SUFFIX = "inference"
    QOS = 1
    __match_args__ = ("behavior", "confidence", "safety_score", "fuel_efficiency", "latency_ms", "timestamp_ms")

    cdef readonly str behavior
    cdef readonly object confidence
    cdef readonly object safety_score
    cdef readonly object fuel_efficiency
    cdef readonly object latency_ms

    def __cinit__(
        self,
        behavior=MISSING,
        confidence=MISSING,
        safety_score=MISSING,
        fuel_efficiency=MISSING,
        latency_ms=MISSING,
        timestamp_ms=None,
    ):
        self.behavior = checked_name(behavior, "behavior", &self.text_room)
        self.confidence = checked_number(confidence, "confidence")
        self.safety_score = checked_number(safety_score, "safety_score")
        self.fuel_efficiency = checked_number(fuel_efficiency, "fuel_efficiency")
        self.latency_ms = checked_number(latency_ms, "latency_ms")
        self.timestamp_ms = None if timestamp_ms is None else checked_timestamp(timestamp_ms)

    @cython.binding(False)
    def encode(self, device_id, timestamp_ms):
        """Compact JSON bytes; `timestamp_ms` is used if the message has none of its own."""
        return self.encoded(device_id, checked_timestamp(timestamp_ms))

    cdef tuple values(self):
        return (
            self.behavior, self.confidence, self.safety_score, self.fuel_efficiency, self.latency_ms, self.timestamp_ms
        )

    cdef char* put_fields(self, char* p) except NULL:
        p = put_name(put(p, b',"behavior":'), self.behavior)
        p = put_number(put(p, b',"confidence":'), self.confidence)
        p = put_number(put(p, b',"safety_score":'), self.safety_score)
        p = put_number(put(p, b',"fuel_efficiency":'), self.fuel_efficiency)
        return put_number(put(p, b',"latency_ms":'), self.latency_ms)


@cython.final
@cython.no_gc
cdef class Alert(Message):
    """A safety event, published at once with QoS 2. Its details are copied when it is built."""

    SUFFIX = "alerts"
    QOS = 2
    __match_args__ = ("alert_type", "severity", "location", "details", "timestamp_ms")

    cdef readonly str alert_type
    cdef readonly str severity
    cdef readonly GpsFix location
    cdef bytes details_json  # None without details

    def __cinit__(self, alert_type=MISSING, severity=MISSING, location=None, details=None, timestamp_ms=None):
        self.alert_type = checked_name(alert_type, "alert_type", &self.text_room)
        self.severity = checked_name(severity, "severity", &self.text_room)
        self.location = checked_fix(location, "location")
        if details is not None:
            if not isinstance(details, (dict, Mapping)):
                refuse_type("details", details, "give a dict or None")
            self.details_json = encoded_data(details, "details")
            self.text_room += PyBytes_GET_SIZE(self.details_json)
        self.timestamp_ms = None if timestamp_ms is None else checked_timestamp(timestamp_ms)

    @property
    def details(self):
        """A fresh copy, as a reader of the JSON sees it, or None."""
        return None if self.details_json is None else json.loads(self.details_json)

    @cython.binding(False)
    def encode(self, device_id, timestamp_ms):
        """Compact JSON bytes; `timestamp_ms` is used if the message has none of its own."""
        return self.encoded(device_id, checked_timestamp(timestamp_ms))

    cdef tuple values(self):
        return self.alert_type, self.severity, self.location, self.details, self.timestamp_ms

    cdef tuple hashable(self):
        return self.alert_type, self.severity, self.location, self.timestamp_ms

    cdef char* put_fields(self, char* p) except NULL:
        p = put_name(put(p, b',"alert_type":'), self.alert_type)
        p = put_name(put(p, b',"severity":'), self.severity)
        if self.location is not None:
            p = put(self.location.put_position(put(p, b',"location":')), b"}")
        if self.details_json is not None:
            p = put(p, b',"details":')
            memcpy(p, PyBytes_AS_STRING(self.details_json), PyBytes_GET_SIZE(self.details_json))
            p += PyBytes_GET_SIZE(self.details_json)
        return p


@cython.final
@cython.no_gc
cdef class Status(Message):
    """The device's health, published every five minutes with QoS 1."""

    SUFFIX = "status"
    QOS = 1
    __match_args__ = (
        "status",
        "uptime_seconds",
        "battery_voltage",
        "memory_usage_mb",
        "storage_available_mb",
        "can_messages_received",
        "mqtt_messages_sent",
        "offline_queue_size",
        "timestamp_ms",
    )

    cdef readonly str status
    cdef readonly object uptime_seconds
    cdef readonly object battery_voltage
    cdef readonly object memory_usage_mb
    cdef readonly object storage_available_mb
    cdef readonly object can_messages_received
    cdef readonly object mqtt_messages_sent
    cdef readonly object offline_queue_size

    def __cinit__(
        self,
        status=MISSING,
        uptime_seconds=MISSING,
        battery_voltage=MISSING,
        memory_usage_mb=MISSING,
        storage_available_mb=MISSING,
        can_messages_received=MISSING,
        mqtt_messages_sent=MISSING,
        offline_queue_size=MISSING,
        timestamp_ms=None,
    ):
        self.status = checked_name(status, "status", &self.text_room)
        self.uptime_seconds = checked_count(uptime_seconds, "uptime_seconds")
        self.battery_voltage = None if battery_voltage is None else checked_number(battery_voltage, "battery_voltage")
        self.memory_usage_mb = checked_number(memory_usage_mb, "memory_usage_mb")
        self.storage_available_mb = checked_number(storage_available_mb, "storage_available_mb")
        self.can_messages_received = checked_count(can_messages_received, "can_messages_received")
        self.mqtt_messages_sent = checked_count(mqtt_messages_sent, "mqtt_messages_sent")
        self.offline_queue_size = checked_count(offline_queue_size, "offline_queue_size")
        self.timestamp_ms = None if timestamp_ms is None else checked_timestamp(timestamp_ms)

    @cython.binding(False)
    def encode(self, device_id, timestamp_ms):
        """Compact JSON bytes; `timestamp_ms` is used if the message has none of its own."""
        return self.encoded(device_id, checked_timestamp(timestamp_ms))

    cdef tuple values(self):
        return (
            self.status,
            self.uptime_seconds,
            self.battery_voltage,
            self.memory_usage_mb,
            self.storage_available_mb,
            self.can_messages_received,
            self.mqtt_messages_sent,
            self.offline_queue_size,
            self.timestamp_ms,
        )

    cdef char* put_fields(self, char* p) except NULL:
        p = put_name(put(p, b',"status":'), self.status)
        p = put_number(put(p, b',"uptime_seconds":'), self.uptime_seconds)
        if self.battery_voltage is not None:
            p = put_number(put(p, b',"battery_voltage":'), self.battery_voltage)
        p = put_number(put(p, b',"memory_usage_mb":'), self.memory_usage_mb)
        p = put_number(put(p, b',"storage_available_mb":'), self.storage_available_mb)
        p = put_number(put(p, b',"can_messages_received":'), self.can_messages_received)
        p = put_number(put(p, b',"mqtt_messages_sent":'), self.mqtt_messages_sent)
        return put_number(put(p, b',"offline_queue_size":'), self.offline_queue_size)


def encode_message(message, device_id, clock_ms):
    """The JSON of any of the four messages, whose `encode` says more; `clock_ms` may be of a clock that is not set."""
    if not isinstance(message, Message):
        refuse_type("the message", message, "give a Telemetry, Inference, Alert or Status")
    return (<Message>message).encoded(device_id, checked_clock(clock_ms))
