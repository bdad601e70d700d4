"""A broker on a socket that does one thing otherwise than MQTT wants it, and notes what it is sent."""

from __future__ import annotations

import socket
import struct
import threading
from collections import Counter
from dataclasses import dataclass, field

from support.wire_reference import PUBACK, PUBCOMP, PUBLISH, PUBREC, PUBREL, Packet, ack, parse

CONNECT, SUBSCRIBE, PINGREQ, DISCONNECT = 1, 8, 12, 14
MQTT_5 = 5
CLOSE = b"close"
RESET = b"reset"


def filters_of(packet: Packet, protocol_version: int) -> list[bytes]:
    """Those of a SUBSCRIBE; its properties are shorter than 128 bytes."""
    body = packet.body[2:] if protocol_version != MQTT_5 else packet.body[3 + packet.body[2] :]
    found = []
    while body:
        size = int.from_bytes(body[:2], "big")
        found.append(body[2 : 2 + size])
        body = body[3 + size :]
    return found


def granted(packet: Packet, protocol_version: int, code: int = 1) -> bytes:
    """SUBACK, with one code for all filters."""
    codes = bytes([code]) * len(filters_of(packet, protocol_version))
    body = packet.body[:2] + bytes(protocol_version == MQTT_5) + codes
    return bytes((0x90, len(body))) + body


@dataclass
class OddBroker:
    """As it stands it is right, over any number of connections, one after another; a subclass overrides what is odd.

    expiry_s: Session Expiry Interval in CONNACK, None for none.
    """

    protocol_version: int = 4
    keeps_sessions: bool = True
    expiry_s: int | None = None
    connections: int = 0
    # Of this connection.
    packets: list[Packet] = field(default_factory=list)
    # (packet type, packet id), of all connections.
    seen: list[tuple[int, int]] = field(default_factory=list)
    # Handed on, in order.
    delivered: list[bytes] = field(default_factory=list)
    held: dict[int, bytes] = field(default_factory=dict)

    def __enter__(self) -> OddBroker:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.url = f"tcp://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        # A last connection, as closing does not end `accept`.
        self._is_ending = True
        socket.create_connection(("127.0.0.1", self.port)).close()
        self._thread.join(20.0)
        self._listener.close()
        assert not self._thread.is_alive()

    _is_ending = False

    def _serve(self) -> None:
        while True:
            link, _ = self._listener.accept()
            with link:
                if self._is_ending:
                    return
                self.connections += 1
                self.packets = []
                self._converse(link)

    def _converse(self, link: socket.socket) -> None:
        received = b""
        try:
            while data := link.recv(65_536):
                packets, received = parse(received + data)
                for packet in packets:
                    self.packets.append(packet)
                    has_id = packet.kind in (PUBLISH, PUBREL)
                    self.seen.append((packet.kind, packet.packet_id if has_id else 0))
                    answer = self.answer(packet)
                    if answer is RESET:
                        link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    if answer is CLOSE or answer is RESET:
                        return
                    link.sendall(answer)
        except ConnectionError:
            return

    def answer(self, packet: Packet) -> bytes:
        """What goes back for it; CLOSE ends the connection in order, RESET at once."""
        if packet.kind == CONNECT:
            return self.on_connect()
        if packet.kind == PUBLISH:
            return self.on_publish(packet)
        if packet.kind == PUBREL:
            return self.on_pubrel(packet.packet_id)
        if packet.kind == DISCONNECT:
            return CLOSE
        return b"\xd0\x00" if packet.kind == PINGREQ else b""

    def on_connect(self) -> bytes:
        present = self.keeps_sessions and self.connections > 1
        if not self.keeps_sessions:
            self.held.clear()
        if self.protocol_version != MQTT_5:
            return bytes((0x20, 2, present, 0))
        properties = b"" if self.expiry_s is None else b"\x11" + self.expiry_s.to_bytes(4, "big")
        return bytes((0x20, 3 + len(properties), present, 0, len(properties))) + properties

    def on_publish(self, packet: Packet) -> bytes:
        payload = packet.body.rpartition(b"=")[2]
        if packet.flags & 6 == 4:
            self.held[packet.packet_id] = payload
            return ack(PUBREC, packet.packet_id)
        self.delivered.append(payload)
        return ack(PUBACK, packet.packet_id) if packet.flags & 6 else b""

    def on_pubrel(self, packet_id: int) -> bytes:
        payload = self.held.pop(packet_id, None)
        if payload is not None:
            self.delivered.append(payload)
        return ack(PUBCOMP, packet_id)

    def counts(self) -> Counter[bytes]:
        """How often each payload was handed on: what stands behind "=" in it."""
        return Counter(self.delivered)
