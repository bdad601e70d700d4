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

    def allow(self, row: Row) -> bool:
        """False for a row as `Store.read` gives it that this server would end the connection over."""
        topic, payload, qos = row[1:4]
        retain, packed = row[ROW_COLUMNS : ROW_COLUMNS + 2] or (False, None)
        if qos > self.qos_max or (retain and not self.retain_available):
            return False
        return packet_bytes(topic, payload, qos, packed) <= self.packet_max_bytes


def limits_of(connack: Mapping[str, Any]) -> ServerLimits | None:
    """From CONNACK's properties, by paho's names; None where they limit nothing."""
    qos_max = connack.get("MaximumQoS", _QOS_MAX)
    retain_available = bool(connack.get("RetainAvailable", 1))
    packet_max_bytes = connack.get("MaximumPacketSize", PACKET_MAX_BYTES)
    limits = ServerLimits(qos_max, retain_available, packet_max_bytes)
    return None if limits == (_QOS_MAX, True, PACKET_MAX_BYTES) else limits
