"""A broker that keeps all it is sent, and judges it: whole packets, nothing twice on a connection, QoS 2 once."""

from __future__ import annotations

import socket
import threading
from collections import Counter
from contextlib import suppress
from typing import Any

from support.wire_reference import PUBACK, PUBCOMP, PUBLISH, PUBREC, PUBREL, ack, parse, publish

_CONNECT, _SUBSCRIBE, _PINGREQ, _DISCONNECT = 1, 8, 12, 14
_KINDS = frozenset({_CONNECT, PUBLISH, PUBACK, PUBREC, PUBREL, PUBCOMP, _SUBSCRIBE, 10, _PINGREQ, _DISCONNECT})


class RecordingBroker:
    """One client's. `to_send`: (topic, payload, qos) for it, sent behind CONNACK until they are acknowledged.

    receive_buffer_bytes: as small as makes the client's writes end in the middle of a packet.
    """

    def __init__(
        self, to_send: list[tuple[str, bytes, int]] | None = None, *, receive_buffer_bytes: int = 0, wrap: Any = None
    ) -> None:
        self._listener = socket.socket()
        if receive_buffer_bytes:
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(16)
        self.port = self._listener.getsockname()[1]
        self._wrap = wrap
        self.changed = threading.Condition()
        self.delivered: Counter[bytes] = Counter()
        self.faults: list[str] = []
        self.connections = self._latest = 0
        self._has_session = False
        # Packet ids of QoS 2 that it holds until PUBREL.
        self._held: set[int] = set()
        # By the client that there is now: QoS 1 of an earlier process goes again without DUP, as no disk has its state.
        self._seen: set[bytes] = set()
        # Its own messages: packet id -> packet's fields.
        self._unacknowledged: dict[int, tuple[str, bytes, int]] = {}
        self._sent: set[int] = set()
        # Of these the client has said that it has them.
        self._released: set[int] = set()
        self._at_most_once: list[tuple[str, bytes, int]] = []
        self._take(to_send or [])
        self._socks: list[Any] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _take(self, to_send: list[tuple[str, bytes, int]]) -> None:
        self._unacknowledged.update({number + 1: each for number, each in enumerate(to_send) if each[2]})
        self._at_most_once += [each for each in to_send if not each[2]]

    def send(self, to_send: list[tuple[str, bytes, int]]) -> None:
        """Its first messages, on the connection that there is; not over TLS."""
        with self.changed:
            self._take(to_send)
            self._socks[-1].sendall(self._own_messages())

    @property
    def is_all_acknowledged(self) -> bool:
        return not self._unacknowledged

    def on_new_client(self) -> None:
        """A process of its own, as it were."""
        with self.changed:
            self._seen.clear()
            # What it has not read yet of the one before comes too late.
            self._latest = self.connections + 1

    def cut(self) -> None:
        """End the connections that there are."""
        for sock in self._socks:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End its connections too."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in self._socks:
            with suppress(OSError):
                sock.close()
        for thread in self._threads:
            thread.join(10)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                thread = threading.Thread(target=self._serve, args=(sock,), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _serve(self, sock: Any) -> None:
        self.connections += 1
        number = self.connections
        rest = b""
        on_this = set[bytes]()
        try:
            self._socks.append(sock)
            if self._wrap is not None:
                sock = self._wrap(sock)
            receive = sock.recv if hasattr(sock, "recv") else sock.makefile("rb").read1
            while data := receive(65_536):
                packets, rest = parse(rest + data)
                for packet in packets:
                    with self.changed:
                        if number < self._latest:
                            # Another connection has taken the session over.
                            return
                        answer = self._on_packet(number, packet, on_this)
                        self.changed.notify_all()
                    if answer:
                        sock.sendall(answer)
        except (OSError, StopIteration):
            # Cut by the client's end, or ours; also within a handshake.
            return
        finally:
            sock.close()

    def _on_packet(self, number: int, packet: Any, on_this: set[bytes]) -> bytes:
        kind, flags, body = packet
        if kind not in _KINDS:
            self.faults.append(f"connection {number}: a packet of kind {kind}")
        if kind == _CONNECT:
            self._latest = number
            is_present, self._has_session = self._has_session and not body[7] & 2, True
            if not is_present:
                self._held.clear()
            return bytes([0x20, 2, is_present, 0]) + self._own_messages()
        if kind == PUBLISH:
            return self._on_publish(number, flags, body, on_this)
        if kind == PUBREL:
            self._held.discard(packet.packet_id)
            return ack(PUBCOMP, packet.packet_id)
        if kind in (PUBACK, PUBCOMP):
            self._unacknowledged.pop(packet.packet_id, None)
        if kind == PUBREC:
            self._released.add(packet.packet_id)
            return ack(PUBREL, packet.packet_id)
        if kind == _SUBSCRIBE:
            return bytes([0x90, 3, *body[:2], 0])
        if kind == _PINGREQ:
            return b"\xd0\x00"
        return b""

    def _on_publish(self, number: int, flags: int, body: bytes, on_this: set[bytes]) -> bytes:
        qos = flags >> 1 & 3
        topic_end = 2 + int.from_bytes(body[:2], "big")
        packet_id = int.from_bytes(body[topic_end : topic_end + 2], "big")
        payload = body[topic_end + (2 if qos else 0) :]
        key = payload[:12]
        if qos > 2 or body[2:topic_end] != b"t/" + key or payload != payload_of(key, len(payload)):
            self.faults.append(f"connection {number}: not as published: {body[:40]!r}, {len(payload)} bytes")
            return b""
        if key in on_this:
            self.faults.append(f"connection {number}: {key!r} twice")
        elif key in self._seen and qos and not flags & 8:
            self.faults.append(f"connection {number}: {key!r} again without DUP")
        on_this.add(key)
        self._seen.add(key)
        if qos < 2 or packet_id not in self._held:
            self.delivered[key] += 1
        if qos == 2:
            self._held.add(packet_id)
        return ack(PUBREC if qos == 2 else PUBACK, packet_id) if qos else b""

    def _own_messages(self) -> bytes:
        fresh, self._at_most_once = self._at_most_once, []
        packets = [publish(topic, payload, 0, 0) for topic, payload, _ in fresh]
        for packet_id, each in self._unacknowledged.items():
            is_released = packet_id in self._released
            dup = packet_id in self._sent
            packets.append(ack(PUBREL, packet_id) if is_released else publish(*each, packet_id, dup=dup))
        self._sent.update(self._unacknowledged)
        return b"".join(packets)


def payload_of(key: bytes, size: int) -> bytes:
    """Of which every byte tells whose it is."""
    return (key * (size // len(key) + 1))[:size]
