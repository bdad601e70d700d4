"""A recorded drive: the CSV file of any logger, read by its header. Whatever is wrong with it is said in one line."""

from __future__ import annotations

import csv
import gzip
import io
import re
import textwrap
import zlib
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from itertools import chain
from typing import TYPE_CHECKING, TextIO, cast

from glec_fast.cli.demo import DemoError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

# Of the narrowest terminal.
_HELP_WIDTH = 79
DELIMITERS = ",;\t"
# How Torque marks a reading that it does not have (yet).
NO_READING = "-"
LONGEST_DRIVE_S = 1e9
YEAR_2000_S, YEAR_2100_S = 946_684_800.0, 4_102_444_800.0
# What Torque and others write in the place of ISO 8601; the zone of the second is taken out before.
TIME_FORMATS = ("%d-%b-%Y %H:%M:%S.%f", "%d-%b-%Y %H:%M:%S", "%a %b %d %H:%M:%S %Y")

TIME_UNITS = {
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), 1.0),
    **dict.fromkeys(("ms", "msec", "millis", "milliseconds"), 1e-3),
    **dict.fromkeys(("us", "µs", "microseconds"), 1e-6),
    **dict.fromkeys(("ns", "nanoseconds"), 1e-9),
}
SPEED_UNITS = {
    **dict.fromkeys(("km/h", "km/hr", "kmh", "kph", "kmph", "km h"), 1.0),
    **dict.fromkeys(("mph", "mi/h", "mi/hr", "miles/hour"), 1.609344),
    **dict.fromkeys(("m/s", "ms", "mps", "m s", "meters/second", "metres/second"), 3.6),
    **dict.fromkeys(("kn", "kt", "knots"), 1.852),
}
RPM_UNITS = dict.fromkeys(("rpm", "1/min", "r/min", "rev/min", "u/min", "min-1"), 1.0)
PERCENT_UNITS = {**dict.fromkeys(("%", "pct", "percent"), 1.0), **dict.fromkeys(("fraction", "ratio", "0-1"), 100.0)}
VOLT_UNITS = {**dict.fromkeys(("v", "volt", "volts"), 1.0), "mv": 1e-3}
DEGREE_UNITS = dict.fromkeys(("deg", "°", "degree", "degrees"), 1.0)


@dataclass(frozen=True)
class Column:
    """One column of a recorded drive.

    name: ours, with its unit. bounds: lowest and highest that a vehicle can mean, in that unit. aliases: what loggers
    call it, in words without a unit and with commas between them; where a file has several groups, the first counts.
    implied: the units of those that never write theirs.
    """

    name: str
    meaning: str
    bounds: tuple[float, float]
    units: dict[str, float]
    aliases: tuple[str, ...]
    implied: Mapping[str, str] = field(default_factory=dict)


TIME = Column(
    "t_s",
    "time, rising, in s, ms, us or ns by the header; else in s, as Unix time of any of these, or as date and time",
    (0.0, YEAR_2100_S),
    TIME_UNITS,
    (
        "t, elapsed, elapsed time, seconds",
        "time, timestamp, time stamp, date time, datetime, unix time, epoch, m time utc, log mono time",
        "device time",
        "gps time, m monotonic",
    ),
    {"log mono time": "ns", "seconds": "s"},
)
REQUIRED = (
    TIME,
    Column(
        "engine_rpm",
        "engine speed in 1/min",
        (0.0, 20_000.0),
        RPM_UNITS,
        ("engine rpm, rpm, engine speed, engine revolutions, v m rpm, motor rpm, car state engine rpm",),
    ),
    Column(
        "vehicle_speed_kmh",
        "speed in km/h, mph or m/s by the header; km/h where it names none",
        (0.0, 500.0),
        SPEED_UNITS,
        (
            "vehicle speed, speed, speed obd, obd speed, velocity, v p speed, v ego, car state v ego",
            "speed gps, gps speed, v p gpsspeed",
        ),
        {"v ego": "m/s", "car state v ego": "m/s"},
    ),
    Column(
        "throttle_position_pct",
        "throttle in percent",
        (0.0, 100.0),
        PERCENT_UNITS,
        (
            "throttle position, throttle, throttle pos, throttle position manifold, v e throttle, gas, car state gas",
            "absolute throttle position, absolute throttle position a",
            "accelerator pedal position, accelerator pedal position d, accelerator position, accel pedal pos",
        ),
        {"gas": "fraction", "car state gas": "fraction"},
    ),
    Column(
        "fuel_level_pct",
        "fuel in percent of the tank; of an electric vehicle, its state of charge",
        (0.0, 100.0),
        PERCENT_UNITS,
        (
            (
                "fuel level, fuel, fuel level input, fuel tank level, fuel level from engine ecu, fuel gauge, "
                "car state fuel gauge"
            ),
            "v b soc, state of charge, soc",
        ),
        {"fuel gauge": "fraction", "car state fuel gauge": "fraction"},
    ),
)
OPTIONAL = (
    Column(
        "battery_voltage_v",
        "the 12 V battery in volts",
        (0.0, 60.0),
        VOLT_UNITS,
        ("battery voltage, v b 12v voltage", "voltage control module, control module voltage", "voltage obd adapter"),
    ),
    Column(
        "lat_deg", "latitude in degrees", (-90.0, 90.0), DEGREE_UNITS, ("lat, latitude, gps latitude, v p latitude",)
    ),
    Column(
        "lon_deg",
        "longitude in degrees",
        (-180.0, 180.0),
        DEGREE_UNITS,
        ("lon, lng, long, longitude, gps longitude, v p longitude",),
    ),
)


@dataclass(frozen=True)
class Sample:
    """One moment of a drive, in seconds from its first. Position and battery are None where the recording has none."""

    t_s: float
    engine_rpm: float
    speed_kmh: float
    throttle_pct: float
    fuel_pct: float
    battery_v: float | None = None
    lat_deg: float | None = None
    lon_deg: float | None = None


@dataclass(frozen=True)
class Found:
    """A column of a file: where it is, what it is called there, and its unit's factor, None where nothing says it."""

    column: Column
    index: int
    heading: str
    factor: float | None


def columns_help() -> str:
    """What `--drive` reads, for people."""
    lines = _wrapped(
        "What --drive reads: a CSV file with a header; commas, semicolons or tabs; plain or gzip; the columns", 0
    )
    for column in (*REQUIRED, *OPTIONAL):
        optional = " (optional)" if column in OPTIONAL else ""
        lines += _wrapped(f"  {column.name:23}{column.meaning}{optional}", 25)
        lines += _wrapped(f"{'':25}also: {', '.join(column.aliases)}", 31)
    lines += _wrapped(
        "Names may be in any case, with points, _ or blanks, and end with their unit, also in brackets: "
        "vehicle_speed_mph, Speed (m/s), engineRPM. So the logs of Torque, OBD Fusion, OVMS and openpilot are read "
        "where they have these columns; all others are left alone. A - is no new reading: the last one stands.",
        0,
    )
    return "\n".join(lines)


def _wrapped(text: str, indent: int) -> list[str]:
    return textwrap.wrap(text, _HELP_WIDTH, subsequent_indent=" " * indent)


def read_samples(path: Path) -> Iterator[Sample]:
    """The samples of a CSV file, plain or gzip. Raises DemoError."""
    with _reading(path) as text:
        head = _head(text)
        delimiter = _delimiter_of(head[-1] if head else "")
        rows = csv.reader(chain(head, text), delimiter=delimiter, skipinitialspace=True)
        header = next((row for row in rows if any(row)), [])
        recording = _Recording(f"{path}: line", rows.line_num or 1, header, decimal_comma=delimiter != ",")
        for row in rows:
            if (sample := recording.sample_of(row, rows.line_num)) is not None:
                yield sample


class _Recording:
    """What a file's header says of its rows, and what came before the row at hand."""

    def __init__(self, line: str, header_line: int, header: list[str], *, decimal_comma: bool) -> None:
        self._line = line
        self._header_line = header_line
        self._header = _without_empty_end([cell.strip() for cell in header])
        self._decimal_comma = decimal_comma
        self._found = {found.column.name: found for found in self._find()}
        self._time = self._found["t_s"]
        self._units_may_follow = True
        self._readings: dict[str, float] = {}
        self._first_s: float | None = None
        self._last_s = -1.0
        self._last_text = ""

    def sample_of(self, row: list[str], line: int) -> Sample | None:
        """None where the row has none: it is empty, or of units, or before a first reading of all that is needed."""
        where = f"{self._line} {line}"
        row = _without_empty_end([cell.strip() for cell in row], len(self._header))
        # A logger that starts again into the same file writes its header again.
        if not any(row) or row == self._header:
            return None
        if len(row) != len(self._header):
            raise DemoError(
                f"{where}: {len(row)} cells where the first line has {len(self._header)}; mend the row or remove it"
            )
        if self._units_may_follow:
            self._units_may_follow = False
            if self._take_units(row, where):
                return None
        values = {name: self._value(found, row, where) for name, found in self._found.items() if name != "t_s"}
        self._readings.update({name: value for name, value in values.items() if value is not None})
        if any(column.name not in self._readings for column in REQUIRED[1:]):
            return None
        return Sample(
            t_s=self._rising_s(row, where),
            engine_rpm=self._readings["engine_rpm"],
            speed_kmh=self._readings["vehicle_speed_kmh"],
            throttle_pct=self._readings["throttle_position_pct"],
            fuel_pct=self._readings["fuel_level_pct"],
            battery_v=values.get("battery_voltage_v"),
            lat_deg=values.get("lat_deg"),
            lon_deg=values.get("lon_deg"),
        )

    def _rising_s(self, row: Sequence[str], where: str) -> float:
        """Seconds since the first sample."""
        text = row[self._time.index]
        moment_s = self._moment_s(text, where)
        if self._first_s is None:
            self._first_s = moment_s
        t_s = round(moment_s - self._first_s, 6)
        # Times to the millisecond are what tells one message from another.
        if round(t_s * 1000) <= round(self._last_s * 1000):
            raise DemoError(
                f"{where}: {self._time.heading} is {text} after {self._last_text}; it must rise by 1 ms or more: "
                "sort the rows, and remove what is there twice"
            )
        if t_s > LONGEST_DRIVE_S:
            raise DemoError(
                f"{where}: {self._time.heading} is {text}, decades after the first: mend the row, or its unit"
            )
        self._last_s, self._last_text = t_s, text
        return t_s

    def _moment_s(self, text: str, where: str) -> float:
        moment_s = _moment_of(text)
        if moment_s is not None:
            return moment_s
        number, factor = self._number(self._time, text, where)
        if factor is None:
            factor = _likely_time_unit_s(number)
            # Once for all rows.
            self._time = replace(self._time, factor=factor)
        return _in_range(self._time, number, factor, where)

    def _find(self) -> Iterator[Found]:
        missing = []
        for column in (*REQUIRED, *OPTIONAL):
            known = list(filter(None, (_match(column, index, heading) for index, heading in enumerate(self._header))))
            best = min((rank for rank, _ in known), default=None)
            same = [found for rank, found in known if rank == best]
            if len(same) > 1:
                names = " and ".join(f"{found.index + 1} ({found.heading!r})" for found in same)
                raise DemoError(
                    f"{self._line} {self._header_line}: columns {names} are both {column.name}; remove one of them"
                )
            if same:
                yield same[0]
            elif column in REQUIRED:
                missing.append(column.name)
        if missing:
            needed = ", ".join(column.name for column in REQUIRED)
            there = ", ".join(repr(heading.strip()) for heading in self._header[:20])
            raise DemoError(
                f"{self._line} {self._header_line}: no column {', '.join(missing)} (needed: {needed}); "
                f"it has {there or 'none'}. `glec-fast demo --help` says what each may be called"
            )

    def _take_units(self, row: Sequence[str], where: str) -> bool:
        """True if the row is not of numbers but says the units of the columns; they are then known."""
        units = {name: row[found.index].strip(" ()[]").lower() for name, found in self._found.items()}
        if not any(units.values()):
            return False
        if any(unit and unit not in self._found[name].column.units for name, unit in units.items()):
            return False
        for name, unit in units.items():
            found = self._found[name]
            factor = found.column.units[unit] if unit else found.factor
            if found.factor is not None and factor != found.factor:
                raise DemoError(f"{where}: the unit of {found.heading} is {unit}, its name says another; mend one")
            self._found[name] = replace(found, factor=factor)
        self._time = self._found["t_s"]
        return True

    def _value(self, found: Found, row: Sequence[str], where: str) -> float | None:
        text = row[found.index]
        if text == NO_READING or (not text and found.column in OPTIONAL):
            return None
        number, factor = self._number(found, text, where)
        return _in_range(found, number, 1.0 if factor is None else factor, where)

    def _number(self, found: Found, text: str, where: str) -> tuple[float, float | None]:
        """The number, and the factor of its unit; None where neither the cell nor the header says it."""
        number, unit = _split_unit(text, decimal_comma=self._decimal_comma)
        if number is None or (unit and unit not in found.column.units):
            also = "" if found.column is not TIME else " or a date with time"
            raise DemoError(f"{where}: {found.heading} is {text!r}, not a number{also}; mend the row or remove it")
        return number, found.column.units[unit] if unit else found.factor


def _in_range(found: Found, number: float, factor: float, where: str) -> float:
    column = found.column
    low, high = column.bounds
    value = number * factor
    if not low <= value <= high:
        converted = "" if factor == 1.0 else f", {value:g} as {column.name}"
        raise DemoError(
            f"{where}: {found.heading} is {number:g}{converted}, outside {low:g} to {high:g}; "
            "mend the row, or the unit in the header"
        )
    return value


@contextmanager
def _reading(path: Path) -> Iterator[TextIO]:
    try:
        with path.open("rb") as raw:
            packed = raw.peek(2).startswith(b"\x1f\x8b") or path.suffix == ".gz"
            binary = cast("io.BufferedReader", gzip.GzipFile(fileobj=raw)) if packed else raw
            with io.TextIOWrapper(binary, encoding="utf-8-sig", newline="") as text:
                yield text
    except (OSError, EOFError, zlib.error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise DemoError(f"cannot read the drive {path}: {reason}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DemoError(f"{path} is not a CSV file: {error}; save it as CSV in UTF-8") from error


def _head(text: TextIO) -> list[str]:
    """The lines up to the header, the first that is not empty."""
    head = []
    for line in text:
        head.append(line)
        if line.strip():
            break
    return head


def _delimiter_of(header: str) -> str:
    """The one by which the header has the most columns that are known, and then the most at all."""

    def known(delimiter: str) -> tuple[int, int]:
        cells = next(csv.reader([header], delimiter=delimiter, skipinitialspace=True), [])
        columns = (*REQUIRED, *OPTIONAL)
        return sum(any(_match(column, 0, cell) for column in columns) for cell in cells), len(cells)

    return max(DELIMITERS, key=known)


def _without_empty_end(row: list[str], width: int = 0) -> list[str]:
    """Without the empty cells that a comma at the end of a line makes, down to `width`."""
    end = len(row)
    while end > width and not row[end - 1].strip():
        end -= 1
    return row[:end]


def _match(column: Column, index: int, heading: str) -> tuple[int, Found] | None:
    """How far down among the column's names this one is, and what it says; None if it is another's."""
    for name, unit in _readings_of(heading.strip()):
        if unit is not None and unit not in column.units:
            continue
        for rank, group in enumerate(column.aliases):
            if name in group.split(", "):
                unit = unit or column.implied.get(name)
                return rank, Found(column, index, heading.strip(), column.units[unit] if unit else None)
    return None


def _readings_of(heading: str) -> Iterator[tuple[str, str | None]]:
    """What a heading may mean: (its name in words, its unit), from the plainest on."""
    if bracketed := re.fullmatch(r"(.*)[(\[]([^()\[\]]*)[)\]]", heading):
        yield _words(bracketed[1]), bracketed[2].strip().lower()
    words = _words(heading)
    yield words, None
    name, _, unit = words.rpartition(" ")
    yield name, unit
    name, _, half = name.rpartition(" ")
    yield name, f"{half} {unit}"
    name, _, unit = re.sub(r"[,:]", " ", heading).rpartition(" ")
    yield _words(name), unit.lower()


def _words(name: str) -> str:
    """engineRPM, Engine_RPM and engine.rpm alike."""
    return " ".join(re.sub(r"[\W_]+", " ", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name)).lower().split())


def _split_unit(text: str, *, decimal_comma: bool) -> tuple[float | None, str]:
    """The number, None where there is none, and the unit after it in lower case."""
    parts = re.fullmatch(r"([+-]?(?:nan|inf|[\d.,]+(?:e[+-]?\d+)?))\s*([^\d\s.,+-].*)?", text, re.ASCII | re.IGNORECASE)
    if parts is None:
        return None, ""
    digits = parts[1].replace(",", ".") if decimal_comma and "." not in parts[1] else parts[1]
    try:
        return float(digits), (parts[2] or "").lower()
    except ValueError:
        return None, ""


def _likely_time_unit_s(number: float) -> float:
    """Of a column that does not say it: that in which the number is a Unix time of our years, else a second."""
    return next((unit_s for unit_s in (1e-3, 1e-6, 1e-9) if YEAR_2000_S <= number * unit_s <= YEAR_2100_S), 1.0)


def _moment_of(text: str) -> float | None:
    """The seconds of a date with time, or of a time of day; None if it is neither. Without a zone it counts as UTC."""
    if text.isascii() and text.replace(".", "").isdigit():
        return None
    if clock := re.fullmatch(r"(\d{1,2}):(\d\d):(\d\d(?:[.,]\d+)?)", text):
        return int(clock[1]) * 3600 + int(clock[2]) * 60 + float(clock[3].replace(",", "."))
    words = text.split()
    if len(words) == 6:
        text = " ".join(words[:4] + words[5:])
    for layout in (None, *TIME_FORMATS):
        try:
            if layout is None:
                moment = datetime.fromisoformat(re.sub("[zZ]$", "+00:00", text))
            else:
                moment = datetime.strptime(text, layout)  # noqa: DTZ007  # the zone follows
        except ValueError:
            continue
        return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()
    return None
