"""`glec-fast demo`: its options, and what its exit status says."""

from __future__ import annotations

import argparse
import math
import sys
from contextlib import closing
from typing import TYPE_CHECKING

from glec_fast.cli.demo.drive import Drive
from glec_fast.cli.demo.recording import columns_help
from glec_fast.errors import ConfigError

if TYPE_CHECKING:
    SubParsers = argparse._SubParsersAction[argparse.ArgumentParser]

EXIT_FAILED = 1
MAX_KILLS = 100
MAX_BATCH_S = 3600

SUMMARY = "a drive through a cut link and a killed process"
DESCRIPTION = """\
Publish a vehicle's drive to a real broker, cut its link, kill the publishing
process, restore the link, and count what arrives. Exit status 1 if a message
that was on disk is lost, or one of QoS 2 comes twice."""


def add_parser(subparsers: SubParsers) -> None:
    parser = subparsers.add_parser(
        "demo",
        help=SUMMARY,
        description=DESCRIPTION,
        epilog=columns_help(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--drive", metavar="FILE", help="a recorded drive, see below (default: a made-up one)")
    parser.add_argument("--speed", metavar="N", type=_speed, help="play it N times as fast (default: in about 18 s)")
    parser.add_argument("--kills", metavar="N", type=_kills, default=1, help="kill the publisher N times (default: 1)")
    parser.add_argument(
        "--batch", metavar="S", type=_batch, default=0.0, help="gather telemetry for S seconds of the drive, up to 3600"
    )
    parser.add_argument("--broker", metavar="URL", help="tcp:// or ssl://host:port (default: start a mosquitto)")
    parser.add_argument("--ca-cert", metavar="FILE", help="PEM file to verify --broker with (default: the system's)")
    parser.add_argument(
        "--username", metavar="NAME", help="log in to --broker; the password is taken from GLEC_MQTT_PASSWORD"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object; the progress goes to stderr")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """0 if the verdict is good, 1 if not or if the run broke down."""
    from glec_fast.cli.demo.report import open_report, write_json, write_table
    from glec_fast.cli.demo.run import DemoRunError, DemoSettings, run_demo

    if arguments.broker is None:
        for name in ("ca_cert", "username"):
            if getattr(arguments, name) is not None:
                raise ConfigError(f"--{name.replace('_', '-')} belongs to --broker URL: name the broker as well")
    settings = DemoSettings(
        drive=Drive(path=arguments.drive),
        speed=arguments.speed,
        broker_url=arguments.broker,
        ca_cert=arguments.ca_cert,
        username=arguments.username,
        kills=arguments.kills,
        batch_s=arguments.batch,
    )
    try:
        with closing(open_report(sys.stderr if arguments.json else sys.stdout)) as report:
            result = run_demo(settings, report)
    except DemoRunError as failure:
        sys.stderr.write(f"glec-fast demo: FAILED: {failure}\n")
        return EXIT_FAILED
    if arguments.json:
        write_json(result, sys.stdout)
    else:
        write_table(result, sys.stdout)
    return 0 if result.ok else EXIT_FAILED


def _speed(text: str) -> float:
    try:
        speed = float(text)
    except ValueError:
        speed = math.nan
    if not 0 < speed < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return speed


def _batch(text: str) -> float:
    seconds = _speed(text)
    if seconds > MAX_BATCH_S:
        raise argparse.ArgumentTypeError(f"{text} is more than {MAX_BATCH_S}")
    return seconds


def _kills(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) <= MAX_KILLS):
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 0 to {MAX_KILLS}")
    return int(text)
