"""The MQTT session of one client: bytes in, bytes out, packet ids and QoS states. No I/O, no clock, no log, no lock.

A message enters with `admit` under its message id, is given a packet id, and is encoded at the end of one send buffer.
Acknowledgements come in runs through `on_acks`; `take_done` hands back the message ids that the broker has taken over.

An exchange (MQTT 3.1.1 and 5.0, section 4.3) is in one of these states:

    SENT      PUBLISH is in the send buffer (QoS 2 and durable: perhaps behind the gate) or has left; waits for PUBACK
              or PUBREC
    RELEASED  PUBREC came; PUBREL is in the send buffer or has left; waits for PUBCOMP

**What a server may answer.** The question of an exchange is the packet that waits for an answer: PUBLISH while it is
SENT, PUBREL once it is RELEASED. It was asked once its bytes were offered to the socket on this connection, or may
have left on one before. An acknowledgement names a packet id:

    |                   | not in flight | parked  | not asked | SENT, QoS 1 | SENT, QoS 2   | RELEASED     |
    |-------------------|---------------|---------|-----------|-------------|---------------|--------------|
    | PUBACK            | error         | ignored | error     | done        | done, counted | error        |
    | PUBREC            | PUBREL        | ignored | error     | error       | RELEASED      | PUBREL again |
    | PUBACK above 0x7F | error         | ignored | error     | refused     | refused       | error        |
    | PUBREC above 0x7F | ignored       | ignored | error     | error       | refused       | error        |
    | PUBCOMP           | ignored       | ignored | error     | error       | error         | done         |

A repeated PUBREC is answered also while its PUBREL has not left. Not in flight are also ids that are reserved for
SUBSCRIBE, that wait in memory, or whose end waits for the disk.

An error is a ProtocolError: it ends the connection, and acknowledges nothing. It must not meet a server that keeps to
MQTT, whatever became of the link. So it is ignored where the id is *stray*: where this connection may bring more
answers for it than its exchange explains. That is what was published again on it (a first copy may be answered late,
and each copy is), what was given up in flight, and what had more PUBRELs than one, for a PUBREC that came again or
that nobody knew: which must be answered, or the server waits for ever.

PUBACK for QoS 2 is what servers send that know no more than QoS 1 (RabbitMQ): the message is done, as one of QoS 1.
PUBCOMP above 0x7F (0x92: no such exchange) to a PUBREL that was sent again is a plain PUBCOMP, as the first was taken.
To one that was sent once it says that the server lost what it had acknowledged: the message is done, and with `durable`
in doubt (`take_doubtful`).

**The gate.** With `durable`, nothing leaves before the state that explains it is on disk. `take_image` gives the
durable image of all QoS 2 exchanges, numbered; when that number comes back through `on_committed`, what it explains may
leave.

**Giving up.** `abandon` ends an exchange whose message will not be sent again, expired or quarantined, though it had
no answer. The server may hold its PUBLISH and answer late, so its packet id stays out of use: for QoS 1 until the
connection has ended; for QoS 2, *reserved*, until it is answered after all or the server has lost the session, also
over a restart, as the image names it. Late answers to such an id are none to another message.

**Parking.** `park` ends a connection: every exchange is set aside under its message id. The owner then admits its
messages again from the first one on, and `admit` finds what was set aside: an exchange goes on with its packet id and
the right DUP flag, so that resends keep the original order, and are bounded by the window, without a second mechanism.

**Proof.** A connection is in order, and a server reads it in order: an answer proves that all before its question has
arrived, QoS 0 too. So three numbers are kept of QoS 0, whatever its pace: how many were encoded, how many have left,
and how many are proven, by an answer to something behind them (PUBACK, PUBREC, PUBCOMP, PINGRESP). What has left and is
not proven as a connection ends was in the air. An answer that may be one to an earlier copy proves nothing.

**Aliases.** With `use_aliases`, and as far as the server allows it (MQTT 5, 3.3.2.3.4), a topic is sent once on a
connection and by its number from then on. That is decided as a packet is encoded: what is encoded leaves in its order
or not at all, the gate holds back all that is behind it, and each connection begins without names. So a resend is
right wherever it goes.

Not thread-safe: the owner serialises calls.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_Size
from cpython.list cimport PyList_GET_SIZE
from cpython.set cimport PySet_GET_SIZE
from cpython.unicode cimport PyUnicode_AsUTF8AndSize
from cython cimport final
from libc.stddef cimport size_t
from libc.stdint cimport INT64_MIN, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

cimport exchanges
cimport histogram
cimport send_buffer
cimport topic_aliases
cimport vector
from exchanges cimport EXCHANGES_MAX, FREE, ID_FREE, ID_TAKEN, RELEASED, SENT, Exchange
from inflight_image cimport FINISHED, LAST_GIVEN, NOTE, PLACES, RESERVED, add_finished, entries_of, image_of
from mqtt_wire cimport (
    FIXED_HEADER_MAX_BYTES,
    PUBACK,
    PUBCOMP,
    PUBLISH,
    PUBREC,
    PUBREL,
    REMAINING_LENGTH_MAX,
    load_remaining_length,
    load_u16,
    remaining_length_bytes,
    store_remaining_length,
    store_u16,
)
from topic_aliases cimport ALIAS_BYTES, OWN_TOPICS_MAX, TOPIC_ALIAS

from glec_fast.errors import MessageError, ProtocolError

cdef enum:
    WITH_EXTRAS_COLUMNS = 8
    WITH_TIME_COLUMNS = 5
    UNBOUNDED_BYTES = 0x7FFFFFFF
    PING_BYTES = 2
    FIRST_BYTE_OF_PINGREQ = 0xC0
    # QoS 0 is asked about so many times in a window.
    ASKED_OF_WINDOW = 4
    ACK_MAX_BYTES = 5
    REASON_FAILURE = 0x80
    REASON_PACKET_ID_NOT_FOUND = 0x92
    REASON_PROTOCOL_ERROR = 0x82
    MQTT_5 = 5
    # In `kept_until`; what images have had there that knew nothing of it.
    UNKNOWN = 1
    # With `bounds_unproven`, so many bytes with QoS 0 in them are on their way at once.
    UNPROVEN_MAX_BYTES = 256 * 1024
    # Of those that are reserved the first is let go: a server that never answers QoS 2 has no exactly-once to lose;
    # and each image names all of them.
    RESERVED_MAX = 512

cdef int64_t UNBOUNDED_COUNT = <int64_t>1 << 62

cdef enum Outcome:
    DONE
    REFUSED
    # Nobody asks for it any more.
    GIVEN_UP


# As when a message was accepted, where nobody knows.
cdef int64_t NOT_TIMED = INT64_MIN
cdef bytes PINGREQ_PACKET = b"\xc0\x00"


cdef inline size_t _publish_body_bytes(size_t topic, bint has_packet_id, bint is_mqtt_5, size_t properties,
                                       size_t payload) noexcept:
    """Of a PUBLISH with so many bytes of each (section 3.3)."""
    cdef size_t body = 2 + topic + (2 if has_packet_id else 0) + payload
    return body + remaining_length_bytes(properties) + properties if is_mqtt_5 else body


cdef bytes _as_bytes(data):
    """A copy, unless it is bytes. Raises TypeError, BufferError where it is no buffer."""
    cdef Py_buffer view
    if isinstance(data, bytes):
        return data
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        return PyBytes_FromStringAndSize(<const char*>view.buf, view.len)
    finally:
        PyBuffer_Release(&view)


cdef struct Mark:
    uint64_t end
    int64_t message_id

cdef struct Ping:
    # Stream offset of its end, and the messages of QoS 0 before it.
    uint64_t end
    uint64_t behind

cdef struct Retired:
    uint64_t version
    uint16_t packet_id


# Final, so that its C methods are called without a look-up.
@final
cdef class Session:
    """The exchanges of one client, over its connections. The caller sees to it that one thread is in it at a time.

    window: most exchanges in flight, 1 to 65534, 0 for that. durable: QoS 2 waits at the gate.
    max_unreleased: the broker's limit of QoS 2 exchanges without PUBREL, 0 for none; the session keeps below it.
    mosquitto acknowledges those above its max_inflight_messages, and never hands them on. Before MQTT 5, the most that
    were there on earlier connections count as well: a broker that was restored from an older save has them again.
    """

    cdef readonly bint durable
    cdef readonly int window
    # True: `take_reasons` has every acknowledgement, also those that carry nothing.
    cdef public bint keeps_all_reasons
    # 3, 4 or 5, as in CONNECT (MQTT 3.1.2.2).
    cdef public int protocol_version
    # True over TLS and WebSocket: they may send a part of what `peek` gave and not say so, so all of it may have left.
    cdef public bint offered_may_leave
    # Of the server, on this connection (MQTT 5, 3.2.2.3.3).
    cdef readonly int receive_maximum
    # Counts durable images; see `take_image`.
    cdef readonly uint64_t version
    cdef uint64_t committed_version
    cdef readonly int max_unreleased
    # Places that the server's session may hold of earlier connections; see `expect_stale`.
    cdef readonly int stale
    # The most that were taken on this one, and on any before, as far as images say so; exchanges of QoS 2 set aside.
    cdef int places_max, places_ever, parked_places
    cdef bint knows_places
    # A row waited for stale places here, and would have fitted without them; see `prove_kept`.
    cdef readonly bint is_held_by_stale
    # The owner's word for when the server's session was last known to hold nothing stale; 1 for none. Images carry it.
    cdef public int64_t kept_until
    # QoS 2 messages that ended with PUBACK, of a broker that delivers at least once, and the last of them.
    cdef readonly Py_ssize_t downgraded_count
    cdef readonly int64_t downgraded_id
    # PUBACK, PUBREC and PUBCOMP that fitted an exchange.
    cdef readonly uint64_t answered_count
    # First byte of the packet that the last `admit` encoded: PUBLISH with its flags, or PUBREL.
    cdef readonly int admitted_command
    # Messages of QoS 0, over all connections: encoded, and proven or of a connection that has ended.
    cdef readonly uint64_t unacknowledged_count, proven_count
    # Milliseconds since boot, as of what `on_acks` is given next: whoever wants `acknowledging` sets it.
    cdef public int64_t now_ms
    # By QoS: PUBLISH packets encoded, and messages acknowledged.
    cdef uint64_t encoded[3]
    cdef uint64_t acknowledged[3]
    cdef histogram.Histogram latency
    # `admit_rows` stops at QoS 0 where `UNPROVEN_MAX_BYTES` of the stream are not proven.
    cdef public bint bounds_unproven
    # And none before all others are proven.
    cdef public bint proves_each

    # Owned here.
    cdef exchanges.Table table
    cdef send_buffer.SendBuffer out
    cdef topic_aliases.Aliases aliases
    cdef bint uses_aliases
    # No packet grows beyond it by naming an alias.
    cdef size_t packet_max_bytes
    cdef vector.Vector marks, retired, done
    # The image has changed since the last `take_image`.
    cdef bint dirty
    # Stream offsets: what the server is known to have read, by its answers, and what its next answers will prove.
    cdef uint64_t proven_to, asked_to
    # PINGREQs that were put and not answered.
    cdef vector.Vector pings
    # How many were put on this connection, and answered.
    cdef readonly Py_ssize_t pings_put, pings_answered
    # `admit_rows` takes rows that are bounded only while fewer bytes than that are unanswered.
    cdef public size_t byte_window
    # So many PUBLISH packets `admit_rows` may encode; any that is encoded counts.
    cdef public int64_t publish_quota

    # message id -> (packet id, state, qos, whether its question may have left, Exchange.left_in_lost)
    cdef dict parked
    # Packet ids that this connection may bring more answers for than their exchange explains.
    cdef set strays
    # Packet id -> message id of QoS 2 that was given up; and ids of QoS 1 that were, on this connection.
    cdef dict reserved
    cdef list held
    # Of both, those that were sent on this connection and have no answer; where the question of the first of them ends.
    cdef set unanswered
    cdef uint64_t unanswered_from
    # Stream offset at which the PUBLISH that was encoded last begins.
    cdef uint64_t publish_begin
    cdef dict reasons
    cdef list refused, doubtful
    cdef list owner_notes

    def __cinit__(self, *_, **__):
        exchanges.begin(&self.table)
        send_buffer.begin(&self.out)
        self.marks.item_bytes = sizeof(Mark)
        self.retired.item_bytes = sizeof(Retired)
        self.done.item_bytes = sizeof(int64_t)
        self.pings.item_bytes = sizeof(Ping)
        self.byte_window = UNBOUNDED_BYTES
        self.publish_quota = UNBOUNDED_COUNT

    def __init__(self, int window=20, bint durable=False, int max_unreleased=0):
        self.durable = durable
        self.max_unreleased = max_unreleased or EXCHANGES_MAX
        self.protocol_version = 4
        self.receive_maximum = EXCHANGES_MAX
        self.kept_until = UNKNOWN
        self.parked = {}
        self.strays = set()
        self.reserved = {}
        self.held = []
        self.unanswered = set()
        self.reasons = {}
        self.refused = []
        self.doubtful = []
        self.owner_notes = []
        self.set_window(window)

    def __dealloc__(self):
        topic_aliases.end(&self.aliases)
        send_buffer.end(&self.out)
        exchanges.end(&self.table)
        vector.free_items(&self.marks)
        vector.free_items(&self.retired)
        vector.free_items(&self.done)
        vector.free_items(&self.pings)

    # ---- the window and packet ids

    def set_window(self, int window):
        """Bound the exchanges in flight, 0 to 65535; 0: as many as there are packet ids. What is in flight stays so."""
        if not 0 <= window <= 65535:
            raise ValueError(f"window is {window}; it must be 0 to 65535 exchanges")
        self.window = min(window or EXCHANGES_MAX, EXCHANGES_MAX)

    @property
    def in_flight(self) -> int:
        """Exchanges in flight on this connection."""
        return self.table.in_flight

    @property
    def unreleased(self) -> int:
        """QoS 2 exchanges among them whose PUBREL is not yet encoded."""
        return self.table.unreleased

    def room(self) -> int:
        """How many more exchanges the window and the server's Receive Maximum (MQTT 5, 3.2.2.3.3) allow."""
        return max(self._limit() - self.table.in_flight, 0)

    cdef inline int _limit(self) except -1:
        # An id that waits for its row's deletion, or is reserved, has no exchange, and yet cannot be given out.
        # What was given up on this connection counts with the server all the same (MQTT 5, 4.9).
        return min(self.window, self.receive_maximum - <int>PySet_GET_SIZE(self.unanswered),
                   65535 - <int>self.retired.count - <int>PyDict_Size(self.reserved)
                   - <int>PyList_GET_SIZE(self.held))

    cdef bint _fits(self, object message_id, uint8_t qos) except -1:
        if qos == 0:
            return not self.bounds_unproven or self.has_room_unproven
        if self.table.in_flight >= self._limit():
            return False
        if self.table.in_flight == 0:
            return True
        # Of QoS 1 a place is taken for a moment only, but with none left mosquitto acknowledges it too, and drops it.
        # So one stays free, unless a single message of QoS 2 needs it.
        cdef int places = self._places()
        cdef int ours = self.table.unreleased + self.parked_places
        cdef int limit = self.max_unreleased - (qos == 2)
        if qos == 2 and self.parked:
            aside = self.parked.get(message_id)
            if aside is not None:
                if aside[1] == RELEASED or self.table.unreleased == 0:
                    return True
                ours = self.table.unreleased
                places = ours + self._stale_places()
        if places < limit or ours == 0:
            return True
        self.is_held_by_stale = self.is_held_by_stale or self._stale_places() > 0 and self.table.unreleased < limit
        return False

    def fits(self, tuple row not None) -> bool:
        """True where the window and the server's places admit this row, however many bytes are unanswered."""
        try:
            return row[3] == 0 or self._fits(row[0], row[3])
        except (ValueError, TypeError, OverflowError):
            # In its turn it is refused.
            return True

    cdef inline int _stale_places(self) noexcept:
        # MQTT 5's server refuses what is too much, and says so.
        return 0 if self.protocol_version == MQTT_5 else self.stale

    cdef inline int _places(self) noexcept:
        # What is parked, or was given up, is at the server, or the server's session has gone back to what is stale.
        return self.table.unreleased + max(self._stale_places(),
                                           self.parked_places + <int>PyDict_Size(self.reserved))

    cdef inline int _places_noted(self) noexcept:
        # The most that may ever have been taken at once.
        return max(self.places_ever, min(self.places_max, self.max_unreleased - 1))

    def expect_stale(self, bint is_known=True):
        """The server's session may be of an earlier process, and may hold as many places as were ever taken at once.

        That is what the image says that was loaded; where it says nothing, or not is_known, it may be all of them.
        Until it turns out to be a new one.
        """
        if self.max_unreleased < EXCHANGES_MAX:
            if not (self.knows_places and is_known):
                self.places_ever = self.max_unreleased - 1
            self.stale = self.places_ever

    def prove_kept(self):
        """The server's session is not older than it was, as `kept_until` could tell: nothing in it is stale."""
        self.stale = self.places_ever = 0
        self.is_held_by_stale = False
        self.places_max = max(self.places_max, self._places())

    cdef int _count_parked(self) except -1:
        self.parked_places = 0
        for aside in self.parked.values():
            if aside[2] == 2:
                self.parked_places += 1
        return 0

    def reserve_packet_id(self) -> int:
        """Take the next unused packet id (1 to 65535) out of circulation; 0 where all are taken."""
        cdef uint16_t packet_id = exchanges.next_packet_id(&self.table)
        if packet_id:
            self.table.exchange_of[packet_id] = ID_TAKEN
        return packet_id

    def take_packet_id(self, uint16_t packet_id) -> bool:
        """Take this packet id out of circulation, for a message of an earlier session. False where it is in use."""
        if packet_id == 0 or self.table.exchange_of[packet_id] != ID_FREE:
            return False
        self.table.exchange_of[packet_id] = ID_TAKEN
        return True

    def release_packet_id(self, uint16_t packet_id):
        """Give back an id from `reserve_packet_id` whose message will not be admitted."""
        if self.table.exchange_of[packet_id] == ID_TAKEN:
            self.table.exchange_of[packet_id] = ID_FREE

    def next_packet_id(self) -> int:
        """The next unused packet id without taking it; 0 where all are taken. For SUBSCRIBE and UNSUBSCRIBE."""
        return exchanges.next_packet_id(&self.table)

    # ---- the send buffer

    @property
    def sendable_bytes(self) -> int:
        """Bytes that may leave now."""
        return send_buffer.sendable_bytes(&self.out)

    @property
    def unsent_bytes(self) -> int:
        """Bytes encoded and not yet handed to the socket, those behind the gate included."""
        return self.out.tail - self.out.head

    @property
    def unsent_packets(self) -> int:
        """Packets encoded and not yet in whole handed to the socket, those behind the gate included."""
        return send_buffer.unsent_packets(&self.out)

    @property
    def last_packet_id(self) -> int:
        """The packet id that was given out last; 0 before the first."""
        return self.table.last_packet_id

    @property
    def has_last(self) -> bool:
        """True from a packet put as `last` to the end of the connection."""
        return self.out.has_last

    def put_packet(self, packet, bint last=False):
        """Append a control packet to what may leave. It does not wait at the gate. `last`: nothing leaves after it."""
        cdef bytes data = _as_bytes(packet)
        cdef size_t size = <size_t>PyBytes_GET_SIZE(data)
        if size == 0:
            return
        cdef bint is_ping = size == PING_BYTES and <uint8_t>data[0] == FIRST_BYTE_OF_PINGREQ
        if is_ping:
            vector.reserve(&self.pings)
        if send_buffer.insert(&self.out, <const uint8_t*>PyBytes_AS_STRING(data), size):
            self._shift_after(self.out.base + self.out.ready - size, size)
        if is_ping:
            self._note_ping(self.out.base + self.out.ready)
            self.pings_put += 1
            self.asked_to = max(self.asked_to, self.out.base + self.out.ready)
        if last:
            send_buffer.end_here(&self.out)

    cdef int _note_ping(self, uint64_t end) except -1:
        cdef size_t ahead = self.marks.count
        cdef Ping* ping
        # Behind it go those alone that wait at the gate.
        while ahead and (<Mark*>vector.at(&self.marks, ahead - 1)).end > end:
            ahead -= 1
        ping = <Ping*>vector.push(&self.pings)
        ping.end = end
        ping.behind = self.left_count + ahead
        return 0

    cdef void _shift_after(self, uint64_t cut, size_t size) noexcept:
        cdef size_t index
        cdef int slot
        cdef Mark* mark
        for index in range(self.marks.count):
            mark = <Mark*>vector.at(&self.marks, index)
            if mark.end > cut:
                mark.end += size
        if self.publish_begin >= cut:
            self.publish_begin += size
        for slot in range(self.table.capacity):
            if self.table.exchanges[slot].state != FREE and self.table.exchanges[slot].asked_end > cut:
                self.table.exchanges[slot].asked_end += size
        if self.asked_to > cut:
            self.asked_to += size

    @property
    def sent_to(self) -> int:
        """Stream offset of the end of what the socket has taken."""
        return send_buffer.sent_to(&self.out)

    @property
    def answered_to(self) -> int:
        """Stream offset of the end of what the server has read, as its answers on this connection prove."""
        return self.proven_to

    @property
    def unanswered_bytes(self) -> int:
        """Bytes encoded that no answer of the server proves that it has read."""
        return send_buffer.encoded_to(&self.out) - self.proven_to

    @property
    def unasked_bytes(self) -> int:
        """Those of them that no answer will prove, as they are QoS 0 behind the last packet that has one."""
        return send_buffer.encoded_to(&self.out) - max(self.proven_to, self.asked_to)

    def on_accepted(self):
        """CONNACK came, which answers what has left by then."""
        self._prove(send_buffer.sent_to(&self.out), 0)

    def on_pong(self):
        """PINGRESP came: the server has read what went before the first PINGREQ that was not answered."""
        cdef Ping* ping
        if self.pings.count:
            ping = <Ping*>vector.at(&self.pings, 0)
            self._prove(ping.end, ping.behind)
            vector.pop(&self.pings)
            self.pings_answered += 1

    cdef void _prove(self, uint64_t end, uint64_t count) noexcept:
        """The server has read what is before `end`, with so many messages of QoS 0 in it."""
        if end <= self.out.offered:
            self.proven_to = max(self.proven_to, end)
            self.proven_count = max(self.proven_count, count)

    cdef void _prove_by(self, Exchange* exchange) noexcept:
        """Its question was answered; or, where it is asked again here, one of a connection before."""
        self._prove(exchange.asked_end, 0 if exchange.left_before else exchange.asked_behind)

    def peek(self, size_t limit) -> bytes:
        """A copy of the next bytes that may leave, at most `limit`."""
        cdef size_t size = send_buffer.offer(&self.out, limit)
        return PyBytes_FromStringAndSize(<const char*>self.out.memory + self.out.head, <Py_ssize_t>size)

    def on_sent(self, size_t size) -> bool:
        """The socket took `size` bytes of the last `peek`. True once the packet put as `last` has left."""
        cdef uint64_t sent
        if not send_buffer.take(&self.out, size):
            # Another thread has ended the connection since.
            return False
        sent = send_buffer.sent_to(&self.out)
        self._pass_marks(sent)
        return self.out.has_last and sent >= self.out.last_end

    cdef int _pass_marks(self, uint64_t sent) except -1:
        cdef Mark* mark
        while self.marks.count:
            mark = <Mark*>vector.at(&self.marks, 0)
            if mark.end > sent:
                break
            (<int64_t*>vector.push(&self.done))[0] = mark.message_id
            vector.pop(&self.marks)
        return 0

    def on_torn(self):
        """Nobody knows how much of the last `peek` the socket took, and nothing follows it on this connection.

        All of it may have left: QoS 0 counts as sent, the rest goes again as such (section 3.3.1.1).
        """
        self.offered_may_leave = True
        self._pass_marks(self.out.offered)

    # ---- proof

    @property
    def left_count(self) -> int:
        """Messages of QoS 0 that the socket has taken, and those of connections that have ended."""
        return self.unacknowledged_count - self.marks.count

    @property
    def pinged_to(self) -> int:
        """Stream offset of the end of the oldest PINGREQ that is not answered; 0 where there is none."""
        return (<Ping*>vector.at(&self.pings, 0)).end if self.pings.count else 0

    @property
    def has_room_unproven(self) -> bool:
        """True where another message of QoS 0 would keep to the bound of what is not proven."""
        return (self.proven_count == self.unacknowledged_count
                or not self.proves_each and send_buffer.encoded_to(&self.out) - self.proven_to < UNPROVEN_MAX_BYTES)

    @property
    def wants_proof(self) -> bool:
        """True where PINGREQ should ask for it, lest QoS 0 stand still for want of it."""
        return (self.bounds_unproven and self.pings.count == 0 and self.proven_count < self.unacknowledged_count
                and (self.proves_each
                     or send_buffer.encoded_to(&self.out) - self.proven_to >= UNPROVEN_MAX_BYTES // 2))

    cdef void _ask(self, Exchange* exchange, uint64_t end) noexcept:
        """Its question ends there, behind all that is encoded."""
        exchange.asked_end = self.asked_to = end
        exchange.asked_behind = self.unacknowledged_count

    def prove_all(self):
        """All that the socket has taken has arrived: the server has ended the connection as DISCONNECT asked it to."""
        self._prove(send_buffer.sent_to(&self.out), self.left_count)

    def has_unanswered(self, uint64_t offset) -> bool:
        """True where a question that ends at this stream offset or before has no answer."""
        cdef int slot
        if self.unanswered and self.unanswered_from <= offset:
            return True
        for slot in range(self.table.capacity):
            if self.table.exchanges[slot].state != FREE and self.table.exchanges[slot].asked_end <= offset:
                return True
        return False

    # ---- PUBLISH out

    cdef uint64_t _encode_publish(self, object topic, object payload, uint8_t flags, uint16_t packet_id,
                                  object properties, bint gated) except 0:
        """Append one PUBLISH packet (section 3.3), `gated` behind the gate, and return the stream offset of its end."""
        cdef const char* topic_at
        cdef Py_ssize_t topic_size
        cdef const char* payload_at
        cdef Py_ssize_t payload_size
        if isinstance(topic, bytes):
            topic_at = PyBytes_AS_STRING(topic)
            topic_size = PyBytes_GET_SIZE(topic)
        else:
            topic_at = PyUnicode_AsUTF8AndSize(topic, &topic_size)
        if isinstance(payload, str):
            payload_at = PyUnicode_AsUTF8AndSize(payload, &payload_size)
        else:
            payload = _as_bytes(payload)
            payload_at = PyBytes_AS_STRING(payload)
            payload_size = PyBytes_GET_SIZE(payload)
        cdef bint is_mqtt_5 = self.protocol_version == MQTT_5
        cdef const uint8_t* properties_at = NULL
        cdef size_t properties_size = 0
        cdef uint32_t length = 0
        cdef int used
        cdef bytes packed
        if is_mqtt_5 and properties is not None:
            packed = properties
            properties_at = <const uint8_t*>PyBytes_AS_STRING(packed)
            properties_size = <size_t>PyBytes_GET_SIZE(packed)
            used = load_remaining_length(properties_at, properties_size, &length)
            if used <= 0 or <size_t>used + length != properties_size:
                raise MessageError(f"{properties_size} bytes of properties without their length (MQTT 5, 2.2.2)")
            properties_at += used
            properties_size = length
        cdef size_t named_size = <size_t>topic_size
        cdef size_t body = _publish_body_bytes(named_size, packet_id, is_mqtt_5, properties_size, <size_t>payload_size)
        cdef int alias = 0
        if self.aliases.maximum and is_mqtt_5 and ALIAS_BYTES < topic_size <= 65535:
            alias = self._alias_of(topic_at, &named_size, body)
            if alias:
                properties_size += ALIAS_BYTES
                body = _publish_body_bytes(named_size, packet_id, is_mqtt_5, properties_size, <size_t>payload_size)
        if topic_size > 65535 or body > REMAINING_LENGTH_MAX:
            raise MessageError(f"a PUBLISH of {body} bytes, topic {topic_size}: MQTT carries at most "
                               f"{REMAINING_LENGTH_MAX} and 65535; send less")
        cdef uint8_t* start = send_buffer.reserve(&self.out, FIXED_HEADER_MAX_BYTES + body)
        cdef uint8_t* at = start
        at[0] = PUBLISH | flags
        self.admitted_command = at[0]
        at += 1
        at += store_remaining_length(at, <uint32_t>body)
        store_u16(at, <uint16_t>named_size)
        memcpy(at + 2, topic_at, named_size)
        at += 2 + named_size
        if packet_id:
            store_u16(at, packet_id)
            at += 2
        if is_mqtt_5:
            at += store_remaining_length(at, <uint32_t>properties_size)
            if alias:
                at[0] = TOPIC_ALIAS
                store_u16(at + 1, <uint16_t>alias)
                at += ALIAS_BYTES
                properties_size -= ALIAS_BYTES
            if properties_size:
                memcpy(at, properties_at, properties_size)
                at += properties_size
        if payload_size:
            memcpy(at, payload_at, <size_t>payload_size)
            at += payload_size
        if gated:
            self.dirty = self.out.gate_wanted = True
        self.publish_quota -= 1
        self.encoded[flags >> 1 & 3] += 1
        self.publish_begin = send_buffer.encoded_to(&self.out)
        send_buffer.append(&self.out, <size_t>(at - start))
        if alias:
            topic_aliases.on_named(&self.aliases, alias)
        return send_buffer.encoded_to(&self.out)

    cdef int _alias_of(self, const char* topic, size_t* named_size, size_t body) except -1:
        """The number to send this topic by, 0 for none; `named_size` becomes 0 where the server has its name."""
        cdef int alias = topic_aliases.find(&self.aliases, topic, named_size[0])
        cdef size_t longest
        if alias and topic_aliases.is_named(&self.aliases, alias):
            named_size[0] = 0
        elif alias:
            # The lengths of properties and packet may take a byte more each.
            longest = body + ALIAS_BYTES + 1
            if 1 + remaining_length_bytes(longest) + longest > self.packet_max_bytes:
                return 0
        return alias

    def use_aliases(self, list topics):
        """Send topics by number where the server allows it: as they come, and these, 16 at most, before all others.

        None: none from now on.
        """
        topic_aliases.end(&self.aliases)
        self.aliases.maximum = 0
        self.uses_aliases = topics is not None
        cdef bytes name
        for topic in (topics or ())[:OWN_TOPICS_MAX]:
            name = topic.encode()
            topic_aliases.add_own(&self.aliases, PyBytes_AS_STRING(name), <size_t>PyBytes_GET_SIZE(name))

    def allow_aliases(self, int maximum, size_t packet_max_bytes):
        """The server of this connection takes so many (MQTT 5, 3.2.2.3.8), and packets of at most so many bytes."""
        if self.uses_aliases and self.aliases.maximum == 0:
            topic_aliases.begin_connection(&self.aliases, maximum)
            self.packet_max_bytes = packet_max_bytes

    cdef int _encode_ack(self, uint8_t command, uint16_t packet_id, uint8_t reason) except -1:
        """Append PUBREL or an answer to an unknown id; `reason` only where MQTT 5 has one to give."""
        cdef uint8_t* at = send_buffer.reserve(&self.out, ACK_MAX_BYTES)
        cdef bint with_reason = reason != 0 and self.protocol_version == 5
        at[0] = command
        at[1] = 3 if with_reason else 2
        store_u16(at + 2, packet_id)
        at[4] = reason
        send_buffer.append(&self.out, 5 if with_reason else 4)
        return 0

    def admit(self, int64_t message_id, topic, payload, int qos, bint retain=False, properties=None,
              uint16_t packet_id=0) -> int:
        """Encode one message; returns `unsent_bytes`. The caller asks `room` first for QoS 1 and 2.

        message_id: the owner's name for it, given back by `take_done`; above 0 for QoS 1 and 2.
        topic: str or UTF-8 bytes. payload: str, bytes or a buffer. properties: packed (MQTT 5, 2.2.2) or None.
        packet_id: 0, or one taken with `reserve_packet_id`.
        Raises MessageError where MQTT cannot carry it. After any error nothing is kept of it.
        """
        self._admit(message_id, topic, payload, qos, retain, properties, packet_id, NOT_TIMED)
        return self.out.tail - self.out.head

    cdef int _admit(self, int64_t message_id, object topic, object payload, int qos, bint retain, object properties,
                    uint16_t packet_id, int64_t accepted_ms) except -1:
        cdef uint8_t flags
        cdef uint64_t end
        cdef Mark* mark
        cdef Exchange* exchange
        if not 0 <= qos <= 2:
            raise MessageError(f"QoS {qos}; it must be 0, 1 or 2")
        flags = <uint8_t>(qos << 1) | <uint8_t>retain
        if qos == 0:
            vector.reserve(&self.marks)
            end = self._encode_publish(topic, payload, flags, 0, properties, False)
            mark = <Mark*>vector.push(&self.marks)
            mark.end = end
            mark.message_id = message_id
            self.unacknowledged_count += 1
            return 0
        exchanges.reserve(&self.table)
        if self.parked:
            aside = self.parked.get(message_id)
            if aside is not None:
                self._resume(message_id, aside, topic, payload, flags, properties, accepted_ms)
                del self.parked[message_id]
                self.parked_places -= qos == 2
                self.places_max = max(self.places_max, self._places())
                return 0
        if not packet_id:
            packet_id = exchanges.next_packet_id(&self.table)
            if not packet_id:
                raise AssertionError("no packet id is free; the window was exceeded")
        end = self._encode_publish(topic, payload, flags, packet_id, properties, qos == 2 and self.durable)
        exchange = exchanges.open(&self.table, packet_id, message_id, <uint8_t>qos, SENT, accepted_ms)
        self._ask(exchange, end)
        if qos == 2:
            self.places_max = max(self.places_max, self._places())
        return 0

    def admit_rows(self, list rows, Py_ssize_t start, bint is_bounded=False, queue_offset_ms=None) -> int:
        """`admit` the rows (message id, topic, payload, qos, ...) from index `start` on while they fit.

        None fits once `publish_quota` is used up. is_bounded: they fit only while fewer than `byte_window` bytes are
        unanswered. queue_offset_ms: of the times in column five against the time since boot; None: unknown.
        A row of eight columns or more has retain and packed properties in its seventh and eighth.
        Returns the index of the first that did not fit: behind it none goes, so that the order stays.
        A row that MQTT cannot carry, as another program may have left one, is handed back by `take_refused`.
        """
        cdef tuple row
        cdef Py_ssize_t index
        cdef bint is_timed = queue_offset_ms is not None
        cdef int64_t offset_ms = queue_offset_ms if is_timed else 0
        cdef int64_t accepted_ms
        for index in range(start, len(rows)):
            row = rows[index]
            if self.publish_quota <= 0 or is_bounded and not self._has_byte_room():
                return index
            if len(row) < 4:
                raise ValueError(f"a row of {len(row)} columns; it has at least 4")
            try:
                if not self._fits(row[0], row[3]):
                    return index
                accepted_ms = NOT_TIMED
                if is_timed and len(row) >= WITH_TIME_COLUMNS:
                    accepted_ms = <int64_t>row[4] - offset_ms
                if len(row) < WITH_EXTRAS_COLUMNS:
                    self._admit(row[0], row[1], row[2], row[3], False, None, 0, accepted_ms)
                else:
                    self._admit(row[0], row[1], row[2], row[3], row[6], row[7], 0, accepted_ms)
            except (ValueError, TypeError, OverflowError):
                self.refused.append(row[0])
            except MemoryError:
                # The caller must hear of the rows that went, or it would send them again.
                if index == start:
                    raise
                return index
        return len(rows)

    cdef bint _has_byte_room(self) except -1:
        """True while fewer than `byte_window` bytes are unanswered.

        The server is asked for an answer where it would give none, to QoS 0, or none before the window is used up: it
        reads in order, so that PINGRESP proves all that went before its PINGREQ.
        """
        cdef uint64_t encoded_to = send_buffer.encoded_to(&self.out)
        cdef bint is_used_up = encoded_to - self.proven_to >= self.byte_window
        if (is_used_up and self.pings.count == 0) or (
            (encoded_to - max(self.proven_to, self.asked_to)) * ASKED_OF_WINDOW > self.byte_window
        ):
            self.put_packet(PINGREQ_PACKET)
        return not is_used_up

    cdef int _resume(self, int64_t message_id, tuple aside, object topic, object payload, uint8_t flags,
                     object properties, int64_t accepted_ms) except -1:
        cdef uint16_t packet_id = aside[0]
        cdef uint8_t state = aside[1]
        cdef uint8_t qos = aside[2]
        cdef bint left = aside[3]
        cdef bint left_in_lost = aside[4]
        # Where a first copy may have left (3.3.1.1). Some brokers swallow a QoS 2 message with DUP where their session
        # never had the first copy.
        cdef bint is_dup = left or (left_in_lost and qos == 1)
        cdef bint gated = False
        cdef Exchange* exchange
        cdef uint64_t end
        if state == RELEASED:
            send_buffer.reserve(&self.out, ACK_MAX_BYTES)
            if self.durable and (self.dirty or self.version > self.committed_version):
                # The link broke between PUBREC and its commit.
                self.out.gate_wanted = True
            exchange = exchanges.open(&self.table, packet_id, message_id, qos, RELEASED, accepted_ms)
            self._encode_ack(PUBREL | 2, packet_id, 0)
            self._ask(exchange, send_buffer.encoded_to(&self.out))
            exchange.left_before = left
            self.admitted_command = PUBREL | 2
            return 0
        if left:
            self.strays.add(packet_id)
        if qos == 2 and self.durable and self.max_unreleased < EXCHANGES_MAX:
            # A session that has gone back may hold other places, and not this one.
            gated = self.table.unreleased + 1 + max(self._stale_places(), self.parked_places - 1) > self._places_noted()
        end = self._encode_publish(topic, payload, <uint8_t>(flags | (8 if is_dup else 0)), packet_id, properties,
                                   gated)
        exchange = exchanges.open(&self.table, packet_id, message_id, qos, SENT, accepted_ms)
        self._ask(exchange, end)
        exchange.left_before = left
        exchange.left_in_lost = left_in_lost
        return 0

    # ---- bytes in

    def on_acks(self, bytes packets not None):
        """Take PUBACK, PUBREC and PUBCOMP packets, whole and checked by `glec_fast.protocol._inbound`.

        Raises ProtocolError where one does not fit its exchange: what came before it counts, and the connection must be
        closed. Raises ValueError for any other bytes.
        """
        cdef const uint8_t* at = <const uint8_t*>PyBytes_AS_STRING(packets)
        cdef size_t left = <size_t>PyBytes_GET_SIZE(packets)
        cdef size_t size
        cdef uint32_t body = 0
        cdef int used
        while left:
            used = load_remaining_length(at + 1, left - 1, &body)
            size = 1 + <size_t>used + body
            if used <= 0 or size > left or body < 2 or (at[0] & 0xF0) not in (PUBACK, PUBREC, PUBCOMP):
                raise ValueError("these are not whole acknowledgements")
            self._on_ack(at[0] & 0xF0, at + size - body, body)
            at += size
            left -= size

    cdef int _on_ack(self, uint8_t kind, const uint8_t* body, uint32_t size) except -1:
        """By the table of the module's text."""
        cdef uint16_t packet_id = load_u16(body)
        cdef uint16_t index
        cdef uint8_t reason = 0
        cdef bint refused
        if size > 2:
            reason = body[2]
        refused = reason >= REASON_FAILURE
        index = self.table.exchange_of[packet_id]
        if index == ID_FREE or index == ID_TAKEN:
            return self._on_unknown(kind, packet_id, refused)
        cdef Exchange* exchange = &self.table.exchanges[index - 1]
        cdef bint was_asked = exchange.asked_end <= self.out.offered or exchange.left_before
        if exchange.state == SENT:
            if not was_asked:
                return self._on_misfit(packet_id, "it was acknowledged before its PUBLISH was sent (MQTT 4.3)")
            self._prove_by(exchange)
            if kind == PUBREC:
                if exchange.qos != 2:
                    return self._on_misfit(packet_id, "PUBREC for a QoS 1 message (MQTT 4.3.2)")
                if not refused:
                    return self._on_pubrec(exchange)
            elif kind == PUBCOMP:
                return self._on_misfit(packet_id, "PUBCOMP for a message that has had no PUBREL (MQTT 4.3.3)")
            elif exchange.qos == 2 and not refused:
                self.downgraded_count += 1
                self.downgraded_id = exchange.message_id
        else:
            if kind == PUBREC and not refused:
                return self._on_pubrec_again(exchange)
            if kind != PUBCOMP:
                return self._on_misfit(packet_id, "another answer to a PUBLISH that had its PUBREC (MQTT 4.3.3)")
            if not was_asked:
                return self._on_misfit(packet_id, "PUBCOMP before its PUBREL was sent (MQTT 4.3.3)")
            self._prove_by(exchange)
            if refused:
                refused = False
                if exchange.left_before:
                    return self._finish(exchange, DONE)
                if self.durable:
                    self.doubtful.append(exchange.message_id)
        if reason or size > 3 or self.keeps_all_reasons:
            properties = PyBytes_FromStringAndSize(<const char*>body + 3, size - 3) if size > 3 else b""
            self.reasons[exchange.message_id] = (kind, packet_id, reason, properties)
        return self._finish(exchange, REFUSED if refused else DONE)

    cdef int _on_unknown(self, uint8_t kind, uint16_t packet_id, bint failed) except -1:
        """For an id that no exchange has."""
        if kind != PUBREC or failed:
            self.unanswered.discard(packet_id)
        if packet_id in self.reserved:
            return self._on_reserved(kind, packet_id, failed)
        if kind == PUBACK:
            return self._on_misfit(packet_id, "PUBACK for a message that is not in flight (MQTT 4.3.2)")
        # The peer waits for an answer to PUBREC, whatever became of ours (MQTT 5, 4.3.3). What is parked gets it when
        # its turn to be resent comes: a PUBREL now would let the peer take that resend for a new message.
        if kind == PUBREC and not failed and not self._is_parked(packet_id):
            self.strays.add(packet_id)
            self._encode_ack(PUBREL | 2, packet_id, REASON_PACKET_ID_NOT_FOUND)
        return 0

    cdef int _on_reserved(self, uint8_t kind, uint16_t packet_id, bint failed) except -1:
        """A late answer to a message that was given up: PUBREC wants its PUBREL, anything else ends the exchange."""
        if kind == PUBREC and not failed:
            self.strays.add(packet_id)
            if self.durable and (self.dirty or self.version > self.committed_version):
                # An image that does not name it as given up would have its message sent again, as a new one by then.
                self.out.gate_wanted = True
            return self._encode_ack(PUBREL | 2, packet_id, 0)
        del self.reserved[packet_id]
        self.strays.add(packet_id)
        self.table.exchange_of[packet_id] = ID_FREE
        self.dirty = True
        return 0

    cdef int _on_misfit(self, uint16_t packet_id, str what) except -1:
        if packet_id in self.strays or self._is_parked(packet_id):
            return 0
        raise ProtocolError(f"packet id {packet_id}: {what}", REASON_PROTOCOL_ERROR)

    cdef bint _is_parked(self, uint16_t packet_id) except -1:
        for aside in self.parked.values():
            if aside[0] == packet_id:
                return True
        return False

    cdef int _on_pubrec(self, Exchange* exchange) except -1:
        send_buffer.reserve(&self.out, ACK_MAX_BYTES)
        if self.durable:
            self.dirty = self.out.gate_wanted = True
        self._encode_ack(PUBREL | 2, exchange.packet_id, 0)
        exchanges.release(&self.table, exchange, send_buffer.encoded_to(&self.out))
        self._ask(exchange, exchange.asked_end)
        self.answered_count += 1
        return 0

    cdef int _on_pubrec_again(self, Exchange* exchange) except -1:
        """The peer waits for an answer; one is on its way, but may have gone before it asked."""
        self._encode_ack(PUBREL | 2, exchange.packet_id, 0)
        self.strays.add(exchange.packet_id)
        if exchange.asked_end <= self.out.offered:
            exchange.left_before = True
        return 0

    cdef int _finish(self, Exchange* exchange, Outcome outcome) except -1:
        cdef Retired* retired
        cdef uint16_t packet_id = exchange.packet_id
        cdef bint durable = self.durable and exchange.qos == 2
        if durable:
            vector.reserve(&self.retired)
        self.answered_count += outcome != GIVEN_UP
        if outcome == DONE:
            (<int64_t*>vector.push(&self.done))[0] = exchange.message_id
            self.acknowledged[exchange.qos] += 1
            if exchange.accepted_ms != NOT_TIMED:
                histogram.note(&self.latency, self.now_ms - exchange.accepted_ms)
        elif outcome == REFUSED:
            self.refused.append(exchange.message_id)
        if durable:
            # The id is the broker's until the row's deletion is on disk: a restart would still speak of it.
            self.dirty = True
            retired = <Retired*>vector.push(&self.retired)
            retired.version = self.version + 1
            retired.packet_id = packet_id
        exchanges.close(&self.table, exchange, ID_TAKEN if durable else ID_FREE)
        return 0

    @property
    def encoded_counts(self) -> tuple:
        """PUBLISH packets that were encoded, of QoS 0, 1 and 2; also those of a message that goes again."""
        return self.encoded[0], self.encoded[1], self.encoded[2]

    @property
    def acknowledged_counts(self) -> tuple:
        """Messages that the server has acknowledged, of QoS 0, 1 and 2; of QoS 0 those that the socket has taken."""
        return self.left_count, self.acknowledged[1], self.acknowledged[2]

    @property
    def acknowledging(self) -> tuple:
        """How long messages took from their acceptance to their acknowledgement: what `Latency.of` takes."""
        return histogram.read(&self.latency)

    @property
    def has_doubtful(self) -> bool:
        """True where `take_doubtful` has any: only with `durable`."""
        return bool(self.doubtful)

    @property
    def has_finished(self) -> bool:
        """True where `take_done` or `take_refused` has any."""
        return self.done.count > 0 or bool(self.refused)

    def take_done(self) -> list:
        """Message ids that are finished: acknowledged, or QoS 0 and handed to the socket. Each is given once."""
        cdef size_t index
        if self.done.count == 0:
            return []
        cdef list ids = [(<int64_t*>vector.at(&self.done, index))[0] for index in range(self.done.count)]
        vector.clear(&self.done)
        return ids

    @property
    def refused_ids(self) -> list:
        """What `take_refused` has."""
        return self.refused[:]

    def take_refused(self) -> list:
        """Message ids that the broker refused (MQTT 5), and rows that MQTT cannot carry. Each is given once."""
        ids, self.refused = self.refused, []
        return ids

    def take_doubtful(self) -> list:
        """Those ids of `take_done` whose PUBREL the broker answered as if it had never acknowledged them (MQTT 5)."""
        ids, self.doubtful = self.doubtful, []
        return ids

    def take_reasons(self) -> dict:
        """What the last acknowledgements carried (MQTT 5): message id -> (packet type, packet id, reason, properties).

        Packet type as in the first byte, 0x40 for PUBACK; properties packed, with their length in front.
        """
        reasons, self.reasons = self.reasons, {}
        return reasons

    # ---- what must survive a crash

    @property
    def wants_commit(self) -> bool:
        """True where bytes wait for an image that was not yet taken."""
        return self.out.gate_wanted

    @property
    def notes(self) -> list:
        """What images carry for the owner: (number above 0, value to 65535, kind 128 to 255) each.

        `load_image` gives them back.
        """
        return self.owner_notes[:]

    @notes.setter
    def notes(self, list notes not None):
        if notes != self.owner_notes:
            self.owner_notes = notes
            self.dirty = True

    def take_image(self, list finished=None) -> tuple:
        """(version, bytes): every QoS 2 exchange, as it must be on disk before what is encoded now may leave.

        finished: (first, last) ranges of message ids that `take_done` gave and whose rows are not deleted with it.
        """
        cdef list aside = self.parked_exchanges()
        aside += [(message_id, packet_id, RESERVED) for packet_id, message_id in self.reserved.items()]
        aside += self.owner_notes
        if self.durable and self.max_unreleased < EXCHANGES_MAX:
            aside.append((self.kept_until, self._places_noted(), PLACES))
            aside.append((1, self.table.last_packet_id, LAST_GIVEN))
        add_finished(aside, finished or ())
        cdef bytes image = image_of(&self.table, aside)
        cdef uint64_t version = self.version + <uint64_t>self.dirty
        cdef tuple numbered = (version, image)
        vector.reserve(&self.out.gates)
        # Nothing from here on can fail: an image that was not handed out must not have been counted.
        self.version = version
        self.dirty = False
        send_buffer.shut(&self.out, version)
        return numbered

    def on_committed(self, uint64_t version):
        """The image of this version is on disk; what `take_done` had given by then is deleted, or in it as finished."""
        cdef Retired* retired
        self.committed_version = max(self.committed_version, version)
        send_buffer.open_to(&self.out, version)
        while self.retired.count and (<Retired*>vector.at(&self.retired, 0)).version <= version:
            retired = <Retired*>vector.at(&self.retired, 0)
            self.table.exchange_of[retired.packet_id] = ID_FREE
            vector.pop(&self.retired)

    def load_image(self, bytes image not None) -> list:
        """Begin with the exchanges of an earlier process, as parked. Returns the finished (first, last) ranges in it.

        Raises ValueError where it is not an image; the session is then as it was.
        """
        cdef int64_t message_id
        cdef uint16_t packet_id
        cdef uint8_t state
        cdef dict loaded = {}
        cdef set packet_ids = set()
        cdef dict reserved = {}
        cdef list finished = []
        cdef list notes = []
        cdef int places = -1
        cdef uint16_t last_given = self.table.last_packet_id
        self.knows_places = False
        self.kept_until = UNKNOWN
        for message_id, packet_id, state in entries_of(image):
            if message_id > 0 and packet_id and state == FINISHED:
                finished.append((message_id, message_id + packet_id - 1))
                continue
            if state == PLACES:
                places = packet_id
                self.kept_until = message_id
                continue
            if state == LAST_GIVEN:
                last_given = packet_id
                continue
            if message_id > 0 and state >= NOTE:
                notes.append((message_id, packet_id, state))
                continue
            if (message_id <= 0 or packet_id == 0 or state not in (SENT, RELEASED, RESERVED)
                    or message_id in loaded or packet_id in packet_ids or self.table.exchange_of[packet_id] != ID_FREE):
                raise ValueError(
                    f"an in-flight image with message {message_id} as packet id {packet_id} in state {state}")
            if state == RESERVED:
                reserved[packet_id] = message_id
            else:
                loaded[message_id] = (packet_id, state, 2, True, False)
            packet_ids.add(packet_id)
        self.table.last_packet_id = last_given
        for packet_id in packet_ids:
            self.table.exchange_of[packet_id] = ID_TAKEN
        self.parked.update(loaded)
        self._count_parked()
        self.reserved.update(reserved)
        self.owner_notes = notes
        if places >= 0:
            self.knows_places = True
            self.places_ever = min(places, self.max_unreleased - 1)
        return finished

    # ---- connections

    def park(self):
        """The connection is gone. Set every exchange aside; forget what was encoded."""
        cdef int slot
        cdef Exchange* exchange
        cdef uint64_t sent = self.out.offered if self.offered_may_leave else send_buffer.sent_to(&self.out)
        cdef bint left
        for slot in range(self.table.capacity):
            exchange = &self.table.exchanges[slot]
            if exchange.state == FREE:
                continue
            left = exchange.left_before or exchange.asked_end <= sent
            if left or exchange.state == RELEASED or not self.durable:
                self.parked[exchange.message_id] = (
                    exchange.packet_id, exchange.state, exchange.qos, left, exchange.left_in_lost)
                exchanges.close(&self.table, exchange, ID_TAKEN)
            else:
                exchanges.close(&self.table, exchange, ID_FREE)
                self.dirty = True
        topic_aliases.begin_connection(&self.aliases, 0)
        self._count_parked()
        self.stale = self.places_ever = self._places_noted()
        self.places_max = 0
        self.is_held_by_stale = False
        send_buffer.discard(&self.out)
        self.proven_to = self.asked_to = send_buffer.encoded_to(&self.out)
        vector.clear(&self.pings)
        self.pings_put = self.pings_answered = 0
        vector.clear(&self.marks)
        self.proven_count = self.unacknowledged_count
        self.strays.clear()
        for packet_id in self.held:
            self.table.exchange_of[<uint16_t>packet_id] = ID_FREE
        self.held.clear()
        self.unanswered.clear()

    def parked_ids(self, int qos=0) -> list:
        """Message ids of the exchanges set aside, of this QoS or, with 0, of both; their rows must not be dropped."""
        return [message_id for message_id, entry in self.parked.items() if qos == 0 or entry[2] == qos]

    def parked_exchanges(self) -> list:
        """(message id, packet id, state) of the QoS 2 exchanges set aside: what an image has of them."""
        return [(message_id, entry[0], entry[1]) for message_id, entry in self.parked.items() if entry[2] == 2]

    def released_ids(self) -> list:
        """Those of `parked_ids` whose PUBREL may have left."""
        return [message_id for message_id, (_packet_id, state, _qos, left, _) in self.parked.items()
                if state == RELEASED and left]

    def unanswered_ids(self) -> list:
        """Message ids of the exchanges whose PUBREL was sent more than once, and has left on this connection."""
        cdef int slot
        cdef Exchange* exchange
        cdef uint64_t sent = send_buffer.sent_to(&self.out)
        cdef list ids = []
        for slot in range(self.table.capacity):
            exchange = &self.table.exchanges[slot]
            if exchange.state == RELEASED and exchange.left_before and exchange.asked_end <= sent:
                ids.append(exchange.message_id)
        return ids

    def give_up(self, int64_t message_id) -> bool:
        """End an exchange whose PUBREL is not answered, in flight or set aside; nothing is handed back for it.

        False where there is none.
        """
        cdef Exchange* exchange
        if message_id in self.parked:
            self.forget(message_id)
            return True
        exchange = exchanges.of_message(&self.table, message_id)
        if exchange is NULL or exchange.state != RELEASED:
            return False
        self._finish(exchange, GIVEN_UP)
        return True

    def abandon(self, list ids not None) -> list:
        """End the exchanges of these messages, which will not be sent again; see the module's text.

        Returns those that stay as they are: whose PUBREC came, which the server has, and which it acknowledged; and
        those that are encoded and were not offered to the socket yet.
        """
        cdef set wanted = set(ids)
        cdef set staying = set()
        cdef size_t index
        cdef int slot
        cdef Exchange* exchange
        for index in range(self.done.count):
            staying.add((<int64_t*>vector.at(&self.done, index))[0])
        for index in range(self.marks.count):
            staying.add((<Mark*>vector.at(&self.marks, index)).message_id)
        staying.update(self.refused)
        for message_id in wanted.intersection(self.parked):
            packet_id, state, qos, _left, _ = self.parked[message_id]
            if state == RELEASED:
                staying.add(message_id)
                continue
            del self.parked[message_id]
            self.strays.add(packet_id)
            if qos == 2:
                self._reserve(<uint16_t>packet_id, message_id)
            else:
                self.held.append(packet_id)
        self._count_parked()
        for slot in range(self.table.capacity):
            exchange = &self.table.exchanges[slot]
            if exchange.state == FREE or exchange.message_id not in wanted:
                continue
            if exchange.state == RELEASED or exchange.asked_end > self.out.offered:
                staying.add(exchange.message_id)
                continue
            packet_id, message_id, qos = exchange.packet_id, exchange.message_id, exchange.qos
            self.strays.add(packet_id)
            if not self.unanswered or exchange.asked_end < self.unanswered_from:
                self.unanswered_from = exchange.asked_end
            self.unanswered.add(packet_id)
            if qos == 1:
                self.held.append(packet_id)
            exchanges.close(&self.table, exchange, ID_TAKEN)
            if qos == 2:
                self._reserve(<uint16_t>packet_id, message_id)
        return [message_id for message_id in ids if message_id in staying]

    cdef int _reserve(self, uint16_t packet_id, message_id) except -1:
        cdef uint16_t first
        self.reserved[packet_id] = message_id
        self.table.exchange_of[packet_id] = ID_TAKEN
        self.dirty = True
        if PyDict_Size(self.reserved) > RESERVED_MAX:
            first = next(iter(self.reserved))
            del self.reserved[first]
            self.table.exchange_of[first] = ID_FREE
        return 0

    def exposed_ids(self) -> list:
        """Message ids of the exchanges that wait for their first answer, and some of whose PUBLISH may have left.

        In the order in which they were sent.
        """
        cdef int slot
        cdef Exchange* exchange
        cdef uint64_t sent = self.out.offered if self.offered_may_leave else send_buffer.sent_to(&self.out)
        cdef uint64_t last_end = send_buffer.encoded_to(&self.out)
        cdef list ids = []
        for slot in range(self.table.capacity):
            exchange = &self.table.exchanges[slot]
            if exchange.state != SENT:
                continue
            # Of the last one a part may have left, which can be enough for a server.
            if exchange.asked_end <= sent or (sent > self.publish_begin and exchange.asked_end == last_end):
                ids.append((exchange.asked_end, exchange.message_id))
        return [message_id for _, message_id in sorted(ids)]

    def in_flight_ids(self) -> list:
        """Message ids of the exchanges in flight on this connection."""
        cdef int slot
        return [self.table.exchanges[slot].message_id for slot in range(self.table.capacity)
                if self.table.exchanges[slot].state != FREE]

    @property
    def publish_start(self) -> int:
        """Bytes that the socket has to take before the PUBLISH that was encoded last, of all connections."""
        return self.publish_begin

    def reserved_ids(self) -> list:
        """(message id, packet id) of QoS 2 that was given up."""
        return [(message_id, packet_id) for packet_id, message_id in self.reserved.items()]

    @property
    def unanswered_count(self) -> int:
        """Messages that were sent on this connection, and given up, and that the server has not answered."""
        return PySet_GET_SIZE(self.unanswered)

    def holds(self, int64_t message_id) -> bool:
        """True where this message has an exchange, in flight or set aside."""
        return message_id in self.parked or exchanges.of_message(&self.table, message_id) is not NULL

    def forget(self, int64_t message_id):
        """The owner gave up a message that was set aside."""
        aside = self.parked.pop(message_id, None)
        if aside is not None:
            self.strays.add(aside[0])
            self.table.exchange_of[aside[0]] = ID_FREE
            self._count_parked()
            self.dirty = True

    def release_parked(self, int64_t message_id):
        """End an exchange set aside whose message is gone: the broker may hold its PUBLISH, and the id, until PUBREL.

        It is finished as any other, by PUBCOMP. QoS 1 has nothing to end.
        """
        aside = self.parked.get(message_id)
        if aside is None:
            return
        packet_id, _state, qos, _left, _ = aside
        if qos != 2:
            self.forget(message_id)
            return
        exchanges.reserve(&self.table)
        send_buffer.reserve(&self.out, ACK_MAX_BYTES)
        if self.durable:
            self.dirty = self.out.gate_wanted = True
        # Whether the server ever had it does not matter: nobody is to be told.
        exchange = exchanges.open(&self.table, packet_id, message_id, 2, RELEASED, NOT_TIMED)
        self._encode_ack(PUBREL | 2, packet_id, 0)
        self._ask(exchange, send_buffer.encoded_to(&self.out))
        exchange.left_before = True
        del self.parked[message_id]
        self._count_parked()

    def resume(self, bint session_present, int receive_maximum=65535) -> list:
        """CONNACK came (section 3.2). Returns the message ids in doubt; the owner then admits from its first message.

        Where the broker lost the session all packet ids are void (3.1.2.4). What it had not received is new again; what
        it had received, and may or may not have passed on, is returned: in doubt, and no longer kept here.
        """
        cdef list in_doubt = []
        self.receive_maximum = min(max(receive_maximum, 1), <int>EXCHANGES_MAX)
        if session_present:
            return in_doubt
        for packet_id in self.reserved:
            self.table.exchange_of[<uint16_t>packet_id] = ID_FREE
            self.dirty = True
        self.reserved.clear()
        for message_id, (packet_id, state, qos, left, left_in_lost) in list(self.parked.items()):
            if state == RELEASED:
                in_doubt.append(message_id)
            if self.durable or state == RELEASED:
                del self.parked[message_id]
                self.table.exchange_of[packet_id] = ID_FREE
            else:
                self.parked[message_id] = (packet_id, SENT, qos, False, left or left_in_lost)
            self.dirty = True
        self._count_parked()
        self.stale = self.places_ever = 0
        self.kept_until = UNKNOWN
        return in_doubt
