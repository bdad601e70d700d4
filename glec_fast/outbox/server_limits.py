"""What a server says that it takes (MQTT 5, 3.2.2.3.4 to 3.2.2.3.6). It ends the connection over anything else.

A queue would then begin with the same message on the next connection, for ever.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from glec_fast.durable.extras import ROW_COLUMNS
from glec_fast.durable.transaction import Row
from glec_fast.validation import PACKET_MAX_BYTES, packet_bytes

_QOS_MAX = 2


class ServerLimits(NamedTuple):
    """qos_max: 0 to 2. packet_max_bytes: of a whole packet."""

    qos_max: int
    retain_available: bool
    packet_max_bytes: int

    def __str__(self) -> str:
        retain = "" if self.retain_available else ", no retained messages"
        return f"it takes QoS {self.qos_max} at most{retain}, packets of {self.packet_max_bytes:,} bytes at most"

    def lowered(self, row: Row) -> Row:
        """As it is sent: with the highest QoS that this server takes."""
        return row if row[3] <= self.qos_max else (*row[:3], self.qos_max, *row[4:])

    def allow(self, row: Row) -> bool:
        """False for a row as `Supply.read` gives it that this server would end the connection over."""
        topic, payload, qos = row[1:4]
        retain, packed = row[ROW_COLUMNS : ROW_COLUMNS + 2] or (False, None)
        if qos > self.qos_max or (retain and not self.retain_available):
            return False
        return packet_bytes(topic, payload, qos, packed) <= self.packet_max_bytes


def limits_of(connack: Mapping[str, Any], qos_max: int = _QOS_MAX) -> ServerLimits | None:
    """From CONNACK's properties, by paho's names, and the highest QoS to use at all; None where nothing is limited."""
    qos_max = min(connack.get("MaximumQoS", _QOS_MAX), qos_max)
    retain_available = bool(connack.get("RetainAvailable", 1))
    packet_max_bytes = connack.get("MaximumPacketSize", PACKET_MAX_BYTES)
    limits = ServerLimits(qos_max, retain_available, packet_max_bytes)
    return None if limits == (_QOS_MAX, True, PACKET_MAX_BYTES) else limits
