"""What a gateway publishes: streams of messages of one topic and QoS, from rates, a drive, or a queue file."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from glec_fast.cli.demo.drive import Drive, Kind, Message
from glec_fast.cli.demo.typed import alert_of, inference_of, telemetry_of
from glec_fast.cli.queue_file import fetch
from glec_fast.errors import ConfigError, MessageError
from glec_fast.fleet._payload import encode_message
from glec_fast.fleet.messages import Alert, Inference, Telemetry
from glec_fast.validation import check_publish

# Payloads that are kept of each stream.
_SAMPLES_MAX = 4000
_START_MS = 1_795_000_000_000
_QUEUE_ROWS_MAX = 20_000
_TELEMETRY = "telemetry"
_RATE_PARTS = 3
_TYPED: dict[Kind, Callable[[Message], Telemetry | Inference | Alert]] = {
    Kind.TELEMETRY: telemetry_of,
    Kind.INFERENCE: inference_of,
    Kind.ALERT: alert_of,
}
_PAGE = (
    "SELECT id, CAST(topic AS BLOB), CAST(payload AS BLOB), qos, timestamp FROM mqtt_offline_queue"
    " WHERE id > ? AND typeof(timestamp) = 'integer' AND qos IN (0, 1, 2) ORDER BY id LIMIT 500"
)


@dataclass(frozen=True)
class Stream:
    """Messages of one topic. payloads: what they carry, used in turn. is_telemetry: what batches gather."""

    topic: str
    qos: int
    per_s: float
    payloads: tuple[bytes, ...]

    @property
    def payload_bytes(self) -> float:
        """Of a message, on average."""
        return sum(map(len, self.payloads)) / len(self.payloads)

    @property
    def is_telemetry(self) -> bool:
        """True for what `telemetry_batch_s` gathers."""
        return self.topic.endswith(f"/{_TELEMETRY}")


class Planned(NamedTuple):
    """One message, at its time."""

    at_s: float
    topic: str
    qos: int
    payload: bytes


def timeline(streams: list[Stream]) -> Iterator[Planned]:
    """The messages of all streams in the order of time, without end; each stream begins half a period late."""
    waiting = [((index + 1) / (index + 2) / stream.per_s, index, 0) for index, stream in enumerate(streams)]
    heapq.heapify(waiting)
    while True:
        at_s, index, number = waiting[0]
        stream = streams[index]
        yield Planned(at_s, stream.topic, stream.qos, stream.payloads[number % len(stream.payloads)])
        heapq.heapreplace(waiting, (at_s + 1 / stream.per_s, index, number + 1))


def from_rate(text: str, device_id: str) -> Stream:
    """A stream of `QOS:RATE:BYTES` or `QOS:RATE:BYTES:TOPIC`; the rate in messages a second. Raises ConfigError."""
    parts = text.split(":", _RATE_PARTS)
    if len(parts) < _RATE_PARTS:
        raise ConfigError(f"--rate {text} must be QOS:RATE:BYTES or QOS:RATE:BYTES:TOPIC, such as 0:1:250")
    over, _, under = parts[1].partition("/")
    try:
        qos, per_s, size = int(parts[0]), float(over) / float(under or 1), int(parts[2])
    except (ValueError, ZeroDivisionError):
        says = f"--rate {text}: QOS and BYTES must be whole numbers, RATE a number or a fraction such as 1/60"
        raise ConfigError(says) from None
    if qos not in (0, 1, 2) or not 1e-6 <= per_s <= 1000 or not 0 <= size <= 1_000_000:
        says = f"--rate {text}: QOS must be 0, 1 or 2, RATE 0.000001 to 1000 a second, BYTES 0 to 1000000"
        raise ConfigError(says)
    topic = f"glec/dtg/{device_id}/{parts[_RATE_PARTS] if len(parts) > _RATE_PARTS else f'qos{qos}'}"
    try:
        check_publish(topic, qos)
    except MessageError as error:
        raise ConfigError(f"--rate {text}: {error}") from error
    return Stream(topic, qos, per_s, (b"x" * size,))


def from_drive(path: str | None, device_id: str) -> list[Stream]:
    """What a vehicle publishes on a recorded drive, a made-up one where None. Raises DemoError."""
    payloads: dict[Kind, list[bytes]] = {}
    counts: dict[Kind, int] = {}
    first_s = last_s = None
    for message in Drive(path=path).messages(_START_MS):
        if first_s is None:
            first_s = message.sample.t_s
        last_s = message.sample.t_s
        if message.kind is Kind.STATUS:
            # The manager says its own.
            continue
        counts[message.kind] = counts.get(message.kind, 0) + 1
        kept = payloads.setdefault(message.kind, [])
        if len(kept) < _SAMPLES_MAX:
            kept.append(encode_message(_TYPED[message.kind](message), device_id, message.timestamp_ms))
    length_s = max((last_s or 0.0) - (first_s or 0.0), 1.0)
    return [
        Stream(f"glec/dtg/{device_id}/{kind.topic}", kind.qos, counts[kind] / length_s, tuple(kept))
        for kind, kept in payloads.items()
    ]


def from_queue(path: Path) -> list[Stream]:
    """What waits in a queue file, as it came: its first rows. Raises ConfigError where there are too few of them."""
    rows: list[tuple[bytes, bytes, int, int]] = []
    last_id = 0
    while len(rows) < _QUEUE_ROWS_MAX:
        page = fetch(path, _PAGE, (last_id,))
        if not page:
            break
        last_id = page[-1][0]
        rows += [(row[1] or b"", row[2] or b"", row[3], row[4]) for row in page]
    span_s = (max(row[3] for row in rows) - min(row[3] for row in rows)) / 1000 if rows else 0.0
    if span_s < 1:
        raise ConfigError(f"{path} has messages of less than a second: no rate can be told from it; use --rate")
    grouped: dict[tuple[bytes, int], list[bytes]] = {}
    for topic, payload, qos, _ in rows:
        grouped.setdefault((topic, qos), []).append(payload)
    return [
        Stream(topic.decode("utf-8", "backslashreplace"), qos, len(payloads) / span_s, tuple(payloads[:_SAMPLES_MAX]))
        for (topic, qos), payloads in grouped.items()
    ]
