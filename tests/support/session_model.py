"""A naive session, in Python lists, and a driver that does the same to it and to the real one and compares all it sees.

The model keeps what may leave and what waits at the gate as two lists of encoded packets, and knows nothing of buffers,
offsets, marks or slots: those are what it is there to find fault with.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from glec_fast.errors import ProtocolError
from glec_fast.protocol._session import Session
from support.wire_reference import PUBACK, PUBCOMP, PUBREC, PUBREL, ack, publish

SENT, RELEASED = 1, 2
# Of an image: those two, finished, and given up. What else is in it says other things of other numbers.
STATES_OF_MESSAGES = range(1, 5)
ALL_BYTES = 1 << 30
# Those below are reserved, so that ids are soon used a second time.
FIRST_FREE_ID = 65_535 - 199
MQTT_5 = 5
PACKET_ID_NOT_FOUND = b"\x92"
FAILURE = 0x80


@dataclass
class Item:
    """An encoded packet. `needs`: what must be on disk before a byte of it leaves, (message id, packet id, state)."""

    data: bytes
    qos0_id: int | None = None
    needs: tuple[int, int, int] | None = None


@dataclass
class Exchange:
    """One message on its way. `question`: the packet that waits for an answer, PUBLISH or PUBREL.

    left_before: a copy of it may have left that is not the one in `question`.
    """

    message_id: int
    packet_id: int
    qos: int
    state: int
    question: Item
    left_before: bool = False
    left_in_lost: bool = False


@dataclass
class Model:
    """What the session should be; every method has its namesake there."""

    window: int
    durable: bool
    protocol_version: int
    receive_maximum: int = 65534
    passed: list[Item] = field(default_factory=list)
    gated: list[Item] = field(default_factory=list)
    sent_bytes: int = 0
    sent_items: int = 0
    # (version, how many of `gated` it lets through)
    gates: list[tuple[int, int]] = field(default_factory=list)
    gate_wanted: bool = False
    dirty: bool = False
    version: int = 0
    committed_version: int = 0
    exchanges: dict[int, Exchange] = field(default_factory=dict)
    parked: dict[int, tuple[int, int, int, bool, bool]] = field(default_factory=dict)
    retired: list[tuple[int, int]] = field(default_factory=list)
    last_packet_id: int = FIRST_FREE_ID - 1
    done: list[int] = field(default_factory=list)
    refused: list[int] = field(default_factory=list)
    doubtful: list[int] = field(default_factory=list)
    downgraded: list[int] = field(default_factory=list)
    # Packet ids that this connection may bring more answers for than their exchange explains.
    strays: set[int] = field(default_factory=set)

    def room(self) -> int:
        limit = min(self.window, self.receive_maximum, 65535 - len(self.retired))
        return max(limit - len(self.exchanges), 0)

    def may_leave(self) -> bytes:
        return b"".join(item.data for item in self.passed)[self.sent_bytes :]

    def has_left(self, item: Item) -> bool:
        end = 0
        for each in self.passed:
            end += len(each.data)
            if each is item:
                return end <= self.sent_bytes
        return False

    def append(self, item: Item) -> Item:
        (self.gated if self.gates or self.gate_wanted else self.passed).append(item)
        return item

    def next_packet_id(self) -> int:
        taken = self.taken_ids()
        after_last = [*range(self.last_packet_id + 1, 65_536), *range(FIRST_FREE_ID, self.last_packet_id + 1)]
        self.last_packet_id = next(candidate for candidate in after_last if candidate not in taken)
        return self.last_packet_id

    def taken_ids(self) -> set[int]:
        parked_ids = (entry[0] for entry in self.parked.values())
        return {*self.exchanges, *parked_ids, *(packet_id for _, packet_id in self.retired)}

    def admit(self, message_id: int, topic: str, payload: bytes, qos: int) -> None:
        properties = b"\x00" if self.protocol_version == MQTT_5 else b""
        if qos == 0:
            self.append(Item(publish(topic, payload, 0, 0, properties=properties), qos0_id=message_id))
            return
        left_before = left_in_lost = False
        if message_id in self.parked:
            packet_id, state, _qos, left_before, left_in_lost = self.parked.pop(message_id)
            if state == RELEASED:
                # "Received" may not be on disk yet, where the last connection ended before its commit.
                if self.durable and (self.dirty or self.version != self.committed_version):
                    self.gate_wanted = True
                item = self.append(self._pubrel(message_id, packet_id))
                self.exchanges[packet_id] = Exchange(message_id, packet_id, 2, RELEASED, item, left_before)
                return
            if left_before:
                self.strays.add(packet_id)
        else:
            packet_id = self.next_packet_id()
            if self.durable and qos == 2:
                self.dirty = self.gate_wanted = True
        is_dup = left_before or (left_in_lost and qos == 1)
        packet = publish(topic, payload, qos, packet_id, dup=is_dup, properties=properties)
        item = self.append(Item(packet, needs=(message_id, packet_id, SENT) if qos == 2 else None))
        self.exchanges[packet_id] = Exchange(message_id, packet_id, qos, SENT, item, left_before, left_in_lost)

    def _pubrel(self, message_id: int, packet_id: int) -> Item:
        return Item(ack(PUBREL, packet_id), needs=(message_id, packet_id, RELEASED))

    def put_packet(self, packet: bytes) -> None:
        self.passed.append(Item(packet))

    def on_sent(self, size: int) -> None:
        self.sent_bytes += size
        end = sum(len(item.data) for item in self.passed[: self.sent_items])
        while self.sent_items < len(self.passed) and end + len(self.passed[self.sent_items].data) <= self.sent_bytes:
            item = self.passed[self.sent_items]
            end += len(item.data)
            self.sent_items += 1
            if item.qos0_id is not None:
                self.done.append(item.qos0_id)

    def was_asked(self, exchange: Exchange) -> bool:
        return exchange.left_before or self.has_left(exchange.question)

    def may_end(self, kind: int, packet_id: int, reason: int) -> bool:
        """False where this acknowledgement is a protocol error."""
        parked_ids = [entry[0] for entry in self.parked.values()]
        if packet_id in self.strays or packet_id in parked_ids:
            return True
        exchange = self.exchanges.get(packet_id)
        if exchange is None:
            return kind != PUBACK
        if exchange.state == RELEASED:
            return self._is_received(kind, reason) or (kind == PUBCOMP and self.was_asked(exchange))
        return self.was_asked(exchange) and kind in (PUBACK, PUBREC)[: exchange.qos]

    @staticmethod
    def _is_received(kind: int, reason: int) -> bool:
        return kind == PUBREC and reason < FAILURE

    def on_ack(self, kind: int, packet_id: int, reason: int) -> None:
        """By the table in the head of `answers.pxi`."""
        exchange = self.exchanges.get(packet_id)
        parked_ids = [entry[0] for entry in self.parked.values()]
        if exchange is None:
            if self._is_received(kind, reason) and packet_id not in parked_ids:
                not_found = PACKET_ID_NOT_FOUND if self.protocol_version == MQTT_5 else b""
                self.append(Item(ack(PUBREL, packet_id, not_found)))
                self.strays.add(packet_id)
        elif exchange.state == RELEASED:
            self._on_ack_released(exchange, kind, reason)
        elif self.was_asked(exchange) and kind in (PUBACK, PUBREC)[: exchange.qos]:
            if self._is_received(kind, reason):
                if self.durable:
                    self.dirty = self.gate_wanted = True
                exchange.question = self.append(self._pubrel(exchange.message_id, packet_id))
                exchange.state, exchange.left_before = RELEASED, False
            elif reason >= FAILURE:
                self._end(exchange, self.refused)
            else:
                if exchange.qos == 2:
                    self.downgraded.append(exchange.message_id)
                self._end(exchange, self.done)

    def _on_ack_released(self, exchange: Exchange, kind: int, reason: int) -> None:
        if self._is_received(kind, reason):
            exchange.left_before = self.was_asked(exchange)
            self.append(self._pubrel(exchange.message_id, exchange.packet_id))
            self.strays.add(exchange.packet_id)
        elif kind == PUBCOMP and self.was_asked(exchange):
            if reason >= FAILURE and not exchange.left_before and self.durable:
                self.doubtful.append(exchange.message_id)
            self._end(exchange, self.done)

    def _end(self, exchange: Exchange, outcome: list[int]) -> None:
        del self.exchanges[exchange.packet_id]
        outcome.append(exchange.message_id)
        if self.durable and exchange.qos == 2:
            self.dirty = True
            self.retired.append((self.version + 1, exchange.packet_id))

    def image(self) -> tuple[int, set[tuple[int, int, int]]]:
        self.version += self.dirty
        self.dirty = False
        if self.gate_wanted:
            self.gates.append((self.version, len(self.gated)))
            self.gate_wanted = False
        entries = {(each.message_id, each.packet_id, each.state) for each in self.exchanges.values() if each.qos == 2}
        entries |= {(message_id, each[0], each[1]) for message_id, each in self.parked.items() if each[2] == 2}
        return self.version, entries

    def on_committed(self, version: int) -> None:
        self.committed_version = max(self.committed_version, version)
        opened = 0
        while self.gates and self.gates[0][0] <= version:
            opened = self.gates.pop(0)[1]
        if not self.gates and not self.gate_wanted:
            opened = len(self.gated)
        self.passed += self.gated[:opened]
        self.gated = self.gated[opened:]
        self.gates = [(each, count - opened) for each, count in self.gates]
        self.retired = [each for each in self.retired if each[0] > version]

    def park(self) -> None:
        for exchange in self.exchanges.values():
            left = self.was_asked(exchange)
            if left or exchange.state == RELEASED or not self.durable:
                aside = exchange.packet_id, exchange.state, exchange.qos, left, exchange.left_in_lost
                self.parked[exchange.message_id] = aside
            else:
                self.dirty = True
        self.exchanges.clear()
        self.strays.clear()
        self.passed, self.gated, self.gates = [], [], []
        self.sent_bytes = self.sent_items = 0
        self.gate_wanted = False

    def resume(self, session_present: bool, receive_maximum: int) -> list[int]:
        self.receive_maximum = min(receive_maximum, 65534)
        if session_present:
            return []
        in_doubt = [message_id for message_id, entry in self.parked.items() if entry[1] == RELEASED]
        self.dirty = self.dirty or bool(self.parked)
        if self.durable:
            self.parked.clear()
        self.parked = {
            message_id: (entry[0], SENT, entry[2], False, entry[3] or entry[4])
            for message_id, entry in self.parked.items()
            if entry[1] == SENT
        }
        return in_doubt


def receive(session: Session, data: bytes) -> list[int]:
    """The messages that these acknowledgements finish."""
    session.on_acks(data)
    return session.take_done()


def commit(session: Session) -> bytes:
    """The image of what is in flight, which is on disk then."""
    version, image = session.take_image()
    session.on_committed(version)
    return image


def decode_image(image: bytes) -> set[tuple[int, int, int]]:
    """The (message id, packet id, state) entries of an image."""
    assert image[0] == 1
    assert len(image) % 11 == 1
    entries = [image[at : at + 11] for at in range(1, len(image), 11)]
    decoded = {
        (int.from_bytes(each[:8], "big", signed=True), int.from_bytes(each[8:10], "big"), each[10]) for each in entries
    }
    assert len(decoded) == len(entries)
    return decoded


class Driver:
    """Does everything twice, and compares. Owns the messages, in order, as an outbox would."""

    def __init__(self, *, window: int, durable: bool, protocol_version: int) -> None:
        self.session = Session(window, durable)
        self.session.protocol_version = protocol_version
        self.model = Model(window, durable, protocol_version)
        while self.session.reserve_packet_id() < FIRST_FREE_ID - 1:
            pass
        self.waiting: list[tuple[int, str, bytes, int]] = []
        self.admitted: dict[int, tuple[int, str, bytes, int]] = {}
        self.images: list[tuple[int, set[tuple[int, int, int]]]] = []
        self.disk: set[tuple[int, int, int]] = set()
        self.next_message_id = 1
        self.is_open = True

    def publish(self, topic: str, payload: bytes, qos: int) -> None:
        self.waiting.append((self.next_message_id, topic, payload, qos))
        self.next_message_id += 1

    def pull(self) -> None:
        """Admit what there is room for, first in, first out."""
        while self.is_open and self.waiting and (self.waiting[0][3] == 0 or self._has_place()):
            message = self.waiting.pop(0)
            self.admitted[message[0]] = message
            self.session.admit(*message)
            self.model.admit(*message)
        self.check()

    def _has_place(self) -> bool:
        has_id = self.waiting[0][0] in self.model.parked or len(self.model.taken_ids()) < 65_536 - FIRST_FREE_ID
        return has_id and self.model.room() > 0

    def put_packet(self, packet: bytes) -> None:
        self.session.put_packet(packet)
        self.model.put_packet(packet)
        self.check()

    def send(self, limit_bytes: int) -> None:
        chunk = self.session.peek(limit_bytes)
        assert chunk == self.model.may_leave()[:limit_bytes]
        self._check_explained(len(chunk))
        self.session.on_sent(len(chunk))
        self.model.on_sent(len(chunk))
        self.check()

    def _check_explained(self, size: int) -> None:
        """Nothing leaves before the state that explains it is on disk: the one rule, seen from outside."""
        if not self.model.durable:
            return
        start = 0
        open_ids = {exchange.message_id for exchange in self.model.exchanges.values()}
        for item in self.model.passed:
            begins_now = start < self.model.sent_bytes + size and start + len(item.data) > self.model.sent_bytes
            if begins_now and item.needs is not None and item.needs[0] in open_ids:
                assert item.needs in self.disk or (*item.needs[:2], RELEASED) in self.disk
            start += len(item.data)

    def ack(self, kind: int, packet_id: int, reason: int = 0) -> None:
        has_reason = reason and self.model.protocol_version == MQTT_5
        packet = ack(kind, packet_id, bytes([reason]) if has_reason else b"")
        if not self.model.may_end(kind, packet_id, reason if has_reason else 0):
            with pytest.raises(ProtocolError):
                self.session.on_acks(packet)
            self.check()
            self.cut()
            return
        self.session.on_acks(packet)
        self.model.on_ack(kind, packet_id, reason if has_reason else 0)
        self.check()

    def ack_any(self, kind: int, choice: int, reason: int) -> None:
        """Any acknowledgement for an id that the session knows in some way, or knew."""
        model = self.model
        known = sorted({*model.taken_ids(), *model.strays, FIRST_FREE_ID, model.last_packet_id, 1, 65_535})
        self.ack(kind, known[choice % len(known)], reason)

    def ack_something(self, choice: int, reason: int = 0) -> None:
        """The next acknowledgement of one of the exchanges that the broker may know of."""
        known = [each for each in self.model.exchanges.values() if self.model.was_asked(each)]
        if not known:
            return
        exchange = known[choice % len(known)]
        if exchange.state == RELEASED:
            self.ack(PUBCOMP, exchange.packet_id, reason)
        else:
            self.ack(PUBACK if exchange.qos == 1 else PUBREC, exchange.packet_id, reason)

    def take_image(self) -> None:
        version, image = self.session.take_image()
        assert (version, decode_image(image)) == self.model.image()
        self.images.append((version, decode_image(image)))
        self.check()

    def commit(self, count: int) -> None:
        """`count` of the images reached the disk, the last of them whole; 0 repeats the one that is there."""
        for version, entries in self.images[:count]:
            self.disk = entries
            self.session.on_committed(version)
            self.model.on_committed(version)
        self.images = self.images[count:]
        if count == 0:
            self.session.on_committed(self.model.committed_version)
            self.model.on_committed(self.model.committed_version)
        self.check()

    def cut(self) -> None:
        """The link breaks; QoS 0 goes with it."""
        self.session.park()
        self.model.park()
        self.is_open = False
        self.check()

    def connect(self, session_present: bool, receive_maximum: int) -> None:
        if self.is_open:
            self.cut()
        in_doubt = self.session.resume(session_present, receive_maximum)
        assert sorted(in_doubt) == sorted(self.model.resume(session_present, receive_maximum))
        again = [message for message in self.admitted.values() if message[3] and message[0] not in in_doubt]
        self.waiting = sorted(again + [message for message in self.waiting if message[0] not in in_doubt])
        self.admitted.clear()
        self.is_open = True
        self.check()

    def check(self) -> None:
        """Everything that can be seen from outside is the same."""
        session, model = self.session, self.model
        expected = model.may_leave()
        assert session.sendable_bytes == len(expected)
        assert session.unsent_bytes == len(expected) + sum(len(item.data) for item in model.gated)
        assert session.in_flight == len(model.exchanges)
        assert session.unreleased == sum(each.qos == 2 and each.state == SENT for each in model.exchanges.values())
        assert session.room() == model.room()
        assert session.wants_commit == model.gate_wanted
        assert set(session.parked_ids()) == set(model.parked)
        done, refused = session.take_done(), session.take_refused()
        assert (done, refused) == (model.done, model.refused)
        assert session.take_doubtful() == model.doubtful
        assert session.downgraded_count == len(model.downgraded)
        assert not model.downgraded or session.downgraded_id == model.downgraded[-1]
        for message_id in [*done, *refused]:
            self.admitted.pop(message_id, None)
        model.done, model.refused, model.doubtful = [], [], []
