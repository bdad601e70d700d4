"""The device's clock: against a time server where one is named, else against what must lie behind it.

MQTT tells no time. A certificate that the broker shows began in the past, and so did every file and queued message.
"""

from __future__ import annotations

import secrets
import socket
import struct
import time
from typing import TYPE_CHECKING

from glec_fast.cli.doctor.finding import Finding
from glec_fast.cli.doctor.peer import utc
from glec_fast.durable._table import clock_error_us

if TYPE_CHECKING:
    from collections.abc import Iterable

NTP_PORT = 123
_NTP_TIMEOUT_S = 3.0
# RFC 5905, 7.3: leap 0, version 4, mode 3 (client); then 47 bytes of which the last 8 are our mark.
_NTP_REQUEST = struct.Struct(">B39xQ")
_NTP_ANSWER = struct.Struct(">BBbb11I")
_NTP_MODE_SERVER = 4
# Seconds from 1900 to 1970; NTP's era ends in 2036.
_NTP_EPOCH_S = 2_208_988_800
_NTP_ERA_S = 1 << 32
_GOOD_S, _BEARABLE_S = 2.0, 60.0
# What the kernel says of a clock that nothing keeps right.
_UNKNOWN_ERROR_US = 16_000_000
_ADVICE = "set the clock (NTP or GPS): certificates and the queue's expiry go by it"


def examine_clock(past: Iterable[tuple[str, float]], ntp_server: str | None) -> Finding:
    """past: what must be over (its name, Unix seconds)."""
    now_s = time.time()
    latest = max(past, key=lambda each: each[1], default=None)
    if latest is not None and latest[1] > now_s:
        found = (
            f"it is {utc(now_s)} here, at least {_span(latest[1] - now_s)} behind: {latest[0]} is of {utc(latest[1])}"
        )
        return Finding("clock", "failed", found, _ADVICE)
    if ntp_server is not None:
        return _compare(ntp_server)
    kept = _is_kept_right()
    if kept:
        return Finding("clock", "ok", f"it is {utc(now_s)} here, and the kernel says that the clock is synchronised")
    found = f"it is {utc(now_s)} here; nothing that was seen is of a later time"
    if kept is None:
        return Finding("clock", "ok", found)
    advice = "name a time server with --ntp to have the difference measured; have one set the clock"
    return Finding("clock", "warning", f"{found}, but the kernel says that nothing keeps the clock right", advice)


def _compare(server: str) -> Finding:
    try:
        ahead_s = clock_ahead_s(server)
    except (OSError, ValueError) as error:
        found = f"the time server {server} gave no answer ({error})"
        return Finding("clock", "warning", found, "name one with --ntp that this gateway can reach")
    found = f"{_span(abs(ahead_s))} {'ahead of' if ahead_s > 0 else 'behind'} {server}"
    if abs(ahead_s) <= _GOOD_S:
        return Finding("clock", "ok", found)
    return Finding("clock", "warning" if abs(ahead_s) <= _BEARABLE_S else "failed", found, _ADVICE)


def clock_ahead_s(server: str) -> float:
    """How far this clock is ahead of a time server (RFC 5905, 8), in seconds. server: host or host:port.

    Raises OSError, ValueError where the answer is none.
    """
    host, _, port = server.partition(":")
    if port and not port.isdecimal():
        raise ValueError("it is no HOST or HOST:PORT")
    address = socket.getaddrinfo(host, int(port) if port else NTP_PORT, type=socket.SOCK_DGRAM)[0]
    mark = secrets.randbits(64)
    with socket.socket(address[0], socket.SOCK_DGRAM) as sock:
        sock.settimeout(_NTP_TIMEOUT_S)
        # Answers of others are not even received.
        sock.connect(address[4])
        sent_s = time.time()
        sock.send(_NTP_REQUEST.pack(0x23, mark))
        answer = sock.recv(1024)
        received_s = time.time()
    if len(answer) < _NTP_ANSWER.size:
        raise ValueError("its answer is too short")
    mode, stratum, *_, origin_s, origin_part, in_s, in_part, out_s, out_part = _NTP_ANSWER.unpack_from(answer)
    if mode & 7 != _NTP_MODE_SERVER or origin_s << 32 | origin_part != mark:
        raise ValueError("its answer is to another question")
    if mode >> 6 == 3 or not 1 <= stratum <= 15:
        raise ValueError("it does not know the time itself")
    return (sent_s - _unix_s(in_s, in_part, sent_s) + received_s - _unix_s(out_s, out_part, received_s)) / 2


def _unix_s(seconds: int, part: int, near_s: float) -> float:
    """The time in the era that is nearest to `near_s`."""
    at_s = seconds - _NTP_EPOCH_S + part / _NTP_ERA_S
    return at_s + round((near_s - at_s) / _NTP_ERA_S) * _NTP_ERA_S


def _is_kept_right() -> bool | None:
    """What the kernel knows of it; None where it says nothing."""
    try:
        return clock_error_us() < _UNKNOWN_ERROR_US
    except OSError:
        return None


def _span(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h" if seconds < 172_800 else f"{seconds / 86_400:.0f} days"
