"""All packets of a run in their order, and in words what became of one message: evidence of who lost or doubled it."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from glec_fast.testbed.link import HOST, Link
from support.wire_reference import PUBACK, PUBCOMP, PUBLISH, PUBREC, PUBREL, Packet, parse

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

_CONNACK = 2
_NAMES = {PUBACK: "PUBACK", PUBREC: "PUBREC", PUBREL: "PUBREL", PUBCOMP: "PUBCOMP"}
_TOPIC_ALIAS = 0x23
_TIMESTAMP = re.compile(rb'"timestamp": ?(\d+)')
# Histories are told apart by so many of their steps.
_STEPS_MAX = 14

Identity = tuple[str, int]


class Step(NamedTuple):
    """A packet of the vehicle's, or of the listener's, or None for what was done to the broker."""

    is_listener: bool
    packet: Packet | None
    identity: Identity | None
    text: str = ""


class Tape:
    """Of one run. Links append to it, each from its own thread."""

    def __init__(self, version: int) -> None:
        self.version = version
        self.steps: list[Step] = []

    def mark(self, text: str) -> None:
        """Something was done to the broker."""
        self.steps.append(Step(False, None, None, text))

    def history(self, identity: Identity) -> str:
        """What was sent and answered for this message, in order: the vehicle's packets, then the listener's."""
        sent, handed_on = self._exchange(identity, is_listener=False), self._exchange(identity, is_listener=True)
        return f"{sent or 'never sent'}; to the listener {handed_on or 'nothing'}"

    def _exchange(self, identity: Identity, *, is_listener: bool) -> str:
        told: list[str] = []
        packet_id, is_open = -1, False
        for of_listener, packet, of, text in self.steps:
            if of_listener != is_listener and packet is not None:
                continue
            if packet is None or packet.kind == _CONNACK:
                met = text or f"[CONNACK, session present {packet.body[0] & 1}]"  # type: ignore[union-attr]
                if is_open and told[-1] != met:
                    told.append(met)
            elif packet.kind == PUBLISH:
                if of == identity:
                    packet_id, is_open = packet.packet_id, packet.packet_id != 0
                    told.append(f"PUBLISH QoS {packet.flags >> 1 & 3}" + (" DUP" if packet.dup else ""))
                elif packet.packet_id == packet_id:
                    # The packet id is another message's now.
                    packet_id, is_open = -1, False
            elif is_open and packet.kind in _NAMES and packet.packet_id == packet_id:
                told.append(_NAMES[packet.kind])
                is_open = packet.kind not in (PUBACK, PUBCOMP)
        if len(told) > _STEPS_MAX:
            told = [*told[: _STEPS_MAX // 2], "...", *told[-_STEPS_MAX // 2 :]]
        return ", ".join(told)

    def summary(self, what: str, identities: Iterable[Identity]) -> list[dict[str, Any]]:
        """How many of these messages have the same history, the most frequent first."""
        found = Counter(self.history(identity) for identity in identities)
        return [{"what": what, "count": count, "packets": packets} for packets, count in found.most_common(4)]


class TappedLink(Link):
    """A link whose packets go onto a tape."""

    host = HOST

    def __init__(self, target: tuple[str, int], tape: Tape, *, is_listener: bool = False) -> None:
        self._tape = tape
        self._is_listener = is_listener
        self._left: dict[int, bytes] = {}
        self._names: dict[tuple[int, int], str] = {}
        super().__init__(target)

    def _read(self, flow: Any) -> None:
        super()._read(flow)
        if not flow.pending:
            return
        packets, self._left[id(flow)] = parse(self._left.get(id(flow), b"") + bytes(flow.pending))
        for packet in packets:
            identity = None
            if packet.kind == PUBLISH:
                identity = self._identify(packet, id(flow), self._tape.version if not self._is_listener else 4)
            self._tape.steps.append(Step(self._is_listener, packet, identity))

    def _accept(self) -> None:
        # Flows that have ended may have had the addresses of those to come.
        known = {id(flow) for each in self._connections for flow in (each.up, each.down)}
        self._left = {at: left for at, left in self._left.items() if at in known}
        self._names = {key: name for key, name in self._names.items() if key[0] in known}
        super()._accept()

    def _identify(self, packet: Packet, flow: int, version: int) -> Identity | None:
        size = int.from_bytes(packet.body[:2], "big")
        topic, at = packet.body[2 : 2 + size].decode(), 2 + size + (2 if packet.flags & 6 else 0)
        if version == 5 and packet.body[at] and packet.body[at + 1] == _TOPIC_ALIAS:
            alias = flow, int.from_bytes(packet.body[at + 2 : at + 4], "big")
            topic = self._names[alias] if not topic else self._names.setdefault(alias, topic)
        found = _TIMESTAMP.search(packet.body)
        return None if found is None else (topic.rsplit("/", 1)[-1], int(found[1]))
