"""`glec-fast doctor`: its options, how findings are shown, and what the exit status says."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from typing import TYPE_CHECKING

from glec_fast.cli.connection import PASSWORD
from glec_fast.cli.doctor.finding import Finding
from glec_fast.errors import ConfigError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable
    from typing import TextIO

    SubParsers = argparse._SubParsersAction[argparse.ArgumentParser]

EXIT_FAILED = 1
SUMMARY = "say what stands between this gateway and its broker"
DESCRIPTION = """\
Go through settings, DNS, TCP, TLS, certificates, pins, login, clock, queue file and disk; say what was found and what
to do. Of several broker_urls each is looked at. Nothing is changed. The login is made as CLIENT_ID-doctor. With URL or
--probe also find out what the broker is: versions, QoS 2, retain, limits, sessions, Nagle's algorithm. That publishes
a few messages to glec-fast/doctor/CLIENT_ID-doctor, and leaves none behind. Exit status 1 if a check failed."""
_CHECK_WIDTH = len("client certificate")


def add_parser(subparsers: SubParsers) -> None:
    parser = subparsers.add_parser("doctor", help=SUMMARY, description=DESCRIPTION)
    parser.add_argument("url", metavar="URL", nargs="?", help="a broker alone, such as ssl://host:8883, and what it is")
    parser.add_argument(
        "--config", metavar="FILE", help="broker_config.properties (default: the environment of glec-fast service)"
    )
    parser.add_argument("--device-id", metavar="ID", help="what {DEVICE_ID} in FILE stands for, and the client id")
    parser.add_argument("--ca-cert", metavar="FILE", help="the authority of URL; without it, the system's")
    parser.add_argument("--username", metavar="NAME", help=f"at URL; its password comes from {PASSWORD}")
    parser.add_argument("--probe", action="store_true", help="also find out what the broker is, as with URL; see above")
    parser.add_argument(
        "--as-device",
        action="store_true",
        help="log in with the device's own client id, which ends the connection of its running service",
    )
    parser.add_argument("--ntp", metavar="HOST[:PORT]", help="a time server to measure this clock's difference from")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """0 if no check failed, else 1."""
    from glec_fast.cli.connection import config_at
    from glec_fast.cli.doctor.examine import examine

    findings: list[Finding] = []
    try:
        config = config_at("URL", arguments.url, arguments)
    except ConfigError as error:
        url = None
        made: Iterable[Finding] = [Finding("settings", "failed", str(error), "mend that; nothing else was looked at")]
    else:
        url = config.broker_url
        made = examine(
            config,
            as_device=arguments.as_device,
            ntp_server=arguments.ntp,
            probes=arguments.probe or arguments.url is not None,
            is_url_alone=arguments.url is not None,
        )
        findings.append(Finding("settings", "ok", f"{url} as {config.client_id}"))
    if not arguments.json:
        for finding in findings:
            _write(finding, sys.stdout)
    for finding in made:
        findings.append(finding)
        if not arguments.json:
            _write(finding, sys.stdout)
    failed = sum(finding.status == "failed" for finding in findings)
    if arguments.json:
        report = {"ok": not failed, "broker": url, "checks": [finding._asdict() for finding in findings]}
        sys.stdout.write(json.dumps(report) + "\n")
    else:
        sys.stdout.write(f"{failed} of {len(findings)} checks failed\n" if failed else "no check failed\n")
    return EXIT_FAILED if failed else 0


def _write(finding: Finding, stream: TextIO) -> None:
    status = finding.status.upper() if finding.status == "failed" else finding.status
    _write_lines(f"{status:8} {finding.check:{_CHECK_WIDTH}} ", finding.found, stream)
    if finding.advice and finding.status != "ok":
        _write_lines(f"{'':8} {'':{_CHECK_WIDTH}} -> ", finding.advice, stream)
    stream.flush()


def _write_lines(head: str, text: str, stream: TextIO) -> None:
    """One line for a pipe; on a terminal, as many as it needs, broken at words."""
    lines = [head + text]
    if stream.isatty():
        width = max(shutil.get_terminal_size().columns - 1, len(head) + 20)
        lines = textwrap.wrap(
            head + text, width, subsequent_indent=" " * len(head), break_long_words=False, break_on_hyphens=False
        )
    stream.writelines(f"{line}\n" for line in lines)
