"""The raw upper bound: ready-made packets through one plain socket, with nothing kept and nothing decided.

What limits it is the broker, which spends several system calls on each packet. So the pump's aim is to leave the
broker's core alone: it reads and writes as much at a time as it can without letting the window run dry.
"""

from __future__ import annotations

import socket
import struct
import time
from typing import TYPE_CHECKING, NamedTuple

from workload import make_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

CONNECT, PUBLISH, PUBACK, PUBREC, PUBREL, PUBCOMP = 0x10, 0x30, 0x40, 0x50, 0x62, 0x70
CONNACK, SUBSCRIBE, SUBACK = 0x20, 0x82, 0x90
ACK_BYTES = 4
RECV_BYTES = 65_536
MAX_PACKET_ID = 65_535
MARK_TOPIC = "bench/mark"

# QoS 1. Reading at once costs a wake-up of this process by the broker for almost every ack, and a reply for each. After
# a pause a few hundred acks lie ready. It must stay well below the time the broker needs for a whole window.
FULL_WINDOW_PAUSE_S = 0.002
MIN_PAUSE_S = 0.0001

# QoS 2. With its default max_inflight_messages a mosquitto acknowledges a 21st PUBLISH whose predecessors have had no
# PUBREL, and then never hands it on. So few in flight leave no time for a pause.
MAX_UNRELEASED = 20


class Flush(NamedTuple):
    """All bytes of a flush. Packets of one kind are of one size, so that a slice is found by multiplication."""

    publishes: bytes
    publish_bytes: int
    pubrels: bytes
    count: int
    last_ack: int


def prepare(count: int, qos: int) -> Flush:
    return prepare_rows(make_rows(count, qos), qos)


def prepare_rows(rows: Sequence[tuple[str, str, int]], qos: int) -> Flush:
    """The rows are (topic, payload, QoS), all of one size and of the QoS that is given."""
    count = len(rows)
    packets = [
        encode_publish(topic, payload, qos, index % MAX_PACKET_ID + 1) for index, (topic, payload, _) in enumerate(rows)
    ]
    pubrels = b"".join(struct.pack(">BBH", PUBREL, 2, index % MAX_PACKET_ID + 1) for index in range(count))
    return Flush(b"".join(packets), len(packets[0]), pubrels, count, PUBACK if qos == 1 else PUBCOMP)


def encode_publish(topic: str, payload: str, qos: int, packet_id: int) -> bytes:
    topic_bytes, payload_bytes = topic.encode(), payload.encode()
    packet_id_bytes = struct.pack(">H", packet_id) if qos else b""
    body = struct.pack(">H", len(topic_bytes)) + topic_bytes + packet_id_bytes + payload_bytes
    return bytes([PUBLISH | qos << 1]) + encode_remaining_length(len(body)) + body


def encode_remaining_length(length: int) -> bytes:
    encoded = bytearray()
    while length >= 128:
        encoded.append(length % 128 | 0x80)
        length //= 128
    encoded.append(length)
    return bytes(encoded)


def connect(port: int, client_id: str, *, clean_session: bool = True) -> socket.socket:
    """A connected socket whose CONNACK (success) has been read. The caller closes it."""
    sock = socket.create_connection(("127.0.0.1", port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    client_id_bytes = client_id.encode()
    head = struct.pack(">H4sBBHH", 4, b"MQTT", 4, 0x02 if clean_session else 0, 60, len(client_id_bytes))
    body = head + client_id_bytes
    sock.sendall(bytes([CONNECT, len(body)]) + body)
    connack = sock.recv(ACK_BYTES, socket.MSG_WAITALL)
    # What is between them says whether the broker had the session.
    if connack[:2] + connack[3:] != b"\x20\x02\x00":
        sock.close()
        raise ConnectionError(f"the broker answered CONNECT with {connack!r}")
    return sock


def send_unacknowledged(sock: socket.socket, flush: Flush) -> None:
    """Send everything of QoS 0, and return once the broker has it: it acknowledges a QoS 1 message sent after."""
    sock.sendall(flush.publishes)
    sock.sendall(encode_publish(MARK_TOPIC, "", 1, 1))
    if sock.recv(ACK_BYTES, socket.MSG_WAITALL) != struct.pack(">BBH", PUBACK, 2, 1):
        raise ConnectionError("the broker did not acknowledge the message after the last")


def pump(
    sock: socket.socket,
    flush: Flush,
    window: int,
    max_unreleased: int = MAX_UNRELEASED,
    before_release: Callable[[], object] | None = None,
) -> list[bytes]:
    """Send everything, at most `window` unfinished at a time; returns what the broker sent, for `check`.

    Of QoS 2 at most `max_unreleased` messages are without PUBREL. `before_release` is called before each PUBREL, or
    several that go together, leaves.
    """
    publishes, publish_bytes, pubrels, count, last_ack = flush
    chunks: list[bytes] = []
    is_qos2 = last_ack == PUBCOMP
    may_pause = not is_qos2 or max_unreleased >= window
    sent = min(window, count, max_unreleased) if is_qos2 else min(window, count)
    released = finished = 0
    part = b""
    sock.sendall(memoryview(publishes)[: sent * publish_bytes])
    while finished < count:
        pause_s = FULL_WINDOW_PAUSE_S * (sent - finished) / window
        if pause_s > MIN_PAUSE_S and may_pause:
            time.sleep(pause_s)
        if is_qos2 or sent == count:
            # A broker with Nagle holds its acks until TCP's arrives, which waits 40 ms for a packet to go along with.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        chunk = sock.recv(RECV_BYTES)
        if not chunk:
            raise ConnectionError(f"the broker closed the connection after {finished} messages")
        chunks.append(chunk)
        data = part + chunk
        whole = len(data) - len(data) % ACK_BYTES
        part = data[whole:]
        kinds = data[:whole:ACK_BYTES]
        finished += kinds.count(last_ack)
        release_to = released + kinds.count(PUBREC)
        send_to = min(finished + window, count)
        if is_qos2:
            send_to = min(send_to, release_to + max_unreleased)
        pubrel_part = pubrels[released * ACK_BYTES : release_to * ACK_BYTES]
        publish_part = publishes[sent * publish_bytes : send_to * publish_bytes]
        if pubrel_part and before_release is not None:
            before_release()
        if pubrel_part or publish_part:
            sock.sendall(pubrel_part + publish_part)
        released, sent = release_to, send_to
    return chunks


def subscribe(sock: socket.socket, topic: str, qos: int) -> None:
    topic_bytes = topic.encode()
    body = struct.pack(">HH", 1, len(topic_bytes)) + topic_bytes + bytes([qos])
    sock.sendall(bytes([SUBSCRIBE, len(body)]) + body)
    suback = sock.recv(5, socket.MSG_WAITALL)
    if suback != struct.pack(">BBHB", SUBACK, 3, 1, qos):
        raise ConnectionError(f"the broker answered SUBSCRIBE with {suback!r}")


def receive(sock: socket.socket, flush: Flush, on_first: Callable[[], object]) -> None:
    """Take what a feeder sends of `flush`, QoS 0 or 1, whose packets arrive as they left; acknowledge whole packets."""
    acks = b"".join(struct.pack(">BBH", PUBACK, 2, index % MAX_PACKET_ID + 1) for index in range(flush.count))
    is_acknowledged = flush.publishes[0] != PUBLISH
    received_bytes = answered = 0
    while received_bytes < len(flush.publishes):
        chunk = sock.recv(RECV_BYTES)
        if not chunk:
            raise ConnectionError(f"the broker closed the connection after {received_bytes} bytes")
        if not received_bytes:
            on_first()
        received_bytes += len(chunk)
        whole = received_bytes // flush.publish_bytes
        if is_acknowledged and whole > answered:
            sock.sendall(acks[answered * ACK_BYTES : whole * ACK_BYTES])
            answered = whole


def check(chunks: list[bytes], flush: Flush) -> None:
    """That each message got its ack, in order, which the pump takes for granted for the sake of speed."""
    acks = b"".join(chunks)
    ids = [struct.pack(">H", index % MAX_PACKET_ID + 1) for index in range(flush.count)]
    for kind in {PUBREC, PUBCOMP} if flush.last_ack == PUBCOMP else {PUBACK}:
        seen = [acks[at + 2 : at + 4] for at in range(0, len(acks), ACK_BYTES) if acks[at] == kind]
        if seen != ids:
            raise ConnectionError(f"acks of kind {kind:#x} are missing, doubled or out of order")
