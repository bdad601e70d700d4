"""A server in the program's own thread: it moves only when the program says so, and both wait until all has arrived."""

from __future__ import annotations

import random
import select
import socket
import time
from typing import Any

from support.differential import V5, WAIT_S, Run, ack, connack, suback, unsuback
from support.wire_reference import parse, publish

PUBLISH, PUBREC, PUBREL, SUBSCRIBE, UNSUBSCRIBE, PINGREQ = 3, 5, 6, 8, 10, 12
# The client's window is 20: beyond it paho resends more than it may.
UNANSWERED_MAX = 12
PROPERTIES = (b"\x00", b"\x02\x01\x01", b"\x08\x26\x00\x01k\x00\x02\xc3\xbc", b"\x03\x0b\xac\x02")


class LockstepServer:
    """What it answers, and when, is up to `dice` and to what it has read. Its session is never lost."""

    def __init__(self, version: int, dice: random.Random) -> None:
        self.packets: list[bytes] = []
        self._version = version
        self._dice = dice
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._connection: socket.socket | None = None
        self._unread = b""
        # Answers that are due.
        self._due: list[bytes] = []
        # Ids of messages of ours, of QoS 2, that the client has and that are to be released.
        self._received: list[int] = []
        self._next_mid = 0

    def accept(self, run: Run) -> None:
        """Take the connection that the client has made, and accept it."""
        self._connection, _ = self._listener.accept()
        self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        count = len(self.packets)
        is_known = count > 0
        while len(self.packets) == count:
            self._read(WAIT_S)
        self._send(connack(self._version, present=is_known))
        self.settle(run)

    def settle(self, run: Run) -> None:
        """Return once each side has handled all that the other has sent.

        The first PINGRESP shows that the client has handled what the server sent; the second, that the server has read
        what the client answered to it.
        """
        deadline_s = time.monotonic() + WAIT_S
        for _ in range(2):
            run.client._send_pingreq()
            while run.client._ping_t:
                assert time.monotonic() < deadline_s, run.seen
                run.client.loop(0.001)
                self._read(0)

    def cut(self) -> None:
        assert self._connection is not None
        self._connection.close()
        self._due.clear()
        self._unread = b""

    def close(self) -> None:
        self.cut()
        self._listener.close()

    def answer(self, *, one_by_one: bool) -> None:
        """Give some of the answers that are due, in any order."""
        count = 1 if one_by_one else self._dice.randrange(1, 4) if len(self._due) < UNANSWERED_MAX else len(self._due)
        for _ in range(min(count, len(self._due))):
            self._send(self._due.pop(self._dice.randrange(len(self._due))))

    def message(self) -> None:
        """A message of any QoS, or the release of one."""
        if self._received and self._dice.random() < 0.5:
            self._send(ack(0x62, self._received.pop(0)))
            return
        qos = self._dice.randrange(3)
        self._next_mid += 1
        topic = self._dice.choice(("t", "a/b", "\u00fcber/alles"))
        payload = self._dice.randbytes(self._dice.choice((0, 1, 50, 5000)))
        properties = self._dice.choice(
            (b"\x00", b"\x02\x01\x01", b"\x08\x26\x00\x01k\x00\x02\xc3\xbc", b"\x03\x0b\xac\x02")
        )
        self._send(
            publish(
                topic,
                payload,
                qos,
                self._next_mid,
                retain=self._dice.random() < 0.2,
                properties=properties if self._version == V5 else b"",
            )
        )

    def _send(self, data: bytes) -> None:
        assert self._connection is not None
        self._connection.sendall(data)

    def _read(self, timeout_s: float) -> None:
        assert self._connection is not None
        if not select.select([self._connection], [], [], timeout_s)[0]:
            return
        packets, self._unread = parse(self._unread + self._connection.recv(1 << 20))
        # paho leaves Nagle's algorithm on: its next small packet would wait for this acknowledgement.
        self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        for packet in packets:
            self.packets.append(bytes((packet.kind << 4 | packet.flags,)) + packet.body)
            self._note(packet)

    def _note(self, packet: Any) -> None:
        if packet.kind == PINGREQ:
            self._send(b"\xd0\x00")
        elif packet.kind == PUBLISH and packet.flags & 6:
            kind = 0x40 if packet.flags & 2 else 0x50
            self._due.append(ack(kind, packet.packet_id, self._reason(kind)))
        elif packet.kind == PUBREL:
            self._due.append(ack(0x70, packet.packet_id))
        elif packet.kind == PUBREC:
            self._received.append(packet.packet_id)
        elif packet.kind == SUBSCRIBE:
            self._due.append(suback(self._version, packet.packet_id, b"\x01"))
        elif packet.kind == UNSUBSCRIBE:
            self._due.append(unsuback(self._version, packet.packet_id, b"\x00"))

    def _reason(self, kind: int) -> bytes:
        # A PUBREC that refuses is among the differences.
        refusal = b"\x97\x04\x1f\x00\x01x" if kind == 0x40 else b""
        return self._dice.choice((b"", b"\x00", b"\x10\x00", refusal)) if self._version == V5 else b""
