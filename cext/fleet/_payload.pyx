# cython: embedsignature.format=clinic
"""The four fleet messages.

Contract
  - A message is checked when it is built and cannot change afterwards: numbers and strings are kept as exact
    Python int, float and str, `details` as the JSON bytes it becomes. What was built always encodes.
  - Output is compact JSON in UTF-8, fields in the order of the specification ("Example Payloads"); what a value becomes
    is as in `_json`, and where a number is asked for, an Enum's member is its value.
  - What cannot be sent is refused with MessageError or PayloadTypeError, which name the field, show the value and say
    what to do.
  - No I/O, clock, log or shared mutable state: any thread may encode any message at any time.
"""

from collections.abc import Mapping

from glec_fast.fleet.values import (
    MISSING, YEAR_2000_MS, YEAR_2100_MS, call_refusal, conversion, likely_unit, plain_number
)

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.float cimport PyFloat_AS_DOUBLE
from cpython.object cimport PyObject
from libc.math cimport isfinite
from libc.stdint cimport int64_t
from libc.string cimport memcpy

from glec_fast.fleet._json cimport encoded_data, plain_name, refuse, refuse_text, refuse_type
from json_text cimport ESCAPED_ROOM, put, put_double, put_escaped, put_int64
from utf8 cimport take_encode_error, utf8_of

cdef enum:
    MAX_NAME_BYTES = 65535         # an MQTT string
    STACK_ROOM = 1024
    # Status, the longest: 190 bytes of literals and eight numbers of NUMBER_ROOM, without its strings.
    FIXED_ROOM = 512

cdef int64_t EARLIEST_MS = YEAR_2000_MS
cdef int64_t LATEST_MS = YEAR_2100_MS


# ----------------------------------------------------------------------------------------------- checks of one field

cdef const char* utf8_name(object text, str field, Py_ssize_t* size) except NULL:
    """The string's own UTF-8, borrowed until the string dies."""
    cdef const char* utf8
    if not isinstance(text, str):
        refuse_type(field, text, "give a str" + (conversion(text) if isinstance(text, bytes) else ""))
    utf8 = utf8_of(text, size)
    if utf8 == NULL:
        take_encode_error()
        refuse_text(field, text)
    if size[0] > MAX_NAME_BYTES:
        refuse(field, text, f"give at most {MAX_NAME_BYTES} bytes of UTF-8, it has {size[0]}")
    return utf8


cdef str checked_name(object value, str field, Py_ssize_t* room):
    """An exact str; adds what it can take in JSON to `room`."""
    cdef Py_ssize_t size
    if type(value) is not str:
        value = plain_name(value)
    utf8_name(value, field, &size)
    room[0] += ESCAPED_ROOM * size
    return <str>value


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


cdef int64_t checked_timestamp(object value) except -1:
    """A time that a caller gives: in seconds or nanoseconds it would be one of 1970, or far from now."""
    cdef int64_t timestamp_ms = checked_clock(value)
    if not EARLIEST_MS <= timestamp_ms <= LATEST_MS:
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
    """GpsFix(lat, lon, speed=None)\n--\n
    A position. Immutable. lat, lon: degrees (WGS 84). speed: km/h, or None where the receiver has none.
    """

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
        cdef bytes heap
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
            heap = PyBytes_FromStringAndSize(NULL, room)
            start = PyBytes_AS_STRING(heap)
        end = self.put_message(start, now, utf8, size)
        return PyBytes_FromStringAndSize(start, end - start)


# Each class has an `encode` of its own, a plain method descriptor: CPython specializes a call only for a method of the
# object's exact type, and that is worth a tenth of the time.

@cython.final
@cython.no_gc
cdef class Telemetry(Message):
    """Telemetry(vehicle_speed, engine_rpm, throttle_position, fuel_level, gps=None, timestamp_ms=None)\n--\n
    One sample of the vehicle's bus, published once a second with QoS 0. Immutable.

    vehicle_speed: km/h. engine_rpm: revolutions per minute. throttle_position: percent. fuel_level: percent of the
    tank. gps: a GpsFix, with its speed. timestamp_ms: Unix time, in 2000 to 2100; None is when it is published.
    """

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
        """Compact JSON bytes. device_id: of the gateway. timestamp_ms: used if the message has no time of its own."""
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
    """Inference(behavior, confidence, safety_score, fuel_efficiency, latency_ms, timestamp_ms=None)\n--\n
    A result of the driving model, published once a minute with QoS 1. Immutable.

    behavior: the class of driving. confidence: of the model, 0 to 1. safety_score: 0 to 100. fuel_efficiency: km per
    litre. latency_ms: the time that the model took. timestamp_ms: as of Telemetry.
    """

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
        """Compact JSON bytes. device_id: of the gateway. timestamp_ms: used if the message has no time of its own."""
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
    """Alert(alert_type, severity, location=None, details=None, timestamp_ms=None)\n--\n
    A safety event, published at once with QoS 2. Immutable.

    alert_type: what happened. severity: such as "HIGH". location: a GpsFix. details: anything more, as a dict, which is
    copied. timestamp_ms: as of Telemetry.
    """

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
            if type(details) is not dict and not isinstance(details, Mapping):
                refuse_type("details", details, "give a dict or None")
            self.details_json = encoded_data(details, "details")
            self.text_room += PyBytes_GET_SIZE(self.details_json)
        self.timestamp_ms = None if timestamp_ms is None else checked_timestamp(timestamp_ms)

    @property
    def details(self):
        """A fresh copy, as a reader of the JSON sees it, or None."""
        # 100 KiB that a program which only sends has no use for.
        import json

        return None if self.details_json is None else json.loads(self.details_json)

    @cython.binding(False)
    def encode(self, device_id, timestamp_ms):
        """Compact JSON bytes. device_id: of the gateway. timestamp_ms: used if the message has no time of its own."""
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
    """Status(status, uptime_seconds, battery_voltage, memory_usage_mb, storage_available_mb, can_messages_received, \
mqtt_messages_sent, offline_queue_size, timestamp_ms=None)\n--\n
    The device's health, published every five minutes with QoS 1. Immutable.

    status: such as "ONLINE". uptime_seconds: since the start. battery_voltage: volts, or None. memory_usage_mb,
    storage_available_mb: megabytes in use, and free. can_messages_received, mqtt_messages_sent: since the start.
    offline_queue_size: messages that wait on disk. timestamp_ms: as of Telemetry.
    """

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
        """Compact JSON bytes. device_id: of the gateway. timestamp_ms: used if the message has no time of its own."""
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


# ------------------------------------------------------------------------------------------ constructors, as called

# What Cython itself says of arguments that are not there names `__cinit__`, which no caller has heard of, and not what
# there is. Its code looks at them before any of ours, so that the constructors of KINDS are called through these two.

cdef extern from "Python.h":
    ctypedef PyObject* (*newfunc)(PyTypeObject*, PyObject*, PyObject*) except NULL
    ctypedef PyObject* (*vectorcallfunc)(PyObject*, PyObject* const*, size_t, PyObject*) except NULL
    ctypedef struct PyTypeObject:
        newfunc tp_new
        vectorcallfunc tp_vectorcall
    Py_ssize_t PyVectorcall_NARGS(size_t count)

cdef tuple KINDS = (GpsFix, Telemetry, Inference, Alert, Status)
cdef newfunc[5] constructors
cdef vectorcallfunc[5] quick_constructors  # NULL of a Cython that has none


cdef Py_ssize_t place_of(const void* kind) noexcept:
    cdef Py_ssize_t place = 0
    while <const void*><PyObject*>KINDS[place] != kind:
        place += 1
    return place


cdef object refused(object error, object kind, tuple values, tuple names):
    """What to raise in place of `error`, if it was raised over the arguments themselves; else None."""
    return call_refusal(kind, values, names) if type(error) is TypeError else None


cdef PyObject* construct(PyTypeObject* kind, PyObject* values, PyObject* named) except NULL:
    cdef Py_ssize_t place = place_of(kind)
    try:
        return constructors[place](kind, values, named)
    except TypeError as error:
        better = refused(error, KINDS[place], <tuple>values, () if named == NULL else tuple(<dict>named))
        if better is not None:
            raise better from None
        raise


cdef PyObject* construct_quickly(PyObject* kind, PyObject* const* values, size_t count, PyObject* names) except NULL:
    cdef Py_ssize_t place = place_of(kind)
    cdef Py_ssize_t each
    try:
        return quick_constructors[place](kind, values, count, names)
    except TypeError as error:
        given = [<object>values[each] for each in range(PyVectorcall_NARGS(count))]
        better = refused(error, KINDS[place], tuple(given), () if names == NULL else <tuple>names)
        if better is not None:
            raise better from None
        raise


cdef int take_constructors() except -1:
    cdef Py_ssize_t place
    cdef PyTypeObject* kind
    for place in range(5):
        kind = <PyTypeObject*>KINDS[place]
        constructors[place] = kind.tp_new
        kind.tp_new = construct
        quick_constructors[place] = kind.tp_vectorcall
        if kind.tp_vectorcall != NULL:
            kind.tp_vectorcall = construct_quickly
    return 0


take_constructors()


def encode_message(message, device_id, clock_ms):
    """The JSON of any of the four messages, whose `encode` says more; `clock_ms` may be of a clock that is not set."""
    if not isinstance(message, Message):
        refuse_type("the message", message, "give a Telemetry, Inference, Alert or Status")
    return (<Message>message).encoded(device_id, checked_clock(clock_ms))
