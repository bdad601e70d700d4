# All exchanges of a client, in flight and set aside, and the packet ids that they take. Part of `_session.pyx`.


cdef class Exchanges(Stream):
    """The exchanges that a client has, how many more it may have, and what must be on disk of them."""

    # QoS 2 waits at the gate.
    cdef bint durable
    cdef readonly int window
    # 3, 4 or 5, as in CONNECT (MQTT 3.1.2.2).
    cdef public int protocol_version
    # Of the server, on this connection (MQTT 5, 3.2.2.3.3).
    cdef int receive_maximum
    # Counts durable images; see `take_image`.
    cdef uint64_t version, committed_version
    # The owner's word for when the server's session was last known to hold nothing stale; 1 for none. Images carry it.
    cdef public int64_t kept_until
    # Owned here.
    cdef exchanges.Table table
    cdef places.Places places
    cdef vector.Vector retired
    # The image has changed since the last `take_image`.
    cdef bint dirty

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
    cdef list owner_notes

    def __cinit__(self, *_, **__):
        exchanges.begin(&self.table)
        self.retired.item_bytes = sizeof(Retired)

    def __init__(self, int window, bint durable, int max_unreleased):
        self.durable = durable
        self.places.limit = max_unreleased or EXCHANGES_MAX
        self.protocol_version = 4
        self.receive_maximum = EXCHANGES_MAX
        self.kept_until = UNKNOWN
        self.parked = {}
        self.strays = set()
        self.reserved = {}
        self.held = []
        self.unanswered = set()
        self.owner_notes = []
        self.set_window(window)

    def __dealloc__(self):
        exchanges.end(&self.table)
        vector.free_items(&self.retired)

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

    @final
    cdef int _limit(self) except -1:
        # An id that waits for its row's deletion, or is reserved, has no exchange, and yet cannot be given out.
        # What was given up on this connection counts with the server all the same (MQTT 5, 4.9).
        return min(self.window, self.receive_maximum - <int>PySet_GET_SIZE(self.unanswered),
                   65535 - <int>self.retired.count - <int>PyDict_Size(self.reserved)
                   - <int>PyList_GET_SIZE(self.held))

    @final
    cdef bint _fits(self, object message_id, uint8_t qos) except -1:
        if qos == 0:
            return not self.bounds_unproven or self.has_room_unproven
        if self.table.in_flight >= self._limit():
            return False
        if self.table.in_flight == 0:
            return True
        cdef bint is_parked = False
        if qos == 2 and self.parked:
            aside = self.parked.get(message_id)
            is_parked = aside is not None
            if is_parked and aside[1] == RELEASED:
                return True
        return places.fits(&self.places, self._is_mqtt_5(), self.table.unreleased, <int>PyDict_Size(self.reserved),
                           qos, is_parked)

    def fits(self, tuple row not None) -> bool:
        """True where the window and the server's places admit this row, however many bytes are unanswered."""
        try:
            return row[3] == 0 or self._fits(row[0], row[3])
        except (ValueError, TypeError, OverflowError):
            # In its turn it is refused.
            return True

    @final
    cdef bint _is_mqtt_5(self) noexcept:
        return self.protocol_version == MQTT_5

    @final
    cdef int _places(self) noexcept:
        return self.table.unreleased + places.beside(&self.places, self._is_mqtt_5(), <int>PyDict_Size(self.reserved))

    def expect_stale(self, bint is_known=True):
        """The server's session may be of an earlier process, and may hold as many places as were ever taken at once.

        That is what the image says that was loaded; where it says nothing, or not is_known, it may be all of them.
        Until it turns out to be a new one.
        """
        if self.places.limit < EXCHANGES_MAX:
            places.expect_stale(&self.places, is_known)

    @property
    def stale(self) -> int:
        """Places that the server's session may hold of earlier connections; see `expect_stale`."""
        return self.places.stale

    @property
    def is_held_by_stale(self) -> bool:
        """True where a row waited for stale places here, and would have fitted without them; see `prove_kept`."""
        return self.places.is_held_by_stale

    def prove_kept(self):
        """The server's session is not older than it was, as `kept_until` could tell: nothing in it is stale."""
        places.forget_stale(&self.places)
        self.places.is_held_by_stale = False
        places.on_taken(&self.places, self._places())

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

    @property
    def last_packet_id(self) -> int:
        """The packet id that was given out last; 0 before the first."""
        return self.table.last_packet_id

    # ---- which there are

    def has_unanswered(self, uint64_t offset) -> bool:
        """True where a question that ends at this stream offset or before has no answer."""
        return bool(self.unanswered) and self.unanswered_from <= offset or exchanges.is_any_asked(&self.table, offset)

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

    def exposed_ids(self) -> list:
        """Message ids of the exchanges that wait for their first answer, and some of whose PUBLISH may have left.

        In the order in which they were sent.
        """
        cdef int slot
        cdef Exchange* exchange
        cdef uint64_t sent = self._may_have_left()
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
            _count_parked(self)
            self.dirty = True

    # ---- what must survive a crash

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
        return _take_image(self, finished)

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
        return _load_image(self, image)

    @final
    cdef int _wait_for_what_changed(self) except -1:
        """What is encoded next waits for what is not yet on disk, if there is any."""
        if self.durable and (self.dirty or self.version > self.committed_version):
            self.out.gate_wanted = True
        return 0
