"""A seeded life of a gateway on a disk that is written down, and the check of any moment at which the power is cut."""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from glec_fast.durable.limits import THIN
from glec_fast.durable.outcomes import DropReason
from support.clock import Clock
from support.faulty_disk import Event, FaultyDisk, Note
from support.power_cut import Files, Medium, lay_out
from support.scripted_broker import ScriptedBroker, publication_of
from support.scripted_gateway import OnDisk, ScriptedGateway
from support.session_model import RELEASED, STATES_OF_MESSAGES, decode_image
from support.wire_reference import PUBLISH, PUBREL, Packet, parse

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator
    from pathlib import Path

    from glec_fast.durable.outcomes import Dropped
    from glec_fast.outbox.handle import PublishHandle

QUEUE = "queue.db"
_TURNS_MAX = 2000


class Accepted(NamedTuple):
    """Losing this message from here on breaks a promise."""

    message_id: int
    payload: str
    qos: int
    published_s: float


class DroppedAs(NamedTuple):
    """The program is told that this message is gone. is_kept: into quarantine."""

    message_id: int
    is_kept: bool


class TransactionBegins(NamedTuple):
    """What the store's thread writes from here on is one transaction, until the next begins."""


class Left(NamedTuple):
    """These bytes are on the wire."""

    data: bytes


class BrokerIs(NamedTuple):
    """The broker as it now is; never changed afterwards."""

    broker: ScriptedBroker


class ClockIs(NamedTuple):
    now_s: float


class LinkCut(NamedTuple):
    pass


@dataclass(frozen=True)
class Settings:
    """What one life is about. Limits of the queue and `ttl_ms` small enough make overflow and expiry part of it.

    refuses_every: the broker ends connections over every so many-th message; 0 for none.
    """

    seed: int
    actions: int = 200
    protocol_version: int = 4
    window: int = 6
    max_unreleased: int = 5
    max_queue_size: int = 1000
    ttl_ms: int = 1000_000
    max_queue_bytes: int = 0
    queue_order: str = "fifo"
    overflow: str = "oldest"
    refuses_every: int = 0

    def refuses(self, payload: str) -> bool:
        """True where the broker does."""
        return bool(self.refuses_every) and int(payload.split("-")[1]) % self.refuses_every == 0


class Life:
    """Acts at random on a gateway and a broker, and notes what is promised, between what the disk does."""

    def __init__(self, disk: FaultyDisk, settings: Settings) -> None:
        self._disk = disk
        self._settings = settings
        self._chance = random.Random(settings.seed)
        self._clock = Clock()
        self._broker = ScriptedBroker(settings.protocol_version, settings.max_unreleased)
        self._answers = b""
        self._number = 0
        self._unsure: list[tuple[PublishHandle, Accepted]] = []
        self._gateway = self._open()

    def run(self) -> None:
        """Live; the process ends in order."""
        actions = (
            (self._publish, 10), (self._send, 12), (self._broker_handles, 12), (self._broker_answers, 12),
            (self._commit, 4), (self._cut, 2), (self._let_time_pass, 1), (self._restart, 0.4),
            (self._be_offline, 1 if self._settings.overflow == THIN else 0),
            (self._go_on, 4 if self._settings.refuses_every else 0),
        )  # fmt: skip
        self._gateway.connect()
        for _ in range(self._settings.actions):
            self._chance.choices([action for action, _ in actions], [weight for _, weight in actions])[0]()
        self._end_process()

    def _open(self) -> ScriptedGateway:
        gateway = open_gateway(self._disk.folder / QUEUE, self._settings, self._clock)
        take_finished, on_dropped = gateway.outbox.take_finished, gateway.outbox.on_dropped

        def watched_take_finished() -> list[int]:
            self._disk.note(TransactionBegins())
            return take_finished()

        def watched_on_dropped(dropped: list[Dropped]) -> None:
            for each in dropped:
                # Nothing is promised of QoS 0.
                if each.qos:
                    self._disk.note(DroppedAs(each.message_id, each.reason is DropReason.QUARANTINED))
            on_dropped(dropped)

        gateway.outbox.take_finished = watched_take_finished  # type: ignore[method-assign]
        gateway.outbox.on_dropped = watched_on_dropped  # type: ignore[method-assign]
        return gateway

    def _publish(self) -> None:
        for _ in range(self._chance.choice((1, 1, 1, 2, 5))):
            qos = self._chance.choice((0, 0, 0, 1, 2) if self._settings.overflow == THIN else (0, 1, 2, 2))
            self._number += 1
            payload = f"{qos}-{self._number}-" + "x" * self._chance.choice((0, 0, 300, 5000))
            handle = self._gateway.publish(payload, qos, retain=is_retained(payload))
            accepted = Accepted(handle.message_id, payload, qos, self._clock.now_s)
            if qos == 2:
                self._disk.note(accepted)
            elif qos == 1:
                self._unsure.append((handle, accepted))

    def _send(self) -> None:
        self._send_bytes(self._chance.choice((1, 7, 60, 400, 1 << 20)))

    def _send_bytes(self, limit_bytes: int) -> None:
        self._broker.feed(self._gateway.send(limit_bytes, lambda data: self._disk.note(Left(data))))

    def _broker_handles(self) -> None:
        is_over = False
        for _ in range(self._chance.choice((1, 2, 10))):
            packets, _ = parse(self._broker.inbox)
            is_over = bool(packets) and self._is_refused(packets[0])
            if is_over:
                break
            self._answers += self._broker.handle(1)
        self._disk.note(BrokerIs(self._broker.copied()))
        if is_over:
            self._end_over_a_message()

    def _is_refused(self, packet: Packet) -> bool:
        settings = self._settings
        return packet.kind == PUBLISH and settings.refuses(publication_of(packet, settings.protocol_version).payload)

    def _end_over_a_message(self) -> None:
        """In order, so that its last answers are heard, or by a reset."""
        if self._chance.random() < 0.5:
            self._gateway.receive(self._answers)
        self._gateway.outbox.is_broken_off = True
        self._broker.inbox = b""
        self._cut()

    def _broker_answers(self) -> None:
        size = self._chance.choice((1, 3, 4, 8, 100))
        data, self._answers = self._answers[:size], self._answers[size:]
        if data:
            self._gateway.receive(data)

    def _commit(self) -> None:
        self._gateway.commit()
        for handle, accepted in self._unsure:
            assert handle.wait_durable(10)
            self._disk.note(accepted)
        self._unsure.clear()

    def _cut(self) -> None:
        self._end_connection()
        self._gateway.cut()
        self._gateway.connect()

    def _be_offline(self) -> None:
        self._end_connection()
        self._gateway.cut()
        for _ in range(4):
            self._publish()
        self._commit()
        self._gateway.connect()

    def _end_connection(self) -> None:
        self._broker.cut(arrives=self._chance.random() < 0.5)
        self._answers = b""
        self._disk.note(BrokerIs(self._broker.copied()))
        self._disk.note(LinkCut())

    def _go_on(self) -> None:
        """A while without faults, but for those of messages."""
        for _ in range(5):
            self._gateway.commit()
            self._gateway.outbox.look_for_answers()
            self._send_bytes(1 << 20)
            self._broker_handles()
            data, self._answers = self._answers, b""
            self._gateway.receive(data)

    def _let_time_pass(self) -> None:
        self._clock.now_s += self._chance.choice((2, 8, 22))
        self._disk.note(ClockIs(self._clock.now_s))
        if self._chance.random() < 0.5:
            self._gateway.store.drop_expired()

    def _restart(self) -> None:
        self._end_process()
        self._gateway = self._open()
        self._gateway.connect()

    def _end_process(self) -> None:
        self._end_connection()
        self._gateway.close()
        for _, accepted in self._unsure:
            self._disk.note(accepted)
        self._unsure.clear()


def is_retained(payload: str) -> bool:
    """Some of the messages have a row in the table beside the queue's."""
    return int(payload.split("-")[1]) % 3 == 0


def open_gateway(path: Path, settings: Settings, clock: Clock) -> ScriptedGateway:
    return ScriptedGateway(
        path,
        window=settings.window,
        max_unreleased=settings.max_unreleased,
        protocol_version=settings.protocol_version,
        max_queue_size=settings.max_queue_size,
        max_queue_bytes=settings.max_queue_bytes,
        queue_order=settings.queue_order,
        overflow=settings.overflow,
        max_retry=1,
        ttl_ms=settings.ttl_ms,
        clock=clock,
    )


@dataclass
class Moment:
    """All that was promised, and all that the world outside knows, at one point of the log."""

    broker: ScriptedBroker
    accepted: dict[str, Accepted] = field(default_factory=dict)
    may_be_gone: set[int] = field(default_factory=set)
    # Those of them that are in quarantine then.
    may_be_kept: set[int] = field(default_factory=set)
    now_s: float = Clock().now_s
    # The part of a packet with which the wire ends.
    unfinished: bytes = b""
    # QoS 2 payload -> packet id of the PUBLISH that left, and those whose PUBREL did.
    sent_as: dict[str, int] = field(default_factory=dict)
    released: set[str] = field(default_factory=set)

    def known(self) -> Hashable:
        """All that a check could find different; of what only grows, how much there is."""
        broker = self.broker
        told = broker.inbox, tuple(broker.held.items()), len(broker.delivered)
        return told, len(self.accepted), self.now_s, tuple(self.sent_as.items()), len(self.released)

    def on_note(self, what: object, protocol_version: int) -> None:
        if isinstance(what, Accepted):
            self.accepted[what.payload] = what
        elif isinstance(what, BrokerIs):
            self.broker = what.broker
        elif isinstance(what, ClockIs):
            self.now_s = what.now_s
        elif isinstance(what, LinkCut):
            self.unfinished = b""
        elif isinstance(what, Left):
            packets, self.unfinished = parse(self.unfinished + what.data)
            for packet in packets:
                self._on_packet(packet, protocol_version)

    def _on_packet(self, packet: Packet, protocol_version: int) -> None:
        if packet.kind == PUBREL:
            self.released.update(payload for payload, sent_as in self.sent_as.items() if sent_as == packet.packet_id)
        elif packet.kind == PUBLISH and packet.packet_id and packet.flags & 4:
            # Who had the id before is finished.
            self.sent_as = {
                payload: packet_id for payload, packet_id in self.sent_as.items() if packet_id != packet.packet_id
            }
            self.sent_as[publication_of(packet, protocol_version).payload] = packet.packet_id


def beginning(settings: Settings) -> Moment:
    """Before anything happened."""
    return Moment(ScriptedBroker(settings.protocol_version, settings.max_unreleased))


def moments(log: list[Event], medium: Medium, settings: Settings, start: Moment) -> Iterator[Moment]:
    """Feed the log to `medium`, and yield the moment after each event; it is changed when the next is asked for."""
    gone_from = _may_be_gone_from(log)
    moment = start
    for index, event in enumerate(log):
        if isinstance(event, Note):
            moment.on_note(event.what, settings.protocol_version)
        else:
            medium.on_event(event)
        gone = gone_from.get(index, ())
        moment.may_be_gone.update(each.message_id for each in gone)
        moment.may_be_kept.update(each.message_id for each in gone if each.is_kept)
        yield moment


def _may_be_gone_from(log: list[Event]) -> dict[int, list[DroppedAs]]:
    """Index -> the messages whose deletion unsent may be on disk from there on: where its transaction began."""
    found: dict[int, list[DroppedAs]] = {}
    began = 0
    for index, event in enumerate(log):
        if isinstance(event, Note) and isinstance(event.what, TransactionBegins):
            began = index
        elif isinstance(event, Note) and isinstance(event.what, DroppedAs):
            found.setdefault(began, []).append(event.what)
    return found


def check_resumed(files: Files, folder: Path, moment: Moment, settings: Settings, *, arrives: bool) -> None:
    """Open what the medium holds with the real code, resume against the broker of that moment, and count.

    `arrives`: what was on the wire still reaches the broker.
    """
    lay_out(files, folder)
    broker = moment.broker.copied()
    broker.cut(arrives=arrives)
    clock = Clock(moment.now_s, "second boot")
    with open_gateway(folder / QUEUE, settings, clock) as gateway:
        assert gateway.store.salvage is None, "a power cut is no damage"
        found = gateway.on_disk()
        _check_explained(gateway, found, moment)
        rows, kept = found.rows, found.quarantined
        assert kept.isdisjoint(rows), "both in the queue and in quarantine"
        assert found.retained == {message_id for message_id in rows if is_retained(rows[message_id])}
        finish(gateway, broker)
        left = gateway.on_disk()
        assert left.retained == set()
        quarantined = left.quarantined - kept
    assert all(settings.refuses(rows[message_id]) for message_id in quarantined), "quarantined for nothing"
    may_miss = {
        accepted.payload
        for accepted in moment.accepted.values()
        if accepted.message_id in moment.may_be_gone | quarantined
        or clock.now_s - accepted.published_s > settings.ttl_ms / 1000
    }
    check_counts(broker, moment, may_miss=may_miss)
    if not settings.refuses_every:
        check_order(broker)
    counts = broker.counts()
    for payload, accepted in moment.accepted.items():
        if accepted.message_id in moment.may_be_kept and payload not in counts:
            is_old = clock.now_s - accepted.published_s > settings.ttl_ms / 1000
            assert accepted.message_id in kept or is_old, f"{payload[:9]} is neither sent nor in quarantine"


def recorded_recovery(files: Files, folder: Path, moment: Moment, settings: Settings) -> tuple[list[Event], Moment]:
    """Resume as `check_resumed` does, on a disk that is written down; returns the log, and the moment before it."""
    lay_out(files, folder)
    start = copy.deepcopy(moment)
    start.broker.cut(arrives=True)
    start.unfinished = b""
    broker = start.broker.copied()
    clock = Clock(moment.now_s, "second boot")
    with FaultyDisk(folder) as disk:
        with open_gateway(folder / QUEUE, settings, clock) as gateway:
            finish(gateway, broker, disk.note)
        return disk.log, start


def _check_explained(gateway: ScriptedGateway, found: OnDisk, moment: Moment) -> None:
    """Every QoS 2 packet that left is explained by what is on disk: its row with its packet id and state.

    And whose session that was, or it would be discarded, and its messages sent twice.
    """
    assert not (moment.sent_as and gateway.outbox.is_session_foreign), "the broker's session is not known as ours"
    on_disk = {
        message_id: (packet_id, state)
        for message_id, packet_id, state in decode_image(found.image or b"\1")
        if state in STATES_OF_MESSAGES
    }
    for message_id, payload in found.rows.items():
        if payload not in moment.sent_as:
            continue
        assert message_id in on_disk, f"{payload[:9]} left, and its packet id is not on disk"
        packet_id, state = on_disk[message_id]
        assert packet_id == moment.sent_as[payload], f"{payload[:9]} left under another packet id"
        assert payload not in moment.released or state == RELEASED, f"PUBREL of {payload[:9]} left before its commit"


def finish(
    gateway: ScriptedGateway, broker: ScriptedBroker, note: Callable[[object], None] = lambda _what: None
) -> None:
    """Reconnect and go on until the queue is empty; `note` is told what the wire and the broker see."""
    gateway.connect()
    for _ in range(_TURNS_MAX):
        gateway.commit()
        # What an earlier process found out of messages that the broker refused may have them go into quarantine.
        gateway.outbox.look_for_answers()
        broker.feed(gateway.send(on_leaving=lambda data: note(Left(data))))
        answers = broker.handle(broker.waiting_packets())
        # Before they are received: what they say may be on disk as soon as they are.
        note(BrokerIs(broker.copied()))
        gateway.receive(answers)
        if gateway.store.size == 0:
            return
    raise AssertionError(f"{gateway.store.size} messages are stuck")


def check_order(broker: ScriptedBroker) -> None:
    """Of first copies, within each QoS, on one topic (MQTT 3.1.1 and 5, 4.6)."""
    for qos in "12":
        firsts = [payload for payload in dict.fromkeys(broker.delivered) if payload[0] == qos]
        numbers = [int(payload.split("-")[1]) for payload in firsts]
        assert numbers == sorted(numbers), f"QoS {qos} out of order"


def check_counts(broker: ScriptedBroker, moment: Moment, *, may_miss: set[str]) -> None:
    counts = broker.counts()
    lost = [payload[:9] for payload in moment.accepted if payload not in counts and payload not in may_miss]
    assert lost == [], "lost"
    repeated = [payload[:9] for payload, count in counts.items() if payload.startswith("2-") and count > 1]
    assert repeated == [], "QoS 2, and more than once"
