"""All checks in order, each only where those before it let it be made."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from glec_fast.cli.doctor.broker import CHECKS as BROKER_CHECKS
from glec_fast.cli.doctor.broker import examine_broker
from glec_fast.cli.doctor.clock import examine_clock
from glec_fast.cli.doctor.finding import Finding
from glec_fast.cli.doctor.local import examine_disk, examine_files, examine_queue
from glec_fast.cli.doctor.login import SUFFIX, examine_login
from glec_fast.cli.doctor.network import TLS_CHECKS, Examined, examine_addresses, examine_tls
from glec_fast.tls.config import TLSConfig
from glec_fast.tls.files import Material

if TYPE_CHECKING:
    from collections.abc import Iterator

    from glec_fast.cli.doctor.peer import Shown
    from glec_fast.fleet.config import MQTTConfig
    from glec_fast.tls.config import TLSContext


def examine(
    config: MQTTConfig,
    *,
    as_device: bool = False,
    ntp_server: str | None = None,
    probes: bool = False,
    is_url_alone: bool = False,
) -> Iterator[Finding]:
    """The findings, each as soon as it is made. as_device: see `examine_login`. ntp_server: host or host:port.

    probes: with what the broker is. is_url_alone: there is no gateway, and no queue.
    """
    files, context = examine_files(config)
    yield from files
    chain: list[Shown] = []
    for number, url in enumerate(config.urls, 1):
        if len(config.urls) > 1:
            yield Finding("broker", "ok", f"{number} of {len(config.urls)}: {url}")
        way = replace(config, broker_url=url, broker_urls=(), broker_name=None)
        yield from _examine_broker(way, context, chain, as_device=as_device, probes=probes)
    if is_url_alone:
        yield examine_clock(_past(config, tuple(chain), None), ntp_server)
        return
    queue = examine_queue(config)
    yield examine_clock(_past(config, tuple(chain), queue.latest_s), ntp_server)
    yield queue.finding
    yield examine_disk(config)


def _examine_broker(
    config: MQTTConfig, context: TLSContext | None, chain: list[Shown], *, as_device: bool, probes: bool
) -> Iterator[Finding]:
    """One URL. chain: extended by the certificates that were seen."""
    addresses = examine_addresses(config)
    yield from addresses
    is_reachable = addresses[-1].status in ("ok", "warning")
    if not config.broker.tls:
        yield from _unencrypted()
    elif config.proxy_url is not None and context is not None:
        reason = "not tried one by one through a proxy: the login below has them all"
        yield from (Finding(check, "skipped", reason) for check in TLS_CHECKS)
    elif context is None or not is_reachable:
        reason = "the broker cannot be reached" if context is not None else "the TLS files cannot be used"
        yield from (Finding(check, "skipped", reason) for check in TLS_CHECKS)
        is_reachable = False
    else:
        examined: Examined = examine_tls(config, context)
        yield from examined.findings
        chain += examined.chain
        is_reachable = all(finding.status in ("ok", "warning") for finding in examined.findings)
    login = Finding("login", "skipped", "there is no connection to log in over")
    if is_reachable:
        login = examine_login(config, as_device=as_device)
    yield login
    if not probes:
        return
    if login.status == "ok" and config.broker.transport == "tcp" and config.proxy_url is None:
        yield from examine_broker(config, config.client_id + SUFFIX)
    else:
        reason = "there was no login"
        if login.status == "ok":
            reason = f"it is not tried out {'over WebSocket' if config.proxy_url is None else 'through a proxy'}"
        yield from (Finding(check, "skipped", reason) for check in BROKER_CHECKS)


def _unencrypted() -> Iterator[Finding]:
    found = "broker_url is not encrypted: whoever listens on the way reads user name, password and messages"
    yield Finding("tls", "warning", found, "use ssl:// or wss://")
    for check in TLS_CHECKS[1:]:
        yield Finding(check, "skipped", "broker_url is not encrypted")


def _past(config: MQTTConfig, chain: tuple[Shown, ...], latest_s: float | None) -> Iterator[tuple[str, float]]:
    """What a right clock has behind it: (its name, Unix seconds)."""
    for shown in chain:
        yield f"the beginning of the certificate {shown.certificate.subject}", shown.certificate.not_before_s
    settings = config.tls_config or TLSConfig()
    for name in Material._fields:
        source = getattr(settings, name)
        if isinstance(source, (str, os.PathLike)) and Path(source).exists():
            yield f"the file of {name}", Path(source).stat().st_mtime
    if latest_s is not None:
        yield "the latest queued message", latest_s
