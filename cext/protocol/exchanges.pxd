# Packet ids, and the exchanges that have one (MQTT 3.1.1 and 5.0, 2.2.1 and 4.3). Header only.
#
# The memory of a Table belongs to whoever holds the struct: `begin` makes it, `end` frees it.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stddef cimport size_t
from libc.stdlib cimport calloc, free, realloc

cdef enum ExchangeState:
    FREE = 0
    SENT = 1
    RELEASED = 2

cdef enum:
    ID_FREE = 0
    # Given to a message that is not in the window: it waits in memory, or its deletion is not yet on disk.
    ID_TAKEN = 0xFFFF
    EXCHANGES_MAX = 0xFFFE
    NO_EXCHANGE = -1

cdef struct Exchange:
    # Of a FREE one: the next FREE one, or NO_EXCHANGE.
    int64_t message_id
    # Stream offset of the end of the packet that waits for an answer, PUBLISH or PUBREL: it may have left once the
    # socket took this many bytes.
    uint64_t asked_end
    # Messages of QoS 0 before it in the stream: its answer proves them, too.
    uint64_t asked_behind
    # When its message was accepted, in milliseconds since boot; INT64_MIN where nobody knows.
    int64_t accepted_ms
    uint16_t packet_id
    uint8_t qos
    uint8_t state
    # An earlier copy of that packet may have left, as a rule on a connection before this one.
    uint8_t left_before
    # A copy of its PUBLISH may have left in a session that the server has lost since.
    uint8_t left_in_lost

cdef struct Table:
    # exchange_of[packet id] is ID_FREE, ID_TAKEN or the index of its exchange plus one.
    uint16_t* exchange_of
    Exchange* exchanges
    int capacity
    int first_free
    uint16_t last_packet_id
    int in_flight
    # QoS 2 exchanges among them whose PUBREL is not yet encoded.
    int unreleased


cdef inline int begin(Table* table) except -1:
    table.exchange_of = <uint16_t*>calloc(65536, sizeof(uint16_t))
    if table.exchange_of is NULL:
        raise MemoryError
    table.first_free = NO_EXCHANGE
    return 0


cdef inline void end(Table* table) noexcept:
    free(table.exchange_of)
    free(table.exchanges)


cdef inline uint16_t next_packet_id(Table* table) noexcept:
    # The next unused one, not taken; 0 where all are.
    cdef uint32_t _tries
    cdef uint16_t candidate = table.last_packet_id
    for _tries in range(65535):
        candidate = <uint16_t>(candidate + 1 if candidate < 65535 else 1)
        if table.exchange_of[candidate] == ID_FREE:
            table.last_packet_id = candidate
            return candidate
    return 0


cdef inline int reserve(Table* table) except -1:
    # Makes the next `open` one that cannot fail.
    cdef int index, capacity
    cdef Exchange* grown
    if table.first_free != NO_EXCHANGE:
        return 0
    capacity = min(max(table.capacity * 2, 32), <int>EXCHANGES_MAX)
    if capacity == table.capacity:
        raise AssertionError("the window was exceeded")
    grown = <Exchange*>realloc(table.exchanges, <size_t>capacity * sizeof(Exchange))
    if grown is NULL:
        raise MemoryError
    table.exchanges = grown
    for index in range(capacity - 1, table.capacity - 1, -1):
        grown[index].state = FREE
        grown[index].message_id = table.first_free
        table.first_free = index
    table.capacity = capacity
    return 0


cdef inline Exchange* open(Table* table, uint16_t packet_id, int64_t message_id, uint8_t qos, uint8_t state,
                           int64_t accepted_ms) noexcept:
    # After `reserve`.
    cdef int index = table.first_free
    cdef Exchange* exchange = &table.exchanges[index]
    table.first_free = <int>exchange.message_id
    table.exchange_of[packet_id] = <uint16_t>(index + 1)
    table.in_flight += 1
    exchange.message_id = message_id
    exchange.asked_end = 0
    exchange.accepted_ms = accepted_ms
    exchange.packet_id = packet_id
    exchange.qos = qos
    exchange.state = state
    exchange.left_before = False
    exchange.left_in_lost = False
    if qos == 2 and state == SENT:
        table.unreleased += 1
    return exchange


cdef inline Exchange* of_message(Table* table, int64_t message_id) noexcept:
    # NULL where it has none in flight.
    cdef int slot
    for slot in range(table.capacity):
        if table.exchanges[slot].state != FREE and table.exchanges[slot].message_id == message_id:
            return &table.exchanges[slot]
    return NULL


cdef inline bint is_any_asked(const Table* table, uint64_t offset) noexcept:
    # True where a question ends at this stream offset or before.
    cdef int slot
    for slot in range(table.capacity):
        if table.exchanges[slot].state != FREE and table.exchanges[slot].asked_end <= offset:
            return True
    return False


cdef inline void shift(Table* table, uint64_t cut, size_t size) noexcept:
    # What stands behind this stream offset moved back by so many bytes.
    cdef int slot
    for slot in range(table.capacity):
        if table.exchanges[slot].state != FREE and table.exchanges[slot].asked_end > cut:
            table.exchanges[slot].asked_end += size


cdef inline void close(Table* table, Exchange* exchange, uint16_t id_becomes) noexcept:
    table.exchange_of[exchange.packet_id] = id_becomes
    if exchange.qos == 2 and exchange.state == SENT:
        table.unreleased -= 1
    exchange.state = FREE
    exchange.message_id = table.first_free
    table.first_free = <int>(exchange - table.exchanges)
    table.in_flight -= 1


cdef inline void release(Table* table, Exchange* exchange, uint64_t pubrel_end) noexcept:
    # PUBREC came for a SENT one of QoS 2; its PUBREL ends at that offset.
    table.unreleased -= 1
    exchange.state = RELEASED
    exchange.asked_end = pubrel_end
    exchange.left_before = False
