"""Packets of a server in words that paho has: its tables lack some that MQTT 5 allows, and it raises an exception.

A server that uses them is in order, or has refused something; the connection is no worse for that, and would be made
again only to end the same way.
"""

from __future__ import annotations

from typing import Any

from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.reasoncodes import ReasonCode

from glec_fast._paho import DISCONNECT_READ_BYTES
from glec_fast.mqtt.inbound_message import properties_from

_FAILURE = 0x80
# Of a Maximum Packet Size.
_PAHO_MAX_BYTES = 268_435_455
# In SUBACK and UNSUBACK, behind the packet id.
_PROPERTIES_AT = 2


def in_paho_words(kind: int, body: bytes) -> tuple[bytes, list[int]]:
    """An MQTT 5 packet that was checked: (its body as paho can read it, reason codes in it that paho has no name for).

    kind: of `PacketTypes`. In the place of those codes stands 0x80, Unspecified error (2.4).
    """
    if kind == PacketTypes.CONNACK:
        body = _with_packet_size(body)
        codes_at, end = 1, 2
    elif kind == PacketTypes.DISCONNECT:
        codes_at, end = 0, 1
        body = body and body.ljust(DISCONNECT_READ_BYTES, b"\0")
    elif kind in (PacketTypes.SUBACK, PacketTypes.UNSUBACK):
        codes_at, end = _behind_properties(body), len(body)
    else:
        return body, []
    unnamed = [code for code in body[codes_at:end] if code >= _FAILURE and not _has_name(kind, code)]
    if unnamed:
        codes = bytes(_FAILURE if code in unnamed else code for code in body[codes_at:end])
        body = body[:codes_at] + codes + body[end:]
    return body, unnamed


def _has_name(kind: int, code: int) -> bool:
    try:
        ReasonCode(kind, identifier=code)
    except (KeyError, ValueError):
        return False
    return True


def _with_packet_size(connack: bytes) -> bytes:
    """Maximum Packet Size may be any four bytes but 0 (3.2.2.3.6), also more than a packet can have."""
    properties: Any = properties_from(PacketTypes.CONNACK, connack[2:])
    if getattr(properties, "MaximumPacketSize", 0) <= _PAHO_MAX_BYTES:
        return connack
    properties.MaximumPacketSize = _PAHO_MAX_BYTES
    return connack[:2] + bytes(properties.pack())


def _behind_properties(body: bytes) -> int:
    size = shift = 0
    for index in range(_PROPERTIES_AT, len(body)):
        size |= (body[index] & 0x7F) << shift
        shift += 7
        if body[index] < 0x80:
            return index + 1 + size
    return len(body)
