# The bytes of a client on their way, and what is known to have arrived. Part of `_session.pyx`.
#
# A connection is in order, and a server reads it in order: an answer proves that all before its question has arrived,
# QoS 0 too. So three numbers are kept of QoS 0, whatever its pace: how many were encoded, how many have left, and how
# many are proven, by an answer to something behind them (PUBACK, PUBREC, PUBCOMP, PINGRESP). What has left and is not
# proven as a connection ends was in the air. An answer that may be one to an earlier copy proves nothing.

cdef enum:
    PING_BYTES = 2
    FIRST_BYTE_OF_PINGREQ = 0xC0
    # With `bounds_unproven`, so many bytes with QoS 0 in them are on their way at once.
    UNPROVEN_MAX_BYTES = 256 * 1024

cdef struct Mark:
    # Where a message of QoS 0 ends.
    uint64_t end
    int64_t message_id

cdef struct Ping:
    # Where it ends, and the messages of QoS 0 before it.
    uint64_t end
    uint64_t behind


cdef class Stream:
    """What a `Session` sends, as one stream of bytes over all connections, and how far each is known to have come."""

    # True over TLS and WebSocket: they may send a part of what `peek` gave and not say so, so all of it may have left.
    cdef public bint offered_may_leave
    # `admit_rows` stops at QoS 0 where `UNPROVEN_MAX_BYTES` of the stream are not proven.
    cdef public bint bounds_unproven
    # And none before all others are proven.
    cdef public bint proves_each
    # Messages of QoS 0, over all connections: encoded, and proven or of a connection that has ended.
    cdef readonly uint64_t unacknowledged_count, proven_count
    # PINGREQs that were put on this connection, and answered.
    cdef readonly Py_ssize_t pings_put, pings_answered

    # Owned here.
    cdef send_buffer.SendBuffer out
    # QoS 0 that has not left, PINGREQs that are not answered, and message ids that are finished.
    cdef vector.Vector marks, pings, done
    # Stream offsets: what the server is known to have read, by its answers, and what its next answers will prove.
    cdef uint64_t proven_to, asked_to
    # That at which the PUBLISH that was encoded last begins.
    cdef uint64_t publish_begin

    def __cinit__(self, *_, **__):
        send_buffer.begin(&self.out)
        self.marks.item_bytes = sizeof(Mark)
        self.pings.item_bytes = sizeof(Ping)
        self.done.item_bytes = sizeof(int64_t)

    def __dealloc__(self):
        send_buffer.end(&self.out)
        vector.free_items(&self.marks)
        vector.free_items(&self.pings)
        vector.free_items(&self.done)

    # ---- bytes

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
    def has_last(self) -> bool:
        """True from a packet put as `last` to the end of the connection."""
        return self.out.has_last

    @property
    def wants_commit(self) -> bool:
        """True where bytes wait for an image that was not yet taken."""
        return self.out.gate_wanted

    @property
    def sent_to(self) -> int:
        """Stream offset of the end of what the socket has taken."""
        return send_buffer.sent_to(&self.out)

    @property
    def publish_start(self) -> int:
        """Bytes that the socket has to take before the PUBLISH that was encoded last, of all connections."""
        return self.publish_begin

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

    def on_torn(self):
        """Nobody knows how much of the last `peek` the socket took, and nothing follows it on this connection.

        All of it may have left: QoS 0 counts as sent, the rest goes again as such (section 3.3.1.1).
        """
        self.offered_may_leave = True
        self._pass_marks(self.out.offered)

    @final
    cdef int _pass_marks(self, uint64_t sent) except -1:
        cdef Mark* mark
        while self.marks.count:
            mark = <Mark*>vector.at(&self.marks, 0)
            if mark.end > sent:
                break
            (<int64_t*>vector.push(&self.done))[0] = mark.message_id
            vector.pop(&self.marks)
        return 0

    @final
    cdef int _mark(self, int64_t message_id, uint64_t end) except -1:
        """After `vector.reserve(&self.marks)`: a message of QoS 0 ends there."""
        cdef Mark* mark = <Mark*>vector.push(&self.marks)
        mark.end = end
        mark.message_id = message_id
        self.unacknowledged_count += 1
        return 0

    @final
    cdef size_t _put(self, bytes packet) except? 0:
        """Append a packet to what may leave, before what waits at the gate: so many bytes, each farther behind now."""
        cdef size_t size = <size_t>PyBytes_GET_SIZE(packet)
        cdef bint is_ping = size == PING_BYTES and <uint8_t>packet[0] == FIRST_BYTE_OF_PINGREQ
        cdef size_t gated, index
        cdef uint64_t end
        cdef Mark* mark
        if is_ping:
            vector.reserve(&self.pings)
        gated = send_buffer.insert(&self.out, <const uint8_t*>PyBytes_AS_STRING(packet), size)
        end = self.out.base + self.out.ready
        if gated:
            for index in range(self.marks.count):
                mark = <Mark*>vector.at(&self.marks, index)
                if mark.end > end - size:
                    mark.end += size
            if self.asked_to > end - size:
                self.asked_to += size
            if self.publish_begin >= end - size:
                self.publish_begin += size
        if is_ping:
            self._note_ping(end)
        return gated

    @final
    cdef int _note_ping(self, uint64_t end) except -1:
        cdef size_t ahead = self.marks.count
        cdef Ping* ping
        # Behind it go those alone that wait at the gate.
        while ahead and (<Mark*>vector.at(&self.marks, ahead - 1)).end > end:
            ahead -= 1
        ping = <Ping*>vector.push(&self.pings)
        ping.end = end
        ping.behind = self.left_count + ahead
        self.pings_put += 1
        self.asked_to = max(self.asked_to, end)
        return 0

    @final
    cdef int _end_connection(self) except -1:
        """Forget what was encoded: it goes nowhere, and its QoS 0 that had not left is neither sent nor proven."""
        send_buffer.discard(&self.out)
        self.proven_to = self.asked_to = send_buffer.encoded_to(&self.out)
        vector.clear(&self.pings)
        self.pings_put = self.pings_answered = 0
        vector.clear(&self.marks)
        self.proven_count = self.unacknowledged_count
        return 0

    @final
    cdef uint64_t _may_have_left(self) noexcept:
        """Stream offset of the end of what the socket may have sent."""
        return self.out.offered if self.offered_may_leave else send_buffer.sent_to(&self.out)

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

    def prove_all(self):
        """All that the socket has taken has arrived: the server has ended the connection as DISCONNECT asked it to."""
        self._prove(send_buffer.sent_to(&self.out), self.left_count)

    @final
    cdef void _ask(self, Exchange* exchange, uint64_t end) noexcept:
        """Its question ends there, behind all that is encoded."""
        exchange.asked_end = self.asked_to = end
        exchange.asked_behind = self.unacknowledged_count

    @final
    cdef void _prove(self, uint64_t end, uint64_t count) noexcept:
        """The server has read what is before `end`, with so many messages of QoS 0 in it."""
        if end <= self.out.offered:
            self.proven_to = max(self.proven_to, end)
            self.proven_count = max(self.proven_count, count)

    @final
    cdef void _prove_by(self, Exchange* exchange) noexcept:
        """Its question was answered; or, where it is asked again here, one of a connection before."""
        self._prove(exchange.asked_end, 0 if exchange.left_before else exchange.asked_behind)
