"""What is on this gateway: the TLS files, the queue file, the disk."""

from __future__ import annotations

import logging
import os
import stat
import tempfile
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import apsw

from glec_fast.cli.doctor.finding import Finding
from glec_fast.cli.queue_file import leave_out_finished
from glec_fast.durable.database import located
from glec_fast.durable.file import holding, look_into
from glec_fast.errors import GlecError, QueueFormatError, QueueLockedError, TLSFileError
from glec_fast.tls.config import TLSConfig, TLSContext, TLSContextSource
from glec_fast.tls.files import Material

if TYPE_CHECKING:
    from collections.abc import Iterator

    from glec_fast.fleet.config import MQTTConfig

_FILES = "tls files"
# Beyond that a copy would cost a gateway more than it tells.
_LOOKED_INTO_MAX_BYTES = 64 << 20
# The specification's "Storage Usage": 50 MB for 10,000 messages.
_BYTES_A_MESSAGE = 5000
_MIB = 1 << 20
# A commit, and the write-ahead log that it goes to, need this much at least.
_NEEDED_BYTES = 8 * _MIB


class QueueState(NamedTuple):
    """The finding, and when the latest message was queued in Unix seconds, None where that is not known."""

    finding: Finding
    latest_s: float | None = None


def examine_files(config: MQTTConfig) -> tuple[list[Finding], TLSContext | None]:
    """Read the certificates and keys as a connection would; None where they are of no use, or not needed.

    Each that cannot be used is a finding of its own, so that one visit to the gateway mends them all.
    """
    if not config.broker.tls:
        return [Finding(_FILES, "skipped", "broker_url is not encrypted")], None
    settings = config.tls_config or TLSConfig()
    refusals = _refusals(settings)
    if refusals:
        return [_failed(refusal) for refusal in refusals], None
    with _warnings() as warnings:
        context = TLSContextSource(settings).get()
    findings = []
    for text in warnings:
        if "can read" in text:
            found, _, advice = text.partition(": ")
            findings.append(Finding(_FILES, "warning", found, advice))
        elif "passed over" in text:
            findings.append(Finding(_FILES, "warning", text, "take out what is not needed"))
    if not findings:
        named = [name for name in Material._fields if getattr(settings, name) is not None]
        found = f"{', '.join(named)} can be used" if named else "the system's authorities are trusted"
        findings.append(Finding(_FILES, "ok", found))
    return findings, context


def _refusals(settings: TLSConfig) -> list[str]:
    """What is said of each part by itself, and of the whole where that is something else."""
    alone = {"ca_cert": None, "client_cert": None, "client_key": None, "key_password": None, "crl_file": None}
    told: list[str] = []
    for names in (("ca_cert",), ("client_cert", "client_key", "key_password"), ("crl_file",), tuple(alone)):
        part = replace(settings, **{**alone, **{name: getattr(settings, name) for name in names}})
        try:
            with _warnings():
                TLSContextSource(part).get()
        except TLSFileError as error:
            if len(names) < len(alone) or not told:
                told.append(str(error))
    return told


def _failed(refusal: str) -> Finding:
    found, _, advice = refusal.partition("; ")
    return Finding(_FILES, "failed", found, advice or "mend it; it is read again at each connection")


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """What the product logs as a warning meanwhile."""
    texts: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: texts.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("glec_fast")
    logger.addHandler(handler)
    try:
        yield texts
    finally:
        logger.removeHandler(handler)


def examine_queue(config: MQTTConfig) -> QueueState:
    """The queue file, of which nothing is changed, whatever state it is in."""
    try:
        path = located(config.queue_path)
    except GlecError as error:
        found, _, advice = str(error).rpartition(": ")
        return QueueState(Finding("queue", "failed", found, advice))
    try:
        return _examine_queue(path, config.queue_max_size)
    except QueueLockedError:
        found = f"{path} is in use by a running program, as it is while the gateway's service runs"
        return QueueState(Finding("queue", "ok", found))
    except QueueFormatError as error:
        found, _, advice = str(error).rpartition(": ")
        return QueueState(Finding("queue", "failed", found or str(error), advice))
    except apsw.Error as error:
        advice = "back it up; the next start carries over what can be read"
        return QueueState(Finding("queue", "failed", f"{path} is damaged ({error})", advice))
    except OSError as error:
        advice = "check its path and rights, and the disk"
        return QueueState(Finding("queue", "failed", f"{path} cannot be read: {error.strerror}", advice))


def _examine_queue(path: Path, max_size: int) -> QueueState:
    if not path.parent.is_dir():
        found = f"there is no folder {path.parent}"
        return QueueState(Finding("queue", "failed", found, "make it, or set mqtt.queue.path to another"))
    if not os.access(path.parent, os.W_OK | os.X_OK) or (path.exists() and not os.access(path, os.R_OK | os.W_OK)):
        found, advice = (
            f"{path} cannot be written by this user",
            "run this as the gateway's service, or mend its rights",
        )
        return QueueState(Finding("queue", "failed", found, advice))
    if not path.exists():
        return QueueState(Finding("queue", "ok", f"{path} will be made at the first start"))
    lock = holding(path)
    try:
        if path.stat().st_size > _LOOKED_INTO_MAX_BYTES:
            return QueueState(Finding("queue", "ok", f"{path} has {path.stat().st_size / 1e6:.0f} MB"))
        with tempfile.TemporaryDirectory() as scratch:
            count, latest_ms = look_into(path, Path(scratch), leave_out_finished)
    finally:
        lock.release()
    latest_s = None if latest_ms is None else latest_ms / 1000
    found = f"{count} of at most {max_size} messages {'waits' if count == 1 else 'wait'} in {path}"
    if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        advice = f"run chmod 600 {path}"
        return QueueState(Finding("queue", "warning", f"others can open {path}; {found}", advice), latest_s)
    if count >= max_size:
        return QueueState(Finding("queue", "warning", found, "restore the link: each new one pushes the oldest out"))
    return QueueState(Finding("queue", "ok", found), latest_s)


def examine_disk(config: MQTTConfig) -> Finding:
    """Room for the queue at its largest."""
    try:
        folder = located(config.queue_path).parent
    except GlecError as error:
        found, _, advice = str(error).rpartition(": ")
        return Finding("disk", "failed", found, advice)
    try:
        figures = os.statvfs(folder)
    except OSError as error:
        return Finding("disk", "failed", f"{folder}: {error.strerror}", "make the folder of the queue file")
    free_bytes = figures.f_bavail * figures.f_frsize
    wanted_bytes = config.queue_max_size * _BYTES_A_MESSAGE + _NEEDED_BYTES
    found = f"{free_bytes / _MIB:,.0f} MiB are free in {folder}"
    if figures.f_flag & os.ST_RDONLY:
        return Finding("disk", "failed", f"{folder} is mounted read-only", "mount it for writing; check the flash")
    if free_bytes < _NEEDED_BYTES or (figures.f_files and not figures.f_favail):
        why = found if figures.f_favail or not figures.f_files else f"{found}, but no file can be made (no inodes)"
        return Finding("disk", "failed", why, "free some: without it nothing more is queued")
    if free_bytes < wanted_bytes:
        found += f"; {config.queue_max_size:,} messages may take {wanted_bytes / _MIB:,.0f}"
        return Finding("disk", "warning", found, "free some, or lower mqtt.queue.max_size")
    return Finding("disk", "ok", found)
