"""What a server says that it takes (MQTT 5, 3.2.2.3.4 to 3.2.2.3.6). It ends the connection over anything else.

A queue would then begin with the same message on the next connection, for ever.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from glec_fast.durable.extras import ROW_COLUMNS
from glec_fast.durable.transaction import Row
from glec_fast.outbox.weaknesses import Weakness
from glec_fast.validation import PACKET_MAX_BYTES, packet_bytes

if TYPE_CHECKING:
    from glec_fast.outbox.stored import DurableOutbox

_QOS_MAX = 2
# Aliases are ours, not a message's.
_TOPIC_ALIAS_INVALID = 0x94


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


class Server:
    """That of one outbox's connection, for whoever has its loop. max_qos, max_packet_bytes: see `DurableOutbox`."""

    def __init__(self, outbox: DurableOutbox, max_qos: int, max_packet_bytes: int) -> None:
        self._outbox = outbox
        self._max_qos = max_qos
        self._max_packet_bytes = max_packet_bytes
        self.limits: ServerLimits | None = None
        self.receive_maximum = 65_535
        # What it takes (MQTT 5, 3.2.2.3.8).
        self._topic_alias_maximum = 0

    @property
    def packet_max_bytes(self) -> int:
        """That either side allows."""
        limits = self.limits
        return self._max_packet_bytes if limits is None else min(self._max_packet_bytes, limits.packet_max_bytes)

    def meet(self, connack: Mapping[str, Any], asked_s: int) -> None:
        """See `Outbox.meet`."""
        outbox = self._outbox
        if outbox.left_reason == _TOPIC_ALIAS_INVALID:
            text = "the broker refused a topic alias, so that none is used from now on"
            outbox.store.log.note(logging.WARNING, "topic aliases that were refused", text, text=text)
            with outbox.lock:
                outbox.session.use_aliases(None)
        self._topic_alias_maximum = connack.get("TopicAliasMaximum", 0)
        self.limits = limits_of(connack, self._max_qos)
        granted_s = connack.get("SessionExpiryInterval", asked_s)
        if granted_s < asked_s:
            detail = f" (it keeps it for {granted_s} s)"
            outbox.weaknesses.note(Weakness.SESSION_SHORTENED, detail=detail)
            outbox.weaknesses.tell()

    def allow_aliases(self) -> None:
        """Not on a narrow connection: what ends such ones may be the aliases themselves."""
        with self._outbox.lock:
            self._outbox.session.allow_aliases(self._topic_alias_maximum, self.packet_max_bytes)
