"""The recorded and the made-up drive, and what is wrong with a bad file."""

from __future__ import annotations

import gzip
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from glec_fast.demo import DemoError
from glec_fast.demo.drive import Drive, Kind, Sample, messages_of, read_samples

DATA = Path(__file__).parents[2] / "shared" / "data"
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


def test_the_made_up_drive_is_repeatable_and_has_position_and_harsh_braking():
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
