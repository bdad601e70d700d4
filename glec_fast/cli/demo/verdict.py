"""Who said what about each message, and what follows: published, received, lost, duplicates.

A message counts as *published* once its process had said that it was on disk, or when it arrived. *Lost* is one that
was on disk and did not arrive. *Unconfirmed* is one that did neither: its process was killed before it could say so
(the call to `publish` never returned, or the message was a QoS 0 one in memory), or it is a QoS 0 message that was in
the air when the link was cut, for which MQTT promises nothing. So published = received + lost, at each QoS.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from glec_fast.errors import MessageError
from glec_fast.fleet.batches import decode_batch

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from glec_fast.cli.demo.drive import Message

QOS_LEVELS = (0, 1, 2)

# The last word of the topic, and the time in the payload: unique within a drive.
Identity = tuple[str, int]
# Behind the topic that the messages of a batch would have had.
_BATCH = "/batch"
ByQos = dict[str, int]


def identify(topic: str, payload: bytes) -> Identity | None:
    """The identity of a message on the wire; None for one that no drive publishes, such as a last will."""
    try:
        content = json.loads(payload)
    except ValueError:
        return None
    timestamp_ms = content.get("timestamp") if isinstance(content, dict) else None
    return (topic.rpartition("/")[2], timestamp_ms) if isinstance(timestamp_ms, int) else None


def split(topic: str, payload: bytes) -> Iterator[tuple[str, bytes]]:
    """The messages in what arrived, as each would have come alone."""
    single, is_batch, _ = topic.partition(_BATCH)
    if not is_batch:
        yield topic, payload
        return
    try:
        messages = decode_batch(payload)
    except MessageError:
        # It counts as none, so that what was in it is missed.
        return
    for message in messages:
        yield single, json.dumps(message, separators=(",", ":")).encode()


class Batches(NamedTuple):
    """Telemetry that came in batches: how many, of how many messages, of how many bytes; and alone it had had these."""

    batches: int
    messages: int
    payload_bytes: int
    alone_bytes: int

    @classmethod
    def of(cls, arrivals: Iterable[tuple[str, bytes, int]]) -> Batches:
        found = [(payload, list(split(topic, payload))) for topic, payload, _ in arrivals if topic.endswith(_BATCH)]
        alone = [each for _, messages in found for _, each in messages]
        return cls(len(found), len(alone), sum(len(payload) for payload, _ in found), sum(map(len, alone)))


@dataclass
class CommandCounts:
    """Of one command."""

    copies: int = 0
    runs: int = 0
    replies: int = 0


@dataclass(frozen=True)
class Result:
    """What the demo found. `ok` is its exit status. batches: None where telemetry is not gathered."""

    published: ByQos
    received: ByQos
    lost: ByQos
    duplicates: ByQos
    unconfirmed: ByQos
    flush_rate_msg_s: float
    kills: int
    queue_peak: int
    disk_bytes: int
    memory_bytes: int
    broker: str
    # One that was sent while the link was cut: its copies, how often it ran, its replies.
    command: CommandCounts
    batches: Batches | None = None

    @property
    def ok(self) -> bool:
        """Nothing that was on disk is missing, nothing of QoS 2 came twice, and the command ran once."""
        return not any(self.lost.values()) and not self.duplicates["2"] and self.is_command_ok

    @property
    def is_command_ok(self) -> bool:
        """It ran once, and each copy of it was answered."""
        return self.command.runs == bool(self.command.copies) and self.command.replies == self.command.copies


@dataclass
class Measures:
    """Figures taken along the way; the peaks are over all processes of the run."""

    kills: int = 0
    queue_peak: int = 0
    disk_bytes: int = 0
    memory_bytes: int = 0
    flushed_messages: int = 0
    flush_s: float = 0.0
    command: CommandCounts = field(default_factory=CommandCounts)

    def note_flush(self, messages: int, seconds: float) -> None:
        """Keep the largest flush: a few messages say nothing about the rate."""
        if messages > self.flushed_messages:
            self.flushed_messages = messages
            self.flush_s = seconds

    @property
    def flush_rate_msg_s(self) -> float:
        return round(self.flushed_messages / self.flush_s, 1) if self.flush_s else 0.0


@dataclass
class Ledger:
    """What the vehicle's processes have said about the messages of one drive, by number."""

    qos_of: list[int] = field(default_factory=list)
    numbers: dict[Identity, int] = field(default_factory=dict)
    begun: set[int] = field(default_factory=set)
    safe: set[int] = field(default_factory=set)
    duration_ms: int = 0

    @classmethod
    def of(cls, messages: Iterable[Message]) -> Ledger:
        ledger = cls()
        for message in messages:
            ledger.numbers[message.kind.topic, message.timestamp_ms] = message.number
            ledger.qos_of.append(message.kind.qos)
            ledger.duration_ms = round(message.sample.t_s * 1000)
        return ledger

    @property
    def next_number(self) -> int:
        """Where a new process goes on: an unconfirmed message is not tried again, since it may be on disk."""
        return max(self.begun, default=-1) + 1

    def judge(self, tally: Mapping[tuple[Any, int], int], measures: Measures, broker: str) -> Result:
        """Compare with what the subscriber counted, `tally`: by identity and the QoS that it came with."""
        copies: dict[int, int] = {}
        for (identity, _), count in tally.items():
            number = self.numbers.get(identity)
            if number is not None:
                copies[number] = copies.get(number, 0) + count
        received = set(copies)
        return Result(
            published=self._by_qos(received | self.safe),
            received=self._by_qos(received),
            lost=self._by_qos(self.safe - received),
            duplicates=self._by_qos(number for number, count in copies.items() for _ in range(count - 1)),
            unconfirmed=self._by_qos(self.begun - self.safe - received),
            flush_rate_msg_s=measures.flush_rate_msg_s,
            kills=measures.kills,
            queue_peak=measures.queue_peak,
            disk_bytes=measures.disk_bytes,
            memory_bytes=measures.memory_bytes,
            broker=broker,
            command=measures.command,
        )

    def _by_qos(self, numbers: Iterable[int]) -> ByQos:
        counts = dict.fromkeys(map(str, QOS_LEVELS), 0)
        for number in numbers:
            counts[str(self.qos_of[number])] += 1
        return counts
