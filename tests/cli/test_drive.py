"""The recorded and the made-up drive, and what is wrong with a bad file."""

from __future__ import annotations

import gzip
import math
import random
import re
from collections import Counter
from dataclasses import astuple
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from glec_fast.cli.demo import DemoError
from glec_fast.cli.demo.drive import Drive, Kind, messages_of
from glec_fast.cli.demo.recording import OPTIONAL, REQUIRED, Sample, read_samples
from glec_fast.cli.main import main
from support.places import REPOSITORY, SHARED_DATA

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

DATA = SHARED_DATA
HEADER = "t_s,engine_rpm,vehicle_speed_kmh,throttle_position_pct,fuel_level_pct"


def write_drive(path: Path, *lines: str) -> Path:
    path.write_text("\n".join([HEADER, *lines]) + "\n")
    return path


def recording(name: str) -> Drive:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"the recorded drive {path} is not here; it is not part of the project")
    return Drive(str(path))


@pytest.mark.parametrize(
    ("name", "duration_s", "inferences", "statuses"),
    [("drive6_1hz.csv.gz", 3468, 57, 12), ("long7_1hz.csv.gz", 6066, 101, 21)],
)
def test_a_recorded_drive_makes_the_messages_of_the_specification(name, duration_s, inferences, statuses):
    kinds = Counter(message.kind for message in recording(name).messages(0))
    assert kinds == {Kind.TELEMETRY: duration_s, Kind.ALERT: 6, Kind.INFERENCE: inferences, Kind.STATUS: statuses}


def test_every_message_has_an_identity_of_its_own():
    messages = list(Drive().messages(1_000))
    assert [message.number for message in messages] == list(range(len(messages)))
    assert len({(message.kind, message.timestamp_ms) for message in messages}) == len(messages)


def test_the_made_up_drive_repeats_with_position_and_harsh_braking():
    drive = Drive(seed=7, duration_s=1200)
    first, again = list(drive.messages(0)), list(drive.messages(0))
    assert first == again
    assert first != list(Drive(seed=8, duration_s=1200).messages(0))
    assert all(message.sample.lat_deg is not None and message.sample.lon_deg is not None for message in first)
    assert any(message.kind is Kind.ALERT for message in first)
    assert any(message.sample.speed_kmh > 60 for message in first)


def test_the_made_up_position_moves_as_fast_as_the_vehicle():
    for before, after in pairwise(Drive(duration_s=600).samples()):
        north_m = (after.lat_deg - before.lat_deg) * 111_200
        east_m = (after.lon_deg - before.lon_deg) * 111_200 * 0.793
        assert (north_m**2 + east_m**2) ** 0.5 == pytest.approx(after.speed_kmh / 3.6, abs=0.3)


def test_braking_counts_per_second_of_the_recording():
    def sample(t_s: float, speed_kmh: float) -> Sample:
        return Sample(t_s, 1000, speed_kmh, 10, 50)

    slow = [sample(0, 50), sample(2, 32)]
    hard = [sample(0, 50), sample(1, 39)]
    assert [m.kind for m in messages_of(slow, 0) if m.kind is Kind.ALERT] == []
    assert [m.kind for m in messages_of(hard, 0) if m.kind is Kind.ALERT] == [Kind.ALERT]


def played_at(rate_hz: float, speed_kmh: Callable[[float], float], duration_s: float = 60.0) -> list[Sample]:
    """As a logger of `rate_hz` sees it that knows whole km/h only."""
    count = int(duration_s * rate_hz) + 1
    return [Sample(round(n / rate_hz, 4), 1000, round(speed_kmh(n / rate_hz)), 10, 50) for n in range(count)]


def alerts(samples: Iterable[Sample]) -> list[float]:
    return [message.sample.t_s for message in messages_of(samples, 0) if message.kind is Kind.ALERT]


RATES_HZ = [0.2, 0.5, 1, 2, 3, 4, 5, 10, 25, 50, 100]


@pytest.mark.parametrize("rate_hz", RATES_HZ)
@pytest.mark.parametrize("slope_kmh_per_s", [1, 4, 7, 9.5, 9.9])
def test_gentle_driving_is_no_harsh_braking_at_any_rate(rate_hz, slope_kmh_per_s):
    def speed_kmh(t_s: float) -> float:
        return 100 - slope_kmh_per_s * abs(t_s % 20 - 10)

    assert alerts(played_at(rate_hz, speed_kmh)) == []


@pytest.mark.parametrize("rate_hz", [rate for rate in RATES_HZ if rate >= 1])
@pytest.mark.parametrize(("drop_kmh", "seconds", "count"), [(14, 1, 1), (42, 3, 3), (24, 2, 2)])
def test_a_harsh_braking_is_one_alert_a_second_at_any_rate(rate_hz, drop_kmh, seconds, count):
    def speed_kmh(t_s: float) -> float:
        return 90 - drop_kmh * min(1.0, max(0.0, (t_s - 10) / seconds))

    found = alerts(played_at(rate_hz, speed_kmh))
    assert len(found) == count
    assert all(10 < t_s < 10 + seconds + 1.5 for t_s in found)
    assert all(round(after - before, 3) >= 0.95 for before, after in pairwise(found))


def test_braking_of_an_uneven_logger():
    dice = random.Random(1)
    times_s = list(accumulate(dice.uniform(0.8, 1.2) for _ in range(200)))
    gentle = [Sample(round(t_s, 3), 1000, round(100 - 9 * abs(t_s % 20 - 10)), 10, 50) for t_s in times_s]
    assert alerts(gentle) == []
    assert alerts([Sample(0, 1, 60, 1, 1), Sample(30, 1, 0, 1, 1)]) == []
    assert alerts(
        [Sample(0, 1, 60, 1, 1), Sample(5, 1, 60, 1, 1), Sample(5.3, 1, 50, 1, 1), Sample(6, 1, 45, 1, 1)]
    ) == [6]
    assert alerts([Sample(0, 1, 60, 1, 1), Sample(0.9, 1, 48, 1, 1)]) == [0.9]


@pytest.mark.parametrize(
    ("name", "rate_hz"),
    [
        *(("drive6_1hz.csv.gz", rate_hz) for rate_hz in (1, 2, 10, 100)),
        ("long7_1hz.csv.gz", 1),
        ("long7_1hz.csv.gz", 10),
    ],
)
def test_the_six_of_a_recorded_drive_are_the_same_at_any_rate(name, rate_hz):
    """Between its rows the speed goes straight from one to the next, in whole km/h."""
    rows = list(recording(name).samples())
    six = [now.t_s for before, now in pairwise(rows) if before.speed_kmh - now.speed_kmh > 10]
    assert len(six) == 6
    finer = [
        Sample(
            before.t_s + n / rate_hz,
            1000,
            round(before.speed_kmh + (now.speed_kmh - before.speed_kmh) * n / rate_hz),
            10,
            50,
        )
        for before, now in pairwise(rows)
        for n in range(rate_hz)
    ]
    assert alerts(finer) == pytest.approx(six, abs=0.5)


def test_the_verdict_on_a_minute_does_not_depend_on_the_rate():
    def speed_kmh(t_s: float) -> float:
        return 60 + 15 * math.sin(t_s / 4)

    judgements = {}
    for rate_hz in (1, 10, 100):
        judgements[rate_hz] = next(
            message.judgement for message in messages_of(played_at(rate_hz, speed_kmh), 0) if message.judgement
        )
    assert {judgement.behavior for judgement in judgements.values()} == {"NORMAL"}
    assert {judgement.safety_score for judgement in judgements.values()} <= set(range(75, 86))


ROWS = [(0.0, 800, 0, 15, 60), (0.5, 900.5, 36, 16, 60), (1.0, 1000, 72, 17.5, 59.5)]
SAMPLES = [Sample(*row) for row in ROWS]


def read(path: Path, text: str | bytes) -> list[Sample]:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return list(read_samples(path))


def table(
    header: str, *, t: float = 1.0, speed: float = 1.0, share: float = 1.0, delimiter: str = ",", first: float = 0
) -> str:
    """The rows in other units: factors from seconds, km/h and percent."""
    lines = [header]
    for t_s, rpm, speed_kmh, throttle_pct, fuel_pct in ROWS:
        cells = (f"{t_s * t + first:.12g}", rpm, repr(speed_kmh * speed), throttle_pct * share, fuel_pct * share)
        lines.append(delimiter.join(map(str, cells)))
    return "\n".join(lines) + "\n"


UNIX_S = 1704931200


@pytest.mark.parametrize(
    "text",
    [
        table(HEADER),
        table("t_ms,engine_rpm,vehicle_speed_mph,throttle_position_pct,fuel_level_pct", t=1e3, speed=1 / 1.609344),
        table("time (us),Engine RPM(rpm),Speed (m/s),Throttle Position(%),Fuel Level(%)", t=1e6, speed=1 / 3.6),
        table("timestamp,rpm,speed,throttle,fuel", first=UNIX_S),
        table("timestamp,rpm,speed,throttle,fuel", t=1e3, first=UNIX_S * 1e3),
        table("timestamp_ms,engine_rpm,vehicle_speed,throttle_position,fuel_level", t=1e3, first=UNIX_S * 1e3),
        table(
            "Time (sec),Engine RPM (RPM),Vehicle speed (MPH),Absolute throttle position (%),Fuel level input (%)",
            speed=1 / 1.609344,
        ),
        table("m.time.utc,v.m.rpm,v.p.speed,v.e.throttle,v.b.soc", first=UNIX_S),
        table(
            "logMonoTime,carState.engineRPM,carState.vEgo,carState.gas,carState.fuelGauge",
            t=1e9,
            speed=1 / 3.6,
            share=0.01,
            first=5e9,
        ),
        table("__time,/carState/engineRpm,/carState/vEgo,/carState/gas,/carState/fuelGauge", speed=1 / 3.6, share=0.01),
        table(HEADER.replace(",", ";"), delimiter=";"),
        table(HEADER.replace(",", ";"), delimiter=";").replace(".", ","),
        table(HEADER.replace(",", "\t"), delimiter="\t"),
        table(HEADER).replace("\n", "\r\n"),
        "\ufeff" + table(HEADER),
        "\n\n" + table(HEADER).replace("\n", "\n\n"),
        table(HEADER).replace("\n", ",\n"),
        table(HEADER).replace("\n", ",,\n").replace(HEADER + ",,", HEADER),
        table(HEADER) + ",,,,\n",
        table(HEADER.upper()),
        table(HEADER.replace("_", " ").title()),
        table(" " + HEADER.replace(",", " , ")),
        table('"' + HEADER.replace(",", '","') + '"'),
        table("t,rpm,speed,throttle,fuel\ns,rpm,km/h,%,%"),
        table("t,rpm,speed,throttle,fuel\n[ms],,[m/s],[%],", t=1e3, speed=1 / 3.6),
    ],
)
def test_a_log_is_read_by_its_header(tmp_path, text):
    found = read(tmp_path / "log.csv", text)
    assert [tuple(round(value, 6) for value in astuple(sample)[:5]) for sample in found] == ROWS
    assert read(tmp_path / "log.gz", gzip.compress(text.encode())) == found
    assert read(tmp_path / "named_plainly.csv", gzip.compress(text.encode())) == found


@pytest.mark.parametrize(
    "moments",
    [
        ("2024-01-11T00:00:00", "2024-01-11T00:00:00.500", "2024-01-11T00:00:01"),
        ("2024-01-11 00:00:00+09:00", "2024-01-11 00:00:00.500+09:00", "2024-01-11 00:00:01+09:00"),
        ("2024-01-11T23:59:59.500Z", "2024-01-12T00:00:00.000Z", "2024-01-12T00:00:00.500Z"),
        ("11-Jan-2024 00:00:00.000", "11-Jan-2024 00:00:00.500", "11-Jan-2024 00:00:01.000"),
        ("10:30:21.072", "10:30:21.572", "10:30:22.072"),
        ("3567.5Sec", "3568Sec", "3568.5Sec"),
    ],
)
def test_times_of_many_kinds(tmp_path, moments):
    rows = "".join(f"{moment},800,0,15,60\n" for moment in moments)
    assert [sample.t_s for sample in read(tmp_path / "log.csv", f"time,rpm,speed,throttle,fuel\n{rows}")] == [0, 0.5, 1]


TORQUE = """\
GPS Time, Device Time, Longitude, Latitude,GPS Speed (Meters/second), Altitude,Speed (OBD)(km/h),Engine RPM(rpm),\
Throttle Position(Manifold)(%),Fuel Level (From Engine ECU)(%),Voltage (OBD Adapter)(V)
Thu Jan 11 09:00:00 GMT+09:00 2024,11-Jan-2024 09:00:00.100,126.978,37.5665,10.0,38.0,-,800,-,60,13.8
Thu Jan 11 09:00:01 GMT+09:00 2024,11-Jan-2024 09:00:01.100,126.978,37.5665,10.0,38.0,36,800,15,60,13.8
GPS Time, Device Time, Longitude, Latitude,GPS Speed (Meters/second), Altitude,Speed (OBD)(km/h),Engine RPM(rpm),\
Throttle Position(Manifold)(%),Fuel Level (From Engine ECU)(%),Voltage (OBD Adapter)(V)
Thu Jan 11 09:00:02 GMT+09:00 2024,11-Jan-2024 09:00:02.100,126.979,37.5666,10.0,38.0,37,850,-,60,-
"""


def test_a_log_of_torque(tmp_path):
    """With a column of GPS beside that of the vehicle, readings that are not there, and its header again in between."""
    assert read(tmp_path / "trackLog.csv", TORQUE) == [
        Sample(0.0, 800, 36, 15, 60, 13.8, 37.5665, 126.978),
        Sample(1.0, 850, 37, 15, 60, None, 37.5666, 126.979),
    ]
    only_gps = TORQUE.replace("Speed (OBD)(km/h)", "x").replace("Device Time", "y")
    assert [(sample.t_s, sample.speed_kmh) for sample in read(tmp_path / "gps.csv", only_gps)][-1] == (1.0, 36.0)


def test_values_of_ovms_with_their_units(tmp_path):
    text = (
        "m.monotonic,v.m.rpm,v.p.speed,v.e.throttle,v.b.soc,v.b.12v.voltage\n"
        "0Sec,0,36Kph,0%,50.5%,12.5V\n1Sec,0,10m/s,0,50,12.4\n"
    )
    assert [(s.t_s, s.speed_kmh, s.fuel_pct, s.battery_v) for s in read(tmp_path / "ovms.csv", text)] == [
        (0, 36, 50.5, 12.5),
        (1, 36, 50, 12.4),
    ]


@pytest.mark.parametrize(
    ("header", "complaint"),
    [
        (HEADER + ",engine_rpm", r"columns 2 \('engine_rpm'\) and 6 \('engine_rpm'\) are both engine_rpm; remove one"),
        (HEADER + ",Vehicle Speed (km/h)", r"columns 3 .* and 6 .* are both vehicle_speed_kmh; remove one"),
        (HEADER + ",vehicle_speed_mph", r"columns 3 .* and 6 .* are both vehicle_speed_kmh; remove one"),
        (HEADER + ",T_S ", r"columns 1 .* and 6 .* are both t_s; remove one"),
        (HEADER + ",lat,latitude", r"columns 6 .* and 7 .* are both lat_deg; remove one"),
        (
            HEADER.replace("speed_kmh", "speed_furlongs"),
            r"no column vehicle_speed_kmh \(needed: .*it has .*'vehicle_speed_furlongs'",
        ),
        (HEADER.replace("fuel_level_pct", "Fuel (l)"), r"no column fuel_level_pct .*demo --help"),
    ],
)
def test_a_bad_header_is_refused_in_one_line(tmp_path, header, complaint):
    with pytest.raises(DemoError, match=rf"^{tmp_path}/log.csv: line 1: {complaint}[^\n]*$"):
        read(tmp_path / "log.csv", header + "\n" + ",".join("0" for _ in header.split(",")) + "\n")


def test_a_row_of_units_that_contradicts_the_header_is_refused(tmp_path):
    with pytest.raises(DemoError, match=r"line 2: the unit of vehicle_speed_kmh is mph, its name says another"):
        read(tmp_path / "log.csv", HEADER + "\ns,rpm,mph,%,%\n0,800,0,15,60\n")


def test_a_column_twice_that_is_not_used_does_no_harm(tmp_path):
    assert len(read(tmp_path / "log.csv", HEADER + ",note,note\n0,800,0,15,60,a,b\n")) == 1


def test_a_header_that_is_refused_is_named_by_its_line(tmp_path):
    with pytest.raises(DemoError, match=r"line 3: no column t_s"):
        read(tmp_path / "log.csv", "\n\nspeed,rpm\n1,2\n")


def test_the_help_and_the_documentation_say_every_column(capsys):
    with pytest.raises(SystemExit):
        main(["demo", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    documented = (REPOSITORY / "docs" / "recorded-drives.md").read_text()
    for column in (*REQUIRED, *OPTIONAL):
        for name in (column.name, *", ".join(column.aliases).split(", ")):
            assert re.search(rf"(?<![\w.]){re.escape(name)}(?![\w.])", said), name
            assert re.search(rf"\b{re.escape(name)}\b", documented), name


def test_position_battery_and_unknown_columns_are_optional(tmp_path):
    path = tmp_path / "drive.csv"
    path.write_text(HEADER + ",lat_deg,lon_deg,colour\n0,800,0,15,60,37.5,127.0,red\n1,800,0,15,60,,,blue\n")
    first, second = read_samples(path)
    assert (first.lat_deg, first.lon_deg, first.battery_v) == (37.5, 127.0, None)
    assert second.lat_deg is None


def test_a_compressed_file_reads_as_a_plain_one(tmp_path):
    plain = write_drive(tmp_path / "drive.csv", "0,800,0,15,60", "1,900,5,16,60")
    packed = tmp_path / "drive.csv.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert list(read_samples(packed)) == list(read_samples(plain))


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ("1,900,5,16", "line 3: 4 cells where the first line has 5"),
        ("1,fast,5,16,60", "line 3: engine_rpm is 'fast', not a number"),
        ("1,nan,5,16,60", "line 3: engine_rpm is nan, outside 0 to 20000"),
        ("1,900,-5,16,60", "line 3: vehicle_speed_kmh is -5, outside 0 to 500"),
        ("0,900,5,16,60", "line 3: t_s is 0 after 0; it must rise"),
        ("0.0001,900,5,16,60", "line 3: t_s is 0.0001 after 0; it must rise"),
        ("-1,900,5,16,60", "line 3: t_s is -1, outside 0 to"),
        ("1,,5,16,60", "line 3: engine_rpm is '', not a number; mend"),
        ("1,1_000,5,16,60", "line 3: engine_rpm is '1_000', not a number"),
        ('1,"1,200",5,16,60', "line 3: engine_rpm is '1,200', not a number"),
        ("1,900,5,16,60,7", "line 3: 6 cells where the first line has 5"),
        ("1,900,inf,16,60", "line 3: vehicle_speed_kmh is inf, outside 0 to 500"),
        ("1,900,200m/s,16,60", "line 3: vehicle_speed_kmh is 200, 720 as vehicle_speed_kmh, outside 0 to 500"),
        ("1,900,5,101,60", "line 3: throttle_position_pct is 101, outside 0 to 100; mend"),
        ("noon,900,5,16,60", "line 3: t_s is 'noon', not a number or a date with time; mend"),
        ("1704931200000,900,5,16,60", "line 3: t_s is 1.70493e.12, outside 0 to .*; mend the row, or the unit"),
        ("4000000000,900,5,16,60", "line 3: t_s is 4000000000, decades after the first"),
    ],
)
def test_a_bad_row_is_named_by_its_line(tmp_path, row, complaint):
    path = write_drive(tmp_path / "drive.csv", "0,800,0,15,60", row)
    with pytest.raises(DemoError, match=complaint):
        list(read_samples(path))


def test_a_missing_column_is_named(tmp_path):
    path = tmp_path / "drive.csv"
    path.write_text("t_s,engine_rpm\n0,800\n")
    with pytest.raises(DemoError, match="line 1: no column vehicle_speed_kmh, throttle_position_pct, fuel_level_pct"):
        list(read_samples(path))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("drive.csv.gz", b"not compressed"),
        ("drive.csv.gz", gzip.compress(b"t_s," * 500, mtime=0)[:-9]),
        ("drive.csv", b"\xff\xfe\x00"),
        ("drive.csv", b"t_s\x00,engine_rpm\n"),
        ("drive.csv", b""),
    ],
    ids=["not compressed", "cut short", "not text", "a null byte", "empty"],
)
def test_a_file_that_is_no_drive_is_one_clear_error(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DemoError, match=str(path)):
        list(read_samples(path))


def test_a_missing_file_and_a_folder_are_clear_errors(tmp_path):
    with pytest.raises(DemoError, match="No such file"):
        list(read_samples(tmp_path / "none.csv"))
    with pytest.raises(DemoError, match="Is a directory"):
        list(read_samples(tmp_path))
