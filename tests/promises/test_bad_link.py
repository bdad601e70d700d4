"""A drive over a bad link, in simulated time: nothing is lost, and no QoS 2 message arrives twice.

BAD_LINK_S: simulated seconds of each drive, and SEED. An hour is `make badlink`, which prints what it came to.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from support.bad_link import Drive, all_kinds, tunnels

if TYPE_CHECKING:
    from pathlib import Path

    from glec_fast.testbed.broker import Broker

SECONDS = float(os.environ.get("BAD_LINK_S", "240"))
SEED = int(os.environ.get("SEED", "1"))


@pytest.mark.parametrize("protocol_version", [4, 5])
def test_a_link_of_all_faults(broker: Broker, tmp_path: Path, protocol_version: int) -> None:
    drive = Drive(broker, tmp_path, SEED, protocol_version=protocol_version)
    report = drive.run(SECONDS, all_kinds, lambda number: (0, 0, 1, 0, 2)[number % 5])
    print(f"\nMQTT {protocol_version}: {report}")  # noqa: T201
    assert report.missing == {0: [], 1: [], 2: []}
    assert report.doubled[2] == []
    assert report.drops == {}


def test_telemetry_through_tunnels(broker: Broker, tmp_path: Path) -> None:
    """Twenty in an hour, each of half a minute."""
    drive = Drive(broker, tmp_path, SEED)
    report = drive.run(SECONDS, tunnels(180, 30), lambda _number: 0)
    print(f"\ntunnels: {report}")  # noqa: T201
    assert report.faults["tunnel"] == int(SECONDS / 180) + (SECONDS % 180 > 150)
    assert report.missing[0] == []
    assert report.drops == {}


def test_without_resending_the_missing_are_counted(broker: Broker, tmp_path: Path) -> None:
    drive = Drive(broker, tmp_path, SEED, resend_unproven=False)
    report = drive.run(min(SECONDS, 240), tunnels(60, 20), lambda _number: 0)
    print(f"\ntunnels, not sent again: {report}")  # noqa: T201
    assert len(report.missing[0]) <= report.drops.get("lost_in_the_air", 0)
    assert report.doubled[0] == []
