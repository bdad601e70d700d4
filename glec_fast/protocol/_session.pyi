from typing import Any

class Session:
    """The MQTT session of one client: bytes in, bytes out (MQTT 3.1.1 and 5.0, section 4). Not thread-safe.

    window: most exchanges in flight, 1 to 65534, 0 for that. durable: QoS 2 waits at the gate for `on_committed`.
    max_unreleased: the broker's limit of QoS 2 exchanges without PUBREL, 0 for none; the session keeps below it.
    """

    @property
    def durable(self) -> bool:
        """QoS 2 waits at the gate."""
    @property
    def window(self) -> int:
        """Most exchanges in flight, 1 to 65534; see `set_window`."""
    @property
    def max_unreleased(self) -> int:
        """The broker's limit of QoS 2 exchanges without PUBREL."""
    @property
    def receive_maximum(self) -> int:
        """The server's Receive Maximum on this connection (MQTT 5, 3.2.2.3.3)."""
    @property
    def version(self) -> int:
        """Counts durable images; see `take_image`."""
    @property
    def in_flight(self) -> int:
        """Exchanges in flight on this connection."""
    @property
    def unreleased(self) -> int:
        """QoS 2 exchanges among them whose PUBREL is not yet encoded."""
    @property
    def admitted_command(self) -> int:
        """First byte of the packet that the last `admit` encoded: PUBLISH with its flags, or PUBREL."""
    @property
    def downgraded_count(self) -> int:
        """QoS 2 messages that ended with PUBACK: the broker knows QoS 1 at most, and delivers at least once."""
    @property
    def downgraded_id(self) -> int:
        """The message id of the last of them."""
    @property
    def answered_count(self) -> int:
        """Acknowledgements that fitted an exchange: PUBACK, PUBREC, PUBCOMP."""
    def reserved_ids(self) -> list[tuple[int, int]]:
        """(message id, packet id) of QoS 2 that was given up; see `abandon`."""
    @property
    def unanswered_count(self) -> int:
        """Messages that were sent on this connection, and given up, and that the server has not answered."""
    @property
    def reserved_count(self) -> int:
        """Packet ids of QoS 2 that are kept out of use, as their messages were given up; see `abandon`."""
    @property
    def has_last(self) -> bool:
        """A packet put as `last` is in the send buffer, or has left."""
    keeps_all_reasons: bool
    """True: `take_reasons` has every acknowledgement, also those that carry nothing. False at first."""
    protocol_version: int
    """3, 4 or 5, as in CONNECT (MQTT 3.1.2.2)."""
    offered_may_leave: bool
    """True over TLS and WebSocket: they may send a part of what `peek` gave and not say so. False at first."""

    def __init__(self, window: int = 20, durable: bool = False, max_unreleased: int = 0) -> None: ...
    def use_aliases(self, topics: list[str] | None) -> None:
        """Send topics by number where the server allows it: as they come, and these, 16 at most, before all others.

        None: none from now on.
        """
    def allow_aliases(self, maximum: int, packet_max_bytes: int) -> None:
        """The server of this connection takes so many (MQTT 5, 3.2.2.3.8), and packets of at most so many bytes."""
    @property
    def sendable_bytes(self) -> int:
        """Bytes that may leave now."""
    @property
    def unsent_bytes(self) -> int:
        """Bytes encoded and not yet handed to the socket, those behind the gate included."""
    @property
    def unsent_packets(self) -> int:
        """Packets encoded and not yet in whole handed to the socket, those behind the gate included."""
    @property
    def last_packet_id(self) -> int:
        """The packet id that was given out last; 0 before the first."""
    @property
    def wants_commit(self) -> bool:
        """True where bytes wait for an `image` that was not yet taken."""
    def set_window(self, window: int) -> None:
        """Bound the exchanges in flight, 0 to 65535; 0 means as many as there are packet ids. Raises ValueError."""
    @property
    def stale(self) -> int:
        """Places that the server's session may hold of earlier connections; see `expect_stale`."""
    @property
    def is_held_by_stale(self) -> bool:
        """A row waited for stale places on this connection, and would have fitted without them."""
    kept_until: int
    """The owner's word for when the server's session was last known to hold nothing stale; 1 for none. In images."""
    def prove_kept(self) -> None:
        """The server's session is not older than it was, as `kept_until` could tell: nothing in it is stale."""
    def expect_stale(self, is_known: bool = True) -> None:
        """The server's session may be of an earlier process, and may hold as many places as were ever taken at once.

        That is what the image says that was loaded; where it says nothing, or not is_known, it may be all of them.
        Until it turns out to be a new one.
        """
    def room(self) -> int:
        """How many more exchanges the window, Receive Maximum and the free packet ids allow."""
    def fits(self, row: tuple[Any, ...]) -> bool:
        """True where the window and the server's places admit this row, however many bytes are unanswered."""
    def reserve_packet_id(self) -> int:
        """Take the next unused packet id (1 to 65535) out of circulation; 0 where all are taken."""
    def take_packet_id(self, packet_id: int) -> bool:
        """Take this packet id out of circulation, for a message of an earlier session. False where it is in use."""
    def release_packet_id(self, packet_id: int) -> None:
        """Give back an id from `reserve_packet_id` whose message will not be admitted."""
    def next_packet_id(self) -> int:
        """The next unused packet id without taking it; 0 where all are taken. For SUBSCRIBE and UNSUBSCRIBE."""
    def put_packet(self, packet: bytes | bytearray, last: bool = False) -> None:
        """Append a control packet to what may leave. It does not wait at the gate. `last`: nothing leaves after it."""
    @property
    def sent_to(self) -> int:
        """Stream offset of the end of what the socket has taken."""
    @property
    def answered_to(self) -> int:
        """Stream offset of the end of what the server has read, as its answers on this connection prove."""
    @property
    def unanswered_bytes(self) -> int:
        """Bytes encoded that no answer of the server proves that it has read."""
    @property
    def unasked_bytes(self) -> int:
        """Those of them that no answer will prove, as they are QoS 0 behind the last packet that has one."""
    @property
    def pings_put(self) -> int:
        """PINGREQs that were put on this connection."""
    @property
    def pings_answered(self) -> int:
        """Those of them that were answered."""
    byte_window: int
    """`admit_rows` takes rows that are bounded only while fewer bytes than that are unanswered."""
    publish_quota: int
    """So many PUBLISH packets `admit_rows` may encode; any that is encoded counts."""

    def on_accepted(self) -> None:
        """CONNACK came, which answers what has left by then."""
    def on_pong(self) -> None:
        """PINGRESP came: the server has read what went before the first PINGREQ that was not answered."""
    def peek(self, limit: int) -> bytes:
        """A copy of the next bytes that may leave, at most `limit`."""
    def on_sent(self, size: int) -> bool:
        """The socket took `size` bytes of the last `peek`. True once the packet put as `last` has left."""
    def on_torn(self) -> None:
        """Nobody knows how much of the last `peek` the socket took, and nothing follows it on this connection.

        All of it may have left: QoS 0 counts as sent, the rest goes again as such (section 3.3.1.1).
        """
    @property
    def unacknowledged_count(self) -> int:
        """Messages of QoS 0 that were encoded, over all connections."""
    @property
    def left_count(self) -> int:
        """Those of them that the socket has taken, and those of connections that have ended."""
    @property
    def proven_count(self) -> int:
        """Those of them that are known to have arrived, and those of connections that have ended."""
    @property
    def pinged_to(self) -> int:
        """Stream offset of the end of the oldest PINGREQ that is not answered; 0 where there is none."""
    bounds_unproven: bool
    """True: what is not proven takes up at most 256 KiB of the stream; `admit_rows` stops there. False at first."""
    proves_each: bool
    """With `bounds_unproven`: no QoS 0 is encoded before all others are proven. False at first."""
    @property
    def has_room_unproven(self) -> bool:
        """True where another message of QoS 0 would keep to that bound."""
    @property
    def wants_proof(self) -> bool:
        """True where PINGREQ should ask for it, lest QoS 0 stand still for want of it."""
    def prove_all(self) -> None:
        """All that the socket has taken has arrived: the server has ended the connection as DISCONNECT asked it to."""
    def has_unanswered(self, offset: int) -> bool:
        """True where an exchange waits for the answer to a question that ends at this stream offset or before."""
    def admit(
        self,
        message_id: int,
        topic: str | bytes,
        payload: str | bytes | bytearray | memoryview,
        qos: int,
        retain: bool = False,
        properties: bytes | None = None,
        packet_id: int = 0,
    ) -> int:
        """Encode one message; returns `unsent_bytes`. The caller asks `room` first for QoS 1 and 2.

        message_id: the owner's name for it, given back by `take_done`; above 0 for QoS 1 and 2.
        topic: str or UTF-8 bytes. payload: str, bytes or a buffer. properties: packed (MQTT 5, 2.2.2) or None.
        packet_id: 0, or one taken with `reserve_packet_id`.
        Raises MessageError where MQTT cannot carry it. After any error nothing is kept of it.
        """
    def admit_rows(
        self, rows: list[tuple[Any, ...]], start: int, is_bounded: bool = False, queue_offset_ms: int | None = None
    ) -> int:
        """`admit` the rows (message id, topic, payload, qos, ...) from index `start` on while they fit.

        queue_offset_ms: of the times in the fifth column against the milliseconds since boot; None: unknown.
        A row of eight columns or more has retain and packed properties in its seventh and eighth.
        Returns the index of the first that did not fit: behind it none goes, so that the order stays.
        A row that MQTT cannot carry, as another program may have left one, is handed back by `take_refused`.
        """
    now_ms: int
    """Milliseconds since boot, as of what `on_acks` is given next: whoever wants `acknowledging` sets it."""
    @property
    def encoded_counts(self) -> tuple[int, int, int]:
        """PUBLISH packets that were encoded, of QoS 0, 1 and 2; also those of a message that goes again."""
    @property
    def acknowledged_counts(self) -> tuple[int, int, int]:
        """Messages that the server has acknowledged, of QoS 0, 1 and 2; of QoS 0 those that the socket has taken."""
    @property
    def acknowledging(self) -> tuple[list[int], int, int]:
        """How long messages took from their acceptance to their acknowledgement: what `Latency.of` takes."""

    def on_acks(self, packets: bytes) -> None:
        """Take PUBACK, PUBREC and PUBCOMP packets, whole and checked by `glec_fast.protocol._inbound`.

        Raises ProtocolError where one does not fit its exchange: what came before it counts, and the connection must be
        closed. Raises ValueError for any other bytes.
        """
    @property
    def has_finished(self) -> bool:
        """True where `take_done` or `take_refused` has any."""
    def take_done(self) -> list[int]:
        """Message ids that are finished: acknowledged, or QoS 0 and handed to the socket. Each is given once."""
    @property
    def refused_ids(self) -> list[int]:
        """What `take_refused` has."""
    def take_refused(self) -> list[int]:
        """Message ids that the broker refused (MQTT 5), and rows that MQTT cannot carry. Each is given once."""
    @property
    def has_doubtful(self) -> bool:
        """`take_doubtful` has any. Only with `durable`."""
    def take_doubtful(self) -> list[int]:
        """Those ids of `take_done` whose PUBREL the broker answered as if it had never acknowledged them (MQTT 5)."""
    def take_reasons(self) -> dict[int, tuple[int, int, int, bytes]]:
        """What the last acknowledgements carried (MQTT 5): message id -> (packet type, packet id, reason, properties).

        Packet type as in the first byte, 0x40 for PUBACK; properties packed, with their length in front.
        """
    notes: list[tuple[int, int, int]]
    """What images carry for the owner: (number above 0, value to 65535, kind 128 to 255) each.

    `load_image` gives them back.
    """
    def take_image(self, finished: list[tuple[int, int]] | None = None) -> tuple[int, bytes]:
        """(version, bytes): every QoS 2 exchange, as it must be on disk before what is encoded now may leave.

        finished: (first, last) ranges of message ids that `take_done` gave and whose rows are not deleted with it.
        """
    def on_committed(self, version: int) -> None:
        """The image of this version is on disk; what `take_done` had given by then is deleted, or in it as finished."""
    def load_image(self, image: bytes) -> list[tuple[int, int]]:
        """Begin with the exchanges of an earlier process, as parked. Returns the finished (first, last) ranges in it.

        Raises ValueError where it is not an image; the session is then as it was.
        """
    def park(self) -> None:
        """The connection is gone. Set every exchange aside; forget what was encoded."""
    def parked_ids(self, qos: int = 0) -> list[int]:
        """Message ids of the exchanges set aside, of this QoS or, with 0, of both; their rows must not be dropped."""
    def parked_exchanges(self) -> list[tuple[int, int, int]]:
        """(message id, packet id, state) of the QoS 2 exchanges set aside: what an image has of them."""
    def released_ids(self) -> list[int]:
        """Those of `parked_ids` whose PUBREL may have left."""
    def unanswered_ids(self) -> list[int]:
        """Message ids of the exchanges whose PUBREL was sent more than once, and has left on this connection."""
    def give_up(self, message_id: int) -> bool:
        """End an exchange whose PUBREL is not answered, in flight or set aside. False where there is none."""
    def abandon(self, ids: list[int]) -> list[int]:
        """End the exchanges of these messages, which will not be sent again. Their packet ids stay out of use.

        For QoS 1 until the connection has ended; for QoS 2, also over a restart, until they are answered after all or
        the server has lost the session. Returns those that stay as they are: the server has them, or they are encoded
        and were not offered to the socket yet.
        """
    def in_flight_ids(self) -> list[int]:
        """Message ids of the exchanges in flight on this connection."""
    @property
    def publish_start(self) -> int:
        """Bytes that the socket has to take before the PUBLISH that was encoded last, of all connections."""
    def exposed_ids(self) -> list[int]:
        """Message ids of the exchanges that wait for their first answer, and some of whose PUBLISH may have left."""
    def holds(self, message_id: int) -> bool:
        """True where this message has an exchange, in flight or set aside."""
    def forget(self, message_id: int) -> None:
        """The owner gave up a message that was set aside."""
    def release_parked(self, message_id: int) -> None:
        """End an exchange set aside whose message is gone: the broker may hold its PUBLISH, and the id, until PUBREL.

        It is finished as any other, by PUBCOMP. QoS 1 has nothing to end.
        """
    def resume(self, session_present: bool, receive_maximum: int = 65535) -> list[int]:
        """CONNACK came (section 3.2). Returns the message ids in doubt; the owner then admits from its first message.

        Where the broker lost the session all packet ids are void (3.1.2.4). What it had not received is new again; what
        it had received, and may or may not have passed on, is returned: in doubt, and no longer kept here.
        """
