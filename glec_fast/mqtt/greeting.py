"""CONNECT and CONNACK: whose session the server keeps, and what either side allows the other."""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from paho.mqtt import client as paho_client
from paho.mqtt.enums import LogLevel, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import MalformedPacket, Properties

from glec_fast.engine.takeover import Continuity
from glec_fast.errors import GlecError, ProtocolError
from glec_fast.mqtt.dispatch import PINGRESP
from glec_fast.mqtt.inbound_message import properties_from
from glec_fast.outbox.owners import Owner

if TYPE_CHECKING:
    from collections.abc import Callable

    from glec_fast._paho import Paho
    from glec_fast.durable.received_ids import Identity
    from glec_fast.engine.farewell import Farewell
    from glec_fast.engine.liveness import Liveness
    from glec_fast.engine.takeover import Takeover
    from glec_fast.engine.writing import Writer
    from glec_fast.mqtt.dispatch import Dispatcher
    from glec_fast.outbox._outbox import Outbox
    from glec_fast.runtime._field import Overrides

_FIRST_ONLY = paho_client.MQTT_CLEAN_START_FIRST_ONLY
_MQTT_5 = MQTTProtocolVersion.MQTTv5
# MQTT 5, 3.1.2.11.2: the session does not end.
_FOR_EVER = 0xFFFFFFFF
_RECEIVE_MAXIMUM = 65_535
_PINGREQ_PACKET = b"\xc0\x00"
_PUBREL_PACKET = b"\x62\x02"
# Of CONNECT's flags.
_CLEAN, _HAS_PASSWORD = 0x02, 0x40
_PROTOCOL_ERROR = 0x82


class Accepted(NamedTuple):
    """What is known of the session of a connection.

    is_continued: it is known to be that of the connection before. The rest is MQTT 5's (3.2.2.3.11 to 3.2.2.3.13):
    Subscription Identifiers, filters with wildcards, and shared ones.
    """

    session_present: bool = False
    is_continued: bool = False
    takes_identifiers: bool = False
    takes_wildcards: bool = True
    takes_shared: bool = True


class Greeting:
    """Of one client. For whoever has its loop, but for `identify`: before there is one, for any thread."""

    def __init__(
        self,
        paho: Paho,
        outbox: Outbox,
        dispatcher: Dispatcher,
        writer: Writer,
        farewell: Farewell,
        takeover: Takeover,
        liveness: Liveness,
        overrides: Overrides,
    ) -> None:
        self._paho = paho
        self._overrides = overrides
        self._outbox = outbox
        self._dispatcher = dispatcher
        self._link = dispatcher.link
        self._writer = writer
        self._farewell = farewell
        self._takeover = takeover
        # Whose session comes next. Without a name it is the address that is connected to.
        self.owner = Owner("")
        # Whether the server was asked to forget the session.
        self._is_clean = False
        # Of the last connection that a server accepted.
        self.accepted = Accepted()
        self._continuity = Continuity()
        self._identity: Identity = ("", "")
        self._liveness = liveness

    def session_asked_for(self, clean_start: Any, properties: Properties | None) -> tuple[Any, Properties | None]:
        """With a store, MQTT 5 is asked for a session that does not end, unless told otherwise."""
        if not (self._outbox.is_stored and self._paho.protocol == _MQTT_5):
            return clean_start, properties
        return (False if clean_start == _FIRST_ONLY else clean_start), with_session_expiry(properties)

    def identify(self) -> None:
        """Before each connection. Raises QueueStorageError, QueueClosedError: then there must be none."""
        paho = self._paho
        address = f"{paho.host}:{paho.port}"
        owner = self.owner._replace(name=self.owner.name or address, members={*self.owner.members, address})
        self._takeover.turn_to(owner.name)
        client_id = paho.client_id.decode("utf-8", "backslashreplace")
        self._identity = client_id, owner.name
        self._outbox.identify(client_id, *owner)
        if self._dispatcher.received is not None:
            self._dispatcher.received.turn_to(self._identity, owner.members)

    def aim(self, host: str, port: int, transport: Literal["tcp", "websockets"], path: str, owner: Owner) -> None:
        """Where the next connection leads, and whose session is there; see `identify`."""
        paho, self.owner = self._paho, owner
        paho.host, paho.port, paho.transport = host, port, transport
        if transport == "websockets":
            paho.client.ws_set_options(path)

    def begin(self) -> None:
        """A new connection. Raises as `identify`."""
        paho, session = self._paho, self._outbox.session
        self._dispatcher.drop()
        self._link.begin(is_tls=paho.is_tls)
        paho.note_connection(self._overrides.of(paho.client))
        self._dispatcher.restore_unforgotten()
        self._liveness.begin()
        self.identify()
        if self._dispatcher.received is not None:
            self._dispatcher.received.begin()
        self._expect()
        session.protocol_version = int(paho.protocol)
        session.offered_may_leave = paho.is_tls or paho.transport == "websockets"

    def _expect(self) -> None:
        """Tell the parser what CONNECT allows the server."""
        paho, inbound = self._paho, self._dispatcher.inbound
        inbound.protocol_version = int(paho.protocol)
        properties = paho.connect_properties if paho.protocol == _MQTT_5 else None
        inbound.max_packet_bytes = getattr(properties, "MaximumPacketSize", 0)
        inbound.topic_alias_maximum = getattr(properties, "TopicAliasMaximum", 0)

    def send_connect(self, send: Callable[[int], MQTTErrorCode], keepalive_s: int) -> MQTTErrorCode:
        """`send`, of what has the server forget a session that is not ours where that is due."""
        self._continuity.on_connect_sent()
        if not self._takeover.discards:
            return send(keepalive_s)
        name = "clean_start" if self._paho.protocol == _MQTT_5 else "clean_session"
        asked_for = getattr(self._paho, name)
        setattr(self._paho, name, True)
        try:
            return send(keepalive_s)
        finally:
            setattr(self._paho, name, asked_for)

    def amended(self, connect: bytes | bytearray) -> bytes | bytearray:
        """CONNECT as it is sent: paho leaves out a password that has no user name, which MQTT 5 allows (3.1.2.9)."""
        paho = self._paho
        flags_at = connect.index(b"MQTT" if paho.protocol >= MQTTProtocolVersion.MQTTv311 else b"MQIsdp")
        flags_at += len("MQTT" if paho.protocol >= MQTTProtocolVersion.MQTTv311 else "MQIsdp") + 1
        self._is_clean = bool(connect[flags_at] & _CLEAN)
        if paho.protocol != _MQTT_5 or paho.username is not None or paho.password is None:
            return connect
        # Behind the fixed header.
        body = bytearray(connect[flags_at - 7 :])
        body[7] |= _HAS_PASSWORD
        body += len(paho.password).to_bytes(2, "big") + paho.password
        packet = bytearray(connect[:1])
        paho.pack_length(packet, len(body))
        return packet + body

    def on_connack(self, handle: Callable[[], MQTTErrorCode]) -> MQTTErrorCode:
        """CONNACK came; `handle` is paho's, which calls `on_connect`. Raises MalformedPacket."""
        paho, outbox = self._paho, self._outbox
        body = bytes(paho.packet["packet"])
        if body[1] != 0:
            self._continuity.on_refused()
            return handle()
        if body[0] & 1 and self._is_clean and paho.protocol != MQTTProtocolVersion.MQTTv31:
            raise ProtocolError("the server has a session that it was asked to forget (3.2.2)", _PROTOCOL_ERROR)
        session_present = bool(body[0] & 1)
        is_continued = self._continuity.on_accepted(self._identity, session_present=session_present)
        self.accepted = Accepted(session_present, is_continued)
        rc = self._link.do(self._connect_again_if_needed, session_present)
        if rc is not None:
            return rc
        if not self._turn_to_received():
            return MQTTErrorCode.MQTT_ERR_CONN_LOST
        sock = paho.sock
        accepted = self._on_accepted(body)
        if not outbox.is_open:
            outbox.greet(*accepted)
        try:
            return handle()
        except MalformedPacket:
            # The connection ends for it, and nothing was sent on it.
            sock = None
            raise
        finally:
            if sock is not None and paho.sock is sock and not outbox.is_open:
                # Also where on_connect raised: what waits must not wait for ever.
                self._link.do(outbox.resume, *accepted)
                outbox.settle_into(self._dispatcher.finished)

    def _on_accepted(self, connack: bytes) -> tuple[bool, int]:
        """(whether the server has the session, how many exchanges it takes at once)."""
        paho = self._paho
        session_present = bool(connack[0] & 1)
        properties: dict[str, Any] = {}
        if paho.protocol == _MQTT_5:
            properties = dict(vars(properties_from(PacketTypes.CONNACK, connack[2:])))
            self.accepted = self.accepted._replace(
                takes_identifiers=bool(properties.get("SubscriptionIdentifierAvailable", 1)),
                takes_wildcards=bool(properties.get("WildcardSubscriptionAvailable", 1)),
                takes_shared=bool(properties.get("SharedSubscriptionAvailable", 1)),
            )
        if "ServerKeepAlive" in properties:
            # MQTT 5, 3.2.2.3.14; paho from 2.2 on.
            paho.keepalive_s = properties["ServerKeepAlive"]
        if "AssignedClientIdentifier" in properties:
            # For the connections that follow, which would not be the same session's without it (MQTT 5, 3.2.2.3.7).
            paho.client_id = properties["AssignedClientIdentifier"].encode()
        self._outbox.meet(properties, self._asked_expiry_s())
        # MQTT 5, 3.2.2.3.3; the highest value where the server names none.
        return session_present, int(properties.get("ReceiveMaximum", _RECEIVE_MAXIMUM))

    def _turn_to_received(self) -> bool:
        """Where the server has nothing of an earlier session (3.2.2), what it sends from here on is new.

        False where that cannot be put on disk: a message would be taken for one of the earlier session later.
        """
        received, present = self._dispatcher.received, self.accepted.session_present
        if received is None:
            if not present:
                with self._paho.received_lock:
                    self._paho.received.clear()
            return True
        if present:
            received.resume(is_continued=self.accepted.is_continued)
            return True
        try:
            received.forget()
        except GlecError as error:
            self._paho.log(LogLevel.MQTT_LOG_ERR, "what came in earlier cannot be forgotten: %s", error)
            return False
        return True

    def _asked_expiry_s(self) -> int:
        """For how long the broker was asked to keep the session once the connection ends, in seconds; 0 not at all."""
        paho = self._paho
        if paho.protocol != _MQTT_5:
            return 0 if paho.clean_session else _FOR_EVER
        if paho.clean_start is True:
            return 0
        return int(getattr(paho.connect_properties, "SessionExpiryInterval", 0))

    def _connect_again_if_needed(self, session_present: bool) -> MQTTErrorCode | None:
        """Leave in order, so that no will is published, and come back at once; None where this connection lasts."""
        takeover = self._takeover
        is_ours = not takeover.must_connect_again(
            session_present=session_present,
            is_foreign=self._outbox.is_session_foreign,
            is_mqtt_5=self._paho.protocol == _MQTT_5,
        )
        if is_ours:
            return None
        if takeover.discards and not self._release_left():
            takeover.discards = False
            return MQTTErrorCode.MQTT_ERR_CONN_LOST
        self._writer.write_disconnect()
        # To the program it is the same connection.
        takeover.is_connecting_again = True
        try:
            return self._paho.client.reconnect()
        except (OSError, GlecError) as error:
            self._paho.log(LogLevel.MQTT_LOG_ERR, "connecting again failed: %s", error)
            return MQTTErrorCode.MQTT_ERR_CONN_LOST
        finally:
            takeover.is_connecting_again = False
            # Also what was published in between.
            self._outbox.is_awaited = True

    def _release_left(self) -> bool:
        """Let the session that is to be discarded hand on what was left to it; False where the broker may not have."""
        outbox = self._outbox
        left = outbox.left_packet_ids()
        if not left:
            return True
        for packet_id in left:
            outbox.put_packet(_PUBREL_PACKET + packet_id.to_bytes(2, "big"))
        outbox.put_packet(_PINGREQ_PACKET)
        self._writer.write_out()
        # Whoever answers that has read what was before it.
        if not self._farewell.hear_out(self._paho.connect_timeout_s, PINGRESP):
            return False
        outbox.on_left_released()
        return True


def with_session_expiry(given: Properties | None) -> Properties:
    """A copy of `given` that asks for a session without an end, where it says nothing of it."""
    properties = Properties(PacketTypes.CONNECT) if given is None else copy(given)
    if not hasattr(properties, "SessionExpiryInterval"):
        properties.SessionExpiryInterval = _FOR_EVER
    return properties
