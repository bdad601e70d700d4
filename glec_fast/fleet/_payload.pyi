"""The four fleet messages.

Section "Example Payloads" of the MQTT Fleet Integration Architecture defines the fields and their order.

Rules that hold for all of them:

- Objects are immutable and may be encoded by any number of threads at once.
- A number is encoded as the type it was given: 1800 stays `1800`, 1800.0 stays `1800.0`. Integers have 64 bits
  (-2**63 to 2**63 - 1), floats are finite and read back bit for bit. A bool is no number.
- Whatever has `__index__` or `__float__` is a number: scalars and 0-d arrays of numpy and pandas, Decimal, Fraction.
  Not so text, bool, complex, times and arrays, which would convert with a loss. A float of 16 or 32 bits is sent with
  the least digits that tell it from its neighbours: numpy's float32 of 0.953 is `0.953`, not `0.953000009059906`.
- An `enum.Enum` member is its `.name`, as in the specification, in fields, keys and plain data alike; where a number is
  asked for, its `.value`. Names and device ids have at most 65,535 bytes of UTF-8.
- A time that a caller gives lies between the years 2000 and 2100, so that seconds or nanoseconds are not taken for
  milliseconds. No other range is enforced than that of latitude, longitude, time and counts.
- Fields that are None are left out of the JSON.
- A refused value raises `MessageError` (a value that cannot be carried) or its subclass `PayloadTypeError` (a type that
  has no encoding) when the object is built. Both name the field, show the value and say what to do.
- Objects compare, hash and copy by value, and can be pickled.
"""

from collections.abc import Mapping
from enum import Enum
from typing import ClassVar, Final, SupportsFloat, SupportsIndex, TypeAlias, final

from glec_fast.fleet._json import _JsonValue

_Number: TypeAlias = SupportsFloat | SupportsIndex
_Integer: TypeAlias = SupportsIndex

@final
class GpsFix:
    """A position from the satellite receiver.

    lat: degrees north, -90 to 90 (WGS 84).
    lon: degrees east, -180 to 180 (WGS 84).
    speed: km/h over ground, or None if the receiver has none.
    """

    __match_args__: ClassVar[tuple[str, str, str]] = ("lat", "lon", "speed")
    lat: Final[float]
    lon: Final[float]
    speed: Final[float | None]
    def __new__(cls, lat: _Number, lon: _Number, speed: _Number | None = None) -> GpsFix: ...
    def __hash__(self) -> int: ...

@final
class Telemetry:
    """One sample of the vehicle's bus, once a second; topic suffix `telemetry`, QoS 0.

    vehicle_speed: km/h.
    engine_rpm: revolutions per minute.
    throttle_position: percent.
    fuel_level: percent of the tank.
    gps: the position with its speed, or None without a fix.
    timestamp_ms: Unix time in milliseconds, of 2000 to 2100; None takes the time given to `encode`.
    """

    SUFFIX: ClassVar[str] = "telemetry"
    QOS: ClassVar[int] = 0
    __match_args__: ClassVar[tuple[str, ...]]
    vehicle_speed: Final[float]
    engine_rpm: Final[float]
    throttle_position: Final[float]
    fuel_level: Final[float]
    gps: Final[GpsFix | None]
    timestamp_ms: Final[int | None]
    def __new__(
        cls,
        vehicle_speed: _Number,
        engine_rpm: _Number,
        throttle_position: _Number,
        fuel_level: _Number,
        gps: GpsFix | None = None,
        timestamp_ms: _Integer | None = None,
    ) -> Telemetry: ...
    def encode(self, device_id: str, timestamp_ms: int) -> bytes:
        """Compact JSON in UTF-8, fields in the order of the specification.

        device_id: any str without lone surrogates, at most 65,535 bytes of UTF-8.
        timestamp_ms: Unix time in milliseconds, of 2000 to 2100; used if the message has no time of its own, checked
            either way.

        Raises MessageError or PayloadTypeError for these two arguments only; what was built always encodes.
        Thread-safe.
        """
    def __hash__(self) -> int: ...

@final
class Inference:
    """A result of the driving model, once a minute; topic suffix `inference`, QoS 1.

    behavior: the class of driving, such as "ECO_DRIVING".
    confidence: of the model, 0 to 1 by the specification (not enforced).
    safety_score: 0 to 100 by the specification's example (not enforced).
    fuel_efficiency: km per litre.
    latency_ms: time the model took, in milliseconds.
    timestamp_ms: Unix time in milliseconds, of 2000 to 2100; None takes the time given to `encode`.
    """

    SUFFIX: ClassVar[str] = "inference"
    QOS: ClassVar[int] = 1
    __match_args__: ClassVar[tuple[str, ...]]
    behavior: Final[str]
    confidence: Final[float]
    safety_score: Final[float]
    fuel_efficiency: Final[float]
    latency_ms: Final[float]
    timestamp_ms: Final[int | None]
    def __new__(
        cls,
        behavior: str | Enum,
        confidence: _Number,
        safety_score: _Number,
        fuel_efficiency: _Number,
        latency_ms: _Number,
        timestamp_ms: _Integer | None = None,
    ) -> Inference: ...
    def encode(self, device_id: str, timestamp_ms: int) -> bytes:
        """See `Telemetry.encode`."""
    def __hash__(self) -> int: ...

@final
class Alert:
    """A safety event, at once; topic suffix `alerts`, QoS 2.

    alert_type: what happened, such as "HARSH_BRAKING".
    severity: such as "HIGH".
    location: where; its speed is not part of the JSON.
    details: anything more, under the rules of `encode_json`. Copied when the alert is built: later changes to the
        mapping do not reach the alert. Reading it gives a fresh copy in which tuples have become lists.
    timestamp_ms: Unix time in milliseconds, of 2000 to 2100; None takes the time given to `encode`.

    Alerts that differ in `details` alone hash alike but are not equal.
    """

    SUFFIX: ClassVar[str] = "alerts"
    QOS: ClassVar[int] = 2
    __match_args__: ClassVar[tuple[str, ...]]
    alert_type: Final[str]
    severity: Final[str]
    location: Final[GpsFix | None]
    timestamp_ms: Final[int | None]
    def __new__(
        cls,
        alert_type: str | Enum,
        severity: str | Enum,
        location: GpsFix | None = None,
        details: Mapping[str, _JsonValue] | None = None,
        timestamp_ms: _Integer | None = None,
    ) -> Alert: ...
    @property
    def details(self) -> dict[str, _JsonValue] | None: ...
    def encode(self, device_id: str, timestamp_ms: int) -> bytes:
        """See `Telemetry.encode`."""
    def __hash__(self) -> int: ...

@final
class Status:
    """The device's health, every five minutes; topic suffix `status`, QoS 1.

    status: such as "ONLINE".
    uptime_seconds: seconds since the device started, 0 or more.
    battery_voltage: volts, or None if not measured.
    memory_usage_mb: megabytes in use.
    storage_available_mb: megabytes free.
    can_messages_received: since the start, 0 or more.
    mqtt_messages_sent: since the start, 0 or more.
    offline_queue_size: messages waiting on disk, 0 or more.
    timestamp_ms: Unix time in milliseconds, of 2000 to 2100; None takes the time given to `encode`.
    """

    SUFFIX: ClassVar[str] = "status"
    QOS: ClassVar[int] = 1
    __match_args__: ClassVar[tuple[str, ...]]
    status: Final[str]
    uptime_seconds: Final[int]
    battery_voltage: Final[float | None]
    memory_usage_mb: Final[float]
    storage_available_mb: Final[float]
    can_messages_received: Final[int]
    mqtt_messages_sent: Final[int]
    offline_queue_size: Final[int]
    timestamp_ms: Final[int | None]
    def __new__(
        cls,
        status: str | Enum,
        uptime_seconds: _Integer,
        battery_voltage: _Number | None,
        memory_usage_mb: _Number,
        storage_available_mb: _Number,
        can_messages_received: _Integer,
        mqtt_messages_sent: _Integer,
        offline_queue_size: _Integer,
        timestamp_ms: _Integer | None = None,
    ) -> Status: ...
    def encode(self, device_id: str, timestamp_ms: int) -> bytes:
        """See `Telemetry.encode`."""
    def __hash__(self) -> int: ...

def encode_message(message: object, device_id: str, clock_ms: int) -> bytes:
    """As the message's `encode`, with the time of a clock that may not be set yet: 0 to 2**63 - 1.

    A gateway without a clock battery starts in 1970, and its messages count all the same. Raises PayloadTypeError for
    what is none of the four messages.
    """
