"""MQTT with a broker packet by packet, to see what it answers: over the connection that a manager would make."""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from glec_fast.engine.connector import SecureConnector
from glec_fast.protocol._inbound import unpack_properties
from glec_fast.tls.config import TLSConfig

if TYPE_CHECKING:
    from glec_fast.fleet.config import MQTTConfig

MQTT_3, MQTT_5 = 4, 5
CONNACK, PUBLISH, PUBACK, PUBREC, PUBREL, PUBCOMP, SUBACK = 2, 3, 4, 5, 6, 7, 9
_KEEPALIVE_S = 60
# For one answer.
_PATIENCE_S = 5.0
# MQTT 5, 3.1.2.11.2: an hour.
_EXPIRY = b"\x11\x00\x00\x0e\x10"


class Packet(NamedTuple):
    """kind: as in the upper half of its first byte."""

    kind: int
    flags: int
    body: bytes


class Accepted(NamedTuple):
    """What CONNACK said. reason: 0 for an accepted connection, else a code of the version that was spoken."""

    session_present: bool
    reason: int
    properties: dict[str, Any]


class Conversation:
    """One connection. A context manager, which closes it. Raises OSError; EOFError where the broker ends it.

    client_id, is_clean: as in CONNECT. version: MQTT_3 or MQTT_5.
    """

    def __init__(self, config: MQTTConfig, client_id: str, version: int, *, is_clean: bool) -> None:
        self.version = version
        self._deadline_s = time.monotonic() + config.connection_timeout_s
        broker = config.broker
        connector = SecureConnector((config.tls_config or TLSConfig()) if broker.tls else None, broker.host)
        connector.options = config.options
        connector.begin(config.connection_timeout_s)
        context = connector.context()
        sock: Any = connector.dial(broker.host, broker.port, (config.local_address or "", 0))
        try:
            if context is not None:
                sock = connector.shake_hands(sock, context, broker.host)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._sock = sock
            self._data = bytearray()
            self.send(0x10, _connect(config, client_id, version, is_clean=is_clean))
            answer = self.receive(CONNACK)
        except BaseException:
            sock.close()
            raise
        properties = unpack_properties(answer.body[2:]) if version == MQTT_5 and len(answer.body) > 2 else {}
        self.accepted = Accepted(bool(answer.body[0] & 1), answer.body[1], properties)

    def __enter__(self) -> Conversation:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.send(0xE0, b"")
        except OSError:
            pass
        finally:
            self._sock.close()

    def send(self, first: int, body: bytes) -> None:
        """A whole packet."""
        self._sock.settimeout(self._left_s())
        self._sock.sendall(_packet(first, body))

    def publish(self, topic: str, payload: bytes, qos: int, packet_id: int, *, retain: bool = False) -> bytes:
        """A PUBLISH, as bytes to be sent."""
        name = topic.encode()
        body = len(name).to_bytes(2, "big") + name + (packet_id.to_bytes(2, "big") if qos else b"")
        return _packet(0x30 | qos << 1 | retain, body + (b"\0" if self.version == MQTT_5 else b"") + payload)

    def send_all(self, data: bytes) -> None:
        """As it is."""
        self._sock.settimeout(self._left_s())
        self._sock.sendall(data)

    def answer_late(self) -> None:
        """Have our kernel acknowledge what comes as late as it may."""
        quickack = getattr(socket, "TCP_QUICKACK", None)
        if quickack is not None:
            self._sock.setsockopt(socket.IPPROTO_TCP, quickack, 0)

    def receive(self, *kinds: int) -> Packet:
        """The next packet of one of these kinds; others are passed over."""
        while True:
            packet = self._take()
            if packet is None:
                self._sock.settimeout(self._left_s())
                read = self._sock.recv(1 << 16)
                if not read:
                    raise EOFError("the broker ended the connection")
                self._data += read
            elif packet.kind in kinds:
                return packet

    def _left_s(self) -> float:
        left_s = min(self._deadline_s - time.monotonic(), _PATIENCE_S)
        if left_s <= 0:
            raise TimeoutError("the broker did not answer in time")
        return left_s

    def _take(self) -> Packet | None:
        size = shift = 0
        for index, byte in enumerate(self._data[1:5], 1):
            size |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                end = index + 1 + size
                if len(self._data) < end:
                    return None
                packet = Packet(self._data[0] >> 4, self._data[0] & 15, bytes(self._data[index + 1 : end]))
                del self._data[:end]
                return packet
        return None


def hello(version: int) -> bytes:
    """A CONNECT of nobody, without a password: to see whether MQTT is spoken at all."""
    return _packet(0x10, b"\x00\x04MQTT" + bytes((version, 2, 0, _KEEPALIVE_S)) + b"\x00\x00")


def _connect(config: MQTTConfig, client_id: str, version: int, *, is_clean: bool) -> bytes:
    flags = 2 if is_clean else 0
    content = [client_id.encode()]
    if config.username is not None:
        flags |= 0x80
        content.append(config.username.encode())
    if config.password is not None:
        flags |= 0x40
        content.append(config.password.encode())
    properties = b""
    if version == MQTT_5:
        properties = b"\x00" if is_clean else bytes((len(_EXPIRY),)) + _EXPIRY
    head = b"\x00\x04MQTT" + bytes((version, flags, 0, _KEEPALIVE_S)) + properties
    return head + b"".join(len(each).to_bytes(2, "big") + each for each in content)


def _packet(first: int, body: bytes) -> bytes:
    size, length = len(body), bytearray()
    while True:
        length.append(size & 0x7F | (0x80 if size > 0x7F else 0))
        size >>= 7
        if not size:
            return bytes((first,)) + bytes(length) + body
