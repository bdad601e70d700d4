"""The server's side of topic aliases (MQTT 5, 3.3.2.3.4), strict: what it may not be sent is an AssertionError."""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING, NamedTuple

from glec_fast.protocol._inbound import unpack_properties
from support.loopback import LoopbackServer
from support.wire_reference import PUBACK, PUBCOMP, PUBLISH, PUBREC, PUBREL, Packet, ack, parse, remaining_length

if TYPE_CHECKING:
    from typing import Any

CONNECT, DISCONNECT, PINGREQ = 1, 14, 12


class Publication(NamedTuple):
    """A PUBLISH as it arrived. alias: 0 for none. is_named: its topic stood in the packet."""

    topic: str
    payload: bytes
    qos: int
    packet_id: int
    dup: bool
    alias: int
    is_named: bool
    properties: dict[str, Any]
    size_bytes: int


class AliasDecoder:
    """Of one connection."""

    def __init__(self, maximum: int) -> None:
        self.maximum = maximum
        self.topics: dict[int, str] = {}

    def decode(self, packet: Packet) -> Publication:
        body = packet.body
        qos = packet.flags >> 1 & 3
        end = 2 + int.from_bytes(body[:2], "big")
        topic = body[2:end].decode()
        at = end + (2 if qos else 0)
        length, shift, start = 0, 0, at
        while True:
            length |= (body[at] & 127) << shift
            shift += 7
            at += 1
            if not body[at - 1] & 128:
                break
        properties = unpack_properties(body[start : at + length])
        alias = properties.pop("TopicAlias", 0)
        assert 0 <= alias <= self.maximum, f"alias {alias} of {self.maximum}"
        is_named = bool(topic)
        if topic and alias:
            self.topics[alias] = topic
        elif not topic:
            assert alias, "neither topic nor alias"
            assert alias in self.topics, f"alias {alias} was not named on this connection"
            topic = self.topics[alias]
        payload = body[at + length :]
        size_bytes = 1 + len(remaining_length(len(body))) + len(body)
        return Publication(topic, payload, qos, packet.packet_id, packet.dup, alias, is_named, properties, size_bytes)


class AliasServer(LoopbackServer):
    """A server of one client, on loopback, with a session that outlives connections.

    cuts: after so many PUBLISHes each connection ends, once for each item. refuses: with 0x94, what comes by alias.
    """

    def __init__(self, maximum: int, *, cuts: tuple[int, ...] = (), packet_max: int = 0, refuses: bool = False) -> None:
        super().__init__(self._serve_until_it_fails)
        self.url = f"tcp://127.0.0.1:{self.port}"
        self.maximum = maximum
        self.arrived: list[Publication] = []
        self._one_at_a_time = threading.Lock()
        self.faults: list[BaseException] = []
        self.changed = threading.Condition()
        self._cuts = list(cuts)
        self._packet_max = packet_max
        self._refuses = refuses
        self._held: set[int] = set()

    def _serve_until_it_fails(self, sock: socket.socket) -> None:
        # All that came on one is had before the next begins, as the session is theirs together.
        with self._one_at_a_time:
            try:
                self._speak(sock)
            except AssertionError as error:
                self.faults.append(error)

    def _speak(self, sock: socket.socket) -> None:
        decoder = AliasDecoder(self.maximum)
        left = self._cuts.pop(0) if self._cuts else -1
        rest = b""
        while data := sock.recv(65_536):
            packets, rest = parse(rest + data)
            for packet in packets:
                if packet.kind == CONNECT:
                    sock.sendall(self._connack())
                elif packet.kind == PUBREL:
                    self._held.discard(packet.packet_id)
                    sock.sendall(ack(PUBCOMP, packet.packet_id))
                elif packet.kind == PINGREQ:
                    sock.sendall(b"\xd0\x00")
                elif packet.kind == DISCONNECT:
                    return
                elif packet.kind == PUBLISH:
                    if left == 0:
                        return
                    left -= 1
                    publication = decoder.decode(packet)
                    if self._refuses and publication.alias:
                        sock.sendall(b"\xe0\x01\x94")
                        return
                    self._on_publish(sock, publication)

    def _on_publish(self, sock: socket.socket, publication: Publication) -> None:
        is_new = publication.qos < 2 or publication.packet_id not in self._held
        if publication.qos == 2:
            self._held.add(publication.packet_id)
        with self.changed:
            if is_new:
                self.arrived.append(publication)
            self.changed.notify_all()
        if publication.qos:
            sock.sendall(ack(PUBREC if publication.qos == 2 else PUBACK, publication.packet_id))

    def _connack(self) -> bytes:
        properties = b"\x22" + self.maximum.to_bytes(2, "big") if self.maximum else b""
        if self._packet_max:
            properties += b"\x27" + self._packet_max.to_bytes(4, "big")
        body = bytes([self.connections > 1, 0, len(properties)]) + properties
        return b"\x20" + bytes([len(body)]) + body
