"""`glec-fast plan`: how many hours without a link fit, and what the flash and the SIM go through.

The load is a drive (a made-up one where nothing else is named), rates and sizes, or what waits in a queue file.
Settings are those of --config and --set, else the defaults. Flash is tried out: a few megabytes are written to
--directory, by the queue itself, in the transactions that the load would make; telemetry is not gathered in batches
there. Bytes over the air are computed for single messages, with topic aliases (MQTT 5), and with telemetry in batches
of telemetry_batch_s, or 60 s.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from glec_fast.cli.arguments import count_of
from glec_fast.errors import ConfigError
from glec_fast.fleet.config import MQTTConfig
from glec_fast.settings import settings_of

if TYPE_CHECKING:
    from glec_fast.cli.plan.air import Air
    from glec_fast.cli.plan.load import Stream
    from glec_fast.cli.plan.trial import Written

SUMMARY = "hours offline that fit, years of flash, megabytes over the air"
_HOUR_S, _DAY_S, _YEAR_DAYS, _MONTH_DAYS = 3600.0, 86_400.0, 365.25, 30
_YEARS_MAX = 1000


class Plan(NamedTuple):
    """hours: without a link until the first message is dropped; limit: the setting that is reached then.

    years: until the flash has been written as often as it can be.
    """

    messages_per_day: float
    row_bytes: float
    hours: float
    limit: str
    flash_online_per_day: float
    flash_offline_per_day: float
    flash_per_day: float
    years: float
    air_per_month: dict[str, float | None]


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser("plan", help=SUMMARY, description=__doc__)
    load = parser.add_argument_group("what is published").add_mutually_exclusive_group()
    load.add_argument("--drive", metavar="FILE", help="as of glec-fast demo")
    load.add_argument(
        "--rate",
        metavar="QOS:RATE:BYTES[:TOPIC]",
        action="append",
        help="messages a second, such as 0:1:250 or 1:1/60:300:inference; may be given again",
    )
    load.add_argument("--queue", metavar="FILE", type=Path, help="what waits there, as fast as it came")
    settings = parser.add_argument_group("settings")
    settings.add_argument("--config", metavar="FILE", help="a broker_config.properties")
    settings.add_argument("--device-id", metavar="ID", help="what {DEVICE_ID} in FILE stands for")
    settings.add_argument(
        "--set", metavar="NAME=VALUE", action="append", default=[], help="one, such as queue_max_size=50000; again"
    )
    device = parser.add_argument_group("the device")
    device.add_argument("--offline-hours", metavar="H", type=_hours, default=2.0, help="a day (default: 2)")
    device.add_argument("--flash-gb", metavar="GB", type=_size, default=8.0, help="its size (default: 8)")
    device.add_argument("--flash-cycles", metavar="N", type=count_of, default=3000, help="(default: 3000)")
    device.add_argument(
        "--flash-factor", metavar="F", type=_size, default=3.0, help="flash written for each byte of ours (default: 3)"
    )
    device.add_argument(
        "--directory", metavar="DIR", type=Path, help="on its flash, for the trial (default: temporary)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Raises ConfigError for what is no plan."""
    from glec_fast.cli.demo import DemoError
    from glec_fast.cli.plan.air import over_the_air
    from glec_fast.cli.plan.trial import try_out

    config = _config(arguments)
    try:
        streams = _load(arguments, config)
    except DemoError as error:
        raise ConfigError(str(error)) from error
    directory = arguments.directory or Path(tempfile.gettempdir())
    if not directory.is_dir():
        raise ConfigError(f"there is no folder {directory}: make it, or name another by --directory")
    plan = plan_for(streams, config, try_out(streams, config, directory), over_the_air(streams, config), arguments)
    if arguments.json:
        found: dict[str, Any] = {
            "streams": [
                {"topic": each.topic, "qos": each.qos, "per_s": each.per_s, "payload_bytes": each.payload_bytes}
                for each in streams
            ],
            **plan._asdict(),
        }
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
    else:
        sys.stdout.writelines(f"{line}\n" for line in in_words(streams, plan, arguments))
    return 0


def plan_for(
    streams: list[Stream],
    config: MQTTConfig,
    written: Written,
    air: dict[str, Air | None],
    arguments: argparse.Namespace,
) -> Plan:
    per_s = sum(each.per_s for each in streams)
    limits = {
        "queue_max_size": config.queue_max_size / per_s / _HOUR_S,
        "queue_max_bytes": max(config.queue_max_bytes - written.empty_bytes, 0.0)
        / (per_s * written.row_bytes)
        / _HOUR_S,
        "queue_ttl_hours": float(config.queue_ttl_hours),
    }
    limit = min(limits, key=lambda name: limits[name])
    share = arguments.offline_hours / 24
    online, offline = written.online_per_s * _DAY_S, written.offline_per_s * _DAY_S
    daily = online * (1 - share) + offline * share
    endured = arguments.flash_gb * 1e9 * arguments.flash_cycles
    years = endured / (daily * arguments.flash_factor) / _YEAR_DAYS if daily else float("inf")
    monthly = {name: None if each is None else each.per_day * _MONTH_DAYS for name, each in air.items()}
    return Plan(per_s * _DAY_S, written.row_bytes, limits[limit], limit, online, offline, daily, years, monthly)


def in_words(streams: list[Stream], plan: Plan, arguments: argparse.Namespace) -> list[str]:
    lines = [f"{plan.messages_per_day:,.0f} messages a day"]
    lines += [
        f"  QoS {each.qos}  {each.per_s * _DAY_S:>12,.0f} of {each.payload_bytes:,.0f} bytes  {each.topic}"
        for each in streams
    ]
    years = "for ever" if plan.years > _YEARS_MAX else f"{plan.years:,.1f} years"
    flash = f"{arguments.flash_gb:g} GB of {arguments.flash_cycles:,} cycles"
    lines += [
        "",
        f"without a link       {plan.hours:,.1f} h fit, then {plan.limit} is reached",
        f"a message on disk    {plan.row_bytes:,.0f} bytes of the queue file",
        f"flash with a link    {plan.flash_online_per_day / 1e6:,.1f} MB a day",
        f"flash without one    {plan.flash_offline_per_day / 1e6:,.1f} MB a day",
        f"flash, in a day      {plan.flash_per_day / 1e6:,.1f} MB with {arguments.offline_hours:g} h offline",
        f"life of the flash    {years}: {flash}",
    ]
    for name, monthly in plan.air_per_month.items():
        shown = "needs JSON: name a --drive or a --queue" if monthly is None else f"{monthly / 1e6:,.1f} MB a month"
        lines.append(f"air, {name:<15} {shown}")
    return lines


def _config(arguments: argparse.Namespace) -> MQTTConfig:
    device_id = arguments.device_id or "DTG-SN-12345"
    if arguments.config is None:
        config = MQTTConfig("ssl://broker:8883", device_id)
    else:
        config = MQTTConfig.from_properties(arguments.config, device_id=arguments.device_id)
    described = settings_of(MQTTConfig)
    changes: dict[str, object] = {}
    for text in arguments.set:
        name, equals, value = text.partition("=")
        if not equals or name not in described:
            raise ConfigError(f"--set {text} is no setting: write NAME=VALUE; `glec-fast settings` lists them")
        try:
            changes[name] = described[name].kind.parse(value)
        except ValueError as error:
            raise ConfigError(f"--set {name}: {error}", field=name) from error
    return dataclasses.replace(config, **changes)  # type: ignore[arg-type]


def _load(arguments: argparse.Namespace, config: MQTTConfig) -> list[Stream]:
    from glec_fast.cli.plan.load import from_drive, from_queue, from_rate

    if arguments.queue is not None:
        return from_queue(arguments.queue)
    if arguments.rate is None:
        return from_drive(arguments.drive, config.client_id)
    return [from_rate(text, config.client_id) for text in arguments.rate]


def _hours(text: str) -> float:
    value = _size(text)
    if value > 24:
        raise argparse.ArgumentTypeError(f"{text} is more than a day")
    return value


def _size(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return value
