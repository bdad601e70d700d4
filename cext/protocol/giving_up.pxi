# Exchanges whose messages will not be sent again, though they had no answer. Part of `_session.pyx`.
#
# They have expired, or are in quarantine. The server may hold such a PUBLISH and answer late, so its packet id stays
# out of use: for QoS 1 *held* until the connection has ended; for QoS 2 *reserved* until it is answered after all or
# the server has lost the session, also over a restart, as the image names it. Late answers to such an id are none to
# another message.

cdef enum:
    # Of those that are reserved the first is let go: a server that never answers QoS 2 has no exactly-once to lose;
    # and each image names all of them.
    RESERVED_MAX = 512


cdef list _abandon(Session session, list ids):
    cdef set wanted = set(ids)
    cdef set staying = set()
    cdef size_t index
    cdef int slot
    cdef Exchange* exchange
    for index in range(session.done.count):
        staying.add((<int64_t*>vector.at(&session.done, index))[0])
    for index in range(session.marks.count):
        staying.add((<Mark*>vector.at(&session.marks, index)).message_id)
    staying.update(session.refused)
    for message_id in wanted.intersection(session.parked):
        packet_id, state, qos, _left, _ = session.parked[message_id]
        if state == RELEASED:
            staying.add(message_id)
            continue
        del session.parked[message_id]
        _keep_out_of_use(session, packet_id, message_id, qos)
    _count_parked(session)
    for slot in range(session.table.capacity):
        exchange = &session.table.exchanges[slot]
        if exchange.state == FREE or exchange.message_id not in wanted:
            continue
        if exchange.state == RELEASED or exchange.asked_end > session.out.offered:
            staying.add(exchange.message_id)
            continue
        packet_id, message_id, qos = exchange.packet_id, exchange.message_id, exchange.qos
        if not session.unanswered or exchange.asked_end < session.unanswered_from:
            session.unanswered_from = exchange.asked_end
        session.unanswered.add(packet_id)
        exchanges.close(&session.table, exchange, ID_TAKEN)
        _keep_out_of_use(session, packet_id, message_id, qos)
    return [message_id for message_id in ids if message_id in staying]


cdef int _keep_out_of_use(Session session, packet_id, message_id, qos) except -1:
    cdef uint16_t first
    session.strays.add(packet_id)
    if qos == 1:
        session.held.append(packet_id)
        return 0
    session.reserved[packet_id] = message_id
    session.dirty = True
    if PyDict_Size(session.reserved) > RESERVED_MAX:
        first = next(iter(session.reserved))
        del session.reserved[first]
        session.table.exchange_of[first] = ID_FREE
    return 0
