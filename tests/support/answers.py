"""What a broker answers, in pieces of any size, through the parser to the session, as the client hands it on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from glec_fast.mqtt.inbound_message import InboundMessage
from glec_fast.protocol._inbound import ACKS, NEED_DATA, PACKET, Inbound

if TYPE_CHECKING:
    from glec_fast.protocol._session import Session

PINGRESP = 0xD0


class Answers:
    """Of one connection, whose CONNACK has come."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._inbound = Inbound(InboundMessage)
        self._inbound.protocol_version = session.protocol_version
        self._inbound.feed(b"\x20\x03\x00\x00\x00" if session.protocol_version == 5 else b"\x20\x02\x00\x00")
        while self._inbound.advance() != NEED_DATA:
            pass

    def receive(self, data: bytes) -> int:
        """Returns how many PINGRESPs there were. Raises ProtocolError as the parser and the session do."""
        pongs = 0
        self._inbound.feed(data)
        while (found := self._inbound.advance()) != NEED_DATA:
            if found == ACKS:
                self._session.on_acks(self._inbound.acks)
            pongs += found == PACKET and self._inbound.packet_command == PINGRESP
        return pongs
