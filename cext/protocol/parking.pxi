# What becomes of exchanges between connections. Part of `_session.pyx`.
#
# `park` ends a connection: every exchange is set aside under its message id. The owner then admits its messages again
# from the first one on, and `admit` finds what was set aside: an exchange goes on with its packet id and the right DUP
# flag, so that resends keep the original order, and are bounded by the window, without a second mechanism.


cdef int _park(Session session) except -1:
    cdef int slot
    cdef Exchange* exchange
    cdef uint64_t sent = session._may_have_left()
    cdef bint left
    for slot in range(session.table.capacity):
        exchange = &session.table.exchanges[slot]
        if exchange.state == FREE:
            continue
        left = exchange.left_before or exchange.asked_end <= sent
        if left or exchange.state == RELEASED or not session.durable:
            session.parked[exchange.message_id] = (
                exchange.packet_id, exchange.state, exchange.qos, left, exchange.left_in_lost)
            exchanges.close(&session.table, exchange, ID_TAKEN)
        else:
            exchanges.close(&session.table, exchange, ID_FREE)
            session.dirty = True
    topic_aliases.begin_connection(&session.aliases, 0)
    _count_parked(session)
    places.end_connection(&session.places)
    session._end_connection()
    session.strays.clear()
    for packet_id in session.held:
        session.table.exchange_of[<uint16_t>packet_id] = ID_FREE
    session.held.clear()
    session.unanswered.clear()
    return 0


cdef int _count_parked(Exchanges known) except -1:
    known.places.parked = 0
    for aside in known.parked.values():
        if aside[2] == 2:
            known.places.parked += 1
    return 0


cdef list _begin_new(Session session):
    """The server has lost its session: all packet ids are void. Returns the message ids in doubt."""
    cdef list in_doubt = []
    for packet_id in session.reserved:
        session.table.exchange_of[<uint16_t>packet_id] = ID_FREE
        session.dirty = True
    session.reserved.clear()
    for message_id, (packet_id, state, qos, left, left_in_lost) in list(session.parked.items()):
        if state == RELEASED:
            in_doubt.append(message_id)
        if session.durable or state == RELEASED:
            del session.parked[message_id]
            session.table.exchange_of[packet_id] = ID_FREE
        else:
            session.parked[message_id] = (packet_id, SENT, qos, False, left or left_in_lost)
        session.dirty = True
    _count_parked(session)
    places.forget_stale(&session.places)
    session.kept_until = UNKNOWN
    return in_doubt


cdef int _admit_parked(Session session, int64_t message_id, tuple aside, object topic, object payload, uint8_t flags,
                       object properties, int64_t accepted_ms) except -1:
    """After `exchanges.reserve`: go on with it where it stood."""
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
    cdef int others
    if state == RELEASED:
        send_buffer.reserve(&session.out, ACK_MAX_BYTES)
        # The link may have broken between PUBREC and its commit.
        session._wait_for_what_changed()
        exchange = session._ask_released(packet_id, message_id, qos, accepted_ms)
        exchange.left_before = left
        session.admitted_command = PUBREL | 2
        return 0
    if left:
        session.strays.add(packet_id)
    if qos == 2 and session.durable and session.places.limit < EXCHANGES_MAX:
        # A session that has gone back may hold other places, and not this one.
        others = max(places.stale_now(&session.places, session._is_mqtt_5()), session.places.parked - 1)
        gated = session.table.unreleased + 1 + others > places.noted(&session.places)
    end = session._encode_publish(topic, payload, <uint8_t>(flags | (8 if is_dup else 0)), packet_id, properties, gated)
    exchange = exchanges.open(&session.table, packet_id, message_id, qos, SENT, accepted_ms)
    session._ask(exchange, end)
    exchange.left_before = left
    exchange.left_in_lost = left_in_lost
    return 0


cdef int _release_parked(Session session, int64_t message_id) except -1:
    cdef uint16_t packet_id
    cdef Exchange* exchange
    aside = session.parked.get(message_id)
    if aside is None:
        return 0
    if aside[2] != 2:
        session.forget(message_id)
        return 0
    packet_id = aside[0]
    exchanges.reserve(&session.table)
    send_buffer.reserve(&session.out, ACK_MAX_BYTES)
    if session.durable:
        session.dirty = session.out.gate_wanted = True
    # Whether the server ever had it does not matter: nobody is to be told.
    exchange = session._ask_released(packet_id, message_id, 2, NOT_TIMED)
    exchange.left_before = True
    del session.parked[message_id]
    _count_parked(session)
    return 0
